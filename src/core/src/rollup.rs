//! Roll-up: a task's numbers as a fold over its direct children, recomputed each time and never incremented (I10).

use collect_api::{
    CollectShard, CollectTask, Phase,
    shard::ShardPhase,
    task::{ChildCounts, Failure, RecordCounts, ShardCounts},
};

use crate::{
    exit::{RetryClass, retry_class},
    text,
    tree::Node,
};

/// Failures that are listed.
pub const FAILURES: usize = 5;

/// A task's numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rolled {
    /// Direct child tasks by phase.
    pub tasks: ChildCounts,
    /// Shards below by phase.
    pub shards: ShardCounts,
    /// Records below.
    pub records: RecordCounts,
    /// Bytes below.
    pub bytes: i64,
    /// Live attempts below.
    pub workers: i32,
    /// A bounded sample of what failed.
    pub failures: Vec<Failure>,
    /// Whether every child that the plan knows exists and is terminal.
    pub complete: bool,
    /// Whether every child that exists is terminal.
    pub at_rest: bool,
}

/// Folds the direct children of a node.
pub fn roll_up(node: &Node, tasks: &[impl AsRef<CollectTask>], shards: &[impl AsRef<CollectShard>]) -> Rolled {
    let mut rolled = Rolled::default();
    rolled.tasks.total = count(node.children.len());
    rolled.shards.total = node.shards_below;
    rolled.records.expected = node.records;
    let mut terminal = 0;
    for task in tasks {
        terminal += usize::from(add_task(&mut rolled, task.as_ref()));
    }
    for shard in shards {
        terminal += usize::from(add_shard(&mut rolled, shard.as_ref()));
    }
    let seen = &rolled.tasks;
    rolled.tasks.pending += rolled.tasks.total
        - (seen.pending + seen.active + seen.succeeded + seen.collected + seen.failed + seen.cancelled);
    let seen = &rolled.shards;
    rolled.shards.pending = seen.total - (seen.running + seen.succeeded + seen.failed + seen.cancelled);
    rolled.failures.truncate(FAILURES);
    rolled.complete = terminal == node.children.len() + node.shards.len();
    rolled.at_rest = terminal == tasks.len() + shards.len();
    rolled
}

fn add_task(rolled: &mut Rolled, task: &CollectTask) -> bool {
    let Some(status) = &task.status else {
        rolled.tasks.pending += 1;
        return false;
    };
    let phase = status.phase.clone().unwrap_or(Phase::Pending);
    let bucket = match phase {
        Phase::Pending => &mut rolled.tasks.pending,
        Phase::Succeeded => &mut rolled.tasks.succeeded,
        Phase::Collected => &mut rolled.tasks.collected,
        Phase::Failed => &mut rolled.tasks.failed,
        Phase::Cancelled => &mut rolled.tasks.cancelled,
        Phase::Planning | Phase::Running | Phase::Paused | Phase::Validating | Phase::Other(_) => {
            &mut rolled.tasks.active
        }
    };
    *bucket += 1;
    if let Some(shards) = &status.shards {
        rolled.shards.running += shards.running;
        rolled.shards.succeeded += shards.succeeded;
        rolled.shards.failed += shards.failed;
        rolled.shards.cancelled += shards.cancelled;
        rolled.shards.retries += shards.retries;
    }
    if let Some(records) = &status.records {
        rolled.records.collected += records.collected;
        if let Some(verified) = records.verified {
            *rolled.records.verified.get_or_insert(0) += verified;
        }
    }
    rolled.bytes += status.bytes.unwrap_or(0);
    rolled.workers += status.workers.unwrap_or(0);
    if rolled.failures.len() < FAILURES {
        rolled.failures.extend(status.failures.iter().cloned());
    }
    phase.is_terminal()
}

fn add_shard(rolled: &mut Rolled, shard: &CollectShard) -> bool {
    let Some(status) = &shard.status else { return false };
    let live = status.attempts.last().is_some_and(collect_api::Attempt::is_live);
    rolled.workers += i32::from(live);
    rolled.shards.retries += count(
        status
            .attempts
            .iter()
            .filter_map(|attempt| attempt.outcome.as_ref())
            .filter(|outcome| matches!(retry_class(outcome), RetryClass::Failure | RetryClass::Disruption))
            .count(),
    ) + status.folded.as_ref().map_or(0, |folded| folded.failures + folded.disruptions);
    let phase = status.phase.clone().unwrap_or(ShardPhase::Pending);
    match &phase {
        ShardPhase::Running => rolled.shards.running += 1,
        ShardPhase::Succeeded => rolled.shards.succeeded += 1,
        ShardPhase::Failed => {
            rolled.shards.failed += 1;
            if rolled.failures.len() < FAILURES {
                rolled.failures.push(failure(shard));
            }
        }
        ShardPhase::Cancelled => rolled.shards.cancelled += 1,
        ShardPhase::Pending | ShardPhase::Paused | ShardPhase::Other(_) => {}
    }
    match (&status.result, &status.progress) {
        (Some(result), _) => {
            rolled.records.collected += result.tally.records;
            rolled.bytes += result.tally.bytes;
        }
        (None, Some(progress)) => {
            rolled.records.collected += progress.records;
            rolled.bytes += progress.bytes;
        }
        (None, None) => {}
    }
    phase.is_terminal()
}

fn failure(shard: &CollectShard) -> Failure {
    let status = shard.status.as_ref();
    let last = status.and_then(|status| status.attempts.last());
    Failure {
        name: shard.metadata.name.clone().unwrap_or_default(),
        outcome: last.and_then(|attempt| attempt.outcome.clone()),
        reason: last.and_then(|attempt| attempt.reason.clone()).unwrap_or_else(|| "Failed".into()),
        message: text::cut(status.and_then(|status| status.message.as_deref()).unwrap_or("no message"), 512),
    }
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use collect_api::{
        CollectShardSpec, CollectShardStatus, CollectTaskSpec, CollectTaskStatus,
        protocol::{CollectResult, Tally},
        shard::{ShardProgress, Slice},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{conditions::whole_seconds, tree::tests as plan};

    fn shard(index: i32, phase: ShardPhase, records: i64) -> Arc<CollectShard> {
        let spec = CollectShardSpec {
            task: "root".into(),
            root_uid: "u".into(),
            run: 1,
            index,
            slice: Slice { items: vec![] },
        };
        let mut shard = CollectShard::new(&format!("root-{index}"), spec);
        let mut status = CollectShardStatus { phase: Some(phase.clone()), ..Default::default() };
        match phase {
            ShardPhase::Succeeded => {
                let tally = Tally { records, bytes: records * 10, ..Tally::default() };
                status.result = Some(CollectResult { tally, ..CollectResult::default() });
            }
            ShardPhase::Running => {
                let at = whole_seconds(jiff::Timestamp::UNIX_EPOCH);
                status.progress = Some(ShardProgress {
                    attempt: 1,
                    seq: 1,
                    stage: "reading".into(),
                    records,
                    bytes: records * 10,
                    expected: None,
                    at,
                });
            }
            _ => {}
        }
        shard.status = Some(status);
        Arc::new(shard)
    }

    fn leaf(shards: i32) -> crate::tree::PlanTree {
        let mut lines = vec![plan::task(&[], 0, shards)];
        lines.extend((0..shards).map(plan::shard));
        plan::tree(&lines)
    }

    fn none() -> Vec<Arc<CollectTask>> {
        Vec::new()
    }

    #[test]
    fn a_task_is_complete_only_when_every_planned_child_is_terminal() {
        let tree = leaf(2);
        let root = tree.root().unwrap();
        let one = [shard(0, ShardPhase::Succeeded, 5)];
        assert!(!roll_up(root, &none(), &one).complete && roll_up(root, &none(), &one).at_rest);
        let two = [shard(0, ShardPhase::Succeeded, 5), shard(1, ShardPhase::Failed, 0)];
        let rolled = roll_up(root, &none(), &two);
        assert!(rolled.complete);
        assert_eq!(rolled.failures.len(), 1);
    }

    #[test]
    fn child_tasks_are_taken_as_they_stand() {
        let tree = plan::tree(&[
            plan::task(&[], 2, 0),
            plan::task(&["a"], 0, 1),
            plan::shard(0),
            plan::task(&["b"], 0, 1),
            plan::shard(0),
        ]);
        let mut child = CollectTask::new("root-a", CollectTaskSpec::default());
        child.status = Some(CollectTaskStatus {
            phase: Some(Phase::Succeeded),
            shards: Some(ShardCounts { total: 1, succeeded: 1, ..Default::default() }),
            records: Some(RecordCounts { expected: None, collected: 10, verified: Some(10) }),
            ..Default::default()
        });
        let rolled = roll_up(tree.root().unwrap(), &[Arc::new(child)], &Vec::<Arc<CollectShard>>::new());
        assert_eq!((rolled.tasks.total, rolled.tasks.succeeded, rolled.tasks.pending), (2, 1, 1));
        assert_eq!((rolled.shards.total, rolled.shards.succeeded, rolled.shards.pending), (2, 1, 1));
        assert_eq!(rolled.records.verified, Some(10));
        assert!(!rolled.complete);
    }

    proptest! {
        #[test]
        fn the_buckets_add_up_to_the_total(phases in proptest::collection::vec(0..6usize, 0..30), missing in 0..5i32) {
            let shards: Vec<_> = phases.iter().enumerate().map(|(i, p)| shard(i as i32, ShardPhase::KNOWN[*p].clone(), 3)).collect();
            let tree = leaf(shards.len() as i32 + missing);
            let rolled = roll_up(tree.root().unwrap(), &none(), &shards);
            let s = &rolled.shards;
            prop_assert_eq!(s.pending + s.running + s.succeeded + s.failed + s.cancelled, s.total);
            prop_assert_eq!(rolled.complete, missing == 0 && phases.iter().all(|p| ShardPhase::KNOWN[*p].is_terminal()));
        }
    }
}

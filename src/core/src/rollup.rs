//! Roll-up: a task's numbers as a fold over its direct children and what was folded of them, recomputed each time and never
//! incremented (I10).

use collect_api::{
    Attempt, CollectShard, CollectTask, DesiredState, Phase,
    condition::{RECONCILING, reason},
    fold::{Folded, FoldedPart},
    shard::ShardPhase,
    task::{ChildCounts, Failure, RecordCounts, ShardCounts},
};

use crate::{attempts, fold, ranges::IndexSet, retry, text, tree::Node};

/// Between the name of a shard and why it waits, in the message of the tasks above it.
const WAITS: &str = " waits: ";
/// Failures that are listed.
pub const FAILURES: usize = 10;

/// What holds for the children of a task by what stands above them.
#[derive(Clone, Debug, Default)]
pub struct Above {
    /// The strictest desired state on the path, the task included.
    pub desired: DesiredState,
    /// The retry tokens on the path, the task included.
    pub token: Option<String>,
}

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
    /// How often a retry took up work again below.
    pub redrives: i32,
    /// A bounded sample of what failed.
    pub failures: Vec<Failure>,
    /// Whether every child that the plan knows exists, or did, and is terminal.
    pub complete: bool,
    /// Whether every child that exists is terminal.
    pub at_rest: bool,
}

/// Folds the direct children of a node, those that are folded already included.
///
/// A child that ended without success and that a retry is about to take up again counts as pending, not as ended.
pub fn roll_up(
    node: &Node,
    folded: Option<&Folded>,
    above: &Above,
    tasks: &[impl AsRef<CollectTask>],
    shards: &[impl AsRef<CollectShard>],
) -> Rolled {
    let mut rolled = Rolled::default();
    let mut terminal = 0;
    for part in fold::parts(folded) {
        terminal += add_folded(&mut rolled, part);
    }
    let mut ended = 0;
    for task in tasks {
        ended += i32::from(add_task(&mut rolled, task.as_ref(), above));
    }
    for shard in shards {
        let shard = shard.as_ref();
        ended += i32::from(shard_has_ended(shard, above));
        add(&mut rolled, of_shard_above(shard, above));
    }
    rolled.tasks.total = count(node.children.len());
    rolled.shards.total = node.shards_below;
    rolled.records.expected = node.records;
    let seen = &rolled.tasks;
    rolled.tasks.pending = rolled.tasks.total
        - (seen.active + seen.succeeded + seen.partially_succeeded + seen.collected + seen.failed + seen.cancelled);
    let seen = &rolled.shards;
    rolled.shards.pending = seen.total - (seen.running + seen.succeeded + seen.failed + seen.cancelled);
    rolled.failures.truncate(FAILURES);
    rolled.complete = terminal + ended == count(node.children.len() + node.shards.len());
    rolled.at_rest = ended == count(tasks.len() + shards.len());
    rolled
}

/// How often a retry took up work again below a task.
pub fn redrives(
    folded: Option<&Folded>,
    tasks: &[impl AsRef<CollectTask>],
    shards: &[impl AsRef<CollectShard>],
) -> i32 {
    let folded: i32 = fold::parts(folded).map(|part| part.redrives).sum();
    let tasks: i32 = tasks.iter().filter_map(|task| task.as_ref().status.as_ref()?.redrives).sum();
    let shards: i32 = shards.iter().filter_map(|shard| shard.as_ref().status.as_ref()?.redrives).sum();
    folded + tasks + shards
}

/// Adds what was folded; gives back how many children that were.
fn add_folded(rolled: &mut Rolled, part: &FoldedPart) -> i32 {
    let phases = &part.phases;
    rolled.tasks.succeeded += phases.succeeded;
    rolled.tasks.partially_succeeded += phases.partially_succeeded;
    rolled.tasks.collected += phases.collected;
    rolled.tasks.failed += phases.failed;
    rolled.tasks.cancelled += phases.cancelled;
    let mut sum = Rolled {
        shards: part.counts.clone(),
        bytes: part.bytes,
        redrives: part.redrives,
        failures: part.failures.clone(),
        ..Rolled::default()
    };
    sum.records.collected = part.records;
    sum.records.verified = part.verified;
    add(rolled, sum);
    let shards = IndexSet::parse(&part.shards).map_or(0, |shards| shards.len());
    shards + phases.succeeded + phases.partially_succeeded + phases.collected + phases.failed + phases.cancelled
}

/// Adds one contribution to the numbers that are summed.
fn add(rolled: &mut Rolled, more: Rolled) {
    rolled.shards.running += more.shards.running;
    rolled.shards.succeeded += more.shards.succeeded;
    rolled.shards.failed += more.shards.failed;
    rolled.shards.cancelled += more.shards.cancelled;
    rolled.shards.retries += more.shards.retries;
    rolled.records.collected += more.records.collected;
    if let Some(verified) = more.records.verified {
        *rolled.records.verified.get_or_insert(0) += verified;
    }
    rolled.bytes += more.bytes;
    rolled.workers += more.workers;
    rolled.redrives += more.redrives;
    if rolled.failures.len() < FAILURES {
        rolled.failures.extend(more.failures);
    }
}

/// Adds a child task; whether it has ended.
fn add_task(rolled: &mut Rolled, task: &CollectTask, above: &Above) -> bool {
    let Some(status) = &task.status else { return false };
    let phase = status.phase.clone().unwrap_or(Phase::Pending);
    let due = task_is_due(task, &phase, above);
    let bucket = match phase {
        _ if due => None,
        Phase::Pending => None,
        Phase::Succeeded => Some(&mut rolled.tasks.succeeded),
        Phase::PartiallySucceeded => Some(&mut rolled.tasks.partially_succeeded),
        Phase::Collected => Some(&mut rolled.tasks.collected),
        Phase::Failed => Some(&mut rolled.tasks.failed),
        Phase::Cancelled => Some(&mut rolled.tasks.cancelled),
        Phase::Planning | Phase::Running | Phase::Paused | Phase::Validating | Phase::Other(_) => {
            Some(&mut rolled.tasks.active)
        }
    };
    if let Some(bucket) = bucket {
        *bucket += 1;
    }
    let mut shards = status.shards.clone().unwrap_or_default();
    if due {
        (shards.failed, shards.cancelled) = (0, 0);
    }
    let failures = if due { Vec::new() } else { status.failures.clone() };
    let records = status.records.clone().unwrap_or_default();
    let sum = Rolled {
        shards,
        records: RecordCounts { expected: None, ..records },
        bytes: status.bytes.unwrap_or(0),
        workers: status.workers.unwrap_or(0),
        redrives: status.redrives.unwrap_or(0),
        failures,
        ..Rolled::default()
    };
    add(rolled, sum);
    phase.is_terminal() && !due
}

/// Why some of the work below waits: the first shard that says so, here or further down.
pub fn waiting(tasks: &[impl AsRef<CollectTask>], shards: &[impl AsRef<CollectShard>]) -> Option<String> {
    let of_shard = |shard: &CollectShard| {
        let status = shard.status.as_ref()?;
        let waits = status.phase == Some(ShardPhase::Pending) && status.attempts.last().is_some_and(Attempt::is_live);
        let name = shard.metadata.name.as_deref().unwrap_or_default();
        status.message.as_ref().filter(|_| waits).map(|message| format!("{name}{WAITS}{message}"))
    };
    let of_task = |task: &CollectTask| {
        let status = task.status.as_ref()?;
        let message = status.message.as_ref().filter(|message| message.contains(WAITS))?;
        let runs = status.conditions.iter().any(|c| c.type_ == RECONCILING && c.reason == reason::RUNNING);
        runs.then(|| message.clone())
    };
    let shard = shards.iter().find_map(|shard| of_shard(shard.as_ref()));
    shard.or_else(|| tasks.iter().find_map(|task| of_task(task.as_ref())))
}

/// Whether a retry is about to take a child task up again.
pub fn task_is_due(task: &CollectTask, phase: &Phase, above: &Above) -> bool {
    let token = retry::token(above.token.as_deref(), task.metadata.annotations.as_ref());
    let retried = task.status.as_ref().and_then(|status| status.retried.as_deref());
    let desired = above.desired.max(task.spec.desired_state.unwrap_or_default());
    task.status.as_ref().is_some_and(retry::is_retriable)
        && phase.is_terminal()
        && retry::is_due(retried, token.as_deref(), desired)
}

/// Whether a retry is about to take a shard up again.
pub fn shard_is_due(shard: &CollectShard, above: &Above) -> bool {
    let token = retry::token(above.token.as_deref(), shard.metadata.annotations.as_ref());
    let Some(status) = &shard.status else { return false };
    matches!(status.phase, Some(ShardPhase::Failed | ShardPhase::Cancelled))
        && retry::is_due(status.retried.as_deref(), token.as_deref(), above.desired)
}

/// Whether nothing will happen to a shard any more.
pub fn shard_has_ended(shard: &CollectShard, above: &Above) -> bool {
    let phase = shard.status.as_ref().and_then(|status| status.phase.as_ref());
    phase.is_some_and(ShardPhase::is_terminal) && !shard_is_due(shard, above)
}

fn of_shard_above(shard: &CollectShard, above: &Above) -> Rolled {
    let mut one = of_shard(shard);
    if shard_is_due(shard, above) {
        (one.shards.failed, one.shards.cancelled) = (0, 0);
        one.failures.clear();
    }
    one
}

/// What a shard contributes as it stands.
pub fn of_shard(shard: &CollectShard) -> Rolled {
    let mut one = Rolled::default();
    let Some(status) = &shard.status else { return one };
    one.workers = i32::from(status.attempts.last().is_some_and(collect_api::Attempt::is_live));
    one.redrives = status.redrives.unwrap_or(0);
    one.shards.retries = attempts::repeated(&status.attempts, status.folded.as_ref());
    match status.phase.as_ref().unwrap_or(&ShardPhase::Pending) {
        ShardPhase::Running => one.shards.running = 1,
        ShardPhase::Succeeded => one.shards.succeeded = 1,
        ShardPhase::Failed => {
            one.shards.failed = 1;
            one.failures.push(failure(shard));
        }
        ShardPhase::Cancelled => one.shards.cancelled = 1,
        ShardPhase::Pending | ShardPhase::Paused | ShardPhase::Other(_) => {}
    }
    let ended = status.phase.as_ref().is_some_and(ShardPhase::is_terminal);
    match (&status.result, &status.progress) {
        (Some(result), _) => {
            one.records.collected = result.tally.records;
            one.bytes = result.tally.bytes;
        }
        // What a shard that failed had read is not at the sink.
        (None, Some(progress)) if !ended => {
            one.records.collected = progress.records;
            one.bytes = progress.bytes;
        }
        (None, _) => {}
    }
    one
}

fn failure(shard: &CollectShard) -> Failure {
    let status = shard.status.as_ref();
    let last = status.and_then(|status| status.attempts.last());
    Failure {
        name: shard.metadata.name.clone().unwrap_or_default(),
        outcome: last.and_then(|attempt| attempt.outcome.clone()),
        attempts: last.map(|attempt| attempt.n),
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
            first_attempt: None,
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
        assert!(
            !roll_up(root, None, &Above::default(), &none(), &one).complete
                && roll_up(root, None, &Above::default(), &none(), &one).at_rest
        );
        let two = [shard(0, ShardPhase::Succeeded, 5), shard(1, ShardPhase::Failed, 0)];
        let rolled = roll_up(root, None, &Above::default(), &none(), &two);
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
        let rolled = roll_up(
            tree.root().unwrap(),
            None,
            &Above::default(),
            &[Arc::new(child)],
            &Vec::<Arc<CollectShard>>::new(),
        );
        assert_eq!((rolled.tasks.total, rolled.tasks.succeeded, rolled.tasks.pending), (2, 1, 1));
        assert_eq!((rolled.shards.total, rolled.shards.succeeded, rolled.shards.pending), (2, 1, 1));
        assert_eq!(rolled.records.verified, Some(10));
        assert!(!rolled.complete);
    }

    #[test]
    fn what_a_retry_is_about_to_take_up_has_not_ended() {
        let tree = leaf(1);
        let failed = [shard(0, ShardPhase::Failed, 0)];
        let above = |desired| Above { desired, token: Some("again".into()) };
        let rolled = roll_up(tree.root().unwrap(), None, &above(DesiredState::Running), &none(), &failed);
        assert_eq!((rolled.complete, rolled.shards.failed, rolled.shards.pending), (false, 0, 1));
        let rolled = roll_up(tree.root().unwrap(), None, &above(DesiredState::Cancelled), &none(), &failed);
        assert_eq!((rolled.complete, rolled.shards.failed), (true, 1));
    }

    proptest! {
        #[test]
        fn the_buckets_add_up_to_the_total(phases in proptest::collection::vec(0..6usize, 0..30), missing in 0..5i32) {
            let shards: Vec<_> = phases.iter().enumerate().map(|(i, p)| shard(i as i32, ShardPhase::KNOWN[*p].clone(), 3)).collect();
            let tree = leaf(shards.len() as i32 + missing);
            let rolled = roll_up(tree.root().unwrap(), None, &Above::default(), &none(), &shards);
            let s = &rolled.shards;
            prop_assert_eq!(s.pending + s.running + s.succeeded + s.failed + s.cancelled, s.total);
            prop_assert_eq!(rolled.complete, missing == 0 && phases.iter().all(|p| ShardPhase::KNOWN[*p].is_terminal()));
        }
    }
}

//! Folding: finished children beyond `spec.history` become index ranges and sums in their parent's status, by one
//! compare-and-swap, and only then are their objects deleted. A live object whose index is folded is deleted, never counted.
//!
//! What did well and what did not are kept apart: a retry takes out everything that did not, at once.

use collect_api::{
    CollectShard, CollectTask, CollectTaskStatus, Phase,
    fold::{Folded, FoldedPart, FoldedPhases},
    shard::ShardPhase,
};

use crate::{
    ranges::{IndexSet, LONGEST, NotASet},
    report::{self, ChildReport},
    retry,
    rollup::{self, FAILURES},
};

/// The indexes that are folded, of shards and of child tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoldedIndexes {
    /// Own shards.
    pub shards: IndexSet,
    /// Child tasks, by their position in the plan.
    pub tasks: IndexSet,
}

impl FoldedIndexes {
    /// Whether nothing is folded.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty() && self.tasks.is_empty()
    }

    /// Reads them from a task's status.
    pub fn of(folded: Option<&Folded>) -> Result<Self, NotASet> {
        let mut all = Self::default();
        for part in parts(folded) {
            all.shards.extend(&IndexSet::parse(&part.shards)?);
            all.tasks.extend(&IndexSet::parse(&part.tasks)?);
        }
        Ok(all)
    }
}

/// The parts of what is folded.
pub fn parts(folded: Option<&Folded>) -> impl Iterator<Item = &FoldedPart> {
    folded.into_iter().flat_map(|folded| folded.done.iter().chain(&folded.undone))
}

/// A finished child that may be folded.
#[derive(Clone, Debug)]
pub enum Finished<'a> {
    /// A shard.
    Shard(&'a CollectShard),
    /// A child task at its position in the plan, with its report if it has one.
    Task(i32, &'a CollectTask, Option<Box<ChildReport>>),
}

impl Finished<'_> {
    fn index(&self) -> i32 {
        match self {
            Self::Shard(shard) => shard.spec.index,
            Self::Task(position, ..) => *position,
        }
    }

    fn did_well(&self) -> bool {
        match self {
            Self::Shard(shard) => {
                shard.status.as_ref().and_then(|status| status.phase.as_ref()) == Some(&ShardPhase::Succeeded)
            }
            Self::Task(_, task, _) => {
                task.status.as_ref().is_some_and(|status| status.phase.is_some() && !retry::is_retriable(status))
            }
        }
    }

    fn is_task(&self) -> bool {
        matches!(self, Self::Task(..))
    }
}

/// What is folded after the finished children beyond `history` are added; nothing if there are none beyond it.
///
/// The lowest indexes go first, so that the ranges stay short. Of each kind, and of what did well and what did not, the
/// newest `history` stay.
pub fn fold(folded: Option<&Folded>, finished: Vec<Finished<'_>>, history: usize) -> Result<Option<Folded>, NotASet> {
    let mut new = folded.cloned().unwrap_or_default();
    let mut changed = false;
    for (tasks, well) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut of_kind: Vec<_> =
            finished.iter().filter(|child| child.is_task() == tasks && child.did_well() == well).collect();
        of_kind.sort_by_key(|child| child.index());
        let beyond = of_kind.len().saturating_sub(history);
        let part = if well { &mut new.done } else { &mut new.undone };
        let mut sum = part.take().unwrap_or_default();
        changed |= add_all(&mut sum, of_kind.iter().take(beyond).copied(), tasks)?;
        *part = Some(sum).filter(|sum| *sum != FoldedPart::default());
    }
    Ok(changed.then_some(new))
}

/// Adds children of one kind while their ranges fit; whether any was added.
fn add_all<'a, 'b: 'a>(
    sum: &mut FoldedPart,
    children: impl Iterator<Item = &'a Finished<'b>>,
    tasks: bool,
) -> Result<bool, NotASet> {
    let mut indexes = IndexSet::parse(if tasks { &sum.tasks } else { &sum.shards })?;
    let mut changed = false;
    for child in children {
        if indexes.contains(child.index()) {
            continue;
        }
        let mut more = indexes.clone();
        more.insert(child.index());
        // Gaps close as their children finish; until then what would not fit stays an object.
        if more.to_string().len() > LONGEST {
            continue;
        }
        indexes = more;
        changed = true;
        match child {
            Finished::Shard(shard) => add_shard(sum, shard),
            Finished::Task(_, task, report) => add_task(sum, task, report.as_deref()),
        }
    }
    *(if tasks { &mut sum.tasks } else { &mut sum.shards }) = indexes.to_string();
    Ok(changed)
}

fn add_shard(sum: &mut FoldedPart, shard: &CollectShard) {
    let one = rollup::of_shard(shard);
    add_counts(sum, &one.shards);
    sum.records += one.records.collected;
    sum.bytes += one.bytes;
    sum.redrives += one.redrives;
    add_failures(sum, one.failures);
    report::add(&mut sum.comparison, report::of_shard(shard));
}

fn add_task(sum: &mut FoldedPart, task: &CollectTask, report: Option<&ChildReport>) {
    let status = task.status.clone().unwrap_or_default();
    *phase_mut(&mut sum.phases, &status) += 1;
    add_counts(sum, &status.shards.unwrap_or_default());
    let records = status.records.unwrap_or_default();
    sum.records += records.collected;
    if let Some(verified) = records.verified {
        *sum.verified.get_or_insert(0) += verified;
    }
    sum.bytes += status.bytes.unwrap_or(0);
    sum.redrives += status.redrives.unwrap_or(0);
    add_failures(sum, status.failures);
    if let Some(report) = report {
        report::add(&mut sum.comparison, report::of_child(report));
    }
}

fn phase_mut<'a>(phases: &'a mut FoldedPhases, status: &CollectTaskStatus) -> &'a mut i32 {
    match status.phase {
        Some(Phase::Succeeded) => &mut phases.succeeded,
        Some(Phase::PartiallySucceeded) => &mut phases.partially_succeeded,
        Some(Phase::Collected) => &mut phases.collected,
        Some(Phase::Cancelled) => &mut phases.cancelled,
        _ => &mut phases.failed,
    }
}

fn add_counts(sum: &mut FoldedPart, more: &collect_api::task::ShardCounts) {
    sum.counts.total += more.succeeded + more.failed + more.cancelled;
    sum.counts.succeeded += more.succeeded;
    sum.counts.failed += more.failed;
    sum.counts.cancelled += more.cancelled;
    sum.counts.retries += more.retries;
}

fn add_failures(sum: &mut FoldedPart, more: Vec<collect_api::task::Failure>) {
    sum.failures.extend(more);
    sum.failures.truncate(FAILURES);
}

#[cfg(test)]
mod tests {
    use collect_api::{
        CollectShardSpec, CollectShardStatus,
        protocol::{CollectResult, Tally},
        shard::Slice,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{rollup::roll_up, tree::tests as plan};

    fn shard(index: i32, phase: ShardPhase) -> CollectShard {
        let spec = CollectShardSpec {
            task: "root".into(),
            root_uid: "u".into(),
            run: 1,
            index,
            slice: Slice { items: vec![] },
            first_attempt: None,
        };
        let mut shard = CollectShard::new(&format!("root-{index}"), spec);
        let records = i64::from(index) + 1;
        let tally = Tally { records, bytes: records, source: records, ..Tally::default() };
        let result = (phase == ShardPhase::Succeeded).then(|| CollectResult { tally, ..CollectResult::default() });
        shard.status = Some(CollectShardStatus { phase: Some(phase), result, ..Default::default() });
        shard
    }

    #[test]
    fn only_what_is_beyond_the_history_goes_the_lowest_first() {
        let shards: Vec<_> = (0..5).map(|index| shard(index, ShardPhase::Succeeded)).collect();
        let folded = fold(None, shards.iter().map(Finished::Shard).collect(), 2).unwrap().unwrap();
        let done = folded.done.clone().unwrap();
        assert_eq!((done.shards.as_str(), done.records, done.counts.succeeded), ("0-2", 6, 3));
        assert_eq!(folded.undone, None);
        // The same children again: nothing is counted twice.
        let again = fold(Some(&folded), shards.iter().map(Finished::Shard).collect(), 2).unwrap();
        assert_eq!(again, None);
    }

    #[test]
    fn what_failed_is_kept_apart_and_names_what_failed() {
        let shards = [shard(0, ShardPhase::Failed), shard(1, ShardPhase::Succeeded), shard(2, ShardPhase::Cancelled)];
        let folded = fold(None, shards.iter().map(Finished::Shard).collect(), 0).unwrap().unwrap();
        let undone = folded.undone.unwrap();
        assert_eq!((undone.shards.as_str(), undone.counts.failed, undone.counts.cancelled), ("0,2", 1, 1));
        assert_eq!(undone.failures[0].name, "root-0");
        assert_eq!(folded.done.unwrap().shards, "1");
    }

    proptest! {
        /// I10: whatever is folded, and in whatever steps, the roll-up is the same.
        #[test]
        fn folding_changes_no_number(phases in proptest::collection::vec(0..3usize, 1..40), steps in proptest::collection::vec(0..40usize, 0..6)) {
            let of = [ShardPhase::Succeeded, ShardPhase::Failed, ShardPhase::Cancelled];
            let all: Vec<_> = phases.iter().enumerate().map(|(i, p)| shard(i as i32, of[*p].clone())).collect();
            let mut lines = vec![plan::task(&[], 0, all.len() as i32)];
            lines.extend((0..all.len() as i32).map(plan::shard));
            let tree = plan::tree(&lines);
            let roll = |folded: Option<&Folded>| {
                let indexes = FoldedIndexes::of(folded).unwrap();
                let left: Vec<_> = all.iter().filter(|s| !indexes.shards.contains(s.spec.index)).cloned().map(std::sync::Arc::new).collect();
                let mut rolled = roll_up(tree.root().unwrap(), folded, &rollup::Above::default(), &Vec::<std::sync::Arc<CollectTask>>::new(), &left);
                rolled.failures.sort_by(|a, b| a.name.cmp(&b.name));
                if rolled.shards.failed > FAILURES as i32 { rolled.failures.clear(); }
                (rolled, left)
            };
            let (before, _) = roll(None);
            let mut folded = None;
            for history in steps {
                let (_, left) = roll(folded.as_ref());
                let finished = left.iter().map(|shard| Finished::Shard(shard)).collect();
                if let Some(new) = fold(folded.as_ref(), finished, history).unwrap() {
                    folded = Some(new);
                }
                prop_assert_eq!(&roll(folded.as_ref()).0, &before);
            }
        }
    }
}

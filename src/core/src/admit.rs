//! Admission: one pure pass per root says which tasks and shards to create and which shards may start.
//!
//! Slots are allotted down the tree in the plan's order. At most parallelism + lookahead unfinished shards exist at a time,
//! over the whole tree, so a large plan never becomes a large number of objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use collect_api::{Attempt, CollectShard, DesiredState, Phase, shard::ShardPhase};
use jiff::Timestamp;

use crate::{attempts::backoff_left, fold::FoldedIndexes, tree::PlanTree};

/// A CollectTask as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSeen {
    /// Uid.
    pub uid: String,
    /// Phase; absent before its first status.
    pub phase: Option<Phase>,
    /// Its own desired state.
    pub desired: Option<DesiredState>,
    /// Its own bound on workers.
    pub parallelism: Option<i32>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

/// A CollectShard as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSeen {
    /// Uid.
    pub uid: String,
    /// State as far as admission cares.
    pub state: ShardState,
}

/// State of a shard as far as admission cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// Has a live attempt, or is being deleted with one.
    Live,
    /// Waits; may start after this time.
    Waiting(Duration),
    /// Nothing happens to it any more.
    Over,
}

impl ShardState {
    /// Of a shard as it is seen.
    pub fn of(shard: &CollectShard, now: Timestamp) -> Self {
        let status = shard.status.as_ref();
        let last = status.and_then(|status| status.attempts.last());
        if last.is_some_and(Attempt::is_live) {
            return Self::Live;
        }
        if status.and_then(|status| status.phase.as_ref()).is_some_and(ShardPhase::is_terminal) {
            return Self::Over;
        }
        // A shard that is being deleted keeps its place until it is gone: its name is taken.
        if shard.metadata.deletion_timestamp.is_some() {
            return Self::Live;
        }
        let retried = last.zip(status).is_some_and(|(last, status)| last.n <= status.forgiven.unwrap_or(0));
        let left = last.filter(|_| !retried).and_then(|attempt| backoff_left(attempt, now));
        Self::Waiting(left.unwrap_or(Duration::ZERO))
    }
}

/// What exists of a tree.
#[derive(Clone, Debug, Default)]
pub struct TreeSeen {
    /// Tasks by name, the root included; only those whose owner is the right one.
    pub tasks: BTreeMap<String, TaskSeen>,
    /// Shards by name of their task and index; only those whose owner is that task.
    pub shards: BTreeMap<String, BTreeMap<i32, ShardSeen>>,
    /// What is folded, by name of the task; it is never created again.
    pub folded: BTreeMap<String, FoldedIndexes>,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Nodes (indexes in the tree) whose task is to be created.
    pub tasks: Vec<usize>,
    /// Shards to be created, each with its first attempt: there is a slot for it.
    pub shards: Vec<NewShard>,
    /// Uids of the shards that may start or go on.
    pub starts: BTreeSet<String>,
    /// When a waiting shard's time comes, or when more may start.
    pub next: Option<Duration>,
}

/// A shard to be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewShard {
    /// Its task, as an index in the tree.
    pub node: usize,
    /// Index within the task.
    pub index: i32,
}

/// Shards that may wait (for a backoff, at the end of a pause) beside those that run, without keeping others from their slots.
pub fn lookahead(parallelism: i32) -> i32 {
    (parallelism / 2).clamp(2, 50)
}

/// Objects created in one pass at most: the first of many start while the rest is still being made.
const BATCH: usize = 64;

/// Shards that start at once in a new run; twice as many may run with each second that follows. A fault that concerns them all
/// shows before hundreds have met it, and the first results do not wait behind hundreds of beginnings.
const FIRST: i64 = 16;

/// How many may run, and how long that holds. `worked_for` is how long this process has worked on the run. Whoever has ended shows
/// that all is well, so that nobody waits any longer.
fn bound(parallelism: i64, seen: &TreeSeen, worked_for: Duration) -> (i64, Option<Duration>) {
    let doublings = worked_for.as_secs().min(32);
    let gently = FIRST << doublings;
    let mut shards = seen.shards.values().flat_map(BTreeMap::values);
    let none_ended =
        shards.all(|shard| shard.state != ShardState::Over) && seen.folded.values().all(|it| it.is_empty());
    if gently < parallelism && none_ended {
        (gently, Some(Duration::from_secs(doublings + 1).saturating_sub(worked_for)))
    } else {
        (parallelism, None)
    }
}

/// One pass of admission. `worked_for` is how long this process has worked on the run.
pub fn admit(tree: &PlanTree, seen: &TreeSeen, parallelism: i32, worked_for: Duration) -> Admission {
    let (bound, next) = bound(i64::from(parallelism.max(0)), seen, worked_for);
    let mut pass = Pass {
        tree,
        seen,
        out: Admission { next, ..Admission::default() },
        window: bound + i64::from(lookahead(parallelism)),
        unfinished: 0,
    };
    pass.unfinished = seen
        .shards
        .values()
        .flat_map(BTreeMap::values)
        .filter(|shard| shard.state != ShardState::Over)
        .count()
        .try_into()
        .unwrap_or(i64::MAX);
    if !tree.nodes.is_empty() {
        let live = pass.live(0);
        pass.node(0, DesiredState::Running, (bound - live).max(0));
    }
    pass.out
}

struct Pass<'a> {
    tree: &'a PlanTree,
    seen: &'a TreeSeen,
    out: Admission,
    window: i64,
    unfinished: i64,
}

impl Pass<'_> {
    /// Live shards of a node and of all nodes below it.
    fn live(&self, index: usize) -> i64 {
        let Some(node) = self.tree.nodes.get(index) else { return 0 };
        let own = self
            .seen
            .shards
            .get(&node.name)
            .map_or(0, |shards| shards.values().filter(|shard| shard.state == ShardState::Live).count());
        i64::try_from(own).unwrap_or(i64::MAX) + node.children.iter().map(|child| self.live(*child)).sum::<i64>()
    }

    /// Walks a node with `slots` free; gives back how many it used.
    fn node(&mut self, index: usize, above: DesiredState, slots: i64) -> i64 {
        let tree = self.tree;
        let Some(node) = tree.nodes.get(index) else { return 0 };
        let Some(task) = self.seen.tasks.get(&node.name) else {
            if above == DesiredState::Running && self.has_room(node.shards_below) && self.out.tasks.len() < BATCH {
                self.out.tasks.push(index);
                // Its shards follow in the next pass: their places are taken already.
                self.unfinished += i64::try_from(node.shards.len()).unwrap_or(i64::MAX);
            }
            return 0;
        };
        let desired = above.max(task.desired.unwrap_or_default());
        if task.deleting || task.phase.as_ref().is_some_and(Phase::is_terminal) {
            return 0;
        }
        let own = match task.parallelism {
            Some(bound) if index != 0 => slots.min((i64::from(bound) - self.live(index)).max(0)),
            _ => slots,
        };
        let mut used = 0;
        let (none, nothing) = (BTreeMap::new(), FoldedIndexes::default());
        let shards = self.seen.shards.get(&node.name).unwrap_or(&none);
        let folded = self.seen.folded.get(&node.name).unwrap_or(&nothing);
        for ShardSeen { uid, state } in shards.values() {
            match state {
                ShardState::Waiting(wait) if desired == DesiredState::Running => {
                    if !wait.is_zero() {
                        self.out.next = Some(self.out.next.map_or(*wait, |next| next.min(*wait)));
                    } else if used < own {
                        used += 1;
                        self.out.starts.insert(uid.clone());
                    }
                }
                ShardState::Live => {
                    self.out.starts.insert(uid.clone());
                }
                _ => {}
            }
        }
        let mut missing = (0..i32::try_from(node.shards.len()).unwrap_or(i32::MAX))
            .filter(|shard| !folded.shards.contains(*shard) && !shards.contains_key(shard));
        while desired == DesiredState::Running
            && used < own
            && self.unfinished < self.window
            && self.out.shards.len() < BATCH
            && let Some(shard) = missing.next()
        {
            used += 1;
            self.unfinished += 1;
            self.out.shards.push(NewShard { node: index, index: shard });
        }
        for (position, child) in node.children.iter().enumerate() {
            if !i32::try_from(position).is_ok_and(|position| folded.tasks.contains(position)) {
                used += self.node(*child, desired, own - used);
            }
        }
        used
    }

    /// A task is created when its first shard could be; one without shards costs nothing.
    fn has_room(&self, shards: i32) -> bool {
        shards == 0 || self.unfinished < self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tests::{shard, task, tree};

    fn seen_task() -> TaskSeen {
        TaskSeen { uid: "t".into(), phase: None, desired: None, parallelism: None, deleting: false }
    }

    fn two_leaves(each: i32) -> PlanTree {
        let mut lines = vec![task(&[], 2, 0)];
        for name in ["a", "b"] {
            lines.push(task(&[name], 0, each));
            lines.extend((0..each).map(shard));
        }
        tree(&lines)
    }

    /// Plays the pass until nothing changes: everything admitted is created and started, started shards end at once.
    fn play(tree: &PlanTree, parallelism: i32) -> (usize, usize) {
        let mut seen = TreeSeen::default();
        seen.tasks.insert("root".into(), seen_task());
        let (mut most_live, mut most_unfinished) = (0, 0);
        for _ in 0..10_000 {
            let admission = admit(tree, &seen, parallelism, Duration::ZERO);
            if admission == Admission::default() {
                break;
            }
            for index in &admission.tasks {
                seen.tasks.insert(tree.nodes[*index].name.clone(), seen_task());
            }
            for NewShard { node, index } in &admission.shards {
                let name = &tree.nodes[*node].name;
                // Every third one fails at first and waits for its next attempt.
                let state = if index % 3 == 0 { ShardState::Waiting(Duration::ZERO) } else { ShardState::Live };
                seen.shards
                    .entry(name.clone())
                    .or_default()
                    .insert(*index, ShardSeen { uid: format!("{name}-{index}"), state });
            }
            let count = |state: &dyn Fn(ShardState) -> bool| {
                seen.shards.values().flat_map(BTreeMap::values).filter(|shard| state(shard.state)).count()
            };
            most_unfinished = most_unfinished.max(count(&|state| state != ShardState::Over));
            most_live = most_live.max(count(&|state| state == ShardState::Live));
            for shard in seen.shards.values_mut().flat_map(BTreeMap::values_mut) {
                shard.state = match shard.state {
                    ShardState::Live => ShardState::Over,
                    ShardState::Waiting(_) if admission.starts.contains(&shard.uid) => ShardState::Live,
                    state => state,
                };
            }
        }
        let over = seen.shards.values().flat_map(BTreeMap::values).filter(|s| s.state == ShardState::Over).count();
        assert_eq!(over as i32, tree.nodes[0].shards_below, "every shard is admitted in the end");
        assert_eq!(seen.tasks.len() as i32, tree.nodes[0].tasks_below + 1);
        (most_live, most_unfinished)
    }

    #[test]
    fn everything_is_admitted_within_the_window() {
        for parallelism in [1, 3, 8] {
            let (live, unfinished) = play(&two_leaves(40), parallelism);
            assert!(live <= parallelism as usize, "{live}");
            assert!(unfinished <= (parallelism + lookahead(parallelism)) as usize, "{unfinished}");
        }
    }

    #[test]
    fn tasks_are_created_no_faster_than_their_shards_find_room() {
        let mut lines = vec![task(&[], 50, 0)];
        for value in 0..50 {
            lines.extend([task(&[&value.to_string()], 0, 1), shard(0)]);
        }
        let mut seen = TreeSeen::default();
        seen.tasks.insert("root".into(), seen_task());
        assert_eq!(admit(&tree(&lines), &seen, 4, Duration::ZERO).tasks.len(), 6);
    }

    #[test]
    fn what_is_folded_is_never_created_again() {
        let tree = two_leaves(3);
        let mut seen = TreeSeen::default();
        seen.tasks.insert("root".into(), seen_task());
        seen.tasks.insert("root-b".into(), seen_task());
        let indexes = |text| crate::ranges::IndexSet::parse(text).unwrap();
        seen.folded.insert("root".into(), FoldedIndexes { tasks: indexes("0"), ..Default::default() });
        seen.folded.insert("root-b".into(), FoldedIndexes { shards: indexes("0-1"), ..Default::default() });
        let admission = admit(&tree, &seen, 4, Duration::ZERO);
        assert_eq!((admission.tasks, admission.shards), (vec![], vec![NewShard { node: 2, index: 2 }]));
    }

    #[test]
    fn nothing_starts_below_a_pause() {
        let tree = two_leaves(2);
        let mut seen = TreeSeen::default();
        seen.tasks.insert("root".into(), seen_task());
        seen.tasks.insert("root-a".into(), TaskSeen { desired: Some(DesiredState::Paused), ..seen_task() });
        let admission = admit(&tree, &seen, 4, Duration::ZERO);
        assert_eq!(admission.tasks, [2]);
        assert_eq!(admission.shards, []);
    }

    #[test]
    fn a_childs_own_bound_holds() {
        let tree = two_leaves(3);
        let mut seen = TreeSeen::default();
        seen.tasks.insert("root".into(), seen_task());
        seen.tasks.insert("root-a".into(), TaskSeen { parallelism: Some(1), ..seen_task() });
        seen.tasks.insert("root-b".into(), seen_task());
        for name in ["root-a", "root-b"] {
            for index in 0..3 {
                let state = ShardState::Waiting(Duration::ZERO);
                seen.shards
                    .entry(name.into())
                    .or_default()
                    .insert(index, ShardSeen { uid: format!("{name}-{index}"), state });
            }
        }
        let starts: Vec<_> = admit(&tree, &seen, 3, Duration::ZERO).starts.into_iter().collect();
        assert_eq!(starts, ["root-a-0", "root-b-0", "root-b-1"]);
    }

    #[test]
    fn parallelism_zero_starts_nothing() {
        let tree = two_leaves(1);
        let mut seen = TreeSeen::default();
        seen.tasks.insert("root".into(), seen_task());
        let admission = admit(&tree, &seen, 0, Duration::ZERO);
        assert_eq!((admission.shards, admission.starts), (vec![], BTreeSet::new()));
    }

    #[test]
    fn a_new_run_starts_gently_until_one_has_ended() {
        let tree = tree(&[vec![task(&[], 0, 90)], (0..90).map(shard).collect()].concat());
        let mut seen = TreeSeen::default();
        seen.tasks.insert("root".into(), seen_task());
        let started = |seen: &TreeSeen, after: u64| {
            let admission = admit(&tree, seen, 50, Duration::from_millis(after));
            (admission.shards.len(), admission.next)
        };
        assert_eq!(started(&seen, 0), (16, Some(Duration::from_secs(1))));
        assert_eq!(started(&seen, 1_400), (32, Some(Duration::from_millis(600))));
        assert_eq!(started(&seen, 2_000), (50, None));
        let one = ShardSeen { uid: "s".into(), state: ShardState::Over };
        seen.shards.entry("root".into()).or_default().insert(0, one);
        assert_eq!(started(&seen, 0), (50, None));
    }

    #[test]
    fn a_backoff_is_waited_for() {
        let tree = tree(&[task(&[], 0, 1), shard(0)]);
        let mut seen = TreeSeen::default();
        seen.tasks.insert("root".into(), seen_task());
        let state = ShardState::Waiting(Duration::from_secs(7));
        seen.shards.entry("root".into()).or_default().insert(0, ShardSeen { uid: "s".into(), state });
        let admission = admit(&tree, &seen, 4, Duration::ZERO);
        assert!(admission.starts.is_empty());
        assert_eq!(admission.next, Some(Duration::from_secs(7)));
    }
}

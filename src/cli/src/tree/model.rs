//! The tree as it is shown: tasks, shards and reports put together. Pure.

use std::collections::{BTreeMap, BTreeSet};

use collect_api::{CollectShard, CollectTask, ValidationReport, shard::ShardPhase};
use collect_core::{ranges::IndexSet, text};
use jiff::Timestamp;
use kube::ResourceExt;

use crate::{output::Tone, pace};

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A CollectTask.
    Task,
    /// A CollectShard.
    Shard,
}

/// Children without an object of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Not created yet.
    pub waiting: i32,
    /// Finished well; their sums are kept in the parent.
    pub done: i32,
    /// Failed or cancelled; their sums are kept in the parent.
    pub undone: i32,
}

/// A task or shard with what lies below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Kind.
    pub kind: Kind,
    /// Name of the object.
    pub name: String,
    /// What people call it, where the source has a name for it.
    pub label: Option<String>,
    /// Its phase.
    pub phase: String,
    /// Share of the work that is done, in percent.
    pub progress: Option<i32>,
    /// Shards that succeeded, and all.
    pub shards: Option<(i32, i32)>,
    /// Records collected, and expected.
    pub records: Option<(i64, Option<i64>)>,
    /// Records a second.
    pub per_second: Option<f64>,
    /// Seconds until it has collected everything.
    pub left: Option<i64>,
    /// Newest attempt of a shard.
    pub attempt: Option<i32>,
    /// Collected against source.
    pub matched: Option<String>,
    /// Why it waits or failed.
    pub note: String,
    /// What lies below, in the order of the plan.
    pub children: Vec<Node>,
    /// What lies below and has no object.
    pub unseen: Unseen,
}

/// The tree below a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// The task.
    pub root: Node,
}

impl Tree {
    /// The tree below `top`, of these objects; others among them are left out.
    pub fn of(
        top: &CollectTask,
        tasks: &[impl AsRef<CollectTask>],
        shards: &[impl AsRef<CollectShard>],
        reports: &[impl AsRef<ValidationReport>],
        now: Timestamp,
    ) -> Self {
        let mut below = Below::default();
        for task in tasks.iter().map(AsRef::as_ref) {
            if let Some(parent) = parent_uid(task) {
                below.tasks.entry(parent).or_default().push(task);
            }
        }
        for shard in shards.iter().map(AsRef::as_ref) {
            if let Some(parent) = parent_uid(shard) {
                below.shards.entry(parent).or_default().push(shard);
            }
        }
        for report in reports.iter().map(AsRef::as_ref) {
            below.reports.insert((report.spec.task_uid.as_str(), report.spec.run), report);
        }
        Self { root: below.task(top, now, DEEPEST) }
    }
}

impl Tree {
    /// Names of all tasks and shards of the tree.
    pub fn names(&self) -> BTreeSet<&str> {
        fn add<'a>(node: &'a Node, names: &mut BTreeSet<&'a str>) {
            names.insert(&node.name);
            node.children.iter().for_each(|child| add(child, names));
        }
        let mut names = BTreeSet::new();
        add(&self.root, &mut names);
        names
    }
}

/// No real tree is as deep; owner references that go in a circle end here.
const DEEPEST: usize = 16;

fn parent_uid<K: kube::Resource>(object: &K) -> Option<&str> {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

#[derive(Default)]
struct Below<'a> {
    tasks: BTreeMap<&'a str, Vec<&'a CollectTask>>,
    shards: BTreeMap<&'a str, Vec<&'a CollectShard>>,
    reports: BTreeMap<(&'a str, i64), &'a ValidationReport>,
}

impl Below<'_> {
    fn task(&self, task: &CollectTask, now: Timestamp, depth: usize) -> Node {
        let uid = task.metadata.uid.as_deref().unwrap_or_default();
        let mut children = Vec::new();
        if depth > 0 {
            let mut tasks = self.tasks.get(uid).cloned().unwrap_or_default();
            tasks.sort_by_key(|task| path_of(task));
            children.extend(tasks.into_iter().map(|task| self.task(task, now, depth - 1)));
            let mut shards = self.shards.get(uid).cloned().unwrap_or_default();
            shards.sort_by_key(|shard| shard.spec.index);
            children.extend(shards.into_iter().map(of_shard));
        }
        let status = task.status.clone().unwrap_or_default();
        let is_active = status.phase.as_ref().is_none_or(|phase| !phase.is_terminal());
        let live: f64 = children.iter().filter_map(|child| child.per_second.filter(|_| child.is_active())).sum();
        let per_second = if is_active && live > 0.0 { Some(live) } else { pace::average(task, now) };
        let run = status.run.unwrap_or(1);
        let report = self.reports.get(&(uid, run)).and_then(|report| report.status.as_ref());
        let counts = report.and_then(|report| report.counts.as_ref());
        let matched = counts.and_then(|counts| Some(text::matched(counts.source?, counts.collected)));
        let unseen = unseen(&status, &children);
        let last_step = task.spec.part_of.as_ref().and_then(|part| part.path.last());
        Node {
            kind: Kind::Task,
            name: task.name_any(),
            label: last_step.and_then(|step| step.label.clone()),
            phase: status.phase.as_ref().map_or_else(|| "Pending".to_owned(), ToString::to_string),
            progress: status.progress,
            shards: status.shards.as_ref().map(|shards| (shards.succeeded, shards.total)),
            records: status.records.as_ref().map(|records| (records.collected, records.expected)),
            per_second,
            left: pace::left(task, per_second, now),
            attempt: None,
            matched: matched.or_else(|| status.summary.as_ref().and_then(|summary| summary.match_.clone())),
            note: note(&status),
            children,
            unseen,
        }
    }
}

fn path_of(task: &CollectTask) -> (Vec<String>, String) {
    let steps = task.spec.part_of.as_ref().map(|part| part.path.iter().map(|step| step.value.clone()).collect());
    (steps.unwrap_or_default(), task.name_any())
}

/// Children that the plan knows and that no object stands for.
fn unseen(status: &collect_api::CollectTaskStatus, children: &[Node]) -> Unseen {
    let of = |part: Option<&collect_api::fold::FoldedPart>| {
        let size = |set: &str| IndexSet::parse(set).map_or(0, |set| set.len());
        part.map_or(0, |part| size(&part.tasks) + size(&part.shards))
    };
    let folded = status.folded.as_ref();
    let (done, undone) =
        (of(folded.and_then(|folded| folded.done.as_ref())), of(folded.and_then(|folded| folded.undone.as_ref())));
    // A task has child tasks or shards, never both; shards below child tasks are theirs to tell of.
    let total = match (&status.tasks, &status.shards) {
        (Some(tasks), _) if tasks.total > 0 => tasks.total,
        (_, Some(shards)) => shards.total,
        _ => 0,
    };
    let seen = i32::try_from(children.len()).unwrap_or(i32::MAX);
    Unseen { waiting: (total - done - undone).saturating_sub(seen).max(0), done, undone }
}

/// What a person must know of a task that does not simply go on.
fn note(status: &collect_api::CollectTaskStatus) -> String {
    use collect_api::Phase::{Collected, PartiallySucceeded, Running, Succeeded};
    match status.phase {
        Some(Running | Succeeded | PartiallySucceeded | Collected) => status
            .failures
            .first()
            .map(|failure| format!("{}: {}: {}", failure.name, failure.reason, failure.message))
            .unwrap_or_default(),
        _ => status.message.clone().unwrap_or_default(),
    }
}

fn of_shard(shard: &CollectShard) -> Node {
    let status = shard.status.clone().unwrap_or_default();
    let planned: Option<i64> = shard.spec.slice.items.iter().map(|item| item.records).sum();
    let planned = planned.filter(|_| !shard.spec.slice.items.is_empty());
    let expected = status.progress.as_ref().and_then(|progress| progress.expected).or(planned);
    let collected = match (&status.result, &status.progress) {
        (Some(result), _) => Some(result.tally.records),
        (None, Some(progress)) => Some(progress.records),
        (None, None) => None,
    };
    let phase = status.phase.clone().unwrap_or(ShardPhase::Pending);
    let progress = match (&phase, collected, expected) {
        (ShardPhase::Succeeded, ..) => Some(100),
        (_, Some(collected), Some(expected)) => Some(text::percent(collected, expected)),
        _ => None,
    };
    let again = status.attempts.len() > 1 || status.folded.is_some();
    let last_error = status.attempts.iter().rev().find_map(|attempt| {
        let outcome = attempt.outcome.as_ref()?;
        Some(format!("a{} {outcome}: {}", attempt.n, attempt.message.clone().unwrap_or_default()))
    });
    let note = match phase {
        ShardPhase::Succeeded => String::new(),
        ShardPhase::Running if again => last_error.unwrap_or_default(),
        _ => status.message.clone().unwrap_or_default(),
    };
    Node {
        kind: Kind::Shard,
        name: shard.name_any(),
        label: None,
        phase: phase.to_string(),
        progress,
        shards: None,
        records: collected.map(|collected| (collected, expected)).or(expected.map(|expected| (0, Some(expected)))),
        per_second: pace::of_shard(shard),
        left: None,
        attempt: status.attempt,
        matched: None,
        note,
        children: Vec::new(),
        unseen: Unseen::default(),
    }
}

impl Node {
    /// Whether it is neither over nor waiting.
    pub fn is_active(&self) -> bool {
        matches!(self.phase.as_str(), "Running" | "Planning" | "Validating")
    }

    /// How much a person wants to see it where room is short: less is more urgent.
    pub fn urgency(&self) -> u8 {
        match self.phase.as_str() {
            "Failed" => 0,
            "Running" | "Planning" | "Validating" => 1,
            "Paused" | "Cancelled" | "PartiallySucceeded" => 2,
            "Pending" => 3,
            _ => 4,
        }
    }
}

/// The tone of a phase.
pub fn tone(phase: &str) -> Tone {
    match phase {
        "Succeeded" => Tone::Good,
        "PartiallySucceeded" | "Collected" | "Paused" => Tone::Warning,
        "Running" | "Planning" | "Validating" => Tone::Busy,
        "Failed" | "Cancelled" => Tone::Bad,
        _ => Tone::Faint,
    }
}

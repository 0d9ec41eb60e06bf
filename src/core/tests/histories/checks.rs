//! The invariants, checked at every write. What the checks need to know of the past stands in the [`Book`].

use std::collections::{BTreeMap, BTreeSet};

use collect_api::{
    Attempt, CollectShard, CollectTask, CollectTaskStatus, DesiredState, Outcome, Phase, ValidationReport,
    condition::{COMPLETE, VERIFIED, reason},
    fold::Folded,
    report::Verdict,
    shard::ShardPhase,
};
use collect_core::{
    attempts::LISTED,
    conditions::is_true,
    fold::parts,
    halt::tolerated,
    hooks::HookKind,
    names,
    ranges::IndexSet,
    resolve::{Charge, RetryPolicy},
    rollup::Above,
    states,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde_json::Value;

use crate::{
    jobs::{NewJob, Place},
    operator::Operator,
    setup::ROOT,
    sink::{Manifest, SliceId},
    store::{Stored, is_deleting, owner_of, uid_of, version_of},
    world::World,
};

/// Largest status of ours in practice (I18).
const LARGEST: usize = 20 * 1024;

/// A ledger: uid of its object, kind of work, run.
type LedgerKey = (String, String, i64);

/// What the checks remember.
#[derive(Default)]
pub struct Book {
    /// What does not hold.
    pub broken: Vec<String>,
    /// Every Job that ever was (I1).
    jobs: BTreeSet<(LedgerKey, i32)>,
    /// How every attempt that ever was authorised ended, and who authorised it.
    attempts: BTreeMap<LedgerKey, BTreeMap<i32, (String, Option<(Outcome, Option<String>)>)>>,
    /// Newest version that each process wrote, by uid (I19).
    written: BTreeMap<(String, String), u64>,
    /// Uids of objects that are not ours (I21).
    pub foreign: BTreeSet<String>,
    /// Uids of tasks of which somebody deleted a child by hand.
    pub bereft: BTreeSet<String>,
}

/// A change of a ledger.
struct Ledger<'a> {
    key: LedgerKey,
    old: &'a [Attempt],
    new: &'a [Attempt],
    forgiven: i32,
    policy: RetryPolicy,
    /// Whether its object was over or going before the change.
    over: bool,
}

impl World {
    pub fn require(&mut self, invariant: &str, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            let now = self.now;
            self.book.broken.push(format!("{invariant} at {now} s: {}", otherwise()));
        }
    }

    /// I19: nothing is written from a view older than this process's own last write to that uid.
    pub fn check_view<K: ResourceExt>(&mut self, by: &Operator, seen: &K) {
        let written = self.book.written.get(&(by.me.clone(), uid_of(seen))).copied().unwrap_or(0);
        self.require("I19", version_of(seen) >= written, || {
            format!("{} writes {} from version {}, and wrote {written}", by.me, seen.name_any(), version_of(seen))
        });
    }

    pub fn wrote<K: ResourceExt>(&mut self, me: &str, object: &K) {
        self.book.written.insert((me.to_owned(), uid_of(object)), version_of(object));
    }

    /// I14 and I15: one controller owner of a kind of ours, no finalizer.
    pub fn check_created<K: Stored>(&mut self, object: &K) {
        let owners = object.owner_references().iter().filter(|owner| owner.controller == Some(true)).count();
        let name = object.name_any();
        self.require("I14", owners == 1 && object.owner_references().len() == 1, || format!("{name} has {owners}"));
        self.require("I15", object.finalizers().is_empty(), || format!("{name} has a finalizer"));
    }

    /// A new shard may have its first attempt from the start.
    pub fn shard_created(&mut self, shard: &CollectShard) {
        if let Some(first) = &shard.spec.first_attempt {
            let known = self.book.attempts.entry((uid_of(shard), "collect".into(), shard.spec.run)).or_default();
            known.insert(1, (first.authorised_by.clone(), None));
        }
    }

    /// I21: what is not ours is never deleted.
    pub fn check_ours<K: ResourceExt>(&mut self, object: &K) {
        let foreign = self.book.foreign.contains(&uid_of(object));
        self.require("I21", !foreign, || format!("{} is deleted and not ours", object.name_any()));
    }

    /// A child is deleted as folded only if its parent says so.
    pub fn check_folded<K: Stored>(&mut self, child: &K) {
        let Some(owner) = owner_of(child) else { return };
        let parent = self.store.get::<CollectTask>(&owner.name).filter(|parent| uid_of(parent.as_ref()) == owner.uid);
        let folded = parent.as_ref().and_then(|parent| parent.status.as_ref()?.folded.as_ref());
        let name = child.name_any();
        let counted = parts(folded).any(|part| {
            let index = name.rsplit('-').next().and_then(|index| index.parse::<i32>().ok());
            let shard = index.is_some_and(|index| IndexSet::parse(&part.shards).unwrap().contains(index));
            shard || !part.tasks.is_empty()
        });
        let gone = parent.is_none()
            || K::of(&self.store).live.get(&name).is_none_or(|now| uid_of(now.as_ref()) != uid_of(child));
        self.require("I10", counted || gone, || format!("{name} is deleted as folded and is not"));
    }

    /// I2: nothing is authorised or created after this process has seen that it is not wanted.
    pub fn check_start(&mut self, above: &Above, place: &Place, n: i32) {
        self.require("I2", above.desired == DesiredState::Running, || {
            format!("attempt {n} of {} {} starts while it shall be {:?}", place.owner, place.work, above.desired)
        });
    }

    /// I1 and I3: one Job for each attempt, created by the process that authorised it.
    pub fn check_job(&mut self, job: &NewJob) {
        let key = (job.owner.uid.clone(), job.work.clone(), job.run);
        let by = self.book.attempts.get(&key).and_then(|attempts| attempts.get(&job.n)).map(|(by, _)| by.clone());
        let (name, n) = (&job.name, job.n);
        self.require("I3", by.as_ref() == Some(&job.by), || format!("{name} is created by {}, not {by:?}", job.by));
        let first = self.book.jobs.insert((key, n));
        self.require("I1", first, || format!("{name} is created twice"));
    }

    /// I5, I6 and I7: what a manifest makes visible is there, and is what the source holds, each record once.
    pub fn check_commit(&mut self, slice: &SliceId, records: &[i64], manifest: &Manifest) {
        let mut visible = self.sink.read(slice, &manifest.parts).unwrap_or_default();
        visible.sort_unstable();
        self.require("I7", visible == records, || format!("{slice:?} shows {visible:?}, not {records:?}"));
    }

    /// I3 and I4: attempts are numbered without gaps or repetition, one at a time, within their budgets; ends stand.
    fn check_ledger(&mut self, by: &Operator, ledger: &Ledger<'_>) {
        let mut problems = Vec::new();
        let known = self.book.attempts.entry(ledger.key.clone()).or_default();
        let last_known = known.keys().last().copied().unwrap_or(0);
        for attempt in ledger.new {
            let end = attempt.outcome.clone().map(|outcome| (outcome, attempt.reason.clone()));
            match known.get_mut(&attempt.n) {
                Some((_, old)) => {
                    if old.is_some() && *old != end {
                        problems.push(("I9", format!("attempt {} ended as {old:?} and now as {end:?}", attempt.n)));
                    }
                    *old = end;
                }
                None => {
                    if attempt.n != last_known + 1 || attempt.authorised_by != by.me {
                        problems.push(("I3", format!("attempt {} follows {last_known}", attempt.n)));
                    }
                    if known.values().any(|(_, end)| end.is_none()) {
                        problems.push(("I3", format!("attempt {} begins while another is live", attempt.n)));
                    }
                    if ledger.over {
                        problems.push(("I2", format!("attempt {} begins when its work is over or going", attempt.n)));
                    }
                    if let Some(budget) = used_up(known, ledger) {
                        problems.push(("I4", format!("attempt {} begins, but {budget} are used up", attempt.n)));
                    }
                    known.insert(attempt.n, (attempt.authorised_by.clone(), end));
                }
            }
        }
        let dropped = ledger.old.iter().filter(|old| !ledger.new.iter().any(|new| new.n == old.n)).count();
        if dropped > usize::from(ledger.new.len() >= LISTED) {
            problems.push(("I3", format!("{dropped} attempts are no longer listed")));
        }
        for (invariant, problem) in problems {
            self.require(invariant, false, || format!("{:?}: {problem}", ledger.key));
        }
    }

    fn check_common<K: ResourceExt>(&mut self, old: &K, new: (&K, Value), conditions: (&[Condition], &[Condition])) {
        let name = new.0.name_any();
        let (generation, seen) = (new.0.meta().generation, |value: &Value| value["observedGeneration"].as_i64());
        let observed = seen(&new.1);
        self.require("I16", observed <= generation, || format!("{name} observes {observed:?} of {generation:?}"));
        for after in conditions.1 {
            let moved = conditions.0.iter().any(|before| {
                before.type_ == after.type_
                    && before.status == after.status
                    && before.last_transition_time != after.last_transition_time
            });
            self.require("I16", !moved, || format!("{}'s {} moves without its status", old.name_any(), after.type_));
        }
        let size = new.1.to_string().len();
        self.require("I18", size <= LARGEST, || format!("the status of {name} has {size} bytes"));
    }
}

/// Which budget of a ledger is used up, counted from all its history.
fn used_up(known: &BTreeMap<i32, (String, Option<(Outcome, Option<String>)>)>, ledger: &Ledger<'_>) -> Option<String> {
    let policy = &ledger.policy;
    let charges: Vec<Charge> = known
        .iter()
        .filter(|(n, _)| **n > ledger.forgiven)
        .filter_map(|(_, (_, end))| end.as_ref())
        .map(|(outcome, reason)| policy.charge(outcome, reason.as_deref()))
        .collect();
    let count = |charge| i32::try_from(charges.iter().filter(|c| **c == charge).count()).unwrap();
    let overridden = count(Charge::Override(0));
    let failures = count(Charge::Failure);
    let disruptions = count(Charge::Disruption);
    if charges.contains(&Charge::Final) {
        return Some("all: the error was permanent".into());
    }
    if failures >= policy.max_attempts {
        return Some(format!("{failures} of {} attempts", policy.max_attempts));
    }
    if disruptions > policy.max_disruptions {
        return Some(format!("{disruptions} of {} disruptions", policy.max_disruptions));
    }
    (overridden >= policy.override_attempts(0) && overridden > 0).then(|| format!("{overridden} overridden attempts"))
}

/// A shard's status was written.
pub fn shard_written(world: &mut World, by: &Operator, old: &CollectShard, new: &CollectShard) {
    let (before, after) = (old.status.clone().unwrap_or_default(), new.status.clone().unwrap_or_default());
    let name = new.name_any();
    world.check_common(old, (new, serde_json::to_value(&after).unwrap()), (&before.conditions, &after.conditions));
    if let Some(phase) = &after.phase {
        let allowed = states::allows(states::SHARD, before.phase.as_ref(), phase);
        world.require("I9", allowed, || format!("{name} goes from {:?} to {phase:?}", before.phase));
    }
    let over = before.phase.as_ref().is_some_and(ShardPhase::is_terminal);
    let revived = over && !after.phase.as_ref().is_some_and(ShardPhase::is_terminal);
    world.require("I9", !revived || after.redrives > before.redrives, || format!("{name} begins again unasked"));
    let policy = world.root().map(|root| RetryPolicy::of(root.spec.retry.as_ref()));
    let key = (uid_of(new), "collect".to_owned(), new.spec.run);
    let ledger = Ledger {
        key,
        old: &before.attempts,
        new: &after.attempts,
        forgiven: before.forgiven.unwrap_or(0),
        policy: policy.unwrap_or_else(|| RetryPolicy::of(None)),
        over: over || is_deleting(old),
    };
    world.check_ledger(by, &ledger);
    let seq = |status: &collect_api::CollectShardStatus| status.checkpoint.as_ref().map(|checkpoint| checkpoint.seq);
    let done = after.phase == Some(ShardPhase::Succeeded);
    world.require("I8", done || seq(&after) >= seq(&before), || {
        format!("the checkpoint of {name} goes from {:?} back to {:?}", seq(&before), seq(&after))
    });
    if done {
        let slice = slice_of(world, new);
        let manifest = world.sink.manifests.get(&slice).map(|manifest| manifest.records);
        let result = after.result.as_ref().map(|result| result.tally.records);
        world.require("I5", manifest.is_some() && manifest == result, || {
            format!("{name} succeeded with {result:?} records, and {manifest:?} are committed")
        });
    }
}

fn slice_of(world: &World, shard: &CollectShard) -> SliceId {
    let slices = world.setup.slices().into_iter();
    let path = slices.map(|(path, _)| path).find(|path| crate::setup::name_of(path) == shard.spec.task);
    SliceId {
        root_uid: shard.spec.root_uid.clone(),
        run: shard.spec.run,
        path: path.unwrap_or_default(),
        index: shard.spec.index,
    }
}

/// A report's status was written.
pub fn report_written(world: &mut World, _: &Operator, old: &ValidationReport, new: &ValidationReport) {
    let after = serde_json::to_value(&new.status).unwrap();
    world.check_common(old, (new, after), (&[], &[]));
    let task = world.store.get::<CollectTask>(&new.spec.task).map(|task| uid_of(task.as_ref()));
    let about = task.is_none_or(|uid| uid == new.spec.task_uid);
    world.require("I11", about, || format!("{} is about another task", new.name_any()));
}

/// A task's status was written.
pub fn task_written(world: &mut World, by: &Operator, old: &CollectTask, new: &CollectTask) {
    let (before, after) = (old.status.clone().unwrap_or_default(), new.status.clone().unwrap_or_default());
    let name = new.name_any();
    world.check_common(old, (new, serde_json::to_value(&after).unwrap()), (&before.conditions, &after.conditions));
    if let Some(phase) = &after.phase {
        let allowed = states::allows(states::TASK, before.phase.as_ref(), phase);
        world.require("I9", allowed, || format!("{name} goes from {:?} to {phase}", before.phase));
    }
    let over = |status: &CollectTaskStatus| status.phase.as_ref().is_some_and(Phase::is_terminal);
    // The first write of a new run clears the one before.
    let replaced = new.spec.run_number() > before.run.unwrap_or(i64::MAX) || after.run > before.run;
    let revived = over(&before) && !over(&after) && !replaced;
    let says_so = after.conditions.iter().any(|condition| condition.reason == reason::REDRIVEN);
    world.require("I9", !revived || says_so, || format!("{name} begins again unasked"));
    if !replaced {
        check_ledgers(world, by, (old, &before), (new, &after));
    }
    check_counts(world, &name, &before, &after, replaced);
    check_folds(world, &name, &before, &after, replaced || revived);
    if over(&after) && !over(&before) {
        check_end(world, new, &after);
    }
}

fn check_ledgers(
    world: &mut World,
    by: &Operator,
    (old, before): (&CollectTask, &CollectTaskStatus),
    (new, after): (&CollectTask, &CollectTaskStatus),
) {
    if new.spec.part_of.is_some() {
        return;
    }
    let run = after.run.unwrap_or(1);
    let policy = || RetryPolicy::of(new.spec.retry.as_ref());
    let plan = |status: &CollectTaskStatus| status.plan.clone().unwrap_or_default();
    let commit = |status: &CollectTaskStatus| status.commit.clone().unwrap_or_default();
    let (old_plan, old_commit) = (plan(before), commit(before));
    let mut ledgers = vec![
        ("plan", old_plan.attempts, plan(after).attempts, old_plan.forgiven, policy()),
        ("commit", old_commit.attempts, commit(after).attempts, old_commit.forgiven, policy()),
    ];
    for kind in [HookKind::BeforeStart, HookKind::AfterSuccess, HookKind::AfterFailure] {
        let Some(hook) = kind.of(new.spec.hooks.as_ref()) else { continue };
        let of = |status: &CollectTaskStatus| kind.status(status.hooks.as_ref()).cloned().unwrap_or_default();
        let (old, new) = (of(before), of(after));
        ledgers.push((kind.word(), old.attempts, new.attempts, old.forgiven, RetryPolicy::of_hook(hook)));
    }
    for (work, before, after, forgiven, policy) in ledgers {
        let key = (uid_of(new), work.to_owned(), run);
        let ledger =
            Ledger { key, old: &before, new: &after, forgiven: forgiven.unwrap_or(0), policy, over: is_deleting(old) };
        world.check_ledger(by, &ledger);
    }
}

/// I10: buckets add up, nothing is negative, progress stays within 0 to 100 and never falls within a run.
fn check_counts(world: &mut World, name: &str, before: &CollectTaskStatus, after: &CollectTaskStatus, replaced: bool) {
    if let Some(shards) = &after.shards {
        let buckets = [shards.pending, shards.running, shards.succeeded, shards.failed, shards.cancelled];
        let adds_up = buckets.iter().all(|bucket| *bucket >= 0) && buckets.iter().sum::<i32>() == shards.total;
        world.require("I10", adds_up, || format!("the shards of {name}: {shards:?}"));
    }
    if let Some(tasks) = &after.tasks {
        let ends = [tasks.succeeded, tasks.partially_succeeded, tasks.collected, tasks.failed, tasks.cancelled];
        let buckets: Vec<i32> = [tasks.pending, tasks.active].into_iter().chain(ends).collect();
        let adds_up = buckets.iter().all(|bucket| *bucket >= 0) && buckets.iter().sum::<i32>() == tasks.total;
        world.require("I10", adds_up, || format!("the tasks of {name}: {tasks:?}"));
    }
    let (from, to) = (before.progress.unwrap_or(0), after.progress.unwrap_or(0));
    let within = (0..=100).contains(&to) && (replaced || to >= from);
    world.require("I10", within, || format!("the progress of {name} goes from {from} to {to}"));
}

/// I10: what is folded was over, is counted once, and stays folded until a retry or a new run takes it out.
fn check_folds(world: &mut World, name: &str, before: &CollectTaskStatus, after: &CollectTaskStatus, anew: bool) {
    let indexes = |folded: Option<&Folded>, which: fn(&Folded) -> Option<&collect_api::fold::FoldedPart>| {
        let part = folded.and_then(which);
        let set = |text: Option<&String>| IndexSet::parse(text.map_or("", String::as_str)).unwrap();
        (set(part.map(|part| &part.shards)), set(part.map(|part| &part.tasks)))
    };
    let old = indexes(before.folded.as_ref(), |folded| folded.done.as_ref());
    let done = indexes(after.folded.as_ref(), |folded| folded.done.as_ref());
    let undone = indexes(after.folded.as_ref(), |folded| folded.undone.as_ref());
    for index in 0..8 {
        let lost =
            (old.0.contains(index) && !done.0.contains(index)) || (old.1.contains(index) && !done.1.contains(index));
        world.require("I10", !lost || anew, || format!("{index} of {name} was folded and is not any more"));
        let twice = (done.0.contains(index) && undone.0.contains(index))
            || (done.1.contains(index) && undone.1.contains(index));
        world.require("I10", !twice, || format!("{index} of {name} is folded twice"));
    }
    for part in parts(after.folded.as_ref()) {
        let tasks = IndexSet::parse(&part.tasks).unwrap().len();
        let phases = &part.phases;
        let ends = [phases.succeeded, phases.partially_succeeded, phases.collected, phases.failed, phases.cancelled];
        world.require("I10", ends.iter().sum::<i32>() == tasks, || format!("{name} folds {tasks} tasks as {ends:?}"));
    }
}

/// I11 and I13: a task ends for the reason that it gives, with what is really committed.
fn check_end(world: &mut World, task: &CollectTask, after: &CollectTaskStatus) {
    let name = task.name_any();
    let Some(root) = world.root() else { return };
    let run = after.run.unwrap_or(1);
    let path: Vec<String> =
        task.spec.part_of.iter().flat_map(|part_of| &part_of.path).map(|step| step.value.clone()).collect();
    let slices: Vec<_> = world.setup.slices().into_iter().filter(|(of, _)| of.starts_with(&path)).collect();
    let id = |(path, index): &(Vec<String>, i32)| SliceId {
        root_uid: uid_of(root.as_ref()),
        run,
        path: path.clone(),
        index: *index,
    };
    let committed: Vec<i64> =
        slices.iter().filter_map(|slice| world.sink.manifests.get(&id(slice))).map(|m| m.records).collect();
    let shards = after.shards.clone().unwrap_or_default();
    let records = after.records.clone().unwrap_or_default();
    let succeeded = usize::try_from(shards.succeeded).unwrap();
    world.require("I11", succeeded <= committed.len(), || {
        format!("{name} counts {succeeded} slices, and {} are committed", committed.len())
    });
    let phase = after.phase.clone().unwrap_or(Phase::Pending);
    let whole = matches!(phase, Phase::Succeeded | Phase::PartiallySucceeded | Phase::Collected);
    world.require("I11", whole == is_true(&after.conditions, COMPLETE), || format!("{name} is {phase} and Complete?"));
    let verified = is_true(&after.conditions, VERIFIED);
    let pass = matches!(phase, Phase::Succeeded | Phase::PartiallySucceeded);
    world.require("I11", pass == verified, || format!("{name} is {phase}, and Verified is {verified}"));
    if !whole {
        return;
    }
    let borne = tolerated(&root.spec, shards.total);
    let all = shards.succeeded + shards.failed == shards.total && shards.failed <= borne;
    world.require("I11", all, || format!("{name} is {phase} with {shards:?}, and bears {borne}"));
    if shards.failed == 0 {
        let sum: i64 = committed.iter().sum();
        world.require("I7", records.collected == sum && committed.len() == slices.len(), || {
            format!("{name} is {phase} with {records:?}, and {committed:?} are committed of {} slices", slices.len())
        });
    }
    world.require("I11", (phase == Phase::Succeeded) <= (shards.failed == 0), || format!("{name}: {shards:?}"));
    let report = world.store.get::<ValidationReport>(&names::report(&name, run));
    let verdict = report.as_ref().and_then(|report| report.status.as_ref()?.verdict.clone());
    let told =
        report.as_ref().and_then(|report| report.status.as_ref()?.counts.as_ref()).map(|counts| counts.collected);
    world.require("I11", told.is_none_or(|told| told == records.collected), || {
        format!("{name} counts {records:?}, and its report {told:?}")
    });
    let fits = verdict == Some(if pass { Verdict::Pass } else { Verdict::Inconclusive });
    // Somebody may have deleted the report a moment ago.
    world.require("I11", fits || report.is_none(), || format!("{name} is {phase}, and its report says {verdict:?}"));
    if name == ROOT && shards.failed == 0 {
        let list = world.sink.lists.get(&(uid_of(root.as_ref()), run)).cloned();
        world.require("I7", list == Some(world.setup.all_records()), || {
            format!("{name} is {phase}, and lists {list:?}")
        });
    }
}

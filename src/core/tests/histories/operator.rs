//! One operator process: its views, its short memory, its clock, and every read and write that it makes. It mirrors
//! src/operator (context.rs, write.rs, worker.rs, endpoint/): observe, ask core, one write; no decision is made here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use collect_api::{
    CollectShard, CollectShardStatus, CollectTask, CollectTaskStatus, DesiredState, ValidationReport,
    ValidationReportStatus, labels,
    protocol::{Directive, ProgressReport},
};
use collect_core::{conditions::At, ledger::Post, names, shard as core, tree::PlanTree};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::ResourceExt;

use crate::{
    events::{Fault, Watched},
    store::{Stored, View, is_deleting, owner_of, uid_of, version_of},
    world::World,
};

/// Key of a plan chunk's data.
pub const CHUNK_KEY: &str = "plan";

/// How long a write may take to come into view before it is tried again.
const IN_VIEW_WITHIN: i64 = 5;

/// A request that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The object is not the one that was seen.
    Conflict,
    NotFound,
    /// The name is taken.
    Taken,
    Refused,
    /// Nobody knows.
    Lost,
}

pub type Answer<T> = Result<T, Failure>;

/// An object whose status the operator writes.
pub trait Reported: Stored {
    type Status: Clone + PartialEq;
    fn status(&self) -> Option<&Self::Status>;
    fn status_mut(&mut self) -> &mut Option<Self::Status>;
    /// Checks a change of its status against the invariants.
    fn check(world: &mut World, by: &Operator, old: &Self, new: &Self);
}

macro_rules! reported {
    ($($type:ty => $status:ty, $check:path);+ $(;)?) => { $(impl Reported for $type {
        type Status = $status;
        fn status(&self) -> Option<&Self::Status> { self.status.as_ref() }
        fn status_mut(&mut self) -> &mut Option<Self::Status> { &mut self.status }
        fn check(world: &mut World, by: &Operator, old: &Self, new: &Self) { $check(world, by, old, new) }
    })+ };
}

reported! {
    CollectTask => CollectTaskStatus, crate::checks::task_written;
    CollectShard => CollectShardStatus, crate::checks::shard_written;
    ValidationReport => ValidationReportStatus, crate::checks::report_written;
}

#[derive(Default)]
pub struct Views {
    pub tasks: View<CollectTask>,
    pub shards: View<CollectShard>,
    pub reports: View<ValidationReport>,
    pub jobs: View<Job>,
    pub pods: View<Pod>,
}

/// What a restart loses.
#[derive(Default)]
struct Memory {
    /// Newest version that this process wrote, by uid (I19).
    written: BTreeMap<String, u64>,
    posts: BTreeMap<(String, String, i64, i32), Posted>,
    watched: BTreeMap<(String, String), (String, i64)>,
    starts: BTreeMap<String, BTreeSet<String>>,
    plans: BTreeMap<String, Arc<PlanTree>>,
    progress: BTreeMap<String, i64>,
    stopwatch: BTreeMap<String, (String, i64, i64)>,
    done: BTreeMap<String, i64>,
}

struct Posted {
    refused: Option<i32>,
    ambiguous: bool,
    at: i64,
}

pub struct Operator {
    /// Random id of the process.
    pub me: String,
    pub views: Views,
    memory: Memory,
    /// Its wall clock less the true time.
    pub offset: i64,
    pub faults: VecDeque<Fault>,
    /// Whether its Job creates are held up on their way, and those that are.
    pub holds: bool,
    pub held: Vec<crate::jobs::NewJob>,
}

/// A reference that makes an object the controller owner of another (I14).
pub fn reference(kind: &str, name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: kind.into(),
        name: name.into(),
        uid: uid.into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.max(0).unsigned_abs())
}

impl Operator {
    pub fn new(number: usize) -> Self {
        Self {
            me: format!("operator-{number}"),
            views: Views::default(),
            memory: Memory::default(),
            offset: 0,
            faults: VecDeque::new(),
            holds: false,
            held: Vec::new(),
        }
    }

    /// The process dies and another one takes its place, with lists that lack the newest changes.
    pub fn restart(&mut self, world: &mut World, behind: usize) {
        world.in_flight.append(&mut self.held);
        let number = world.next_operator();
        *self = Self { offset: self.offset, ..Self::new(number) };
        for kind in [Watched::Tasks, Watched::Shards, Watched::Reports, Watched::Jobs, Watched::Pods] {
            self.relist(world, kind, behind);
        }
    }

    pub fn deliver(&mut self, world: &World, kind: Watched, changes: usize) {
        let (views, store) = (&mut self.views, &world.store);
        match kind {
            Watched::Tasks => views.tasks.deliver(&store.tasks, changes),
            Watched::Shards => views.shards.deliver(&store.shards, changes),
            Watched::Reports => views.reports.deliver(&store.reports, changes),
            Watched::Jobs => views.jobs.deliver(&store.jobs, changes),
            Watched::Pods => views.pods.deliver(&store.pods, changes),
        }
    }

    pub fn relist(&mut self, world: &World, kind: Watched, behind: usize) {
        let (views, store) = (&mut self.views, &world.store);
        match kind {
            Watched::Tasks => views.tasks.relist(&store.tasks, behind),
            Watched::Shards => views.shards.relist(&store.shards, behind),
            Watched::Reports => views.reports.relist(&store.reports, behind),
            Watched::Jobs => views.jobs.relist(&store.jobs, behind),
            Watched::Pods => views.pods.relist(&store.pods, behind),
        }
    }

    pub fn deliver_all(&mut self, world: &World) {
        for kind in [Watched::Tasks, Watched::Shards, Watched::Reports, Watched::Jobs, Watched::Pods] {
            self.deliver(world, kind, usize::MAX);
        }
    }

    /// Looks at everything in its view.
    pub fn round(&mut self, world: &mut World) {
        (0..self.objects()).for_each(|at| self.pass(world, at));
    }

    fn objects(&self) -> usize {
        self.views.tasks.objects.len() + self.views.shards.objects.len()
    }

    /// Looks at one object of its view. An error only means that it looks again later.
    pub fn pass(&mut self, world: &mut World, at: usize) {
        let tasks = self.views.tasks.objects.len();
        let _: Option<Answer<()>> = if at < tasks {
            self.views.tasks.objects.values().nth(at).cloned().map(|task| self.task_pass(world, &task))
        } else {
            self.views.shards.objects.values().nth(at - tasks).cloned().map(|shard| self.shard_pass(world, &shard))
        };
    }

    /// The same for a place in the list that may be beyond its end.
    pub fn pass_any(&mut self, world: &mut World, pick: usize) {
        if self.objects() > 0 {
            self.pass(world, pick % self.objects());
        }
    }

    // Time.

    pub fn clock(&self, world: &World) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + world.now + self.offset).unwrap()
    }

    pub fn at<K: ResourceExt>(&self, world: &World, object: &K) -> At {
        At { generation: object.meta().generation, now: self.clock(world) }
    }

    /// For how long something about an object has been in this state, by this process's own clock.
    pub fn watched_for(&mut self, world: &World, uid: &str, what: &str, state: &str) -> Duration {
        let entry = self.memory.watched.entry((uid.to_owned(), what.to_owned()));
        let (old, since) = entry.or_insert_with(|| (state.to_owned(), world.now));
        if old != state {
            (*old, *since) = (state.to_owned(), world.now);
        }
        seconds(world.now - *since)
    }

    /// How long a root's run has been worked on.
    pub fn elapsed(&mut self, world: &World, uid: &str, what: &str, known: Duration, active: bool) -> Duration {
        let known = (what.to_owned(), i64::try_from(known.as_secs()).unwrap(), world.now);
        let watch = self.memory.stopwatch.entry(uid.to_owned()).or_insert_with(|| known.clone());
        if watch.0 != what {
            *watch = known;
        }
        if active {
            watch.1 += world.now - watch.2;
        }
        watch.2 = world.now;
        seconds(watch.1)
    }

    // Memory.

    pub fn is_behind<K: ResourceExt>(&self, object: &K) -> bool {
        self.memory.written.get(&uid_of(object)).is_some_and(|written| version_of(object) < *written)
    }

    /// Whether a create of a worker of this ledger is still on its way; a pass waits for its own requests.
    pub fn is_held(&self, uid: &str) -> bool {
        self.held.iter().any(|job| job.owner.uid == uid)
    }

    fn remember<K: ResourceExt>(&mut self, object: &K) {
        let newest = self.memory.written.entry(uid_of(object)).or_default();
        *newest = version_of(object).max(*newest);
    }

    /// An object goes. What was written and posted is kept for as long as an old list may still show it alive (I1, I19).
    pub fn forget(&mut self, uid: &str) {
        let memory = &mut self.memory;
        memory.watched.retain(|key, _| key.0 != uid);
        memory.starts.remove(uid);
        memory.plans.remove(uid);
        memory.progress.remove(uid);
        memory.stopwatch.remove(uid);
    }

    pub fn post(&self, world: &World, uid: &str, work: &str, run: i64, n: i32) -> Post {
        match self.memory.posts.get(&(uid.to_owned(), work.to_owned(), run, n)) {
            None => Post::NotTried,
            Some(Posted { refused: Some(times), at, .. }) => {
                Post::Refused { message: "quota".into(), ago: seconds(world.now - at), times: times.unsigned_abs() }
            }
            Some(Posted { ambiguous: true, .. }) => Post::Unknown,
            Some(_) => Post::Sent,
        }
    }

    pub fn posted(&mut self, world: &World, job: &crate::jobs::NewJob, answer: Answer<()>) {
        let key = (job.owner.uid.clone(), job.work.clone(), job.run, job.n);
        let times = self.memory.posts.get(&key).and_then(|posted| posted.refused).unwrap_or(0);
        let refused = (answer == Err(Failure::Refused)).then_some(times + 1);
        let ambiguous = matches!(answer, Err(Failure::Lost | Failure::NotFound));
        self.memory.posts.insert(key, Posted { refused, ambiguous, at: world.now });
    }

    /// Whether this was not done a moment ago; if so, notes that it is now.
    pub fn first_time(&mut self, world: &World, key: &str) -> bool {
        if self.memory.done.get(key).is_some_and(|at| world.now - at < IN_VIEW_WITHIN) {
            return false;
        }
        self.memory.done.insert(key.to_owned(), world.now);
        true
    }

    pub fn not_done(&mut self, key: &str) {
        self.memory.done.remove(key);
    }

    pub fn set_starts(&mut self, root_uid: &str, starts: BTreeSet<String>) {
        self.memory.starts.insert(root_uid.to_owned(), starts);
    }

    pub fn may_start(&self, root_uid: &str, uid: &str) -> bool {
        self.memory.starts.get(root_uid).is_some_and(|starts| starts.contains(uid))
    }

    pub fn plan_in_memory(&self, root_uid: &str, digest: &str) -> Option<Arc<PlanTree>> {
        self.memory.plans.get(root_uid).filter(|plan| plan.digest == digest).cloned()
    }

    pub fn keep_plan(&mut self, root_uid: &str, plan: Arc<PlanTree>) {
        self.memory.plans.insert(root_uid.to_owned(), plan);
    }

    /// A root is over: what only work needs is forgotten.
    pub fn rest(&mut self, root_uid: &str) {
        self.memory.starts.remove(root_uid);
        self.memory.plans.remove(root_uid);
    }

    pub fn progress_is_due(&self, world: &World, uid: &str, every: i64) -> bool {
        self.memory.progress.get(uid).is_none_or(|at| world.now - at >= every)
    }

    pub fn progress_written(&mut self, world: &World, uid: &str) {
        self.memory.progress.insert(uid.to_owned(), world.now);
    }

    // Writes.

    /// What the next write meets.
    fn meets(&mut self, refusable: bool) -> Option<Fault> {
        match self.faults.front() {
            Some(Fault::Refused) if !refusable => None,
            Some(_) => self.faults.pop_front(),
            None => None,
        }
    }

    /// Writes a status, if it differs and the object is still the one that was seen.
    pub fn write<K: Reported>(&mut self, world: &mut World, seen: &K, new: &K::Status) -> Answer<Option<Arc<K>>> {
        if seen.status() == Some(new) {
            return Ok(None);
        }
        let fault = self.meets(false);
        world.check_view(self, seen);
        if fault == Some(Fault::Dropped) {
            return Err(Failure::Lost);
        }
        let current = world.store.get::<K>(&seen.name_any()).ok_or(Failure::NotFound)?;
        if version_of(current.as_ref()) != version_of(seen) {
            return Err(Failure::Conflict);
        }
        let mut changed = K::clone(&current);
        *changed.status_mut() = Some(new.clone());
        K::check(world, self, &current, &changed);
        let stored = world.store.edit::<K>(&seen.name_any(), |object| *object = changed).ok_or(Failure::NotFound)?;
        if fault == Some(Fault::AnswerLost) {
            return Err(Failure::Lost);
        }
        world.wrote(&self.me, stored.as_ref());
        self.remember(stored.as_ref());
        Ok(Some(stored))
    }

    /// Creates an object; the caller decides what a failure means.
    pub fn create<K: Stored>(&mut self, world: &mut World, object: K) -> Answer<Arc<K>> {
        match self.meets(true) {
            Some(Fault::Dropped) => Err(Failure::Lost),
            Some(Fault::Refused) => Err(Failure::Refused),
            fault @ (Some(Fault::AnswerLost) | None) => {
                let made = world.create(object).ok_or(Failure::Taken)?;
                if fault.is_some() {
                    return Err(Failure::Lost);
                }
                world.wrote(&self.me, made.as_ref());
                self.remember(made.as_ref());
                Ok(made)
            }
        }
    }

    /// Deletes an object in the background, only if it is still the one with this uid.
    pub fn delete<K: Stored>(&mut self, world: &mut World, object: &K) {
        let name = object.name_any();
        if world.store.get::<K>(&name).is_some_and(|found| uid_of(found.as_ref()) == uid_of(object)) {
            world.check_ours(object);
            world.store.delete::<K>(&name);
        }
    }

    // The worker endpoint.

    /// Takes a worker's report in: recorded if its attempt is the live one; a zombie is told to leave.
    pub fn progress(&mut self, world: &mut World, name: &str, uid: &str, report: &ProgressReport) -> Option<Directive> {
        if self.views.tasks.objects.get(name).is_some_and(|task| uid_of(task.as_ref()) == uid) {
            return None;
        }
        let fetch = |world: &World| world.store.get::<CollectShard>(name).filter(|s| uid_of(s.as_ref()) == uid);
        let known = self.views.shards.objects.get(name).filter(|shard| uid_of(shard.as_ref()) == uid).cloned();
        let Some(mut shard) = known.filter(|shard| !self.is_behind(shard.as_ref())).or_else(|| fetch(world)) else {
            return Some(Directive::Abort);
        };
        for _ in 0..4 {
            let status = shard.status.clone().unwrap_or_default();
            let live = status.attempts.last().is_some_and(|last| last.n == report.attempt && last.is_live());
            if !live || is_deleting(shard.as_ref()) {
                return Some(Directive::Abort);
            }
            let expected = crate::shards::expected(&shard);
            let Some(new) = core::progressed(&status, expected, report, self.at(world, shard.as_ref())) else { break };
            match self.write(world, shard.as_ref(), &new) {
                Ok(_) => break,
                Err(Failure::Conflict | Failure::NotFound) => match fetch(world) {
                    Some(fresh) => shard = fresh,
                    None => return Some(Directive::Abort),
                },
                Err(_) => return None,
            }
        }
        Some(match self.observe(&shard).map(|seen| seen.above.desired) {
            Some(DesiredState::Paused | DesiredState::Cancelled) => Directive::CheckpointAndExit,
            Some(DesiredState::Running) | None => Directive::Continue,
        })
    }

    /// Takes the planner's one chunk in, if its attempt is the live one as far as this process knows.
    pub fn take_chunk(&mut self, world: &mut World, uid: &str, run: i64, attempt: i32, data: &[u8]) -> bool {
        let task = self.views.tasks.objects.values().find(|task| uid_of(task.as_ref()) == uid).cloned();
        let Some(task) = task.filter(|task| {
            let status = task.status.as_ref();
            let last = status.and_then(|status| status.plan.as_ref()).and_then(|plan| plan.attempts.last());
            status.and_then(|status| status.run) == Some(run)
                && last.is_some_and(|last| last.n == attempt && last.is_live())
        }) else {
            return false;
        };
        let name = task.name_any();
        let mut map = ConfigMap::default();
        map.metadata.name = Some(names::plan_chunk(&name, uid, run, attempt, 0));
        map.metadata.owner_references = Some(vec![reference("CollectTask", &name, uid)]);
        map.metadata.labels = Some(BTreeMap::from([
            (labels::RUN.to_owned(), run.to_string()),
            (labels::ATTEMPT.to_owned(), attempt.to_string()),
        ]));
        map.binary_data = Some(BTreeMap::from([(CHUNK_KEY.to_owned(), ByteString(data.to_vec()))]));
        match self.create(world, map) {
            Ok(_) | Err(Failure::Taken) => true,
            Err(_) => false,
        }
    }

    /// The direct children of a task that are not being deleted, by owner uid.
    pub fn owned<K: Stored>(kind: &View<K>, uid: &str) -> Vec<Arc<K>> {
        let ours = |object: &&Arc<K>| {
            !is_deleting(object.as_ref()) && owner_of(object.as_ref()).is_some_and(|owner| owner.uid == uid)
        };
        kind.objects.values().filter(ours).cloned().collect()
    }
}

//! What every pass shares: the caches, the writer, and this process's own short memory. Everything in it can be lost at any
//! moment without harm; it saves work and never decides alone.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use collect_api::{CollectShard, CollectTask, ValidationReport};
use collect_core::{job::WorkerDefaults, ledger::Post, tell::Told, tree::PlanTree};
use futures::channel::mpsc::UnboundedSender;
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Client, Resource, ResourceExt,
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        reflector::{ObjectRef, Store},
    },
};
use tracing::debug;

use crate::{clock, metrics::Metrics, watch::PodIndex, write::Writer};

/// The operator's configuration, as far as passes need it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL of the worker endpoint.
    pub endpoint_url: String,
    /// Certificate authority of the worker endpoint, PEM.
    pub endpoint_ca: String,
    /// Defaults of the workers.
    pub workers: WorkerDefaults,
}

/// The read caches.
pub struct Stores {
    /// CollectTasks.
    pub tasks: Store<CollectTask>,
    /// CollectShards.
    pub shards: Store<CollectShard>,
    /// ValidationReports.
    pub reports: Store<ValidationReport>,
    /// Jobs of ours, without their spec.
    pub jobs: Store<Job>,
    /// Pods of ours, without their spec.
    pub pods: PodIndex,
}

/// Where to say that an object should be looked at.
#[derive(Clone)]
pub struct Wake {
    /// Queue of the task controller.
    pub tasks: UnboundedSender<ObjectRef<CollectTask>>,
    /// Queue of the shard controller.
    pub shards: UnboundedSender<ObjectRef<CollectShard>>,
    /// Uids of objects that are gone.
    pub gone: UnboundedSender<String>,
}

impl Wake {
    /// Has a task looked at.
    pub fn task(&self, namespace: &str, name: &str) {
        let _ = self.tasks.unbounded_send(ObjectRef::new(name).within(namespace));
    }

    /// Has an object forgotten.
    pub fn gone(&self, uid: Option<String>) {
        if let Some(uid) = uid {
            let _ = self.gone.unbounded_send(uid);
        }
    }

    /// Has a shard looked at.
    pub fn shard(&self, namespace: &str, name: &str) {
        let _ = self.shards.unbounded_send(ObjectRef::new(name).within(namespace));
    }
}

/// What a worker of a ledger is known by: kind of work, run, attempt.
pub type WorkerKey = (&'static str, i64, i32);

/// What every pass shares.
pub struct Context {
    /// Random id of this process.
    pub me: String,
    /// Configuration.
    pub settings: Settings,
    /// Read caches.
    pub stores: Stores,
    /// All writes.
    pub writer: Writer,
    /// Metrics.
    pub metrics: Metrics,
    /// Wakes other passes.
    pub wake: Wake,
    recorder: Recorder,
    client: Client,
    leads: AtomicBool,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// By uid.
    objects: HashMap<String, Remembered>,
    /// What was created or deleted a moment ago, by a key of the caller's.
    done: HashMap<String, Instant>,
}

/// What this process remembers of one object.
#[derive(Default)]
struct Remembered {
    /// How the creates of its workers ended.
    posts: HashMap<WorkerKey, Posted>,
    /// Since when something has been in its present state.
    watched: HashMap<String, (String, Instant)>,
    /// A root's shards that may start.
    starts: BTreeSet<String>,
    /// A root's plan.
    plan: Option<Arc<PlanTree>>,
    /// When a task's progress was last written.
    progress: Option<Instant>,
    /// Consecutive errors.
    errors: u32,
    /// How long a root's run has been worked on.
    stopwatch: Option<Stopwatch>,
    /// When a timer of its own has it looked at.
    timer: Option<Instant>,
    /// Requests and repeated requests to the source that its workers have told of.
    requests: HashMap<WorkerKey, (i64, i64)>,
    /// The phase that this process has seen it enter, and when.
    phase: Option<(String, Instant)>,
}

/// Time that counts only while it is told to.
struct Stopwatch {
    what: String,
    total: Duration,
    at: Instant,
}

/// How long a write may take to come into view before it is tried again.
const IN_VIEW_WITHIN: Duration = Duration::from_secs(5);

/// Notes of what was done that are kept before old ones are thrown away.
const DONE_KEPT: usize = 4096;

struct Posted {
    refused: Option<(String, u32)>,
    ambiguous: bool,
    stopped: bool,
    at: Instant,
}

/// How a create ended.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It is there.
    Created,
    /// It is not there, and never will be by this request.
    Refused(String),
    /// It may be there.
    Unknown,
}

impl Context {
    /// The shared state of a process.
    pub fn new(
        client: Client,
        settings: Settings,
        stores: Stores,
        wake: Wake,
        metrics: Metrics,
        pod: Option<String>,
    ) -> Self {
        let reporter = Reporter { controller: "collect-operator".into(), instance: pod };
        Self {
            me: clock::random_id(),
            settings,
            stores,
            writer: Writer::new(client.clone(), metrics.clone()),
            metrics,
            wake,
            recorder: Recorder::new(client.clone(), reporter),
            client,
            leads: AtomicBool::new(false),
            memory: Mutex::default(),
        }
    }

    /// The client, for reads.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process does the work at the moment. Correctness never depends on it.
    pub fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    /// Takes or gives up the work.
    pub fn set_leads(&self, leads: bool) {
        if self.leads.swap(leads, Ordering::Relaxed) != leads {
            tracing::info!(leads, "leadership");
            if leads {
                for task in self.stores.tasks.state() {
                    self.wake.task(&task.namespace().unwrap_or_default(), &task.name_any());
                }
                for shard in self.stores.shards.state() {
                    self.wake.shard(&shard.namespace().unwrap_or_default(), &shard.name_any());
                }
            }
        }
    }

    fn remembered<T>(&self, uid: &str, with: impl FnOnce(&mut Remembered) -> T) -> T {
        with(self.memory().objects.entry(uid.to_owned()).or_default())
    }

    /// Remembers how the create of a worker ended; `uid` is that of its ledger.
    pub fn posted(&self, uid: &str, key: WorkerKey, answer: &Answer) {
        self.remembered(uid, |memory| {
            let times =
                memory.posts.get(&key).and_then(|posted| posted.refused.as_ref()).map_or(0, |(_, times)| *times);
            let (refused, ambiguous) = match answer {
                Answer::Created => (None, false),
                Answer::Unknown => (None, true),
                Answer::Refused(message) => (Some((message.clone(), times + 1)), false),
            };
            memory.posts.insert(key, Posted { refused, ambiguous, stopped: false, at: clock::instant() });
        });
    }

    /// Remembers that a worker was there and that this process has it leave.
    pub fn stopped(&self, uid: &str, key: WorkerKey) {
        self.remembered(uid, |memory| {
            let posted = Posted { refused: None, ambiguous: false, stopped: true, at: clock::instant() };
            memory.posts.insert(key, posted);
        });
    }

    /// What this process knows of its own create of a worker.
    pub fn post(&self, uid: &str, key: &WorkerKey) -> Post {
        self.remembered(uid, |memory| match memory.posts.get(key) {
            None => Post::NotTried,
            Some(Posted { stopped: true, .. }) => Post::Stopped,
            Some(Posted { refused: Some((message, times)), at, .. }) => {
                Post::Refused { message: message.clone(), ago: at.elapsed(), times: *times }
            }
            Some(Posted { ambiguous: true, .. }) => Post::Unknown,
            Some(_) => Post::Sent,
        })
    }

    /// How long something about an object has been in this state, by this process's own clock.
    pub fn watched_for(&self, uid: &str, what: &str, state: &str) -> Duration {
        self.remembered(uid, |memory| match memory.watched.get(what) {
            Some((old, since)) if old == state => since.elapsed(),
            _ => {
                memory.watched.insert(what.to_owned(), (state.to_owned(), clock::instant()));
                Duration::ZERO
            }
        })
    }

    /// How long a root's run has been worked on: what was known before, and since then while it was `active`.
    pub fn elapsed(&self, uid: &str, what: &str, known: Duration, active: bool) -> Duration {
        self.remembered(uid, |memory| {
            let now = clock::instant();
            let watch = memory.stopwatch.take().filter(|watch| watch.what == what);
            let mut watch = watch.unwrap_or_else(|| Stopwatch { what: what.to_owned(), total: known, at: now });
            if active {
                watch.total += now.saturating_duration_since(watch.at);
            }
            watch.at = now;
            let total = watch.total;
            memory.stopwatch = Some(watch);
            total
        })
    }

    /// Has a task looked at after a while, whatever else happens to it. One timer for each task at a time.
    pub fn look_again(&self, task: &CollectTask, after: Duration) {
        let at = clock::instant() + after;
        let is_set = self.remembered(&task.uid().unwrap_or_default(), |memory| {
            let is_set = memory.timer.is_some_and(|set| set > clock::instant() && set <= at);
            if !is_set {
                memory.timer = Some(at);
            }
            is_set
        });
        if !is_set {
            let (wake, namespace, name) = (self.wake.clone(), task.namespace().unwrap_or_default(), task.name_any());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                wake.task(&namespace, &name);
            });
        }
    }

    /// Whether this was not done a moment ago; if so, notes that it is now. What is written comes into view a little later,
    /// and until then every pass would write it again.
    pub fn first_time(&self, key: &str) -> bool {
        let mut memory = self.memory();
        match memory.done.get(key) {
            Some(at) if at.elapsed() < IN_VIEW_WITHIN => false,
            _ => {
                if memory.done.len() >= DONE_KEPT {
                    memory.done.retain(|_, at| at.elapsed() < IN_VIEW_WITHIN);
                }
                memory.done.insert(key.to_owned(), clock::instant());
                true
            }
        }
    }

    /// Takes back what was noted of something that failed.
    pub fn not_done(&self, key: &str) {
        self.memory().done.remove(key);
    }

    /// Replaces the shards of a root that may start; gives back the new ones.
    pub fn set_starts(&self, root_uid: &str, starts: BTreeSet<String>) -> BTreeSet<String> {
        self.remembered(root_uid, |memory| {
            let old = std::mem::replace(&mut memory.starts, starts);
            memory.starts.difference(&old).cloned().collect()
        })
    }

    /// Whether a shard may start.
    pub fn may_start(&self, root_uid: &str, uid: &str) -> bool {
        self.memory().objects.get(root_uid).is_some_and(|memory| memory.starts.contains(uid))
    }

    /// The plan of a root, if it is in memory and has this digest.
    pub fn plan(&self, root_uid: &str, digest: &str) -> Option<Arc<PlanTree>> {
        self.memory().objects.get(root_uid)?.plan.as_ref().filter(|plan| plan.digest == digest).cloned()
    }

    /// Keeps the plan of a root in memory.
    pub fn keep_plan(&self, root_uid: &str, plan: Arc<PlanTree>) {
        self.remembered(root_uid, |memory| memory.plan = Some(plan));
    }

    /// A root is over: what only work needs is forgotten.
    pub fn rest(&self, root_uid: &str) {
        self.remembered(root_uid, |memory| {
            memory.starts.clear();
            memory.plan = None;
        });
    }

    /// Whether progress of this task may be written now; if not, when.
    pub fn progress_due(&self, uid: &str, every: Duration) -> Result<(), Duration> {
        match self.memory().objects.get(uid).and_then(|memory| memory.progress).as_ref().map(Instant::elapsed) {
            Some(ago) if ago < every => Err(every.saturating_sub(ago)),
            _ => Ok(()),
        }
    }

    /// Notes that the status of a task was written.
    pub fn progress_written(&self, uid: &str) {
        self.remembered(uid, |memory| memory.progress = Some(clock::instant()));
    }

    /// Wait after one more error about an object: exponential with jitter, from 200 ms to 60 s.
    pub fn backoff(&self, uid: &str) -> Duration {
        let errors = self.remembered(uid, |memory| {
            memory.errors = (memory.errors + 1).min(16);
            memory.errors
        });
        let wait = 0.2 * 2f64.powi(i32::try_from(errors).unwrap_or(16) - 1);
        Duration::from_secs_f64(wait.min(60.0) * clock::jitter())
    }

    /// Forgets earlier errors about an object.
    pub fn went_well(&self, uid: &str) {
        if let Some(memory) = self.memory().objects.get_mut(uid) {
            memory.errors = 0;
        }
    }

    /// Objects whose last pass failed.
    pub fn in_backoff(&self) -> usize {
        self.memory().objects.values().filter(|memory| memory.errors > 0).count()
    }

    /// Notes that an object enters a phase; gives back how long it was in the one before, if this process saw it enter that.
    pub fn phase_entered(&self, uid: &str, old: &str, new: &str) -> Option<Duration> {
        self.remembered(uid, |memory| {
            let before = memory.phase.replace((new.to_owned(), clock::instant()));
            before.filter(|(phase, _)| phase == old).map(|(_, since)| since.elapsed())
        })
    }

    /// Counts the requests to the source that a worker tells of beyond those it has told of before. `is_first` says that nobody
    /// can have been told before.
    pub fn source_requests(&self, uid: &str, key: WorkerKey, is_first: bool, told: (i64, i64)) {
        let (requests, retries) = self.remembered(uid, |memory| {
            let before = memory.requests.get(&key).copied();
            // Only the newest attempt of each kind of work still tells of anything.
            memory.requests.retain(|known, _| known.0 != key.0);
            let (requests, retries) = before.unwrap_or_default();
            memory.requests.insert(key, (told.0.max(requests), told.1.max(retries)));
            beyond(before, is_first, told)
        });
        self.metrics.source_requests(requests, retries);
    }

    /// An object is gone. What was written and posted for it is kept for a while: an old list may show it once more (I1, I19).
    pub fn gone(&self, uid: &str) {
        self.stores.pods.close(uid);
        if let Some(memory) = self.memory().objects.get_mut(uid) {
            *memory = Remembered { posts: std::mem::take(&mut memory.posts), ..Remembered::default() };
        }
    }

    /// Forgets an object that went a while ago.
    pub fn forget(&self, uid: &str) {
        self.writer.forget(uid);
        self.stores.pods.forget(uid);
        self.memory().objects.remove(uid);
    }

    /// Tells people of a transition. An event that can't be published fails nothing.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, told: &Told) {
        let event = Event {
            type_: if told.warning { EventType::Warning } else { EventType::Normal },
            reason: told.reason.clone(),
            note: Some(told.note.clone()),
            action: told.reason.clone(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            debug!(%error, "an event was not published");
        }
    }
}

/// What a worker tells of beyond what it told of before. What another process may have counted is not counted again.
fn beyond(before: Option<(i64, i64)>, is_first: bool, told: (i64, i64)) -> (u64, u64) {
    let Some(before) = before.or_else(|| is_first.then_some((0, 0))) else { return (0, 0) };
    let more = |now: i64, before: i64| u64::try_from(now.saturating_sub(before)).unwrap_or(0);
    (more(told.0, before.0), more(told.1, before.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_counted_once_whoever_was_told_of_it() {
        assert_eq!(beyond(None, true, (7, 1)), (7, 1), "the first report of an attempt");
        assert_eq!(beyond(Some((7, 1)), false, (9, 1)), (2, 0), "a later one");
        assert_eq!(beyond(Some((9, 1)), false, (8, 1)), (0, 0), "one that was overtaken");
        assert_eq!(beyond(None, false, (500, 3)), (0, 0), "one to a process that was started in between");
    }
}

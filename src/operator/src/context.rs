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
use collect_core::{job::WorkerDefaults, ledger::Post, task::Told, tree::PlanTree};
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
}

impl Wake {
    /// Has a task looked at.
    pub fn task(&self, namespace: &str, name: &str) {
        let _ = self.tasks.unbounded_send(ObjectRef::new(name).within(namespace));
    }

    /// Has a shard looked at.
    pub fn shard(&self, namespace: &str, name: &str) {
        let _ = self.shards.unbounded_send(ObjectRef::new(name).within(namespace));
    }
}

/// What a worker of an attempt is known by: uid of its ledger, kind of work, run, attempt.
pub type WorkerKey = (String, &'static str, i64, i32);

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
    posts: HashMap<WorkerKey, Posted>,
    /// Since when an attempt has been seen in its present state.
    watched: HashMap<String, (String, Instant)>,
    /// Shards that may start, by uid of their root.
    starts: HashMap<String, BTreeSet<String>>,
    /// Plans by uid of their root.
    plans: HashMap<String, Arc<PlanTree>>,
    /// When a task's progress was last written, by uid.
    progress: HashMap<String, Instant>,
    /// Consecutive errors by uid.
    errors: HashMap<String, u32>,
    /// What was created a moment ago, by uid of its owner and name.
    created: HashMap<(String, String), Instant>,
}

/// How long a created object may take to come into view before its creation is tried again.
const IN_VIEW_WITHIN: Duration = Duration::from_secs(5);

struct Posted {
    refused: Option<(String, u32)>,
    ambiguous: bool,
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
            self.metrics.leading(leads);
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

    /// Remembers how the create of a worker ended.
    pub fn posted(&self, key: WorkerKey, answer: &Answer) {
        let mut memory = self.memory();
        let times = memory.posts.get(&key).and_then(|posted| posted.refused.as_ref()).map_or(0, |(_, times)| *times);
        let (refused, ambiguous) = match answer {
            Answer::Created => (None, false),
            Answer::Unknown => (None, true),
            Answer::Refused(message) => (Some((message.clone(), times + 1)), false),
        };
        memory.posts.insert(key, Posted { refused, ambiguous, at: clock::instant() });
    }

    /// What this process knows of its own create of a worker.
    pub fn post(&self, key: &WorkerKey) -> Post {
        match self.memory().posts.get(key) {
            None => Post::NotTried,
            Some(Posted { refused: Some((message, times)), at, .. }) => {
                Post::Refused { message: message.clone(), ago: at.elapsed(), times: *times }
            }
            Some(Posted { ambiguous: true, .. }) => Post::Unknown,
            Some(_) => Post::Sent,
        }
    }

    /// How long something has been in this state, by this process's own clock.
    pub fn watched_for(&self, key: &str, state: &str) -> Duration {
        let mut memory = self.memory();
        match memory.watched.get(key) {
            Some((old, since)) if old == state => since.elapsed(),
            _ => {
                memory.watched.insert(key.to_owned(), (state.to_owned(), clock::instant()));
                Duration::ZERO
            }
        }
    }

    /// Whether an object was not created a moment ago; if so, notes that it is now. It comes into view a little later than it
    /// is created, and until then every pass would create it again.
    pub fn may_create(&self, owner_uid: &str, name: &str) -> bool {
        let mut memory = self.memory();
        memory.created.retain(|_, at| at.elapsed() < IN_VIEW_WITHIN);
        let key = (owner_uid.to_owned(), name.to_owned());
        match memory.created.contains_key(&key) {
            true => false,
            false => {
                memory.created.insert(key, clock::instant());
                true
            }
        }
    }

    /// Takes back what was noted of a creation that failed.
    pub fn not_created(&self, owner_uid: &str, name: &str) {
        self.memory().created.remove(&(owner_uid.to_owned(), name.to_owned()));
    }

    /// Replaces the shards of a root that may start; gives back the new ones.
    pub fn set_starts(&self, root_uid: &str, starts: BTreeSet<String>) -> BTreeSet<String> {
        let old = self.memory().starts.insert(root_uid.to_owned(), starts.clone()).unwrap_or_default();
        starts.difference(&old).cloned().collect()
    }

    /// Whether a shard may start.
    pub fn may_start(&self, root_uid: &str, uid: &str) -> bool {
        self.memory().starts.get(root_uid).is_some_and(|starts| starts.contains(uid))
    }

    /// The plan of a root, if it is in memory and has this digest.
    pub fn plan(&self, root_uid: &str, digest: &str) -> Option<Arc<PlanTree>> {
        self.memory().plans.get(root_uid).filter(|plan| plan.digest == digest).cloned()
    }

    /// Keeps the plan of a root in memory.
    pub fn keep_plan(&self, root_uid: &str, plan: Arc<PlanTree>) {
        self.memory().plans.insert(root_uid.to_owned(), plan);
    }

    /// Whether progress of this task may be written now; if not, when.
    pub fn progress_due(&self, uid: &str, every: Duration) -> Result<(), Duration> {
        match self.memory().progress.get(uid).map(Instant::elapsed) {
            Some(ago) if ago < every => Err(every.saturating_sub(ago)),
            _ => Ok(()),
        }
    }

    /// Notes that the status of a task was written.
    pub fn progress_written(&self, uid: &str) {
        self.memory().progress.insert(uid.to_owned(), clock::instant());
    }

    /// Wait after one more error about an object: exponential with jitter, from 200 ms to 60 s.
    pub fn backoff(&self, uid: &str) -> Duration {
        let mut memory = self.memory();
        let errors = memory.errors.entry(uid.to_owned()).or_default();
        *errors = (*errors + 1).min(16);
        let wait = 0.2 * 2f64.powi(i32::try_from(*errors).unwrap_or(16) - 1);
        Duration::from_secs_f64(wait.min(60.0) * clock::jitter())
    }

    /// Forgets earlier errors about an object.
    pub fn went_well(&self, uid: &str) {
        self.memory().errors.remove(uid);
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.writer.forget(uid);
        let mut memory = self.memory();
        memory.posts.retain(|key, _| key.0 != uid);
        memory.watched.retain(|key, _| !key.starts_with(uid));
        memory.starts.remove(uid);
        memory.plans.remove(uid);
        memory.progress.remove(uid);
        memory.errors.remove(uid);
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

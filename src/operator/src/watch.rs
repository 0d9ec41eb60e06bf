//! Watches: one per kind, into a cache, waking whoever the object concerns.
//!
//! One undecodable object never stops a watch: it is logged, counted and ignored. A missed event may delay, never break:
//! every object is revisited on a jittered period even with no event.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use collect_api::{CollectShard, CollectTask, ValidationReport, labels};
use collect_core::observed::pod_is_over;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use tracing::{debug, warn};

use crate::{
    clock,
    context::Wake,
    error::chain,
    metrics::Metrics,
    read::{Guard, Read, Unreadable},
    ready::Ready,
};

/// Pods by name.
type ByName = HashMap<String, Arc<Pod>>;

/// How long the last words of a pod that is gone are kept: a pod that was stopped goes as soon as it has said them.
const LAST_WORDS_KEPT: Duration = Duration::from_secs(120);

/// Pods by the uid of the ledger that they work for.
#[derive(Clone, Default)]
pub struct PodIndex(Arc<RwLock<Pods>>);

#[derive(Default)]
struct Pods {
    /// Those that exist.
    live: HashMap<String, ByName>,
    /// Those that had ended when they went.
    gone: HashMap<String, ByName>,
    /// When those went: ledger and name, oldest first.
    went: VecDeque<(Instant, String, String)>,
    /// Ledgers that are gone: nobody asks for their pods' last words any more.
    closed: HashSet<String>,
}

impl Pods {
    fn forget_old(&mut self) {
        while self.went.front().is_some_and(|(at, ..)| at.elapsed() > LAST_WORDS_KEPT) {
            if let Some((_, ledger, name)) = self.went.pop_front() {
                take(&mut self.gone, &ledger, &name);
            }
        }
    }
}

/// Whether a pod is a Job's. Somebody's copy of a worker's pod is none, nor is a pod that a Job has left behind as an orphan.
fn is_of_a_job(pod: &Pod) -> bool {
    controller_of(pod).is_some_and(|owner| owner.kind == "Job")
}

fn take(pods: &mut HashMap<String, ByName>, ledger: &str, name: &str) {
    if let Some(of_ledger) = pods.get_mut(ledger) {
        of_ledger.remove(name);
        if of_ledger.is_empty() {
            pods.remove(ledger);
        }
    }
}

impl PodIndex {
    fn read(&self) -> RwLockReadGuard<'_, Pods> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pods> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods of a Job, also those that ended and went a moment ago.
    pub fn of(&self, ledger_uid: &str, job: &str) -> Vec<Arc<Pod>> {
        let pods = self.read();
        [pods.live.get(ledger_uid), pods.gone.get(ledger_uid)]
            .into_iter()
            .flatten()
            .flat_map(HashMap::values)
            .filter(|pod| controller_of(pod.as_ref()).is_some_and(|owner| owner.name == job))
            .cloned()
            .collect()
    }

    /// Whether a pod of this run still runs anywhere in a root's tree.
    pub fn any_active_of_run(&self, root_uid: &str, run: i64) -> bool {
        let run = run.to_string();
        self.read().live.values().flat_map(HashMap::values).any(|pod| {
            pod.labels().get(labels::ROOT_UID).is_some_and(|uid| uid == root_uid)
                && pod.labels().get(labels::RUN) == Some(&run)
                && !pod_is_over(pod)
        })
    }

    /// The pod with this name and uid, if it is known and exists.
    pub fn find(&self, name: &str, uid: &str) -> Option<Arc<Pod>> {
        let pods = self.read();
        pods.live.values().filter_map(|pods| pods.get(name)).find(|pod| pod.uid().as_deref() == Some(uid)).cloned()
    }

    /// The object that holds a ledger is gone, and with it what is kept of its pods, but for those that still run. Garbage collection
    /// may take the others minutes later.
    pub fn close(&self, ledger_uid: &str) {
        let mut pods = self.write();
        pods.gone.remove(ledger_uid);
        if let Some(live) = pods.live.get_mut(ledger_uid) {
            live.retain(|_, pod| !pod_is_over(pod));
            if live.is_empty() {
                pods.live.remove(ledger_uid);
            }
        }
        pods.closed.insert(ledger_uid.to_owned());
    }

    /// Forgets that a ledger was there.
    pub fn forget(&self, ledger_uid: &str) {
        self.write().closed.remove(ledger_uid);
    }

    fn put(&self, pod: Arc<Pod>) {
        let Some(ledger) = pod.labels().get(labels::LEDGER_UID).cloned() else { return };
        let mut pods = self.write();
        if is_of_a_job(&pod) && !(pod_is_over(&pod) && pods.closed.contains(&ledger)) {
            pods.live.entry(ledger).or_default().insert(pod.name_any(), pod);
        } else {
            take(&mut pods.live, &ledger, &pod.name_any());
        }
    }

    fn take(&self, pod: Arc<Pod>) {
        let (Some(ledger), name) = (pod.labels().get(labels::LEDGER_UID).cloned(), pod.name_any()) else { return };
        let mut pods = self.write();
        take(&mut pods.live, &ledger, &name);
        pods.forget_old();
        if is_of_a_job(&pod) && pod_is_over(&pod) && !pods.closed.contains(&ledger) {
            pods.went.push_back((clock::instant(), ledger.clone(), name.clone()));
            pods.gone.entry(ledger).or_default().insert(name, pod);
        }
    }

    fn replace(&self, all: &[Arc<Pod>]) {
        self.write().live.clear();
        all.iter().for_each(|pod| self.put(pod.clone()));
    }
}

/// Where watches tell of what they see.
#[derive(Clone)]
pub struct Outlets {
    /// Metrics.
    pub metrics: Metrics,
    /// Which caches are filled.
    pub ready: Ready,
    /// Queues of the controllers.
    pub wake: Wake,
}

/// Watches a kind into a store until the stream ends, which it never does by itself.
pub async fn run<K: Read>(
    api: Api<Guard<K>>,
    config: watcher::Config,
    mut store: Writer<K>,
    outlets: Outlets,
    wake: fn(&Wake, &K),
) {
    let Outlets { metrics, ready, wake: wakes } = outlets;
    let reader = store.as_reader();
    let mut events = watcher(api, config).default_backoff().boxed();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                warn!(kind = K::KIND, error = chain(&error), "the watch broke and is started again");
                metrics.watch_error(K::KIND);
                continue;
            }
        };
        let Some(event) = decoded(event, &reader, &metrics) else { continue };
        store.apply_watcher_event(&event);
        match &event {
            Event::Apply(object) => wake(&wakes, object),
            Event::Delete(object) => {
                wake(&wakes, object);
                wakes.gone(object.uid());
            }
            // Whoever vanished during a desync has no event of its own: everybody is looked at.
            Event::InitDone => {
                ready.done(K::KIND);
                reader.state().iter().for_each(|object| wake(&wakes, object));
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }
}

/// The event with its object read; an object that can't be read counts as absent.
fn decoded<K: Read>(event: Event<Guard<K>>, known: &Store<K>, metrics: &Metrics) -> Option<Event<K>> {
    let read = |guard: Guard<K>| {
        guard.0.map_err(|Unreadable { error, metadata }| {
            let (name, namespace) = (metadata.name.unwrap_or_default(), metadata.namespace.unwrap_or_default());
            warn!(kind = K::KIND, namespace, name, error, "the object can't be read and is ignored");
            metrics.undecodable(K::KIND);
            ObjectRef::<K>::new(&name).within(&namespace)
        })
    };
    match event {
        Event::Apply(guard) => match read(guard) {
            Ok(object) => Some(Event::Apply(object)),
            Err(reference) => known.get(&reference).map(|old| Event::Delete(K::clone(&old))),
        },
        Event::Delete(guard) => match read(guard) {
            Ok(object) => Some(Event::Delete(object)),
            Err(reference) => known.get(&reference).map(|old| Event::Delete(K::clone(&old))),
        },
        Event::InitApply(guard) => read(guard).ok().map(Event::InitApply),
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
    }
}

/// Watches pods into their index.
pub async fn run_pods(
    api: Api<Guard<Pod>>,
    config: watcher::Config,
    index: PodIndex,
    ready: Ready,
    metrics: Metrics,
    wake: impl Fn(&Pod),
) {
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut listed = Vec::new();
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                warn!(kind = "Pod", error = chain(&error), "the watch broke and is started again");
                metrics.watch_error("Pod");
                continue;
            }
        };
        match event {
            // Whoever is woken finds it in the index.
            Event::Apply(Guard(Ok(pod))) => {
                let pod = Arc::new(pod);
                index.put(pod.clone());
                wake(&pod);
            }
            Event::Delete(Guard(Ok(pod))) => {
                let pod = Arc::new(pod);
                index.take(pod.clone());
                wake(&pod);
            }
            Event::Init => listed.clear(),
            Event::InitApply(Guard(Ok(pod))) => listed.push(Arc::new(pod)),
            Event::InitDone => {
                index.replace(&listed);
                listed.drain(..).for_each(|pod| wake(&pod));
                ready.done("Pod");
            }
            Event::Apply(Guard(Err(Unreadable { error, .. })))
            | Event::Delete(Guard(Err(Unreadable { error, .. })))
            | Event::InitApply(Guard(Err(Unreadable { error, .. }))) => {
                debug!(error, "a pod can't be read and is ignored");
                metrics.undecodable("Pod");
            }
        }
    }
}

/// The controller owner of an object.
pub fn controller_of(object: &impl ResourceExt) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true))
}

/// Wakes whoever a task concerns: itself, its parent and its root.
pub fn wake_task(wake: &Wake, task: &CollectTask) {
    let namespace = task.namespace().unwrap_or_default();
    wake.task(&namespace, &task.name_any());
    if let Some(part_of) = &task.spec.part_of {
        wake.task(&namespace, &part_of.root);
        if let Some(parent) = controller_of(task).filter(|parent| parent.name != part_of.root) {
            wake.task(&namespace, &parent.name);
        }
    }
}

/// Wakes whoever a shard concerns: itself, its task and its root.
pub fn wake_shard(wake: &Wake, shard: &CollectShard) {
    let namespace = shard.namespace().unwrap_or_default();
    wake.shard(&namespace, &shard.name_any());
    wake.task(&namespace, &shard.spec.task);
    if let Some(root) = shard.labels().get(labels::ROOT).filter(|root| **root != shard.spec.task) {
        wake.task(&namespace, root);
    }
}

/// Wakes the task that a report is about.
pub fn wake_report(wake: &Wake, report: &ValidationReport) {
    let namespace = report.namespace().unwrap_or_default();
    wake.task(&namespace, &report.spec.task);
    // Its parent compares by it.
    if let [.., _] = report.spec.path.as_slice()
        && let Some(root) = report.labels().get(labels::ROOT)
    {
        wake.task(&namespace, root);
    }
}

/// Wakes the owner of a Job's ledger.
pub fn wake_job(wake: &Wake, job: &Job) {
    let namespace = job.namespace().unwrap_or_default();
    match controller_of(job) {
        Some(owner) if owner.kind == "CollectShard" => wake.shard(&namespace, &owner.name),
        Some(owner) if owner.kind == "CollectTask" => wake.task(&namespace, &owner.name),
        _ => {}
    }
}

/// Wakes the owner of the ledger that a pod works for.
pub fn wake_pod(wake: &Wake, jobs: &Store<Job>, pod: &Pod) {
    let namespace = pod.namespace().unwrap_or_default();
    if let Some(owner) = controller_of(pod)
        && let Some(job) = jobs.get(&ObjectRef::new(&owner.name).within(&namespace))
    {
        wake_job(wake, &job);
        return;
    }
    // Its Job is gone already; the labels say whom it concerned.
    let (Some(task), Some(work)) = (pod.labels().get(labels::TASK), pod.labels().get(labels::WORK)) else { return };
    if work == "collect" {
        if let Some(name) = pod.labels().get(labels::SHARD) {
            wake.shard(&namespace, name);
        }
    } else {
        wake.task(&namespace, task);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(phase: &str, owner: Option<&str>) -> Arc<Pod> {
        let owner = owner.map(
            |name| json!({"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": "ju", "controller": true}),
        );
        let owners: Vec<_> = owner.into_iter().collect();
        let metadata =
            json!({"name": "p", "uid": "pu", "labels": {labels::LEDGER_UID: "u"}, "ownerReferences": owners});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "status": {"phase": phase}})).unwrap())
    }

    #[test]
    fn a_pod_works_for_its_job_and_a_copy_of_it_without_one_for_none() {
        let index = PodIndex::default();
        index.put(pod("Running", None));
        assert!(index.find("p", "pu").is_none());
        index.put(pod("Running", Some("j")));
        assert_eq!((index.of("u", "j").len(), index.of("u", "other").len()), (1, 0));
        index.put(pod("Running", None));
        assert!(index.of("u", "j").is_empty(), "its Job was deleted and left it behind");
    }

    #[test]
    fn the_last_words_of_a_pod_outlive_it_and_a_pod_without_any_is_gone() {
        for (phase, kept) in [("Failed", 1), ("Succeeded", 1), ("Running", 0), ("Pending", 0)] {
            let index = PodIndex::default();
            index.put(pod("Running", Some("j")));
            assert!(index.find("p", "pu").is_some());
            index.take(pod(phase, Some("j")));
            assert_eq!(index.of("u", "j").len(), kept, "{phase}");
            assert!(index.of("u", "other").is_empty());
            assert!(index.find("p", "pu").is_none(), "it may do nothing any more");
            index.replace(&[]);
            assert_eq!(index.of("u", "j").len(), kept, "a new list does not take them back");
            index.put(pod(phase, Some("j")));
            index.close("u");
            let runs = usize::from(kept == 0);
            assert_eq!(index.of("u", "j").len(), runs, "nobody asks for the last words any more");
            index.put(pod(phase, Some("j")));
            assert_eq!(index.of("u", "j").len(), runs);
            index.take(pod(phase, Some("j")));
            assert!(index.of("u", "j").is_empty());
        }
    }
}

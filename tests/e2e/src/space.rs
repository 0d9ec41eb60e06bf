//! A namespace for each test: its objects, waiting for conditions, and what to print when the test fails.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use collect_api::{CollectShard, CollectTask, ValidationReport};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Event, Namespace, Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Cluster, say};

/// A namespace of its own for one test. Dropping it deletes the namespace; if the test fails, its state is printed first.
pub struct Space {
    /// Where it lies.
    pub cluster: &'static Cluster,
    /// A client with all rights, on the test's runtime.
    pub client: Client,
    /// Name of the namespace.
    pub name: String,
    /// A folder of the test's own: logs, keys, files of the sink.
    pub folder: PathBuf,
    logs: Mutex<Vec<PathBuf>>,
    /// Whether the namespace was there before.
    borrowed: bool,
}

/// Time between two tries of a watch whose API server is away.
struct Steady(Duration);

impl Iterator for Steady {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0)
    }
}

impl Backoff for Steady {
    fn reset(&mut self) {}
}

const AGAIN: Steady = Steady(Duration::from_millis(200));

impl Space {
    /// Makes a namespace whose name begins with `test`.
    pub async fn new(cluster: &'static Cluster, test: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{test}-{}-{n}", std::process::id());
        let client = cluster.client().await;
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).expect("a namespace");
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .expect("a new namespace");
        Self { cluster, client, folder: folder(&name), name, logs: Mutex::default(), borrowed: false }
    }

    /// A namespace that somebody else made and that stays.
    pub async fn existing(cluster: &'static Cluster, name: &str) -> Self {
        let folder = folder(&format!("{name}-{}", std::process::id()));
        let client = cluster.client().await;
        Self { cluster, client, name: name.to_owned(), folder, logs: Mutex::default(), borrowed: true }
    }

    /// Objects of a kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// CollectTasks.
    pub fn tasks(&self) -> Api<CollectTask> {
        self.api()
    }

    /// CollectShards.
    pub fn shards(&self) -> Api<CollectShard> {
        self.api()
    }

    /// ValidationReports.
    pub fn reports(&self) -> Api<ValidationReport> {
        self.api()
    }

    /// Jobs.
    pub fn jobs(&self) -> Api<Job> {
        self.api()
    }

    /// Pods.
    pub fn pods(&self) -> Api<Pod> {
        self.api()
    }

    /// Creates a Secret.
    pub async fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        let secret = serde_json::from_value(json!({"metadata": {"name": name}, "stringData": data})).expect("a secret");
        self.api::<Secret>().create(&PostParams::default(), &secret).await.expect("a new secret");
    }

    /// Creates a task from its spec.
    pub async fn create(&self, name: &str, spec: Value) -> CollectTask {
        let task = json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": name}, "spec": spec});
        let task = serde_json::from_value(task).expect("the spec is one of a CollectTask");
        self.tasks()
            .create(&PostParams::default(), &task)
            .await
            .unwrap_or_else(|error| panic!("create {name}: {error}"))
    }

    /// Changes a task's spec by a merge patch.
    pub async fn change(&self, name: &str, spec: Value) -> CollectTask {
        self.tasks()
            .patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec})))
            .await
            .unwrap_or_else(|error| panic!("change {name}: {error}"))
    }

    /// Deletes a task as `kubectl delete` does.
    pub async fn delete(&self, name: &str) {
        self.tasks()
            .delete(name, &DeleteParams::background())
            .await
            .unwrap_or_else(|error| panic!("delete {name}: {error}"));
    }

    /// All objects of a kind.
    pub async fn all<K>(&self) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.api::<K>().list(&ListParams::default()).await.expect("they can be listed").items
    }

    /// Runs kubectl in this namespace, with words separated by spaces, and gives what it printed.
    pub fn kubectl(&self, args: &str) -> String {
        crate::cluster::run(self.cluster.kubectl().args(["--namespace", &self.name]).args(args.split(' ')))
    }

    /// Waits until an object satisfies a condition.
    ///
    /// # Panics
    /// After `limit`, with the last state seen.
    pub async fn until<K>(&self, name: &str, what: &str, limit: Duration, mut condition: impl FnMut(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
        K: serde::Serialize,
    {
        let mut last = None;
        let wait = async {
            let mut stream = watcher::watch_object(self.api::<K>(), name).backoff(AGAIN).boxed();
            loop {
                match stream.try_next().await {
                    Ok(Some(Some(object))) if condition(&object) => return object,
                    Ok(Some(seen)) => last = seen,
                    Ok(None) => panic!("the watch of {name} ended"),
                    // The watch itself goes on after a backoff; API servers may be restarted under it.
                    Err(error) => say(&format!("watching {name}: {error}")),
                }
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(object) => object,
            Err(_) => panic!(
                "{} {name} in {}: waited {limit:?} until {what}; last seen:\n{}",
                K::kind(&()),
                self.name,
                last.map_or("nothing".to_owned(), |object| serde_yaml::to_string(&object).unwrap_or_default())
            ),
        }
    }

    /// Waits until all objects of a kind together satisfy a condition.
    ///
    /// # Panics
    /// After `limit`, with the names last seen.
    pub async fn until_all<K>(&self, what: &str, limit: Duration, condition: impl FnMut(&[K]) -> bool) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        self.until_labelled("", what, limit, condition).await
    }

    /// The same for those objects of a kind that have these labels.
    ///
    /// # Panics
    /// After `limit`, with the names last seen.
    pub async fn until_labelled<K>(
        &self,
        labels: &str,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&[K]) -> bool,
    ) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        let mut known: BTreeMap<String, K> = BTreeMap::new();
        let mut relisted: BTreeMap<String, K> = BTreeMap::new();
        let mut names = Vec::new();
        let wait = async {
            let of = watcher::Config::default().labels(labels);
            let mut stream = watcher(self.api::<K>(), of).backoff(AGAIN).boxed();
            loop {
                match stream.try_next().await {
                    Ok(Some(watcher::Event::Init)) => {
                        relisted.clear();
                        continue;
                    }
                    Ok(Some(watcher::Event::InitApply(object))) => {
                        relisted.insert(object.name_any(), object);
                        continue;
                    }
                    Ok(Some(watcher::Event::InitDone)) => known = std::mem::take(&mut relisted),
                    Ok(Some(watcher::Event::Apply(object))) => {
                        known.insert(object.name_any(), object);
                    }
                    Ok(Some(watcher::Event::Delete(object))) => {
                        known.remove(&object.name_any());
                    }
                    Ok(None) => panic!("the watch ended"),
                    Err(error) => {
                        say(&format!("watching {}: {error}", K::plural(&())));
                        continue;
                    }
                }
                let all: Vec<K> = known.values().cloned().collect();
                if condition(&all) {
                    return all;
                }
                names = known.keys().cloned().collect();
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(all) => all,
            Err(_) => {
                panic!("{} in {}: waited {limit:?} until {what}; last seen: {names:?}", K::plural(&()), self.name)
            }
        }
    }

    /// Waits until a task has a condition with this status.
    pub async fn until_condition(&self, task: &str, type_: &str, status: &str, limit: Duration) -> CollectTask {
        self.until::<CollectTask>(task, &format!("{type_}={status}"), limit, |task| {
            condition(task, type_).is_some_and(|condition| condition.status == status)
        })
        .await
    }

    /// Waits until a task is over, however it ended, and says how.
    pub async fn until_over(&self, task: &str, limit: Duration) -> CollectTask {
        self.until::<CollectTask>(task, "it is over", limit, |task| {
            phase(task).is_some_and(collect_api::Phase::is_terminal) && is_observed(task)
        })
        .await
    }

    /// Waits until nothing is left of any task in this namespace.
    pub async fn until_empty(&self, limit: Duration) {
        self.until_all::<CollectTask>("no task is left", limit, <[_]>::is_empty).await;
        self.until_all::<CollectShard>("no shard is left", limit, <[_]>::is_empty).await;
        self.until_all::<ValidationReport>("no report is left", limit, <[_]>::is_empty).await;
        self.until_all::<Job>("no Job is left", limit, <[_]>::is_empty).await;
        self.until_all::<Pod>("no pod is left", limit, <[_]>::is_empty).await;
        self.until_all::<ConfigMap>("no ConfigMap of ours is left", limit, |maps| {
            maps.iter().all(|map| map.name_any() == "kube-root-ca.crt")
        })
        .await;
    }

    /// Names of the Events' reasons that are about this object.
    pub async fn event_reasons(&self, name: &str) -> Vec<String> {
        let events = self.all::<Event>().await;
        let about = events.into_iter().filter(|event| event.involved_object.name.as_deref() == Some(name));
        about.filter_map(|event| event.reason).collect()
    }

    /// Notes a log whose end is printed if the test fails.
    pub(crate) fn note_log(&self, path: &Path) {
        if let Ok(mut logs) = self.logs.lock() {
            logs.push(path.to_owned());
        }
    }

    /// Prints what a person would look at first, and keeps all of it in a file.
    pub fn print_state(&self) {
        let kubectl = |args: &str| {
            let mut kubectl = self.cluster.kubectl();
            kubectl.args(["--namespace", &self.name]).args(args.split(' ')).stderr(Stdio::null());
            kubectl.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        let mut text = format!("\n===== state of namespace {} =====\n", self.name);
        for args in [
            "get collecttasks,collectshards,validationreports,jobs,pods",
            "get ct -o jsonpath={range.items[*]}{.metadata.name}:{.status.phase}:{.status.message}{\"\\n\"}{end}",
            "get events --sort-by=.lastTimestamp --field-selector type=Warning",
        ] {
            text.push_str(&format!("--- kubectl {args}\n{}\n", lines(&kubectl(args), 40, false)));
        }
        for log in self.logs.lock().map(|logs| logs.clone()).unwrap_or_default() {
            let log_text = std::fs::read_to_string(&log).unwrap_or_default();
            text.push_str(&format!("--- {}\n{}\n", log.display(), lines(&log_text, 25, true)));
        }
        let whole = kubectl("get collecttasks,collectshards,validationreports,jobs,pods,configmaps,events -o yaml");
        let file = self.folder.join("state.yaml");
        let _ = std::fs::write(&file, whole);
        text.push_str(&format!("--- everything: {}\n", file.display()));
        say(&text);
    }
}

/// A folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join("collect-e2e").join(name);
    std::fs::create_dir_all(&folder).expect("the test's folder can be made");
    folder
}

/// The first or last lines of a text, each cut to what fits a screen.
fn lines(text: &str, most: usize, last: bool) -> String {
    let all: Vec<_> = text.lines().collect();
    let from = if last { all.len().saturating_sub(most) } else { 0 };
    all.iter()
        .skip(from)
        .take(most)
        .map(|line| line.chars().take(400).collect::<String>())
        .collect::<Vec<_>>()
        .join("\n")
}

impl Drop for Space {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_state();
            say(&format!("logs are kept in {}", self.folder.display()));
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
        if self.borrowed {
            return;
        }
        let mut delete = self.cluster.kubectl();
        delete.args(["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]);
        let _ = delete.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A condition of a task.
pub fn condition<'a>(task: &'a CollectTask, type_: &str) -> Option<&'a Condition> {
    task.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_)
}

/// Phase of a task.
pub fn phase(task: &CollectTask) -> Option<&collect_api::Phase> {
    task.status.as_ref()?.phase.as_ref()
}

/// Whether the status is about the spec as it stands.
pub fn is_observed(task: &CollectTask) -> bool {
    let run = task.status.as_ref().and_then(|status| status.run);
    let observed = task.status.as_ref().and_then(|status| status.observed_generation);
    observed == task.metadata.generation && (task.spec.part_of.is_some() || run == Some(task.spec.run_number()))
}

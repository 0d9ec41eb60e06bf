//! How each blow is dealt on a real node, and how one sees that its effect is over.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use collect_api::{CollectTask, labels};
use futures::future::BoxFuture;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Blow, Draw, History, history::Book, node, node::Process};
use crate::{Cluster, Space, demo};

/// Time within which the effect of anything must be over, on a busy machine of two cores and with further blows in between.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Time for an API server to come back.
const OUTAGE: Duration = Duration::from_secs(60);
/// Time for workers to leave: their grace period twice over, since whoever tells them may be killed meanwhile.
const GRACE: Duration = Duration::from_secs(90);
const OPERATORS: &str = "app.kubernetes.io/name=collect-operator";

/// Where it all happens.
pub struct Field {
    /// The cluster, with a real node.
    pub cluster: &'static Cluster,
    /// The namespace of the task.
    pub demo: Space,
    /// The namespace of the operator.
    pub system: Space,
    /// All that is written.
    pub history: History,
    /// Name of the task.
    pub task: String,
    /// Pauses that were begun or ended: what overlaps with one can't be timed.
    pauses: AtomicUsize,
}

/// A run of the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Uid of the task.
    pub uid: String,
    /// Its number.
    pub number: i64,
}

/// A blow that found its victim.
pub struct Hit {
    /// Who it was.
    pub victim: String,
    /// Ends when all is as before, with the time that took; with nothing if it can't be told.
    pub recovery: BoxFuture<'static, Option<Duration>>,
}

impl Run {
    /// The task's object while it is in this run.
    pub fn of<'a>(&self, book: &'a Book, task: &str) -> Option<&'a Value> {
        let object = book.object("collecttasks", task)?;
        let is_it = object["metadata"]["uid"] == self.uid.as_str() && object["status"]["run"] == self.number;
        is_it.then_some(object)
    }
}

fn is_over(object: &Value) -> bool {
    let phase = serde_json::from_value::<collect_api::Phase>(object["status"]["phase"].clone());
    phase.is_ok_and(|phase| phase.is_terminal())
}

impl Field {
    /// A field on which nothing has happened yet.
    pub fn new(cluster: &'static Cluster, demo: Space, system: Space, history: History, task: String) -> Self {
        Self { cluster, demo, system, history, task, pauses: AtomicUsize::new(0) }
    }

    /// The task's object once the run is over.
    pub fn over(&self, book: &Book, run: &Run) -> Option<Value> {
        run.of(book, &self.task).filter(|task| is_over(task)).cloned()
    }

    /// Whether the run has a plan.
    pub fn is_planned(&self, book: &Book, run: &Run) -> bool {
        run.of(book, &self.task).is_some_and(|task| !task["status"]["plan"]["sealed"].is_null())
    }

    /// Deals a blow. `None` if the run was over before there was a victim.
    pub async fn strike(self: &Arc<Self>, draw: &Draw, run: &Run) -> Option<Hit> {
        match draw.blow {
            Blow::Operator | Blow::OperatorPod | Blow::OperatorShim => self.strike_operator(draw, run).await,
            Blow::Worker | Blow::WorkerShim => self.strike_worker(draw, run).await,
            Blow::ApiServer => self.restart("kube-apiserver", draw, run).await,
            Blow::Etcd => self.restart("etcd", draw, run).await,
            Blow::PauseRoot => self.pause(self.task.clone(), draw, run),
            Blow::PauseChild => {
                let child = self.child(draw, run).await?;
                self.pause(child, draw, run)
            }
        }
    }

    async fn strike_operator(self: &Arc<Self>, draw: &Draw, run: &Run) -> Option<Hit> {
        loop {
            let (process, pod) = self.victim(node::OPERATOR, &self.system, OPERATORS, draw, run).await?;
            let name = pod.name_any();
            let leases = self.system.api::<Lease>();
            let lease = persist("read the lease", || async { leases.get(demo::RELEASE).await }).await;
            let dead = lease.as_ref().and_then(holder).map(str::to_owned);
            let began = Instant::now();
            self.keep_log(&pod);
            let victim = match draw.blow {
                Blow::OperatorPod => {
                    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                    persist("delete the operator's pod", || async { self.system.pods().delete(&name, &now).await })
                        .await?;
                    Some(name)
                }
                Blow::OperatorShim => {
                    node::kill_shim(self.cluster, &process.pod).map(|pid| format!("{name}, shim {pid}"))
                }
                _ => node::kill(self.cluster, &process).then(|| format!("{name}, pid {}", process.pid)),
            };
            let Some(victim) = victim else { continue };
            let field = self.clone();
            let recovery = Box::pin(async move {
                let led = |lease: &Lease| holder(lease).is_some_and(|holder| Some(holder) != dead.as_deref());
                let what = "another operator holds the lease";
                field.system.until::<Lease>(demo::RELEASE, what, PATIENCE, led).await;
                Some(began.elapsed())
            });
            return Some(Hit { victim, recovery });
        }
    }

    async fn strike_worker(self: &Arc<Self>, draw: &Draw, run: &Run) -> Option<Hit> {
        loop {
            let (process, pod) = self.victim(node::WORKER, &self.demo, labels::MANAGED_SELECTOR, draw, run).await?;
            let (began, revision) = (Instant::now(), self.history.book().revision());
            let name = pod.name_any();
            let victim = match draw.blow {
                Blow::WorkerShim => {
                    node::kill_shim(self.cluster, &process.pod).map(|pid| format!("{name}, shim {pid}"))
                }
                _ => node::kill(self.cluster, &process).then(|| format!("{name}, pid {}", process.pid)),
            };
            let Some(victim) = victim else { continue };
            let label = |key: &str| pod.labels().get(key).cloned().unwrap_or_default();
            let (ledger, work) = (label(labels::LEDGER_UID), label(labels::WORK));
            let (field, run) = (self.clone(), run.clone());
            let recovery = Box::pin(async move {
                let task = field.task.clone();
                field
                    .timed(began, "the work of a killed worker goes on", |book| {
                        let next = book.jobs().iter().any(|job| job.ledger == ledger && job.revision > revision);
                        next || is_done(book, &task, &run, &ledger, &work)
                    })
                    .await
            });
            return Some(Hit { victim, recovery });
        }
    }

    async fn restart(self: &Arc<Self>, component: &'static str, draw: &Draw, run: &Run) -> Option<Hit> {
        let began = Instant::now();
        let (cluster, signal) = (self.cluster, if draw.hard { "KILL" } else { "TERM" });
        // Not this thread's: it serves the watches.
        let restart = tokio::task::spawn_blocking(move || cluster.component_by("restart", component, signal));
        restart.await.expect("the component comes back");
        let (field, run, before) = (self.clone(), run.clone(), self.history.book().writes());
        let recovery = Box::pin(async move {
            let task = field.task.clone();
            let written = |book: &Book| book.writes() > before || run.of(book, &task).is_some_and(is_over);
            field.timed(began, "the operator writes again", written).await
        });
        Some(Hit { victim: format!("SIG{signal}"), recovery })
    }

    /// Pauses a task of the tree and resumes it after a while; the time is that from resuming to the next Job below it.
    fn pause(self: &Arc<Self>, task: String, draw: &Draw, run: &Run) -> Option<Hit> {
        let (field, run, hold, victim) = (self.clone(), run.clone(), Duration::from_secs_f64(draw.hold), task.clone());
        let recovery = Box::pin(async move {
            field.pauses.fetch_add(1, Ordering::Relaxed);
            let time = field.hold_still(&task, &run, hold).await;
            field.pauses.fetch_add(1, Ordering::Relaxed);
            time
        });
        Some(Hit { victim, recovery })
    }

    /// I12: paused, no new attempt starts and running ones stop within the grace period.
    async fn hold_still(&self, task: &str, run: &Run, hold: Duration) -> Option<Duration> {
        let over =
            |book: &Book| self.over(book, run).is_some() || book.object("collecttasks", task).is_none_or(is_over);
        self.desire(task, "Paused").await?;
        let paused = |book: &Book| {
            let is_paused = book.object("collecttasks", task).is_some_and(|task| task["status"]["phase"] == "Paused");
            (is_paused || over(book)).then_some(is_paused)
        };
        let is_paused = self.history.until(&format!("{task} is Paused or over"), PATIENCE, paused).await;
        let mut from = Instant::now();
        if is_paused {
            self.until_still(task).await;
            let jobs = |book: &Book| book.jobs().iter().filter(|job| is_below(&job.name, task)).count();
            let before = jobs(&self.history.book());
            // How long a pause lasts is the random thing here; there is nothing to await.
            tokio::time::sleep(hold).await;
            assert_eq!(jobs(&self.history.book()), before, "I12: Jobs below {task} while it is paused");
            from = Instant::now();
            self.desire(task, "Running").await?;
            let resumed = |book: &Book| (jobs(book) > before || over(book)).then_some(());
            self.history.until(&format!("a worker starts below {task} after the pause"), PATIENCE, resumed).await;
        } else {
            self.desire(task, "Running").await?;
        }
        is_paused.then(|| from.elapsed())
    }

    /// Waits until no worker runs below a task.
    async fn until_still(&self, task: &str) {
        let still = |pods: &[Pod]| !pods.iter().any(|pod| is_below(&pod.name_any(), task) && is_running(pod));
        let what = format!("I12: workers below {task} have left");
        self.demo.until_labelled::<Pod>(labels::MANAGED_SELECTOR, &what, GRACE, still).await;
    }

    /// Sets a task's desired state; `None` if the task is gone.
    pub async fn desire(&self, task: &str, state: &str) -> Option<CollectTask> {
        let patch = Patch::Merge(json!({"spec": {"desiredState": state}}));
        let params = PatchParams::default();
        persist("set a desired state", || async { self.demo.tasks().patch(task, &params, &patch).await }).await
    }

    /// A child that is at work.
    async fn child(&self, draw: &Draw, run: &Run) -> Option<String> {
        let children = |book: &Book| {
            let at_work = |task: &&Value| {
                task["spec"]["partOf"]["rootUid"] == run.uid.as_str()
                    && task["spec"]["partOf"]["run"] == run.number
                    && task["status"]["phase"] == "Running"
            };
            let children = book.objects("collecttasks").filter(at_work);
            let names: Vec<_> =
                children.filter_map(|task| Some(task["metadata"]["name"].as_str()?.to_owned())).collect();
            (!names.is_empty() || self.over(book, run).is_some()).then_some(names)
        };
        let children = self.history.until("a child is at work", PATIENCE, children).await;
        chosen(&children, draw).cloned()
    }

    /// Waits until a program runs, and chooses one of its processes, with its pod. `None` if the run is over before.
    async fn victim(
        &self,
        program: &str,
        space: &Space,
        selector: &str,
        draw: &Draw,
        run: &Run,
    ) -> Option<(Process, Pod)> {
        loop {
            if self.over(&self.history.book(), run).is_some() {
                return None;
            }
            if !node::running(self.cluster, program).is_empty() {
                let params = ListParams::default().labels(selector);
                let pods = persist("list pods", || async { space.pods().list(&params).await }).await?;
                let pods: BTreeMap<String, Pod> = pods.into_iter().filter_map(|pod| Some((pod.uid()?, pod))).collect();
                let mut found: Vec<_> = node::running(self.cluster, program)
                    .into_iter()
                    .filter_map(|process| Some((pods.get(&process.pod)?.clone(), process)))
                    .collect();
                found.sort_by_key(|(pod, _)| pod.name_any());
                if let Some((pod, process)) = chosen(&found, draw) {
                    return Some((process.clone(), pod.clone()));
                }
            }
            // The kernel announces no process.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the book says so, and gives the time since; nothing if a pause came in between.
    async fn timed(&self, began: Instant, what: &str, holds: impl Fn(&Book) -> bool) -> Option<Duration> {
        let pauses = self.pauses.load(Ordering::Relaxed);
        // Odd while a pause lasts.
        let undisturbed = || pauses.is_multiple_of(2) && self.pauses.load(Ordering::Relaxed) == pauses;
        let done = |book: &Book| (holds(book) || !undisturbed()).then(undisturbed);
        self.history.until(what, PATIENCE, done).await.then(|| began.elapsed())
    }

    /// Keeps what an operator logged before its pod goes, for whoever looks for the cause of a failure.
    fn keep_log(&self, pod: &Pod) {
        let folder = format!("{}_{}_{}", self.system.name, pod.name_any(), pod.uid().unwrap_or_default());
        let containers = fs::read_dir(self.cluster.state.join("pod-logs").join(folder).join("operator"));
        for log in containers.into_iter().flatten().filter_map(Result::ok) {
            let name = format!("{}-{}", pod.name_any(), log.file_name().to_string_lossy());
            let _ = fs::copy(log.path(), self.demo.folder.join(name));
        }
    }
}

/// Whether the work of a ledger needs no further attempt.
fn is_done(book: &Book, task: &str, run: &Run, ledger: &str, work: &str) -> bool {
    let Some(root) = run.of(book, task) else { return true };
    if is_over(root) {
        return true;
    }
    match work {
        "plan" => !root["status"]["plan"]["sealed"].is_null(),
        "commit" => !root["status"]["commit"]["result"].is_null(),
        _ => {
            let shard = book.objects("collectshards").find(|shard| shard["metadata"]["uid"] == ledger);
            // A shard that is gone was folded into its parent.
            shard.is_none_or(|shard| {
                matches!(shard["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Cancelled"))
            })
        }
    }
}

/// Names are derived from those of the parents.
fn is_below(name: &str, task: &str) -> bool {
    name.strip_prefix(task).is_some_and(|rest| rest.starts_with('-'))
}

fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Who holds a lease, if anybody does.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn chosen<'a, T>(all: &'a [T], draw: &Draw) -> Option<&'a T> {
    // Truncation is what is wanted: 0 ≤ pick < 1.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    all.get((draw.pick * all.len() as f64) as usize)
}

/// Asks the API server again and again while it is away. `None` if what it is about does not exist.
///
/// # Panics
/// If it stays away, or refuses.
pub async fn persist<T, F>(what: &str, request: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = kube::Result<T>>,
{
    let began = Instant::now();
    loop {
        match request().await {
            Ok(answer) => return Some(answer),
            Err(kube::Error::Api(status)) if status.code == 404 => return None,
            Err(error) => assert!(began.elapsed() < OUTAGE, "{what}: {error}"),
        }
        // Nothing announces that it is back.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

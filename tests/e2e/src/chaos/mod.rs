//! A campaign against the demo on a real node: its task is collected again and again while things are killed at random moments,
//! and each time the end must be the same.
//!
//! | module         | for |
//! |----------------|-----|
//! | [`blow`]       | what can be done, and the cards that say in which order |
//! | [`strike`]     | how it is done, and when its effect is over |
//! | [`node`]       | processes of containers, and how they are killed |
//! | [`history`]    | everything that was ever written, from etcd itself |
//! | [`invariants`] | what must hold from one version of an object to the next |
//! | [`tally`]      | the figures |
//!
//! Chance comes from the seed alone. The same seed repeats kinds, order, gaps and choices; what they meet depends on the machine.

pub mod blow;
pub mod history;
pub mod invariants;
pub mod node;
pub mod strike;
pub mod tally;

use std::{
    any::Any,
    collections::BTreeSet,
    fmt, fs,
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use collect_api::{CollectShard, CollectTask, ValidationReport, labels};
use futures::FutureExt;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::{JoinError, JoinSet};

pub use self::{
    blow::{Blow, Cards, Deck, Draw},
    history::History,
    strike::{Field, Run},
    tally::Tally,
};
use self::{history::Book, strike::persist};
use crate::{Cluster, Space, audit, cluster, demo, http, say, sink, tasks::SOON};

/// Time that a run may take, blows and all.
const RUN: Duration = Duration::from_secs(900);
/// Which recoveries are meant.
const KILLS: usize = 0;
const PAUSES: usize = 1;
/// A recovery that takes longer is worth a line.
const SLOW: Duration = Duration::from_secs(15);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Where chance comes from.
    pub seed: u64,
    /// Kills, at least.
    pub kills: usize,
    /// Time over which they are spread; runs go on until it is over.
    pub time: Duration,
    /// How often each blow comes.
    pub cards: Cards,
    /// File below `deploy/samples` with the task.
    pub sample: &'static str,
    /// What the codes of the villages begin with that the task collects.
    pub codes: &'static str,
    /// How long the source waits before each page of villages, so that a run takes long enough to be hit. Not while
    /// the planner is at work, nor once all is done.
    pub delay: Duration,
}

/// What did not hold.
#[derive(Debug)]
pub struct Violation {
    /// Invariants, by their numbers, or what else was promised.
    pub of: &'static str,
    /// What was found.
    pub what: String,
    /// The figures up to then.
    pub tally: Tally,
    /// Where the evidence lies.
    pub evidence: PathBuf,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { of, what, tally, evidence } = self;
        write!(f, "VIOLATION of {of}: {what}\n{tally}\nevidence: {}", evidence.display())
    }
}

/// What did not hold, before it is put together with the figures.
type Broken = (&'static str, String);

/// Carries orders out on a cluster with a real node: installs the demo, collects, strikes, compares, removes.
///
/// # Errors
/// The first thing that did not hold.
///
/// # Panics
/// If the demo can't be installed.
pub async fn carry_out(cluster: &'static Cluster, orders: Orders) -> Result<Tally, Box<Violation>> {
    let name = cluster.name;
    let install = tokio::task::spawn_blocking(move || demo::script(name, &[("UNTIL", "installed")]));
    install.await.expect("the demo can be installed");
    let mut campaign = Campaign::new(cluster, orders).await;
    let result = campaign.run().await;
    let (field, mut tally) = (campaign.field, campaign.tally);
    tally.took = campaign.began.elapsed();
    let book = field.history.book();
    tally.jobs = book.jobs().len();
    tally.jobs_twice = book.jobs_created_twice().len();
    tally.versions = book.writes();
    drop(book);
    match result {
        Ok(()) => {
            if std::env::var_os("COLLECT_E2E_KEEP").is_some() {
                say(&format!("history and logs: {}", keep_evidence(&field).display()));
            }
            Ok(tally)
        }
        Err((of, what)) => Err(Box::new(Violation { of, what, tally, evidence: keep_evidence(&field) })),
    }
}

/// What was hit, and how long it took until all was as before, if that can be told.
struct Recovery {
    blow: Blow,
    victim: String,
    time: Option<Duration>,
}

struct Campaign {
    orders: Orders,
    field: Arc<Field>,
    /// What the task is, and what it must collect.
    spec: Value,
    codes: BTreeSet<String>,
    /// `host:port` of the source.
    source: String,
    tally: Tally,
    deck: Deck,
    /// Decides how runs follow each other.
    random: StdRng,
    /// Recoveries that are awaited, those from kills and those from pauses.
    recoveries: [JoinSet<Recovery>; 2],
    began: Instant,
}

impl Campaign {
    async fn new(cluster: &'static Cluster, orders: Orders) -> Self {
        let sample = fs::read_to_string(cluster::repository().join("deploy/samples").join(orders.sample));
        let mut sample: Value = serde_yaml::from_str(&sample.expect("the sample is there")).expect("it is YAML");
        // A budget that no history can use up: a run that fails all the same has found something.
        sample["spec"]["retry"] =
            json!({"maxAttempts": 50, "maxDisruptions": 500, "backoff": {"initial": "500ms", "max": "5s"}});
        let task = sample["metadata"]["name"].as_str().expect("it has a name").to_owned();

        let demo = Space::existing(cluster, demo::NAMESPACE).await;
        let system = Space::existing(cluster, demo::SYSTEM).await;
        demo.kubectl("delete collecttasks --all --timeout=120s");
        demo.until_labelled::<Pod>(labels::MANAGED_SELECTOR, "nothing is left of earlier tasks", SOON, <[_]>::is_empty)
            .await;
        let history = History::begin(cluster, demo::NAMESPACE, &demo.folder.join("history.ndjson")).await;
        let source = demo::address(&demo.client, "registry").await;
        let field = Arc::new(Field::new(cluster, demo, system, history, task));
        let (deck, random) = (Deck::new(orders.seed, orders.cards), StdRng::seed_from_u64(orders.seed ^ u64::MAX));
        let (seed, kills, minutes) = (orders.seed, orders.kills, orders.time.as_secs_f64() / 60.0);
        let tally = Tally { orders: format!("SEED={seed} KILLS={kills} MINUTES={minutes}"), ..Tally::default() };
        let codes = demo::villages(orders.codes);
        let (spec, recoveries, began) = (sample["spec"].take(), Default::default(), Instant::now());
        Self { orders, field, spec, codes, source, tally, deck, random, recoveries, began }
    }

    async fn run(&mut self) -> Result<(), Broken> {
        say(&self.tally.orders);
        let mut run = None;
        while run.is_none() || !self.is_enough() {
            let next = held("I15: nothing of a deleted task is left", self.begin(run.as_ref())).await?;
            self.collect(&next).await?;
            self.compare(&next).await?;
            run = Some(next);
        }
        held("I15: nothing of a deleted task is left", self.remove()).await?;
        let left = held("I15: nothing of a deleted task is left", self.left()).await?;
        self.tally.left = Some(left.len());
        holds("I15", left.is_empty(), || format!("left: {left:?}"))?;
        self.compare_with_audit()
    }

    fn is_enough(&self) -> bool {
        let all_kinds = self.orders.cards.iter().all(|(blow, _)| self.tally.blows.contains_key(blow));
        all_kinds && self.tally.kills() >= self.orders.kills && self.began.elapsed() >= self.orders.time
    }

    /// Begins a run: the first, or by raising `spec.run`, or by deleting the task and creating it again.
    async fn begin(&mut self, before: Option<&Run>) -> Run {
        let tasks = self.field.demo.tasks();
        let raised = before.filter(|_| self.random.random_bool(0.6));
        let task = if let Some(before) = raised {
            let patch = Patch::Merge(json!({"spec": {"run": before.number + 1}}));
            let (name, params) = (self.field.task.clone(), PatchParams::default());
            let raise = || async { tasks.patch(&name, &params, &patch).await };
            persist("raise spec.run", raise).await.expect("the task is there")
        } else {
            if before.is_some() {
                self.remove().await;
                self.tally.created_anew += 1;
            }
            self.create().await
        };
        let run = Run { uid: task.uid().expect("a task has a uid"), number: task.spec.run_number() };
        let how = if raised.is_some() { "spec.run was raised" } else { "the task was created" };
        self.say(&format!("run {} of {} begins: {how}", run.number, self.field.task));
        self.slow_down(Duration::ZERO).await;
        run
    }

    async fn create(&self) -> CollectTask {
        let (name, tasks) = (&self.field.task, self.field.demo.tasks());
        let task = json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": name}, "spec": self.spec,
        });
        let task: CollectTask = serde_json::from_value(task).expect("the sample is a CollectTask");
        let create = || async {
            match tasks.create(&PostParams::default(), &task).await {
                // An earlier try whose answer was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => tasks.get(name).await,
                answer => answer,
            }
        };
        persist("create the task", create).await.expect("the namespace is there")
    }

    /// Deletes the task and waits until nothing is left of it.
    async fn remove(&self) {
        let (tasks, name) = (self.field.demo.tasks(), &self.field.task);
        persist("delete the task", || async { tasks.delete(name, &DeleteParams::background()).await }).await;
        let empty = |book: &Book| left_in(book).is_empty().then_some(());
        if self.field.history.when(SOON, empty).await.is_none() {
            panic!("left after {SOON:?}: {:?}", left_in(&self.field.history.book()));
        }
    }

    /// Objects of ours that the API server still has.
    async fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        left.extend(self.names::<CollectTask>("").await);
        left.extend(self.names::<CollectShard>("").await);
        left.extend(self.names::<ValidationReport>("").await);
        left.extend(self.names::<Job>("").await);
        left.extend(self.names::<Pod>(labels::MANAGED_SELECTOR).await);
        left.extend(self.names::<ConfigMap>(labels::MANAGED_SELECTOR).await);
        left
    }

    async fn names<K>(&self, selector: &str) -> Vec<String>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
    {
        let (api, params): (Api<K>, _) = (self.field.demo.api(), ListParams::default().labels(selector));
        let all = persist("list what is left", || async { api.list(&params).await }).await.expect("the kind is there");
        all.items.iter().map(|object| format!("{}/{}", K::plural(&()), object.name_any())).collect()
    }

    /// Strikes until the run is over or enough was done, and waits for the run's end and all recoveries.
    async fn collect(&mut self, run: &Run) -> Result<(), Broken> {
        let field = self.field.clone();
        let over = |book: &Book| field.over(book, run);
        let mut is_slow = false;
        while !self.is_enough() {
            // Only then: the planner asks for a page of each district too, and begins anew after each kill.
            if !is_slow && field.is_planned(&field.history.book(), run) {
                self.slow_down(self.orders.delay).await;
                is_slow = true;
            }
            let draw = self.deck.draw();
            // A pause at a time: a second one would undo the first. Kills go on in it.
            if !draw.blow.is_kill() {
                self.until_recovered(PAUSES).await?;
            }
            let is_over = field.history.when(self.mean_gap().mul_f64(draw.gap), over).await.is_some();
            let hit = if is_over { None } else { held(of(draw.blow), field.strike(&draw, run)).await? };
            let Some(hit) = hit else {
                self.deck.put_back(draw);
                break;
            };
            self.tally.blows.entry(draw.blow).or_default().hit += 1;
            let count = format!("{:>3}/{}", self.tally.kills(), self.orders.kills);
            let count = if draw.blow.is_kill() { count } else { " ".repeat(count.len()) };
            self.say(&format!("{count} {:<17} {}", draw.blow.name(), hit.victim));
            let (blow, victim) = (draw.blow, hit.victim);
            let recoveries = &mut self.recoveries[if blow.is_kill() { KILLS } else { PAUSES }];
            recoveries.spawn(async move { Recovery { blow, victim, time: hit.recovery.await } });
            while let Some(recovered) = self.recoveries.iter_mut().find_map(JoinSet::try_join_next) {
                self.recovered(recovered)?;
            }
        }
        if self.is_enough() {
            self.slow_down(Duration::ZERO).await;
        }
        let end = held("liveness: a run ends", field.history.until("the run is over", RUN, over)).await?;
        self.until_recovered(KILLS).await?;
        self.until_recovered(PAUSES).await?;
        self.say(&format!("run {} is over: {} {}", run.number, end["status"]["phase"], end["status"]["message"]));
        Ok(())
    }

    /// What is left of the time, shared out to what is left of the kills.
    fn mean_gap(&self) -> Duration {
        let left = self.orders.time.saturating_sub(self.began.elapsed());
        let kills = self.orders.kills.saturating_sub(self.tally.kills()).max(1);
        (left / u32::try_from(kills).unwrap_or(u32::MAX)).clamp(Duration::from_millis(500), Duration::from_secs(30))
    }

    async fn until_recovered(&mut self, which: usize) -> Result<(), Broken> {
        while let Some(recovered) = self.recoveries[which].join_next().await {
            self.recovered(recovered)?;
        }
        Ok(())
    }

    fn recovered(&mut self, recovered: Result<Recovery, JoinError>) -> Result<(), Broken> {
        let Recovery { blow, victim, time } = recovered.map_err(|error| {
            let what = error.try_into_panic().map_or_else(|error| error.to_string(), message);
            ("liveness, I12: all goes on after a blow and stands still in a pause", what)
        })?;
        if let Some(time) = time.filter(|time| *time > SLOW) {
            self.say(&format!(
                "        {:<17} {victim}: as before only after {:.1} s",
                blow.name(),
                time.as_secs_f64()
            ));
        }
        self.tally.blows.entry(blow).or_default().recoveries.extend(time);
        Ok(())
    }

    /// What must hold after each run.
    async fn compare(&mut self, run: &Run) -> Result<(), Broken> {
        let end = held("I11: how a run ends", async { self.ended(run) }).await?;
        let read = held("I5, I6, I7: the sink holds exactly what the source holds", self.read(run)).await?;
        self.tally.records += read.records;
        held("I13: nothing runs on", self.until_quiet()).await?;
        let book = self.field.history.book();
        let (jobs, twice) = (book.jobs().len(), book.jobs_created_twice());
        holds("the test itself", jobs > 0, || "the history knows of no Job".to_owned())?;
        holds("I1", twice.is_empty(), || format!("created more than once for the same attempt: {twice:?}"))?;
        holds("an object's versions", book.broken().is_empty(), || book.broken().join("\n"))?;
        let files = read.files;
        let line = format!(
            "run {}: {end}; at the sink {} records in {files} files, exact; {jobs} Jobs so far",
            run.number, read.records
        );
        drop(book);
        self.say(&line);
        *self.tally.runs.entry(end).or_default() += 1;
        Ok(())
    }

    /// How a run ended: verified, or with an honest word why not.
    fn ended(&self, run: &Run) -> String {
        let book = self.field.history.book();
        let task = run.of(&book, &self.field.task).expect("the task is there");
        let (phase, message) = (&task["status"]["phase"], task["status"]["message"].as_str().unwrap_or_default());
        let report = format!("{}-r{}", self.field.task, run.number);
        let report = book.object("validationreports", &report).unwrap_or_else(|| panic!("there is no report {report}"));
        let (verdict, counts) = (&report["status"]["verdict"], &report["status"]["counts"]);
        let verified = |status: &str| {
            let conditions = task["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Verified" && one["status"] == status))
        };
        assert_eq!(counts["collected"], self.codes.len(), "collected, as the report has it: {report}");
        assert_eq!(task["status"]["records"]["collected"], self.codes.len(), "collected, as the task has it");
        match (phase.as_str(), verdict.as_str()) {
            (Some("Succeeded"), Some("Pass")) => assert!(verified("True"), "Succeeded is Verified: {}", task["status"]),
            (Some("Collected"), Some("Inconclusive")) => {
                assert!(verified("Unknown") && !message.is_empty(), "Collected says why not: {}", task["status"]);
            }
            other => panic!("{other:?}: {message}; failures: {}", task["status"]["failures"]),
        }
        format!("{}/{}", phase.as_str().unwrap_or_default(), verdict.as_str().unwrap_or_default())
    }

    /// Reads the sink as a reader does, and compares it with the source.
    async fn read(&self, run: &Run) -> sink::Collected {
        let store = demo::bucket(&self.field.demo.client).await;
        let read = sink::read(&store, &self.field.task, "code").await;
        let uid: String = run.uid.chars().take(8).collect();
        assert_eq!(read.run, format!("runs/{}-{uid}", run.number), "the valid run is the one that ended");
        read.assert_exactly(&self.codes);
        read
    }

    /// Waits until no Job is active, no pod runs and no process of a worker is left.
    async fn until_quiet(&self) {
        let ours = labels::MANAGED_SELECTOR;
        let idle = |jobs: &[Job]| {
            jobs.iter().all(|job| job.status.as_ref().is_none_or(|status| status.active.unwrap_or(0) == 0))
        };
        self.field.demo.until_labelled::<Job>(ours, "no Job is active", SOON, idle).await;
        let ended = |pod: &Pod| {
            matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
        };
        let all_ended = |pods: &[Pod]| pods.iter().all(ended);
        self.field.demo.until_labelled::<Pod>(ours, "no pod runs", SOON, all_ended).await;
        let left = node::running(self.field.cluster, node::WORKER);
        assert!(left.is_empty(), "processes of workers without a pod: {left:?}");
    }

    /// The API server's own log names no Job that the history does not know, and none twice.
    fn compare_with_audit(&self) -> Result<(), Broken> {
        let audit = audit::requests(&self.field.demo);
        let twice = audit::jobs_created_twice(&audit);
        holds("I1", twice.is_empty(), || format!("created more than once, as the audit log has it: {twice:?}"))?;
        let book = self.field.history.book();
        let known: BTreeSet<&str> = book.jobs().iter().map(|job| job.name.as_str()).collect();
        let created = audit.iter().filter(|request| request.verb == "create" && request.resource == "jobs");
        let unknown: Vec<_> =
            created.filter(|request| request.succeeded() && !known.contains(request.name.as_str())).collect();
        holds("the test itself", unknown.is_empty(), || format!("Jobs that only the audit log knows: {unknown:?}"))
    }

    /// Lets the source wait before each page of villages.
    async fn slow_down(&self, delay: Duration) {
        let faults = if delay.is_zero() {
            json!([])
        } else {
            let milliseconds = u64::try_from(delay.as_millis()).expect("a delay is short");
            json!([{"effect": {"delay": {"milliseconds": milliseconds}}, "when": {"prefix": "/api/districts"}}])
        };
        let body = json!({"faults": faults}).to_string();
        let (status, answer) =
            http::request("PATCH", &self.source, "/_control", &body).await.expect("the source answers");
        assert_eq!(status, 200, "{answer}");
    }

    fn say(&self, text: &str) {
        let seconds = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs()) % 86_400;
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let since = self.began.elapsed().as_secs_f64();
        say(&format!("{since:>7.1} s  {hours:02}:{minutes:02}:{seconds:02}Z  {text}"));
    }
}

/// What a blow that can't be dealt, or is never over, speaks against.
fn of(blow: Blow) -> &'static str {
    match blow {
        Blow::PauseRoot | Blow::PauseChild => "I12: paused, nothing starts",
        _ => "liveness: all goes on after a blow",
    }
}

/// What a history says is left of tasks: all but the source, the sink and what every namespace has.
fn left_in(book: &Book) -> Vec<String> {
    let ours = |resource: &str, name: &str| match resource {
        "pods" => !name.starts_with("registry-") && !name.starts_with("s3-"),
        "configmaps" => name != "kube-root-ca.crt",
        _ => true,
    };
    let resources = ["collecttasks", "collectshards", "validationreports", "jobs", "pods", "configmaps"];
    let names = resources.iter().flat_map(|resource| book.alive(resource).map(move |name| (*resource, name)));
    names.filter(|(resource, name)| ours(resource, name)).map(|(resource, name)| format!("{resource}/{name}")).collect()
}

/// Turns the panic of a check into what it speaks against.
async fn held<T>(of: &'static str, check: impl Future<Output = T>) -> Result<T, Broken> {
    AssertUnwindSafe(check).catch_unwind().await.map_err(|panic| (of, message(panic)))
}

fn holds(of: &'static str, it_does: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if it_does { Ok(()) } else { Err((of, what())) }
}

fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => {
            panic.downcast_ref::<&str>().map_or("a panic without words".to_owned(), |text| (*text).to_owned())
        }
    }
}

/// Shows the state and keeps what tells the story: the history, the audit log, what the operators logged.
fn keep_evidence(field: &Field) -> PathBuf {
    field.demo.print_state();
    let folder = std::env::temp_dir().join(format!("collect-chaos-{}", std::process::id()));
    let _ = fs::create_dir_all(&folder);
    let _ = fs::copy(field.cluster.state.join("audit.log"), folder.join("audit.log"));
    for kept in fs::read_dir(&field.demo.folder).into_iter().flatten().filter_map(Result::ok) {
        let _ = fs::copy(kept.path(), folder.join(kept.file_name()));
    }
    let mut logs = field.cluster.kubectl();
    logs.args(["--namespace", demo::SYSTEM, "logs", &format!("deployment/{}", demo::RELEASE)]);
    if let Ok(logs) = logs.output() {
        let _ = fs::write(folder.join("operator.log"), logs.stdout);
    }
    folder
}

//! Whether tasks keep to the habits of Kubernetes, as far as other programs count on them: kstatus, `helm --wait`, `kubectl wait`,
//! server-side apply by several managers, `kubectl diff`, `kubectl get -w`, `kubectl explain`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use collect_api::{CollectTask, Phase};
use collect_e2e::{
    Cluster, Node, Operator, Space, cluster, figure,
    space::phase,
    tasks::{self, SOON, World, slow},
};
use collect_registry::{Options, Registry, Synthetic};
use futures::TryStreamExt;
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    runtime::watcher,
};
use serde_json::{Value, json};

fn process_cluster() -> &'static Cluster {
    Cluster::shared("e2e-conformance", Node::Process).expect("a process node needs nothing that could be missing")
}

async fn stage(test: &str) -> (Space, World, Operator) {
    tasks::stage(process_cluster(), test).await
}

/// A task as its user writes it into a file.
fn manifest(space: &Space, name: &str, spec: &Value) -> PathBuf {
    let task =
        json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": name}, "spec": spec});
    let file = space.folder.join(format!("{name}.json"));
    std::fs::write(&file, task.to_string()).unwrap();
    file
}

/// Every version of every task of a namespace, in the order in which the API server told them.
struct Versions {
    seen: Arc<Mutex<Vec<Value>>>,
    watch: tokio::task::JoinHandle<()>,
}

impl Versions {
    /// Watches from now on; returns when it does.
    async fn begin(space: &Space) -> Self {
        let tasks = ApiResource::erase::<CollectTask>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(space.client.clone(), &space.name, &tasks);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (begun, begins) = tokio::sync::oneshot::channel();
        let into = seen.clone();
        let watch = tokio::spawn(async move {
            let mut begun = Some(begun);
            let mut stream = Box::pin(watcher(api, watcher::Config::default()));
            while let Some(event) = stream.try_next().await.expect("the watch holds") {
                match event {
                    watcher::Event::InitDone => {
                        if let Some(begun) = begun.take() {
                            let _ = begun.send(());
                        }
                    }
                    watcher::Event::Apply(task) | watcher::Event::Delete(task) => {
                        into.lock().unwrap().push(serde_json::to_value(task).expect("it is JSON"));
                    }
                    watcher::Event::Init | watcher::Event::InitApply(_) => {}
                }
            }
        });
        begins.await.expect("the watch begins");
        Self { seen, watch }
    }

    /// Those of one task.
    fn of(&self, name: &str) -> Vec<Value> {
        self.seen.lock().unwrap().iter().filter(|task| task["metadata"]["name"] == name).cloned().collect()
    }
}

impl Drop for Versions {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// What kstatus, the library itself, makes of objects.
fn kstatus(objects: &[Value]) -> Vec<String> {
    let mut program = Command::new("go")
        .current_dir(cluster::repository().join("tests/charts"))
        .env("CGO_ENABLED", "0")
        .env("GOTOOLCHAIN", "local")
        .args(["run", "-trimpath", "-tags", "grpcnotrace", "./kstatus"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("go runs");
    let mut stdin = program.stdin.take().expect("it is piped");
    let lines: String = objects.iter().map(|object| format!("{object}\n")).collect();
    let write = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = program.wait_with_output().expect("kstatus ends");
    write.join().expect("the writer ends").expect("kstatus reads everything");
    assert!(output.status.success(), "kstatus ended with {}", output.status);
    let text = String::from_utf8(output.stdout).expect("it prints text");
    text.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
}

/// The table of docs/how-to/gitops.md.
fn expected(task: &Value) -> &'static str {
    let status = &task["status"];
    if !task["metadata"]["deletionTimestamp"].is_null() {
        return "Terminating";
    }
    if status["observedGeneration"] != task["metadata"]["generation"] {
        return "InProgress";
    }
    match status["phase"].as_str() {
        Some("Pending" | "Planning" | "Running" | "Validating" | "Paused") => "InProgress",
        Some("Succeeded" | "PartiallySucceeded" | "Collected") => "Current",
        Some("Failed" | "Cancelled") => "Failed",
        other => panic!("phase {other:?} with an observed generation: {status}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kstatus_reads_every_moment_of_a_task_as_the_documentation_says() {
    let space = Space::new(process_cluster(), "kstatus").await;
    let world = World::new(&space, Registry::small()).await;
    let mut operator = Operator::new(&space, "a").await;
    let versions = Versions::begin(&space).await;
    world.set_source(slow(150));
    // Created while nobody looks: kstatus must not take them for done.
    space.create("good", world.villages("good")).await;
    space.create("gone", world.villages("gone")).await;
    space.create("unknown", world.provinces("unknown")).await;
    let mut bad = world.provinces("bad");
    bad["source"]["http"]["url"] = json!(format!("{}/api/nothing", world.source.url()));
    space.create("bad", bad).await;
    operator.go().await;

    for (name, desired) in [("good", "Paused"), ("gone", "Cancelled")] {
        space.until::<CollectTask>(name, "it runs", SOON, |task| phase(task) == Some(&Phase::Running)).await;
        space.change(name, json!({"desiredState": desired})).await;
    }
    space.until::<CollectTask>("good", "it is paused", SOON, |task| phase(task) == Some(&Phase::Paused)).await;
    world.set_source(Options::default());
    space.change("good", json!({"desiredState": "Running"})).await;
    space.kubectl("wait --for=condition=Complete ct/good ct/unknown --timeout=120s");
    space.kubectl("wait --for=condition=Failed ct/bad ct/gone --timeout=120s");
    space.kubectl("wait --for=condition=Ready ct/good ct/unknown --timeout=10s");
    space.kubectl("wait --for=condition=Verified ct/good --timeout=10s");
    // Another run: no longer done from the moment on that it is asked for.
    space.change("unknown", json!({"run": 2})).await;
    space.until_over("unknown", SOON).await;
    space.until_over("good", SOON).await;

    let all: Vec<Value> = versions.seen.lock().unwrap().clone();
    let found = kstatus(&all);
    assert_eq!(found.len(), all.len(), "kstatus judges each version");
    let mut moments = BTreeSet::new();
    for (task, found) in all.iter().zip(&found) {
        let expected = expected(task);
        assert_eq!(found, expected, "{}", serde_yaml::to_string(task).unwrap());
        moments.insert((task["status"]["phase"].as_str().unwrap_or("new").to_owned(), expected));
    }
    for moment in [
        ("new", "InProgress"),
        ("Planning", "InProgress"),
        ("Running", "InProgress"),
        ("Paused", "InProgress"),
        ("Validating", "InProgress"),
        ("Succeeded", "Current"),
        ("Collected", "Current"),
        ("Collected", "InProgress"),
        ("Failed", "Failed"),
        ("Cancelled", "Failed"),
    ] {
        assert!(moments.contains(&(moment.0.to_owned(), moment.1)), "{moment:?} was never seen: {moments:?}");
    }
    figure("versions of tasks judged by kstatus", all.len());
}

/// A chart that holds one task.
fn chart(space: &Space, name: &str, spec: &Value) -> PathBuf {
    let folder = space.folder.join(format!("chart-{name}"));
    std::fs::create_dir_all(folder.join("templates")).unwrap();
    std::fs::write(folder.join("Chart.yaml"), format!("apiVersion: v2\nname: {name}\nversion: 0.1.0\n")).unwrap();
    let task = std::fs::read_to_string(manifest(space, name, spec)).unwrap();
    // What is in braces twice is the source's template, not helm's.
    let task = task.replace("{{", "{{`{{`}}");
    std::fs::write(folder.join("templates/task.yaml"), task).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_waits_until_the_task_of_a_chart_has_ended_and_says_if_it_failed() {
    let (space, world, _operator) = stage("helm").await;
    world.set_source(slow(150));
    let install = |name: &str, spec: &Value| {
        let mut helm = space.cluster.helm();
        helm.args(["install", name]).arg(chart(&space, name, spec));
        helm.args(["--namespace", &space.name, "--wait", "--timeout", "100s"]);
        tokio::task::spawn_blocking(move || helm.output().expect("helm runs"))
    };
    let mut bad = world.provinces("bad");
    bad["source"]["http"]["url"] = json!(format!("{}/api/nothing", world.source.url()));
    let (good, bad) = (install("good", &world.villages("good")), install("bad", &bad));

    let good = good.await.unwrap();
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let task = space.tasks().get("good").await.unwrap();
    assert_eq!(phase(&task), Some(&Phase::Succeeded), "helm came back when it was done");
    let bad = bad.await.unwrap();
    let errors = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(!bad.status.success() && errors.contains("status: Failed"), "{errors}");
    let task = space.tasks().get("bad").await.unwrap();
    let message = task.status.and_then(|status| status.message).unwrap_or_default();
    // Up to what helm's log would quote.
    let message = message.split('"').next().unwrap_or_default().to_owned();
    assert!(message.len() > 10 && errors.contains(&message), "helm says `{errors}`, the task `{message}`");
}

/// Paths of the fields that somebody owns, by manager and subresource.
fn owned(task: &Value) -> BTreeMap<String, BTreeSet<String>> {
    fn walk(fields: &Value, path: &str, into: &mut BTreeSet<String>) {
        for (key, below) in fields.as_object().into_iter().flatten() {
            if key != "." {
                into.insert(format!("{path}/{key}"));
                walk(below, &format!("{path}/{key}"), into);
            }
        }
    }
    let mut owned: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in task["metadata"]["managedFields"].as_array().into_iter().flatten() {
        let word = |key: &str| entry[key].as_str().unwrap_or("-");
        let who = format!("{} {} {}", word("manager"), word("operation"), word("subresource"));
        walk(&entry["fieldsV1"], "", owned.entry(who).or_default());
    }
    owned
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_that_applies_and_the_operator_never_fight_over_a_field() {
    let (space, world, _operator) = stage("apply").await;
    world.set_source(slow(150));
    let (server, client) =
        (manifest(&space, "server", &world.villages("server")), manifest(&space, "client", &world.villages("client")));
    let kubectl = |verb: &str, file: &PathBuf| {
        let mut kubectl = space.cluster.kubectl();
        kubectl.args(["--namespace", &space.name]).args(verb.split(' ')).arg("-f").arg(file);
        cluster::run(&mut kubectl)
    };
    let (apply, diff) = ("apply --server-side --field-manager=gitops", "diff --server-side --field-manager=gitops");
    kubectl(apply, &server);
    kubectl("apply", &client);
    let mut moments = 0;
    // While it runs, and after it ran; `kubectl diff` exits with 1 if it has something to say.
    for moment in ["Running", "Succeeded"] {
        for name in ["server", "client"] {
            space
                .until::<CollectTask>(name, moment, SOON, |task| {
                    phase(task).is_some_and(|phase| phase.as_str() == moment)
                })
                .await;
        }
        let before = space.tasks().get("server").await.unwrap().metadata.generation;
        assert_eq!(kubectl(diff, &server), "", "{moment}");
        assert_eq!(kubectl("diff", &client), "", "{moment}");
        kubectl(apply, &server);
        kubectl("apply", &client);
        assert_eq!(kubectl(diff, &server), "", "{moment}, applied again");
        assert_eq!(space.tasks().get("server").await.unwrap().metadata.generation, before, "{moment}: nothing changed");
        world.set_source(Options::default());
        moments += 1;
    }
    assert_eq!(moments, 2);

    let tasks: Vec<Value> = serde_json::from_str::<Value>(&space.kubectl("get ct --show-managed-fields -o json"))
        .unwrap()["items"]
        .as_array()
        .cloned()
        .unwrap();
    assert!(tasks.len() > 2, "roots and children");
    for task in &tasks {
        let name = task["metadata"]["name"].as_str().unwrap();
        let owned = owned(task);
        let mut status = 0;
        for (who, fields) in &owned {
            let of_status = who.ends_with(" status");
            status += usize::from(of_status);
            assert!(
                fields.iter().all(|field| field.starts_with("/f:status") == of_status),
                "{name}: {who} owns {fields:?}"
            );
        }
        assert_eq!((status, owned.len()), (1, 2), "{name}: one writes the spec, one the status: {:?}", owned.keys());
    }
    let server = tasks.iter().find(|task| task["metadata"]["name"] == "server").unwrap();
    assert!(owned(server).keys().any(|who| who == "gitops Apply -"), "{:?}", owned(server).keys());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_a_task_prints_its_transitions_and_a_hundred_lines_of_progress_at_most() {
    let space = Space::new(process_cluster(), "watch").await;
    let world = World::new(&space, Registry::synthetic(Synthetic { values: 60, records: 50, bytes: 0 })).await;
    let _operator = Operator::start(&space).await;
    let versions = Versions::begin(&space).await;
    let mut kubectl = space.cluster.kubectl();
    kubectl.args(["--namespace", &space.name, "get", "ct", "-w", "--field-selector", "metadata.name=groups"]);
    let mut watch = kubectl.stdout(Stdio::piped()).spawn().expect("kubectl runs");
    let stdout = BufReader::new(watch.stdout.take().expect("it is piped"));
    let lines = tokio::task::spawn_blocking(move || {
        let mut lines = Vec::new();
        for line in stdout.lines().map_while(Result::ok) {
            lines.push(line);
            if lines.last().is_some_and(|line| line.contains("Collected") || line.contains("Succeeded")) {
                break;
            }
        }
        lines
    });
    // It may be that kubectl begins to watch after the task was made: what it prints of the beginning is no less then.
    let began = Instant::now();
    space.create("groups", world.groups("groups")).await;
    let task = space.until_over("groups", SOON).await;
    let shards = task.status.as_ref().and_then(|status| status.shards.as_ref()).map(|shards| shards.total);
    assert_eq!(shards, Some(60));
    let lines = tokio::time::timeout(Duration::from_secs(20), lines).await.expect("the watch prints the end").unwrap();
    let _ = watch.kill();
    let _ = watch.wait();
    let seen = versions.of("groups");
    let phases: Vec<&str> = seen.iter().map(|task| task["status"]["phase"].as_str().unwrap_or("new")).collect();
    let transitions = phases.windows(2).filter(|pair| pair[0] != pair[1]).count();
    // Its head, its creation.
    let printed = lines.len() - 2;
    assert!(printed >= 3, "{lines:#?}");
    assert!(printed <= transitions + 100, "{printed} lines for {transitions} transitions:\n{}", lines.join("\n"));
    assert!(seen.len() <= transitions + 102, "{} writes for {transitions} transitions", seen.len());
    figure(
        "lines of kubectl get -w for a task of 60 shards",
        format!("{printed} in {} s, {transitions} transitions", began.elapsed().as_secs()),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_explains_every_field_there_is() {
    fn of_schema(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            into.insert(format!("{path}.{name}"));
            of_schema(field, &format!("{path}.{name}"), into);
        }
        for below in ["items", "additionalProperties"].iter().filter_map(|below| schema.get(below)) {
            of_schema(below, path, into);
        }
    }
    for crd in cluster::crds() {
        let kind = crd["spec"]["names"]["singular"].as_str().unwrap();
        for part in ["spec", "status"] {
            let mut wanted = BTreeSet::new();
            of_schema(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part], "", &mut wanted);
            assert!(!wanted.is_empty(), "{kind}.{part} has fields");
            let text =
                cluster::run(process_cluster().kubectl().args(["explain", "--recursive", &format!("{kind}.{part}")]));
            let (_, fields) = text.split_once("FIELDS:\n").unwrap_or_else(|| panic!("{kind}.{part}: {text}"));
            let (mut explained, mut above) = (BTreeSet::new(), Vec::<&str>::new());
            for line in fields.lines() {
                let Some((name, _)) = line.trim_start().split_once("\t<") else { continue };
                above.truncate((line.len() - line.trim_start().len()) / 2 - 1);
                above.push(name);
                explained.insert(format!(".{}", above.join(".")));
            }
            assert_eq!(explained, wanted, "{kind}.{part}");
        }
    }
}

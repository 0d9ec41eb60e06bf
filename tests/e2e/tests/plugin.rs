//! The kubectl plugin as a person types it: `kubectl collect …` by the real kubectl, on trees that real workers collect.

use std::{
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Output, Stdio},
};

use collect_api::{CollectTask, DesiredState, Phase};
use collect_e2e::{
    Cluster, Node, Operator, Space, programs,
    space::phase,
    tasks::{self, SOON, World, villages},
};
use collect_registry::{Effect, Options, When};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};
use tokio::process::Command;

fn process_cluster() -> &'static Cluster {
    Cluster::shared("e2e-plugin", Node::Process).expect("a process node needs nothing that could be missing")
}

async fn stage(test: &str) -> (Space, World, Operator) {
    tasks::stage(process_cluster(), test).await
}

/// What a command came to.
#[derive(Debug)]
struct Ran {
    line: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn of(line: &str, output: Output) -> Self {
        Self {
            line: line.to_owned(),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    fn says(&self, words: &[&str]) {
        for word in words {
            assert!(
                self.out.contains(word),
                "`{word}` is missing in what {} printed:\n{}\n{}",
                self.line,
                self.out,
                self.err
            );
        }
    }

    #[track_caller]
    fn complains(&self, words: &[&str]) {
        for word in words {
            assert!(self.err.contains(word), "`{word}` is missing in what {} complained:\n{}", self.line, self.err);
        }
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// A folder with the plugin under both of its names, as a person's PATH has it.
fn folder(space: &Space) -> PathBuf {
    let folder = space.folder.join("bin");
    if !folder.exists() {
        std::fs::create_dir_all(&folder).expect("a folder");
        for name in ["kubectl-collect", "kubectl_complete-collect"] {
            symlink(programs::plugin(), folder.join(name)).expect("a link to the plugin");
        }
    }
    folder
}

/// kubectl, which finds the plugin in PATH.
fn kubectl(space: &Space) -> Command {
    let mut kubectl = space.cluster.kubectl();
    let path = std::env::var("PATH").expect("PATH is set");
    kubectl.env("PATH", format!("{}:{path}", folder(space).display())).stdin(Stdio::null());
    let mut kubectl = Command::from(kubectl);
    kubectl.kill_on_drop(true);
    kubectl
}

/// Runs `kubectl collect` in the test's namespace.
async fn collect(space: &Space, line: &str) -> Ran {
    let mut kubectl = kubectl(space);
    kubectl.arg("collect").args(line.split(' ')).args(["--namespace", &space.name]);
    let output = tokio::time::timeout(SOON, kubectl.output()).await.unwrap_or_else(|_| panic!("{line} did not end"));
    Ran::of(line, output.expect("kubectl runs"))
}

/// Waits until workers collect, or are held at the source.
async fn until_collecting(space: &Space, workers: usize) {
    let collects = |pod: &&Pod| {
        let is_running = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
        is_running && pod.labels().get(collect_api::labels::WORK).is_some_and(|work| work == "collect")
    };
    space.until_all::<Pod>("workers collect", SOON, |pods| pods.iter().filter(collects).count() >= workers).await;
}

async fn until_phase(space: &Space, name: &str, wanted: Phase) -> CollectTask {
    space.until::<CollectTask>(name, wanted.as_str(), SOON, |task| phase(task) == Some(&wanted)).await
}

/// A tree whose workers are held at the source, until that is set anew. The planner was not: it asks for totals there too.
async fn held(space: &Space, world: &World) {
    let mut spec = world.villages("villages");
    spec["source"]["http"]["timeout"] = json!("1h");
    spec["parallelism"] = json!(0);
    space.create("villages", spec).await;
    until_phase(space, "villages", Phase::Running).await;
    world.set_source(Options::faults([Effect::Hold.when(villages())]));
    space.change("villages", json!({"parallelism": 8})).await;
    until_collecting(space, 2).await;
}

// ---------------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_is_looked_at_controlled_and_waited_for() {
    let (space, world, _operator) = stage("looked-at").await;
    held(&space, &world).await;

    // Looking. What is no terminal gets one plain picture.
    let tree = collect(&space, "tree villages").await.ends_with(0);
    tree.says(&["NAME", "villages", "├─ villages-", "Running", "%"]);
    assert!(!tree.out.contains('\u{1b}') && !tree.out.contains('█'), "plain where it is no terminal: {}", tree.out);
    let names = collect(&space, "tree ct/villages -o name").await.ends_with(0).out;
    assert!(names.lines().any(|line| line == "collecttask.collect.dev/villages"), "{names}");
    assert!(names.lines().any(|line| line.starts_with("collectshard.collect.dev/villages-")), "{names}");
    let branch = names.lines().find_map(|line| line.strip_prefix("collecttask.collect.dev/villages-"));
    let branch = format!("villages-{}", branch.expect("there are children").split('-').next().unwrap_or_default());
    let own = collect(&space, &format!("tree {branch} -o name")).await.ends_with(0).out;
    assert!(own.lines().all(|line| line.contains(&branch)), "a branch alone: {own}");
    collect(&space, "status collecttask/villages").await.ends_with(0).says(&[
        "villages  Running  run 1",
        "shards",
        "workers",
        "plan",
        "Next:",
    ]);
    assert_eq!(collect(&space, "status villages -o json").await.ends_with(0).json()["kind"], "CollectTask");
    collect(&space, "top").await.ends_with(0).says(&["RATE", "MEMORY", "villages", "Running"]);
    collect(&space, "top villages").await.ends_with(0).says(&["NODE", "villages-"]);
    let logs = collect(&space, "logs villages --work collect").await.ends_with(0);
    assert!(logs.out.lines().any(|line| line.starts_with("villages-") && line.contains(" a1 | {")), "{logs:?}");

    // Waiting that takes too long.
    collect(&space, "wait villages --for=complete --timeout=1s").await.ends_with(3).complains(&["villages", "1s"]);

    // Control.
    let tried = collect(&space, "pause villages --dry-run=server").await.ends_with(0);
    tried.says(&["collecttask.collect.dev/villages paused", "server dry run"]);
    let task = space.tasks().get("villages").await.unwrap();
    assert_eq!(task.spec.desired_state.unwrap_or_default(), DesiredState::Running, "a dry run changes nothing");
    collect(&space, "pause villages").await.ends_with(0).says(&["paused", "kubectl collect resume villages"]);
    collect(&space, "wait villages --for=phase=Paused --timeout=60s").await.ends_with(0).says(&["is Paused"]);
    collect(&space, "pause villages").await.ends_with(0).says(&["unchanged"]);
    collect(&space, "scale villages --replicas 3").await.ends_with(0).says(&["scaled to 3 workers (was 8)"]);
    assert_eq!(space.tasks().get("villages").await.unwrap().spec.parallelism, Some(3));
    world.set_source(Options::default());
    collect(&space, "resume villages").await.ends_with(0).says(&["resumed", "kubectl collect status villages"]);
    collect(&space, "wait villages --timeout=2m").await.ends_with(0).says(&["villages is Succeeded"]);
    until_phase(&space, "villages", Phase::Succeeded).await;

    // After the end.
    collect(&space, "wait villages --for=failed --timeout=2m").await.ends_with(1).says(&["ended as Succeeded"]);
    collect(&space, "tree villages").await.ends_with(0).says(&["Succeeded", "100%", "216/216", "match 100%"]);
    collect(&space, "status villages").await.ends_with(0).says(&["Succeeded", "report", "Pass", "216 records"]);
    collect(&space, "events villages").await.ends_with(0).says(&[
        "LAST SEEN",
        "Planned",
        "Succeeded",
        "collecttask/villages",
    ]);
    collect(&space, "retry villages").await.ends_with(1).complains(&["nothing below it failed", "rerun villages"]);
    collect(&space, "pause villages").await.ends_with(1).complains(&["it is over"]);
    collect(&space, "files villages --summary")
        .await
        .ends_with(0)
        .says(&["records  216", "s3://lake/villages/runs/1-"]);
    let mut files = kubectl(&space);
    files.args(["collect", "files", "villages", "-o", "json", "--namespace", &space.name]);
    files.env("AWS_ACCESS_KEY_ID", &world.sink.access_key).env("AWS_SECRET_ACCESS_KEY", &world.sink.secret_key);
    let files = Ran::of("files", files.output().await.expect("kubectl runs")).ends_with(0);
    let rows: i64 =
        files.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["rows"].as_i64().unwrap()).sum();
    assert_eq!(rows, 216, "every record is in a file of the list");

    // A new run; what is waited for is that one's end.
    collect(&space, "rerun villages-44").await.ends_with(1).complains(&["rerun villages"]);
    collect(&space, "rerun villages").await.ends_with(0).says(&["begins run 2"]);
    collect(&space, "wait villages --for=succeeded --timeout=2m").await.ends_with(0);
    let task = space.tasks().get("villages").await.unwrap();
    assert_eq!((task.spec.run, task.status.unwrap().run), (Some(2), Some(2)));

    // What is not there.
    collect(&space, "status nobody")
        .await
        .ends_with(2)
        .complains(&["CollectTask nobody is not in namespace", "kubectl get collecttasks -A"]);
    collect(&space, "tree villages --frobnicate").await.ends_with(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_told_and_retried() {
    let (space, world, _operator) = stage("failed").await;
    let district = world.codes("districts").into_iter().next().expect("there are districts");
    let broken = When { prefix: format!("/api/districts/{district}/"), ..When::default() };
    world.set_source(Options::faults([Effect::Status { code: 404, retry_after_seconds: None }.when(broken)]));
    let mut spec = world.villages("villages");
    spec["decompose"]["shards"] = json!({"perValue": {}});

    // Transitions come while they happen; the watch ends with the task.
    space.create("villages", spec).await;
    let (watched, waited) =
        tokio::join!(collect(&space, "watch villages"), collect(&space, "wait villages --for=complete --timeout=2m"));
    waited.ends_with(1).says(&["ended as Failed", "404"]);
    let watched = watched.ends_with(1);
    watched.says(&["villages", "→ Failed", "404"]);
    let ends = watched.out.lines().filter(|line| line.contains(" villages ") && line.contains("→ Failed")).count();
    assert_eq!(ends, 1, "a line for a transition: {}", watched.out);

    let status = collect(&space, "status villages").await.ends_with(1);
    status.says(&["Failed", "Last errors", "Failures", "404", "kubectl collect retry villages"]);
    let failed = space.tasks().get("villages").await.unwrap().status.unwrap().failures.remove(0).name;
    collect(&space, "tree villages").await.ends_with(1).says(&[&failed, "404"]);
    let logs = collect(&space, &format!("logs csh/{failed}")).await;
    assert!(logs.out.contains("404"), "the log, or what status still knows of it: {logs:?}");

    world.set_source(Options::default());
    collect(&space, &format!("retry csh/{failed} --token mended")).await.ends_with(0).says(&["retried (was Failed)"]);
    collect(&space, "wait villages --for=phase=Succeeded --timeout=2m").await;
    until_phase(&space, "villages", Phase::Succeeded).await;
    collect(&space, "tree villages").await.ends_with(0).says(&["Succeeded", "20/20", "216"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_followed_until_the_task_is_over() {
    let (space, world, _operator) = stage("logs").await;
    held(&space, &world).await;
    // Begun while the workers are held; there is more to come than what they said until now.
    let release = async {
        let lines = collect(&space, "logs villages --work collect --no-prefix").await.ends_with(0).out.lines().count();
        world.set_source(Options::default());
        lines
    };
    let (followed, before) = tokio::join!(collect(&space, "logs villages -f"), release);
    let followed = followed.ends_with(0);
    assert!(before > 0 && followed.out.lines().count() > before, "{before} lines before: {followed:?}");
    let whose =
        followed.out.lines().filter_map(|line| line.split(" |").next()).collect::<std::collections::BTreeSet<_>>();
    assert!(whose.len() > 2, "lines of several pods, each told apart: {whose:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_branch_is_retried() {
    let (space, world, _operator) = stage("branch").await;
    held(&space, &world).await;
    collect(&space, "cancel villages-44").await.ends_with(0).says(&["cancelled", "retry villages-44"]);
    collect(&space, "wait villages-44 --for=over --timeout=2m").await.ends_with(0).says(&["Cancelled"]);
    world.set_source(Options::default());
    collect(&space, "retry villages-44")
        .await
        .ends_with(0)
        .says(&["retried (was Cancelled)", "desiredState is Running again"]);
    collect(&space, "wait villages --for=succeeded --timeout=2m").await.ends_with(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_look_is_told_which_right_is_missing() {
    let (space, world, _operator) = stage("reader").await;
    space.create("provinces", world.provinces("provinces")).await;
    space.until_over("provinces", SOON).await;
    space.kubectl("create role looks --verb=get,list,watch --resource=collecttasks.collect.dev,collectshards.collect.dev,validationreports.collect.dev");
    space.kubectl(&format!("create rolebinding looks --role=looks --serviceaccount={}:reader", space.name));
    let reader = format!("--as=system:serviceaccount:{}:reader", space.name);
    collect(&space, &format!("tree provinces {reader}")).await.ends_with(0).says(&["Collected"]);
    let refused = collect(&space, &format!("rerun provinces {reader}")).await.ends_with(2);
    refused.complains(&["cannot patch resource \"collecttasks\"", &space.name, "`edit`"]);
    let refused = collect(&space, &format!("events provinces {reader}")).await.ends_with(2);
    refused.complains(&["cannot list resource \"events\""]);
    let all = collect(&space, &format!("top -A --over {reader}")).await.ends_with(2);
    all.complains(&["at the cluster scope"]);
    collect(&space, "top -A --over").await.ends_with(0).says(&["NAMESPACE", &space.name]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_drawn_over_until_the_task_is_over() {
    let (space, world, _operator) = stage("terminal").await;
    held(&space, &world).await;
    let terminal = async |line: &str| {
        let command = format!("stty rows 12 cols 100; kubectl collect {line} --namespace {}", space.name);
        // A pseudo-terminal of util-linux; -e gives the command's exit code.
        let mut script = Command::new("script");
        let kubectl = kubectl(&space);
        let environment =
            kubectl.as_std().get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        let path = format!("{}:{}", space.cluster.state.join("bin").display(), folder(&space).display());
        script.envs(environment).env("PATH", format!("{path}:{}", std::env::var("PATH").expect("PATH is set")));
        script.env("TERM", "xterm").env_remove("NO_COLOR");
        script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(SOON, script.output()).await.unwrap_or_else(|_| panic!("{line} did not end"));
        Ran::of(line, output.expect("script runs"))
    };
    let once = terminal("tree villages --once").await.ends_with(0);
    once.says(&["\u{1b}[36mRunning\u{1b}[0m", "░"]);
    let plain = terminal("tree villages --once --no-color").await.ends_with(0);
    assert!(plain.out.contains('░') && !plain.out.contains("\u{1b}[3"), "{plain:?}");
    // The first picture is drawn while the source holds everything back: it is released once the watch of this person is there.
    let release = async {
        world.set_source(Options::faults([Effect::Delay { milliseconds: 300 }.when(villages())]));
    };
    let (live, ()) = tokio::join!(terminal("tree villages"), release);
    let live = live.ends_with(0);
    live.says(&["A", "\u{1b}[J", "\u{1b}[32mSucceeded\u{1b}[0m", "████████████████████", "216/216"]);
    assert!(live.out.matches("\u{1b}[J").count() > 1, "several pictures: {live:?}");
    let status = terminal("status villages").await.ends_with(0);
    status.says(&["\u{1b}[32mSucceeded\u{1b}[0m", "█"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_completion() {
    let (space, world, _operator) = stage("words").await;
    space.create("provinces", world.provinces("provinces")).await;
    let version = collect(&space, "version").await.ends_with(0);
    version.says(&["kubectl-collect", env!("CARGO_PKG_VERSION"), "kubernetes", "v1alpha1"]);
    let known = collect(&space, "version -o json").await.ends_with(0).json();
    assert_eq!(known["api"], json!(["v1alpha1"]));
    collect(&space, "version --client").await.ends_with(0);
    collect(&space, "completion bash").await.ends_with(0).says(&["complete", "kubectl-collect"]);

    // As a shell asks kubectl, and kubectl the plugin.
    let complete = async |words: &[&str]| {
        let mut kubectl = kubectl(&space);
        kubectl.arg("__complete").args(words);
        Ran::of(&words.join(" "), kubectl.output().await.expect("kubectl runs")).ends_with(0)
    };
    complete(&["collect", ""]).await.says(&["tree\t", "status\t", "rerun\t"]);
    complete(&["collect", "tree", "-n", &space.name, "prov"]).await.says(&["provinces\t", ":4"]);
    complete(&["collect", "tree", "-n", &space.name[..5]]).await.says(&[&space.name]);

    // A cluster that is not there, and one that nobody named.
    let nowhere = space.folder.join("nowhere.kubeconfig");
    std::fs::write(&nowhere, "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers: []\n").expect("a file");
    let lost = collect(&space, &format!("tree provinces --kubeconfig {}", nowhere.display())).await.ends_with(2);
    lost.complains(&["there is no cluster to talk to", "--kubeconfig"]);
}

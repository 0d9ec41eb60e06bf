//! The documentation's commands, typed as they stand there: by somebody whose operator was installed by helm, in the states that the
//! pages speak of. Which block is typed when: [`docs`].

use std::{fs, path::Path, process::Stdio};

use collect_api::{CollectShard, CollectTask, Phase};
use collect_e2e::{
    Cluster, Node, Space, cluster,
    demo::{RELEASE, SYSTEM},
    docs,
    docs::{Block, Mark, SCENARIOS, Terminal},
    figure, operator, programs,
    space::phase,
    tasks::{SOON, World},
};
use collect_registry::{Effect, Options, Registry, When};
use futures::future::join_all;
use kube::ResourceExt;
use serde_json::{Value, json};

/// Installs the operator as docs/operations/install.md does, with what a node without containers needs on top: ports that are free.
fn install(cluster: &Cluster) {
    let (image, archive) = programs::operator_archive();
    cluster.load_image(&archive);
    let (http, endpoint) = (operator::free_address(), operator::free_address());
    let port = |address: &str| address.rsplit(':').next().map(str::to_owned).expect("an address has a port");
    let repository =
        |image: &str| image.rsplit_once(':').map(|(name, tag)| (name.to_owned(), tag.to_owned())).expect("a tag");
    let ((operator, tag), (worker, worker_tag)) = (repository(&image), repository(cluster.worker_image()));
    let values = json!({
        // They are there already, by another hand than helm's.
        "crds": {"enabled": false},
        "image": {"repository": operator, "tag": tag, "pullPolicy": "Never"},
        "worker": {"image": {"repository": worker, "tag": worker_tag, "pullPolicy": "Never"}},
        "endpoint": {
            "port": port(&endpoint).parse::<u16>().expect("a port"),
            "url": format!("https://{endpoint}"),
            "tls": {"extraSANs": ["127.0.0.1"]},
        },
        "http": {"port": port(&http).parse::<u16>().expect("a port")},
    });
    let file = cluster.state.join("values.json");
    fs::write(&file, values.to_string()).expect("the values can be written");
    let chart = cluster::repository().join("charts/collect-operator");
    let mut helm = cluster.helm();
    helm.args(["upgrade", "--install", RELEASE]).arg(chart).args(["--namespace", SYSTEM, "--create-namespace"]);
    helm.args(["--wait", "--timeout", "60s", "--values"]).arg(file);
    cluster::run(&mut helm);
}

/// A namespace of its own with source, sink and a terminal.
struct Desk {
    space: Space,
    world: World,
    terminal: Terminal,
}

impl Desk {
    async fn new(cluster: &'static Cluster, name: &str) -> Self {
        let space = Space::new(cluster, name).await;
        let world = World::new(&space, Registry::small()).await;
        let terminal = Terminal::new(cluster, &space.folder.join("terminal"), &space.name);
        Self { space, world, terminal }
    }

    /// Applies a task as a file in the current folder, as its user does.
    fn apply(&self, name: &str, spec: &Value) {
        let task = json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": name}, "spec": spec});
        let file = self.terminal.folder.join(format!("{name}.yaml"));
        fs::write(&file, serde_yaml::to_string(&task).expect("it is YAML")).expect("it can be written");
        let mut kubectl = self.space.cluster.kubectl();
        cluster::run(kubectl.args(["--namespace", &self.space.name, "apply", "--server-side", "-f"]).arg(file));
    }

    async fn until(&self, name: &str, wanted: Phase) -> CollectTask {
        let what = format!("it is {wanted:?}");
        self.space.until::<CollectTask>(name, &what, SOON, |task| phase(task) == Some(&wanted)).await
    }

    /// A list of stations in shards, with a hook, and readings that depend on it if they are wanted; both have succeeded.
    async fn stations(&self, with_readings: bool) {
        let stations = |folder: &str| {
            let mut spec = self.world.provinces(folder);
            spec["source"]["http"]["url"] = json!(format!("{}/api/villages", self.world.source.url()));
            spec["source"]["http"]["records"] = json!("$.data");
            spec["source"]["http"]["total"] = json!("$.total");
            spec["source"]["http"]["pagination"] = json!({"page": {"param": "page", "size": 60, "sizeParam": "size"}});
            spec["decompose"] = json!({"shards": {"count": {"recordsPerShard": 120}}});
            spec
        };
        let mut first = stations("stations");
        let told = format!("{}/api/hooks/stations", self.world.source.url());
        first["hooks"] =
            json!({"afterSuccess": {"run": {"http": {"url": told, "auth": first["source"]["http"]["auth"]}}}});
        self.apply("stations", &first);
        let told = |task: &CollectTask| {
            let hooks = task.status.as_ref().and_then(|status| status.hooks.as_ref());
            hooks.and_then(|hooks| hooks.after_success.as_ref()).is_some_and(|hook| hook.succeeded == Some(true))
        };
        self.space.until("stations", "its hook has told of its success", SOON, told).await;
        if !with_readings {
            return;
        }
        let mut second = stations("readings");
        second["dependsOn"] = json!([{"name": "stations"}]);
        self.apply("readings", &second);
        self.until("readings", Phase::Succeeded).await;
    }

    /// The tree of one province, at work.
    fn villages(&self) {
        let mut spec = self.world.villages("villages");
        spec["decompose"]["levels"][0] = json!({"name": "province", "values": ["44"]});
        spec["validation"]["total"]["path"] = json!("/provinces/44/summary");
        self.apply("villages", &spec);
    }
}

/// Types a scenario's blocks, those of each page in a namespace of their own, all pages at once.
async fn each_page(cluster: &'static Cluster, scenario: &str, blocks: &[Block]) -> usize {
    let pages = blocks.chunk_by(|a, b| a.page == b.page).map(|blocks| async move {
        let desk = Desk::new(cluster, scenario).await;
        match scenario {
            "stations" => desk.stations(blocks.iter().any(|block| block.text.contains("readings"))).await,
            "villages" => {
                desk.villages();
                desk.until("villages", Phase::Succeeded).await;
            }
            _ => {
                // Secrets that the page makes itself.
                desk.space.kubectl("delete secret registry lake");
            }
        }
        for block in blocks {
            desk.terminal.run(block).await;
        }
    });
    join_all(pages).await;
    blocks.len()
}

/// The blocks of a page that are typed one by one, each under the heading that is expected.
struct Steps<'a> {
    blocks: std::vec::IntoIter<Block>,
    terminal: &'a Terminal,
}

impl Steps<'_> {
    async fn next(&mut self, heading: &str) -> String {
        let block = self.blocks.next().unwrap_or_else(|| panic!("there is a block under {heading}"));
        assert_eq!(block.heading, heading, "{}:{}", block.page, block.line);
        self.terminal.run(&block).await
    }
}

/// docs/how-to/control.md, and what follows from each of its commands.
async fn control(cluster: &'static Cluster) -> usize {
    let desk = Desk::new(cluster, "control").await;
    let blocks = docs::of_scenario("control");
    let count = blocks.len();
    let mut steps = Steps { blocks: blocks.into_iter(), terminal: &desk.terminal };
    let space = &desk.space;
    let districts = |effect: Effect, prefix: &str| {
        let when = When { prefix: format!("/api/districts/{prefix}"), ..When::default() };
        desk.world.set_source(Options::faults([effect.when(when)]));
    };

    districts(Effect::Delay { milliseconds: 50 }, "");
    desk.villages();
    let is_there = |shards: &[CollectShard]| shards.iter().any(|shard| shard.name_any() == "villages-44-4401-0");
    space.until_all("there is the shard", SOON, is_there).await;
    let seen = steps.next("See how it is going").await;
    assert!(seen.contains("villages-44-4401-0") && seen.contains("villages-r1"), "{seen}");

    // One that waits for its source until that is asked for no longer.
    space.delete("villages").await;
    space.until_empty(SOON).await;
    districts(Effect::Delay { milliseconds: 300 }, "");
    desk.villages();
    desk.until("villages-44", Phase::Running).await;
    districts(Effect::Hold, "");
    steps.next("Pause and resume").await;
    steps.next("Pause and resume").await;
    assert_eq!(steps.next("Pause and resume").await, "", "nothing is paused any more");
    desk.until("villages", Phase::Running).await;

    steps.next("Cancel").await;
    desk.until("villages", Phase::Cancelled).await;
    // The root first, then the branch as the page says.
    districts(Effect::Status { code: 404, retry_after_seconds: None }, "4401");
    space.change("villages", json!({"desiredState": "Running"})).await;
    space.kubectl("annotate ct/villages collect.dev/retry=first");
    steps.next("Cancel").await;
    let told = |task: &CollectTask| {
        let failures = task.status.as_ref().map(|status| format!("{:?}", status.failures)).unwrap_or_default();
        phase(task) == Some(&Phase::Failed) && failures.contains("SourceNotFound")
    };
    space.until("villages", "it has failed and says why", SOON, told).await;

    let failed = steps.next("Look at what failed").await;
    assert!(failed.contains("SourceNotFound") && failed.contains("villages-44-4401-0"), "{failed}");

    desk.world.set_source(Options::default());
    steps.next("Retry").await;
    desk.until("villages", Phase::Succeeded).await;
    assert_eq!(steps.next("Retry").await, "second");

    steps.next("Collect anew").await;
    let second = |task: &CollectTask| task.status.as_ref().and_then(|status| status.run) == Some(2);
    space.until::<CollectTask>("villages", "run 2 has begun", SOON, second).await;
    desk.until("villages", Phase::Succeeded).await;

    steps.next("Change how many work at once").await;
    assert_eq!(space.tasks().get("villages").await.expect("it is there").spec.parallelism, Some(0));
    steps.next("Change a deadline").await;
    steps.next("Change a deadline").await;
    let stragglers = steps.next("Look at stragglers").await;
    assert!(stragglers.contains("villages-44-4401-0"), "{stragglers}");
    steps.next("Delete").await;
    space.until_empty(SOON).await;
    assert_eq!(steps.blocks.len(), 0, "every block was typed");
    count
}

/// Removes the operator, and then all that it knew, as docs/operations/install.md says. Nothing may come after it.
async fn uninstall(cluster: &Cluster, desk: &Desk) -> usize {
    let blocks = docs::of_scenario("uninstall");
    for (i, block) in blocks.iter().enumerate() {
        desk.terminal.run(block).await;
        let left = |kinds: &str| {
            let mut kubectl = cluster.kubectl();
            let found = kubectl.args(["get", kinds, "--all-namespaces", "-o", "name"]).stderr(Stdio::null()).output();
            String::from_utf8_lossy(&found.expect("kubectl runs").stdout).into_owned()
        };
        if i == 0 {
            assert!(left("collecttasks").contains("stations"), "tasks stay");
            assert!(!left("deployments").contains(RELEASE), "the operator does not");
        } else {
            assert_eq!(left("collecttasks"), "", "with the definitions the tasks go");
        }
    }
    blocks.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_does_what_its_page_says() {
    let cluster =
        Cluster::shared("e2e-docs", Node::Process).expect("a process node needs nothing that could be missing");
    install(cluster);
    let (empty, stations, villages) =
        (docs::of_scenario("empty"), docs::of_scenario("stations"), docs::of_scenario("villages"));
    let last = Desk::new(cluster, "uninstall").await;
    let (a, b, c, d, ()) = futures::join!(
        each_page(cluster, "empty", &empty),
        each_page(cluster, "stations", &stations),
        each_page(cluster, "villages", &villages),
        control(cluster),
        last.stations(false),
    );
    let here = a + b + c + d + uninstall(cluster, &last).await;
    let all = docs::blocks();
    let illustrative = all.iter().filter(|block| block.mark == Mark::Illustrative).count();
    let file = Path::new(file!()).file_name().and_then(|name| name.to_str()).expect("this file has a name");
    let of_here = |block: &&Block| {
        SCENARIOS.iter().any(|(name, test)| block.mark == Mark::Run((*name).into()) && test.ends_with(file))
    };
    assert_eq!(here, all.iter().filter(of_here).count(), "every block of these scenarios was typed");
    figure("blocks of commands in the documentation that a test runs", all.len() - illustrative);
    figure("blocks of commands in the documentation that are illustrative", illustrative);
}

//! What becomes of a CollectTask, as its user sees it: real control plane, real operator, real workers as local processes.

use std::{collections::BTreeSet, time::Duration};

use collect_api::{
    CollectShard, CollectTask, Outcome, Phase, ValidationReport,
    condition::{COMPLETE, FAILED, READY, RECONCILING, STALLED, VERIFIED, reason},
    report::Verdict,
};
use collect_e2e::{
    Cluster, Node, Operator, Space, audit, cluster, programs, sink,
    space::{condition, phase},
    tasks::{self, SOON, World, slow, villages},
};
use collect_registry::{Effect, Options, Registry, When};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota, Secret},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
    runtime::wait,
};
use serde_json::{Value, json};

fn process_cluster() -> &'static Cluster {
    Cluster::shared("e2e-lifecycle", Node::Process).expect("a process node needs nothing that could be missing")
}

async fn stage(test: &str) -> (Space, World, Operator) {
    tasks::stage(process_cluster(), test).await
}

/// Status of a condition of a task.
fn status_of<'a>(task: &'a CollectTask, type_: &str) -> Option<&'a str> {
    condition(task, type_).map(|condition| condition.status.as_str())
}

#[track_caller]
fn assert_phase(task: &CollectTask, expected: Phase) {
    assert_eq!(phase(task), Some(&expected), "{}: {:?}", task.name_any(), task.status);
}

/// Pods that have not ended.
fn alive(pods: &[Pod]) -> Vec<&Pod> {
    let ended = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Succeeded" | "Failed"))
    };
    pods.iter().filter(ended).collect()
}

/// Pods whose worker collects.
fn collectors(pods: &[Pod]) -> Vec<&Pod> {
    let running = |pod: &&Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
    pods.iter()
        .filter(|pod| pod.labels().get(collect_api::labels::WORK).is_some_and(|work| work == "collect"))
        .filter(running)
        .collect()
}

/// Waits until this many workers collect at the same time.
async fn until_collecting(space: &Space, workers: usize) -> Vec<Pod> {
    space.until_all::<Pod>(&format!("{workers} workers collect"), SOON, |pods| collectors(pods).len() >= workers).await
}

async fn until_no_pod_runs(space: &Space) {
    let pods = space.until_all::<Pod>("no pod runs", SOON, |pods| alive(pods).is_empty()).await;
    for pod in pods {
        let left = programs::worker_processes(&pod.uid().unwrap());
        assert!(left.is_empty(), "{}: processes {left:?} are left", pod.name_any());
    }
}

/// Every village of the source, exactly once, and a report that says so.
async fn assert_all_villages(space: &Space, world: &World, task: &CollectTask, folder: &str) -> sink::Collected {
    assert_phase(task, Phase::Succeeded);
    let villages = world.codes("villages");
    let collected = sink::read(&*world.bucket(), folder, "code").await;
    collected.assert_exactly(&villages);
    let run = task.spec.run_number();
    let report = space.reports().get(&format!("{}-r{run}", task.name_any())).await.expect("the root has a report");
    let status = report.status.expect("the report has a status");
    let counts = status.counts.clone().expect("the report has counts");
    let n = villages.len() as i64;
    assert_eq!(status.verdict, Some(Verdict::Pass), "{status:?}");
    assert_eq!((counts.source, counts.collected, counts.delta, counts.duplicates), (Some(n), n, Some(0), Some(0)));
    assert_eq!(counts.independent, Some(n), "the total of /summary");
    let audit = audit::requests(space);
    assert_eq!(audit::jobs_created_twice(&audit), Vec::<String>::new(), "I1: never two Jobs for an attempt");
    collected
}

// ---------------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_smallest_task_is_collected_and_says_how_to_verify_it() {
    let (space, world, _operator) = stage("smallest").await;
    space.create("provinces", world.provinces("provinces")).await;
    let task = space.until_over("provinces", SOON).await;
    space.kubectl("wait --for=condition=Complete ct/provinces --timeout=5s");
    assert_phase(&task, Phase::Collected);
    assert_eq!(status_of(&task, COMPLETE), Some("True"));
    assert_eq!(status_of(&task, READY), Some("True"));
    assert_eq!(status_of(&task, VERIFIED), Some("Unknown"));
    assert_eq!(condition(&task, VERIFIED).unwrap().reason, reason::NO_TOTAL);
    assert!(condition(&task, VERIFIED).unwrap().message.contains("total"), "{:?}", condition(&task, VERIFIED));
    assert_eq!((status_of(&task, RECONCILING), status_of(&task, STALLED)), (None, None));

    let report = space.reports().get("provinces-r1").await.unwrap().status.unwrap();
    let counts = report.counts.unwrap();
    assert_eq!((report.verdict, report.reason.as_deref()), (Some(Verdict::Inconclusive), Some(reason::NO_TOTAL)));
    assert_eq!((counts.source, counts.collected, counts.delta), (None, 3, None), "what it can't see is absent, not 0");
    assert!(
        report.recommendations.iter().any(|advice| advice.contains("spec.source.http.total")),
        "{:?}",
        report.recommendations
    );
    sink::read(&*world.bucket(), "provinces", "code").await.assert_exactly(&world.codes("provinces"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_keeps_its_last_five_reports() {
    let (space, world, _operator) = stage("reports").await;
    space.create("provinces", world.provinces("provinces")).await;
    for run in 1..=6 {
        space.change("provinces", json!({"run": run})).await;
        space.until_over("provinces", SOON).await;
    }
    let mut names: Vec<_> = space.all::<ValidationReport>().await.iter().map(ResourceExt::name_any).collect();
    names.sort();
    assert_eq!(names, ["provinces-r2", "provinces-r3", "provinces-r4", "provinces-r5", "provinces-r6"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_is_collected_compared_and_merged_at_each_parent() {
    let (space, world, operator) = stage("tree").await;
    space.create("villages", world.villages("villages")).await;
    let task = space.until_over("villages", SOON).await;
    assert_all_villages(&space, &world, &task, "villages").await;
    for (type_, expected) in [
        (COMPLETE, Some("True")),
        (READY, Some("True")),
        (VERIFIED, Some("True")),
        (RECONCILING, None),
        (STALLED, None),
    ] {
        assert_eq!(status_of(&task, type_), expected, "{type_}");
    }
    assert_ne!(status_of(&task, FAILED), Some("True"));
    let status = task.status.clone().unwrap();
    let (shards, records) = (status.shards.unwrap(), status.records.unwrap());
    assert_eq!((shards.succeeded, shards.pending, shards.running, shards.failed), (shards.total, 0, 0, 0));
    assert!(shards.total >= 9, "{shards:?}");
    assert_eq!((records.expected, records.collected, records.verified), (Some(216), 216, Some(216)));
    assert_eq!((status.progress, status.workers.unwrap_or(0)), (Some(100), 0));
    assert_eq!(status.milestones.iter().map(|milestone| milestone.percent).collect::<Vec<_>>(), [25, 50, 75, 100]);
    let summary = status.summary.unwrap();
    assert_eq!((summary.progress.as_deref(), summary.match_.as_deref()), (Some("100%"), Some("100%")));

    // Each node of the tree has the sum of its children.
    let registry = world.source.control.registry();
    let tasks = space.all::<CollectTask>().await;
    let names: BTreeSet<_> = tasks.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names.len(), 1 + 3 + 9, "{names:?}");
    let within = |code: &str, level: usize| {
        world.codes(registry.levels()[level].plural).iter().filter(|row| row.starts_with(code)).count() as i64
    };
    for (name, code, level) in
        [("villages", "", 0), ("villages-11", "11", 1), ("villages-44", "44", 1), ("villages-65", "65", 1)]
    {
        let report = space.reports().get(&format!("{name}-r1")).await.unwrap().status.unwrap();
        assert_eq!(report.verdict, Some(Verdict::Pass), "{name}");
        assert_eq!(report.counts.unwrap().collected, within(code, 4), "{name}");
        let regions: BTreeSet<_> =
            report.regions.iter().map(|region| (region.value.clone(), region.collected, region.source)).collect();
        let expected: BTreeSet<_> = world
            .codes(registry.levels()[level].plural)
            .iter()
            .filter(|row| row.starts_with(code))
            .map(|row| (row.clone(), within(row, 4), Some(within(row, 4))))
            .collect();
        assert_eq!(regions, expected, "regions of {name}");
        assert!(
            report.regions.iter().all(|region| region.verdict == Verdict::Pass && region.label.is_some()),
            "{:?}",
            report.regions
        );
    }
    for task in &tasks {
        assert_phase(task, Phase::Succeeded);
        let report = space.reports().get(&format!("{}-r1", task.name_any())).await.expect("every task has a report");
        assert_eq!(report.status.unwrap().verdict, Some(Verdict::Pass));
    }

    // A city without districts is listed with nothing in it.
    let empty = space.reports().get("villages-65-6503-r1").await.unwrap().status.unwrap();
    assert_eq!(empty.counts.unwrap().collected, 0);

    let reasons = space.event_reasons("villages").await;
    for expected in [reason::PLANNED, reason::SUCCEEDED] {
        assert!(reasons.iter().any(|reason| reason == expected), "Event {expected}: {reasons:?}");
    }
    assert_no_secret_leaks(&space, &operator).await;
    collect_e2e::figure("operator memory after a small tree, KiB", operator.memory_kib().1);
}

/// I20: the token is in the Secret and nowhere else.
async fn assert_no_secret_leaks(space: &Space, operator: &Operator) {
    let mut shown = space.kubectl("get collect,jobs,pods,configmaps,events -o yaml");
    assert!(shown.contains("kind: Job") && shown.contains("kind: CollectTask"), "the objects can be searched");
    shown.push_str(&operator.log());
    let secrets = space.all::<Secret>().await;
    let values = secrets
        .iter()
        .flat_map(|secret| secret.data.iter().flatten())
        .map(|(_, value)| String::from_utf8_lossy(&value.0).into_owned());
    // The access key `test` is a word that stands anywhere.
    for value in values.filter(|value| value != "test") {
        assert!(!shown.contains(&value), "a secret's value leaked");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_how_it_is_going_and_why() {
    let (space, world, _operator) = stage("shows").await;
    space.create("villages", world.villages("villages")).await;
    assert_phase(&space.until_over("villages", SOON).await, Phase::Succeeded);
    let tasks = space.kubectl("get collecttasks");
    let root = tasks.lines().find(|line| line.starts_with("villages ")).expect("the root is listed");
    let words: Vec<_> = root.split_whitespace().collect();
    assert_eq!(
        (words[1], words[2], words[4], words[5], words[6]),
        ("Succeeded", "100%", "216/216", "0", "100%"),
        "{tasks}"
    );
    assert!(space.kubectl("get collectshards").contains("Succeeded"));
    let reports = space.kubectl("get vr villages-r1 --no-headers");
    assert_eq!(
        reports.split_whitespace().collect::<Vec<_>>()[1..6],
        ["counts", "Pass", "216", "216", "0"],
        "{reports}"
    );
    let level = space.kubectl("get ct -l collect.dev/root=villages,collect.dev/depth=1 -o name");
    assert_eq!(level.lines().count(), 3, "one level only: {level}");
    let of_task = space.kubectl("get collectshards -l collect.dev/task=villages-44-4401 -o name");
    assert!(
        of_task.lines().count() >= 1 && of_task.lines().all(|line| line.contains("villages-44-4401-")),
        "{of_task}"
    );
    let described = space.kubectl("describe ct villages");
    for expected in ["Conditions:", "Complete", "Verified", "Events:", "Succeeded"] {
        assert!(described.contains(expected), "{expected}: {described}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_task_leaves_nothing_even_without_an_operator() {
    let (space, world, mut operator) = stage("deleted").await;
    space.create("villages", world.villages("villages")).await;
    assert_phase(&space.until_over("villages", SOON).await, Phase::Succeeded);
    assert!(
        !space.all::<Job>().await.is_empty() || !space.all::<CollectShard>().await.is_empty(),
        "there is something to delete"
    );
    operator.kill().await;
    space.kubectl("delete ct villages --timeout=60s");
    space.until_empty(SOON).await;
    assert!(sink::current_run(&*world.bucket(), "villages").await.is_some(), "deleting a task deletes no data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_deleted_in_the_middle_stops_and_leaves_nothing() {
    let (space, world, _operator) = stage("midway").await;
    world.set_source(slow(2_000));
    space.create("villages", world.villages("villages")).await;
    let pods = until_collecting(&space, 2).await;
    space.kubectl("delete ct villages --timeout=60s");
    space.until_empty(SOON).await;
    for pod in pods {
        assert!(programs::worker_processes(&pod.uid().unwrap()).is_empty(), "{} runs on", pod.name_any());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_deleted_in_the_middle_goes() {
    let (space, world, _operator) = stage("namespace").await;
    world.set_source(slow(2_000));
    space.create("villages", world.villages("villages")).await;
    until_collecting(&space, 2).await;
    let namespaces: Api<Namespace> = Api::all(space.client.clone());
    let uid = namespaces.get(&space.name).await.unwrap().uid().unwrap();
    namespaces.delete(&space.name, &DeleteParams::default()).await.unwrap();
    tokio::time::timeout(SOON, wait::await_condition(namespaces, &space.name, wait::conditions::is_deleted(&uid)))
        .await
        .expect("the namespace goes")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_higher_run_collects_anew_into_a_place_of_its_own() {
    let (space, world, _operator) = stage("anew").await;
    let first = space.create("villages", world.villages("villages")).await;
    let first_run =
        assert_all_villages(&space, &world, &space.until_over("villages", SOON).await, "villages").await.run;
    let uid8 = &first.uid().unwrap()[..8];
    assert_eq!(first_run, format!("runs/1-{uid8}"));
    let asked = world.source.log().len();
    space.change("villages", json!({"run": 2})).await;
    // The first write of a run clears Complete: nobody takes the old end for the new one's.
    let task = space
        .until::<CollectTask>("villages", "run 2 begins", SOON, |task| {
            task.status.as_ref().is_some_and(|status| status.run == Some(2))
        })
        .await;
    assert_ne!(status_of(&task, COMPLETE), Some("True"), "{:?}", task.status);
    let task = space.until_over("villages", SOON).await;
    let second = assert_all_villages(&space, &world, &task, "villages").await;
    assert_eq!(second.run, format!("runs/2-{uid8}"));
    assert!(world.source.log().len() >= 2 * asked, "the second run asked the source again");
    assert_eq!(
        sink::runs(&*world.bucket(), "villages").await,
        BTreeSet::from([first_run, second.run]),
        "two runs are kept"
    );
    space.reports().get("villages-r1").await.expect("the first run's report is kept");

    space.change("villages", json!({"run": 3})).await;
    let task = space.until_over("villages", SOON).await;
    assert_all_villages(&space, &world, &task, "villages").await;
    let kept = sink::runs(&*world.bucket(), "villages").await;
    assert_eq!(kept, BTreeSet::from([format!("runs/2-{uid8}"), format!("runs/3-{uid8}")]), "the oldest run is pruned");
    // Nothing of the old tree is left beside the new one.
    let runs: BTreeSet<_> = space.all::<CollectShard>().await.iter().map(|shard| shard.spec.run).collect();
    assert!(runs.iter().all(|run| *run == 3), "{runs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_higher_run_in_the_middle_replaces_the_old_one() {
    let (space, world, _operator) = stage("replaced").await;
    world.set_source(slow(2_000));
    space.create("villages", world.villages("villages")).await;
    until_collecting(&space, 2).await;
    world.set_source(Options::default());
    space.change("villages", json!({"run": 2})).await;
    let task = space.until_over("villages", SOON).await;
    assert_eq!(task.status.as_ref().unwrap().run, Some(2));
    let collected = assert_all_villages(&space, &world, &task, "villages").await;
    assert!(collected.run.starts_with("runs/2-"), "{}", collected.run);
    until_no_pod_runs(&space).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_deleted_and_created_again_collects_anew() {
    let (space, world, _operator) = stage("again").await;
    let first = space.create("villages", world.villages("villages")).await;
    assert_all_villages(&space, &world, &space.until_over("villages", SOON).await, "villages").await;
    space.kubectl("delete ct villages --timeout=60s");
    // At once: what is left of the first is still being deleted, under the same names.
    let second = space.create("villages", world.villages("villages")).await;
    let task = space
        .until::<CollectTask>("villages", "it is over", SOON, |task| {
            task.uid() == second.uid() && phase(task).is_some_and(Phase::is_terminal)
        })
        .await;
    let collected = assert_all_villages(&space, &world, &task, "villages").await;
    assert_ne!(first.uid(), second.uid());
    assert_eq!(collected.run, format!("runs/1-{}", &second.uid().unwrap()[..8]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tasks_data_at_the_same_url_is_not_touched() {
    let (space, world, _operator) = stage("occupied").await;
    space.create("mine", world.villages("shared")).await;
    let before = assert_all_villages(&space, &world, &space.until_over("mine", SOON).await, "shared").await;
    let asked = world.source.log().len();
    space.create("yours", world.villages("shared")).await;
    let task = space.until_over("yours", SOON).await;
    assert_phase(&task, Phase::Failed);
    let failed = condition(&task, FAILED).expect("it says why");
    assert!(failed.message.contains("mine") && failed.message.contains("s3://lake/shared"), "{}", failed.message);
    assert!(format!("{:?}", task.status).contains("SinkOccupied"), "{:?}", task.status);
    let records = world
        .source
        .log()
        .into_iter()
        .skip(asked)
        .filter(|entry| entry.path.contains("/villages"))
        .map(|entry| entry.records)
        .sum::<u64>();
    assert_eq!(records, 0, "found before any data moves");
    let after = sink::read(&*world.bucket(), "shared", "code").await;
    assert_eq!(before.run, after.run);
    assert_eq!(sink::runs(&*world.bucket(), "shared").await.len(), 1, "nothing was written");
}

// ---------------------------------------------------------------------------------------------------------------------
// Bad inputs.

/// A bad input: what it is, how the source behaves, what is changed in the smallest task, requests it may cost, and what the end must say.
struct Bad {
    name: &'static str,
    source: Options,
    changes: Value,
    requests: usize,
    says: &'static [&'static str],
}

fn bad_inputs() -> Vec<Bad> {
    let bearer = |name: &str, key: &str| json!({"source": {"http": {"auth": {"bearer": {"secretRef": {"name": name, "key": key}}}}}});
    let token = |token: &str| Options { token: Some(token.into()), ..Options::default() };
    let fault = |effect: Effect| Options::faults([effect.always()]);
    let bad = |name, source, changes, requests, says| Bad { name, source, changes, requests, says };
    let nothing = || json!({});
    vec![
        bad(
            "nobody-listens",
            Options::default(),
            json!({"source": {"http": {"url": "http://127.0.0.1:9/api/provinces"}}}),
            0,
            &["http://127.0.0.1:9/api/provinces"],
        ),
        bad(
            "no-such-path",
            Options::default(),
            json!({"source": {"http": {"path": "/nowhere"}}}),
            1,
            &["404", "/nowhere"],
        ),
        bad("wrong-jsonpath", Options::default(), json!({"source": {"http": {"records": "$.dta"}}}), 1, &["$.dta"]),
        bad("no-array", Options::default(), json!({"source": {"http": {"records": "$.total"}}}), 1, &["$.total"]),
        bad(
            "no-secret",
            token("x"),
            bearer("nowhere", "token"),
            0,
            &["nowhere", "spec.source.http.auth.bearer.secretRef"],
        ),
        bad(
            "no-key",
            token("x"),
            bearer("registry", "tokn"),
            0,
            &["registry", "tokn", "spec.source.http.auth.bearer.secretRef.key"],
        ),
        bad("wrong-token", token("another"), bearer("registry", "token"), 1, &["401"]),
        bad("forbidden", fault(Effect::Status { code: 403, retry_after_seconds: None }), nothing(), 1, &["403"]),
        bad("gone", fault(Effect::Status { code: 404, retry_after_seconds: None }), nothing(), 1, &["404"]),
        // Two attempts of two tries each.
        bad("broken", fault(Effect::Status { code: 500, retry_after_seconds: None }), nothing(), 4, &["500"]),
        bad("html", fault(Effect::Html), nothing(), 1, &["text/html", "/api/provinces"]),
        bad("wrong-key", Options::default(), json!({"record": {"key": ["id"]}}), 1, &["id"]),
        bad(
            "undefined-variable",
            Options::default(),
            json!({"source": {"http": {"path": "/{{ city }}"}}}),
            0,
            &["city"],
        ),
    ]
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (name, value) in change {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_input_ends_with_a_clear_answer_after_the_right_number_of_tries() {
    let (space, world, _operator) = stage("bad").await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let mut cases = Vec::new();
    for bad in bad_inputs() {
        let source = collect_registry::serve(Registry::small(), bad.source.clone(), address).await.unwrap();
        let mut spec = world.provinces(bad.name);
        spec["source"]["http"] = json!({
            "url": format!("{}/api/provinces", source.url()),
            "retry": {"maxAttempts": 2, "backoff": {"initial": "50ms", "max": "50ms"}},
        });
        spec["retry"] = json!({"maxAttempts": 2, "backoff": {"initial": "50ms", "max": "50ms"}});
        merge(&mut spec, &bad.changes);
        space.create(bad.name, spec).await;
        cases.push((bad, source));
    }
    let mut wrong = Vec::new();
    for (bad, source) in cases {
        let task = space.until_over(bad.name, SOON).await;
        let message =
            condition(&task, FAILED).filter(|failed| failed.status == "True").map(|failed| failed.message.clone());
        let Some(message) = message else {
            wrong.push(format!("{}: it is {:?} and does not say why", bad.name, phase(&task)));
            continue;
        };
        for word in bad.says.iter().filter(|word| !message.contains(**word)) {
            wrong.push(format!("{}: `{word}` is not in: {message}", bad.name));
        }
        let asked: Vec<_> = source.log().iter().map(|entry| (entry.path.clone(), entry.status)).collect();
        if asked.len() != bad.requests {
            wrong.push(format!("{}: {} requests instead of {}: {asked:?}", bad.name, asked.len(), bad.requests));
        }
        if status_of(&task, STALLED) != Some("True") || status_of(&task, READY) != Some("False") {
            wrong.push(format!(
                "{}: Stalled and not Ready is what kstatus reads as failed: {:?}",
                bad.name,
                task.status.unwrap().conditions
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    until_no_pod_runs(&space).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_recovers_costs_attempts_and_no_records() {
    let (space, world, _operator) = stage("recovers").await;
    world.set_source(Options::faults([
        Effect::Status { code: 503, retry_after_seconds: None }.when(When { every: Some(7), ..villages() }),
        Effect::Status { code: 429, retry_after_seconds: Some(1) }.when(When { every: Some(11), ..villages() }),
        Effect::Cut.when(When { every: Some(13), ..villages() }),
        Effect::Reset.when(When { every: Some(17), ..villages() }),
    ]));
    space.create("villages", world.villages("villages")).await;
    let task = space.until_over("villages", SOON).await;
    assert_all_villages(&space, &world, &task, "villages").await;
    let hit = world.source.log().iter().filter(|entry| !entry.faults.is_empty()).count();
    assert!(hit >= 4, "only {hit} faults were injected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lying_total_loses_nothing_and_is_named() {
    let (space, world, _operator) = stage("lying").await;
    world.set_source(Options::faults([Effect::WrongTotal { add: -3 }.when(villages())]));
    space.create("villages", world.villages("villages")).await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Collected);
    assert_eq!(status_of(&task, VERIFIED), Some("Unknown"));
    let report = space.reports().get("villages-r1").await.unwrap().status.unwrap();
    assert_eq!(
        (report.verdict, report.reason.as_deref()),
        (Some(Verdict::Inconclusive), Some(reason::TOTAL_UNRELIABLE))
    );
    sink::read(&*world.bucket(), "villages", "code").await.assert_exactly(&world.codes("villages"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_records_are_a_failed_verdict_with_the_data_kept() {
    let (space, world, _operator) = stage("missing").await;
    world.set_source(Options::faults([Effect::WrongTotal { add: 5 }.when(villages())]));
    space.create("villages", world.villages("villages")).await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Failed);
    assert_eq!(condition(&task, FAILED).map(|failed| failed.reason.as_str()), Some(reason::VALIDATION_FAILED));
    assert_eq!(status_of(&task, VERIFIED), Some("False"));
    let report = space.reports().get("villages-r1").await.unwrap().status.unwrap();
    assert_eq!(report.verdict, Some(Verdict::Fail));
    assert!(report.counts.unwrap().delta.unwrap() < 0);
    assert!(
        !report.samples.is_empty() || report.regions.iter().any(|region| region.verdict == Verdict::Fail),
        "the report says where"
    );
    assert!(sink::current_run(&*world.bucket(), "villages").await.is_none(), "_current moves only to a good run");
    assert_eq!(sink::runs(&*world.bucket(), "villages").await.len(), 1, "the data is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_cannot_start_shows_as_pending_with_its_reason() {
    let (space, world, _operator) = stage("room").await;
    let cases = [
        ("room", json!({"resources": {"requests": {"cpu": "1000"}}}), "Insufficient cpu"),
        ("image", json!({"image": "docker.io/local/nowhere:dev"}), "nowhere"),
        ("selector", json!({"nodeSelector": {"disk": "golden"}}), "node"),
    ];
    for (name, worker, _) in &cases {
        let mut spec = world.provinces(name);
        spec["worker"] = worker.clone();
        space.create(name, spec).await;
    }
    for (name, _, says) in cases {
        let task = space
            .until::<CollectTask>(name, &format!("it says `{says}`"), SOON, |task| {
                task.status
                    .as_ref()
                    .and_then(|status| status.message.as_deref())
                    .is_some_and(|message| message.contains(says))
            })
            .await;
        assert!(!phase(&task).is_some_and(Phase::is_terminal), "{:?}", phase(&task));
        let conditions = task.status.iter().flat_map(|status| &status.conditions);
        let reasons: Vec<_> = conditions.map(|condition| condition.reason.as_str()).collect();
        assert!(reasons.contains(&reason::POD_PENDING), "{name}: {reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_quota_refuses_waits_and_costs_no_attempt() {
    let (space, world, _operator) = stage("quota").await;
    let quotas = space.api::<ResourceQuota>();
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}});
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    // Quota is kept from the moment on at which its status is there.
    space
        .until::<ResourceQuota>("none", "it is kept", SOON, |quota| {
            quota.status.as_ref().is_some_and(|status| status.hard.is_some())
        })
        .await;
    space.create("provinces", world.provinces("provinces")).await;
    let task = space
        .until::<CollectTask>("provinces", "it says that quota refuses the Job", SOON, |task| {
            task.status
                .as_ref()
                .and_then(|status| status.message.as_deref())
                .is_some_and(|message| message.contains("quota"))
        })
        .await;
    assert!(!phase(&task).is_some_and(Phase::is_terminal), "{:?}", phase(&task));
    quotas.delete("none", &DeleteParams::default()).await.unwrap();
    let task = space.until_over("provinces", SOON).await;
    assert_phase(&task, Phase::Collected);
    let attempts = task.status.unwrap().plan.unwrap().attempts;
    assert_eq!(
        attempts.iter().map(|attempt| (attempt.n, attempt.outcome.clone())).collect::<Vec<_>>(),
        [(1, Some(Outcome::Succeeded))]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_on_a_mounted_claim_are_a_sink_too() {
    let (space, world, _operator) = stage("claim").await;
    let folder = space.folder.join("volume");
    std::fs::create_dir_all(&folder).unwrap();
    let claim = json!({"storageClassName": "", "accessModes": ["ReadWriteMany"], "volumeName": space.name, "resources": {"requests": {"storage": "1Gi"}}});
    let volume = json!({"storageClassName": "", "accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": folder}});
    let volume = json!({"metadata": {"name": space.name}, "spec": volume});
    let volumes: Api<PersistentVolume> = Api::all(space.client.clone());
    volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    let claim = json!({"metadata": {"name": "lake"}, "spec": claim});
    space
        .api::<PersistentVolumeClaim>()
        .create(&PostParams::default(), &serde_json::from_value(claim).unwrap())
        .await
        .unwrap();

    let mut spec = world.villages("unused");
    spec["sink"] =
        json!({"objectStore": {"url": "file:///villages", "compression": "gzip", "volume": {"claimName": "lake"}}});
    space.create("villages", spec).await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Succeeded);
    let store = object_store::local::LocalFileSystem::new_with_prefix(&folder).unwrap();
    sink::read(&store, "villages", "code").await.assert_exactly(&world.codes("villages"));
    volumes.delete(&space.name, &DeleteParams::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_conditional_writes_is_refused_before_data_moves() {
    use collect_s3::Effect;
    let (space, world, _operator) = stage("unconditional").await;
    world.sink.control.set_faults([Effect::IgnoreConditions.always()]);
    space.create("villages", world.villages("villages")).await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Failed);
    assert!(format!("{:?}", task.status).contains("SinkNotConditional"), "{:?}", task.status);
    assert!(
        !world.source.log().iter().any(|entry| entry.path.ends_with("/villages") && entry.records > 0),
        "no data has moved"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_answers_ambiguously_holds_every_record_once() {
    use collect_s3::{Effect, When};
    let (space, world, _operator) = stage("ambiguous").await;
    let puts = || When { method: Some("PUT".into()), ..When::default() };
    world.sink.control.set_faults([
        Effect::ResetAfter.when(When { every: Some(5), ..puts() }),
        Effect::SlowDown.when(When { every: Some(7), ..puts() }),
        Effect::ResetBefore.when(When { every: Some(11), ..puts() }),
    ]);
    space.create("villages", world.villages("villages")).await;
    let task = space.until_over("villages", SOON).await;
    let hit = world.sink.control.log().iter().filter(|entry| !entry.faults.is_empty()).count();
    assert!(hit >= 5, "only {hit} faults were injected");
    world.sink.control.set_faults([]);
    assert_all_villages(&space, &world, &task, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_undecodable_task_stops_nothing_else() {
    let (space, world, mut operator) = stage("undecodable").await;
    // Only as loose as it must be: other tests' tasks live under the same definition.
    let loosened = |crd: &Value| {
        let mut crd = crd.clone();
        let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schema.as_object_mut().unwrap().remove("x-kubernetes-validations");
        schema["properties"]["spec"]["properties"]["source"] = json!({"x-kubernetes-preserve-unknown-fields": true});
        crd
    };
    let tasks = cluster::crds().into_iter().find(|crd| crd["spec"]["names"]["kind"] == "CollectTask").unwrap();
    cluster::install_crds(&space.client, vec![loosened(&tasks)]).await;
    let bad = json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": "bad"},
        "spec": {"source": "a word"}});
    let file = space.folder.join("bad.json");
    std::fs::write(&file, bad.to_string()).unwrap();
    // The API server may take a moment to serve the loosened schema.
    let deadline = tokio::time::Instant::now() + SOON;
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        let created = space
            .cluster
            .kubectl()
            .args(["--namespace", &space.name, "create", "--validate=false", "-f"])
            .arg(&file)
            .output()
            .unwrap();
        if created.status.success() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", String::from_utf8_lossy(&created.stderr));
    }
    cluster::install_crds(&space.client, vec![tasks]).await;

    // While it is watched, and when it is in the first list.
    for (name, restart) in [("watched", false), ("listed", true)] {
        if restart {
            operator.kill().await;
            operator.go().await;
        }
        space.create(name, world.provinces(name)).await;
        assert_phase(&space.until_over(name, SOON).await, Phase::Collected);
    }
    let uid = space.kubectl("get ct bad -o jsonpath={.metadata.uid}");
    assert!(!uid.is_empty(), "the undecodable task is still there");
    space.kubectl("delete ct bad --timeout=30s");
}

// ---------------------------------------------------------------------------------------------------------------------
// Operators that are not there, or twice.

/// Attempts of all shards: (shard, number, outcome).
async fn attempts(space: &Space) -> Vec<(String, i32, Option<Outcome>)> {
    let shards = space.all::<CollectShard>().await;
    let of = |shard: &CollectShard| {
        let name = shard.name_any();
        let attempts = shard.status.clone().unwrap_or_default().attempts;
        attempts.into_iter().map(move |attempt| (name.clone(), attempt.n, attempt.outcome)).collect::<Vec<_>>()
    };
    shards.iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_finish_while_the_operator_is_down_and_no_attempt_is_lost() {
    let (space, world, mut operator) = stage("down").await;
    world.set_source(slow(300));
    space.create("villages", world.villages("villages")).await;
    let collecting: BTreeSet<_> =
        collectors(&until_collecting(&space, 4).await).iter().map(|pod| pod.name_any()).collect();
    operator.kill().await;
    let pods = space.until_all::<Pod>("all workers have finished", SOON, |pods| alive(pods).is_empty()).await;
    let finished = pods.iter().filter(|pod| collecting.contains(&pod.name_any()));
    let phases: Vec<_> = finished.map(|pod| pod.status.as_ref().unwrap().phase.clone().unwrap()).collect();
    assert_eq!(phases, vec!["Succeeded"; collecting.len()], "workers need no operator to finish");
    operator.go().await;
    let task = space.until_over("villages", SOON).await;
    assert_all_villages(&space, &world, &task, "villages").await;
    let attempts = attempts(&space).await;
    assert!(!attempts.is_empty());
    assert!(attempts.iter().all(|(_, n, outcome)| *n == 1 && *outcome == Some(Outcome::Succeeded)), "{attempts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_killed_for_an_operator_that_was_away() {
    let (space, world, mut operator) = stage("away").await;
    world.set_source(slow(1_500));
    space.create("villages", world.villages("villages")).await;
    until_collecting(&space, 4).await;
    operator.kill().await;
    // Away for as long as the workers need for 12 more requests.
    let asked = world.source.log().len();
    let deadline = tokio::time::Instant::now() + SOON;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    while world.source.log().len() < asked + 12 {
        tick.tick().await;
        let pods = space.all::<Pod>().await;
        if collectors(&pods).is_empty() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the workers go on without an operator");
    }
    assert!(world.source.log().len() > asked, "the workers go on without an operator");
    operator.go().await;
    let task = space.until_over("villages", SOON).await;
    assert_all_villages(&space, &world, &task, "villages").await;
    let attempts = attempts(&space).await;
    assert!(attempts.iter().all(|(_, n, outcome)| *n == 1 && *outcome == Some(Outcome::Succeeded)), "{attempts:?}");
}

/// The same with ten real minutes, longer than stallTimeout, in which the source answers nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes; run it by name"]
async fn nobody_is_killed_for_an_operator_that_was_away_for_ten_minutes() {
    let (space, world, mut operator) = stage("tenminutes").await;
    let mut spec = world.villages("villages");
    spec["source"]["http"]["timeout"] = json!("1h");
    spec["parallelism"] = json!(0);
    space.create("villages", spec).await;
    space
        .until::<CollectTask>("villages", "the plan is sealed", SOON, |task| phase(task) == Some(&Phase::Running))
        .await;
    world.set_source(Options::faults([Effect::Hold.when(villages())]));
    space.change("villages", json!({"parallelism": 8})).await;
    until_collecting(&space, 4).await;
    operator.kill().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    operator.go().await;
    world.set_source(Options::default());
    let task = space.until_over("villages", SOON).await;
    assert_all_villages(&space, &world, &task, "villages").await;
    let attempts = attempts(&space).await;
    assert!(attempts.iter().all(|(_, n, outcome)| *n == 1 && *outcome == Some(Outcome::Succeeded)), "{attempts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_is_asked_to_leave_leaves_and_another_goes_on() {
    let (space, world, mut operator) = stage("leaves").await;
    world.set_source(slow(500));
    space.create("villages", world.villages("villages")).await;
    until_collecting(&space, 2).await;
    let status = operator.terminate().await;
    assert!(status.success(), "a graceful end is no failure: {status}");
    operator.go().await;
    assert_all_villages(&space, &world, &space.until_over("villages", SOON).await, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_operators_at_once_do_everything_once() {
    let (space, world, _one) = stage("two").await;
    let mut other = Operator::new(&space, "b").await;
    other.go().await;
    space.create("villages", world.villages("villages")).await;
    let task = space.until_over("villages", SOON).await;
    assert_all_villages(&space, &world, &task, "villages").await;
    let audit = audit::requests(&space);
    let jobs = audit
        .iter()
        .filter(|request| request.verb == "create" && request.resource == "jobs" && request.succeeded())
        .count();
    let shards = task.status.unwrap().shards.unwrap().total as usize;
    assert_eq!(jobs, shards + 2, "one Job for each shard, one to plan, one to commit");
    space.kubectl("delete ct villages --timeout=60s");
    space.until_empty(SOON).await;
}

// ---------------------------------------------------------------------------------------------------------------------
// Steering.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallelism_bounds_the_workers_and_may_change() {
    let (space, world, _operator) = stage("parallel").await;
    world.set_source(slow(100));
    let mut spec = world.villages("villages");
    spec["parallelism"] = json!(0);
    space.create("villages", spec).await;
    space
        .until::<CollectTask>("villages", "the plan is sealed and it waits", SOON, |task| {
            task.status.as_ref().and_then(|status| status.plan.as_ref()).is_some_and(|plan| plan.sealed.is_some())
                && phase(task) == Some(&Phase::Running)
        })
        .await;
    let workers = |pods: &[Pod]| {
        alive(pods)
            .iter()
            .filter(|pod| pod.labels().get(collect_api::labels::WORK).is_some_and(|work| work == "collect"))
            .count()
    };
    assert_eq!(workers(&space.all::<Pod>().await), 0, "none may work");
    space.kubectl("scale ct/villages --replicas=2");
    let mut most = 0;
    space
        .until_all::<Pod>("the commit runs", SOON, |pods| {
            most = most.max(workers(pods));
            pods.iter().any(|pod| pod.labels().get(collect_api::labels::WORK).is_some_and(|work| work == "commit"))
        })
        .await;
    assert!((1..=2).contains(&most), "{most} workers at once");
    assert_all_villages(&space, &world, &space.until_over("villages", SOON).await, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_task_rests_and_resumes_without_loss() {
    let (space, world, _operator) = stage("paused").await;
    world.set_source(slow(700));
    space.create("villages", world.villages("villages")).await;
    until_collecting(&space, 3).await;
    space.change("villages", json!({"desiredState": "Paused"})).await;
    let task =
        space.until::<CollectTask>("villages", "it is paused", SOON, |task| phase(task) == Some(&Phase::Paused)).await;
    assert_ne!(status_of(&task, COMPLETE), Some("True"));
    until_no_pod_runs(&space).await;
    space
        .until_all::<Job>("no Job is active", SOON, |jobs| {
            jobs.iter().all(|job| job.status.as_ref().is_none_or(|status| status.active.unwrap_or(0) == 0))
        })
        .await;
    let asked = world.source.log().len();
    // A settled system writes nothing: another task comes and goes meanwhile.
    world.set_source(Options::default());
    space.create("provinces", world.provinces("provinces")).await;
    assert_phase(&space.until_over("provinces", SOON).await, Phase::Collected);
    assert!(
        world.source.log().iter().skip(asked).all(|entry| entry.path == "/api/provinces"),
        "a paused task asks for nothing"
    );
    space.change("villages", json!({"desiredState": "Running"})).await;
    let task = space.until_over("villages", SOON).await;
    assert_all_villages(&space, &world, &task, "villages").await;
    let attempts = attempts(&space).await;
    let free = |outcome: &Option<Outcome>| {
        matches!(
            outcome,
            Some(Outcome::Succeeded | Outcome::AlreadyCommitted | Outcome::Checkpointed | Outcome::Stopped)
        )
    };
    assert!(attempts.iter().all(|(_, _, outcome)| free(outcome)), "a pause uses up no attempts: {attempts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_stops_for_good() {
    let (space, world, _operator) = stage("cancelled").await;
    world.set_source(slow(700));
    for name in ["running", "paused"] {
        space.create(name, world.villages(name)).await;
    }
    until_collecting(&space, 4).await;
    space.change("paused", json!({"desiredState": "Paused"})).await;
    space.until::<CollectTask>("paused", "it is paused", SOON, |task| phase(task) == Some(&Phase::Paused)).await;
    for name in ["running", "paused"] {
        space.change(name, json!({"desiredState": "Cancelled"})).await;
        let task = space.until_over(name, SOON).await;
        assert_phase(&task, Phase::Cancelled);
        assert!(sink::current_run(&*world.bucket(), name).await.is_none(), "a cancelled run is never the valid one");
    }
    until_no_pod_runs(&space).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_branch_can_be_paused_while_the_others_go_on() {
    let (space, world, _operator) = stage("branch").await;
    world.set_source(slow(300));
    space.create("villages", world.villages("villages")).await;
    space.until::<CollectTask>("villages-44", "it is there", SOON, |_| true).await;
    space.change("villages-44", json!({"desiredState": "Paused"})).await;
    for name in ["villages-11", "villages-65"] {
        assert_phase(&space.until_over(name, SOON).await, Phase::Succeeded);
    }
    let branch = space
        .until::<CollectTask>("villages-44", "it is paused", SOON, |task| phase(task) == Some(&Phase::Paused))
        .await;
    assert!(
        !phase(&space.tasks().get("villages").await.unwrap()).is_some_and(Phase::is_terminal),
        "the root waits for {}",
        branch.name_any()
    );
    space.change("villages-44", json!({"desiredState": "Running"})).await;
    assert_all_villages(&space, &world, &space.until_over("villages", SOON).await, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_are_not_ours_are_left_alone() {
    let (space, world, _operator) = stage("foreign").await;
    // A child's name is derived, so somebody may have it already.
    let mut foreign = world.provinces("foreign");
    foreign["desiredState"] = json!("Paused");
    let theirs = space.create("villages-44", foreign).await;
    space.create("villages", world.villages("villages")).await;
    let task = space
        .until::<CollectTask>("villages", "it names the conflict", SOON, |task| {
            format!("{:?}", task.status).contains(reason::NAME_CONFLICT)
        })
        .await;
    assert!(format!("{:?}", task.status).contains("villages-44"), "{:?}", task.status);
    let still = space.tasks().get("villages-44").await.unwrap();
    assert_eq!((still.uid(), &still.spec), (theirs.uid(), &theirs.spec), "I21: never adopted, changed or deleted");
    assert!(still.owner_references().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_is_not_written_again() {
    let (space, world, mut operator) = stage("settled").await;
    space.create("villages", world.villages("villages")).await;
    assert_phase(&space.until_over("villages", SOON).await, Phase::Succeeded);
    let versions = async || {
        let tasks = space.all::<CollectTask>().await.into_iter().map(|task| (task.name_any(), task.resource_version()));
        let shards =
            space.all::<CollectShard>().await.into_iter().map(|shard| (shard.name_any(), shard.resource_version()));
        let reports = space
            .all::<ValidationReport>()
            .await
            .into_iter()
            .map(|report| (report.name_any(), report.resource_version()));
        let maps = space.all::<ConfigMap>().await.into_iter().map(|map| (map.name_any(), map.resource_version()));
        tasks.chain(shards).chain(reports).chain(maps).collect::<BTreeSet<_>>()
    };
    let settled = versions().await;
    // A restarted operator sees every object anew; another task shows that it has looked at all of them.
    operator.kill().await;
    operator.go().await;
    space.create("provinces", world.provinces("provinces")).await;
    assert_phase(&space.until_over("provinces", SOON).await, Phase::Collected);
    let after = versions().await;
    let written: Vec<_> = settled.difference(&after).collect();
    assert!(written.is_empty(), "I22: a settled system writes nothing: {written:?}");
}

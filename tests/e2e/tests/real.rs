//! The demo as a newcomer runs it: a real node, the images, the chart, the sample; then the sink is read as a reader reads it.
//!
//! `SCALE=full` collects all 620,573 villages; without it, those of province 44.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use collect_api::CollectTask;
use collect_e2e::{Cluster, Node, cluster, demo, demo::NAMESPACE, docs, figure, sink};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
    runtime::wait,
};

const CLUSTER: &str = "e2e-real";

/// What is collected: scale for the demo, name of the task, codes of the source.
fn subject() -> (&'static str, &'static str, BTreeSet<String>) {
    match std::env::var("SCALE").as_deref() {
        Ok("full") => ("full", "villages", demo::villages("")),
        _ => ("province", "guangdong", demo::villages("44")),
    }
}

/// The numbers that stand before `MiB` in the line that begins with `what`.
fn mebibytes(text: &str, what: &str) -> Vec<f64> {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with(what))
        .unwrap_or_else(|| panic!("the demo prints `{what}`"));
    let words: Vec<_> = line.split_whitespace().collect();
    words.windows(2).filter(|pair| pair[1].starts_with("MiB")).filter_map(|pair| pair[0].parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_collects_every_village_and_is_lean_and_goes_without_a_trace() {
    let Some(cluster) = Cluster::shared(CLUSTER, Node::Real) else { return };
    let (scale, name, codes) = subject();
    let text = demo::script(CLUSTER, &[("SCALE", scale)]);
    let client = cluster.client().await;

    // What its user sees.
    let tasks: Api<CollectTask> = Api::namespaced(client.clone(), NAMESPACE);
    let task = tasks.get(name).await.expect("the task is there");
    let records = task.status.as_ref().and_then(|status| status.records.clone()).expect("records are counted");
    assert_eq!((records.expected, records.collected), (Some(codes.len() as i64), codes.len() as i64));
    let row = text
        .lines()
        .find(|line| line.starts_with(&format!("{name}-r")) && line.contains("counts"))
        .expect("the demo shows the report");
    let words: Vec<_> = row.split_whitespace().collect();
    let count = codes.len().to_string();
    assert_eq!(words[1..6], ["counts", "Pass", count.as_str(), count.as_str(), "0"], "{row}");

    // What a reader of the sink finds.
    let store = demo::bucket(&client).await;
    let collected = sink::read(&store, name, "code").await;
    collected.assert_exactly(&codes);
    figure("villages at the sink, read through the manifests", collected.records);

    // Lean.
    let operator = mebibytes(&text, "operator memory:");
    assert!(operator[0] > 1.0 && operator[0] <= 64.0 && operator[1] <= 100.0, "operator: {operator:?} MiB");
    let worker = mebibytes(&text, "worker memory:");
    assert!(worker[0] > 1.0 && worker[0] <= 128.0, "worker: {worker:?} MiB");

    let began = Instant::now();
    figure("blocks of commands of the documentation on a real node", docs::on_the_demo(cluster).await);
    figure("seconds for these", began.elapsed().as_secs());
    uninstall_in_the_middle(cluster, name).await;
}

/// A second run, and the operator uninstalled while it works: nothing hangs, and with the namespace everything goes.
async fn uninstall_in_the_middle(cluster: &Cluster, name: &str) {
    let client = cluster.client().await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    cluster::run(cluster.kubectl().args([
        "-n",
        NAMESPACE,
        "patch",
        "ct",
        name,
        "--type=merge",
        "-p",
        r#"{"spec":{"run":1000}}"#,
    ]));
    cluster::run(cluster.kubectl().args([
        "-n",
        NAMESPACE,
        "wait",
        "--for=jsonpath={.status.phase}=Running",
        &format!("ct/{name}"),
        "--timeout=120s",
    ]));
    let began = Instant::now();
    cluster::run(cluster.helm().args([
        "uninstall",
        "collect-operator",
        "--namespace",
        "collect-system",
        "--wait",
        "--timeout",
        "60s",
    ]));
    let phase =
        cluster::run(cluster.kubectl().args(["-n", NAMESPACE, "get", "ct", name, "-o", "jsonpath={.status.phase}"]));
    assert_eq!(phase, "Running", "the operator went in the middle of the run");
    figure("seconds for helm uninstall in the middle of a run", began.elapsed().as_secs());
    cluster::run(cluster.kubectl().args(["-n", NAMESPACE, "delete", "ct", name, "--timeout=60s"]));
    for kind in ["collecttasks", "collectshards", "validationreports", "jobs", "configmaps"] {
        let selector = "app.kubernetes.io/managed-by=collect-operator";
        cluster::run(cluster.kubectl().args([
            "-n",
            NAMESPACE,
            "wait",
            "--for=delete",
            kind,
            "-l",
            selector,
            "--timeout=120s",
        ]));
    }
    let namespaces: Api<Namespace> = Api::all(client);
    let uid = namespaces.get(NAMESPACE).await.expect("the namespace is there").uid().expect("it has a uid");
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await.expect("it can be deleted");
    tokio::time::timeout(
        Duration::from_secs(120),
        wait::await_condition(namespaces, NAMESPACE, wait::conditions::is_deleted(&uid)),
    )
    .await
    .expect("the namespace goes within two minutes")
    .expect("it can be watched");
    assert!(pods.list(&ListParams::default()).await.expect("pods can be listed").items.is_empty(), "no pod is left");
}

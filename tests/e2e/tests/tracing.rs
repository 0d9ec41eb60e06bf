//! One trace for each run: in every log line of operator and workers, and as spans that the OpenTelemetry Collector's code understands.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    time::Duration,
};

use collect_api::{Attempt, CollectShard, CollectTask, Outcome, Phase, labels};
use collect_e2e::{
    Cluster, Node, Operator, Space, http,
    otel::{Receiver, Span},
    space::phase,
    tasks::{SOON, World},
};
use collect_registry::{Effect, Options, Registry, When};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::LogParams};
use serde_json::{Value, json};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// A namespace with the small country as source, and an operator that logs JSON and has not been started.
async fn stage(test: &str) -> (Space, World, Operator) {
    let cluster =
        Cluster::shared("e2e-tracing", Node::Process).expect("a process node needs nothing that could be missing");
    let space = Space::new(cluster, test).await;
    let world = World::new(&space, Registry::small()).await;
    let mut operator = Operator::new(&space, "a").await;
    operator.set("--log-format", "json");
    (space, world, operator)
}

/// The lines of a log. What is no JSON fails.
fn lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Every pod of the namespace with the lines of its log.
async fn workers(space: &Space) -> Vec<(Pod, Vec<Value>)> {
    let mut logs = Vec::new();
    for pod in space.all::<Pod>().await {
        let log = space.pods().logs(&pod.name_any(), &LogParams::default()).await.expect("the log of a pod");
        logs.push((pod, lines(&log)));
    }
    logs
}

/// Every attempt of a tree, by the kind of work and the object that holds its ledger.
async fn attempts(space: &Space, task: &CollectTask) -> Vec<(&'static str, String, Attempt)> {
    let status = task.status.as_ref().expect("the task has a status");
    let of = |work, attempts: Option<&Vec<Attempt>>| {
        let named = |attempt: &Attempt| (work, task.name_any(), attempt.clone());
        attempts.into_iter().flatten().map(named).collect::<Vec<_>>()
    };
    let mut all = of("plan", status.plan.as_ref().map(|plan| &plan.attempts));
    all.extend(of("commit", status.commit.as_ref().map(|commit| &commit.attempts)));
    for shard in space.all::<CollectShard>().await {
        let listed = shard.status.clone().unwrap_or_default().attempts;
        all.extend(listed.into_iter().map(|attempt| ("collect", shard.name_any(), attempt)));
    }
    all
}

fn is_of(span: &Span, work: &str, owner: &str, n: i32) -> bool {
    let said = |name: &str| span.attributes.get(name).and_then(Value::as_str);
    let name = if work == "collect" { "attempt" } else { work };
    span.name == name
        && said("shard").or(said("task")) == Some(owner)
        && span.attributes.get("attempt") == Some(&n.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_and_workers_tell_of_a_run_in_one_trace() {
    let (space, world, mut operator) = stage("trace").await;
    let receiver = Receiver::start(&space).await;
    operator.set_variable(ENDPOINT, &receiver.url);
    operator.go().await;
    // The first request for villages fails, and with it the attempt that sent it.
    let first = When { prefix: "/api/districts".into(), first: Some(1), ..When::default() };
    world.set_source(Options::faults([Effect::Status { code: 500, retry_after_seconds: None }.when(first)]));
    let mut spec = world.villages("villages");
    spec["source"]["http"]["retry"] = json!({"maxAttempts": 1});
    space.create("villages", spec).await;
    let task = space.until_over("villages", SOON).await;
    assert_eq!(phase(&task), Some(&Phase::Succeeded), "{:?}", task.status);
    let trace =
        task.status.as_ref().and_then(|status| status.trace_id.clone()).expect("the root's status names the trace");

    let attempts = attempts(&space, &task).await;
    assert!(attempts.iter().any(|(_, _, attempt)| attempt.outcome == Some(Outcome::Retryable)), "{attempts:?}");
    let missing = |spans: &[Span]| {
        let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
        let has = |name: &str, parent: &str| spans.iter().any(|span| span.name == name && span.parent == parent);
        let mut missing: Vec<String> = Vec::new();
        if !has("run", "") {
            missing.push("the span of the run".into());
        }
        for (work, owner, attempt) in &attempts {
            match spans.iter().find(|span| is_of(span, work, owner, attempt.n)) {
                None => missing.push(format!("{work} attempt {} of {owner}", attempt.n)),
                Some(own) if !has("worker", &own.id) => missing.push(format!("the worker of {work} {owner}")),
                Some(_) => {}
            }
        }
        let orphans = spans.iter().filter(|span| !span.parent.is_empty() && !ids.contains(&span.parent));
        missing.extend(orphans.map(|span| format!("the parent of {} {}", span.service, span.name)));
        missing
    };
    let spans = receiver.until(Duration::from_secs(30), missing).await;

    assert_spans(&spans, &trace, &attempts);
    assert_worker_lines(&space, &trace).await;
    assert_operator_lines(&operator, &trace);
    let (_, metrics) = http::get(&operator.http, "/metrics").await.expect("metrics");
    assert!(metrics.lines().any(|line| line == "collect_trace_spans_lost_total 0.0"), "nothing was lost");
    assert!(operator.terminate().await.success());
    collect_e2e::figure("spans of a small tree", spans.len());
}

fn assert_spans(spans: &[Span], trace: &str, attempts: &[(&'static str, String, Attempt)]) {
    let traces: BTreeSet<_> = spans.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!(traces, BTreeSet::from([trace]), "one trace for operator and workers");
    let ids: BTreeSet<_> = spans.iter().map(|span| span.id.as_str()).collect();
    assert_eq!(ids.len(), spans.len(), "every span came once");
    let services: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
    assert_eq!(services, BTreeSet::from(["collect-operator", "collect-worker"]));
    let roots: Vec<_> = spans.iter().filter(|span| span.parent.is_empty()).collect();
    assert_eq!(roots.len(), 1, "{roots:?}");
    assert_eq!((roots[0].name.as_str(), &roots[0].attributes["phase"]), ("run", &json!("Succeeded")));

    for (work, owner, attempt) in attempts {
        let own = spans.iter().find(|span| is_of(span, work, owner, attempt.n)).expect("it was waited for");
        let outcome = attempt.outcome.as_ref().map(ToString::to_string);
        assert_eq!(own.attributes.get("outcome").and_then(Value::as_str), outcome.as_deref(), "{own:?}");
        assert_eq!(
            own.attributes.get("exit_code").and_then(Value::as_i64),
            attempt.exit_code.map(i64::from),
            "{own:?}"
        );
        for name in ["k8s.pod.name", "k8s.node.name", "reason"] {
            assert!(own.attributes.contains_key(name), "{name}: {own:?}");
        }
        assert_eq!(own.is_error, attempt.outcome == Some(Outcome::Retryable), "{own:?}");
        assert_eq!(own.parent, roots[0].id);
        let worker =
            spans.iter().find(|span| span.parent == own.id && span.name == "worker").expect("it was waited for");
        assert_eq!(worker.service, "collect-worker");
        assert!(own.time.0 <= worker.time.0 && worker.time.1 <= own.time.1, "{own:?} spans {worker:?}");
        assert_eq!(worker.attributes["exit_code"], json!(attempt.exit_code), "{worker:?}");
        if attempt.outcome == Some(Outcome::Succeeded) {
            let stages: BTreeSet<_> =
                spans.iter().filter(|span| span.parent == worker.id).map(|span| span.name.as_str()).collect();
            let expected: &[&str] = match *work {
                "collect" => &["prepare", "adopt", "item", "commit"],
                "plan" => &["claim", "walk", "total", "hand over"],
                _ => &["manifests", "list", "remove", "move current", "prune"],
            };
            assert_eq!(stages, expected.iter().copied().collect(), "stages of {work} {owner}");
        }
    }
    let records: i64 =
        spans.iter().filter(|span| span.name == "item").filter_map(|span| span.attributes["records"].as_i64()).sum();
    let run = roots[0].attributes["records"].as_i64();
    assert_eq!(run, Some(records), "the items' records are the run's");
    assert!(records > 0);

    let passes: Vec<_> = spans.iter().filter(|span| span.name == "reconcile").collect();
    assert!(!passes.is_empty());
    for pass in &passes {
        assert_eq!(pass.parent, roots[0].id);
        let did = pass.attributes.get("writes").and_then(Value::as_i64).unwrap_or(0) > 0
            || pass.attributes.contains_key("error");
        assert!(did, "a pass that did nothing is not exported: {pass:?}");
    }
    let validations: Vec<_> = spans.iter().filter(|span| span.name == "validation").collect();
    assert!(validations.iter().any(|span| span.attributes.get("verdict") == Some(&json!("Pass"))), "{validations:?}");
}

async fn assert_worker_lines(space: &Space, trace: &str) {
    let workers = workers(space).await;
    assert!(!workers.is_empty());
    for (pod, lines) in workers {
        assert!(lines.len() >= 2, "{} says when its work begins and ends", pod.name_any());
        for line in &lines {
            let label = |name: &str| pod.labels().get(name).map(|text| json!(text));
            let expected = BTreeMap::from([
                ("trace_id", Some(json!(trace))),
                ("namespace", Some(json!(space.name))),
                ("root", Some(json!("villages"))),
                ("task", label(labels::TASK)),
                ("shard", label(labels::SHARD)),
                ("attempt", pod.labels().get(labels::ATTEMPT).and_then(|n| n.parse::<i64>().ok()).map(Value::from)),
            ]);
            let said = expected.keys().map(|name| (*name, line.get(*name).cloned())).collect();
            assert_eq!(expected, said, "{line}");
        }
    }
}

fn assert_operator_lines(operator: &Operator, trace: &str) {
    let lines = lines(&operator.log());
    let names_the_task = |line: &&Value| {
        line.as_object()
            .into_iter()
            .flatten()
            .any(|(_, value)| value.as_str().is_some_and(|text| text.starts_with("villages")))
    };
    let about: Vec<_> = lines.iter().filter(names_the_task).collect();
    assert!(about.len() > 20, "the operator says what it does: {}", about.len());
    for line in about {
        assert_eq!(line["trace_id"], json!(trace), "{line}");
        assert_eq!((&line["root"], line["task"].is_string()), (&json!("villages"), true), "{line}");
    }
    let start = lines.iter().find(|line| line["message"] == "the operator starts").expect("it says that it starts");
    assert_eq!(start.get("trace_id"), None, "before a run is known there is no trace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_takes_nothing_holds_nothing_up() {
    let (space, world, mut operator) = stage("no-trace").await;
    // Connections to it are taken by the kernel, and nobody ever answers.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let dead =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("there is a free port");
    for (name, address) in [("deaf", deaf.local_addr().expect("it has an address")), ("dead", dead)] {
        operator.set_variable(ENDPOINT, &format!("http://{address}"));
        operator.go().await;
        space.create(name, world.villages(name)).await;
        let task = space.until_over(name, SOON).await;
        assert_eq!(phase(&task), Some(&Phase::Succeeded), "{:?}", task.status);
        for (pod, lines) in workers(&space)
            .await
            .into_iter()
            .filter(|(pod, _)| pod.labels().get(labels::ROOT).is_some_and(|root| root == name))
        {
            assert_ends_soon_after_its_work(&pod, &lines);
        }
        until_spans_are_lost(&operator).await;
        assert!(operator.terminate().await.success());
    }
    let complaints = lines(&operator.log());
    let complaints = complaints
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|text| text.starts_with("spans are lost")));
    let count = complaints.count();
    assert!((1..=2 + SOON.as_secs() as usize / 30).contains(&count), "once a minute for each start: {count}");
}

/// Waits until the operator counts spans that the endpoint did not take.
async fn until_spans_are_lost(operator: &Operator) {
    let counts = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let (_, metrics) = http::get(&operator.http, "/metrics").await.expect("metrics");
            let lost = metrics
                .lines()
                .find_map(|line| line.strip_prefix("collect_trace_spans_lost_total ")?.parse::<f64>().ok());
            if lost.expect("the metric is always told") > 0.0 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), counts).await.expect("what the endpoint does not take is counted");
}

/// Its process is gone at most two seconds after it has said that the work ended; the kubelet's times are whole seconds.
fn assert_ends_soon_after_its_work(pod: &Pod, lines: &[Value]) {
    let ended = lines.iter().find(|line| line["message"] == "the work ended").expect("it says so");
    let said: Timestamp = ended["timestamp"].as_str().and_then(|text| text.parse().ok()).expect("a time");
    let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first()?.state.clone());
    let gone = status.and_then(|state| state.terminated?.finished_at).expect("its container has ended").0;
    let stayed = gone.duration_since(said).as_secs_f64();
    assert!(stayed < 3.0, "{} stayed for {stayed} s", pod.name_any());
}

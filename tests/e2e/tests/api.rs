//! What the API server accepts and refuses, and what it says: every rule and bound of the three kinds, against the real one.
//!
//! Needs a control plane only. The tables hold one row a case; a case that fails does not hide the others.

use std::collections::BTreeSet;

use collect_e2e::{
    Cluster, Node, Space,
    cases::{
        Then::{self, Accept, Refuse},
        bounds, child, creations, object, report_spec, samples, shard_spec, smallest, task, updates, walk,
    },
    cluster,
};
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};

fn api_cluster() -> &'static Cluster {
    Cluster::shared("e2e-api", Node::None).expect("a control plane needs nothing that could be missing")
}

// ---------------------------------------------------------------------------------------------------------------------
// Requests as kubectl makes them: unknown fields are errors, and nothing is kept (dry run) unless a test needs it.

async fn send(client: &Client, method: Method, path: &str, query: &str, body: &Value) -> Result<Value, String> {
    let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder()
        .method(method)
        .uri(format!("/apis/collect.dev/v1alpha1/namespaces/{path}?fieldValidation=Strict{query}"))
        .header("content-type", content)
        .body(serde_json::to_vec(body).unwrap())
        .unwrap();
    client.request::<Value>(request).await.map_err(|error| match error {
        kube::Error::Api(status) => status.message,
        other => panic!("{path}: {other}"),
    })
}

fn plural(kind: &str) -> String {
    format!("{}s", kind.to_lowercase())
}

async fn try_create(space: &Space, object: &Value) -> Result<Value, String> {
    let path = format!("{}/{}", space.name, plural(object["kind"].as_str().unwrap()));
    send(&space.client, Method::POST, &path, "&dryRun=All", object).await
}

async fn create(space: &Space, object: &Value) -> Value {
    let path = format!("{}/{}", space.name, plural(object["kind"].as_str().unwrap()));
    send(&space.client, Method::POST, &path, "", object).await.unwrap_or_else(|error| panic!("{object}: {error}"))
}

async fn try_replace(space: &Space, object: &Value) -> Result<Value, String> {
    let name = object["metadata"]["name"].as_str().unwrap();
    let path = format!("{}/{}/{name}", space.name, plural(object["kind"].as_str().unwrap()));
    send(&space.client, Method::PUT, &path, "&dryRun=All", object).await
}

/// What is wrong with an answer, if anything.
fn verdict(says: &str, then: Then, answer: &Result<Value, String>) -> Option<String> {
    match (then, answer) {
        (Accept, Ok(_)) => None,
        (Accept, Err(message)) => Some(format!("{says}: should be accepted, but: {message}")),
        (Refuse(expected), Err(message)) if message.contains(expected) => None,
        (Refuse(expected), Err(message)) => Some(format!("{says}: should say `{expected}`, but says: {message}")),
        (Refuse(expected), Ok(_)) => Some(format!("{says}: should be refused with `{expected}`, but is accepted")),
    }
}

fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn creates_are_accepted_or_refused_with_a_message() {
    let space = Space::new(api_cluster(), "creates").await;
    let mut wrong = Vec::new();
    for (says, kind, name, spec, then) in creations() {
        let answer = try_create(&space, &object(kind, &name, &spec)).await;
        wrong.extend(verdict(says, then, &answer));
    }
    assert_none(wrong);
}

#[tokio::test]
async fn updates_are_accepted_or_refused_with_a_message() {
    let space = Space::new(api_cluster(), "updates").await;
    let mut wrong = Vec::new();
    for (i, (says, kind, before, after, then)) in updates().into_iter().enumerate() {
        let name = format!("case-{i}");
        let stored = create(&space, &object(kind, &name, &before)).await;
        let mut changed = object(kind, &name, &after);
        changed["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        wrong.extend(verdict(says, then, &try_replace(&space, &changed).await));
    }
    assert_none(wrong);
}

/// A rule that no row breaks is a rule that nobody has seen working.
#[test]
fn every_rule_has_a_row_that_breaks_it() {
    let refused: BTreeSet<&str> = creations()
        .iter()
        .map(|row| row.4)
        .chain(updates().iter().map(|row| row.4))
        .filter_map(|then| if let Refuse(message) = then { Some(message) } else { None })
        .collect();
    let mut rules = 0;
    let mut unseen = Vec::new();
    for crd in cluster::crds() {
        walk(&mut String::new(), &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut |path, schema| {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                rules += 1;
                let message = rule["message"].as_str().expect("every rule has a message");
                if !refused.contains(message) {
                    unseen.push(format!("{path}: {message}"));
                }
            }
        });
    }
    assert!(rules > 25, "only {rules} rules were found");
    assert_none(unseen);
}

#[tokio::test]
async fn every_bound_is_kept_by_the_api_server() {
    let space = Space::new(api_cluster(), "bounds").await;
    let samples = samples();
    let mut wrong = Vec::new();
    for (kind, spec) in &samples {
        let answer = try_create(&space, &object(kind, "sample", spec)).await;
        wrong.extend(verdict(&format!("sample {spec}"), Accept, &answer));
    }
    assert_none(wrong);

    let (cases, unused) = bounds(&cluster::crds());
    assert!(unused.is_empty(), "add these fields to the samples: {unused:?}");
    assert!(cases.len() > 150, "only {} bounds were found", cases.len());
    let mut wrong = Vec::new();
    for (kind, spec, path, says) in &cases {
        let field = field_path(path);
        match try_create(&space, &object(kind, "sample", spec)).await {
            Ok(_) => wrong.push(format!("{kind} {field}: `{says}` was expected, but it is accepted")),
            Err(message) if message.contains(says) && message.contains(&field) => {}
            Err(message) => wrong.push(format!("{kind} {field}: `{says}` was expected: {message}")),
        }
    }
    assert_none(wrong);
    collect_e2e::figure("bounds of the schema tried", cases.len());
}

/// `/decompose/levels/0/name` as API servers write it: `spec.decompose.levels[0].name`.
fn field_path(pointer: &str) -> String {
    pointer.split('/').skip(1).fold("spec".to_owned(), |path, step| match step {
        "0" => format!("{path}[0]"),
        _ => format!("{path}.{step}"),
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// What a person does with kubectl.

#[tokio::test]
async fn kubectl_explains_every_kind() {
    let cluster = api_cluster();
    let explain = |what: &str| cluster::run(cluster.kubectl().args(["explain", what]));
    let decompose = explain("collecttask.spec.decompose");
    assert!(decompose.contains("How the work is split") && decompose.contains("levels\t<[]Object>"), "{decompose}");
    let url = explain("ct.spec.source.http.url");
    assert!(url.contains("Base URL, http or https") && url.contains("<string>"), "{url}");
    let http = explain("ct.spec.source.http");
    assert!(http.contains("url\t<string> -required-"), "{http}");
    let shard = explain("collectshard.status.attempts.outcome");
    assert!(shard.contains("How it ended"), "{shard}");
    let report = explain("vr.status.counts");
    assert!(report.contains("Records that the source says it holds"), "{report}");
    for kind in ["collecttask", "collectshard", "validationreport"] {
        let text = explain(kind);
        let description =
            text.split("DESCRIPTION:").nth(1).and_then(|rest| rest.split("FIELDS:").next()).unwrap_or_default().trim();
        assert!(description.len() > 40 && !description.contains("<empty>"), "{kind} is described: {text}");
    }
}

#[tokio::test]
async fn kubectl_applies_the_definitions_and_keeps_their_words() {
    let cluster = api_cluster();
    // The files themselves, read by kubectl's YAML, not by ours: an unquoted `n` or `on` would become a boolean there.
    let folder = cluster::repository().join("crds");
    let applied = cluster::run(
        cluster.kubectl().args(["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f"]).arg(folder),
    );
    assert_eq!(applied.lines().count(), 3, "{applied}");
}

#[tokio::test]
async fn short_names_the_category_and_field_selectors_work() {
    let space = Space::new(api_cluster(), "names").await;
    for (name, spec) in [
        ("running", task(&[("/desiredState", json!("Running"))])),
        ("paused", task(&[("/desiredState", json!("Paused"))])),
        ("villages-44", child(&[])),
    ] {
        create(&space, &object("CollectTask", name, &spec)).await;
    }
    create(&space, &object("CollectShard", "villages-44-0", &shard_spec())).await;
    create(&space, &object("ValidationReport", "villages-44-r1", &report_spec())).await;
    write_status(&space, "collecttasks/running", json!({"phase": "Running"})).await;
    write_status(&space, "collectshards/villages-44-0", json!({"phase": "Succeeded"})).await;
    write_status(&space, "validationreports/villages-44-r1", json!({"verdict": "Pass"})).await;

    let names = |args: &str| {
        let text = space.kubectl(&format!("get {args} -o name"));
        text.lines().map(|line| line.split('/').nth(1).unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    // A short name that a built-in kind has too lists that kind instead of ours.
    let shorts: Vec<String> = cluster::crds()
        .iter()
        .flat_map(|crd| crd["spec"]["names"]["shortNames"].as_array().cloned().unwrap_or_default())
        .map(|short| short.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(shorts.len(), 3, "each kind has a short name");
    let mut listed: Vec<BTreeSet<String>> = shorts.iter().map(|short| names(short)).collect();
    listed.sort();
    assert_eq!(
        listed,
        [set(&["paused", "running", "villages-44"]), set(&["villages-44-0"]), set(&["villages-44-r1"])],
        "by {shorts:?}"
    );
    assert_eq!(names(&shorts.join(",")).len(), 5);
    assert_eq!(names("collect").len(), 5, "the category holds all kinds");
    assert_eq!(names("ct --field-selector spec.desiredState=Paused"), set(&["paused"]));
    assert_eq!(names("ct --field-selector spec.partOf.root=villages"), set(&["villages-44"]));
    assert_eq!(names("ct --field-selector status.phase=Running"), set(&["running"]));
    assert_eq!(names("collectshards --field-selector spec.task=villages-44"), set(&["villages-44-0"]));
    assert_eq!(names("collectshards --field-selector status.phase=Failed"), set(&[]));
    assert_eq!(names("vr --field-selector spec.task=villages-44"), set(&["villages-44-r1"]));
    assert_eq!(names("vr --field-selector status.verdict=Fail"), set(&[]));
}

async fn write_status(space: &Space, object: &str, status: Value) -> Value {
    let path = format!("{}/{object}/status", space.name);
    send(&space.client, Method::PATCH, &path, "", &json!({"status": status}))
        .await
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test]
async fn columns_answer_how_is_it_going_within_a_hundred_characters() {
    let space = Space::new(api_cluster(), "columns").await;
    create(&space, &object("CollectTask", "villages", &smallest())).await;
    create(&space, &object("CollectShard", "villages-44-4403-0", &shard_spec())).await;
    create(&space, &object("ValidationReport", "villages-r1", &report_spec())).await;
    let summary =
        json!({"progress": "63%", "shards": "112/180", "records": "391204/620573", "rate": "2.1k/s", "match": "100%"});
    write_status(
        &space,
        "collecttasks/villages",
        json!({"phase": "Running", "summary": summary, "message": "collects",
        "shards": {"total": 180, "pending": 60, "running": 8, "succeeded": 112, "failed": 7, "cancelled": 0}}),
    )
    .await;
    write_status(
        &space,
        "collectshards/villages-44-4403-0",
        json!({"phase": "Succeeded", "attempt": 1,
        "summary": {"progress": "100%", "records": "808/808", "rate": "2.1k/s"}}),
    )
    .await;
    write_status(
        &space,
        "validationreports/villages-r1",
        json!({"verdict": "Pass", "level": "counts",
        "counts": {"source": 620_573, "collected": 620_573, "delta": 0, "duplicates": 0, "rejected": 0}}),
    )
    .await;

    let words = |args: &str| {
        let text = space.kubectl(args);
        assert!(text.lines().all(|line| line.trim_end().len() <= 100), "{text}");
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let tasks = words("get ct villages");
    assert_eq!(tasks[0], ["NAME", "PHASE", "PROGRESS", "SHARDS", "RECORDS", "FAILED", "MATCH", "AGE"]);
    assert_eq!(tasks[1][..7], ["villages", "Running", "63%", "112/180", "391204/620573", "7", "100%"]);
    let shards = words("get collectshards");
    assert_eq!(shards[0], ["NAME", "PHASE", "ATTEMPT", "PROGRESS", "RECORDS", "RATE", "AGE"]);
    assert_eq!(shards[1][..6], ["villages-44-4403-0", "Succeeded", "1", "100%", "808/808", "2.1k/s"]);
    let reports = words("get vr");
    assert_eq!(reports[1][..6], ["villages-r1", "counts", "Pass", "620573", "620573", "0"]);
}

#[tokio::test]
async fn a_task_is_scaled_by_its_subresource() {
    let space = Space::new(api_cluster(), "scale").await;
    for (name, spec) in [("said", task(&[("/parallelism", json!(4))])), ("unsaid", smallest())] {
        create(&space, &object("CollectTask", name, &spec)).await;
        space.kubectl(&format!("scale ct/{name} --replicas=7"));
        assert_eq!(space.tasks().get(name).await.unwrap().spec.parallelism, Some(7), "{name}");
    }
    write_status(&space, "collecttasks/said", json!({"workers": 3, "selector": "collect.dev/root=said"})).await;
    let scale = space.tasks().get_scale("said").await.unwrap();
    let status = scale.status.expect("the scale has a status");
    assert_eq!((scale.spec.and_then(|spec| spec.replicas), status.replicas), (Some(7), 3));
    assert_eq!(status.selector.as_deref(), Some("collect.dev/root=said"));
}

#[tokio::test]
async fn a_status_of_a_newer_version_survives() {
    let space = Space::new(api_cluster(), "status").await;
    create(&space, &object("CollectTask", "a", &smallest())).await;
    create(&space, &object("CollectShard", "a-0", &shard_spec())).await;
    create(&space, &object("ValidationReport", "a-r1", &report_spec())).await;
    let task = write_status(&space, "collecttasks/a", json!({"phase": "Hibernating"})).await;
    assert_eq!(task["status"]["phase"], "Hibernating");
    assert_eq!(task["spec"], smallest(), "a status write leaves the spec alone");
    let attempt =
        json!({"number": 1, "authorisedBy": "x", "authorisedAt": "2026-01-01T00:00:00Z", "outcome": "Teleported"});
    let shard = write_status(&space, "collectshards/a-0", json!({"phase": "Hibernating", "attempts": [attempt]})).await;
    assert_eq!(shard["status"]["attempts"][0]["outcome"], "Teleported");
    let report = write_status(&space, "validationreports/a-r1", json!({"verdict": "Maybe", "level": "soul"})).await;
    assert_eq!(report["status"]["verdict"], "Maybe");
    // And is read by this version's types as what it is.
    let read = space.tasks().get("a").await.unwrap().status.unwrap().phase.unwrap();
    assert_eq!(read.as_str(), "Hibernating");
    assert!(!read.is_terminal());
}

#[tokio::test]
async fn a_spec_write_leaves_the_status_alone() {
    let space = Space::new(api_cluster(), "spec").await;
    create(&space, &object("CollectTask", "a", &smallest())).await;
    write_status(&space, "collecttasks/a", json!({"phase": "Running"})).await;
    let path = format!("{}/collecttasks/a", space.name);
    let patch = json!({"spec": {"parallelism": 2}, "status": {"phase": "Succeeded"}});
    let task = send(&space.client, Method::PATCH, &path, "", &patch).await.unwrap();
    assert_eq!((task["spec"]["parallelism"].as_i64(), task["status"]["phase"].as_str()), (Some(2), Some("Running")));
    assert_eq!(task["metadata"]["generation"], 2);
}

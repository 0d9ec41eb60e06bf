//! Objects as the operator writes them, for the tests of what is shown.

use collect_api::{CollectShard, CollectTask, ValidationReport};
use jiff::Timestamp;
use serde_json::{Value, json};

/// A minute after everything began.
pub fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().unwrap()
}

/// A task, with its parent where it is a child; begun a minute ago.
pub fn task(name: &str, parent: Option<&str>, phase: &str, progress: i32, records: (i64, Option<i64>)) -> CollectTask {
    let over = ["Succeeded", "PartiallySucceeded", "Collected", "Failed", "Cancelled"].contains(&phase);
    let mut object = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1, "labels": {}},
        "spec": {},
        "status": {
            "observedGeneration": 1,
            "phase": phase,
            "run": 1,
            "progress": progress,
            "records": {"collected": records.0},
            "startedAt": "2026-01-01T00:00:00Z",
        },
    });
    if let Some(expected) = records.1 {
        object["status"]["records"]["expected"] = json!(expected);
    }
    if over {
        object["status"]["finishedAt"] = json!("2026-01-01T00:00:50Z");
    }
    if let Some(parent) = parent {
        let value = name.rsplit('-').next().unwrap();
        object["metadata"]["ownerReferences"] = owner("CollectTask", parent);
        object["metadata"]["labels"] = json!({"collect.dev/root": name.split('-').next().unwrap()});
        let root = name.split('-').next().unwrap();
        object["spec"]["partOf"] = json!({
            "root": root, "rootUid": format!("uid-{root}"), "run": 1,
            "path": [{"level": "province", "value": value, "label": if value == "44" { "广东省" } else { "北京市" }}],
        });
    }
    serde_json::from_value(object).unwrap()
}

/// The same task with more in its status.
pub fn with_status(task: CollectTask, more: Value) -> CollectTask {
    let mut object = serde_json::to_value(task).unwrap();
    for (key, value) in more.as_object().unwrap() {
        object["status"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

/// A shard `<task>-<index>`; a running one reported 30 s after its start.
pub fn shard(name: &str, phase: &str, index: i32, records: i64, expected: Option<i64>) -> CollectShard {
    let (task, _) = name.rsplit_once('-').unwrap();
    let mut attempt = json!({"number": 1, "authorisedBy": "op", "authorisedAt": "2026-01-01T00:00:00Z"});
    let mut status = json!({"phase": phase, "attempt": 1});
    match phase {
        "Running" => {
            attempt["node"] = json!("node-1");
            status["progress"] = json!({"attempt": 1, "seq": 1, "stage": "reading", "records": records, "bytes": 0, "at": "2026-01-01T00:00:30Z"});
            if let Some(expected) = expected {
                status["progress"]["expected"] = json!(expected);
            }
        }
        "Succeeded" => {
            attempt["outcome"] = json!("Succeeded");
            attempt["finishedAt"] = json!("2026-01-01T00:00:20Z");
            attempt["peakMemoryBytes"] = json!(64 << 20);
            attempt["cpuSeconds"] = json!(1.5);
            status["result"] = json!({"records": records});
        }
        "Failed" => {
            attempt["outcome"] = json!("Permanent");
            attempt["reason"] = json!("SourceRefused");
            attempt["message"] = json!("the source answered 403; give it a token that may read");
            attempt["finishedAt"] = json!("2026-01-01T00:00:20Z");
            status["message"] = attempt["message"].clone();
        }
        _ => {}
    }
    status["attempts"] = json!([attempt]);
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": format!("uid-{name}"),
            "ownerReferences": owner("CollectTask", task),
            "labels": {"collect.dev/root": name.split('-').next().unwrap(), "collect.dev/task": task},
        },
        "spec": {"task": task, "rootUid": "uid-villages", "run": 1, "index": index, "slice": {"items": []}},
        "status": status,
    }))
    .unwrap()
}

/// A report about a run of a task.
pub fn report(task: &str, run: i64, verdict: &str) -> ValidationReport {
    serde_json::from_value(json!({
        "metadata": {"name": format!("{task}-r{run}"), "namespace": "default"},
        "spec": {"task": task, "taskUid": format!("uid-{task}"), "rootUid": "uid-villages", "run": run, "planDigest": "d", "level": "counts"},
        "status": {"verdict": verdict, "level": "counts", "counts": {"source": 1000, "collected": 999, "delta": -1}},
    }))
    .unwrap()
}

fn owner(kind: &str, name: &str) -> Value {
    json!([{"apiVersion": "collect.dev/v1alpha1", "kind": kind, "name": name, "uid": format!("uid-{name}"), "controller": true}])
}

//! Each cause with the evidence that shows it, and without.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{
    evidence::{Evidence, Operator},
    findings::{CHECKS, Finding, Weight, diagnose},
};
use crate::{output::Style, samples};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// A task that runs, a shard whose worker reported three seconds ago, an operator in order.
struct World {
    task: Value,
    parent: Option<Value>,
    shards: Vec<Value>,
    jobs: Vec<Value>,
    pods: Vec<Value>,
    events: Vec<Value>,
    dependencies: BTreeMap<String, Option<Value>>,
    operators: Option<Vec<Value>>,
    lease: Value,
    endpoints: Option<usize>,
    other: Vec<String>,
    orphan: bool,
}

fn attempt(number: i32) -> Value {
    json!({"number": number, "authorisedBy": "me", "authorisedAt": "2026-01-01T00:00:30Z"})
}

fn failed(number: i32, outcome: &str, reason: &str, message: &str, retry_after: Option<&str>) -> Value {
    let mut attempt = attempt(number);
    attempt["outcome"] = json!(outcome);
    attempt["reason"] = json!(reason);
    attempt["message"] = json!(message);
    attempt["finishedAt"] = json!("2026-01-01T00:00:50Z");
    if let Some(at) = retry_after {
        attempt["retryAfter"] = json!(at);
    }
    attempt
}

fn condition(type_: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:40Z"})
}

impl World {
    fn new() -> Self {
        let job = json!({
            "metadata": {"name": "villages-0-x-a1", "namespace": "default", "uid": "job-1", "creationTimestamp": "2026-01-01T00:00:30Z",
                "labels": {"collect.dev/ledger-uid": "shard-0", "collect.dev/attempt": "1"},
                "ownerReferences": [{"apiVersion": "collect.dev/v1alpha1", "kind": "CollectShard", "name": "villages-0", "uid": "shard-0", "controller": true}]},
        });
        Self {
            task: json!({
                "metadata": {"name": "villages", "namespace": "default", "uid": "uid-villages", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"source": {"http": {"url": "http://x.example/api"}}},
                "status": {"observedGeneration": 1, "run": 1, "phase": "Running", "message": "1 of 4 shards done, 1 running", "plan": {"sealed": 1}},
            }),
            parent: None,
            shards: vec![json!({
                "metadata": {"name": "villages-0", "namespace": "default", "uid": "shard-0"},
                "spec": {"task": "villages", "rootUid": "uid-villages", "run": 1, "index": 0, "slice": {"items": []}},
                "status": {"phase": "Running", "attempt": 1, "attempts": [attempt(1)],
                    "progress": {"attempt": 1, "seq": 1, "stage": "reading", "records": 5, "bytes": 50, "at": "2026-01-01T00:00:57Z"}},
            })],
            pods: vec![pod("Running", json!({"running": {}}), json!([]))],
            jobs: vec![job],
            events: vec![],
            dependencies: BTreeMap::new(),
            operators: Some(vec![json!({
                "metadata": {"name": "collect-operator", "namespace": "collect-system"},
                "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": [{"name": "operator", "args": ["run"]}]}}},
                "status": {"readyReplicas": 1},
            })]),
            lease: json!({"spec": {"holderIdentity": "a", "renewTime": "2026-01-01T00:00:55.000000Z"}}),
            endpoints: Some(1),
            other: vec![],
            orphan: false,
        }
    }

    fn evidence(self) -> Evidence {
        let line = std::iter::once(self.task).chain(self.parent).map(of).collect();
        let operator = |deployment: Value| Operator {
            deployment: of(deployment),
            lease: Some(of(self.lease.clone())),
            endpoints: self.endpoints,
        };
        Evidence {
            now: samples::now(),
            line,
            is_orphan: self.orphan,
            shards: self.shards.into_iter().map(of).collect(),
            jobs: self.jobs.into_iter().map(of).collect(),
            pods: self.pods.into_iter().map(|pod| Arc::new(of::<Pod>(pod))).collect(),
            warnings: self.events.into_iter().map(of).collect(),
            dependencies: self.dependencies.into_iter().map(|(name, task)| (name, task.map(of))).collect(),
            operators: self.operators.map(|all| all.into_iter().map(operator).collect()),
            other_definitions: Some(self.other),
            unreadable: vec![],
        }
    }

    fn set(&mut self, pointer: &str, value: Value) {
        set(&mut self.task, pointer, value);
    }
}

fn set(object: &mut Value, pointer: &str, value: Value) {
    let (above, last) = pointer.rsplit_once('/').unwrap();
    let mut at = object;
    for step in above.split('/').skip(1) {
        at = match at {
            Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
            other => &mut other[step],
        };
    }
    at[last] = value;
}

fn pod(phase: &str, state: Value, conditions: Value) -> Value {
    json!({
        "metadata": {"name": "villages-0-x-a1-abcde", "namespace": "default", "uid": "pod-1",
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "villages-0-x-a1", "uid": "job-1", "controller": true}]},
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": phase, "conditions": conditions,
            "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]},
    })
}

fn event(kind: &str, name: &str, reason: &str, message: &str) -> Value {
    json!({"metadata": {"name": "e"}, "involvedObject": {"kind": kind, "name": name}, "reason": reason, "message": message,
        "type": "Warning", "lastTimestamp": "2026-01-01T00:00:50Z"})
}

fn found(change: impl FnOnce(&mut World)) -> Vec<Finding> {
    let mut world = World::new();
    change(&mut world);
    diagnose(&world.evidence())
}

fn answer(change: impl FnOnce(&mut World)) -> (String, String) {
    let findings = found(change);
    (findings[0].code.clone(), findings[0].answer.clone())
}

#[test]
fn a_task_that_moves_is_said_to_move_and_nothing_else() {
    let findings = found(|_| ());
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!((findings[0].code.as_str(), findings[0].weight), ("Running", Weight::State));
    assert!(findings[0].answer.starts_with("it moves: 1 of 4 shards done"), "{findings:#?}");
    assert_eq!(findings[0].facts[1].value, "3s ago");
}

#[test]
fn every_cause_gives_its_answer() {
    type Change = fn(&mut World);
    let cases: Vec<(&str, &str, Change)> = vec![
        ("Deleting", "is being deleted; what is below it", |w| {
            set(&mut w.task, "/metadata/deletionTimestamp", json!("2026-01-01T00:00:10Z"));
        }),
        ("Deleting", "finalizers that somebody else set", |w| {
            set(&mut w.task, "/metadata/deletionTimestamp", json!("2026-01-01T00:00:10Z"));
            set(&mut w.task, "/metadata/finalizers", json!(["example.org/x"]));
        }),
        ("SecretMissing", "it is over: Failed. secret `registry`", |w| {
            w.set("/status/phase", json!("Failed"));
            w.set("/status/message", json!("secret `registry` has no key `token`; add it"));
            w.set("/status/conditions", json!([condition("Failed", "SecretMissing", "x")]));
        }),
        ("Orphaned", "its parent is gone", |w| w.orphan = true),
        ("OperatorDown", "no operator is ready", |w| {
            set(&mut w.operators.as_mut().unwrap()[0], "/status/readyReplicas", json!(0));
        }),
        ("OperatorElsewhere", "no operator looks at namespace default", |w| {
            w.set("/status", Value::Null);
            let args = json!(["run", "--namespace=other"]);
            set(&mut w.operators.as_mut().unwrap()[0], "/spec/template/spec/containers/0/args", args);
        }),
        ("NotObserved", "no operator has looked at it", |w| w.set("/status", Value::Null)),
        ("NotObserved", "there is none in this cluster", |w| {
            w.set("/status", Value::Null);
            w.operators = Some(vec![]);
        }),
        ("NotObserved", "has not taken up the last change", |w| w.set("/metadata/generation", json!(2))),
        ("Cancelled", "1 pods are still leaving", |w| w.set("/spec/desiredState", json!("Cancelled"))),
        ("Paused", "somebody set spec.desiredState", |w| w.set("/spec/desiredState", json!("Paused"))),
        ("Paused", "paused by country, a task above", |w| {
            let mut parent = w.task.clone();
            set(&mut parent, "/metadata/name", json!("country"));
            set(&mut parent, "/spec/desiredState", json!("Paused"));
            w.parent = Some(parent);
        }),
        ("DeadlineExceeded", "as long as spec.deadline allows", |w| {
            w.set("/spec/deadline", json!("1m"));
            w.set("/status/elapsedSeconds", json!(60));
        }),
        ("NameConflict", "belongs to something else", |w| {
            w.set(
                "/status/conditions",
                json!([condition("Stalled", "NameConflict", "the name a belongs to something else")]),
            );
        }),
        ("NewRun", "run 2 waits until everything of run 1 is gone", |w| {
            w.set("/spec/run", json!(2));
            w.set("/status/conditions", json!([condition("Reconciling", "NewRun", "x")]));
        }),
        ("WaitingForDependency", "waits for CollectTask other, which is Running", |w| {
            w.shards.clear();
            w.set("/spec/dependsOn", json!([{"name": "other"}]));
            w.set("/status/phase", json!("Pending"));
            w.set("/status/message", json!("waits for CollectTask other, which is Running"));
            w.set("/status/conditions", json!([condition("Reconciling", "WaitingForDependency", "x")]));
            let other = samples::task("other", None, "Running", 5, (1, None));
            w.dependencies.insert("other".into(), Some(serde_json::to_value(other).unwrap()));
        }),
        ("DependencyCycle", "wait for each other", |w| {
            w.set("/spec/dependsOn", json!([{"name": "other"}]));
            w.set("/status/message", json!("tasks wait for each other: a -> b -> a"));
            w.set("/status/conditions", json!([condition("Stalled", "DependencyCycle", "x")]));
        }),
        ("NoParallelism", "spec.parallelism of villages is 0", |w| {
            w.set("/spec/parallelism", json!(0));
            set(&mut w.shards[0], "/status", json!({}));
        }),
        ("JobRefused", "exceeded quota: few", |w| {
            w.jobs.clear();
            w.pods.clear();
            set(&mut w.shards[0], "/status/message", json!("jobs \"x\" is forbidden: exceeded quota: few"));
        }),
        ("JobRefused", "webhook denied", |w| {
            w.set("/status/message", json!("admission webhook denied the request"));
            w.set("/status/conditions", json!([condition("Reconciling", "JobRefused", "x")]));
        }),
        ("ImagePull", "the image can't be pulled: its pod can't start: ErrImagePull: no such image", |w| {
            let waiting = json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}});
            w.pods = vec![pod("Pending", waiting, json!([]))];
        }),
        ("NoRoom", "Insufficient cpu", |w| {
            let unscheduled =
                json!([{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient cpu"}]);
            w.pods = vec![pod("Pending", json!({}), unscheduled)];
        }),
        ("ContainerConfig", "CreateContainerConfigError", |w| {
            let waiting = json!({"waiting": {"reason": "CreateContainerConfigError", "message": "x"}});
            w.pods = vec![pod("Pending", waiting, json!([]))];
        }),
        ("PodRefused", "exceeded quota: pods", |w| {
            w.pods.clear();
            w.events = vec![event("Job", "villages-0-x-a1", "FailedCreate", "exceeded quota: pods")];
        }),
        ("Starting", "persistentvolumeclaim \"lake\" not found", |w| {
            w.pods = vec![pod("Pending", json!({"waiting": {"reason": "ContainerCreating"}}), json!([]))];
            w.events =
                vec![event("Pod", "villages-0-x-a1-abcde", "FailedMount", "persistentvolumeclaim \"lake\" not found")];
        }),
        (
            "SourceUnavailable",
            "the planner failed (SourceUnavailable): connection refused; the next attempt starts in 30s",
            |w| {
                w.shards.clear();
                w.set("/status/phase", json!("Planning"));
                let last =
                    failed(1, "Retryable", "SourceUnavailable", "connection refused", Some("2026-01-01T00:01:30Z"));
                w.set("/status/plan", json!({"attempts": [last]}));
            },
        ),
        ("SinkDenied", "the commit failed (SinkDenied)", |w| {
            w.set("/status/phase", json!("Validating"));
            w.set(
                "/status/commit",
                json!({"attempts": [failed(1, "Permanent", "SinkDenied", "no", None), attempt(2)]}),
            );
        }),
        ("HookUnavailable", "a hook failed (HookUnavailable)", |w| {
            let last = failed(1, "Retryable", "HookUnavailable", "no answer", None);
            w.set("/status/hooks", json!({"beforeStart": {"attempts": [last]}}));
        }),
        (
            "SourceLimited",
            "shard villages-0 failed (SourceLimited): come back later; the next attempt starts in 4m00s",
            |w| {
                let last = failed(1, "SourceLimited", "SourceLimited", "come back later", Some("2026-01-01T00:05:00Z"));
                set(&mut w.shards[0], "/status", json!({"phase": "Pending", "attempts": [last]}));
                w.jobs.clear();
            },
        ),
        ("HeartbeatLost", "1 workers have not been heard of for 3m30s", |w| {
            set(&mut w.shards[0], "/status/progress/at", json!("2025-12-31T23:57:30Z"));
        }),
        ("SourceSlow", "1 workers wait for the source", |w| {
            set(&mut w.shards[0], "/status/progress/at", json!("2025-12-31T23:57:30Z"));
            set(&mut w.shards[0], "/status/progress/stage", json!("waiting"));
        }),
        ("LeaseLost", "nobody renews its lease", |w| {
            w.shards.clear();
            w.lease = json!({"spec": {"holderIdentity": "a", "renewTime": "2025-12-31T23:50:00.000000Z"}});
        }),
    ];
    for (code, words, change) in &cases {
        let (found, said) = answer(change);
        assert!(found == *code && said.contains(words), "{code} {words}: {found}: {said}");
    }
}

#[test]
fn what_is_no_cause_is_told_as_a_remark() {
    type Change = fn(&mut World);
    let cases: Vec<(&str, Change)> = vec![
        ("DeadlineNear", |w| {
            w.set("/spec/deadline", json!("100s"));
            w.set("/status/elapsedSeconds", json!(95));
        }),
        ("ShardsFailed", |w| {
            let mut shard = w.shards[0].clone();
            set(&mut shard, "/metadata/name", json!("villages-1"));
            set(&mut shard, "/status", json!({"phase": "Failed", "message": "no such path"}));
            w.shards.push(shard);
        }),
        ("SourceUnavailable", |w| {
            let mut shard = w.shards[0].clone();
            set(&mut shard, "/metadata/name", json!("villages-1"));
            let last = failed(1, "Retryable", "SourceUnavailable", "x", None);
            set(&mut shard, "/status", json!({"phase": "Pending", "attempts": [last]}));
            w.shards.push(shard);
        }),
        ("NoEndpoints", |w| w.endpoints = Some(0)),
        ("DefinitionsDiffer", |w| w.other = vec!["collecttasks.collect.dev".into()]),
        ("Stragglers", |w| {
            w.set("/status/stragglers", json!([{"name": "villages-0", "medianSeconds": 5, "reason": "it is slow"}]));
        }),
    ];
    for (code, change) in cases {
        let findings = found(change);
        assert_eq!(findings[0].code, "Running", "{code}: {findings:#?}");
        let remark =
            findings.iter().find(|finding| finding.code == code).unwrap_or_else(|| panic!("{code}: {findings:#?}"));
        assert_eq!(remark.weight, Weight::Remark);
    }
}

#[test]
fn what_may_not_be_read_gives_no_answer() {
    let findings = found(|w| {
        w.set("/status", Value::Null);
        w.operators = None;
    });
    assert_eq!((findings[0].code.as_str(), findings.len()), ("NotObserved", 1), "{findings:#?}");
    assert!(!findings[0].answer.contains("none in this cluster"), "{findings:#?}");
    // A young task is given time.
    let young = answer(|w| {
        w.set("/status", Value::Null);
        w.set("/metadata/creationTimestamp", json!("2026-01-01T00:00:55Z"));
    });
    assert_eq!(young.0, "Unknown");
}

#[test]
fn a_good_end_is_no_cause() {
    for phase in ["Succeeded", "Collected", "PartiallySucceeded"] {
        let findings = found(|w| w.set("/status/phase", json!(phase)));
        assert_eq!((findings[0].weight, findings.len()), (Weight::State, 1), "{phase}: {findings:#?}");
        assert!(findings[0].next[0].ends_with("report villages"), "{findings:#?}");
    }
}

#[test]
fn a_pause_hides_what_lies_below_it_and_not_what_lies_above() {
    let both = found(|w| {
        w.set("/spec/desiredState", json!("Paused"));
        set(&mut w.operators.as_mut().unwrap()[0], "/status/readyReplicas", json!(0));
    });
    let codes: Vec<_> =
        both.iter().filter(|finding| finding.weight == Weight::Cause).map(|finding| finding.code.as_str()).collect();
    assert_eq!(codes, ["OperatorDown", "Paused"]);
}

#[test]
fn the_text_has_the_answer_first_and_says_what_was_not_looked_at() {
    let findings = found(|w| {
        w.set("/spec/desiredState", json!("Paused"));
        w.endpoints = Some(0);
    });
    let text = super::render("villages", &findings, &["events: forbidden".to_owned()], Style::PLAIN);
    assert!(text.starts_with("villages: Paused it is paused: somebody set spec.desiredState to Paused\n    CollectTask villages  spec.desiredState: Paused\n  $ kubectl collect -n default resume villages\n\nAlso found\n- "), "{text}");
    assert!(text.ends_with("\nNot looked at\n- events: forbidden\n"), "{text}");
}

#[test]
fn secrets_are_asked_for_by_their_names() {
    let findings = found(|w| {
        w.set("/status/phase", json!("Failed"));
        w.set("/status/message", json!("key `token` of secret `registry` is empty; fill it"));
        w.set("/status/conditions", json!([condition("Failed", "SecretInvalid", "x")]));
    });
    assert_eq!(
        findings[0].next,
        [
            "kubectl -n default get secret registry",
            "kubectl -n default create secret generic registry --from-literal=token=...",
            "kubectl collect -n default retry villages"
        ]
    );
}

#[test]
fn every_check_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = CHECKS.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), CHECKS.len());
}

//! What log lines and spans say of the run that a pass is about, and the spans of attempts and runs.
//!
//! Their ids are derived (`collect_core::trace`), so whoever records the end of an attempt hands its span over, whichever
//! process authorised it. Nothing here decides anything or waits for anything; what is lost in a crash stays lost.

use std::{cell::Cell, time::SystemTime};

use collect_api::{
    Attempt, CollectShard, CollectTask, CollectTaskStatus, Phase, ValidationReportStatus, labels, protocol::Origin,
};
use collect_core::{
    exit::{RetryClass, retry_class},
    trace::{self, SpanRef},
};
use collect_telemetry::{Finished, KeyValue};
use jiff::Timestamp;
use kube::{ResourceExt, runtime::controller::Action};
use tracing::{Instrument, Span, field::Empty};

use crate::{
    error::{Class, Error, chain},
    write::Object,
};

tokio::task_local! {
    /// Writes of the pass that runs.
    static WRITES: Cell<i64>;
}

/// Where an object stands in its run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    namespace: String,
    root: String,
    root_uid: String,
    run: i64,
    task: String,
    shard: Option<String>,
}

/// An object that belongs to a run.
pub trait Traced {
    /// Where it stands.
    fn scope(&self) -> Scope;
}

impl Traced for CollectTask {
    fn scope(&self) -> Scope {
        let (namespace, task) = (self.namespace().unwrap_or_default(), self.name_any());
        match &self.spec.part_of {
            Some(of) => {
                let (root, root_uid) = (of.root.clone(), of.root_uid.clone());
                Scope { namespace, root, root_uid, run: of.run, task, shard: None }
            }
            None => {
                let root_uid = self.uid().unwrap_or_default();
                Scope { namespace, root: task.clone(), root_uid, run: self.spec.run_number(), task, shard: None }
            }
        }
    }
}

impl Traced for CollectShard {
    fn scope(&self) -> Scope {
        Scope {
            namespace: self.namespace().unwrap_or_default(),
            root: self.labels().get(labels::ROOT).cloned().unwrap_or_default(),
            root_uid: self.spec.root_uid.clone(),
            run: self.spec.run,
            task: self.spec.task.clone(),
            shard: Some(self.name_any()),
        }
    }
}

impl Scope {
    fn run_ref(&self) -> SpanRef {
        trace::run(&self.root_uid, self.run)
    }

    fn attributes(self) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("namespace", self.namespace),
            KeyValue::new("root", self.root),
            KeyValue::new("run", self.run),
            KeyValue::new("task", self.task),
        ];
        attributes.extend(self.shard.map(|shard| KeyValue::new("shard", shard)));
        attributes
    }
}

/// The span of a pass over an object. It is an error's so that no log filter takes the trace id out of a line.
pub fn span<K: Object + Traced>(object: &K) -> Span {
    let scope = object.scope();
    let run = scope.run_ref();
    let span = tracing::error_span!(
        "reconcile",
        trace_id = run.trace_id(),
        namespace = scope.namespace,
        root = scope.root,
        run = scope.run,
        task = scope.task,
        shard = scope.shard,
        kind = K::KIND,
        writes = Empty,
        idle = Empty,
        error = Empty,
        otel.status_code = Empty,
    );
    collect_telemetry::adopt(&span, &run.traceparent());
    span
}

/// The same for lines about a pass that is over; it is never exported.
pub fn lines<K: Object + Traced>(object: &K) -> Span {
    let span = span(object);
    span.record("idle", true);
    span
}

/// Runs a pass in its span. One that wrote nothing and failed in nothing is not exported: most passes only look.
pub async fn pass<F: Future<Output = Result<Action, Error>>>(span: Span, pass: F) -> Result<Action, Error> {
    let own = span.clone();
    let watched = async move {
        let result = pass.await;
        match (&result, WRITES.with(Cell::get)) {
            (Ok(_), 0) => own.record("idle", true),
            (Ok(_), writes) => own.record("writes", writes),
            (Err(error), writes) => {
                if error.class() != Class::Conflict {
                    own.record("otel.status_code", "ERROR");
                }
                own.record("writes", writes).record("error", chain(error))
            }
        };
        result
    };
    WRITES.scope(Cell::new(0), watched).instrument(span).await
}

/// Notes that the pass that runs has sent a write.
pub fn wrote() {
    // What is written outside of a pass belongs to none.
    let _ = WRITES.try_with(|writes| writes.set(writes.get() + 1));
}

/// What the worker of attempt n is told, so that its lines and spans stand beside ours. `object` holds the ledger.
pub fn origin<K: Traced + ResourceExt>(object: &K, work: &str, n: i32) -> Origin {
    let scope = object.scope();
    let traceparent = attempt(object, &scope, work, n).traceparent();
    Origin { task: scope.task, shard: scope.shard, traceparent }
}

fn attempt<K: Traced + ResourceExt>(object: &K, scope: &Scope, work: &str, n: i32) -> SpanRef {
    trace::attempt(&scope.root_uid, scope.run, &object.uid().unwrap_or_default(), work, n)
}

/// Hands over the span of an attempt whose end was recorded now; it began when it was authorised. `object` holds the ledger.
pub fn attempt_ended<K: Traced + ResourceExt>(object: &K, work: &'static str, ended: &Attempt, now: Timestamp) {
    let scope = object.scope();
    let own = attempt(object, &scope, work, ended.n).traceparent();
    let parent = Some(scope.run_ref().traceparent());
    let outcome = ended.outcome.as_ref().map(ToString::to_string).unwrap_or_default();
    let is_failed = ended
        .outcome
        .as_ref()
        .is_some_and(|outcome| !matches!(retry_class(outcome), RetryClass::Done | RetryClass::Free));
    let mut attributes = scope.attributes();
    attributes.extend([KeyValue::new("work", work), KeyValue::new("attempt", i64::from(ended.n))]);
    attributes.push(KeyValue::new("outcome", outcome.clone()));
    let texts = [
        ("reason", &ended.reason),
        ("k8s.job.name", &ended.job),
        ("k8s.pod.name", &ended.pod),
        ("k8s.node.name", &ended.node),
    ];
    attributes.extend(texts.into_iter().filter_map(|(name, text)| Some(KeyValue::new(name, text.clone()?))));
    let numbers = [("exit_code", ended.exit_code.map(i64::from)), ("records", ended.records), ("bytes", ended.bytes)];
    attributes.extend(numbers.into_iter().filter_map(|(name, number)| Some(KeyValue::new(name, number?))));
    collect_telemetry::emit(Finished {
        own,
        parent,
        name: if work == "collect" { "attempt" } else { work },
        start: ended.authorised_at.0.into(),
        end: now.into(),
        attributes,
        error: is_failed.then(|| ended.message.clone().unwrap_or(outcome)),
    });
}

/// Hands over the span of a run that has just ended. A retry that takes the run up again has it end, and handed over, once more.
pub fn run_ended(task: &CollectTask, old: &CollectTaskStatus, new: &CollectTaskStatus, now: Timestamp) {
    let Some(phase) = new.phase.as_ref().filter(|phase| phase.is_terminal() && old.phase.as_ref() != Some(*phase))
    else {
        return;
    };
    let scope = task.scope();
    let own = scope.run_ref().traceparent();
    let mut attributes = scope.attributes();
    attributes.push(KeyValue::new("phase", phase.as_str().to_owned()));
    if let Some(report) = &new.report {
        attributes.push(KeyValue::new("verdict", report.verdict.as_str().to_owned()));
    }
    if let Some(records) = &new.records {
        attributes.push(KeyValue::new("records", records.collected));
    }
    let end = SystemTime::from(now);
    collect_telemetry::emit(Finished {
        own,
        parent: None,
        name: "run",
        start: new.started_at.as_ref().map_or(end, |at| at.0.into()),
        end,
        attributes,
        error: (*phase == Phase::Failed).then(|| new.message.clone().unwrap_or_default()),
    });
}

/// The span in which a comparison is written down.
pub fn validation(comparison: &ValidationReportStatus) -> Span {
    let verdict = comparison.verdict.as_ref().map(|verdict| verdict.as_str());
    let counts = comparison.counts.as_ref();
    tracing::debug_span!(
        "validation",
        verdict,
        source = counts.and_then(|counts| counts.source),
        collected = counts.map(|counts| counts.collected),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object<K: serde::de::DeserializeOwned>(value: serde_json::Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn root() -> CollectTask {
        object(json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask",
            "metadata": {"name": "villages", "namespace": "ns", "uid": "r"}, "spec": {"run": 2},
        }))
    }

    fn shard() -> CollectShard {
        object(json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "CollectShard",
            "metadata": {"name": "villages-44-3", "namespace": "ns", "uid": "s", "labels": {labels::ROOT: "villages"}},
            "spec": {"task": "villages-44", "rootUid": "r", "run": 2, "index": 3, "slice": {"items": []}},
        }))
    }

    #[test]
    fn root_child_and_shard_lie_in_one_trace() {
        let child: CollectTask = object(json!({
            "apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask",
            "metadata": {"name": "villages-44", "namespace": "ns", "uid": "c"},
            "spec": {"partOf": {"root": "villages", "rootUid": "r", "run": 2, "path": []}},
        }));
        let scopes = [root().scope(), child.scope(), shard().scope()];
        assert!(
            scopes.iter().all(|scope| scope.run_ref() == trace::run("r", 2) && scope.root == "villages"),
            "{scopes:?}"
        );
        assert_eq!(
            scopes.map(|scope| (scope.task, scope.shard)),
            [
                ("villages".to_owned(), None),
                ("villages-44".to_owned(), None),
                ("villages-44".to_owned(), Some("villages-44-3".to_owned())),
            ]
        );
    }

    #[test]
    fn a_worker_is_told_the_span_that_its_attempt_is_handed_over_as() {
        let origin = origin(&shard(), "collect", 4);
        assert_eq!(origin.traceparent, trace::attempt("r", 2, "s", "collect", 4).traceparent());
        assert_eq!((origin.task.as_str(), origin.shard.as_deref()), ("villages-44", Some("villages-44-3")));
        assert_eq!(super::origin(&root(), "plan", 1).shard, None);
    }

    #[tokio::test]
    async fn only_writes_of_the_pass_itself_are_counted() {
        wrote();
        let counted = WRITES.scope(Cell::new(0), async {
            wrote();
            tokio::join!(async { wrote() }, async { wrote() });
            WRITES.with(Cell::get)
        });
        assert_eq!(counted.await, 3);
    }
}

//! Upgrade skew: objects as version 0.1 wrote them are understood, and what a newer version wrote is neither lost nor misread.

#![allow(clippy::unwrap_used, reason = "clippy knows only functions marked as tests")]

use collect_api::{CollectShard, CollectTask, DesiredState, Outcome, Phase, ValidationReport, shard::ShardPhase};
use collect_core::{
    attempts::Entries,
    fold::FoldedIndexes,
    ledger::{Finish, Seen, Step, WorkerSeen, decide},
    redrive::is_to_be_redriven,
    resolve::RetryPolicy,
    rollup::{Above, redrives, shard_has_ended},
};
use jiff::Timestamp;
use serde_json::{Value, json};

/// A shard as version 0.1 wrote it after its third attempt.
fn shard(phase: &str, outcome: Value) -> CollectShard {
    let attempt = json!({
        "number": 3, "authorisedBy": "68eba027f2417c3b", "authorisedAt": "2026-11-20T09:18:41Z", "outcome": outcome,
        "reason": "SourceUnavailable", "message": "503", "finishedAt": "2026-11-20T09:18:42Z",
        "retryAfter": "2026-11-20T09:18:44Z", "job": "villages-44-0-abcde-a3", "jobUid": "u", "pod": "p", "node": "n",
        "startedAt": "2026-11-20T09:18:41Z", "exitCode": 10, "records": 40, "peakMemoryBytes": 1, "cpuSeconds": 0.1
    });
    serde_json::from_value(json!({
        "apiVersion": "collect.dev/v1alpha1", "kind": "CollectShard",
        "metadata": {"name": "villages-44-0", "namespace": "default", "uid": "s"},
        "spec": {"task": "villages-44", "rootUid": "r", "run": 1, "index": 0, "slice": {"items": []}},
        "status": {
            "observedGeneration": 1, "phase": phase, "attempt": 3, "attempts": [attempt],
            "folded": {"last": 2, "failures": 1, "disruptions": 1},
            "checkpoint": {"seq": 4, "item": 1, "tally": {"records": 40}},
            "progress": {"attempt": 3, "seq": 2, "stage": "reading", "records": 40, "bytes": 400, "at": "2026-11-20T09:18:42Z"}
        }
    }))
    .unwrap()
}

/// A root as version 0.1 left it when a shard had failed.
fn root() -> CollectTask {
    serde_json::from_value(json!({
        "apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask",
        "metadata": {"name": "villages", "namespace": "default", "uid": "r"},
        "spec": {"source": {"http": {"url": "https://x.example"}}, "sink": {"objectStore": {"url": "s3://lake/x"}},
                 "record": {"key": ["code"]}, "retry": {"maxAttempts": 4}},
        "status": {
            "observedGeneration": 1, "phase": "Failed", "message": "1 of 2 shards failed", "run": 1,
            "conditions": [{"type": "Failed", "status": "True", "reason": "ShardsFailed", "message": "x",
                            "lastTransitionTime": "2026-11-20T09:18:42Z", "observedGeneration": 1}],
            "plan": {"attempts": [], "sealed": 1, "result": {"digest": "d", "chunks": 1, "tasks": 0, "shards": 2, "items": 2}},
            "tasks": {"total": 2, "pending": 0, "active": 0, "succeeded": 1, "collected": 0, "failed": 1, "cancelled": 0},
            "shards": {"total": 2, "pending": 0, "running": 0, "succeeded": 1, "failed": 1, "cancelled": 0, "retries": 3},
            "records": {"collected": 10}, "bytes": 100, "progress": 50, "workers": 0,
            "failures": [{"name": "villages-1", "outcome": "Permanent", "reason": "SourceNotFound", "message": "404"}],
            "report": {"name": "villages-r1", "verdict": "Fail"}
        }
    }))
    .unwrap()
}

fn next(shard: &CollectShard) -> Step {
    let status = shard.status.clone().unwrap();
    let seen = Seen { admitted: true, worker: WorkerSeen::Unseen, ..Seen::nothing() };
    let now: Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
    decide(Entries::of_shard(&status), &RetryPolicy::of(None), &seen, now)
}

#[test]
fn a_ledger_of_the_version_before_goes_on_where_it_was() {
    assert_eq!(next(&shard("Pending", json!("Retryable"))), Step::Authorise(4), "its budgets and numbers still count");
    assert!(matches!(next(&shard("Pending", json!("Permanent"))), Step::Finish(Finish::Failed(_))));
}

#[test]
fn what_ended_under_the_version_before_is_not_taken_up_again_by_the_upgrade() {
    let above = Above::default();
    assert!(shard_has_ended(&shard("Failed", json!("Permanent")), &above));
    let root = root();
    let status = root.status.as_ref().unwrap();
    assert_eq!(status.phase, Some(Phase::Failed));
    assert_eq!(FoldedIndexes::of(status.folded.as_ref()), Ok(FoldedIndexes::default()));
    let shards = [std::sync::Arc::new(shard("Failed", json!("Permanent")))];
    let below = redrives(status.folded.as_ref(), &Vec::<std::sync::Arc<CollectTask>>::new(), &shards);
    assert_eq!(is_to_be_redriven(status, below, &above), None);
    // A retry that is asked for now takes it up.
    let asked = Above { desired: DesiredState::Running, token: Some("now".into()) };
    assert!(is_to_be_redriven(status, below, &asked).is_some());
}

#[test]
fn words_of_a_newer_version_survive_and_are_not_taken_for_an_end() {
    let newer = shard("Hibernating", json!("Teleported"));
    let status = newer.status.as_ref().unwrap();
    assert_eq!(status.phase, Some(ShardPhase::Other("Hibernating".into())));
    assert_eq!(status.attempts[0].outcome, Some(Outcome::Other("Teleported".into())));
    assert!(!shard_has_ended(&newer, &Above::default()));
    let written = serde_json::to_value(&newer).unwrap();
    assert_eq!(written["status"]["phase"], "Hibernating");
    // Tried again within bounds: an unknown end counts as a failure.
    assert_eq!(next(&newer), Step::Authorise(4));
}

#[test]
fn a_report_of_the_version_before_is_one_of_the_first_round() {
    let report: ValidationReport = serde_json::from_value(json!({
        "apiVersion": "collect.dev/v1alpha1", "kind": "ValidationReport", "metadata": {"name": "villages-r1"},
        "spec": {"task": "villages", "taskUid": "r", "rootUid": "r", "run": 1, "planDigest": "d", "level": "counts"},
        "status": {"verdict": "Fail", "reason": "ShardsFailed", "level": "counts",
                   "counts": {"collected": 10, "duplicates": 0, "rejected": 0},
                   "rounds": [{"round": 0, "verdict": "Fail", "at": "2026-11-20T09:18:42Z"}]}
    }))
    .unwrap();
    assert_eq!(report.status.unwrap().rounds[0].round, 0);
}

//! What Kubernetes shows of an attempt's Job and pods, read as one word of the ledger: [`WorkerSeen`].
//!
//! What ends an attempt is the condition Complete or Failed of its Job, or, some seconds before that, a pod that has Succeeded: nothing
//! takes that back. Counters and other conditions are never trusted.

use std::time::Duration;

use collect_api::{
    CollectShardStatus, Outcome,
    protocol::{TerminationMessage, exit},
    task::{CommitStatus, PlanStatus},
};
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition},
    core::v1::{ContainerState, ContainerStatus, Pod},
};

use crate::{
    exit::{outcome_of_exit_code, outcome_of_job_failure},
    job::CONTAINER,
    ledger::{Ended, Pending, Watched, WorkerSeen},
    text,
};

/// Reads a Job and its pods. `patience_over`: the Job has ended some time ago and its pod's last words have not come.
pub fn worker_seen(job: Option<&Job>, pods: &[impl AsRef<Pod>], patience_over: bool) -> WorkerSeen {
    let Some(job) = job else {
        return match pods.iter().map(AsRef::as_ref).find(|pod| !pod_is_over(pod)) {
            Some(_) => WorkerSeen::Leaving,
            None => pods.iter().find_map(|pod| pod_end(pod.as_ref())).map_or(WorkerSeen::Unseen, ended),
        };
    };
    let identity = job.metadata.name.clone().zip(job.metadata.uid.clone());
    // The Job controller counts it a second or more later. A failure is for the Job to tell: it may yet be laid to a disruption.
    if let Some(end) = pods.iter().map(AsRef::as_ref).find(|pod| phase(pod) == Some("Succeeded")).and_then(pod_end) {
        return ended(Ended { job: identity, ..end });
    }
    let Some(condition) = terminal_condition(job) else {
        let leaving = |pod: &Pod| pod.metadata.deletion_timestamp.is_some() && !pod_is_over(pod);
        return WorkerSeen::Active {
            deleting: job.metadata.deletion_timestamp.is_some() || pods.iter().any(|pod| leaving(pod.as_ref())),
            pending: if pods.is_empty() {
                Some(no_pod(job))
            } else {
                pods.iter().find_map(|pod| pending(pod.as_ref()))
            },
        };
    };
    let mut end = match pods.iter().find_map(|pod| pod_end(pod.as_ref())) {
        Some(end) => end,
        None if condition.type_ == "Failed" && patience_over => Ended {
            outcome: Some(outcome_of_job_failure(
                condition.reason.as_deref().unwrap_or_default(),
                condition.message.as_deref().unwrap_or_default(),
            )),
            system_message: condition.message.clone(),
            ..Ended::default()
        },
        None => return WorkerSeen::EndedUnread,
    };
    if condition.type_ == "Failed" && condition.reason.as_deref() == Some("DeadlineExceeded") {
        end.outcome = Some(Outcome::DeadlineExceeded);
        end.system_message = Some(
            "the attempt ran longer than spec.attemptDeadline and was stopped; raise it or make the shards smaller"
                .into(),
        );
    }
    end.job = identity;
    ended(end)
}

/// Whether something may still run for a Job, so that it is worth stopping.
pub fn is_at_work(job: &Job, pods: &[impl AsRef<Pod>]) -> bool {
    matches!(worker_seen(Some(job), pods, false), WorkerSeen::Active { .. })
}

fn ended(end: Ended) -> WorkerSeen {
    WorkerSeen::Ended(Box::new(end))
}

/// What a worker last said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Attempt that said it.
    attempt: i32,
    /// Counts its reports.
    seq: i64,
    /// What it had done by then; while this stays the same there is no progress.
    done: String,
}

impl Signs {
    /// What the worker of a shard said.
    pub fn of_shard(status: &CollectShardStatus) -> Self {
        let checkpoint = status.checkpoint.as_ref().map(|checkpoint| checkpoint.seq);
        status.progress.as_ref().map_or_else(Self::default, |said| Self {
            attempt: said.attempt,
            seq: said.seq,
            done: format!("{} {} {} {checkpoint:?}", said.records, said.bytes, said.stage),
        })
    }

    /// What a planner said: it gets on by its requests to the source.
    pub fn of_plan(plan: Option<&PlanStatus>) -> Self {
        let said = plan.and_then(|plan| plan.heartbeat.as_ref());
        said.map_or_else(Self::default, |said| Self {
            attempt: said.attempt,
            seq: said.seq,
            done: format!("{} {}", said.requests, said.stage),
        })
    }

    /// What a commit said: nobody counts how it gets on, so that it lives is enough.
    pub fn of_commit(commit: Option<&CommitStatus>) -> Self {
        let said = commit.and_then(|commit| commit.heartbeat.as_ref());
        said.map_or_else(Self::default, |said| Self {
            attempt: said.attempt,
            seq: said.seq,
            done: said.seq.to_string(),
        })
    }
}

/// What is seen of the worker of the live attempt n, and for how long. `signs` is absent where a worker does not report:
/// its silence says nothing. `since(what, state)` tells for how long this observer has seen something in a state.
pub fn watch(
    job: Option<&Job>,
    pods: &[impl AsRef<Pod>],
    n: i32,
    signs: Option<Signs>,
    mut since: impl FnMut(&str, &str) -> Duration,
) -> (WorkerSeen, Watched) {
    let mut seen = worker_seen(job, pods, false);
    let mut watched =
        Watched { state: since("state", word(&seen)), attempt: since("attempt", ""), ..Watched::default() };
    if pods.iter().any(|pod| phase(pod.as_ref()) == Some("Running")) {
        watched.runs = Some(since("runs", ""));
    }
    if let Some(signs) = signs.filter(|_| word(&seen) == ACTIVE) {
        // Where it begins to run counts as a sign of life; what came before is another attempt's.
        let said = if signs.attempt == n { signs } else { Signs::default() };
        watched.silent = since("silent", &said.seq.to_string()).min(watched.state);
        watched.still = since("still", &said.done).min(watched.state);
    }
    if seen == WorkerSeen::EndedUnread && watched.state >= LAST_WORDS {
        seen = worker_seen(job, pods, true);
    }
    (seen, watched)
}

/// The state of a worker that runs.
const ACTIVE: &str = "active";
/// How long a pod's last words may come after its Job's end, over another watch.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A state as a word; how long it lasts is measured by this word.
fn word(seen: &WorkerSeen) -> &'static str {
    match seen {
        WorkerSeen::Unseen | WorkerSeen::Absent => "absent",
        WorkerSeen::Active { deleting: true, .. } | WorkerSeen::Leaving => "leaving",
        WorkerSeen::Active { pending: Some(_), .. } => "pending",
        WorkerSeen::Active { .. } => ACTIVE,
        WorkerSeen::Ended(_) => "ended",
        WorkerSeen::EndedUnread => "unread",
    }
}

/// The condition that ends a Job, if there is one.
pub fn terminal_condition(job: &Job) -> Option<&JobCondition> {
    job.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.status == "True" && (condition.type_ == "Complete" || condition.type_ == "Failed"))
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Whether a pod has ended: nothing of it runs any more.
pub fn pod_is_over(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

fn worker_status(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|status| status.name == CONTAINER)
}

/// What a container ran: by digest where the node says it, else by the name that it was asked for.
fn image(container: &ContainerStatus) -> String {
    let by_digest = container.image_id.rsplit_once("://").map_or(container.image_id.as_str(), |(_, id)| id);
    if by_digest.is_empty() { container.image.clone() } else { by_digest.to_owned() }
}

fn is_disrupted(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
        conditions.iter().any(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
    })
}

/// How a pod ended, if it has.
fn pod_end(pod: &Pod) -> Option<Ended> {
    if !pod_is_over(pod) {
        return None;
    }
    let status = pod.status.as_ref();
    let mut end = Ended {
        pod: pod.metadata.name.clone(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        ip: status.and_then(|status| status.pod_ip.clone()),
        image: worker_status(pod).map(image),
        ..Ended::default()
    };
    let Some(terminated) =
        worker_status(pod).and_then(|worker| worker.state.as_ref()).and_then(|state| state.terminated.as_ref())
    else {
        // It never ran: evicted, refused by its node, or lost.
        end.outcome = Some(Outcome::Disrupted);
        end.system_message = status.and_then(|status| status.message.clone().or_else(|| status.reason.clone()));
        return Some(end);
    };
    end.exit_code = Some(terminated.exit_code);
    end.started_at = terminated.started_at.as_ref().map(|time| time.0);
    if let Some(message) = terminated.message.as_deref().filter(|message| !message.is_empty()) {
        match serde_json::from_str::<TerminationMessage>(message) {
            Ok(message) => end.message = message,
            Err(_) => end.system_message = Some(text::cut(message, 512)),
        }
    }
    let killed = matches!(terminated.exit_code, 137 | 143);
    let said = outcome_of_exit_code(terminated.exit_code);
    end.outcome = Some(match terminated.exit_code {
        exit::DONE | exit::ALREADY_COMMITTED => said,
        _ if terminated.reason.as_deref() == Some("OOMKilled") => {
            end.system_message =
                Some("the worker used more memory than its limit; raise spec.worker.resources.limits.memory".into());
            Outcome::OutOfMemory
        }
        _ if is_disrupted(pod) || (killed && pod.metadata.deletion_timestamp.is_some()) => Outcome::Disrupted,
        _ => said,
    });
    if end.system_message.is_none() && end.outcome == Some(Outcome::Crashed) && end.message.error.is_none() {
        end.system_message = Some(format!("the worker ended with exit code {}; see its log", terminated.exit_code));
    }
    Some(end)
}

/// A Job that has no pod: the Job controller is about to create one, or quota or admission refuse it.
fn no_pod(job: &Job) -> Pending {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let message = format!("its Job has no pod; `kubectl describe job {name}` says why (quota, admission)");
    Pending { reason: "PodRefused", message: Some(message), may_pass: true }
}

/// Why a pod has not started, if it has not.
fn pending(pod: &Pod) -> Option<Pending> {
    let status = pod.status.as_ref()?;
    if phase(pod) != Some("Pending") {
        return None;
    }
    let waiting = worker_status(pod)
        .and_then(|worker| worker.state.as_ref())
        .and_then(|state: &ContainerState| state.waiting.as_ref())
        .filter(|waiting| !matches!(waiting.reason.as_deref(), None | Some("ContainerCreating" | "PodInitializing")));
    if let Some(waiting) = waiting {
        let word = waiting.reason.as_deref().unwrap_or("Waiting");
        let message = waiting.message.as_deref().unwrap_or_default();
        let reason = if word.contains("Image") { "ImagePull" } else { "ContainerConfig" };
        let message = text::cut(&format!("its pod can't start: {word}: {message}"), 512);
        return Some(Pending { reason, message: Some(message), may_pass: false });
    }
    let unscheduled = status.conditions.as_ref().and_then(|conditions| {
        conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
    });
    Some(match unscheduled {
        Some(condition) => {
            let message = condition.message.as_deref().unwrap_or("no node has room");
            let message = text::cut(&format!("its pod finds no node: {message}"), 512);
            Pending { reason: "NoRoom", message: Some(message), may_pass: true }
        }
        None => Pending { reason: "Starting", message: None, may_pass: false },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn job(conditions: Value) -> Job {
        serde_json::from_value(json!({"metadata": {"name": "j", "uid": "ju"}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn pod(phase: &str, state: Value, conditions: Value, deleting: bool) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": phase, "conditions": conditions, "containerStatuses": [
                {"name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}]},
        });
        if deleting {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn over(code: i32, reason: &str, conditions: Value, deleting: bool) -> Arc<Pod> {
        let state = json!({"terminated": {"exitCode": code, "reason": reason, "message": "{}"}});
        pod(if code == 0 { "Succeeded" } else { "Failed" }, state, conditions, deleting)
    }

    fn outcome(seen: WorkerSeen) -> Outcome {
        match seen {
            WorkerSeen::Ended(end) => end.outcome.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn failed() -> Job {
        job(json!([{"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "x rule at index 2"}]))
    }

    fn none() -> Vec<Arc<Pod>> {
        Vec::new()
    }

    #[test]
    fn the_pods_words_become_the_outcome() {
        let disrupted = json!([{"type": "DisruptionTarget", "status": "True"}]);
        for (pod, expected) in [
            (over(0, "Completed", json!([]), false), Outcome::Succeeded),
            (over(10, "Error", json!([]), false), Outcome::Retryable),
            (over(11, "Error", json!([]), false), Outcome::Permanent),
            (over(137, "OOMKilled", json!([]), false), Outcome::OutOfMemory),
            (over(137, "Error", json!([]), false), Outcome::Crashed),
            (over(137, "Error", json!([]), true), Outcome::Disrupted),
            (over(14, "Error", disrupted.clone(), false), Outcome::Disrupted),
            (over(0, "Completed", disrupted, true), Outcome::Succeeded),
            (over(14, "Error", json!([]), true), Outcome::Checkpointed),
        ] {
            assert_eq!(outcome(worker_seen(Some(&failed()), std::slice::from_ref(&pod), false)), expected, "{pod:?}");
        }
    }

    #[test]
    fn a_pod_that_succeeded_ends_the_attempt_before_its_job_does_and_one_that_failed_does_not() {
        let nothing_yet = job(json!([]));
        let done = over(0, "Completed", json!([]), false);
        let WorkerSeen::Ended(end) = worker_seen(Some(&nothing_yet), std::slice::from_ref(&done), false) else {
            panic!("it has ended")
        };
        assert_eq!((end.outcome, end.job), (Some(Outcome::Succeeded), Some(("j".into(), "ju".into()))));
        assert!(!is_at_work(&nothing_yet, std::slice::from_ref(&done)));
        let failed = over(10, "Error", json!([]), false);
        assert!(is_at_work(&nothing_yet, &[failed]), "its Job says what it was");
        assert!(is_at_work(&nothing_yet, &none()));
        let too_late = job(json!([{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]));
        assert_eq!(outcome(worker_seen(Some(&too_late), &[done], false)), Outcome::Succeeded);
    }

    #[test]
    fn without_the_pod_the_jobs_condition_speaks_after_a_while() {
        assert_eq!(worker_seen(Some(&failed()), &none(), false), WorkerSeen::EndedUnread);
        assert_eq!(outcome(worker_seen(Some(&failed()), &none(), true)), Outcome::Permanent);
        let complete = job(json!([{"type": "Complete", "status": "True"}]));
        assert_eq!(
            worker_seen(Some(&complete), &none(), true),
            WorkerSeen::EndedUnread,
            "success without numbers is not known"
        );
    }

    #[test]
    fn conditions_that_are_not_terminal_are_not_believed() {
        let nearly =
            job(json!([{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "FailureTarget", "status": "True"}]));
        let running = pod("Running", json!({"running": {}}), json!([]), false);
        let active = WorkerSeen::Active { deleting: false, pending: None };
        assert_eq!(worker_seen(Some(&nearly), &[running], true), active);
    }

    #[test]
    fn a_deleted_job_waits_for_its_pod_and_hears_its_last_words() {
        let running = pod("Running", json!({"running": {}}), json!([]), true);
        assert_eq!(worker_seen(None, &[running], false), WorkerSeen::Leaving);
        assert_eq!(outcome(worker_seen(None, &[over(14, "Error", json!([]), true)], false)), Outcome::Checkpointed);
        assert_eq!(worker_seen(None, &none(), false), WorkerSeen::Unseen);
    }

    #[test]
    fn a_pod_that_is_being_deleted_and_still_runs_is_leaving() {
        let running = pod("Running", json!({"running": {}}), json!([]), true);
        let leaving = WorkerSeen::Active { deleting: true, pending: None };
        assert_eq!(worker_seen(Some(&job(json!([]))), &[running], false), leaving);
    }

    #[test]
    fn a_job_without_a_pod_says_where_to_look() {
        let seen = worker_seen(Some(&job(json!([]))), &none(), false);
        assert!(
            matches!(&seen, WorkerSeen::Active { pending: Some(Pending { message: Some(why), may_pass: true, .. }), .. } if why.contains("describe job j")),
            "{seen:?}"
        );
    }

    #[test]
    fn a_pod_without_room_says_why() {
        let conditions = json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient cpu."}]);
        let pending = pod("Pending", json!({}), conditions, false);
        let seen = worker_seen(Some(&job(json!([]))), &[pending], false);
        assert!(
            matches!(&seen, WorkerSeen::Active { pending: Some(Pending { reason: "NoRoom", message: Some(why), may_pass: true }), .. } if why.contains("Insufficient cpu")),
            "{seen:?}"
        );
        let image = pod(
            "Pending",
            json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}),
            json!([]),
            false,
        );
        let seen = worker_seen(Some(&job(json!([]))), &[image], false);
        assert!(
            matches!(&seen, WorkerSeen::Active { pending: Some(Pending { reason: "ImagePull", message: Some(why), may_pass: false }), .. } if why.contains("ErrImagePull")),
            "{seen:?}"
        );
    }
}

//! What a worker is told: built from the root's spec and the ledger, nothing else.

use collect_api::{
    CollectTaskSpec,
    plan::{Item, PathStep},
    protocol::{
        Assignment, Checkpoint, CollectWork, CommitWork, Endpoint, HookWork, Identity, MAX_ASSIGNMENT_BYTES, Origin,
        PlanWork, RateShare, Work,
    },
    source::{Limits, Source},
};

use crate::trace;

/// An assignment that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum AssignmentError {
    /// A root without source, sink or record; the API server refuses such an object, but it may have been written past it.
    #[error("the root task has no spec.{0}; set it and raise spec.run")]
    Missing(&'static str),
    /// The JSON is too large for an environment variable of the size that workers accept.
    #[error("the assignment has {0} bytes, more than 65536; shorten spec.source or spec.record")]
    TooLarge(usize),
    /// It can't be written as JSON.
    #[error("the assignment can't be written")]
    Json(#[from] serde_json::Error),
}

/// The run that work belongs to.
#[derive(Clone, Debug)]
pub struct RunRef<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name of the root task.
    pub root: &'a str,
    /// Uid of the root task.
    pub root_uid: &'a str,
    /// Run.
    pub run: i64,
    /// Digest of the sealed plan; empty for the planner.
    pub plan_digest: &'a str,
    /// Spec of the root task.
    pub spec: &'a CollectTaskSpec,
}

/// What differs from worker to worker.
#[derive(Clone, Debug)]
pub struct Share {
    /// Where to report.
    pub endpoint: Option<Endpoint>,
    /// Share of the source's limits.
    pub rate: RateShare,
    /// First report.
    pub report_after_ms: u64,
    /// What its log lines and spans name.
    pub origin: Origin,
}

/// A worker's share of the source's limits, when `workers` share them.
pub fn rate_share(limits: Option<&Limits>, workers: i32) -> RateShare {
    let workers = workers.max(1);
    let Some(limits) = limits else { return RateShare::default() };
    RateShare {
        requests_per_second: limits.requests_per_second.map(|all| all / f64::from(workers)),
        concurrency: limits.concurrency.map(|all| (all / workers).max(1)),
    }
}

/// The limits of a source.
pub fn limits(spec: &CollectTaskSpec) -> Option<&Limits> {
    match spec.source.as_ref()? {
        Source::Http(http) => http.limits.as_ref(),
    }
}

/// The assignment of a worker that collects a slice.
pub fn collect(
    run: &RunRef<'_>,
    path: &[PathStep],
    index: i32,
    items: &[Item],
    checkpoint: Option<&Checkpoint>,
    attempt: i32,
    share: Share,
) -> Result<Assignment, AssignmentError> {
    let work = Work::Collect(CollectWork { items: items.to_vec(), checkpoint: checkpoint.cloned() });
    build(run, path, index, work, attempt, share)
}

/// The assignment of a planner.
pub fn plan(run: &RunRef<'_>, attempt: i32, share: Share) -> Result<Assignment, AssignmentError> {
    let work = Work::Plan(PlanWork {
        decompose: run.spec.decompose.clone().unwrap_or_default(),
        total: run.spec.validation.as_ref().and_then(|validation| validation.total.clone()),
    });
    build(run, &[], 0, work, attempt, share)
}

/// The assignment of a commit.
pub fn commit(run: &RunRef<'_>, work: CommitWork, attempt: i32, share: Share) -> Result<Assignment, AssignmentError> {
    build(run, &[], 0, Work::Commit(work), attempt, share)
}

/// The assignment of a hook's request.
pub fn hook(run: &RunRef<'_>, work: HookWork, attempt: i32, share: Share) -> Result<Assignment, AssignmentError> {
    build(run, &[], 0, Work::Hook(work), attempt, share)
}

fn build(
    run: &RunRef<'_>,
    path: &[PathStep],
    index: i32,
    work: Work,
    attempt: i32,
    share: Share,
) -> Result<Assignment, AssignmentError> {
    Ok(Assignment {
        work,
        identity: Identity {
            namespace: run.namespace.to_owned(),
            root: run.root.to_owned(),
            root_uid: run.root_uid.to_owned(),
            run: run.run,
            path: path.to_vec(),
            index,
            plan_digest: run.plan_digest.to_owned(),
        },
        attempt,
        source: run.spec.source.clone().ok_or(AssignmentError::Missing("source"))?,
        sink: run.spec.sink.clone().ok_or(AssignmentError::Missing("sink"))?,
        record: run.spec.record.clone().ok_or(AssignmentError::Missing("record"))?,
        endpoint: share.endpoint,
        rate_share: share.rate,
        report_after_ms: share.report_after_ms,
        trace_id: trace::run(run.root_uid, run.run).trace_id(),
        origin: Some(share.origin),
    })
}

/// The assignment as the value of an environment variable. Kubernetes expands `$(NAME)` in such values; `$$(` stands for `$(`.
pub fn env_value(assignment: &Assignment) -> Result<String, AssignmentError> {
    let json = serde_json::to_string(assignment)?;
    if json.len() > MAX_ASSIGNMENT_BYTES {
        return Err(AssignmentError::TooLarge(json.len()));
    }
    Ok(json.replace("$(", "$$("))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shared_out() {
        let limits = Limits { requests_per_second: Some(200.0), concurrency: Some(16) };
        let share = rate_share(Some(&limits), 8);
        assert_eq!((share.requests_per_second, share.concurrency), (Some(25.0), Some(2)));
        assert_eq!(rate_share(Some(&limits), 100).concurrency, Some(1));
        assert_eq!(rate_share(None, 8), RateShare::default());
    }
}

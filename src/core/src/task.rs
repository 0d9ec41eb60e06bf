//! A task's status: where it stands, by what was rolled up, compared and committed.

use std::time::Duration;

use collect_api::{
    Attempt, CollectTask, CollectTaskStatus, DesiredState, Phase, ValidationReportStatus,
    condition::{COMPLETE, FAILED, VERIFIED, reason},
    protocol::{CommitResult, ProgressReport},
    report::Verdict,
    task::{Heartbeat, Milestone, PlanStatus, ReportRef, Straggler, TaskSummary},
};
use jiff::Timestamp;

use crate::{
    attempts::{self, Entries},
    conditions::{self, At, whole_seconds},
    halt::Halt,
    ledger::{self, Finish, Seen, Step},
    redrive::round,
    resolve::RetryPolicy,
    rollup::Rolled,
    text, trace,
};

/// Shares of the work that are noted when they are reached, in percent.
pub const MILESTONES: [i32; 4] = [25, 50, 75, 100];

/// Where the commit stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Commit {
    /// Not a root: there is none.
    NotHere,
    /// It has not ended.
    Open,
    /// It is done.
    Done(CommitResult),
    /// It failed for good.
    Failed(String),
}

impl Commit {
    /// Where the commit of a root stands, by its status.
    pub fn of(root: &CollectTask, now: Timestamp) -> Self {
        let commit = root.status.as_ref().and_then(|status| status.commit.as_ref());
        if let Some(result) = commit.and_then(|commit| commit.result.clone()) {
            return Self::Done(result);
        }
        let policy = RetryPolicy::of(root.spec.retry.as_ref());
        match ledger::decide(Entries::of_commit(commit), &policy, &Seen::nothing(), now) {
            Step::Finish(Finish::Failed(why)) => Self::Failed(why),
            _ => Self::Open,
        }
    }
}

/// What was found out about a task whose plan is sealed.
#[derive(Clone, Debug)]
pub struct Progress<'a> {
    /// The fold over its children.
    pub rolled: &'a Rolled,
    /// What shall become of it: the strictest on its path, or Cancelled where the run is stopped.
    pub desired: DesiredState,
    /// Why the run is stopped, if it is.
    pub halt: Option<&'a Halt>,
    /// Failed shards that are borne.
    pub tolerated: i32,
    /// The comparison; made when every child is over.
    pub comparison: Option<&'a ValidationReportStatus>,
    /// Where the commit stands.
    pub commit: Commit,
    /// Name of the report, if it exists and is about this round.
    pub report: Option<String>,
    /// Why some work waits, if it does.
    pub waiting: Option<String>,
    /// Running shards that take much longer than their siblings.
    pub stragglers: Vec<Straggler>,
    /// The retry tokens that hold for it.
    pub token: Option<String>,
}

/// What has to exist before the task can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The commit Job has to run.
    Commit,
    /// The commit Job has to leave: what it was to commit is no longer all there is.
    CommitToLeave,
    /// The report has to be written.
    Report,
}

/// The status of a run that has just begun: everything of the run before is gone (I9: only a retry or a new run leaves a
/// terminal phase).
pub fn begun(task: &CollectTask, run: i64, token: Option<String>, now: Timestamp) -> CollectTaskStatus {
    let old = task.status.clone().unwrap_or_default();
    let at = At { generation: task.metadata.generation, now };
    let mut new = CollectTaskStatus {
        phase: Some(Phase::Pending),
        run: Some(run),
        trace_id: task
            .metadata
            .uid
            .as_deref()
            .filter(|_| task.spec.part_of.is_none())
            .map(|uid| trace::run(uid, run).trace_id()),
        started_at: Some(whole_seconds(now)),
        conditions: old.conditions,
        selector: Some(selector(task)),
        observed_generation: at.generation,
        retried: token,
        ..CollectTaskStatus::default()
    };
    clear_ends(&mut new);
    conditions::working(&mut new.conditions, "Pending", "the run begins", at);
    new
}

pub(crate) fn clear_ends(status: &mut CollectTaskStatus) {
    for type_ in [COMPLETE, FAILED, VERIFIED] {
        conditions::clear(&mut status.conditions, type_);
    }
}

/// Label selector of the worker pods below a task.
fn selector(task: &CollectTask) -> String {
    use collect_api::labels::{ROOT, TASK};
    let name = task.metadata.name.clone().unwrap_or_default();
    if task.spec.part_of.is_some() { format!("{TASK}={name}") } else { format!("{ROOT}={name}") }
}

/// The status while something other than its children is worked on or waited for.
pub fn waiting(status: &CollectTaskStatus, phase: Phase, reason: &str, message: &str, at: At) -> CollectTaskStatus {
    let mut new = status.clone();
    new.phase = Some(phase);
    new.message = Some(text::cut(message, 1024));
    new.observed_generation = at.generation;
    conditions::working(&mut new.conditions, reason, message, at);
    new
}

/// What a planner does at the moment, for people.
pub fn planning_message(plan: Option<&PlanStatus>) -> String {
    let live = plan.and_then(|plan| plan.attempts.last()).filter(|last| last.is_live());
    let said =
        plan.and_then(|plan| plan.heartbeat.as_ref()).filter(|said| live.is_some_and(|last| last.n == said.attempt));
    let so_far = said.map(|said| format!("; {} requests so far", said.requests)).unwrap_or_default();
    format!("the planner reads the levels and totals of the source{so_far}")
}

/// The status with a report of a planner's or commit's worker taken in; nothing where the report is old, or not of the
/// attempt that is live.
pub fn heard(status: &CollectTaskStatus, report: &ProgressReport, now: Timestamp) -> Option<CollectTaskStatus> {
    let mut new = status.clone();
    let (attempts, heartbeat) = match (&mut new.plan, &mut new.commit) {
        (_, Some(commit)) if commit.attempts.last().is_some_and(Attempt::is_live) => {
            (&commit.attempts, &mut commit.heartbeat)
        }
        (Some(plan), _) => (&plan.attempts, &mut plan.heartbeat),
        _ => return None,
    };
    attempts.last().filter(|last| last.n == report.attempt && last.is_live())?;
    if heartbeat.as_ref().is_some_and(|old| old.attempt == report.attempt && old.seq >= report.seq) {
        return None;
    }
    *heartbeat = Some(Heartbeat {
        attempt: report.attempt,
        seq: report.seq,
        stage: text::cut(&report.stage, 63),
        requests: report.requests.max(0),
        at: whole_seconds(now),
    });
    if status.phase == Some(Phase::Planning) && status.message == Some(planning_message(status.plan.as_ref())) {
        new.message = Some(planning_message(new.plan.as_ref()));
    }
    Some(new)
}

/// The status of a task that can't go on without help, without being over.
pub fn stuck(status: &CollectTaskStatus, reason: &str, message: &str, at: At) -> CollectTaskStatus {
    let mut new = status.clone();
    new.message = Some(text::cut(message, 1024));
    new.observed_generation = at.generation;
    conditions::stalled(&mut new.conditions, reason, message, at);
    new
}

/// The status of a task that is over without success.
pub fn failed(status: &CollectTaskStatus, phase: Phase, reason: &str, message: &str, at: At) -> CollectTaskStatus {
    let mut new = status.clone();
    new.phase = Some(phase);
    new.message = Some(text::cut(message, 1024));
    new.observed_generation = at.generation;
    new.finished_at = Some(whole_seconds(at.now));
    new.workers = Some(0);
    new.stragglers.clear();
    conditions::set(&mut new.conditions, FAILED, "True", reason, message, at);
    conditions::stalled(&mut new.conditions, reason, message, at);
    new
}

/// The status of a task whose plan is sealed, and what it needs before it can end.
pub fn advance(status: &CollectTaskStatus, seen: &Progress<'_>, at: At) -> (CollectTaskStatus, Needs) {
    let mut new = numbers(status, seen, at.now);
    new.observed_generation = at.generation;
    new.retried = seen.token.clone();
    let retried = new.retried != status.retried || new.redrives != status.redrives;
    let uncommitted = uncommit(&mut new, retried || !seen.rolled.complete);
    let message = "a retry takes up what had failed";
    if commit_is_taken_back(&new) {
        // It removes what no manifest names, so nothing ends, and no work should go far, before it has left.
        let phase = if seen.rolled.complete { Phase::Validating } else { Phase::Running };
        return (waiting(&new, phase, reason::REDRIVEN, message, at), Needs::CommitToLeave);
    }
    if !seen.rolled.complete {
        return (going_on(&new, seen, at), Needs::Nothing);
    }
    new.stragglers.clear();
    if uncommitted {
        return (waiting(&new, Phase::Validating, reason::REDRIVEN, message, at), Needs::Nothing);
    }
    let Some(comparison) = seen.comparison else {
        return (waiting(&new, Phase::Validating, reason::VALIDATING, "comparing with the source", at), Needs::Nothing);
    };
    if let Some(end) = cut_short(&new, seen, at) {
        return (end, Needs::Nothing);
    }
    let verdict = comparison.verdict.clone().unwrap_or(Verdict::Inconclusive);
    if verdict != Verdict::Fail {
        match &seen.commit {
            Commit::Open => {
                let message = "writing the run's file list";
                return (waiting(&new, Phase::Validating, reason::VALIDATING, message, at), Needs::Commit);
            }
            Commit::Failed(why) => {
                return (failed(&new, Phase::Failed, reason::COMMIT_FAILED, why, at), Needs::Nothing);
            }
            Commit::NotHere | Commit::Done(_) => {}
        }
    }
    let Some(report) = &seen.report else {
        return (waiting(&new, Phase::Validating, reason::VALIDATING, "writing the report", at), Needs::Report);
    };
    if status.phase != Some(Phase::Validating) {
        // A report of before still holds, where a child went missing and came to the same again.
        let message = "comparing with the source";
        return (waiting(&new, Phase::Validating, reason::VALIDATING, message, at), Needs::Nothing);
    }
    new.report = Some(ReportRef { name: report.clone(), verdict: verdict.clone() });
    (ended(new, seen.rolled, comparison, &verdict, report, at), Needs::Nothing)
}

/// Takes back a commit, made or under way, where work is `added` before the run has ended; whether one was taken back. The
/// next one is of another round, so that it writes a list of its own. What a commit from before comes to later counts as little.
fn uncommit(new: &mut CollectTaskStatus, added: bool) -> bool {
    let Some(commit) = &mut new.commit else { return false };
    let Some(last) = commit.attempts.last() else { return false };
    if last.n <= commit.forgiven.unwrap_or(0) {
        return commit.result.take().is_some();
    }
    if !added || (commit.result.is_none() && !last.is_live()) {
        return false;
    }
    commit.result = None;
    commit.forgiven = Some(attempts::forgive(Entries::from((&commit.attempts, &None, None)), &mut commit.folded));
    new.redrives = Some(new.redrives.unwrap_or(0) + 1);
    true
}

/// Whether a commit that was taken back is still under way.
fn commit_is_taken_back(status: &CollectTaskStatus) -> bool {
    status.commit.as_ref().is_some_and(|commit| {
        commit.attempts.last().is_some_and(|last| last.is_live() && last.n <= commit.forgiven.unwrap_or(0))
    })
}

/// Some children are not over.
fn going_on(new: &CollectTaskStatus, seen: &Progress<'_>, at: At) -> CollectTaskStatus {
    let rolled = seen.rolled;
    match (seen.desired, seen.halt) {
        (DesiredState::Cancelled, halt) if rolled.at_rest && rolled.workers == 0 => match halt {
            Some(halt) => failed(new, Phase::Failed, halt.reason, &halt.message, at),
            None => {
                let message = "cancelled by desiredState; what was committed stays at the sink";
                failed(new, Phase::Cancelled, reason::CANCELLED, message, at)
            }
        },
        (DesiredState::Cancelled, halt) => {
            let reason = halt.map_or(reason::CANCELLED, |halt| halt.reason);
            waiting(new, Phase::Running, reason, "workers are being stopped", at)
        }
        (DesiredState::Paused, _) => {
            let message = "paused by desiredState; set it to Running to go on";
            waiting(new, Phase::Paused, reason::PAUSED, message, at)
        }
        (DesiredState::Running, _) => {
            let message = seen.waiting.clone().unwrap_or_else(|| progress_message(rolled, &seen.stragglers));
            waiting(new, Phase::Running, reason::RUNNING, &message, at)
        }
    }
}

/// Every child is over, but some were stopped before they had done their work: shards below them were cancelled, or never
/// began. What they should hold is not known, so nothing is compared.
fn cut_short(new: &CollectTaskStatus, seen: &Progress<'_>, at: At) -> Option<CollectTaskStatus> {
    let shards = &seen.rolled.shards;
    let undone = shards.total - shards.succeeded - shards.failed;
    let cancelled = seen.rolled.tasks.cancelled + shards.cancelled > 0;
    if undone == 0 && !cancelled {
        return None;
    }
    match seen.halt {
        // With failFast the failures themselves are the end of the task that has them: the report tells of them.
        Some(halt) if halt.reason == reason::SHARDS_FAILED && shards.failed > seen.tolerated => None,
        // Its other tasks were stopped as well, and what they have not collected is no success.
        Some(halt) => Some(failed(new, Phase::Failed, halt.reason, &halt.message, at)),
        None if shards.failed > seen.tolerated => None,
        None if cancelled => {
            let message = format!("{undone} of {} shards were cancelled", shards.total);
            Some(failed(new, Phase::Cancelled, reason::CANCELLED, &message, at))
        }
        None => {
            let message = format!(
                "{undone} of {} shards were not collected, because a task below was stopped; set a new value of the annotation collect.dev/retry to go on",
                shards.total
            );
            Some(failed(new, Phase::Failed, reason::FAILED, &message, at))
        }
    }
}

fn ended(
    mut new: CollectTaskStatus,
    rolled: &Rolled,
    comparison: &ValidationReportStatus,
    verdict: &Verdict,
    report: &str,
    at: At,
) -> CollectTaskStatus {
    let counts = comparison.counts.clone().unwrap_or_default();
    let why = comparison.reason.clone().unwrap_or_default();
    let advice = comparison.recommendations.first().cloned().unwrap_or_default();
    let collected = counts.collected;
    let source = counts.source.or(counts.source_of_committed);
    new.summary.get_or_insert_default().match_ = source.map(|source| text::matched(source, collected));
    let borne = rolled.shards.failed;
    match verdict {
        Verdict::Pass => {
            let (phase, reason, message) = if borne == 0 {
                let message =
                    format!("{collected} records collected, as many as the source holds; see report {report}");
                (Phase::Succeeded, reason::SUCCEEDED, message)
            } else {
                let message = format!(
                    "{collected} records collected, as many as the source holds of the committed slices; {borne} of {} shards failed, which spec.completion bears; see report {report}",
                    rolled.shards.total
                );
                (Phase::PartiallySucceeded, reason::PARTIALLY_SUCCEEDED, message)
            };
            new.phase = Some(phase);
            if let Some(records) = &mut new.records {
                records.verified = Some(collected);
            }
            conditions::set(&mut new.conditions, VERIFIED, "True", reason, &message, at);
            conditions::set(&mut new.conditions, COMPLETE, "True", reason, &message, at);
            conditions::ready(&mut new.conditions, reason, &message, at);
            new.message = Some(message);
        }
        Verdict::Inconclusive | Verdict::Other(_) => {
            let without = match borne {
                0 => String::new(),
                _ => format!("; {borne} of {} shards failed, which spec.completion bears", rolled.shards.total),
            };
            let message = format!("{collected} records collected, not verified ({why}){without}. {advice}");
            new.phase = Some(Phase::Collected);
            conditions::set(&mut new.conditions, VERIFIED, "Unknown", &why, &message, at);
            conditions::set(&mut new.conditions, COMPLETE, "True", reason::COLLECTED, &message, at);
            conditions::ready(&mut new.conditions, reason::COLLECTED, &message, at);
            new.message = Some(text::cut(&message, 1024));
        }
        Verdict::Fail => {
            let shards_failed = why == reason::SHARDS_FAILED;
            let (reason, message) = if shards_failed {
                (reason::SHARDS_FAILED, failures_message(rolled))
            } else {
                let source = source.map_or_else(|| "unknown".to_owned(), |source| source.to_string());
                (
                    reason::VALIDATION_FAILED,
                    format!(
                        "{why}: the source holds {source} records, {collected} were collected; see report {report}. {advice}"
                    ),
                )
            };
            new = failed(&new, Phase::Failed, reason, &message, at);
            if !shards_failed {
                conditions::set(&mut new.conditions, VERIFIED, "False", &why, &message, at);
            }
            return new;
        }
    }
    finish_numbers(&mut new, at.now);
    new
}

fn failures_message(rolled: &Rolled) -> String {
    let first = rolled.failures.first();
    let first = first.map(|failure| format!("; the first, {}: {}", failure.name, failure.message)).unwrap_or_default();
    let how = "once mended, set a new value of the annotation collect.dev/retry to have them tried again";
    let (failed, total) = (rolled.shards.failed, rolled.shards.total);
    format!("{failed} of {total} shards failed; {how}{first}")
}

fn finish_numbers(new: &mut CollectTaskStatus, now: Timestamp) {
    new.progress = Some(100);
    new.finished_at = Some(whole_seconds(now));
    new.workers = Some(0);
    if let Some(summary) = &mut new.summary {
        summary.progress = Some("100%".into());
    }
    milestones(new, now);
}

/// The numbers of a fold in a status. Progress never falls within a run (I10).
fn numbers(status: &CollectTaskStatus, seen: &Progress<'_>, now: Timestamp) -> CollectTaskStatus {
    let rolled = seen.rolled;
    let mut new = status.clone();
    let (done, of) = match rolled.records.expected {
        Some(expected) if expected > 0 => (rolled.records.collected, expected),
        _ => (i64::from(rolled.shards.succeeded), i64::from(rolled.shards.total)),
    };
    let progress = text::percent(done, of).max(status.progress.unwrap_or(0));
    new.progress = Some(progress);
    new.tasks = Some(rolled.tasks.clone()).filter(|tasks| tasks.total > 0);
    new.shards = Some(rolled.shards.clone());
    new.records = Some(rolled.records.clone());
    new.bytes = Some(rolled.bytes);
    new.workers = Some(rolled.workers);
    new.failures = rolled.failures.clone();
    new.stragglers = seen.stragglers.clone();
    new.redrives = Some(round(status, rolled.redrives)).filter(|redrives| *redrives > 0);
    new.redrives_below = Some(rolled.redrives).filter(|redrives| *redrives > 0);
    let seconds = status.started_at.as_ref().map_or(0.0, |start| now.duration_since(start.0).as_secs_f64());
    new.summary = Some(TaskSummary {
        progress: Some(format!("{progress}%")),
        shards: Some(text::of(i64::from(rolled.shards.succeeded), Some(i64::from(rolled.shards.total)))),
        records: Some(text::of(rolled.records.collected, rolled.records.expected)),
        match_: None,
        rate: text::rate(rolled.records.collected, seconds),
    });
    milestones(&mut new, now);
    new
}

/// Whether what is below a task may still change its numbers though it is over.
pub fn may_be_recounted(status: &CollectTaskStatus) -> bool {
    matches!(status.phase, Some(Phase::Failed | Phase::Cancelled))
}

/// The status of a task that ended without success, with what is below counted anew; nothing if it is as it was.
///
/// A task may end before all that was created below it came into view, and that comes to its own end a little later (I10).
/// What ended well counts what was committed, whatever becomes of the objects.
pub fn recounted(status: &CollectTaskStatus, rolled: &Rolled) -> Option<CollectTaskStatus> {
    // What a retry is about to take up is not at rest: it begins again soon, and the numbers with it.
    if !may_be_recounted(status) || !rolled.at_rest {
        return None;
    }
    let mut new = status.clone();
    new.tasks = Some(rolled.tasks.clone()).filter(|tasks| tasks.total > 0);
    new.shards = Some(rolled.shards.clone());
    new.records = Some(rolled.records.clone());
    new.bytes = Some(rolled.bytes);
    new.workers = Some(rolled.workers);
    new.failures = rolled.failures.clone();
    if new == *status {
        return None;
    }
    let summary = new.summary.get_or_insert_default();
    summary.shards = Some(text::of(i64::from(rolled.shards.succeeded), Some(i64::from(rolled.shards.total))));
    summary.records = Some(text::of(rolled.records.collected, rolled.records.expected));
    Some(new)
}

fn milestones(new: &mut CollectTaskStatus, now: Timestamp) {
    let progress = new.progress.unwrap_or(0);
    for percent in MILESTONES {
        if progress >= percent && !new.milestones.iter().any(|milestone| milestone.percent == percent) {
            new.milestones.push(Milestone { percent, at: whole_seconds(now) });
        }
    }
}

fn progress_message(rolled: &Rolled, stragglers: &[Straggler]) -> String {
    let shards = &rolled.shards;
    let mut message = format!("{} of {} shards done, {} running", shards.succeeded, shards.total, shards.running);
    if shards.failed > 0 {
        message.push_str(&format!(", {} failed", shards.failed));
    }
    if shards.retries > 0 {
        message.push_str(&format!(", {} attempts repeated", shards.retries));
    }
    if let Some(slowest) = stragglers.first() {
        message.push_str(&format!("; slow: {} ({})", slowest.name, slowest.reason));
    }
    message
}

/// Time that is left until a finished task is to be deleted, if it is ever to be.
pub fn ttl_left(status: &CollectTaskStatus, ttl: Option<Duration>, now: Timestamp) -> Option<Duration> {
    let finished = status.finished_at.as_ref()?.0;
    let over = finished.checked_add(ttl?).ok()?;
    Some(Duration::try_from(over.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;

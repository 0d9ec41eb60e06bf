//! A task's status: where it stands, by what was rolled up, compared and committed.

use std::time::Duration;

use collect_api::{
    CollectTask, CollectTaskStatus, DesiredState, Phase, ValidationReportStatus,
    condition::{COMPLETE, FAILED, VERIFIED, reason},
    protocol::CommitResult,
    report::Verdict,
    task::{Milestone, ReportRef, Straggler, TaskSummary},
};
use jiff::Timestamp;

use crate::{
    attempts::{self, Entries},
    conditions::{self, At, whole_seconds},
    halt::Halt,
    hooks::HookKind,
    retry,
    rollup::{Above, Rolled},
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

fn clear_ends(status: &mut CollectTaskStatus) {
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

/// Whether a task that is over is to be taken up again: by tokens of its own path, or because something below it was.
///
/// A view that is too old can't make it so: counts of retries only grow.
pub fn is_to_be_redriven(status: &CollectTaskStatus, redrives_below: i32, above: &Above) -> Option<Redrive> {
    if !retry::is_retriable(status) {
        return None;
    }
    if retry::is_due(status.retried.as_deref(), above.token.as_deref(), above.desired) {
        return Some(Redrive::Here);
    }
    (above.desired == DesiredState::Running && redrives_below > status.redrives_below.unwrap_or(0))
        .then_some(Redrive::Below(redrives_below))
}

/// How often a retry has taken up work again in a task's run, with what is below as it is now. A report is about one round.
///
/// It only grows: where something that was retried is deleted by hand, the count below falls, and the tasks above still
/// have to learn of the retry.
pub fn round(status: &CollectTaskStatus, redrives_below: i32) -> i32 {
    status.redrives.unwrap_or(0) + (redrives_below - status.redrives_below.unwrap_or(0)).max(0)
}

/// Where a retry begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redrive {
    /// At this task.
    Here,
    /// At something below it, which is taken up already: how often such things were, all in all.
    Below(i32),
}

/// The status of a task that a retry takes up again: what had failed is undone, what is committed stays.
pub fn redriven(status: &CollectTaskStatus, redrive: Redrive, token: Option<String>, at: At) -> CollectTaskStatus {
    let sealed = status.plan.as_ref().is_some_and(|plan| plan.sealed.is_some());
    let child = status.plan.is_none() && status.shards.is_some();
    let phase = if sealed || child { Phase::Running } else { Phase::Pending };
    let mut new = waiting(status, phase, reason::REDRIVEN, "a retry takes up what had failed", at);
    match redrive {
        Redrive::Here => {
            new = unfolded(&new);
            new.redrives = Some(new.redrives.unwrap_or_default() + 1);
        }
        Redrive::Below(below) => {
            new.redrives = Some(round(status, below));
            new.redrives_below = Some(below);
        }
    }
    new.retried = token;
    new.finished_at = None;
    new.report = None;
    // What stopped the run before must not stop it again before its children were looked at.
    if let Some(shards) = &mut new.shards {
        shards.pending += shards.failed + shards.cancelled;
        (shards.failed, shards.cancelled) = (0, 0);
    }
    if let Some(tasks) = &mut new.tasks {
        tasks.pending += tasks.partially_succeeded + tasks.failed + tasks.cancelled;
        (tasks.partially_succeeded, tasks.failed, tasks.cancelled) = (0, 0, 0);
    }
    new.failures.clear();
    new.elapsed_seconds = status.elapsed_seconds.map(|_| 0);
    if let Some(plan) = new.plan.as_mut().filter(|plan| plan.sealed.is_none()) {
        plan.forgiven = Some(attempts::forgive(Entries::of_plan(status.plan.as_ref()), &mut plan.folded));
    }
    // Files may be added, so the run is committed once more.
    if let Some(commit) = &mut new.commit {
        commit.result = None;
        commit.forgiven = Some(attempts::forgive(Entries::of_commit(status.commit.as_ref()), &mut commit.folded));
    }
    if let Some(before) = new.hooks.as_mut().and_then(|hooks| hooks.before_start.as_mut())
        && before.succeeded == Some(false)
    {
        before.succeeded = None;
        let entries = HookKind::BeforeStart.status(status.hooks.as_ref());
        before.forgiven = Some(attempts::forgive(Entries::of_hook(entries), &mut before.folded));
    }
    clear_ends(&mut new);
    new
}

/// The status without the folded children that a retry takes out again; how often they had been retried is kept.
pub fn unfolded(status: &CollectTaskStatus) -> CollectTaskStatus {
    let mut new = status.clone();
    if let Some(folded) = &mut new.folded
        && let Some(undone) = folded.undone.take()
        && undone.redrives > 0
    {
        folded.done.get_or_insert_default().redrives += undone.redrives;
    }
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

/// The status of a task that ended without success, with what is below counted anew; nothing if it is as it was.
///
/// A task may end before all that was created below it came into view, and that comes to its own end a little later (I10).
/// What ended well counts what was committed, whatever becomes of the objects.
pub fn recounted(status: &CollectTaskStatus, rolled: &Rolled) -> Option<CollectTaskStatus> {
    if !matches!(status.phase, Some(Phase::Failed | Phase::Cancelled)) {
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

/// Whether the difference between two statuses must be written at once; otherwise it is progress, which may wait.
pub fn is_transition(old: &CollectTaskStatus, new: &CollectTaskStatus) -> bool {
    let outcomes = |status: &CollectTaskStatus| {
        status.conditions.iter().map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone())).collect::<Vec<_>>()
    };
    let failed = |status: &CollectTaskStatus| status.shards.as_ref().map(|shards| shards.failed);
    old.phase != new.phase
        || old.observed_generation != new.observed_generation
        || old.run != new.run
        || outcomes(old) != outcomes(new)
        || failed(old) != failed(new)
        || old.plan != new.plan
        || old.commit != new.commit
        || old.hooks != new.hooks
        || old.report != new.report
        || old.retried != new.retried
        || old.redrives != new.redrives
        || old.elapsed_seconds != new.elapsed_seconds
        || old.milestones.len() != new.milestones.len()
}

/// An event worth telling: type, reason, note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whether it is a warning.
    pub warning: bool,
    /// Reason.
    pub reason: String,
    /// Note.
    pub note: String,
}

/// What a change of status tells people: transitions and milestones, never a repetition.
pub fn events(old: &CollectTaskStatus, new: &CollectTaskStatus) -> Vec<Told> {
    let mut told = Vec::new();
    if let Some(result) = new.plan.as_ref().and_then(|plan| plan.result.as_ref())
        && new.plan.as_ref().and_then(|plan| plan.sealed) != old.plan.as_ref().and_then(|plan| plan.sealed)
    {
        let records = result.records.map_or_else(|| "an unknown number of".to_owned(), |records| records.to_string());
        let note =
            format!("{} tasks, {} shards, {} items, {records} records", result.tasks, result.shards, result.items);
        told.push(Told { warning: false, reason: reason::PLANNED.into(), note });
    }
    if old.phase != new.phase
        && let Some(phase) = &new.phase
    {
        let warning = matches!(phase, Phase::Failed);
        let note = new.message.clone().unwrap_or_else(|| phase.to_string());
        if *phase != Phase::Pending {
            told.push(Told { warning, reason: phase.to_string(), note: text::cut(&note, 1000) });
        }
    }
    for slow in new.stragglers.iter().filter(|slow| !old.stragglers.iter().any(|known| known.name == slow.name)) {
        let note = format!("{} takes more than three times as long as its siblings: {}", slow.name, slow.reason);
        told.push(Told { warning: true, reason: reason::STRAGGLERS.into(), note });
    }
    if new.redrives > old.redrives && old.finished_at.is_some() && new.finished_at.is_none() {
        let note = "a retry takes up what had failed; what is committed stays".to_owned();
        told.push(Told { warning: false, reason: reason::REDRIVEN.into(), note });
    }
    for milestone in new.milestones.iter().filter(|m| m.percent < 100 && !old.milestones.contains(m)) {
        let records = new.summary.as_ref().and_then(|summary| summary.records.clone()).unwrap_or_default();
        told.push(Told {
            warning: false,
            reason: reason::MILESTONE.into(),
            note: format!("{}% done, {records} records", milestone.percent),
        });
    }
    told
}

#[cfg(test)]
mod tests {
    use collect_api::{
        Outcome,
        report::Counts,
        task::{CollectTaskSpec, CommitStatus, RecordCounts, ShardCounts},
    };

    use super::*;
    use crate::{attempts, resolve::RetryPolicy};

    fn at(second: i64) -> At {
        At { generation: Some(1), now: Timestamp::from_second(second).unwrap() }
    }

    fn begin() -> CollectTaskStatus {
        begun(&CollectTask::new("t", CollectTaskSpec::default()), 1, None, at(0).now)
    }

    fn progress(rolled: &Rolled, desired: DesiredState) -> Progress<'_> {
        Progress {
            rolled,
            desired,
            halt: None,
            tolerated: 0,
            comparison: None,
            commit: Commit::NotHere,
            report: None,
            waiting: None,
            stragglers: Vec::new(),
            token: None,
        }
    }

    fn rolled(succeeded: i32, failed: i32, total: i32) -> Rolled {
        Rolled {
            shards: ShardCounts { total, succeeded, failed, pending: total - succeeded - failed, ..Default::default() },
            records: RecordCounts {
                expected: Some(i64::from(total) * 10),
                collected: i64::from(succeeded) * 10,
                verified: None,
            },
            complete: succeeded + failed == total,
            at_rest: true,
            ..Rolled::default()
        }
    }

    fn comparison(verdict: Verdict, reason: Option<&str>) -> ValidationReportStatus {
        ValidationReportStatus {
            verdict: Some(verdict),
            reason: reason.map(Into::into),
            counts: Some(Counts { source: Some(20), collected: 20, delta: Some(0), ..Default::default() }),
            ..Default::default()
        }
    }

    fn validating() -> CollectTaskStatus {
        waiting(&begin(), Phase::Validating, reason::VALIDATING, "comparing", at(5))
    }

    fn end(verdict: Verdict, reason: Option<&str>, commit: Commit, report: bool) -> (CollectTaskStatus, Needs) {
        end_from(&validating(), verdict, reason, commit, report)
    }

    fn end_from(
        status: &CollectTaskStatus,
        verdict: Verdict,
        reason: Option<&str>,
        commit: Commit,
        report: bool,
    ) -> (CollectTaskStatus, Needs) {
        let comparison = comparison(verdict, reason);
        let rolled = rolled(2, 0, 2);
        let seen = Progress {
            comparison: Some(&comparison),
            commit,
            report: report.then(|| "t-r1".into()),
            ..progress(&rolled, DesiredState::Running)
        };
        advance(status, &seen, at(9))
    }

    fn step(
        status: &CollectTaskStatus,
        rolled: &Rolled,
        desired: DesiredState,
        second: i64,
    ) -> (CollectTaskStatus, Needs) {
        advance(status, &progress(rolled, desired), at(second))
    }

    #[test]
    fn the_end_needs_a_commit_then_a_report() {
        assert_eq!(end(Verdict::Pass, None, Commit::Open, false).1, Needs::Commit);
        assert_eq!(end(Verdict::Pass, None, Commit::Done(CommitResult::default()), false).1, Needs::Report);
        let (status, needs) = end(Verdict::Pass, None, Commit::Done(CommitResult::default()), true);
        assert_eq!((status.phase, needs), (Some(Phase::Succeeded), Needs::Nothing));
        assert!(conditions::is_true(&status.conditions, COMPLETE) && conditions::is_true(&status.conditions, VERIFIED));
        assert_eq!(status.milestones.len(), 4);
    }

    #[test]
    fn a_task_ends_only_from_validating() {
        let done = || Commit::Done(CommitResult::default());
        let (status, needs) = end_from(&begin(), Verdict::Pass, None, done(), true);
        assert_eq!((status.phase.clone(), needs), (Some(Phase::Validating), Needs::Nothing));
        assert_eq!(end_from(&status, Verdict::Pass, None, done(), true).0.phase, Some(Phase::Succeeded));
    }

    #[test]
    fn nothing_is_committed_when_the_comparison_fails() {
        let (status, needs) = end(Verdict::Fail, Some("CountsDiffer"), Commit::Open, true);
        assert_eq!((status.phase.clone(), needs), (Some(Phase::Failed), Needs::Nothing));
        assert!(conditions::is_true(&status.conditions, FAILED) && !conditions::is_true(&status.conditions, COMPLETE));
        assert!(status.conditions.iter().any(|c| c.type_ == VERIFIED && c.status == "False"));
    }

    #[test]
    fn what_can_not_be_compared_is_collected_never_succeeded() {
        let (status, _) = end(Verdict::Inconclusive, Some("NoTotal"), Commit::Done(CommitResult::default()), true);
        assert_eq!(status.phase, Some(Phase::Collected));
        assert!(
            status.conditions.iter().any(|c| c.type_ == VERIFIED && c.status == "Unknown" && c.reason == "NoTotal")
        );
        assert!(conditions::is_true(&status.conditions, COMPLETE));
    }

    #[test]
    fn progress_never_falls() {
        let (half, _) = step(&begin(), &rolled(1, 0, 2), DesiredState::Running, 5);
        assert_eq!((half.progress, half.milestones.len()), (Some(50), 2));
        let (back, _) = step(&half, &rolled(0, 0, 2), DesiredState::Running, 6);
        assert_eq!(back.progress, Some(50));
    }

    #[test]
    fn a_new_run_clears_the_ends_of_the_last_one() {
        let (mut task, (status, _)) = (
            CollectTask::new("t", CollectTaskSpec::default()),
            end(Verdict::Pass, None, Commit::Done(CommitResult::default()), true),
        );
        task.status = Some(status);
        let new = begun(&task, 2, None, at(20).now);
        assert!(!new.conditions.iter().any(|c| [COMPLETE, FAILED, VERIFIED].contains(&c.type_.as_str())));
        assert_eq!((new.run, new.progress, new.report), (Some(2), None, None));
    }

    #[test]
    fn cancel_waits_until_nothing_runs() {
        let mut busy = rolled(1, 0, 2);
        busy.at_rest = false;
        assert_eq!(step(&begin(), &busy, DesiredState::Cancelled, 5).0.phase, Some(Phase::Running));
        assert_eq!(step(&begin(), &rolled(1, 0, 2), DesiredState::Cancelled, 5).0.phase, Some(Phase::Cancelled));
    }

    #[test]
    fn what_came_into_view_after_a_cancel_is_counted_all_the_same() {
        let (cancelled, _) = step(&begin(), &rolled(0, 0, 2), DesiredState::Cancelled, 5);
        assert_eq!(recounted(&cancelled, &rolled(0, 0, 2)), None);
        let mut later = rolled(1, 0, 2);
        (later.shards.pending, later.shards.cancelled) = (0, 1);
        let counted = recounted(&cancelled, &later).unwrap();
        assert_eq!((counted.phase.as_ref(), counted.shards.as_ref()), (Some(&Phase::Cancelled), Some(&later.shards)));
        assert_eq!(recounted(&counted, &later), None);
        let (good, _) = end(Verdict::Pass, None, Commit::Done(CommitResult::default()), true);
        assert_eq!(recounted(&good, &rolled(0, 0, 2)), None, "what was collected stays collected");
    }

    #[test]
    fn events_are_told_once() {
        let (half, _) = step(&begin(), &rolled(1, 0, 2), DesiredState::Running, 5);
        assert_eq!(
            events(&begin(), &half).iter().map(|told| told.reason.as_str()).collect::<Vec<_>>(),
            ["Running", "Milestone", "Milestone"]
        );
        assert_eq!(events(&half, &half), []);
    }

    #[test]
    fn borne_failures_are_a_success_in_part() {
        let (rolled, comparison) = (rolled(1, 1, 2), comparison(Verdict::Pass, None));
        let seen = Progress {
            tolerated: 1,
            comparison: Some(&comparison),
            commit: Commit::Done(CommitResult::default()),
            report: Some("t-r1".into()),
            ..progress(&rolled, DesiredState::Running)
        };
        let (status, _) = advance(&validating(), &seen, at(9));
        assert_eq!(status.phase, Some(Phase::PartiallySucceeded));
        assert!(conditions::is_true(&status.conditions, COMPLETE));
        assert!(status.message.unwrap().contains("1 of 2 shards failed"));
    }

    #[test]
    fn a_stopped_run_fails_with_the_reason_for_which_it_was_stopped() {
        let halt = Halt { reason: reason::DEADLINE_EXCEEDED, message: "too late".into() };
        let with = |rolled: &Rolled| {
            let seen = Progress { halt: Some(&halt), ..progress(rolled, DesiredState::Cancelled) };
            advance(&begin(), &seen, at(9)).0
        };
        let mut busy = rolled(1, 0, 2);
        busy.workers = 1;
        assert_eq!(with(&busy).phase, Some(Phase::Running));
        let ended = with(&rolled(1, 0, 2));
        assert_eq!(ended.phase, Some(Phase::Failed));
        assert!(ended.conditions.iter().any(|c| c.type_ == FAILED && c.reason == "DeadlineExceeded"));
    }

    #[test]
    fn what_never_began_below_a_stopped_task_is_no_success() {
        let halt = Halt { reason: reason::DEADLINE_EXCEEDED, message: "too late".into() };
        let comparison = comparison(Verdict::Pass, None);
        let mut stopped = rolled(1, 0, 2);
        // Its one child task failed when the run was stopped, before its second shard was created.
        (stopped.tasks.total, stopped.tasks.failed, stopped.complete) = (1, 1, true);
        let end = |halt| {
            let seen = Progress {
                halt,
                comparison: Some(&comparison),
                report: Some("t-r1".into()),
                ..progress(&stopped, DesiredState::Cancelled)
            };
            let (status, _) = advance(&validating(), &seen, at(9));
            let reason = status.conditions.iter().find(|c| c.type_ == FAILED).map(|c| c.reason.clone());
            (status.phase, reason)
        };
        assert_eq!(end(Some(&halt)), (Some(Phase::Failed), Some("DeadlineExceeded".into())));
        assert_eq!(end(None), (Some(Phase::Failed), Some("Failed".into())), "even if the deadline was raised since");
    }

    #[test]
    fn what_fail_fast_stopped_elsewhere_is_no_success() {
        let halt = Halt { reason: reason::SHARDS_FAILED, message: "1 of 9 shards failed".into() };
        let comparison = comparison(Verdict::Pass, None);
        let mut stopped = rolled(1, 0, 2);
        (stopped.shards.pending, stopped.shards.cancelled, stopped.complete) = (0, 1, true);
        let seen = Progress {
            halt: Some(&halt),
            comparison: Some(&comparison),
            report: Some("t-r1".into()),
            ..progress(&stopped, DesiredState::Cancelled)
        };
        let (status, needs) = advance(&validating(), &seen, at(9));
        assert_eq!((status.phase, needs), (Some(Phase::Failed), Needs::Nothing));
    }

    #[test]
    fn a_retry_takes_a_failed_task_up_again_and_keeps_what_is_done() {
        let mut failed = failed(&begin(), Phase::Failed, reason::SHARDS_FAILED, "x", at(9));
        failed.shards = Some(ShardCounts { total: 2, succeeded: 1, failed: 1, ..Default::default() });
        failed.progress = Some(50);
        failed.folded = Some(collect_api::fold::Folded {
            done: Some(collect_api::fold::FoldedPart { shards: "0".into(), ..Default::default() }),
            undone: Some(collect_api::fold::FoldedPart { shards: "1".into(), redrives: 2, ..Default::default() }),
        });
        let again = redriven(&failed, Redrive::Here, Some("t1".into()), at(20));
        assert_eq!((again.phase.clone(), again.progress), (Some(Phase::Running), Some(50)));
        assert_eq!((again.finished_at.clone(), again.redrives), (None, Some(1)));
        assert!(!conditions::is_true(&again.conditions, FAILED));
        let shards = again.shards.unwrap();
        assert_eq!((shards.pending, shards.failed), (1, 0), "failFast would stop it again at once");
        let folded = again.folded.unwrap();
        assert_eq!((folded.undone, folded.done.unwrap().redrives), (None, 2));
    }

    #[test]
    fn a_retry_comes_from_the_path_or_from_below() {
        let mut failed = failed(&begin(), Phase::Failed, "x", "x", at(9));
        failed.redrives_below = Some(2);
        let above = |token: Option<&str>, desired| Above { desired, token: token.map(str::to_owned) };
        let running = above(None, DesiredState::Running);
        assert_eq!(is_to_be_redriven(&failed, 2, &running), None);
        assert_eq!(is_to_be_redriven(&failed, 1, &running), None, "an old view");
        assert_eq!(is_to_be_redriven(&failed, 3, &running), Some(Redrive::Below(3)));
        let token = above(Some("a"), DesiredState::Running);
        assert_eq!(is_to_be_redriven(&failed, 0, &token), Some(Redrive::Here));
        assert_eq!(is_to_be_redriven(&failed, 0, &above(Some("a"), DesiredState::Cancelled)), None);
        let mut good = failed;
        good.phase = Some(Phase::Succeeded);
        assert_eq!(is_to_be_redriven(&good, 9, &token), None, "there is nothing to retry");
    }

    /// A root in Validating with one attempt of its commit.
    fn committing(outcome: Option<Outcome>) -> CollectTaskStatus {
        let mut attempts = Vec::new();
        attempts::authorise(&mut attempts, &mut None, 0, &RetryPolicy::of(None), "me", at(6).now);
        let result = outcome.as_ref().map(|_| CommitResult::default());
        attempts[0].outcome = outcome;
        let commit = CommitStatus { attempts, result, ..CommitStatus::default() };
        CollectTaskStatus { commit: Some(commit), ..validating() }
    }

    #[test]
    fn what_was_committed_is_committed_again_when_a_retry_comes_before_the_end() {
        let comparison = comparison(Verdict::Pass, None);
        let (over, busy) = (rolled(1, 1, 2), rolled(1, 0, 2));
        let advance = |status: &CollectTaskStatus, rolled, token: Option<&str>| {
            let commit = status.commit.as_ref().and_then(|commit| commit.result.clone());
            let seen = Progress {
                comparison: Some(&comparison),
                commit: commit.map_or(Commit::Open, Commit::Done),
                tolerated: 1,
                token: token.map(str::to_owned),
                ..progress(rolled, DesiredState::Running)
            };
            advance(status, &seen, at(9))
        };
        let result = |status: &CollectTaskStatus| status.commit.as_ref().unwrap().result.clone();
        let (done, under_way) = (committing(Some(Outcome::Succeeded)), committing(None));
        let (same, needs) = advance(&done, &over, None);
        assert!(result(&same).is_some() && needs == Needs::Report);
        for (before, rolled, token, expected) in [
            (&done, &over, Some("again"), Needs::Nothing),
            (&done, &busy, None, Needs::Nothing),
            (&under_way, &over, Some("again"), Needs::CommitToLeave),
            (&under_way, &busy, None, Needs::CommitToLeave),
        ] {
            let (again, needs) = advance(before, rolled, token);
            assert_eq!((result(&again), again.redrives, needs), (None, Some(1), expected));
            // What the commit from before comes to afterwards does not count.
            let mut late = again.clone();
            let commit = late.commit.as_mut().unwrap();
            commit.result = Some(CommitResult::default());
            commit.attempts[0].outcome = Some(Outcome::Succeeded);
            let (later, _) = advance(&late, &over, token);
            assert_eq!((result(&later), later.redrives), (None, Some(1)));
        }
    }

    #[test]
    fn the_tasks_above_learn_of_a_retry_whatever_becomes_of_what_was_retried() {
        let failed = failed(&begin(), Phase::Failed, "x", "x", at(9));
        let again = redriven(&failed, Redrive::Below(1), None, at(20));
        assert_eq!((again.redrives, again.redrives_below), (Some(1), Some(1)), "its parent sees it at once");
        let without = Rolled { redrives: 0, ..rolled(1, 0, 2) };
        let (later, _) = step(&again, &without, DesiredState::Running, 21);
        assert_eq!((later.redrives, later.redrives_below), (Some(1), None), "what was retried is deleted by hand");
        assert_eq!(round(&later, 1), 2, "and retried once more");
    }

    #[test]
    fn time_to_live_counts_from_the_end() {
        let ended = failed(&begin(), Phase::Failed, "x", "x", at(100));
        let left = |second| ttl_left(&ended, Some(Duration::from_secs(60)), at(second).now);
        assert_eq!((left(130), left(999)), (Some(Duration::from_secs(30)), Some(Duration::ZERO)));
        assert_eq!(ttl_left(&ended, None, at(999).now), None);
        assert_eq!(ttl_left(&begin(), Some(Duration::ZERO), at(999).now), None, "not before it has ended");
    }
}

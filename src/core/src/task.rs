//! A task's status: where it stands, by what was rolled up, compared and committed.

use collect_api::{
    CollectTask, CollectTaskStatus, DesiredState, Phase, ValidationReportStatus,
    condition::{COMPLETE, FAILED, VERIFIED, reason},
    protocol::CommitResult,
    report::Verdict,
    task::{Milestone, ReportRef, TaskSummary},
};
use jiff::Timestamp;

use crate::{
    conditions::{self, whole_seconds},
    rollup::Rolled,
    text,
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
    /// The strictest desired state on its path.
    pub desired: DesiredState,
    /// The comparison; made when every child is over.
    pub comparison: Option<&'a ValidationReportStatus>,
    /// Where the commit stands.
    pub commit: Commit,
    /// Name of the report, if it exists with its status.
    pub report: Option<String>,
    /// Why some work waits, if it does.
    pub waiting: Option<String>,
}

/// What has to exist before the task can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The commit Job has to run.
    Commit,
    /// The report has to be written.
    Report,
}

/// The status of a run that has just begun: everything of the run before is gone (I9: only a new run leaves a terminal phase).
pub fn begun(task: &CollectTask, run: i64, now: Timestamp) -> CollectTaskStatus {
    let old = task.status.clone().unwrap_or_default();
    let generation = task.metadata.generation;
    let mut new = CollectTaskStatus {
        phase: Some(Phase::Pending),
        run: Some(run),
        started_at: Some(whole_seconds(now)),
        conditions: old.conditions,
        selector: Some(selector(task)),
        observed_generation: generation,
        ..CollectTaskStatus::default()
    };
    for type_ in [COMPLETE, FAILED, VERIFIED] {
        conditions::clear(&mut new.conditions, type_);
    }
    conditions::working(&mut new.conditions, "Pending", "the run begins", generation, now);
    new
}

/// Label selector of the worker pods below a task.
fn selector(task: &CollectTask) -> String {
    use collect_api::labels::{ROOT, TASK};
    let name = task.metadata.name.clone().unwrap_or_default();
    if task.spec.part_of.is_some() { format!("{TASK}={name}") } else { format!("{ROOT}={name}") }
}

/// The status while something other than its children is worked on or waited for.
pub fn waiting(
    status: &CollectTaskStatus,
    phase: Phase,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> CollectTaskStatus {
    let mut new = status.clone();
    new.phase = Some(phase);
    new.message = Some(text::cut(message, 1024));
    new.observed_generation = generation;
    conditions::working(&mut new.conditions, reason, message, generation, now);
    new
}

/// The status of a task that can't go on without help, without being over.
pub fn stuck(
    status: &CollectTaskStatus,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> CollectTaskStatus {
    let mut new = status.clone();
    new.message = Some(text::cut(message, 1024));
    new.observed_generation = generation;
    conditions::stalled(&mut new.conditions, reason, message, generation, now);
    new
}

/// The status of a task that is over without success.
pub fn failed(
    status: &CollectTaskStatus,
    phase: Phase,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> CollectTaskStatus {
    let mut new = status.clone();
    new.phase = Some(phase);
    new.message = Some(text::cut(message, 1024));
    new.observed_generation = generation;
    new.finished_at = Some(whole_seconds(now));
    new.workers = Some(0);
    conditions::set(&mut new.conditions, FAILED, "True", reason, message, generation, now);
    conditions::stalled(&mut new.conditions, reason, message, generation, now);
    new
}

/// The status of a task whose plan is sealed, and what it needs before it can end.
pub fn advance(
    status: &CollectTaskStatus,
    seen: &Progress<'_>,
    generation: Option<i64>,
    now: Timestamp,
) -> (CollectTaskStatus, Needs) {
    let rolled = seen.rolled;
    let mut new = numbers(status, rolled, now);
    new.observed_generation = generation;
    if seen.desired == DesiredState::Cancelled && !rolled.complete {
        if rolled.at_rest && rolled.workers == 0 {
            return (
                failed(
                    &new,
                    Phase::Cancelled,
                    reason::CANCELLED,
                    "cancelled by desiredState; what was committed stays at the sink",
                    generation,
                    now,
                ),
                Needs::Nothing,
            );
        }
        return (
            waiting(&new, Phase::Running, reason::CANCELLED, "workers are being stopped", generation, now),
            Needs::Nothing,
        );
    }
    if !rolled.complete {
        let message = seen.waiting.clone().unwrap_or_else(|| progress_message(rolled));
        return match seen.desired {
            DesiredState::Paused => (
                waiting(
                    &new,
                    Phase::Paused,
                    reason::PAUSED,
                    "paused by desiredState; set it to Running to go on",
                    generation,
                    now,
                ),
                Needs::Nothing,
            ),
            DesiredState::Running | DesiredState::Cancelled => {
                (waiting(&new, Phase::Running, reason::RUNNING, &message, generation, now), Needs::Nothing)
            }
        };
    }
    let Some(comparison) = seen.comparison else {
        return (
            waiting(&new, Phase::Validating, reason::VALIDATING, "comparing with the source", generation, now),
            Needs::Nothing,
        );
    };
    if rolled.tasks.cancelled + rolled.shards.cancelled > 0 && rolled.tasks.failed + rolled.shards.failed == 0 {
        let message = format!("{} of {} shards were cancelled", rolled.shards.cancelled, rolled.shards.total);
        return (failed(&new, Phase::Cancelled, reason::CANCELLED, &message, generation, now), Needs::Nothing);
    }
    let verdict = comparison.verdict.clone().unwrap_or(Verdict::Inconclusive);
    if verdict != Verdict::Fail {
        match &seen.commit {
            Commit::Open => {
                return (
                    waiting(
                        &new,
                        Phase::Validating,
                        reason::VALIDATING,
                        "writing the run's file list",
                        generation,
                        now,
                    ),
                    Needs::Commit,
                );
            }
            Commit::Failed(why) => {
                return (failed(&new, Phase::Failed, reason::COMMIT_FAILED, why, generation, now), Needs::Nothing);
            }
            Commit::NotHere | Commit::Done(_) => {}
        }
    }
    let Some(report) = &seen.report else {
        return (
            waiting(&new, Phase::Validating, reason::VALIDATING, "writing the report", generation, now),
            Needs::Report,
        );
    };
    new.report = Some(ReportRef { name: report.clone(), verdict: verdict.clone() });
    (ended(new, rolled, comparison, &verdict, report, generation, now), Needs::Nothing)
}

fn ended(
    mut new: CollectTaskStatus,
    rolled: &Rolled,
    comparison: &ValidationReportStatus,
    verdict: &Verdict,
    report: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> CollectTaskStatus {
    let counts = comparison.counts.clone().unwrap_or_default();
    let why = comparison.reason.clone().unwrap_or_default();
    let advice = comparison.recommendations.first().cloned().unwrap_or_default();
    let collected = counts.collected;
    let summary = new.summary.get_or_insert_default();
    summary.match_ = counts.source.map(|source| text::matched(source, collected));
    match verdict {
        Verdict::Pass => {
            let message = format!("{collected} records collected, as many as the source holds; see report {report}");
            new.phase = Some(Phase::Succeeded);
            if let Some(records) = &mut new.records {
                records.verified = Some(collected);
            }
            conditions::set(&mut new.conditions, VERIFIED, "True", reason::SUCCEEDED, &message, generation, now);
            conditions::set(&mut new.conditions, COMPLETE, "True", reason::SUCCEEDED, &message, generation, now);
            conditions::ready(&mut new.conditions, reason::SUCCEEDED, &message, generation, now);
            new.message = Some(message);
        }
        Verdict::Inconclusive | Verdict::Other(_) => {
            let message = format!("{collected} records collected, not verified ({why}). {advice}");
            new.phase = Some(Phase::Collected);
            conditions::set(&mut new.conditions, VERIFIED, "Unknown", &why, &message, generation, now);
            conditions::set(&mut new.conditions, COMPLETE, "True", reason::COLLECTED, &message, generation, now);
            conditions::ready(&mut new.conditions, reason::COLLECTED, &message, generation, now);
            new.message = Some(text::cut(&message, 1024));
        }
        Verdict::Fail => {
            let shards_failed = why == reason::SHARDS_FAILED;
            let (reason, message) = if shards_failed {
                let first = rolled
                    .failures
                    .first()
                    .map(|failure| format!("; the first, {}: {}", failure.name, failure.message))
                    .unwrap_or_default();
                (
                    reason::SHARDS_FAILED,
                    format!("{} of {} shards failed{first}", rolled.shards.failed, rolled.shards.total),
                )
            } else {
                let source = counts.source.map_or_else(|| "unknown".to_owned(), |source| source.to_string());
                (
                    reason::VALIDATION_FAILED,
                    format!(
                        "{why}: the source holds {source} records, {collected} were collected; see report {report}. {advice}"
                    ),
                )
            };
            new = failed(&new, Phase::Failed, reason, &message, generation, now);
            if !shards_failed {
                conditions::set(&mut new.conditions, VERIFIED, "False", &why, &message, generation, now);
            }
            return new;
        }
    }
    finish_numbers(&mut new, now);
    new
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
fn numbers(status: &CollectTaskStatus, rolled: &Rolled, now: Timestamp) -> CollectTaskStatus {
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

fn milestones(new: &mut CollectTaskStatus, now: Timestamp) {
    let progress = new.progress.unwrap_or(0);
    for percent in MILESTONES {
        if progress >= percent && !new.milestones.iter().any(|milestone| milestone.percent == percent) {
            new.milestones.push(Milestone { percent, at: whole_seconds(now) });
        }
    }
}

fn progress_message(rolled: &Rolled) -> String {
    let shards = &rolled.shards;
    let mut message = format!("{} of {} shards done, {} running", shards.succeeded, shards.total, shards.running);
    if shards.failed > 0 {
        message.push_str(&format!(", {} failed", shards.failed));
    }
    if shards.retries > 0 {
        message.push_str(&format!(", {} attempts repeated", shards.retries));
    }
    message
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
        || old.report != new.report
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
        report::Counts,
        task::{CollectTaskSpec, RecordCounts, ShardCounts},
    };

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn begin() -> CollectTaskStatus {
        begun(&CollectTask::new("t", CollectTaskSpec::default()), 1, at(0))
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

    fn end(verdict: Verdict, reason: Option<&str>, commit: Commit, report: bool) -> (CollectTaskStatus, Needs) {
        let comparison = comparison(verdict, reason);
        let seen = Progress {
            rolled: &rolled(2, 0, 2),
            desired: DesiredState::Running,
            comparison: Some(&comparison),
            commit,
            report: report.then(|| "t-r1".into()),
            waiting: None,
        };
        advance(&begin(), &seen, Some(1), at(9))
    }

    fn step(
        status: &CollectTaskStatus,
        rolled: &Rolled,
        desired: DesiredState,
        second: i64,
    ) -> (CollectTaskStatus, Needs) {
        let seen = Progress { rolled, desired, comparison: None, commit: Commit::NotHere, report: None, waiting: None };
        advance(status, &seen, Some(1), at(second))
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
        let new = begun(&task, 2, at(20));
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
    fn events_are_told_once() {
        let (half, _) = step(&begin(), &rolled(1, 0, 2), DesiredState::Running, 5);
        assert_eq!(
            events(&begin(), &half).iter().map(|told| told.reason.as_str()).collect::<Vec<_>>(),
            ["Running", "Milestone", "Milestone"]
        );
        assert_eq!(events(&half, &half), []);
    }
}

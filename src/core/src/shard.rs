//! A shard's status: each function gives the whole new status for one transition.

use std::time::Duration;

use crate::{
    attempts::{self, Entries},
    conditions::{self, At, whole_seconds},
    exit::{RetryClass, retry_class},
    ledger::{self, Ended, Finish, Seen, Step, Watched},
    resolve::RetryPolicy,
    text,
};
use collect_api::{
    Attempt, CollectShardStatus, DesiredState, Outcome,
    condition::{COMPLETE, FAILED, READY, STALLED, reason},
    protocol::{Checkpoint, ProgressReport, WorkResult},
    shard::{ShardPhase, ShardProgress, ShardSummary},
};

/// The status with the next attempt authorised.
pub fn authorised(status: &CollectShardStatus, policy: &RetryPolicy, me: &str, at: At) -> CollectShardStatus {
    let mut new = status.clone();
    let forgiven = status.forgiven.unwrap_or_default();
    let n = attempts::authorise(&mut new.attempts, &mut new.folded, forgiven, policy, me, at.now);
    new.attempt = Some(n);
    new.phase = Some(ShardPhase::Running);
    new.message = None;
    new.observed_generation = at.generation;
    new
}

/// What the end of an attempt is recorded for.
#[derive(Clone, Copy, Debug)]
pub struct Recording<'a> {
    /// Uid of the shard; seeds the jitter of the backoff.
    pub uid: &'a str,
    /// Records that the plan expects, where it knows.
    pub expected: Option<i64>,
    /// Limits on attempts.
    pub policy: &'a RetryPolicy,
    /// The retry tokens that hold for it.
    pub token: Option<&'a str>,
}

/// The status with the end of attempt n recorded, and with the shard's own end where that follows from it: one write.
pub fn recorded(
    status: &CollectShardStatus,
    n: i32,
    end: &Ended,
    recording: &Recording<'_>,
    at: At,
) -> CollectShardStatus {
    let mut end = end.clone();
    let result = match &end.message.result {
        Some(WorkResult::Collect(result)) => Some(result.clone()),
        _ => None,
    };
    let claims_done = end.outcome.as_ref().is_some_and(|outcome| retry_class(outcome) == RetryClass::Done);
    if claims_done && result.is_none() {
        // Without the numbers the shard can't be counted; the next attempt reads them from the manifest.
        end.outcome = Some(Outcome::Lost);
        end.system_message =
            Some("the worker ended well but left no result; the next attempt reads it from the manifest".into());
    }
    let mut new = status.clone();
    let used = Entries::of_shard(status).used(recording.policy);
    attempts::record(&mut new.attempts, &used, n, &end, recording.policy, recording.uid, at.now);
    if let Some(checkpoint) = end.message.checkpoint.as_ref().filter(|new| is_ahead(status.checkpoint.as_ref(), new)) {
        new.checkpoint = Some(checkpoint.clone());
    }
    new.phase = Some(ShardPhase::Pending);
    new.observed_generation = at.generation;
    let last = new.attempts.last();
    new.message = last.and_then(|attempt| attempt.message.clone()).filter(|_| !claims_done);
    if let Some(result) = result.filter(|_| claims_done) {
        let total = Some(result.tally.source).filter(|_| result.tally.without_total == 0);
        new.summary = Some(ShardSummary {
            progress: Some("100%".into()),
            records: Some(text::of(result.tally.records, recording.expected.or(total))),
            rate: last.and_then(|attempt| {
                let (from, to) = (attempt.started_at.as_ref()?, attempt.finished_at.as_ref()?);
                text::rate(attempt.records?, to.0.duration_since(from.0).as_secs_f64().max(1.0))
            }),
        });
        new.result = Some(result);
        return finished(&new, &Finish::Done, recording.token, at);
    }
    match ledger::decide(Entries::of_shard(&new), recording.policy, &Seen::nothing(), at.now) {
        Step::Finish(finish) => finished(&new, &finish, recording.token, at),
        _ => new,
    }
}

/// The status at the end of the shard. Without success it remembers the retry tokens that held.
pub fn finished(status: &CollectShardStatus, finish: &Finish, token: Option<&str>, at: At) -> CollectShardStatus {
    let mut new = status.clone();
    new.observed_generation = at.generation;
    match finish {
        Finish::Done => {
            let message = "the slice is committed at the sink";
            new.phase = Some(ShardPhase::Succeeded);
            new.message = None;
            // What led to the result is told by the manifest; the object stays small.
            new.checkpoint = None;
            new.progress = None;
            conditions::clear(&mut new.conditions, FAILED);
            conditions::set(&mut new.conditions, COMPLETE, "True", reason::SUCCEEDED, message, at);
            conditions::ready(&mut new.conditions, reason::SUCCEEDED, message, at);
        }
        Finish::Failed(why) => {
            new.phase = Some(ShardPhase::Failed);
            new.message = Some(text::cut(why, 1024));
            new.retried = token.map(str::to_owned);
            conditions::set(&mut new.conditions, FAILED, "True", reason::FAILED, why, at);
            conditions::stalled(&mut new.conditions, reason::FAILED, why, at);
        }
        Finish::Cancelled => {
            let message = "cancelled by desiredState, or because its task ended";
            new.phase = Some(ShardPhase::Cancelled);
            new.message = Some(message.into());
            new.retried = token.map(str::to_owned);
            conditions::set(&mut new.conditions, FAILED, "True", reason::CANCELLED, message, at);
        }
    }
    new
}

/// The status of a shard that a retry takes up again: budgets anew, attempt numbers and checkpoint as they were.
pub fn redriven(status: &CollectShardStatus, token: Option<&str>, at: At) -> CollectShardStatus {
    let mut new = status.clone();
    new.forgiven = Some(attempts::forgive(Entries::of_shard(status), &mut new.folded));
    new.redrives = Some(status.redrives.unwrap_or_default() + 1);
    new.retried = token.map(str::to_owned);
    new.phase = Some(ShardPhase::Pending);
    new.message = Some("taken up again by a retry".into());
    new.observed_generation = at.generation;
    conditions::clear(&mut new.conditions, FAILED);
    conditions::clear(&mut new.conditions, READY);
    conditions::clear(&mut new.conditions, STALLED);
    new
}

/// How long a pod may wait before its shard says so: each telling costs two writes.
const TOLD_AFTER: Duration = Duration::from_secs(20);
/// How long a worker runs before a first attempt that stands in the spec only is entered in the status, if no report of the worker
/// does so: what ends sooner costs one write less.
const ENTERED_AFTER: Duration = Duration::from_secs(5);

/// The status of a shard that waits, if that is worth a write. `why` says what it waits for, if it is not its worker's end.
pub fn waiting(
    status: &CollectShardStatus,
    why: Option<&(&'static str, String)>,
    watched: Watched,
    desired: DesiredState,
    generation: Option<i64>,
) -> Option<CollectShardStatus> {
    let live = status.attempts.last().is_some_and(Attempt::is_live);
    let (phase, message) = match why {
        // Most pods wait for a moment, and in a busy cluster for some more: only those that go on waiting are told of.
        Some((reason::POD_PENDING, _)) if watched.state < TOLD_AFTER => return None,
        Some((reason::POD_PENDING | reason::JOB_REFUSED, message)) => (ShardPhase::Pending, Some(message)),
        Some((reason::PAUSED, message)) => (ShardPhase::Paused, Some(message)),
        Some(_) => return None,
        None if entered_in(status, watched).is_some_and(|left| left.is_zero()) => (ShardPhase::Running, None),
        None if live && status.phase != Some(ShardPhase::Running) => (ShardPhase::Running, None),
        None if !live && status.phase == Some(ShardPhase::Paused) && desired == DesiredState::Running => {
            (ShardPhase::Pending, None)
        }
        None => return None,
    };
    let mut new = status.clone();
    new.phase = Some(phase);
    new.message = message.map(|message| text::cut(message, 1024));
    new.observed_generation = generation;
    Some(new)
}

/// How long until a first attempt that stands in the spec only is to be entered in the status; nothing while its pod does not run.
pub fn entered_in(status: &CollectShardStatus, watched: Watched) -> Option<Duration> {
    let live = status.attempts.last().is_some_and(Attempt::is_live);
    let runs = watched.runs.filter(|_| live && !is_written(status))?;
    Some(ENTERED_AFTER.saturating_sub(runs))
}

/// Whether an operator has written anything to this status.
fn is_written(status: &CollectShardStatus) -> bool {
    status.observed_generation.is_some_and(|generation| generation >= 0)
}

/// Whether a checkpoint may take another's place: it never goes backwards (I8).
pub fn is_ahead(old: Option<&Checkpoint>, new: &Checkpoint) -> bool {
    old.is_none_or(|old| new.seq > old.seq)
}

/// The status with a worker's report taken in; nothing where the report is old or from another attempt than the live one.
pub fn progressed(
    status: &CollectShardStatus,
    expected: Option<i64>,
    report: &ProgressReport,
    at: At,
) -> Option<CollectShardStatus> {
    let attempt = status.attempts.last().filter(|attempt| attempt.n == report.attempt && attempt.is_live())?;
    if status.progress.as_ref().is_some_and(|old| old.attempt == report.attempt && old.seq >= report.seq) {
        return None;
    }
    let mut new = status.clone();
    let expected = report.expected.or(expected);
    let seconds = at.now.duration_since(attempt.authorised_at.0).as_secs_f64();
    new.observed_generation = at.generation;
    new.progress = Some(ShardProgress {
        attempt: report.attempt,
        seq: report.seq,
        stage: text::cut(&report.stage, 63),
        records: report.records.max(0),
        bytes: report.bytes.max(0),
        expected,
        at: whole_seconds(at.now),
    });
    new.summary = Some(ShardSummary {
        progress: expected.map(|expected| format!("{}%", text::percent(report.records, expected))),
        records: Some(text::of(report.records, expected)),
        rate: text::rate(report.records, seconds),
    });
    if let Some(checkpoint) = report.checkpoint.as_ref().filter(|new| is_ahead(status.checkpoint.as_ref(), new)) {
        new.checkpoint = Some(checkpoint.clone());
    }
    Some(new)
}

#[cfg(test)]
mod tests {
    use collect_api::protocol::{CollectResult, Tally, TerminationMessage};
    use jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> At {
        At { generation: Some(1), now: Timestamp::from_second(second).unwrap() }
    }

    fn running() -> CollectShardStatus {
        authorised(&CollectShardStatus::default(), &RetryPolicy::of(None), "me", at(0))
    }

    fn record(status: &CollectShardStatus, end: &Ended) -> CollectShardStatus {
        let recording =
            Recording { uid: "uid", expected: Some(10), policy: &RetryPolicy::of(None), token: Some("first") };
        recorded(status, 1, end, &recording, at(60))
    }

    fn success(records: i64) -> Ended {
        let tally = Tally { records, source: records, ..Tally::default() };
        let result = Some(WorkResult::Collect(CollectResult { tally, ..CollectResult::default() }));
        Ended {
            outcome: Some(Outcome::Succeeded),
            message: TerminationMessage { result, ..Default::default() },
            ..Ended::default()
        }
    }

    #[test]
    fn a_first_attempt_in_the_spec_is_entered_once_its_worker_goes_on() {
        let mut status = running();
        status.observed_generation = Some(-1);
        let waits = |status: &_, seconds| {
            let watched = Watched { runs: Some(Duration::from_secs(seconds)), ..Watched::default() };
            waiting(status, None, watched, DesiredState::Running, Some(1))
        };
        assert_eq!(waits(&status, 4), None);
        let entered = waits(&status, 5).unwrap();
        assert_eq!((entered.phase.clone(), entered.observed_generation), (Some(ShardPhase::Running), Some(1)));
        assert_eq!(waits(&entered, 60), None);
    }

    #[test]
    fn outcome_and_end_are_one_write() {
        let new = record(&running(), &success(10));
        assert_eq!(new.phase, Some(ShardPhase::Succeeded));
        assert_eq!(new.summary.unwrap().records.unwrap(), "10/10");
        assert!(conditions::is_true(&new.conditions, COMPLETE));
    }

    #[test]
    fn success_without_a_result_is_not_believed() {
        let end = Ended { outcome: Some(Outcome::Succeeded), ..Ended::default() };
        let new = record(&running(), &end);
        assert_eq!(new.phase, Some(ShardPhase::Pending));
        assert_eq!(new.attempts[0].outcome, Some(Outcome::Lost));
    }

    #[test]
    fn a_permanent_error_ends_the_shard_in_the_same_write() {
        let end = Ended {
            outcome: Some(Outcome::Permanent),
            system_message: Some("no such path".into()),
            ..Ended::default()
        };
        let new = record(&running(), &end);
        assert_eq!(new.phase, Some(ShardPhase::Failed));
        assert!(new.message.unwrap().contains("no such path"));
    }

    #[test]
    fn a_retry_takes_up_what_failed_with_its_checkpoint() {
        let mut end = Ended { outcome: Some(Outcome::Permanent), ..Ended::default() };
        end.message.checkpoint = Some(Checkpoint { seq: 3, ..Checkpoint::default() });
        let failed = record(&running(), &end);
        assert_eq!(failed.retried.as_deref(), Some("first"), "it remembers what held when it failed");
        let again = redriven(&failed, Some("second"), at(90));
        assert_eq!(
            (again.phase.clone(), again.redrives, again.forgiven),
            (Some(ShardPhase::Pending), Some(1), Some(1))
        );
        assert_eq!(again.checkpoint.as_ref().unwrap().seq, 3);
        assert!(again.conditions.is_empty(), "{:?}", again.conditions);
        let second = authorised(&again, &RetryPolicy::of(None), "me", at(91));
        assert_eq!(second.attempt, Some(2));
    }

    #[test]
    fn a_checkpoint_never_goes_backwards_and_a_zombies_report_is_refused() {
        let report = |attempt, seq, checkpoint| ProgressReport {
            attempt,
            seq,
            stage: "reading".into(),
            records: 5,
            bytes: 50,
            expected: None,
            checkpoint: Some(Checkpoint { seq: checkpoint, ..Checkpoint::default() }),
            requests: 0,
            retries: 0,
        };
        let first = progressed(&running(), Some(10), &report(1, 1, 4), at(9)).unwrap();
        assert_eq!(first.summary.clone().unwrap().progress.unwrap(), "50%");
        let second = progressed(&first, Some(10), &report(1, 2, 3), at(9)).unwrap();
        assert_eq!(second.checkpoint.unwrap().seq, 4);
        assert!(progressed(&first, Some(10), &report(1, 1, 9), at(9)).is_none(), "an old report");
        assert!(progressed(&first, Some(10), &report(2, 5, 9), at(9)).is_none(), "another attempt's");
        assert!(progressed(&record(&first, &success(1)), Some(10), &report(1, 3, 9), at(9)).is_none(), "after the end");
    }
}

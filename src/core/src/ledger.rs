//! The attempt ledger: what to do next for one piece of work (a shard, a plan, a commit), whoever carries it out.
//!
//! I1: at most one Job ever exists for (uid, n). I3: n+1 only after n is terminal, Lost, Abandoned or timed out, and only the
//! process that authorised n may create its Job. The ledger does not know what a Job is: it is told of "the worker".

use std::time::Duration;

use collect_api::{Attempt, DesiredState, Outcome, protocol::TerminationMessage, shard::FoldedAttempts};
use jiff::Timestamp;

use crate::{
    conditions::whole_seconds,
    exit::{RetryClass, retry_class},
    resolve::{ABANDON_AFTER, RetryPolicy, STOP_GRACE},
    text,
};

/// Attempts that stay listed.
pub const LISTED: usize = 8;

/// What this process knows of its own create of attempt n's worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Post {
    /// It has not tried, or another process authorised the attempt.
    NotTried,
    /// It was refused for certain (quota, admission); it may be tried again after the wait.
    Refused {
        /// What the API server said.
        message: String,
        /// How long ago.
        ago: Duration,
        /// How often in a row.
        times: u32,
    },
    /// It was created.
    Sent,
    /// The answer was lost: it may exist.
    Unknown,
}

/// The worker of the live attempt, as observed.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerSeen {
    /// It is in no cache, and nobody has looked with a quorum read.
    Unseen,
    /// A quorum read says that it does not exist.
    Absent,
    /// It exists and has not ended.
    Active {
        /// Somebody deletes it.
        deleting: bool,
        /// Why its pod does not start, if it does not.
        pending: Option<String>,
    },
    /// Its end is known.
    Ended(Box<Ended>),
    /// It has ended, and how is not known yet (its pod has not been seen).
    EndedUnread,
    /// It is gone, but its pod still runs.
    Leaving,
}

/// How a worker ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ended {
    /// Outcome by exit code or condition.
    pub outcome: Option<Outcome>,
    /// Its last words.
    pub message: TerminationMessage,
    /// What the system says where the worker said nothing.
    pub system_message: Option<String>,
    /// Name and uid of the Job.
    pub job: Option<(String, String)>,
    /// Name of the pod.
    pub pod: Option<String>,
    /// Node of the pod.
    pub node: Option<String>,
    /// When the container started.
    pub started_at: Option<Timestamp>,
    /// Exit code of the container.
    pub exit_code: Option<i32>,
}

/// What was observed of a piece of work.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// Random id of this process.
    pub me: &'a str,
    /// Uid of the object that holds the ledger; seeds the jitter.
    pub uid: &'a str,
    /// The strictest desired state on the path.
    pub desired: DesiredState,
    /// Whether admission has given it a slot.
    pub admitted: bool,
    /// The worker of the live attempt.
    pub worker: WorkerSeen,
    /// What this process knows of its own create.
    pub post: Post,
    /// How long this process has watched the live attempt in its present state.
    pub watched_for: Duration,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing, until something happens or the time is over.
    Wait {
        /// When to look again.
        after: Option<Duration>,
        /// Why, for people.
        why: Option<(&'static str, String)>,
    },
    /// Look with a quorum read whether the worker exists, and decide again.
    Look,
    /// Add attempt n to the ledger by compare-and-swap.
    Authorise(i32),
    /// Create the worker of attempt n.
    Create(i32),
    /// Stop the worker of attempt n.
    Stop(i32),
    /// Record how attempt n ended.
    Record(i32, Box<Ended>),
    /// The work is over.
    Finish(Finish),
}

/// How work ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Its last attempt did it.
    Done,
    /// The last attempt's error was permanent, or a budget is used up.
    Failed(String),
    /// Cancelled by hand.
    Cancelled,
}

/// The budgets as used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Attempts that count against maxAttempts.
    pub failures: i32,
    /// Attempts that count against maxDisruptions.
    pub disruptions: i32,
}

/// Number of the next attempt; numbers are never used again.
pub fn next_attempt(attempts: &[Attempt], folded: Option<&FoldedAttempts>) -> i32 {
    attempts.last().map(|attempt| attempt.n).or(folded.map(|folded| folded.last)).unwrap_or(0) + 1
}

/// The budgets as used so far.
pub fn used(attempts: &[Attempt], folded: Option<&FoldedAttempts>) -> Used {
    let start =
        folded.map_or(Used::default(), |folded| Used { failures: folded.failures, disruptions: folded.disruptions });
    attempts.iter().filter_map(|attempt| attempt.outcome.as_ref()).fold(start, |mut used, outcome| {
        match retry_class(outcome) {
            RetryClass::Failure | RetryClass::Final => used.failures += 1,
            RetryClass::Disruption => used.disruptions += 1,
            RetryClass::Done | RetryClass::Free => {}
        }
        used
    })
}

/// What to do next for a piece of work.
///
/// Pure: the same arguments always give the same step.
pub fn decide(
    attempts: &[Attempt],
    folded: Option<&FoldedAttempts>,
    policy: &RetryPolicy,
    seen: &Seen<'_>,
    now: Timestamp,
) -> Step {
    match attempts.last() {
        Some(attempt) if attempt.is_live() => live(attempt, seen),
        last => between(last, attempts, folded, policy, seen, now),
    }
}

/// An attempt is authorised and has no recorded end.
fn live(attempt: &Attempt, seen: &Seen<'_>) -> Step {
    let n = attempt.n;
    let mine = attempt.authorised_by == seen.me;
    let wanted = seen.desired == DesiredState::Running;
    match &seen.worker {
        // A terminal outcome wins over pause and cancel.
        WorkerSeen::Ended(end) => Step::Record(n, end.clone()),
        // The pod's last words come a little later than the Job's condition, over another watch.
        WorkerSeen::EndedUnread if seen.watched_for < Duration::from_secs(10) => wait(Duration::from_millis(500)),
        WorkerSeen::EndedUnread => Step::Record(
            n,
            ended(
                Outcome::Lost,
                "the worker has ended and its pod is gone, so its result is not known; the next attempt finds it at the sink",
            ),
        ),
        WorkerSeen::Active { deleting: true, .. } | WorkerSeen::Leaving => {
            if seen.watched_for < STOP_GRACE {
                wait(Duration::from_secs(1))
            } else {
                Step::Record(n, gone(wanted))
            }
        }
        WorkerSeen::Active { .. } if !wanted => Step::Stop(n),
        WorkerSeen::Active { pending: Some(why), .. } => Step::Wait {
            after: Some(Duration::from_secs(5)),
            why: Some((collect_api::condition::reason::POD_PENDING, why.clone())),
        },
        WorkerSeen::Active { pending: None, .. } => Step::Wait { after: None, why: None },
        WorkerSeen::Unseen | WorkerSeen::Absent => match (&seen.post, mine) {
            // Known not to exist: this process alone may create it, and has not.
            (Post::NotTried, true) if wanted => Step::Create(n),
            (Post::NotTried | Post::Refused { .. }, true) if !wanted => {
                Step::Record(n, ended(Outcome::Stopped, "stopped before its worker was created"))
            }
            (Post::Refused { message, ago, times }, true) => {
                let pause = Duration::from_secs(5) * (*times).clamp(1, 12);
                if *ago >= pause {
                    Step::Create(n)
                } else {
                    Step::Wait {
                        after: Some(pause.saturating_sub(*ago)),
                        why: Some((collect_api::condition::reason::JOB_REFUSED, message.clone())),
                    }
                }
            }
            (_, true) => match seen.worker {
                WorkerSeen::Absent if seen.post == Post::Unknown => Step::Record(
                    n,
                    ended(Outcome::Abandoned, "the answer to its creation was lost, and its Job is not there"),
                ),
                WorkerSeen::Absent => Step::Record(n, gone(wanted)),
                _ => Step::Look,
            },
            // Another process authorised it: it may be about to create the worker.
            (_, false) if seen.watched_for < ABANDON_AFTER => wait(ABANDON_AFTER.saturating_sub(seen.watched_for)),
            (_, false) => match seen.worker {
                WorkerSeen::Absent => Step::Record(
                    n,
                    ended(
                        Outcome::Abandoned,
                        "it was authorised by an operator process that is gone, and its Job was never seen",
                    ),
                ),
                _ => Step::Look,
            },
        },
    }
}

/// No attempt is live.
fn between(
    last: Option<&Attempt>,
    attempts: &[Attempt],
    folded: Option<&FoldedAttempts>,
    policy: &RetryPolicy,
    seen: &Seen<'_>,
    now: Timestamp,
) -> Step {
    let used = used(attempts, folded);
    match last.and_then(|attempt| attempt.outcome.as_ref()).map(retry_class) {
        Some(RetryClass::Done) => return Step::Finish(Finish::Done),
        Some(RetryClass::Final) => return Step::Finish(Finish::Failed(said(last))),
        Some(RetryClass::Failure | RetryClass::Disruption | RetryClass::Free) | None => {}
    }
    if seen.desired == DesiredState::Cancelled {
        return Step::Finish(Finish::Cancelled);
    }
    if used.failures >= policy.max_attempts {
        return Step::Finish(Finish::Failed(format!(
            "{} of {} attempts failed; the last: {}",
            used.failures,
            policy.max_attempts,
            said(last)
        )));
    }
    if used.disruptions > policy.max_disruptions {
        return Step::Finish(Finish::Failed(format!(
            "disrupted {} times, more than retry.maxDisruptions; the last: {}",
            used.disruptions,
            said(last)
        )));
    }
    if seen.desired == DesiredState::Paused {
        return Step::Wait {
            after: None,
            why: Some((collect_api::condition::reason::PAUSED, "paused by desiredState".into())),
        };
    }
    if let Some(left) = last.and_then(|attempt| backoff_left(attempt, now)) {
        return Step::Wait {
            after: Some(left),
            why: Some((
                collect_api::condition::reason::RETRYING,
                format!("the next attempt starts in {} s; the last: {}", left.as_secs() + 1, said(last)),
            )),
        };
    }
    if seen.admitted { Step::Authorise(next_attempt(attempts, folded)) } else { Step::Wait { after: None, why: None } }
}

/// Time until the next attempt may start, if it may not yet.
pub fn backoff_left(attempt: &Attempt, now: Timestamp) -> Option<Duration> {
    let until = attempt.retry_after.as_ref()?.0;
    Duration::try_from(until.duration_since(now)).ok().filter(|left| !left.is_zero())
}

/// Adds attempt n.
pub fn authorise(attempts: &mut Vec<Attempt>, folded: &mut Option<FoldedAttempts>, n: i32, me: &str, now: Timestamp) {
    attempts.push(Attempt {
        n,
        authorised_by: me.to_owned(),
        authorised_at: whole_seconds(now),
        outcome: None,
        reason: None,
        message: None,
        finished_at: None,
        retry_after: None,
        job: None,
        job_uid: None,
        pod: None,
        node: None,
        started_at: None,
        exit_code: None,
        records: None,
        peak_memory_bytes: None,
        cpu_seconds: None,
    });
    while attempts.len() > LISTED {
        let oldest = attempts.remove(0);
        let before = used(std::slice::from_ref(&oldest), folded.as_ref());
        *folded = Some(FoldedAttempts { last: oldest.n, failures: before.failures, disruptions: before.disruptions });
    }
}

/// Records how attempt n ended: once, never over an outcome that stands already (I9).
pub fn record(
    attempts: &mut [Attempt],
    folded: Option<&FoldedAttempts>,
    n: i32,
    end: &Ended,
    policy: &RetryPolicy,
    uid: &str,
    now: Timestamp,
) {
    let failures_before = used(attempts, folded).failures;
    let Some(attempt) = attempts.iter_mut().find(|attempt| attempt.n == n && attempt.is_live()) else { return };
    let outcome = end.outcome.clone().unwrap_or(Outcome::Lost);
    let error = end.message.error.as_ref();
    let wait = match retry_class(&outcome) {
        RetryClass::Failure => Some(policy.backoff(failures_before + 1, &[uid, &n.to_string()])),
        // Free attempts must not spin: what ends at once comes back at a walking pace.
        RetryClass::Free | RetryClass::Disruption => {
            Some(error.and_then(|error| error.retry_after_ms).map_or(Duration::from_secs(1), Duration::from_millis))
        }
        RetryClass::Done | RetryClass::Final => None,
    };
    attempt.retry_after = wait
        .and_then(|wait| now.checked_add(wait).ok())
        .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time)
        .map(|time| whole_seconds_up(&time));
    attempt.reason = error.map(|error| text::cut(&error.reason, 63)).or_else(|| Some(outcome.to_string()));
    attempt.message = error
        .map(|error| text::cut(&error.message, 1024))
        .or_else(|| end.system_message.as_deref().map(|message| text::cut(message, 1024)));
    attempt.outcome = Some(outcome);
    attempt.finished_at = Some(whole_seconds(now));
    if let Some((name, uid)) = &end.job {
        attempt.job = Some(name.clone());
        attempt.job_uid = Some(uid.clone());
    }
    attempt.pod = end.pod.clone();
    attempt.node = end.node.clone();
    attempt.started_at = end.started_at.map(whole_seconds);
    attempt.exit_code = end.exit_code;
    let usage = &end.message.usage;
    attempt.records = Some(usage.records).filter(|records| *records > 0);
    attempt.peak_memory_bytes = Some(usage.peak_memory_bytes).filter(|bytes| *bytes > 0);
    attempt.cpu_seconds = Some((usage.cpu_seconds * 100.0).round() / 100.0).filter(|seconds| *seconds > 0.0);
}

fn whole_seconds_up(
    time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    let up = if time.0.subsec_nanosecond() > 0 { 1 } else { 0 };
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        Timestamp::from_second(time.0.as_second() + up).unwrap_or(time.0),
    )
}

fn wait(after: Duration) -> Step {
    Step::Wait { after: Some(after), why: None }
}

fn ended(outcome: Outcome, message: &str) -> Box<Ended> {
    Box::new(Ended { outcome: Some(outcome), system_message: Some(message.into()), ..Ended::default() })
}

fn gone(wanted: bool) -> Box<Ended> {
    if wanted {
        ended(Outcome::Lost, "its Job was deleted before its outcome was recorded")
    } else {
        ended(Outcome::Stopped, "stopped by desiredState")
    }
}

fn said(last: Option<&Attempt>) -> String {
    last.map(|attempt| match (&attempt.reason, &attempt.message) {
        (Some(reason), Some(message)) => format!("{reason}: {message}"),
        (Some(reason), None) => reason.clone(),
        _ => "no reason is known".to_owned(),
    })
    .unwrap_or_else(|| "no attempt was made".to_owned())
}

#[cfg(test)]
mod tests {
    use collect_api::protocol::WorkError;

    use super::*;

    const ME: &str = "me";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn seen(worker: WorkerSeen) -> Seen<'static> {
        Seen {
            me: ME,
            uid: "uid",
            desired: DesiredState::Running,
            admitted: true,
            worker,
            post: Post::NotTried,
            watched_for: Duration::ZERO,
        }
    }

    fn authorised(by: &str) -> Vec<Attempt> {
        let (mut attempts, mut folded) = (Vec::new(), None);
        authorise(&mut attempts, &mut folded, 1, by, at(0));
        attempts
    }

    fn with_end(outcome: Outcome) -> Vec<Attempt> {
        let mut attempts = authorised(ME);
        record(&mut attempts, None, 1, &ended(outcome, "x"), &policy(), "uid", at(10));
        attempts
    }

    fn policy() -> RetryPolicy {
        RetryPolicy::of(None)
    }

    fn next(attempts: &[Attempt], seen: &Seen<'_>, second: i64) -> Step {
        decide(attempts, None, &policy(), seen, at(second))
    }

    #[test]
    fn work_starts_only_when_admitted() {
        assert_eq!(next(&[], &seen(WorkerSeen::Unseen), 0), Step::Authorise(1));
        let waiting = Seen { admitted: false, ..seen(WorkerSeen::Unseen) };
        assert_eq!(next(&[], &waiting, 0), Step::Wait { after: None, why: None });
    }

    #[test]
    fn only_the_process_that_authorised_creates() {
        assert_eq!(next(&authorised(ME), &seen(WorkerSeen::Unseen), 0), Step::Create(1));
        assert!(matches!(next(&authorised("other"), &seen(WorkerSeen::Unseen), 0), Step::Wait { after: Some(_), .. }));
    }

    #[test]
    fn a_create_that_was_sent_is_never_sent_again() {
        let sent = Seen { post: Post::Sent, ..seen(WorkerSeen::Unseen) };
        assert_eq!(next(&authorised(ME), &sent, 0), Step::Look);
        let absent = Seen { post: Post::Sent, ..seen(WorkerSeen::Absent) };
        assert!(
            matches!(next(&authorised(ME), &absent, 0), Step::Record(1, end) if end.outcome == Some(Outcome::Lost))
        );
    }

    #[test]
    fn an_ambiguous_create_that_left_nothing_is_abandoned() {
        let unknown = |worker| Seen { post: Post::Unknown, ..seen(worker) };
        assert_eq!(next(&authorised(ME), &unknown(WorkerSeen::Unseen), 0), Step::Look);
        let step = next(&authorised(ME), &unknown(WorkerSeen::Absent), 0);
        assert!(matches!(step, Step::Record(1, end) if end.outcome == Some(Outcome::Abandoned)));
    }

    #[test]
    fn a_refused_create_is_sent_again_for_the_same_attempt_slowly() {
        let refused = |ago| Seen {
            post: Post::Refused { message: "exceeded quota".into(), ago: Duration::from_secs(ago), times: 2 },
            ..seen(WorkerSeen::Unseen)
        };
        assert!(matches!(
            next(&authorised(ME), &refused(3), 0),
            Step::Wait { after: Some(_), why: Some(("JobRefused", _)) }
        ));
        assert_eq!(next(&authorised(ME), &refused(10), 0), Step::Create(1));
    }

    #[test]
    fn anothers_attempt_is_abandoned_only_after_a_look_and_thirty_seconds() {
        let long = |worker| Seen { watched_for: ABANDON_AFTER, ..seen(worker) };
        assert_eq!(next(&authorised("other"), &long(WorkerSeen::Unseen), 0), Step::Look);
        assert!(
            matches!(next(&authorised("other"), &long(WorkerSeen::Absent), 0), Step::Record(1, end) if end.outcome == Some(Outcome::Abandoned))
        );
    }

    #[test]
    fn a_lost_job_is_followed_by_the_next_attempt_never_the_same_one() {
        let attempts = with_end(Outcome::Lost);
        assert_eq!(next(&attempts, &seen(WorkerSeen::Unseen), 12), Step::Authorise(2));
    }

    #[test]
    fn a_terminal_outcome_wins_over_pause_and_cancel() {
        for desired in [DesiredState::Paused, DesiredState::Cancelled] {
            let done = Seen { desired, ..seen(WorkerSeen::Ended(ended(Outcome::Succeeded, ""))) };
            assert!(matches!(next(&authorised(ME), &done, 0), Step::Record(1, _)));
            assert_eq!(
                next(&with_end(Outcome::Succeeded), &Seen { desired, ..seen(WorkerSeen::Unseen) }, 20),
                Step::Finish(Finish::Done)
            );
        }
    }

    #[test]
    fn pause_stops_a_running_worker_and_starts_none() {
        let active = WorkerSeen::Active { deleting: false, pending: None };
        let paused = |worker| Seen { desired: DesiredState::Paused, ..seen(worker) };
        assert_eq!(next(&authorised(ME), &paused(active), 0), Step::Stop(1));
        assert!(
            matches!(next(&authorised(ME), &paused(WorkerSeen::Unseen), 0), Step::Record(1, end) if end.outcome == Some(Outcome::Stopped))
        );
        assert!(matches!(next(&with_end(Outcome::Checkpointed), &paused(WorkerSeen::Unseen), 20), Step::Wait { .. }));
        assert_eq!(next(&with_end(Outcome::Checkpointed), &seen(WorkerSeen::Unseen), 20), Step::Authorise(2));
    }

    #[test]
    fn cancel_ends_what_is_not_done() {
        let cancelled = Seen { desired: DesiredState::Cancelled, ..seen(WorkerSeen::Unseen) };
        assert_eq!(next(&[], &cancelled, 0), Step::Finish(Finish::Cancelled));
        assert_eq!(next(&with_end(Outcome::Stopped), &cancelled, 20), Step::Finish(Finish::Cancelled));
    }

    #[test]
    fn a_permanent_error_is_not_tried_again() {
        assert!(matches!(
            next(&with_end(Outcome::Permanent), &seen(WorkerSeen::Unseen), 99),
            Step::Finish(Finish::Failed(_))
        ));
    }

    #[test]
    fn failures_wait_for_their_backoff_and_use_up_the_budget() {
        let (mut attempts, mut folded) = (Vec::new(), None);
        let mut second = 0;
        for n in 1..=4 {
            assert_eq!(
                decide(&attempts, folded.as_ref(), &policy(), &seen(WorkerSeen::Unseen), at(second)),
                Step::Authorise(n)
            );
            authorise(&mut attempts, &mut folded, n, ME, at(second));
            record(&mut attempts, folded.as_ref(), n, &ended(Outcome::Retryable, "503"), &policy(), "uid", at(second));
            if n < 4 {
                assert!(matches!(
                    decide(&attempts, folded.as_ref(), &policy(), &seen(WorkerSeen::Unseen), at(second)),
                    Step::Wait { after: Some(_), .. }
                ));
            }
            second += 100;
        }
        assert!(
            matches!(decide(&attempts, folded.as_ref(), &policy(), &seen(WorkerSeen::Unseen), at(second)), Step::Finish(Finish::Failed(why)) if why.contains("4 of 4"))
        );
    }

    #[test]
    fn disruptions_do_not_count_as_failures() {
        let (mut attempts, mut folded) = (Vec::new(), None);
        for n in 1..=15 {
            authorise(&mut attempts, &mut folded, n, ME, at(0));
            record(&mut attempts, folded.as_ref(), n, &ended(Outcome::Disrupted, ""), &policy(), "uid", at(0));
        }
        assert_eq!(attempts.len(), LISTED);
        assert_eq!(used(&attempts, folded.as_ref()), Used { failures: 0, disruptions: 15 });
        assert_eq!(next_attempt(&attempts, folded.as_ref()), 16);
        assert_eq!(
            decide(&attempts, folded.as_ref(), &policy(), &seen(WorkerSeen::Unseen), at(99)),
            Step::Authorise(16)
        );
    }

    #[test]
    fn the_source_says_when_to_come_back() {
        let mut attempts = authorised(ME);
        let mut end = ended(Outcome::SourceLimited, "");
        end.message.error =
            Some(WorkError { reason: "SourceLimited".into(), message: "429".into(), retry_after_ms: Some(300_000) });
        record(&mut attempts, None, 1, &end, &policy(), "uid", at(0));
        assert!(matches!(next(&attempts, &seen(WorkerSeen::Unseen), 299), Step::Wait { after: Some(_), .. }));
        assert_eq!(next(&attempts, &seen(WorkerSeen::Unseen), 301), Step::Authorise(2));
    }

    #[test]
    fn an_outcome_is_recorded_once() {
        let mut attempts = with_end(Outcome::Succeeded);
        record(&mut attempts, None, 1, &ended(Outcome::Lost, ""), &policy(), "uid", at(20));
        assert_eq!(attempts[0].outcome, Some(Outcome::Succeeded));
    }
}

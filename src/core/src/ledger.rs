//! The attempt ledger: what to do next for one piece of work (a shard, a plan, a commit), whoever carries it out.
//!
//! I1: at most one Job ever exists for (uid, n). I3: n+1 only after n is terminal, Lost, Abandoned or timed out, and only the
//! process that authorised n may create its Job. The ledger does not know what a Job is: it is told of "the worker".

use std::time::Duration;

use collect_api::{Attempt, DesiredState, Outcome, condition::reason, protocol::TerminationMessage};
use jiff::Timestamp;

use crate::{
    attempts::{Entries, backoff_left},
    resolve::{
        ABANDON_AFTER, Charge, IN_VIEW_AFTER, PENDING_TIMEOUT, REFUSED_PAUSE, RetryPolicy, STOP_GRACE, TimeLimits,
    },
};

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
    /// It was there, and this process has deleted it to have it leave.
    Stopped,
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
        /// Somebody deletes it or its pod; where the node is lost, the pod never goes.
        deleting: bool,
        /// Why its pod has not started, if it has not.
        pending: Option<Pending>,
    },
    /// Its end is known.
    Ended(Box<Ended>),
    /// It has ended, and how is not known yet (its pod has not been seen).
    EndedUnread,
    /// It is gone, but its pod still runs.
    Leaving,
}

/// Why a pod has not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Short word, such as `NoRoom`.
    pub reason: &'static str,
    /// In words for people; absent while it is merely starting.
    pub message: Option<String>,
    /// Whether it may well pass by itself: room and quota come and go, a wrong image does not.
    pub may_pass: bool,
}

/// How a worker ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ended {
    /// Outcome by exit code or condition.
    pub outcome: Option<Outcome>,
    /// Short word for the cause, where the outcome alone does not say it and the worker said nothing.
    pub reason: Option<&'static str>,
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
    /// IP address of the pod.
    pub ip: Option<String>,
    /// Image that it ran.
    pub image: Option<String>,
    /// When the container started.
    pub started_at: Option<Timestamp>,
    /// Exit code of the container.
    pub exit_code: Option<i32>,
}

/// For how long this process has watched the live attempt, by its own clock alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// In the present state of its worker.
    pub state: Duration,
    /// Since it was first seen.
    pub attempt: Duration,
    /// With a pod that runs; absent where none does.
    pub runs: Option<Duration>,
    /// Without a new sign of life.
    pub silent: Duration,
    /// Without progress.
    pub still: Duration,
}

/// What was observed of a piece of work.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// Random id of this process.
    pub me: &'a str,
    /// The strictest desired state on the path.
    pub desired: DesiredState,
    /// Whether admission has given it a slot.
    pub admitted: bool,
    /// The worker of the live attempt.
    pub worker: WorkerSeen,
    /// What this process knows of its own create.
    pub post: Post,
    /// For how long.
    pub watched: Watched,
    /// How long it may take.
    pub limits: TimeLimits,
}

impl Seen<'_> {
    /// Nothing is seen and nothing may start: what the entries alone say.
    pub fn nothing() -> Self {
        Self {
            me: "",
            desired: DesiredState::Running,
            admitted: false,
            worker: WorkerSeen::Unseen,
            post: Post::NotTried,
            watched: Watched::default(),
            limits: TimeLimits::of(&collect_api::CollectTaskSpec::default()),
        }
    }
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

/// What to do next for a piece of work.
///
/// Pure: the same arguments always give the same step.
pub fn decide(entries: Entries<'_>, policy: &RetryPolicy, seen: &Seen<'_>, now: Timestamp) -> Step {
    match entries.last() {
        Some(attempt) if attempt.is_live() => live(attempt, seen),
        _ => between(entries, policy, seen, now),
    }
}

/// The same for work whose result holds no more: a sealed plan that was deleted, a commit that a retry has added to. The
/// success of its last attempt is not its end; whether another one may follow is decided as ever (I2, I12).
pub fn decide_again(entries: Entries<'_>, policy: &RetryPolicy, seen: &Seen<'_>, now: Timestamp) -> Step {
    match (decide(entries, policy, seen, now), seen.desired) {
        (Step::Finish(Finish::Done), DesiredState::Cancelled) => Step::Finish(Finish::Cancelled),
        (Step::Finish(Finish::Done), DesiredState::Paused) => paused(),
        (Step::Finish(Finish::Done), DesiredState::Running) if seen.admitted => Step::Authorise(entries.next_number()),
        (Step::Finish(Finish::Done), DesiredState::Running) => Step::Wait { after: None, why: None },
        (step, _) => step,
    }
}

/// An attempt is authorised and has no recorded end.
fn live(attempt: &Attempt, seen: &Seen<'_>) -> Step {
    let n = attempt.n;
    let wanted = seen.desired == DesiredState::Running;
    // Whoever was stopped stays stopped, also when it is wanted again before it has left.
    let stopped = !wanted || seen.post == Post::Stopped;
    let state = seen.watched.state;
    match &seen.worker {
        // A terminal outcome wins over pause and cancel.
        WorkerSeen::Ended(end) => Step::Record(n, end.clone()),
        // The pod's last words come a little later than the Job's condition, over another watch.
        WorkerSeen::EndedUnread if state < Duration::from_secs(10) => wait(Duration::from_millis(500)),
        WorkerSeen::EndedUnread => Step::Record(
            n,
            ended(
                Outcome::Lost,
                "the worker has ended and its pod is gone, so its result is not known; the next attempt finds it at the sink",
            ),
        ),
        // A pod on a lost node never goes; it is fenced, so nobody waits for it longer than this.
        WorkerSeen::Active { deleting: true, .. } | WorkerSeen::Leaving if state < STOP_GRACE => {
            wait(Duration::from_secs(1))
        }
        WorkerSeen::Active { deleting: true, .. } | WorkerSeen::Leaving => Step::Record(n, gone(stopped)),
        WorkerSeen::Active { .. } if !wanted => Step::Stop(n),
        WorkerSeen::Active { pending: Some(pending), .. } => not_started(n, pending, seen),
        WorkerSeen::Active { pending: None, .. } => running(n, seen),
        WorkerSeen::Unseen if seen.post == Post::Stopped => Step::Look,
        WorkerSeen::Absent if seen.post == Post::Stopped => Step::Record(n, gone(stopped)),
        WorkerSeen::Unseen | WorkerSeen::Absent if attempt.authorised_by == seen.me => own_unseen(n, seen, wanted),
        // Another process authorised it: it may be about to create the worker.
        WorkerSeen::Unseen | WorkerSeen::Absent if state < ABANDON_AFTER => wait(ABANDON_AFTER.saturating_sub(state)),
        WorkerSeen::Absent => Step::Record(
            n,
            ended(
                Outcome::Abandoned,
                "it was authorised by an operator process that is gone, and its Job was never seen",
            ),
        ),
        WorkerSeen::Unseen => Step::Look,
    }
}

/// This process authorised the attempt, and its worker is not in view.
fn own_unseen(n: i32, seen: &Seen<'_>, wanted: bool) -> Step {
    match (&seen.post, &seen.worker) {
        // Known not to exist: this process alone may create it, and has not.
        (Post::NotTried, _) if wanted => Step::Create(n),
        (Post::NotTried | Post::Refused { .. }, _) if !wanted => {
            Step::Record(n, ended(Outcome::Stopped, "stopped before its worker was created"))
        }
        (Post::Refused { message, ago, times }, _) => refused(n, message, *ago, *times, seen),
        (Post::Unknown, WorkerSeen::Absent) => {
            Step::Record(n, ended(Outcome::Abandoned, "the answer to its creation was lost, and its Job is not there"))
        }
        (_, WorkerSeen::Absent) => Step::Record(n, gone(!wanted)),
        // What was created a moment ago comes into view a little later: to ask for it each time would double the requests.
        (Post::Sent, _) if seen.watched.state < IN_VIEW_AFTER => wait(IN_VIEW_AFTER.saturating_sub(seen.watched.state)),
        _ => Step::Look,
    }
}

/// The create was refused for certain: the same attempt is tried again, ever more slowly.
fn refused(n: i32, message: &str, ago: Duration, times: u32, seen: &Seen<'_>) -> Step {
    if let Some(limit) = seen.limits.pending.filter(|limit| seen.watched.state >= *limit) {
        return Step::Record(n, never_started("JobRefused", message, limit));
    }
    let pause = (Duration::from_secs(5) * times.clamp(1, 12)).min(REFUSED_PAUSE);
    if ago >= pause {
        return Step::Create(n);
    }
    Step::Wait { after: Some(pause.saturating_sub(ago)), why: Some((reason::JOB_REFUSED, message.to_owned())) }
}

/// Its pod has not started: it waits, within a limit where waiting alone mends nothing.
fn not_started(n: i32, pending: &Pending, seen: &Seen<'_>) -> Step {
    let limit = seen.limits.pending.or(Some(PENDING_TIMEOUT).filter(|_| !pending.may_pass));
    if let Some(limit) = limit.filter(|limit| seen.watched.state >= *limit) {
        let message = pending.message.as_deref().unwrap_or("its pod was starting all the time");
        return Step::Record(n, never_started(pending.reason, message, limit));
    }
    Step::Wait {
        after: Some(Duration::from_secs(5)),
        why: pending.message.clone().map(|message| (reason::POD_PENDING, message)),
    }
}

/// Its worker runs: it may take its time, but not for ever, and not in silence.
fn running(n: i32, seen: &Seen<'_>) -> Step {
    let (watched, limits) = (&seen.watched, &seen.limits);
    if watched.attempt >= limits.attempt {
        let why = format!(
            "the attempt ran for {}, as long as spec.attemptDeadline allows; raise it or make the shards smaller",
            people(limits.attempt)
        );
        return Step::Record(n, ended(Outcome::DeadlineExceeded, &why));
    }
    let stalled = |reason, why: String| {
        Step::Record(n, Box::new(Ended { reason: Some(reason), ..*ended(Outcome::Stalled, &why) }))
    };
    let limit = people(limits.stall);
    if watched.silent >= limits.stall {
        return stalled(
            reason::HEARTBEAT_LOST,
            format!(
                "the worker gave no sign of life for {limit} (spec.stallTimeout); its node may be lost, or the network keeps it from the operator's worker endpoint"
            ),
        );
    }
    if watched.still >= limits.stall {
        return stalled(
            reason::NO_PROGRESS,
            format!(
                "the worker was alive but made no progress for {limit} (spec.stallTimeout); see its log for what it waits for"
            ),
        );
    }
    let next = limits.attempt.saturating_sub(watched.attempt);
    let next = next.min(limits.stall.saturating_sub(watched.silent.max(watched.still)));
    Step::Wait { after: Some(next.max(Duration::from_secs(1))), why: None }
}

/// No attempt is live.
fn between(entries: Entries<'_>, policy: &RetryPolicy, seen: &Seen<'_>, now: Timestamp) -> Step {
    // What a retry has forgiven decides nothing any more, but for success.
    let last = entries.last();
    let charge = last.and_then(|attempt| Some(policy.charge(attempt.outcome.as_ref()?, attempt.reason.as_deref())));
    if charge == Some(Charge::Done) {
        return Step::Finish(Finish::Done);
    }
    let charge = charge.filter(|_| entries.last_number() > entries.forgiven);
    if charge == Some(Charge::Final) {
        return Step::Finish(Finish::Failed(said(last)));
    }
    if seen.desired == DesiredState::Cancelled {
        return Step::Finish(Finish::Cancelled);
    }
    if let Some(why) = used_up(entries, policy) {
        return Step::Finish(Finish::Failed(why));
    }
    if seen.desired == DesiredState::Paused {
        return paused();
    }
    let retried = charge.is_some();
    if let Some(left) = last.filter(|_| retried).and_then(|attempt| backoff_left(attempt, now)) {
        return Step::Wait {
            after: Some(left),
            why: Some((
                reason::RETRYING,
                format!("the next attempt starts in {} s; the last: {}", left.as_secs() + 1, said(last)),
            )),
        };
    }
    if seen.admitted { Step::Authorise(entries.next_number()) } else { Step::Wait { after: None, why: None } }
}

/// Which budget is used up, if one is.
fn used_up(entries: Entries<'_>, policy: &RetryPolicy) -> Option<String> {
    let used = entries.used(policy);
    let said = said(entries.last());
    if used.failures >= policy.max_attempts {
        return Some(format!("{} of {} attempts failed; the last: {said}", used.failures, policy.max_attempts));
    }
    if used.disruptions > policy.max_disruptions {
        return Some(format!("disrupted {} times, more than retry.maxDisruptions; the last: {said}", used.disruptions));
    }
    used.overridden.iter().enumerate().find_map(|(position, failures)| {
        let allowed = policy.override_attempts(position);
        (*failures >= allowed).then(|| {
            format!("{failures} of {allowed} attempts failed under retry.overrides[{position}]; the last: {said}")
        })
    })
}

fn paused() -> Step {
    Step::Wait { after: None, why: Some((reason::PAUSED, "paused by desiredState".into())) }
}

fn wait(after: Duration) -> Step {
    Step::Wait { after: Some(after), why: None }
}

/// An end that the ledger itself finds.
pub fn ended(outcome: Outcome, message: &str) -> Box<Ended> {
    Box::new(Ended { outcome: Some(outcome), system_message: Some(message.to_owned()), ..Ended::default() })
}

fn never_started(reason: &'static str, message: &str, limit: Duration) -> Box<Ended> {
    let why = format!("its pod did not start within {} (spec.pendingTimeout): {message}", people(limit));
    Box::new(Ended { reason: Some(reason), ..*ended(Outcome::NotStarted, &why) })
}

fn gone(stopped: bool) -> Box<Ended> {
    if stopped {
        ended(Outcome::Stopped, "stopped by desiredState")
    } else {
        ended(Outcome::Lost, "its Job or pod was deleted before its outcome was known, by hand or with its node")
    }
}

fn people(span: Duration) -> String {
    collect_api::Duration::from_secs(span.as_secs()).to_string()
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
#[path = "ledger_tests.rs"]
mod tests;

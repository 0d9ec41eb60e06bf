//! The entries of an attempt ledger: which budget they have used up, how one is added, how its end is recorded.

use std::time::Duration;

use collect_api::{
    Attempt, CollectShardStatus, Outcome,
    hooks::HookStatus,
    shard::FoldedAttempts,
    task::{CommitStatus, PlanStatus},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{
    conditions::whole_seconds,
    exit::{RetryClass, retry_class},
    ledger::Ended,
    resolve::{Charge, RetryPolicy},
    text,
};

/// Attempts that stay listed; older ones are summed up.
pub const LISTED: usize = 8;

/// The entries of a ledger as they stand in an object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entries<'a> {
    /// The listed attempts, oldest first.
    pub attempts: &'a [Attempt],
    /// What older ones come to.
    pub folded: Option<&'a FoldedAttempts>,
    /// Attempts up to this one were forgiven by a retry.
    pub forgiven: i32,
}

impl<'a> Entries<'a> {
    /// Those of a shard.
    pub fn of_shard(status: &'a CollectShardStatus) -> Self {
        Self::from((&status.attempts, &status.folded, status.forgiven))
    }

    /// Those of a planner.
    pub fn of_plan(status: Option<&'a PlanStatus>) -> Self {
        status.map_or_else(Self::default, |plan| Self::from((&plan.attempts, &plan.folded, plan.forgiven)))
    }

    /// Those of a commit.
    pub fn of_commit(status: Option<&'a CommitStatus>) -> Self {
        status.map_or_else(Self::default, |commit| Self::from((&commit.attempts, &commit.folded, commit.forgiven)))
    }

    /// Those of a hook.
    pub fn of_hook(status: Option<&'a HookStatus>) -> Self {
        status.map_or_else(Self::default, |hook| Self::from((&hook.attempts, &hook.folded, hook.forgiven)))
    }

    /// The newest attempt.
    pub fn last(&self) -> Option<&'a Attempt> {
        self.attempts.last()
    }

    /// Number of the newest attempt, 0 if there was none.
    pub fn last_number(&self) -> i32 {
        self.last().map(|attempt| attempt.n).or(self.folded.map(|folded| folded.last)).unwrap_or(0)
    }

    /// Number of the next attempt; numbers are never used again.
    pub fn next_number(&self) -> i32 {
        self.last_number() + 1
    }

    /// Whether a worker of attempt n has no business any more: its attempt is over in the ledger, listed or not. A worker of
    /// an attempt that this view of the ledger does not know yet has.
    pub fn is_superseded(&self, n: i32) -> bool {
        n <= self.last_number() && !self.attempts.iter().any(|attempt| attempt.n == n && attempt.is_live())
    }

    /// The budgets as used since the last retry.
    pub fn used(&self, policy: &RetryPolicy) -> Used {
        let start = self.folded.map_or_else(Used::default, |folded| Used {
            failures: folded.failures,
            disruptions: folded.disruptions,
            overridden: folded.overridden.clone(),
        });
        let counted = self.attempts.iter().filter(|attempt| attempt.n > self.forgiven);
        counted.fold(start, |used, attempt| used.with(attempt, policy))
    }
}

impl<'a> From<(&'a Vec<Attempt>, &'a Option<FoldedAttempts>, Option<i32>)> for Entries<'a> {
    fn from((attempts, folded, forgiven): (&'a Vec<Attempt>, &'a Option<FoldedAttempts>, Option<i32>)) -> Self {
        Self { attempts, folded: folded.as_ref(), forgiven: forgiven.unwrap_or_default() }
    }
}

/// The budgets as used so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Attempts that count against maxAttempts.
    pub failures: i32,
    /// Attempts that count against maxDisruptions.
    pub disruptions: i32,
    /// Attempts that count against an override, by its position.
    pub overridden: Vec<i32>,
}

impl Used {
    fn with(mut self, attempt: &Attempt, policy: &RetryPolicy) -> Self {
        let Some(outcome) = &attempt.outcome else { return self };
        match policy.charge(outcome, attempt.reason.as_deref()) {
            Charge::Failure | Charge::Final => self.failures += 1,
            Charge::Disruption => self.disruptions += 1,
            Charge::Override(position) => {
                if self.overridden.len() <= position {
                    self.overridden.resize(position + 1, 0);
                }
                if let Some(used) = self.overridden.get_mut(position) {
                    *used += 1;
                }
            }
            Charge::Done | Charge::Free => {}
        }
        self
    }

    /// Attempts charged to one budget.
    pub fn of(&self, charge: Charge) -> i32 {
        match charge {
            Charge::Failure | Charge::Final => self.failures,
            Charge::Disruption => self.disruptions,
            Charge::Override(position) => self.overridden.get(position).copied().unwrap_or(0),
            Charge::Done | Charge::Free => 0,
        }
    }
}

/// Attempts that were followed by another one because they failed or were disrupted.
pub fn repeated(attempts: &[Attempt], folded: Option<&FoldedAttempts>) -> i32 {
    let listed = attempts
        .iter()
        .filter_map(|attempt| attempt.outcome.as_ref())
        .filter(|outcome| matches!(retry_class(outcome), RetryClass::Failure | RetryClass::Disruption))
        .count();
    let older = folded.map_or(0, |folded| folded.failures + folded.disruptions + folded.overridden.iter().sum::<i32>());
    i32::try_from(listed).unwrap_or(i32::MAX).saturating_add(older)
}

/// Adds the next attempt and gives back its number. What no longer finds room in the list is summed up.
pub fn authorise(
    attempts: &mut Vec<Attempt>,
    folded: &mut Option<FoldedAttempts>,
    forgiven: i32,
    policy: &RetryPolicy,
    me: &str,
    now: Timestamp,
) -> i32 {
    let n = Entries { attempts, folded: folded.as_ref(), forgiven }.next_number();
    attempts.push(Attempt::authorised(n, me.to_owned(), whole_seconds(now)));
    while attempts.len() > LISTED {
        let oldest = attempts.remove(0);
        let before = folded.take().unwrap_or_default();
        let used = Used { failures: before.failures, disruptions: before.disruptions, overridden: before.overridden };
        let used = if oldest.n > forgiven { used.with(&oldest, policy) } else { used };
        *folded = Some(FoldedAttempts {
            last: oldest.n,
            failures: used.failures,
            disruptions: used.disruptions,
            overridden: used.overridden,
            records: before.records + oldest.records.unwrap_or(0),
            cpu_seconds: before.cpu_seconds + oldest.cpu_seconds.unwrap_or(0.0),
        });
    }
    n
}

/// Forgives everything so far: a retry begins with fresh budgets. Gives back the number up to which it is forgiven.
pub fn forgive(entries: Entries<'_>, folded: &mut Option<FoldedAttempts>) -> i32 {
    let last = entries.last_number();
    if let Some(folded) = folded {
        (folded.failures, folded.disruptions) = (0, 0);
        folded.overridden.clear();
    }
    last
}

/// Records how attempt n ended: once, never over an outcome that stands already (I9).
pub fn record(
    attempts: &mut [Attempt],
    used: &Used,
    n: i32,
    end: &Ended,
    policy: &RetryPolicy,
    uid: &str,
    now: Timestamp,
) {
    let Some(attempt) = attempts.iter_mut().find(|attempt| attempt.n == n && attempt.is_live()) else { return };
    let outcome = end.outcome.clone().unwrap_or(Outcome::Lost);
    let error = end.message.error.as_ref();
    let reason = error.map(|error| error.reason.as_str()).or(end.reason);
    let charge = policy.charge(&outcome, reason);
    let wait = match charge {
        Charge::Failure | Charge::Override(_) => {
            Some(policy.backoff(charge, used.of(charge) + 1, &[uid, &n.to_string()]))
        }
        // Free attempts must not spin: what ends at once comes back at a walking pace.
        Charge::Free | Charge::Disruption => {
            Some(error.and_then(|error| error.retry_after_ms).map_or(Duration::from_secs(1), Duration::from_millis))
        }
        Charge::Done | Charge::Final => None,
    };
    attempt.retry_after = wait.and_then(|wait| now.checked_add(wait).ok()).map(whole_seconds_up);
    attempt.reason = Some(text::cut(reason.unwrap_or(outcome.as_str()), 63));
    attempt.message = error
        .map(|error| error.message.as_str())
        .or(end.system_message.as_deref())
        .map(|message| text::cut(message, 1024));
    attempt.outcome = Some(outcome);
    attempt.finished_at = Some(whole_seconds(now));
    if let Some((name, uid)) = &end.job {
        attempt.job = Some(name.clone());
        attempt.job_uid = Some(uid.clone());
    }
    attempt.pod = end.pod.clone();
    attempt.node = end.node.clone();
    attempt.ip = end.ip.clone();
    attempt.image = end.image.as_deref().map(|image| text::cut(image, 512));
    attempt.started_at = end.started_at.map(whole_seconds);
    attempt.exit_code = end.exit_code;
    let usage = &end.message.usage;
    let known = |number: i64| Some(number).filter(|number| *number > 0);
    attempt.records = known(usage.records);
    attempt.bytes = known(usage.bytes);
    attempt.peak_memory_bytes = known(usage.peak_memory_bytes);
    attempt.cpu_seconds = Some((usage.cpu_seconds * 100.0).round() / 100.0).filter(|seconds| *seconds > 0.0);
}

/// Time until the next attempt may start, if it may not yet.
pub fn backoff_left(attempt: &Attempt, now: Timestamp) -> Option<Duration> {
    let until = attempt.retry_after.as_ref()?.0;
    Duration::try_from(until.duration_since(now)).ok().filter(|left| !left.is_zero())
}

fn whole_seconds_up(time: Timestamp) -> Time {
    let up = if time.subsec_nanosecond() > 0 { 1 } else { 0 };
    Time(Timestamp::from_second(time.as_second() + up).unwrap_or(time))
}

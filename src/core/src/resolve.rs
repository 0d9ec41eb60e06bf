//! Defaults: what is not set is resolved here and nowhere else, so that "inherited" and "set" stay distinguishable in objects.

use std::time::Duration;

use collect_api::{
    DesiredState, Outcome, Phase,
    hooks::Hook,
    report::ValidationLevel,
    source::Backoff,
    task::{CollectTaskSpec, Retry},
};

use crate::{
    exit::{RetryClass, retry_class},
    names,
};

/// Workers at once below a root that does not say.
pub const PARALLELISM: i32 = 4;
/// Attempts of one shard that may fail, the first included.
pub const MAX_ATTEMPTS: i32 = 4;
/// Disruptions that one shard survives.
pub const MAX_DISRUPTIONS: i32 = 20;
/// First wait between attempts.
pub const BACKOFF_INITIAL: Duration = Duration::from_secs(1);
/// Each wait is this many times the one before.
pub const BACKOFF_FACTOR: f64 = 2.0;
/// Longest wait between attempts.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Runs kept at the sink.
pub const KEEP_RUNS: i32 = 2;
/// Reports of a root that are kept.
pub const KEEP_REPORTS: usize = 5;
/// Time that one attempt may take.
pub const ATTEMPT_DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// How long an authorised attempt without a Job is believed in, when another process authorised it.
pub const ABANDON_AFTER: Duration = Duration::from_secs(30);
/// How long a Job that this process created may take to come into view before it is looked for.
pub const IN_VIEW_AFTER: Duration = Duration::from_secs(5);
/// How long a stopped pod may take to leave.
pub const STOP_GRACE: Duration = Duration::from_secs(60);

/// Longest wait between two tries of a create that was refused.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// Time without a sign of life or progress after which a worker is replaced.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a pod may wait for its image or because of its configuration.
pub const PENDING_TIMEOUT: Duration = Duration::from_secs(900);
/// Finished children of a task that stay as objects.
pub const HISTORY: usize = 100;
/// Time that one attempt of a hook may take.
pub const HOOK_DEADLINE: Duration = Duration::from_secs(600);
/// Attempts of a hook.
pub const HOOK_ATTEMPTS: i32 = 3;

/// Which budget the end of an attempt is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// The work is done.
    Done,
    /// maxAttempts.
    Failure,
    /// The override at this position.
    Override(usize),
    /// maxDisruptions.
    Disruption,
    /// None.
    Free,
    /// None: no attempt follows.
    Final,
}

#[derive(Clone, Debug, PartialEq)]
struct Wait {
    initial: Duration,
    factor: f64,
    max: Duration,
}

impl Wait {
    fn of(backoff: Option<&Backoff>, default: &Wait) -> Self {
        let get = |pick: fn(&Backoff) -> Option<collect_api::Duration>, default: Duration| {
            backoff.and_then(pick).map_or(default, collect_api::Duration::get)
        };
        Self {
            initial: get(|backoff| backoff.initial, default.initial),
            factor: backoff.and_then(|backoff| backoff.factor).unwrap_or(default.factor).clamp(1.0, 10.0),
            max: get(|backoff| backoff.max, default.max),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Override {
    errors: Vec<String>,
    max_attempts: i32,
    wait: Wait,
}

/// Limits on attempts, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts that may fail, the first included.
    pub max_attempts: i32,
    /// Disruptions that are survived.
    pub max_disruptions: i32,
    wait: Wait,
    overrides: Vec<Override>,
}

impl RetryPolicy {
    /// The policy of a task's `spec.retry`.
    pub fn of(retry: Option<&Retry>) -> Self {
        let default = Wait { initial: BACKOFF_INITIAL, factor: BACKOFF_FACTOR, max: BACKOFF_MAX };
        let wait = Wait::of(retry.and_then(|retry| retry.backoff.as_ref()), &default);
        let max_attempts = retry.and_then(|retry| retry.max_attempts).unwrap_or(MAX_ATTEMPTS);
        let overrides = retry.map(|retry| retry.overrides.as_slice()).unwrap_or_default().iter().map(|over| Override {
            errors: over.errors.clone(),
            max_attempts: over.max_attempts.unwrap_or(max_attempts),
            wait: Wait::of(over.backoff.as_ref(), &wait),
        });
        Self {
            max_attempts,
            max_disruptions: retry.and_then(|retry| retry.max_disruptions).unwrap_or(MAX_DISRUPTIONS),
            overrides: overrides.collect(),
            wait,
        }
    }

    /// The policy of a hook.
    pub fn of_hook(hook: &Hook) -> Self {
        Self { max_attempts: hook.max_attempts.unwrap_or(HOOK_ATTEMPTS), ..Self::of(None) }
    }

    /// Which budget the end of an attempt is charged to. Overrides speak of failures and permanent errors only.
    pub fn charge(&self, outcome: &Outcome, reason: Option<&str>) -> Charge {
        let class = retry_class(outcome);
        let fits = |word: &String| word == outcome.as_str() || Some(word.as_str()) == reason;
        let found = self.overrides.iter().position(|over| over.errors.iter().any(fits));
        match (class, found) {
            (RetryClass::Failure | RetryClass::Final, Some(position)) => Charge::Override(position),
            (RetryClass::Done, _) => Charge::Done,
            (RetryClass::Failure, None) => Charge::Failure,
            (RetryClass::Disruption, _) => Charge::Disruption,
            (RetryClass::Free, _) => Charge::Free,
            (RetryClass::Final, None) => Charge::Final,
        }
    }

    /// Attempts that may fail under the override at a position.
    pub fn override_attempts(&self, position: usize) -> i32 {
        self.overrides.get(position).map_or(self.max_attempts, |over| over.max_attempts)
    }

    /// Wait after the `failures`-th failure of a charge: exponential, capped, between half and all of it by a jitter that
    /// depends on `seed`.
    pub fn backoff(&self, charge: Charge, failures: i32, seed: &[&str]) -> Duration {
        let wait = match charge {
            Charge::Override(position) => self.overrides.get(position).map_or(&self.wait, |over| &over.wait),
            _ => &self.wait,
        };
        let exponent = failures.clamp(1, 64) - 1;
        let full = (wait.initial.as_secs_f64() * wait.factor.powi(exponent)).min(wait.max.as_secs_f64());
        Duration::from_secs_f64(full * (0.5 + 0.5 * names::jitter(seed)))
    }
}

/// Limits on the time that an attempt takes, resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimits {
    /// From its authorisation to its end.
    pub attempt: Duration,
    /// Without a sign of life, or without progress.
    pub stall: Duration,
    /// Until its pod starts; absent means the default for what it waits for.
    pub pending: Option<Duration>,
}

impl TimeLimits {
    /// The limits of a root's spec.
    pub fn of(spec: &CollectTaskSpec) -> Self {
        Self {
            attempt: attempt_deadline(spec),
            stall: spec.stall_timeout.map_or(STALL_TIMEOUT, collect_api::Duration::get),
            pending: spec.pending_timeout.map(collect_api::Duration::get),
        }
    }

    /// The limits of a hook.
    pub fn of_hook(hook: &Hook, spec: &CollectTaskSpec) -> Self {
        let attempt = hook.deadline.map_or(HOOK_DEADLINE, collect_api::Duration::get);
        Self { attempt, ..Self::of(spec) }
    }
}

/// Time that one attempt may take.
pub fn attempt_deadline(spec: &CollectTaskSpec) -> Duration {
    spec.attempt_deadline.map_or(ATTEMPT_DEADLINE, collect_api::Duration::get)
}

/// Finished children of a task that stay as objects.
pub fn history(spec: &CollectTaskSpec) -> usize {
    spec.history.and_then(|history| usize::try_from(history).ok()).unwrap_or(HISTORY)
}

/// Time after which a finished task is deleted, if it is.
pub fn ttl(spec: &CollectTaskSpec, phase: &Phase) -> Option<Duration> {
    let ttl = spec.ttl.as_ref()?;
    let after = match phase {
        Phase::Succeeded | Phase::PartiallySucceeded => ttl.succeeded,
        Phase::Collected => ttl.collected,
        Phase::Failed => ttl.failed,
        Phase::Cancelled => ttl.cancelled,
        Phase::Pending | Phase::Planning | Phase::Running | Phase::Paused | Phase::Validating | Phase::Other(_) => None,
    };
    after.map(collect_api::Duration::get)
}

/// Workers at once below a root.
pub fn root_parallelism(spec: &CollectTaskSpec) -> i32 {
    spec.parallelism.unwrap_or(PARALLELISM)
}

/// Level of the comparison.
pub fn validation_level(spec: &CollectTaskSpec) -> ValidationLevel {
    spec.validation.as_ref().and_then(|validation| validation.level).unwrap_or(ValidationLevel::Counts)
}

/// The strictest of the desired states on a path.
pub fn strictest(states: impl IntoIterator<Item = Option<DesiredState>>) -> DesiredState {
    states.into_iter().flatten().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use collect_api::task::RetryOverride;

    use super::*;

    #[test]
    fn the_backoff_grows_and_is_capped() {
        let policy = RetryPolicy::of(None);
        let waits: Vec<f64> =
            (1..12).map(|n| policy.backoff(Charge::Failure, n, &["uid", &n.to_string()]).as_secs_f64()).collect();
        assert!(waits[0] >= 0.5 && waits[0] <= 1.0, "{waits:?}");
        assert!(waits[3] >= 4.0 && waits[3] <= 8.0, "{waits:?}");
        assert!(waits[10] >= 30.0 && waits[10] <= 60.0, "{waits:?}");
    }

    #[test]
    fn the_first_override_that_fits_takes_the_charge() {
        let over = |error: &str, attempts| RetryOverride {
            errors: vec![error.into()],
            max_attempts: Some(attempts),
            backoff: None,
        };
        let overrides = vec![over("OutOfMemory", 1), over("NotFound", 3)];
        let policy = RetryPolicy::of(Some(&Retry { overrides, ..Retry::default() }));
        assert_eq!(policy.charge(&Outcome::OutOfMemory, None), Charge::Override(0));
        assert_eq!(policy.charge(&Outcome::Permanent, Some("NotFound")), Charge::Override(1));
        assert_eq!(policy.charge(&Outcome::Permanent, Some("Unauthorized")), Charge::Final);
        assert_eq!(policy.charge(&Outcome::Crashed, None), Charge::Failure);
        assert_eq!(policy.charge(&Outcome::Succeeded, Some("NotFound")), Charge::Done, "success is never overridden");
        assert_eq!((policy.override_attempts(0), policy.override_attempts(1)), (1, 3));
    }

    #[test]
    fn the_strictest_state_on_the_path_wins() {
        use DesiredState::{Cancelled, Paused, Running};
        assert_eq!(strictest([None, Some(Running)]), Running);
        assert_eq!(strictest([Some(Paused), None, Some(Running)]), Paused);
        assert_eq!(strictest([Some(Paused), Some(Cancelled)]), Cancelled);
    }
}

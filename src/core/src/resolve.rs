//! Defaults: what is not set is resolved here and nowhere else, so that "inherited" and "set" stay distinguishable in objects.

use std::time::Duration;

use collect_api::{
    DesiredState,
    report::ValidationLevel,
    source::Backoff,
    task::{CollectTaskSpec, Retry},
};

use crate::names;

/// Workers at once below a root that does not say.
pub const PARALLELISM: i32 = 4;
/// Runs kept at the sink.
pub const KEEP_RUNS: i32 = 2;
/// Reports of a root that are kept.
pub const KEEP_REPORTS: usize = 5;
/// Time that one attempt may take.
pub const ATTEMPT_DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// How long an authorised attempt without a Job is believed in, when another process authorised it.
pub const ABANDON_AFTER: Duration = Duration::from_secs(30);
/// How long a stopped pod may take to leave.
pub const STOP_GRACE: Duration = Duration::from_secs(60);

/// Limits on attempts, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Attempts that may fail, the first included.
    pub max_attempts: i32,
    /// Disruptions that are survived.
    pub max_disruptions: i32,
    initial: Duration,
    factor: f64,
    max: Duration,
}

impl RetryPolicy {
    /// The policy of a task's `spec.retry`.
    pub fn of(retry: Option<&Retry>) -> Self {
        let backoff = retry.and_then(|retry| retry.backoff.as_ref());
        let get = |pick: fn(&Backoff) -> Option<collect_api::Duration>, default: u64| {
            backoff.and_then(pick).map_or(Duration::from_secs(default), collect_api::Duration::get)
        };
        Self {
            max_attempts: retry.and_then(|retry| retry.max_attempts).unwrap_or(4),
            max_disruptions: retry.and_then(|retry| retry.max_disruptions).unwrap_or(20),
            initial: get(|backoff| backoff.initial, 1),
            factor: backoff.and_then(|backoff| backoff.factor).unwrap_or(2.0).clamp(1.0, 10.0),
            max: get(|backoff| backoff.max, 60),
        }
    }

    /// Wait after the `failures`-th failure: exponential, capped, between half and all of it by a jitter that depends on `seed`.
    pub fn backoff(&self, failures: i32, seed: &[&str]) -> Duration {
        let exponent = failures.clamp(1, 64) - 1;
        let full = (self.initial.as_secs_f64() * self.factor.powi(exponent)).min(self.max.as_secs_f64());
        Duration::from_secs_f64(full * (0.5 + 0.5 * names::jitter(seed)))
    }
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
    use super::*;

    #[test]
    fn the_backoff_grows_and_is_capped() {
        let policy = RetryPolicy::of(None);
        let waits: Vec<f64> = (1..12).map(|n| policy.backoff(n, &["uid", &n.to_string()]).as_secs_f64()).collect();
        assert!(waits[0] >= 0.5 && waits[0] <= 1.0, "{waits:?}");
        assert!(waits[3] >= 4.0 && waits[3] <= 8.0, "{waits:?}");
        assert!(waits[10] >= 30.0 && waits[10] <= 60.0, "{waits:?}");
    }

    #[test]
    fn the_strictest_state_on_the_path_wins() {
        use DesiredState::{Cancelled, Paused, Running};
        assert_eq!(strictest([None, Some(Running)]), Running);
        assert_eq!(strictest([Some(Paused), None, Some(Running)]), Paused);
        assert_eq!(strictest([Some(Paused), Some(Cancelled)]), Cancelled);
    }
}

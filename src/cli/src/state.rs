//! Where a task stands, by its own words. Pure.

use collect_api::{CollectTask, Phase, labels};
use collect_core::retry;
use kube::ResourceExt;

/// Phase of a task.
pub fn phase(task: &CollectTask) -> Phase {
    task.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or(Phase::Pending)
}

/// Whether the status is about the spec as it stands: a finished run says nothing of a new one that was asked for.
pub fn is_observed(task: &CollectTask) -> bool {
    let Some(status) = &task.status else { return false };
    let of_this_run = task.spec.part_of.is_some() || status.run == Some(task.spec.run_number());
    of_this_run && status.observed_generation >= task.metadata.generation
}

/// Whether a retry was asked for that the operator has not taken up yet. Tokens of tasks above are not looked at.
pub fn is_retry_due(task: &CollectTask) -> bool {
    let Some(status) = task.status.as_ref().filter(|status| retry::is_retriable(status)) else { return false };
    let Some(own) = retry::token(None, task.metadata.annotations.as_ref()) else { return false };
    // Below a root, the tokens of the path are joined; one's own is the last.
    let taken_up =
        status.retried.as_ref().is_some_and(|retried| *retried == own || retried.ends_with(&format!("+{own}")));
    task.spec.desired_state.unwrap_or_default() == collect_api::DesiredState::Running && !taken_up
}

/// Whether the task is over and nothing that was asked for changes that.
pub fn is_over(task: &CollectTask) -> bool {
    phase(task).is_terminal() && is_observed(task) && !is_retry_due(task)
}

/// Whether an end is one that leaves valid data.
pub fn is_good(phase: &Phase) -> bool {
    matches!(phase, Phase::Succeeded | Phase::PartiallySucceeded | Phase::Collected)
}

/// The retry token that stands on an object.
pub fn token<K: ResourceExt>(object: &K) -> Option<&str> {
    object.annotations().get(labels::RETRY).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::samples;

    #[test]
    fn a_run_that_was_asked_for_is_not_over_with_the_one_before() {
        let mut task = samples::task("villages", None, "Succeeded", 100, (1, None));
        assert!(is_over(&task));
        task.spec.run = Some(2);
        assert!(!is_over(&task));
        task.spec.run = None;
        task.metadata.generation = Some(2);
        assert!(!is_over(&task), "a change that the operator has not seen yet");
    }

    #[test]
    fn a_retry_that_was_asked_for_is_not_over() {
        let mut task = samples::task("villages", None, "Failed", 50, (1, None));
        task.annotations_mut().insert(labels::RETRY.into(), "second".into());
        assert!(is_retry_due(&task) && !is_over(&task));
        let taken = |retried: &str| samples::with_status(task.clone(), json!({"retried": retried}));
        assert!(is_over(&taken("second")) && is_over(&taken("first+second")));
        assert!(!is_over(&taken("first")));
    }
}

//! How an attempt ended: exit codes, Job conditions and pod states become an [`Outcome`], and an outcome decides which budget
//! it uses up.

use collect_api::{Outcome, protocol::exit};

/// Which budget an ended attempt uses up, and whether another one follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// The work is done.
    Done,
    /// Counts against maxAttempts; the next attempt waits for its backoff.
    Failure,
    /// Counts against maxDisruptions; the next attempt starts at once.
    Disruption,
    /// Counts against nothing; the next attempt starts when the source or the person says so.
    Free,
    /// No attempt follows.
    Final,
}

/// The retry table.
pub fn retry_class(outcome: &Outcome) -> RetryClass {
    match outcome {
        Outcome::Succeeded | Outcome::AlreadyCommitted => RetryClass::Done,
        Outcome::Retryable
        | Outcome::Crashed
        | Outcome::OutOfMemory
        | Outcome::DeadlineExceeded
        | Outcome::Stalled
        | Outcome::NotStarted => RetryClass::Failure,
        Outcome::Disrupted | Outcome::Lost => RetryClass::Disruption,
        Outcome::SourceLimited | Outcome::Fenced | Outcome::Checkpointed | Outcome::Abandoned | Outcome::Stopped => {
            RetryClass::Free
        }
        Outcome::Permanent => RetryClass::Final,
        // A newer version's word: try again, within bounds.
        Outcome::Other(_) => RetryClass::Failure,
    }
}

/// The exit codes of the worker protocol.
pub fn outcome_of_exit_code(code: i32) -> Outcome {
    match code {
        exit::DONE => Outcome::Succeeded,
        exit::RETRYABLE => Outcome::Retryable,
        exit::PERMANENT => Outcome::Permanent,
        exit::SOURCE_LIMITED => Outcome::SourceLimited,
        exit::FENCED => Outcome::Fenced,
        exit::CHECKPOINTED => Outcome::Checkpointed,
        exit::ALREADY_COMMITTED => Outcome::AlreadyCommitted,
        _ => Outcome::Crashed,
    }
}

/// Exit codes that have a rule of their own in a Job's podFailurePolicy, in the order of the rules. Rule 0 is
/// DisruptionTarget, so that an evicted pod counts as disrupted whatever its exit code.
pub const RULE_EXIT_CODES: [i32; 6] =
    [exit::RETRYABLE, exit::PERMANENT, exit::SOURCE_LIMITED, exit::FENCED, exit::CHECKPOINTED, exit::ALREADY_COMMITTED];

/// What a Job's Failed condition says when its pod is gone: the class survives in the index of the rule that matched.
pub fn outcome_of_job_failure(reason: &str, message: &str) -> Outcome {
    match reason {
        "DeadlineExceeded" => Outcome::DeadlineExceeded,
        "PodFailurePolicy" => {
            let index = message
                .rsplit_once("rule at index ")
                .and_then(|(_, tail)| tail.split(|c: char| !c.is_ascii_digit()).next())
                .and_then(|digits| digits.parse::<usize>().ok());
            match index {
                Some(0) => Outcome::Disrupted,
                Some(index) => {
                    RULE_EXIT_CODES.get(index - 1).map_or(Outcome::Crashed, |code| outcome_of_exit_code(*code))
                }
                None => Outcome::Crashed,
            }
        }
        _ => Outcome::Crashed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_outcome_has_a_class() {
        let table: Vec<String> =
            Outcome::KNOWN.iter().map(|outcome| format!("{outcome} {:?}", retry_class(outcome))).collect();
        assert_eq!(
            table,
            [
                "Succeeded Done",
                "AlreadyCommitted Done",
                "Retryable Failure",
                "Permanent Final",
                "SourceLimited Free",
                "Fenced Free",
                "Checkpointed Free",
                "Crashed Failure",
                "OutOfMemory Failure",
                "Disrupted Disruption",
                "DeadlineExceeded Failure",
                "Stalled Failure",
                "NotStarted Failure",
                "Lost Disruption",
                "Abandoned Free",
                "Stopped Free",
            ]
        );
    }

    #[test]
    fn the_class_survives_in_the_job_when_the_pod_is_gone() {
        let message = |index: usize| {
            format!(
                "Container worker for pod default/x failed with exit code 11 matching FailJob rule at index {index}"
            )
        };
        for (index, code) in RULE_EXIT_CODES.iter().enumerate() {
            assert_eq!(
                outcome_of_job_failure("PodFailurePolicy", &message(index + 1)),
                outcome_of_exit_code(*code),
                "{code}"
            );
        }
        assert_eq!(
            outcome_of_job_failure(
                "PodFailurePolicy",
                "Pod default/x has condition DisruptionTarget matching FailJob rule at index 0"
            ),
            Outcome::Disrupted
        );
        assert_eq!(outcome_of_job_failure("BackoffLimitExceeded", ""), Outcome::Crashed);
        assert_eq!(outcome_of_job_failure("DeadlineExceeded", ""), Outcome::DeadlineExceeded);
    }

    #[test]
    fn an_unknown_exit_code_is_a_crash() {
        for code in [1, 2, 101, 134, 137, 139, 143, 255] {
            assert_eq!(outcome_of_exit_code(code), Outcome::Crashed);
        }
    }
}

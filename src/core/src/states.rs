//! The state machines as tables: every transition of a task's and a shard's phase that there can be, and what makes it.
//!
//! What the code does is checked against them by the property tests; docs/concepts shows the same tables.

use collect_api::{Outcome, Phase, protocol::exit, shard::ShardPhase};

use crate::exit::{RULE_EXIT_CODES, RetryClass, outcome_of_exit_code, retry_class};

/// A transition: from (nothing for a new object), to, when.
pub type Transition<P> = (Option<P>, P, &'static str);

/// Transitions of a CollectTask.
pub const TASK: &[Transition<Phase>] = &[
    (None, Phase::Pending, "a run begins"),
    (Some(Phase::Pending), Phase::Planning, "dependencies and beforeStart are done: the planner starts"),
    (None, Phase::Running, "a child begins, below a sealed plan"),
    (None, Phase::Validating, "a child without work begins"),
    (None, Phase::Paused, "a child begins, and desiredState is Paused"),
    (None, Phase::Cancelled, "a child begins, and desiredState is Cancelled"),
    (None, Phase::Failed, "a child begins, and the run was stopped"),
    (Some(Phase::Pending), Phase::Paused, "desiredState is Paused"),
    (Some(Phase::Pending), Phase::Cancelled, "desiredState is Cancelled"),
    (Some(Phase::Pending), Phase::Failed, "beforeStart failed, or the run was stopped"),
    (Some(Phase::Planning), Phase::Running, "the plan is sealed"),
    (Some(Phase::Planning), Phase::Validating, "the plan is sealed and holds no work"),
    (Some(Phase::Planning), Phase::Paused, "desiredState is Paused"),
    (Some(Phase::Planning), Phase::Cancelled, "desiredState is Cancelled and the planner has left"),
    (Some(Phase::Planning), Phase::Failed, "the planner's budget is used up, or its error is permanent"),
    (Some(Phase::Running), Phase::Validating, "every child is over"),
    (Some(Phase::Running), Phase::Paused, "desiredState is Paused"),
    (Some(Phase::Running), Phase::Planning, "the sealed plan was deleted and is made again"),
    (Some(Phase::Running), Phase::Cancelled, "desiredState is Cancelled and every worker has left"),
    (Some(Phase::Running), Phase::Failed, "the run was stopped (deadline, failFast) and every worker has left"),
    (Some(Phase::Paused), Phase::Pending, "desiredState is Running again, before the plan"),
    (Some(Phase::Paused), Phase::Planning, "desiredState is Running again, while planning"),
    (Some(Phase::Paused), Phase::Running, "desiredState is Running again"),
    (Some(Phase::Paused), Phase::Validating, "every child was over when the pause took hold"),
    (Some(Phase::Paused), Phase::Cancelled, "desiredState is Cancelled"),
    (Some(Phase::Paused), Phase::Failed, "the planner failed for good as it was stopped"),
    (Some(Phase::Validating), Phase::Running, "a retry took up work below"),
    (Some(Phase::Validating), Phase::Planning, "the sealed plan was deleted and is made again"),
    (Some(Phase::Validating), Phase::Paused, "a retry took up work below, and desiredState is Paused"),
    (Some(Phase::Validating), Phase::Succeeded, "verdict Pass, no shard failed"),
    (Some(Phase::Validating), Phase::PartiallySucceeded, "verdict Pass, with failed shards that are tolerated"),
    (Some(Phase::Validating), Phase::Collected, "verdict Inconclusive, or level none"),
    (Some(Phase::Validating), Phase::Failed, "verdict Fail, or the commit failed for good"),
    (
        Some(Phase::Validating),
        Phase::Cancelled,
        "children were cancelled, or desiredState is Cancelled before the commit",
    ),
    (Some(Phase::PartiallySucceeded), Phase::Running, "a retry"),
    (Some(Phase::Collected), Phase::Running, "a retry, where failed shards were borne"),
    (Some(Phase::Failed), Phase::Running, "a retry"),
    (Some(Phase::Failed), Phase::Pending, "a retry before the plan, or a new run"),
    (Some(Phase::Cancelled), Phase::Running, "a retry, with desiredState Running"),
    (Some(Phase::Cancelled), Phase::Pending, "a retry before the plan, or a new run"),
    (Some(Phase::Succeeded), Phase::Pending, "a new run"),
    (Some(Phase::PartiallySucceeded), Phase::Pending, "a new run"),
    (Some(Phase::Collected), Phase::Pending, "a new run"),
    (Some(Phase::Running), Phase::Pending, "a new run"),
    (Some(Phase::Planning), Phase::Pending, "a new run"),
    (Some(Phase::Validating), Phase::Pending, "a new run"),
];

/// Transitions of a CollectShard. A shard that waits for its first slot has no phase yet.
pub const SHARD: &[Transition<ShardPhase>] = &[
    (None, ShardPhase::Running, "an attempt is authorised"),
    (None, ShardPhase::Paused, "desiredState is Paused"),
    (None, ShardPhase::Cancelled, "desiredState is Cancelled, or the run was stopped"),
    (Some(ShardPhase::Pending), ShardPhase::Running, "an attempt is authorised, or its pod starts"),
    (Some(ShardPhase::Pending), ShardPhase::Paused, "desiredState is Paused"),
    (Some(ShardPhase::Pending), ShardPhase::Cancelled, "desiredState is Cancelled, or the run was stopped"),
    (Some(ShardPhase::Pending), ShardPhase::Succeeded, "its worker committed before it was seen to start"),
    (Some(ShardPhase::Pending), ShardPhase::Failed, "a budget is used up, or the error is permanent"),
    (Some(ShardPhase::Running), ShardPhase::Pending, "the attempt ended and another one follows, or its pod waits"),
    (Some(ShardPhase::Running), ShardPhase::Succeeded, "the slice is committed"),
    (Some(ShardPhase::Running), ShardPhase::Failed, "a budget is used up, or the error is permanent"),
    (Some(ShardPhase::Paused), ShardPhase::Pending, "desiredState is Running again"),
    (Some(ShardPhase::Paused), ShardPhase::Running, "desiredState is Running again and a slot is free"),
    (Some(ShardPhase::Paused), ShardPhase::Cancelled, "desiredState is Cancelled"),
    (Some(ShardPhase::Failed), ShardPhase::Pending, "a retry"),
    (Some(ShardPhase::Cancelled), ShardPhase::Pending, "a retry, with desiredState Running"),
];

/// Whether a table knows a transition; to stay is always allowed.
pub fn allows<P: PartialEq + Clone>(table: &[Transition<P>], from: Option<&P>, to: &P) -> bool {
    from == Some(to) || table.iter().any(|(known, next, _)| known.as_ref() == from && next == to)
}

/// How an attempt can end and what follows, row by row: outcome, how it comes about, which budget it is charged to.
pub fn outcomes() -> Vec<(Outcome, &'static str, RetryClass)> {
    let how = |outcome: &Outcome| match outcome {
        Outcome::Succeeded => "exit code 0 and a result",
        Outcome::AlreadyCommitted => "exit code 15: the slice's manifest stood already",
        Outcome::Retryable => "exit code 10",
        Outcome::Permanent => "exit code 11",
        Outcome::SourceLimited => "exit code 12: the source asked to come back later",
        Outcome::Fenced => "exit code 13: a newer attempt is in place",
        Outcome::Checkpointed => "exit code 14: it was asked to leave",
        Outcome::Crashed => "any other exit code or signal",
        Outcome::OutOfMemory => "killed by the kernel for using too much memory",
        Outcome::Disrupted => "evicted, preempted, or refused by its node",
        Outcome::DeadlineExceeded => "ran for attemptDeadline",
        Outcome::Stalled => "no sign of life, or no progress, for stallTimeout",
        Outcome::NotStarted => "its pod did not start within pendingTimeout",
        Outcome::Lost => "its Job or pod is gone and nobody saw how it ended",
        Outcome::Abandoned => "authorised, and its Job was never seen",
        Outcome::Stopped => "paused or cancelled before it had ended",
        Outcome::Other(_) => "a word of a newer version",
    };
    Outcome::KNOWN.iter().map(|outcome| (outcome.clone(), how(outcome), retry_class(outcome))).collect()
}

/// The exit codes of the worker protocol, row by row: code, what it says, the outcome that it becomes.
pub fn exit_codes() -> Vec<(i32, &'static str, Outcome)> {
    let says = |code: i32| match code {
        exit::DONE => "all work is done, and the termination message holds the result",
        exit::RETRYABLE => "it failed in a way that may pass",
        exit::PERMANENT => "it failed in a way that no repetition mends: configuration, credentials, schema",
        exit::SOURCE_LIMITED => "the source asked to come back later; the termination message says when",
        exit::FENCED => "a newer attempt has taken its place",
        exit::CHECKPOINTED => "it was asked to leave, and left a checkpoint",
        exit::ALREADY_COMMITTED => "the slice was committed already; the result is read from its manifest",
        _ => "anything else",
    };
    std::iter::once(exit::DONE)
        .chain(RULE_EXIT_CODES)
        .map(|code| (code, says(code), outcome_of_exit_code(code)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_end_is_left_only_by_a_new_run() {
        for (from, to, when) in TASK {
            let Some(from) = from.as_ref().filter(|from| from.is_terminal()) else { continue };
            assert!(!to.is_terminal(), "{from} becomes {to}");
            let retried = when.starts_with("a retry");
            assert!(!retried || from.is_retriable() || *from == Phase::Collected, "{from}: {when}");
            assert!(retried || *when == "a new run", "{from}: {when}");
        }
        for (from, _, when) in SHARD {
            if from.as_ref().is_some_and(ShardPhase::is_terminal) {
                assert!(when.starts_with("a retry") && *from != Some(ShardPhase::Succeeded), "{from:?}: {when}");
            }
        }
    }

    #[test]
    fn every_phase_can_be_reached_and_left() {
        for phase in Phase::KNOWN {
            assert!(TASK.iter().any(|(_, to, _)| to == phase), "{phase} is never reached");
            assert!(TASK.iter().any(|(from, ..)| from.as_ref() == Some(phase)), "{phase} is never left");
        }
        for phase in ShardPhase::KNOWN {
            assert!(SHARD.iter().any(|(_, to, _)| to == phase), "{phase} is never reached");
            let left = SHARD.iter().any(|(from, ..)| from.as_ref() == Some(phase));
            assert_eq!(left, *phase != ShardPhase::Succeeded, "{phase}");
        }
    }

    #[test]
    fn every_exit_code_says_something_of_its_own() {
        let mut says: Vec<_> = exit_codes().into_iter().map(|(_, says, _)| says).collect();
        assert!(!says.contains(&"anything else"), "{says:?}");
        says.sort_unstable();
        says.dedup();
        assert_eq!(says.len(), RULE_EXIT_CODES.len() + 1);
    }

    #[test]
    fn no_transition_stands_twice() {
        for (at, (from, to, _)) in TASK.iter().enumerate() {
            assert!(!TASK[at + 1..].iter().any(|(f, t, _)| (f, t) == (from, to)), "{from:?} {to}");
        }
        for (at, (from, to, _)) in SHARD.iter().enumerate() {
            assert!(!SHARD[at + 1..].iter().any(|(f, t, _)| (f, t) == (from, to)), "{from:?} {to}");
        }
    }
}

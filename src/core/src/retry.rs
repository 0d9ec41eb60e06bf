//! Retry tokens: a new value of the annotation collect.dev/retry has what failed or was cancelled there and below tried again.
//!
//! A token speaks once: what ends without success remembers the tokens that held at that moment, and only other ones take
//! it up again (I9: a terminal phase is left by an explicit retry or a new run, and by nothing else).

use std::collections::BTreeMap;

use collect_api::{CollectTaskStatus, DesiredState, Phase, labels};

use crate::text;

/// The tokens that hold for an object: those of the tasks above it, then its own. Absent where there are none.
pub fn token(above: Option<&str>, annotations: Option<&BTreeMap<String, String>>) -> Option<String> {
    let own = annotations.and_then(|all| all.get(labels::RETRY)).filter(|own| !own.is_empty());
    match (above, own) {
        (above, None) => above.map(str::to_owned),
        (None, Some(own)) => Some(text::cut(own, 63)),
        (Some(above), Some(own)) => Some(text::cut(&format!("{above}+{}", text::cut(own, 63)), 1024)),
    }
}

/// Whether a task that is over left something to retry: what ended well may have borne failed shards, and a retry takes up
/// these whatever their task came to.
pub fn is_retriable(status: &CollectTaskStatus) -> bool {
    let has_failures = status.shards.as_ref().is_some_and(|shards| shards.failed > 0);
    status.phase.as_ref().is_some_and(|phase| phase.is_retriable() || (*phase == Phase::Collected && has_failures))
}

/// Whether something that ended without success is to be taken up again.
pub fn is_due(retried: Option<&str>, token: Option<&str>, desired: DesiredState) -> bool {
    desired == DesiredState::Running && token.is_some() && retried != token
}

#[cfg(test)]
mod tests {
    use collect_api::task::ShardCounts;

    use super::*;

    #[test]
    fn what_bore_failures_may_be_retried() {
        let status = |phase, failed| {
            let shards = Some(ShardCounts { total: 2, failed, succeeded: 2 - failed, ..Default::default() });
            is_retriable(&CollectTaskStatus { phase: Some(phase), shards, ..Default::default() })
        };
        assert!(status(Phase::PartiallySucceeded, 1) && status(Phase::Failed, 0) && status(Phase::Cancelled, 0));
        assert!(status(Phase::Collected, 1), "its failed shard is due like any other");
        assert!(!status(Phase::Collected, 0) && !status(Phase::Succeeded, 0) && !status(Phase::Running, 1));
    }

    #[test]
    fn a_token_speaks_once() {
        assert!(is_due(None, Some("a"), DesiredState::Running));
        assert!(!is_due(Some("a"), Some("a"), DesiredState::Running));
        assert!(!is_due(Some("a"), None, DesiredState::Running), "taking a token away retries nothing");
        assert!(!is_due(None, Some("a"), DesiredState::Cancelled));
    }

    #[test]
    fn tokens_of_the_path_add_up() {
        let own = |token: &str| BTreeMap::from([(labels::RETRY.to_owned(), token.to_owned())]);
        assert_eq!(token(None, None), None);
        assert_eq!(token(None, Some(&own("a"))).as_deref(), Some("a"));
        assert_eq!(token(Some("a"), Some(&own("b"))).as_deref(), Some("a+b"));
        assert_eq!(token(Some("a"), None).as_deref(), Some("a"));
    }
}

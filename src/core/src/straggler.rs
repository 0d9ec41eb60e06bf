//! Stragglers: running shards that take much longer than their siblings took, and why, as far as it can be told.

use collect_api::{CollectShard, shard::ShardPhase, task::Straggler};
use jiff::Timestamp;

use crate::text;

/// Stragglers that are listed.
pub const LISTED: usize = 5;
/// Finished siblings that it takes to know what is usual.
pub const SIBLINGS: usize = 5;
/// How many times the median is much longer.
pub const TIMES: i64 = 3;
/// Nobody is a straggler before so many seconds.
pub const LEAST_SECONDS: i64 = 60;

/// The stragglers among the shards of one task, the slowest first. `node_of` tells where a shard's worker runs.
///
/// Times are those of the ledger, all written by operators; what a worker's clock says is not used.
pub fn stragglers(
    shards: &[impl AsRef<CollectShard>],
    node_of: impl Fn(&CollectShard) -> Option<String>,
    now: Timestamp,
) -> Vec<Straggler> {
    let shards = || shards.iter().map(AsRef::as_ref);
    let mut usual: Vec<(i64, i64)> =
        shards().filter_map(|shard| Some((seconds_taken(shard)?, records(shard)))).collect();
    usual.sort_unstable();
    if usual.len() < SIBLINGS {
        return Vec::new();
    }
    let Some((median, _)) = usual.get(usual.len() / 2).copied() else { return Vec::new() };
    let mut sizes: Vec<i64> = usual.iter().map(|(_, records)| *records).collect();
    sizes.sort_unstable();
    let usual_records = sizes.get(sizes.len() / 2).copied().unwrap_or(0);
    let bound = (median * TIMES).max(LEAST_SECONDS);
    let mut slow: Vec<(i64, Straggler)> = shards()
        .filter_map(|shard| {
            let seconds = seconds_running(shard, now)?;
            (seconds > bound).then(|| {
                let name = shard.metadata.name.clone().unwrap_or_default();
                let reason = why(shard, seconds, median, usual_records);
                (seconds, Straggler { node: node_of(shard), name, median_seconds: median, reason })
            })
        })
        .collect();
    slow.sort_by(|a, b| (std::cmp::Reverse(a.0), &a.1.name).cmp(&(std::cmp::Reverse(b.0), &b.1.name)));
    slow.into_iter().take(LISTED).map(|(_, straggler)| straggler).collect()
}

/// Seconds from the authorisation of a finished shard's last attempt to its end.
fn seconds_taken(shard: &CollectShard) -> Option<i64> {
    let status = shard.status.as_ref().filter(|status| status.phase == Some(ShardPhase::Succeeded))?;
    let last = status.attempts.last()?;
    Some(last.finished_at.as_ref()?.0.duration_since(last.authorised_at.0).as_secs().max(1))
}

fn seconds_running(shard: &CollectShard, now: Timestamp) -> Option<i64> {
    let live = shard.status.as_ref()?.attempts.last().filter(|attempt| attempt.is_live())?;
    Some(now.duration_since(live.authorised_at.0).as_secs())
}

fn records(shard: &CollectShard) -> i64 {
    shard.status.as_ref().and_then(|status| status.result.as_ref()).map_or(0, |result| result.tally.records)
}

fn why(shard: &CollectShard, seconds: i64, median: i64, usual_records: i64) -> String {
    let Some(status) = &shard.status else { return String::new() };
    let Some(progress) = &status.progress else {
        return status
            .message
            .as_deref()
            .map_or_else(|| "its worker has not reported yet".to_owned(), |message| text::cut(message, 256));
    };
    if let Some(expected) = progress.expected.filter(|expected| usual_records > 0 && *expected > usual_records * 2) {
        return format!("it holds {expected} records, its siblings about {usual_records}");
    }
    if progress.stage == "waiting" {
        return "its worker waits for the source (rate limit, Retry-After or slow answers)".into();
    }
    if status.attempts.len() > 1 {
        let earlier = status.attempts.iter().rev().find_map(|attempt| attempt.reason.clone()).unwrap_or_default();
        return text::cut(&format!("it is in attempt {}; the one before ended with {earlier}", progress.attempt), 256);
    }
    let rate = |records: i64, seconds: i64| text::rate(records, seconds as f64).unwrap_or_else(|| "0/s".into());
    format!("it gets {} where its siblings got {}", rate(progress.records, seconds.max(1)), rate(usual_records, median))
}

#[cfg(test)]
mod tests {
    use collect_api::{
        Attempt, CollectShardSpec, CollectShardStatus, Outcome,
        protocol::{CollectResult, Tally},
        shard::{ShardProgress, Slice},
    };

    use super::*;
    use crate::{attempts::authorise, conditions::whole_seconds, resolve::RetryPolicy};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn shard(index: i32, taken: Option<i64>, progress: Option<(i64, i64, &str)>) -> std::sync::Arc<CollectShard> {
        let spec = CollectShardSpec {
            task: "t".into(),
            root_uid: "u".into(),
            run: 1,
            index,
            slice: Slice { items: vec![] },
            first_attempt: None,
        };
        let mut attempts: Vec<Attempt> = Vec::new();
        authorise(&mut attempts, &mut None, 0, &RetryPolicy::of(None), "me", at(0));
        let mut status = CollectShardStatus { phase: Some(ShardPhase::Running), ..Default::default() };
        if let Some(seconds) = taken {
            attempts[0].outcome = Some(Outcome::Succeeded);
            attempts[0].finished_at = Some(whole_seconds(at(seconds)));
            let tally = Tally { records: 1000, ..Tally::default() };
            status.result = Some(CollectResult { tally, ..CollectResult::default() });
            status.phase = Some(ShardPhase::Succeeded);
        }
        status.progress = progress.map(|(records, expected, stage)| ShardProgress {
            attempt: 1,
            seq: 1,
            stage: stage.into(),
            records,
            bytes: 0,
            expected: Some(expected),
            at: whole_seconds(at(0)),
        });
        status.attempts = attempts;
        let mut shard = CollectShard::new(&format!("t-{index}"), spec);
        shard.status = Some(status);
        std::sync::Arc::new(shard)
    }

    fn among(shards: Vec<std::sync::Arc<CollectShard>>, second: i64) -> Vec<(String, String)> {
        let mut all: Vec<_> = (10..16).map(|index| shard(index, Some(30), None)).collect();
        all.extend(shards);
        stragglers(&all, |_| None, at(second)).into_iter().map(|s| (s.name, s.reason)).collect()
    }

    #[test]
    fn a_shard_is_slow_only_against_its_siblings() {
        let slow = || shard(0, None, Some((10, 1000, "reading")));
        assert!(among(vec![slow()], 90).is_empty());
        assert_eq!(among(vec![slow()], 91)[0].0, "t-0");
        let alone = [slow(), shard(1, Some(30), None)];
        assert!(stragglers(&alone, |_| None, at(9_999)).is_empty(), "too few siblings to know what is usual");
    }

    #[test]
    fn the_reason_is_told() {
        let reasons = |progress| among(vec![shard(0, None, progress)], 300)[0].1.clone();
        assert!(reasons(None).contains("not reported"));
        assert!(reasons(Some((10, 5000, "reading"))).contains("it holds 5000 records, its siblings about 1000"));
        assert!(reasons(Some((10, 1000, "waiting"))).contains("waits for the source"));
        assert_eq!(reasons(Some((300, 1000, "reading"))), "it gets 1.0/s where its siblings got 33/s");
    }
}

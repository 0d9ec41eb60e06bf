//! How fast work goes and how long it still takes, as far as the objects tell. For people only: nothing is decided by it.

use collect_api::{CollectShard, CollectTask, Phase, shard::ShardPhase};
use jiff::Timestamp;

/// Records a second of a running shard: since its attempt was authorised, up to its last report.
pub fn of_shard(shard: &CollectShard) -> Option<f64> {
    let status = shard.status.as_ref().filter(|status| status.phase == Some(ShardPhase::Running))?;
    let progress = status.progress.as_ref()?;
    let attempt = status.attempts.last().filter(|attempt| attempt.is_live() && attempt.n == progress.attempt)?;
    // Records that an earlier attempt left behind are not of this one's making.
    let earlier = status.attempts.iter().rev().skip(1).find_map(|attempt| attempt.records).unwrap_or(0);
    let records = if earlier <= progress.records { progress.records - earlier } else { progress.records };
    rate(records, seconds(attempt.authorised_at.0, progress.at.0))
}

/// Records a second of a task since its run began.
pub fn average(task: &CollectTask, now: Timestamp) -> Option<f64> {
    let collected = task.status.as_ref()?.records.as_ref()?.collected;
    rate(collected, elapsed(task, now)?)
}

/// Seconds that a run has taken, or took.
pub fn elapsed(task: &CollectTask, now: Timestamp) -> Option<i64> {
    let status = task.status.as_ref()?;
    let end = status.finished_at.as_ref().map_or(now, |end| end.0);
    Some(seconds(status.started_at.as_ref()?.0, end))
}

/// Seconds until the task has collected everything, at this pace; absent unless it collects and something can be told.
pub fn left(task: &CollectTask, per_second: Option<f64>, now: Timestamp) -> Option<i64> {
    let status = task.status.as_ref().filter(|status| status.phase == Some(Phase::Running))?;
    let records = status.records.as_ref();
    if let (Some(expected), Some(per_second)) = (records.and_then(|records| records.expected), per_second) {
        let missing = expected - records.map_or(0, |records| records.collected);
        return (missing > 0 && per_second > 0.0).then(|| (missing as f64 / per_second).ceil() as i64);
    }
    let progress = status.progress.map(i64::from).filter(|progress| (1..100).contains(progress))?;
    Some(elapsed(task, now)? * (100 - progress) / progress)
}

/// `850ms` is never said: `4m12s`, `2h05m`, `3d04h`.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `2.1k/s`; nothing where nothing moves.
pub fn said(per_second: Option<f64>) -> String {
    // The tenfold in ten seconds: the same words as in status.summary.
    per_second.and_then(|rate| collect_core::text::rate((rate * 10_000.0).round() as i64, 10_000.0)).unwrap_or_default()
}

fn rate(records: i64, seconds: i64) -> Option<f64> {
    (records > 0).then(|| records as f64 / seconds.max(1) as f64)
}

fn seconds(from: Timestamp, to: Timestamp) -> i64 {
    to.duration_since(from).as_secs().max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (252, "4m12s"), (7_500, "2h05m"), (273_600, "3d04h")] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn a_running_shard_has_a_pace_and_others_have_none() {
        let running = samples::shard("villages-44-0", "Running", 0, 300, Some(1000));
        assert_eq!(said(of_shard(&running)), "10/s", "300 records in 30 s");
        assert_eq!(of_shard(&samples::shard("villages-44-0", "Pending", 0, 300, None)), None);
    }

    #[test]
    fn what_is_left_follows_from_what_is_missing() {
        let task = samples::task("villages", None, "Running", 25, (250, Some(1000)));
        assert_eq!(left(&task, Some(25.0), samples::now()), Some(30));
        let unknown = samples::task("villages", None, "Running", 25, (250, None));
        assert_eq!(left(&unknown, Some(25.0), samples::now()), Some(180), "a quarter took 60 s");
        let over = samples::task("villages", None, "Succeeded", 100, (1000, Some(1000)));
        assert_eq!(left(&over, Some(25.0), samples::now()), None);
    }
}

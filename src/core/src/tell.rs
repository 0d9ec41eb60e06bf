//! Whom a change of a task's status is told, and how soon: at once or a little later in the status itself, and as events.

use std::time::Duration;

use collect_api::{CollectTaskStatus, Phase, condition::reason};

use crate::text;

/// Progress of one task is written at most this often: never more than a write a second for an object.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// The same where neither progress nor counts have moved.
const REST_EVERY: Duration = Duration::from_secs(10);

/// Whether the difference between two statuses must be written at once; otherwise it is progress, which may wait.
pub fn is_transition(old: &CollectTaskStatus, new: &CollectTaskStatus) -> bool {
    let outcomes = |status: &CollectTaskStatus| {
        status.conditions.iter().map(|c| (c.type_.clone(), c.status.clone(), c.reason.clone())).collect::<Vec<_>>()
    };
    let failed = |status: &CollectTaskStatus| status.shards.as_ref().map(|shards| shards.failed);
    old.phase != new.phase
        || old.observed_generation != new.observed_generation
        || old.run != new.run
        || outcomes(old) != outcomes(new)
        || failed(old) != failed(new)
        || old.plan != new.plan
        || old.commit != new.commit
        || old.hooks != new.hooks
        || old.report != new.report
        || old.retried != new.retried
        || old.redrives != new.redrives
        || old.elapsed_seconds != new.elapsed_seconds
        || old.milestones.len() != new.milestones.len()
}

/// How long after the last write of progress a status is to be written: transitions at once, the rest may wait. `None` if it
/// is as it was.
pub fn write_after(old: &CollectTaskStatus, new: &CollectTaskStatus) -> Option<Duration> {
    let succeeded = |status: &CollectTaskStatus| status.shards.as_ref().map(|shards| shards.succeeded);
    if old == new {
        None
    } else if is_transition(old, new) {
        Some(Duration::ZERO)
    } else if old.progress != new.progress || old.folded != new.folded || succeeded(old) != succeeded(new) {
        Some(PROGRESS_EVERY)
    } else {
        Some(REST_EVERY)
    }
}

/// An event worth telling: type, reason, note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whether it is a warning.
    pub warning: bool,
    /// Reason.
    pub reason: String,
    /// Note.
    pub note: String,
}

/// What a change of status tells people: transitions and milestones, never a repetition.
pub fn events(old: &CollectTaskStatus, new: &CollectTaskStatus) -> Vec<Told> {
    let mut told = Vec::new();
    if let Some(result) = new.plan.as_ref().and_then(|plan| plan.result.as_ref())
        && new.plan.as_ref().and_then(|plan| plan.sealed) != old.plan.as_ref().and_then(|plan| plan.sealed)
    {
        let records = result.records.map_or_else(|| "an unknown number of".to_owned(), |records| records.to_string());
        let note =
            format!("{} tasks, {} shards, {} items, {records} records", result.tasks, result.shards, result.items);
        told.push(Told { warning: false, reason: reason::PLANNED.into(), note });
    }
    if old.phase != new.phase
        && let Some(phase) = &new.phase
    {
        let warning = matches!(phase, Phase::Failed);
        let note = new.message.clone().unwrap_or_else(|| phase.to_string());
        if *phase != Phase::Pending {
            told.push(Told { warning, reason: phase.to_string(), note: text::cut(&note, 1000) });
        }
    }
    for slow in new.stragglers.iter().filter(|slow| !old.stragglers.iter().any(|known| known.name == slow.name)) {
        let note = format!("{} takes more than three times as long as its siblings: {}", slow.name, slow.reason);
        told.push(Told { warning: true, reason: reason::STRAGGLERS.into(), note });
    }
    if new.redrives > old.redrives && old.finished_at.is_some() && new.finished_at.is_none() {
        let note = "a retry takes up what had failed; what is committed stays".to_owned();
        told.push(Told { warning: false, reason: reason::REDRIVEN.into(), note });
    }
    for milestone in new.milestones.iter().filter(|m| m.percent < 100 && !old.milestones.contains(m)) {
        let records = new.summary.as_ref().and_then(|summary| summary.records.clone()).unwrap_or_default();
        told.push(Told {
            warning: false,
            reason: reason::MILESTONE.into(),
            note: format!("{}% done, {records} records", milestone.percent),
        });
    }
    told
}

#[cfg(test)]
mod tests {
    use collect_api::task::ShardCounts;

    use super::*;

    #[test]
    fn transitions_are_written_at_once_and_progress_a_little_later() {
        let counts = |succeeded, failed| Some(ShardCounts { succeeded, failed, ..Default::default() });
        let old = CollectTaskStatus { phase: Some(Phase::Running), shards: counts(0, 0), ..Default::default() };
        let with = |change: &dyn Fn(&mut CollectTaskStatus)| {
            let mut new = old.clone();
            change(&mut new);
            write_after(&old, &new)
        };
        assert_eq!(with(&|_| ()), None);
        assert_eq!(with(&|new| new.phase = Some(Phase::Validating)), Some(Duration::ZERO));
        assert_eq!(with(&|new| new.shards = counts(0, 1)), Some(Duration::ZERO), "a failure is news");
        assert_eq!(with(&|new| new.shards = counts(1, 0)), Some(PROGRESS_EVERY));
        assert_eq!(with(&|new| new.progress = Some(1)), Some(PROGRESS_EVERY));
        assert_eq!(with(&|new| new.bytes = Some(1)), Some(REST_EVERY));
    }
}

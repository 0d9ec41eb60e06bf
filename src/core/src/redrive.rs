//! Retry of a task that is over: whether one is due, and the status with which it is taken up again.

use collect_api::{CollectTaskStatus, DesiredState, Phase, condition::reason};

use crate::{
    attempts::{self, Entries},
    conditions::At,
    hooks::HookKind,
    retry,
    rollup::Above,
    task::{clear_ends, waiting},
};

/// Whether a task that is over is to be taken up again: by tokens of its own path, or because something below it was.
///
/// A view that is too old can't make it so: counts of retries only grow.
pub fn is_to_be_redriven(status: &CollectTaskStatus, redrives_below: i32, above: &Above) -> Option<Redrive> {
    if !retry::is_retriable(status) {
        return None;
    }
    if retry::is_due(status.retried.as_deref(), above.token.as_deref(), above.desired) {
        return Some(Redrive::Here);
    }
    (above.desired == DesiredState::Running && redrives_below > status.redrives_below.unwrap_or(0))
        .then_some(Redrive::Below(redrives_below))
}

/// How often a retry has taken up work again in a task's run, with what is below as it is now. A report is about one round.
///
/// It only grows: where something that was retried is deleted by hand, the count below falls, and the tasks above still
/// have to learn of the retry.
pub fn round(status: &CollectTaskStatus, redrives_below: i32) -> i32 {
    status.redrives.unwrap_or(0) + (redrives_below - status.redrives_below.unwrap_or(0)).max(0)
}

/// Where a retry begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redrive {
    /// At this task.
    Here,
    /// At something below it, which is taken up already: how often such things were, all in all.
    Below(i32),
}

/// The status of a task that a retry takes up again: what had failed is undone, what is committed stays.
pub fn redriven(status: &CollectTaskStatus, redrive: Redrive, token: Option<String>, at: At) -> CollectTaskStatus {
    let sealed = status.plan.as_ref().is_some_and(|plan| plan.sealed.is_some());
    let child = status.plan.is_none() && status.shards.is_some();
    let phase = if sealed || child { Phase::Running } else { Phase::Pending };
    let mut new = waiting(status, phase, reason::REDRIVEN, "a retry takes up what had failed", at);
    match redrive {
        Redrive::Here => {
            new = unfolded(&new);
            new.redrives = Some(new.redrives.unwrap_or_default() + 1);
        }
        Redrive::Below(below) => {
            new.redrives = Some(round(status, below));
            new.redrives_below = Some(below);
        }
    }
    new.retried = token;
    new.finished_at = None;
    new.report = None;
    // What stopped the run before must not stop it again before its children were looked at.
    if let Some(shards) = &mut new.shards {
        shards.pending += shards.failed + shards.cancelled;
        (shards.failed, shards.cancelled) = (0, 0);
    }
    if let Some(tasks) = &mut new.tasks {
        tasks.pending += tasks.partially_succeeded + tasks.failed + tasks.cancelled;
        (tasks.partially_succeeded, tasks.failed, tasks.cancelled) = (0, 0, 0);
    }
    new.failures.clear();
    new.elapsed_seconds = status.elapsed_seconds.map(|_| 0);
    if let Some(plan) = new.plan.as_mut().filter(|plan| plan.sealed.is_none()) {
        plan.forgiven = Some(attempts::forgive(Entries::of_plan(status.plan.as_ref()), &mut plan.folded));
    }
    // Files may be added, so the run is committed once more.
    if let Some(commit) = &mut new.commit {
        commit.result = None;
        commit.forgiven = Some(attempts::forgive(Entries::of_commit(status.commit.as_ref()), &mut commit.folded));
    }
    if let Some(before) = new.hooks.as_mut().and_then(|hooks| hooks.before_start.as_mut())
        && before.succeeded == Some(false)
    {
        before.succeeded = None;
        let entries = HookKind::BeforeStart.status(status.hooks.as_ref());
        before.forgiven = Some(attempts::forgive(Entries::of_hook(entries), &mut before.folded));
    }
    clear_ends(&mut new);
    new
}

/// The status without the folded children that a retry takes out again; how often they had been retried is kept.
pub fn unfolded(status: &CollectTaskStatus) -> CollectTaskStatus {
    let mut new = status.clone();
    if let Some(folded) = &mut new.folded
        && let Some(undone) = folded.undone.take()
        && undone.redrives > 0
    {
        folded.done.get_or_insert_default().redrives += undone.redrives;
    }
    new
}

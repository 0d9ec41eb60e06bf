//! Hooks: which one is due, and what it is told. Each has a ledger of its own at the root.

use collect_api::{
    CollectTask, CollectTaskStatus, Phase,
    hooks::{Hook, HookStatus, Hooks, HooksStatus},
    protocol::HookEvent,
};

use crate::text;

/// Which hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// Before the plan is made.
    BeforeStart,
    /// After a good end.
    AfterSuccess,
    /// After a bad end.
    AfterFailure,
}

impl HookKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BeforeStart, Self::AfterSuccess, Self::AfterFailure];

    /// As it stands in the spec.
    pub fn field(self) -> &'static str {
        match self {
            Self::BeforeStart => "beforeStart",
            Self::AfterSuccess => "afterSuccess",
            Self::AfterFailure => "afterFailure",
        }
    }

    /// As it stands in names and labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::BeforeStart => "before-start",
            Self::AfterSuccess => "after-success",
            Self::AfterFailure => "after-failure",
        }
    }

    /// The hook of this kind.
    pub fn of(self, hooks: Option<&Hooks>) -> Option<&Hook> {
        let hooks = hooks?;
        match self {
            Self::BeforeStart => hooks.before_start.as_ref(),
            Self::AfterSuccess => hooks.after_success.as_ref(),
            Self::AfterFailure => hooks.after_failure.as_ref(),
        }
    }

    /// What became of it.
    pub fn status(self, hooks: Option<&HooksStatus>) -> Option<&HookStatus> {
        let hooks = hooks?;
        match self {
            Self::BeforeStart => hooks.before_start.as_ref(),
            Self::AfterSuccess => hooks.after_success.as_ref(),
            Self::AfterFailure => hooks.after_failure.as_ref(),
        }
    }

    /// The place of what becomes of it.
    pub fn status_mut(self, status: &mut CollectTaskStatus) -> &mut HookStatus {
        let hooks = status.hooks.get_or_insert_default();
        let place = match self {
            Self::BeforeStart => &mut hooks.before_start,
            Self::AfterSuccess => &mut hooks.after_success,
            Self::AfterFailure => &mut hooks.after_failure,
        };
        place.get_or_insert_default()
    }
}

/// The hook that is to be carried out now, if there is one: once in each run.
pub fn due(task: &CollectTask) -> Option<HookKind> {
    let status = task.status.as_ref()?;
    let kind = match status.phase.as_ref()? {
        Phase::Succeeded | Phase::PartiallySucceeded | Phase::Collected => HookKind::AfterSuccess,
        Phase::Failed => HookKind::AfterFailure,
        // Whoever cancels knows.
        Phase::Cancelled => return None,
        _ if status.plan.is_none() => HookKind::BeforeStart,
        _ => return None,
    };
    kind.of(task.spec.hooks.as_ref())?;
    kind.status(status.hooks.as_ref()).and_then(|status| status.succeeded).is_none().then_some(kind)
}

/// What a hook is told.
pub fn event(task: &CollectTask, kind: HookKind) -> HookEvent {
    let status = task.status.clone().unwrap_or_default();
    HookEvent {
        hook: kind.field().into(),
        namespace: task.metadata.namespace.clone().unwrap_or_default(),
        task: task.metadata.name.clone().unwrap_or_default(),
        run: status.run.unwrap_or(1),
        phase: if kind == HookKind::BeforeStart {
            Phase::Pending.to_string()
        } else {
            status.phase.map(|phase| phase.to_string()).unwrap_or_default()
        },
        records: status.records.map_or(0, |records| records.collected),
        report: status.report.map(|report| report.name).unwrap_or_default(),
        message: text::cut(status.message.as_deref().unwrap_or_default(), 1024),
    }
}

#[cfg(test)]
mod tests {
    use collect_api::{
        CollectTaskSpec,
        hooks::{HookRun, JobHook},
        task::PlanStatus,
    };

    use super::*;

    fn task(phase: Phase, hooks: Option<HooksStatus>) -> CollectTask {
        let hook = || Some(Hook { run: HookRun::Job(JobHook::default()), deadline: None, max_attempts: None });
        let all = Hooks { before_start: hook(), after_success: hook(), after_failure: hook() };
        let mut task = CollectTask::new("t", CollectTaskSpec { hooks: Some(all), ..Default::default() });
        task.status = Some(CollectTaskStatus { phase: Some(phase), hooks, ..Default::default() });
        task
    }

    #[test]
    fn each_hook_has_its_moment() {
        use HookKind::{AfterFailure, AfterSuccess, BeforeStart};
        for (phase, expected) in [
            (Phase::Pending, Some(BeforeStart)),
            (Phase::Paused, Some(BeforeStart)),
            (Phase::Succeeded, Some(AfterSuccess)),
            (Phase::PartiallySucceeded, Some(AfterSuccess)),
            (Phase::Collected, Some(AfterSuccess)),
            (Phase::Failed, Some(AfterFailure)),
            (Phase::Cancelled, None),
        ] {
            assert_eq!(due(&task(phase.clone(), None)), expected, "{phase}");
        }
        let mut planned = task(Phase::Planning, None);
        planned.status.as_mut().unwrap().plan = Some(PlanStatus::default());
        assert_eq!(due(&planned), None, "the start is over once planning has begun");
    }

    #[test]
    fn a_hook_that_has_ended_is_not_due_again() {
        for succeeded in [true, false] {
            let status = HookStatus { succeeded: Some(succeeded), ..HookStatus::default() };
            let hooks = HooksStatus { after_success: Some(status), ..HooksStatus::default() };
            assert_eq!(due(&task(Phase::Succeeded, Some(hooks))), None);
        }
        let mut without = task(Phase::Succeeded, None);
        without.spec.hooks = None;
        assert_eq!(due(&without), None);
    }
}

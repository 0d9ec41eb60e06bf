//! The Jobs of a root: planner, commit and hooks. Mirrors src/operator/src/task/phase_jobs.rs.

use std::{sync::Arc, time::Duration};

use collect_api::{
    Attempt, CollectTask, CollectTaskStatus, DesiredState, Outcome, Phase,
    condition::{HOOK_FAILED, reason},
    protocol::{PlanResult, WorkResult},
    shard::FoldedAttempts,
};
use collect_core::{
    attempts::{self, Entries},
    conditions::{self, At},
    halt::Halt,
    hooks::HookKind,
    ledger::{self, Ended, Finish, Seen, Step},
    resolve::{RetryPolicy, TimeLimits},
    rollup::Above,
    task as core, tell,
    tree::PlanTree,
};
use kube::ResourceExt;

use crate::{
    cluster::Work,
    jobs::{NewJob, Place},
    nodes::is_over,
    operator::{Answer, Operator, reference},
    store::uid_of,
    world::World,
};

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Plan,
    Commit { slices: i64, records: i64 },
    Hook(HookKind),
}

/// What is asked of a root.
#[derive(Clone, Debug)]
pub struct Asked {
    pub desired: DesiredState,
    pub halt: Option<Halt>,
}

impl Which {
    fn word(self) -> &'static str {
        match self {
            Which::Plan => "plan",
            Which::Commit { .. } => "commit",
            Which::Hook(kind) => kind.word(),
        }
    }

    fn entries(self, status: &CollectTaskStatus) -> Entries<'_> {
        match self {
            Which::Plan => Entries::of_plan(status.plan.as_ref()),
            Which::Commit { .. } => Entries::of_commit(status.commit.as_ref()),
            Which::Hook(kind) => Entries::of_hook(kind.status(status.hooks.as_ref())),
        }
    }

    fn ledger(self, status: &mut CollectTaskStatus) -> (&mut Vec<Attempt>, &mut Option<FoldedAttempts>) {
        match self {
            Which::Plan => {
                let plan = status.plan.get_or_insert_default();
                (&mut plan.attempts, &mut plan.folded)
            }
            Which::Commit { .. } => {
                let commit = status.commit.get_or_insert_default();
                (&mut commit.attempts, &mut commit.folded)
            }
            Which::Hook(kind) => {
                let hook = kind.status_mut(status);
                (&mut hook.attempts, &mut hook.folded)
            }
        }
    }

    fn policy(self, task: &CollectTask) -> RetryPolicy {
        let hook = match self {
            Which::Hook(kind) => kind.of(task.spec.hooks.as_ref()),
            Which::Plan | Which::Commit { .. } => None,
        };
        hook.map_or_else(|| RetryPolicy::of(task.spec.retry.as_ref()), RetryPolicy::of_hook)
    }

    /// The status while it is worked on. What comes after the end changes nothing of the end.
    fn waiting(self, status: &CollectTaskStatus, reason: &str, message: &str, at: At) -> CollectTaskStatus {
        match self {
            Which::Plan => core::waiting(status, Phase::Planning, reason, message, at),
            Which::Commit { .. } => core::waiting(status, Phase::Validating, reason, message, at),
            Which::Hook(HookKind::BeforeStart) => core::waiting(status, Phase::Pending, reason, message, at),
            Which::Hook(HookKind::AfterSuccess | HookKind::AfterFailure) => status.clone(),
        }
    }

    fn does(self) -> (&'static str, &'static str) {
        match self {
            Which::Plan => (reason::PLANNING, "the planner reads the levels and totals of the source"),
            Which::Commit { .. } => (reason::VALIDATING, "writing the run's file list"),
            Which::Hook(_) => (reason::HOOK, "the beforeStart hook is carried out"),
        }
    }
}

/// Why the commit failed for good, if it has.
impl Operator {
    /// A sealed plan whose chunks are gone is planned again and must give the same digest.
    pub fn unseal(&mut self, world: &mut World, task: &CollectTask) -> Answer<()> {
        let status = task.status.clone().unwrap_or_default();
        let message = "the sealed plan is gone and is made again";
        let mut new = core::waiting(&status, Phase::Planning, reason::PLAN_LOST, message, self.at(world, task));
        if let Some(plan) = &mut new.plan {
            plan.sealed = None;
        }
        self.write_task(world, task, &new).map(drop)
    }

    /// Deletes Jobs of the root that have no business any more, whatever it is doing at the moment.
    pub fn sweep_root(&mut self, world: &mut World, task: &CollectTask, run: i64) {
        let status = task.status.clone().unwrap_or_default();
        let hooks = [HookKind::BeforeStart, HookKind::AfterSuccess, HookKind::AfterFailure].map(Which::Hook);
        for which in [Which::Plan, Which::Commit { slices: 0, records: 0 }].into_iter().chain(hooks) {
            let place = Place { owner: task.name_any(), owner_uid: uid_of(task), work: which.word(), run };
            self.sweep(world, &place, which.entries(&status));
        }
    }

    /// One step of the planner, the commit or a hook.
    pub fn phase_step(
        &mut self,
        world: &mut World,
        task: &CollectTask,
        run: i64,
        asked: &Asked,
        which: Which,
    ) -> Answer<()> {
        let at = self.at(world, task);
        let status = task.status.clone().unwrap_or_default();
        let place = Place { owner: task.name_any(), owner_uid: uid_of(task), work: which.word(), run };
        let policy = which.policy(task);
        let entries = which.entries(&status);
        let (worker, watched) = self.see(world, &place, entries.attempts, None);
        let me = self.me.clone();
        let mut view = Seen {
            me: &me,
            desired: asked.desired,
            admitted: true,
            worker,
            post: self.post_of(world, &place, entries.last()),
            watched,
            limits: TimeLimits::of(&task.spec),
        };
        // Planner and commit are asked only while what they make does not hold: unsealed, or added to by a retry.
        let decide = if matches!(which, Which::Hook(_)) { ledger::decide } else { ledger::decide_again };
        let mut step = decide(entries, &policy, &view, at.now);
        if step == Step::Look {
            view.worker = self.look(world, &place, entries.last_number());
            step = decide(entries, &policy, &view, at.now);
        }
        let (why, message) = which.does();
        let above = Above { desired: asked.desired, token: None };
        match step {
            Step::Look => {}
            Step::Authorise(n) => {
                world.check_start(&above, &place, n);
                let mut new = which.waiting(&status, why, message, at);
                let (list, folded) = which.ledger(&mut new);
                attempts::authorise(list, folded, entries.forgiven, &policy, &self.me, at.now);
                if self.write_task(world, task, &new)?.is_some() {
                    self.create_phase_worker(world, task, &place, n, which);
                }
            }
            Step::Create(n) => {
                world.check_start(&above, &place, n);
                self.create_phase_worker(world, task, &place, n, which);
            }
            Step::Stop(n) => self.stop(world, &place, n),
            Step::Record(n, end) => self.record_phase(world, task, &status, (n, *end), &policy, which, run)?,
            Step::Finish(finish) => self.finish_phase(world, task, &status, &finish, asked, which)?,
            Step::Wait { why: waits, .. } => {
                let told =
                    waits.filter(|(why, _)| *why != reason::POD_PENDING || watched.state >= Duration::from_secs(5));
                let new = match told {
                    Some((reason::PAUSED, message)) => {
                        core::waiting(&status, Phase::Paused, reason::PAUSED, &message, at)
                    }
                    Some((reason::RETRYING, _)) => status.clone(),
                    Some((reason, message)) => which.waiting(&status, reason, &message, at),
                    None => which.waiting(&status, why, message, at),
                };
                if tell::is_transition(&status, &new) || status.message != new.message {
                    self.write_task(world, task, &new)?;
                }
            }
        }
        Ok(())
    }

    /// A commit under way has to leave: it is stopped, and its end is recorded.
    pub fn stop_commit(&mut self, world: &mut World, task: &CollectTask, run: i64) -> Answer<()> {
        let which = Which::Commit { slices: 0, records: 0 };
        let status = task.status.clone().unwrap_or_default();
        let place = Place { owner: task.name_any(), owner_uid: uid_of(task), work: which.word(), run };
        let (policy, entries) = (which.policy(task), which.entries(&status));
        let (worker, watched) = self.see(world, &place, entries.attempts, None);
        let me = self.me.clone();
        let mut view = Seen {
            me: &me,
            desired: DesiredState::Cancelled,
            admitted: false,
            worker,
            post: self.post_of(world, &place, entries.last()),
            watched,
            limits: TimeLimits::of(&task.spec),
        };
        let now = self.clock(world);
        let mut step = ledger::decide(entries, &policy, &view, now);
        if step == Step::Look {
            view.worker = self.look(world, &place, entries.last_number());
            step = ledger::decide(entries, &policy, &view, now);
        }
        match step {
            Step::Stop(n) => self.stop(world, &place, n),
            Step::Record(n, end) => self.record_phase(world, task, &status, (n, *end), &policy, which, run)?,
            Step::Wait { .. } | Step::Look | Step::Authorise(_) | Step::Create(_) | Step::Finish(_) => {}
        }
        Ok(())
    }

    fn create_phase_worker(&mut self, world: &mut World, task: &CollectTask, place: &Place, n: i32, which: Which) {
        let job = NewJob {
            name: place.job(n),
            owner: reference("CollectTask", &task.name_any(), &uid_of(task)),
            root_uid: uid_of(task),
            work: place.work.into(),
            run: place.run,
            n,
            task: match which {
                Which::Plan => Work::Plan,
                Which::Commit { slices, records } => Work::Commit { slices, records },
                Which::Hook(_) => Work::Hook,
            },
            by: self.me.clone(),
        };
        self.create_worker(world, job);
    }

    /// Records how an attempt ended. A planner's success counts only with its chunks at hand, and seals the plan in the same write.
    #[allow(clippy::too_many_arguments, reason = "as in the operator")]
    fn record_phase(
        &mut self,
        world: &mut World,
        task: &CollectTask,
        status: &CollectTaskStatus,
        (n, mut end): (i32, Ended),
        policy: &RetryPolicy,
        which: Which,
        run: i64,
    ) -> Answer<()> {
        let at = self.at(world, task);
        let mut new = status.clone();
        let done = matches!(end.outcome, Some(Outcome::Succeeded | Outcome::AlreadyCommitted));
        match (which, end.message.result.clone()) {
            (Which::Plan, Some(WorkResult::Plan(result))) if done => {
                if self.chunks_are_good(world, task, run, n, &result) {
                    seal(&mut new, n, result, at);
                } else {
                    end.outcome = Some(Outcome::Retryable);
                    end.system_message = Some("not all chunks of the plan arrived".into());
                }
            }
            (Which::Commit { .. }, Some(WorkResult::Commit(result))) if done => {
                new.commit.get_or_insert_default().result = Some(result);
            }
            (Which::Hook(kind), _) if done => kind.status_mut(&mut new).succeeded = Some(true),
            _ if done => end.outcome = Some(Outcome::Lost),
            _ => {}
        }
        let list = which.ledger(&mut new).0;
        attempts::record(list, &which.entries(status).used(policy), n, &end, policy, &uid_of(task), at.now);
        if let Some(attempt) = list.iter().find(|attempt| attempt.n == n).cloned()
            && !done
            && !is_over(status)
        {
            let work = which.word();
            new.message = attempt.message.clone().map(|message| format!("{work} attempt {n}: {message}"));
        }
        if self.write_task(world, task, &new)?.is_some()
            && new.plan.as_ref().and_then(|plan| plan.sealed) == Some(n)
            && which == Which::Plan
        {
            world.delete_chunks(&uid_of(task), |chunk_run, attempt| chunk_run == run && attempt != n);
        }
        Ok(())
    }

    fn chunks_are_good(&mut self, world: &World, task: &CollectTask, run: i64, n: i32, result: &PlanResult) -> bool {
        let Some(chunks) = self.chunks(world, task, run, n, result.chunks) else { return false };
        let tree = PlanTree::read(&task.name_any(), &chunks, &result.digest).map(Arc::new);
        tree.map(|tree| self.keep_plan(&uid_of(task), tree)).is_ok()
    }

    fn finish_phase(
        &mut self,
        world: &mut World,
        task: &CollectTask,
        status: &CollectTaskStatus,
        finish: &Finish,
        asked: &Asked,
        which: Which,
    ) -> Answer<()> {
        let at = self.at(world, task);
        let new = match (finish, which) {
            (Finish::Done, _) => return Ok(()),
            (Finish::Failed(why), Which::Hook(kind)) => {
                let mut new = status.clone();
                kind.status_mut(&mut new).succeeded = Some(false);
                if kind == HookKind::BeforeStart {
                    core::failed(&new, Phase::Failed, reason::HOOK_FAILED, why, at)
                } else {
                    conditions::set(&mut new.conditions, HOOK_FAILED, "True", reason::HOOK_FAILED, why, at);
                    new
                }
            }
            (Finish::Failed(why), Which::Plan | Which::Commit { .. }) => {
                let word = which.entries(status).last().and_then(|attempt| attempt.reason.clone());
                let fallback = if which == Which::Plan { reason::PLANNING_FAILED } else { reason::COMMIT_FAILED };
                core::failed(status, Phase::Failed, word.as_deref().unwrap_or(fallback), why, at)
            }
            (Finish::Cancelled, _) => match &asked.halt {
                Some(halt) => core::failed(status, Phase::Failed, halt.reason, &halt.message, at),
                None => core::failed(status, Phase::Cancelled, reason::CANCELLED, "cancelled by desiredState", at),
            },
        };
        self.write_task(world, task, &new).map(drop)
    }
}

fn seal(new: &mut CollectTaskStatus, n: i32, result: PlanResult, at: At) {
    let before = new.plan.as_ref().and_then(|plan| plan.result.as_ref());
    if before.is_some_and(|before| before.digest != result.digest) {
        *new = core::failed(new, Phase::Failed, reason::PLAN_LOST, "planning again gave another plan", at);
        return;
    }
    let plan = new.plan.get_or_insert_default();
    plan.sealed = Some(n);
    plan.result = Some(result);
    new.message = Some("the plan is sealed".into());
}

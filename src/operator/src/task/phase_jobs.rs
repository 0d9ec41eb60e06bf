//! The Jobs of a root, by the same ledger as a shard's: the planner, whose end seals the plan, the commit, and the hooks.

use std::time::Duration;

use collect_api::{
    Attempt, CollectTask, CollectTaskStatus, DesiredState, Outcome, Phase,
    condition::{HOOK_FAILED, reason},
    hooks::HookRun,
    protocol::{CommitWork, HookWork, PlanResult, WorkResult},
    shard::FoldedAttempts,
    task::{CommitStatus, PlanStatus},
};
use collect_core::{
    assignment::{self, RunRef},
    attempts::{self, Entries},
    conditions::{self, At},
    halt::Halt,
    hooks::{self, HookKind},
    job::{JobFor, Runs},
    ledger::{self, Ended, Finish, Post, Seen, Step, Watched},
    observed::Signs,
    resolve::{self, RetryPolicy, TimeLimits},
    rollup::Rolled,
    task as core,
    tell::{self, Told},
    tree::PlanTree,
};
use kube::{ResourceExt, runtime::controller::Action};
use tracing::{info, warn};

use crate::{
    clock,
    context::Context,
    error::Error,
    task::{at, observe, resync, root::delete_chunks, write},
    trace,
    worker::{self, Place},
};

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Plan,
    Commit(CommitNumbers),
    Hook(HookKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CommitNumbers {
    slices: i64,
    records: i64,
}

impl Which {
    fn word(self) -> &'static str {
        match self {
            Which::Plan => "plan",
            Which::Commit(_) => "commit",
            Which::Hook(kind) => kind.word(),
        }
    }

    fn entries(self, status: &CollectTaskStatus) -> Entries<'_> {
        match self {
            Which::Plan => Entries::of_plan(status.plan.as_ref()),
            Which::Commit(_) => Entries::of_commit(status.commit.as_ref()),
            Which::Hook(kind) => Entries::of_hook(kind.status(status.hooks.as_ref())),
        }
    }

    /// What its worker last said. A hook says nothing; it has a short deadline instead.
    fn signs(self, status: &CollectTaskStatus) -> Option<Signs> {
        match self {
            Which::Plan => Some(Signs::of_plan(status.plan.as_ref())),
            Which::Commit(_) => Some(Signs::of_commit(status.commit.as_ref())),
            Which::Hook(_) => None,
        }
    }

    /// Its ledger in a status: the listed attempts, and what older ones come to.
    fn ledger(self, status: &mut CollectTaskStatus) -> (&mut Vec<Attempt>, &mut Option<FoldedAttempts>) {
        match self {
            Which::Plan => {
                let plan = status.plan.get_or_insert_default();
                (&mut plan.attempts, &mut plan.folded)
            }
            Which::Commit(_) => {
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
        match self {
            Which::Hook(kind) => kind
                .of(task.spec.hooks.as_ref())
                .map_or_else(|| RetryPolicy::of(task.spec.retry.as_ref()), RetryPolicy::of_hook),
            Which::Plan | Which::Commit(_) => RetryPolicy::of(task.spec.retry.as_ref()),
        }
    }

    fn limits(self, task: &CollectTask) -> TimeLimits {
        match self {
            Which::Hook(kind) => kind
                .of(task.spec.hooks.as_ref())
                .map_or_else(|| TimeLimits::of(&task.spec), |hook| TimeLimits::of_hook(hook, &task.spec)),
            Which::Plan | Which::Commit(_) => TimeLimits::of(&task.spec),
        }
    }

    /// The status while it is worked on. What comes after the end changes nothing of the end.
    fn waiting(self, status: &CollectTaskStatus, reason: &str, message: &str, at: At) -> CollectTaskStatus {
        match self {
            Which::Plan => core::waiting(status, Phase::Planning, reason, message, at),
            Which::Commit(_) => core::waiting(status, Phase::Validating, reason, message, at),
            Which::Hook(HookKind::BeforeStart) => core::waiting(status, Phase::Pending, reason, message, at),
            Which::Hook(HookKind::AfterSuccess | HookKind::AfterFailure) => status.clone(),
        }
    }

    fn does(self, status: &CollectTaskStatus) -> (&'static str, String) {
        match self {
            Which::Plan => (reason::PLANNING, core::planning_message(status.plan.as_ref())),
            Which::Commit(_) => (reason::VALIDATING, "writing the run's file list".into()),
            Which::Hook(_) => (reason::HOOK, "the beforeStart hook is carried out".into()),
        }
    }
}

/// Stops whoever still works at an attempt that is over, whatever the root does by now.
pub async fn sweep(ctx: &Context, task: &CollectTask, run: i64) -> Result<(), Error> {
    let status = task.status.clone().unwrap_or_default();
    let (namespace, name, uid) =
        (task.namespace().unwrap_or_default(), task.name_any(), task.uid().unwrap_or_default());
    let commit = Which::Commit(CommitNumbers { slices: 0, records: 0 });
    for which in [Which::Plan, commit].into_iter().chain(HookKind::ALL.map(Which::Hook)) {
        let place = Place { namespace: &namespace, owner: &name, owner_uid: &uid, work: which.word(), run };
        worker::sweep(ctx, &place, which.entries(&status)).await?;
    }
    Ok(())
}

/// One step of the planner.
pub async fn plan(ctx: &Context, task: &CollectTask, run: i64, asked: &Asked<'_>) -> Result<Action, Error> {
    step(ctx, task, run, asked, Which::Plan).await
}

/// One step of the commit. A pause does not hold it back: nothing is collected any more.
pub async fn commit(
    ctx: &Context,
    task: &CollectTask,
    run: i64,
    asked: &Asked<'_>,
    rolled: &Rolled,
) -> Result<Action, Error> {
    let numbers = CommitNumbers { slices: i64::from(rolled.shards.succeeded), records: rolled.records.collected };
    step(ctx, task, run, &asked.unless_paused(), Which::Commit(numbers)).await
}

/// Has a commit leave that a retry has added work to: its worker is stopped and its end recorded, and nothing ends by it.
pub async fn stop_commit(ctx: &Context, task: &CollectTask, run: i64) -> Result<Action, Error> {
    let which = Which::Commit(CommitNumbers { slices: 0, records: 0 });
    let status = task.status.clone().unwrap_or_default();
    let (namespace, name, uid) =
        (task.namespace().unwrap_or_default(), task.name_any(), task.uid().unwrap_or_default());
    let place = Place { namespace: &namespace, owner: &name, owner_uid: &uid, work: which.word(), run };
    let (step, _) = next(ctx, task, &status, &place, which, DesiredState::Cancelled).await?;
    match step {
        Step::Stop(n) => worker::stop(ctx, &place, n).await?,
        Step::Record(n, end) => record(ctx, task, &status, n, *end, &which.policy(task), which, run).await?,
        Step::Wait { .. } | Step::Look | Step::Authorise(_) | Step::Create(_) | Step::Finish(_) => {}
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}

/// One step of a hook. Those after the end are carried out whatever is asked for by then.
pub async fn hook(
    ctx: &Context,
    task: &CollectTask,
    run: i64,
    asked: &Asked<'_>,
    kind: HookKind,
) -> Result<Action, Error> {
    let running = Asked { desired: DesiredState::Running, halt: None };
    let asked = if kind == HookKind::BeforeStart { asked } else { &running };
    step(ctx, task, run, asked, Which::Hook(kind)).await
}

/// What is asked of a root.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// What shall become of it.
    pub desired: DesiredState,
    /// Why the run is stopped, if it is.
    pub halt: Option<&'a Halt>,
}

impl Asked<'_> {
    fn unless_paused(&self) -> Self {
        let desired = match self.desired {
            DesiredState::Paused => DesiredState::Running,
            other => other,
        };
        Self { desired, halt: self.halt }
    }
}

/// A sealed plan whose chunks are gone is planned again and must give the same digest.
pub async fn unseal(ctx: &Context, task: &CollectTask) -> Result<Action, Error> {
    let status = task.status.clone().unwrap_or_default();
    let message = "the sealed plan is gone and is made again";
    warn!(task = task.name_any(), "{message}");
    let mut new = core::waiting(&status, Phase::Planning, reason::PLAN_LOST, message, at(task));
    if let Some(plan) = &mut new.plan {
        plan.sealed = None;
    }
    write(ctx, task, &new).await?;
    Ok(Action::requeue(Duration::from_millis(100)))
}

/// What its ledger says is next, after a look with a quorum read where it asks for one; and for how long it was watched.
async fn next(
    ctx: &Context,
    task: &CollectTask,
    status: &CollectTaskStatus,
    place: &Place<'_>,
    which: Which,
    desired: DesiredState,
) -> Result<(Step, Watched), Error> {
    let (policy, entries) = (which.policy(task), which.entries(status));
    let (worker, watched) = worker::see(ctx, place, entries.attempts, which.signs(status));
    let mut view = Seen {
        me: &ctx.me,
        desired,
        admitted: true,
        worker,
        post: entries.last().map_or(Post::NotTried, |attempt| place.post(ctx, attempt.n)),
        watched,
        limits: which.limits(task),
    };
    // What the last attempt of these made holds no more if we come here (unsealed, or completed by a retry): once more.
    let decide = if matches!(which, Which::Hook(_)) { ledger::decide } else { ledger::decide_again };
    let mut step = decide(entries, &policy, &view, clock::now());
    if step == Step::Look {
        view.worker = worker::look(ctx, place, entries.last_number()).await?;
        step = decide(entries, &policy, &view, clock::now());
    }
    Ok((step, watched))
}

async fn step(ctx: &Context, task: &CollectTask, run: i64, asked: &Asked<'_>, which: Which) -> Result<Action, Error> {
    let at = at(task);
    let status = task.status.clone().unwrap_or_default();
    let (namespace, name, uid) =
        (task.namespace().unwrap_or_default(), task.name_any(), task.uid().unwrap_or_default());
    let place = Place { namespace: &namespace, owner: &name, owner_uid: &uid, work: which.word(), run };
    let (policy, entries) = (which.policy(task), which.entries(&status));
    let (step, watched) = next(ctx, task, &status, &place, which, asked.desired).await?;
    let (why, message) = which.does(&status);
    match step {
        Step::Look => Ok(Action::requeue(Duration::from_secs(1))),
        Step::Authorise(n) => {
            let mut new = which.waiting(&status, why, &message, at);
            let (list, folded) = which.ledger(&mut new);
            attempts::authorise(list, folded, entries.forgiven, &policy, &ctx.me, at.now);
            if write(ctx, task, &new).await?.is_some() {
                create(ctx, task, &place, n, which).await?;
            }
            Ok(Action::requeue(Duration::from_secs(5)))
        }
        Step::Create(n) => {
            create(ctx, task, &place, n, which).await?;
            Ok(Action::requeue(Duration::from_secs(5)))
        }
        Step::Stop(n) => {
            worker::stop(ctx, &place, n).await?;
            Ok(Action::requeue(Duration::from_secs(1)))
        }
        Step::Record(n, end) => {
            record(ctx, task, &status, n, *end, &policy, which, run).await?;
            Ok(Action::requeue(Duration::from_millis(200)))
        }
        Step::Finish(finish) => {
            finished(ctx, task, &status, &finish, asked, which).await?;
            Ok(resync())
        }
        Step::Wait { after, why: waits } => {
            let told = waits.filter(|(why, _)| *why != reason::POD_PENDING || watched.state >= Duration::from_secs(5));
            let new = match told {
                Some((reason::PAUSED, message)) => core::waiting(&status, Phase::Paused, reason::PAUSED, &message, at),
                // The time left changes with every pass; what was said before still holds.
                Some((reason::RETRYING, _)) => status.clone(),
                Some((reason, message)) => {
                    which.waiting(&status, reason, &format!("the {} Job waits: {message}", which.word()), at)
                }
                None => which.waiting(&status, why, &message, at),
            };
            if tell::is_transition(&status, &new) || status.message != new.message {
                write(ctx, task, &new).await?;
            }
            Ok(after.map_or_else(resync, Action::requeue))
        }
    }
}

async fn create(ctx: &Context, task: &CollectTask, place: &Place<'_>, n: i32, which: Which) -> Result<(), Error> {
    let plan = task.status.as_ref().and_then(|status| status.plan.as_ref()).and_then(|plan| plan.result.as_ref());
    let run = RunRef {
        namespace: place.namespace,
        root: place.owner,
        root_uid: place.owner_uid,
        run: place.run,
        plan_digest: plan.filter(|_| which != Which::Plan).map_or("", |plan| plan.digest.as_str()),
        spec: &task.spec,
    };
    let share = worker::share(ctx, assignment::limits(&task.spec), 1, trace::origin(task, place.work, n));
    let worker = |assignment| assignment::env_value(&assignment).map(|value| Runs::Worker(value, None));
    let hook = match which {
        Which::Hook(kind) => kind.of(task.spec.hooks.as_ref()).map(|hook| (hook, hooks::event(task, kind))),
        Which::Plan | Which::Commit(_) => None,
    };
    let runs = match (which, &hook) {
        (Which::Plan, _) => worker(assignment::plan(&run, n, share)?)?,
        (Which::Commit(CommitNumbers { slices, records }), _) => {
            let revision = task.status.as_ref().and_then(|status| status.redrives).unwrap_or(0);
            let keep_runs = task.spec.runs.as_ref().and_then(|runs| runs.keep).unwrap_or(resolve::KEEP_RUNS);
            worker(assignment::commit(&run, CommitWork { slices, records, keep_runs, revision }, n, share)?)?
        }
        (Which::Hook(_), Some((hook, event))) => match &hook.run {
            HookRun::Http(http) => {
                let work = HookWork { http: http.clone(), event: event.clone() };
                let assignment = assignment::hook(&run, work, n, share)?;
                Runs::Worker(assignment::env_value(&assignment)?, http.auth.as_ref())
            }
            HookRun::Job(own) => Runs::Own(own, event),
        },
        // It was taken out of the spec a moment ago.
        (Which::Hook(_), None) => return Ok(()),
    };
    let Some(owner) = worker::owner(task) else { return Ok(()) };
    let job = JobFor {
        name: place.job(n),
        namespace: place.namespace,
        owner,
        work: place.work,
        root: place.owner,
        root_uid: place.owner_uid,
        task: place.owner,
        run: place.run,
        attempt: n,
        runs,
        deadline: which.limits(task).attempt,
    };
    worker::create(ctx, place, n, &worker::build(ctx, &job, &task.spec)).await
}

/// Records how an attempt ended. A planner's success counts only with its chunks at hand, and seals the plan in the same write.
#[allow(clippy::too_many_arguments)]
async fn record(
    ctx: &Context,
    task: &CollectTask,
    status: &CollectTaskStatus,
    n: i32,
    mut end: Ended,
    policy: &RetryPolicy,
    which: Which,
    run: i64,
) -> Result<(), Error> {
    let mut new = status.clone();
    let done = matches!(end.outcome, Some(Outcome::Succeeded | Outcome::AlreadyCommitted));
    match (which, end.message.result.clone()) {
        (Which::Plan, Some(WorkResult::Plan(result))) if done => match check(ctx, task, run, n, &result).await? {
            Ok(()) => seal(task, &mut new, n, result),
            Err(why) => {
                end.outcome = Some(Outcome::Retryable);
                end.system_message = Some(why);
            }
        },
        (Which::Commit(_), Some(WorkResult::Commit(result))) if done => {
            new.commit.get_or_insert_with(CommitStatus::default).result = Some(result);
        }
        // A container of the user's own says by its exit code alone that it is done.
        (Which::Hook(kind), _) if done => kind.status_mut(&mut new).succeeded = Some(true),
        _ if done => {
            end.outcome = Some(Outcome::Lost);
            end.system_message = Some("the worker ended well but left no result".into());
        }
        _ => {}
    }
    let uid = task.uid().unwrap_or_default();
    let list = which.ledger(&mut new).0;
    attempts::record(list, &which.entries(status).used(policy), n, &end, policy, &uid, clock::now());
    let attempt = list.iter().find(|attempt| attempt.n == n).cloned();
    if let Some(attempt) = &attempt {
        let outcome = attempt.outcome.as_ref().map(ToString::to_string).unwrap_or_default();
        let work = which.word();
        info!(task = task.name_any(), work, attempt = n, outcome, why = attempt.message, "attempt ended");
        let after_the_end = status.phase.as_ref().is_some_and(Phase::is_terminal);
        if !done && !after_the_end {
            new.message = attempt.message.clone().map(|message| format!("{work} attempt {n}: {outcome}: {message}"));
        }
    }
    if write(ctx, task, &new).await?.is_none() {
        return Ok(());
    }
    if let Some(attempt) = &attempt {
        ctx.metrics.attempt(which.word(), attempt);
        trace::attempt_ended(task, which.word(), attempt, clock::now());
        // What its reports said was not recorded, so all of it is counted here, once.
        ctx.metrics
            .source_requests(end.message.usage.requests.unsigned_abs(), end.message.usage.retries.unsigned_abs());
    }
    if new.plan.as_ref().and_then(|plan| plan.sealed) == Some(n) && which == Which::Plan {
        delete_chunks(ctx, task, |chunk_run, attempt| chunk_run == run && attempt != n).await?;
    }
    Ok(())
}

/// Whether the chunks of a planner's attempt are there and give the digest that it says.
async fn check(
    ctx: &Context,
    task: &CollectTask,
    run: i64,
    n: i32,
    result: &PlanResult,
) -> Result<Result<(), String>, Error> {
    let Some(chunks) = observe::chunks(ctx, task, run, n, result.chunks).await? else {
        return Ok(Err("not all chunks of the plan arrived".into()));
    };
    match PlanTree::read(&task.name_any(), &chunks, &result.digest) {
        Ok(tree) => {
            ctx.keep_plan(&task.uid().unwrap_or_default(), std::sync::Arc::new(tree));
            Ok(Ok(()))
        }
        Err(error) => Ok(Err(crate::error::chain(&error))),
    }
}

fn seal(task: &CollectTask, new: &mut CollectTaskStatus, n: i32, result: PlanResult) {
    let before = new.plan.as_ref().and_then(|plan| plan.result.as_ref());
    if before.is_some_and(|before| before.digest != result.digest) {
        // The tree was built from another plan: going on would mix two.
        let message =
            "the sealed plan was deleted, and planning again gave another one; raise spec.run to collect anew";
        *new = core::failed(new, Phase::Failed, reason::PLAN_LOST, message, at(task));
        return;
    }
    let plan = new.plan.get_or_insert_with(PlanStatus::default);
    plan.sealed = Some(n);
    plan.result = Some(result);
    new.message = Some("the plan is sealed".into());
}

async fn finished(
    ctx: &Context,
    task: &CollectTask,
    status: &CollectTaskStatus,
    finish: &Finish,
    asked: &Asked<'_>,
    which: Which,
) -> Result<(), Error> {
    let at = at(task);
    let new = match (finish, which) {
        (Finish::Done, _) => return Ok(()),
        (Finish::Failed(why), Which::Hook(kind)) => {
            let message = format!("the hook spec.hooks.{} did not succeed: {why}", kind.field());
            let mut new = status.clone();
            kind.status_mut(&mut new).succeeded = Some(false);
            if kind == HookKind::BeforeStart {
                core::failed(&new, Phase::Failed, reason::HOOK_FAILED, &message, at)
            } else {
                conditions::set(&mut new.conditions, HOOK_FAILED, "True", reason::HOOK_FAILED, &message, at);
                ctx.tell(task, &Told { warning: true, reason: reason::HOOK_FAILED.into(), note: message }).await;
                new
            }
        }
        (Finish::Failed(why), Which::Plan | Which::Commit(_)) => {
            let word = which.entries(status).last().and_then(|attempt| attempt.reason.clone());
            let fallback = if which == Which::Plan { reason::PLANNING_FAILED } else { reason::COMMIT_FAILED };
            core::failed(status, Phase::Failed, word.as_deref().unwrap_or(fallback), why, at)
        }
        (Finish::Cancelled, _) => match asked.halt {
            Some(halt) => core::failed(status, Phase::Failed, halt.reason, &halt.message, at),
            None => core::failed(status, Phase::Cancelled, reason::CANCELLED, "cancelled by desiredState", at),
        },
    };
    write(ctx, task, &new).await.map(|_| ())
}

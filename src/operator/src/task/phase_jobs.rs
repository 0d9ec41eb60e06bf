//! The two Jobs of a root, by the same ledger as a shard's: the planner, whose end seals the plan, and the commit.

use std::time::Duration;

use collect_api::{
    Attempt, CollectTask, CollectTaskStatus, DesiredState, Outcome, Phase,
    condition::reason,
    protocol::{CommitWork, PlanResult, WorkResult},
    task::{CommitStatus, PlanStatus},
};
use collect_core::{
    assignment::{self, RunRef},
    job::JobFor,
    ledger::{self, Ended, Finish, Post, Seen, Step},
    resolve::{self, RetryPolicy},
    rollup::Rolled,
    task as core,
    tree::PlanTree,
};
use kube::{ResourceExt, runtime::controller::Action};
use tracing::{info, warn};

use crate::{
    clock,
    context::Context,
    error::Error,
    task::{observe, resync, root::delete_chunks, write},
    worker::{self, Place},
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Plan,
    Commit(CommitNumbers),
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
        }
    }

    fn attempts(self, status: &CollectTaskStatus) -> Vec<Attempt> {
        match self {
            Which::Plan => status.plan.as_ref().map(|plan| plan.attempts.clone()).unwrap_or_default(),
            Which::Commit(_) => status.commit.as_ref().map(|commit| commit.attempts.clone()).unwrap_or_default(),
        }
    }

    fn put(self, status: &mut CollectTaskStatus, attempts: Vec<Attempt>) {
        match self {
            Which::Plan => status.plan.get_or_insert_with(PlanStatus::default).attempts = attempts,
            Which::Commit(_) => status.commit.get_or_insert_with(CommitStatus::default).attempts = attempts,
        }
    }

    fn phase(self) -> (Phase, &'static str, &'static str) {
        match self {
            Which::Plan => (Phase::Planning, reason::PLANNING, "the planner reads the levels and totals of the source"),
            Which::Commit(_) => (Phase::Validating, reason::VALIDATING, "writing the run's file list"),
        }
    }
}

/// One step of the planner.
pub async fn plan(ctx: &Context, task: &CollectTask, run: i64, desired: DesiredState) -> Result<Action, Error> {
    step(ctx, task, run, desired, Which::Plan).await
}

/// One step of the commit. A pause does not hold it back: nothing is collected any more.
pub async fn commit(ctx: &Context, task: &CollectTask, run: i64, rolled: &Rolled) -> Result<Action, Error> {
    let numbers = CommitNumbers { slices: i64::from(rolled.shards.succeeded), records: rolled.records.collected };
    step(ctx, task, run, DesiredState::Running, Which::Commit(numbers)).await
}

/// Why the commit failed for good, if it has.
pub fn commit_failure(task: &CollectTask) -> Option<String> {
    let commit = task.status.as_ref()?.commit.as_ref()?;
    let idle = Seen {
        me: "",
        uid: "",
        desired: DesiredState::Running,
        admitted: false,
        worker: ledger::WorkerSeen::Unseen,
        post: Post::NotTried,
        watched_for: Duration::ZERO,
    };
    match ledger::decide(&commit.attempts, None, &RetryPolicy::of(task.spec.retry.as_ref()), &idle, clock::now()) {
        Step::Finish(Finish::Failed(why)) => Some(why),
        _ => None,
    }
}

/// A sealed plan whose chunks are gone is planned again and must give the same digest.
pub async fn unseal(ctx: &Context, task: &CollectTask) -> Result<Action, Error> {
    let status = task.status.clone().unwrap_or_default();
    warn!(task = task.name_any(), "the sealed plan is gone and is made again");
    let mut new = core::waiting(
        &status,
        Phase::Planning,
        reason::PLAN_LOST,
        "the sealed plan is gone and is made again",
        task.metadata.generation,
        clock::now(),
    );
    if let Some(plan) = &mut new.plan {
        plan.sealed = None;
    }
    write(ctx, task, &new).await?;
    Ok(Action::requeue(Duration::from_millis(100)))
}

async fn step(
    ctx: &Context,
    task: &CollectTask,
    run: i64,
    desired: DesiredState,
    which: Which,
) -> Result<Action, Error> {
    let now = clock::now();
    let status = task.status.clone().unwrap_or_default();
    let (namespace, name, uid) =
        (task.namespace().unwrap_or_default(), task.name_any(), task.uid().unwrap_or_default());
    let place = Place { namespace: &namespace, owner: &name, owner_uid: &uid, work: which.word(), run };
    let policy = RetryPolicy::of(task.spec.retry.as_ref());
    let attempts = which.attempts(&status);
    worker::sweep(ctx, &place, &attempts).await?;
    let (worker_seen, watched_for) = worker::see(ctx, &place, &attempts);
    let mut view = Seen {
        me: &ctx.me,
        uid: &uid,
        desired,
        admitted: true,
        worker: worker_seen,
        post: attempts.last().map_or(Post::NotTried, |attempt| ctx.post(&place.key(attempt.n))),
        watched_for,
    };
    let mut step = ledger::decide(&attempts, None, &policy, &view, now);
    if step == Step::Look {
        view.worker = worker::look(ctx, &place, attempts.last().map_or(0, |attempt| attempt.n)).await?;
        step = ledger::decide(&attempts, None, &policy, &view, now);
    }
    // The last attempt did well, and what it made is gone since (unsealed): once more.
    if step == Step::Finish(Finish::Done) && which == Which::Plan {
        step = Step::Authorise(ledger::next_attempt(&attempts, None));
    }
    let generation = task.metadata.generation;
    let (phase, why, message) = which.phase();
    match step {
        Step::Look => Ok(Action::requeue(Duration::from_secs(1))),
        Step::Authorise(n) => {
            let mut new = core::waiting(&status, phase, why, message, generation, now);
            let mut attempts = attempts;
            ledger::authorise(&mut attempts, &mut None, n, &ctx.me, now);
            which.put(&mut new, attempts);
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
            record(ctx, task, &status, attempts, n, *end, &policy, which, run).await?;
            Ok(Action::requeue(Duration::from_millis(200)))
        }
        Step::Finish(finish) => {
            finished(ctx, task, &status, &attempts, &finish, which).await?;
            Ok(resync())
        }
        Step::Wait { after, why: waits } => {
            let told = waits.filter(|(why, _)| *why != reason::POD_PENDING || watched_for >= Duration::from_secs(5));
            let new = match told {
                Some((reason::PAUSED, message)) => {
                    core::waiting(&status, Phase::Paused, reason::PAUSED, &message, generation, now)
                }
                // The time left changes with every pass; what was said before still holds.
                Some((reason::RETRYING, _)) => status.clone(),
                Some((reason, message)) => core::waiting(
                    &status,
                    phase,
                    reason,
                    &format!("the {} Job waits: {message}", which.word()),
                    generation,
                    now,
                ),
                None => core::waiting(&status, phase, why, message, generation, now),
            };
            if core::is_transition(&status, &new) || status.message != new.message {
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
    let share = worker::share(ctx, assignment::limits(&task.spec), 1);
    let assignment = match which {
        Which::Plan => assignment::plan(&run, n, share),
        Which::Commit(numbers) => {
            let keep_runs = task.spec.runs.as_ref().and_then(|runs| runs.keep).unwrap_or(resolve::KEEP_RUNS);
            assignment::commit(
                &run,
                CommitWork { slices: numbers.slices, records: numbers.records, keep_runs },
                n,
                share,
            )
        }
    }?;
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
        assignment: assignment::env_value(&assignment)?,
    };
    worker::create(ctx, place, n, &worker::build(ctx, &job, &task.spec)).await
}

/// Records how an attempt ended. A planner's success counts only with its chunks at hand, and seals the plan in the same write.
#[allow(clippy::too_many_arguments)]
async fn record(
    ctx: &Context,
    task: &CollectTask,
    status: &CollectTaskStatus,
    mut attempts: Vec<Attempt>,
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
        _ if done => {
            end.outcome = Some(Outcome::Lost);
            end.system_message = Some("the worker ended well but left no result".into());
        }
        _ => {}
    }
    ledger::record(&mut attempts, None, n, &end, policy, &task.uid().unwrap_or_default(), clock::now());
    if let Some(attempt) = attempts.iter().find(|attempt| attempt.n == n) {
        let outcome = attempt.outcome.as_ref().map(ToString::to_string).unwrap_or_default();
        info!(
            task = task.name_any(),
            work = which.word(),
            attempt = n,
            outcome,
            message = attempt.message,
            "attempt ended"
        );
        ctx.metrics.attempt(&outcome);
        if !done {
            new.message =
                attempt.message.clone().map(|message| format!("{} attempt {n}: {outcome}: {message}", which.word()));
        }
    }
    which.put(&mut new, attempts);
    if write(ctx, task, &new).await?.is_some()
        && new.plan.as_ref().and_then(|plan| plan.sealed) == Some(n)
        && which == Which::Plan
    {
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
        *new = core::failed(new, Phase::Failed, reason::PLAN_LOST, message, task.metadata.generation, clock::now());
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
    attempts: &[Attempt],
    finish: &Finish,
    which: Which,
) -> Result<(), Error> {
    let (now, generation) = (clock::now(), task.metadata.generation);
    let new = match finish {
        Finish::Failed(why) => {
            let word = attempts.last().and_then(|attempt| attempt.reason.clone());
            let fallback = if which == Which::Plan { reason::PLANNING_FAILED } else { reason::COMMIT_FAILED };
            core::failed(status, Phase::Failed, word.as_deref().unwrap_or(fallback), why, generation, now)
        }
        Finish::Cancelled => {
            core::failed(status, Phase::Cancelled, reason::CANCELLED, "cancelled by desiredState", generation, now)
        }
        Finish::Done => return Ok(()),
    };
    write(ctx, task, &new).await.map(|_| ())
}

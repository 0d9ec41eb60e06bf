//! The controller of CollectShards: carries the ledger of one shard forward, one step a pass.

pub mod observe;

use std::{sync::Arc, time::Duration};

use collect_api::{CollectShard, CollectShardStatus, condition::reason, shard::ShardPhase};
use collect_core::{
    assignment::{self, RunRef},
    attempts::Entries,
    conditions::At,
    job::{JobFor, Runs},
    ledger::{self, Ended, Seen, Step},
    observed::Signs,
    rollup, shard as core,
    tell::Told,
};
use kube::{ResourceExt, runtime::controller::Action};
use tracing::info;

use crate::{
    clock,
    context::Context,
    error::Error,
    shard::observe::{Observed, observe},
    trace,
    worker::{self, Place},
};

/// One pass over a shard.
pub async fn reconcile(shard: Arc<CollectShard>, ctx: Arc<Context>) -> Result<Action, Error> {
    let uid = shard.uid().unwrap_or_default();
    if shard.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if !ctx.leads() {
        return Ok(resync());
    }
    if ctx.writer.is_behind(shard.as_ref()) {
        return Ok(Action::requeue(Duration::from_millis(100)));
    }
    let Some(seen) = observe(&ctx, &shard) else {
        // Its task or root is not in view, or going: nothing starts below them (I2).
        return Ok(Action::requeue(Duration::from_secs(5).mul_f64(clock::jitter())));
    };
    let namespace = shard.namespace().unwrap_or_default();
    let name = shard.name_any();
    let place = Place { namespace: &namespace, owner: &name, owner_uid: &uid, work: "collect", run: shard.spec.run };
    let status = shard.status.clone().unwrap_or_default();
    worker::sweep(&ctx, &place, Entries::of_shard(&status)).await?;
    if rollup::shard_is_due(&shard, &seen.above) {
        let at = At { generation: shard.metadata.generation, now: clock::now() };
        let new = core::redriven(&status, seen.token.as_deref(), at);
        ctx.writer.status(shard.as_ref(), shard.status.as_ref(), &new).await?;
        info!(shard = name, "taken up again by a retry");
        return Ok(resync());
    }
    if status.phase.as_ref().is_some_and(ShardPhase::is_terminal) {
        return Ok(resync());
    }
    pass(&ctx, &shard, &seen, &place, &status).await
}

async fn pass(
    ctx: &Context,
    shard: &CollectShard,
    seen: &Observed,
    place: &Place<'_>,
    status: &CollectShardStatus,
) -> Result<Action, Error> {
    let at = At { generation: shard.metadata.generation, now: clock::now() };
    let (worker_seen, watched) = worker::see(ctx, place, &status.attempts, Some(Signs::of_shard(status)));
    let mut view = Seen {
        me: &ctx.me,
        desired: seen.above.desired,
        admitted: ctx.may_start(&shard.spec.root_uid, place.owner_uid),
        worker: worker_seen,
        post: status.attempts.last().map_or(ledger::Post::NotTried, |attempt| place.post(ctx, attempt.n)),
        watched,
        limits: seen.limits,
    };
    let decide = |view: &Seen<'_>| ledger::decide(Entries::of_shard(status), &seen.policy, view, at.now);
    let mut step = decide(&view);
    if step == Step::Look {
        view.worker = worker::look(ctx, place, status.attempts.last().map_or(0, |attempt| attempt.n)).await?;
        step = decide(&view);
    }
    match step {
        Step::Look => Ok(Action::requeue(Duration::from_secs(1))),
        Step::Authorise(n) => {
            let new = core::authorised(status, &seen.policy, &ctx.me, at);
            if let Some(written) = ctx.writer.status(shard, shard.status.as_ref(), &new).await? {
                create(ctx, &written, seen, place, n).await?;
            }
            Ok(resync())
        }
        Step::Create(n) => {
            create(ctx, shard, seen, place, n).await?;
            Ok(Action::requeue(Duration::from_secs(5)))
        }
        Step::Stop(n) => {
            info!(shard = place.owner, attempt = n, desired = ?seen.above.desired, "worker is stopped");
            worker::stop(ctx, place, n).await?;
            Ok(Action::requeue(Duration::from_secs(1)))
        }
        Step::Record(n, end) => {
            record(ctx, shard, seen, status, place, n, &end).await?;
            Ok(Action::requeue(Duration::from_secs(1)))
        }
        Step::Finish(finish) => {
            let new = core::finished(status, &finish, seen.token.as_deref(), at);
            ctx.writer.status(shard, shard.status.as_ref(), &new).await?;
            Ok(resync())
        }
        Step::Wait { after, why } => {
            if let Some(new) = core::waiting(status, why.as_ref(), watched, seen.above.desired, at.generation) {
                ctx.writer.status(shard, shard.status.as_ref(), &new).await?;
            }
            let after = after.into_iter().chain(core::entered_in(status, watched)).min();
            Ok(after.map_or_else(resync, Action::requeue))
        }
    }
}

async fn create(ctx: &Context, shard: &CollectShard, seen: &Observed, place: &Place<'_>, n: i32) -> Result<(), Error> {
    let root_name = seen.root.name_any();
    let root_uid = seen.root.uid().unwrap_or_default();
    let plan = seen.root.status.as_ref().and_then(|status| status.plan.as_ref()).and_then(|plan| plan.result.as_ref());
    let run = RunRef {
        namespace: place.namespace,
        root: &root_name,
        root_uid: &root_uid,
        run: shard.spec.run,
        plan_digest: plan.map_or("", |plan| plan.digest.as_str()),
        spec: &seen.root.spec,
    };
    let checkpoint = shard.status.as_ref().and_then(|status| status.checkpoint.as_ref());
    let sharers = worker::sharers(&seen.root.spec, plan.map_or(1, |plan| plan.shards));
    let origin = trace::origin(shard, place.work, n);
    let share = worker::share(ctx, assignment::limits(&seen.root.spec), sharers, origin);
    let assignment =
        assignment::collect(&run, &seen.path, shard.spec.index, &shard.spec.slice.items, checkpoint, n, share)?;
    let Some(owner) = worker::owner(shard) else { return Ok(()) };
    let job = JobFor {
        name: place.job(n),
        namespace: place.namespace,
        owner,
        work: place.work,
        root: &root_name,
        root_uid: &root_uid,
        task: &shard.spec.task,
        run: shard.spec.run,
        attempt: n,
        runs: Runs::Worker(assignment::env_value(&assignment)?, None),
        deadline: seen.limits.attempt,
    };
    worker::create(ctx, place, n, &worker::build(ctx, &job, &seen.root.spec)).await
}

async fn record(
    ctx: &Context,
    shard: &CollectShard,
    seen: &Observed,
    status: &CollectShardStatus,
    place: &Place<'_>,
    n: i32,
    end: &Ended,
) -> Result<(), Error> {
    let at = At { generation: shard.metadata.generation, now: clock::now() };
    let recording = core::Recording {
        uid: place.owner_uid,
        expected: expected(shard),
        policy: &seen.policy,
        token: seen.token.as_deref(),
    };
    let new = core::recorded(status, n, end, &recording, at);
    if ctx.writer.status(shard, shard.status.as_ref(), &new).await?.is_none() {
        return Ok(());
    }
    let Some(attempt) = new.attempts.iter().find(|attempt| attempt.n == n) else { return Ok(()) };
    ctx.metrics.attempt(place.work, attempt);
    trace::attempt_ended(shard, place.work, attempt, at.now);
    let usage = &end.message.usage;
    let never_told = status.progress.as_ref().is_none_or(|progress| progress.attempt != n);
    ctx.source_requests(place.owner_uid, place.key(n), never_told, (usage.requests, usage.retries));
    let outcome = attempt.outcome.as_ref().map(ToString::to_string).unwrap_or_default();
    let message = attempt.message.clone().unwrap_or_default();
    info!(shard = place.owner, attempt = n, outcome, why = message, "attempt ended");
    let note = format!("attempt {n}: {outcome}: {message}");
    match new.phase {
        Some(ShardPhase::Failed) => ctx.tell(shard, &Told { warning: true, reason: reason::FAILED.into(), note }).await,
        Some(ShardPhase::Pending) => {
            ctx.tell(shard, &Told { warning: true, reason: reason::RETRYING.into(), note }).await
        }
        _ => {}
    }
    Ok(())
}

/// Records that the plan expects of a shard; absent when one of its items is not known.
pub fn expected(shard: &CollectShard) -> Option<i64> {
    shard.spec.slice.items.iter().map(|item| item.records).sum()
}

/// Every object is revisited now and then even with no event.
fn resync() -> Action {
    Action::requeue(Duration::from_secs(300).mul_f64(clock::jitter()))
}

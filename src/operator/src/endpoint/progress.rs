//! POST /v1/progress: a worker says how far it is and is told how to go on.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State};
use collect_api::{
    Attempt, CollectShard, CollectTask, CollectTaskStatus, DesiredState,
    protocol::{Directive, ProgressAnswer, ProgressReport, RateShare},
};
use collect_core::{
    self as core, assignment,
    conditions::At,
    hooks::HookKind,
    names,
    resolve::{STALL_TIMEOUT, TimeLimits},
};
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use crate::{
    clock,
    context::Context,
    endpoint::{Endpoint, Refusal, auth::Caller},
    error::{Class, chain},
    shard::{expected, observe::observe},
    worker,
    write::Object,
};

/// Progress writes a second that the API server is asked to bear, over all workers.
const WRITES_PER_SECOND: u64 = 50;
/// Time between two reports of a worker while there are few, in milliseconds.
const REPORT_EVERY_MS: u64 = 5_000;
/// Tries of a write that others were faster at.
const TRIES: usize = 4;

/// Takes a report in.
pub async fn progress(
    State(endpoint): State<Endpoint>,
    caller: Caller,
    Json(report): Json<ProgressReport>,
) -> Result<Json<ProgressAnswer>, Refusal> {
    let ctx = &endpoint.ctx;
    match caller.ledger.kind.as_str() {
        "CollectShard" => shard(ctx, &caller, &report).await,
        "CollectTask" => task(ctx, &caller, &report).await,
        _ => Err(Refusal::Forbidden("the Job belongs to no collection")),
    }
    .map(Json)
}

/// A shard's worker: its report is recorded if its attempt is the live one; a zombie is told to leave.
async fn shard(ctx: &Context, caller: &Caller, report: &ProgressReport) -> Result<ProgressAnswer, Refusal> {
    let reference = ObjectRef::<CollectShard>::new(&caller.ledger.name).within(&caller.namespace);
    let known = ctx.stores.shards.get(&reference).filter(|shard| shard.uid().as_deref() == Some(&caller.ledger.uid));
    let mut shard = match known.filter(|shard| !ctx.writer.is_behind(shard.as_ref())) {
        Some(shard) => CollectShard::clone(&shard),
        None => match fetch_shard(ctx, caller).await? {
            Some(shard) => shard,
            None => return Ok(abort()),
        },
    };
    for _ in 0..TRIES {
        let status = shard.status.clone().unwrap_or_default();
        let name = names::job(&shard.name_any(), &caller.ledger.uid, "collect", shard.spec.run, report.attempt);
        let live = status.attempts.last().is_some_and(|attempt| attempt.n == report.attempt && attempt.is_live());
        if !live || name != caller.job || shard.metadata.deletion_timestamp.is_some() {
            return Ok(abort());
        }
        let is_first = status.progress.as_ref().is_none_or(|progress| progress.attempt != report.attempt);
        let key = ("collect", shard.spec.run, report.attempt);
        let at = At { generation: shard.metadata.generation, now: clock::now() };
        ctx.source_requests(&caller.ledger.uid, key, is_first, (report.requests, report.retries));
        let Some(new) = core::shard::progressed(&status, expected(&shard), report, at) else { break };
        match ctx.writer.status(&shard, shard.status.as_ref(), &new).await {
            Ok(_) => break,
            // Somebody else wrote: look again, so that nothing is recorded over a newer view.
            Err(error) if error.class() == Class::Conflict => match fetch_shard(ctx, caller).await? {
                Some(fresh) => shard = fresh,
                None => return Ok(abort()),
            },
            Err(error) => return Err(Refusal::Unavailable(chain(&error))),
        }
    }
    let seen = observe(ctx, &shard);
    let directive = match seen.as_ref().map(|seen| seen.above.desired) {
        Some(DesiredState::Paused | DesiredState::Cancelled) => Directive::CheckpointAndExit,
        // The tree above is not in view: no reason to stop.
        Some(DesiredState::Running) | None => Directive::Continue,
    };
    // A worker that is told to be quiet for longer than it may be silent would be taken for dead.
    let quiet = seen.as_ref().map_or(STALL_TIMEOUT, |seen| seen.limits.stall) / 4;
    let share = seen.map_or_else(RateShare::default, |seen| {
        let plan =
            seen.root.status.as_ref().and_then(|status| status.plan.as_ref()).and_then(|plan| plan.result.as_ref());
        let sharers = worker::sharers(&seen.root.spec, plan.map_or(1, |plan| plan.shards));
        assignment::rate_share(assignment::limits(&seen.root.spec), sharers)
    });
    Ok(ProgressAnswer { directive, report_after_ms: report_after(ctx).min(milliseconds(quiet)), rate_share: share })
}

/// A planner's, commit's or hook's worker is told whether it is still wanted. That it lives is recorded now and then.
async fn task(ctx: &Context, caller: &Caller, report: &ProgressReport) -> Result<ProgressAnswer, Refusal> {
    let Some(task) = live_task(ctx, caller, report.attempt).await? else { return Ok(abort()) };
    let directive = match task.spec.desired_state.unwrap_or_default() {
        DesiredState::Running => Directive::Continue,
        DesiredState::Paused | DesiredState::Cancelled => Directive::CheckpointAndExit,
    };
    let quiet = TimeLimits::of(&task.spec).stall / 4;
    heartbeat(ctx, &task, report, quiet).await?;
    let rate_share = assignment::rate_share(assignment::limits(&task.spec), 1);
    Ok(ProgressAnswer { directive, report_after_ms: report_after(ctx).min(milliseconds(quiet)), rate_share })
}

/// Records a sign of life of a planner or commit: its first, and then as often as the stall timeout needs it.
async fn heartbeat(ctx: &Context, task: &CollectTask, report: &ProgressReport, every: Duration) -> Result<(), Refusal> {
    let status = task.status.clone().unwrap_or_default();
    let Some(new) = core::task::heard(&status, report, clock::now()) else { return Ok(()) };
    let heartbeats = |status: &CollectTaskStatus| {
        let plan = status.plan.as_ref().and_then(|plan| plan.heartbeat.clone());
        [plan, status.commit.as_ref().and_then(|commit| commit.heartbeat.clone())]
    };
    let known = heartbeats(&status);
    let is_first = !known.iter().flatten().any(|known| known.attempt == report.attempt);
    let recorded = ctx.watched_for(&task.uid().unwrap_or_default(), "heartbeat", &format!("{known:?}"));
    if !is_first && recorded < every {
        return Ok(());
    }
    match ctx.writer.status(task, task.status.as_ref(), &new).await {
        // The next report comes soon, and the passes over the task look at it anew.
        Ok(_) => Ok(()),
        Err(error) if error.class() == Class::Conflict => Ok(()),
        Err(error) => Err(Refusal::Unavailable(chain(&error))),
    }
}

/// The root whose planner, commit or hook calls, if this attempt is the live one. Where this replica does not know it to be, its
/// view may be late: it looks with a quorum read.
pub async fn live_task(ctx: &Context, caller: &Caller, attempt: i32) -> Result<Option<Arc<CollectTask>>, Refusal> {
    let reference = ObjectRef::<CollectTask>::new(&caller.ledger.name).within(&caller.namespace);
    let known = ctx.stores.tasks.get(&reference).filter(|task| !ctx.writer.is_behind(task.as_ref()));
    if let Some(task) = known.filter(|task| is_live(task, caller, attempt)) {
        return Ok(Some(task));
    }
    let found = fetch::<CollectTask>(ctx, caller).await?;
    Ok(found.filter(|task| is_live(task, caller, attempt)).map(Arc::new))
}

fn is_live(task: &CollectTask, caller: &Caller, attempt: i32) -> bool {
    let Some((status, run)) = task.status.as_ref().and_then(|status| Some((status, status.run?))) else { return false };
    let is = |work, attempts: Option<&Vec<Attempt>>| {
        names::job(&task.name_any(), &caller.ledger.uid, work, run, attempt) == caller.job
            && attempts.and_then(|attempts| attempts.last()).is_some_and(|last| last.n == attempt && last.is_live())
    };
    let planner = is("plan", status.plan.as_ref().map(|plan| &plan.attempts));
    let commit = is("commit", status.commit.as_ref().map(|commit| &commit.attempts));
    let hook = HookKind::ALL
        .into_iter()
        .any(|kind| is(kind.word(), kind.status(status.hooks.as_ref()).map(|hook| &hook.attempts)));
    task.uid().as_deref() == Some(&caller.ledger.uid) && (planner || commit || hook)
}

/// The shard of a caller, by a quorum read.
async fn fetch_shard(ctx: &Context, caller: &Caller) -> Result<Option<CollectShard>, Refusal> {
    let mut shard = fetch::<CollectShard>(ctx, caller).await?;
    shard.iter_mut().for_each(CollectShard::enter_first_attempt);
    Ok(shard)
}

/// The object that holds the caller's ledger, by a quorum read.
async fn fetch<K: Object>(ctx: &Context, caller: &Caller) -> Result<Option<K>, Refusal> {
    let found = ctx.writer.api::<K>(&caller.namespace).get_opt(&caller.ledger.name).await;
    let found = found.map_err(|error| Refusal::Unavailable(chain(&error)))?;
    Ok(found.filter(|object| object.uid().as_deref() == Some(&caller.ledger.uid)))
}

fn abort() -> ProgressAnswer {
    ProgressAnswer { directive: Directive::Abort, report_after_ms: REPORT_EVERY_MS, rate_share: RateShare::default() }
}

/// A time between two reports.
fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(500)
}

/// When a worker shall report next, so that all of them together stay within the writes that are borne.
fn report_after(ctx: &Context) -> u64 {
    let running = ctx.stores.shards.state_filter(|shard| {
        shard.status.as_ref().and_then(|status| status.attempts.last()).is_some_and(Attempt::is_live)
    });
    REPORT_EVERY_MS.max(u64::try_from(running.len()).unwrap_or(u64::MAX).saturating_mul(1000) / WRITES_PER_SECOND)
}

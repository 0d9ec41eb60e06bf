//! What every task does once its plan is sealed: roll up, fold, compare, report, end, and begin again if a retry says so.

use std::time::Duration;

use collect_api::{
    CollectShard, CollectTask, CollectTaskStatus, Phase, ValidationReport, ValidationReportSpec,
    ValidationReportStatus, fold::Comparison,
};
use collect_core::{
    fold::{self, Finished},
    halt::{Halt, tolerated},
    names, redrive, report as compare, resolve, retry,
    rollup::{self, Above, Rolled, roll_up},
    straggler::stragglers,
    task::{self as core, Commit, Needs, Progress},
    tell,
    tree::{Node, PlanTree},
};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{ResourceExt, runtime::controller::Action};
use tracing::{Instrument, info};

use crate::{
    clock,
    context::Context,
    error::{Error, code},
    task::{
        at,
        observe::{self, Children},
        resync, write,
    },
    trace, worker,
    write::Object,
};

/// How long a child's report may take to come into view before it counts as deleted.
const GONE_AFTER: Duration = Duration::from_secs(15);
/// Deletes sent at once.
const DELETES_AT_ONCE: usize = 16;

/// Where a task stands in its tree.
pub struct Place<'a> {
    /// The root.
    pub root: &'a CollectTask,
    /// The sealed plan.
    pub plan: &'a PlanTree,
    /// The task's place in it.
    pub node: &'a Node,
    /// What holds for it and below.
    pub above: Above,
    /// Why the run is stopped, if it is.
    pub halt: Option<Halt>,
}

/// How a pass over a node ended.
pub struct End {
    /// When to look again.
    pub action: Action,
    /// Whether the task's status was written.
    pub wrote: bool,
    /// What the task needs before it can end.
    pub needs: Needs,
    /// The fold over its children.
    pub rolled: Rolled,
}

/// One pass over a task whose plan is sealed. `commit` is where the commit stands, at a root.
pub async fn pass(ctx: &Context, task: &CollectTask, place: &Place<'_>, commit: Option<Commit>) -> Result<End, Error> {
    let at = at(task);
    let old = task.status.clone().unwrap_or_default();
    let run = place.root.status.as_ref().and_then(|status| status.run).unwrap_or(1);
    let is_over = old.phase.as_ref().is_some_and(Phase::is_terminal);
    let mut status = if old.run == Some(run) { old } else { core::begun(task, run, place.above.token.clone(), at.now) };
    if status.retried != place.above.token && !is_over {
        // What failed and was folded is taken out again; what is not folded takes itself up.
        status = redrive::unfolded(&status);
    }
    let folded = observe::folded(&status, &task.name_any())?;
    let children = observe::children(ctx, task, Some(place.plan), &folded);
    let rolled = roll_up(place.node, status.folded.as_ref(), &place.above, &children.tasks, &children.shards);
    if is_over {
        let mut wrote = rest(ctx, task, &place.above, Some(place.plan)).await?;
        if !wrote && let Some(new) = core::recounted(&status, &rolled) {
            wrote = write(ctx, task, &new).await?.is_some();
        }
        let action = if wrote { Action::requeue(Duration::ZERO) } else { resync() };
        return Ok(End { action, wrote, needs: Needs::Nothing, rolled });
    }
    let found = found(ctx, &status, place, &children, run);
    let comparison = if rolled.complete {
        match &found {
            Some(found) => Some(compare_all(place, &status, found, &rolled)),
            // A child's report is not in view yet.
            None => {
                remove(ctx, &children).await?;
                let action = Action::requeue(Duration::from_millis(500));
                return Ok(End { action, wrote: false, needs: Needs::Nothing, rolled });
            }
        }
    } else {
        None
    };
    let commit = commit.unwrap_or(Commit::NotHere);
    let report = observe::report(ctx, task, run);
    let seen = Progress {
        rolled: &rolled,
        desired: place.above.desired,
        halt: place.halt.as_ref(),
        tolerated: tolerated(&place.root.spec, rolled.shards.total),
        comparison: comparison.as_ref(),
        commit: commit.clone(),
        report: report
            .as_ref()
            .filter(|report| {
                report.status.as_ref().zip(comparison.as_ref()).is_some_and(|(r, c)| compare::tells_of(r, c))
            })
            .map(|report| report.name_any()),
        waiting: rollup::waiting(&children.tasks, &children.shards),
        stragglers: stragglers(&children.shards, |shard| node_of(ctx, shard), at.now),
        token: place.above.token.clone(),
    };
    let (mut new, needs) = core::advance(&status, &seen, at);
    if let Some(folded) = fold_some(ctx, place, &new, &children, run)? {
        new.folded = Some(folded);
    }
    let (mut action, wrote) = settle(ctx, task, &new).await?;
    if needs == Needs::Report {
        if let Some(comparison) = comparison.filter(|comparison| report_is_due(ctx, task, run, comparison)) {
            let artifacts = match &commit {
                Commit::Done(result) => Some(result),
                _ => None,
            };
            let span = trace::validation(&comparison);
            write_report(ctx, task, place.root, run, comparison, artifacts).instrument(span).await?;
        }
        action = Action::requeue(Duration::from_secs(1));
    }
    remove(ctx, &children).await?;
    Ok(End { action, wrote, needs, rolled })
}

/// Whether child tasks are folded.
pub fn has_folded_tasks(status: &CollectTaskStatus) -> bool {
    fold::parts(status.folded.as_ref()).any(|part| !part.tasks.is_empty())
}

/// What is left to do for a task that is over: children that its end folded go, and a retry here or below takes it up again;
/// whether one did.
pub async fn rest(ctx: &Context, task: &CollectTask, above: &Above, plan: Option<&PlanTree>) -> Result<bool, Error> {
    let Some(status) = &task.status else { return Ok(false) };
    if plan.is_none() && has_folded_tasks(status) {
        return Ok(false);
    }
    let children = observe::children(ctx, task, plan, &observe::folded(status, &task.name_any())?);
    remove(ctx, &children).await?;
    if !retry::is_retriable(status) {
        return Ok(false);
    }
    let below = rollup::redrives(status.folded.as_ref(), &children.tasks, &children.shards);
    let Some(redrive) = redrive::is_to_be_redriven(status, below, above) else { return Ok(false) };
    info!(task = task.name_any(), ?redrive, "taken up again by a retry");
    let new = redrive::redriven(status, redrive, above.token.clone(), at(task));
    write(ctx, task, &new).await.map(|written| written.is_some())
}

/// Deletes children that are folded: what they came to stands in the parent's status.
async fn remove(ctx: &Context, children: &Children) -> Result<(), Error> {
    async fn one<K: Object>(ctx: &Context, object: &K) -> Result<(), Error> {
        let uid = object.uid().unwrap_or_default();
        if !ctx.first_time(&format!("delete/{uid}")) {
            return Ok(());
        }
        ctx.writer.delete::<K>(&object.namespace().unwrap_or_default(), &object.name_any(), &uid).await
    }
    let shards: Vec<_> = children.folded_shards.to_vec();
    stream::iter(shards)
        .map(|shard| async move { one(ctx, shard.as_ref()).await })
        .buffer_unordered(DELETES_AT_ONCE)
        .try_collect::<()>()
        .await?;
    for task in &children.folded_tasks {
        one(ctx, task.as_ref()).await?;
    }
    Ok(())
}

/// What is folded once the finished children beyond the history are added; nothing if there are none.
fn fold_some(
    ctx: &Context,
    place: &Place<'_>,
    status: &CollectTaskStatus,
    children: &Children,
    run: i64,
) -> Result<Option<collect_api::fold::Folded>, Error> {
    let shards = children
        .shards
        .iter()
        .filter(|shard| rollup::shard_has_ended(shard, &place.above))
        .map(|shard| Finished::Shard(shard.as_ref()));
    let tasks = children.tasks.iter().filter_map(|child| {
        let phase = child.status.as_ref()?.phase.as_ref()?;
        if !phase.is_terminal() || rollup::task_is_due(child, phase, &place.above) {
            return None;
        }
        let position = place.plan.find(&child.spec.part_of.as_ref()?.path)?.position;
        // Its report goes with it, so it must be in view first.
        let report = child_report(ctx, child, run)?;
        Some(Finished::Task(position, child.as_ref(), report.map(Box::new)))
    });
    let history = resolve::history(&place.root.spec);
    let finished = shards.chain(tasks).collect();
    fold::fold(status.folded.as_ref(), finished, history)
        .map_err(|source| Error::Folded { task: place.node.name.clone(), source })
}

/// Writes a status if it is due. Gives back when to look again, and whether it was written.
async fn settle(ctx: &Context, task: &CollectTask, new: &CollectTaskStatus) -> Result<(Action, bool), Error> {
    let old = task.status.clone().unwrap_or_default();
    let Some(every) = tell::write_after(&old, new) else { return Ok((resync(), false)) };
    let uid = task.uid().unwrap_or_default();
    match ctx.progress_due(&uid, every) {
        Ok(()) => Ok((resync(), write(ctx, task, new).await?.is_some())),
        Err(left) => Ok((Action::requeue(left), false)),
    }
}

/// Node of the worker that runs for a shard.
fn node_of(ctx: &Context, shard: &CollectShard) -> Option<String> {
    let live = shard.status.as_ref()?.attempts.last().filter(|attempt| attempt.is_live())?;
    let uid = shard.uid()?;
    let job = names::job(&shard.name_any(), &uid, "collect", shard.spec.run, live.n);
    ctx.stores.pods.of(&uid, &job).iter().find_map(|pod| pod.spec.as_ref()?.node_name.clone())
}

/// What a child contributes to the comparison: nothing if its report is not in view yet, `None` within if it has none.
fn child_report(ctx: &Context, child: &CollectTask, run: i64) -> Option<Option<compare::ChildReport>> {
    let report = observe::report(ctx, child, run);
    let missing = match &report {
        Some(_) => Duration::ZERO,
        None => ctx.watched_for(&child.uid().unwrap_or_default(), "its report", "is not there"),
    };
    compare::of_task(child, report.as_deref(), missing >= GONE_AFTER)
}

/// What the task's slices and children add up to, those that are folded included; nothing while a child's report is not in view.
fn found(
    ctx: &Context,
    status: &CollectTaskStatus,
    place: &Place<'_>,
    children: &Children,
    run: i64,
) -> Option<Comparison> {
    let mut found = Comparison::default();
    for part in fold::parts(status.folded.as_ref()) {
        compare::add(&mut found, part.comparison.clone());
    }
    for shard in children.shards.iter().filter(|shard| !rollup::shard_is_due(shard, &place.above)) {
        compare::add(&mut found, compare::of_shard(shard));
    }
    for child in &children.tasks {
        if let Some(report) = child_report(ctx, child, run)? {
            compare::add(&mut found, compare::of_child(&report));
        }
    }
    Some(found)
}

fn compare_all(
    place: &Place<'_>,
    status: &CollectTaskStatus,
    found: &Comparison,
    rolled: &Rolled,
) -> ValidationReportStatus {
    let input = compare::Input {
        level: resolve::validation_level(&place.root.spec),
        node: place.node,
        found: found.clone(),
        failed_shards: rolled.shards.failed,
        tolerated: rolled.shards.failed <= tolerated(&place.root.spec, rolled.shards.total),
        round: redrive::round(status, rolled.redrives),
    };
    compare::compare(&input, clock::now())
}

/// Whether the report was not written a moment ago: it comes into view a little later than it is written.
fn report_is_due(ctx: &Context, task: &CollectTask, run: i64, comparison: &ValidationReportStatus) -> bool {
    let round = comparison.rounds.last().map(|round| round.round);
    let what = format!("{run}/{round:?}/{:?}/{:?}", comparison.verdict, comparison.counts);
    ctx.first_time(&format!("report/{}/{what}", task.uid().unwrap_or_default()))
}

/// Writes the report about a task's run: created once, then its status, each safe to repeat (I11). A retry writes its status anew.
async fn write_report(
    ctx: &Context,
    task: &CollectTask,
    root: &CollectTask,
    run: i64,
    comparison: ValidationReportStatus,
    artifacts: Option<&collect_api::protocol::CommitResult>,
) -> Result<(), Error> {
    let namespace = task.namespace().unwrap_or_default();
    let name = names::report(&task.name_any(), run);
    let path = task.spec.part_of.as_ref().map(|part_of| part_of.path.clone()).unwrap_or_default();
    let (root_name, root_uid) = (root.name_any(), root.uid().unwrap_or_default());
    let plan = root.status.as_ref().and_then(|status| status.plan.as_ref()).and_then(|plan| plan.result.as_ref());
    let mut report = ValidationReport::new(
        &name,
        ValidationReportSpec {
            task: task.name_any(),
            task_uid: task.uid().unwrap_or_default(),
            root_uid: root_uid.clone(),
            run,
            plan_digest: plan.map(|plan| plan.digest.clone()).unwrap_or_default(),
            level: resolve::validation_level(&root.spec),
            path: path.clone(),
        },
    );
    report.metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(namespace.clone()),
        labels: Some(worker::tree_labels(&root_name, &root_uid, run, path.len(), &task.name_any())),
        owner_references: worker::owner(task).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    let made = match ctx.writer.create(&namespace, &report).await {
        Ok(made) => made,
        Err(error) if code(&error) == Some(409) => {
            let found = ctx.writer.api::<ValidationReport>(&namespace).get(&name).await;
            found.map_err(|error| Error::api("get", "ValidationReport", format!("{namespace}/{name}"), error))?
        }
        Err(error) => return Err(Error::api("create", "ValidationReport", format!("{namespace}/{name}"), error)),
    };
    if Some(&made.spec.task_uid) != task.uid().as_ref() {
        // The report of an earlier task of the same name is still being deleted.
        return Ok(());
    }
    if !made.status.as_ref().is_some_and(|status| compare::tells_of(status, &comparison)) {
        let status = compare::completed(comparison, artifacts, made.status.as_ref());
        ctx.writer.status(&made, made.status.as_ref(), &status).await?;
    }
    Ok(())
}

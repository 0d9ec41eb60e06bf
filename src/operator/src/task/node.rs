//! What every task does once its plan is sealed: roll up, compare, report, end.

use std::time::Duration;

use collect_api::{
    CollectTask, CollectTaskStatus, DesiredState, Phase, ValidationReport, ValidationReportSpec,
    ValidationReportStatus,
    condition::{RECONCILING, reason},
    shard::ShardPhase,
};
use collect_core::{
    names, report as compare, resolve,
    rollup::{Rolled, roll_up},
    task::{self as core, Commit, Needs, Progress},
    tree::Node,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{ResourceExt, runtime::controller::Action};

use crate::{
    clock,
    context::Context,
    error::{Error, code},
    task::{
        observe::{self, Children},
        resync, write,
    },
    worker,
};

/// Progress is written at most this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How a pass over a node ended.
pub struct End {
    /// When to look again.
    pub action: Action,
    /// What the task needs before it can end.
    pub needs: Needs,
    /// The fold over its children.
    pub rolled: Rolled,
}

/// One pass over a task whose plan is sealed. `commit` is where the commit stands, at a root.
pub async fn pass(
    ctx: &Context,
    task: &CollectTask,
    root: &CollectTask,
    node: &Node,
    desired: DesiredState,
    commit: Option<Commit>,
) -> Result<End, Error> {
    let now = clock::now();
    let children = observe::children(ctx, task);
    let rolled = roll_up(node, &children.tasks, &children.shards);
    let old = task.status.clone().unwrap_or_default();
    if old.phase.as_ref().is_some_and(Phase::is_terminal) {
        return Ok(End { action: resync(), needs: Needs::Nothing, rolled });
    }
    let run = root.status.as_ref().and_then(|status| status.run).unwrap_or(1);
    let status = if old.run == Some(run) { old } else { core::begun(task, run, now) };
    let comparison = if rolled.complete {
        match comparison(ctx, root, node, &children, &rolled, run) {
            Some(comparison) => Some(comparison),
            // A child's report is not in view yet.
            None => {
                return Ok(End { action: Action::requeue(Duration::from_millis(500)), needs: Needs::Nothing, rolled });
            }
        }
    } else {
        None
    };
    let commit = commit.unwrap_or(Commit::NotHere);
    let seen = Progress {
        rolled: &rolled,
        desired,
        comparison: comparison.as_ref(),
        commit: commit.clone(),
        report: observe::report(ctx, task, run)
            .filter(|report| report.status.is_some())
            .map(|report| report.name_any()),
        waiting: waiting(&children),
    };
    let (new, needs) = core::advance(&status, &seen, task.metadata.generation, now);
    let mut action = settle(ctx, task, &new).await?;
    if needs == Needs::Report {
        if let Some(comparison) = comparison.filter(|_| report_is_due(ctx, task, run)) {
            let artifacts = match &commit {
                Commit::Done(result) => Some(result),
                _ => None,
            };
            write_report(ctx, task, root, run, compare::with_artifacts(comparison, artifacts)).await?;
        }
        action = Action::requeue(Duration::from_secs(1));
    }
    Ok(End { action, needs, rolled })
}

/// Writes a transition at once; progress at most once a second, and only when it moved by a percent or ten seconds passed.
async fn settle(ctx: &Context, task: &CollectTask, new: &CollectTaskStatus) -> Result<Action, Error> {
    let old = task.status.clone().unwrap_or_default();
    if *new == old {
        return Ok(resync());
    }
    let uid = task.uid().unwrap_or_default();
    let moved = old.progress != new.progress
        || old.shards.as_ref().map(|s| s.succeeded) != new.shards.as_ref().map(|s| s.succeeded);
    let every = match (core::is_transition(&old, new), moved) {
        (true, _) => Duration::ZERO,
        (false, true) => PROGRESS_EVERY,
        (false, false) => PROGRESS_EVERY * 10,
    };
    match ctx.progress_due(&uid, every) {
        Ok(()) => {
            write(ctx, task, new).await?;
            Ok(resync())
        }
        Err(left) => Ok(Action::requeue(left)),
    }
}

/// Why some of the work waits: the first shard that says so, here or below.
fn waiting(children: &Children) -> Option<String> {
    let shard = children.shards.iter().find_map(|shard| {
        let status = shard.status.as_ref()?;
        let waits = status.phase == Some(ShardPhase::Pending)
            && status.attempts.last().is_some_and(collect_api::Attempt::is_live);
        status.message.as_ref().filter(|_| waits).map(|message| format!("{} waits: {message}", shard.name_any()))
    });
    shard.or_else(|| {
        children.tasks.iter().find_map(|task| {
            let status = task.status.as_ref()?;
            let message = status.message.as_ref().filter(|message| message.contains(" waits: "))?;
            status
                .conditions
                .iter()
                .any(|c| c.type_ == RECONCILING && c.reason == reason::RUNNING)
                .then(|| message.clone())
        })
    })
}

/// Compares a task whose children are all over; nothing while a child's report is not in view.
fn comparison(
    ctx: &Context,
    root: &CollectTask,
    node: &Node,
    children: &Children,
    rolled: &Rolled,
    run: i64,
) -> Option<ValidationReportStatus> {
    let mut reports = Vec::new();
    for child in &children.tasks {
        let phase = child.status.as_ref().and_then(|status| status.phase.clone());
        let step = child.spec.part_of.as_ref().and_then(|part_of| part_of.path.last()).cloned()?;
        match observe::report(ctx, child, run).and_then(|report| report.status.clone()) {
            Some(status) => reports.push(compare::ChildReport { step, status }),
            // A cancelled child ends without a report.
            None if phase == Some(Phase::Cancelled) => {}
            None => return None,
        }
    }
    let input = compare::Input {
        level: resolve::validation_level(&root.spec),
        node,
        children: reports,
        failed_shards: rolled.shards.failed,
    };
    Some(compare::compare(&input, &children.shards, clock::now()))
}

/// Whether the report was not written a moment ago: it comes into view a little later than it is written.
fn report_is_due(ctx: &Context, task: &CollectTask, run: i64) -> bool {
    let written = ctx.watched_for(&format!("{}/report/{run}", task.uid().unwrap_or_default()), "written");
    written.is_zero() || written >= Duration::from_secs(3)
}

/// Writes the report about a task's run: created once, then its status, each safe to repeat (I11).
async fn write_report(
    ctx: &Context,
    task: &CollectTask,
    root: &CollectTask,
    run: i64,
    status: ValidationReportStatus,
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
    if made.status.is_none() {
        ctx.writer.status(&made, None, &status).await?;
    }
    Ok(())
}

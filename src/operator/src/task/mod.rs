//! The controller of CollectTasks. A root plans, admits and commits; every task rolls up its direct children, is compared
//! when they are over, and gets its report.

pub mod node;
pub mod observe;
mod phase_jobs;
mod root;

use std::{sync::Arc, time::Duration};

use collect_api::{CollectTask, CollectTaskStatus, Phase, condition::reason, labels};
use collect_core::{conditions::At, halt, task as core, tell};
use kube::{ResourceExt, runtime::controller::Action};

use crate::{clock, context::Context, error::Error, trace, watch::controller_of};

/// One pass over a task.
pub async fn reconcile(task: Arc<CollectTask>, ctx: Arc<Context>) -> Result<Action, Error> {
    let uid = task.uid().unwrap_or_default();
    if task.metadata.deletion_timestamp.is_some() {
        ctx.set_starts(&uid, Default::default());
        return Ok(Action::await_change());
    }
    if !ctx.leads() {
        return Ok(resync());
    }
    if ctx.writer.is_behind(task.as_ref()) {
        return Ok(Action::requeue(Duration::from_millis(100)));
    }
    wake_below(&ctx, &task, &uid);
    match &task.spec.part_of {
        None => root::pass(&ctx, &task).await,
        Some(_) => child(&ctx, &task).await,
    }
}

/// What a task is given for its status: which generation it is about, and the moment.
pub fn at(task: &CollectTask) -> At {
    At { generation: task.metadata.generation, now: clock::now() }
}

/// A change of what is asked for concerns every task and shard below at once.
fn wake_below(ctx: &Context, task: &CollectTask, uid: &str) {
    let spec = &task.spec;
    let halt = halt::halt(task).map(|halt| halt.reason);
    let token = task.annotations().get(labels::RETRY);
    let asked = format!(
        "{:?} {halt:?} {token:?} {:?} {:?} {:?}",
        spec.desired_state, spec.attempt_deadline, spec.stall_timeout, spec.pending_timeout
    );
    if !ctx.watched_for(uid, "asked", &asked).is_zero() {
        return;
    }
    let root_uid = task.spec.part_of.as_ref().map_or(uid, |part_of| &part_of.root_uid);
    let namespace = task.namespace();
    for shard in
        ctx.stores.shards.state_filter(|shard| shard.spec.root_uid == root_uid && shard.namespace() == namespace)
    {
        ctx.wake.shard(namespace.as_deref().unwrap_or_default(), &shard.name_any());
    }
    let below = |child: &CollectTask| child.spec.part_of.as_ref().is_some_and(|part_of| part_of.root_uid == root_uid);
    for child in ctx.stores.tasks.state_filter(|child| below(child) && child.namespace() == namespace) {
        ctx.wake.task(namespace.as_deref().unwrap_or_default(), &child.name_any());
    }
}

/// A pass over a child. It is valid only below a living parent and at a place that the sealed plan knows.
async fn child(ctx: &Context, task: &CollectTask) -> Result<Action, Error> {
    let Some(part_of) = &task.spec.part_of else { return Ok(resync()) };
    let namespace = task.namespace().unwrap_or_default();
    let Some(line) = observe::ancestors(ctx, task) else {
        return orphan(ctx, task, &namespace, &part_of.root).await;
    };
    let Some(root) = line.last().filter(|root| root.uid().as_deref() == Some(&part_of.root_uid)).cloned() else {
        return stuck(ctx, task, "its root is another task than the one that made it").await;
    };
    if root.spec.run_number() != part_of.run || root.status.as_ref().and_then(|status| status.run) != Some(part_of.run)
    {
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    let Some(plan) = observe::plan(ctx, &root).await? else { return Ok(Action::requeue(Duration::from_secs(2))) };
    let Some(node) = plan.find(&part_of.path).filter(|node| node.name == task.name_any()) else {
        return stuck(ctx, task, "the sealed plan of its root does not know its place").await;
    };
    let own = Arc::new(task.clone());
    let whole: Vec<_> = [own].into_iter().chain(line).collect();
    let (above, halt) = halt::standing(&whole);
    let place = node::Place { root: &root, plan: &plan, node, above, halt };
    node::pass(ctx, task, &place, None).await.map(|end| end.action)
}

/// The parent is not in view: gone (garbage collection takes the child too) or not listed yet.
async fn orphan(ctx: &Context, task: &CollectTask, namespace: &str, root: &str) -> Result<Action, Error> {
    let Some(owner) = controller_of(task) else {
        return stuck(
            ctx,
            task,
            "it has no controller owner; delete it, or create a root CollectTask without spec.partOf",
        )
        .await;
    };
    let found = ctx
        .writer
        .api::<CollectTask>(namespace)
        .get_opt(&owner.name)
        .await
        .map_err(|error| Error::api("get", "CollectTask", format!("{namespace}/{}", owner.name), error))?;
    if found.is_some_and(|parent| parent.uid().as_deref() == Some(&owner.uid)) {
        ctx.wake.task(namespace, root);
        return Ok(Action::requeue(Duration::from_secs(2)));
    }
    stuck(ctx, task, "its parent is gone; Kubernetes deletes it soon, or delete it by hand").await
}

async fn stuck(ctx: &Context, task: &CollectTask, why: &str) -> Result<Action, Error> {
    let status = task.status.clone().unwrap_or_default();
    if status.phase.as_ref().is_some_and(Phase::is_terminal) {
        return Ok(resync());
    }
    let new = core::stuck(&status, reason::ORPHANED, why, at(task));
    write(ctx, task, &new).await?;
    Ok(Action::requeue(Duration::from_secs(30)))
}

/// Writes a task's status if it differs, and tells of the transitions in it.
pub async fn write(ctx: &Context, task: &CollectTask, new: &CollectTaskStatus) -> Result<Option<CollectTask>, Error> {
    let written = ctx.writer.status(task, task.status.as_ref(), new).await?;
    if written.is_some() {
        ctx.progress_written(&task.uid().unwrap_or_default());
        let old = task.status.clone().unwrap_or_default();
        if task.spec.part_of.is_none() {
            measure_phase(ctx, task, &old, new);
            trace::run_ended(task, &old, new, clock::now());
        }
        if old.phase != new.phase && new.phase.as_ref().is_some_and(Phase::is_terminal) {
            wake_dependents(ctx, task);
        }
        for told in tell::events(&old, new) {
            ctx.tell(task, &told).await;
        }
    }
    Ok(written)
}

/// Counts how long a root was in the phase that it leaves. What is over may be taken up again days later: that is no phase of work.
fn measure_phase(ctx: &Context, task: &CollectTask, old: &CollectTaskStatus, new: &CollectTaskStatus) {
    let Some(to) = new.phase.as_ref().filter(|to| old.phase.as_ref() != Some(to)) else { return };
    let from = old.phase.as_ref().map_or("", Phase::as_str);
    let stayed = ctx.phase_entered(&task.uid().unwrap_or_default(), from, to.as_str());
    if let Some(stayed) = stayed.filter(|_| !old.phase.as_ref().is_some_and(Phase::is_terminal)) {
        ctx.metrics.phase_left(from, stayed);
    }
}

/// Tasks that depend on one that has just ended are looked at.
fn wake_dependents(ctx: &Context, task: &CollectTask) {
    let (namespace, name) = (task.namespace(), task.name_any());
    let depends =
        |other: &CollectTask| other.spec.depends_on.iter().any(|on| on.name == name) && other.namespace() == namespace;
    for other in ctx.stores.tasks.state_filter(depends) {
        ctx.wake.task(namespace.as_deref().unwrap_or_default(), &other.name_any());
    }
}

/// Every object is revisited now and then even with no event.
pub fn resync() -> Action {
    Action::requeue(Duration::from_secs(300).mul_f64(clock::jitter()))
}

//! A pass over a root: begin a run, plan it, admit its work, commit it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use collect_api::{
    Attempt, CollectShard, CollectShardSpec, CollectTask, CollectTaskSpec, CollectTaskStatus, DesiredState, Phase,
    ValidationReport,
    condition::reason,
    labels,
    shard::{FirstAttempt, Slice},
    task::PartOf,
};
use collect_core::{
    admit::{Admission, NewShard, ShardState, TreeSeen, admit},
    conditions::whole_seconds,
    depends::{Dependencies, dependencies},
    halt,
    hooks::{self, HookKind},
    names, resolve, retry,
    rollup::Above,
    task::{self as core, Commit, Needs},
    tell::{self, Told},
    tree::{Node, PlanTree},
};
use futures::{StreamExt, stream};
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Resource, ResourceExt,
    api::ListParams,
    runtime::{controller::Action, reflector::ObjectRef},
};
use tracing::{info, warn};

use crate::{
    clock,
    context::Context,
    error::{Error, code},
    task::{
        at, node, observe,
        phase_jobs::{self, Asked},
        resync, write,
    },
    watch::controller_of,
    worker,
    write::Object,
};

/// Creates sent at once.
const CREATES_AT_ONCE: usize = 16;

/// One pass over a root.
pub async fn pass(ctx: &Context, task: &CollectTask) -> Result<Action, Error> {
    let wanted = task.spec.run_number();
    let own = Arc::new(task.clone());
    let (above, halt) = halt::standing(std::slice::from_ref(&own));
    let run = match task.status.as_ref().and_then(|status| status.run) {
        None => {
            write(ctx, task, &core::begun(task, wanted, above.token, clock::now())).await?;
            return Ok(Action::requeue(Duration::ZERO));
        }
        Some(run) if run < wanted => return replace(ctx, task, run, wanted).await,
        Some(run) => run,
    };
    phase_jobs::sweep(ctx, task, run).await?;
    if run > 1 && ctx.first_time(&format!("older/{}", task.uid().unwrap_or_default())) {
        // What an operator that had not yet seen the new run made for the old one.
        remove(ctx, task, run).await?;
    }
    let status = task.status.clone().unwrap_or_default();
    let asked = Asked { desired: above.desired, halt: halt.as_ref() };
    if status.phase.as_ref().is_some_and(Phase::is_terminal) {
        return over(ctx, task, run, &above, &asked).await;
    }
    if stopwatch(ctx, task, &status, above.desired).await? {
        return Ok(Action::requeue(Duration::ZERO));
    }
    let sealed = status.plan.as_ref().is_some_and(|plan| plan.sealed.is_some());
    let plan = match observe::plan(ctx, task).await {
        // A sealed plan that can't be read any more is made again, and must come out the same.
        Err(Error::Plan { root, source }) => {
            warn!(root, %source, "the sealed plan can't be read");
            None
        }
        other => other?,
    };
    match plan {
        Some(plan) => {
            let Some(node) = plan.root() else { return Ok(resync()) };
            let place = node::Place { root: task, plan: &plan, node, above, halt: halt.clone() };
            run_tree(ctx, task, &place, run).await
        }
        None if sealed => phase_jobs::unseal(ctx, task).await,
        None => start(ctx, task, run, &asked).await,
    }
}

/// What is left to do before the plan: dependencies, the beforeStart hook, the planner.
async fn start(ctx: &Context, task: &CollectTask, run: i64, asked: &Asked<'_>) -> Result<Action, Error> {
    let status = task.status.clone().unwrap_or_default();
    let begun = status.plan.is_some() || status.hooks.is_some();
    if asked.desired == DesiredState::Running && !begun {
        let namespace = task.namespace().unwrap_or_default();
        let look = |name: &str| observe::dependency(ctx, &namespace, name);
        let (reason, message, is_stuck) = match dependencies(&task.name_any(), &task.spec.depends_on, &look) {
            Dependencies::Met => ("", String::new(), false),
            Dependencies::Waiting(why) => (reason::WAITING_FOR_DEPENDENCY, why, false),
            Dependencies::Blocked(why) => (reason::WAITING_FOR_DEPENDENCY, why, true),
            Dependencies::Cycle(way) => {
                let way = way.join(" -> ");
                (
                    reason::DEPENDENCY_CYCLE,
                    format!("tasks wait for each other: {way}; remove one of spec.dependsOn"),
                    true,
                )
            }
        };
        if !message.is_empty() {
            let new = match is_stuck {
                true => core::stuck(&status, reason, &message, at(task)),
                false => core::waiting(&status, Phase::Pending, reason, &message, at(task)),
            };
            if tell::is_transition(&status, &new) || status.message != new.message {
                write(ctx, task, &new).await?;
            }
            return Ok(Action::requeue(Duration::from_secs(15).mul_f64(clock::jitter())));
        }
    }
    match hooks::due(task) {
        Some(HookKind::BeforeStart) => phase_jobs::hook(ctx, task, run, asked, HookKind::BeforeStart).await,
        _ => phase_jobs::plan(ctx, task, run, asked).await,
    }
}

/// A root that is over: a retry takes it up again, a hook tells of its end, its time to live deletes it.
async fn over(ctx: &Context, task: &CollectTask, run: i64, above: &Above, asked: &Asked<'_>) -> Result<Action, Error> {
    let uid = task.uid().unwrap_or_default();
    let status = task.status.clone().unwrap_or_default();
    // Only the plan tells which child tasks are folded, and what there is to count where not all was collected. While it can't
    // be read, nothing is decided by that.
    let plan = match core::may_be_recounted(&status) || node::has_folded_tasks(&status) {
        true => match observe::plan(ctx, task).await {
            Ok(Some(plan)) => Some(plan),
            Ok(None) | Err(Error::Plan { .. }) => None,
            Err(error) => return Err(error),
        },
        false => None,
    };
    let wrote = match plan.as_deref().and_then(|plan| plan.root().map(|node| (plan, node))) {
        Some((plan, node)) => {
            let place = node::Place { root: task, plan, node, above: above.clone(), halt: None };
            node::pass(ctx, task, &place, None).await?.wrote
        }
        None => node::rest(ctx, task, above, None).await?,
    };
    if wrote {
        return Ok(Action::requeue(Duration::ZERO));
    }
    ctx.rest(&uid);
    if status.commit.as_ref().is_some_and(|commit| commit.attempts.last().is_some_and(Attempt::is_live)) {
        return phase_jobs::stop_commit(ctx, task, run).await;
    }
    if let Some(kind) = hooks::due(task) {
        return phase_jobs::hook(ctx, task, run, asked, kind).await;
    }
    let ttl = status.phase.as_ref().and_then(|phase| resolve::ttl(&task.spec, phase));
    match core::ttl_left(&status, ttl, clock::now()) {
        None => Ok(resync()),
        Some(left) if !left.is_zero() => Ok(Action::requeue(left.min(Duration::from_secs(3600)))),
        Some(_) => {
            let note = "its time to live (spec.ttl) is over; its data at the sink stays".to_owned();
            info!(task = task.name_any(), "{note}");
            ctx.tell(task, &Told { warning: false, reason: reason::EXPIRED.into(), note }).await;
            ctx.writer.delete::<CollectTask>(&task.namespace().unwrap_or_default(), &task.name_any(), &uid).await?;
            Ok(resync())
        }
    }
}

/// Counts the time that a run with a deadline is worked on, by this process's own clock, and writes it in steps: the deadline is
/// judged by what is written, so that the whole tree sees it at once. Gives back whether a step was written.
async fn stopwatch(
    ctx: &Context,
    task: &CollectTask,
    status: &CollectTaskStatus,
    desired: DesiredState,
) -> Result<bool, Error> {
    let Some(deadline) = task.spec.deadline else { return Ok(false) };
    let known = Duration::from_secs(status.elapsed_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
    let what = format!("{:?}/{:?}", status.run, status.redrives);
    let active = desired == DesiredState::Running && status.plan.is_some();
    let elapsed = ctx.elapsed(&task.uid().unwrap_or_default(), &what, known, active);
    let seconds = halt::elapsed_seconds(&task.spec, elapsed).max(status.elapsed_seconds);
    if seconds != status.elapsed_seconds {
        write(ctx, task, &CollectTaskStatus { elapsed_seconds: seconds, ..status.clone() }).await?;
        return Ok(true);
    }
    if active {
        let step = (deadline.get() / 20).clamp(Duration::from_secs(1), Duration::from_secs(30));
        let left = deadline.get().saturating_sub(elapsed);
        ctx.look_again(task, step.min(left).max(Duration::from_millis(100)));
    }
    Ok(false)
}

/// Admits work, rolls up, and commits when everything is over.
async fn run_tree(ctx: &Context, task: &CollectTask, place: &node::Place<'_>, run: i64) -> Result<Action, Error> {
    let uid = task.uid().unwrap_or_default();
    let seen = observe::tree(ctx, task, run, clock::now())?;
    let admission = match place.halt {
        None => {
            let worked_for = ctx.watched_for(&uid, "worked", &run.to_string());
            admit(place.plan, &seen, resolve::root_parallelism(&task.spec), worked_for)
        }
        Some(_) => Admission::default(),
    };
    let tree = Tree { ctx, root: task, plan: place.plan, seen: &seen, run };
    tree.start(&uid, admission.starts);
    let create = tree.create(&admission.tasks, &admission.shards);
    let roll_up = node::pass(ctx, task, place, Some(Commit::of(task, clock::now())));
    let status = task.status.clone().unwrap_or_default();
    let (conflict, end) = if status.conditions.iter().any(|condition| condition.reason == reason::NAME_CONFLICT) {
        // What it says must stand while it is so.
        match create.await? {
            Some(Conflict::Foreign(message)) => (Some(Conflict::Foreign(message)), None),
            other => (other, Some(roll_up.await?)),
        }
    } else {
        // What is done is told while more is being made.
        let (conflict, end) = tokio::join!(create, roll_up);
        (conflict?, Some(end?))
    };
    let soon = match conflict {
        Some(Conflict::Foreign(message)) => {
            if end.is_none_or(|end| !end.wrote) {
                write(ctx, task, &core::stuck(&status, reason::NAME_CONFLICT, &message, at(task))).await?;
            }
            return Ok(Action::requeue(Duration::from_secs(15)));
        }
        Some(Conflict::Passing) => Some(Duration::from_secs(1)),
        None => admission.next,
    };
    let Some(end) = end else { return Ok(resync()) };
    if end.wrote {
        // What follows goes by what was written.
        return Ok(Action::requeue(Duration::ZERO));
    }
    if end.needs == Needs::CommitToLeave {
        return phase_jobs::stop_commit(ctx, task, run).await;
    }
    if end.needs == Needs::Commit {
        let asked = Asked { desired: place.above.desired, halt: place.halt.as_ref() };
        return phase_jobs::commit(ctx, task, run, &asked, &end.rolled).await;
    }
    Ok(match soon {
        Some(soon) => Action::requeue(soon.min(Duration::from_secs(60))),
        None => end.action,
    })
}

/// A name that is taken.
enum Conflict {
    /// By an object that is on its way out, or that was created a moment ago: look again soon.
    Passing,
    /// By something that is not ours (I21: never touched).
    Foreign(String),
}

struct Tree<'a> {
    ctx: &'a Context,
    root: &'a CollectTask,
    plan: &'a PlanTree,
    seen: &'a TreeSeen,
    run: i64,
}

impl Tree<'_> {
    /// Creates what admission says; gives back the first name that is taken.
    async fn create(&self, tasks: &[usize], shards: &[NewShard]) -> Result<Option<Conflict>, Error> {
        let namespace = self.root.namespace().unwrap_or_default();
        let tasks: Vec<_> = tasks.iter().filter_map(|index| self.task(self.plan.nodes.get(*index)?)).collect();
        let shards: Vec<_> =
            shards.iter().filter_map(|new| self.shard(self.plan.nodes.get(new.node)?, new.index)).collect();
        let made: Vec<_> =
            stream::iter(tasks).map(|task| self.put(&namespace, task)).buffered(CREATES_AT_ONCE).collect().await;
        let more: Vec<_> =
            stream::iter(shards).map(|shard| self.put(&namespace, shard)).buffered(CREATES_AT_ONCE).collect().await;
        let mut conflict = None;
        for result in made.into_iter().chain(more) {
            conflict = conflict.or(result?);
        }
        Ok(conflict)
    }

    async fn put<K: Object>(&self, namespace: &str, object: K) -> Result<Option<Conflict>, Error> {
        let name = object.name_any();
        let owner = controller_of(&object).map(|owner| owner.uid.clone()).unwrap_or_default();
        let key = format!("create/{owner}/{name}");
        if !self.ctx.first_time(&key) {
            return Ok(Some(Conflict::Passing));
        }
        let full = || format!("{namespace}/{name}");
        match self.ctx.writer.create(namespace, &object).await {
            Ok(_) => Ok(None),
            Err(error) if code(&error) == Some(409) => {
                self.ctx.not_done(&key);
                let found = self.ctx.writer.api::<K>(namespace).get_opt(&name).await;
                let found = found.map_err(|error| Error::api("get", K::KIND, full(), error))?;
                Ok(found.and_then(|found| self.conflict(&found, &object)))
            }
            // The namespace is going, or quota refuses: waiting is not an error, but it is told by the error's message.
            Err(error) => {
                self.ctx.not_done(&key);
                Err(Error::api("create", K::KIND, full(), error))
            }
        }
    }

    /// Ours if its controller owner is the one that we would have set; else it is in the way.
    fn conflict<K: Object>(&self, found: &K, wanted: &K) -> Option<Conflict> {
        let owner = |object: &K| controller_of(object).map(|owner| owner.uid.clone());
        if found.meta().deletion_timestamp.is_some() {
            return Some(Conflict::Passing);
        }
        if owner(found) == owner(wanted) {
            return None;
        }
        let managed = found.labels().get(labels::MANAGED_BY).is_some_and(|by| by == labels::OPERATOR);
        let dead = managed && owner(found).is_some_and(|uid| !self.is_live(&uid));
        if dead {
            return Some(Conflict::Passing);
        }
        let (kind, name) = (K::KIND, found.name_any());
        Some(Conflict::Foreign(format!(
            "the name {name} is needed for a {kind} of this tree, but a {kind} of that name belongs to something else; delete it, or give this task another name"
        )))
    }

    fn is_live(&self, uid: &str) -> bool {
        self.ctx.stores.tasks.state().iter().any(|task| task.uid().as_deref() == Some(uid))
    }

    fn metadata(&self, name: String, depth: usize, owner_name: &str) -> Option<ObjectMeta> {
        let owner = self.seen.tasks.get(owner_name)?;
        Some(ObjectMeta {
            name: Some(name),
            namespace: self.root.namespace(),
            labels: Some(worker::tree_labels(&self.root.name_any(), &self.root.uid()?, self.run, depth, owner_name)),
            owner_references: Some(vec![OwnerReference {
                api_version: CollectTask::api_version(&()).into_owned(),
                kind: CollectTask::kind(&()).into_owned(),
                name: owner_name.to_owned(),
                uid: owner.uid.clone(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        })
    }

    fn task(&self, node: &Node) -> Option<CollectTask> {
        let parent = self.plan.nodes.get(node.parent?)?;
        let part_of =
            PartOf { root: self.root.name_any(), root_uid: self.root.uid()?, run: self.run, path: node.path.clone() };
        let mut task =
            CollectTask::new(&node.name, CollectTaskSpec { part_of: Some(part_of), ..CollectTaskSpec::default() });
        task.metadata = self.metadata(node.name.clone(), node.path.len(), &parent.name)?;
        Some(task)
    }

    /// A shard with its first attempt. None below a task of which this process sees less than it wrote: what is missing may be
    /// folded.
    fn shard(&self, node: &Node, index: i32) -> Option<CollectShard> {
        let task = ObjectRef::new(&node.name).within(&self.root.namespace()?);
        if self.ctx.stores.tasks.get(&task).is_none_or(|task| self.ctx.writer.is_behind(task.as_ref())) {
            return None;
        }
        let items = node.shards.get(usize::try_from(index).ok()?)?.clone();
        let name = names::shard(&node.name, index);
        let spec = CollectShardSpec {
            task: node.name.clone(),
            root_uid: self.root.uid()?,
            run: self.run,
            index,
            slice: Slice { items },
            first_attempt: Some(FirstAttempt {
                authorised_by: self.ctx.me.clone(),
                authorised_at: whole_seconds(clock::now()),
            }),
        };
        let mut shard = CollectShard::new(&name, spec);
        shard.metadata = self.metadata(name, node.path.len(), &node.name)?;
        Some(shard)
    }

    /// Says which shards may start, and wakes those that wait for it.
    fn start(&self, root_uid: &str, starts: std::collections::BTreeSet<String>) {
        let new = self.ctx.set_starts(root_uid, starts);
        if new.is_empty() {
            return;
        }
        let namespace = self.root.namespace().unwrap_or_default();
        for (task, shards) in &self.seen.shards {
            for (index, shard) in shards {
                if new.contains(&shard.uid) && matches!(shard.state, ShardState::Waiting(_)) {
                    self.ctx.wake.shard(&namespace, &names::shard(task, *index));
                }
            }
        }
    }
}

/// Replaces the tree of an older run: it is stopped and gone before planning begins.
async fn replace(ctx: &Context, task: &CollectTask, old: i64, new: i64) -> Result<Action, Error> {
    let uid = task.uid().unwrap_or_default();
    ctx.rest(&uid);
    let token = retry::token(None, task.metadata.annotations.as_ref());
    let status = task.status.clone().unwrap_or_default();
    if status.phase.as_ref().is_some_and(Phase::is_terminal) || status.plan.is_some() {
        let message = format!("the tree of run {old} is removed before run {new} begins; its data and report stay");
        let cleared = core::waiting(
            &core::begun(task, old, token, clock::now()),
            Phase::Pending,
            reason::NEW_RUN,
            &message,
            at(task),
        );
        write(ctx, task, &cleared).await?;
        ctx.tell(task, &Told { warning: false, reason: reason::NEW_RUN.into(), note: message }).await;
        return Ok(Action::requeue(Duration::from_millis(100)));
    }
    if remove(ctx, task, new).await? {
        return Ok(Action::requeue(Duration::from_secs(1)));
    }
    delete_chunks(ctx, task, |chunk_run, _| chunk_run < new).await?;
    prune_reports(ctx, task, &uid).await?;
    info!(task = task.name_any(), run = new, "a new run begins");
    write(ctx, task, &core::begun(task, new, token, clock::now())).await?;
    Ok(Action::requeue(Duration::ZERO))
}

/// Deletes what older runs made; whether something is still there.
async fn remove(ctx: &Context, task: &CollectTask, run: i64) -> Result<bool, Error> {
    let (namespace, uid) = (task.namespace().unwrap_or_default(), &task.uid().unwrap_or_default());
    let mut left = false;
    let tasks = ctx
        .stores
        .tasks
        .state_filter(|child| child.spec.part_of.as_ref().is_some_and(|of| of.root_uid == *uid && of.run < run));
    let shards = ctx.stores.shards.state_filter(|shard| shard.spec.root_uid == *uid && shard.spec.run < run);
    let jobs = ctx.stores.jobs.state_filter(|job| {
        let older = job.labels().get(labels::RUN).and_then(|run| run.parse::<i64>().ok()).is_some_and(|of| of < run);
        older && controller_of(job).is_some_and(|owner| owner.uid == *uid)
    });
    for child in &tasks {
        left |= delete(ctx, &namespace, uid, child.as_ref()).await?;
    }
    for shard in &shards {
        left |= delete(ctx, &namespace, uid, shard.as_ref()).await?;
    }
    for job in &jobs {
        left |= delete(ctx, &namespace, uid, job.as_ref()).await?;
    }
    for older in (run - 3).max(1)..run {
        left |= ctx.stores.pods.any_active_of_run(uid, older);
    }
    Ok(left)
}

/// Deletes an object that the root owns directly; what it owns in turn follows by garbage collection. Always gives back true: it is still there.
async fn delete<K: Object>(ctx: &Context, namespace: &str, root_uid: &str, object: &K) -> Result<bool, Error> {
    let direct = controller_of(object).is_some_and(|owner| owner.uid == root_uid);
    if direct && object.meta().deletion_timestamp.is_none() {
        ctx.writer.delete::<K>(namespace, &object.name_any(), &object.uid().unwrap_or_default()).await?;
    }
    Ok(true)
}

/// Deletes plan chunks of this root that `unwanted` (by run and attempt) says are of no use.
pub async fn delete_chunks(
    ctx: &Context,
    task: &CollectTask,
    unwanted: impl Fn(i64, i32) -> bool,
) -> Result<(), Error> {
    let (namespace, uid) = (task.namespace().unwrap_or_default(), task.uid().unwrap_or_default());
    let selector = ListParams::default().labels(&format!("{}={uid}", labels::ROOT_UID));
    let found = ctx.writer.api::<ConfigMap>(&namespace).list_metadata(&selector).await;
    let found = found.map_err(|error| Error::api("list", "ConfigMap", namespace.clone(), error))?;
    let number =
        |labels: &BTreeMap<String, String>, label: &str| labels.get(label).and_then(|text| text.parse::<i64>().ok());
    for chunk in found {
        let (Some(run), Some(attempt)) = (number(chunk.labels(), labels::RUN), number(chunk.labels(), labels::ATTEMPT))
        else {
            continue;
        };
        let ours = controller_of(&chunk).is_some_and(|owner| owner.uid == uid);
        if ours && unwanted(run, i32::try_from(attempt).unwrap_or(0)) {
            ctx.writer.delete::<ConfigMap>(&namespace, &chunk.name_any(), &chunk.uid().unwrap_or_default()).await?;
        }
    }
    Ok(())
}

/// Keeps the newest reports of a root.
async fn prune_reports(ctx: &Context, task: &CollectTask, uid: &str) -> Result<(), Error> {
    let namespace = task.namespace().unwrap_or_default();
    let mut reports =
        ctx.stores.reports.state_filter(|report| report.spec.task_uid == uid && report.spec.path.is_empty());
    reports.sort_by_key(|report| std::cmp::Reverse(report.spec.run));
    for report in reports.iter().skip(resolve::KEEP_REPORTS - 1) {
        ctx.writer
            .delete::<ValidationReport>(&namespace, &report.name_any(), &report.uid().unwrap_or_default())
            .await?;
    }
    Ok(())
}

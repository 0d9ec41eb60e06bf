//! What a pass over a task needs to know: its line of ancestors, its children, its plan.

use std::{collections::BTreeMap, sync::Arc};

use collect_api::{CollectShard, CollectTask, CollectTaskStatus, ValidationReport};
use collect_core::{
    admit::{ShardSeen, ShardState, TaskSeen, TreeSeen},
    depends::DependencySeen,
    fold::FoldedIndexes,
    names,
    tree::PlanTree,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use crate::{context::Context, error::Error, watch::controller_of};

/// The key of a plan chunk's data in its ConfigMap.
pub const CHUNK_KEY: &str = "plan.ndjson.gz";

/// Deepest tree there can be, with room.
const MAX_DEPTH: usize = 10;

/// The tasks from an object's owner up to the root; nothing where a link is missing or has another uid (I14).
pub fn ancestors(ctx: &Context, object: &impl ResourceExt) -> Option<Vec<Arc<CollectTask>>> {
    let namespace = object.namespace()?;
    let mut owner = controller_of(object).cloned()?;
    let mut line = Vec::new();
    for _ in 0..MAX_DEPTH {
        let task = ctx.stores.tasks.get(&ObjectRef::new(&owner.name).within(&namespace))?;
        if owner.kind != "CollectTask" || task.uid().as_deref() != Some(&owner.uid) {
            return None;
        }
        let above = controller_of(task.as_ref()).filter(|_| task.spec.part_of.is_some()).cloned();
        let is_root = task.spec.part_of.is_none();
        line.push(task);
        if is_root {
            return Some(line);
        }
        owner = above?;
    }
    None
}

/// The direct children of a task.
pub struct Children {
    /// Child tasks.
    pub tasks: Vec<Arc<CollectTask>>,
    /// Shards.
    pub shards: Vec<Arc<CollectShard>>,
    /// Those whose index is folded: they are counted already and only have to go.
    pub folded_tasks: Vec<Arc<CollectTask>>,
    /// The same of shards.
    pub folded_shards: Vec<Arc<CollectShard>>,
}

/// The direct children of a task that are not being deleted, by owner uid. Without the plan no child task counts as folded.
pub fn children(ctx: &Context, task: &CollectTask, plan: Option<&PlanTree>, folded: &FoldedIndexes) -> Children {
    let (namespace, uid) = (task.namespace(), task.uid());
    fn ours<K: ResourceExt>(object: &K, namespace: &Option<String>, uid: &Option<String>) -> bool {
        object.namespace() == *namespace
            && object.meta().deletion_timestamp.is_none()
            && controller_of(object).map(|owner| &owner.uid) == uid.as_ref()
    }
    let (folded_tasks, tasks) = ctx
        .stores
        .tasks
        .state_filter(|child| child.spec.part_of.is_some() && ours(child, &namespace, &uid))
        .into_iter()
        .partition(|child| {
            let place = child.spec.part_of.as_ref().and_then(|part_of| plan?.find(&part_of.path));
            place.is_some_and(|node| folded.tasks.contains(node.position))
        });
    let (folded_shards, shards) = ctx
        .stores
        .shards
        .state_filter(|shard| ours(shard, &namespace, &uid))
        .into_iter()
        .partition(|shard| folded.shards.contains(shard.spec.index));
    Children { tasks, shards, folded_tasks, folded_shards }
}

/// What is folded of a task.
pub fn folded(status: &CollectTaskStatus, name: &str) -> Result<FoldedIndexes, Error> {
    FoldedIndexes::of(status.folded.as_ref()).map_err(|source| Error::Folded { task: name.to_owned(), source })
}

/// What was seen of a task that others depend on.
pub fn dependency(ctx: &Context, namespace: &str, name: &str) -> Option<DependencySeen> {
    let task = ctx.stores.tasks.get(&ObjectRef::new(name).within(namespace))?;
    Some(DependencySeen {
        phase: task.status.as_ref().and_then(|status| status.phase.clone()),
        depends_on: task.spec.depends_on.iter().map(|dependency| dependency.name.clone()).collect(),
    })
}

/// The report about a task's run, if it exists and belongs to the task.
pub fn report(ctx: &Context, task: &CollectTask, run: i64) -> Option<Arc<ValidationReport>> {
    let name = names::report(&task.name_any(), run);
    ctx.stores
        .reports
        .get(&ObjectRef::new(&name).within(&task.namespace()?))
        .filter(|report| Some(&report.spec.task_uid) == task.uid().as_ref() && report.spec.run == run)
}

/// Everything of a run's tree that exists, for admission.
pub fn tree(ctx: &Context, root: &CollectTask, run: i64, now: Timestamp) -> Result<TreeSeen, Error> {
    let (namespace, root_uid) = (root.namespace(), root.uid().unwrap_or_default());
    let mut seen = TreeSeen::default();
    let mut names_by_uid: BTreeMap<String, String> = BTreeMap::new();
    let tasks = ctx.stores.tasks.state_filter(|task| {
        task.namespace() == namespace
            && task.spec.part_of.as_ref().is_some_and(|part_of| part_of.root_uid == root_uid && part_of.run == run)
    });
    for task in tasks.iter().map(Arc::as_ref).chain([root]) {
        let uid = task.uid().unwrap_or_default();
        names_by_uid.insert(uid.clone(), task.name_any());
        if let Some(status) = &task.status {
            seen.folded.insert(task.name_any(), folded(status, &task.name_any())?);
        }
        seen.tasks.insert(
            task.name_any(),
            TaskSeen {
                uid,
                phase: task.status.as_ref().and_then(|status| status.phase.clone()),
                desired: task.spec.desired_state,
                parallelism: task.spec.parallelism,
                deleting: task.metadata.deletion_timestamp.is_some(),
            },
        );
    }
    let shards = ctx.stores.shards.state_filter(|shard| {
        shard.spec.root_uid == root_uid && shard.spec.run == run && shard.namespace() == namespace
    });
    for shard in shards {
        let Some(task) = controller_of(shard.as_ref()).and_then(|owner| names_by_uid.get(&owner.uid)) else { continue };
        let seen_shard = ShardSeen { uid: shard.uid().unwrap_or_default(), state: ShardState::of(&shard, now) };
        seen.shards.entry(task.clone()).or_default().insert(shard.spec.index, seen_shard);
    }
    Ok(seen)
}

/// Reads the chunks of a plan with quorum reads; nothing where one is missing.
pub async fn chunks(
    ctx: &Context,
    root: &CollectTask,
    run: i64,
    attempt: i32,
    count: i32,
) -> Result<Option<Vec<Vec<u8>>>, Error> {
    let (namespace, name, uid) =
        (root.namespace().unwrap_or_default(), root.name_any(), root.uid().unwrap_or_default());
    let mut chunks = Vec::new();
    for index in 0..count {
        let chunk = names::plan_chunk(&name, &uid, run, attempt, index);
        let found = ctx
            .writer
            .api::<ConfigMap>(&namespace)
            .get_opt(&chunk)
            .await
            .map_err(|error| Error::api("get", "ConfigMap", format!("{namespace}/{chunk}"), error))?;
        let data = found
            .filter(|map| controller_of(map).is_some_and(|owner| owner.uid == uid))
            .and_then(|map| map.binary_data)
            .and_then(|mut data| data.remove(CHUNK_KEY));
        match data {
            Some(data) => chunks.push(data.0),
            None => return Ok(None),
        }
    }
    Ok(Some(chunks))
}

/// The sealed plan of a root's run; nothing where it is not sealed or its chunks are gone.
pub async fn plan(ctx: &Context, root: &CollectTask) -> Result<Option<Arc<PlanTree>>, Error> {
    let Some(status) = &root.status else { return Ok(None) };
    let Some((plan, run)) = status.plan.as_ref().zip(status.run) else { return Ok(None) };
    let Some((sealed, result)) = plan.sealed.zip(plan.result.as_ref()) else { return Ok(None) };
    let uid = root.uid().unwrap_or_default();
    if let Some(tree) = ctx.plan(&uid, &result.digest) {
        return Ok(Some(tree));
    }
    let Some(chunks) = chunks(ctx, root, run, sealed, result.chunks).await? else { return Ok(None) };
    let tree = PlanTree::read(&root.name_any(), &chunks, &result.digest).map_err(|source| Error::Plan {
        root: format!("{}/{}", root.namespace().unwrap_or_default(), root.name_any()),
        source,
    })?;
    let tree = Arc::new(tree);
    ctx.keep_plan(&uid, tree.clone());
    Ok(Some(tree))
}

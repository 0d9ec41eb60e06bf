//! What every task does once its plan is sealed. Mirrors src/operator/src/task/{mod,node,observe}.rs.

use std::sync::Arc;

use collect_api::{
    CollectShard, CollectTask, CollectTaskStatus, Phase, ValidationReport, ValidationReportSpec,
    ValidationReportStatus,
    condition::reason,
    fold::{Comparison, Folded},
    protocol::CommitResult,
};
use collect_core::{
    fold::{self, Finished, FoldedIndexes},
    halt::{Halt, standing, tolerated},
    names, redrive, report as compare, resolve,
    rollup::{self, Above, Rolled, roll_up},
    straggler::stragglers,
    task::{self as core, Commit, Needs, Progress},
    tell,
    tree::{Node, PlanTree},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use crate::{
    operator::{Answer, CHUNK_KEY, Failure, Operator, reference},
    store::{Stored, is_deleting, owner_of, uid_of},
    world::World,
};

/// Where a task stands in its tree.
pub struct Standing<'a> {
    pub root: &'a CollectTask,
    pub plan: &'a PlanTree,
    pub node: &'a Node,
    pub above: Above,
    pub halt: Option<Halt>,
}

/// How a pass over a node ended.
pub struct NodeEnd {
    pub needs: Needs,
    pub rolled: Rolled,
    /// Whether the status was written, so that what was seen of it is old (I19).
    pub wrote: bool,
}

/// The direct children of a task, and those whose index is folded.
pub struct Children {
    pub tasks: Vec<Arc<CollectTask>>,
    pub shards: Vec<Arc<CollectShard>>,
    folded_tasks: Vec<Arc<CollectTask>>,
    folded_shards: Vec<Arc<CollectShard>>,
}

pub fn run_of(status: Option<&CollectTaskStatus>) -> Option<i64> {
    status.and_then(|status| status.run)
}

pub fn is_over(status: &CollectTaskStatus) -> bool {
    status.phase.as_ref().is_some_and(Phase::is_terminal)
}

/// What is folded of a task.
pub fn folded(status: &CollectTaskStatus) -> FoldedIndexes {
    FoldedIndexes::of(status.folded.as_ref()).unwrap()
}

impl Operator {
    pub fn task_pass(&mut self, world: &mut World, task: &Arc<CollectTask>) -> Answer<()> {
        let uid = uid_of(task.as_ref());
        if is_deleting(task.as_ref()) {
            self.forget(&uid);
            return Ok(());
        }
        if self.is_behind(task.as_ref()) || self.is_held(&uid) {
            return Ok(());
        }
        match &task.spec.part_of {
            None => self.root_pass(world, task),
            Some(_) => self.child_pass(world, task),
        }
    }

    /// A child is valid only below a living parent and at a place that the sealed plan knows.
    fn child_pass(&mut self, world: &mut World, task: &Arc<CollectTask>) -> Answer<()> {
        let Some(part_of) = &task.spec.part_of else { return Ok(()) };
        let Some(line) = self.ancestors(task.as_ref()) else { return self.orphan(world, task) };
        let root = line.last().cloned().unwrap();
        if uid_of(root.as_ref()) != part_of.root_uid {
            return self.stuck(world, task);
        }
        if root.spec.run_number() != part_of.run || run_of(root.status.as_ref()) != Some(part_of.run) {
            return Ok(());
        }
        let Some(plan) = self.plan(world, &root) else { return Ok(()) };
        let Some(node) = plan.find(&part_of.path).filter(|node| node.name == task.name_any()) else {
            return self.stuck(world, task);
        };
        let whole: Vec<_> = [task.clone()].into_iter().chain(line).collect();
        let (above, halt) = standing(&whole);
        let standing = Standing { root: &root, plan: &plan, node, above, halt };
        self.node_pass(world, task, &standing, None).map(drop)
    }

    fn orphan(&mut self, world: &mut World, task: &CollectTask) -> Answer<()> {
        let found = owner_of(task).and_then(|owner| {
            world.store.get::<CollectTask>(&owner.name).filter(|parent| uid_of(parent.as_ref()) == owner.uid)
        });
        if found.is_some() { Ok(()) } else { self.stuck(world, task) }
    }

    fn stuck(&mut self, world: &mut World, task: &CollectTask) -> Answer<()> {
        let status = task.status.clone().unwrap_or_default();
        if is_over(&status) {
            return Ok(());
        }
        let new = core::stuck(&status, reason::ORPHANED, "its parent is gone", self.at(world, task));
        self.write_task(world, task, &new).map(drop)
    }

    /// Writes a task's status if it differs.
    pub fn write_task(
        &mut self,
        world: &mut World,
        task: &CollectTask,
        new: &CollectTaskStatus,
    ) -> Answer<Option<Arc<CollectTask>>> {
        let written = self.write(world, task, new)?;
        if written.is_some() {
            self.progress_written(world, &uid_of(task));
        }
        Ok(written)
    }

    /// The chunks of a plan by quorum reads; nothing where one is missing.
    pub fn chunks(&self, world: &World, root: &CollectTask, run: i64, n: i32, count: i32) -> Option<Vec<Vec<u8>>> {
        let (name, uid) = (root.name_any(), uid_of(root));
        let chunk = |index| {
            let found = world.store.get::<ConfigMap>(&names::plan_chunk(&name, &uid, run, n, index))?;
            owner_of(found.as_ref()).filter(|owner| owner.uid == uid)?;
            Some(found.binary_data.as_ref()?.get(CHUNK_KEY)?.0.clone())
        };
        (0..count).map(chunk).collect()
    }

    /// The sealed plan of a root's run; nothing where it is not sealed or its chunks are gone.
    pub fn plan(&mut self, world: &World, root: &CollectTask) -> Option<Arc<PlanTree>> {
        let (plan, run) = root.status.as_ref().and_then(|status| status.plan.as_ref().zip(status.run))?;
        let (sealed, result) = plan.sealed.zip(plan.result.as_ref())?;
        if let Some(tree) = self.plan_in_memory(&uid_of(root), &result.digest) {
            return Some(tree);
        }
        let chunks = self.chunks(world, root, run, sealed, result.chunks)?;
        let tree = Arc::new(PlanTree::read(&root.name_any(), &chunks, &result.digest).ok()?);
        self.keep_plan(&uid_of(root), tree.clone());
        Some(tree)
    }

    /// The direct children of a task. Without the plan no child task counts as folded.
    fn children(&self, task: &CollectTask, plan: Option<&PlanTree>, folded: &FoldedIndexes) -> Children {
        let uid = uid_of(task);
        let (folded_tasks, tasks) = Self::owned(&self.views.tasks, &uid).into_iter().partition(|child| {
            let place = child.spec.part_of.as_ref().and_then(|part_of| plan?.find(&part_of.path));
            place.is_some_and(|node| folded.tasks.contains(node.position))
        });
        let (folded_shards, shards) = Self::owned(&self.views.shards, &uid)
            .into_iter()
            .partition(|shard: &Arc<CollectShard>| folded.shards.contains(shard.spec.index));
        Children { tasks, shards, folded_tasks, folded_shards }
    }

    /// One pass over a task whose plan is sealed. `commit` is where the commit stands, at a root.
    pub fn node_pass(
        &mut self,
        world: &mut World,
        task: &CollectTask,
        place: &Standing<'_>,
        commit: Option<Commit>,
    ) -> Answer<NodeEnd> {
        let at = self.at(world, task);
        let old = task.status.clone().unwrap_or_default();
        let run = run_of(place.root.status.as_ref()).unwrap_or(1);
        let over = is_over(&old);
        let mut status =
            if old.run == Some(run) { old } else { core::begun(task, run, place.above.token.clone(), at.now) };
        if status.retried != place.above.token && !over {
            status = redrive::unfolded(&status);
        }
        let children = self.children(task, Some(place.plan), &folded(&status));
        self.remove_folded(world, &children);
        let rolled = roll_up(place.node, status.folded.as_ref(), &place.above, &children.tasks, &children.shards);
        if over {
            if !self.redriven(world, task, Some(place.plan), &place.above)?
                && let Some(new) = core::recounted(&status, &rolled)
            {
                self.write_task(world, task, &new)?;
            }
            return Ok(NodeEnd { needs: Needs::Nothing, rolled, wrote: true });
        }
        let comparison = match self.found(world, &status, place, &children, run) {
            Some(found) if rolled.complete => Some(compare_all(place, &status, &found, &rolled, at.now)),
            // A child's report is not in view yet.
            None if rolled.complete => return Ok(NodeEnd { needs: Needs::Nothing, rolled, wrote: false }),
            _ => None,
        };
        let commit = commit.unwrap_or(Commit::NotHere);
        let report = self.report(task, run);
        let seen = Progress {
            rolled: &rolled,
            desired: place.above.desired,
            halt: place.halt.as_ref(),
            tolerated: tolerated(&place.root.spec, rolled.shards.total),
            comparison: comparison.as_ref(),
            commit: commit.clone(),
            report: report
                .filter(|report| {
                    report.status.as_ref().zip(comparison.as_ref()).is_some_and(|(r, c)| compare::tells_of(r, c))
                })
                .map(|report| report.name_any()),
            waiting: rollup::waiting(&children.tasks, &children.shards),
            stragglers: stragglers(&children.shards, |_| None, at.now),
            token: place.above.token.clone(),
        };
        let (mut new, needs) = core::advance(&status, &seen, at);
        if let Some(folded) = self.fold_some(world, place, &new, &children, run) {
            new.folded = Some(folded);
        }
        let wrote = self.settle(world, task, &new)?;
        if needs == Needs::Report
            && let Some(comparison) = comparison.filter(|_| self.report_is_due(world, task, run, &new))
        {
            let artifacts = match &commit {
                Commit::Done(result) => Some(result),
                _ => None,
            };
            self.write_report(world, task, place.root, run, comparison, artifacts)?;
        }
        Ok(NodeEnd { needs, rolled, wrote })
    }

    /// Takes a task that is over up again, if a retry says so here or below.
    pub fn redriven(
        &mut self,
        world: &mut World,
        task: &CollectTask,
        plan: Option<&PlanTree>,
        above: &Above,
    ) -> Answer<bool> {
        let Some(status) = &task.status else { return Ok(false) };
        let children = self.children(task, plan, &folded(status));
        let below = rollup::redrives(status.folded.as_ref(), &children.tasks, &children.shards);
        let Some(redrive) = redrive::is_to_be_redriven(status, below, above) else { return Ok(false) };
        let new = redrive::redriven(status, redrive, above.token.clone(), self.at(world, task));
        self.write_task(world, task, &new).map(|written| written.is_some())
    }

    fn remove_folded(&mut self, world: &mut World, children: &Children) {
        self.remove(world, &children.folded_shards);
        self.remove(world, &children.folded_tasks);
    }

    /// Deletes children that are folded.
    fn remove<K: Stored>(&mut self, world: &mut World, folded: &[Arc<K>]) {
        for object in folded {
            if self.first_time(world, &format!("delete/{}", uid_of(object.as_ref()))) {
                world.check_folded(object.as_ref());
                self.delete(world, object.as_ref());
            }
        }
    }

    /// What is folded once the finished children beyond the history are added.
    fn fold_some(
        &self,
        world: &World,
        place: &Standing<'_>,
        status: &CollectTaskStatus,
        children: &Children,
        run: i64,
    ) -> Option<Folded> {
        let shards = children.shards.iter().filter(|shard| rollup::shard_has_ended(shard, &place.above));
        let tasks = children.tasks.iter().filter_map(|child| {
            let phase = child.status.as_ref()?.phase.as_ref()?;
            if !phase.is_terminal() || rollup::task_is_due(child, phase, &place.above) {
                return None;
            }
            let position = place.plan.find(&child.spec.part_of.as_ref()?.path)?.position;
            // Its report goes with it, so it must be in view first.
            let report = self.child_report(world, child, run)?;
            Some(Finished::Task(position, child.as_ref(), report.map(Box::new)))
        });
        let finished = shards.map(|shard| Finished::Shard(shard.as_ref())).chain(tasks).collect();
        fold::fold(status.folded.as_ref(), finished, resolve::history(&place.root.spec)).unwrap()
    }

    /// Writes a transition at once; progress at most once a second, and only when it moved by a percent or ten seconds passed.
    fn settle(&mut self, world: &mut World, task: &CollectTask, new: &CollectTaskStatus) -> Answer<bool> {
        let old = task.status.clone().unwrap_or_default();
        if let Some(every) = tell::write_after(&old, new)
            && self.progress_is_due(world, &uid_of(task), i64::try_from(every.as_secs()).unwrap_or(i64::MAX))
        {
            return Ok(self.write_task(world, task, new)?.is_some());
        }
        Ok(false)
    }

    /// The report about a task's run, if it exists and belongs to the task.
    fn report(&self, task: &CollectTask, run: i64) -> Option<Arc<ValidationReport>> {
        let report = self.views.reports.objects.get(&names::report(&task.name_any(), run))?;
        Some(report.clone()).filter(|report| report.spec.task_uid == uid_of(task) && report.spec.run == run)
    }

    /// What a child contributes to the comparison: nothing if its report is not in view yet, `None` within if it has none.
    fn child_report(&self, world: &World, child: &CollectTask, run: i64) -> Option<Option<compare::ChildReport>> {
        let seen = self.report(child, run);
        // Only what nobody has any more is given up; what is not in view yet is waited for.
        let exists = world.store.get::<ValidationReport>(&names::report(&child.name_any(), run));
        let is_gone = exists.is_none_or(|report| report.spec.task_uid != uid_of(child));
        compare::of_task(child, seen.as_deref(), is_gone)
    }

    /// What the task's slices and children add up to; nothing while a child's report is not in view.
    fn found(
        &self,
        world: &World,
        status: &CollectTaskStatus,
        place: &Standing<'_>,
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
            if let Some(report) = self.child_report(world, child, run)? {
                compare::add(&mut found, compare::of_child(&report));
            }
        }
        Some(found)
    }

    fn report_is_due(&mut self, world: &World, task: &CollectTask, run: i64, status: &CollectTaskStatus) -> bool {
        let what = format!("report/{run}/{}", status.redrives.unwrap_or(0));
        let written = self.watched_for(world, &uid_of(task), &what, "written").as_secs();
        written == 0 || written >= 3
    }

    /// Writes the report about a task's run: created once, then its status; a retry writes its status anew.
    fn write_report(
        &mut self,
        world: &mut World,
        task: &CollectTask,
        root: &CollectTask,
        run: i64,
        comparison: ValidationReportStatus,
        artifacts: Option<&CommitResult>,
    ) -> Answer<()> {
        let plan = root.status.as_ref().and_then(|status| status.plan.as_ref()).and_then(|plan| plan.result.as_ref());
        let name = names::report(&task.name_any(), run);
        let spec = ValidationReportSpec {
            task: task.name_any(),
            task_uid: uid_of(task),
            root_uid: uid_of(root),
            run,
            plan_digest: plan.map(|plan| plan.digest.clone()).unwrap_or_default(),
            level: resolve::validation_level(&root.spec),
            path: task.spec.part_of.as_ref().map(|part_of| part_of.path.clone()).unwrap_or_default(),
        };
        let mut report = ValidationReport::new(&name, spec);
        report.metadata.owner_references = Some(vec![reference("CollectTask", &task.name_any(), &uid_of(task))]);
        let made = match self.create(world, report) {
            Err(Failure::Taken) => world.store.get::<ValidationReport>(&name).ok_or(Failure::NotFound)?,
            made => made?,
        };
        if made.spec.task_uid != uid_of(task) {
            // The report of an earlier task of the same name is still being deleted.
            return Ok(());
        }
        if !made.status.as_ref().is_some_and(|report| compare::tells_of(report, &comparison)) {
            let status = compare::completed(comparison, artifacts, made.status.as_ref());
            self.write(world, made.as_ref(), &status)?;
        }
        Ok(())
    }
}

fn compare_all(
    place: &Standing<'_>,
    status: &CollectTaskStatus,
    found: &Comparison,
    rolled: &Rolled,
    now: jiff::Timestamp,
) -> ValidationReportStatus {
    let input = compare::Input {
        level: resolve::validation_level(&place.root.spec),
        node: place.node,
        found: found.clone(),
        failed_shards: rolled.shards.failed,
        tolerated: rolled.shards.failed <= tolerated(&place.root.spec, rolled.shards.total),
        round: redrive::round(status, rolled.redrives),
    };
    compare::compare(&input, now)
}

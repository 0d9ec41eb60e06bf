//! A pass over a root: begin a run, plan it, admit its work, commit it. Mirrors src/operator/src/task/root.rs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use collect_api::{
    Attempt, CollectShard, CollectShardSpec, CollectTask, CollectTaskSpec, CollectTaskStatus, DesiredState, Phase,
    ValidationReport,
    condition::reason,
    shard::{FirstAttempt, Slice},
    task::PartOf,
};
use collect_core::{
    admit::{ShardSeen, ShardState, TaskSeen, TreeSeen, admit},
    conditions::whole_seconds,
    halt::{self, standing},
    hooks::{self, HookKind},
    names, resolve, retry,
    rollup::Above,
    task::{self as core, Commit, Needs},
    tree::{Node, PlanTree},
};
use k8s_openapi::api::batch::v1::Job;
use kube::{Resource, ResourceExt};

use crate::{
    jobs::Place,
    nodes::{NodeEnd, Standing, folded, is_over, run_of},
    operator::{Answer, Failure, Operator, reference},
    phases::{Asked, Which},
    store::{Stored, is_deleting, owner_of, uid_of},
    world::World,
};

/// A name that is taken: by something on its way out, or by something that is not ours.
enum InTheWay {
    Passing,
    Foreign,
}

impl Operator {
    pub fn root_pass(&mut self, world: &mut World, task: &Arc<CollectTask>) -> Answer<()> {
        let wanted = task.spec.run_number();
        let (above, halt) = standing(std::slice::from_ref(task));
        let run = match run_of(task.status.as_ref()) {
            None => {
                let new = core::begun(task, wanted, above.token, self.clock(world));
                return self.write_task(world, task, &new).map(drop);
            }
            Some(run) if run < wanted => return self.replace(world, task, run, wanted),
            Some(run) => run,
        };
        self.sweep_root(world, task, run);
        let status = task.status.clone().unwrap_or_default();
        let asked = Asked { desired: above.desired, halt: halt.clone() };
        if is_over(&status) {
            return self.over(world, task, run, &above);
        }
        if self.stopwatch(world, task, &status, above.desired)? {
            return Ok(());
        }
        let sealed = status.plan.as_ref().is_some_and(|plan| plan.sealed.is_some());
        match self.plan(world, task) {
            Some(plan) => {
                let node = plan.root().unwrap();
                let place = Standing { root: task, plan: &plan, node, above, halt };
                self.run_tree(world, task, &place, run, &asked)
            }
            None if sealed => self.unseal(world, task),
            None => match hooks::due(task) {
                Some(HookKind::BeforeStart) => {
                    self.phase_step(world, task, run, &asked, Which::Hook(HookKind::BeforeStart))
                }
                _ => self.phase_step(world, task, run, &asked, Which::Plan),
            },
        }
    }

    /// A root that is over: a retry takes it up again, or a hook tells of its end.
    fn over(&mut self, world: &mut World, task: &CollectTask, run: i64, above: &Above) -> Answer<()> {
        // Children that were folded by the very write that ended it have to go, and what did not end well goes on counting.
        if let Some(plan) = self.plan(world, task) {
            let before = world.store.version;
            let node = plan.root().unwrap();
            let place = Standing { root: task, plan: &plan, node, above: above.clone(), halt: None };
            self.node_pass(world, task, &place, None)?;
            if world.store.version != before {
                return Ok(());
            }
        } else if self.redriven(world, task, None, above)? {
            return Ok(());
        }
        self.set_starts(&uid_of(task), Default::default());
        let commit = task.status.as_ref().and_then(|status| status.commit.as_ref());
        if commit.and_then(|commit| commit.attempts.last()).is_some_and(Attempt::is_live) {
            // The plan was lost and the task cancelled while the commit was under way.
            return self.stop_commit(world, task, run);
        }
        match hooks::due(task) {
            Some(kind) => {
                let asked = Asked { desired: DesiredState::Running, halt: None };
                self.phase_step(world, task, run, &asked, Which::Hook(kind))
            }
            None => Ok(()),
        }
    }

    /// Counts the time that a run is worked on; whether a step of it was written.
    fn stopwatch(
        &mut self,
        world: &mut World,
        task: &CollectTask,
        status: &CollectTaskStatus,
        desired: DesiredState,
    ) -> Answer<bool> {
        if task.spec.deadline.is_none() {
            return Ok(false);
        }
        let known = Duration::from_secs(status.elapsed_seconds.unwrap_or(0).unsigned_abs());
        let what = format!("{:?}/{:?}", status.run, status.redrives);
        let active = desired == DesiredState::Running && status.plan.is_some();
        let elapsed = self.elapsed(world, &uid_of(task), &what, known, active);
        let seconds = halt::elapsed_seconds(&task.spec, elapsed).max(status.elapsed_seconds);
        if seconds == status.elapsed_seconds {
            return Ok(false);
        }
        self.write_task(world, task, &CollectTaskStatus { elapsed_seconds: seconds, ..status.clone() })?;
        Ok(true)
    }

    /// Admits work, rolls up, and commits when everything is over.
    fn run_tree(
        &mut self,
        world: &mut World,
        task: &Arc<CollectTask>,
        place: &Standing<'_>,
        run: i64,
        asked: &Asked,
    ) -> Answer<()> {
        let uid = uid_of(task.as_ref());
        let seen = self.tree(world, task, run);
        if place.halt.is_none() {
            let worked_for = self.watched_for(world, &uid, "worked", &run.to_string());
            let admission = admit(place.plan, &seen, resolve::root_parallelism(&task.spec), worked_for);
            let tree = Tree { root: task, plan: place.plan, seen: &seen, run };
            let mut in_the_way = None;
            for node in admission.tasks.iter().filter_map(|node| place.plan.nodes.get(*node)) {
                in_the_way = in_the_way.or(tree.task(node).map(|child| self.put(world, child)).transpose()?.flatten());
            }
            for new in &admission.shards {
                let node = place.plan.nodes.get(new.node).filter(|node| !self.is_behind_task(&node.name));
                let shard = node.and_then(|node| tree.shard(node, new.index, self.first_attempt(world)));
                let Some(shard) = shard else { continue };
                if let Some(seen) = self.observe(&shard) {
                    world.check_start(&seen.above, &Place::of_shard(&shard), 1);
                }
                in_the_way = in_the_way.or(self.put(world, shard)?);
            }
            if let Some(InTheWay::Foreign) = in_the_way {
                let status = task.status.clone().unwrap_or_default();
                let at = self.at(world, task.as_ref());
                let new = core::stuck(&status, reason::NAME_CONFLICT, "a name is taken", at);
                return self.write_task(world, task, &new).map(drop);
            }
            self.set_starts(&uid, admission.starts);
        } else {
            self.set_starts(&uid, Default::default());
        }
        let commit = Commit::of(task, self.clock(world));
        let NodeEnd { needs, rolled, wrote } = self.node_pass(world, task, place, Some(commit))?;
        if needs == Needs::Commit && !wrote {
            // A pause does not hold it back: nothing is collected any more.
            let desired = if asked.desired == DesiredState::Paused { DesiredState::Running } else { asked.desired };
            let asked = Asked { desired, halt: asked.halt.clone() };
            let slices = i64::from(rolled.shards.succeeded);
            let which = Which::Commit { slices, records: rolled.records.collected };
            return self.phase_step(world, task, run, &asked, which);
        }
        if needs == Needs::CommitToLeave && !wrote {
            return self.stop_commit(world, task, run);
        }
        Ok(())
    }

    /// Creates an object of the tree; what is in its way, if its name is taken.
    fn put<K: Stored>(&mut self, world: &mut World, object: K) -> Answer<Option<InTheWay>> {
        let (name, owner) = (object.name_any(), owner_of(&object).unwrap().uid.clone());
        let key = format!("create/{owner}/{name}");
        if !self.first_time(world, &key) {
            return Ok(Some(InTheWay::Passing));
        }
        match self.create(world, object) {
            Ok(_) => Ok(None),
            Err(Failure::Taken) => {
                self.not_done(&key);
                let Some(found) = world.store.get::<K>(&name) else { return Ok(None) };
                let owned_by = owner_of(found.as_ref()).map(|owner| owner.uid.clone());
                let live = |uid: &String| self.views.tasks.objects.values().any(|task| uid_of(task.as_ref()) == *uid);
                Ok(match owned_by {
                    _ if is_deleting(found.as_ref()) => Some(InTheWay::Passing),
                    Some(uid) if uid == owner => None,
                    Some(uid) if !live(&uid) => Some(InTheWay::Passing),
                    _ => Some(InTheWay::Foreign),
                })
            }
            Err(failure) => {
                self.not_done(&key);
                Err(failure)
            }
        }
    }

    /// Everything of a run's tree that exists, for admission.
    fn tree(&self, world: &World, root: &Arc<CollectTask>, run: i64) -> TreeSeen {
        let root_uid = uid_of(root.as_ref());
        let mut seen = TreeSeen::default();
        let mut names_by_uid: BTreeMap<String, String> = BTreeMap::new();
        let ours = |task: &&Arc<CollectTask>| {
            task.spec.part_of.as_ref().is_some_and(|of| of.root_uid == root_uid && of.run == run)
        };
        for task in self.views.tasks.objects.values().filter(ours).chain([root]) {
            names_by_uid.insert(uid_of(task.as_ref()), task.name_any());
            if let Some(status) = &task.status {
                seen.folded.insert(task.name_any(), folded(status));
            }
            seen.tasks.insert(
                task.name_any(),
                TaskSeen {
                    uid: uid_of(task.as_ref()),
                    phase: task.status.as_ref().and_then(|status| status.phase.clone()),
                    desired: task.spec.desired_state,
                    parallelism: task.spec.parallelism,
                    deleting: is_deleting(task.as_ref()),
                },
            );
        }
        for shard in self.views.shards.objects.values().filter(|shard| shard.spec.root_uid == root_uid) {
            let task = owner_of(shard.as_ref()).and_then(|owner| names_by_uid.get(&owner.uid));
            let Some(task) = task.filter(|_| shard.spec.run == run) else { continue };
            let state = ShardState::of(shard, self.clock(world));
            let seen_shard = ShardSeen { uid: uid_of(shard.as_ref()), state };
            seen.shards.entry(task.clone()).or_default().insert(shard.spec.index, seen_shard);
        }
        seen
    }

    /// Replaces the tree of an older run: it is stopped and gone before planning begins.
    fn replace(&mut self, world: &mut World, task: &CollectTask, old: i64, new: i64) -> Answer<()> {
        let uid = uid_of(task);
        self.rest(&uid);
        let token = retry::token(None, task.metadata.annotations.as_ref());
        let status = task.status.clone().unwrap_or_default();
        let at = self.at(world, task);
        if is_over(&status) || status.plan.is_some() {
            let begun = core::begun(task, old, token, at.now);
            let message = "the tree of the old run is removed before the new one begins";
            let cleared = core::waiting(&begun, Phase::Pending, reason::NEW_RUN, message, at);
            return self.write_task(world, task, &cleared).map(drop);
        }
        if self.remove_older(world, &uid, new) {
            return Ok(());
        }
        world.delete_chunks(&uid, |run, _| run < new);
        self.prune_reports(world, &uid);
        self.write_task(world, task, &core::begun(task, new, token, at.now)).map(drop)
    }

    /// Deletes what older runs made; whether something is still there.
    fn remove_older(&mut self, world: &mut World, uid: &str, run: i64) -> bool {
        let older = |of: &PartOf| of.root_uid == uid && of.run < run;
        let tasks: Vec<_> = self.views.tasks.objects.values().cloned().collect();
        let tasks: Vec<_> = tasks.into_iter().filter(|task| task.spec.part_of.as_ref().is_some_and(older)).collect();
        let shards = self.views.shards.objects.values().cloned();
        let shards: Vec<_> = shards.filter(|shard| shard.spec.root_uid == uid && shard.spec.run < run).collect();
        let of_run = |job: &Job| job.labels().get(collect_api::labels::RUN).and_then(|run| run.parse::<i64>().ok());
        let ours = |job: &Job| owner_of(job).is_some_and(|owner| owner.uid == uid);
        let jobs = self.views.jobs.objects.values().cloned();
        let jobs: Vec<_> = jobs.filter(|job| of_run(job).is_some_and(|of| of < run) && ours(job)).collect();
        tasks.iter().for_each(|task| self.delete_direct(world, uid, task.as_ref()));
        shards.iter().for_each(|shard| self.delete_direct(world, uid, shard.as_ref()));
        jobs.iter().for_each(|job| self.delete_direct(world, uid, job.as_ref()));
        let pods = ((run - 3).max(1)..run).any(|older| self.any_active_of_run(uid, older));
        pods || !tasks.is_empty() || !shards.is_empty() || !jobs.is_empty()
    }

    /// Deletes an object that the root owns directly; what it owns in turn follows by garbage collection.
    fn delete_direct<K: Stored>(&mut self, world: &mut World, root_uid: &str, object: &K) {
        if owner_of(object).is_some_and(|owner| owner.uid == root_uid) && !is_deleting(object) {
            self.delete(world, object);
        }
    }

    /// Whether this process sees less of a task than it wrote: what is missing below may be folded.
    fn is_behind_task(&self, name: &str) -> bool {
        self.views.tasks.objects.get(name).is_none_or(|task| self.is_behind(task.as_ref()))
    }

    fn first_attempt(&self, world: &World) -> FirstAttempt {
        FirstAttempt { authorised_by: self.me.clone(), authorised_at: whole_seconds(self.clock(world)) }
    }

    fn prune_reports(&mut self, world: &mut World, uid: &str) {
        let mut reports: Vec<Arc<ValidationReport>> = self.views.reports.objects.values().cloned().collect();
        reports.retain(|report| report.spec.task_uid == uid && report.spec.path.is_empty());
        reports.sort_by_key(|report| std::cmp::Reverse(report.spec.run));
        for report in reports.iter().skip(resolve::KEEP_REPORTS - 1) {
            self.delete(world, report.as_ref());
        }
    }
}

struct Tree<'a> {
    root: &'a CollectTask,
    plan: &'a PlanTree,
    seen: &'a TreeSeen,
    run: i64,
}

impl Tree<'_> {
    fn owned<K: Resource>(&self, mut object: K, owner: &str) -> Option<K> {
        let uid = &self.seen.tasks.get(owner)?.uid;
        object.meta_mut().owner_references = Some(vec![reference("CollectTask", owner, uid)]);
        Some(object)
    }

    fn task(&self, node: &Node) -> Option<CollectTask> {
        let parent = self.plan.nodes.get(node.parent?)?;
        let part_of =
            PartOf { root: self.root.name_any(), root_uid: uid_of(self.root), run: self.run, path: node.path.clone() };
        let spec = CollectTaskSpec { part_of: Some(part_of), ..CollectTaskSpec::default() };
        self.owned(CollectTask::new(&node.name, spec), &parent.name)
    }

    fn shard(&self, node: &Node, index: i32, first_attempt: FirstAttempt) -> Option<CollectShard> {
        let items = node.shards.get(usize::try_from(index).ok()?)?.clone();
        let spec = CollectShardSpec {
            task: node.name.clone(),
            root_uid: uid_of(self.root),
            run: self.run,
            index,
            slice: Slice { items },
            first_attempt: Some(first_attempt),
        };
        let mut shard = CollectShard::new(&names::shard(&node.name, index), spec);
        // As everybody does who reads it.
        shard.enter_first_attempt();
        self.owned(shard, &node.name)
    }
}

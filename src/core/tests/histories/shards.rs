//! A pass over a shard. Mirrors src/operator/src/shard/.

use std::sync::Arc;

use collect_api::{CollectShard, CollectShardStatus, CollectTask, shard::ShardPhase};
use collect_core::{
    attempts::Entries,
    conditions::At,
    halt::standing,
    ledger::{self, Seen, Step},
    observed::Signs,
    resolve::{RetryPolicy, TimeLimits},
    retry,
    rollup::{self, Above},
    shard as core,
};
use kube::Resource;

use crate::{
    cluster::Work,
    jobs::{NewJob, Place},
    operator::{Answer, Operator, reference},
    sink::SliceId,
    store::{is_deleting, owner_of, uid_of},
    world::World,
};

/// The tree above a shard.
pub struct Observed {
    pub path: Vec<String>,
    pub above: Above,
    pub token: Option<String>,
    pub policy: RetryPolicy,
    pub limits: TimeLimits,
}

/// Records that the plan expects of a shard.
pub fn expected(shard: &CollectShard) -> Option<i64> {
    shard.spec.slice.items.iter().map(|item| item.records).sum()
}

impl Operator {
    /// The tasks from an object's owner up to the root; nothing where a link is missing or has another uid (I14).
    pub fn ancestors<K: Resource<DynamicType = ()>>(&self, object: &K) -> Option<Vec<Arc<CollectTask>>> {
        let mut owner = owner_of(object).cloned()?;
        let mut line = Vec::new();
        for _ in 0..10 {
            let task = self.views.tasks.objects.get(&owner.name)?.clone();
            if uid_of(task.as_ref()) != owner.uid {
                return None;
            }
            let above = owner_of(task.as_ref()).filter(|_| task.spec.part_of.is_some()).cloned();
            let is_root = task.spec.part_of.is_none();
            line.push(task);
            if is_root {
                return Some(line);
            }
            owner = above?;
        }
        None
    }

    /// Looks up the tree; nothing where a link is missing, being deleted, or of another run.
    pub fn observe(&self, shard: &CollectShard) -> Option<Observed> {
        let line = self.ancestors(shard)?;
        let root = line.last()?.clone();
        let current = uid_of(root.as_ref()) == shard.spec.root_uid && root.spec.run_number() == shard.spec.run;
        if !current || line.iter().any(|task| is_deleting(task.as_ref())) {
            return None;
        }
        let (above, _) = standing(&line);
        let path = line.first()?.spec.part_of.iter().flat_map(|part_of| &part_of.path);
        Some(Observed {
            path: path.map(|step| step.value.clone()).collect(),
            token: retry::token(above.token.as_deref(), shard.metadata.annotations.as_ref()),
            above,
            policy: RetryPolicy::of(root.spec.retry.as_ref()),
            limits: TimeLimits::of(&root.spec),
        })
    }

    pub fn shard_pass(&mut self, world: &mut World, shard: &CollectShard) -> Answer<()> {
        let uid = uid_of(shard);
        if is_deleting(shard) {
            self.forget(&uid);
            return Ok(());
        }
        if self.is_behind(shard) || self.is_held(&uid) {
            return Ok(());
        }
        // Its task or root is not in view, or going: nothing starts below them (I2).
        let Some(seen) = self.observe(shard) else { return Ok(()) };
        let place = Place::of_shard(shard);
        let status = shard.status.clone().unwrap_or_default();
        self.sweep(world, &place, Entries::of_shard(&status));
        let at = self.at(world, shard);
        if rollup::shard_is_due(shard, &seen.above) {
            let new = core::redriven(&status, seen.token.as_deref(), at);
            return self.write(world, shard, &new).map(drop);
        }
        if status.phase.as_ref().is_some_and(ShardPhase::is_terminal) {
            return Ok(());
        }
        self.ledger_step(world, shard, &seen, &place, &status, at)
    }

    fn ledger_step(
        &mut self,
        world: &mut World,
        shard: &CollectShard,
        seen: &Observed,
        place: &Place,
        status: &CollectShardStatus,
        at: At,
    ) -> Answer<()> {
        let (worker, watched) = self.see(world, place, &status.attempts, Some(Signs::of_shard(status)));
        let me = self.me.clone();
        let entries = Entries::of_shard(status);
        let mut view = Seen {
            me: &me,
            desired: seen.above.desired,
            admitted: self.may_start(&shard.spec.root_uid, &place.owner_uid),
            worker,
            post: self.post_of(world, place, entries.last()),
            watched,
            limits: seen.limits,
        };
        let mut step = ledger::decide(entries, &seen.policy, &view, at.now);
        if step == Step::Look {
            view.worker = self.look(world, place, entries.last_number());
            step = ledger::decide(entries, &seen.policy, &view, at.now);
        }
        match step {
            Step::Look => {}
            Step::Authorise(n) => {
                world.check_start(&seen.above, place, n);
                let new = core::authorised(status, &seen.policy, &self.me, at);
                if let Some(written) = self.write(world, shard, &new)? {
                    self.create_shard_worker(world, &written, seen, place, n);
                }
            }
            Step::Create(n) => {
                world.check_start(&seen.above, place, n);
                self.create_shard_worker(world, shard, seen, place, n);
            }
            Step::Stop(n) => self.stop(world, place, n),
            Step::Record(n, end) => {
                let recording = core::Recording {
                    uid: &place.owner_uid,
                    expected: expected(shard),
                    policy: &seen.policy,
                    token: seen.token.as_deref(),
                };
                let new = core::recorded(status, n, &end, &recording, at);
                self.write(world, shard, &new)?;
            }
            Step::Finish(finish) => {
                let new = core::finished(status, &finish, seen.token.as_deref(), at);
                self.write(world, shard, &new)?;
            }
            Step::Wait { why, .. } => {
                let new = core::waiting(status, why.as_ref(), watched, seen.above.desired, at.generation);
                if let Some(new) = new {
                    self.write(world, shard, &new)?;
                }
            }
        }
        Ok(())
    }

    fn create_shard_worker(&mut self, world: &mut World, shard: &CollectShard, seen: &Observed, place: &Place, n: i32) {
        let slice = SliceId {
            root_uid: shard.spec.root_uid.clone(),
            run: shard.spec.run,
            path: seen.path.clone(),
            index: shard.spec.index,
        };
        let records = world.setup.records(&seen.path, shard.spec.index);
        let checkpoint = shard.status.as_ref().and_then(|status| status.checkpoint.clone());
        let job = NewJob {
            name: place.job(n),
            owner: reference("CollectShard", &place.owner, &place.owner_uid),
            root_uid: shard.spec.root_uid.clone(),
            work: place.work.into(),
            run: place.run,
            n,
            task: Work::Collect { slice, records, checkpoint },
            by: self.me.clone(),
        };
        self.create_worker(world, job);
    }
}

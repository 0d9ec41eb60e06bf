//! Plays a history, and asks at its end whether everything came to a good one.

use std::sync::{Arc, OnceLock};

use collect_api::{Attempt, CollectShard, CollectTask, DesiredState, Phase};
use collect_core::{halt::standing, retry, rollup::roll_up, tree::PlanTree};
use kube::ResourceExt;
use serde_json::to_value;

use crate::{
    cluster,
    events::{Ending, Event, History},
    operator::Operator,
    schema::{Schemas, misfit},
    setup::ROOT,
    store::uid_of,
    world::World,
};

/// Steps after which everything must have come to rest.
const LONGEST: usize = 3000;
/// Seconds between two looks while nothing happens.
const PATIENCE: [i64; 12] = [1, 1, 2, 5, 10, 30, 60, 300, 900, 4000, 30_000, 100_000];

struct Simulation {
    world: World,
    operators: Vec<Operator>,
}

/// Plays a history; what broke, if anything did.
pub fn run(history: &History) -> Result<(), String> {
    let mut world = World::new(&history.setup);
    let operators = (0..history.setup.operators).map(|_| Operator::new(world.next_operator())).collect();
    let mut simulation = Simulation { world, operators };
    for (at, event) in history.events.iter().enumerate() {
        simulation.happen(event);
        simulation.verdict().map_err(|broken| format!("event {at}, {event:?}: {broken}"))?;
    }
    simulation.end(history.ending).map_err(|broken| format!("at the end: {broken}"))
}

impl Simulation {
    fn verdict(&mut self) -> Result<(), String> {
        self.world.book.broken.first().map_or(Ok(()), |broken| Err(broken.clone()))
    }

    fn happen(&mut self, event: &Event) {
        let operators = self.operators.len();
        let who = |pick: u8| usize::from(pick) % operators;
        let (world, all) = (&mut self.world, &mut self.operators);
        match *event {
            Event::Run(seconds) => (0..seconds).for_each(|_| self.tick(1)),
            Event::Pass(pick, object) => all[who(pick)].pass_any(world, usize::from(object)),
            Event::Round(pick) => all[who(pick)].round(world),
            Event::Deliver(pick, kind, changes) => all[who(pick)].deliver(world, kind, usize::from(changes)),
            Event::CatchUp(pick) => {
                all[who(pick)].deliver_all(world);
                all[who(pick)].round(world);
            }
            Event::Relist(pick, kind, behind) => all[who(pick)].relist(world, kind, usize::from(behind)),
            Event::Restart(pick, behind) => all[who(pick)].restart(world, usize::from(behind)),
            Event::Fault(pick, fault) => all[who(pick)].faults.push_back(fault),
            Event::HoldCreates(pick) => all[who(pick)].holds = true,
            Event::ReleaseCreates(pick) => {
                world.arrive();
                all[who(pick)].holds = false;
                for job in std::mem::take(&mut all[who(pick)].held) {
                    all[who(pick)].send(world, &job);
                }
            }
            Event::ClockStep(pick, seconds) => all[who(pick)].offset += i64::from(seconds),
            Event::Wait(seconds) => world.now += i64::from(seconds),
            Event::Cluster => cluster::step(world, all, true),
            Event::Control => cluster::step(world, all, false),
            Event::Worker(pick, fate) => {
                let alive: Vec<usize> = (0..world.workers.len()).filter(|at| world.workers[*at].alive).collect();
                if !alive.is_empty() {
                    cluster::meet(world, all, alive[usize::from(pick) % alive.len()], fate);
                }
            }
            _ => drop(world.verb(event)),
        }
    }

    /// Some time in which everything works as it should.
    fn tick(&mut self, seconds: i64) {
        self.world.now += seconds;
        for operator in &mut self.operators {
            operator.deliver_all(&self.world);
            operator.round(&mut self.world);
        }
        cluster::step(&mut self.world, &mut self.operators, true);
    }

    /// Lets everything run until nothing is written any more (I22), however long one waits.
    fn settle(&mut self) -> Result<(), String> {
        let mut quiet = 0;
        for _ in 0..LONGEST {
            let Some(seconds) = PATIENCE.get(quiet) else { return Ok(()) };
            let before = self.world.store.version;
            self.tick(*seconds);
            self.verdict()?;
            quiet = if self.world.store.version == before { quiet + 1 } else { 0 };
        }
        Err(format!(
            "I22: it never comes to rest; the root: {:?}",
            self.world.root().and_then(|root| root.status.clone())
        ))
    }

    fn phase(&self) -> Option<Phase> {
        self.world.root()?.status.as_ref()?.phase.clone()
    }

    fn end(&mut self, ending: Ending) -> Result<(), String> {
        self.world.heal(&mut self.operators);
        match ending {
            Ending::Finish => {}
            Ending::Pause => {
                self.world.desire(ROOT, DesiredState::Paused);
                (0..30).for_each(|_| self.tick(4));
                self.verdict()?;
                self.nothing_runs("I12", &["collect", "plan"])?;
                self.world.desire(ROOT, DesiredState::Running);
            }
            Ending::Cancel => self.cancel()?,
            Ending::DeleteRoot => return self.delete_root(),
        }
        self.finish()
    }

    /// I13: in the end no worker runs, and the phase is Cancelled unless it was over or committed before.
    fn cancel(&mut self) -> Result<(), String> {
        self.world.desire(ROOT, DesiredState::Cancelled);
        self.settle()?;
        self.nothing_runs("I13", &[])?;
        self.at_rest()?;
        if !self.phase().is_some_and(|phase| phase.is_terminal()) {
            return Err(format!("I13: the root is {:?}", self.phase()));
        }
        self.world.desire(ROOT, DesiredState::Running);
        Ok(())
    }

    /// I15: nothing of the tree is left, and nobody waits for us.
    fn delete_root(&mut self) -> Result<(), String> {
        self.world.store.delete::<CollectTask>(ROOT);
        self.settle()?;
        let store = &self.world.store;
        let left = [
            store.tasks.live.len(),
            store.shards.live.len(),
            store.reports.live.len(),
            store.jobs.live.len(),
            store.pods.live.len(),
            store.chunks.live.len(),
        ];
        if left != [0; 6] {
            return Err(format!("I15: tasks, shards, reports, Jobs, pods and chunks are left: {left:?}"));
        }
        self.nothing_runs("I15", &[])
    }

    /// Everything is left to run, then retried once: in the end everything is collected exactly once.
    fn finish(&mut self) -> Result<(), String> {
        self.come_to_rest()?;
        if self.world.root().and_then(|root| root.status.clone()).is_some_and(|status| retry::is_retriable(&status)) {
            self.world.retry::<CollectTask>(ROOT);
            self.come_to_rest()?;
        }
        match self.phase() {
            Some(Phase::Succeeded | Phase::Collected) if self.is_whole() => Ok(()),
            phase => {
                let status = self.world.root().unwrap().status.clone().unwrap_or_default();
                let what = (phase, status.message, status.shards, status.tasks, status.records);
                Err(format!("liveness: it ends as {what:?}"))
            }
        }
    }

    /// I18: every status keeps to the bounds of its schema.
    fn fits(&self) -> Result<(), String> {
        static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
        let (schemas, store) = (SCHEMAS.get_or_init(Schemas::new), &self.world.store);
        let tasks = store.tasks.live.values().map(|task| (&schemas.task, to_value(&task.status).unwrap()));
        let shards = store.shards.live.values().map(|shard| (&schemas.shard, to_value(&shard.status).unwrap()));
        let reports = store.reports.live.values().map(|report| (&schemas.report, to_value(&report.status).unwrap()));
        let mut all = tasks.chain(shards).chain(reports).filter(|(_, status)| !status.is_null());
        all.find_map(|(schema, status)| misfit(&status, schema, "status"))
            .map_or(Ok(()), |at| Err(format!("I18: {at}")))
    }

    fn come_to_rest(&mut self) -> Result<(), String> {
        self.settle()?;
        self.at_rest()?;
        self.fits()?;
        self.nothing_runs("liveness", &[])
    }

    fn is_whole(&self) -> bool {
        let root = self.world.root().unwrap();
        let records = root.status.as_ref().and_then(|status| status.records.clone()).unwrap_or_default();
        usize::try_from(records.collected) == Ok(self.world.setup.all_records().len())
    }

    fn nothing_runs(&self, invariant: &str, works: &[&str]) -> Result<(), String> {
        let runs = |work: &str| works.is_empty() || works.contains(&work);
        match self.world.workers.iter().find(|worker| worker.runs() && runs(&worker.work)) {
            Some(worker) => Err(format!("{invariant}: {} still runs", worker.pod)),
            None => Ok(()),
        }
    }

    /// At rest the counts of each task equal the fold over what is really there (I10), and no attempt is live.
    fn at_rest(&mut self) -> Result<(), String> {
        let root = self.world.root().ok_or("there is no root")?;
        let plan = PlanTree::read(ROOT, &[self.world.setup.plan()], "").map_err(|error| error.to_string())?;
        let store = &self.world.store;
        for shard in store.shards.live.values() {
            if shard.status.as_ref().and_then(|status| status.attempts.last()).is_some_and(Attempt::is_live) {
                return Err(format!("liveness: {} has a live attempt", shard.name_any()));
            }
        }
        let status = root.status.clone().unwrap_or_default();
        let attempts = status.plan.iter().flat_map(|plan| &plan.attempts);
        let attempts = attempts.chain(status.commit.iter().flat_map(|commit| &commit.attempts));
        if attempts.into_iter().any(Attempt::is_live) {
            return Err("liveness: the root has a live attempt".into());
        }
        let plan_status = root.status.as_ref().and_then(|status| status.plan.as_ref());
        if plan_status.is_none_or(|plan| plan.sealed.is_none()) || store.chunks.live.is_empty() {
            // Where the plan was deleted while the task was over, nobody knows what the tree should be until it is retried.
            return Ok(());
        }
        for task in store.tasks.live.values() {
            let status = task.status.clone().unwrap_or_default();
            let path = task.spec.part_of.as_ref().map(|part_of| part_of.path.clone()).unwrap_or_default();
            let node = plan.find(&path).ok_or("not in the plan")?;
            let uid = uid_of(task.as_ref());
            let line: Vec<Arc<CollectTask>> = if task.name_any() == root.name_any() {
                vec![root.clone()]
            } else {
                self.operators[0]
                    .ancestors(task.as_ref())
                    .map(|line| [task.clone()].into_iter().chain(line).collect())
                    .unwrap_or_default()
            };
            let (above, _) = standing(&line);
            let folded = crate::nodes::folded(&status);
            let (mut tasks, mut shards) = (of_owner(&store.tasks.live, &uid), of_owner(&store.shards.live, &uid));
            let found = (tasks.len(), shards.len());
            tasks.retain(|child| {
                let place = child.spec.part_of.as_ref().and_then(|part_of| plan.find(&part_of.path));
                place.is_some_and(|place| !folded.tasks.contains(place.position))
            });
            shards.retain(|shard: &Arc<CollectShard>| !folded.shards.contains(shard.spec.index));
            if found != (tasks.len(), shards.len()) {
                return Err(format!("I10: folded children of {} are still there", task.name_any()));
            }
            let rolled = roll_up(node, status.folded.as_ref(), &above, &tasks, &shards);
            let same = status.shards.as_ref() == Some(&rolled.shards)
                && status.tasks.clone().unwrap_or_default() == rolled.tasks
                && status.records.as_ref().map(|records| records.collected) == Some(rolled.records.collected)
                && status.workers == Some(rolled.workers);
            // What somebody deleted of a task that was over is not there to be counted.
            if !same && !self.world.book.bereft.contains(&uid) {
                let said = (&status.phase, &status.shards, &status.tasks, &status.records, status.workers);
                let fold = (&rolled.shards, &rolled.tasks, &rolled.records, rolled.workers);
                return Err(format!("I10: {} says {said:?}, and the fold is {fold:?}", task.name_any()));
            }
        }
        Ok(())
    }
}

fn of_owner<K: ResourceExt>(live: &std::collections::BTreeMap<String, Arc<K>>, uid: &str) -> Vec<Arc<K>> {
    let owned = |object: &&Arc<K>| crate::store::owner_of(object.as_ref()).is_some_and(|owner| owner.uid == uid);
    live.values().filter(owned).cloned().collect()
}

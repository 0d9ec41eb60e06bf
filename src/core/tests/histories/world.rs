//! Everything that is not an operator: the API server, the sink, the cluster, people, and what the checks remember.

use std::{any::Any, collections::BTreeMap, sync::Arc};

use collect_api::{CollectShard, CollectShardSpec, CollectTask, DesiredState, ValidationReport, labels, shard::Slice};
use collect_core::names;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::ResourceExt;

use crate::{
    checks::Book,
    cluster::{self, Work, Worker},
    events::{Event, Foreground, Pick},
    jobs::NewJob,
    operator::Operator,
    setup::{ROOT, Setup},
    sink::Sink,
    store::{Store, Stored, owner_of, uid_of},
};

pub struct World {
    pub setup: Setup,
    pub store: Store,
    pub sink: Sink,
    pub workers: Vec<Worker>,
    /// What each Job's worker is told, by uid of the Job.
    pub assignments: BTreeMap<String, Work>,
    /// Creates of processes that are dead by now.
    pub in_flight: Vec<NewJob>,
    /// Seconds since the beginning.
    pub now: i64,
    pub book: Book,
    operators: usize,
    tokens: usize,
}

impl World {
    pub fn new(setup: &Setup) -> Self {
        let mut world = Self {
            setup: setup.clone(),
            store: Store::default(),
            sink: Sink::default(),
            workers: Vec::new(),
            assignments: BTreeMap::new(),
            in_flight: Vec::new(),
            now: 0,
            book: Book::default(),
            operators: 0,
            tokens: 0,
        };
        world.store.create(setup.root());
        world
    }

    pub fn next_operator(&mut self) -> usize {
        self.operators += 1;
        self.operators
    }

    pub fn root(&self) -> Option<Arc<CollectTask>> {
        self.store.get::<CollectTask>(ROOT)
    }

    /// Creates an object for an operator; nothing where the name is taken.
    pub fn create<K: Stored>(&mut self, object: K) -> Option<Arc<K>> {
        self.check_created(&object);
        let made = self.store.create(object)?;
        if let Some(shard) = (made.as_ref() as &dyn Any).downcast_ref() {
            self.shard_created(shard);
        }
        Some(made)
    }

    /// Creates a Job for an operator; nothing where the name is taken.
    pub fn create_job(&mut self, job: &NewJob) -> Option<Arc<Job>> {
        if self.store.get::<Job>(&job.name).is_some() {
            return None;
        }
        self.check_job(job);
        let made = self.create(job.object())?;
        self.assignments.insert(uid_of(made.as_ref()), job.task.clone());
        Some(made)
    }

    /// Creates of dead processes arrive.
    pub fn arrive(&mut self) {
        for job in std::mem::take(&mut self.in_flight) {
            self.create_job(&job);
        }
    }

    /// Deletes plan chunks of a root that are of no use, by run and attempt.
    pub fn delete_chunks(&mut self, root_uid: &str, unwanted: impl Fn(i64, i32) -> bool) {
        let number = |map: &ConfigMap, label: &str| map.labels().get(label).and_then(|text| text.parse().ok());
        let names: Vec<String> = self
            .store
            .chunks
            .live
            .values()
            .filter(|map| owner_of(map.as_ref()).is_some_and(|owner| owner.uid == root_uid))
            .filter(|map| {
                let of = number(map, labels::RUN).zip(number(map, labels::ATTEMPT));
                of.is_some_and(|(run, n)| unwanted(run, i32::try_from(n).unwrap()))
            })
            .map(|map| map.name_any())
            .collect();
        names.iter().for_each(|name| self.store.delete::<ConfigMap>(name));
    }

    fn pick<K: Stored>(&self, pick: Pick) -> Option<String> {
        let all = &K::of(&self.store).live;
        all.keys().nth(usize::from(pick) % all.len().max(1)).cloned()
    }

    fn token(&mut self) -> String {
        self.tokens += 1;
        format!("t{}", self.tokens)
    }

    /// Sets what shall become of a task.
    pub fn desire(&mut self, name: &str, state: DesiredState) {
        self.store.edit_spec::<CollectTask>(name, |task| task.spec.desired_state = Some(state));
    }

    /// Sets a new retry token.
    pub fn retry<K: Stored>(&mut self, name: &str) {
        let token = self.token();
        self.store.edit::<K>(name, |object| {
            object.annotations_mut().insert(labels::RETRY.into(), token);
        });
    }

    fn delete_by_hand<K: Stored>(&mut self, name: &str, foreground: Foreground) {
        if let Some(owner) = self.store.get::<K>(name).and_then(|object| owner_of(object.as_ref()).cloned()) {
            self.book.bereft.insert(owner.uid);
        }
        if foreground { self.store.mark_deleted::<K>(name) } else { self.store.delete::<K>(name) }
    }

    /// What a person does.
    pub fn verb(&mut self, event: &Event) -> Option<()> {
        match *event {
            Event::Desire(task, state) => self.desire(&self.pick::<CollectTask>(task)?, state),
            Event::Retry(task) => self.retry::<CollectTask>(&self.pick::<CollectTask>(task)?),
            Event::RetryShard(shard) => self.retry::<CollectShard>(&self.pick::<CollectShard>(shard)?),
            Event::NewRun => self.store.edit_spec::<CollectTask>(ROOT, |root| {
                root.spec.run = Some(root.spec.run_number() + 1);
            }),
            Event::Parallelism(task, workers) => {
                let task = self.pick::<CollectTask>(task)?;
                self.store.edit_spec::<CollectTask>(&task, |task| task.spec.parallelism = Some(workers));
            }
            Event::DeleteTask(task, foreground) => {
                let task = self.pick::<CollectTask>(task).filter(|name| name != ROOT)?;
                self.delete_by_hand::<CollectTask>(&task, foreground);
            }
            Event::DeleteShard(shard, foreground) => {
                self.delete_by_hand::<CollectShard>(&self.pick::<CollectShard>(shard)?, foreground);
            }
            Event::DeleteJob(job) => self.store.delete::<Job>(&self.pick::<Job>(job)?),
            Event::DeletePod(pod) => self.store.mark_deleted::<Pod>(&self.pick::<Pod>(pod)?),
            Event::DeletePlan => self.store.delete::<ConfigMap>(&self.pick::<ConfigMap>(0)?),
            Event::DeleteReport(report) => {
                self.store.delete::<ValidationReport>(&self.pick::<ValidationReport>(report)?);
            }
            Event::Squat(slice) => self.squat(slice),
            Event::Unsquat => self.unsquat(),
            _ => {}
        }
        Some(())
    }

    /// Somebody else's object takes a name that the tree needs.
    fn squat(&mut self, slice: Pick) {
        let slices = self.setup.slices();
        let (path, index) = &slices[usize::from(slice) % slices.len()];
        let task = crate::setup::name_of(path);
        let spec = CollectShardSpec {
            task: task.clone(),
            root_uid: "another".into(),
            run: 1,
            index: *index,
            slice: Slice { items: Vec::new() },
            first_attempt: None,
        };
        let shard = CollectShard::new(&names::shard(&task, *index), spec);
        if let Some(made) = self.store.create(shard) {
            self.book.foreign.insert(uid_of(made.as_ref()));
        }
    }

    fn unsquat(&mut self) {
        let foreign: Vec<_> = self
            .store
            .shards
            .live
            .values()
            .filter(|shard| self.book.foreign.contains(&uid_of(shard.as_ref())))
            .map(|shard| shard.name_any())
            .collect();
        foreign.iter().for_each(|name| self.store.delete::<CollectShard>(name));
    }

    /// Everything that was wrong is over, and people want the work done.
    pub fn heal(&mut self, operators: &mut [Operator]) {
        self.unsquat();
        self.arrive();
        cluster::heal(self);
        for operator in operators {
            operator.faults.clear();
            operator.holds = false;
            for job in std::mem::take(&mut operator.held) {
                operator.send(self, &job);
            }
        }
        let tasks: Vec<_> = self.store.tasks.live.values().cloned().collect();
        for task in tasks {
            let desired = task.spec.desired_state.unwrap_or_default() != DesiredState::Running;
            if desired || task.spec.parallelism == Some(0) {
                self.store.edit_spec::<CollectTask>(&task.name_any(), |task| {
                    task.spec.desired_state = None;
                    task.spec.parallelism = task.spec.parallelism.map(|workers| workers.max(1));
                });
            }
        }
    }
}

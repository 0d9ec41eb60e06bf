//! What all ledgers share: seeing an attempt's worker, creating it, stopping it. Mirrors src/operator/src/worker.rs.

use std::{collections::BTreeMap, sync::Arc};

use collect_api::{Attempt, CollectShard, labels};
use collect_core::{
    attempts::Entries,
    ledger::{Post, Watched, WorkerSeen},
    names,
    observed::{Signs, is_at_work, watch, worker_seen},
};
use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::ResourceExt;

use crate::{
    cluster::Work,
    events::Fault,
    operator::{Failure, Operator},
    store::{is_deleting, owner_of, uid_of},
    world::World,
};

/// A Job as it is sent to the API server.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub name: String,
    pub owner: OwnerReference,
    pub root_uid: String,
    pub work: String,
    pub run: i64,
    pub n: i32,
    pub task: Work,
    /// Process that sends it.
    pub by: String,
}

impl NewJob {
    pub fn object(&self) -> Job {
        let mut job = Job::default();
        job.metadata.name = Some(self.name.clone());
        job.metadata.owner_references = Some(vec![self.owner.clone()]);
        job.metadata.labels = Some(BTreeMap::from([
            (labels::LEDGER_UID.into(), self.owner.uid.clone()),
            (labels::ROOT_UID.into(), self.root_uid.clone()),
            (labels::WORK.into(), self.work.clone()),
            (labels::RUN.into(), self.run.to_string()),
            (labels::ATTEMPT.into(), self.n.to_string()),
        ]));
        job
    }
}

/// Where an attempt's worker is found: the object that holds the ledger, the kind of work, the run.
#[derive(Clone, Debug)]
pub struct Place {
    pub owner: String,
    pub owner_uid: String,
    pub work: &'static str,
    pub run: i64,
}

impl Place {
    pub fn of_shard(shard: &CollectShard) -> Self {
        Self { owner: shard.name_any(), owner_uid: uid_of(shard), work: "collect", run: shard.spec.run }
    }

    pub fn job(&self, n: i32) -> String {
        names::job(&self.owner, &self.owner_uid, self.work, self.run, n)
    }

    fn owns(&self, job: &Job) -> bool {
        owner_of(job).is_some_and(|owner| owner.uid == self.owner_uid)
    }
}

impl Operator {
    fn job(&self, place: &Place, n: i32) -> Option<Arc<Job>> {
        self.views.jobs.objects.get(&place.job(n)).filter(|job| place.owns(job)).cloned()
    }

    /// Pods of an attempt: those of its Job.
    fn pods(&self, place: &Place, n: i32) -> Vec<Arc<Pod>> {
        let (job, ledger) = (place.job(n), place.owner_uid.as_str());
        let is_wanted = |pod: &&Arc<Pod>| {
            pod.labels().get(labels::LEDGER_UID).is_some_and(|uid| uid == ledger)
                && owner_of(pod.as_ref()).is_some_and(|owner| owner.name == job)
        };
        self.views.pods.objects.values().filter(is_wanted).cloned().collect()
    }

    /// Whether a pod of this run still runs anywhere in a root's tree.
    pub fn any_active_of_run(&self, root_uid: &str, run: i64) -> bool {
        let run = run.to_string();
        self.views.pods.objects.values().any(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            pod.labels().get(labels::ROOT_UID).is_some_and(|uid| uid == root_uid)
                && pod.labels().get(labels::RUN) == Some(&run)
                && !matches!(phase, Some("Succeeded" | "Failed"))
        })
    }

    pub fn post_of(&self, world: &World, place: &Place, last: Option<&Attempt>) -> Post {
        last.map_or(Post::NotTried, |last| self.post(world, &place.owner_uid, place.work, place.run, last.n))
    }

    /// What the views show of the worker of the live attempt, and for how long they have shown it.
    pub fn see(
        &mut self,
        world: &World,
        place: &Place,
        attempts: &[Attempt],
        signs: Option<Signs>,
    ) -> (WorkerSeen, Watched) {
        let Some(attempt) = attempts.last().filter(|attempt| attempt.is_live()) else {
            return (WorkerSeen::Unseen, Watched::default());
        };
        let n = attempt.n;
        let (job, pods) = (self.job(place, n), self.pods(place, n));
        watch(job.as_deref(), &pods, n, signs, |what, state| {
            self.watched_for(world, &place.owner_uid, &format!("{}/{}/{n}/{what}", place.work, place.run), state)
        })
    }

    /// Looks with a quorum read whether the worker of attempt n exists.
    pub fn look(&self, world: &World, place: &Place, n: i32) -> WorkerSeen {
        let job = world.store.get::<Job>(&place.job(n)).filter(|job| place.owns(job));
        match worker_seen(job.as_deref(), &self.pods(place, n), false) {
            WorkerSeen::Unseen => WorkerSeen::Absent,
            seen => seen,
        }
    }

    /// Creates the worker of an attempt, unless its requests are held up.
    pub fn create_worker(&mut self, world: &mut World, job: NewJob) {
        if self.holds {
            self.held.push(job);
        } else {
            self.send(world, &job);
        }
    }

    /// I1: sent at most once for certain; after an answer that says nothing, it is looked for.
    pub fn send(&mut self, world: &mut World, job: &NewJob) {
        let fault = self.faults.pop_front();
        let answer = match fault {
            Some(Fault::Dropped) => Err(Failure::Lost),
            Some(Fault::Refused) => Err(Failure::Refused),
            Some(Fault::AnswerLost) => {
                world.create_job(job);
                Err(Failure::Lost)
            }
            None => match world.create_job(job) {
                Some(_) => Ok(()),
                None => self.adopt(world, job),
            },
        };
        self.posted(world, job, answer);
    }

    /// A Job of this name exists: ours if its owner is, by a quorum read.
    fn adopt(&self, world: &World, job: &NewJob) -> Result<(), Failure> {
        match world.store.get::<Job>(&job.name) {
            Some(found) if owner_of(found.as_ref()).is_some_and(|owner| owner.uid == job.owner.uid) => Ok(()),
            Some(_) => Err(Failure::Refused),
            None => Err(Failure::NotFound),
        }
    }

    /// Stops the worker of attempt n: its pod leaves a checkpoint and goes.
    pub fn stop(&mut self, world: &mut World, place: &Place, n: i32) {
        if let Some(job) = self.job(place, n) {
            self.delete(world, job.as_ref());
        }
    }

    /// Deletes Jobs that still work for attempts that are over in the ledger: a create came late, or its process was taken
    /// for dead. Jobs of older runs are superseded as a whole.
    pub fn sweep(&mut self, world: &mut World, place: &Place, entries: Entries<'_>) {
        let ours = |job: &&Arc<Job>| place.owns(job) && !is_deleting(job.as_ref());
        let jobs: Vec<_> = self.views.jobs.objects.values().filter(ours).cloned().collect();
        for job in jobs {
            let label = |label: &str| job.labels().get(label).map_or("", String::as_str);
            let (run, n) = (label(labels::RUN).parse().unwrap_or(0), label(labels::ATTEMPT).parse().unwrap_or(0));
            let this = label(labels::WORK) == place.work && run == place.run && job.name_any() == place.job(n);
            let superseded = run < place.run || (this && entries.is_superseded(n));
            if superseded && is_at_work(&job, &self.pods(place, n)) {
                self.delete(world, job.as_ref());
            }
        }
    }
}

//! What all ledgers share: seeing an attempt's worker, creating it, stopping it.

use collect_api::{
    Attempt, labels,
    protocol::{Endpoint, Origin},
};
use collect_core::{
    assignment::Share,
    attempts::Entries,
    job,
    ledger::{Post, Watched, WorkerSeen},
    observed::{Signs, is_at_work, watch, worker_seen},
    resolve,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tracing::{info, warn};

use crate::{
    context::{Answer, Context, WorkerKey},
    error::{Error, chain, code},
    watch::controller_of,
};

/// Where an attempt's worker is found.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name of the object that holds the ledger.
    pub owner: &'a str,
    /// Uid of that object.
    pub owner_uid: &'a str,
    /// `collect`, `plan` or `commit`.
    pub work: &'static str,
    /// Run.
    pub run: i64,
}

impl Place<'_> {
    /// Name of the Job of attempt n.
    pub fn job(&self, n: i32) -> String {
        collect_core::names::job(self.owner, self.owner_uid, self.work, self.run, n)
    }

    /// What this process knows of its own create of attempt n's worker.
    pub fn post(&self, ctx: &Context, n: i32) -> Post {
        ctx.post(self.owner_uid, &self.key(n))
    }

    /// What the worker of attempt n is known by.
    pub fn key(&self, n: i32) -> WorkerKey {
        (self.work, self.run, n)
    }

    /// Whether a Job is that of attempt n, by its owner and never by its labels alone.
    fn owns(&self, job: &Job) -> bool {
        controller_of(job).is_some_and(|owner| owner.uid == self.owner_uid)
    }
}

/// What the caches show of the worker of the live attempt, and for how long they have shown it. `signs` is what it last said of
/// itself, absent where it does not report.
pub fn see(ctx: &Context, place: &Place<'_>, attempts: &[Attempt], signs: Option<Signs>) -> (WorkerSeen, Watched) {
    let Some(attempt) = attempts.last().filter(|attempt| attempt.is_live()) else {
        return (WorkerSeen::Unseen, Watched::default());
    };
    let n = attempt.n;
    let name = place.job(n);
    let job = ctx.stores.jobs.get(&ObjectRef::new(&name).within(place.namespace)).filter(|job| place.owns(job));
    let pods = ctx.stores.pods.of(place.owner_uid, &name);
    watch(job.as_deref(), &pods, n, signs, |what, state| {
        ctx.watched_for(place.owner_uid, &format!("{}/{}/{n}/{what}", place.work, place.run), state)
    })
}

/// Looks with a quorum read whether the worker of attempt n exists.
pub async fn look(ctx: &Context, place: &Place<'_>, n: i32) -> Result<WorkerSeen, Error> {
    let name = place.job(n);
    let job = ctx
        .writer
        .api::<Job>(place.namespace)
        .get_opt(&name)
        .await
        .map_err(|error| Error::api("get", "Job", format!("{}/{name}", place.namespace), error))?;
    let pods = ctx.stores.pods.of(place.owner_uid, &name);
    Ok(match worker_seen(job.as_ref().filter(|job| place.owns(job)), &pods, false) {
        WorkerSeen::Unseen => WorkerSeen::Absent,
        seen => seen,
    })
}

/// Creates the worker of attempt n. I1: sent at most once for certain; after an answer that says nothing, it is looked for.
pub async fn create(ctx: &Context, place: &Place<'_>, n: i32, job: &Job) -> Result<(), Error> {
    let name = job.name_any();
    let answer = match ctx.writer.create(place.namespace, job).await {
        Ok(_) => Answer::Created,
        Err(error) => match code(&error) {
            Some(409) => adopt(ctx, place, &name).await?,
            // Too many requests and all other refusals by the server came before anything was stored.
            Some(status) if (400..500).contains(&status) && status != 408 => Answer::Refused(chain(&error)),
            _ => {
                warn!(job = name, error = chain(&error), "the answer to a create was lost; the job will be looked for");
                Answer::Unknown
            }
        },
    };
    info!(job = name, attempt = n, answer = ?answer, "worker");
    ctx.posted(place.owner_uid, place.key(n), &answer);
    Ok(())
}

/// A Job of this name exists: ours if its owner is, by a quorum read.
async fn adopt(ctx: &Context, place: &Place<'_>, name: &str) -> Result<Answer, Error> {
    let found = ctx
        .writer
        .api::<Job>(place.namespace)
        .get_opt(name)
        .await
        .map_err(|error| Error::api("get", "Job", format!("{}/{name}", place.namespace), error))?;
    Ok(match found {
        Some(job) if place.owns(&job) => Answer::Created,
        Some(_) => {
            Answer::Refused(format!("a Job {name} that belongs to something else is in the way; delete or rename it"))
        }
        None => Answer::Unknown,
    })
}

/// Stops the worker of attempt n: its pod gets SIGTERM, leaves a checkpoint and goes.
pub async fn stop(ctx: &Context, place: &Place<'_>, n: i32) -> Result<(), Error> {
    let name = place.job(n);
    match ctx.stores.jobs.get(&ObjectRef::new(&name).within(place.namespace)).filter(|job| place.owns(job)) {
        Some(job) => {
            ctx.writer.delete::<Job>(place.namespace, &name, &job.uid().unwrap_or_default()).await?;
            ctx.stopped(place.owner_uid, place.key(n));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Deletes Jobs of attempts that are over in the ledger but still work: they were superseded (a zombie's create came late).
pub async fn sweep(ctx: &Context, place: &Place<'_>, entries: Entries<'_>) -> Result<(), Error> {
    for n in (1..=entries.last_number()).filter(|n| entries.is_superseded(*n)) {
        let name = place.job(n);
        if let Some(job) = ctx.stores.jobs.get(&ObjectRef::new(&name).within(place.namespace))
            && place.owns(&job)
            && is_at_work(&job, &ctx.stores.pods.of(place.owner_uid, &name))
            && job.metadata.deletion_timestamp.is_none()
        {
            warn!(job = name, "a superseded attempt is stopped");
            ctx.writer.delete::<Job>(place.namespace, &name, &job.uid().unwrap_or_default()).await?;
        }
    }
    Ok(())
}

/// What a worker is given to reach this operator, and its share of the source's limits.
pub fn share(ctx: &Context, limits: Option<&collect_api::source::Limits>, workers: i32, origin: Origin) -> Share {
    Share {
        endpoint: Some(Endpoint {
            url: ctx.settings.endpoint_url.clone(),
            ca: ctx.settings.endpoint_ca.clone(),
            token_file: collect_api::protocol::TOKEN_FILE.into(),
        }),
        rate: collect_core::assignment::rate_share(limits, workers),
        report_after_ms: 3_000,
        origin,
    }
}

/// Labels of what a root's tree is made of.
pub fn tree_labels(
    root: &str,
    root_uid: &str,
    run: i64,
    depth: usize,
    task: &str,
) -> std::collections::BTreeMap<String, String> {
    std::collections::BTreeMap::from([
        (labels::MANAGED_BY.into(), labels::OPERATOR.into()),
        (labels::ROOT.into(), root.into()),
        (labels::ROOT_UID.into(), root_uid.into()),
        (labels::RUN.into(), run.to_string()),
        (labels::DEPTH.into(), depth.to_string()),
        (labels::TASK.into(), task.into()),
    ])
}

/// A reference that makes an object the controller owner of another (I14).
pub fn owner<K: kube::Resource<DynamicType = ()>>(
    object: &K,
) -> Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference> {
    let mut owner = object.controller_owner_ref(&())?;
    owner.block_owner_deletion = Some(true);
    Some(owner)
}

/// Job of an attempt.
pub fn build(ctx: &Context, job: &job::JobFor<'_>, spec: &collect_api::CollectTaskSpec) -> Job {
    job::build(job, spec, &ctx.settings.workers)
}

/// Workers that share a source: as many as may run, or as many as there is work for.
pub fn sharers(spec: &collect_api::CollectTaskSpec, shards: i32) -> i32 {
    resolve::root_parallelism(spec).min(shards).max(1)
}

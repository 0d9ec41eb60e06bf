//! The peer: raw Jobs, created as fast as the same window allows. What they reach is what the Job controller, the scheduler and
//! this machine can do; what the operator adds is the difference.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use collect_e2e::{Space, say};
use futures::{StreamExt, stream};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, ResourceExt,
    api::PostParams,
    core::ObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::{Notify, Semaphore};

/// Creates sent at once: as many as the operator has passes.
const CREATES_AT_ONCE: usize = 16;
/// What the Job controller sets itself.
const OF_THE_JOB_CONTROLLER: [&str; 4] =
    ["controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"];

/// A collect Job of the operator, as a template for raw ones: the same pod with the same variables and rules, and no owner.
///
/// # Panics
/// If the operator makes none.
pub async fn template(space: &Space) -> Job {
    let ours = watcher::Config::default().labels("collect.dev/work=collect");
    let mut events = watcher(space.jobs(), ours).default_backoff().boxed();
    let mut job = loop {
        match events.next().await {
            Some(Ok(Event::Apply(job) | Event::InitApply(job))) => break job,
            Some(Ok(_)) => {}
            Some(Err(error)) => say(&format!("watching Jobs: {error}")),
            None => panic!("a watch has no end"),
        }
    };
    job.metadata = ObjectMeta { labels: job.metadata.labels, ..ObjectMeta::default() };
    job.status = None;
    let spec = job.spec.as_mut().expect("a Job has a spec");
    spec.selector = None;
    spec.manual_selector = None;
    if let Some(labels) = spec.template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.retain(|label, _| !OF_THE_JOB_CONTROLLER.contains(&label.as_str()));
    }
    job
}

/// Runs `count` Jobs, `window` at once at most, from the first create to the last end; gives the time that took.
///
/// # Panics
/// If one fails, or none ends for `patience`.
pub async fn run(space: &Space, template: &Job, count: usize, window: usize, patience: Duration) -> Duration {
    let slots = Arc::new(Semaphore::new(window));
    let done = Arc::new(AtomicUsize::new(0));
    let listed = Arc::new(Notify::new());
    let watch = tokio::spawn(watch(space.jobs(), count, slots.clone(), done.clone(), listed.clone()));
    listed.notified().await;

    let began = Instant::now();
    let creates = stream::iter(0..count).then(async |number| {
        slots.acquire().await.expect("it is never closed").forget();
        number
    });
    let api = space.jobs();
    let create = |number: usize| {
        let mut job = template.clone();
        job.metadata.name = Some(format!("raw-{number}"));
        let api = api.clone();
        async move { api.create(&PostParams::default(), &job).await.map(|_| ()) }
    };
    let all = async {
        let mut answers = Box::pin(creates.map(create).buffer_unordered(CREATES_AT_ONCE));
        while let Some(answer) = answers.next().await {
            answer.expect("a raw Job can be created");
        }
        watch.await.expect("the watch of raw Jobs does not panic");
    };
    let stuck = async {
        let mut tick = tokio::time::interval(Duration::from_secs(10));
        tick.tick().await;
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            tick.tick().await;
            let now = done.load(Ordering::Relaxed);
            say(&format!("  {now} of {count} raw Jobs after {:.0} s", began.elapsed().as_secs_f64()));
            if now > last {
                (last, moved) = (now, Instant::now());
            }
            assert!(moved.elapsed() < patience, "no raw Job ended for {patience:?}; {now} of {count} had");
        }
    };
    tokio::select! {
        () = all => {}
        () = stuck => {}
    }
    began.elapsed()
}

/// Gives back a slot for each Job that ends, until all have.
async fn watch(api: Api<Job>, count: usize, slots: Arc<Semaphore>, done: Arc<AtomicUsize>, listed: Arc<Notify>) {
    let mut over = std::collections::HashSet::new();
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    while over.len() < count {
        let job = match events.next().await {
            Some(Ok(Event::Apply(job) | Event::InitApply(job))) => job,
            Some(Ok(Event::InitDone)) => {
                listed.notify_one();
                continue;
            }
            Some(Ok(_)) => continue,
            Some(Err(error)) => {
                say(&format!("watching raw Jobs: {error}"));
                continue;
            }
            None => panic!("a watch has no end"),
        };
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let mut true_ones = conditions.filter(|condition| condition.status == "True");
        match true_ones.find(|condition| matches!(condition.type_.as_str(), "Complete" | "Failed")) {
            Some(condition) if condition.type_ == "Failed" => panic!("{} failed: {condition:?}", job.name_any()),
            Some(_) if over.insert(job.name_any()) => {
                done.store(over.len(), Ordering::Relaxed);
                slots.add_permits(1);
            }
            _ => {}
        }
    }
}

//! Operators and workers that are killed at random moments: the end is the same, whatever the moment.
//!
//! `SEED=n` repeats one history's decisions; without it the seeds of the list run, and one that nobody has seen yet.

use std::time::Duration;

use collect_api::{CollectTask, Phase, labels};
use collect_e2e::{
    Cluster, Node, Operator, Space, audit, programs, say, sink,
    space::phase,
    tasks::{SOON, World},
};
use collect_registry::{Effect, Options, Registry, When};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{ResourceExt, api::DeleteParams};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// What is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// SIGKILL to the operator, and a new one at once.
    Operator,
    /// SIGKILL to a worker's process, as by the kernel.
    Worker,
    /// A pod deleted without grace, as by a person or a node that goes.
    Pod,
    /// A Job deleted by hand.
    Job,
    /// Operator and worker together, and the operator back only when the worker's pod has ended.
    Both,
}

const MILD: &[Blow] = &[Blow::Operator];
const WORKERS: &[Blow] = &[Blow::Worker, Blow::Pod];
const ALL: &[Blow] = &[Blow::Operator, Blow::Worker, Blow::Pod, Blow::Job, Blow::Both];

fn seeds(default: &[u64]) -> Vec<u64> {
    match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => default.iter().copied().chain([rand::random_range(1000..1_000_000)]).collect(),
    }
}

/// Pods with a process.
async fn running(space: &Space) -> Vec<Pod> {
    let mut pods = space.all::<Pod>().await;
    pods.retain(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"));
    pods
}

fn kill_worker(pod: &Pod) -> bool {
    let processes = programs::worker_processes(&pod.uid().expect("a pod has a uid"));
    let pids = processes.into_iter().filter_map(|pid| Pid::from_raw(pid.cast_signed()));
    // It may end by itself in the same moment.
    pids.filter(|pid| kill_process(*pid, Signal::KILL).is_ok()).count() > 0
}

async fn strike(space: &Space, operator: &mut Operator, blow: Blow, random: &mut StdRng) -> bool {
    let pods = running(space).await;
    let pod = pods.choose(random);
    match (blow, pod) {
        (Blow::Operator, _) => {
            operator.kill().await;
            operator.go().await;
            true
        }
        (Blow::Worker, Some(pod)) => kill_worker(pod),
        (Blow::Pod, Some(pod)) => {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            space.pods().delete(&pod.name_any(), &now).await.is_ok()
        }
        (Blow::Job, Some(pod)) => match pod.labels().get("batch.kubernetes.io/job-name") {
            Some(job) => space.jobs().delete(job, &DeleteParams::background()).await.is_ok(),
            None => false,
        },
        (Blow::Both, Some(pod)) => {
            operator.kill().await;
            let hit = kill_worker(pod);
            let name = pod.name_any();
            space
                .until_all::<Pod>("the killed worker's pod has ended", SOON, |pods| {
                    pods.iter().find(|pod| pod.name_any() == name).is_none_or(|pod| {
                        pod.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Running")
                    })
                })
                .await;
            operator.go().await;
            hit
        }
        (_, None) => false,
    }
}

/// One history: a tree is collected while blows fall at random moments; the end must be as if nothing had happened.
async fn history(cluster: &'static Cluster, test: &str, seed: u64, blows: &[Blow]) {
    say(&format!("{test}: SEED={seed}"));
    let mut random = StdRng::seed_from_u64(seed);
    let space = Space::new(cluster, test).await;
    let world = World::new(&space, Registry::small()).await;
    // Slow enough that every stage can be hit.
    world.set_source(Options::faults([
        Effect::Delay { milliseconds: 150 }.when(When { prefix: "/api".into(), ..When::default() })
    ]));
    let mut operator = Operator::start(&space).await;
    let mut spec = world.villages("villages");
    spec["retry"] = json!({"maxAttempts": 50, "maxDisruptions": 500, "backoff": {"initial": "50ms", "max": "200ms"}});
    space.create("villages", spec).await;
    let (mut fallen, wanted) = (0, random.random_range(4..9));
    while fallen < wanted {
        // The moment is the random thing here; there is nothing to await.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..900))).await;
        let over =
            phase(&space.tasks().get("villages").await.expect("the task is there")).is_some_and(Phase::is_terminal);
        if over {
            break;
        }
        let blow = *blows.choose(&mut random).expect("there are blows");
        if strike(&space, &mut operator, blow, &mut random).await {
            fallen += 1;
        }
    }
    assert!(fallen > 0, "SEED={seed}: the task was over before the first blow");
    let task = space.until_over("villages", Duration::from_secs(240)).await;
    assert_eq!(phase(&task), Some(&Phase::Succeeded), "SEED={seed} after {fallen} blows: {:?}", task.status);
    sink::read(&*world.bucket(), "villages", "code").await.assert_exactly(&world.codes("villages"));
    let audit = audit::requests(&space);
    assert_eq!(
        audit::jobs_created_twice(&audit),
        Vec::<String>::new(),
        "SEED={seed}: I1: never two Jobs for an attempt"
    );
    assert_nothing_runs(&space, seed).await;
    space.kubectl("delete ct villages --timeout=60s");
    space.until_empty(SOON).await;
    say(&format!("{test}: SEED={seed}: {fallen} blows, exact"));
}

async fn assert_nothing_runs(space: &Space, seed: u64) {
    space
        .until_all::<Job>("no Job is active", SOON, |jobs| {
            jobs.iter().all(|job| job.status.as_ref().is_none_or(|status| status.active.unwrap_or(0) == 0))
        })
        .await;
    let pods = space
        .until_all::<Pod>("no pod runs", SOON, |pods| {
            pods.iter().all(|pod| {
                matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
            })
        })
        .await;
    for pod in pods {
        let left = programs::worker_processes(&pod.uid().expect("a pod has a uid"));
        assert!(left.is_empty(), "SEED={seed}: {} runs on as {left:?}", pod.name_any());
    }
    let tasks = space.all::<CollectTask>().await;
    let working: Vec<_> = tasks
        .iter()
        .filter(|task| task.status.as_ref().is_some_and(|status| status.workers.unwrap_or(0) > 0))
        .map(ResourceExt::name_any)
        .collect();
    assert!(working.is_empty(), "SEED={seed}: {working:?} count workers");
    assert!(tasks.iter().any(|task| task.labels().contains_key(labels::ROOT)), "the tree is there");
}

fn process_cluster() -> &'static Cluster {
    Cluster::shared("e2e-chaos", Node::Process).expect("a process node needs nothing that could be missing")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_the_operator_at_random_moments_changes_nothing() {
    for seed in seeds(&[1]) {
        history(process_cluster(), "operator", seed, MILD).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_workers_and_pods_at_random_moments_changes_nothing() {
    for seed in seeds(&[3]) {
        history(process_cluster(), "workers", seed, WORKERS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_everything_at_random_moments_changes_nothing() {
    for seed in seeds(&[5, 6]) {
        history(process_cluster(), "everything", seed, ALL).await;
    }
}

//! A tree that is stopped, broken and mended, with two operators alive and no lease: what a person sees of retries, folding,
//! deadlines, stalls, dependencies, hooks and time to live.

use std::collections::BTreeSet;

use collect_api::{
    CollectShard, CollectTask, Outcome, Phase, ValidationReport,
    condition::{COMPLETE, FAILED, HOOK_FAILED, STALLED, VERIFIED, reason},
    labels,
    report::Verdict,
    shard::ShardPhase,
};
use collect_e2e::{
    Cluster, Node, Operator, Space, audit,
    node::OwnNode,
    programs, sink,
    space::{condition, phase},
    tasks::{SOON, World},
};
use collect_registry::{Effect, Fault, Options, Registry, When};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A district of the small country whose villages are a shard of their own.
fn a_district(world: &World) -> String {
    world.codes("districts").into_iter().next().expect("the country has districts")
}

/// A namespace with two operators that know nothing of each other, the small country as source, and an empty sink.
async fn stage(test: &str) -> (Space, World, [Operator; 2]) {
    let cluster = Cluster::shared("e2e-resilience", Node::Process).expect("a process node needs nothing");
    let space = Space::new(cluster, test).await;
    let world = World::new(&space, Registry::small()).await;
    let mut operators = [Operator::new(&space, "a").await, Operator::new(&space, "b").await];
    for operator in &mut operators {
        operator.go().await;
    }
    (space, world, operators)
}

/// Every request for the villages of a district meets this.
fn at_district(code: &str, effect: Effect) -> Fault {
    effect.when(When { prefix: format!("/api/districts/{code}/"), ..When::default() })
}

/// Every request for villages takes this long.
fn slow(milliseconds: u64) -> Fault {
    Effect::Delay { milliseconds }.when(When { prefix: "/api/districts".into(), ..When::default() })
}

fn not_found() -> Effect {
    Effect::Status { code: 404, retry_after_seconds: None }
}

async fn retry<K>(space: &Space, name: &str, token: &str)
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let patch = json!({"metadata": {"annotations": {labels::RETRY: token}}});
    space.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("it can be annotated");
}

/// The villages tree without an independent total, one shard for each district.
fn one_shard_each(world: &World, folder: &str) -> Value {
    let mut spec = world.villages(folder);
    spec["decompose"]["shards"] = json!({"perValue": {}});
    spec
}

async fn assert_exact(space: &Space, world: &World, folder: &str) {
    sink::read(&*world.bucket(), folder, "code").await.assert_exactly(&world.codes("villages"));
    let audit = audit::requests(space);
    assert_eq!(audit::jobs_created_twice(&audit), Vec::<String>::new(), "I1: never two Jobs for an attempt");
}

#[track_caller]
fn assert_phase(task: &CollectTask, expected: Phase) {
    assert_eq!(phase(task), Some(&expected), "{}: {:?}", task.name_any(), task.status);
}

#[track_caller]
fn assert_reason(task: &CollectTask, type_: &str, expected: &str) {
    let found = condition(task, type_).map(|condition| condition.reason.as_str());
    assert_eq!(found, Some(expected), "{}: {:?}", task.name_any(), task.status);
}

/// Sends a signal to the worker of a pod.
fn signal_worker(pod_uid: &str, signal: Signal) {
    for process in programs::worker_processes(pod_uid) {
        let process = Pid::from_raw(process.cast_signed()).expect("a process id");
        let _ = kill_process(process, signal);
    }
}

async fn no_workers_left(space: &Space) {
    space
        .until_all::<Pod>("no pod runs", SOON, |pods| {
            pods.iter().all(|pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                matches!(phase, Some("Succeeded" | "Failed"))
            })
        })
        .await;
}

// ---------------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_of_the_root_takes_up_what_failed_and_nothing_else() {
    let (space, world, _operators) = stage("retry").await;
    let district = a_district(&world);
    world.set_source(Options::faults([at_district(&district, not_found())]));
    space.create("villages", one_shard_each(&world, "villages")).await;
    let failed = space.until_over("villages", SOON).await;
    assert_phase(&failed, Phase::Failed);
    assert_reason(&failed, FAILED, reason::SHARDS_FAILED);
    let failures = &failed.status.as_ref().unwrap().failures;
    assert_eq!((failures.len(), failures[0].attempts), (1, Some(1)), "a dead letter with its attempts: {failures:?}");
    assert!(failures[0].message.contains("404"), "{failures:?}");

    // Without the cause mended, a retry fails again, and says so.
    retry::<CollectTask>(&space, "villages", "first").await;
    space
        .until::<CollectTask>("villages", "it has failed once more", SOON, |task| {
            let status = task.status.as_ref();
            phase(task) == Some(&Phase::Failed)
                && status.is_some_and(|status| {
                    status.retried.as_deref() == Some("first") && status.failures.iter().any(|f| f.attempts == Some(2))
                })
        })
        .await;

    world.set_source(Options::default());
    let asked = world.source.log().len();
    retry::<CollectTask>(&space, "villages", "second").await;
    let task = space
        .until::<CollectTask>("villages", "it has succeeded", SOON, |task| phase(task) == Some(&Phase::Succeeded))
        .await;
    assert_eq!(task.status.as_ref().unwrap().retried.as_deref(), Some("second"), "the token is echoed");
    assert!(condition(&task, FAILED).is_none() && condition(&task, STALLED).is_none());
    assert_exact(&space, &world, "villages").await;
    let paths: BTreeSet<_> = world.source.log().into_iter().skip(asked).map(|entry| entry.path).collect();
    assert_eq!(
        paths,
        BTreeSet::from([format!("/api/districts/{district}/villages")]),
        "only what failed is read again"
    );
    let report = space.reports().get("villages-r1").await.unwrap().status.unwrap();
    assert_eq!(report.verdict, Some(Verdict::Pass));
    assert_eq!(report.rounds.len(), 3, "the report tells of every round: {:?}", report.rounds);
    let reasons = space.event_reasons("villages").await;
    assert!(reasons.iter().any(|told| told == reason::REDRIVEN), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_shard_can_be_retried_by_itself() {
    let (space, world, _operators) = stage("oneshard").await;
    let districts: Vec<_> = world.codes("districts").into_iter().take(2).collect();
    world.set_source(Options::faults(districts.iter().map(|code| at_district(code, not_found())).collect::<Vec<_>>()));
    space.create("villages", one_shard_each(&world, "villages")).await;
    assert_phase(&space.until_over("villages", SOON).await, Phase::Failed);
    world.set_source(Options::default());
    let failed: Vec<_> = space
        .all::<CollectShard>()
        .await
        .into_iter()
        .filter(|shard| shard.status.as_ref().and_then(|status| status.phase.clone()) == Some(ShardPhase::Failed))
        .map(|shard| shard.name_any())
        .collect();
    assert_eq!(failed.len(), 2);
    retry::<CollectShard>(&space, &failed[0], "again").await;
    let task = space
        .until::<CollectTask>("villages", "one is left", SOON, |task| {
            let shards = task.status.as_ref().and_then(|status| status.shards.as_ref());
            phase(task) == Some(&Phase::Failed) && shards.is_some_and(|shards| shards.failed == 1)
        })
        .await;
    assert!(task.status.unwrap().message.unwrap().contains("1 of "));
    retry::<CollectShard>(&space, &failed[1], "again").await;
    space
        .until::<CollectTask>("villages", "it has succeeded", SOON, |task| phase(task) == Some(&Phase::Succeeded))
        .await;
    assert_exact(&space, &world, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finished_children_are_folded_and_nothing_is_forgotten() {
    let (space, world, _operators) = stage("folded").await;
    let district = a_district(&world);
    world.set_source(Options::faults([at_district(&district, not_found())]));
    let mut spec = one_shard_each(&world, "villages");
    spec["history"] = json!(0);
    space.create("villages", spec).await;
    let failed = space.until_over("villages", SOON).await;
    assert_phase(&failed, Phase::Failed);
    let districts = world.codes("districts").len() as i32;
    let shards = failed.status.as_ref().unwrap().shards.clone().unwrap();
    assert_eq!((shards.total, shards.succeeded, shards.failed), (districts, districts - 1, 1));
    assert!(failed.status.as_ref().unwrap().failures[0].message.contains("404"), "the dead letter is still listed");
    // Every child is folded in the end; only the root stays.
    space.until_all::<CollectTask>("the root is alone", SOON, |tasks| tasks.len() == 1).await;
    space.until_all::<CollectShard>("no shard is left", SOON, <[_]>::is_empty).await;

    world.set_source(Options::default());
    retry::<CollectTask>(&space, "villages", "again").await;
    let task = space
        .until::<CollectTask>("villages", "it has succeeded", SOON, |task| phase(task) == Some(&Phase::Succeeded))
        .await;
    let status = task.status.as_ref().unwrap();
    let villages = world.codes("villages").len() as i64;
    let records = status.records.clone().unwrap();
    assert_eq!((records.collected, records.verified), (villages, Some(villages)), "I10");
    let shards = status.shards.clone().unwrap();
    assert_eq!((shards.succeeded, shards.failed, shards.pending), (districts, 0, 0));
    assert_exact(&space, &world, "villages").await;
    let report = space.reports().get("villages-r1").await.unwrap().status.unwrap();
    let counts = report.counts.clone().unwrap();
    assert_eq!((report.verdict, counts.source, counts.collected), (Some(Verdict::Pass), Some(villages), villages));
    assert_eq!(report.regions_total, Some(world.codes("provinces").len() as i32), "folded regions are still told of");
    space.delete("villages").await;
    space.until_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_makes_no_progress_is_replaced() {
    let (space, world, _operators) = stage("stuck").await;
    let district = a_district(&world);
    let once = When { prefix: format!("/api/districts/{district}/"), first: Some(1), ..When::default() };
    world.set_source(Options::faults([Effect::Stuck.when(once)]));
    let mut spec = one_shard_each(&world, "villages");
    spec["stallTimeout"] = json!("4s");
    spec["source"]["http"]["timeout"] = json!("10m");
    space.create("villages", spec).await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Succeeded);
    let stalled: Vec<_> = space
        .all::<CollectShard>()
        .await
        .into_iter()
        .flat_map(|shard| shard.status.unwrap_or_default().attempts)
        .filter(|attempt| attempt.outcome == Some(Outcome::Stalled))
        .collect();
    assert_eq!(stalled.len(), 1, "{stalled:?}");
    assert_eq!(stalled[0].reason.as_deref(), Some(reason::NO_PROGRESS));
    assert_exact(&space, &world, "villages").await;
    no_workers_left(&space).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_is_replaced_and_can_do_no_harm_when_it_wakes() {
    let (space, world, _operators) = stage("frozen").await;
    world.set_source(Options::faults([slow(500)]));
    let mut spec = one_shard_each(&world, "villages");
    spec["stallTimeout"] = json!("5s");
    spec["parallelism"] = json!(2);
    space.create("villages", spec).await;
    let collects = |pod: &&Pod| {
        pod.labels().get(labels::WORK).is_some_and(|work| work == "collect")
            && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    let pods = space.until_all::<Pod>("a worker runs", SOON, |pods| pods.iter().any(|pod| collects(&pod))).await;
    let pod = pods.iter().find(collects).expect("one runs").clone();
    let uid = pod.uid().unwrap();
    signal_worker(&uid, Signal::STOP);
    let shard = pod.labels()[labels::SHARD].clone();
    space
        .until::<CollectShard>(&shard, "its slice is committed by another attempt", SOON, |shard| {
            shard.status.as_ref().and_then(|status| status.phase.clone()) == Some(ShardPhase::Succeeded)
        })
        .await;
    signal_worker(&uid, Signal::CONT);
    let shard = space.shards().get(&shard).await.unwrap();
    let ends: Vec<_> = shard.status.unwrap().attempts.iter().map(|attempt| attempt.reason.clone()).collect();
    assert!(ends.contains(&Some(reason::HEARTBEAT_LOST.into())), "{ends:?}");
    assert_phase(&space.until_over("villages", SOON).await, Phase::Succeeded);
    assert_exact(&space, &world, "villages").await;
    no_workers_left(&space).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_planner_is_replaced_and_its_plan_counts_for_nothing() {
    let (space, world, _operators) = stage("frozenplan").await;
    world.set_source(Options::faults([Effect::Delay { milliseconds: 2000 }.when(When::default())]));
    let mut spec = world.villages("villages");
    spec["stallTimeout"] = json!("5s");
    space.create("villages", spec).await;
    let heard = |task: &CollectTask| {
        let plan = task.status.as_ref().and_then(|status| status.plan.clone()).unwrap_or_default();
        plan.heartbeat.is_some() && task.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Planning))
    };
    let task = space.until::<CollectTask>("villages", "the planner gives a sign of life", SOON, heard).await;
    let message = task.status.and_then(|status| status.message).unwrap_or_default();
    assert!(message.contains("requests so far"), "{message}");
    let pods = space.all::<Pod>().await;
    let planner = pods.iter().find(|pod| pod.labels().get(labels::WORK).is_some_and(|work| work == "plan"));
    let uid = planner.and_then(ResourceExt::uid).expect("the planner has a pod");
    signal_worker(&uid, Signal::STOP);
    world.set_source(Options::default());
    let first = |task: &CollectTask| task.status.as_ref()?.plan.as_ref()?.attempts.first().cloned();
    let replaced = |task: &CollectTask| first(task).is_some_and(|first| first.outcome.is_some());
    let task = space.until::<CollectTask>("villages", "another planner takes its place", SOON, replaced).await;
    signal_worker(&uid, Signal::CONT);
    let lost = first(&task).unwrap();
    assert_eq!((lost.outcome, lost.reason.as_deref()), (Some(Outcome::Stalled), Some(reason::HEARTBEAT_LOST)));
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Succeeded);
    assert_eq!(task.status.unwrap().plan.unwrap().sealed, Some(2));
    assert_exact(&space, &world, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_never_comes_back_costs_time_and_no_record() {
    let (space, world, _operators) = stage("lostnode").await;
    world.set_source(Options::faults([slow(700)]));
    let mut lost = OwnNode::start(&space, "lost").await;
    let mut spec = one_shard_each(&world, "villages");
    spec["stallTimeout"] = json!("5s");
    spec["parallelism"] = json!(4);
    spec["worker"] = OwnNode::placement(&space);
    space.create("villages", spec).await;
    let collects = |pod: &Pod| {
        pod.labels().get(labels::WORK).is_some_and(|work| work == "collect")
            && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    let running =
        |pods: &[Pod]| pods.iter().filter(|pod| collects(pod)).filter_map(ResourceExt::uid).collect::<Vec<_>>();
    let pods = space.until_all::<Pod>("four workers run", SOON, |pods| running(pods).len() >= 4).await;
    let workers = running(&pods);
    // Two die with their node, the others are zombies: nobody can stop them, and their end is never told.
    lost.lose(&workers[..2], &workers[2..]).await;
    let next = OwnNode::start(&space, "next").await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Succeeded);
    let attempts: Vec<_> = space
        .all::<CollectShard>()
        .await
        .into_iter()
        .flat_map(|shard| shard.status.unwrap_or_default().attempts)
        .collect();
    let left_behind = attempts.iter().filter(|attempt| attempt.reason.as_deref() == Some(reason::HEARTBEAT_LOST));
    assert!((2..=4).contains(&left_behind.count()), "those of the lost node are replaced: {attempts:?}");
    let on_next = attempts.iter().filter(|attempt| attempt.node.as_ref() == Some(&next.name));
    assert!(on_next.count() > 4, "the rest is collected on the other node: {attempts:?}");
    assert_exact(&space, &world, "villages").await;

    // Deletion waits for nobody: only the pods of the lost node stay, until the cluster forgets it.
    space.delete("villages").await;
    space.until_all::<CollectTask>("no task is left", SOON, <[_]>::is_empty).await;
    space.until_all::<CollectShard>("no shard is left", SOON, <[_]>::is_empty).await;
    space
        .until_all::<Pod>("only pods of the lost node are left", SOON, |pods| pods.iter().all(|pod| lost.has(pod)))
        .await;
    lost.forget().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_never_starts_uses_up_attempts_within_its_limit() {
    let (space, world, _operators) = stage("never").await;
    let mut spec = world.provinces("provinces");
    spec["worker"] = json!({"image": "docker.io/local/nowhere:dev"});
    spec["pendingTimeout"] = json!("2s");
    spec["retry"] = json!({"maxAttempts": 2, "backoff": {"initial": "100ms"}});
    space.create("provinces", spec).await;
    let task = space.until_over("provinces", SOON).await;
    assert_phase(&task, Phase::Failed);
    assert_reason(&task, FAILED, "ImagePull");
    let attempts = task.status.unwrap().plan.unwrap().attempts;
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt.outcome.clone()).collect();
    assert_eq!(outcomes, [Some(Outcome::NotStarted), Some(Outcome::NotStarted)]);
    no_workers_left(&space).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_stops_the_run_and_a_retry_goes_on() {
    let (space, world, _operators) = stage("deadline").await;
    world.set_source(Options::faults([slow(1500)]));
    let mut spec = one_shard_each(&world, "villages");
    spec["deadline"] = json!("6s");
    spec["parallelism"] = json!(2);
    space.create("villages", spec).await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Failed);
    assert_reason(&task, FAILED, reason::DEADLINE_EXCEEDED);
    no_workers_left(&space).await;
    world.set_source(Options::default());
    space.change("villages", json!({"deadline": "10m"})).await;
    retry::<CollectTask>(&space, "villages", "more-time").await;
    space
        .until::<CollectTask>("villages", "it has succeeded", SOON, |task| phase(task) == Some(&Phase::Succeeded))
        .await;
    assert_exact(&space, &world, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn borne_failures_are_a_success_in_part_and_can_still_be_made_whole() {
    let (space, world, _operators) = stage("partial").await;
    let district = a_district(&world);
    world.set_source(Options::faults([at_district(&district, not_found())]));
    let mut spec = one_shard_each(&world, "villages");
    spec["completion"] = json!({"tolerate": {"shards": 1}});
    space.create("villages", spec).await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::PartiallySucceeded);
    assert_reason(&task, COMPLETE, reason::PARTIALLY_SUCCEEDED);
    let report = space.reports().get("villages-r1").await.unwrap().status.unwrap();
    assert_eq!(report.verdict, Some(Verdict::Pass));
    assert!(report.coverage.unwrap().contains("1 failed shards"));
    let partial = sink::read(&*world.bucket(), "villages", "code").await;
    let missing = world.codes("villages").len() - partial.keys.len();
    assert!(missing > 0, "what is there is visible, and no more");

    world.set_source(Options::default());
    retry::<CollectTask>(&space, "villages", "whole").await;
    space
        .until::<CollectTask>("villages", "it has succeeded", SOON, |task| phase(task) == Some(&Phase::Succeeded))
        .await;
    assert_exact(&space, &world, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fail_fast_stops_the_rest() {
    let (space, world, _operators) = stage("failfast").await;
    let district = a_district(&world);
    world.set_source(Options::faults([at_district(&district, not_found()), slow(400)]));
    let mut spec = one_shard_each(&world, "villages");
    spec["completion"] = json!({"failFast": true});
    spec["parallelism"] = json!(2);
    space.create("villages", spec).await;
    let task = space.until_over("villages", SOON).await;
    assert_phase(&task, Phase::Failed);
    assert_reason(&task, FAILED, reason::SHARDS_FAILED);
    let shards = task.status.as_ref().unwrap().shards.clone().unwrap();
    assert!(shards.succeeded + shards.failed < shards.total, "the rest was not collected: {shards:?}");
    no_workers_left(&space).await;
    world.set_source(Options::default());
    retry::<CollectTask>(&space, "villages", "mended").await;
    space
        .until::<CollectTask>("villages", "it has succeeded", SOON, |task| phase(task) == Some(&Phase::Succeeded))
        .await;
    assert_exact(&space, &world, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_waits_for_those_that_it_depends_on() {
    let (space, world, _operators) = stage("depends").await;
    let mut second = world.villages("second");
    second["dependsOn"] = json!([{"name": "first"}]);
    space.create("second", second).await;
    let waits = space
        .until::<CollectTask>("second", "it says what it waits for", SOON, |task| {
            task.status.as_ref().and_then(|status| status.message.as_deref()).is_some_and(|m| m.contains("first"))
        })
        .await;
    assert_phase(&waits, Phase::Pending);
    space.create("first", world.villages("first")).await;
    assert_phase(&space.until_over("second", SOON).await, Phase::Succeeded);
    let finished = |task: &CollectTask| task.status.as_ref().unwrap().finished_at.clone().unwrap().0;
    let first = space.tasks().get("first").await.unwrap();
    assert_phase(&first, Phase::Succeeded);
    assert!(finished(&first) <= finished(&space.tasks().get("second").await.unwrap()));

    // Two that wait for each other are named; one that waits for what was not compared is told what to do.
    for (name, on) in [("chicken", "egg"), ("egg", "chicken")] {
        let mut spec = world.provinces(name);
        spec["dependsOn"] = json!([{"name": on}]);
        space.create(name, spec).await;
    }
    space
        .until::<CollectTask>("egg", "the cycle is named", SOON, |task| {
            condition(task, STALLED).is_some_and(|stalled| {
                stalled.reason == reason::DEPENDENCY_CYCLE && stalled.message.contains("egg -> chicken -> egg")
            })
        })
        .await;
    space.create("loose", world.provinces("loose")).await;
    for (name, allow) in [("strict", false), ("lenient", true)] {
        let mut spec = world.provinces(name);
        spec["dependsOn"] = json!([{"name": "loose", "allowUnverified": allow}]);
        space.create(name, spec).await;
    }
    assert_phase(&space.until_over("lenient", SOON).await, Phase::Collected);
    space
        .until::<CollectTask>("strict", "it says why", SOON, |task| {
            condition(task, STALLED).is_some_and(|stalled| stalled.message.contains("allowUnverified"))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_hook_is_called_once_at_its_moment() {
    let (space, world, _operators) = stage("hooks").await;
    let hook = |name: &str| {
        json!({"run": {"http": {
            "url": format!("{}/api/hooks/{name}", world.source.url()),
            "auth": {"bearer": {"secretRef": {"name": "registry", "key": "token"}}},
        }}})
    };
    let hooks =
        json!({"beforeStart": hook("before"), "afterSuccess": hook("success"), "afterFailure": hook("failure")});
    let mut spec = world.villages("villages");
    spec["hooks"] = hooks.clone();
    space.create("villages", spec).await;
    let told = |name: &str| {
        let path = format!("/api/hooks/{name}");
        world.source.log().into_iter().filter(|entry| entry.path == path).count()
    };
    let ended = |task: &CollectTask| {
        let hooks = task.status.as_ref().and_then(|status| status.hooks.clone()).unwrap_or_default();
        [hooks.after_success, hooks.after_failure].into_iter().flatten().any(|hook| hook.succeeded.is_some())
    };
    let task = space.until::<CollectTask>("villages", "the last hook has ended", SOON, ended).await;
    assert_phase(&task, Phase::Succeeded);
    assert_eq!((told("before"), told("success"), told("failure")), (1, 1, 0));
    assert_eq!(world.source.log()[0].path, "/api/hooks/before", "nothing is asked before the first hook has ended");

    world.set_source(Options::faults([at_district(&a_district(&world), not_found())]));
    let mut spec = world.villages("broken");
    spec["hooks"] = hooks;
    space.create("broken", spec).await;
    let task = space.until::<CollectTask>("broken", "the last hook has ended", SOON, ended).await;
    assert_phase(&task, Phase::Failed);
    assert_eq!((told("before"), told("success"), told("failure")), (2, 1, 1));

    let mut spec = world.provinces("unready");
    let nowhere = json!({"url": format!("{}/api/nowhere", world.source.url())});
    spec["hooks"] = json!({"beforeStart": {"run": {"http": nowhere}}});
    space.create("unready", spec).await;
    let task = space.until_over("unready", SOON).await;
    assert_phase(&task, Phase::Failed);
    assert_reason(&task, FAILED, reason::HOOK_FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_can_be_a_container_of_ones_own() {
    let (space, world, _operators) = stage("hookjobs").await;
    space.secret("warehouse", &[("password", "swordfish")]).await;
    // Not below /tmp, which is another folder in the container.
    let notes = tempfile::tempdir_in("/var/tmp").expect("a folder for what the hooks note");
    let note = |name: &str| notes.path().join(name);
    // Exits with 1 the first time it is called, and writes what it was told the second time.
    let shell = |name: &str, then: &str| {
        let file = note(name).display().to_string();
        let script = format!("echo \"$COLLECT_HOOK $COLLECT_PHASE $COLLECT_TASK $COLLECT_RUN\" >> {file}; {then}");
        let image = space.cluster.worker_image();
        json!({
            "maxAttempts": 3,
            "run": {"job": {
                "image": image,
                "command": ["/bin/sh", "-c", script],
                "args": ["sh", "/var/run/collect/secrets/warehouse/password"],
                "env": {"GREETING": "hello"},
                "secretRef": {"name": "warehouse"},
            }},
        })
    };
    let twice = format!("[ \"$(wc -l < {})\" -gt 1 ]", note("before").display());
    let keeps = format!(
        "printf '%s\\n%s\\n%s\\n' \"$COLLECT_EVENT\" \"$(cat \"$1\")\" \"$GREETING\" > {}",
        note("event").display()
    );
    let mut spec = world.villages("villages");
    spec["hooks"] = json!({"beforeStart": shell("before", &twice), "afterSuccess": shell("success", &keeps)});
    space.create("villages", spec).await;
    let ended = |task: &CollectTask| {
        let hooks = task.status.as_ref().and_then(|status| status.hooks.clone()).unwrap_or_default();
        [hooks.after_success, hooks.after_failure].into_iter().flatten().any(|hook| hook.succeeded.is_some())
    };
    let task = space.until::<CollectTask>("villages", "the last hook has ended", SOON, ended).await;
    assert_phase(&task, Phase::Succeeded);
    let hooks = task.status.unwrap().hooks.unwrap();
    let before: Vec<_> = hooks.before_start.unwrap().attempts.into_iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(before, [Some(Outcome::Crashed), Some(Outcome::Succeeded)], "another exit code is tried again");
    assert_eq!(hooks.after_success.unwrap().succeeded, Some(true));
    let read = |name: &str| std::fs::read_to_string(note(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(read("success"), "afterSuccess Succeeded villages 1\n");
    let told = read("event");
    let lines: Vec<_> = told.lines().collect();
    let event: Value = serde_json::from_str(lines[0]).expect("COLLECT_EVENT is JSON");
    assert_eq!(event["records"], json!(world.codes("villages").len()), "{event}");
    assert_eq!(lines[1..], ["swordfish", "hello"]);

    let mut spec = world.villages("broken");
    spec["source"]["http"]["path"] = json!("/nowhere/{{ district }}");
    spec["hooks"] = json!({"afterFailure": shell("failure", "exit 11")});
    space.create("broken", spec).await;
    let task = space.until::<CollectTask>("broken", "the last hook has ended", SOON, ended).await;
    assert_phase(&task, Phase::Failed);
    assert_eq!(read("failure"), "afterFailure Failed broken 1\n", "exit code 11 is not tried again");
    assert_reason(&task, HOOK_FAILED, reason::HOOK_FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_task_goes_when_its_time_is_over_and_leaves_its_data() {
    let (space, world, _operators) = stage("ttl").await;
    let mut spec = world.villages("villages");
    spec["ttl"] = json!({"succeeded": "1s", "failed": "7d"});
    space.create("villages", spec).await;
    space.until_empty(SOON).await;
    assert_exact(&space, &world, "villages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_branch_is_taken_up_again_by_a_retry() {
    let (space, world, _operators) = stage("uncancel").await;
    world.set_source(Options::faults([slow(400)]));
    space.create("villages", world.villages("villages")).await;
    space.until::<CollectTask>("villages-44", "it is there", SOON, |_| true).await;
    space.change("villages-44", json!({"desiredState": "Cancelled"})).await;
    assert_phase(&space.until_over("villages", SOON).await, Phase::Cancelled);
    world.set_source(Options::default());
    space.change("villages-44", json!({"desiredState": "Running"})).await;
    retry::<CollectTask>(&space, "villages-44", "after-all").await;
    let task = space
        .until::<CollectTask>("villages", "it has succeeded", SOON, |task| phase(task) == Some(&Phase::Succeeded))
        .await;
    assert_eq!(condition(&task, VERIFIED).map(|condition| condition.status.as_str()), Some("True"));
    assert_exact(&space, &world, "villages").await;
    let reports = space.all::<ValidationReport>().await;
    assert!(reports.iter().any(|report| report.spec.task == "villages-44"), "the branch has its report");
}

//! A task of 2,000 shards: no object grows with their number, and each costs the API server a bounded number of writes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use collect_api::{CollectShard, Phase, shard::ShardPhase};
use collect_e2e::{Cluster, Node, Operator, Space, audit, figure, played, space::phase, tasks::World};
use collect_registry::{Registry, Synthetic};
use futures::StreamExt;
use kube::{
    Api, ResourceExt,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
    runtime::watcher,
};
use serde_json::json;

const SHARDS: usize = 2_000;
const PARALLELISM: usize = 64;
/// Records that a collector says it has read.
const RECORDS: i64 = 10;
/// Largest object of ours, in bytes of JSON.
const LARGEST: usize = 20_000;
/// Writes of the operator for each shard, progress aside: create shard, authorise, create Job, outcome, delete.
const WRITES: f64 = 5.0;

/// What a watch of everything has seen.
#[derive(Default)]
struct Seen {
    /// Largest object of each kind: bytes and name.
    largest: BTreeMap<String, (usize, String)>,
    /// Shards that are not over, by name.
    unfinished: BTreeMap<String, ()>,
    most_unfinished: usize,
}

/// Watches a kind to the end of the test and measures each object in each state.
fn measure(space: &Space, group: &str, version: &str, kind: &str, seen: &Arc<Mutex<Seen>>) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::namespaced_with(space.client.clone(), &space.name, &resource);
    let (seen, kind) = (Arc::clone(seen), kind.to_owned());
    tokio::spawn(async move {
        let mut events = watcher(api, watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            let Ok(mut seen) = seen.lock() else { return };
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    let bytes = serde_json::to_vec(&object).map_or(0, |json| json.len());
                    let name = object.name_any();
                    let largest = seen.largest.entry(kind.clone()).or_default();
                    if bytes > largest.0 {
                        *largest = (bytes, name.clone());
                    }
                    if kind == "CollectShard" {
                        let phase = object.data["status"]["phase"].as_str().unwrap_or_default().to_owned();
                        match ShardPhase::from(phase).is_terminal() {
                            true => seen.unfinished.remove(&name),
                            false => seen.unfinished.insert(name, ()),
                        };
                        seen.most_unfinished = seen.most_unfinished.max(seen.unfinished.len());
                    }
                }
                Ok(watcher::Event::Delete(object)) if kind == "CollectShard" => {
                    seen.unfinished.remove(&object.name_any());
                }
                _ => {}
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_shards_cost_bounded_objects_and_writes() {
    let cluster =
        Cluster::shared("e2e-scale", Node::Process).expect("a process node needs nothing that could be missing");
    let space = Space::new(cluster, "shards").await;
    let world = World::new(&space, Registry::synthetic(Synthetic { values: SHARDS, records: 10, bytes: 0 })).await;
    played::collectors(&space, "succeed-after=500ms", RECORDS, SHARDS).await;
    let operator = Operator::start(&space).await;
    let (idle, _) = operator.memory_kib();
    let seen = Arc::new(Mutex::new(Seen::default()));
    for kind in ["CollectTask", "CollectShard", "ValidationReport"] {
        measure(&space, "collect.dev", "v1alpha1", kind, &seen);
    }
    measure(&space, "batch", "v1", "Job", &seen);
    measure(&space, "", "v1", "ConfigMap", &seen);

    let mut spec = world.groups("groups");
    spec["parallelism"] = json!(PARALLELISM);
    let began = Instant::now();
    space.create("groups", spec).await;
    let task = space.until_over("groups", Duration::from_secs(900)).await;
    let took = began.elapsed().as_secs_f64();
    assert_eq!(phase(&task), Some(&Phase::Succeeded), "{:?}", task.status);
    let shards = task.status.as_ref().and_then(|status| status.shards.clone()).expect("shards are counted");
    assert_eq!((shards.total, shards.succeeded), (SHARDS as i32, SHARDS as i32));
    let records = task.status.as_ref().and_then(|status| status.records.clone()).expect("records are counted");
    let all = RECORDS * SHARDS as i64;
    assert_eq!((records.collected, records.verified), (all, Some(all)), "I10: nothing is lost in folding");

    figure("shard objects left after the end", space.all::<CollectShard>().await.len());

    // The least that the watches must have seen, so that their silence proves nothing.
    let seen = seen.lock().expect("nobody panicked with it");
    figure("seconds for 2,000 shards", format!("{took:.0}"));
    for (kind, (bytes, name)) in &seen.largest {
        figure(&format!("largest {kind}, bytes"), format!("{bytes} ({name})"));
    }
    for kind in ["CollectTask", "CollectShard", "ValidationReport", "Job", "ConfigMap"] {
        let (bytes, name) = seen.largest.get(kind).unwrap_or_else(|| panic!("a {kind} was seen"));
        assert!(*bytes < LARGEST, "{kind} {name} has {bytes} bytes");
    }

    // Those at work, and fewer than as many again that wait to take their slots.
    let window = PARALLELISM + PARALLELISM / 2;
    figure("unfinished shards at once", format!("{} (window {window})", seen.most_unfinished));
    assert!(seen.most_unfinished >= PARALLELISM, "the watch has seen the shards");
    assert!(seen.most_unfinished <= window, "{} live unfinished shards", seen.most_unfinished);

    let requests = audit::requests(&space);
    let user = Operator::user(&space);
    let writes = audit::writes_by(&requests, &user);
    for (what, count) in &writes {
        figure(&format!("writes of the operator, {what}"), count);
    }
    let created = writes.get("create collectshards").copied().unwrap_or_default();
    assert!(created >= SHARDS, "the audit log has the operator's writes: {writes:?}");
    let progress = requests
        .iter()
        .filter(|request| request.user == user && request.is_write() && request.resource == "collecttasks/status")
        .count();
    let all: usize = writes.values().sum();
    let per_shard = (all - progress) as f64 / SHARDS as f64;
    figure("writes of the operator per shard, task status aside", format!("{per_shard:.2}"));
    figure("writes of task status", progress);
    assert!(per_shard <= WRITES, "{per_shard:.2} writes per shard: {writes:?}");
    assert!(
        (progress as f64) < 5.0 * took + 100.0,
        "task status is written at a bounded rate: {progress} in {took:.0} s"
    );
    assert_eq!(audit::jobs_created_twice(&requests), Vec::<String>::new());

    let (after, most) = operator.memory_kib();
    figure("operator memory in KiB: idle, after 2,000 shards, at most", format!("{idle}, {after}, {most}"));
}

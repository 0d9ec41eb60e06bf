//! Collectors that the node plays: their pods start, last a while and end with a termination message, as a collector's would be.
//! Nothing is read or written, so that what is measured is the operator and the control plane.

use collect_api::protocol::{CollectResult, CommitResult, Tally, TerminationMessage, WorkResult};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use serde_json::json;

use crate::Space;

/// The ConfigMap in which a node looks for scenarios.
pub const SCENARIOS: &str = "scripted-scenarios";

/// Has the collectors and the commit of a namespace played: each collector follows `scenario` and says that it has read so many
/// `records`. The planner stays real. None leaves a manifest, so a real commit would rightly refuse.
pub async fn collectors(space: &Space, scenario: &str, records: i64, shards: usize) {
    let message = |result| {
        let message = TerminationMessage { result: Some(result), ..TerminationMessage::default() };
        serde_json::to_string(&message).expect("a termination message is JSON")
    };
    let all = records * i64::try_from(shards).expect("a number of shards");
    let tally =
        Tally { records, bytes: records * 100, source: records, items: 1, duplicates: Some(0), ..Tally::default() };
    let collected = CollectResult { tally, files: 1, file_bytes: 500, manifest: "played".into() };
    let files = i64::try_from(shards).expect("a number of files");
    let committed = CommitResult { files, records: all, list: "played".into(), ..CommitResult::default() };
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": SCENARIOS}, "data": {
        "work.collect": scenario,
        "work.collect.message": message(WorkResult::Collect(collected)),
        "work.commit": scenario,
        "work.commit.message": message(WorkResult::Commit(committed)),
    }}))
    .expect("a ConfigMap");
    space.api::<ConfigMap>().create(&PostParams::default(), &map).await.expect("a new ConfigMap");
}

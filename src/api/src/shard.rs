//! CollectShard: a slice of records small enough for one worker.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    attempt::Attempt,
    open_enum::open_enum,
    plan::Item,
    protocol::{Checkpoint, CollectResult},
};

/// A slice of records small enough for one worker. Made by the operator.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "collect.dev",
    version = "v1alpha1",
    kind = "CollectShard",
    plural = "collectshards",
    doc = "A slice of records small enough for one worker. Made by the operator.",
    namespaced,
    status = "CollectShardStatus",
    derive = "PartialEq",
    shortname = "csh",
    category = "collect",
    selectable = ".spec.task",
    selectable = ".status.phase",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where the shard stands."),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt", description = "Newest attempt."),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.summary.progress", description = "Share of the records collected."),
    printcolumn(name = "Records", type_ = "string", json_path = ".status.summary.records", description = "Records collected of those expected."),
    printcolumn(name = "Rate", type_ = "string", json_path = ".status.summary.rate", description = "Records a second."),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1, description = "What it waits for, or why it failed."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since it was created."),
    validation = Rule::new("self.spec == oldSelf.spec").message("a CollectShard's spec never changes; change the root CollectTask and raise its spec.run")
)]
#[serde(rename_all = "camelCase")]
pub struct CollectShardSpec {
    /// Name of the task that the slice belongs to.
    #[schemars(length(min = 1, max = 253))]
    pub task: String,
    /// Uid of the root task.
    #[schemars(length(min = 1, max = 63))]
    pub root_uid: String,
    /// Run of the root task.
    #[schemars(range(min = 1))]
    pub run: i64,
    /// Index within the task, from 0.
    #[schemars(range(min = 0))]
    pub index: i32,
    /// The slice.
    pub slice: Slice,
    /// Its first attempt: a shard is created when a worker may start. Absent in shards of operators before this field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_attempt: Option<FirstAttempt>,
}

/// The first attempt of a shard, authorised by the same write that creates the shard. It stands in status.attempts from the first
/// write of the status on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FirstAttempt {
    /// Random id of the operator process that may create the Job.
    #[schemars(length(min = 1, max = 63))]
    pub authorised_by: String,
    /// When it was authorised.
    pub authorised_at: Time,
}

impl CollectShard {
    /// Enters the first attempt in the status, as long as nothing was written there: whoever reads a shard does this first, so that
    /// the ledger is the same whether its beginning stands in the spec or in the status.
    pub fn enter_first_attempt(&mut self) {
        let Some(first) = &self.spec.first_attempt else { return };
        let status = self.status.get_or_insert_default();
        if status.attempts.is_empty() && status.folded.is_none() {
            let first = first.clone();
            status.attempts.push(Attempt::authorised(1, first.authorised_by, first.authorised_at));
            status.attempt = Some(1);
            status.phase = Some(ShardPhase::Running);
        }
    }
}

/// What a shard covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Slice {
    /// The pieces, in the order in which they are read.
    #[schemars(length(max = 100))]
    pub items: Vec<Item>,
}

open_enum! {
    /// Where a shard stands.
    ShardPhase {
        /// Waits for a slot, for its backoff, or for room in the cluster.
        Pending,
        /// A worker has been authorised.
        Running,
        /// Its attempts are held back by a pause.
        Paused,
        /// The slice is committed at the sink.
        Succeeded,
        /// Its attempts are used up, or the error was permanent.
        Failed,
        /// It was cancelled.
        Cancelled,
    }
}

impl ShardPhase {
    /// Whether nothing will happen any more.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What is known of a shard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CollectShardStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ShardPhase>,
    /// What it waits for, or why it failed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Number of the newest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// The newest attempts, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub attempts: Vec<Attempt>,
    /// What older attempts, no longer listed, used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded: Option<FoldedAttempts>,
    /// Where the newest worker has got to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// What the newest worker last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ShardProgress>,
    /// What the slice came to, once it is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<CollectResult>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<ShardSummary>,
    /// The retry tokens (annotation collect.dev/retry, of the shard and of the tasks above it) that held when it failed or was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub retried: Option<String>,
    /// How often a retry took it up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrives: Option<i32>,
    /// Attempts up to this one were forgiven by a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgiven: Option<i32>,
    /// Complete or Failed, as of a Job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// What older attempts, no longer listed, used up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FoldedAttempts {
    /// Number of the last one.
    pub last: i32,
    /// How many counted against maxAttempts.
    pub failures: i32,
    /// How many were disruptions.
    pub disruptions: i32,
    /// How many counted against an override of spec.retry, by its position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub overridden: Vec<i32>,
    /// Records that they collected.
    #[serde(default)]
    pub records: i64,
    /// CPU time of their workers, in seconds.
    #[serde(default)]
    pub cpu_seconds: f64,
}

/// What a worker last said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardProgress {
    /// Attempt that said it.
    pub attempt: i32,
    /// Counts the reports of the attempt.
    pub seq: i64,
    /// What the worker did at that moment.
    #[schemars(length(max = 63))]
    pub stage: String,
    /// Records so far.
    pub records: i64,
    /// Bytes so far.
    pub bytes: i64,
    /// Records expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<i64>,
    /// When it was recorded.
    pub at: Time,
}

/// The state for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardSummary {
    /// Such as `63%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub progress: Option<String>,
    /// Such as `808/808`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub records: Option<String>,
    /// Such as `2.1k/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub rate: Option<String>,
}

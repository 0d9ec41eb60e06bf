//! ValidationReport: what the source holds against what was collected.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    open_enum::open_enum,
    plan::PathStep,
    protocol::{CommitResult, ItemDifference},
};

/// What the source holds against what was collected. Made by the operator, one for each task and run.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "collect.dev",
    version = "v1alpha1",
    kind = "ValidationReport",
    plural = "validationreports",
    doc = "What the source holds against what was collected. Made by the operator, one for each task and run.",
    namespaced,
    status = "ValidationReportStatus",
    derive = "PartialEq",
    shortname = "vr",
    category = "collect",
    selectable = ".spec.task",
    selectable = ".status.verdict",
    printcolumn(name = "Level", type_ = "string", json_path = ".status.level", description = "How deep the comparison went."),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict", description = "Pass, Fail or Inconclusive."),
    printcolumn(name = "Source", type_ = "integer", json_path = ".status.counts.source", description = "Records that the source says it holds."),
    printcolumn(name = "Collected", type_ = "integer", json_path = ".status.counts.collected", description = "Records collected."),
    printcolumn(name = "Delta", type_ = "integer", json_path = ".status.counts.delta", description = "Collected less source."),
    printcolumn(name = "Duplicates", type_ = "integer", json_path = ".status.counts.duplicates", description = "Records whose key stood in their slice already."),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", priority = 1, description = "Why it is not Pass."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since it was created."),
    validation = Rule::new("self.spec == oldSelf.spec").message("a ValidationReport's spec never changes; it names what was compared")
)]
#[serde(rename_all = "camelCase")]
pub struct ValidationReportSpec {
    /// Name of the task.
    #[schemars(length(min = 1, max = 253))]
    pub task: String,
    /// Uid of the task.
    #[schemars(length(min = 1, max = 63))]
    pub task_uid: String,
    /// Uid of the root task.
    #[schemars(length(min = 1, max = 63))]
    pub root_uid: String,
    /// Run of the root task.
    #[schemars(range(min = 1))]
    pub run: i64,
    /// Path from the root to the task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub path: Vec<PathStep>,
    /// Digest of the sealed plan that the collection followed.
    #[schemars(length(max = 64))]
    pub plan_digest: String,
    /// Level that was asked for.
    pub level: ValidationLevel,
}

/// How deep a comparison goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ValidationLevel {
    /// Nothing is compared.
    None,
    /// Numbers of records are compared.
    Counts,
}

open_enum! {
    /// What a comparison came to.
    Verdict {
        /// Compared and equal.
        Pass,
        /// Compared and different.
        Fail,
        /// It could not be compared, or not well enough.
        Inconclusive,
    }
}

/// What the comparison found. What a level can't see is absent, not 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValidationReportStatus {
    /// What it came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Short word for why it is not Pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reason: Option<String>,
    /// Level that was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub level: Option<String>,
    /// What the comparison covers, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub coverage: Option<String>,
    /// The numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// Children of the task, the worst 50: by verdict, then by size of the difference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub regions: Vec<Region>,
    /// Number of all regions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions_total: Option<i32>,
    /// The first items whose count differs from their total.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub samples: Vec<ItemDifference>,
    /// What to do next, each a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 512)))]
    pub recommendations: Vec<String>,
    /// Rounds of comparison; the first is round 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub rounds: Vec<Round>,
    /// The run's file list at the sink; only in the root's report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<CommitResult>,
}

/// Numbers of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Records that the source says it holds; absent when it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<i64>,
    /// Records that the source says the committed slices hold; only where other shards failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_of_committed: Option<i64>,
    /// Records that an independent total says the source holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub independent: Option<i64>,
    /// Records collected.
    pub collected: i64,
    /// Collected less source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<i64>,
    /// Records whose key stood in their slice already; absent when there were too many keys to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<i64>,
    /// Records that did not fit the declared fields.
    #[serde(default)]
    pub rejected: i64,
}

/// The comparison of one child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Region {
    /// Value of the child's level.
    #[schemars(length(max = 253))]
    pub value: String,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub label: Option<String>,
    /// What the child's comparison came to.
    pub verdict: Verdict,
    /// Records that the source says it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<i64>,
    /// Records collected.
    pub collected: i64,
}

/// One round of comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// Number of the round: how often a retry had taken up work again; 0 is the comparison after the collection.
    pub round: i32,
    /// What it came to.
    pub verdict: Verdict,
    /// When it was made.
    pub at: Time,
}

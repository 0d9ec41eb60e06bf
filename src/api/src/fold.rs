//! What finished children that are no longer kept as objects came to: index ranges and sums.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    protocol::ItemDifference,
    report::Region,
    task::{Failure, ShardCounts},
};

/// Finished children that are no longer kept as objects. An object whose index stands here is deleted, never counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Folded {
    /// Children that did well. They stay folded for the rest of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<FoldedPart>,
    /// Children that failed or were cancelled. A retry takes all of them out again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<FoldedPart>,
}

/// Folded children of one kind: which, and what they add up to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FoldedPart {
    /// Own shards by index, such as `0-411,413`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub shards: String,
    /// Child tasks by their position in the plan, such as `0-3`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub tasks: String,
    /// Child tasks by phase.
    #[serde(default)]
    pub phases: FoldedPhases,
    /// Shards by phase: own ones and those below the child tasks. Nothing is pending or running.
    #[serde(default)]
    pub counts: ShardCounts,
    /// Records in committed slices.
    #[serde(default)]
    pub records: i64,
    /// Records in slices of child tasks whose comparison passed; absent where none was compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<i64>,
    /// Bytes of these records.
    #[serde(default)]
    pub bytes: i64,
    /// How often they had been taken up again by a retry.
    #[serde(default)]
    pub redrives: i32,
    /// The comparison, as far as it concerns them.
    #[serde(default)]
    pub comparison: Comparison,
    /// A bounded sample of what failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failures: Vec<Failure>,
}

/// Folded child tasks by phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FoldedPhases {
    /// Succeeded.
    #[serde(default)]
    pub succeeded: i32,
    /// PartiallySucceeded.
    #[serde(default)]
    pub partially_succeeded: i32,
    /// Collected.
    #[serde(default)]
    pub collected: i32,
    /// Failed.
    #[serde(default)]
    pub failed: i32,
    /// Cancelled.
    #[serde(default)]
    pub cancelled: i32,
}

/// The part of a comparison that can be added up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Records collected.
    #[serde(default)]
    pub collected: i64,
    /// Records that the source says it holds.
    #[serde(default)]
    pub source: i64,
    /// Whether the source did not say it of every slice.
    #[serde(default)]
    pub source_unknown: bool,
    /// Records whose key stood in their slice already.
    #[serde(default)]
    pub duplicates: i64,
    /// Whether some slices had too many keys to tell.
    #[serde(default)]
    pub duplicates_unknown: bool,
    /// Records that did not fit the declared fields.
    #[serde(default)]
    pub rejected: i64,
    /// Items whose total changed while they were read.
    #[serde(default)]
    pub moved: i64,
    /// Items that gave more records than their total.
    #[serde(default)]
    pub unreliable: i64,
    /// Why a child's comparison failed, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub failed: Option<String>,
    /// Why a child's comparison was inconclusive, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub inconclusive: Option<String>,
    /// Children of the task, the worst 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub regions: Vec<Region>,
    /// Number of all regions.
    #[serde(default)]
    pub regions_total: i32,
    /// The first items whose count differs from their total.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub samples: Vec<ItemDifference>,
}

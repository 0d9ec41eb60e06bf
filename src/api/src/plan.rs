//! The form of a plan: what a planner finds out and the operator carries out. A plan is a list of lines in depth-first order,
//! NDJSON, gzip-compressed, cut into chunks at line ends. Its digest is blake3 over the uncompressed lines.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Largest chunk, compressed, in bytes.
pub const MAX_CHUNK_BYTES: usize = 512 * 1024;
/// Most items of one slice.
pub const MAX_ITEMS: usize = 100;
/// Largest slice in JSON, in bytes.
pub const MAX_SLICE_BYTES: usize = 8 * 1024;

/// One step of the path from the root to a task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PathStep {
    /// Name of the level.
    #[schemars(length(min = 1, max = 63))]
    pub level: String,
    /// Value of the level.
    #[schemars(length(min = 1, max = 253))]
    pub value: String,
    /// Name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub label: Option<String>,
}

/// A piece of a slice: one combination of the slices' level values, whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// Values of the levels below the task that became slices. The task's own path is not repeated.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub values: BTreeMap<String, String>,
    /// Which part of it.
    pub part: Part,
    /// Records that the planner expects; absent when it could not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<i64>,
}

/// Which part of a value an item covers. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// All of it.
    Whole {},
    /// Pages by number of pages from the first one.
    Pages(PageSpan),
    /// Records by offset.
    Offsets(OffsetSpan),
    /// Keys of a half-open range, as they go into the request.
    Range(KeySpan),
}

/// Pages, counted from 0 whatever number the source gives its first page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PageSpan {
    /// First page.
    pub from: i64,
    /// Page after the last one; absent in the last part of a value, which reads until the source ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i64>,
    /// Records per page that the split relies on.
    pub size: i64,
}

/// Records by offset, from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OffsetSpan {
    /// First offset.
    pub from: i64,
    /// Offset after the last one; absent in the last part of a value, which reads until the source ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<i64>,
}

/// Keys of a half-open range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeySpan {
    /// First key.
    #[schemars(length(max = 64))]
    pub from: String,
    /// Key after the last one.
    #[schemars(length(max = 64))]
    pub to: String,
}

/// One line of a plan. A task is followed by its shards or by its child tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PlanLine {
    /// A node of the tree. The first line is the root, with an empty path.
    Task(PlannedTask),
    /// A shard of the task above it.
    Shard(PlannedShard),
}

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedTask {
    /// Steps from the root.
    pub path: Vec<PathStep>,
    /// Number of direct child tasks that follow.
    pub tasks: i32,
    /// Number of shards that follow.
    pub shards: i32,
    /// Records that the planner expects below it; absent when it could not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<i64>,
    /// An independent total from `spec.validation.total`, where one is asked for at this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
}

/// A shard of the task above it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedShard {
    /// Index within its task, from 0.
    pub index: i32,
    /// What it covers.
    pub items: Vec<Item>,
}

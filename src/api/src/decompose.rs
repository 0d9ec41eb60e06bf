//! How a task is split: levels into child tasks and slices, slices into shards.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// How the work is split. Default: one shard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decompose {
    /// Levels from the top down, such as province, city, district. Each value of a level becomes a child task
    /// (`as: tasks`) or an item of a shard (`as: slices`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub levels: Vec<Level>,
    /// How the work of a task without child tasks is split into shards. Default: values packed into shards, 100 to each at most; nothing is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<Shards>,
    /// Bounds that stop a plan from growing without measure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<DecomposeLimits>,
}

/// One level of the tree. Exactly one of `values` and `discover`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Level {
    /// Name of the level, used as a template variable.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z][a-z0-9_]*$"))]
    pub name: String,
    /// The level's values, written out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000), inner(length(min = 1, max = 253)))]
    pub values: Option<Vec<String>>,
    /// Ask the source for the level's values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discover: Option<Discover>,
    /// What a value becomes. Below a level of slices come only levels of slices. Default: tasks.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub become_: Option<Become>,
}

/// What a value of a level becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Become {
    /// A child task of its own: visible, with its own status and report.
    Tasks,
    /// An item of a shard: cheap, many to a worker.
    Slices,
}

/// Ask the source for the values of a level. Pagination, auth, headers and limits are those of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Discover {
    /// Appended to the source's url. Template with the values of the levels above.
    #[schemars(length(max = 2048))]
    pub path: String,
    /// JSONPath of the array. Default: the one array in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^\$"))]
    pub records: Option<String>,
    /// JSONPath within one element that gives the value, such as `$.code`. Numbers and booleans become text.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^\$"))]
    pub value: String,
    /// JSONPath within one element that gives a name for people, such as `$.name`. Default: the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^\$"))]
    pub label: Option<String>,
    /// Whether the top level may have no values at all. Default: false, the plan fails as EmptyDiscovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_empty: Option<bool>,
}

/// How the work of a task without child tasks is split into shards. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Shards {
    /// One shard for all.
    Single {},
    /// By number of records: large values are split, small ones packed.
    Count(CountShards),
    /// By ranges of a numeric or time key.
    Range(RangeShards),
    /// One shard for each value of the levels that become slices.
    PerValue {},
}

/// By number of records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountShards {
    /// Records that a shard should hold at most; rounded up to whole pages. Needs the source's `total`; a value whose
    /// pagination is by page or offset is split when it is larger. Default: no split, only packing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub records_per_shard: Option<i64>,
    /// Values that one shard may hold. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub values_per_shard: Option<i32>,
}

/// By ranges of a numeric or time key: half open, from `from` up to but without `to`. The request must use
/// `{{ range.from }}` and `{{ range.to }}`. Exactly one of `recordsPerShard`, `step` and `every`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RangeShards {
    /// Field that the range is about, named in reports.
    #[schemars(length(min = 1, max = 128))]
    pub field: String,
    /// First value: an integer, or an RFC 3339 time.
    #[schemars(length(min = 1, max = 40))]
    pub from: String,
    /// End of the range, itself not part of it. The same kind as `from`.
    #[schemars(length(min = 1, max = 40))]
    pub to: String,
    /// Records that a range should hold on average; needs the source's `total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub records_per_shard: Option<i64>,
    /// Width of a range of an integer key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub step: Option<i64>,
    /// Width of a range of a time key, such as `1d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
}

/// Bounds that stop a plan from growing without measure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecomposeLimits {
    /// Child tasks that one task may have. Beyond it the plan fails before anything is created. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_children: Option<i32>,
    /// Shards that the whole tree may have. Default: 100000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_shards: Option<i32>,
}

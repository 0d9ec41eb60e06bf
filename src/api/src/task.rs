//! CollectTask: what a user writes, and each node of the tree that the operator makes of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Duration,
    attempt::{Attempt, Outcome},
    decompose::Decompose,
    fold::Folded,
    hooks::{Hooks, HooksStatus},
    open_enum::open_enum,
    plan::PathStep,
    protocol::{CommitResult, IndependentTotal, PlanResult},
    record::Record,
    report::{ValidationLevel, Verdict},
    shard::FoldedAttempts,
    sink::Sink,
    source::{Backoff, Source},
    worker::Worker,
};

/// A collection of records from a source into a sink, split into a tree of work and compared with the source at the end.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "collect.dev",
    version = "v1alpha1",
    kind = "CollectTask",
    plural = "collecttasks",
    doc = "A collection of records from a source into a sink, split into a tree of work and compared with the source at the end.",
    namespaced,
    status = "CollectTaskStatus",
    derive = "PartialEq",
    shortname = "ct",
    category = "collect",
    selectable = ".spec.desiredState",
    selectable = ".spec.partOf.root",
    selectable = ".status.phase",
    scale(
        spec_replicas_path = ".spec.parallelism",
        status_replicas_path = ".status.workers",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where the task stands."),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.summary.progress", description = "Share of the work that is done."),
    printcolumn(name = "Shards", type_ = "string", json_path = ".status.summary.shards", description = "Shards that succeeded of all."),
    printcolumn(name = "Records", type_ = "string", json_path = ".status.summary.records", description = "Records collected of those expected."),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.shards.failed", description = "Shards that failed."),
    printcolumn(name = "Match", type_ = "string", json_path = ".status.summary.match", description = "Collected against source, once compared."),
    printcolumn(name = "Rate", type_ = "string", json_path = ".status.summary.rate", priority = 1, description = "Records a second since the start."),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1, description = "What it does or waits for."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since it was created."),
    validation = Rule::new("has(self.spec.partOf) || size(self.metadata.name) <= 40").message("the name of a root CollectTask has at most 40 characters, to leave room for the names of its children"),
    validation = Rule::new("has(self.spec.partOf) == has(oldSelf.spec.partOf) && (!has(self.spec.partOf) || self.spec.partOf == oldSelf.spec.partOf)").message("spec.partOf is written by the operator when it creates a child and never changes"),
    validation = Rule::new("has(self.spec.partOf) || (has(self.spec.source) && has(self.spec.sink) && has(self.spec.record))").message("a CollectTask needs spec.source, spec.sink and spec.record"),
    validation = Rule::new("!has(self.spec.partOf) || !(has(self.spec.source) || has(self.spec.sink) || has(self.spec.record) || has(self.spec.decompose) || has(self.spec.retry) || has(self.spec.attemptDeadline) || has(self.spec.dependsOn) || has(self.spec.deadline) || has(self.spec.stallTimeout) || has(self.spec.pendingTimeout) || has(self.spec.completion) || has(self.spec.hooks) || has(self.spec.ttl) || has(self.spec.history) || has(self.spec.validation) || has(self.spec.worker) || has(self.spec.run) || has(self.spec.runs))").message("a child CollectTask may set only spec.desiredState and spec.parallelism; everything else comes from its root: change it there"),
    validation = Rule::new("!has(self.spec.dependsOn) || self.spec.dependsOn.all(d, d.name != self.metadata.name)").message("a CollectTask can't depend on itself: remove its own name from spec.dependsOn"),
    validation = Rule::new("(has(self.spec.run) ? self.spec.run : 1) >= (has(oldSelf.spec.run) ? oldSelf.spec.run : 1)").message("spec.run never falls; raise it to collect anew"),
    validation = Rule::new("(has(self.spec.run) ? self.spec.run : 1) > (has(oldSelf.spec.run) ? oldSelf.spec.run : 1) || (has(self.spec.source) == has(oldSelf.spec.source) && (!has(self.spec.source) || self.spec.source == oldSelf.spec.source) && has(self.spec.sink) == has(oldSelf.spec.sink) && (!has(self.spec.sink) || self.spec.sink == oldSelf.spec.sink) && has(self.spec.record) == has(oldSelf.spec.record) && (!has(self.spec.record) || self.spec.record == oldSelf.spec.record) && has(self.spec.decompose) == has(oldSelf.spec.decompose) && (!has(self.spec.decompose) || self.spec.decompose == oldSelf.spec.decompose))").message("source, sink, record and decompose change only together with a higher spec.run, which collects anew"),
    validation = Rule::new("!has(self.spec.sink) || !has(self.spec.sink.objectStore) || !self.spec.sink.objectStore.url.startsWith('file://') || has(self.spec.sink.objectStore.volume)").message("a file:// sink needs spec.sink.objectStore.volume: name the PersistentVolumeClaim to write to"),
    validation = Rule::new("!has(self.spec.sink) || !has(self.spec.sink.objectStore) || !self.spec.sink.objectStore.url.startsWith('s3://') || !has(self.spec.sink.objectStore.volume)").message("spec.sink.objectStore.volume is only for file:// URLs; remove it or change the url"),
    validation = Rule::new("!has(self.spec.sink) || !has(self.spec.sink.objectStore) || !has(self.spec.sink.objectStore.format) || self.spec.sink.objectStore.format != 'parquet' || (has(self.spec.record) && has(self.spec.record.fields) && size(self.spec.record.fields) > 0)").message("format: parquet needs typed columns: declare them in spec.record.fields"),
    validation = Rule::new("!has(self.spec.decompose) || !has(self.spec.decompose.shards) || !has(self.spec.decompose.shards.count) || !has(self.spec.decompose.shards.count.recordsPerShard) || !has(self.spec.source) || !has(self.spec.source.http) || has(self.spec.source.http.total)").message("shards.count.recordsPerShard needs to know how many records a value has: set spec.source.http.total"),
    validation = Rule::new("!has(self.spec.decompose) || !has(self.spec.decompose.shards) || !has(self.spec.decompose.shards.count) || !has(self.spec.decompose.shards.count.recordsPerShard) || !has(self.spec.source) || !has(self.spec.source.http) || !has(self.spec.source.http.pagination) || (!has(self.spec.source.http.pagination.cursor) && !has(self.spec.source.http.pagination.next))").message("a source with cursor or next-link pagination can't be split by number of records: remove shards.count.recordsPerShard, or split by levels"),
    validation = Rule::new("!has(self.spec.decompose) || !has(self.spec.decompose.shards) || !has(self.spec.decompose.shards.range) || !has(self.spec.decompose.shards.range.recordsPerShard) || !has(self.spec.source) || !has(self.spec.source.http) || has(self.spec.source.http.total)").message("shards.range.recordsPerShard needs to know how many records there are: set spec.source.http.total, or use step or every"),
    validation = Rule::new("!has(self.spec.decompose) || !has(self.spec.decompose.shards) || !has(self.spec.decompose.shards.range) || [has(self.spec.decompose.shards.range.recordsPerShard), has(self.spec.decompose.shards.range.step), has(self.spec.decompose.shards.range.every)].filter(x, x).size() == 1").message("shards.range needs exactly one of recordsPerShard, step (integer key) and every (time key)"),
    validation = Rule::new("!has(self.spec.decompose) || !has(self.spec.decompose.levels) || self.spec.decompose.levels.all(l, has(l.values) != has(l.discover))").message("each level needs exactly one of values and discover"),
    validation = Rule::new("!has(self.spec.decompose) || !has(self.spec.decompose.levels) || self.spec.decompose.levels.all(l, self.spec.decompose.levels.filter(m, m.name == l.name).size() == 1)").message("the names of the levels must differ"),
    validation = Rule::new("!has(self.spec.decompose) || !has(self.spec.decompose.levels) || self.spec.decompose.levels.all(l, l.name != 'range')").message("a level can't be called range: the template variable range holds the bounds of a range slice"),
    validation = Rule::new("!has(self.spec.decompose) || !has(self.spec.decompose.levels) || self.spec.decompose.levels.map(l, has(l.as) && l.as == 'slices') == self.spec.decompose.levels.filter(l, !has(l.as) || l.as != 'slices').map(l, false) + self.spec.decompose.levels.filter(l, has(l.as) && l.as == 'slices').map(l, true)").message("below a level with as: slices come only levels with as: slices"),
    validation = Rule::new("!has(self.spec.record) || !has(self.spec.record.levels) || self.spec.record.levels.all(n, has(self.spec.decompose) && has(self.spec.decompose.levels) && self.spec.decompose.levels.exists(l, l.name == n))").message("spec.record.levels names a level that spec.decompose.levels does not have"),
    validation = Rule::new("!has(self.spec.source) || !has(self.spec.source.http) || !has(self.spec.source.http.body) || (has(self.spec.source.http.method) && self.spec.source.http.method == 'POST')").message("spec.source.http.body needs method: POST"),
    validation = Rule::new("!has(self.spec.source) || !has(self.spec.source.http) || !has(self.spec.source.http.pagination) || !has(self.spec.source.http.pagination.cursor) || has(self.spec.source.http.pagination.cursor.next) != has(self.spec.source.http.pagination.cursor.lastOf)").message("pagination.cursor needs exactly one of next and lastOf")
)]
#[serde(rename_all = "camelCase")]
pub struct CollectTaskSpec {
    /// Where the records come from. Changes only together with `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Where the records go. Changes only together with `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink: Option<Sink>,
    /// What a record is. Changes only together with `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Record>,
    /// How the work is split. Default: one shard. Changes only together with `run`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decompose: Option<Decompose>,
    /// Workers at once below this task. May change at any time. Default: 4 at the root, no bound of its own below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub parallelism: Option<i32>,
    /// Running, Paused (workers leave a checkpoint and go) or Cancelled (final). The strictest on the path to the root wins.
    /// Default: Running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_state: Option<DesiredState>,
    /// How often and when failed work is tried again. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Tasks of the same namespace that must have succeeded before this one starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub depends_on: Vec<Dependency>,
    /// Time that a run may take, pauses not counted, before it is stopped and fails. Default: no limit. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// Time that one attempt may take before it is stopped and tried again. Default: 6h. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_deadline: Option<Duration>,
    /// Time without a sign of life or without progress after which a worker is replaced. Default: 5m. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_timeout: Option<Duration>,
    /// Time that an attempt may wait for its pod to start before it counts as failed. Default: 15m where image or configuration
    /// are at fault; no limit while there is no room or quota. If set, it holds for both. May change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_timeout: Option<Duration>,
    /// What counts as success. Default: every shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<Completion>,
    /// What else happens when a run starts, succeeds or fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// When a finished task is deleted, by how it ended. Its data at the sink stays. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Ttl>,
    /// How many finished children of each task stay as objects; what older ones came to is kept in their parent's status.
    /// Children that failed or were cancelled are counted apart. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub history: Option<i32>,
    /// How the collection is compared with the source. Default: counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// The worker pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Worker>,
    /// Counts the collections; a higher one collects anew, into a place of its own. Never falls. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub run: Option<i64>,
    /// How many runs are kept at the sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<Runs>,
    /// Place in a tree; written by the operator on the children that it creates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<PartOf>,
}

/// What shall become of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DesiredState {
    /// Work.
    #[default]
    Running,
    /// Workers leave a checkpoint and go; no new ones start.
    Paused,
    /// Stop for good; what was committed stays.
    Cancelled,
}

/// How often and when failed work is tried again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Attempts of one shard, the first included; disruptions don't count. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<i32>,
    /// Disruptions (eviction, node loss, preemption, lost Jobs) that one shard survives. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_disruptions: Option<i32>,
    /// Wait before the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// Other budgets for some ways to fail. The first that fits holds; failures under it do not count against maxAttempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub overrides: Vec<RetryOverride>,
}

/// A budget of its own for some ways to fail.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryOverride {
    /// Outcomes (such as OutOfMemory, Crashed, Permanent) or reasons (such as SourceUnavailable) of an attempt.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 63)))]
    pub errors: Vec<String>,
    /// Attempts that may fail like this, the first included. Default: that of spec.retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: Option<i32>,
    /// Wait before the next attempt. Default: that of spec.retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
}

/// A task that must have succeeded first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// Name of a CollectTask of the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Whether Collected (complete, but not compared) is enough. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_unverified: Option<bool>,
}

/// What counts as success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Completion {
    /// Failed shards that are borne; with some of them the task ends as PartiallySucceeded. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerate: Option<Tolerate>,
    /// Whether the rest is stopped as soon as more shards failed than are borne. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_fast: Option<bool>,
}

/// Failed shards that are borne. Exactly one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Tolerate {
    /// So many shards of a task.
    Shards(#[schemars(range(min = 0, max = 1_000_000))] i32),
    /// So many of a hundred shards of a task.
    Percent(#[schemars(range(min = 0, max = 100))] i32),
}

/// When a finished task is deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ttl {
    /// After it Succeeded or PartiallySucceeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<Duration>,
    /// After it ended as Collected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collected: Option<Duration>,
    /// After it Failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Duration>,
    /// After it was Cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<Duration>,
}

/// How the collection is compared with the source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Validation {
    /// `none`, or `counts`: numbers of records. Default: counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<ValidationLevel>,
    /// A total that the source gives independently of the lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<IndependentTotal>,
}

/// How many runs are kept at the sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Runs {
    /// Runs whose data is kept, the newest included; older ones are removed after a commit. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub keep: Option<i32>,
}

/// Place in a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PartOf {
    /// Name of the root task.
    #[schemars(length(min = 1, max = 253))]
    pub root: String,
    /// Uid of the root task.
    #[schemars(length(min = 1, max = 63))]
    pub root_uid: String,
    /// Run of the root task that made this child.
    #[schemars(range(min = 1))]
    pub run: i64,
    /// Steps from the root.
    #[schemars(length(min = 1, max = 8))]
    pub path: Vec<PathStep>,
}

open_enum! {
    /// Where a task stands.
    Phase {
        /// Nothing has begun.
        Pending,
        /// The planner walks the levels.
        Planning,
        /// Workers collect.
        Running,
        /// No new attempt starts.
        Paused,
        /// What was collected is compared and committed.
        Validating,
        /// Collected, compared, equal.
        Succeeded,
        /// As Succeeded, but for failed shards that spec.completion tolerates.
        PartiallySucceeded,
        /// Collected; it could not be compared.
        Collected,
        /// Over without success.
        Failed,
        /// Cancelled by hand.
        Cancelled,
    }
}

impl Phase {
    /// Whether only a retry or a new run leaves it.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Succeeded | Self::PartiallySucceeded | Self::Collected | Self::Failed | Self::Cancelled)
    }

    /// Whether there may be something to retry.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::PartiallySucceeded | Self::Failed | Self::Cancelled)
    }
}

/// What is known of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CollectTaskStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the task stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What it does or waits for, or why it failed, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// Run that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<i64>,
    /// Trace id of the run, 32 hexadecimal digits: in every log line of operator and workers about it, and in its spans; only at the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub trace_id: Option<String>,
    /// Ready, Complete, Failed, Verified; Reconciling and Stalled only while they are true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// The plan; only at the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// The commit; only at the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitStatus>,
    /// Direct child tasks by phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<ChildCounts>,
    /// Shards below this task by phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<ShardCounts>,
    /// Records below this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<RecordCounts>,
    /// Bytes of records below this task, before compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Share of the work that is done, in percent; never falls within a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<i32>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<TaskSummary>,
    /// When the run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When 25, 50, 75 and 100 percent were reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub milestones: Vec<Milestone>,
    /// A bounded sample of what failed below this task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failures: Vec<Failure>,
    /// Workers that are authorised at the moment below this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<i32>,
    /// Label selector of the worker pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub selector: Option<String>,
    /// The newest report about this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ReportRef>,
    /// The retry tokens (annotation collect.dev/retry, of the task and of the tasks above it) that were last taken up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub retried: Option<String>,
    /// How often a retry took up work again, here or below, in this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrives: Option<i32>,
    /// How many of these were below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrives_below: Option<i32>,
    /// Finished children that are no longer kept as objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded: Option<Folded>,
    /// Running shards that take much longer than their siblings took, the slowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub stragglers: Vec<Straggler>,
    /// How long the run has been worked on, in seconds, pauses not counted; only where spec.deadline asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed_seconds: Option<i64>,
    /// What became of the hooks; only at the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<HooksStatus>,
}

/// A running shard that takes much longer than its siblings took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Straggler {
    /// Name of the shard.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Node of its worker, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Half of its finished siblings took at most so many seconds.
    pub median_seconds: i64,
    /// Why, as far as it can be told.
    #[schemars(length(max = 256))]
    pub reason: String,
}

/// The plan of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// The planner's attempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub attempts: Vec<Attempt>,
    /// What older attempts, no longer listed, used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded: Option<FoldedAttempts>,
    /// The last report of its worker that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,
    /// Attempt whose chunks are the plan; absent until it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<i32>,
    /// What the plan holds; absent until it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<PlanResult>,
    /// Attempts up to this one were forgiven by a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgiven: Option<i32>,
}

/// A sign of life of the worker of a planner or commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Attempt that said it.
    pub attempt: i32,
    /// Counts the reports of the attempt.
    pub seq: i64,
    /// What the worker did at that moment.
    #[schemars(length(max = 63))]
    pub stage: String,
    /// Requests sent to the source so far.
    pub requests: i64,
    /// When it was recorded.
    pub at: Time,
}

/// The commit of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitStatus {
    /// The commit Job's attempts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub attempts: Vec<Attempt>,
    /// What older attempts, no longer listed, used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded: Option<FoldedAttempts>,
    /// The last report of its worker that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,
    /// What was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<CommitResult>,
    /// Attempts up to this one were forgiven by a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgiven: Option<i32>,
}

/// Direct child tasks by phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChildCounts {
    /// All of them, as the plan has it.
    pub total: i32,
    /// Not created yet, or Pending.
    pub pending: i32,
    /// Planning, Running, Paused or Validating.
    pub active: i32,
    /// Succeeded.
    pub succeeded: i32,
    /// PartiallySucceeded.
    #[serde(default)]
    pub partially_succeeded: i32,
    /// Collected.
    pub collected: i32,
    /// Failed.
    pub failed: i32,
    /// Cancelled.
    pub cancelled: i32,
}

/// Shards by phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ShardCounts {
    /// All of them, as the plan has it.
    pub total: i32,
    /// Not created yet, or waiting.
    pub pending: i32,
    /// With an authorised attempt.
    pub running: i32,
    /// Committed.
    pub succeeded: i32,
    /// Failed.
    pub failed: i32,
    /// Cancelled.
    pub cancelled: i32,
    /// Attempts that failed and were tried again.
    #[serde(default)]
    pub retries: i32,
}

/// Records below a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordCounts {
    /// Expected by the plan; absent when it could not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<i64>,
    /// Collected, in committed slices and by running workers.
    pub collected: i64,
    /// Collected in slices whose comparison passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<i64>,
}

/// The state for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskSummary {
    /// Such as `63%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub progress: Option<String>,
    /// Such as `112/180`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub shards: Option<String>,
    /// Such as `391204/620573`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub records: Option<String>,
    /// Such as `100%`.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub match_: Option<String>,
    /// Such as `2.1k/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub rate: Option<String>,
}

/// When a share of the work was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Milestone {
    /// 25, 50, 75 or 100.
    pub percent: i32,
    /// When it was seen.
    pub at: Time,
}

/// Something that failed below a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Name of the shard or task.
    #[schemars(length(max = 253))]
    pub name: String,
    /// How its last attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Attempts that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i32>,
    /// Short word for the cause.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// What happened and what to do about it.
    #[schemars(length(max = 512))]
    pub message: String,
}

/// A report about a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReportRef {
    /// Name of the ValidationReport.
    #[schemars(length(max = 253))]
    pub name: String,
    /// What it came to.
    pub verdict: Verdict,
}

impl CollectTaskSpec {
    /// Run that is asked for; 1 if none is.
    pub fn run_number(&self) -> i64 {
        self.run.unwrap_or(1)
    }
}

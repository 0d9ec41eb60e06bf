//! What operator and workers say to each other. Any image that follows it is a worker.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    decompose::Decompose,
    hooks::HttpHook,
    open_enum::open_enum,
    plan::{Item, PathStep},
    record::Record,
    sink::Sink,
    source::Source,
};

/// Environment variable that holds the [`Assignment`].
pub const ASSIGNMENT_ENV: &str = "COLLECT_ASSIGNMENT";
/// Environment variable that holds the pod's uid (downward API).
pub const POD_UID_ENV: &str = "COLLECT_POD_UID";
/// Environment variable that says where the termination message goes, if not to [`TERMINATION_LOG`].
pub const TERMINATION_LOG_ENV: &str = "COLLECT_TERMINATION_LOG";
/// Where the termination message goes.
pub const TERMINATION_LOG: &str = "/dev/termination-log";
/// Largest assignment in JSON, in bytes.
pub const MAX_ASSIGNMENT_BYTES: usize = 64 * 1024;
/// Largest termination message, in bytes.
pub const MAX_TERMINATION_BYTES: usize = 4096;
/// Largest checkpoint in JSON, in bytes.
pub const MAX_CHECKPOINT_BYTES: usize = 4096;
/// Where secrets are mounted in a worker: one folder for each secret, one file for each key.
pub const SECRETS_DIR: &str = "/var/run/collect/secrets";
/// Where the token for the worker endpoint is mounted; a worker reads it again for each call.
pub const TOKEN_FILE: &str = "/var/run/collect/token/token";
/// Audience of that token.
pub const TOKEN_AUDIENCE: &str = "collect-operator";
/// Where the volume of a `file://` sink is mounted.
pub const VOLUME_DIR: &str = "/var/run/collect/volume";
/// POST a [`ProgressReport`] here; the answer is a [`ProgressAnswer`].
pub const PROGRESS_PATH: &str = "/v1/progress";
/// POST a [`PlanChunk`] here; the answer has no body.
pub const PLAN_PATH: &str = "/v1/plan";

/// Exit codes of a worker. Anything else counts as a crash.
pub mod exit {
    /// All work done.
    pub const DONE: i32 = 0;
    /// Failed in a way that may pass.
    pub const RETRYABLE: i32 = 10;
    /// Failed in a way that no repetition mends: configuration, credentials, schema.
    pub const PERMANENT: i32 = 11;
    /// The source asked to come back later; the termination message says when.
    pub const SOURCE_LIMITED: i32 = 12;
    /// A newer attempt has taken its place.
    pub const FENCED: i32 = 13;
    /// Asked to leave, with a checkpoint.
    pub const CHECKPOINTED: i32 = 14;
    /// The slice was committed already.
    pub const ALREADY_COMMITTED: i32 = 15;
}

/// All that a worker is told. JSON in [`ASSIGNMENT_ENV`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// What to do.
    pub work: Work,
    /// Which slice, of which run of which task.
    pub identity: Identity,
    /// Attempt that this worker carries out.
    pub attempt: i32,
    /// The source.
    pub source: Source,
    /// The sink.
    pub sink: Sink,
    /// What a record is.
    pub record: Record,
    /// Where to report; absent in a run without an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// This worker's share of the source's limits.
    #[serde(default)]
    pub rate_share: RateShare,
    /// When to report for the first time, in milliseconds after the start.
    pub report_after_ms: u64,
    /// 32 hexadecimal digits that name the run in every log line.
    pub trace_id: String,
    /// What else log lines and spans name; absent where nobody says it, which changes nothing of the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// What log lines and spans of a worker name beside the run and the attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Name of the task that the work belongs to.
    pub task: String,
    /// Name of the shard; absent for the work of a root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// The span of the attempt, in the form of the W3C's `traceparent`: the parent of the worker's spans.
    #[serde(default)]
    pub traceparent: String,
}

/// What a worker does. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Work {
    /// Collect a slice.
    Collect(CollectWork),
    /// Walk the levels and make the plan.
    Plan(PlanWork),
    /// Write the run's file list and make it the valid run.
    Commit(CommitWork),
    /// Send the request of a hook.
    Hook(HookWork),
}

/// Collect a slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CollectWork {
    /// The slice.
    pub items: Vec<Item>,
    /// Where an earlier attempt got to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
}

/// Walk the levels and make the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanWork {
    /// How the work is split.
    pub decompose: Decompose,
    /// An independent total to read, from `spec.validation.total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<IndependentTotal>,
}

/// An independent total of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IndependentTotal {
    /// Appended to the source's url, such as `/summary`. Must not use level values: it is read once, for the whole task.
    #[schemars(length(max = 2048))]
    pub path: String,
    /// Where the number is: a JSONPath such as `$.villages`, or `header:X-Total-Count`.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^(\$|header:[A-Za-z0-9-]+$)"))]
    pub value: String,
}

/// Write the run's file list and make it the valid run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitWork {
    /// Number of manifests that must be there.
    pub slices: i64,
    /// Records that they must hold together.
    pub records: i64,
    /// Runs whose data is kept, this one included.
    pub keep_runs: i32,
    /// How often a retry took up work of the run again; each commit has a file list of its own.
    #[serde(default)]
    pub revision: i32,
}

/// Send the request of a hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookWork {
    /// The request.
    pub http: HttpHook,
    /// What happened.
    pub event: HookEvent,
}

/// What a hook is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookEvent {
    /// `beforeStart`, `afterSuccess` or `afterFailure`.
    pub hook: String,
    /// Namespace of the task.
    pub namespace: String,
    /// Name of the task.
    pub task: String,
    /// Run.
    pub run: i64,
    /// Phase of the task; `Pending` before the start.
    pub phase: String,
    /// Records collected.
    pub records: i64,
    /// Name of the run's report; empty where there is none.
    pub report: String,
    /// The task's message.
    pub message: String,
}

/// Which slice, of which run of which task. Everything that a sink keeps apart, it keeps apart by this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Namespace of the task.
    pub namespace: String,
    /// Name of the root task.
    pub root: String,
    /// Uid of the root task.
    pub root_uid: String,
    /// Run of the root task.
    pub run: i64,
    /// Path from the root to the task that owns the slice.
    pub path: Vec<PathStep>,
    /// Index of the slice within that task; 0 for planner and commit.
    pub index: i32,
    /// Digest of the sealed plan; empty for the planner.
    pub plan_digest: String,
}

/// Where to report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Base URL, https.
    pub url: String,
    /// Certificate authority of the endpoint, PEM.
    pub ca: String,
    /// File that holds the bearer token.
    pub token_file: String,
}

/// A worker's share of the source's limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateShare {
    /// Requests a second; absent means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// Requests at once; absent means 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
}

/// Where a worker has got to: everything before it lies in closed parts. At most [`MAX_CHECKPOINT_BYTES`] in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Counts the checkpoints of a slice, over all attempts; never goes back.
    pub seq: i64,
    /// Index of the item to go on with.
    pub item: i32,
    /// State of that item's paginator, as JSON text; absent at the item's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub paginator: Option<String>,
    /// Closed parts, by folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub parts: Vec<ClosedParts>,
    /// What the finished items and pages add up to.
    #[serde(default)]
    pub tally: Tally,
    /// What the unfinished item has given so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item_tally: Option<ItemTally>,
}

/// Closed parts of one folder: `part-0` up to but without `part-<count>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClosedParts {
    /// Folder below the slice's, `<attempt>-<pod uid 8>`.
    #[schemars(length(max = 63))]
    pub folder: String,
    /// Number of closed parts in it.
    pub count: i32,
}

/// What a slice adds up to, so far or at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Records written.
    #[serde(default)]
    pub records: i64,
    /// Bytes of the records' text, before compression.
    #[serde(default)]
    pub bytes: i64,
    /// Records that the source says it holds, over the finished items whose total is known.
    #[serde(default)]
    pub source: i64,
    /// Finished items.
    #[serde(default)]
    pub items: i32,
    /// Finished items for which the source gave no total.
    #[serde(default)]
    pub without_total: i32,
    /// Finished items whose total changed while they were read.
    #[serde(default)]
    pub moved: i32,
    /// Finished items that gave more records than their total.
    #[serde(default)]
    pub unreliable: i32,
    /// Records whose key had been seen before in the slice; absent when there were too many keys to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<i64>,
    /// Records that did not fit the declared fields and went to the reject file.
    #[serde(default)]
    pub rejected: i64,
    /// The first items whose count differs from their total.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub samples: Vec<ItemDifference>,
}

/// What one item has given so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemTally {
    /// Records read.
    pub records: i64,
    /// Total at the first page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
}

/// An item whose count differs from its total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemDifference {
    /// The item's values, joined by `/`.
    #[schemars(length(max = 128))]
    pub item: String,
    /// Records that the source says it holds.
    pub source: i64,
    /// Records that were collected.
    pub collected: i64,
}

/// What a worker says while it works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgressReport {
    /// Attempt that the worker carries out.
    pub attempt: i32,
    /// Counts the reports of this attempt, from 1.
    pub seq: i64,
    /// What it does at the moment: `reading`, `writing`, `waiting`, `committing`, `planning`.
    pub stage: String,
    /// Records so far, in closed and open parts.
    pub records: i64,
    /// Bytes so far.
    pub bytes: i64,
    /// Records expected, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<i64>,
    /// A new checkpoint, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// Requests sent to the source so far.
    #[serde(default)]
    pub requests: i64,
    /// Requests repeated so far.
    #[serde(default)]
    pub retries: i64,
}

/// What the operator answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgressAnswer {
    /// What to do.
    pub directive: Directive,
    /// When to report next, in milliseconds.
    pub report_after_ms: u64,
    /// The worker's share of the source's limits from now on.
    #[serde(default)]
    pub rate_share: RateShare,
}

open_enum! {
    /// What a worker shall do. An unknown word means Continue.
    Directive {
        /// Go on.
        Continue,
        /// Close the part, send a checkpoint, leave with [`exit::CHECKPOINTED`].
        CheckpointAndExit,
        /// A newer attempt is in place: leave at once with [`exit::FENCED`].
        Abort,
    }
}

/// One chunk of a plan, from planner to operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanChunk {
    /// Attempt that the planner carries out.
    pub attempt: i32,
    /// Index of the chunk, from 0.
    pub index: i32,
    /// Lines of [`crate::plan::PlanLine`], gzip-compressed, base64. At most [`crate::plan::MAX_CHUNK_BYTES`] before base64.
    pub data: String,
}

/// The last words of a worker: JSON in the termination message, at most [`MAX_TERMINATION_BYTES`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminationMessage {
    /// What the work came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<WorkResult>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WorkError>,
    /// The last checkpoint, if the operator has not confirmed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
}

/// What the work came to. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WorkResult {
    /// A slice was committed.
    Collect(CollectResult),
    /// A plan was made.
    Plan(PlanResult),
    /// The run was made the valid one.
    Commit(CommitResult),
    /// The hook's request was answered.
    Hook(HookResult),
}

/// A slice was committed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CollectResult {
    /// What the slice adds up to.
    #[serde(flatten)]
    pub tally: Tally,
    /// Files that hold it.
    #[serde(default)]
    pub files: i32,
    /// Bytes of these files.
    #[serde(default)]
    pub file_bytes: i64,
    /// The manifest, below the sink's url.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub manifest: String,
}

/// A plan was made and its chunks handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanResult {
    /// blake3 of the uncompressed lines, hexadecimal.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// Number of chunks.
    pub chunks: i32,
    /// Tasks below the root.
    pub tasks: i32,
    /// Shards of all tasks.
    pub shards: i32,
    /// Items of all shards.
    pub items: i64,
    /// Records expected; absent when the planner could not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<i64>,
    /// Values that a discovery gave twice under one parent.
    #[serde(default)]
    pub duplicate_values: i64,
    /// Tasks that have no work.
    #[serde(default)]
    pub empty_tasks: i32,
}

/// The run was made the valid one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommitResult {
    /// Files of the run.
    pub files: i64,
    /// Records in them.
    pub records: i64,
    /// Bytes of them.
    pub bytes: i64,
    /// Parts that no manifest names and that were removed.
    #[serde(default)]
    pub removed: i64,
    /// The file list, below the sink's url.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub list: String,
}

/// The hook's request was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookResult {
    /// Status code of the answer.
    pub code: u16,
}

/// Why work did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkError {
    /// Short word, such as `SourceUnavailable` or `SinkOccupied`.
    pub reason: String,
    /// What happened, where, and what to do about it. At most 1,024 characters, without any secret.
    pub message: String,
    /// When to try again, in milliseconds from now, if the source said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// What a worker used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Largest resident memory, in bytes.
    #[serde(default)]
    pub peak_memory_bytes: i64,
    /// CPU time, in seconds.
    #[serde(default)]
    pub cpu_seconds: f64,
    /// Records of this attempt.
    #[serde(default)]
    pub records: i64,
    /// Bytes of these records.
    #[serde(default)]
    pub bytes: i64,
    /// Requests of this attempt.
    #[serde(default)]
    pub requests: i64,
    /// Repeated requests of this attempt.
    #[serde(default)]
    pub retries: i64,
}

impl Identity {
    /// Values of the path's levels, for templates.
    pub fn path_values(&self) -> BTreeMap<String, String> {
        self.path.iter().map(|step| (step.level.clone(), step.value.clone())).collect()
    }

    /// Folder of the run below the sink's url: `runs/<run>-<first 8 of the root's uid>`.
    pub fn run_folder(&self) -> String {
        format!("runs/{}-{}", self.run, self.root_uid.chars().take(8).collect::<String>())
    }

    /// Folder of the slice below the sink's url: the run's folder, one folder for each step of the path, the index.
    pub fn slice_folder(&self) -> String {
        let mut folder = self.run_folder();
        for step in &self.path {
            folder.push('/');
            folder.push_str(&path_segment(&step.value));
        }
        format!("{folder}/{}", self.index)
    }
}

/// A value as one segment of a path: letters, digits, `-` and `_` stand for themselves, every other byte is `=XX`.
fn path_segment(value: &str) -> String {
    value.bytes().fold(String::new(), |mut segment, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => segment.push(char::from(byte)),
            _ => segment.push_str(&format!("={byte:02X}")),
        }
        segment
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(values: &[&str]) -> Identity {
        Identity {
            namespace: "default".into(),
            root: "villages".into(),
            root_uid: "3f9c2a71-0000-4000-8000-000000000000".into(),
            run: 2,
            path: values
                .iter()
                .map(|value| PathStep { level: "l".into(), value: (*value).into(), label: None })
                .collect(),
            index: 7,
            plan_digest: String::new(),
        }
    }

    #[test]
    fn a_slice_has_a_folder_of_its_own() {
        assert_eq!(identity(&["44", "4403"]).slice_folder(), "runs/2-3f9c2a71/44/4403/7");
        assert_eq!(identity(&[]).slice_folder(), "runs/2-3f9c2a71/7");
    }

    #[test]
    fn a_value_never_leaves_its_folder() {
        assert_eq!(identity(&["../a b"]).slice_folder(), "runs/2-3f9c2a71/=2E=2E=2Fa=20b/7");
    }
}

//! The attempt ledger: one entry for each try of a piece of work, written before the try begins.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::open_enum::open_enum;

open_enum! {
    /// How an attempt ended.
    Outcome {
        /// It did all its work.
        Succeeded,
        /// The slice was committed already, by an earlier attempt.
        AlreadyCommitted,
        /// It failed in a way that may pass.
        Retryable,
        /// It failed in a way that no repetition mends.
        Permanent,
        /// The source asked to come back later.
        SourceLimited,
        /// A newer attempt has taken its place.
        Fenced,
        /// It was asked to leave and left a checkpoint.
        Checkpointed,
        /// It ended without one of the agreed exit codes.
        Crashed,
        /// It was killed for using too much memory.
        OutOfMemory,
        /// Its pod was evicted, preempted or lost with its node.
        Disrupted,
        /// It ran longer than attemptDeadline.
        DeadlineExceeded,
        /// It gave no sign of life, or made no progress, for stallTimeout.
        Stalled,
        /// Its pod did not start within pendingTimeout.
        NotStarted,
        /// Its Job was there and is gone without a recorded outcome.
        Lost,
        /// It was authorised, and its Job was never seen.
        Abandoned,
        /// The task was cancelled or paused.
        Stopped,
    }
}

/// One try of a piece of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Number of the attempt, from 1; never used again.
    #[serde(rename = "number")]
    pub n: i32,
    /// Random id of the operator process that may create the Job.
    #[schemars(length(max = 63))]
    pub authorised_by: String,
    /// When it was authorised.
    pub authorised_at: Time,
    /// How it ended; absent while it is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Short word for the cause, such as `SourceUnavailable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reason: Option<String>,
    /// What happened and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// When the end was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// When the next attempt may start, where the source or the backoff says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Time>,
    /// Name of the Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub job: Option<String>,
    /// Uid of the Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub job_uid: Option<String>,
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// Node of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// IP address of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub ip: Option<String>,
    /// Image that the worker ran, by digest where the node knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// When the worker's container started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Exit code of the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Records that it collected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<i64>,
    /// Bytes of these records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Largest resident memory of the worker, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<i64>,
    /// CPU time of the worker, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
}

impl Attempt {
    /// An attempt that begins: the process `by` may create its Job.
    pub fn authorised(n: i32, by: String, at: Time) -> Self {
        Self {
            n,
            authorised_by: by,
            authorised_at: at,
            outcome: None,
            reason: None,
            message: None,
            finished_at: None,
            retry_after: None,
            job: None,
            job_uid: None,
            pod: None,
            node: None,
            ip: None,
            image: None,
            started_at: None,
            exit_code: None,
            records: None,
            bytes: None,
            peak_memory_bytes: None,
            cpu_seconds: None,
        }
    }

    /// Whether it has not ended, as far as the ledger knows.
    pub fn is_live(&self) -> bool {
        self.outcome.is_none()
    }
}

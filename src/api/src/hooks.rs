//! Hooks: what else happens when a run starts, succeeds or fails.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Duration,
    attempt::Attempt,
    shard::FoldedAttempts,
    source::{Auth, Body, Method, SecretRef},
};

/// What else happens, once in each run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Before the plan is made. If it fails, the run fails with reason HookFailed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_start: Option<Hook>,
    /// After the run ended as Succeeded, PartiallySucceeded or Collected. If it fails, the phase stays and the condition HookFailed says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_success: Option<Hook>,
    /// After the run ended as Failed. If it fails, the condition HookFailed says so. A cancelled run has no hook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_failure: Option<Hook>,
}

/// One hook. Carried out until it succeeds once, at most maxAttempts times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hook {
    /// What is done.
    pub run: HookRun,
    /// Time that one attempt may take. Default: 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// Attempts, the first included; disruptions don't count. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 20))]
    pub max_attempts: Option<i32>,
}

/// What a hook does. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HookRun {
    /// An HTTP request from a worker pod; an answer 2xx is success.
    Http(HttpHook),
    /// A container of your own; exit code 0 is success, 11 is not tried again.
    Job(JobHook),
}

/// An HTTP request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpHook {
    /// Where it goes.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^\s/]+"))]
    pub url: String,
    /// Method. Default: POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Request headers. Credentials belong in `auth`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub headers: BTreeMap<String, String>,
    /// Body. Its strings are templates over hook, namespace, task, run, phase, records, report and message.
    /// Default, for POST: a JSON object of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
    /// Credentials, from a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
}

/// A container of your own. It is told what happened by COLLECT_HOOK, COLLECT_NAMESPACE, COLLECT_TASK, COLLECT_RUN,
/// COLLECT_PHASE and, as JSON, COLLECT_EVENT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobHook {
    /// Image. It runs as user 65532 without privileges, on a read-only root file system with a writable /tmp.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Program, in place of the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub command: Vec<String>,
    /// Arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// Environment. Secrets belong in `secretRef`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub env: BTreeMap<String, String>,
    /// A Secret whose keys are mounted as files in /var/run/collect/secrets/<name>.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// What became of the hooks of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HooksStatus {
    /// Attempts of beforeStart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_start: Option<HookStatus>,
    /// Attempts of afterSuccess.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_success: Option<HookStatus>,
    /// Attempts of afterFailure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_failure: Option<HookStatus>,
}

/// What became of a hook.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookStatus {
    /// Its attempts, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub attempts: Vec<Attempt>,
    /// What older attempts, no longer listed, used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folded: Option<FoldedAttempts>,
    /// Whether it has succeeded or failed for good; absent while it has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<bool>,
    /// Attempts up to this one were forgiven by a retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgiven: Option<i32>,
}

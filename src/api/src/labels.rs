//! Label and annotation names. Labels serve people and selectors; no decision trusts them (a label can be edited).

/// Name of the tree's root task.
pub const ROOT: &str = "collect.dev/root";
/// Uid of the tree's root task.
pub const ROOT_UID: &str = "collect.dev/root-uid";
/// Depth below the root: `1` for the root's children.
pub const DEPTH: &str = "collect.dev/depth";
/// Name of the task that directly owns the object.
pub const TASK: &str = "collect.dev/task";
/// Name of the shard that a Job works for; absent on planner and commit Jobs.
pub const SHARD: &str = "collect.dev/shard";
/// Run of the root that made the object.
pub const RUN: &str = "collect.dev/run";
/// Attempt that a Job carries out.
pub const ATTEMPT: &str = "collect.dev/attempt";
/// Uid of the object whose ledger holds the attempt of a Job.
pub const LEDGER_UID: &str = "collect.dev/ledger-uid";
/// What a Job does: `collect`, `plan`, `commit`, or the name of a hook.
pub const WORK: &str = "collect.dev/work";
/// Annotation of a CollectTask or CollectShard: a new value has what failed or was cancelled there and below tried again.
pub const RETRY: &str = "collect.dev/retry";
/// Standard label that marks what the operator made.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const OPERATOR: &str = "collect-operator";
/// Selector for everything that the operator made.
pub const MANAGED_SELECTOR: &str = "app.kubernetes.io/managed-by=collect-operator";

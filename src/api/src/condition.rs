//! Condition types and reasons, event reasons.

/// Ready: kstatus' general word; True once the task is done and good.
pub const READY: &str = "Ready";
/// Complete: the task is done (Succeeded, PartiallySucceeded or Collected).
pub const COMPLETE: &str = "Complete";
/// Failed: the task is over and did not succeed.
pub const FAILED: &str = "Failed";
/// Verified: what was collected was compared with what the source says.
pub const VERIFIED: &str = "Verified";
/// Reconciling: work goes on (kstatus, abnormal-true).
pub const RECONCILING: &str = "Reconciling";
/// Stalled: nothing will go on without somebody's help (kstatus, abnormal-true).
pub const STALLED: &str = "Stalled";

/// HookFailed: afterSuccess or afterFailure did not succeed (abnormal-true).
pub const HOOK_FAILED: &str = "HookFailed";

/// Reasons that are shared by conditions and events.
pub mod reason {
    /// The planner walks the levels.
    pub const PLANNING: &str = "Planning";
    /// The plan is sealed.
    pub const PLANNED: &str = "Planned";
    /// Workers collect.
    pub const RUNNING: &str = "Running";
    /// What was collected is compared and committed.
    pub const VALIDATING: &str = "Validating";
    /// Done, compared, equal.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Done; nothing to compare with.
    pub const COLLECTED: &str = "Collected";
    /// Over without success.
    pub const FAILED: &str = "Failed";
    /// Done but for failed shards that are tolerated.
    pub const PARTIALLY_SUCCEEDED: &str = "PartiallySucceeded";
    /// The run took longer than spec.deadline.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// A task of spec.dependsOn has not succeeded yet.
    pub const WAITING_FOR_DEPENDENCY: &str = "WaitingForDependency";
    /// Tasks of spec.dependsOn wait for each other.
    pub const DEPENDENCY_CYCLE: &str = "DependencyCycle";
    /// A hook did not succeed.
    pub const HOOK_FAILED: &str = "HookFailed";
    /// A hook is carried out.
    pub const HOOK: &str = "Hook";
    /// A retry took up what had failed.
    pub const REDRIVEN: &str = "Redriven";
    /// Shards take much longer than their siblings took.
    pub const STRAGGLERS: &str = "Stragglers";
    /// A worker gave no sign of life for stallTimeout.
    pub const HEARTBEAT_LOST: &str = "HeartbeatLost";
    /// A worker made no progress for stallTimeout.
    pub const NO_PROGRESS: &str = "NoProgress";
    /// The time to live is over.
    pub const EXPIRED: &str = "Expired";
    /// Cancelled by desiredState.
    pub const CANCELLED: &str = "Cancelled";
    /// Paused by desiredState.
    pub const PAUSED: &str = "Paused";
    /// A new run replaces the tree.
    pub const NEW_RUN: &str = "NewRun";
    /// The plan could not be made.
    pub const PLANNING_FAILED: &str = "PlanningFailed";
    /// A sealed plan is gone and could not be made again.
    pub const PLAN_LOST: &str = "PlanLost";
    /// Shards used up their attempts.
    pub const SHARDS_FAILED: &str = "ShardsFailed";
    /// The comparison found a difference.
    pub const VALIDATION_FAILED: &str = "ValidationFailed";
    /// The file list could not be written.
    pub const COMMIT_FAILED: &str = "CommitFailed";
    /// A name that the tree needs belongs to something else.
    pub const NAME_CONFLICT: &str = "NameConflict";
    /// A child without a living parent, or one that the plan does not know.
    pub const ORPHANED: &str = "Orphaned";
    /// A Job was refused by quota or admission.
    pub const JOB_REFUSED: &str = "JobRefused";
    /// A pod waits for room or for its image.
    pub const POD_PENDING: &str = "PodPending";
    /// Nothing could be compared: there is no total.
    pub const NO_TOTAL: &str = "NoTotal";
    /// The source's total does not fit what it gives.
    pub const TOTAL_UNRELIABLE: &str = "TotalUnreliable";
    /// The source changed while it was read.
    pub const SOURCE_MOVED: &str = "SourceMoved";
    /// Validation was switched off.
    pub const NOT_VALIDATED: &str = "NotValidated";
    /// An attempt failed and is tried again.
    pub const RETRYING: &str = "Retrying";
    /// A milestone of the progress was passed.
    pub const MILESTONE: &str = "Milestone";
}

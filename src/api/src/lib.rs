//! The custom resources of `collect.dev/v1alpha1` and the words that operator and workers share: types, CEL rules,
//! condition and event reasons, label names, the worker protocol and the form of a sealed plan.
//!
//! It declares and never acts: no client, no I/O, no clock.

pub mod attempt;
pub mod condition;
pub mod crd;
pub mod decompose;
pub mod duration;
pub mod fold;
pub mod hooks;
pub mod labels;
mod open_enum;
pub mod plan;
pub mod protocol;
pub mod record;
pub mod report;
pub mod shard;
pub mod sink;
pub mod source;
pub mod task;
pub mod worker;

pub use attempt::{Attempt, Outcome};
pub use duration::Duration;
pub use report::{ValidationReport, ValidationReportSpec, ValidationReportStatus};
pub use shard::{CollectShard, CollectShardSpec, CollectShardStatus};
pub use task::{CollectTask, CollectTaskSpec, CollectTaskStatus, DesiredState, Phase};

/// API group of every kind here.
pub const GROUP: &str = "collect.dev";
/// API version of every kind here.
pub const VERSION: &str = "v1alpha1";

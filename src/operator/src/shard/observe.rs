//! What a pass over a shard needs to know of the tree above it.

use std::sync::Arc;

use collect_api::{CollectShard, CollectTask, plan::PathStep};
use collect_core::{
    halt,
    resolve::{RetryPolicy, TimeLimits},
    retry,
    rollup::Above,
};
use kube::ResourceExt;

use crate::{context::Context, task::observe::ancestors};

/// The tree above a shard.
pub struct Observed {
    /// The root.
    pub root: Arc<CollectTask>,
    /// Path of the task that owns the shard.
    pub path: Vec<PathStep>,
    /// What shall become of the shard, and the retry tokens that hold for the task above it.
    pub above: Above,
    /// The retry tokens that hold for the shard itself.
    pub token: Option<String>,
    /// Limits on attempts.
    pub policy: RetryPolicy,
    /// Limits on their time.
    pub limits: TimeLimits,
}

/// Looks up the tree; nothing where a link is missing, being deleted, or of another run.
pub fn observe(ctx: &Context, shard: &CollectShard) -> Option<Observed> {
    let line = ancestors(ctx, shard)?;
    let task = line.first()?;
    let root = line.last()?.clone();
    let current = root.uid().as_deref() == Some(&shard.spec.root_uid) && root.spec.run_number() == shard.spec.run;
    if !current || line.iter().any(|task| task.metadata.deletion_timestamp.is_some()) {
        return None;
    }
    let (above, _) = halt::standing(&line);
    Some(Observed {
        path: task.spec.part_of.as_ref().map(|part_of| part_of.path.clone()).unwrap_or_default(),
        token: retry::token(above.token.as_deref(), shard.metadata.annotations.as_ref()),
        above,
        policy: RetryPolicy::of(root.spec.retry.as_ref()),
        limits: TimeLimits::of(&root.spec),
        root,
    })
}

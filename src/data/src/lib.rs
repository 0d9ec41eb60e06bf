//! The data plane: how a slice is read from a source and written to a sink, how a plan is made, how a run is committed.
//!
//! It knows no Kubernetes and no process: what to do comes in as values of `collect_api::protocol`, progress goes out
//! through a [`Control`], and every end is a value. Nothing here prints, exits or reads the environment.
//!
//! | module        | what it is for |
//! |---------------|----------------|
//! | [`http`]      | requests, locators, the pure paginator, one page at a time |
//! | [`record`]    | a page's records as Arrow batches |
//! | [`sink`]      | the object store, parts, manifests |
//! | [`collect()`] | a slice from its items to its manifest, with checkpoints |
//! | [`decompose`] | pure: how values become items and items become shards |
//! | [`plan()`]    | walks the levels and writes the plan |
//! | [`commit()`]  | the file list, the valid run, pruning |
//! | [`hook()`]    | the request of a hook |

pub mod collect;
pub mod commit;
pub mod control;
pub mod decompose;
pub mod error;
pub mod hook;
pub mod http;
pub mod json;
pub mod plan;
pub mod preview;
pub mod record;
pub mod secrets;
pub mod settings;
pub mod sink;
mod text;

pub use collect::{Ending, collect};
pub use commit::commit;
pub use control::{Control, Signal};
pub use error::{Class, Error};
pub use hook::hook;
pub use plan::{Plan, plan};
pub use preview::preview;
pub use settings::Settings;

//! Every decision of the operator, as pure functions: what an object says and what was observed go in, what to do comes out.
//!
//! No client, no clock, no randomness, no async: `now` and everything random are parameters, and no iteration order of a
//! hash map reaches an output. So every decision can be tested with plain values.

pub mod admit;
pub mod assignment;
pub mod attempts;
pub mod conditions;
pub mod depends;
pub mod exit;
pub mod fold;
pub mod halt;
pub mod hooks;
pub mod job;
pub mod ledger;
pub mod names;
pub mod observed;
pub mod ranges;
pub mod redrive;
pub mod report;
pub mod resolve;
pub mod retry;
pub mod rollup;
pub mod shard;
pub mod states;
pub mod straggler;
pub mod task;
pub mod tell;
pub mod text;
pub mod trace;
pub mod tree;

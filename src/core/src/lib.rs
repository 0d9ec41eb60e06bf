//! Every decision of the operator, as pure functions: what an object says and what was observed go in, what to do comes out.
//!
//! No client, no clock, no randomness, no async: `now` and everything random are parameters, and no iteration order of a
//! hash map reaches an output. So every decision can be tested with plain values.

pub mod admit;
pub mod assignment;
pub mod conditions;
pub mod exit;
pub mod job;
pub mod ledger;
pub mod names;
pub mod observed;
pub mod report;
pub mod resolve;
pub mod rollup;
pub mod shard;
pub mod task;
pub mod text;
pub mod tree;

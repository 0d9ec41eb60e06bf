//! How operator and worker log, and how they hand spans to an OTLP endpoint where one is set.
//!
//! It must never block, slow or fail the work: spans go through a bounded queue, what finds no room there or no taker at the
//! endpoint is counted and forgotten, and without an endpoint nothing is started. What spans there are is said where the work
//! is done, through `tracing`; only a span that outlives the process that began it is handed over as a whole ([`emit`]).

mod export;
mod lines;
mod span;

pub use export::{environment, export, flush, lost};
pub use lines::{Format, start};
pub use opentelemetry::KeyValue;
pub use span::{Finished, adopt, emit};

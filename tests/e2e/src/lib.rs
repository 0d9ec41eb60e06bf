//! What the end-to-end tests share: a cluster of their own, operators as child processes, waiting without sleeping, and a
//! reader of the sink that trusts nothing but the files.
//!
//! | module      | for |
//! |-------------|-----|
//! | [`cluster`] | one Kubernetes for each test binary, up on first use and down when the process ends |
//! | [`space`]   | a namespace for each test; waiting; what to print when a test fails |
//! | [`node`]    | a node of a test's own, to be lost for good |
//! | [`operator`]| operators that can be started, killed and started again |
//! | [`played`]  | collectors that the node plays, for tests of scale |
//! | [`programs`]| the programs under test and the worker's image |
//! | [`cases`]   | what the API server must accept and refuse |
//! | [`otel`]    | a receiver of spans, and what it was sent |
//! | [`audit`]   | who wrote what, from the API server's own log |
//! | [`rights`]  | what the operators asked for, against what the chart grants |
//! | [`docs`]    | the commands of the documentation |
//! | [`sink`]    | what a reader finds: `_current.json`, the file list, the manifests, the records |
//! | [`tasks`]   | CollectTasks for the sample source |
//! | [`demo`]    | the demo on a real node |
//! | [`chaos`]   | blows against the demo on a real node, for as long as wanted |
//!
//! A test fails when its subject is absent. What a machine can't run is skipped with a printed reason, and fails if `CI=true`.

pub mod audit;
pub mod cases;
pub mod chaos;
pub mod cluster;
pub mod demo;
pub mod docs;
pub mod http;
pub mod node;
pub mod operator;
pub mod otel;
pub mod played;
pub mod programs;
pub mod rights;
pub mod sink;
pub mod space;
pub mod tasks;

pub use cluster::{Cluster, Node};
pub use operator::Operator;
pub use space::Space;

use std::io::Write as _;

/// Prints past the capture of the test harness, so that it is seen for passing tests too.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Says loudly that something is not tested here and why; fails where nothing may be skipped.
///
/// # Panics
/// If `CI=true`.
pub fn skip(what: &str, reason: &str) {
    say(&format!("SKIPPED {what}: {reason}"));
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI=true allows no skip of {what}: {reason}");
}

/// A figure that a test measured, printed even if it passes.
pub fn figure(name: &str, value: impl std::fmt::Display) {
    say(&format!("FIGURE {name} = {value}"));
}

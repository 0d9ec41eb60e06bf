//! Slices, plans and commits against the sample server and a real S3 server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy knows only functions marked as tests"
)]

mod checkpoints;
mod clients;
mod commits;
mod cursors;
mod faults;
mod hooks;
mod lab;
mod paginators;
mod plans;
mod records;
mod resume;
mod sinks;

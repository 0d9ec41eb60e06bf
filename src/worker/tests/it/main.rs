//! The program itself: assignment in, exit code, termination message and reports out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy knows only functions marked as tests"
)]

mod bench;
mod endings;
mod lab;
mod operator;
mod reports;
mod zombies;

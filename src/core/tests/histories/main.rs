//! Random histories of a small cluster, and the invariants at every step of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity,
    clippy::large_enum_variant,
    clippy::too_many_arguments,
    reason = "clippy knows only functions marked as tests; a history is no public API"
)]

mod checks;
mod cluster;
mod events;
mod jobs;
mod nodes;
mod operator;
mod phases;
mod roots;
mod run;
mod setup;
mod shards;
mod sink;
mod store;
mod world;

use proptest::{prelude::*, test_runner::Config};

proptest! {
    #![proptest_config(Config { max_shrink_iters: 4000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn every_invariant_holds_in_every_history(history in events::history(60)) {
        if let Err(broken) = run::run(&history) {
            return Err(TestCaseError::fail(broken));
        }
    }
}

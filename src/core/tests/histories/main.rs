//! Random histories of a small cluster, and the invariants at every step of them.
//!
//! One to three operator processes, each with a view of its own that lags behind, run their passes through the functions of
//! core against an API server, a Job controller, workers and a sink in small, while people, crashes, lost answers and clocks
//! interfere. The passes mirror src/operator and decide nothing. What is checked, and how:
//!
//! | | checked by |
//! |---|---|
//! | I1 | each Job by ledger, run and attempt, over all history: `check_job` |
//! | I2 | what a process has seen when it starts an attempt: `check_start`; the object as of the compare-and-swap: `check_ledger` |
//! | I3 | numbers without gaps or repetition, one live attempt, its Job only from who authorised it: `check_ledger`, `check_job` |
//! | I4 | the budgets, counted from all history and not from what is listed: `used_up` |
//! | I5, I6, I7 | each manifest against the source when it is made, each success against the manifest, the run's list at its end |
//! | I8 | the recorded checkpoint at each write; what a resumed worker commits, by I7 |
//! | I9 | the tables of `states` at each write of a phase; ends stand; who begins again says so |
//! | I10 | buckets and progress at each write; at rest the counts of each task against a fold over what is there |
//! | I11 | each end against sink and report: `check_end` |
//! | I12 | the ending `Pause`: two minutes later nothing runs; then everything is collected all the same |
//! | I13 | the ending `Cancel`: nothing runs, and the root is over |
//! | I14, I15 | each created object: one controller owner, no finalizer; the ending `DeleteRoot` leaves nothing |
//! | I16 | each write of a status |
//! | I17 | all of them, with up to three processes |
//! | I18 | the size of each status; at the end each one against the bounds of its schema |
//! | I19 | each write against what the process has written itself |
//! | I21 | squatters on the names of shards: never deleted |
//! | I22 | at the end, with hours passing and everybody looking at everything, nothing is written |
//! | liveness | after faults and verbs stop: one retry at most, and every record is collected once |
//!
//! Not to be seen here: I20 (job.rs and its snapshot; tests/e2e), hooks' own work, planners that fall silent (tests/e2e), dependencies (depends.rs) and time to live
//! (task.rs); real watches, requeues and leases (src/operator, tests/e2e); the bytes of parts and manifests (src/data).
//!
//! More cases: `PROPTEST_CASES=20000 cargo test --release -p collect-core --test histories`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity,
    clippy::large_enum_variant,
    clippy::too_many_arguments,
    reason = "clippy knows only functions marked as tests"
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
mod schema;
mod setup;
mod shards;
mod sink;
mod store;
mod world;

use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed},
};

use events::{Ending, Event, Fate, History};

/// The same histories every time, so many that they take a few seconds in a debug build. Whoever asks for a number by the
/// environment gets others each time.
fn config() -> Config {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default = Config::default();
    if asked { default } else { Config { cases: 250, rng_seed: RngSeed::Fixed(1), ..default } }
}

proptest! {
    #![proptest_config(Config { max_shrink_iters: 4000, failure_persistence: None, ..config() })]

    #[test]
    fn every_invariant_holds_in_every_history(history in events::history(60)) {
        if let Err(broken) = run::run(&history) {
            return Err(TestCaseError::fail(broken));
        }
    }
}

/// A slice is given up, its run is committed without it, and then its worker, on a lost node, is done.
#[test]
fn a_worker_that_was_given_up_commits_nothing_that_was_removed() {
    let setup = setup::Setup {
        shape: &[(&[], 0), (&["a"], 1), (&["b"], 2)],
        operators: 2,
        parallelism: 2,
        history: 0,
        max_attempts: 1,
        max_disruptions: 0,
        out_of_memory: None,
        tolerate: Some(1),
        fail_fast: false,
        deadline: None,
        stall_timeout: 300,
        compare: false,
        hooks: false,
    };
    let lost = Event::Worker(0, Fate::NodeLost);
    let events = vec![Event::Run(14), lost, Event::Wait(400), Event::Round(0), Event::Run(3)];
    run::run(&History { setup, events, ending: Ending::Finish }).unwrap();
}

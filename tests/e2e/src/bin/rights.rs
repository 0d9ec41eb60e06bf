//! Leaves the record of what a cluster's operators asked for, from its audit log: `rights FOLDER CLUSTER LOG`. For the companion of a
//! test's cluster, which outlives the test.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, cluster, log] = &arguments[..] else {
        eprintln!("usage: rights FOLDER CLUSTER LOG");
        return ExitCode::from(2);
    };
    match collect_e2e::rights::leave(Path::new(folder), cluster, Path::new(log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{log}: {error}");
            ExitCode::FAILURE
        }
    }
}

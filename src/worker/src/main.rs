//! The program in a worker pod: reads its assignment, runs `collect-data`, reports, ends with an exit code that says how.
//!
//! It decides nothing about the work itself. With a subcommand it is a tool for people.

mod assignment;
mod log;
mod operator;
mod preview;
mod report;
mod run;
mod termination;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use collect_api::protocol::exit;

/// Without a subcommand: carries out the assignment in COLLECT_ASSIGNMENT.
#[derive(Parser)]
#[command(name = "collect-worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Shows what a CollectTask would do first: request, records, schema, plan. Needs no cluster and writes nothing.
    Preview(preview::Args),
}

fn main() -> ExitCode {
    // One TLS provider in the tree; a second call is a mistake that would only show at the first TLS connection.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    // Two threads: one decodes and compresses while the other reads ahead. Files are written on few threads more.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(4).enable_all().build();
    let code = match (runtime, cli.command) {
        (Err(error), _) => {
            eprintln!("no runtime: {error}");
            exit::RETRYABLE
        }
        (Ok(runtime), None) => {
            let code = runtime.block_on(run::run());
            // Requests that nobody waits for any more must not hold the end.
            runtime.shutdown_background();
            code
        }
        (Ok(runtime), Some(Command::Preview(args))) => runtime.block_on(preview::run(&args)),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

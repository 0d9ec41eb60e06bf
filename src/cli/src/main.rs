//! kubectl-collect: what a person does with CollectTasks beyond plain kubectl.
//!
//! Each command is a module with its arguments and a function `run`. What is shown is decided by pure functions of the objects,
//! the width and the time; `run` only fetches and prints.

mod args;
mod error;
mod exit;
mod output;
mod session;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{args::Cli, error::Error, exit::Exit, session::Session};

/// The commands, in the order in which `--help` lists them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show versions: of this program, of the operator, of the API that the cluster serves.
    Version(version::Args),
}

fn main() -> ExitCode {
    // One TLS provider in the tree; a second call is a mistake that would only show at the first TLS connection.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::remark(&format!("error: no runtime: {error}"));
            return Exit::Unable.into();
        }
    };
    let session = Session::new(cli.global);
    let exit = runtime.block_on(run(&cli.command, &session)).unwrap_or_else(|error| {
        if !matches!(error, Error::Closed) {
            output::remark(&format!("error: {error}"));
        }
        error.exit()
    });
    // What nobody waits for any more must not hold the end.
    runtime.shutdown_background();
    exit.into()
}

async fn run(command: &Command, session: &Session) -> Result<Exit, Error> {
    match command {
        Command::Version(args) => version::run(args, session).await,
    }
}

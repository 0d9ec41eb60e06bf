//! kubectl-collect: what a person does with CollectTasks beyond plain kubectl.
//!
//! Each command is a module with its arguments and a function `run`. What is shown is decided by pure functions of the objects,
//! the width and the time; `run` only fetches and prints.

mod args;
mod completion;
mod control;
mod diagnose;
mod error;
mod events;
mod exit;
mod explain_plan;
mod files;
mod follow;
mod lint;
mod live;
mod logs;
mod output;
mod pace;
#[cfg(test)]
mod reference;
mod report;
#[cfg(test)]
mod samples;
mod session;
mod state;
mod status;
mod support_bundle;
mod top;
mod tree;
mod version;
mod wait;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{args::Cli, error::Error, exit::Exit, session::Session};

/// The commands, in the order in which `--help` lists them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a task and everything below it, a line each; live on a terminal.
    Tree(tree::Args),
    /// Show one task in depth: progress, pace, errors, stragglers, what to do next; live on a terminal.
    Status(status::Args),
    /// Print a line for each transition as it happens.
    Watch(watch::Args),
    /// Wait until tasks have come to something; ends at once where that can't be any more.
    Wait(wait::Args),
    /// Print what workers say, planner and commit too.
    Logs(logs::Args),
    /// Print the events of a task and of everything below it.
    Events(events::Args),
    /// Show how fast tasks collect and what their workers use.
    Top(top::Args),
    /// List the files of a task's valid run.
    Files(files::Args),
    /// Pause tasks: workers leave a checkpoint and go.
    Pause(control::TaskArgs),
    /// Let paused tasks go on.
    Resume(control::TaskArgs),
    /// Cancel tasks; what was committed stays.
    Cancel(control::TaskArgs),
    /// Have what failed or was cancelled tried again.
    Retry(control::RetryArgs),
    /// Collect whole trees anew, as a new run.
    Rerun(control::RerunArgs),
    /// Change how many workers a task may have at once.
    Scale(control::ScaleArgs),
    /// Judge files as the API server would, without one, and give advice.
    Lint(lint::Args),
    /// Show what a task would create: tasks, shards, names, places at the sink, and what it costs.
    ExplainPlan(explain_plan::Args),
    /// Show what the comparison with the source came to: for people, scripts, or as a page.
    Report(report::Args),
    /// Say why a task does not move, what shows it, and what to do.
    Diagnose(diagnose::Args),
    /// Gather what somebody who helps needs to see, redacted, as one file.
    SupportBundle(support_bundle::Args),
    /// Show versions: of this program, of the operator, of the API that the cluster serves.
    Version(version::Args),
    /// Write a script that completes words in a shell.
    Completion(completion::Args),
}

fn main() -> ExitCode {
    // One TLS provider in the tree; a second call is a mistake that would only show at the first TLS connection.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::remark(&format!("error: no runtime: {error}"));
            return Exit::Unable.into();
        }
    };
    let done = runtime.block_on(async {
        if completion::is_asked(std::env::args_os().next().as_deref()) {
            let words: Vec<String> =
                std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
            return completion::answer(&words).await;
        }
        let cli = Cli::parse();
        run(&cli.command, &Session::new(cli.global)).await
    });
    // What nobody waits for any more must not hold the end.
    runtime.shutdown_background();
    let exit = done.unwrap_or_else(|error| {
        if !matches!(error, Error::Closed) {
            output::remark(&format!("error: {error}"));
        }
        error.exit()
    });
    exit.into()
}

async fn run(command: &Command, session: &Session) -> Result<Exit, Error> {
    match command {
        Command::Tree(args) => tree::run(args, session).await,
        Command::Status(args) => status::run(args, session).await,
        Command::Watch(args) => watch::run(args, session).await,
        Command::Wait(args) => wait::run(args, session).await,
        Command::Logs(args) => logs::run(args, session).await,
        Command::Events(args) => events::run(args, session).await,
        Command::Top(args) => top::run(args, session).await,
        Command::Files(args) => files::run(args, session).await,
        Command::Pause(args) => control::pause(args, session).await,
        Command::Resume(args) => control::resume(args, session).await,
        Command::Cancel(args) => control::cancel(args, session).await,
        Command::Retry(args) => control::retry(args, session).await,
        Command::Rerun(args) => control::rerun(args, session).await,
        Command::Scale(args) => control::scale(args, session).await,
        Command::Lint(args) => lint::run(args, session).await,
        Command::ExplainPlan(args) => explain_plan::run(args, session).await,
        Command::Report(args) => report::run(args, session).await,
        Command::Diagnose(args) => diagnose::run(args, session).await,
        Command::SupportBundle(args) => support_bundle::run(args, session).await,
        Command::Version(args) => version::run(args, session).await,
        Command::Completion(args) => completion::run(args),
    }
}

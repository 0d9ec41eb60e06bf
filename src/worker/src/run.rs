//! Carries out an assignment from its environment to its exit code.

use std::{future::Future, time::Duration};

use collect_api::protocol::{
    Assignment, Checkpoint, PlanWork, TerminationMessage, Usage, Work, WorkError, WorkResult, exit,
};
use collect_data::{Control, Ending, Error, Settings, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{Instrument, Span};

use crate::{assignment, log, report::Reporter, termination, usage};

/// Longest time that a worker which leaves spends on handing over its checkpoint; it is in the termination message too.
const LAST_REPORT: Duration = Duration::from_secs(3);

/// Longest time that a worker whose work has ended spends on handing over its spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// How the work ended.
struct End {
    code: i32,
    result: Option<WorkResult>,
    error: Option<WorkError>,
    checkpoint: Option<Checkpoint>,
}

impl End {
    fn with(code: i32) -> Self {
        Self { code, result: None, error: None, checkpoint: None }
    }

    fn done(code: i32, result: WorkResult) -> Self {
        Self { result: Some(result), ..Self::with(code) }
    }

    fn failed(error: &Error) -> Self {
        Self { error: Some(error.to_work_error()), ..Self::with(error.class().exit_code()) }
    }
}

/// Carries out the assignment and gives the exit code.
pub async fn run() -> i32 {
    log::start();
    let assignment = match assignment::read() {
        Ok(assignment) => assignment,
        Err(message) => {
            tracing::error!(why = message, "no assignment");
            let error = WorkError { reason: "AssignmentInvalid".into(), message, retry_after_ms: None };
            let end = End { error: Some(error), ..End::with(exit::PERMANENT) };
            return leave(end, Usage::default());
        }
    };
    let code = carry_out(&assignment, &assignment::settings()).instrument(log::span(&assignment)).await;
    collect_telemetry::flush(LAST_SPANS).await;
    code
}

async fn carry_out(assignment: &Assignment, settings: &Settings) -> i32 {
    let control = Control::new(&assignment.rate_share);
    let listening = tokio::spawn(pause_on_signal(control.clone()).in_current_span());
    let reporter = Reporter::new(assignment, &control);
    let reporting = reporter.clone().map(|reporter| {
        let first_after_ms = assignment.report_after_ms;
        tokio::spawn(async move { reporter.run(first_after_ms).await }.in_current_span())
    });
    tracing::info!(slice = assignment.identity.slice_folder(), "the work begins");
    let mut end = work(assignment, settings, &control, reporter.as_deref()).await;
    if let Some(reporting) = &reporting {
        reporting.abort();
    }
    listening.abort();
    hand_over_checkpoint(&mut end, reporter.as_deref()).await;
    leave(end, usage_of(&control))
}

async fn work(assignment: &Assignment, settings: &Settings, control: &Control, reporter: Option<&Reporter>) -> End {
    match &assignment.work {
        Work::Collect(work) => match collect_data::collect(assignment, work, settings, control).await {
            Ok(Ending::Done(result)) => End::done(exit::DONE, WorkResult::Collect(result)),
            Ok(Ending::AlreadyCommitted(result)) => End::done(exit::ALREADY_COMMITTED, WorkResult::Collect(result)),
            Ok(Ending::Checkpointed(checkpoint)) => {
                End { checkpoint: Some(checkpoint), ..End::with(exit::CHECKPOINTED) }
            }
            Ok(Ending::Fenced) => End::with(exit::FENCED),
            Err(error) => End { checkpoint: control.progress().checkpoint, ..End::failed(&error) },
        },
        Work::Plan(work) => unless_stopped(control, plan(assignment, work, settings, control, reporter)).await,
        Work::Commit(work) => {
            let commit = async {
                match collect_data::commit(assignment, work, settings, control).await {
                    Ok(result) => End::done(exit::DONE, WorkResult::Commit(result)),
                    Err(error) => End::failed(&error),
                }
            };
            unless_stopped(control, commit).await
        }
        Work::Hook(work) => {
            let hook = async {
                match collect_data::hook(work, settings, control).await {
                    Ok(result) => End::done(exit::DONE, WorkResult::Hook(result)),
                    Err(error) => End::failed(&error),
                }
            };
            unless_stopped(control, hook).await
        }
    }
}

async fn plan(
    assignment: &Assignment,
    work: &PlanWork,
    settings: &Settings,
    control: &Control,
    reporter: Option<&Reporter>,
) -> End {
    match collect_data::plan(assignment, work, settings, control).await {
        Ok(plan) => {
            if let Some(reporter) = reporter {
                let span = tracing::debug_span!("hand over", chunks = plan.result.chunks);
                reporter.hand_over(&plan.chunks).instrument(span).await;
            }
            End::done(exit::DONE, WorkResult::Plan(plan.result))
        }
        Err(error) => End::failed(&error),
    }
}

/// Planner, commit and hook have no checkpoint: they leave at once and begin anew.
async fn unless_stopped(control: &Control, work: impl Future<Output = End>) -> End {
    tokio::select! {
        biased;
        signal = control.stopped() => End::with(match signal {
            Signal::Abort => exit::FENCED,
            Signal::Go | Signal::Pause => exit::CHECKPOINTED,
        }),
        end = work => end,
    }
}

async fn pause_on_signal(control: Control) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals can't be heard: a pause will not leave a checkpoint");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to leave");
    control.send(Signal::Pause);
}

/// A checkpoint that the operator has taken needs no place in the termination message.
async fn hand_over_checkpoint(end: &mut End, reporter: Option<&Reporter>) {
    let (Some(checkpoint), Some(reporter)) = (&end.checkpoint, reporter) else { return };
    if reporter.confirmed() < checkpoint.seq {
        let _ = tokio::time::timeout(LAST_REPORT, reporter.report()).await;
    }
    if reporter.confirmed() >= checkpoint.seq {
        end.checkpoint = None;
    }
}

fn usage_of(control: &Control) -> Usage {
    let (records, bytes) = control.written();
    Usage {
        peak_memory_bytes: usage::peak_memory_bytes(),
        cpu_seconds: usage::cpu_seconds(),
        records,
        bytes,
        requests: control.requests(),
        retries: control.retries(),
    }
}

/// Notes in the worker's span how it ended.
fn note(end: &End, usage: &Usage) {
    let span = Span::current();
    span.record("exit_code", end.code).record("records", usage.records).record("requests", usage.requests);
    if let Some(error) = &end.error {
        span.record("reason", &error.reason).record("otel.status_code", "ERROR");
    }
}

/// Writes the last words and gives the exit code.
fn leave(end: End, usage: Usage) -> i32 {
    match &end.error {
        Some(error) => tracing::error!(reason = error.reason, error.message, code = end.code, "the work failed"),
        None => tracing::info!(
            code = end.code,
            records = usage.records,
            requests = usage.requests,
            peak_memory_bytes = usage.peak_memory_bytes,
            cpu_seconds = usage.cpu_seconds,
            "the work ended"
        ),
    }
    note(&end, &usage);
    let message = TerminationMessage { result: end.result, error: end.error, checkpoint: end.checkpoint, usage };
    let path = assignment::termination_log();
    if let Err(error) = termination::write(&path, &message) {
        tracing::error!(%error, path = %path.display(), "no termination message");
    }
    end.code
}

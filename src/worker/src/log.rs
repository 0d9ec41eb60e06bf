//! Structured logs on stderr, one JSON object a line, and the span that they stand in.

use collect_api::protocol::{Assignment, Work};
use tracing::{Span, field::Empty};

/// Starts logging; `RUST_LOG` sets what is logged (default: info). With an OTLP endpoint in the environment, spans are exported.
pub fn start() {
    collect_telemetry::start("collect-worker", env!("CARGO_PKG_VERSION"), collect_telemetry::Format::Json, "info");
    collect_telemetry::export();
}

/// The span of everything that is done for an assignment: its fields are in every line. It is an error's so that no log filter
/// takes the trace id out of a line.
pub fn span(assignment: &Assignment) -> Span {
    let identity = &assignment.identity;
    let origin = assignment.origin.as_ref();
    let span = tracing::error_span!(
        "worker",
        trace_id = assignment.trace_id,
        namespace = identity.namespace,
        root = identity.root,
        run = identity.run,
        task = origin.map(|origin| origin.task.as_str()),
        shard = origin.and_then(|origin| origin.shard.as_deref()),
        work = kind(&assignment.work),
        attempt = assignment.attempt,
        exit_code = Empty,
        reason = Empty,
        records = Empty,
        requests = Empty,
        otel.status_code = Empty,
    );
    if let Some(origin) = origin {
        collect_telemetry::adopt(&span, &origin.traceparent);
    }
    span
}

/// What kind of work it is, in a word.
pub fn kind(work: &Work) -> &'static str {
    match work {
        Work::Collect(_) => "collect",
        Work::Plan(_) => "plan",
        Work::Commit(_) => "commit",
        Work::Hook(_) => "hook",
    }
}

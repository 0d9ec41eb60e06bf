//! Spans that cross processes: one that has its parent elsewhere, and one that is handed over as a whole.

use std::{borrow::Cow, time::SystemTime};

use opentelemetry::{
    Context, InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::export;

/// Makes a span the child of one that another process knows, by the W3C's `traceparent`. To be called before it is entered.
/// What is no `traceparent` changes nothing.
pub fn adopt(span: &tracing::Span, traceparent: &str) {
    if export::is_on()
        && let Some(parent) = parse(traceparent)
    {
        // It fails only for a span that nobody exports.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// A span that is over, with ids that were derived: whoever began it need not be the one who hands it over.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its own ids, as a `traceparent`.
    pub own: String,
    /// Its parent's.
    pub parent: Option<String>,
    /// Name.
    pub name: &'static str,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What is known of it.
    pub attributes: Vec<KeyValue>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// Hands over a span that is over.
pub fn emit(span: Finished) {
    if export::is_on()
        && let Some(own) = parse(&span.own)
    {
        export::push(data(span, own));
    }
}

fn data(span: Finished, own: SpanContext) -> SpanData {
    let parent = span.parent.as_deref().and_then(parse);
    SpanData {
        span_context: own,
        parent_span_id: parent.as_ref().map_or(SpanId::INVALID, SpanContext::span_id),
        parent_span_is_remote: parent.is_some(),
        span_kind: SpanKind::Internal,
        name: Cow::Borrowed(span.name),
        start_time: span.start,
        // Times of a ledger are whole seconds.
        end_time: span.end.max(span.start),
        attributes: span.attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: span.error.map_or(Status::Unset, Status::error),
        instrumentation_scope: InstrumentationScope::builder(export::SCOPE).build(),
    }
}

/// Version 00 of the W3C's Trace Context.
fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version != "00" || trace.len() != 32 || span.len() != 16 || parts.next().is_some() {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    Some(SpanContext::new(trace, span, flags, true, TraceState::NONE)).filter(SpanContext::is_valid)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OWN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_whole_or_not_at_all() {
        let context = parse(OWN).unwrap();
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
        assert!(context.is_sampled() && context.is_remote());
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319x-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-9",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_finished_span_keeps_its_ids_and_never_ends_before_it_begins() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        let span = Finished {
            own: OWN.into(),
            parent: Some(PARENT.into()),
            name: "attempt",
            start,
            end: SystemTime::UNIX_EPOCH,
            attributes: vec![KeyValue::new("outcome", "Crashed")],
            error: Some("it crashed".into()),
        };
        let data = data(span, parse(OWN).unwrap());
        assert_eq!(data.span_context.span_id().to_string(), "b7ad6b7169203331");
        assert_eq!(data.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!((data.start_time, data.end_time), (start, start));
        assert_eq!(data.status, Status::error("it crashed"));
    }
}

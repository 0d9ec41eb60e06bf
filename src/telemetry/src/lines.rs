//! Log lines on stderr. In JSON every field of the spans around an event stands beside the event's own, so that a query for
//! a trace id finds a line wherever it was written.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::{JsonFields, Writer},
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt,
    registry::{LookupSpan, SpanRef},
    util::SubscriberInitExt,
};

use crate::export;

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Starts logging, and the making of spans if an endpoint is set; a second start changes nothing. `RUST_LOG` says what is
/// logged, `default_filter` where it is not set.
pub fn start(service: &'static str, version: &'static str, format: Format, default_filter: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_filter));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Json => lines.fmt_fields(JsonFields::new()).event_format(Flat).boxed(),
        Format::Text => lines.boxed(),
    };
    let (spans, problem) = match export::layer(service, version) {
        Ok(layer) => (layer, None),
        Err(problem) => (None, Some(problem)),
    };
    let started = tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init();
    if let (Ok(()), Some(problem)) = (started, problem) {
        tracing::error!(problem, "no spans are exported; check OTEL_EXPORTER_OTLP_ENDPOINT");
    }
}

/// One flat JSON object a line. Where names meet, what is nearer to the event wins.
struct Flat;

/// Names that stand in every line.
const ALWAYS: [&str; 3] = ["timestamp", "level", "target"];

impl<S, N> FormatEvent<S, N> for Flat
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut own = String::new();
        ctx.field_format().format_fields(Writer::new(&mut own), event)?;
        let mut fields = BTreeMap::new();
        add(&mut fields, &own);
        // What libraries say of themselves in spans would only be noise in every line.
        let ours = |span: &SpanRef<'_, S>| span.metadata().target().starts_with("collect_");
        for span in ctx.event_scope().into_iter().flatten().filter(ours) {
            if let Some(formatted) = span.extensions().get::<FormattedFields<N>>() {
                add(&mut fields, &formatted.fields);
            }
        }
        let metadata = event.metadata();
        write!(writer, "{{\"timestamp\":\"")?;
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\",\"level\":\"{}\",\"target\":{}", metadata.level(), text(metadata.target()))?;
        for (name, value) in fields.remove_entry("message").into_iter().chain(fields) {
            write!(writer, ",{}:{value}", text(&name))?;
        }
        writeln!(writer, "}}")
    }
}

fn add(fields: &mut BTreeMap<String, Value>, formatted: &str) {
    let Ok(Value::Object(more)) = serde_json::from_str(formatted) else { return };
    for (name, value) in more {
        if !ALWAYS.contains(&name.as_str()) {
            fields.entry(name).or_insert(value);
        }
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn lines(log: impl FnOnce()) -> Vec<Value> {
        let kept = Kept::default();
        let layer = tracing_subscriber::fmt::layer().with_writer(kept.clone()).fmt_fields(JsonFields::new());
        let subscriber = tracing_subscriber::registry().with(layer.event_format(Flat));
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_carries_the_fields_of_all_spans_around_it() {
        let lines = lines(|| {
            let _library = tracing::error_span!(target: "library", "its", noise = 1).entered();
            let outer = tracing::error_span!("pass", trace_id = "abc", shard = "x-0", late = tracing::field::Empty);
            let _outer = outer.enter();
            outer.record("late", 7);
            let _inner = tracing::info_span!("stage", item = 3, shard = "x-1").entered();
            tracing::info!(attempt = 2, level = "mine", "a \"quoted\"\nmessage");
        });
        let line = &lines[0];
        for (name, value) in [
            ("message", Value::from("a \"quoted\"\nmessage")),
            ("level", "INFO".into()),
            ("trace_id", "abc".into()),
            ("shard", "x-1".into()),
            ("item", 3.into()),
            ("late", 7.into()),
            ("attempt", 2.into()),
        ] {
            assert_eq!(line[name], value, "{name}: {line}");
        }
        assert_eq!(line.get("noise"), None, "{line}");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    #[test]
    fn a_line_outside_of_any_span_is_whole() {
        let lines = lines(|| tracing::warn!("alone"));
        assert_eq!((&lines[0]["message"], &lines[0]["level"]), (&Value::from("alone"), &Value::from("WARN")));
    }
}

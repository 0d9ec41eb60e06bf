//! From the end of a span to the endpoint: a bounded queue, batches, and a count of what was lost.
//!
//! An endpoint is set by OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and speaks OTLP over HTTP with
//! protobuf (port 4318 by convention). OTEL_EXPORTER_OTLP_HEADERS and OTEL_RESOURCE_ATTRIBUTES are honoured.

use std::{
    env,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor},
};
use tokio::{
    sync::{
        mpsc::{self, Receiver, Sender, error::TrySendError},
        oneshot, watch,
    },
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::{Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::FilterFn, registry::LookupSpan};

/// Name of the instrumentation.
pub const SCOPE: &str = "collect";
/// Variables that name an endpoint, and that workers are given too.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// Spans that wait for a batch.
const QUEUED: usize = 2048;
/// Spans of a batch.
const BATCH: usize = 512;
/// Longest wait of a span for its batch.
const EVERY: Duration = Duration::from_secs(2);
/// Time that the endpoint has to take a batch.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// Time between two complaints about the endpoint.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What this process exports through; absent without an endpoint.
static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    queue: Sender<Message>,
    /// Until it is started: where batches come from and go to.
    idle: Mutex<Option<(Receiver<Message>, SpanExporter)>>,
    lost: AtomicU64,
    /// Spans that have begun and not ended.
    open: watch::Sender<usize>,
    /// Ends with the process.
    provider: SdkTracerProvider,
}

enum Message {
    Span(Box<SpanData>),
    Flush(oneshot::Sender<()>),
}

/// Whether an endpoint is set.
pub fn is_on() -> bool {
    EXPORT.get().is_some()
}

/// Spans that were lost: the queue was full, or the endpoint did not take them.
pub fn lost() -> u64 {
    EXPORT.get().map_or(0, |export| export.lost.load(Ordering::Relaxed))
}

/// What another process needs to export to the same endpoint. Headers are not among it: they may hold secrets.
pub fn environment() -> Vec<(String, String)> {
    let set = |name: &&str| Some(((*name).to_owned(), env::var(name).ok()?)).filter(|(_, value)| !value.is_empty());
    ENDPOINTS.iter().filter_map(set).collect()
}

/// The layer that makes spans of what `tracing` tells; nothing without an endpoint.
pub fn layer<S>(service: &'static str, version: &'static str) -> Result<Option<impl Layer<S>>, String>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    if environment().is_empty() {
        return Ok(None);
    }
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.version", version))
        .build();
    let exporter = exporter(&resource)?;
    let (queue, receiver) = mpsc::channel(QUEUED);
    let export = EXPORT.get_or_init(|| Export {
        queue,
        idle: Mutex::new(Some((receiver, exporter))),
        lost: AtomicU64::new(0),
        open: watch::Sender::new(0),
        provider: SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource)
            .with_span_processor(Queued)
            .build(),
    });
    let layer = tracing_opentelemetry::layer()
        .with_tracer(export.provider.tracer(SCOPE))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false);
    Ok(Some(layer.with_filter(ours())))
}

/// Spans of our own crates, also those that no log line shows, and what is logged within them.
fn ours() -> FilterFn<impl Fn(&tracing::Metadata<'_>) -> bool> {
    FilterFn::new(|metadata: &tracing::Metadata<'_>| {
        let finest = if metadata.is_span() { Level::DEBUG } else { Level::INFO };
        metadata.target().starts_with("collect_") && *metadata.level() <= finest
    })
    .with_max_level_hint(LevelFilter::DEBUG)
}

fn exporter(resource: &Resource) -> Result<SpanExporter, String> {
    let is_encrypted = environment().iter().any(|(_, url)| url.starts_with("https:"));
    let client = reqwest::Client::builder()
        .tls_certs_only(if is_encrypted { certificates() } else { Vec::new() })
        .redirect(reqwest::redirect::Policy::none())
        .timeout(SEND_WITHIN)
        .build()
        .map_err(|error| error.to_string())?;
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .build()
        .map_err(|error| error.to_string())?;
    exporter.set_resource(resource);
    Ok(exporter)
}

/// Certificate authorities of the system, else the Mozilla list: an empty image has no files of them.
fn certificates() -> Vec<reqwest::Certificate> {
    let read = |certificates: &[_]| -> Vec<_> {
        certificates
            .iter()
            .filter_map(|der: &_| reqwest::Certificate::from_der(AsRef::<[u8]>::as_ref(der)).ok())
            .collect()
    };
    let system = rustls_native_certs::load_native_certs().certs;
    if system.is_empty() { read(webpki_root_certs::TLS_SERVER_ROOT_CERTS) } else { read(&system) }
}

/// Hands ended spans to the queue, and never waits.
#[derive(Debug)]
struct Queued;

impl SpanProcessor for Queued {
    fn on_start(&self, _span: &mut Span, _context: &opentelemetry::Context) {
        if let Some(export) = EXPORT.get() {
            export.open.send_modify(|open| *open += 1);
        }
    }

    fn on_end(&self, span: SpanData) {
        if let Some(export) = EXPORT.get() {
            if !is_idle(&span) {
                push(span);
            }
            export.open.send_modify(|open| *open = open.saturating_sub(1));
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Whether a span says of itself that nothing was done in it.
fn is_idle(span: &SpanData) -> bool {
    span.attributes.iter().any(|attribute| attribute.key.as_str() == "idle" && attribute.value.as_str() == "true")
}

/// Puts a span into the queue if there is room.
pub fn push(span: SpanData) {
    let Some(export) = EXPORT.get() else { return };
    match export.queue.try_send(Message::Span(Box::new(span))) {
        Ok(()) => {}
        Err(TrySendError::Full(_) | TrySendError::Closed(_)) => lose(export, 1),
    }
}

fn lose(export: &Export, spans: usize) {
    export.lost.fetch_add(u64::try_from(spans).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Begins to export, on the current runtime; nothing without an endpoint.
pub fn export() {
    let Some(export) = EXPORT.get() else { return };
    let idle = export.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((queue, exporter)) = idle {
        tokio::spawn(run(queue, exporter, export));
    }
}

async fn run(mut queue: Receiver<Message>, exporter: SpanExporter, export: &'static Export) {
    let mut batch = Vec::new();
    let mut complained = None;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut waits = None;
        tokio::select! {
            message = queue.recv() => match message {
                Some(Message::Span(span)) => {
                    batch.push(*span);
                    if batch.len() < BATCH {
                        continue;
                    }
                }
                Some(Message::Flush(done)) => waits = Some(done),
                None => return,
            },
            _ = tick.tick() => {}
        }
        if !batch.is_empty() {
            send(&exporter, std::mem::take(&mut batch), export, &mut complained).await;
        }
        if let Some(done) = waits {
            // Nobody may wait any more.
            let _ = done.send(());
        }
    }
}

async fn send(exporter: &SpanExporter, batch: Vec<SpanData>, export: &Export, complained: &mut Option<Instant>) {
    let spans = batch.len();
    let problem = match timeout(SEND_WITHIN, exporter.export(batch)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", SEND_WITHIN.as_secs()),
    };
    lose(export, spans);
    if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
        *complained = Some(Instant::now());
        let lost = export.lost.load(Ordering::Relaxed);
        tracing::warn!(problem, lost, "spans are lost: the OTLP endpoint does not take them; the work goes on");
    }
}

/// Waits until all spans have ended and been exported, at most this long.
pub async fn flush(limit: Duration) {
    let Some(export) = EXPORT.get() else { return };
    let end = Instant::now() + limit;
    // One that does not end must not keep back the others.
    let _ = timeout(limit / 4, export.open.subscribe().wait_for(|open| *open == 0)).await;
    let (done, waits) = oneshot::channel();
    let flushed = async {
        if export.queue.send(Message::Flush(done)).await.is_ok() {
            let _ = waits.await;
        }
    };
    let _ = tokio::time::timeout_at(end, flushed).await;
}

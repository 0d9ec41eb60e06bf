//! A receiver of OTLP as a child process, which reads with the OpenTelemetry Collector's code, and the spans that it was sent.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::process::{Child, Command};

use crate::{Space, cluster, operator::free_address};

/// A receiver. Dropping it kills it.
#[derive(Debug)]
pub struct Receiver {
    /// Where it is reached: the value of OTEL_EXPORTER_OTLP_ENDPOINT.
    pub url: String,
    file: PathBuf,
    _child: Child,
}

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Span {
    /// Name of the program that sent it.
    pub service: String,
    /// Its trace.
    pub trace: String,
    /// Its id.
    pub id: String,
    /// Id of its parent; empty for a root.
    pub parent: String,
    /// Name.
    pub name: String,
    /// Beginning and end, in nanoseconds since 1970.
    pub time: (u64, u64),
    /// Whether it failed.
    pub is_error: bool,
    /// Attributes; numbers that come as text are numbers here.
    pub attributes: Map<String, Value>,
}

impl Receiver {
    /// Builds and starts a receiver, and waits until it listens.
    pub async fn start(space: &Space) -> Self {
        let address = free_address();
        let file = space.folder.join("spans.jsonl");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program())
            .args(["--listen", &address, "--out"])
            .arg(&file)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the receiver can be started");
        let listens = async {
            // Nothing announces it but the port itself.
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            while tokio::net::TcpStream::connect(&address).await.is_err() {
                tick.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), listens).await.expect("the receiver listens within 30 s");
        Self { url: format!("http://{address}"), file, _child: child }
    }

    /// What arrived so far.
    pub fn spans(&self) -> Vec<Span> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        // What follows the last line break is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().flat_map(|line| read(&serde_json::from_str(line).expect("a line is JSON"))).collect()
    }

    /// Waits until what arrived lacks nothing any more; `missing` names what is.
    ///
    /// # Panics
    /// After `limit`.
    pub async fn until(&self, limit: Duration, missing: impl Fn(&[Span]) -> Vec<String>) -> Vec<Span> {
        let end = tokio::time::Instant::now() + limit;
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tick.tick().await;
            let spans = self.spans();
            let missing = missing(&spans);
            if missing.is_empty() {
                return spans;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "after {limit:?} of {} spans are missing: {missing:#?}",
                spans.len()
            );
        }
    }
}

/// The receiver's program, built once, beside the test's own.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = std::env::current_exe().expect("a test knows its own path").with_file_name("otel-receiver");
        cluster::run(
            std::process::Command::new("go")
                .current_dir(cluster::repository().join("tests/otel"))
                .env("CGO_ENABLED", "0")
                .env("GOTOOLCHAIN", "local")
                .args(["build", "-trimpath", "-tags", "grpcnotrace", "-o"])
                .arg(&program)
                .arg("."),
        );
        program
    })
}

/// The spans of a request in OTLP/JSON.
fn read(request: &Value) -> Vec<Span> {
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let mut spans = Vec::new();
    for resource in list(request, "resourceSpans") {
        let about = attributes(&resource["resource"]["attributes"]);
        let service = about.get("service.name").and_then(Value::as_str).unwrap_or_default().to_owned();
        for span in list(&resource, "scopeSpans").iter().flat_map(|scope| list(scope, "spans")) {
            let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
            let nanoseconds = |name: &str| text(name).parse().expect("a time is a number");
            spans.push(Span {
                service: service.clone(),
                trace: text("traceId"),
                id: text("spanId"),
                parent: text("parentSpanId"),
                name: text("name"),
                time: (nanoseconds("startTimeUnixNano"), nanoseconds("endTimeUnixNano")),
                is_error: span["status"]["code"] == 2,
                attributes: attributes(&span["attributes"]),
            });
        }
    }
    spans
}

fn attributes(list: &Value) -> Map<String, Value> {
    let one = |attribute: &Value| {
        let value = attribute["value"].as_object()?;
        let value = match value.get("intValue").and_then(Value::as_str) {
            Some(number) => number.parse::<i64>().ok()?.into(),
            None => value.values().next()?.clone(),
        };
        Some((attribute["key"].as_str()?.to_owned(), value))
    };
    list.as_array().into_iter().flatten().filter_map(one).collect()
}

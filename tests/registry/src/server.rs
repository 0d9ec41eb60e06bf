//! The HTTP side: routes, the gate in front of them (log, rate, credentials, faults), and a handle to all of it.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower_service::Service;

use crate::control::{self, Controlled};
use crate::journal::{Entry, Journal, Ticket};
use crate::listen::{Reset, cut, listen};
use crate::options::{Effect, Options};
use crate::paging::{self, Asked, Params, Place};
use crate::registry::{Registry, Row};
use crate::trigger::Faults;

/// Where hooks are received; what they bring is kept in the log.
const HOOKS: &str = "/api/hooks/";
const MAX_HOOK_BYTES: usize = 64 * 1024;

/// Starts a server on the current runtime. Port 0 takes a free one.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(registry: impl Into<Arc<Registry>>, options: Options, addr: SocketAddr) -> io::Result<Running> {
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let control = Control {
        registry: registry.into(),
        journal: Journal::default(),
        rules: Arc::new(Mutex::new(Arc::new(Rules::new(options)))),
    };
    let router = router(control.clone());
    let task = tokio::spawn(async move {
        listen(listener, move |request| {
            let mut router = router.clone();
            async move {
                let Ok(response) = router.call(request.map(Body::new)).await;
                response
            }
        })
        .await;
    });
    Ok(Running { addr, control, task })
}

/// A running server; dropping it ends the server and every connection to it.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Handle to options, log and figures.
    pub control: Control,
    task: JoinHandle<()>,
}

impl Running {
    /// `http://host:port`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// All requests in the log.
    pub fn log(&self) -> Vec<Entry> {
        self.control.journal.since(0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Options, log and figures of a running server. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Control {
    registry: Arc<Registry>,
    /// The log of requests under `/api`; those to the server's own endpoints are not in it.
    pub journal: Journal,
    rules: Arc<Mutex<Arc<Rules>>>,
}

impl Control {
    fn slot(&self) -> MutexGuard<'_, Arc<Rules>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.slot())
    }

    /// The data being served.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Controlled for Control {
    type Options = Options;

    fn options(&self) -> Options {
        self.rules().options.clone()
    }

    fn set_options(&self, options: Options) {
        let before = std::mem::replace(&mut *self.slot(), Arc::new(Rules::new(options)));
        before.faults.release();
    }

    fn journal(&self) -> &Journal {
        &self.journal
    }
}

/// Options with the state they need.
#[derive(Debug)]
struct Rules {
    options: Options,
    faults: Faults<Effect>,
    bucket: Mutex<(f64, Instant)>,
}

impl Rules {
    fn new(options: Options) -> Self {
        let faults = options.faults.iter().map(|fault| (fault.effect.clone(), fault.when.clone()));
        let faults = Faults::new(faults, options.seed);
        let bucket = Mutex::new((Self::burst(&options), Instant::now()));
        Self { options, faults, bucket }
    }

    fn burst(options: &Options) -> f64 {
        options.burst.map_or(options.requests_per_second.unwrap_or_default(), f64::from).max(1.0)
    }

    /// Takes a token, or says in how many seconds there will be one.
    fn admit(&self, now: Instant) -> Result<(), u64> {
        let Some(rate) = self.options.requests_per_second.filter(|rate| *rate > 0.0) else { return Ok(()) };
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, filled) = *bucket;
        let elapsed = now.saturating_duration_since(filled).as_secs_f64();
        let tokens = (tokens + elapsed * rate).min(Self::burst(&self.options));
        if tokens >= 1.0 {
            *bucket = (tokens - 1.0, now);
            return Ok(());
        }
        *bucket = (tokens, now);
        Err((((1.0 - tokens) / rate).ceil() as u64).max(1))
    }

    fn lets_in(&self, headers: &HeaderMap) -> bool {
        let options = &self.options;
        let sent = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = options.token.as_ref().map(|token| ("authorization", format!("Bearer {token}")));
        let basic = options.basic.as_ref().map(|pair| ("authorization", format!("Basic {}", STANDARD.encode(pair))));
        let key = options.api_key.as_ref().map(|key| (key.header.as_str(), key.value.clone()));
        let mut accepted = [bearer, basic, key].into_iter().flatten().peekable();
        accepted.peek().is_none() || accepted.any(|(name, value)| sent(name) == Some(value.as_str()))
    }

    fn carries_credentials(&self, headers: &HeaderMap) -> bool {
        let key = self.options.api_key.as_ref().is_some_and(|key| headers.contains_key(key.header.as_str()));
        key || headers.contains_key(header::AUTHORIZATION)
    }
}

/// The effects on one request, for the handlers behind the gate.
#[derive(Clone, Debug, Default)]
struct Effects(Arc<Vec<Effect>>);

/// Records in an answer, for the log.
#[derive(Clone, Copy, Debug)]
struct Records(u64);

fn router(control: Control) -> Router {
    Router::new()
        .route("/api/summary", get(summary))
        .route("/api/graphql", post(graphql))
        .route("/api/hooks/{name}", any(|| async { StatusCode::NO_CONTENT }))
        .route("/api/{level}", get(whole_level))
        .route("/api/{parent}/{code}/summary", get(summary_below))
        .route("/api/{parent}/{code}/{level}", get(level_below))
        .merge(control::endpoints())
        .fallback(|| async { refused(StatusCode::NOT_FOUND, "no such path") })
        .layer(from_fn_with_state(control.clone(), gate))
        .with_state(control)
}

fn refused(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(json!({"error": message}))).into_response()
}

// The gate.

/// Logs the request, then lets rate, credentials and faults decide before the handler sees it; afterwards spoils,
/// compresses or cuts the answer.
async fn gate(State(control): State<Control>, mut request: Request, next: Next) -> Response {
    if request.uri().path().starts_with("/_") {
        return next.run(request).await;
    }
    let uri = request.uri().clone();
    let method = request.method().as_str().to_owned();
    let rules = control.rules();
    let credentials = rules.carries_credentials(request.headers());
    let ticket = control.journal.begin(&method, uri.path(), uri.query().unwrap_or_default(), credentials);
    if uri.path().starts_with(HOOKS) {
        let (parts, body) = request.into_parts();
        let bytes = to_bytes(body, MAX_HOOK_BYTES).await.unwrap_or_default();
        ticket.body(String::from_utf8_lossy(&bytes).into_owned());
        request = Request::from_parts(parts, bytes.into());
    }

    if let Err(seconds) = rules.admit(Instant::now()) {
        let response = refused(StatusCode::TOO_MANY_REQUESTS, "too many requests");
        return finish(&ticket, with_retry_after(response, Some(seconds)), &[], false).await;
    }
    if !rules.lets_in(request.headers()) {
        let mut response = refused(StatusCode::UNAUTHORIZED, "credentials are missing or wrong");
        let challenge = if rules.options.token.is_some() { "Bearer" } else { "Basic realm=\"registry\"" };
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        return finish(&ticket, response, &[], false).await;
    }
    let effects = Arc::new(rules.faults.on(&method, uri.path(), uri.query().unwrap_or_default()));
    for effect in effects.iter() {
        ticket.fault(effect.name());
    }
    let gzip = accepts_gzip(request.headers());
    for effect in effects.iter() {
        if let Some(response) = instead(effect, &rules).await {
            return finish(&ticket, response, &[], gzip).await;
        }
    }
    request.extensions_mut().insert(Effects(Arc::clone(&effects)));
    let response = next.run(request).await;
    finish(&ticket, response, &effects, gzip).await
}

/// What an effect answers in place of the handler, if it does.
async fn instead(effect: &Effect, rules: &Rules) -> Option<Response> {
    match effect {
        Effect::Status { code, retry_after_seconds } => {
            let status = StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Some(with_retry_after(refused(status, "injected fault"), *retry_after_seconds))
        }
        Effect::Html => {
            let page = "<!doctype html><html><body><h1>Maintenance</h1><p>We are back soon.</p></body></html>\n";
            Some(axum::response::Html(page).into_response())
        }
        Effect::Delay { milliseconds } => {
            tokio::time::sleep(Duration::from_millis(*milliseconds)).await;
            None
        }
        Effect::Hold => {
            rules.faults.hold().await;
            None
        }
        Effect::Stuck => std::future::pending().await,
        Effect::Reset => {
            let mut response = Response::default();
            response.extensions_mut().insert(Reset);
            Some(response)
        }
        Effect::Cut
        | Effect::TruncatedJson
        | Effect::WrongTotal { .. }
        | Effect::ClampSize { .. }
        | Effect::Duplicate { .. }
        | Effect::HideRows { .. }
        | Effect::FirstPageForever => None,
    }
}

fn with_retry_after(mut response: Response, seconds: Option<u64>) -> Response {
    if let Some(seconds) = seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (coding, q) = coding.split_once(';').unwrap_or((coding, ""));
        coding.trim() == "gzip" && q.replace(' ', "") != "q=0"
    })
}

fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

async fn finish(ticket: &Ticket, response: Response, effects: &[Effect], gzip: bool) -> Response {
    if response.extensions().get::<Reset>().is_some() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let mut bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
    if effects.contains(&Effect::TruncatedJson) {
        bytes.truncate(bytes.len() / 2);
    }
    if gzip
        && bytes.len() > 256
        && let Ok(compressed) = compress(&bytes)
    {
        bytes = compressed.into();
        parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    parts.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    let records = parts.extensions.get::<Records>().map_or(0, |records| records.0);
    ticket.answered(parts.status.as_u16(), records, bytes.len() as u64);
    let body = if effects.contains(&Effect::Cut) { cut(bytes) } else { Body::from(bytes) };
    Response::from_parts(parts, body)
}

// Lists.

#[derive(Serialize)]
struct Page<'a> {
    data: Vec<Row<'a>>,
    total: u64,
    page: usize,
    size: usize,
    next: Option<String>,
    cursor: Option<String>,
    has_more: bool,
}

/// A list as the effects leave it.
struct List {
    level: usize,
    rows: Range<usize>,
    total: u64,
    duplicate_every: Option<usize>,
}

impl List {
    fn new(level: usize, mut rows: Range<usize>, effects: &[Effect]) -> Self {
        let mut added = 0;
        let mut duplicate_every = None;
        for effect in effects {
            match effect {
                Effect::HideRows { rows: hidden, at_start: true } => {
                    rows.start = rows.start.saturating_add(*hidden).min(rows.end)
                }
                Effect::HideRows { rows: hidden, at_start: false } => {
                    rows.end = rows.end.saturating_sub(*hidden).max(rows.start)
                }
                Effect::WrongTotal { add } => added += add,
                Effect::Duplicate { every } => duplicate_every = Some(*every),
                _ => {}
            }
        }
        let total = (rows.len() as u64).saturating_add_signed(added);
        Self { level, rows, total, duplicate_every }
    }

    fn data<'a>(&self, registry: &'a Registry, page: Range<usize>) -> Vec<Row<'a>> {
        let copies = |i: &usize| {
            let twice = self.duplicate_every.is_some_and(|n| n > 0 && (i - self.rows.start + 1).is_multiple_of(n));
            if twice { 2 } else { 1 }
        };
        page.flat_map(|i| std::iter::repeat_n(i, copies(&i))).filter_map(|i| registry.row(self.level, i)).collect()
    }
}

fn asked(params: &Params, effects: &[Effect]) -> Result<Asked, String> {
    let mut asked = Asked::of(params)?;
    for effect in effects {
        match effect {
            Effect::ClampSize { max } => asked.size = asked.size.min(*max).max(1),
            Effect::FirstPageForever => asked.place = Place::Offset(0),
            _ => {}
        }
    }
    Ok(asked)
}

/// One page of a list, with its headers.
fn page(registry: &Registry, level: usize, rows: Range<usize>, request: &ListRequest) -> Response {
    let effects = &request.effects;
    let answer = Asked::of(&request.params).and_then(|style| Ok((style, asked(&request.params, effects)?)));
    let (style, asked) = match answer {
        Ok(pair) => pair,
        Err(message) => return refused(StatusCode::BAD_REQUEST, &message),
    };
    let list = List::new(level, rows, effects);
    let identity = identity(request.uri.path(), &request.params);
    let window = match asked.rows(registry, level, &list.rows, &identity) {
        Ok(window) => window,
        Err(message) => return refused(StatusCode::BAD_REQUEST, &message),
    };
    let has_more = window.end < list.rows.end;
    let last = window.clone().next_back().and_then(|i| registry.code(level, i)).filter(|_| has_more);
    let cursor = last.as_ref().map(|last| paging::seal(&identity, last));
    let next = last.as_ref().zip(cursor.as_ref()).map(|(last, cursor)| {
        let params = Asked { size: asked.size, ..style.clone() }.next(&request.params, last, cursor);
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
        format!("http://{}{}?{query}", request.host, request.uri.path())
    });
    let data = list.data(registry, window);
    let records = Records(data.len() as u64);
    let mut headers = HeaderMap::new();
    headers.insert("x-total-count", HeaderValue::from(list.total));
    if let Some(link) = next.as_ref().and_then(|url| HeaderValue::from_str(&format!("<{url}>; rel=\"next\"")).ok()) {
        headers.insert(header::LINK, link);
    }
    let body = Page { data, total: list.total, page: style.page(), size: asked.size, next, cursor, has_more };
    let mut response = (headers, axum::Json(body)).into_response();
    response.extensions_mut().insert(records);
    response
}

/// What a cursor is bound to: the path and the filters, not the paging.
fn identity(path: &str, params: &Params) -> String {
    let filters = params
        .iter()
        .filter(|(name, _)| name == "from" || name == "to")
        .map(|(name, value)| format!("&{name}={value}"));
    filters.fold(path.to_owned(), |identity, filter| identity + &filter)
}

/// The parts of a request that lists look at.
struct ListRequest {
    uri: Uri,
    params: Params,
    host: String,
    effects: Arc<Vec<Effect>>,
}

impl<S: Sync> FromRequestParts<S> for ListRequest {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let query = parts.uri.query().unwrap_or_default();
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let effects = parts.extensions.get::<Effects>().map(|effects| Arc::clone(&effects.0)).unwrap_or_default();
        Ok(Self {
            uri: parts.uri.clone(),
            params: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            host: host.to_owned(),
            effects,
        })
    }
}

async fn whole_level(State(control): State<Control>, Path(level): Path<String>, request: ListRequest) -> Response {
    let registry = &control.registry;
    let Some(level) = registry.level(&level) else { return refused(StatusCode::NOT_FOUND, "no such level") };
    let bound = |name: &str| request.params.iter().find(|(key, _)| key == name).map(|(_, code)| code);
    let all = 0..registry.count(level);
    let end = bound("to").map_or(all.end, |to| registry.lower_bound(level, all.clone(), to));
    let start = bound("from").map_or(0, |from| registry.lower_bound(level, all, from)).min(end);
    page(registry, level, start..end, &request)
}

async fn level_below(
    State(control): State<Control>,
    Path((parent, code, level)): Path<(String, String, String)>,
    request: ListRequest,
) -> Response {
    let registry = &control.registry;
    let levels = registry.level(&parent).zip(registry.level(&level));
    match levels.and_then(|(parent, level)| Some((level, registry.below(parent, &code, level)?))) {
        Some((level, rows)) => page(registry, level, rows, &request),
        None => refused(StatusCode::NOT_FOUND, "no such list"),
    }
}

// Summaries.

fn totals(registry: &Registry, effects: &[Effect], levels: impl Iterator<Item = (usize, Range<usize>)>) -> Response {
    let entry = |(level, rows): (usize, Range<usize>)| {
        let spec = registry.levels().get(level)?;
        Some((spec.plural.to_owned(), json!(List::new(level, rows, effects).total)))
    };
    axum::Json(Value::Object(levels.filter_map(entry).collect())).into_response()
}

async fn summary(State(control): State<Control>, request: ListRequest) -> Response {
    let registry = &control.registry;
    totals(registry, &request.effects, (0..registry.levels().len()).map(|level| (level, 0..registry.count(level))))
}

async fn summary_below(
    State(control): State<Control>,
    Path((parent, code)): Path<(String, String)>,
    request: ListRequest,
) -> Response {
    let registry = &control.registry;
    let parent = registry.level(&parent).filter(|parent| {
        let place = registry.lower_bound(*parent, 0..registry.count(*parent), &code);
        registry.code(*parent, place).as_deref() == Some(&code)
    });
    let Some(parent) = parent else { return refused(StatusCode::NOT_FOUND, "no such row") };
    let below =
        (parent + 1..registry.levels().len()).filter_map(|level| Some((level, registry.below(parent, &code, level)?)));
    totals(registry, &request.effects, below)
}

// Paging in the request body.

#[derive(Deserialize)]
struct Question {
    #[allow(dead_code, reason = "must be there, is not interpreted")]
    query: String,
    #[serde(default)]
    variables: serde_json::Map<String, Value>,
}

/// The lowest level as a connection; a variable named after a level (`district`) narrows it.
///
/// Errors come as GraphQL has them: status 200 and `errors` instead of `data`.
async fn graphql(
    State(control): State<Control>,
    request: ListRequest,
    axum::Json(question): axum::Json<Question>,
) -> Response {
    connection(&control.registry, &request.effects, &question.variables)
        .unwrap_or_else(|message| axum::Json(json!({"errors": [{"message": message}]})).into_response())
}

fn connection(
    registry: &Registry,
    effects: &[Effect],
    variables: &serde_json::Map<String, Value>,
) -> Result<Response, String> {
    let text = |name: &str| {
        variables.get(name).filter(|value| !value.is_null()).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    };
    let lowest = registry.levels().len() - 1;
    let mut rows = 0..registry.count(lowest);
    let mut identity = "graphql".to_owned();
    for (parent, spec) in registry.levels().iter().enumerate() {
        if let Some(code) = text(spec.singular) {
            rows = registry.below(parent, &code, lowest).ok_or_else(|| format!("no {} {code}", spec.singular))?;
            identity = format!("graphql&{}={code}", spec.singular);
        }
    }
    let params: Params =
        [("cursor", text("after").unwrap_or_default()), ("limit", text("n").unwrap_or_else(|| "100".to_owned()))]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
    let list = List::new(lowest, rows, effects);
    let window = asked(&params, effects)?.rows(registry, lowest, &list.rows, &identity)?;
    let has_more = window.end < list.rows.end;
    let last = window.clone().next_back().and_then(|i| registry.code(lowest, i));
    let nodes = list.data(registry, window);
    let records = Records(nodes.len() as u64);
    let page_info = json!({"endCursor": last.map(|last| paging::seal(&identity, &last)), "hasNextPage": has_more});
    let mut response =
        axum::Json(json!({"data": {"items": {"totalCount": list.total, "nodes": nodes, "pageInfo": page_info}}}))
            .into_response();
    response.extensions_mut().insert(records);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bucket_empties_and_fills_again() {
        let rules = Rules::new(Options { requests_per_second: Some(2.0), ..Options::default() });
        let start = Instant::now();
        let at = |seconds: f64| rules.admit(start + Duration::from_secs_f64(seconds));
        assert_eq!([at(0.0), at(0.0), at(0.0)], [Ok(()), Ok(()), Err(1)]);
        assert_eq!([at(0.6), at(0.7)], [Ok(()), Err(1)]);
    }

    #[test]
    fn any_of_the_credentials_is_enough() {
        let key = crate::options::ApiKey { header: "X-Api-Key".into(), value: "k".into() };
        let options =
            Options { token: Some("t".into()), basic: Some("u:p".into()), api_key: Some(key), ..Options::default() };
        let rules = Rules::new(options);
        let lets_in = |name: &'static str, value: &'static str| {
            rules.lets_in(&HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]))
        };
        assert!(lets_in("authorization", "Bearer t"));
        assert!(lets_in("authorization", "Basic dTpw"));
        assert!(lets_in("x-api-key", "k"));
        assert!(!lets_in("authorization", "Bearer x"));
        assert!(!lets_in("accept", "t"));
        assert!(Rules::new(Options::default()).lets_in(&HeaderMap::new()));
    }

    #[test]
    fn gzip_is_used_only_where_accepted() {
        let accepts = |value: &'static str| {
            accepts_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        assert!(accepts("gzip") && accepts("br, gzip;q=0.5"));
        assert!(!accepts("br") && !accepts("gzip;q=0") && !accepts_gzip(&HeaderMap::new()));
    }
}

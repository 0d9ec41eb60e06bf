//! What stands between the socket and s3s: faults, whole bodies, and one writer per key.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use collect_registry::control::{self, Controlled};
use collect_registry::journal::{Entry, Journal, Ticket};
use collect_registry::listen::{Reset, cut, listen};
use collect_registry::trigger::Faults;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use s3s::access::S3Access;
use s3s::auth::SimpleAuth;
use s3s::dto::{CompleteMultipartUploadInput, PutObjectInput};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Request, S3Result};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower_service::Service;

use crate::locks::{Guard, Locks};
use crate::options::{Effect, Fault, Options};

/// Largest request body; it is held in memory.
pub const MAX_BODY_BYTES: usize = 1 << 30;

/// Longest file name of the file system below.
const MAX_NAME_BYTES: usize = 255;

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct S3Server {
    /// Folder with one folder per bucket; created if need be.
    pub dir: PathBuf,
    /// Buckets that are there from the start.
    pub buckets: Vec<String>,
    /// Address of the S3 endpoint; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Address of the control endpoint; port 0 takes a free one.
    pub control: SocketAddr,
    /// Access key that requests must be signed with.
    pub access_key: String,
    /// Its secret key.
    pub secret_key: String,
    /// Faults from the start.
    pub options: Options,
}

impl S3Server {
    /// A server for this folder on free ports of 127.0.0.1, not started yet.
    pub fn new<B: Into<String>>(dir: impl AsRef<Path>, buckets: impl IntoIterator<Item = B>) -> Self {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            dir: dir.as_ref().to_owned(),
            buckets: buckets.into_iter().map(Into::into).collect(),
            listen: local,
            control: local,
            access_key: "test".to_owned(),
            secret_key: "test-secret".to_owned(),
            options: Options::default(),
        }
    }

    /// Starts a server for this folder on free ports of 127.0.0.1.
    ///
    /// # Errors
    /// As [`S3Server::run`].
    pub async fn start<B: Into<String>>(
        dir: impl AsRef<Path>,
        buckets: impl IntoIterator<Item = B>,
    ) -> io::Result<Running> {
        Self::new(dir, buckets).run().await
    }

    /// Starts it on the current runtime.
    ///
    /// # Errors
    /// When the folder cannot be made or an address not be bound.
    pub async fn run(self) -> io::Result<Running> {
        for bucket in &self.buckets {
            fs::create_dir_all(self.dir.join(bucket))?;
        }
        fs::create_dir_all(&self.dir)?;
        let files = FileSystem::new(&self.dir)
            .map_err(|error| io::Error::other(format!("{}: {error:?}", self.dir.display())))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(self.access_key.clone(), self.secret_key.clone()));
        service.set_access(Conditions);

        let control =
            Control { journal: Journal::default(), rules: Arc::new(Mutex::new(Arc::new(Rules::new(self.options)))) };
        let front = Front { service: service.build(), locks: Locks::default(), control: control.clone() };
        let listener = TcpListener::bind(self.listen).await?;
        let addr = listener.local_addr()?;
        let control_listener = TcpListener::bind(self.control).await?;
        let control_addr = control_listener.local_addr()?;
        let endpoints = control::endpoints().with_state(control.clone());
        let tasks = [
            tokio::spawn(async move {
                listen(listener, move |request| front.clone().answer(request)).await;
            }),
            tokio::spawn(async move {
                listen(control_listener, move |request| {
                    let mut endpoints: axum::Router = endpoints.clone();
                    async move {
                        let Ok::<_, Infallible>(response) = endpoints.call(request.map(Body::new)).await;
                        response
                    }
                })
                .await;
            }),
        ];
        Ok(Running {
            endpoint: format!("http://{addr}"),
            control_endpoint: format!("http://{control_addr}"),
            access_key: self.access_key,
            secret_key: self.secret_key,
            control,
            tasks,
        })
    }
}

/// A running server; dropping it ends the server and every connection to it. A write that has begun is completed as
/// long as the runtime lives.
#[derive(Debug)]
pub struct Running {
    /// URL for S3 clients, path style: `http://host:port`.
    pub endpoint: String,
    /// URL of `/_control`, `/_log` and `/_stats`.
    pub control_endpoint: String,
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Handle to faults, log and figures.
    pub control: Control,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Faults, log and figures of a running server. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Control {
    journal: Journal,
    rules: Arc<Mutex<Arc<Rules>>>,
}

impl Control {
    fn slot(&self) -> MutexGuard<'_, Arc<Rules>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.slot())
    }

    /// All requests in the log.
    pub fn log(&self) -> Vec<Entry> {
        self.journal.since(0)
    }

    /// Replaces the faults; they count requests anew.
    pub fn set_faults(&self, faults: impl Into<Vec<Fault>>) {
        let seed = self.options().seed;
        self.set_options(Options { seed, faults: faults.into() });
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
}

impl Rules {
    fn new(options: Options) -> Self {
        let faults = options.faults.iter().map(|fault| (fault.effect.clone(), fault.when.clone()));
        Self { faults: Faults::new(faults, options.seed), options }
    }
}

/// Request extension: drop its conditions.
#[derive(Clone, Copy)]
struct Unconditional;

/// Takes the conditions off a request after its signature, which covers them, was checked.
struct Conditions;

#[async_trait::async_trait]
impl S3Access for Conditions {
    async fn put_object(&self, request: &mut S3Request<PutObjectInput>) -> S3Result<()> {
        if request.extensions.get::<Unconditional>().is_some() {
            (request.input.if_none_match, request.input.if_match) = (None, None);
        }
        Ok(())
    }

    async fn complete_multipart_upload(&self, request: &mut S3Request<CompleteMultipartUploadInput>) -> S3Result<()> {
        if request.extensions.get::<Unconditional>().is_some() {
            (request.input.if_none_match, request.input.if_match) = (None, None);
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Front {
    service: S3Service,
    locks: Locks,
    control: Control,
}

impl Front {
    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
        let signed = request.headers().contains_key(header::AUTHORIZATION);
        let ticket = self.control.journal.begin(request.method().as_str(), &path, &query, signed);
        let rules = self.control.rules();
        let effects = rules.faults.on(request.method().as_str(), &path, &query);
        for effect in &effects {
            ticket.fault(effect.name());
        }
        for effect in &effects {
            match effect {
                Effect::SlowDown => return finish(&ticket, refused(503)),
                Effect::Status { code } => return finish(&ticket, refused(*code)),
                Effect::Delay { milliseconds } => tokio::time::sleep(Duration::from_millis(*milliseconds)).await,
                Effect::Hold => rules.faults.hold().await,
                Effect::Stuck => std::future::pending().await,
                Effect::ResetBefore => return reset(),
                Effect::ResetAfter | Effect::Cut | Effect::IgnoreConditions => {}
            }
        }
        let (mut parts, body) = request.into_parts();
        // The body first, the lock afterwards: a client that stops in the middle must not hold up anyone else.
        let Ok(body) = to_bytes(Body::new(body), MAX_BODY_BYTES).await else { return finish(&ticket, refused(413)) };
        if effects.contains(&Effect::IgnoreConditions) {
            parts.extensions.insert(Unconditional);
        }
        // A task of its own: a write that has begun is completed even if the client leaves.
        let done = tokio::spawn(self.act(Request::from_parts(parts, body))).await;
        let response = done.unwrap_or_else(|_| refused(500));
        if effects.contains(&Effect::ResetAfter) {
            return reset();
        }
        if effects.contains(&Effect::Cut) {
            let (parts, body) = finish(&ticket, response).into_parts();
            let bytes = to_bytes(body, usize::MAX).await.unwrap_or_default();
            return Response::from_parts(parts, cut(bytes));
        }
        finish(&ticket, response)
    }

    /// Lets s3s answer, alone with the key if it writes to it.
    async fn act(self, request: Request<Bytes>) -> Response<Body> {
        let access = Access::of(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
        let of_upload = request.method() == Method::POST;
        if access.key().is_some_and(|path| sidecar_bytes(path, of_upload) > MAX_NAME_BYTES) {
            return refused(400);
        }
        let _guard: Option<Guard> = match &access {
            Access::None => None,
            Access::Reads(path) => Some(self.locks.shared(path).await),
            Access::Writes(path) => Some(self.locks.exclusive(path).await),
        };
        let request = request.map(|bytes| s3s::Body::http_body(http_body_util::Full::new(bytes)));
        self.service.call(request).await.map_or_else(|_| refused(500), |response| response.map(Body::new))
    }
}

/// What a request does to an object, by its decoded path `bucket/key`.
#[derive(Debug, PartialEq, Eq)]
enum Access {
    /// Buckets, lists, and parts of an upload, which only its completion makes visible.
    None,
    Reads(String),
    Writes(String),
}

impl Access {
    fn of(method: &Method, path: &str, query: &str) -> Self {
        let path = percent_decoded(path.trim_start_matches('/'));
        let has = |name: &str| form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == name);
        if path.split_once('/').is_none_or(|(_, key)| key.is_empty()) {
            return Self::None;
        }
        match *method {
            Method::GET | Method::HEAD => Self::Reads(path),
            Method::PUT if has("partNumber") => Self::None,
            Method::POST if has("uploads") => Self::Reads(path),
            _ => Self::Writes(path),
        }
    }

    fn key(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Reads(path) | Self::Writes(path) => Some(path),
        }
    }
}

/// Undoes percent-encoding, and nothing else: in a path `+` is a plus sign.
fn percent_decoded(path: &str) -> String {
    let escaped = format!("k={}", path.replace('+', "%2B").replace('&', "%26"));
    form_urlencoded::parse(escaped.as_bytes()).next().map(|(_, key)| key.into_owned()).unwrap_or_default()
}

/// Length of the longest file name that s3s-fs makes for an object: it keeps what it knows of one in
/// `.bucket-<base64>.object-<base64>.metadata.json`, and of an upload in `….upload-<uuid>.metadata.json`.
fn sidecar_bytes(path: &str, of_upload: bool) -> usize {
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let base64 = |text: &str| (text.len() * 4).div_ceil(3);
    let upload = if of_upload { ".upload-".len() + 36 } else { 0 };
    ".bucket-.object-.metadata.json".len() + upload + base64(bucket) + base64(key)
}

fn reset() -> Response<Body> {
    let mut response = Response::default();
    response.extensions_mut().insert(Reset);
    response
}

fn refused(code: u16) -> Response<Body> {
    let name = match code {
        400 => "KeyTooLongError",
        403 => "AccessDenied",
        404 => "NoSuchKey",
        409 => "ConditionalRequestConflict",
        412 => "PreconditionFailed",
        413 => "EntityTooLarge",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{name}</Code><Message>refused by the test server</Message></Error>"
    );
    let mut response = Response::new(Body::from(xml));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/xml"));
    response
}

fn finish(ticket: &Ticket, response: Response<Body>) -> Response<Body> {
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    ticket.answered(response.status().as_u16(), 0, length.unwrap_or(0));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_that_change_an_object_write() {
        let of = |method: Method, path: &str, query: &str| Access::of(&method, path, query);
        let reads = || Access::Reads("lake/a b+c".to_owned());
        let writes = || Access::Writes("lake/a b+c".to_owned());
        assert_eq!(of(Method::GET, "/lake/a%20b+c", ""), reads());
        assert_eq!(of(Method::PUT, "/lake/a%20b%2Bc", ""), writes());
        assert_eq!(of(Method::PUT, "/lake/a%20b+c", "partNumber=1&uploadId=u"), Access::None);
        assert_eq!(of(Method::POST, "/lake/a%20b+c", "uploads="), reads());
        assert_eq!(of(Method::POST, "/lake/a%20b+c", "uploadId=u"), writes());
        assert_eq!(of(Method::DELETE, "/lake/a%20b+c", ""), writes());
        assert_eq!(of(Method::GET, "/lake", "list-type=2"), Access::None);
        assert_eq!(of(Method::POST, "/lake/", "delete="), Access::None);
    }
}

//! Sends requests: limits, credentials, redirects, repetitions, and the check that an answer is whole and JSON.
//!
//! Error messages name the URL's path, never its query, and hold no secret.

use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use collect_api::source::HttpSource;
use jiff::Timestamp;
use serde_json::value::RawValue;
use url::Url;

use crate::{
    control::Control,
    error::Class,
    http::{
        Draft, Origins, Retry, Verdict,
        auth::Credentials,
        certificates, classify,
        retry::{MAX_RETRY_AFTER, retry_after},
        target::Body,
    },
    secrets::{SecretError, Secrets},
    text,
};

const MAX_REDIRECTS: usize = 5;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A request that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A credential is missing.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A URL is malformed.
    #[error("`{url}` is no http or https URL; change spec.source.http.url, path or allowOrigins")]
    BadUrl {
        /// The text, without its query.
        url: String,
    },
    /// A header is malformed.
    #[error("spec.source.http.headers.{name} can't be sent: name or value holds characters that no header may have")]
    BadHeader {
        /// Name of the header.
        name: String,
    },
    /// The TLS library refused to start.
    #[error("the HTTP client can't be built: {cause}")]
    NoClient {
        /// What it says.
        cause: String,
    },
    /// A link or redirect leads to another origin.
    #[error(
        "the source leads to {origin}, which requests and credentials must not go to; add it to spec.source.http.allowOrigins if you trust it"
    )]
    ForeignOrigin {
        /// The origin.
        origin: String,
    },
    /// Redirects without end.
    #[error("{what} was redirected more than {MAX_REDIRECTS} times; put the final address into spec.source.http.url")]
    TooManyRedirects {
        /// The request.
        what: String,
    },
    /// No whole answer.
    #[error(
        "{what} got no whole answer in {tries} tries: {cause}; check that the source can be reached from the cluster and raise spec.source.http.timeout if it is slow"
    )]
    Unreachable {
        /// The request.
        what: String,
        /// Tries.
        tries: u32,
        /// What went wrong the last time.
        cause: String,
    },
    /// A status that may pass, too often.
    #[error(
        "{what} answered {status} in {tries} tries: {excerpt:?}; the source is overloaded or down: lower spec.source.http.limits or wait"
    )]
    Unavailable {
        /// The request.
        what: String,
        /// The last status.
        status: StatusCode,
        /// Tries.
        tries: u32,
        /// Beginning of the last answer.
        excerpt: String,
    },
    /// A status that won't pass.
    #[error("{what} answered {status}: {excerpt:?}; {advice}", advice = advice(*.status))]
    Refused {
        /// The request.
        what: String,
        /// The status.
        status: StatusCode,
        /// Beginning of the answer.
        excerpt: String,
    },
    /// Come back later.
    #[error("{what} answered {status} and asks to come back in {seconds} s; lower spec.source.http.limits if this happens often", seconds = .retry_after.as_secs())]
    Limited {
        /// The request.
        what: String,
        /// The status.
        status: StatusCode,
        /// Wait that the source asks for.
        retry_after: Duration,
    },
    /// Something else than JSON.
    #[error(
        "{what} answered {status} with {kind} instead of JSON: {excerpt:?}; check spec.source.http.url and path, and add an Accept header if the source needs one"
    )]
    NotJson {
        /// The request.
        what: String,
        /// The status.
        status: StatusCode,
        /// Its content type.
        kind: String,
        /// Beginning of the answer.
        excerpt: String,
    },
    /// An answer above the bound.
    #[error("{what} answered with more than {max} bytes; ask for smaller pages in spec.source.http.pagination")]
    TooLarge {
        /// The request.
        what: String,
        /// Bound in bytes.
        max: usize,
    },
}

fn advice(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => "check spec.source.http.auth and the secret that it names",
        404 | 410 => "check spec.source.http.url and path, and the values of the levels",
        405 => "check spec.source.http.method",
        _ => "the source refuses this request: check path, query, headers and body of spec.source.http",
    }
}

impl HttpError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Secret(error) => error.category(),
            Self::BadUrl { .. } | Self::BadHeader { .. } | Self::NoClient { .. } => "SourceInvalid",
            Self::ForeignOrigin { .. } | Self::TooManyRedirects { .. } => "SourceRedirects",
            Self::Unreachable { .. } | Self::Unavailable { .. } => "SourceUnavailable",
            Self::Refused { status, .. } => match status.as_u16() {
                401 | 403 => "SourceUnauthorized",
                404 | 410 => "SourceNotFound",
                _ => "SourceRefused",
            },
            Self::Limited { .. } => "SourceLimited",
            Self::NotJson { .. } => "SourceNotJson",
            Self::TooLarge { .. } => "PageTooLarge",
        }
    }

    /// What it means for the attempt.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. } | Self::Unavailable { .. } => Class::Retryable,
            Self::Limited { retry_after, .. } => Class::SourceLimited(*retry_after),
            _ => Class::Permanent,
        }
    }

    /// The status, if the source refused.
    pub fn refused_with(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(status.as_u16()),
            _ => None,
        }
    }
}

/// A whole answer that is JSON.
#[derive(Debug)]
pub struct Answer {
    /// Method and path, for messages.
    pub what: String,
    /// Status.
    pub status: StatusCode,
    /// URL that gave it, without credentials; the base of relative links.
    pub url: Url,
    /// Headers.
    pub headers: HeaderMap,
    /// Exact text of the body.
    pub body: Box<RawValue>,
    /// Its beginning, for messages, without secrets.
    pub excerpt: String,
}

/// Sends requests to one source.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    origins: Origins,
    credentials: Credentials,
    retry: Retry,
    timeout: Duration,
    max_body: usize,
    control: Control,
}

/// How one try failed.
enum Failure {
    Final(HttpError),
    Broken(String),
    Status { status: StatusCode, excerpt: String, retry_after: Option<Duration> },
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Self::Final(error)
    }
}

impl Client {
    /// A client for a source; answers above `max_body` bytes are refused.
    ///
    /// # Errors
    /// When a credential is missing or a URL malformed.
    pub fn new(source: &HttpSource, secrets: &Secrets, max_body: usize, control: &Control) -> Result<Self, HttpError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("collect-operator/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .tls_certs_only(certificates().iter().cloned())
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| HttpError::NoClient { cause: text::chain(&error) })?;
        Ok(Self {
            http,
            origins: Origins::of(source)?,
            credentials: Credentials::read(source, secrets)?,
            retry: Retry::of(source.retry.as_ref()),
            timeout: source.timeout.map_or(DEFAULT_TIMEOUT, collect_api::Duration::get),
            max_body,
            control: control.clone(),
        })
    }

    /// The origins that requests may go to.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Requests at once that this worker may send.
    pub fn concurrency(&self) -> usize {
        self.control.limiter().concurrency()
    }

    /// Sends a request until there is a whole JSON answer, the tries are used up, or the answer is final.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub async fn send(&self, draft: &Draft) -> Result<Answer, HttpError> {
        let what = format!("{} {}{}", draft.method, draft.url.origin().ascii_serialization(), draft.url.path());
        let mut failed = 0;
        loop {
            let failure = match self.attempt(draft, &what).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            failed += 1;
            let backoff = self.retry.wait(failed, rand::random());
            let wait = match failure {
                Failure::Final(error) => return Err(error),
                Failure::Status { status, retry_after: Some(retry_after), .. } if retry_after > MAX_RETRY_AFTER => {
                    return Err(HttpError::Limited { what, status, retry_after });
                }
                Failure::Broken(cause) if failed >= self.retry.tries => {
                    return Err(HttpError::Unreachable { what, tries: failed, cause });
                }
                Failure::Status { status, excerpt, .. } if failed >= self.retry.tries => {
                    return Err(HttpError::Unavailable { what, status, tries: failed, excerpt });
                }
                // Never sooner than the source asks, nor hotter than our own backoff where it asks for 0 s.
                Failure::Status { retry_after: Some(wait), .. } => wait.max(backoff),
                Failure::Broken(_) | Failure::Status { .. } => backoff,
            };
            tracing::debug!(what, failed, wait_ms = wait.as_millis(), "the request is repeated");
            let _waiting = self.control.waiting();
            tokio::time::sleep(wait).await;
            self.control.count_retry();
        }
    }

    async fn attempt(&self, draft: &Draft, what: &str) -> Result<Answer, Failure> {
        let _permit = self.control.limiter().permit().await;
        match tokio::time::timeout(self.timeout, self.exchange(draft, what)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Broken(format!("no answer within {} s", self.timeout.as_secs_f64()))),
        }
    }

    /// One request with its redirects.
    async fn exchange(&self, draft: &Draft, what: &str) -> Result<Answer, Failure> {
        let (mut url, mut method, mut body) = (draft.url.clone(), draft.method.clone(), draft.body.clone());
        for _ in 0..=MAX_REDIRECTS {
            self.control.count_request();
            let response = self.dispatch(&url, &method, &draft.headers, &body).await?;
            let status = response.status();
            match classify(status) {
                Verdict::Good => return self.good(response, url, what).await,
                Verdict::Redirect => {
                    url = self.redirected(&response, &url)?;
                    if method == Method::POST && matches!(status.as_u16(), 301..=303) {
                        (method, body) = (Method::GET, Body::None);
                    }
                }
                Verdict::Retryable => {
                    let retry_after = retry_after(response.headers(), Timestamp::now());
                    return Err(Failure::Status { status, excerpt: self.excerpt(response).await, retry_after });
                }
                Verdict::Permanent => {
                    let excerpt = self.excerpt(response).await;
                    return Err(HttpError::Refused { what: what.to_owned(), status, excerpt }.into());
                }
            }
        }
        Err(HttpError::TooManyRedirects { what: what.to_owned() }.into())
    }

    async fn dispatch(
        &self,
        url: &Url,
        method: &Method,
        headers: &HeaderMap,
        body: &Body,
    ) -> Result<reqwest::Response, Failure> {
        let (mut url, mut headers) = (url.clone(), headers.clone());
        if !self.origins.allow(&url) {
            return Err(HttpError::ForeignOrigin { origin: url.origin().ascii_serialization() }.into());
        }
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        let encoded = body.encode();
        if let Some((_, kind)) = &encoded {
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static(kind));
        }
        self.credentials.apply(&mut url, &mut headers);
        let mut request = self.http.request(method.clone(), url).headers(headers);
        if let Some((bytes, _)) = encoded {
            request = request.body(bytes);
        }
        request.send().await.map_err(|error| Failure::Broken(self.cause(error)))
    }

    fn cause(&self, error: reqwest::Error) -> String {
        let error = error.without_url();
        text::shorten(&text::mask(&text::chain(&error), self.credentials.secrets()), 200)
    }

    fn redirected(&self, response: &reqwest::Response, url: &Url) -> Result<Url, HttpError> {
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        self.origins.follow(url, location.unwrap_or_default())
    }

    async fn excerpt(&self, mut response: reqwest::Response) -> String {
        let mut head = Vec::new();
        while head.len() < 4096 {
            match response.chunk().await {
                Ok(Some(chunk)) => head.extend_from_slice(&chunk),
                Ok(None) | Err(_) => break,
            }
        }
        text::excerpt(&head, self.credentials.secrets())
    }

    /// Reads a good answer to its end and checks that it is JSON.
    async fn good(&self, mut response: reqwest::Response, url: Url, what: &str) -> Result<Answer, Failure> {
        let (status, headers) = (response.status(), response.headers().clone());
        let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        let mut body = Vec::with_capacity(announced.min(self.max_body));
        while let Some(chunk) = response.chunk().await.map_err(|error| Failure::Broken(self.cause(error)))? {
            if body.len() + chunk.len() > self.max_body {
                return Err(HttpError::TooLarge { what: what.to_owned(), max: self.max_body }.into());
            }
            body.extend_from_slice(&chunk);
        }
        if body.starts_with(b"\xEF\xBB\xBF") {
            body.drain(..3);
        }
        let excerpt = text::excerpt(&body, self.credentials.secrets());
        match parse(body) {
            Ok(body) => Ok(Answer { what: what.to_owned(), status, url, headers, body, excerpt }),
            Err(true) if status != StatusCode::NO_CONTENT => {
                Err(Failure::Broken(format!("the JSON ends too early: {excerpt:?}")))
            }
            Err(_) => {
                let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("a body");
                let kind = text::shorten(kind, 60);
                Err(HttpError::NotJson { what: what.to_owned(), status, kind, excerpt }.into())
            }
        }
    }
}

/// The body as JSON, or whether it is JSON that ends too early.
fn parse(body: Vec<u8>) -> Result<Box<RawValue>, bool> {
    let text = String::from_utf8(body).map_err(|error| error.utf8_error().error_len().is_none())?;
    RawValue::from_string(text).map_err(|error| error.is_eof())
}

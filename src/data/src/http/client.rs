//! Sends requests to a source: origins, redirects, and the check that an answer is whole and JSON.
//!
//! Error messages name the URL's path, never its query, and hold no secret.

use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode, header};
use collect_api::source::HttpSource;
use serde_json::value::RawValue;
use url::Url;

use crate::{
    control::Control,
    error::Class,
    http::{
        Body, Draft, Origins, Retry, Verdict,
        auth::Credentials,
        classify,
        sender::{self, GaveUp, Sender},
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
    #[error("{field} can't be sent: name or value holds characters that no header may have")]
    BadHeader {
        /// Its place in the task.
        field: String,
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

/// How one try failed.
type Failure = sender::Failure<HttpError>;

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Self::Final(error)
    }
}

/// Sends requests to one source.
#[derive(Debug)]
pub struct Client {
    sender: Sender,
    origins: Origins,
    max_body: usize,
    control: Control,
}

impl Client {
    /// A client for a source; answers above `max_body` bytes are refused.
    ///
    /// # Errors
    /// When a credential is missing or a URL malformed.
    pub fn new(source: &HttpSource, secrets: &Secrets, max_body: usize, control: &Control) -> Result<Self, HttpError> {
        let credentials = Credentials::read(source.auth.as_ref(), "spec.source.http.auth", secrets)?;
        let timeout = source.timeout.map_or(DEFAULT_TIMEOUT, collect_api::Duration::get);
        Ok(Self {
            sender: Sender::new(credentials, Vec::new(), Retry::of(source.retry.as_ref()), timeout, control)?,
            origins: Origins::of(source)?,
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
        let gave_up = match self.sender.repeat(&what, || self.exchange(draft, &what)).await {
            Ok(answer) => return Ok(answer),
            Err(gave_up) => gave_up,
        };
        Err(match gave_up {
            GaveUp::Final(error) => error,
            GaveUp::Broken { tries, cause } => HttpError::Unreachable { what, tries, cause },
            GaveUp::Status { status, tries, excerpt } => HttpError::Unavailable { what, status, tries, excerpt },
            GaveUp::Limited { status, retry_after } => HttpError::Limited { what, status, retry_after },
        })
    }

    /// One request with its redirects.
    async fn exchange(&self, draft: &Draft, what: &str) -> Result<Answer, Failure> {
        let mut draft = draft.clone();
        for _ in 0..=MAX_REDIRECTS {
            if !self.origins.allow(&draft.url) {
                return Err(HttpError::ForeignOrigin { origin: draft.url.origin().ascii_serialization() }.into());
            }
            let response = self.sender.dispatch(&draft).await?;
            let status = response.status();
            match classify(status) {
                Verdict::Good => return self.good(response, draft.url, what).await,
                Verdict::Redirect => {
                    draft.url = self.redirected(&response, &draft.url)?;
                    if draft.method == Method::POST && matches!(status.as_u16(), 301..=303) {
                        (draft.method, draft.body) = (Method::GET, Body::None);
                    }
                }
                Verdict::Retryable => return Err(self.sender.may_pass(response).await),
                Verdict::Permanent => {
                    let excerpt = self.sender.excerpt(response).await;
                    return Err(HttpError::Refused { what: what.to_owned(), status, excerpt }.into());
                }
            }
        }
        Err(HttpError::TooManyRedirects { what: what.to_owned() }.into())
    }

    fn redirected(&self, response: &reqwest::Response, url: &Url) -> Result<Url, HttpError> {
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        self.origins.follow(url, location.unwrap_or_default())
    }

    /// Reads a good answer to its end and checks that it is JSON.
    async fn good(&self, mut response: reqwest::Response, url: Url, what: &str) -> Result<Answer, Failure> {
        let (status, headers) = (response.status(), response.headers().clone());
        let announced = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        let mut body = Vec::with_capacity(announced.min(self.max_body));
        while let Some(chunk) = response.chunk().await.map_err(|error| self.sender.broken(error))? {
            if body.len() + chunk.len() > self.max_body {
                return Err(HttpError::TooLarge { what: what.to_owned(), max: self.max_body }.into());
            }
            body.extend_from_slice(&chunk);
        }
        if body.starts_with(b"\xEF\xBB\xBF") {
            body.drain(..3);
        }
        let excerpt = text::excerpt(&body, self.sender.secrets());
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

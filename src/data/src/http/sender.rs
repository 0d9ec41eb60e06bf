//! Sends requests and repeats them: this worker's share of the limits, credentials, timeouts, backoff.
//!
//! It knows neither sources nor hooks: what an answer means to them is for its users to say.

use std::time::Duration;

use ::http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;

use crate::{
    control::Control,
    http::{
        Draft, HttpError, Retry,
        auth::Credentials,
        certificates,
        retry::{MAX_RETRY_AFTER, retry_after},
    },
    text,
};

/// How one try failed.
pub(crate) enum Failure<E> {
    /// For good.
    Final(E),
    /// Without a whole answer.
    Broken(String),
    /// With a status that may pass.
    Status { status: StatusCode, excerpt: String, retry_after: Option<Duration> },
}

/// Why a request was given up.
pub(crate) enum GaveUp<E> {
    /// It failed for good.
    Final(E),
    /// No try brought a whole answer.
    Broken { tries: u32, cause: String },
    /// The last try brought a status that may pass.
    Status { status: StatusCode, tries: u32, excerpt: String },
    /// The other side asks for a longer wait than a worker should sit out.
    Limited { status: StatusCode, retry_after: Duration },
}

/// Sends requests with one set of credentials. Where they may go is for its users to see to; it follows no redirect.
#[derive(Debug)]
pub(crate) struct Sender {
    http: reqwest::Client,
    credentials: Credentials,
    /// Texts besides the credentials that no excerpt may show.
    hidden: Vec<String>,
    retry: Retry,
    timeout: Duration,
    control: Control,
}

impl Sender {
    pub(crate) fn new(
        credentials: Credentials,
        hidden: Vec<String>,
        retry: Retry,
        timeout: Duration,
        control: &Control,
    ) -> Result<Self, HttpError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("collect-operator/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .tls_certs_only(certificates().iter().cloned())
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| HttpError::NoClient { cause: text::chain(&error) })?;
        Ok(Self { http, credentials, hidden, retry, timeout, control: control.clone() })
    }

    /// Tries until it works, the tries are used up, or the failure is final.
    pub(crate) async fn repeat<T, E, F>(&self, what: &str, attempt: impl Fn() -> F) -> Result<T, GaveUp<E>>
    where
        F: Future<Output = Result<T, Failure<E>>>,
    {
        let mut failed = 0;
        loop {
            let failure = match self.once(attempt()).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            failed += 1;
            let backoff = self.retry.wait(failed, rand::random());
            let wait = match failure {
                Failure::Final(error) => return Err(GaveUp::Final(error)),
                Failure::Status { status, retry_after: Some(retry_after), .. } if retry_after > MAX_RETRY_AFTER => {
                    return Err(GaveUp::Limited { status, retry_after });
                }
                Failure::Broken(cause) if failed >= self.retry.tries => {
                    return Err(GaveUp::Broken { tries: failed, cause });
                }
                Failure::Status { status, excerpt, .. } if failed >= self.retry.tries => {
                    return Err(GaveUp::Status { status, tries: failed, excerpt });
                }
                // Never sooner than the other side asks, nor hotter than our own backoff where it asks for 0 s.
                Failure::Status { retry_after: Some(wait), .. } => wait.max(backoff),
                Failure::Broken(_) | Failure::Status { .. } => backoff,
            };
            tracing::debug!(what, failed, wait_ms = wait.as_millis(), "the request is repeated");
            let _waiting = self.control.waiting();
            tokio::time::sleep(wait).await;
            self.control.count_retry();
        }
    }

    async fn once<T, E>(&self, attempt: impl Future<Output = Result<T, Failure<E>>>) -> Result<T, Failure<E>> {
        let _permit = self.control.limiter().permit().await;
        match tokio::time::timeout(self.timeout, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Broken(format!("no answer within {} s", self.timeout.as_secs_f64()))),
        }
    }

    /// Sends one request with its credentials.
    pub(crate) async fn dispatch<E>(&self, draft: &Draft) -> Result<reqwest::Response, Failure<E>> {
        let (mut url, mut headers) = (draft.url.clone(), draft.headers.clone());
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        let encoded = draft.body.encode();
        if let Some((_, kind)) = &encoded {
            headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static(kind));
        }
        self.credentials.apply(&mut url, &mut headers);
        let mut request = self.http.request(draft.method.clone(), url).headers(headers);
        if let Some((bytes, _)) = encoded {
            request = request.body(bytes);
        }
        self.control.count_request();
        request.send().await.map_err(|error| self.broken(error))
    }

    /// A connection that broke.
    pub(crate) fn broken<E>(&self, error: reqwest::Error) -> Failure<E> {
        let cause = text::mask(&text::chain(&error.without_url()), self.secrets());
        Failure::Broken(text::shorten(&cause, 200))
    }

    /// An answer whose status may pass.
    pub(crate) async fn may_pass<E>(&self, response: reqwest::Response) -> Failure<E> {
        let (status, retry_after) = (response.status(), retry_after(response.headers(), Timestamp::now()));
        Failure::Status { status, excerpt: self.excerpt(response).await, retry_after }
    }

    /// The beginning of an answer for a message, without secrets.
    pub(crate) async fn excerpt(&self, mut response: reqwest::Response) -> String {
        let mut head = Vec::new();
        while head.len() < 4096 {
            match response.chunk().await {
                Ok(Some(chunk)) => head.extend_from_slice(&chunk),
                Ok(None) | Err(_) => break,
            }
        }
        text::excerpt(&head, self.secrets())
    }

    /// What no message may show.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        self.credentials.secrets().into_iter().chain(self.hidden.iter().map(String::as_str))
    }
}

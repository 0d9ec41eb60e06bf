//! Calls to the operator's worker endpoint. The certificate authority is the given one alone; the token is read again for
//! each call, because it is rotated.

use std::{fs, time::Duration};

use collect_api::protocol::{Endpoint, PLAN_PATH, PROGRESS_PATH, PlanChunk, ProgressAnswer, ProgressReport};
use serde::Serialize;

/// Time that one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A call that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No client can be built from the assignment.
    #[error("the operator's endpoint can't be used: {0}")]
    Setup(String),
    /// The token is not there (yet).
    #[error("token {path} can't be read: {cause}")]
    Token {
        /// File.
        path: String,
        /// What the file system says.
        cause: std::io::Error,
    },
    /// The operator can't be reached.
    #[error("the operator can't be reached: {0}")]
    Unreachable(#[source] reqwest::Error),
    /// The operator's answer can't be understood.
    #[error("the operator's answer can't be understood: {0}")]
    Answer(#[source] serde_json::Error),
    /// The operator refuses.
    #[error("the operator answers {0}")]
    Refused(reqwest::StatusCode),
}

impl CallError {
    /// Whether the operator does not know this worker: in the first minute its caches may lag behind.
    pub fn is_unauthorised(&self) -> bool {
        matches!(self, Self::Refused(status) if matches!(status.as_u16(), 401 | 403))
    }
}

/// The operator's worker endpoint.
#[derive(Debug)]
pub struct Operator {
    http: reqwest::Client,
    url: String,
    token_file: String,
}

impl Operator {
    /// A client for the endpoint of an assignment.
    ///
    /// # Errors
    /// When the certificate authority is malformed.
    pub fn new(endpoint: &Endpoint) -> Result<Self, CallError> {
        let setup = |error: reqwest::Error| CallError::Setup(error.to_string());
        let roots = reqwest::Certificate::from_pem_bundle(endpoint.ca.as_bytes()).map_err(setup)?;
        let http = reqwest::Client::builder()
            .tls_certs_only(roots)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(setup)?;
        let url = endpoint.url.trim_end_matches('/').to_owned();
        Ok(Self { http, url, token_file: endpoint.token_file.clone() })
    }

    /// Reports progress.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn report(&self, report: &ProgressReport) -> Result<ProgressAnswer, CallError> {
        let bytes = self.post(PROGRESS_PATH, report).await?.bytes().await.map_err(CallError::Unreachable)?;
        serde_json::from_slice(&bytes).map_err(CallError::Answer)
    }

    /// Hands over a chunk of a plan.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn hand_over(&self, chunk: &PlanChunk) -> Result<(), CallError> {
        self.post(PLAN_PATH, chunk).await.map(drop)
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<reqwest::Response, CallError> {
        let token = fs::read_to_string(&self.token_file)
            .map_err(|cause| CallError::Token { path: self.token_file.clone(), cause })?;
        let body = serde_json::to_vec(body).map_err(|error| CallError::Setup(error.to_string()))?;
        let request = self
            .http
            .post(format!("{}{path}", self.url))
            .bearer_auth(token.trim())
            .header("content-type", "application/json")
            .body(body);
        let response = request.send().await.map_err(CallError::Unreachable)?;
        if response.status().is_success() { Ok(response) } else { Err(CallError::Refused(response.status())) }
    }
}

//! The worker endpoint: TLS, answered by any replica, lease or not. It believes a worker's token and nothing else.

pub mod auth;
mod plan;
mod progress;

use std::{net::SocketAddr, path::Path, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequestParts, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::post,
};
use axum_server::{Handle, tls_rustls::RustlsConfig};
use collect_api::protocol::{PLAN_PATH, PROGRESS_PATH};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    endpoint::auth::{Authority, Caller},
};

/// Largest body of a progress report, in bytes.
const MAX_PROGRESS_BYTES: usize = 64 * 1024;
/// Largest body with a plan chunk, in bytes: base64 of 512 KiB, with room.
const MAX_PLAN_BYTES: usize = 1024 * 1024;

/// What the handlers share.
#[derive(Clone)]
pub struct Endpoint {
    ctx: Arc<Context>,
    authority: Arc<Authority>,
}

/// An answer that is no success.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No token, or one that is not valid here.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The token is valid, but not for this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The request can't be understood.
    #[error("{0}")]
    Invalid(String),
    /// Try again.
    #[error("{0}")]
    Unavailable(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = match &self {
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, Json(json!({"error": self.to_string()}))).into_response()
    }
}

impl FromRequestParts<Endpoint> for Caller {
    type Rejection = Refusal;

    /// The caller is read from the headers before any of the body is.
    async fn from_request_parts(parts: &mut Parts, endpoint: &Endpoint) -> Result<Self, Refusal> {
        endpoint.authority.caller(&endpoint.ctx, &parts.headers).await
    }
}

/// Serves until `stop`.
pub async fn serve(
    listen: SocketAddr,
    tls_dir: &Path,
    ctx: Arc<Context>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let config = RustlsConfig::from_pem_file(tls_dir.join("tls.crt"), tls_dir.join("tls.key")).await?;
    let endpoint = Endpoint { authority: Arc::new(Authority::default()), ctx };
    let app = Router::new()
        .route(PROGRESS_PATH, post(progress::progress).layer(DefaultBodyLimit::max(MAX_PROGRESS_BYTES)))
        .route(PLAN_PATH, post(plan::chunk).layer(DefaultBodyLimit::max(MAX_PLAN_BYTES)))
        .layer(axum::middleware::from_fn_with_state(endpoint.clone(), count))
        .with_state(endpoint);
    let handle = Handle::new();
    let stopper = handle.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        stopper.graceful_shutdown(Some(std::time::Duration::from_secs(5)));
    });
    axum_server::bind_rustls(listen, config).handle(handle).serve(app.into_make_service()).await
}

async fn count(
    State(endpoint): State<Endpoint>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let path = match request.uri().path() {
        PROGRESS_PATH => PROGRESS_PATH,
        PLAN_PATH => PLAN_PATH,
        _ => "other",
    };
    let response = next.run(request).await;
    endpoint.ctx.metrics.call(path, response.status().as_u16());
    response
}

//! An operator's worker endpoint, as far as workers see it.

use std::sync::{Arc, Mutex};

use axum::{Json, Router, extract::State, http::HeaderMap, routing::post};
use collect_api::protocol::{
    Directive, Endpoint, PLAN_PATH, PROGRESS_PATH, PlanChunk, ProgressAnswer, ProgressReport, RateShare,
};
use http::StatusCode;

#[derive(Clone, Default)]
pub struct Operator(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    reports: Vec<ProgressReport>,
    chunks: Vec<PlanChunk>,
    tokens: Vec<String>,
    /// Calls that are refused before the first one is answered.
    refuse: Vec<u16>,
    directive: Option<Directive>,
    /// Attempts below this one are told to abort.
    newest: i32,
}

impl Operator {
    pub fn refuse(&self, statuses: &[u16]) {
        self.0.lock().unwrap().refuse = statuses.to_vec();
    }

    pub fn direct(&self, directive: Directive) {
        self.0.lock().unwrap().directive = Some(directive);
    }

    /// From now on only this attempt may go on, and later ones.
    pub fn fence(&self, newest: i32) {
        self.0.lock().unwrap().newest = newest;
    }

    pub fn reports(&self) -> Vec<ProgressReport> {
        self.0.lock().unwrap().reports.clone()
    }

    pub fn chunks(&self) -> Vec<PlanChunk> {
        self.0.lock().unwrap().chunks.clone()
    }

    pub fn tokens(&self) -> Vec<String> {
        self.0.lock().unwrap().tokens.clone()
    }

    fn admit(&self, headers: &HeaderMap) -> Result<(), StatusCode> {
        let mut inner = self.0.lock().unwrap();
        let token = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        inner.tokens.push(token.to_owned());
        match inner.refuse.pop() {
            Some(status) => Err(StatusCode::from_u16(status).unwrap()),
            None => Ok(()),
        }
    }

    fn router(&self) -> Router {
        Router::new().route(PROGRESS_PATH, post(progress)).route(PLAN_PATH, post(plan)).with_state(self.clone())
    }

    /// Serves it with a certificate of its own authority.
    pub async fn serve(&self, dir: &std::path::Path) -> Endpoint {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let config =
            axum_server::tls_rustls::RustlsConfig::from_pem(certificate.clone().into(), key.into()).await.unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = self.router();
        tokio::spawn(async move {
            axum_server::from_tcp_rustls(listener, config).unwrap().serve(router.into_make_service()).await.unwrap();
        });
        let token_file = dir.join("token");
        std::fs::write(&token_file, "first\n").unwrap();
        Endpoint {
            url: format!("https://localhost:{port}"),
            ca: certificate,
            token_file: token_file.to_str().unwrap().to_owned(),
        }
    }
}

async fn progress(
    State(operator): State<Operator>,
    headers: HeaderMap,
    Json(report): Json<ProgressReport>,
) -> Result<Json<ProgressAnswer>, StatusCode> {
    operator.admit(&headers)?;
    let mut inner = operator.0.lock().unwrap();
    let is_superseded = report.attempt < inner.newest;
    inner.reports.push(report);
    let directive = inner.directive.clone().unwrap_or(Directive::Continue);
    Ok(Json(ProgressAnswer {
        directive: if is_superseded { Directive::Abort } else { directive },
        report_after_ms: 50,
        rate_share: RateShare { requests_per_second: None, concurrency: Some(1) },
    }))
}

async fn plan(
    State(operator): State<Operator>,
    headers: HeaderMap,
    Json(chunk): Json<PlanChunk>,
) -> Result<(), StatusCode> {
    operator.admit(&headers)?;
    operator.0.lock().unwrap().chunks.push(chunk);
    Ok(())
}

//! /healthz, /readyz, /metrics.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    context::Context,
    metrics::{Sample, table, tasks},
    ready::Ready,
};

#[derive(Clone)]
struct Shared {
    ctx: Arc<Context>,
    ready: Ready,
}

/// Serves until `stop`.
pub async fn serve(
    listen: SocketAddr,
    ctx: Arc<Context>,
    ready: Ready,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Shared { ctx, ready });
    let listener = tokio::net::TcpListener::bind(listen).await?;
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Ready when every cache is filled; a standby replica is ready too.
async fn readyz(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.ready.missing() {
        missing if missing.is_empty() => (StatusCode::OK, "ok\n".into()),
        missing => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for the first list of: {}\n", missing.join(", ")))
        }
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let ctx = &shared.ctx;
    let stores = &ctx.stores;
    let seen =
        tasks::Seen { tasks: stores.tasks.state(), shards: stores.shards.state(), reports: stores.reports.state() };
    let unchanged = |uid: &str, records: i64| ctx.watched_for(uid, "records", &records.to_string());
    let mut told = tasks::samples(&seen, unchanged, clock::now());
    told.push(Sample::new(&table::LEADER, [], f64::from(u8::from(ctx.leads()))));
    told.push(Sample::new(&table::BACKOFF_OBJECTS, [], ctx.in_backoff() as f64));
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, format)], ctx.metrics.text(told))
}

//! /healthz, /readyz, /metrics.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio_util::sync::CancellationToken;

use crate::{context::Context, ready::Ready};

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
    let mut counts: BTreeMap<(&'static str, String), i64> = BTreeMap::new();
    for task in shared.ctx.stores.tasks.state() {
        let phase =
            task.status.as_ref().and_then(|status| status.phase.as_ref()).map_or("Pending", |phase| phase.as_str());
        *counts.entry(("CollectTask", phase.to_owned())).or_default() += 1;
    }
    for shard in shared.ctx.stores.shards.state() {
        let phase =
            shard.status.as_ref().and_then(|status| status.phase.as_ref()).map_or("Pending", |phase| phase.as_str());
        *counts.entry(("CollectShard", phase.to_owned())).or_default() += 1;
    }
    shared.ctx.metrics.objects(&counts);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], shared.ctx.metrics.text())
}

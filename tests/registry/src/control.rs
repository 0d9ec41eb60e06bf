//! The endpoints by which a test steers a running server and learns what was asked of it. They ask for no credentials.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::journal::{Entry, Journal, Stats};

/// A server that can be steered while it runs.
pub trait Controlled: Clone + Send + Sync + 'static {
    /// What can be set.
    type Options: Serialize + DeserializeOwned + Send;

    /// The options in force.
    fn options(&self) -> Self::Options;

    /// Replaces all options; faults count requests anew.
    fn set_options(&self, options: Self::Options);

    /// The log of requests and its figures.
    fn journal(&self) -> &Journal;
}

/// `GET`, `PUT` and `PATCH /_control`, `GET /_log?since=N`, `DELETE /_log`, `GET /_stats`.
///
/// PUT replaces all options. PATCH replaces the fields that its body holds, and sets those that are null back to default.
pub fn endpoints<C: Controlled>() -> Router<C> {
    Router::new()
        .route("/_control", get(show::<C>).put(put::<C>).patch(patch::<C>))
        .route("/_log", get(log::<C>).delete(clear::<C>))
        .route("/_stats", get(stats::<C>))
}

async fn show<C: Controlled>(State(control): State<C>) -> Json<C::Options> {
    Json(control.options())
}

async fn put<C: Controlled>(State(control): State<C>, body: Bytes) -> Response {
    set(&control, serde_json::from_slice(&body))
}

async fn patch<C: Controlled>(State(control): State<C>, body: Bytes) -> Response {
    let merge = || -> serde_json::Result<C::Options> {
        let changes: Map<String, Value> = serde_json::from_slice(&body)?;
        let mut merged: Map<String, Value> = serde_json::from_value(serde_json::to_value(control.options())?)?;
        for (name, value) in changes {
            if value.is_null() {
                merged.remove(&name)
            } else {
                merged.insert(name, value)
            };
        }
        serde_json::from_value(Value::Object(merged))
    };
    set(&control, merge())
}

fn set<C: Controlled>(control: &C, options: serde_json::Result<C::Options>) -> Response {
    match options {
        Ok(options) => {
            control.set_options(options);
            Json(control.options()).into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, Json(json!({"error": error.to_string()}))).into_response(),
    }
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn log<C: Controlled>(State(control): State<C>, Query(from): Query<Since>) -> Json<Vec<Entry>> {
    Json(control.journal().since(from.since))
}

async fn clear<C: Controlled>(State(control): State<C>) -> StatusCode {
    control.journal().clear();
    StatusCode::NO_CONTENT
}

async fn stats<C: Controlled>(State(control): State<C>) -> Json<Stats> {
    Json(control.journal().stats())
}

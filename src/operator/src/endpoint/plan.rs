//! POST /v1/plan: the planner hands over a chunk of its plan, which becomes an immutable ConfigMap of the root.

use std::collections::BTreeMap;

use axum::{Json, extract::State, http::StatusCode};
use base64::{Engine, engine::general_purpose::STANDARD};
use collect_api::{labels, plan::MAX_CHUNK_BYTES, protocol::PlanChunk};
use collect_core::names;
use k8s_openapi::{ByteString, api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::ResourceExt;

use crate::{
    endpoint::{Endpoint, Refusal, auth::Caller, progress::live_task},
    error::{chain, code},
    task::observe::CHUNK_KEY,
    worker,
};

/// Takes a chunk in. The same chunk again is well; another one under the same index is not.
pub async fn chunk(
    State(endpoint): State<Endpoint>,
    caller: Caller,
    Json(chunk): Json<PlanChunk>,
) -> Result<StatusCode, Refusal> {
    let ctx = &endpoint.ctx;
    if caller.ledger.kind != "CollectTask" {
        return Err(Refusal::Forbidden("only a planner hands over a plan"));
    }
    let data = STANDARD.decode(&chunk.data).map_err(|error| Refusal::Invalid(format!("data is no base64: {error}")))?;
    if data.len() > MAX_CHUNK_BYTES || !(0..100_000).contains(&chunk.index) {
        return Err(Refusal::Invalid(format!(
            "a chunk has at most {MAX_CHUNK_BYTES} bytes; this one has {}",
            data.len()
        )));
    }
    // Not live as far as this replica knows: its view may be late, so the planner asks again.
    let Some(task) = live_task(ctx, &caller, chunk.attempt).await? else {
        return Err(Refusal::Forbidden("this attempt is not the live planner of the run"));
    };
    let (name, uid) = (task.name_any(), task.uid().unwrap_or_default());
    let run = task.status.as_ref().and_then(|status| status.run).unwrap_or(1);
    let mut labels = worker::tree_labels(&name, &uid, run, 0, &name);
    labels.insert(labels::ATTEMPT.into(), chunk.attempt.to_string());
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(names::plan_chunk(&name, &uid, run, chunk.attempt, chunk.index)),
            namespace: Some(caller.namespace.clone()),
            labels: Some(labels),
            owner_references: worker::owner(task.as_ref()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        binary_data: Some(BTreeMap::from([(CHUNK_KEY.to_owned(), ByteString(data.clone()))])),
        immutable: Some(true),
        ..ConfigMap::default()
    };
    match ctx.writer.create(&caller.namespace, &map).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        Err(error) if code(&error) == Some(409) => {
            let found = ctx.writer.api::<ConfigMap>(&caller.namespace).get(&map.name_any()).await;
            let found = found.map_err(|error| Refusal::Unavailable(chain(&error)))?;
            let same =
                found.binary_data.and_then(|mut data| data.remove(CHUNK_KEY)).is_some_and(|found| found.0 == data);
            if same {
                Ok(StatusCode::NO_CONTENT)
            } else {
                Err(Refusal::Forbidden("another chunk stands under this index already"))
            }
        }
        Err(error) => Err(Refusal::Unavailable(chain(&error))),
    }
}

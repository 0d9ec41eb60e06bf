//! Every write to the API server goes through here: one place for metrics and for fault injection, each write safe to repeat.
//!
//! I19: what was written is remembered by uid, so that no pass acts on an older view.

use std::{collections::HashMap, fmt::Debug, sync::Mutex};

use json_patch::{
    AddOperation, Patch as JsonPatch, PatchOperation, RemoveOperation, TestOperation, jsonptr::PointerBuf,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    error::{Error, code},
    metrics::Metrics,
    trace,
};

/// An object of ours or of Kubernetes that lives in a namespace.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Kind, for errors and metrics.
    const KIND: &'static str;
}

macro_rules! objects {
    ($($type:ty => $kind:literal),+ $(,)?) => { $(impl Object for $type { const KIND: &'static str = $kind; })+ };
}

objects! {
    collect_api::CollectTask => "CollectTask",
    collect_api::CollectShard => "CollectShard",
    collect_api::ValidationReport => "ValidationReport",
    k8s_openapi::api::batch::v1::Job => "Job",
    k8s_openapi::api::core::v1::Pod => "Pod",
    k8s_openapi::api::core::v1::ConfigMap => "ConfigMap",
}

/// Writes to the API server.
pub struct Writer {
    client: Client,
    metrics: Metrics,
    /// Newest resourceVersion that this process wrote, by uid.
    written: Mutex<HashMap<String, u64>>,
}

impl Writer {
    /// A writer with this client, which must not repeat requests by itself.
    pub fn new(client: Client, metrics: Metrics) -> Self {
        Self { client, metrics, written: Mutex::default() }
    }

    /// The API of a kind in a namespace.
    pub fn api<K: Object>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Whether a view is older than this process's own last write to the object.
    pub fn is_behind(&self, object: &impl ResourceExt) -> bool {
        let (Some(uid), Some(version)) = (object.uid(), version(object)) else { return false };
        lock(&self.written).get(&uid).is_some_and(|written| version < *written)
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, uid: &str) {
        lock(&self.written).remove(uid);
    }

    fn remember(&self, object: &impl ResourceExt) {
        if let (Some(uid), Some(version)) = (object.uid(), version(object)) {
            let mut written = lock(&self.written);
            let newest = written.entry(uid).or_default();
            *newest = version.max(*newest);
        }
    }

    fn count<T>(&self, verb: &'static str, kind: &'static str, result: &Result<T, kube::Error>) {
        let code = match result {
            Ok(_) => "ok".to_owned(),
            Err(error) => code(error).map_or_else(|| "none".to_owned(), |code| code.to_string()),
        };
        self.metrics.api_write(verb, kind, &code);
        trace::wrote();
    }

    /// Creates an object once; the caller decides what an error means.
    pub async fn create<K: Object>(&self, namespace: &str, object: &K) -> Result<K, kube::Error> {
        let result = self.api::<K>(namespace).create(&PostParams::default(), object).await;
        self.count("create", K::KIND, &result);
        if let Ok(made) = &result {
            self.remember(made);
        }
        result
    }

    /// Deletes an object in the background, only if it is still the one with this uid. Gone already is well too.
    pub async fn delete<K: Object>(&self, namespace: &str, name: &str, uid: &str) -> Result<(), Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::background()
        };
        let result = self.api::<K>(namespace).delete(name, &params).await;
        self.count("delete", K::KIND, &result);
        match result {
            Ok(_) => Ok(()),
            Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(()),
            Err(error) => Err(Error::api("delete", K::KIND, format!("{namespace}/{name}"), error)),
        }
    }

    /// Writes the fields of a status that differ, if the object is still the one that was seen.
    ///
    /// JSON Patch of our own paths with a `test` on resourceVersion: a stale view loses, and fields of a newer version stay. A status
    /// that no operator has written yet is written whole.
    pub async fn status<K: Object, S: Serialize>(
        &self,
        seen: &K,
        old: Option<&S>,
        new: &S,
    ) -> Result<Option<K>, Error> {
        let (namespace, name) = (seen.namespace().unwrap_or_default(), seen.name_any());
        let patch = status_patch(seen.resource_version().unwrap_or_default(), old, new)?;
        if patch.0.len() <= 1 {
            return Ok(None);
        }
        let patch = Patch::Json::<()>(patch);
        let result = self.api::<K>(&namespace).patch_status(&name, &PatchParams::default(), &patch).await;
        self.count("patch", K::KIND, &result);
        let object = result.map_err(|error| Error::api("patch", K::KIND, format!("{namespace}/{name}"), error))?;
        self.remember(&object);
        Ok(Some(object))
    }
}

fn version(object: &impl ResourceExt) -> Option<u64> {
    object.resource_version()?.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The generation in a status that is the CRD's default.
const UNSEEN: i64 = -1;

/// The patch from one status to another: a test, then one operation for each top-level field that differs.
fn status_patch<S: Serialize>(resource_version: String, old: Option<&S>, new: &S) -> Result<JsonPatch, Error> {
    let pointer = |parts: &[&str]| PointerBuf::from_tokens(parts.iter().copied());
    let mut operations = vec![PatchOperation::Test(TestOperation {
        path: pointer(&["metadata", "resourceVersion"]),
        value: Value::String(resource_version),
    })];
    let new = serde_json::to_value(new)?;
    let old = old.map(serde_json::to_value).transpose()?.filter(|old| old["observedGeneration"] != UNSEEN);
    let (Some(old), Value::Object(new_fields)) = (old, &new) else {
        operations.push(PatchOperation::Add(AddOperation { path: pointer(&["status"]), value: new }));
        return Ok(JsonPatch(operations));
    };
    let none = serde_json::Map::new();
    let old_fields = old.as_object().unwrap_or(&none);
    for (key, value) in new_fields {
        if old_fields.get(key) != Some(value) {
            operations
                .push(PatchOperation::Add(AddOperation { path: pointer(&["status", key]), value: value.clone() }));
        }
    }
    for key in old_fields.keys().filter(|key| !new_fields.contains_key(*key)) {
        operations.push(PatchOperation::Remove(RemoveOperation { path: pointer(&["status", key]) }));
    }
    Ok(JsonPatch(operations))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patch(old: Option<Value>, new: Value) -> Value {
        serde_json::to_value(status_patch("7".into(), old.as_ref(), &new).unwrap()).unwrap()
    }

    #[test]
    fn only_what_differs_is_written() {
        assert_eq!(
            patch(Some(json!({"a": 1, "b": 2, "c": 3})), json!({"a": 1, "b": 4})),
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/status/b", "value": 4},
                {"op": "remove", "path": "/status/c"},
            ])
        );
    }

    #[test]
    fn the_first_status_is_written_whole() {
        assert_eq!(patch(None, json!({"a": 1}))[1], json!({"op": "add", "path": "/status", "value": {"a": 1}}));
    }

    #[test]
    fn a_status_that_nobody_has_written_is_written_whole() {
        let old = json!({"observedGeneration": -1, "attempt": 1});
        let new = json!({"observedGeneration": 1, "attempt": 1});
        assert_eq!(patch(Some(old), new.clone())[1], json!({"op": "add", "path": "/status", "value": new}));
    }

    #[test]
    fn nothing_is_written_when_nothing_differs() {
        assert_eq!(patch(Some(json!({"a": 1})), json!({"a": 1})).as_array().unwrap().len(), 1);
    }
}

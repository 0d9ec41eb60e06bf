//! How watches read objects: without the parts that no pass looks at, and so that one which can't be read costs nobody else.
//!
//! Kube's own `DeserializeGuard` makes a tree of values of each object first. Here that was 40 % of the operator's time, because a
//! shard comes to some 15 events; so the text is kept as it is, and read once.

use std::{borrow::Cow, collections::BTreeMap};

use collect_api::{CollectShard, CollectTask, ValidationReport};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobStatus},
        core::v1::{Pod, PodSpec, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer, de::Error as _, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::write::Object;

/// A kind that is watched.
pub trait Read: Object {
    /// Reads an object from its JSON.
    ///
    /// # Errors
    /// Where a part that is looked at is not of its type.
    fn read(text: &str) -> serde_json::Result<Self>;
}

/// The parts of an object.
#[derive(Deserialize)]
struct Parts<S, T> {
    metadata: Metadata,
    spec: S,
    #[serde(default = "Option::default")]
    status: Option<T>,
}

/// What passes know of an object's metadata; the managers of its fields are the largest part that they don't.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl From<Metadata> for ObjectMeta {
    fn from(read: Metadata) -> Self {
        Self {
            name: read.name,
            namespace: read.namespace,
            uid: read.uid,
            resource_version: read.resource_version,
            generation: read.generation,
            creation_timestamp: read.creation_timestamp,
            deletion_timestamp: read.deletion_timestamp,
            labels: read.labels,
            annotations: read.annotations,
            owner_references: read.owner_references,
            ..Self::default()
        }
    }
}

impl Read for CollectTask {
    fn read(text: &str) -> serde_json::Result<Self> {
        let Parts { metadata, spec, status } = serde_json::from_str(text)?;
        Ok(Self { metadata: metadata.into(), spec, status })
    }
}

impl Read for CollectShard {
    fn read(text: &str) -> serde_json::Result<Self> {
        let Parts { metadata, spec, status } = serde_json::from_str(text)?;
        let mut shard = Self { metadata: metadata.into(), spec, status };
        shard.enter_first_attempt();
        Ok(shard)
    }
}

impl Read for ValidationReport {
    fn read(text: &str) -> serde_json::Result<Self> {
        let Parts { metadata, spec, status } = serde_json::from_str(text)?;
        Ok(Self { metadata: metadata.into(), spec, status })
    }
}

impl Read for Job {
    /// Without its spec, of which the assignment alone may have 64 KiB.
    fn read(text: &str) -> serde_json::Result<Self> {
        let Parts { metadata, status, .. } = serde_json::from_str::<Parts<IgnoredAny, JobStatus>>(text)?;
        Ok(Self { metadata: metadata.into(), spec: None, status })
    }
}

/// What passes know of a pod's spec.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Placed {
    node_name: Option<String>,
}

impl Read for Pod {
    /// With nothing of its spec but the node.
    fn read(text: &str) -> serde_json::Result<Self> {
        let Parts { metadata, spec, status } = serde_json::from_str::<Parts<Placed, PodStatus>>(text)?;
        let spec = spec.node_name.map(|node_name| PodSpec { node_name: Some(node_name), ..PodSpec::default() });
        Ok(Self { metadata: metadata.into(), spec, status })
    }
}

/// An object, or what is known of one that can't be read.
#[derive(Clone, Debug)]
pub struct Guard<K>(pub Result<K, Unreadable>);

/// An object that can't be read.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Why.
    pub error: String,
    /// Which.
    pub metadata: ObjectMeta,
}

impl<'de, K: Read> Deserialize<'de> for Guard<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Named {
            metadata: Metadata,
        }

        let text = Box::<RawValue>::deserialize(deserializer)?;
        K::read(text.get())
            .map(Ok)
            .or_else(|error| {
                let named: Named = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
                Ok(Err(Unreadable { error: error.to_string(), metadata: named.metadata.into() }))
            })
            .map(Self)
    }
}

impl<K: Resource> Resource for Guard<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unreadable| &unreadable.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unreadable| &mut unreadable.metadata, K::meta_mut)
    }
}

#[cfg(test)]
mod tests {
    use kube::{
        ResourceExt,
        core::{ObjectList, WatchEvent},
    };
    use serde_json::{Value, json};

    use super::*;

    fn metadata() -> Value {
        json!({
            "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2,
            "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:00:05Z",
            "labels": {"l": "1"}, "annotations": {"a": "2"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "o", "uid": "ou", "controller": true}],
            "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}],
        })
    }

    /// What is read is what kube reads, but for what `without` takes away.
    fn same<K: Read + PartialEq>(spec: &Value, status: &Value, without: fn(&mut K)) -> K {
        let text = json!({"metadata": metadata(), "spec": spec, "status": status}).to_string();
        let mut whole: K = serde_json::from_str(&text).unwrap();
        whole.managed_fields_mut().clear();
        whole.meta_mut().managed_fields = None;
        without(&mut whole);
        let read = K::read(&text).unwrap();
        assert_eq!(read, whole);
        read
    }

    #[test]
    fn everything_that_passes_look_at_is_read() {
        let slice = json!({"task": "t", "rootUid": "r", "run": 1, "index": 0, "slice": {"items": []}});
        same::<CollectShard>(&slice, &json!({"phase": "Running", "attempt": 1}), |_| {});
        same::<CollectTask>(
            &json!({"partOf": {"root": "r", "rootUid": "u", "run": 1, "path": []}}),
            &json!({}),
            |_| {},
        );
        let status = json!({"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 1});
        same::<Job>(&json!({"template": {"spec": {"containers": []}}}), &status, |job| job.spec = None);
        let spec = json!({"nodeName": "n", "containers": [{"name": "worker"}]});
        same::<Pod>(&spec, &json!({"phase": "Pending"}), |pod| {
            pod.spec = Some(PodSpec { node_name: Some("n".into()), ..PodSpec::default() });
        });
    }

    #[test]
    fn a_shard_is_read_with_the_first_attempt_that_its_creation_authorised() {
        let first = json!({"authorisedBy": "me", "authorisedAt": "2026-01-01T00:00:00Z"});
        let spec =
            json!({"task": "t", "rootUid": "r", "run": 1, "index": 0, "slice": {"items": []}, "firstAttempt": first});
        for status in [json!(null), json!({"observedGeneration": -1, "phase": "Pending"})] {
            let text = json!({"metadata": metadata(), "spec": spec, "status": status}).to_string();
            let attempts = CollectShard::read(&text).unwrap().status.unwrap().attempts;
            assert!(matches!(attempts.as_slice(), [one] if one.n == 1 && one.authorised_by == "me" && one.is_live()));
        }
    }

    #[test]
    fn one_that_can_not_be_read_is_known_by_name_and_version_and_spoils_no_other() {
        let object = |spec: Value| json!({"metadata": metadata(), "spec": spec, "status": {"phase": "Running"}});
        let bad = object(json!({"nodeName": 5}));
        // As the API server writes it: the type comes first.
        let event = format!(r#"{{"type":"MODIFIED","object":{bad}}}"#);
        let WatchEvent::Modified(guard) = serde_json::from_str::<WatchEvent<Guard<Pod>>>(&event).unwrap() else {
            panic!("{event}")
        };
        let known = (guard.name_any(), guard.resource_version());
        assert_eq!(known, ("a".into(), Some("7".into())));
        assert!(guard.0.unwrap_err().error.contains("invalid type"));

        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"},
            "items": [bad, object(json!({"nodeName": "n"}))]});
        let list: ObjectList<Guard<Pod>> = serde_json::from_str(&list.to_string()).unwrap();
        assert_eq!(list.items.iter().map(|guard| guard.0.is_ok()).collect::<Vec<_>>(), [false, true]);
    }
}

//! Where records go: declarations only; `collect-data` holds the behaviour.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::source::SecretRef;

/// Where the records go. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Sink {
    /// Files in an object store or on a mounted volume.
    ObjectStore(ObjectStoreSink),
}

/// Files in an object store or on a mounted volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStoreSink {
    /// Folder that belongs to this task alone: `s3://bucket/prefix`, or `file:///folder` within `volume`.
    #[schemars(
        length(min = 6, max = 1024),
        regex(pattern = r"^(s3://[a-z0-9][a-z0-9.-]+(/[^\s?#]*)?|file:///[^\s?#]*)$")
    )]
    pub url: String,
    /// Form of the files. `ndjson` keeps each record's exact text; `parquet` needs `spec.record.fields`. Default: ndjson.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Compression. For parquet it is the codec inside the file. Default: zstd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Secret with the keys `access_key_id`, `secret_access_key` and, where used, `session_token`.
    /// Default: none; the worker's own identity, if the store knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Address of an S3 service other than Amazon's, such as `http://minio.storage:9000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = r"^https?://[^\s/?#]+/?$"))]
    pub endpoint: Option<String>,
    /// Region of the bucket. Default: us-east-1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub region: Option<String>,
    /// Volume that is mounted for `file://` URLs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
}

/// A volume that every worker mounts; on several nodes it must be ReadWriteMany.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// PersistentVolumeClaim of the same namespace. It is mounted so that `file:///x` is the folder `x` of the volume.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// Form of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON record a line, with its exact text.
    Ndjson,
    /// Apache Parquet with the declared fields.
    Parquet,
}

/// Compression of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// No compression.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl ObjectStoreSink {
    /// Secrets and keys that a worker needs, each with the field that asks for it.
    /// `session_token` is optional.
    pub fn secret_keys(&self) -> Vec<(String, String, String)> {
        self.secret_ref
            .iter()
            .flat_map(|secret| {
                ["access_key_id", "secret_access_key", "session_token"]
                    .into_iter()
                    .map(|key| (secret.name.clone(), key.to_owned(), "spec.sink.objectStore.secretRef.name".to_owned()))
            })
            .collect()
    }
}

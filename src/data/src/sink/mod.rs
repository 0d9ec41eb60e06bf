//! The object store: parts, manifests, and puts that end right even when their answer is lost.

mod encode;
mod manifest;
mod open;
mod part;
mod store;

pub use encode::{Encoding, Shared};
pub use manifest::{FilePart, MANIFEST, Manifest, Owner, missing};
pub use part::{Levels, PartMeta, PartWriter};
pub use store::{Created, Kind, Listed, Store, Version};

use crate::{error::Class, secrets::SecretError};

/// A sink that refuses or can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// A credential is missing.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A malformed URL.
    #[error("`{url}` is no place to write to: {cause}; change spec.sink.objectStore.url")]
    Invalid {
        /// The URL.
        url: String,
        /// What is wrong.
        cause: String,
    },
    /// The store can't be reached or fails.
    #[error(
        "the sink failed to {doing} `{path}`: {cause}; check that it can be reached from the cluster (spec.sink.objectStore.endpoint)"
    )]
    Unavailable {
        /// What was tried.
        doing: &'static str,
        /// The object.
        path: String,
        /// What the store says.
        cause: String,
    },
    /// No permission.
    #[error(
        "the sink refuses to {doing} `{path}`: {cause}; check the keys of spec.sink.objectStore.secretRef and what they may do"
    )]
    Denied {
        /// What was tried.
        doing: &'static str,
        /// The object.
        path: String,
        /// What the store says.
        cause: String,
    },
    /// No bucket or folder.
    #[error(
        "the sink has no place for `{path}`: {cause}; create the bucket or volume, or change spec.sink.objectStore.url"
    )]
    NotFound {
        /// The object.
        path: String,
        /// What the store says.
        cause: String,
    },
    /// Somebody else's data.
    #[error(
        "the sink at `{path}` belongs to {owner}, not to {claimant}; give every task a folder of its own in spec.sink.objectStore.url"
    )]
    Occupied {
        /// The object that says so.
        path: String,
        /// Whose it is.
        owner: String,
        /// Who wanted it.
        claimant: String,
    },
    /// The store lets a second create overwrite the first.
    #[error(
        "the sink does not refuse to create `{path}` a second time, so a record could become visible twice; use a store with conditional puts (If-None-Match), such as S3, MinIO or R2, or a volume with hard links"
    )]
    NotConditional {
        /// The probe.
        path: String,
    },
    /// A file of ours that can't be understood.
    #[error(
        "`{path}` can't be read: {cause}; it was changed by hand or written by another version: restore it or raise spec.run"
    )]
    Unreadable {
        /// The object.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// An encoder failed.
    #[error("a part can't be encoded: {0}")]
    Encode(String),
}

impl SinkError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Secret(error) => error.category(),
            Self::Invalid { .. } => "SinkInvalid",
            Self::Unavailable { .. } => "SinkUnavailable",
            Self::Denied { .. } => "SinkDenied",
            Self::NotFound { .. } => "SinkNotFound",
            Self::Occupied { .. } => "SinkOccupied",
            Self::NotConditional { .. } => "SinkNotConditional",
            Self::Unreadable { .. } => "SinkUnreadable",
            Self::Encode(_) => "Internal",
        }
    }

    /// What it means for the attempt.
    pub fn class(&self) -> Class {
        match self {
            Self::Unavailable { .. } | Self::Encode(_) => Class::Retryable,
            _ => Class::Permanent,
        }
    }
}

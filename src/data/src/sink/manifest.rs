//! The manifest of a slice: the one thing that makes its parts visible (I5, I6).

use std::collections::BTreeMap;

use bytes::Bytes;
use collect_api::protocol::{CollectResult, Identity, Tally};
use serde::{Deserialize, Serialize};

use super::{Listed, SinkError, part::Levels};

/// Name of the manifest in a slice's folder.
pub const MANIFEST: &str = "manifest.json";

/// A complete file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilePart {
    /// Path below the sink's URL.
    pub path: String,
    /// Records in it.
    pub rows: i64,
    /// Size in bytes.
    pub bytes: i64,
    /// blake3 of it, hexadecimal.
    pub hash: String,
    /// Level values of its records: by level, each that occurs.
    #[serde(default)]
    pub levels: Levels,
}

/// The first of these files that is not among what is `listed` with as many bytes as it should have. Pure.
pub fn missing<'a>(files: impl IntoIterator<Item = &'a FilePart>, listed: &[Listed]) -> Option<&'a FilePart> {
    let found: BTreeMap<&str, u64> = listed.iter().map(|object| (object.path.as_str(), object.bytes)).collect();
    files.into_iter().find(|file| found.get(file.path.as_str()).copied() != u64::try_from(file.bytes).ok())
}

/// Which slice a manifest is about. Names for people are no part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Namespace of the root task.
    pub namespace: String,
    /// Name of the root task.
    pub root: String,
    /// Uid of the root task.
    pub root_uid: String,
    /// Run.
    pub run: i64,
    /// Digest of the sealed plan.
    pub plan_digest: String,
    /// Level and value of each step from the root.
    pub path: Vec<(String, String)>,
    /// Index of the slice.
    pub index: i32,
}

impl Owner {
    /// What an assignment's identity says.
    pub fn of(identity: &Identity) -> Self {
        Self {
            namespace: identity.namespace.clone(),
            root: identity.root.clone(),
            root_uid: identity.root_uid.clone(),
            run: identity.run,
            plan_digest: identity.plan_digest.clone(),
            path: identity.path.iter().map(|step| (step.level.clone(), step.value.clone())).collect(),
            index: identity.index,
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let uid: String = self.root_uid.chars().take(8).collect();
        let plan: String = self.plan_digest.chars().take(8).collect();
        write!(f, "{}/{} (uid {uid}, run {}, plan {plan}, slice {})", self.namespace, self.root, self.run, self.index)
    }
}

/// The manifest of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this form: 1.
    pub version: i32,
    /// Whose it is.
    pub identity: Owner,
    /// Attempt that committed, as its folder is named.
    pub attempt: String,
    /// The parts, of any attempt, that make up the slice.
    pub parts: Vec<FilePart>,
    /// Files of the records that did not fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejects: Vec<FilePart>,
    /// What the slice adds up to.
    pub tally: Tally,
}

impl Manifest {
    /// Path of a slice's manifest below the sink's URL.
    pub fn path(identity: &Identity) -> String {
        format!("{}/{MANIFEST}", identity.slice_folder())
    }

    /// The bytes to write. The same manifest always gives the same bytes.
    ///
    /// # Errors
    /// Never in practice.
    pub fn encode(&self) -> Result<Bytes, SinkError> {
        let mut bytes = serde_json::to_vec(self).map_err(|error| SinkError::Encode(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes.into())
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(path: &str, bytes: &[u8]) -> Result<Self, SinkError> {
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| SinkError::Unreadable { path: path.to_owned(), cause: error.to_string() })?;
        if manifest.version != 1 {
            let cause = format!("it has version {}, not 1", manifest.version);
            return Err(SinkError::Unreadable { path: path.to_owned(), cause });
        }
        Ok(manifest)
    }

    /// Checks that a manifest found at `path` is that of `identity`.
    ///
    /// # Errors
    /// When it is another's.
    pub fn check(&self, path: &str, identity: &Identity) -> Result<(), SinkError> {
        let wanted = Owner::of(identity);
        if self.identity == wanted {
            return Ok(());
        }
        let (owner, claimant) = (self.identity.to_string(), wanted.to_string());
        Err(SinkError::Occupied { path: path.to_owned(), owner, claimant })
    }

    /// What the slice came to.
    pub fn result(&self, path: String) -> CollectResult {
        CollectResult {
            tally: self.tally.clone(),
            files: i32::try_from(self.parts.len()).unwrap_or(i32::MAX),
            file_bytes: self.parts.iter().map(|part| part.bytes).sum(),
            manifest: path,
        }
    }
}

#[cfg(test)]
mod tests {
    use collect_api::plan::PathStep;

    use super::*;

    fn identity(label: Option<&str>) -> Identity {
        Identity {
            namespace: "default".into(),
            root: "villages".into(),
            root_uid: "3f9c2a71-0000".into(),
            run: 1,
            path: vec![PathStep { level: "province".into(), value: "44".into(), label: label.map(str::to_owned) }],
            index: 3,
            plan_digest: "abcdef0123".into(),
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            version: 1,
            identity: Owner::of(&identity(Some("广东省"))),
            attempt: "1-abcdef01".into(),
            parts: vec![FilePart { path: "p".into(), rows: 2, bytes: 10, ..FilePart::default() }],
            rejects: Vec::new(),
            tally: Tally { records: 2, ..Tally::default() },
        }
    }

    #[test]
    fn a_manifest_belongs_to_one_identity_whatever_its_labels() {
        let manifest = Manifest::decode("m", &manifest().encode().unwrap()).unwrap();
        manifest.check("m", &identity(None)).unwrap();
        for change in [
            (|i: &mut Identity| i.root_uid = "other".into()) as fn(&mut Identity),
            |i| i.run = 2,
            |i| i.index = 4,
            |i| i.plan_digest = "0".into(),
            |i| i.path.clear(),
            |i| i.namespace = "n".into(),
        ] {
            let mut other = identity(None);
            change(&mut other);
            assert!(matches!(manifest.check("m", &other), Err(SinkError::Occupied { .. })), "{other:?}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        assert!(matches!(Manifest::decode("m", b"{}"), Err(SinkError::Unreadable { .. })));
        let mut newer = manifest();
        newer.version = 2;
        assert!(Manifest::decode("m", &newer.encode().unwrap()).unwrap_err().to_string().contains("version 2"));
    }

    #[test]
    fn the_result_is_that_of_the_manifest() {
        let result = manifest().result("x/manifest.json".into());
        assert_eq!((result.files, result.file_bytes, result.tally.records), (1, 10, 2));
    }
}

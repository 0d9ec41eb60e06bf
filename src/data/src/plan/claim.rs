//! Claims the sink before any data moves: `_current.json` names the owner, and a probe shows that creates exclude each other.

use bytes::Bytes;
use collect_api::protocol::Identity;
use serde::{Deserialize, Serialize};

use crate::sink::{Created, SinkError, Store};

/// The object that names the owner of a sink folder and its valid run.
pub const CURRENT: &str = "_current.json";

/// Content of [`CURRENT`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Current {
    /// `namespace/name` of the root task.
    pub owner: String,
    /// The valid run; null while there is none.
    pub run: Option<i64>,
    /// Uid of the root task that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_uid: Option<String>,
    /// Its folder below the sink's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Its file list below the sink's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// Records in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<i64>,
    /// Files of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<i64>,
    /// Bytes of these files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
}

impl Current {
    /// A claim without a valid run.
    pub fn claim(identity: &Identity) -> Self {
        Self { owner: owner(identity), ..Self::default() }
    }

    /// The bytes to write.
    ///
    /// # Errors
    /// Never in practice.
    pub fn encode(&self) -> Result<Bytes, SinkError> {
        let mut bytes = serde_json::to_vec(self).map_err(|error| SinkError::Encode(error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes.into())
    }

    /// Reads it and checks that it is ours. `place` is where it was found, for messages.
    ///
    /// # Errors
    /// When another task owns the folder, or it can't be read.
    pub fn decode(bytes: &[u8], identity: &Identity, place: &str) -> Result<Self, SinkError> {
        let current: Self = serde_json::from_slice(bytes)
            .map_err(|error| SinkError::Unreadable { path: place.to_owned(), cause: error.to_string() })?;
        if current.owner == owner(identity) {
            return Ok(current);
        }
        Err(SinkError::Occupied { path: place.to_owned(), owner: current.owner, claimant: owner(identity) })
    }
}

/// `namespace/name`: a task that was deleted and created again takes over its own folder.
fn owner(identity: &Identity) -> String {
    format!("{}/{}", identity.namespace, identity.root)
}

/// Claims the sink for a task. `unique` names this attempt, so that two planners don't disturb each other's probes.
///
/// # Errors
/// `SinkOccupied` when another task owns the folder; `SinkNotConditional` when a second create is not refused.
pub async fn claim(store: &Store, identity: &Identity, unique: &str) -> Result<(), SinkError> {
    if let Some((bytes, _)) = store.get(CURRENT).await? {
        Current::decode(&bytes, identity, &store.place(CURRENT))?;
    }
    probe(store, unique).await?;
    match store.create(CURRENT, &Current::claim(identity).encode()?).await? {
        Created::Ours => Ok(()),
        Created::Theirs(bytes) => Current::decode(&bytes, identity, &store.place(CURRENT)).map(drop),
    }
}

/// Creates an object twice, with different content: the second must be refused.
async fn probe(store: &Store, unique: &str) -> Result<(), SinkError> {
    let path = format!("_probe-{unique}");
    store.create(&path, &Bytes::from_static(b"first\n")).await?;
    let second = store.create(&path, &Bytes::from_static(b"second\n")).await?;
    store.delete(&path).await?;
    match second {
        Created::Theirs(_) => Ok(()),
        Created::Ours => Err(SinkError::NotConditional { path }),
    }
}

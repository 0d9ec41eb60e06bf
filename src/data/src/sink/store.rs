//! Objects below the sink's URL.

use std::{io::ErrorKind, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    Error as StoreError, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion,
    path::Path,
};

use super::SinkError;
use crate::{secrets::Secret, text};

/// Tries of a put whose answer was lost.
const PUT_TRIES: u32 = 6;

/// What kind of store it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// S3 and what speaks its protocol: creates and updates are conditional.
    S3,
    /// A mounted volume: creates are conditional (hard links), updates are atomic renames.
    Volume {
        /// The sink's folder on the volume.
        folder: PathBuf,
    },
}

/// Objects below the sink's URL. Paths are relative to it.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    kind: Kind,
    secrets: Vec<Secret>,
    /// The sink's URL as the task names it, for messages.
    url: String,
}

/// What a create-only put came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object holds exactly these bytes now, written by this or an earlier try.
    Ours,
    /// Something else was there before.
    Theirs(Bytes),
}

/// What an object was when it was read, to replace only that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    e_tag: Option<String>,
    version: Option<String>,
}

impl Store {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, prefix: Path, kind: Kind, secrets: Vec<Secret>) -> Self {
        Self { inner, prefix, kind, secrets, url: String::new() }
    }

    /// The same, with the sink's URL as the task names it.
    pub(super) fn named(self, url: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), ..self }
    }

    /// An object's place in words for people: the sink's URL and the path below it.
    pub fn place(&self, relative: &str) -> String {
        format!("{}/{relative}", self.url)
    }

    /// What kind of store it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    pub(super) fn inner(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.inner)
    }

    /// The object's path in the store.
    pub(super) fn path(&self, relative: &str) -> Result<Path, SinkError> {
        let full = format!("{}/{relative}", self.prefix);
        Path::parse(full.trim_matches('/'))
            .map_err(|error| SinkError::Invalid { url: relative.to_owned(), cause: error.to_string() })
    }

    /// The path below the sink's URL.
    fn relative(&self, path: &Path) -> String {
        let prefix = self.prefix.as_ref();
        path.as_ref().strip_prefix(prefix).unwrap_or(path.as_ref()).trim_start_matches('/').to_owned()
    }

    pub(super) fn error(&self, doing: &'static str, relative: &str, error: &StoreError) -> SinkError {
        let masked = text::mask(&text::chain(error), self.secrets.iter().map(Secret::expose));
        let (path, cause) = (relative.to_owned(), text::shorten(&masked, 300));
        match error {
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                SinkError::Denied { doing, path, cause }
            }
            StoreError::NotFound { .. } => SinkError::NotFound { path, cause },
            other if text::io_kind(other).is_some_and(is_refusal) => SinkError::Denied { doing, path, cause },
            _ => SinkError::Unavailable { doing, path, cause },
        }
    }

    /// An object's bytes and version; `None` if there is none.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn get(&self, relative: &str) -> Result<Option<(Bytes, Version)>, SinkError> {
        let path = self.path(relative)?;
        let found = async {
            let result = self.inner.get(&path).await?;
            let version = Version { e_tag: result.meta.e_tag.clone(), version: result.meta.version.clone() };
            Ok((result.bytes().await?, version))
        };
        match found.await {
            Ok(found) => Ok(Some(found)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("read", relative, &error)),
        }
    }

    /// What is known of an object without its bytes; `None` if there is none.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn head(&self, relative: &str) -> Result<Option<Listed>, SinkError> {
        match self.inner.head(&self.path(relative)?).await {
            Ok(meta) => Ok(Some(self.listed(&meta))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error("look at", relative, &error)),
        }
    }

    /// Creates an object unless there is one. An answer that is lost on the way, a conflict, or a repetition by the
    /// client end right: what counts is what the object holds afterwards (I5).
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn create(&self, relative: &str, bytes: &Bytes) -> Result<Created, SinkError> {
        let path = self.path(relative)?;
        let mut tries = 0;
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let error = match self.inner.put_opts(&path, PutPayload::from(bytes.clone()), options).await {
                Ok(_) => return Ok(Created::Ours),
                Err(error) => error,
            };
            match self.get(relative).await {
                Ok(Some((found, _))) if found == *bytes => return Ok(Created::Ours),
                Ok(Some((found, _))) => return Ok(Created::Theirs(found)),
                Ok(None) | Err(_) => {}
            }
            tries += 1;
            let failed = self.error("create", relative, &error);
            let may_pass = matches!(failed, SinkError::Unavailable { .. })
                && !matches!(error, StoreError::NotImplemented { .. } | StoreError::NotSupported { .. });
            if tries >= PUT_TRIES || !may_pass {
                return Err(failed);
            }
            tokio::time::sleep(Duration::from_millis(100 << tries)).await;
        }
    }

    /// Replaces an object by these bytes, where the store can only if it is still what was read. `false` if it is not.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn replace(&self, relative: &str, bytes: &Bytes, read: &Version) -> Result<bool, SinkError> {
        let path = self.path(relative)?;
        let mode = match self.kind {
            Kind::S3 => PutMode::Update(UpdateVersion { e_tag: read.e_tag.clone(), version: read.version.clone() }),
            Kind::Volume { .. } => PutMode::Overwrite,
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.inner.put_opts(&path, PutPayload::from(bytes.clone()), options).await {
            Ok(_) => Ok(true),
            // The answer of an earlier try may be lost: look.
            Err(StoreError::Precondition { .. } | StoreError::AlreadyExists { .. }) => {
                Ok(self.get(relative).await?.is_some_and(|(found, _)| found == *bytes))
            }
            Err(error) => match self.get(relative).await {
                Ok(Some((found, _))) if found == *bytes => Ok(true),
                _ => Err(self.error("replace", relative, &error)),
            },
        }
    }

    /// Writes an object that only this pod writes.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn put(&self, relative: &str, bytes: Bytes) -> Result<(), SinkError> {
        let path = self.path(relative)?;
        self.inner.put(&path, PutPayload::from(bytes)).await.map(drop).map_err(|e| self.error("write", relative, &e))
    }

    /// Every object below a folder: path below the sink's URL, size and time of change.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>, SinkError> {
        let path = self.path(folder)?;
        let found: Result<Vec<ObjectMeta>, StoreError> = self.inner.list(Some(&path)).try_collect().await;
        match found {
            Ok(found) => Ok(found.iter().map(|meta| self.listed(meta)).collect()),
            Err(StoreError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(self.error("list", folder, &error)),
        }
    }

    fn listed(&self, meta: &ObjectMeta) -> Listed {
        Listed {
            path: self.relative(&meta.location),
            bytes: meta.size,
            changed_ms: meta.last_modified.timestamp_millis(),
        }
    }

    /// Names of the folders right below a folder.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>, SinkError> {
        match self.inner.list_with_delimiter(Some(&self.path(folder)?)).await {
            Ok(found) => {
                let names = found.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned));
                Ok(names.collect())
            }
            Err(StoreError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(self.error("list", folder, &error)),
        }
    }

    /// Removes an object; that there is none is no error.
    ///
    /// # Errors
    /// When the store refuses or can't be reached.
    pub async fn delete(&self, relative: &str) -> Result<(), SinkError> {
        match self.inner.delete(&self.path(relative)?).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("remove", relative, &error)),
        }
    }
}

/// Whether the file system refuses for good.
pub(super) fn is_refusal(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Path below the sink's URL.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of its last change, in milliseconds since the epoch.
    pub changed_ms: i64,
}

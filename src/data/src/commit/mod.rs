//! Commits a run: checks that every slice is there, writes the file list, removes what no manifest names, makes the run
//! the valid one, prunes older runs. Every step may be repeated, and a crash between any two loses nothing.

mod list;
mod prune;

use collect_api::{
    protocol::{Assignment, CommitResult, CommitWork, Identity},
    sink::Sink,
};

use tracing::{Instrument, debug_span};

pub use list::{LIST, Visible, lines};
pub use prune::{Folder, superfluous};

use crate::{
    Control, Error, Settings,
    control::Stage,
    error::Class,
    plan::{CURRENT, Current},
    sink::{Created, SinkError, Store},
};

/// Tries to move `_current.json` while others change it.
const MOVE_TRIES: usize = 5;

/// A run that can't be committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Slices are missing or there are too many.
    #[error(
        "the run has {slices} committed slices with {records} records at the sink where {wanted_slices} with {wanted_records} are expected; files below {folder} were changed by hand: raise spec.run to collect anew"
    )]
    Incomplete {
        /// Folder of the run.
        folder: String,
        /// Manifests found.
        slices: i64,
        /// Records in them.
        records: i64,
        /// Manifests expected.
        wanted_slices: i64,
        /// Records expected.
        wanted_records: i64,
    },
    /// A slice that counts as failed was committed after all.
    #[error(
        "the run has {slices} committed slices at the sink where {wanted_slices} are expected: a worker that was given up committed all the same; set a new value of the annotation collect.dev/retry, and its slice is taken in"
    )]
    TooMany {
        /// Manifests found.
        slices: i64,
        /// Manifests expected.
        wanted_slices: i64,
    },
    /// A manifest names a file that is not there.
    #[error(
        "the file `{path}` ({rows} records) of a committed slice is not at the sink as it was written; it was removed or changed by hand, or a worker that was given up committed late: raise spec.run to collect anew"
    )]
    PartMissing {
        /// The file.
        path: String,
        /// Records in it.
        rows: i64,
    },
    /// A list of other files is there.
    #[error("`{path}` lists other files than the manifests; it was changed by hand: remove it or raise spec.run")]
    ListDiffers {
        /// The list.
        path: String,
    },
    /// A newer run is valid already.
    #[error(
        "run {newer} is the valid one already, so run {run} is not committed any more; raise spec.run above {newer} to collect anew"
    )]
    Superseded {
        /// The valid run.
        newer: i64,
        /// This run.
        run: i64,
    },
    /// Others keep changing `_current.json`.
    #[error("`{CURRENT}` keeps changing; another process writes it")]
    Contended,
}

impl CommitError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Incomplete { .. } | Self::TooMany { .. } => "ManifestMismatch",
            Self::PartMissing { .. } => "PartMissing",
            Self::ListDiffers { .. } => "ListDiffers",
            Self::Superseded { .. } => "Superseded",
            Self::Contended => "SinkContended",
        }
    }

    /// What it means for the attempt.
    pub fn class(&self) -> Class {
        match self {
            // A worker of a run that is gone is asked by nobody how it ended; to any other, trying again is of no use.
            Self::Incomplete { .. }
            | Self::TooMany { .. }
            | Self::PartMissing { .. }
            | Self::ListDiffers { .. }
            | Self::Superseded { .. } => Class::Permanent,
            Self::Contended => Class::Retryable,
        }
    }
}

/// Commits a run.
///
/// # Errors
/// When slices are missing, the sink fails, or a newer run is valid.
pub async fn commit(
    assignment: &Assignment,
    work: &CommitWork,
    settings: &Settings,
    control: &Control,
) -> Result<CommitResult, Error> {
    let Sink::ObjectStore(sink) = &assignment.sink;
    let identity = &assignment.identity;
    control.note(|progress| progress.stage = Stage::Committing);
    let store = Store::open(sink, settings)?;
    // First of all: nothing below may touch the folder of another task, nor a run that a newer one has replaced.
    check_current(&store, identity).await?;
    let visible = list::read(&store, identity).instrument(debug_span!("manifests")).await?;
    check_complete(&visible, identity, work)?;
    // After the manifests: what they name must be among it.
    let listed = store.list(&identity.run_folder()).await?;
    list::check_parts(&visible, &listed)?;
    let lines = lines(&visible.parts)?;
    let list = put_list(&store, identity, work.revision, &lines).instrument(debug_span!("list")).await?;
    let mut result = CommitResult {
        files: i64::try_from(visible.parts.len()).unwrap_or(i64::MAX),
        records: visible.records,
        bytes: visible.parts.iter().map(|part| part.bytes).sum(),
        removed: 0,
        list,
    };
    result.removed = list::remove_unnamed(&store, identity, &visible, listed).instrument(debug_span!("remove")).await?;
    move_current(&store, identity, &result, visible.newest_ms).instrument(debug_span!("move current")).await?;
    prune::prune(&store, identity, visible.newest_ms, work.keep_runs).instrument(debug_span!("prune")).await?;
    Ok(result)
}

/// Writes the file list and gives back its path. A run that was committed in part and then completed by a retry gets a second
/// one: a list that readers may have open is never written over. `_current.json` names the valid one.
async fn put_list(store: &Store, identity: &Identity, revision: i32, lines: &bytes::Bytes) -> Result<String, Error> {
    let first = format!("{}/{LIST}", identity.run_folder());
    if store.create(&first, lines).await? == Created::Ours {
        return Ok(first);
    }
    if revision == 0 {
        return Err(CommitError::ListDiffers { path: first }.into());
    }
    let later = format!("{}/{}", identity.run_folder(), list::later(revision));
    match store.create(&later, lines).await? {
        Created::Ours => Ok(later),
        Created::Theirs(_) => Err(CommitError::ListDiffers { path: later }.into()),
    }
}

fn check_complete(visible: &Visible, identity: &Identity, work: &CommitWork) -> Result<(), CommitError> {
    if visible.slices == work.slices && visible.records == work.records {
        return Ok(());
    }
    if visible.slices > work.slices {
        return Err(CommitError::TooMany { slices: visible.slices, wanted_slices: work.slices });
    }
    Err(CommitError::Incomplete {
        folder: identity.run_folder(),
        slices: visible.slices,
        records: visible.records,
        wanted_slices: work.slices,
        wanted_records: work.records,
    })
}

/// What `_current.json` says, if it is ours and not ahead of us.
async fn check_current(store: &Store, identity: &Identity) -> Result<Option<(Current, crate::sink::Version)>, Error> {
    let Some((bytes, version)) = store.get(CURRENT).await? else { return Ok(None) };
    let current = Current::decode(&bytes, identity, &store.place(CURRENT))?;
    match current.run {
        Some(newer) if current.root_uid.as_ref() == Some(&identity.root_uid) && newer > identity.run => {
            Err(CommitError::Superseded { newer, run: identity.run }.into())
        }
        _ => Ok(Some((current, version))),
    }
}

/// Whether the valid run is one of a later task of this name. A task that was deleted and created again takes over its
/// own folder, and nothing says which of two uids is the later one but when their data was complete, by the store's clock.
async fn is_overtaken(
    store: &Store,
    identity: &Identity,
    current: &Current,
    own_ms: Option<i64>,
) -> Result<bool, SinkError> {
    let is_foreign = current.root_uid.as_ref().is_some_and(|uid| *uid != identity.root_uid);
    let (true, Some(folder), Some(own)) = (is_foreign, &current.folder, own_ms) else { return Ok(false) };
    Ok(list::newest_ms(store, folder).await?.is_some_and(|theirs| theirs > own))
}

/// Points `_current.json` to this run, never from a newer run to an older one. `own_ms` is when this run was complete.
async fn move_current(
    store: &Store,
    identity: &Identity,
    result: &CommitResult,
    own_ms: Option<i64>,
) -> Result<(), Error> {
    let wanted = Current {
        run: Some(identity.run),
        root_uid: Some(identity.root_uid.clone()),
        folder: Some(identity.run_folder()),
        list: Some(result.list.clone()),
        records: Some(result.records),
        files: Some(result.files),
        bytes: Some(result.bytes),
        ..Current::claim(identity)
    };
    let bytes = wanted.encode()?;
    for _ in 0..MOVE_TRIES {
        let moved = match check_current(store, identity).await? {
            Some((current, _)) if current == wanted => true,
            Some((current, _)) if is_overtaken(store, identity, &current, own_ms).await? => {
                let newer = current.run.unwrap_or_default();
                return Err(CommitError::Superseded { newer, run: identity.run }.into());
            }
            Some((_, version)) => store.replace(CURRENT, &bytes, &version).await?,
            None => store.create(CURRENT, &bytes).await? == Created::Ours,
        };
        if moved {
            return Ok(());
        }
    }
    Err(CommitError::Contended.into())
}

impl From<serde_json::Error> for SinkError {
    fn from(error: serde_json::Error) -> Self {
        Self::Encode(error.to_string())
    }
}

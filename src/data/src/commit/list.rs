//! The files of a run: found by its manifests, listed once, everything else removed.

use std::collections::BTreeSet;

use bytes::Bytes;
use collect_api::protocol::Identity;
use futures::{StreamExt, TryStreamExt, stream};

use super::CommitError;
use crate::{
    Error,
    sink::{FilePart, Kind, Listed, MANIFEST, Manifest, SinkError, Store, missing},
};

/// Name of the file list in a run's folder.
pub const LIST: &str = "_files.ndjson";

/// Name of the file list of a later commit of the same run.
pub fn later(revision: i32) -> String {
    let (stem, extension) = LIST.split_once('.').unwrap_or((LIST, "ndjson"));
    format!("{stem}-{revision}.{extension}")
}
/// Manifests that are read, or objects that are removed, at once.
const AT_ONCE: usize = 16;

/// What the manifests of a run name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visible {
    /// Manifests.
    pub slices: i64,
    /// Records in them.
    pub records: i64,
    /// Their parts, sorted by path.
    pub parts: Vec<FilePart>,
    /// When the last manifest was written, in milliseconds since the epoch, by the store's clock.
    pub newest_ms: Option<i64>,
    /// Paths of everything that stays.
    keep: BTreeSet<String>,
}

impl Visible {
    fn add(&mut self, path: String, manifest: Manifest) {
        self.slices += 1;
        self.records += manifest.tally.records;
        self.keep.insert(path);
        self.keep.extend(manifest.parts.iter().chain(&manifest.rejects).map(|part| part.path.clone()));
        self.parts.extend(manifest.parts);
    }
}

/// Reads every manifest of a run.
///
/// # Errors
/// When one belongs to another identity or can't be read.
pub async fn read(store: &Store, identity: &Identity) -> Result<Visible, Error> {
    let found = manifests(store, &identity.run_folder()).await?;
    let mut visible = Visible { newest_ms: newest(&found), ..Visible::default() };
    let read = found.into_iter().map(|Listed { path, .. }| async move {
        let (bytes, _) = store.get(&path).await?.ok_or_else(|| SinkError::NotFound {
            path: path.clone(),
            cause: "it was removed while the run was committed".into(),
        })?;
        let manifest = Manifest::decode(&path, &bytes)?;
        check(&path, &manifest, identity)?;
        Ok::<_, SinkError>((path, manifest))
    });
    let mut found = stream::iter(read).buffer_unordered(AT_ONCE);
    while let Some((path, manifest)) = found.try_next().await? {
        visible.add(path, manifest);
    }
    visible.parts.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(visible)
}

/// The manifests below a run's folder.
async fn manifests(store: &Store, folder: &str) -> Result<Vec<Listed>, SinkError> {
    let mut listed = store.list(folder).await?;
    listed.retain(|object| object.path.ends_with(&format!("/{MANIFEST}")));
    Ok(listed)
}

fn newest(manifests: &[Listed]) -> Option<i64> {
    manifests.iter().map(|object| object.changed_ms).max()
}

/// When the last manifest below a run's folder was written, by the store's clock.
///
/// # Errors
/// When the sink fails.
pub async fn newest_ms(store: &Store, folder: &str) -> Result<Option<i64>, SinkError> {
    Ok(newest(&manifests(store, folder).await?))
}

/// A manifest of this run lies where its own identity says.
fn check(path: &str, manifest: &Manifest, identity: &Identity) -> Result<(), SinkError> {
    let owner = &manifest.identity;
    let step = |(level, value): &(String, String)| collect_api::plan::PathStep {
        level: level.clone(),
        value: value.clone(),
        label: None,
    };
    let wanted = Identity { path: owner.path.iter().map(step).collect(), index: owner.index, ..identity.clone() };
    manifest.check(path, &wanted)?;
    if Manifest::path(&wanted) == path {
        return Ok(());
    }
    Err(SinkError::Unreadable { path: path.to_owned(), cause: "it lies in another slice's folder".into() })
}

/// The lines of the file list: path, rows, bytes, hash and level values of every part.
///
/// # Errors
/// Never in practice.
pub fn lines(parts: &[FilePart]) -> Result<Bytes, SinkError> {
    let mut bytes = Vec::with_capacity(parts.len() * 256);
    for part in parts {
        serde_json::to_writer(&mut bytes, part)?;
        bytes.push(b'\n');
    }
    Ok(bytes.into())
}

/// Checks that every part is there with as many bytes as its manifest says. A list never names what nobody can read. Pure.
///
/// # Errors
/// For the first part that is not.
pub fn check_parts(visible: &Visible, listed: &[Listed]) -> Result<(), CommitError> {
    match missing(&visible.parts, listed) {
        Some(part) => Err(CommitError::PartMissing { path: part.path.clone(), rows: part.rows }),
        None => Ok(()),
    }
}

/// Removes everything of what is `listed` in the run's folder that no manifest names, and gives the number of parts among it.
///
/// # Errors
/// When the sink fails.
pub async fn remove_unnamed(
    store: &Store,
    identity: &Identity,
    visible: &Visible,
    listed: Vec<Listed>,
) -> Result<i64, Error> {
    // The lists of this commit and of those before it.
    let lists = format!("{}/_files", identity.run_folder());
    // A manifest that appeared meanwhile is a zombie's: it is not in the list, and not ours to remove.
    let unnamed: Vec<String> = listed
        .into_iter()
        .map(|object| object.path)
        .filter(|path| {
            !visible.keep.contains(path) && !path.starts_with(&lists) && !path.ends_with(&format!("/{MANIFEST}"))
        })
        .collect();
    let parts = unnamed.iter().filter(|path| is_part(path)).count();
    stream::iter(unnamed.iter().map(|path| store.delete(path)))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    if let Kind::Volume { folder } = store.kind() {
        remove_staged(&folder.join(identity.run_folder()), 0);
    }
    Ok(i64::try_from(parts).unwrap_or(i64::MAX))
}

fn is_part(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name.starts_with("part-") && !name.ends_with(".json")
}

/// On a volume, a worker that was killed leaves the file that it was writing as `name#number`, which lists don't show.
fn remove_staged(folder: &std::path::Path, depth: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let name = entry.file_name();
        let staged = name
            .to_str()
            .and_then(|name| name.rsplit_once('#'))
            .is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
        if is_folder && depth < 16 {
            remove_staged(&entry.path(), depth + 1);
            // Only succeeds if it is empty.
            let _ = std::fs::remove_dir(entry.path());
        } else if staged {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_count_as_parts() {
        for (path, wanted) in [
            ("a/part-0.ndjson.zst", true),
            ("a/part-0.json", false),
            ("a/rejected-0.ndjson", false),
            ("part-x/y", false),
        ] {
            assert_eq!(is_part(path), wanted, "{path}");
        }
    }

    #[test]
    fn lines_hold_one_part_each() {
        let part = FilePart { path: "p".into(), rows: 1, bytes: 2, hash: "h".into(), ..FilePart::default() };
        let lines = lines(&[part.clone(), part]).unwrap();
        assert_eq!(lines, "{\"path\":\"p\",\"rows\":1,\"bytes\":2,\"hash\":\"h\",\"levels\":{}}\n".repeat(2));
    }
}

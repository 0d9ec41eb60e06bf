//! The sink in small: closed parts by folder, manifests that are created once by commit identity, the run that is valid.

use std::collections::BTreeMap;

use collect_api::protocol::{Checkpoint, ClosedParts};

/// Commit identity of a slice: uid of the root, run, path, index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceId {
    pub root_uid: String,
    pub run: i64,
    pub path: Vec<String>,
    pub index: i32,
}

/// Records of a closed part.
type Part = Vec<i64>;

/// What makes parts visible.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub parts: Vec<ClosedParts>,
    pub records: i64,
}

#[derive(Default)]
pub struct Sink {
    parts: BTreeMap<(SliceId, String), Vec<Part>>,
    pub manifests: BTreeMap<SliceId, Manifest>,
    /// Records that each committed run lists.
    pub lists: BTreeMap<(String, i64), Vec<i64>>,
}

impl Sink {
    pub fn close_part(&mut self, slice: &SliceId, folder: &str, records: Vec<i64>) -> i32 {
        let parts = self.parts.entry((slice.clone(), folder.to_owned())).or_default();
        parts.push(records);
        i32::try_from(parts.len()).unwrap()
    }

    /// The records of parts, in order; nothing where one is missing.
    pub fn read(&self, slice: &SliceId, parts: &[ClosedParts]) -> Option<Vec<i64>> {
        let mut records = Vec::new();
        for closed in parts {
            let found = self.parts.get(&(slice.clone(), closed.folder.clone()))?;
            records.extend(found.get(..usize::try_from(closed.count).ok()?)?.iter().flatten());
        }
        Some(records)
    }

    /// Whether everything that a checkpoint adopts is still there.
    pub fn holds(&self, slice: &SliceId, checkpoint: &Checkpoint) -> bool {
        self.read(slice, &checkpoint.parts).is_some()
    }

    /// Creates a manifest if there is none; whether it is ours.
    pub fn commit(&mut self, slice: &SliceId, manifest: Manifest) -> bool {
        if self.manifests.contains_key(slice) {
            return false;
        }
        self.manifests.insert(slice.clone(), manifest);
        true
    }

    pub fn of_run(&self, root_uid: &str, run: i64) -> impl Iterator<Item = (&SliceId, &Manifest)> {
        self.manifests.iter().filter(move |(slice, _)| slice.root_uid == root_uid && slice.run == run)
    }

    /// Writes a run's list, and removes what no manifest of it names.
    pub fn list_run(&mut self, root_uid: &str, run: i64) {
        let mut records = Vec::new();
        let mut named = Vec::new();
        for (slice, manifest) in self.of_run(root_uid, run) {
            records.extend(self.read(slice, &manifest.parts).unwrap_or_default());
            named.extend(manifest.parts.iter().map(|part| (slice.clone(), part.folder.clone(), part.count)));
        }
        self.parts.retain(|(slice, folder), parts| {
            if slice.root_uid != root_uid || slice.run != run {
                return true;
            }
            let keep = named.iter().filter(|(s, f, _)| (s, f) == (slice, folder)).map(|(.., count)| *count).max();
            parts.truncate(usize::try_from(keep.unwrap_or(0)).unwrap());
            !parts.is_empty()
        });
        self.lists.insert((root_uid.to_owned(), run), records);
    }
}

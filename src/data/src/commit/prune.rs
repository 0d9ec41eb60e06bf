//! Removes the data of older runs: never that of the valid run, never that of a run which may still be collected.

use collect_api::protocol::Identity;
use futures::{StreamExt, TryStreamExt, stream};

use super::LIST;
use crate::{Error, sink::Store};

/// A run's folder at the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Name below `runs/`: `<run>-<first 8 of the root's uid>`.
    pub name: String,
    /// When its file list was written, in milliseconds since the epoch; absent if it was never committed.
    pub committed_ms: Option<i64>,
}

impl Folder {
    fn run(&self) -> Option<(i64, &str)> {
        let (run, uid) = self.name.split_once('-')?;
        Some((run.parse().ok()?, uid))
    }
}

/// The folders to remove. Kept are this run and, of the older ones, those committed last; a run that was never committed
/// counts as older than all that were. Runs of another task of the same name are removed only if they were committed
/// before this run was complete, at `own_ms`: of others it is not known that they are older. Pure.
pub fn superfluous(folders: &[Folder], identity: &Identity, own_ms: Option<i64>, keep_runs: i32) -> Vec<String> {
    let own_uid: String = identity.root_uid.chars().take(8).collect();
    let mut older: Vec<(&Folder, i64)> = folders
        .iter()
        .filter_map(|folder| {
            let (run, uid) = folder.run()?;
            let was_before = || folder.committed_ms.zip(own_ms).is_some_and(|(theirs, own)| theirs < own);
            let is_older = if uid == own_uid { run < identity.run } else { was_before() };
            is_older.then_some((folder, run))
        })
        .collect();
    older.sort_by_key(|(folder, run)| std::cmp::Reverse((folder.committed_ms, *run)));
    let kept = usize::try_from(keep_runs.saturating_sub(1)).unwrap_or(0);
    older.into_iter().skip(kept).map(|(folder, _)| folder.name.clone()).collect()
}

/// Prunes older runs.
///
/// # Errors
/// When the sink fails.
pub async fn prune(store: &Store, identity: &Identity, own_ms: Option<i64>, keep_runs: i32) -> Result<(), Error> {
    let mut folders = Vec::new();
    for name in store.folders("runs").await? {
        let committed_ms = store.head(&format!("runs/{name}/{LIST}")).await?.map(|head| head.changed_ms);
        folders.push(Folder { name, committed_ms });
    }
    for name in superfluous(&folders, identity, own_ms, keep_runs) {
        let folder = format!("runs/{name}");
        let list = format!("{folder}/{LIST}");
        let objects = store.list(&folder).await?;
        // The list goes last: without it a run that was cut off on the way would not be found again.
        let others = objects.iter().filter(|object| object.path != list).map(|object| store.delete(&object.path));
        stream::iter(others).buffer_unordered(16).try_collect::<Vec<()>>().await?;
        store.delete(&list).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(run: i64) -> Identity {
        Identity {
            namespace: "n".into(),
            root: "r".into(),
            root_uid: "aaaaaaaa-1".into(),
            run,
            path: vec![],
            index: 0,
            plan_digest: String::new(),
        }
    }

    #[test]
    fn the_newest_committed_runs_are_kept() {
        let folder = |name: &str, committed_ms| Folder { name: name.into(), committed_ms };
        let folders = [
            folder("1-aaaaaaaa", Some(10)),
            folder("2-aaaaaaaa", Some(20)),
            folder("3-aaaaaaaa", None),
            folder("4-aaaaaaaa", Some(40)),
            folder("5-aaaaaaaa", None),
            folder("9-bbbbbbbb", Some(5)),
            folder("8-bbbbbbbb", None),
            folder("1-cccccccc", Some(41)),
            folder("x", Some(1)),
        ];
        for (keep, wanted) in [
            (1, vec!["2-aaaaaaaa", "1-aaaaaaaa", "9-bbbbbbbb", "3-aaaaaaaa"]),
            (2, vec!["1-aaaaaaaa", "9-bbbbbbbb", "3-aaaaaaaa"]),
            (4, vec!["3-aaaaaaaa"]),
            (100, vec![]),
        ] {
            assert_eq!(superfluous(&folders, &identity(4), Some(39), keep), wanted, "keep {keep}");
        }
    }
}

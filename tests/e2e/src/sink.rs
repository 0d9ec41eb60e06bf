//! What a reader finds at the sink: `_current.json`, the file list of its run, the manifests, and the records in the files.
//!
//! It knows the layout from the design alone and shares no code with the worker. It never looks for files by itself but to check
//! that a glob over the run finds the same ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use flate2::read::GzDecoder;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use serde_json::Value;

/// All that is visible of a task.
#[derive(Debug)]
pub struct Collected {
    /// Folder of the valid run, such as `runs/1-3f9c2a71`.
    pub run: String,
    /// Values of the key field.
    pub keys: BTreeSet<String>,
    /// Records.
    pub records: usize,
    /// Number of files.
    pub files: usize,
}

impl Collected {
    /// Records beyond the first of each key.
    pub fn duplicates(&self) -> usize {
        self.records - self.keys.len()
    }

    /// Asserts that exactly these keys were collected, each once.
    pub fn assert_exactly(&self, keys: &BTreeSet<String>) {
        let some = |keys: Vec<&String>| format!("{} {:?}", keys.len(), keys.iter().take(10).collect::<Vec<_>>());
        let missing: Vec<_> = keys.difference(&self.keys).collect();
        let extra: Vec<_> = self.keys.difference(keys).collect();
        assert!(missing.is_empty() && extra.is_empty(), "missing: {}, extra: {}", some(missing), some(extra));
        assert_eq!(self.duplicates(), 0, "records of {} that were collected twice", self.run);
        assert!(!self.keys.is_empty(), "something was collected");
    }
}

/// Path of the valid run's folder below the task's own, if there is a valid run.
pub async fn current_run(store: &dyn ObjectStore, folder: &str) -> Option<String> {
    let current = match store.get(&Path::from(format!("{folder}/_current.json"))).await {
        Ok(found) => found.bytes().await.expect("_current.json can be read"),
        Err(object_store::Error::NotFound { .. }) => return None,
        Err(error) => panic!("{folder}/_current.json: {error}"),
    };
    let current: Value = serde_json::from_slice(&current).expect("_current.json is JSON");
    // A planner claims the folder before any run is valid.
    let run = current["folder"].as_str()?;
    assert!(run.starts_with("runs/"), "_current.json names a run: {current}");
    Some(run.to_owned())
}

/// Folders of all runs that left anything.
pub async fn runs(store: &dyn ObjectStore, folder: &str) -> BTreeSet<String> {
    let below = list(store, &format!("{folder}/runs")).await;
    below.keys().filter_map(|path| Some(format!("runs/{}", path.split_once("/runs/")?.1.split('/').next()?))).collect()
}

/// Paths and sizes of all objects of a folder.
async fn list(store: &dyn ObjectStore, folder: &str) -> BTreeMap<String, u64> {
    let found: Vec<_> = store.list(Some(&Path::from(folder))).try_collect().await.expect("the sink can be listed");
    found.into_iter().map(|object| (object.location.to_string(), object.size)).collect()
}

async fn bytes(store: &dyn ObjectStore, path: &str) -> Vec<u8> {
    let found = store.get(&Path::from(path)).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    found.bytes().await.unwrap_or_else(|error| panic!("{path}: {error}")).to_vec()
}

/// Reads all that is visible at a task's folder, and checks that list, manifests and files agree.
///
/// # Panics
/// If there is no valid run or anything does not fit together.
pub async fn read(store: &dyn ObjectStore, folder: &str, key: &str) -> Collected {
    let run = current_run(store, folder).await.unwrap_or_else(|| panic!("{folder}/_current.json is there"));
    let objects = list(store, &format!("{folder}/{run}")).await;
    let current: Value = serde_json::from_slice(&bytes(store, &format!("{folder}/_current.json")).await).expect("JSON");
    let lines = bytes(store, &format!("{folder}/{}", current["list"].as_str().expect("it names the file list"))).await;
    let listed: Vec<Value> = serde_json::Deserializer::from_slice(&lines)
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("_files.ndjson is NDJSON");
    let path_of = |file: &Value| format!("{folder}/{}", file["path"].as_str().expect("a file has a path"));
    let paths: BTreeSet<String> = listed.iter().map(path_of).collect();
    assert_eq!(paths.len(), listed.len(), "no file is listed twice");

    let mut in_manifests = BTreeSet::new();
    for path in objects.keys().filter(|path| path.ends_with("/manifest.json")) {
        let manifest: Value = serde_json::from_slice(&bytes(store, path).await).expect("a manifest is JSON");
        for part in manifest["parts"].as_array().expect("a manifest has parts") {
            assert!(in_manifests.insert(path_of(part)), "{} is in one manifest only", path_of(part));
        }
    }
    assert_eq!(paths, in_manifests, "the file list and the manifests name the same files");
    let is_data = |path: &&String| {
        path.rsplit('/').next().is_some_and(|name| name.starts_with("part-") && name.contains(".ndjson"))
    };
    let by_glob: BTreeSet<String> = objects.keys().filter(is_data).cloned().collect();
    assert_eq!(paths, by_glob, "a glob over the run finds the listed files and no other");

    let mut collected = Collected { run, keys: BTreeSet::new(), records: 0, files: paths.len() };
    for file in &listed {
        let path = path_of(file);
        let raw = bytes(store, &path).await;
        assert_eq!(file["bytes"].as_u64(), Some(raw.len() as u64), "size of {path}");
        assert_eq!(file["hash"].as_str(), Some(blake3::hash(&raw).to_hex().as_str()), "hash of {path}");
        let text = decompress(&path, raw);
        let mut rows = 0;
        for record in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
            let record = record.unwrap_or_else(|error| panic!("{path}: {error}"));
            let value = record[key].as_str().unwrap_or_else(|| panic!("{path}: a record without {key}: {record}"));
            collected.keys.insert(value.to_owned());
            rows += 1;
        }
        assert_eq!(file["rows"].as_u64(), Some(rows), "rows of {path}");
        collected.records += rows as usize;
    }
    collected
}

fn decompress(path: &str, raw: Vec<u8>) -> String {
    let mut text = String::new();
    match path.rsplit('.').next() {
        Some("zst") => {
            let mut decoder = zstd::Decoder::new(raw.as_slice()).expect("a decoder");
            decoder.read_to_string(&mut text).expect("the file is whole");
        }
        Some("gz") => drop(GzDecoder::new(raw.as_slice()).read_to_string(&mut text).expect("the file is whole")),
        _ => text = String::from_utf8(raw).expect("the file is text"),
    }
    text
}

/// A reader that finds nothing wrong whatever lies there proves nothing.
#[cfg(test)]
mod tests {
    use object_store::{PutPayload, memory::InMemory};
    use serde_json::json;

    use super::*;

    const RUN: &str = "t/runs/1-3f9c2a71";

    fn part(n: usize, codes: &[&str]) -> (String, Vec<u8>, Value) {
        let text: String = codes.iter().map(|code| format!("{{\"code\": \"{code}\"}}\n")).collect();
        let path = format!("runs/1-3f9c2a71/44/{n}/1-aaaaaaaa/part-0.ndjson");
        let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        let listed = json!({"path": path, "rows": codes.len(), "bytes": text.len(), "hash": hash});
        (path, text.into_bytes(), listed)
    }

    async fn put(store: &InMemory, path: &str, bytes: impl Into<PutPayload>) {
        store.put(&Path::from(path), bytes.into()).await.unwrap();
    }

    /// Two slices with a part each.
    async fn whole(second: &[&str]) -> InMemory {
        let store = InMemory::new();
        let mut list = String::new();
        for (n, codes) in [["a", "b"].as_slice(), second].into_iter().enumerate() {
            let (path, bytes, listed) = part(n, codes);
            list.push_str(&format!("{listed}\n"));
            put(&store, &format!("{RUN}/44/{n}/manifest.json"), json!({"parts": [listed]}).to_string()).await;
            put(&store, &format!("t/{path}"), bytes).await;
        }
        put(&store, &format!("{RUN}/_files.ndjson"), list).await;
        put(
            &store,
            "t/_current.json",
            json!({"owner": "n/t", "run": 1, "folder": "runs/1-3f9c2a71", "list": "runs/1-3f9c2a71/_files.ndjson"})
                .to_string(),
        )
        .await;
        store
    }

    fn codes(codes: &[&str]) -> BTreeSet<String> {
        codes.iter().map(|code| (*code).to_owned()).collect()
    }

    #[tokio::test]
    async fn a_whole_run_is_read() {
        let collected = read(&whole(&["c"]).await, "t", "code").await;
        collected.assert_exactly(&codes(&["a", "b", "c"]));
        assert_eq!((collected.files, collected.records, collected.duplicates()), (2, 3, 0));
    }

    #[tokio::test]
    #[should_panic(expected = "missing: 1")]
    async fn a_missing_record_is_seen() {
        read(&whole(&["c"]).await, "t", "code").await.assert_exactly(&codes(&["a", "b", "c", "d"]));
    }

    #[tokio::test]
    #[should_panic(expected = "collected twice")]
    async fn a_duplicate_is_seen() {
        read(&whole(&["b"]).await, "t", "code").await.assert_exactly(&codes(&["a", "b"]));
    }

    #[tokio::test]
    #[should_panic(expected = "and no other")]
    async fn a_file_that_no_manifest_names_is_seen() {
        let store = whole(&["c"]).await;
        put(&store, &format!("{RUN}/44/1/2-bbbbbbbb/part-0.ndjson"), "{}").await;
        read(&store, "t", "code").await;
    }

    #[tokio::test]
    #[should_panic(expected = "hash of")]
    async fn a_changed_file_is_seen() {
        let store = whole(&["c"]).await;
        let (path, bytes, _) = part(1, &["d"]);
        put(&store, &format!("t/{path}"), bytes).await;
        read(&store, "t", "code").await;
    }

    #[tokio::test]
    async fn a_folder_that_is_only_claimed_has_no_valid_run() {
        let store = InMemory::new();
        assert_eq!(current_run(&store, "t").await, None);
        put(&store, "t/_current.json", json!({"owner": "n/t", "run": null}).to_string()).await;
        assert_eq!(current_run(&store, "t").await, None);
    }
}

//! A source, a sink and what both hold.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use collect_api::{
    plan::{Item, Part},
    protocol::{Assignment, Checkpoint, CollectResult, CollectWork, CommitWork, Identity, PlanWork, RateShare, Work},
};
use collect_data::{Control, Ending, Error, Plan, Settings, sink::Manifest};
use collect_registry::{Effect, Options, Registry, Running, serve};
use collect_s3::S3Server;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A sample source, a folder for secrets and a volume, and an S3 server if asked for.
pub struct Lab {
    pub registry: Running,
    pub s3: Option<collect_s3::Running>,
    pub dir: TempDir,
}

impl Lab {
    pub async fn with(registry: Registry, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["volume", "secrets/lake", "secrets/registry"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("secrets/registry/token"), "tok-s3cret\n").unwrap();
        let registry = serve(registry, options, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        Self { registry, s3: None, dir }
    }

    pub async fn small() -> Self {
        Self::with(Registry::small(), Options::default()).await
    }

    pub async fn faulty(effect: Effect) -> Self {
        Self::with(Registry::small(), Options::faults([effect.always()])).await
    }

    /// The same with an S3 server as sink.
    pub async fn on_s3(mut self) -> Self {
        let s3 = S3Server::start(self.dir.path().join("s3"), ["lake"]).await.unwrap();
        std::fs::write(self.dir.path().join("secrets/lake/access_key_id"), &s3.access_key).unwrap();
        std::fs::write(self.dir.path().join("secrets/lake/secret_access_key"), &s3.secret_key).unwrap();
        self.s3 = Some(s3);
        self
    }

    pub fn settings(&self, pod: &str) -> Settings {
        Settings {
            secrets_dir: self.dir.path().join("secrets"),
            volume_dir: self.dir.path().join("volume"),
            pod_uid: pod.to_owned(),
            ..Settings::default()
        }
    }

    pub fn sink(&self) -> Value {
        match &self.s3 {
            None => json!({"objectStore": {"url": "file:///villages"}}),
            Some(s3) => json!({"objectStore": {
                "url": "s3://lake/villages", "endpoint": s3.endpoint, "secretRef": {"name": "lake"}
            }}),
        }
    }

    /// An assignment for the villages of the sample source; `source` is laid over the defaults.
    pub fn assignment(&self, source: Value, work: Work) -> Assignment {
        let mut http = json!({
            "url": format!("{}/api", self.registry.url()), "path": "/villages", "records": "$.data", "total": "$.total",
            "retry": {"maxAttempts": 3, "backoff": {"initial": "1ms", "max": "5ms"}}
        });
        for (name, value) in source.as_object().unwrap() {
            if value.is_null() {
                http.as_object_mut().unwrap().remove(name);
            } else {
                http[name] = value.clone();
            }
        }
        Assignment {
            work,
            identity: identity(),
            attempt: 1,
            source: serde_json::from_value(json!({"http": http})).unwrap(),
            sink: serde_json::from_value(self.sink()).unwrap(),
            record: serde_json::from_value(json!({"key": ["code"]})).unwrap(),
            endpoint: None,
            rate_share: RateShare::default(),
            report_after_ms: 1000,
            trace_id: "0".repeat(32),
            origin: None,
        }
    }

    /// Collects one whole slice.
    pub async fn collect(&self, source: Value) -> Result<CollectResult, Error> {
        match self.collect_items(source, vec![whole()]).await? {
            Ending::Done(result) => Ok(result),
            other => panic!("{other:?}"),
        }
    }

    pub async fn collect_items(&self, source: Value, items: Vec<Item>) -> Result<Ending, Error> {
        let work = CollectWork { items, checkpoint: None };
        let assignment = self.assignment(source, Work::Collect(work.clone()));
        collect_data::collect(&assignment, &work, &self.settings("aaaaaaaa"), &Control::new(&RateShare::default()))
            .await
    }

    pub async fn plan(&self, source: Value, decompose: Value) -> Result<Plan, Error> {
        let work = PlanWork { decompose: serde_json::from_value(decompose).unwrap(), total: None };
        let assignment = self.assignment(source, Work::Plan(work.clone()));
        collect_data::plan(&assignment, &work, &self.settings("aaaaaaaa"), &Control::new(&RateShare::default())).await
    }

    pub async fn commit(
        &self,
        identity: Identity,
        work: CommitWork,
    ) -> Result<collect_api::protocol::CommitResult, Error> {
        let mut assignment = self.assignment(json!({}), Work::Commit(work.clone()));
        assignment.identity = identity;
        collect_data::commit(&assignment, &work, &self.settings("cccccccc"), &Control::new(&RateShare::default())).await
    }

    /// Folder in which the sink's objects lie as files.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join(if self.s3.is_some() { "s3/lake/villages" } else { "volume/villages" })
    }

    pub fn manifest(&self, identity: &Identity) -> Manifest {
        let path = Manifest::path(identity);
        Manifest::decode(&path, &std::fs::read(self.files().join(&path)).unwrap()).unwrap()
    }

    /// Every line of every part that the manifest names, after checking rows, bytes and hash.
    pub fn lines(&self, identity: &Identity) -> Vec<String> {
        let manifest = self.manifest(identity);
        let mut lines = Vec::new();
        for part in &manifest.parts {
            let bytes = std::fs::read(self.files().join(&part.path)).unwrap();
            assert_eq!(
                (bytes.len() as i64, blake3::hash(&bytes).to_hex().to_string()),
                (part.bytes, part.hash.clone())
            );
            let text = String::from_utf8(zstd::decode_all(bytes.as_slice()).unwrap()).unwrap();
            assert_eq!(text.lines().count() as i64, part.rows);
            lines.extend(text.lines().map(str::to_owned));
        }
        assert_eq!(lines.len() as i64, manifest.tally.records);
        lines
    }

    pub fn codes(&self) -> Vec<String> {
        codes(&self.lines(&identity()))
    }

    /// Codes of a level of the source, in order.
    pub fn held(&self, level: usize) -> Vec<String> {
        let registry = self.registry.control.registry();
        (0..registry.count(level)).map(|n| registry.code(level, n).unwrap()).collect()
    }

    /// Query strings of the requests that were answered.
    pub fn queries(&self) -> Vec<String> {
        self.registry.log().into_iter().map(|entry| entry.query).collect()
    }

    pub fn requests(&self) -> usize {
        self.registry.log().len()
    }
}

pub fn codes(lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()["code"].as_str().unwrap().to_owned()).collect()
}

pub fn identity() -> Identity {
    Identity {
        namespace: "default".into(),
        root: "villages".into(),
        root_uid: "3f9c2a71-0000-4000-8000-000000000000".into(),
        run: 1,
        path: Vec::new(),
        index: 0,
        plan_digest: "d1".into(),
    }
}

pub fn whole() -> Item {
    Item { values: BTreeMap::new(), part: Part::Whole {}, records: None }
}

pub fn pages(size: i64) -> Value {
    json!({"page": {"param": "page", "size": size, "sizeParam": "size"}})
}

/// Collects with checkpoints after every page, and pauses once the registry has answered `after` requests.
pub async fn collect_until(
    lab: &Lab,
    source: Value,
    items: Vec<Item>,
    checkpoint: Option<Checkpoint>,
    attempt: i32,
    after: Option<usize>,
) -> Result<Ending, Error> {
    let work = CollectWork { items, checkpoint };
    let mut assignment = lab.assignment(source, Work::Collect(work.clone()));
    assignment.attempt = attempt;
    let settings = Settings { part_bytes: 1, ..lab.settings(&format!("{attempt}bbbbbbb")) };
    // One request at a time: what is asked for is what is wanted.
    let control = Control::new(&RateShare { requests_per_second: None, concurrency: Some(1) });
    let before = lab.requests();
    let pausing = async {
        let Some(after) = after else { return std::future::pending().await };
        while lab.requests() - before < after {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        control.send(collect_data::Signal::Pause);
        std::future::pending().await
    };
    tokio::select! {
        ending = collect_data::collect(&assignment, &work, &settings, &control) => ending,
        () = pausing => unreachable!(),
    }
}

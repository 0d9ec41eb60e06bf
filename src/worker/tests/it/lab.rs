//! A source, a sink, and the program with its environment.

use std::{
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use collect_api::{
    plan::{Item, Part},
    protocol::{
        ASSIGNMENT_ENV, Assignment, Checkpoint, CollectWork, Endpoint, Identity, POD_UID_ENV, RateShare,
        TERMINATION_LOG_ENV, TerminationMessage, Work,
    },
};
use collect_registry::{Options, Registry, Running, serve};
use collect_s3::S3Server;
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Lab {
    pub registry: Running,
    pub dir: TempDir,
    pub endpoint: Option<Endpoint>,
    pub s3: Option<collect_s3::Running>,
}

/// A program that runs.
pub struct Worker {
    child: Child,
    termination: PathBuf,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub message: TerminationMessage,
    pub logs: String,
}

impl Lab {
    pub async fn with(registry: Registry, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["volume", "secrets/lake", "secrets/registry"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("secrets/registry/token"), "tok-s3cret\n").unwrap();
        let registry = serve(registry, options, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        Self { registry, dir, endpoint: None, s3: None }
    }

    pub async fn small() -> Self {
        Self::with(Registry::small(), Options::default()).await
    }

    /// The same with an S3 server as sink.
    pub async fn on_s3(mut self) -> Self {
        let s3 = S3Server::start(self.dir.path().join("s3"), ["lake"]).await.unwrap();
        std::fs::write(self.dir.path().join("secrets/lake/access_key_id"), &s3.access_key).unwrap();
        std::fs::write(self.dir.path().join("secrets/lake/secret_access_key"), &s3.secret_key).unwrap();
        self.s3 = Some(s3);
        self
    }

    fn sink(&self) -> Value {
        match &self.s3 {
            None => json!({"objectStore": {"url": "file:///villages"}}),
            Some(s3) => json!({"objectStore": {
                "url": "s3://lake/villages", "endpoint": s3.endpoint, "secretRef": {"name": "lake"}
            }}),
        }
    }

    pub fn assignment(&self, source: Value, work: Work) -> Assignment {
        let mut http = json!({
            "url": format!("{}/api", self.registry.url()), "path": "/villages", "records": "$.data", "total": "$.total",
            "retry": {"maxAttempts": 3, "backoff": {"initial": "1ms", "max": "5ms"}}
        });
        for (name, value) in source.as_object().unwrap() {
            http[name] = value.clone();
        }
        Assignment {
            work,
            identity: Identity {
                namespace: "default".into(),
                root: "villages".into(),
                root_uid: "3f9c2a71-0000-4000-8000-000000000000".into(),
                run: 1,
                path: Vec::new(),
                index: 0,
                plan_digest: "d1".into(),
            },
            attempt: 1,
            source: serde_json::from_value(json!({"http": http})).unwrap(),
            sink: serde_json::from_value(self.sink()).unwrap(),
            record: serde_json::from_value(json!({"key": ["code"]})).unwrap(),
            endpoint: self.endpoint.clone(),
            rate_share: RateShare { requests_per_second: None, concurrency: Some(1) },
            report_after_ms: 50,
            trace_id: "0123456789abcdef0123456789abcdef".into(),
            origin: None,
        }
    }

    pub fn collect(&self, source: Value, checkpoint: Option<Checkpoint>) -> Assignment {
        let items = vec![Item { values: Default::default(), part: Part::Whole {}, records: None }];
        self.assignment(source, Work::Collect(CollectWork { items, checkpoint }))
    }

    /// Starts the program; every page closes a part, so that checkpoints are many.
    pub fn start(&self, assignment: &Assignment, pod: &str) -> Worker {
        let termination = self.dir.path().join(format!("termination-{pod}"));
        let child = Command::new(env!("CARGO_BIN_EXE_collect-worker"))
            .env_clear()
            .env(ASSIGNMENT_ENV, serde_json::to_string(assignment).unwrap())
            .env(POD_UID_ENV, pod)
            .env(TERMINATION_LOG_ENV, &termination)
            .env("COLLECT_SECRETS_DIR", self.dir.path().join("secrets"))
            .env("COLLECT_VOLUME_DIR", self.dir.path().join("volume"))
            .env("COLLECT_PART_BYTES", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Worker { child, termination }
    }

    pub async fn run(&self, assignment: &Assignment, pod: &str) -> Ended {
        self.start(assignment, pod).end().await
    }

    pub fn requests(&self) -> Vec<String> {
        self.registry.log().into_iter().map(|entry| entry.query).collect()
    }

    pub async fn until_requests(&self, count: usize) {
        until(|| self.registry.log().len() >= count).await;
    }

    /// Folder in which the sink's objects lie as files.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join(if self.s3.is_some() { "s3/lake/villages" } else { "volume/villages" })
    }

    /// The slice's manifest, if there is one.
    pub fn manifest(&self) -> Option<String> {
        std::fs::read_to_string(self.files().join("runs/1-3f9c2a71/0/manifest.json")).ok()
    }

    /// Codes of the records that the manifest makes visible, after checking that each part is what it says.
    pub fn codes(&self) -> Vec<String> {
        let manifest: Value = serde_json::from_str(&self.manifest().unwrap()).unwrap();
        let mut codes = Vec::new();
        for part in manifest["parts"].as_array().unwrap() {
            let bytes = std::fs::read(self.files().join(part["path"].as_str().unwrap())).unwrap();
            assert_eq!(blake3::hash(&bytes).to_hex().as_str(), part["hash"], "{part}");
            let text = String::from_utf8(zstd::decode_all(bytes.as_slice()).unwrap()).unwrap();
            for line in text.lines() {
                codes.push(serde_json::from_str::<Value>(line).unwrap()["code"].as_str().unwrap().to_owned());
            }
        }
        codes
    }

    pub fn held(&self) -> Vec<String> {
        let registry = self.registry.control.registry();
        (0..registry.count(4)).map(|n| registry.code(4, n).unwrap()).collect()
    }
}

impl Worker {
    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Stops it in the middle of whatever it does, as a node does that is out of breath.
    pub async fn freeze(&self) {
        self.signal("-STOP");
        let stat = format!("/proc/{}/stat", self.child.id());
        // The state is the field behind the name, which stands in brackets.
        until(|| std::fs::read_to_string(&stat).unwrap().rsplit_once(')').unwrap().1.starts_with(" T")).await;
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn end(mut self) -> Ended {
        let logs = self
            .child
            .stderr
            .take()
            .map(|stderr| std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default()));
        let start = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the worker does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let logs = logs.map(|thread| thread.join().unwrap()).unwrap_or_default();
        let bytes = std::fs::read(&self.termination).unwrap();
        assert!(bytes.len() <= 4096);
        Ended { code: status.code().unwrap_or(-1), message: serde_json::from_slice(&bytes).unwrap(), logs }
    }
}

/// A test that fails leaves no process behind, least of all a frozen one.
impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a condition, at most a minute.
pub async fn until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never came true");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn pages(size: i64) -> Value {
    json!({"page": {"param": "page", "size": size, "sizeParam": "size"}})
}

//! A source, a volume, and the program with its environment.

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
use serde_json::{Value, json};
use tempfile::TempDir;

pub struct Lab {
    pub registry: Running,
    pub dir: TempDir,
    pub endpoint: Option<Endpoint>,
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
        for folder in ["volume", "secrets/registry"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("secrets/registry/token"), "tok-s3cret\n").unwrap();
        let registry = serve(registry, options, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        Self { registry, dir, endpoint: None }
    }

    pub async fn small() -> Self {
        Self::with(Registry::small(), Options::default()).await
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
            sink: serde_json::from_value(json!({"objectStore": {"url": "file:///villages"}})).unwrap(),
            record: serde_json::from_value(json!({"key": ["code"]})).unwrap(),
            endpoint: self.endpoint.clone(),
            rate_share: RateShare { requests_per_second: None, concurrency: Some(1) },
            report_after_ms: 50,
            trace_id: "0123456789abcdef0123456789abcdef".into(),
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

    /// Codes of the records that the manifest makes visible.
    pub fn codes(&self) -> Vec<String> {
        let base = self.dir.path().join("volume/villages");
        let manifest = std::fs::read(base.join("runs/1-3f9c2a71/0/manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let mut codes = Vec::new();
        for part in manifest["parts"].as_array().unwrap() {
            let bytes = std::fs::read(base.join(part["path"].as_str().unwrap())).unwrap();
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
    pub fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
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

//! The programs under test.
//!
//! `COLLECT_BIN_DIR` names the folder with `collect-operator`, `collect-worker` and `kubectl-collect`; without it they are built here, with the
//! profile of this test, so that never an old one is tested.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::cluster::{repository, run};

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

fn folder() -> &'static Path {
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("COLLECT_BIN_DIR") {
            return folder.into();
        }
        run(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(repository())
            .args(["build", "--quiet", "-p", "collect-operator", "-p", "collect-worker", "-p", "collect-cli", "--bins"])
            .args(if cfg!(debug_assertions) { None } else { Some("--release") }));
        // …/debug/deps/lifecycle-0123 → …/debug, where other programs lie themselves
        let test = std::env::current_exe().expect("a test knows its own path");
        let folder = test.parent().expect("it lies in a target folder");
        folder.parent().filter(|_| folder.ends_with("deps")).unwrap_or(folder).to_owned()
    })
}

fn program(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(path.is_file(), "{} is there", path.display());
    path
}

/// The operator's program.
pub fn operator() -> PathBuf {
    program("collect-operator")
}

/// The worker's program, to be run without a cluster.
pub fn worker() -> PathBuf {
    program("collect-worker")
}

/// The kubectl plugin.
pub fn plugin() -> PathBuf {
    program("kubectl-collect")
}

/// An OCI archive of the worker: its name and its file.
pub fn worker_archive() -> (String, PathBuf) {
    let name = "docker.io/local/collect-worker:e2e";
    let archive = std::env::temp_dir().join(format!("collect-e2e-worker-{}.tar", std::process::id()));
    run(Command::new("go")
        .current_dir(repository())
        .args([
            "run",
            "./deploy/images/main.go",
            "--name",
            name,
            "--entrypoint",
            "/collect-worker",
            "--user",
            "65532:65532",
        ])
        .arg("--file")
        .arg(format!("{}=/collect-worker", worker().display()))
        .arg("--out")
        .arg(&archive));
    (name.to_owned(), archive)
}

/// Processes of workers that this machine runs for a pod, by the pod's uid.
pub fn worker_processes(pod_uid: &str) -> Vec<u32> {
    let wanted = format!("{}={pod_uid}", collect_api::protocol::POD_UID_ENV);
    let processes = std::fs::read_dir("/proc").expect("/proc is there").filter_map(Result::ok);
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
        })
        .collect()
}

//! One Kubernetes for each test binary.
//!
//! A companion process holds the cluster's lock while the test process lives and takes the cluster down when it ends, however it
//! ends. Two runs of the same binary thus wait for each other, and so do all with a real node, of which a machine has one.
//! `COLLECT_E2E_KEEP=1` leaves the cluster up for the next run. `COLLECT_E2E_STOCK_CONTROLLERS=1` leaves the limits of the
//! controllers as Kubernetes ships them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config, ResourceExt,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{conditions, wait::await_condition},
};
use serde_json::Value;

use crate::{programs, rights, skip};

/// What runs the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Nothing does: control plane only.
    None,
    /// Local processes; needs no root.
    Process,
    /// containerd and runc; needs root on Linux.
    Real,
}

impl Node {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Process => "process",
            Self::Real => "real",
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its name for the launcher.
    pub name: &'static str,
    /// Where the launcher keeps its things.
    pub state: PathBuf,
    /// Image of the worker under test, loaded by [`Cluster::worker_image`].
    image: OnceLock<String>,
    // Its standard input ends with this process.
    _companion: Child,
}

static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();

/// Top of the repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Where the launcher keeps the things of a cluster.
fn state(name: &str) -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".local/state");
    let states = std::env::var_os("XDG_STATE_HOME").map_or_else(home, PathBuf::from);
    states.join("collect-operator/clusters").join(name)
}

fn launcher() -> Command {
    Command::new(repository().join("tests/cluster/cluster"))
}

impl Cluster {
    /// The cluster of this test binary; with our CRDs installed, but on a real node. `None` if this machine can't run it: already reported.
    pub fn shared(name: &'static str, node: Node) -> Option<&'static Self> {
        SHARED.get_or_init(|| Self::up(name, node)).as_ref()
    }

    fn up(name: &'static str, node: Node) -> Option<Self> {
        if node == Node::Real && !rustix::process::geteuid().is_root() {
            skip(name, "the real node needs root");
            return None;
        }
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let state = state(name);
        let lock = if node == Node::Real { "real-node" } else { name };
        let lock = std::env::temp_dir().join(format!("collect-e2e-{lock}.lock"));
        let companion = companion(name, &lock, &state);
        let mut up = launcher();
        up.args(["up", "--name", name, "--node", node.as_str()]);
        if node == Node::Process {
            // Room for as many workers as a task may have at once.
            up.args(["--cpu", "64", "--memory", "256Gi", "--pods", "1100"]);
        }
        if std::env::var_os("COLLECT_E2E_STOCK_CONTROLLERS").is_some_and(|value| !value.is_empty()) {
            up.arg("--stock-controllers");
        }
        let output = up.stdin(Stdio::null()).output().expect("tests/cluster/cluster runs");
        assert!(
            output.status.success(),
            "`cluster up --name {name} --node {}` failed:\n{}{}",
            node.as_str(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let cluster = Self { name, state, image: OnceLock::new(), _companion: companion };
        rights::expect(&cluster, &lock);
        // On a real node everything is installed as its user does it: by helm.
        if node != Node::Real {
            cluster.install_crds();
        }
        Some(cluster)
    }

    fn install_crds(&self) {
        // The caller may be inside a runtime; installing needs one of its own.
        std::thread::scope(|scope| {
            let install = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async { install_crds(&self.client().await, crds()).await });
            });
            install.join().expect("the CRDs can be installed");
        });
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// A client with all rights, on the current runtime.
    pub async fn client(&self) -> Client {
        client_of(&self.kubeconfig()).await
    }

    /// The cluster's own kubectl, as administrator.
    pub fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(self.state.join("bin/kubectl"));
        kubectl.env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null());
        kubectl
    }

    /// The cluster's own helm, as administrator.
    pub fn helm(&self) -> Command {
        let mut helm = Command::new(self.state.join("bin/helm"));
        helm.env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null());
        helm
    }

    /// Name of the worker's image, built and loaded on first use.
    pub fn worker_image(&self) -> &str {
        self.image.get_or_init(|| {
            let (name, archive) = programs::worker_archive();
            self.load_image(&archive);
            name
        })
    }

    /// Makes an OCI archive known to the node.
    pub fn load_image(&self, archive: &Path) {
        let output =
            launcher().args(["load-image", "--name", self.name]).arg(archive).output().expect("the launcher runs");
        assert!(output.status.success(), "load-image: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Stops, starts or restarts a component.
    pub fn component(&self, verb: &str, component: &str) {
        self.component_by(verb, component, "TERM");
    }

    /// The same with the signal that ends it: `TERM` or `KILL`.
    pub fn component_by(&self, verb: &str, component: &str, signal: &str) {
        let mut launcher = launcher();
        launcher.args([verb, "--name", self.name, "--signal", signal, component]);
        let output = launcher.output().expect("the launcher runs");
        assert!(output.status.success(), "{verb} {component}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Runs a command and gives what it printed; fails if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// A client for a kubeconfig, on the current runtime.
pub async fn client_of(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("the cluster's kubeconfig can be read");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("it is whole");
    Client::try_from(config).expect("a client can be made of it")
}

/// Starts the companion and waits until it holds the lock, which it keeps until the cluster is down. Before that it leaves the
/// record of the operators' rights, if one is wanted.
fn companion(name: &str, lock: &Path, state: &Path) -> Child {
    const THEN: &str = r#"exec 9>"$1"; flock 9; echo held; cat >/dev/null"#;
    const LEAVE: &str = r#"; "$4" "$5" "$3" "$6""#;
    const DOWN: &str = r#"; exec "$2" down --name "$3" >/dev/null"#;
    let record = std::env::var_os(rights::RECORD);
    let leave = if record.is_some() { LEAVE } else { "" };
    let down = if std::env::var_os("COLLECT_E2E_KEEP").is_some() { "" } else { DOWN };
    let mut companion = Command::new("sh")
        .args(["-c", &format!("{THEN}{leave}{down}"), "companion"])
        .arg(lock)
        .arg(launcher().get_program())
        .arg(name)
        .arg(programs::beside("rights"))
        .arg(record.unwrap_or_default())
        .arg(state.join("audit.log"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("sh runs");
    let mut line = String::new();
    let stdout = companion.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("the companion answers");
    assert_eq!(line.trim(), "held", "the companion of cluster {name} holds its lock");
    companion
}

/// The generated CRDs, by file name.
pub fn crds() -> Vec<Value> {
    let folder = repository().join("crds");
    let files: BTreeMap<_, _> = fs::read_dir(&folder)
        .expect("crds/ is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| (path.clone(), serde_yaml::from_reader(File::open(&path).expect("it opens")).expect("it is YAML")))
        .collect();
    assert_eq!(files.len(), 3, "{} holds the three kinds", folder.display());
    files.into_values().collect()
}

/// Applies CRDs and waits until the API server serves them.
pub async fn install_crds(client: &Client, crds: Vec<Value>) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds {
        let crd: CustomResourceDefinition = serde_json::from_value(crd).expect("it is a CRD");
        let name = crd.name_any();
        api.patch(&name, &PatchParams::apply("collect-e2e").force(), &Patch::Apply(&crd))
            .await
            .unwrap_or_else(|error| panic!("the API server takes {name}: {error}"));
        tokio::time::timeout(
            Duration::from_secs(30),
            await_condition(api.clone(), &name, conditions::is_crd_established()),
        )
        .await
        .expect("a CRD is established within 30 s")
        .expect("it can be watched");
    }
}

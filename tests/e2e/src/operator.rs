//! Operators as child processes of a test: any number of them, killed and started again at will.
//!
//! Each speaks as a ServiceAccount of the test's namespace with exactly the rights that the chart grants, so a missing right
//! shows here, and the audit log tells its writes from those of others.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use k8s_openapi::api::{authentication::v1::TokenRequest, core::v1::ServiceAccount};
use kube::{
    Api,
    api::PostParams,
    config::{AuthInfo, Kubeconfig},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::{Space, cluster, http, programs};

/// Name of the operators' ServiceAccount.
const ACCOUNT: &str = "collect-operator";

/// An operator, running or not. Dropping it kills it.
#[derive(Debug)]
pub struct Operator {
    /// `host:port` of health and metrics.
    pub http: String,
    arguments: Vec<String>,
    kubeconfig: PathBuf,
    log: PathBuf,
    log_filter: String,
    variables: Vec<(String, String)>,
    child: Option<Child>,
}

impl Operator {
    /// Starts an operator for this namespace and waits until it is ready.
    pub async fn start(space: &Space) -> Self {
        let mut operator = Self::new(space, "a").await;
        operator.go().await;
        operator
    }

    /// An operator that has not been started; `name` tells it from others of the namespace.
    pub async fn new(space: &Space, name: &str) -> Self {
        let kubeconfig = account(space).await;
        let tls = certificates(space);
        let (http, endpoint) = (free_address(), free_address());
        let arguments: Vec<String> = [
            "run",
            "--namespace",
            &space.name,
            "--http-listen",
            &http,
            "--endpoint-listen",
            &endpoint,
            "--endpoint-url",
            &format!("https://{endpoint}"),
            "--endpoint-tls-dir",
            &tls.display().to_string(),
            "--worker-image",
            space.cluster.worker_image(),
            "--worker-image-pull-policy",
            "Never",
            "--no-lease",
            "--log-format",
            "text",
        ]
        .map(str::to_owned)
        .to_vec();
        let log = space.folder.join(format!("operator-{name}.log"));
        space.note_log(&log);
        let log_filter =
            std::env::var("RUST_LOG").unwrap_or_else(|_| "info,collect=debug,collect_operator=debug".into());
        Self { http, arguments, kubeconfig, log, log_filter, variables: Vec::new(), child: None }
    }

    /// Logs what it logs as it is shipped, which is less than a test wants to know.
    pub fn log_as_shipped(&mut self) {
        self.log_filter = "info,kube_client=warn".into();
    }

    /// Sets a flag to another value, for the next start.
    pub fn set(&mut self, flag: &str, value: &str) {
        if let Some(place) = self.arguments.iter().position(|argument| argument == flag) {
            self.arguments.drain(place..place + 2);
        }
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
    }

    /// Sets a variable of its environment, for the next start.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Starts it, on the same ports as before, and waits until it is ready.
    pub async fn go(&mut self) {
        self.spawn();
        self.until_ready().await;
    }

    /// Starts it and does not wait.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the operator runs already");
        let log = File::options().create(true).append(true).open(&self.log).expect("the log can be written");
        let errors = log.try_clone().expect("the log can be written twice");
        // setpriv: a test process that is killed takes its operators along.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(programs::operator())
            .args(&self.arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("RUST_LOG", &self.log_filter)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .expect("the operator can be started");
        self.child = Some(child);
    }

    /// Waits until /readyz says so.
    pub async fn until_ready(&mut self) {
        let limit = Duration::from_secs(30);
        let ready = async {
            // Nothing announces readiness but the answer itself.
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            loop {
                tick.tick().await;
                if let Ok((200, _)) = http::get(&self.http, "/readyz").await {
                    return;
                }
                let child = self.child.as_mut().expect("it was started");
                if let Ok(Some(status)) = child.try_wait() {
                    panic!("the operator ended with {status} before it was ready; its log:\n{}", log_tail(&self.log));
                }
            }
        };
        if tokio::time::timeout(limit, ready).await.is_err() {
            panic!("the operator was not ready within {limit:?}; its log:\n{}", log_tail(&self.log));
        }
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// SIGKILL, and wait until it is gone.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("the operator runs");
        child.kill().await.expect("a child of ours can be killed");
    }

    /// SIGTERM, and wait for its own end.
    pub async fn terminate(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("the operator runs");
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it runs");
        kill_process(pid, Signal::TERM).expect("a child of ours can be signalled");
        tokio::time::timeout(Duration::from_secs(30), child.wait())
            .await
            .expect("the operator ends within 30 s of SIGTERM")
            .expect("it can be waited for")
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Resident memory of the process, in KiB: now and at most.
    pub fn memory_kib(&self) -> (u64, u64) {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid().expect("the operator runs"))).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .expect("the kernel tells a process's memory")
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// User under which its requests stand in the audit log.
    pub fn user(space: &Space) -> String {
        format!("system:serviceaccount:{}:{ACCOUNT}", space.name)
    }
}

fn log_tail(log: &PathBuf) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
}

/// An address of this machine that nobody listens on.
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    listener.local_addr().expect("it has an address").to_string()
}

/// The ServiceAccount with the rights that the chart grants in one namespace; gives the kubeconfig to speak as it.
async fn account(space: &Space) -> PathBuf {
    let path = space.folder.join("operator.kubeconfig");
    if path.exists() {
        return path;
    }
    let chart = cluster::repository().join("charts/collect-operator");
    let namespace = &space.name;
    let rights = cluster::run(
        space
            .cluster
            .helm()
            .args(["template", ACCOUNT])
            .arg(chart)
            .args(["--namespace", namespace, "--set", &format!("watchNamespace={namespace},lease.enabled=false")])
            .args(["--set", &format!("rbac.aggregate=false,serviceAccount.name={ACCOUNT}")])
            .args(["--show-only", "templates/rbac.yaml", "--show-only", "templates/serviceaccount.yaml"]),
    );
    let file = space.folder.join("rights.yaml");
    fs::write(&file, rights).expect("the chart's rights can be written");
    cluster::run(space.cluster.kubectl().args(["apply", "--server-side", "-f"]).arg(file));

    let request: TokenRequest =
        serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": 86_400}})).expect("a request");
    let accounts: Api<ServiceAccount> = space.api();
    let token = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await.expect("a token");
    let token = token.status.expect("it has one").token;
    let mut kubeconfig = Kubeconfig::read_from(space.cluster.kubeconfig()).expect("the administrator's kubeconfig");
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(serde_json::from_value::<AuthInfo>(json!({"token": token})).expect("a user"));
    }
    fs::write(&path, serde_yaml::to_string(&kubeconfig).expect("it is YAML")).expect("the kubeconfig can be written");
    path
}

/// A certificate authority and a certificate for 127.0.0.1, as the chart makes them: tls.crt, tls.key, ca.crt.
fn certificates(space: &Space) -> PathBuf {
    let folder = space.folder.join("tls");
    if folder.exists() {
        return folder;
    }
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().expect("a key");
    let authority_certificate = authority.self_signed(&authority_key).expect("a certificate authority");
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()])
        .expect("parameters")
        .signed_by(&key, &issuer)
        .expect("a certificate");
    fs::create_dir_all(&folder).expect("the folder can be made");
    for (name, text) in
        [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem()), ("ca.crt", authority_certificate.pem())]
    {
        fs::write(folder.join(name), text).expect("it can be written");
    }
    folder
}

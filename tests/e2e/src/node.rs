//! A node of a test's own beside the cluster's, that can be lost for good: its agent is killed and never comes back.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};

use crate::{Space, cluster::repository, programs};

/// Label and taint of such nodes: nobody else's pods go there.
const POOL: &str = "e2e.collect.dev/pool";

/// A process node that only those pods use that ask for its pool. Dropping it takes it out of the cluster.
pub struct OwnNode {
    /// Its name.
    pub name: String,
    nodes: Api<Node>,
    agent: Child,
    /// Pods whose workers went on when the node was lost.
    cut_off: Vec<String>,
}

impl OwnNode {
    /// Starts a node of a space's pool and waits until it is ready.
    ///
    /// # Panics
    /// If it is not within 30 s.
    pub async fn start(space: &Space, name: &str) -> Self {
        let name = format!("{name}-{}", space.name);
        let nodes: Api<Node> = Api::all(space.client.clone());
        let node = json!({
            "metadata": {"name": name, "labels": {POOL: space.name, "kubernetes.io/hostname": name}},
            "spec": {"taints": [{"key": POOL, "value": space.name, "effect": "NoSchedule"}]},
        });
        let node = serde_json::from_value(node).expect("a node");
        nodes.create(&PostParams::default(), &node).await.expect("a new node");
        let state = &space.cluster.state;
        let pki = |file: &str| state.join("pki").join(file);
        let log = std::fs::File::create(space.folder.join(format!("{name}.log"))).expect("its log can be made");
        let mut agent = Command::new(repository().join("tests/cluster/cluster"));
        agent.args(["node", "--kind", "process", "--nodes", "1", "--cpu", "8", "--memory", "32Gi", "--pods", "110"]);
        agent.args(["--script", "succeed-after=200ms", "--name", &name]);
        for (flag, path) in [
            ("--dir", space.folder.join(&name)),
            ("--images", state.join("images")),
            ("--kubeconfig", state.join("kubeconfigs/node")),
            ("--ca", pki("ca.crt")),
            ("--cert", pki("server.crt")),
            ("--key", pki("server.key")),
        ] {
            agent.arg(flag).arg(path);
        }
        agent.stdin(Stdio::null()).stderr(log.try_clone().expect("a file can be shared")).stdout(log);
        let agent = agent.spawn().expect("the launcher runs");
        let is_ready = |node: Option<&Node>| {
            let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
        };
        let ready = await_condition(nodes.clone(), &name, is_ready);
        tokio::time::timeout(Duration::from_secs(30), ready)
            .await
            .unwrap_or_else(|_| panic!("node {name} is ready within 30 s"))
            .expect("it can be watched");
        Self { name, nodes, agent, cut_off: Vec::new() }
    }

    /// What `spec.worker` says to have its pods on this space's pool.
    pub fn placement(space: &Space) -> Value {
        json!({
            "nodeSelector": {POOL: space.name},
            "tolerations": [{"key": POOL, "value": space.name, "effect": "NoSchedule"}],
        })
    }

    /// Loses the node at once and for good; the cluster hears nothing more of it. Workers of the pods in `dying` (uids) end with
    /// it, those in `cut_off` go on: the cluster can't see or stop them, but they reach source, sink and operator.
    ///
    /// Nothing more is scheduled to it from now on: a cluster takes most of a minute to find that out by itself, and stall timeouts
    /// are longer than that where they are not a test's.
    pub async fn lose(&mut self, dying: &[String], cut_off: &[String]) {
        self.agent.kill().expect("the agent can be killed");
        self.agent.wait().expect("it has ended");
        kill_workers(dying);
        self.cut_off = cut_off.to_vec();
        let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
        self.nodes.patch(&self.name, &PatchParams::default(), &cordon).await.expect("the node can be cordoned");
    }

    /// Has the cluster forget the node, as its administrator does when it will not come back.
    pub async fn forget(&self) {
        self.nodes.delete(&self.name, &DeleteParams::default()).await.expect("the node can be deleted");
    }

    /// Whether a pod lies on this node.
    pub fn has(&self, pod: &Pod) -> bool {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&self.name)
    }
}

fn kill_workers(pods: &[String]) {
    for process in pods.iter().flat_map(|uid| programs::worker_processes(uid)) {
        let process = Pid::from_raw(process.cast_signed()).expect("a process id");
        let _ = kill_process_group(process, Signal::KILL);
    }
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        // Asked to leave, it takes its workers with it.
        if let (Ok(None), Some(agent)) = (self.agent.try_wait(), Pid::from_raw(self.agent.id().cast_signed())) {
            let _ = kill_process(agent, Signal::TERM);
            let _ = self.agent.wait();
        }
        kill_workers(&self.cut_off);
    }
}

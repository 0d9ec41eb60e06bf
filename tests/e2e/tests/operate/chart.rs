//! The life of a release, with a task that runs through all of it: it is never stopped, never lost, nothing of it is done twice.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use collect_api::{CollectTask, Phase, labels};
use collect_e2e::{
    Cluster, Space, audit,
    chaos::node,
    cluster,
    demo::{RELEASE, SYSTEM},
    figure, http, sink,
    space::{condition, phase},
    tasks::SOON,
};
use collect_registry::Effect;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        coordination::v1::Lease,
        core::v1::{Namespace, Pod, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::json;

use crate::lab::{IMAGES, Lab};

/// Where the chart is.
const CHART: &str = "charts/collect-operator";
/// Name of the lab's own task.
const TASK: &str = "villages";

/// The lab's own task while it runs, with workers whose requests the source holds back.
pub struct Run {
    /// Uids of the workers' pods.
    workers: BTreeSet<String>,
}

impl Run {
    /// Has the installed operator run the task until two workers collect, and holds them there.
    pub async fn begin(lab: &Lab) -> Self {
        lab.set_villages(Some(Effect::Delay { milliseconds: 400 }));
        lab.space.create(TASK, lab.villages()).await;
        lab.space.until_all::<Pod>("two workers collect", SOON, |pods| collecting(pods).len() == 2).await;
        lab.set_villages(Some(Effect::Hold));
        // Some may end in this moment; those that follow are held. Nothing announces a request but the source's log, and a
        // request that is held is one that was there a second ago.
        let until = Instant::now() + SOON;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut before = BTreeSet::new();
        loop {
            tick.tick().await;
            let open =
                lab.source.log().into_iter().filter(|entry| entry.status == 0 && entry.path.ends_with("/villages"));
            let open: BTreeSet<(u64, String)> = open.map(|entry| (entry.seq, entry.path)).collect();
            let districts: BTreeSet<&String> = open.iter().map(|(_, path)| path).collect();
            let workers = collecting(&lab.space.all::<Pod>().await);
            if districts.len() == 2 && workers.len() == 2 && open == before {
                return Self { workers };
            }
            assert!(Instant::now() < until, "two workers are held: {workers:?} {open:?}");
            before = open;
        }
    }

    /// The same workers still run, and the task is what it was.
    pub async fn goes_on(&self, lab: &Lab) {
        let task = lab.space.tasks().get(TASK).await.expect("the task is there");
        assert_eq!(phase(&task), Some(&Phase::Running), "{:?}", task.status);
        assert_eq!(collecting(&lab.space.all::<Pod>().await), self.workers, "the same workers run");
    }
}

/// Uids of the pods whose worker collects.
fn collecting(pods: &[Pod]) -> BTreeSet<String> {
    let is = |pod: &&Pod| {
        pod.labels().get(labels::WORK).is_some_and(|work| work == "collect")
            && pod.metadata.deletion_timestamp.is_none()
            && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    pods.iter().filter(is).filter_map(ResourceExt::uid).collect()
}

/// Values of the images, as the quickstart gives them.
fn images() -> String {
    format!(
        "--set image.repository={IMAGES}/operator,image.tag=0.1.0,worker.image.repository={IMAGES}/worker,worker.image.tag=0.1.0"
    )
}

async fn deployment(lab: &Lab) -> Deployment {
    Api::namespaced(lab.client.clone(), SYSTEM).get(RELEASE).await.expect("the operator's Deployment is there")
}

/// Replicas: wanted, and ready as of the newest spec.
async fn replicas(lab: &Lab) -> (i32, i32) {
    let deployment = deployment(lab).await;
    let status = deployment.status.unwrap_or_default();
    assert_eq!(status.observed_generation, deployment.metadata.generation);
    (deployment.spec.replicas.unwrap_or(1), status.ready_replicas.unwrap_or(0))
}

/// The operator's pods.
async fn operators(lab: &Lab) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), SYSTEM);
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={RELEASE}"));
    pods.list(&ours).await.expect("pods can be listed").items
}

/// The certificate authority that workers are told.
pub async fn authority(lab: &Lab) -> Vec<u8> {
    let secrets: Api<Secret> = Api::namespaced(lab.client.clone(), SYSTEM);
    let secret = secrets.get(&format!("{RELEASE}-tls")).await.expect("the endpoint has a certificate");
    secret.data.and_then(|mut data| data.remove("ca.crt")).expect("it has an authority").0
}

/// Everything that carries a release's label, in all namespaces.
fn left(lab: &Lab, release: &str) -> BTreeSet<String> {
    let resources = cluster::run(lab.cluster.kubectl().args(["api-resources", "--verbs=list", "-o", "name"]));
    let resources: Vec<&str> = resources.lines().filter(|name| *name != "componentstatuses").collect();
    let mut kubectl = lab.cluster.kubectl();
    kubectl.args(["get", &resources.join(","), "--all-namespaces", "-o", "name", "-l"]);
    let found = cluster::run(kubectl.arg(format!("app.kubernetes.io/instance={release}")));
    found.lines().map(str::to_owned).collect()
}

/// What a release's namespace holds that was not there before it.
fn left_in(lab: &Lab, namespace: &str) -> BTreeSet<String> {
    let kinds = "pods,services,secrets,configmaps,serviceaccounts,deployments,leases,roles,rolebindings,jobs,networkpolicies,poddisruptionbudgets";
    let found = lab.kubectl(namespace, &format!("get {kinds} -o name"));
    let own = ["configmap/kube-root-ca.crt", "serviceaccount/default"];
    found.lines().filter(|name| !own.contains(name)).map(str::to_owned).collect()
}

/// Waits until nothing is left of a release but what is named.
async fn until_only(lab: &Lab, release: &str, namespace: &str, kept: &[&str]) {
    let kept: BTreeSet<String> = kept.iter().map(|name| (*name).to_owned()).collect();
    let until = Instant::now() + Duration::from_secs(60);
    // What goes with its owner goes a moment later, and nothing announces that all has gone.
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tick.tick().await;
        let (all, within) = (left(lab, release), left_in(lab, namespace));
        if all == kept && within.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "left of {release}: {all:?}, in {namespace}: {within:?}; to be kept: {kept:?}");
    }
}

pub async fn without_an_operator_its_test_fails_and_the_task_goes_on(lab: &Lab, run: &Run) {
    // Installed with --wait by the page: helm came back when it was ready.
    assert_eq!(replicas(lab).await, (1, 1));
    lab.helm(&format!(
        "upgrade {RELEASE} {CHART} --namespace {SYSTEM} --reuse-values --set replicas=0 --wait --timeout 2m"
    ))
    .await;
    let output = lab.try_helm(&format!("test {RELEASE} --namespace {SYSTEM} --timeout 2m")).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    for line in [
        "FAILED  the operator is ready",
        "FAILED  workers are let in with a token only",
        "ok      the API server has the custom resources",
    ] {
        assert!(text.contains(line), "helm shows `{line}`: {text}");
    }
    assert!(text.contains("look whether a pod of the operator is ready"), "it says what to do: {text}");
    assert_eq!(lab.kubectl(SYSTEM, "get pods -o name"), "", "the test leaves no pod");
    run.goes_on(lab).await;
}

pub async fn an_upgrade_takes_the_task_over(lab: &Lab, run: &Run) {
    let before = authority(lab).await;
    let values = "--set replicas=2,log.format=text,podAnnotations.changed=yes,networkPolicy.enabled=true";
    lab.helm(&format!("upgrade {RELEASE} {CHART} --namespace {SYSTEM} --reuse-values {values} --wait --timeout 2m"))
        .await;
    assert_eq!(replicas(lab).await, (2, 2), "helm came back when they were ready");
    assert_eq!(authority(lab).await, before, "workers that run know the certificate");
    for pod in operators(lab).await {
        assert_eq!(pod.annotations().get("changed").map(String::as_str), Some("yes"), "{}", pod.name_any());
    }
    let text = lab.helm(&format!("test {RELEASE} --namespace {SYSTEM} --timeout 2m")).await;
    assert_eq!(text.matches("ok      ").count(), 4, "{text}");
    run.goes_on(lab).await;
}

/// The pod that says of itself that it leads, if one does.
async fn leader(lab: &Lab) -> Option<Pod> {
    for pod in operators(lab).await {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).map(|ip| format!("{ip}:8080"));
        let Some(address) = address else { continue };
        let metrics = tokio::time::timeout(Duration::from_secs(2), http::get(&address, "/metrics")).await;
        if let Ok(Ok((200, text))) = metrics
            && text.lines().any(|line| line == "collect_leader 1" || line == "collect_leader 1.0")
        {
            return Some(pod);
        }
    }
    None
}

/// Waits until a pod leads that is none of these, and no other does.
async fn until_leader_but(lab: &Lab, uid: Option<&str>) -> Pod {
    let until = Instant::now() + Duration::from_secs(60);
    // Nothing announces who leads but the answer itself.
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        if let Some(pod) = leader(lab).await.filter(|pod| pod.uid().as_deref() != uid) {
            return pod;
        }
        assert!(Instant::now() < until, "nobody leads: {}", lab.kubectl(SYSTEM, "get pods,leases -o wide"));
    }
}

pub async fn another_replica_takes_over_from_a_leader_that_is_killed(lab: &Lab, run: &Run) {
    until_leader_but(lab, None).await;
    // Somebody deletes the lease: it is made anew.
    let leases: Api<Lease> = Api::namespaced(lab.client.clone(), SYSTEM);
    leases.delete(RELEASE, &DeleteParams::default()).await.expect("the lease can be deleted");
    let held = |lease: Option<&Lease>| {
        let holder = lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
        holder.is_some_and(|holder| !holder.is_empty())
    };
    let back = tokio::time::timeout(SOON, await_condition(leases, RELEASE, held)).await;
    back.expect("the lease is held again").expect("it can be watched");
    let leads = until_leader_but(lab, None).await;
    let pods: Api<Pod> = Api::namespaced(lab.client.clone(), SYSTEM);
    let began = Instant::now();
    // With SIGKILL, or it would give the lease back as it leaves; and the pod with it, or the kubelet would start it again.
    let uid = leads.uid().unwrap_or_default();
    let process = node::running(lab.cluster, node::OPERATOR).into_iter().find(|process| process.pod == uid);
    assert!(node::kill(lab.cluster, &process.expect("the leader runs on this node")), "the leader can be killed");
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete(&leads.name_any(), &now).await.expect("a pod can be deleted");
    until_leader_but(lab, leads.uid().as_deref()).await;
    figure("seconds until another replica leads", began.elapsed().as_secs());
    // It not only says so.
    lab.space.create("after", lab.provinces("after")).await;
    let task = lab.space.until_over("after", SOON).await;
    assert_eq!(phase(&task), Some(&Phase::Collected), "{:?}", task.status);
    run.goes_on(lab).await;
}

pub async fn a_rollback_takes_the_task_over(lab: &Lab, run: &Run) {
    lab.helm(&format!("rollback {RELEASE} 1 --namespace {SYSTEM} --wait --timeout 2m")).await;
    assert_eq!(replicas(lab).await, (1, 1));
    let template = deployment(lab).await.spec.template;
    assert!(template.metadata.is_some_and(|meta| meta.annotations.is_some_and(|all| !all.contains_key("changed"))));
    let history = lab.helm(&format!("history {RELEASE} --namespace {SYSTEM}")).await;
    assert!(history.contains("Rollback to 1"), "{history}");
    run.goes_on(lab).await;
}

pub async fn uninstalled_it_leaves_what_it_says_and_installed_again_it_goes_on(lab: &Lab, run: &Run) {
    lab.helm(&format!("uninstall {RELEASE} --namespace {SYSTEM} --wait --timeout 2m")).await;
    let definitions = ["collectshards", "collecttasks", "validationreports"]
        .map(|plural| format!("customresourcedefinition.apiextensions.k8s.io/{plural}.collect.dev"));
    let definitions: Vec<&str> = definitions.iter().map(String::as_str).collect();
    until_only(lab, RELEASE, SYSTEM, &definitions).await;
    run.goes_on(lab).await;

    lab.helm(&format!("install {RELEASE} {CHART} --namespace {SYSTEM} {} --wait --timeout 2m", images())).await;
    assert_eq!(replicas(lab).await, (1, 1));
    run.goes_on(lab).await;
    lab.set_villages(None);
    let task = lab.space.until_over(TASK, SOON).await;
    assert_eq!(phase(&task), Some(&Phase::Succeeded), "{:?}", task.status);
    assert_eq!(condition(&task, "Verified").map(|condition| condition.status.as_str()), Some("True"));
    sink::read(&lab.bucket(), TASK, "code").await.assert_exactly(&lab.codes());
    assert_eq!(audit::jobs_created_twice(&audit::requests(&lab.space)), Vec::<String>::new(), "I1");
    for shard in lab.space.shards().list(&ListParams::default()).await.expect("shards can be listed") {
        let attempts = shard.status.map(|status| status.attempts).unwrap_or_default();
        assert_eq!(attempts.len(), 1, "no attempt of a shard was lost: {attempts:?}");
    }
    lab.helm(&format!("uninstall {RELEASE} --namespace {SYSTEM} --wait --timeout 2m")).await;
    until_only(lab, RELEASE, SYSTEM, &definitions).await;
}

/// What the API server says when an account asks whether it may.
fn may(cluster: &Cluster, account: &str, words: &str) -> bool {
    let mut kubectl = cluster.kubectl();
    kubectl.args(["auth", "can-i", "--as", account]).args(words.split(' '));
    let output = kubectl.output().expect("kubectl runs");
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => true,
        "no" => false,
        other => panic!("{words}: {other}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

pub async fn a_namespaced_operator_serves_its_namespace_and_goes_with_everything(lab: &Lab) {
    const RELEASE: &str = "team";
    const SYSTEM: &str = "team-system";
    let namespaces: Api<Namespace> = Api::all(lab.client.clone());
    let team = serde_json::from_value(json!({"metadata": {"name": "team"}})).expect("a namespace");
    namespaces.create(&PostParams::default(), &team).await.expect("a new namespace");
    let team = Space::existing(lab.cluster, "team").await;
    team.secret("lake", &[("access_key_id", "ID"), ("secret_access_key", "KEY")]).await;
    team.secret("registry", &[("token", "TOKEN")]).await;
    // It takes over the definitions that the earlier release has left, and with crds.keep=false they go with it.
    let values = "--set watchNamespace=team,crds.keep=false,fullnameOverride=team --take-ownership";
    lab.helm(&format!(
        "install {RELEASE} {CHART} --namespace {SYSTEM} --create-namespace {} {values} --wait --timeout 2m",
        images()
    ))
    .await;

    lab.space.create("ignored", lab.provinces("ignored")).await;
    team.create("served", lab.provinces("served")).await;
    let task = team.until_over("served", SOON).await;
    assert_eq!(phase(&task), Some(&Phase::Collected), "{:?}", task.status);
    let ignored = lab.space.tasks().get("ignored").await.expect("it is there");
    assert_eq!(phase(&ignored), None, "{:?}", ignored.status);
    lab.helm(&format!("test {RELEASE} --namespace {SYSTEM} --timeout 2m")).await;

    let account = format!("system:serviceaccount:{SYSTEM}:{RELEASE}");
    for (words, allowed) in [
        ("list collecttasks.collect.dev -n team", true),
        ("create jobs.batch -n team", true),
        ("create tokenreviews.authentication.k8s.io", true),
        ("list collecttasks.collect.dev -n lab", false),
        ("list collecttasks.collect.dev --all-namespaces", false),
        ("create jobs.batch -n lab", false),
        ("get secrets -n team", false),
        ("get pods -n lab", false),
        ("list customresourcedefinitions.apiextensions.k8s.io", false),
    ] {
        assert_eq!(may(lab.cluster, &account, words), allowed, "{words}");
    }

    let uids: Vec<String> = lab.space.all::<CollectTask>().await.iter().filter_map(ResourceExt::uid).collect();
    assert!(!uids.is_empty(), "there are tasks that can go");
    lab.helm(&format!("uninstall {RELEASE} --namespace {SYSTEM} --wait --timeout 2m")).await;
    until_only(lab, RELEASE, SYSTEM, &[]).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(lab.client.clone());
    let until = Instant::now() + Duration::from_secs(60);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    while !definitions.list(&ListParams::default()).await.expect("they can be listed").items.is_empty() {
        assert!(Instant::now() < until, "the definitions go with the release");
        tick.tick().await;
    }
    // With the tasks, everything that was theirs.
    for space in [&lab.space, &team] {
        let ours = format!("get jobs,pods,configmaps -o name -l {}", labels::MANAGED_SELECTOR);
        while !space.kubectl(&ours).is_empty() {
            assert!(Instant::now() < until, "left in {}: {}", space.name, space.kubectl(&ours));
            tick.tick().await;
        }
    }
}

//! The demo as it stands on a real node after `tests/demo/demo.sh`: chart, source, sink.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use collect_registry::Registry;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::{Api, Client};
use object_store::aws::{AmazonS3, AmazonS3Builder};

use crate::{cluster, say};

/// Namespace of the demo's source, sink and tasks.
pub const NAMESPACE: &str = "demo";
/// Namespace of the operator.
pub const SYSTEM: &str = "collect-system";
/// Name of the operator's release and Deployment.
pub const RELEASE: &str = "collect-operator";

/// Runs the demo's script on the real node of this cluster with further variables, showing its output as it comes; gives the output.
///
/// # Panics
/// If it fails.
pub fn script(cluster: &str, variables: &[(&str, &str)]) -> String {
    let mut demo = Command::new(cluster::repository().join("tests/demo/demo.sh"))
        .env("CLUSTER", cluster)
        .env("NODE", "real")
        .envs(variables.iter().copied())
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the demo can be started");
    let mut text = String::new();
    for line in BufReader::new(demo.stdout.take().expect("it is piped")).lines().map_while(Result::ok) {
        say(&line);
        text.push_str(&line);
        text.push('\n');
    }
    let status = demo.wait().expect("the demo can be waited for");
    assert!(status.success(), "the demo ended with {status}");
    text
}

/// Codes of the source's villages that begin with this.
pub fn villages(prefix: &str) -> BTreeSet<String> {
    let data = cluster::run(&mut Command::new(cluster::repository().join("tests/registry/data.sh")));
    let registry = Registry::load(data.trim()).expect("the data can be loaded");
    let level = registry.level("villages").expect("it has villages");
    let all = (0..registry.count(level)).filter_map(|i| registry.code(level, i));
    let codes: BTreeSet<String> = all.filter(|code| code.starts_with(prefix)).collect();
    assert!(!codes.is_empty(), "the source has villages with {prefix}");
    codes
}

/// `host:port` of a service's first port, as processes of this machine reach it.
pub async fn address(client: &Client, service: &str) -> String {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let spec = services.get(service).await.expect("the service is there").spec.expect("it has a spec");
    let port = spec.ports.unwrap_or_default().first().expect("it has a port").port;
    format!("{}:{port}", spec.cluster_ip.expect("it has an address"))
}

/// The bucket, as a reader sees it.
pub async fn bucket(client: &Client) -> AmazonS3 {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let secret = secrets.get("lake").await.expect("the sink has a secret").data.expect("it has data");
    let key = |name: &str| String::from_utf8(secret[name].0.clone()).expect("a key is text");
    AmazonS3Builder::new()
        .with_endpoint(format!("http://{}", address(client, "s3").await))
        .with_allow_http(true)
        .with_bucket_name("lake")
        .with_region("us-east-1")
        .with_access_key_id(key("access_key_id"))
        .with_secret_access_key(key("secret_access_key"))
        .build()
        .expect("a client of the sink")
}

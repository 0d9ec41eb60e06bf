//! What the tests have beside the operator: a source, a store and an API of a reader's own, which run in the test process and which
//! pods reach by name.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Output,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::Query,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    routing::get,
};
use collect_e2e::{Cluster, Space, cluster, demo::SYSTEM, tasks};
use collect_registry::{Effect, Options, Registry, When};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use serde::Deserialize;
use serde_json::{Value, json};

/// Credentials of the store, and the token of both APIs: the words of the page.
const ID: &str = "ID";
const KEY: &str = "KEY";
const TOKEN: &str = "TOKEN";
/// Stations of the API that the page tells of.
pub const STATIONS: usize = 9214;
/// Where the lab's own task lives.
pub const NAMESPACE: &str = "lab";
/// What a page's images are called: a registry that nobody has. They are loaded into the node instead.
pub const IMAGES: &str = "registry.example/collect";

/// Everything around the operator.
pub struct Lab {
    /// The cluster.
    pub cluster: &'static Cluster,
    /// A client with all rights.
    pub client: Client,
    /// The namespace of the lab's own task.
    pub space: Space,
    /// The source of the lab's own task.
    pub source: collect_registry::Running,
    /// The store, of which the bucket `lake` is used.
    pub store: collect_s3::Running,
    /// Folder of the store, gone with this.
    _folder: tempfile::TempDir,
}

impl Lab {
    /// Starts all of it. `http://weather.example` and `http://s3.example:9000` of the page are Services here: within a pod the
    /// name `weather.example` is that of the Service `weather` in the namespace `example`.
    pub async fn new(cluster: &'static Cluster) -> Self {
        let client = cluster.client().await;
        // The address of the machine that pods know: they reach the API server there.
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
        let slice = slices.get("kubernetes").await.expect("pods can reach the API server");
        let machine: IpAddr = slice.endpoints.unwrap_or_default().first().expect("it has an address").addresses[0]
            .parse()
            .expect("an address");
        let any = SocketAddr::new(machine, 0);

        let folder = tempfile::tempdir().expect("a folder");
        let mut store = collect_s3::S3Server::new(folder.path(), [tasks::BUCKET]);
        (store.listen, store.access_key, store.secret_key) = (any, ID.into(), KEY.into());
        let store = store.run().await.expect("the store starts");
        let source =
            collect_registry::serve(Registry::small(), options(Options::default()), any).await.expect("a source");
        let stations = tokio::net::TcpListener::bind(any).await.expect("a port");
        let stations_port = stations.local_addr().expect("it has an address").port();
        tokio::spawn(
            async move { axum::serve(stations, Router::new().route("/api/stations", get(list_stations))).await },
        );

        for name in [SYSTEM, NAMESPACE, "example"] {
            let restricted = json!({"pod-security.kubernetes.io/enforce": "restricted"});
            let namespace = json!({"metadata": {"name": name, "labels": restricted}});
            create(&Api::<Namespace>::all(client.clone()), &namespace).await;
        }
        let store_port = store.endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("it has a port");
        for (name, port, target) in [("weather", 80, stations_port), ("s3", 9000, store_port)] {
            publish(&client, name, port, SocketAddr::new(machine, target)).await;
        }
        let space = Space::existing(cluster, NAMESPACE).await;
        space.secret("lake", &[("access_key_id", ID), ("secret_access_key", KEY)]).await;
        space.secret("registry", &[("token", TOKEN)]).await;
        Self { cluster, client, space, source, store, _folder: folder }
    }

    /// The bucket, as a reader sees it.
    pub fn bucket(&self) -> AmazonS3 {
        AmazonS3Builder::new()
            .with_endpoint(&self.store.endpoint)
            .with_allow_http(true)
            .with_bucket_name(tasks::BUCKET)
            .with_region("us-east-1")
            .with_access_key_id(ID)
            .with_secret_access_key(KEY)
            .build()
            .expect("a client of the store")
    }

    /// What happens to requests for villages from now on.
    pub fn set_villages(&self, effect: Option<Effect>) {
        use collect_registry::Controlled;
        let villages = When { prefix: "/api/districts".into(), ..When::default() };
        self.source.control.set_options(options(Options::faults(
            effect.map(|effect| effect.when(villages)).into_iter().collect::<Vec<_>>(),
        )));
    }

    /// The lab's own task: provinces and cities as tasks, villages as records, two workers at once.
    pub fn villages(&self) -> Value {
        let level = |name: &str, path: &str| json!({"name": name, "discover": {"path": path, "records": "$.data", "value": "$.code"}});
        let mut districts = level("district", "/cities/{{ city }}/districts");
        districts["as"] = json!("slices");
        json!({
            "source": {"http": {
                "url": format!("{}/api", self.source.url()),
                "path": "/districts/{{ district }}/villages",
                "records": "$.data",
                "total": "$.total",
                "pagination": {"page": {"param": "page", "size": 20, "sizeParam": "size"}},
                "auth": auth(),
                // Longer than a request is held back here.
                "timeout": "10m",
            }},
            "record": {"key": ["code"]},
            "decompose": {
                "levels": [level("province", "/provinces"), level("city", "/provinces/{{ province }}/cities"), districts],
                "shards": {"count": {"recordsPerShard": 40, "valuesPerShard": 5}},
            },
            "parallelism": 2,
            "sink": self.sink("villages"),
            "validation": {"level": "counts", "total": {"path": "/summary", "value": "$.villages"}},
        })
    }

    /// A small task: all provinces in one request.
    pub fn provinces(&self, folder: &str) -> Value {
        json!({
            "source": {"http": {"url": format!("{}/api/provinces", self.source.url()), "auth": auth()}},
            "record": {"key": ["code"]},
            "sink": self.sink(folder),
        })
    }

    fn sink(&self, folder: &str) -> Value {
        let url = format!("s3://{}/{folder}", tasks::BUCKET);
        json!({"objectStore": {"url": url, "endpoint": self.store.endpoint, "secretRef": {"name": "lake"}}})
    }

    /// Codes of all villages of the source.
    pub fn codes(&self) -> BTreeSet<String> {
        let registry = self.source.control.registry();
        let level = registry.level("villages").expect("it has villages");
        (0..registry.count(level)).filter_map(|i| registry.code(level, i)).collect()
    }

    /// Runs helm with words separated by spaces and gives what it printed; fails if it fails.
    pub async fn helm(&self, words: &str) -> String {
        let output = self.try_helm(words).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "helm {words}: {}\n{text}{errors}\n{}",
            output.status,
            self.pods_of_the_system()
        );
        text + &errors
    }

    /// The same, however it ends.
    pub async fn try_helm(&self, words: &str) -> Output {
        let mut helm = self.cluster.helm();
        helm.current_dir(cluster::repository()).args(words.split_whitespace());
        tokio::task::spawn_blocking(move || helm.output().expect("helm runs")).await.expect("helm ends")
    }

    /// Runs kubectl in a namespace, with words separated by spaces, and gives what it printed.
    pub fn kubectl(&self, namespace: &str, words: &str) -> String {
        cluster::run(self.cluster.kubectl().args(["--namespace", namespace]).args(words.split_whitespace()))
    }

    fn pods_of_the_system(&self) -> String {
        let mut kubectl = self.cluster.kubectl();
        let output = kubectl.args(["--namespace", SYSTEM, "describe", "pods"]).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    }

    /// Programs of the cluster's own first, as a reader has them.
    pub fn path(&self) -> String {
        let own = self.cluster.state.join("bin");
        format!("{}:{}", own.display(), std::env::var("PATH").unwrap_or_default())
    }
}

fn auth() -> Value {
    json!({"bearer": {"secretRef": {"name": "registry", "key": "token"}}})
}

fn options(options: Options) -> Options {
    Options { token: Some(TOKEN.into()), ..options }
}

async fn create<K>(api: &Api<K>, object: &Value)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object.clone()).expect("an object");
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => {}
        // A cluster that was left up for the next run.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => panic!("{error}"),
    }
}

/// Makes a socket of this machine a Service of the namespace `example`.
async fn publish(client: &Client, name: &str, port: u16, target: SocketAddr) {
    let services: Api<Service> = Api::namespaced(client.clone(), "example");
    create(&services, &json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": port}]}})).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "example");
    let labelled = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    for old in slices.list(&labelled).await.expect("they can be listed").items {
        let _ = slices.delete(old.metadata.name.as_deref().unwrap_or_default(), &Default::default()).await;
    }
    let slice = json!({
        "metadata": {"name": format!("{name}-{}", target.port()), "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [target.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": target.port(), "protocol": "TCP"}],
    });
    create(&slices, &slice).await;
}

#[derive(Deserialize)]
struct Page {
    offset: usize,
    limit: usize,
}

/// `GET /api/stations?offset=0&limit=500` of the page.
async fn list_stations(headers: HeaderMap, Query(page): Query<Page>) -> Result<Json<Value>, StatusCode> {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if token != Some(&format!("Bearer {TOKEN}")) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let stations: Vec<Value> = (page.offset..STATIONS.min(page.offset + page.limit))
        .map(|n| json!({"id": station(n), "height": n % 3000}))
        .collect();
    Ok(Json(json!({"count": STATIONS, "stations": stations})))
}

/// Id of a station.
pub fn station(n: usize) -> String {
    format!("st-{:04}", n + 1)
}

/// Runs a script as a reader would: in their shell, one block.
pub async fn shell(text: String, folder: &Path, variables: Vec<(&'static str, String)>, limit: Duration) -> String {
    let mut bash = tokio::process::Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &text]).current_dir(folder).envs(variables).kill_on_drop(true);
    let output = tokio::time::timeout(limit, bash.output()).await;
    let output = output.unwrap_or_else(|_| panic!("not done after {limit:?}:\n{text}")).expect("bash runs");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}:\n{text}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    out
}

/// The launcher's command that makes an archive known to the node is what stands in for pushing it to a registry.
pub fn load(cluster: &Cluster, folder: &Path) {
    for image in ["operator", "worker"] {
        cluster.load_image(&folder.join(format!("{image}.oci.tar")));
    }
}

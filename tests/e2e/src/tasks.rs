//! CollectTasks for the sample source and the S3 server that run within the test process, and what the source really holds.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use collect_registry::{Effect, Options, Registry, When};
use object_store::{ObjectStore, aws::AmazonS3Builder};
use serde_json::{Value, json};

use crate::{Cluster, Operator, Space};

/// Time that a small collection may take on a busy machine of two cores.
pub const SOON: Duration = Duration::from_secs(120);

/// The bucket.
pub const BUCKET: &str = "lake";

/// A namespace with an operator, the small country as source, and an empty sink.
pub async fn stage(cluster: &'static Cluster, test: &str) -> (Space, World, Operator) {
    let space = Space::new(cluster, test).await;
    let world = World::new(&space, Registry::small()).await;
    let operator = Operator::start(&space).await;
    (space, world, operator)
}

/// What asks the source for villages.
pub fn villages() -> When {
    When { prefix: "/api/districts".into(), ..When::default() }
}

/// A source that answers each request for villages this late.
pub fn slow(milliseconds: u64) -> Options {
    Options::faults([Effect::Delay { milliseconds }.when(villages())])
}

/// A sample source and a sink of a test's own, with the Secrets to use them in its namespace.
#[derive(Debug)]
pub struct World {
    /// The source.
    pub source: collect_registry::Running,
    /// The sink.
    pub sink: collect_s3::Running,
}

impl World {
    /// Serves this data, and an empty bucket `lake`. Makes the Secrets `registry` (key `token`) and `lake`.
    pub async fn new(space: &Space, registry: Registry) -> Self {
        let options = Options { token: Some("open-sesame".into()), ..Options::default() };
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let source = collect_registry::serve(registry, options, address).await.expect("the sample source starts");
        let sink = collect_s3::S3Server::start(space.folder.join("s3"), [BUCKET]).await.expect("the S3 server starts");
        space.secret("registry", &[("token", "open-sesame")]).await;
        space.secret("lake", &[("access_key_id", &sink.access_key), ("secret_access_key", &sink.secret_key)]).await;
        Self { source, sink }
    }

    /// Sets options of the source and keeps its token.
    pub fn set_source(&self, options: Options) {
        use collect_registry::Controlled;
        self.source.control.set_options(Options { token: Some("open-sesame".into()), ..options });
    }

    /// The bucket, as a reader sees it.
    pub fn bucket(&self) -> Arc<dyn ObjectStore> {
        let store = AmazonS3Builder::new()
            .with_endpoint(&self.sink.endpoint)
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_region("us-east-1")
            .with_access_key_id(&self.sink.access_key)
            .with_secret_access_key(&self.sink.secret_key)
            .build()
            .expect("a client of the S3 server");
        Arc::new(store)
    }

    /// A sink at this folder of the bucket.
    pub fn sink_at(&self, folder: &str) -> Value {
        json!({"objectStore": {"url": format!("s3://{BUCKET}/{folder}"), "endpoint": self.sink.endpoint, "secretRef": {"name": "lake"}}})
    }

    /// The smallest task: all provinces in one request, no total.
    pub fn provinces(&self, folder: &str) -> Value {
        json!({
            "source": {"http": {"url": format!("{}/api/provinces", self.source.url()), "auth": self.auth()}},
            "record": {"key": ["code"]},
            "sink": self.sink_at(folder),
        })
    }

    /// The tree: provinces and cities as tasks, districts as slices, villages as records.
    pub fn villages(&self, folder: &str) -> Value {
        json!({
            "source": {"http": {
                "url": format!("{}/api", self.source.url()),
                "path": "/districts/{{ district }}/villages",
                "records": "$.data",
                "total": "$.total",
                "pagination": {"page": {"param": "page", "size": 20, "sizeParam": "size"}},
                "auth": self.auth(),
            }},
            "record": {"key": ["code"]},
            "decompose": {
                "levels": [
                    {"name": "province", "discover": {"path": "/provinces", "records": "$.data", "value": "$.code", "label": "$.name"}},
                    {"name": "city", "discover": {"path": "/provinces/{{ province }}/cities", "records": "$.data", "value": "$.code", "label": "$.name"}},
                    {"name": "district", "as": "slices", "discover": {"path": "/cities/{{ city }}/districts", "records": "$.data", "value": "$.code"}},
                ],
                "shards": {"count": {"recordsPerShard": 40, "valuesPerShard": 5}},
            },
            "parallelism": 8,
            "retry": {"backoff": {"initial": "100ms", "max": "2s"}},
            "sink": self.sink_at(folder),
            "validation": {"level": "counts", "total": {"path": "/summary", "value": "$.villages"}},
        })
    }

    /// Items of the synthetic source: a shard for each group.
    pub fn groups(&self, folder: &str) -> Value {
        json!({
            "source": {"http": {
                "url": format!("{}/api", self.source.url()),
                "path": "/groups/{{ group }}/items",
                "records": "$.data",
                "total": "$.total",
                "pagination": {"page": {"param": "page", "size": 1000, "sizeParam": "size"}},
                "auth": self.auth(),
            }},
            "record": {"key": ["code"]},
            "decompose": {
                "levels": [{"name": "group", "as": "slices", "discover": {"path": "/groups", "records": "$.data", "value": "$.code"}}],
                "shards": {"perValue": {}},
            },
            "parallelism": 8,
            "retry": {"backoff": {"initial": "100ms", "max": "2s"}},
            "sink": self.sink_at(folder),
        })
    }

    fn auth(&self) -> Value {
        json!({"bearer": {"secretRef": {"name": "registry", "key": "token"}}})
    }

    /// Codes of all rows of a level of the source.
    pub fn codes(&self, level: &str) -> BTreeSet<String> {
        let registry = self.source.control.registry();
        let level = registry.level(level).expect("the source has the level");
        let codes: BTreeSet<_> = (0..registry.count(level)).filter_map(|i| registry.code(level, i)).collect();
        assert_eq!(codes.len(), registry.count(level), "codes are unique");
        codes
    }
}

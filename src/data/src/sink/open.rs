//! Opens the store that a sink names.

use std::{fs, sync::Arc, time::Duration};

use collect_api::sink::ObjectStoreSink;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::AmazonS3Builder,
    client::{HttpClient, HttpConnector},
    local::LocalFileSystem,
    path::Path,
};

use super::{Kind, SinkError, Store};
use crate::{http::certificates, secrets::Secrets, settings::Settings, text};

/// Longest time that the store's own client repeats one request.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);

impl Store {
    /// Opens the store that a sink names.
    ///
    /// # Errors
    /// When the URL is malformed, a credential is missing, or the volume is not mounted.
    pub fn open(sink: &ObjectStoreSink, settings: &Settings) -> Result<Self, SinkError> {
        let invalid = |cause: String| SinkError::Invalid { url: sink.url.clone(), cause };
        match sink.url.split_once("://") {
            Some(("file", path)) => {
                let prefix = Path::parse(path.trim_matches('/')).map_err(|e| invalid(e.to_string()))?;
                open_volume(settings, prefix).map(|store| store.named(&sink.url)).map_err(invalid)
            }
            Some(("s3", rest)) => {
                let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
                let prefix = Path::parse(path.trim_matches('/')).map_err(|e| invalid(e.to_string()))?;
                open_s3(sink, bucket, prefix, &Secrets::below(&settings.secrets_dir))
                    .map(|store| store.named(&sink.url))
            }
            _ => Err(invalid("it must begin with s3:// or file:///".into())),
        }
    }
}

fn open_volume(settings: &Settings, prefix: Path) -> Result<Store, String> {
    let base = &settings.volume_dir;
    fs::metadata(base).map_err(|e| format!("the volume is not mounted at {}: {e}", base.display()))?;
    // fsync: what a manifest names must survive a crash of the node.
    let store = LocalFileSystem::new_with_prefix(base)
        .map_err(|e| e.to_string())?
        .with_automatic_cleanup(true)
        .with_fsync(true);
    let folder = base.join(prefix.as_ref());
    Ok(Store::new(Arc::new(store), prefix, Kind::Volume { folder }, Vec::new()))
}

fn open_s3(sink: &ObjectStoreSink, bucket: &str, prefix: Path, secrets: &Secrets) -> Result<Store, SinkError> {
    let mut builder = AmazonS3Builder::from_env();
    let mut masked = Vec::new();
    if let Some(secret) = &sink.secret_ref {
        let field = "spec.sink.objectStore.secretRef.name";
        let id = secrets.read(&secret.name, "access_key_id", field)?;
        let key = secrets.read(&secret.name, "secret_access_key", field)?;
        let token = secrets.read_optional(&secret.name, "session_token", field)?;
        // Not from the environment: only what this secret says.
        builder = AmazonS3Builder::new().with_access_key_id(id.expose()).with_secret_access_key(key.expose());
        if let Some(token) = &token {
            builder = builder.with_token(token.expose());
        }
        masked = [Some(id), Some(key), token].into_iter().flatten().collect();
    }
    builder = builder
        .with_bucket_name(bucket)
        .with_region(sink.region.as_deref().unwrap_or("us-east-1"))
        .with_virtual_hosted_style_request(false)
        .with_http_connector(Connector)
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(10),
                base: 2.0,
            },
            max_retries: 8,
            retry_timeout: RETRY_TIMEOUT,
        });
    if let Some(endpoint) = &sink.endpoint {
        let endpoint = endpoint.trim_end_matches('/');
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    let store = builder.build().map_err(|e| SinkError::Invalid { url: sink.url.clone(), cause: text::chain(&e) })?;
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    Ok(Store::new(store, prefix, Kind::S3, masked))
}

/// Gives the store's client our certificate authorities, which also work in an empty image.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("collect-operator/", env!("CARGO_PKG_VERSION")))
            .tls_certs_only(certificates().iter().cloned())
            .connect_timeout(Duration::from_secs(5))
            .read_timeout(Duration::from_secs(60))
            .no_gzip()
            .http1_only()
            .build()
            .map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        Ok(HttpClient::new(client))
    }
}

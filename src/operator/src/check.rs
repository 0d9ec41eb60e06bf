//! `collect-operator check`: looks at an installed operator from outside, as its workers and its API server see it. `helm test`
//! runs it in a pod of its own.
//!
//! It changes nothing. A line for each check says what is well, or what is wrong and what to do about it.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use axum::http::{Method, Request, StatusCode, Uri};
use collect_api::{GROUP, VERSION, crd, protocol::PROGRESS_PATH};
use kube::{Client, Config, client::Body, config::InferConfigError};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;

use crate::{clock, error::chain};

/// How long a check is repeated until it is well: what was installed a moment ago may not be known everywhere yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Time that one answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// This program.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// Where the operator is.
#[derive(clap::Args)]
pub struct Check {
    /// URL of /readyz and /metrics.
    #[arg(long)]
    http_url: Uri,
    /// URL of the worker endpoint, as workers are told.
    #[arg(long)]
    endpoint_url: Uri,
    /// File with the authority that the worker endpoint's certificate must come from.
    #[arg(long, default_value = "/etc/collect/tls/ca.crt")]
    endpoint_ca: PathBuf,
}

/// What is wrong, and what to do about it.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error(
        "{0} can't be reached; look whether a pod of the operator is ready and whether NetworkPolicies let this one through"
    )]
    Unreachable(String, #[source] kube::Error),
    #[error("{0} did not answer within {TIMEOUT:?}; look whether the operator is short of CPU or memory")]
    Late(String),
    #[error("/readyz answers {0}: {1}; the operator's log says why it can't read them")]
    NotReady(StatusCode, String),
    #[error("/metrics answers {0} without collect_build_info; look whether the URL is that of the operator")]
    NoMetrics(StatusCode),
    #[error("the operator is not version {PROGRAM} but {0}; wait until its rollout is over, or upgrade it")]
    OtherVersion(String),
    #[error("{0} can't be read; look whether the Secret of the worker endpoint has the key ca.crt")]
    NoAuthority(String, #[source] std::io::Error),
    #[error("{0} holds no certificate; put the certificate's authority into the key ca.crt of its Secret")]
    EmptyAuthority(String),
    #[error(
        "without a token the worker endpoint answers {0}, not 401; look whether endpoint.url is that of the operator"
    )]
    LetsIn(StatusCode),
    #[error("this pod has no account for the API server; mount a service account token")]
    NoAccount(#[source] Box<InferConfigError>),
    #[error("the API server answers {1} to {0}; look at its log")]
    ApiServer(String, StatusCode),
    #[error(
        "the API server does not serve {0} of {GROUP}/{VERSION}; set crds.enabled=true, or kubectl apply --server-side -f crds/"
    )]
    NoKinds(String),
    #[error(
        "the API server serves older definitions, without {0}; upgrade with crds.enabled=true, or kubectl apply --server-side -f crds/"
    )]
    OldKinds(String),
}

/// Runs every check, prints what came of each, and says whether all is well.
pub async fn run(check: &Check) -> bool {
    let until = clock::instant() + PATIENCE;
    let mut is_well = true;
    let mut report = |what: &str, result: Result<String, Wrong>| match result {
        Ok(found) => println!("ok      {what}: {found}"),
        Err(wrong) => {
            is_well = false;
            println!("FAILED  {what}: {}", chain(&wrong));
        }
    };
    macro_rules! patiently {
        ($what:literal, $check:expr) => {{
            let mut result = $check.await;
            while result.is_err() && clock::instant() < until {
                tokio::time::sleep(PAUSE).await;
                result = $check.await;
            }
            report($what, result);
        }};
    }
    patiently!("the operator is ready", ready(check));
    patiently!("the operator is of this version", version(check));
    patiently!("workers are let in with a token only", endpoint(check));
    patiently!("the API server has the custom resources", custom_resources());
    is_well
}

async fn ready(check: &Check) -> Result<String, Wrong> {
    match get(&plain(&check.http_url)?, &check.http_url, "/readyz").await? {
        (StatusCode::OK, _) => Ok(format!("{}readyz", check.http_url)),
        (status, text) => Err(Wrong::NotReady(status, text.trim().to_owned())),
    }
}

async fn version(check: &Check) -> Result<String, Wrong> {
    let (status, text) = get(&plain(&check.http_url)?, &check.http_url, "/metrics").await?;
    match version_in(&text) {
        Some(PROGRAM) => Ok(PROGRAM.into()),
        Some(other) => Err(Wrong::OtherVersion(other.to_owned())),
        None => Err(Wrong::NoMetrics(status)),
    }
}

/// The version that metrics tell.
fn version_in(metrics: &str) -> Option<&str> {
    let labels = metrics.lines().find_map(|line| line.strip_prefix("collect_build_info{"))?;
    labels.split_once("version=\"")?.1.split('"').next()
}

async fn endpoint(check: &Check) -> Result<String, Wrong> {
    let file = check.endpoint_ca.display().to_string();
    let pem = tokio::fs::read(&check.endpoint_ca).await.map_err(|error| Wrong::NoAuthority(file.clone(), error))?;
    let authorities: Vec<Vec<u8>> =
        CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).map(|certificate| certificate.to_vec()).collect();
    if authorities.is_empty() {
        return Err(Wrong::EmptyAuthority(file));
    }
    let mut config = config(&check.endpoint_url);
    config.root_cert = Some(authorities);
    let client = client(config, &check.endpoint_url)?;
    match send(&client, &check.endpoint_url, Method::POST, PROGRESS_PATH).await? {
        (StatusCode::UNAUTHORIZED, _) => Ok(format!("{}, with a certificate of {file}", check.endpoint_url)),
        (status, _) => Err(Wrong::LetsIn(status)),
    }
}

/// What the API server tells every account that it knows.
async fn custom_resources() -> Result<String, Wrong> {
    let mut config = Config::infer().await.map_err(|error| Wrong::NoAccount(Box::new(error)))?;
    config.default_retry = false;
    let server = config.cluster_url.clone();
    let client = client(config, &server)?;
    let published = format!("/openapi/v3/apis/{GROUP}/{VERSION}");
    let schemas = match get(&client, &server, &published).await? {
        (StatusCode::OK, text) => serde_json::from_str::<Value>(&text).unwrap_or_default(),
        // There is no document for a group that does not exist.
        (StatusCode::NOT_FOUND, _) => Value::Null,
        (StatusCode::FORBIDDEN, _) => {
            return Ok("not checked: this account may not ask the API server what it serves".into());
        }
        (status, _) => return Err(Wrong::ApiServer(published, status)),
    };
    let (mut absent, mut missing) = (Vec::new(), BTreeSet::new());
    let ours = crd::all().unwrap_or_default();
    for (plural, definition) in &ours {
        let kind = definition.pointer("/spec/names/kind").and_then(Value::as_str).unwrap_or_default();
        let wanted = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap_or(&Value::Null);
        match served(&schemas, kind) {
            Some(found) => lacking(wanted, found, plural, &mut missing),
            None => absent.push(*plural),
        }
    }
    if !absent.is_empty() {
        return Err(Wrong::NoKinds(absent.join(", ")));
    }
    if !missing.is_empty() {
        return Err(Wrong::OldKinds(missing.into_iter().take(5).collect::<Vec<_>>().join(", ")));
    }
    Ok(format!("{} kinds of {GROUP}/{VERSION}, with every field of version {PROGRAM}", ours.len()))
}

/// The published schema of a kind.
fn served<'a>(document: &'a Value, kind: &str) -> Option<&'a Value> {
    let schemas = document.pointer("/components/schemas")?.as_object()?;
    schemas.values().find(|schema| {
        let names = schema.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
        names.into_iter().flatten().any(|name| {
            let is = |key: &str, value: &str| name.get(key).and_then(Value::as_str) == Some(value);
            is("group", GROUP) && is("version", VERSION) && is("kind", kind)
        })
    })
}

/// Paths of the fields that a schema has and another one lacks.
fn lacking(wanted: &Value, found: &Value, path: &str, missing: &mut BTreeSet<String>) {
    let properties = wanted.get("properties").and_then(Value::as_object);
    for (name, field) in properties.into_iter().flatten() {
        match found.get("properties").and_then(|properties| properties.get(name)) {
            Some(there) => lacking(field, there, &format!("{path}.{name}"), missing),
            None => {
                missing.insert(format!("{path}.{name}"));
            }
        }
    }
    for below in ["items", "additionalProperties"] {
        if let (Some(wanted), Some(found)) = (wanted.get(below), found.get(below)) {
            lacking(wanted, found, path, missing);
        }
    }
}

/// A client's configuration without any credentials, for servers that are no API servers.
fn config(url: &Uri) -> Config {
    let mut config = Config::new(url.clone());
    config.default_retry = false;
    // Trusts nobody but whom the caller names. The image holds no authorities, and a client that looked for some would not start.
    config.root_cert = Some(Vec::new());
    config
}

fn plain(url: &Uri) -> Result<Client, Wrong> {
    client(config(url), url)
}

fn client(config: Config, url: &Uri) -> Result<Client, Wrong> {
    Client::try_from(config).map_err(|error| Wrong::Unreachable(url.to_string(), error))
}

async fn get(client: &Client, server: &Uri, path: &str) -> Result<(StatusCode, String), Wrong> {
    send(client, server, Method::GET, path).await
}

/// Status and body of the answer to a request without a body.
async fn send(client: &Client, server: &Uri, method: Method, path: &str) -> Result<(StatusCode, String), Wrong> {
    let unreachable = |error: kube::Error| Wrong::Unreachable(server.to_string(), error);
    let request = Request::builder().method(method).uri(path).body(Body::empty());
    let request = request.map_err(|error| unreachable(kube::Error::HttpError(error)))?;
    let exchange = async {
        let answer = client.send(request).await.map_err(unreachable)?;
        let status = answer.status();
        let body = answer.into_body().collect_bytes().await.map_err(unreachable)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(Wrong::Late(server.to_string())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_version_is_read_from_the_metrics() {
        let metrics = "# TYPE collect_build info\ncollect_build_info{version=\"1.2.3\"} 1\ncollect_leader 1\n";
        assert_eq!(version_in(metrics), Some("1.2.3"));
        assert_eq!(version_in("collect_leader 1\n"), None);
    }

    #[test]
    fn a_definition_without_a_field_of_ours_is_old_wherever_it_lies() {
        let wanted = json!({"properties": {"spec": {"properties": {
            "a": {}, "list": {"items": {"properties": {"b": {}}}}, "map": {"additionalProperties": {"properties": {"c": {}}}}}}}});
        let mut missing = BTreeSet::new();
        lacking(&wanted, &wanted, "kind", &mut missing);
        assert!(missing.is_empty(), "{missing:?}");
        let found = json!({"properties": {"spec": {"properties": {
            "further": {}, "list": {"items": {"properties": {}}}, "map": {"additionalProperties": {"properties": {}}}}}}});
        lacking(&wanted, &found, "kind", &mut missing);
        let paths: Vec<_> = missing.iter().map(String::as_str).collect();
        assert_eq!(paths, ["kind.spec.a", "kind.spec.list.b", "kind.spec.map.c"]);
    }

    #[test]
    fn a_kind_is_found_by_its_group_and_version() {
        let schema = |version: &str| json!({"x-kubernetes-group-version-kind": [{"group": GROUP, "version": version, "kind": "CollectTask"}]});
        let document = json!({"components": {"schemas": {"x": schema("v0")}}});
        assert!(served(&document, "CollectTask").is_none());
        let document = json!({"components": {"schemas": {"x": schema("v0"), "y": schema(VERSION)}}});
        assert!(served(&document, "CollectTask").is_some() && served(&document, "CollectShard").is_none());
    }
}

//! `version`: what this program, the operator and the API server are.

use collect_api::GROUP;
use k8s_openapi::api::apps::v1::Deployment;
use kube::{ResourceExt, api::ListParams};
use serde::Serialize;

use crate::{
    error::{About, Error},
    exit::Exit,
    output::{self, Encoding, Table},
    session::Session,
};

/// Label that the chart puts on the operator's Deployment.
const OPERATOR_SELECTOR: &str = "app.kubernetes.io/name=collect-operator";
/// Label with the version of the operator.
const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// Arguments of `version`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this program; no cluster is asked.
    #[arg(long)]
    client: bool,
    /// Form of the output: for people if not given.
    #[arg(short, long, value_enum, value_name = "FORM")]
    output: Option<Encoding>,
}

/// What is known of the versions.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubernetes: Option<String>,
    /// Versions of collect.dev that the API server serves; empty if the CRDs are not installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operators: Option<Vec<Operator>>,
    /// Why something is not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Operator {
    namespace: String,
    name: String,
    version: String,
    image: String,
    ready: String,
}

/// Prints the versions.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let mut versions = Versions { client: env!("CARGO_PKG_VERSION").into(), ..Versions::default() };
    if !args.client {
        ask(&mut versions, session).await?;
    }
    let text = match args.output {
        Some(encoding) => output::encode(encoding, &versions)?,
        None => render(&versions, session.style()),
    };
    output::print(&text)?;
    Ok(Exit::Done)
}

async fn ask(versions: &mut Versions, session: &Session) -> Result<(), Error> {
    let client = session.client().await?;
    let server = session.ask("asking for its version", About::default(), client.apiserver_version()).await?;
    versions.kubernetes = Some(server.git_version);
    let groups = session.ask("asking for its API groups", About::default(), client.list_api_groups()).await?;
    let served = groups.groups.into_iter().find(|group| group.name == GROUP);
    versions.api = Some(served.into_iter().flat_map(|group| group.versions).map(|version| version.version).collect());
    match session.list::<Deployment>(true, ListParams::default().labels(OPERATOR_SELECTOR)).await {
        Ok(deployments) => versions.operators = Some(deployments.iter().map(operator).collect()),
        Err(Error::Forbidden(why)) => versions.unknown.push(format!("operator: {why}")),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn operator(deployment: &Deployment) -> Operator {
    let pod = deployment.spec.template.spec.as_ref();
    let image = pod.and_then(|pod| pod.containers.first()?.image.clone());
    let status = deployment.status.as_ref();
    let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
    let wanted = deployment.spec.replicas.unwrap_or(1);
    Operator {
        namespace: deployment.namespace().unwrap_or_default(),
        name: deployment.name_any(),
        version: deployment.labels().get(VERSION_LABEL).cloned().unwrap_or_else(|| "unknown".into()),
        image: image.unwrap_or_default(),
        ready: format!("{ready}/{wanted}"),
    }
}

fn render(versions: &Versions, style: output::Style) -> String {
    let mut table = Table::default();
    table.row(["kubectl-collect".to_owned(), versions.client.clone()]);
    if let Some(kubernetes) = &versions.kubernetes {
        table.row(["kubernetes".to_owned(), kubernetes.clone()]);
    }
    if let Some(api) = &versions.api {
        let served = if api.is_empty() { "not installed".to_owned() } else { api.join(", ") };
        table.row([format!("{GROUP} API"), served]);
    }
    for operator in versions.operators.iter().flatten() {
        let Operator { namespace, name, version, image, ready } = operator;
        table.row(["operator".to_owned(), format!("{version}  {namespace}/{name}  {ready} ready  {image}")]);
    }
    if versions.operators.as_ref().is_some_and(Vec::is_empty) {
        table.row(["operator", "no Deployment of it in this cluster"]);
    }
    for unknown in &versions.unknown {
        table.row(["unknown".to_owned(), unknown.clone()]);
    }
    table.render(style)
}

//! `support-bundle`: what somebody who helps needs to see, without what nobody may see.
//!
//! Secrets are never read. What could not be read is listed with the reason.

mod archive;
pub mod redact;

use std::{collections::BTreeSet, fmt::Debug, io::Write as _, path::PathBuf};

use collect_api::{CollectShard, CollectTask, ValidationReport, labels, shard::ShardPhase};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Pod, ResourceQuota, Service},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, LogParams},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use self::archive::{Content, Gathered, pack, tail, write};
use crate::{
    args::{Everywhere, TaskName},
    error::{About, Error},
    exit::Exit,
    output,
    session::Session,
};

/// Label that the chart puts on what belongs to the operator.
const OPERATOR_SELECTOR: &str = "app.kubernetes.io/name=collect-operator";
/// Shards that are taken along, those that did not succeed first.
const SHARDS: usize = 500;
/// Worker pods whose log is taken along, those that did not succeed first.
const LOGS: usize = 50;
/// Bytes of one log, from its end.
const LOG_BYTES: usize = 1 << 20;

/// Gather what somebody who helps needs to see, redacted, as one file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Task, with everything above and below it. Default: all tasks of the namespace.
    #[arg(value_name = "NAME")]
    name: Option<TaskName>,
    /// Namespaces.
    #[command(flatten)]
    everywhere: Everywhere,
    /// File to write; - is standard output. Default: a name with the time, here.
    #[arg(short = 'o', long = "output-file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Lines of each log, from its end.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    log_lines: i64,
}

/// Runs the command.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let now = Timestamp::now();
    let mut bundle = Bundle { session, everywhere: args.everywhere.all_namespaces, gathered: Gathered::default() };
    let root = match &args.name {
        None => None,
        Some(_) if bundle.everywhere => {
            return Err(Error::Usage("a name is one of a namespace: give it without -A".into()));
        }
        Some(name) => {
            let task: CollectTask = session.get(name.as_ref()).await?;
            Some(task.spec.part_of.as_ref().map_or_else(|| task.name_any(), |part_of| part_of.root.clone()))
        }
    };
    bundle.trees(root.as_deref(), args.log_lines).await;
    bundle.operators(args.log_lines).await;
    bundle.versions().await;
    bundle.gathered.leave_out("Secrets", "they are never read");
    bundle
        .gathered
        .leave_out("ConfigMaps of plans", "status.plan tells their digest; `kubectl collect explain-plan` shows them");
    let about = match &root {
        Some(root) => format!("tree of CollectTask {root}"),
        None if bundle.everywhere => "all namespaces".to_owned(),
        None => "all tasks of a namespace".to_owned(),
    };
    let left_out = bundle.gathered.left_out.len();
    let files = write(bundle.gathered, &about, now)?;
    let stamp = now.strftime("%Y%m%d-%H%M%S");
    let folder = format!("collect-support-{}-{stamp}", root.as_deref().unwrap_or("all"));
    let file = args.file.clone().unwrap_or_else(|| format!("{folder}.tar.gz").into());
    let shown = file.display().to_string();
    let packed = pack(&folder, &files, now).map_err(|error| Error::File(shown.clone(), error))?;
    if file.as_os_str() == "-" {
        std::io::stdout().lock().write_all(&packed).map_err(Error::Output)?;
        return Ok(Exit::Done);
    }
    std::fs::write(&file, &packed).map_err(|error| Error::File(shown.clone(), error))?;
    output::print(&format!("{shown}\n"))?;
    output::remark(&format!(
        "{} files, {} KiB; {left_out} things are left out: manifest.yaml says what and why. Look into it before you hand it on",
        files.len(),
        packed.len() / 1024
    ));
    Ok(Exit::Done)
}

struct Bundle<'a> {
    session: &'a Session,
    everywhere: bool,
    gathered: Gathered,
}

impl Bundle<'_> {
    /// Lists objects; what may not be listed is left out with the reason.
    async fn list<K>(&mut self, everywhere: bool, params: ListParams) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        match self.session.list::<K>(everywhere, params).await {
            Ok(all) => all,
            Err(error) => {
                self.gathered.leave_out(K::plural(&()).into_owned(), error.to_string());
                Vec::new()
            }
        }
    }

    fn put<K>(&mut self, path: &str, objects: &[K])
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let values: Vec<Value> = objects.iter().filter_map(typed).collect();
        if !values.is_empty() {
            self.gathered.files.insert(path.to_owned(), Content::Objects(values));
        }
    }

    async fn trees(&mut self, root: Option<&str>, log_lines: i64) {
        let everywhere = self.everywhere;
        let of_tree = match root {
            Some(root) => ListParams::default().labels(&format!("{}={root}", labels::ROOT)),
            None => ListParams::default(),
        };
        let ours = match root {
            Some(_) => of_tree.clone(),
            None => ListParams::default().labels(labels::MANAGED_SELECTOR),
        };
        let mut tasks: Vec<CollectTask> = self.list(everywhere, of_tree.clone()).await;
        if let Some(root) = root {
            tasks.retain(|task| task.name_any() != root);
            match self.session.get::<CollectTask>(root).await {
                Ok(task) => tasks.insert(0, task),
                Err(error) => self.gathered.leave_out(format!("CollectTask {root}"), error.to_string()),
            }
        }
        let mut shards: Vec<CollectShard> = self.list(everywhere, of_tree.clone()).await;
        shards.sort_by_key(|shard| (rank(shard), shard.name_any()));
        if shards.len() > SHARDS {
            self.gathered.leave_out(
                format!("{} CollectShards", shards.len() - SHARDS),
                format!("only {SHARDS} are taken along, those that did not succeed first"),
            );
            shards.truncate(SHARDS);
        }
        let reports: Vec<ValidationReport> = self.list(everywhere, of_tree).await;
        let jobs: Vec<Job> = self.list(everywhere, ours.clone()).await;
        let pods: Vec<Pod> = self.list(everywhere, ours).await;
        let mut names: BTreeSet<String> = tasks.iter().map(ResourceExt::name_any).collect();
        names.extend(shards.iter().map(ResourceExt::name_any));
        names.extend(jobs.iter().map(ResourceExt::name_any));
        names.extend(pods.iter().map(ResourceExt::name_any));
        let mut events: Vec<Event> = self.list(everywhere, ListParams::default()).await;
        events.retain(|event| event.involved_object.name.as_ref().is_some_and(|name| names.contains(name)));
        let quotas: Vec<ResourceQuota> = self.list(everywhere, ListParams::default()).await;
        self.put("objects/collecttasks.yaml", &tasks);
        self.put("objects/collectshards.yaml", &shards);
        self.put("objects/validationreports.yaml", &reports);
        self.put("objects/jobs.yaml", &jobs);
        self.put("objects/pods.yaml", &pods);
        self.put("objects/events.yaml", &events);
        self.put("objects/resourcequotas.yaml", &quotas);
        self.logs("logs", pods, log_lines).await;
    }

    async fn operators(&mut self, log_lines: i64) {
        let labelled = || ListParams::default().labels(OPERATOR_SELECTOR);
        let deployments: Vec<Deployment> = self.list(true, labelled()).await;
        let pods: Vec<Pod> = self.list(true, labelled()).await;
        let maps: Vec<ConfigMap> = self.list(true, labelled()).await;
        let services: Vec<Service> = self.list(true, labelled()).await;
        let slices: Vec<EndpointSlice> = self.list(true, labelled()).await;
        for deployment in &deployments {
            self.lease(deployment).await;
            self.metrics(deployment).await;
        }
        if deployments.is_empty() {
            self.gathered
                .leave_out("the operator", format!("no Deployment with the label {OPERATOR_SELECTOR} could be found"));
        }
        self.put("operator/deployments.yaml", &deployments);
        self.put("operator/pods.yaml", &pods);
        self.put("operator/configmaps.yaml", &maps);
        self.put("operator/services.yaml", &services);
        self.put("operator/endpointslices.yaml", &slices);
        self.logs("operator/logs", pods, log_lines).await;
    }

    async fn lease(&mut self, deployment: &Deployment) {
        let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
        let Ok(client) = self.session.client().await else { return };
        let about = About { kind: "Lease", plural: "leases", name: &name, namespace: &namespace };
        let api = Api::<Lease>::namespaced(client, &namespace);
        match self.session.ask("reading the operator's lease", about, api.get_opt(&name)).await {
            Ok(lease) => {
                self.put(&format!("operator/lease-{namespace}-{name}.yaml"), &lease.into_iter().collect::<Vec<_>>())
            }
            Err(error) => self.gathered.leave_out(format!("lease {namespace}/{name}"), error.to_string()),
        }
    }

    async fn metrics(&mut self, deployment: &Deployment) {
        let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
        let what = format!("metrics of {namespace}/{name}");
        let uri = format!("/api/v1/namespaces/{namespace}/services/{name}:metrics/proxy/metrics");
        let (Ok(client), Ok(request)) = (self.session.client().await, http::Request::get(uri).body(Vec::new())) else {
            return;
        };
        match self.session.ask(&format!("reading {what}"), About::default(), client.request_text(request)).await {
            Ok(text) => {
                self.gathered.files.insert(format!("operator/metrics-{namespace}-{name}.txt"), Content::Text(text));
            }
            Err(error) => self.gathered.leave_out(what, error.to_string()),
        }
    }

    /// Logs of pods, those that did not succeed and the newest first.
    async fn logs(&mut self, folder: &str, mut pods: Vec<Pod>, lines: i64) {
        let is_done = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Succeeded");
        pods.sort_by_key(|pod| {
            (is_done(pod), std::cmp::Reverse(pod.metadata.creation_timestamp.as_ref().map(|time| time.0)))
        });
        if pods.len() > LOGS {
            self.gathered.leave_out(
                format!("logs of {} pods", pods.len() - LOGS),
                format!("only those of {LOGS} pods are taken along"),
            );
            pods.truncate(LOGS);
        }
        for pod in pods {
            let restarts = pod
                .status
                .iter()
                .flat_map(|status| status.container_statuses.iter().flatten())
                .map(|status| status.restart_count)
                .max();
            self.log(folder, &pod, lines, false).await;
            if restarts.unwrap_or(0) > 0 {
                self.log(folder, &pod, lines, true).await;
            }
        }
    }

    async fn log(&mut self, folder: &str, pod: &Pod, lines: i64, previous: bool) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let Ok(client) = self.session.client().await else { return };
        let api = Api::<Pod>::namespaced(client, &namespace);
        let params = LogParams { tail_lines: Some(lines), timestamps: true, previous, ..LogParams::default() };
        let about = About { kind: "Pod", plural: "pods", name: &name, namespace: &namespace };
        let end = if previous { ".previous" } else { "" };
        match self.session.ask("reading logs", about, api.logs(&name, &params)).await {
            Ok(text) => {
                let path = format!("{folder}/{namespace}/{name}{end}.log");
                self.gathered.files.insert(path, Content::Text(tail(&text, LOG_BYTES)));
            }
            Err(error) => self.gathered.leave_out(format!("log of pod {namespace}/{name}{end}"), error.to_string()),
        }
    }

    async fn versions(&mut self) {
        let Ok(client) = self.session.client().await else { return };
        let server =
            match self.session.ask("asking for its version", About::default(), client.apiserver_version()).await {
                Ok(version) => serde_json::to_value(version).unwrap_or_default(),
                Err(error) => {
                    self.gathered.leave_out("the API server's version", error.to_string());
                    Value::Null
                }
            };
        let api = Api::<CustomResourceDefinition>::all(client);
        let mut definitions = Vec::new();
        for (plural, own) in collect_api::crd::all().unwrap_or_default() {
            let name = format!("{plural}.{}", collect_api::GROUP);
            let about = About {
                kind: "CustomResourceDefinition",
                plural: "customresourcedefinitions",
                name: &name,
                namespace: "",
            };
            match self.session.ask("reading the definitions", about, api.get(&name)).await {
                Ok(found) => {
                    let own = serde_json::from_value::<CustomResourceDefinition>(own).ok();
                    let same = own.is_some_and(|own| own.spec.versions == found.spec.versions);
                    let stored = found.status.and_then(|status| status.stored_versions).unwrap_or_default();
                    definitions.push(json!({"name": name, "storedVersions": stored, "sameAsThisProgram": same}));
                }
                Err(error) => self.gathered.leave_out(format!("definition {name}"), error.to_string()),
            }
        }
        let versions =
            json!({"kubectl-collect": env!("CARGO_PKG_VERSION"), "kubernetes": server, "definitions": definitions});
        self.gathered.files.insert("versions.yaml".into(), Content::Objects(vec![versions]));
    }
}

/// What did not succeed comes first.
fn rank(shard: &CollectShard) -> u8 {
    match shard.status.as_ref().and_then(|status| status.phase.as_ref()) {
        Some(ShardPhase::Failed) => 0,
        Some(ShardPhase::Succeeded) => 2,
        _ => 1,
    }
}

/// An object with its kind and API version, which items of lists lack.
fn typed<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Option<Value> {
    let mut value = serde_json::to_value(object).ok()?;
    let members = value.as_object_mut()?;
    members.insert("apiVersion".into(), K::api_version(&()).as_ref().into());
    members.insert("kind".into(), K::kind(&()).as_ref().into());
    Some(value)
}

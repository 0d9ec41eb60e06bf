//! Everything readable that says why a task does or does not move. What may not be read is noted, never guessed.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use collect_api::{CollectShard, CollectTask, crd, labels};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        coordination::v1::Lease,
        core::v1::{Event, Pod},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Resource, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    error::{About, Error},
    session::Session,
};

/// Label that the chart puts on what belongs to the operator.
pub const OPERATOR_SELECTOR: &str = "app.kubernetes.io/name=collect-operator";
/// Events that are looked at, at most.
const EVENTS: u32 = 500;

/// What was read.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// When it was read, by this machine's clock.
    pub now: Timestamp,
    /// The tasks from the one that is asked about up to its root.
    pub line: Vec<CollectTask>,
    /// Whether a link of that line is missing.
    pub is_orphan: bool,
    /// Shards of it and below.
    pub shards: Vec<CollectShard>,
    /// Jobs of it and below; for a root, those of planner, commit and hooks too.
    pub jobs: Vec<Job>,
    /// Their pods.
    pub pods: Vec<Arc<Pod>>,
    /// Warnings about any of them, the newest last.
    pub warnings: Vec<Event>,
    /// Tasks that the root depends on; absent where there is none of that name.
    pub dependencies: BTreeMap<String, Option<CollectTask>>,
    /// Operators of the cluster; absent where they may not be looked at.
    pub operators: Option<Vec<Operator>>,
    /// Definitions in the cluster that differ from those of this program; absent where they may not be read.
    pub other_definitions: Option<Vec<String>>,
    /// What could not be read, and why.
    pub unreadable: Vec<String>,
}

/// An operator of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Operator {
    /// Its Deployment.
    pub deployment: Deployment,
    /// Its lease, if it has one.
    pub lease: Option<Lease>,
    /// Addresses behind its Service that are ready; absent where they may not be read.
    pub endpoints: Option<usize>,
}

impl Evidence {
    /// The task that is asked about.
    pub fn task(&self) -> Option<&CollectTask> {
        self.line.first()
    }

    /// Its root.
    pub fn root(&self) -> Option<&CollectTask> {
        self.line.last()
    }

    /// Pods of a Job.
    pub fn pods_of(&self, job: &Job) -> Vec<Arc<Pod>> {
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        self.pods.iter().filter(|pod| owner_uids(pod.as_ref()).any(|owner| owner == uid)).cloned().collect()
    }

    /// The newest warning about an object.
    pub fn warning(&self, kind: &str, name: &str) -> Option<&Event> {
        self.warnings.iter().rev().find(|event| {
            event.involved_object.kind.as_deref() == Some(kind) && event.involved_object.name.as_deref() == Some(name)
        })
    }
}

/// Uids of an object's owners.
pub fn owner_uids<K: Resource>(object: &K) -> impl Iterator<Item = &str> {
    object.meta().owner_references.iter().flatten().map(|owner| owner.uid.as_str())
}

/// When an event was last seen.
pub fn seen_at(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    series
        .or(event.last_timestamp.as_ref().map(|time| time.0))
        .or(event.event_time.as_ref().map(|time| time.0))
        .or(event.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// Reads it all.
///
/// # Errors
/// When the task itself can't be read.
pub async fn gather(name: &str, session: &Session) -> Result<Evidence, Error> {
    let mut reader = Reader { session, unreadable: Vec::new() };
    let task: CollectTask = session.get(name).await?;
    let (line, is_orphan) = reader.line(task).await;
    let root = line.last().map(ResourceExt::name_any).unwrap_or_default();
    let uid = line.first().and_then(ResourceExt::uid).unwrap_or_default();
    let of_tree = ListParams::default().labels(&format!("{}={root}", labels::ROOT));
    let all_tasks = reader.list::<CollectTask>(false, &of_tree, "CollectTasks").await.unwrap_or_default();
    let mut all_shards = reader.list::<CollectShard>(false, &of_tree, "CollectShards").await.unwrap_or_default();
    all_shards.iter_mut().for_each(CollectShard::enter_first_attempt);
    let all_jobs = reader.list::<Job>(false, &of_tree, "Jobs").await.unwrap_or_default();
    let all_pods = reader.list::<Pod>(false, &of_tree, "pods").await.unwrap_or_default();
    let below = below(&uid, &all_tasks, &all_shards);
    let is_of_tree = |job: &Job| owner_uids(job).any(|owner| owner == uid || below.contains(owner));
    let jobs: Vec<Job> = all_jobs.into_iter().filter(is_of_tree).collect();
    let is_of_jobs =
        |pod: &Pod| owner_uids(pod).any(|owner| jobs.iter().any(|job| job.metadata.uid.as_deref() == Some(owner)));
    let pods: Vec<Arc<Pod>> = all_pods.into_iter().filter(is_of_jobs).map(Arc::new).collect();
    let is_below = |uid: Option<String>| uid.is_some_and(|uid| below.contains(uid.as_str()));
    let tasks: Vec<CollectTask> = all_tasks.iter().filter(|task| is_below(task.uid())).cloned().collect();
    let shards: Vec<CollectShard> = all_shards.iter().filter(|shard| is_below(shard.uid())).cloned().collect();
    let mut names: std::collections::BTreeSet<String> = line.iter().map(ResourceExt::name_any).collect();
    names.extend(tasks.iter().map(ResourceExt::name_any));
    names.extend(shards.iter().map(ResourceExt::name_any));
    names.extend(jobs.iter().map(ResourceExt::name_any));
    names.extend(pods.iter().map(|pod| pod.name_any()));
    let warnings = reader.warnings(&names).await;
    let mut dependencies = BTreeMap::new();
    for dependency in line.last().into_iter().flat_map(|root| &root.spec.depends_on) {
        match session.get::<CollectTask>(&dependency.name).await {
            Ok(found) => drop(dependencies.insert(dependency.name.clone(), Some(found))),
            Err(Error::NotFound { .. }) => drop(dependencies.insert(dependency.name.clone(), None)),
            Err(error) => reader.note(&format!("CollectTask {}", dependency.name), &error),
        }
    }
    let operators = reader.operators().await;
    let other_definitions = reader.other_definitions().await;
    Ok(Evidence {
        now: Timestamp::now(),
        line,
        is_orphan,
        shards,
        jobs,
        pods,
        warnings,
        dependencies,
        operators,
        other_definitions,
        unreadable: reader.unreadable,
    })
}

/// Uids of everything below a task.
fn below(uid: &str, tasks: &[CollectTask], shards: &[CollectShard]) -> std::collections::BTreeSet<String> {
    let mut found = std::collections::BTreeSet::new();
    let mut open = vec![uid.to_owned()];
    while let Some(parent) = open.pop() {
        let children =
            tasks.iter().filter(|task| owner_uids(*task).any(|owner| owner == parent)).filter_map(ResourceExt::uid);
        for child in children {
            if found.insert(child.clone()) {
                open.push(child);
            }
        }
        let own = shards.iter().filter(|shard| owner_uids(*shard).any(|owner| owner == parent));
        found.extend(own.filter_map(ResourceExt::uid));
    }
    found
}

struct Reader<'a> {
    session: &'a Session,
    unreadable: Vec<String>,
}

impl Reader<'_> {
    fn note(&mut self, what: &str, error: &Error) {
        self.unreadable.push(format!("{what}: {error}"));
    }

    async fn list<K>(&mut self, everywhere: bool, params: &ListParams, what: &str) -> Option<Vec<K>>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        match self.session.list::<K>(everywhere, params.clone()).await {
            Ok(all) => Some(all),
            Err(error) => {
                self.note(what, &error);
                None
            }
        }
    }

    /// The task and its ancestors.
    async fn line(&mut self, task: CollectTask) -> (Vec<CollectTask>, bool) {
        let mut line = vec![task];
        while let Some(child) = line.last().filter(|task| task.spec.part_of.is_some()).cloned() {
            let owner =
                child.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true)).cloned();
            let Some(owner) = owner.filter(|_| line.len() < 10) else { return (line, true) };
            match self.session.get::<CollectTask>(&owner.name).await {
                Ok(parent) if parent.uid().as_deref() == Some(owner.uid.as_str()) => line.push(parent),
                Ok(_) | Err(Error::NotFound { .. }) => return (line, true),
                Err(error) => {
                    self.note(&format!("CollectTask {}", owner.name), &error);
                    return (line, false);
                }
            }
        }
        (line, false)
    }

    async fn warnings(&mut self, names: &std::collections::BTreeSet<String>) -> Vec<Event> {
        let params = ListParams::default().fields("type=Warning").limit(EVENTS);
        let Some(mut events) = self.list::<Event>(false, &params, "events").await else { return Vec::new() };
        events.retain(|event| event.involved_object.name.as_ref().is_some_and(|name| names.contains(name)));
        events.sort_by_key(seen_at);
        events
    }

    async fn operators(&mut self) -> Option<Vec<Operator>> {
        let labelled = ListParams::default().labels(OPERATOR_SELECTOR);
        let deployments = self.list::<Deployment>(true, &labelled, "the operator's Deployment").await?;
        let mut operators = Vec::new();
        for deployment in deployments {
            let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
            let client = self.session.client().await.ok()?;
            let about = About { kind: "Lease", plural: "leases", name: &name, namespace: &namespace };
            let leases = Api::<Lease>::namespaced(client.clone(), &namespace);
            let lease = match self.session.ask("reading the operator's lease", about, leases.get_opt(&name)).await {
                Ok(lease) => lease,
                Err(error) => {
                    self.note("the operator's lease", &error);
                    None
                }
            };
            let about = About { kind: "EndpointSlice", plural: "endpointslices", name: "", namespace: &namespace };
            let slices = Api::<EndpointSlice>::namespaced(client, &namespace);
            let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
            let endpoints =
                match self.session.ask("reading the operator's endpoints", about, slices.list(&of_service)).await {
                    Ok(slices) => Some(slices.items.iter().map(ready_addresses).sum()),
                    Err(error) => {
                        self.note("the operator's endpoints", &error);
                        None
                    }
                };
            operators.push(Operator { deployment, lease, endpoints });
        }
        Some(operators)
    }

    async fn other_definitions(&mut self) -> Option<Vec<String>> {
        let client = self.session.client().await.ok()?;
        let api = Api::<CustomResourceDefinition>::all(client);
        let own = crd::all().ok()?;
        let mut other = Vec::new();
        for (plural, definition) in own {
            let name = format!("{plural}.{}", collect_api::GROUP);
            let about = About {
                kind: "CustomResourceDefinition",
                plural: "customresourcedefinitions",
                name: &name,
                namespace: "",
            };
            match self.session.ask("reading the definitions", about, api.get(&name)).await {
                Ok(found) => {
                    let found = serde_json::to_value(&found).unwrap_or_default();
                    if schema_of(&found) != schema_of(&normal(&definition)) {
                        other.push(name);
                    }
                }
                Err(error) => {
                    self.note("the definitions", &error);
                    return None;
                }
            }
        }
        Some(other)
    }
}

/// The definition as the client's types write it, so that two can be compared.
fn normal(definition: &Value) -> Value {
    serde_json::from_value::<CustomResourceDefinition>(definition.clone())
        .and_then(serde_json::to_value)
        .unwrap_or_default()
}

fn schema_of(definition: &Value) -> Option<&Value> {
    definition.pointer("/spec/versions/0/schema")
}

fn ready_addresses(slice: &EndpointSlice) -> usize {
    slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true))
        .map(|endpoint| endpoint.addresses.len())
        .sum()
}

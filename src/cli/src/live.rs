//! The objects of a tree, read once or kept current by watching. Always by label, never one request for each object.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use collect_api::{CollectShard, CollectTask, ValidationReport, labels};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource, ResourceExt,
    api::ListParams,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;

use crate::{
    error::{About, Error, chain, of_api},
    session::Session,
};

/// Which objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A root task and all below it.
    Tree {
        /// Name of the root.
        root: String,
    },
    /// All tasks of the session's namespace.
    Namespace,
    /// All tasks of all namespaces.
    Everywhere,
}

impl Scope {
    /// The tree that a task belongs to.
    pub fn of(task: &CollectTask) -> Self {
        let root = task.spec.part_of.as_ref().map_or_else(|| task.name_any(), |part| part.root.clone());
        Self::Tree { root }
    }

    /// Label selector of what lies below the root.
    fn selector(&self) -> Option<String> {
        match self {
            Self::Tree { root } => Some(format!("{}={root}", labels::ROOT)),
            Self::Namespace | Self::Everywhere => None,
        }
    }
}

/// Namespace and name.
pub type Key = (String, String);

/// Something that changed: before and after.
#[derive(Clone, Debug)]
pub enum Change {
    /// A task.
    Task(Option<Arc<CollectTask>>, Option<Arc<CollectTask>>),
    /// A shard.
    Shard(Option<Arc<CollectShard>>, Option<Arc<CollectShard>>),
    /// A report.
    Report(Option<Arc<ValidationReport>>, Option<Arc<ValidationReport>>),
}

/// What a watch says.
pub enum Said {
    /// Of the root task, which has no label.
    Root(watcher::Event<CollectTask>),
    /// Of a task.
    Task(watcher::Event<CollectTask>),
    /// Of a shard.
    Shard(watcher::Event<CollectShard>),
    /// Of a report.
    Report(watcher::Event<ValidationReport>),
}

/// Objects of one kind, as a watch tells of them.
#[derive(Debug)]
struct Cache<K> {
    objects: BTreeMap<Key, Arc<K>>,
    relisted: BTreeMap<Key, Arc<K>>,
    ready: bool,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), relisted: BTreeMap::new(), ready: false }
    }
}

type Changed<K> = (Option<Arc<K>>, Option<Arc<K>>);

impl<K: Resource> Cache<K> {
    fn of(all: Vec<K>) -> Self {
        let objects = all.into_iter().map(|object| (key(&object), Arc::new(object))).collect();
        Self { objects, relisted: BTreeMap::new(), ready: true }
    }

    /// Takes an event in; gives what it changed. What was there at the beginning is no change.
    fn take(&mut self, event: watcher::Event<K>) -> Vec<Changed<K>> {
        match event {
            watcher::Event::Init => {
                self.relisted.clear();
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                self.relisted.insert(key(&object), Arc::new(object));
                Vec::new()
            }
            watcher::Event::InitDone => {
                let now = std::mem::take(&mut self.relisted);
                let before = std::mem::replace(&mut self.objects, now);
                if !std::mem::replace(&mut self.ready, true) {
                    return Vec::new();
                }
                let gone = before.iter().filter(|(key, _)| !self.objects.contains_key(*key));
                let gone = gone.map(|(_, object)| (Some(object.clone()), None));
                let there = self.objects.iter().map(|(key, object)| (before.get(key).cloned(), Some(object.clone())));
                let differs = |(old, new): &Changed<K>| version(old) != version(new);
                gone.chain(there).filter(differs).collect()
            }
            watcher::Event::Apply(object) => {
                let object = Arc::new(object);
                vec![(self.objects.insert(key(&*object), object.clone()), Some(object))]
            }
            watcher::Event::Delete(object) => vec![(self.objects.remove(&key(&object)), None)],
        }
    }

    fn all(&self) -> Vec<Arc<K>> {
        self.objects.values().cloned().collect()
    }
}

fn version<K: Resource>(object: &Option<Arc<K>>) -> Option<&str> {
    object.as_ref().and_then(|object| object.meta().resource_version.as_deref())
}

fn key<K: Resource>(object: &K) -> Key {
    (object.meta().namespace.clone().unwrap_or_default(), object.meta().name.clone().unwrap_or_default())
}

/// The objects that a command looks at.
#[derive(Debug, Default)]
pub struct Seen {
    root: Cache<CollectTask>,
    tasks: Cache<CollectTask>,
    shards: Cache<CollectShard>,
    reports: Cache<ValidationReport>,
}

impl Seen {
    /// Reads them once.
    pub async fn read(session: &Session, scope: &Scope) -> Result<Self, Error> {
        let everywhere = *scope == Scope::Everywhere;
        let selected = || match scope.selector() {
            Some(selector) => ListParams::default().labels(&selector),
            None => ListParams::default(),
        };
        let root = match scope {
            Scope::Tree { root } => vec![session.get::<CollectTask>(root).await?],
            Scope::Namespace | Scope::Everywhere => Vec::new(),
        };
        Ok(Self {
            root: Cache::of(root),
            tasks: Cache::of(session.list(everywhere, selected()).await?),
            shards: Cache::of(session.list(everywhere, selected()).await?),
            reports: Cache::of(session.list(everywhere, selected()).await?),
        })
    }

    /// Nothing yet, to be filled from a watch of this scope.
    pub fn nothing(scope: &Scope) -> Self {
        let mut seen = Self::default();
        // Only a tree's root has a watch of its own.
        seen.root.ready = !matches!(scope, Scope::Tree { .. });
        seen
    }

    /// Takes in what a watch says; gives what it changed.
    pub fn take(&mut self, said: Said) -> Vec<Change> {
        match said {
            Said::Root(event) => changes(self.root.take(event), Change::Task),
            Said::Task(event) => changes(self.tasks.take(event), Change::Task),
            Said::Shard(event) => changes(self.shards.take(event), Change::Shard),
            Said::Report(event) => changes(self.reports.take(event), Change::Report),
        }
    }

    /// Whether all there was at the beginning is known.
    pub fn is_ready(&self) -> bool {
        self.root.ready && self.tasks.ready && self.shards.ready && self.reports.ready
    }

    /// A task by its name, where there is one namespace.
    pub fn task(&self, name: &str) -> Option<Arc<CollectTask>> {
        self.tasks().into_iter().find(|task| task.metadata.name.as_deref() == Some(name))
    }

    /// The tasks.
    pub fn tasks(&self) -> Vec<Arc<CollectTask>> {
        let mut all = self.root.all();
        all.extend(self.tasks.all());
        all
    }

    /// The shards.
    pub fn shards(&self) -> Vec<Arc<CollectShard>> {
        self.shards.all()
    }

    /// The reports.
    pub fn reports(&self) -> Vec<Arc<ValidationReport>> {
        self.reports.all()
    }
}

fn changes<K>(changed: Vec<Changed<K>>, of: fn(Option<Arc<K>>, Option<Arc<K>>) -> Change) -> Vec<Change> {
    changed.into_iter().map(|(old, new)| of(old, new)).collect()
}

/// What the API server says of the objects, from now on. It ends only with an error that no repetition mends.
pub async fn watch(session: &Session, scope: &Scope) -> Result<BoxStream<'static, Result<Said, Error>>, Error> {
    let everywhere = *scope == Scope::Everywhere;
    let config = || match scope.selector() {
        Some(selector) => watcher::Config::default().labels(&selector),
        None => watcher::Config::default(),
    };
    let mut all = vec![
        lasting(session.api_in(everywhere).await?, config(), Said::Task),
        lasting(session.api_in(everywhere).await?, config(), |shard| {
            Said::Shard(shard.modify(CollectShard::enter_first_attempt))
        }),
        lasting(session.api_in(everywhere).await?, config(), Said::Report),
    ];
    if let Scope::Tree { root } = scope {
        let alone = watcher::Config::default().fields(&format!("metadata.name={root}"));
        all.push(lasting(session.api().await?, alone, Said::Root));
    }
    Ok(stream::select_all(all).boxed())
}

/// A watch that is begun anew where it breaks. What is forbidden or unknown ends it, and so does a server that can't be reached
/// at the very beginning.
pub fn lasting<K, T>(
    api: Api<K>,
    config: watcher::Config,
    of: fn(watcher::Event<K>) -> T,
) -> BoxStream<'static, Result<T, Error>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
{
    let mut began = false;
    let watch = watcher(api, config).default_backoff();
    watch
        .filter_map(move |event| {
            let answer = match event {
                Ok(event) => {
                    began |= matches!(event, watcher::Event::InitDone);
                    Some(Ok(of(event)))
                }
                Err(error) => fatal::<K>(error, began).map(Err),
            };
            std::future::ready(answer)
        })
        .boxed()
}

/// The error where a watch can't go on.
fn fatal<K: Resource<DynamicType = ()>>(error: watcher::Error, began: bool) -> Option<Error> {
    let plural = K::plural(&()).into_owned();
    let doing = format!("watching {plural}");
    let about = About { plural: &plural, ..About::default() };
    let error = match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => of_api(&error, &doing, about),
        watcher::Error::WatchError(status) => of_api(&kube::Error::Api(status), &doing, about),
        other => Error::Unreachable(doing, chain(&other)),
    };
    (!began || matches!(error, Error::Forbidden(_) | Error::NoKinds(_))).then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn task(name: &str, phase: &str, version: &str) -> CollectTask {
        let mut task = samples::task(name, None, phase, 0, (0, None));
        task.metadata.resource_version = Some(version.into());
        task
    }

    #[test]
    fn what_was_there_is_no_change_and_what_a_relist_shows_anew_is() {
        let mut cache = Cache::default();
        for event in
            [watcher::Event::Init, watcher::Event::InitApply(task("a", "Running", "1")), watcher::Event::InitDone]
        {
            assert!(cache.take(event).is_empty());
        }
        assert!(cache.ready);
        cache.take(watcher::Event::Apply(task("b", "Running", "2")));
        cache.take(watcher::Event::Init);
        cache.take(watcher::Event::InitApply(task("a", "Failed", "3")));
        let changed = cache.take(watcher::Event::InitDone);
        let told: Vec<_> = changed.iter().map(|(old, new)| (version(old), version(new))).collect();
        assert_eq!(told, [(Some("2"), None), (Some("1"), Some("3"))], "b vanished while nobody looked, a changed");
    }
}

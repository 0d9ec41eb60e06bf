//! The API server in small: objects by name with uid, resourceVersion and generation, a log of changes for each kind,
//! compare-and-swap, deletion in the background and in the foreground, garbage collection by owner references.

use std::{collections::BTreeMap, sync::Arc};

use collect_api::{CollectShard, CollectTask, ValidationReport};
use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};
use kube::{Resource, ResourceExt};

pub const NAMESPACE: &str = "default";

/// Objects of one kind, and everything that ever happened to them.
pub struct Kind<K> {
    pub live: BTreeMap<String, Arc<K>>,
    /// Name, and what the object was from then on; nothing where it was gone.
    pub log: Vec<(String, Option<Arc<K>>)>,
}

impl<K> Default for Kind<K> {
    fn default() -> Self {
        Self { live: BTreeMap::new(), log: Vec::new() }
    }
}

impl<K: ResourceExt> Kind<K> {
    fn put(&mut self, object: K) -> Arc<K> {
        let (name, object) = (object.name_any(), Arc::new(object));
        self.live.insert(name.clone(), object.clone());
        self.log.push((name, Some(object.clone())));
        object
    }

    fn take(&mut self, name: &str) {
        if self.live.remove(name).is_some() {
            self.log.push((name.to_owned(), None));
        }
    }
}

/// What one process has seen of a kind: the log up to a place.
pub struct View<K> {
    at: usize,
    pub objects: BTreeMap<String, Arc<K>>,
}

impl<K> Default for View<K> {
    fn default() -> Self {
        Self { at: 0, objects: BTreeMap::new() }
    }
}

impl<K> View<K> {
    /// Takes in the next changes.
    pub fn deliver(&mut self, kind: &Kind<K>, changes: usize) {
        for (name, now) in kind.log.iter().skip(self.at).take(changes) {
            self.at += 1;
            match now {
                Some(object) => self.objects.insert(name.clone(), object.clone()),
                None => self.objects.remove(name),
            };
        }
    }

    /// Begins anew with a list that lacks the newest changes.
    pub fn relist(&mut self, kind: &Kind<K>, behind: usize) {
        *self = Self::default();
        self.deliver(kind, kind.log.len().saturating_sub(behind));
    }
}

/// A kind that the store holds.
pub trait Stored: Resource<DynamicType = ()> + Clone + 'static {
    fn of(store: &Store) -> &Kind<Self>;
    fn of_mut(store: &mut Store) -> &mut Kind<Self>;
}

macro_rules! stored {
    ($($type:ty => $field:ident),+ $(,)?) => { $(impl Stored for $type {
        fn of(store: &Store) -> &Kind<Self> { &store.$field }
        fn of_mut(store: &mut Store) -> &mut Kind<Self> { &mut store.$field }
    })+ };
}

stored! {
    CollectTask => tasks,
    CollectShard => shards,
    ValidationReport => reports,
    Job => jobs,
    Pod => pods,
    ConfigMap => chunks,
}

#[derive(Default)]
pub struct Store {
    pub tasks: Kind<CollectTask>,
    pub shards: Kind<CollectShard>,
    pub reports: Kind<ValidationReport>,
    pub jobs: Kind<Job>,
    pub pods: Kind<Pod>,
    pub chunks: Kind<ConfigMap>,
    /// Counts the writes; each object carries the number of its last one.
    pub version: u64,
    uids: u64,
    /// Uids of tasks, shards and Jobs that are there; garbage collection goes by them.
    alive: std::collections::BTreeSet<String>,
}

/// The controller owner of an object.
pub fn owner_of<K: ResourceExt>(object: &K) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true))
}

pub fn version_of<K: ResourceExt>(object: &K) -> u64 {
    object.resource_version().and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub fn uid_of<K: ResourceExt>(object: &K) -> String {
    object.uid().unwrap_or_default()
}

pub fn is_deleting<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

impl Store {
    pub fn get<K: Stored>(&self, name: &str) -> Option<Arc<K>> {
        K::of(self).live.get(name).cloned()
    }

    /// Stores a new object; nothing where the name is taken.
    pub fn create<K: Stored>(&mut self, mut object: K) -> Option<Arc<K>> {
        if K::of(self).live.contains_key(&object.name_any()) {
            return None;
        }
        self.uids += 1;
        let uid = format!("{:08x}-uid", self.uids);
        self.alive.insert(uid.clone());
        let meta = object.meta_mut();
        meta.namespace = Some(NAMESPACE.into());
        meta.uid = Some(uid);
        meta.generation = Some(1);
        Some(self.put(object))
    }

    fn put<K: Stored>(&mut self, mut object: K) -> Arc<K> {
        self.version += 1;
        object.meta_mut().resource_version = Some(self.version.to_string());
        K::of_mut(self).put(object)
    }

    /// Changes an object as it stands, whoever else has changed it.
    pub fn edit<K: Stored>(&mut self, name: &str, change: impl FnOnce(&mut K)) -> Option<Arc<K>> {
        let mut object = K::clone(self.get::<K>(name)?.as_ref());
        change(&mut object);
        Some(self.put(object))
    }

    /// The same for a change of the spec.
    pub fn edit_spec<K: Stored>(&mut self, name: &str, change: impl FnOnce(&mut K)) {
        self.edit::<K>(name, |object| {
            change(object);
            let meta = object.meta_mut();
            meta.generation = meta.generation.map(|generation| generation + 1);
        });
    }

    /// Removes an object; what it owns follows by garbage collection.
    pub fn delete<K: Stored>(&mut self, name: &str) {
        if let Some(object) = self.get::<K>(name) {
            self.version += 1;
            self.alive.remove(&uid_of(object.as_ref()));
            K::of_mut(self).take(name);
        }
    }

    /// Marks an object as being deleted: a pod until its worker has left, others until what they own is gone.
    pub fn mark_deleted<K: Stored>(&mut self, name: &str) {
        if self.get::<K>(name).is_some_and(|object| !is_deleting(object.as_ref())) {
            self.edit::<K>(name, |object| {
                object.meta_mut().deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
            });
        }
    }

    /// One step of garbage collection: what has lost its owner goes, and what waits for what it owns goes last.
    pub fn collect_garbage(&mut self) {
        let deleting: Vec<String> =
            (names_deleting::<CollectTask>(self).into_iter()).chain(names_deleting::<CollectShard>(self)).collect();
        let owned = self.sweep::<CollectTask>(&deleting, Self::delete::<CollectTask>)
            | self.sweep::<CollectShard>(&deleting, Self::delete::<CollectShard>)
            | self.sweep::<ValidationReport>(&deleting, Self::delete::<ValidationReport>)
            | self.sweep::<ConfigMap>(&deleting, Self::delete::<ConfigMap>)
            | self.sweep::<Job>(&deleting, Self::delete::<Job>);
        self.sweep::<Pod>(&[], Self::mark_deleted::<Pod>);
        if !owned {
            self.finish_deletions::<CollectTask>();
            self.finish_deletions::<CollectShard>();
        }
    }

    /// Removes objects whose owner is gone or waits for them; whether there were any.
    fn sweep<K: Stored>(&mut self, deleting: &[String], remove: fn(&mut Self, &str)) -> bool {
        let orphans: Vec<String> = K::of(self)
            .live
            .values()
            .filter(|object| {
                owner_of(object.as_ref())
                    .is_some_and(|owner| !self.alive.contains(&owner.uid) || deleting.contains(&owner.uid))
            })
            .map(|object| object.name_any())
            .collect();
        orphans.iter().for_each(|name| remove(self, name));
        !orphans.is_empty()
    }

    fn finish_deletions<K: Stored>(&mut self) {
        let done: Vec<String> = K::of(self)
            .live
            .values()
            .filter(|object| is_deleting(object.as_ref()))
            .map(|object| object.name_any())
            .collect();
        done.iter().for_each(|name| self.delete::<K>(name));
    }
}

fn names_deleting<K: Stored>(store: &Store) -> Vec<String> {
    let deleting = K::of(store).live.values().filter(|object| is_deleting(object.as_ref()));
    deleting.map(|object| uid_of(object.as_ref())).collect()
}

//! What a tree is made of, and what it leaves behind when it is deleted.

use std::{collections::HashSet, fmt::Debug, time::Duration};

use collect_api::{CollectShard, CollectTask, ValidationReport};
use collect_e2e::{Space, say};
use futures::StreamExt;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Resource, ResourceExt,
    api::ListParams,
    core::{NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

/// ConfigMaps that are not the tree's.
const KEPT: [&str; 2] = ["kube-root-ca.crt", collect_e2e::played::SCENARIOS];

/// How many objects a tree is made of.
pub async fn count(space: &Space) -> usize {
    async fn of<K>(space: &Space) -> usize
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api: Api<K> = space.api();
        let all = api.list_metadata(&ListParams::default()).await.expect("they can be listed");
        all.items.iter().filter(|object| !KEPT.contains(&object.name_any().as_str())).count()
    }
    let tasks = of::<CollectTask>(space).await + of::<ValidationReport>(space).await;
    tasks
        + of::<CollectShard>(space).await
        + of::<Job>(space).await
        + of::<Pod>(space).await
        + of::<ConfigMap>(space).await
}

/// Waits until everything of a tree is gone, or nothing more goes for `patience`; gives back what is left, by kind.
pub async fn until_gone(space: &Space, patience: Duration) -> Vec<(String, usize)> {
    let left = [
        of::<CollectTask>(space, patience).await,
        of::<CollectShard>(space, patience).await,
        of::<ValidationReport>(space, patience).await,
        of::<Job>(space, patience).await,
        of::<Pod>(space, patience).await,
        of::<ConfigMap>(space, patience).await,
    ];
    left.into_iter().filter(|(_, count)| *count > 0).collect()
}

async fn of<K>(space: &Space, patience: Duration) -> (String, usize)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut left: HashSet<String> = HashSet::new();
    let api: Api<PartialObjectMeta<K>> = Api::namespaced(space.client.clone(), &space.name);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    loop {
        match tokio::time::timeout(patience, events.next()).await {
            Ok(Some(Ok(Event::Init))) => {
                left.clear();
                continue;
            }
            Ok(Some(Ok(Event::Apply(object) | Event::InitApply(object)))) => {
                if !KEPT.contains(&object.name_any().as_str()) {
                    left.insert(object.name_any());
                }
                continue;
            }
            Ok(Some(Ok(Event::Delete(object)))) => {
                left.remove(&object.name_any());
            }
            Ok(Some(Ok(Event::InitDone))) => {}
            Ok(Some(Err(error))) => {
                say(&format!("watching {}: {error}", K::plural(&())));
                continue;
            }
            Ok(None) => panic!("a watch has no end"),
            Err(_) => return (K::kind(&()).into_owned(), left.len()),
        }
        if left.is_empty() {
            return (K::kind(&()).into_owned(), 0);
        }
    }
}

//! What a deleted tree leaves behind.

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
    core::{NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

/// Waits until everything of a tree is gone, or nothing more goes for `patience`; gives back what is left, by kind.
pub async fn until_gone(space: &Space, patience: Duration) -> Vec<(String, usize)> {
    let nothing_is_kept: &[&str] = &[];
    let left = [
        of::<CollectTask>(space, nothing_is_kept, patience).await,
        of::<CollectShard>(space, nothing_is_kept, patience).await,
        of::<ValidationReport>(space, nothing_is_kept, patience).await,
        of::<Job>(space, nothing_is_kept, patience).await,
        of::<Pod>(space, nothing_is_kept, patience).await,
        of::<ConfigMap>(space, &["kube-root-ca.crt", collect_e2e::played::SCENARIOS], patience).await,
    ];
    left.into_iter().filter(|(_, count)| *count > 0).collect()
}

async fn of<K>(space: &Space, kept: &[&str], patience: Duration) -> (String, usize)
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
                if !kept.contains(&object.name_any().as_str()) {
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

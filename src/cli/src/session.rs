//! The cluster that a command talks to: found and connected only when it is needed, so that commands that need none work without.

use std::{fmt::Debug, path::PathBuf};

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Config, Resource,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use crate::{
    args::Global,
    error::{About, Error, chain, of_api},
    output::Style,
};

/// Objects that one request lists.
const PAGE: u32 = 500;

/// A command's view of the cluster.
pub struct Session {
    global: Global,
    style: Style,
    config: OnceCell<Config>,
    client: OnceCell<Client>,
}

impl Session {
    /// A session that has not looked for its cluster yet.
    pub fn new(global: Global) -> Self {
        let style = Style::of_stdout(global.no_color);
        Self { global, style, config: OnceCell::new(), client: OnceCell::new() }
    }

    /// How standard output is written.
    pub fn style(&self) -> Style {
        self.style
    }

    /// The client, connected on first use.
    pub async fn client(&self) -> Result<Client, Error> {
        let connect = async || {
            let config = self.config().await?.clone();
            Client::try_from(config).map_err(|error| Error::NoConfig(chain(&error)))
        };
        self.client.get_or_try_init(connect).await.cloned()
    }

    /// The namespace that commands work in: of the flag, else of the context, else `default`.
    pub async fn namespace(&self) -> Result<String, Error> {
        match &self.global.namespace {
            Some(namespace) => Ok(namespace.clone()),
            None => Ok(self.config().await?.default_namespace.clone()),
        }
    }

    /// Objects of a kind in the session's namespace.
    pub async fn api<K>(&self) -> Result<Api<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Ok(Api::namespaced(self.client().await?, &self.namespace().await?))
    }

    /// Objects of a kind in the session's namespace, or in all.
    pub async fn api_in<K>(&self, everywhere: bool) -> Result<Api<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        if everywhere { Ok(Api::all(self.client().await?)) } else { self.api().await }
    }

    /// Carries a request out, within the time that one may take. `doing` continues the word "while".
    pub async fn ask<T>(
        &self,
        doing: &str,
        about: About<'_>,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        let answer = match self.request_timeout() {
            None => request.await,
            Some(limit) => tokio::time::timeout(limit.get(), request)
                .await
                .map_err(|_| Error::TimedOut { what: doing.to_owned(), limit })?,
        };
        answer.map_err(|error| of_api(&error, doing, about))
    }

    /// Reads one object of the session's namespace.
    pub async fn get<K>(&self, name: &str) -> Result<K, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let namespace = self.namespace().await?;
        let (kind, plural) = (K::kind(&()), K::plural(&()));
        let about = About { kind: &kind, plural: &plural, name, namespace: &namespace };
        self.ask(&format!("reading {kind} {name}"), about, self.api::<K>().await?.get(name)).await
    }

    /// Lists objects page by page; `params` selects.
    pub async fn list<K>(&self, everywhere: bool, params: ListParams) -> Result<Vec<K>, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = self.api_in::<K>(everywhere).await?;
        let plural = K::plural(&()).into_owned();
        let (doing, about) = (format!("listing {plural}"), About { plural: &plural, ..About::default() });
        let mut params = params.limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = self.ask(&doing, about, api.list(&params)).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    fn request_timeout(&self) -> Option<collect_api::Duration> {
        self.global.request_timeout.filter(|limit| !limit.get().is_zero())
    }

    async fn config(&self) -> Result<&Config, Error> {
        self.config.get_or_try_init(|| read_config(&self.global)).await
    }
}

/// The kubeconfig as kubectl reads it; in a pod without one, the pod's ServiceAccount.
pub fn kubeconfig(file: Option<&PathBuf>) -> Result<Kubeconfig, Error> {
    match file {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    }
    .map_err(|error| Error::NoConfig(chain(&error)))
}

async fn read_config(global: &Global) -> Result<Config, Error> {
    let chosen = global.kubeconfig.is_some() || global.context.is_some() || global.cluster.is_some();
    let options = KubeConfigOptions {
        context: global.context.clone(),
        cluster: global.cluster.clone(),
        user: global.user.clone(),
    };
    let of_file = match kubeconfig(global.kubeconfig.as_ref()) {
        Ok(file) => {
            Config::from_custom_kubeconfig(file, &options).await.map_err(|error| Error::NoConfig(chain(&error)))
        }
        Err(error) => Err(error),
    };
    let mut config = match of_file {
        Ok(config) => config,
        Err(error) if chosen => return Err(error),
        Err(error) => Config::incluster().map_err(|_| error)?,
    };
    if let Some(limit) = global.request_timeout.filter(|limit| !limit.get().is_zero()) {
        config.connect_timeout = Some(limit.get());
    }
    if global.as_user.is_some() {
        config.auth_info.impersonate.clone_from(&global.as_user);
        config.auth_info.impersonate_groups = Some(global.as_groups.clone());
    }
    Ok(config)
}

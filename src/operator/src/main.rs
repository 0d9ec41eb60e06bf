//! The Collect Operator: observes the cluster, asks core what to do, applies it.

mod check;
mod clock;
mod context;
mod endpoint;
mod error;
mod http;
mod lease;
mod metrics;
mod read;
mod ready;
mod shard;
mod task;
mod trace;
mod watch;
mod worker;
mod write;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand, ValueEnum};
use collect_api::{CollectShard, CollectTask, ValidationReport, labels};
use collect_core::job::WorkerDefaults;
use futures::{StreamExt, channel::mpsc};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    client::ClientBuilder,
    core::NamespaceResourceScope,
    runtime::{
        controller::{self, Action, applier},
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    context::{Context, Settings, Stores, Wake},
    error::{Class, Error, chain},
    metrics::{Metrics, requests::Counted},
    read::{Guard, Read},
    ready::Ready,
    trace::Traced,
    watch::{Outlets, PodIndex},
    write::Object,
};

/// Passes at once over tasks, and over shards.
const PASSES_AT_ONCE: u16 = 16;
/// For how long something that is gone is remembered: a list of an API server that lags behind may show it once more.
const REMEMBERED: Duration = Duration::from_secs(120);
/// Events about the same object within this time make one pass.
const DEBOUNCE: Duration = Duration::from_millis(50);

#[derive(Parser)]
#[command(name = "collect-operator", version, about = "Kubernetes operator for tree-shaped, verified data collection")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator.
    Run(Run),
    /// Look at an installed operator: is it ready, does it let in whom it should, has it what it needs?
    Check(check::Check),
}

#[derive(clap::Args)]
struct Run {
    /// Namespace to watch; empty means all.
    #[arg(long, env = "COLLECT_NAMESPACE", default_value = "")]
    namespace: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "COLLECT_HTTP_LISTEN", default_value = "0.0.0.0:8080")]
    http_listen: SocketAddr,
    /// Address of the worker endpoint.
    #[arg(long, env = "COLLECT_ENDPOINT_LISTEN", default_value = "0.0.0.0:8443")]
    endpoint_listen: SocketAddr,
    /// URL under which workers reach the worker endpoint.
    #[arg(long, env = "COLLECT_ENDPOINT_URL")]
    endpoint_url: String,
    /// Folder with tls.crt, tls.key and ca.crt of the worker endpoint.
    #[arg(long, env = "COLLECT_ENDPOINT_TLS_DIR", default_value = "/etc/collect/tls")]
    endpoint_tls_dir: PathBuf,
    /// Image of the workers.
    #[arg(long, env = "COLLECT_WORKER_IMAGE")]
    worker_image: String,
    /// Pull policy of the workers' image.
    #[arg(long, env = "COLLECT_WORKER_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    worker_image_pull_policy: String,
    /// Namespace of the lease; empty means that of the client.
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    lease_namespace: String,
    /// Name of the lease.
    #[arg(long, env = "COLLECT_LEASE_NAME", default_value = "collect-operator")]
    lease_name: String,
    /// Work without a lease. Two operators at once are safe; a lease only saves work.
    #[arg(long, env = "COLLECT_NO_LEASE")]
    no_lease: bool,
    /// Name of the operator's pod, for events.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Form of the log.
    #[arg(long, env = "COLLECT_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

fn main() -> ExitCode {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("a TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    let command = Args::parse().command;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let args = match command {
        Command::Run(args) => args,
        Command::Check(args) => {
            let is_well = runtime.is_ok_and(|runtime| runtime.block_on(check::run(&args)));
            return if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    log_to_stderr(args.log_format);
    match runtime.map_err(Stop::Io).and_then(|runtime| runtime.block_on(run(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            error!(error = chain(&stop), "the operator ends");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    let format = match format {
        LogFormat::Json => collect_telemetry::Format::Json,
        LogFormat::Text => collect_telemetry::Format::Text,
    };
    collect_telemetry::start("collect-operator", env!("CARGO_PKG_VERSION"), format, "info,kube_client=warn");
}

/// Why the operator ends.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("a file or socket")]
    Io(#[from] std::io::Error),
    #[error("the endpoint's ca.crt in {0}")]
    Ca(PathBuf, #[source] std::io::Error),
    #[error("the configuration of the client")]
    Config(#[from] kube::config::InferConfigError),
    #[error("the client")]
    Client(#[from] kube::Error),
    #[error("a part of the operator ended early: {0}")]
    Part(&'static str),
}

async fn run(args: Run) -> Result<(), Stop> {
    collect_telemetry::export();
    let mut config = Config::infer().await?;
    // A request that is sent again behind our back would break the ledger; every pass repeats what has to be repeated.
    config.default_retry = false;
    let own_namespace = config.default_namespace.clone();
    let metrics = Metrics::new();
    let client = ClientBuilder::try_from(config)?.with_layer(&Counted(metrics.clone())).build();
    let ca = args.endpoint_tls_dir.join("ca.crt");
    let settings = Settings {
        endpoint_url: args.endpoint_url.trim_end_matches('/').to_owned(),
        endpoint_ca: tokio::fs::read_to_string(&ca).await.map_err(|error| Stop::Ca(ca, error))?,
        workers: WorkerDefaults {
            image: args.worker_image.clone(),
            pull_policy: args.worker_image_pull_policy.clone(),
            env: collect_telemetry::environment(),
        },
    };
    let ready = Ready::default();
    let stop = CancellationToken::new();
    let mut parts: JoinSet<&'static str> = JoinSet::new();

    let (tasks_wake, tasks_queue) = mpsc::unbounded();
    let (shards_wake, shards_queue) = mpsc::unbounded();
    let (gone_wake, gone_queue) = mpsc::unbounded();
    let wake = Wake { tasks: tasks_wake, shards: shards_wake, gone: gone_wake };
    let watches = Watches {
        client: client.clone(),
        namespace: args.namespace.clone(),
        outlets: Outlets { metrics: metrics.clone(), ready: ready.clone(), wake: wake.clone() },
    };
    let all = watcher::Config::default();
    let ours = watcher::Config::default().labels(labels::MANAGED_SELECTOR);
    let jobs = watches.start::<Job>(&mut parts, ours.clone(), watch::wake_job);
    let pods = PodIndex::default();
    watches.pods(&mut parts, &jobs, &pods, ours);
    let stores = Stores {
        tasks: watches.start::<CollectTask>(&mut parts, all.clone(), watch::wake_task),
        shards: watches.start::<CollectShard>(&mut parts, all.clone(), watch::wake_shard),
        reports: watches.start::<ValidationReport>(&mut parts, all, watch::wake_report),
        jobs,
        pods,
    };
    let ctx = Arc::new(Context::new(client, settings, stores, wake, metrics, args.pod_name.clone()));
    info!(version = env!("CARGO_PKG_VERSION"), process = ctx.me, namespace = args.namespace, "the operator starts");

    {
        let (ctx, ready, stop) = (ctx.clone(), ready.clone(), stop.clone());
        parts.spawn(async move {
            if let Err(error) = http::serve(args.http_listen, ctx, ready, stop).await {
                error!(%error, "the http server");
            }
            "http server"
        });
    }
    {
        let (ctx, stop, dir) = (ctx.clone(), stop.clone(), args.endpoint_tls_dir.clone());
        parts.spawn(async move {
            if let Err(error) = endpoint::serve(args.endpoint_listen, &dir, ctx, stop).await {
                error!(%error, "the worker endpoint");
            }
            "worker endpoint"
        });
    }
    {
        let (ctx, stop) = (ctx.clone(), stop.clone());
        let namespace = if args.lease_namespace.is_empty() { own_namespace } else { args.lease_namespace.clone() };
        parts.spawn(async move {
            while !ready.missing().is_empty() && !stop.is_cancelled() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            info!("the caches are filled");
            if args.no_lease {
                ctx.set_leads(true);
                stop.cancelled().await;
            } else {
                lease::hold(ctx, namespace, args.lease_name, stop).await;
            }
            "lease"
        });
    }
    {
        let (ctx, stop) = (ctx.clone(), stop.clone());
        parts.spawn(async move {
            let uids = gone_queue.take_until(stop.cancelled_owned());
            let mut went = std::collections::VecDeque::<(Instant, String)>::new();
            uids.for_each(|uid| {
                ctx.gone(&uid);
                went.push_back((clock::instant(), uid));
                let old = went.iter().take_while(|(at, _)| at.elapsed() > REMEMBERED).count();
                went.drain(..old).for_each(|(_, uid)| ctx.forget(&uid));
                std::future::ready(())
            })
            .await;
            "memory"
        });
    }
    let tasks = ctx.stores.tasks.clone();
    spawn_controller(&mut parts, &ctx, tasks, tasks_queue, stop.clone(), task::reconcile);
    let shards = ctx.stores.shards.clone();
    spawn_controller(&mut parts, &ctx, shards, shards_queue, stop.clone(), shard::reconcile);

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let ended = tokio::select! {
        ended = parts.join_next() => Some(ended),
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
    };
    stop.cancel();
    if let Some(ended) = ended {
        return Err(Stop::Part(ended.and_then(Result::ok).unwrap_or("one that panicked")));
    }
    info!("the operator was asked to stop");
    // Watches have no end of their own; the rest gets a moment to finish what it does.
    let _ = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(part) = parts.join_next().await {
            debug!(part = part.unwrap_or("panicked"), "stopped");
            if parts.len() <= WATCHES {
                break;
            }
        }
    })
    .await;
    collect_telemetry::flush(Duration::from_secs(2)).await;
    Ok(())
}

/// Watches that run: tasks, shards, reports, Jobs, pods.
const WATCHES: usize = 5;

struct Watches {
    client: Client,
    namespace: String,
    outlets: Outlets,
}

impl Watches {
    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        if self.namespace.is_empty() {
            Api::all(self.client.clone())
        } else {
            Api::namespaced(self.client.clone(), &self.namespace)
        }
    }

    fn start<K: Read>(
        &self,
        parts: &mut JoinSet<&'static str>,
        config: watcher::Config,
        wake: fn(&Wake, &K),
    ) -> Store<K> {
        let (store, writer) = reflector::store::<K>();
        self.outlets.ready.expect(K::KIND);
        let (api, outlets) = (self.api::<Guard<K>>(), self.outlets.clone());
        parts.spawn(async move {
            watch::run(api, config, writer, outlets, wake).await;
            K::KIND
        });
        store
    }

    fn pods(&self, parts: &mut JoinSet<&'static str>, jobs: &Store<Job>, pods: &PodIndex, config: watcher::Config) {
        let Outlets { metrics, ready, wake } = self.outlets.clone();
        ready.expect("Pod");
        let (api, index, jobs) = (self.api::<Guard<Pod>>(), pods.clone(), jobs.clone());
        parts.spawn(async move {
            watch::run_pods(api, config, index, ready, metrics, move |pod| watch::wake_pod(&wake, &jobs, pod)).await;
            "Pod"
        });
    }
}

/// Runs passes over one kind, each in order for one object, a bounded number at once.
fn spawn_controller<K, F>(
    parts: &mut JoinSet<&'static str>,
    ctx: &Arc<Context>,
    store: Store<K>,
    queue: mpsc::UnboundedReceiver<ObjectRef<K>>,
    stop: CancellationToken,
    pass: fn(Arc<K>, Arc<Context>) -> F,
) where
    K: Object + Traced,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let queue = queue.map(Ok::<_, Infallible>).take_until(stop.cancelled_owned());
    let config = controller::Config::default().concurrency(PASSES_AT_ONCE).debounce(DEBOUNCE);
    let ctx = ctx.clone();
    parts.spawn(async move {
        let measured = move |object: Arc<K>, ctx: Arc<Context>| Box::pin(measure(object, ctx, pass));
        let passes = applier(measured, policy::<K>, ctx, store, queue, config);
        // What a pass comes to was logged and counted by `measure` and `policy`.
        passes.for_each(|_| std::future::ready(())).await;
        K::KIND
    });
}

async fn measure<K: Object + Traced, F: Future<Output = Result<Action, Error>>>(
    object: Arc<K>,
    ctx: Arc<Context>,
    pass: fn(Arc<K>, Arc<Context>) -> F,
) -> Result<Action, Error> {
    let uid = object.uid().unwrap_or_default();
    let begun = clock::instant();
    let _runs = ctx.metrics.pass_begins(K::KIND);
    let result = trace::pass(trace::span(object.as_ref()), Box::pin(pass(object, ctx.clone()))).await;
    let outcome = match &result {
        Ok(_) => {
            ctx.went_well(&uid);
            "ok"
        }
        Err(error) if error.class() == Class::Conflict => "conflict",
        Err(_) => "error",
    };
    ctx.metrics.pass(K::KIND, outcome, begun.elapsed(), clock::now());
    result
}

/// What follows an error: growing waits with jitter, per object.
fn policy<K: Object + Traced>(object: Arc<K>, error: &Error, ctx: Arc<Context>) -> Action {
    let _lines = trace::lines(object.as_ref()).entered();
    let uid = object.uid().unwrap_or_default();
    match error.class() {
        Class::Conflict => {
            debug!(kind = K::KIND, name = object.name_any(), error = chain(error), "somebody else was faster");
            Action::requeue(Duration::from_millis(200).mul_f64(clock::jitter()))
        }
        Class::Transient => {
            warn!(
                kind = K::KIND,
                name = object.name_any(),
                category = error.category(),
                error = chain(error),
                "a pass failed and is repeated"
            );
            Action::requeue(ctx.backoff(&uid))
        }
        Class::Terminal => {
            error!(
                kind = K::KIND,
                name = object.name_any(),
                category = error.category(),
                error = chain(error),
                "a pass failed for good"
            );
            // Counted as failing until a pass goes well.
            ctx.backoff(&uid);
            Action::requeue(Duration::from_secs(300))
        }
    }
}

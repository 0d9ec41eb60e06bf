//! `registry`: serves or packs the sample source.

use std::io::{self, Error};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Args, Parser, Subcommand};
use collect_registry::{ApiKey, Fault, Options, Registry, Synthetic, serve};
use tokio::signal::unix::{SignalKind, signal};

/// A sample source: divisions of China over HTTP, every paging style, faults on demand.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve(Box<Serve>),
    /// Write the data as one compressed file.
    Pack {
        /// The folder that tests/registry/data.sh prints.
        #[arg(long)]
        data: PathBuf,
        /// The file to write.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Args)]
#[command(group(ArgGroup::new("source").required(true).args(["data", "synthetic", "small"])))]
struct Serve {
    /// Folder that tests/registry/data.sh prints, or a file made by `pack`.
    #[arg(long, env = "REGISTRY_DATA")]
    data: Option<PathBuf>,
    /// Made-up data, e.g. values=2000,records=10,bytes=200.
    #[arg(long)]
    synthetic: Option<Synthetic>,
    /// The tiny country of the unit tests.
    #[arg(long)]
    small: bool,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0:8080", env = "REGISTRY_LISTEN")]
    listen: SocketAddr,
    /// All options as JSON, as for PUT /_control; the flags below are laid over it.
    #[arg(long, value_parser = json::<Options>, env = "REGISTRY_OPTIONS")]
    options: Option<Options>,
    /// Accepted bearer token.
    #[arg(long, env = "REGISTRY_TOKEN")]
    token: Option<String>,
    /// Accepted user:password.
    #[arg(long, env = "REGISTRY_BASIC")]
    basic: Option<String>,
    /// Accepted API key, as "Header: value".
    #[arg(long, value_parser = api_key, env = "REGISTRY_API_KEY")]
    api_key: Option<ApiKey>,
    /// Requests per second let through; above it 429.
    #[arg(long)]
    requests_per_second: Option<f64>,
    /// Seed of all draws.
    #[arg(long)]
    seed: Option<u64>,
    /// A fault as JSON, e.g. '{"effect": {"status": {"code": 503}}, "when": {"every": 10}}'. Repeatable.
    #[arg(long = "fault", value_parser = json::<Fault>)]
    faults: Vec<Fault>,
}

fn json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

fn api_key(text: &str) -> Result<ApiKey, String> {
    let (header, value) = text.split_once(':').ok_or("must read \"Header: value\"")?;
    Ok(ApiKey { header: header.trim().to_owned(), value: value.trim().to_owned() })
}

impl Serve {
    fn registry(&self) -> Result<Registry, Error> {
        match (&self.data, self.synthetic) {
            (Some(path), _) => Registry::load(path).map_err(Error::other),
            (None, Some(synthetic)) => Ok(Registry::synthetic(synthetic)),
            (None, None) => Ok(Registry::small()),
        }
    }

    fn options(self) -> Options {
        let mut options = self.options.unwrap_or_default();
        options.token = self.token.or(options.token);
        options.basic = self.basic.or(options.basic);
        options.api_key = self.api_key.or(options.api_key);
        options.requests_per_second = self.requests_per_second.or(options.requests_per_second);
        options.seed = self.seed.unwrap_or(options.seed);
        options.faults.extend(self.faults);
        options
    }
}

/// Resident memory now and at its peak, in MiB.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
    };
    format!("{} MiB resident, peak {}", mib("VmRSS:"), mib("VmHWM:"))
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("registry: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> io::Result<()> {
    // First of all: as process 1 of a container it would otherwise not hear SIGTERM while it loads.
    let mut terminate = signal(SignalKind::terminate())?;
    match command {
        Command::Pack { data, out } => Registry::load(data).map_err(Error::other)?.pack(out),
        Command::Serve(args) => {
            let registry = args.registry()?;
            let levels = registry.levels().iter().enumerate();
            let counts: Vec<String> =
                levels.map(|(i, spec)| format!("{} {}", registry.count(i), spec.plural)).collect();
            let listen = args.listen;
            let server = serve(registry, args.options(), listen).await?;
            println!("registry: {} on http://{} ({})", counts.join(", "), server.addr, memory());
            tokio::select! {
                _ = terminate.recv() => {}
                done = tokio::signal::ctrl_c() => done?,
            }
            Ok(())
        }
    }
}

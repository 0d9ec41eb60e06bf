//! `s3d`: serves a folder over S3.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use collect_s3::{Fault, Options, S3Server};
use tokio::signal::unix::{SignalKind, signal};

/// An S3 server for tests: a folder, one pair of keys, faults on demand. Runs until SIGTERM or SIGINT.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Folder with one folder per bucket; created if need be.
    #[arg(long, env = "S3D_DIR")]
    dir: PathBuf,
    /// Bucket that is there from the start. Repeatable.
    #[arg(long = "bucket", default_value = "lake")]
    buckets: Vec<String>,
    /// Address of the S3 endpoint.
    #[arg(long, default_value = "0.0.0.0:9000", env = "S3D_LISTEN")]
    listen: SocketAddr,
    /// Address of the control endpoint.
    #[arg(long, default_value = "0.0.0.0:9001", env = "S3D_CONTROL")]
    control: SocketAddr,
    /// Access key.
    #[arg(long, default_value = "test", env = "S3D_ACCESS_KEY")]
    access_key: String,
    /// Secret key.
    #[arg(long, default_value = "test-secret", env = "S3D_SECRET_KEY", hide_env_values = true)]
    secret_key: String,
    /// Seed of all draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A fault as JSON, e.g. '{"effect": "slowDown", "when": {"every": 10}}'. Repeatable.
    #[arg(long = "fault", value_parser = |text: &str| serde_json::from_str::<Fault>(text))]
    faults: Vec<Fault>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("s3d: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> io::Result<()> {
    let buckets = cli.buckets.join(", ");
    let mut terminate = signal(SignalKind::terminate())?;
    let server = S3Server {
        dir: cli.dir.clone(),
        buckets: cli.buckets,
        listen: cli.listen,
        control: cli.control,
        access_key: cli.access_key,
        secret_key: cli.secret_key,
        options: Options { seed: cli.seed, faults: cli.faults },
    };
    let running = server.run().await?;
    println!(
        "s3d: {} with {buckets} on {}, control on {}",
        cli.dir.display(),
        running.endpoint,
        running.control_endpoint
    );
    tokio::select! {
        _ = terminate.recv() => {}
        done = tokio::signal::ctrl_c() => done?,
    }
    Ok(())
}

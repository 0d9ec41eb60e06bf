//! `make chaos`: all villages, again and again, on a real node, while things are killed at random moments.
//!
//! `SEED` repeats a campaign's decisions, `KILLS` (200) and `MINUTES` (30) say how much is enough. Ends with 1 if anything did not hold,
//! with 2 if this machine has no real node.

use std::{process::ExitCode, time::Duration};

use collect_e2e::{
    Cluster, Node,
    chaos::{self, Orders, blow},
    say,
};

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")),
        _ => default,
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let orders = Orders {
        seed: number("SEED", rand::random_range(1..1_000_000)),
        kills: number("KILLS", 200),
        time: Duration::from_secs_f64(number::<f64>("MINUTES", 30.0) * 60.0),
        cards: blow::MANY,
        sample: "villages.yaml",
        codes: "",
        delay: Duration::from_millis(200),
    };
    let Some(cluster) = Cluster::shared("chaos", Node::Real) else { return ExitCode::from(2) };
    match chaos::carry_out(cluster, orders).await {
        Ok(tally) => {
            say(&format!("\n{tally}\nnothing was violated"));
            ExitCode::SUCCESS
        }
        Err(violation) => {
            say(&format!("\n{violation}"));
            ExitCode::FAILURE
        }
    }
}

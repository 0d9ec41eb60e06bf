//! Figures, on demand: `cargo test --release -p collect-worker --test it -- --ignored --nocapture bench`.

use std::time::Instant;

use collect_api::protocol::{Work, WorkResult, exit};
use collect_registry::{Options, Registry};
use serde_json::json;

use crate::lab::{Lab, pages};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a while and says nothing about correctness but for the bound on memory"]
async fn bench_memory_and_speed_of_600_000_records() {
    let made = Registry::synthetic("values=1,records=620000,bytes=100".parse().unwrap());
    let lab = Lab::with(made, Options::default()).await;
    let mut assignment = lab.collect(json!({"path": "/groups/{{ group }}/items", "pagination": pages(1000)}), None);
    if let Work::Collect(work) = &mut assignment.work {
        work.items[0].values = [("group".to_owned(), "g0000000".to_owned())].into();
    }
    assignment.rate_share.concurrency = Some(4);
    let start = Instant::now();
    let termination = lab.dir.path().join("t");
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_collect-worker"))
        .env_clear()
        .env("COLLECT_ASSIGNMENT", serde_json::to_string(&assignment).unwrap())
        .env("COLLECT_TERMINATION_LOG", &termination)
        .env("COLLECT_VOLUME_DIR", lab.dir.path().join("volume"))
        .status()
        .unwrap();
    let took = start.elapsed().as_secs_f64();
    assert_eq!(status.code(), Some(exit::DONE));
    let message: collect_api::protocol::TerminationMessage =
        serde_json::from_slice(&std::fs::read(termination).unwrap()).unwrap();
    let Some(WorkResult::Collect(result)) = message.result else { panic!() };
    let usage = message.usage;
    println!(
        "{} records, {} bytes of text, {} bytes of files in {took:.1} s: {:.0} records/s; peak {} MiB, CPU {:.1} s",
        result.tally.records,
        result.tally.bytes,
        result.file_bytes,
        result.tally.records as f64 / took,
        usage.peak_memory_bytes >> 20,
        usage.cpu_seconds
    );
    assert_eq!((result.tally.records, result.tally.duplicates), (620_000, Some(0)));
    assert!(usage.peak_memory_bytes <= 128 << 20);
}

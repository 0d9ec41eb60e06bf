//! What goes to the operator, and what its answers do.

use std::time::{Duration, Instant};

use collect_api::protocol::{Directive, Endpoint, PlanWork, Work, WorkResult, exit};
use collect_registry::{Effect, Fault, Options, Registry, When};
use serde_json::{Value, json};

use crate::lab::{Lab, pages, until};
use crate::operator::Operator;

async fn slow() -> (Lab, Operator) {
    slow_by(30).await
}

async fn slow_by(milliseconds: u64) -> (Lab, Operator) {
    with(Effect::Delay { milliseconds }.always()).await
}

async fn with(fault: Fault) -> (Lab, Operator) {
    let mut lab = Lab::with(Registry::small(), Options::faults([fault])).await;
    let operator = Operator::default();
    lab.endpoint = Some(operator.serve(lab.dir.path()).await);
    (lab, operator)
}

fn source() -> Value {
    json!({"pagination": pages(10)})
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_reported_with_checkpoints_that_never_go_back() {
    let (lab, operator) = slow_by(150).await;
    operator.refuse(&[503, 401]);
    let worker = lab.start(&lab.collect(source(), None), "aaaaaaaa-1");
    until(|| operator.tokens().len() >= 2).await;
    std::fs::write(lab.dir.path().join("token"), "second\n").unwrap();
    let ended = worker.end().await;
    assert_eq!((ended.code, lab.codes()), (exit::DONE, lab.held()), "{ended:?}");
    let reports = operator.reports();
    assert!(reports.len() >= 3, "{reports:?}");
    assert!(reports.windows(2).all(|pair| pair[0].seq < pair[1].seq && pair[0].records <= pair[1].records));
    let checkpoints: Vec<i64> = reports.iter().filter_map(|report| report.checkpoint.as_ref()).map(|c| c.seq).collect();
    assert!(!checkpoints.is_empty() && checkpoints.windows(2).all(|pair| pair[0] < pair[1]), "{checkpoints:?}");
    assert!(reports.iter().any(|report| report.expected == Some(216) && report.stage == "reading"), "{reports:?}");
    // The token is read again for each call.
    assert_eq!(operator.tokens()[0], "Bearer first");
    assert_eq!(operator.tokens().last().unwrap(), "Bearer second");
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_and_exit_is_obeyed_and_the_confirmed_checkpoint_is_not_repeated() {
    let (lab, operator) = slow().await;
    operator.direct(Directive::CheckpointAndExit);
    let ended = lab.run(&lab.collect(source(), None), "aaaaaaaa-1").await;
    assert_eq!((ended.code, ended.message.checkpoint), (exit::CHECKPOINTED, None));
    let last = operator.reports().into_iter().rev().find_map(|report| report.checkpoint).unwrap();
    let mut second = lab.collect(source(), Some(last));
    second.attempt = 2;
    operator.direct(Directive::Continue);
    let ended = lab.run(&second, "bbbbbbbb-1").await;
    assert_eq!((ended.code, lab.codes()), (exit::DONE, lab.held()), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn abort_ends_as_fenced() {
    // It would never end by itself.
    let (lab, operator) = with(Effect::Stuck.when(When { skip: 5, ..When::default() })).await;
    operator.direct(Directive::Abort);
    let ended = lab.run(&lab.collect(source(), None), "aaaaaaaa-1").await;
    assert_eq!((ended.code, ended.message.result), (exit::FENCED, None));
    assert!(!lab.dir.path().join("volume/villages/runs/1-3f9c2a71/0/manifest.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_followed_by_one_that_goes_on_from_what_the_operator_has() {
    let (lab, operator) = slow().await;
    let worker = lab.start(&lab.collect(source(), None), "aaaaaaaa-1");
    until(|| operator.reports().iter().any(|report| report.checkpoint.as_ref().is_some_and(|c| c.seq >= 5))).await;
    worker.kill();
    let last = operator.reports().into_iter().rev().find_map(|report| report.checkpoint).unwrap();
    let before = lab.requests().len();
    let mut second = lab.collect(source(), Some(last.clone()));
    second.attempt = 2;
    let ended = lab.run(&second, "bbbbbbbb-1").await;
    assert_eq!((ended.code, lab.codes()), (exit::DONE, lab.held()), "{ended:?}");
    let pages_left = 22 - usize::try_from(last.tally.records / 10).unwrap();
    assert_eq!(lab.requests().len() - before, pages_left);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_can_not_be_reached_stops_nobody() {
    let mut lab = Lab::small().await;
    for (url, ca) in [("https://127.0.0.1:1", ""), ("https://127.0.0.1:1", "no certificate")] {
        lab.endpoint = Some(Endpoint { url: url.into(), ca: ca.into(), token_file: "/nowhere".into() });
        let ended = lab.run(&lab.collect(source(), None), "aaaaaaaa-1").await;
        assert!(ended.code == exit::DONE || ended.code == exit::ALREADY_COMMITTED, "{ended:?}");
    }
    assert_eq!(lab.codes(), lab.held());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_given_authority_is_trusted() {
    let (mut lab, operator) = slow().await;
    let other = Operator::default().serve(lab.dir.path()).await;
    if let Some(endpoint) = &mut lab.endpoint {
        endpoint.ca = other.ca;
    }
    let ended = lab.run(&lab.collect(source(), None), "aaaaaaaa-1").await;
    assert_eq!((ended.code, operator.reports().len()), (exit::DONE, 0));
    assert!(ended.logs.contains("no report; the work goes on"), "{}", ended.logs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planner_hands_over_its_chunks_however_long_it_takes() {
    let (lab, operator) = slow().await;
    operator.refuse(&[503, 500, 401]);
    let work = PlanWork {
        decompose: serde_json::from_value(json!({
            "levels": [{"name": "province", "discover": {"path": "/provinces", "value": "$.code", "label": "$.name"}}]
        }))
        .unwrap(),
        total: None,
    };
    let start = Instant::now();
    let mut source = source();
    source["path"] = json!("/provinces/{{ province }}/villages");
    let mut assignment = lab.assignment(source, Work::Plan(work));
    assignment.report_after_ms = 60_000;
    let ended = lab.run(&assignment, "aaaaaaaa-1").await;
    let Some(WorkResult::Plan(result)) = ended.message.result else { panic!("{ended:?}") };
    assert_eq!((ended.code, result.chunks, result.tasks, result.shards), (exit::DONE, 1, 3, 3));
    assert_eq!(operator.chunks().len(), 1);
    assert!(start.elapsed() < Duration::from_secs(30));
}

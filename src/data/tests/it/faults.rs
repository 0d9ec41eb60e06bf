//! What a faulty source leads to, after how many tries.

use std::time::Duration;

use collect_api::plan::{Item, PageSpan, Part};
use collect_data::{Class, Ending, Error};
use collect_registry::{Controlled, Effect, Options, When};
use serde_json::json;

use crate::lab::{Lab, pages, whole};

fn status(code: u16, retry_after_seconds: Option<u64>) -> Effect {
    Effect::Status { code, retry_after_seconds }
}

async fn fails(effect: Effect) -> (Error, usize) {
    let lab = Lab::faulty(effect).await;
    let source = json!({"pagination": pages(50), "timeout": "300ms"});
    let error = lab.collect(source).await.unwrap_err();
    assert!(!lab.files().join("runs").exists(), "a failed attempt left files");
    (error, lab.requests())
}

#[tokio::test]
async fn faults_end_as_they_should_after_the_right_number_of_tries() {
    let later = Class::SourceLimited(Duration::from_secs(300));
    for (effect, category, class, tries) in [
        (status(500, None), "SourceUnavailable", Class::Retryable, 3),
        (status(503, None), "SourceUnavailable", Class::Retryable, 3),
        (status(429, Some(0)), "SourceUnavailable", Class::Retryable, 3),
        (status(408, None), "SourceUnavailable", Class::Retryable, 3),
        (status(429, Some(300)), "SourceLimited", later, 1),
        (status(503, Some(300)), "SourceLimited", later, 1),
        (Effect::Reset, "SourceUnavailable", Class::Retryable, 3),
        (Effect::Cut, "SourceUnavailable", Class::Retryable, 3),
        (Effect::Stuck, "SourceUnavailable", Class::Retryable, 3),
        (Effect::TruncatedJson, "SourceUnavailable", Class::Retryable, 3),
        (Effect::Html, "SourceNotJson", Class::Permanent, 1),
        (status(401, None), "SourceUnauthorized", Class::Permanent, 1),
        (status(403, None), "SourceUnauthorized", Class::Permanent, 1),
        (status(404, None), "SourceNotFound", Class::Permanent, 1),
        (status(410, None), "SourceNotFound", Class::Permanent, 1),
        (status(418, None), "SourceRefused", Class::Permanent, 1),
        (Effect::FirstPageForever, "PaginationLoop", Class::Permanent, 2),
    ] {
        let name = format!("{effect:?}");
        let (error, requests) = fails(effect).await;
        assert_eq!((error.category(), error.class()), (category, class), "{name}: {error}");
        // Reading ahead may have asked for more pages than were wanted.
        assert!(if tries == 2 { requests >= 2 } else { requests == tries }, "{name}: {requests} requests");
    }
}

#[tokio::test]
async fn messages_name_the_request_and_the_way_out_but_no_query() {
    let lab = Lab::faulty(Effect::Html).await;
    let error = lab.collect(json!({"query": {"api_key": "s3cret"}})).await.unwrap_err().to_string();
    assert!(error.starts_with("GET http://127.0.0.1:"), "{error}");
    assert!(error.contains("/api/villages answered 200 OK with text/html"), "{error}");
    assert!(error.contains("Maintenance") && error.contains("check spec.source.http.url"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn faults_that_pass_cost_tries_and_no_record() {
    for effect in [status(503, None), status(429, Some(0)), Effect::Cut, Effect::Reset, Effect::TruncatedJson] {
        let lab = Lab::with(collect_registry::Registry::small(), Options::faults([effect.every(3)])).await;
        // With requests side by side one of them may be hit several times in a row.
        let retry = json!({"maxAttempts": 20, "backoff": {"initial": "1ms", "max": "5ms"}});
        let result = lab.collect(json!({"pagination": pages(20), "retry": retry})).await.unwrap();
        assert_eq!((lab.codes(), result.tally.duplicates), (lab.held(4), Some(0)));
        assert!(lab.requests() > 11);
    }
}

#[tokio::test]
async fn a_retry_after_is_waited_out() {
    let lab = Lab::with(collect_registry::Registry::small(), Options::faults([status(429, Some(1)).first(1)])).await;
    let start = std::time::Instant::now();
    lab.collect(json!({"query": {"size": "1000"}})).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(lab.requests(), 2);
}

#[tokio::test]
async fn a_total_that_lies_loses_nothing_and_is_told() {
    for (add, unreliable, samples) in [(-7, 1, 1), (7, 0, 1), (-200, 1, 1)] {
        let lab = Lab::faulty(Effect::WrongTotal { add }).await;
        let tally = lab.collect(json!({"pagination": pages(50)})).await.unwrap().tally;
        assert_eq!(lab.codes(), lab.held(4), "{add}");
        assert_eq!((tally.source, tally.unreliable, tally.samples.len()), (216 + add, unreliable, samples), "{add}");
    }
}

#[tokio::test]
async fn a_source_that_moves_is_told() {
    let hidden = Effect::HideRows { rows: 5, at_start: false };
    let grows = hidden.when(When { first: Some(2), ..When::default() });
    let lab = Lab::with(collect_registry::Registry::small(), Options::faults([grows])).await;
    let source = json!({"pagination": pages(50)});
    let tally = lab.collect(source).await.unwrap().tally;
    assert_eq!((tally.records, tally.source, tally.moved), (216, 216, 1));
}

#[tokio::test]
async fn records_that_come_twice_are_counted() {
    let lab = Lab::faulty(Effect::Duplicate { every: 10 }).await;
    let tally = lab.collect(json!({"pagination": pages(50)})).await.unwrap().tally;
    assert_eq!((tally.records, tally.duplicates, tally.unreliable), (216 + 21, Some(21), 1));
}

#[tokio::test]
async fn pages_that_are_clamped_from_the_start_are_read_as_they_come() {
    let lab = Lab::faulty(Effect::ClampSize { max: 30 }).await;
    lab.collect(json!({"pagination": pages(100)})).await.unwrap();
    assert_eq!(lab.codes(), lab.held(4));
}

#[tokio::test]
async fn pages_that_are_clamped_later_fail() {
    let clamp = Effect::ClampSize { max: 15 }.when(When { skip: 2, ..When::default() });
    let lab = Lab::with(collect_registry::Registry::small(), Options::faults([clamp])).await;
    let error = lab.collect(json!({"pagination": pages(50)})).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("PageSizeClamped", Class::Permanent), "{error}");

    // A split that was planned with larger pages.
    lab.registry.control.set_options(Options::faults([Effect::ClampSize { max: 15 }.always()]));
    let part = Part::Pages(PageSpan { from: 1, to: Some(3), size: 50 });
    let error = lab.collect_items(json!({"pagination": pages(50)}), vec![Item { part, ..whole() }]).await.unwrap_err();
    assert_eq!(error.category(), "PageSizeClamped", "{error}");
}

#[tokio::test]
async fn a_404_behind_the_last_page_is_the_end_only_if_the_total_says_so() {
    let missing = status(404, None).when(When { query: "page=5".into(), ..When::default() });
    let lab = Lab::with(collect_registry::Registry::small(), Options::faults([missing])).await;
    lab.collect(json!({"pagination": pages(54)})).await.unwrap();
    assert_eq!(lab.codes(), lab.held(4));
    let lab = Lab::with(collect_registry::Registry::small(), lab.registry.control.options()).await;
    let error = lab.collect(json!({"pagination": pages(54), "total": null})).await.unwrap_err();
    assert_eq!(error.category(), "SourceNotFound");
}

#[tokio::test]
async fn a_rate_share_is_kept() {
    let lab = Lab::small().await;
    let work = collect_api::protocol::CollectWork { items: vec![whole()], checkpoint: None };
    let assignment =
        lab.assignment(json!({"pagination": pages(20)}), collect_api::protocol::Work::Collect(work.clone()));
    let share = collect_api::protocol::RateShare { requests_per_second: Some(20.0), concurrency: Some(2) };
    let control = collect_data::Control::new(&share);
    let ending = collect_data::collect(&assignment, &work, &lab.settings("a"), &control).await.unwrap();
    assert!(matches!(ending, Ending::Done(_)));
    let log = lab.registry.log();
    let took = log.last().unwrap().at_ms - log.first().unwrap().at_ms;
    assert!(took >= 490, "11 requests at 20 a second in {took} ms");
    assert!(lab.registry.control.journal.stats().peak_concurrent <= 2);
}

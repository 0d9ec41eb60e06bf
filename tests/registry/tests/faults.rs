//! Every fault must do what it says, and nothing else.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "clippy knows only functions marked as tests")]

use std::time::{Duration, Instant};

use collect_registry::{ApiKey, Controlled, Effect, Options, Registry, Running, When, serve};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

async fn with(options: Options) -> Running {
    serve(Registry::small(), options, "127.0.0.1:0".parse().unwrap()).await.unwrap()
}

async fn faulty(effect: Effect) -> Running {
    with(Options::faults([effect.always()])).await
}

async fn get(server: &Running, path: &str) -> reqwest::Result<Response> {
    reqwest::get(format!("{}{path}", server.url())).await
}

async fn page(server: &Running, path: &str) -> Value {
    get(server, path).await.unwrap().json().await.unwrap()
}

fn rows(page: &Value) -> usize {
    page["data"].as_array().unwrap().len()
}

#[tokio::test]
async fn statuses_come_at_their_numbers() {
    let unavailable = Effect::Status { code: 503, retry_after_seconds: None };
    let limited = Effect::Status { code: 429, retry_after_seconds: Some(7) };
    let server = with(Options::faults([
        unavailable.when(When { prefix: "/api/cities".into(), every: Some(3), ..When::default() }),
        limited.when(When { prefix: "/api/provinces".into(), first: Some(1), ..When::default() }),
    ]))
    .await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(get(&server, "/api/cities").await.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 503, 200, 200, 503]);
    let first = get(&server, "/api/provinces").await.unwrap();
    assert_eq!(
        (first.status(), &first.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"7".parse().unwrap())
    );
    assert_eq!(get(&server, "/api/provinces").await.unwrap().status(), 200);
    let stats = server.control.journal.stats();
    assert_eq!(stats.by_status, [(200, 5), (429, 1), (503, 2)].into());
}

#[tokio::test]
async fn probability_repeats_with_its_seed() {
    let draw = async |seed: u64| {
        let when = When { probability: Some(0.5), ..When::default() };
        let fault = Effect::Status { code: 500, retry_after_seconds: None }.when(when);
        let server = with(Options { seed, ..Options::faults([fault]) }).await;
        let mut hits = Vec::new();
        for _ in 0..30 {
            hits.push(get(&server, "/api/summary").await.unwrap().status().is_server_error());
        }
        hits
    };
    let hits = draw(1).await;
    assert_eq!(hits, draw(1).await);
    assert_ne!(hits, draw(2).await);
    assert!(hits.contains(&true) && hits.contains(&false));
}

#[tokio::test]
async fn a_cut_body_never_completes() {
    let server = faulty(Effect::Cut).await;
    let response = get(&server, "/api/villages?size=200").await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.content_length().is_none_or(|length| length > 1000));
    assert!(response.bytes().await.is_err());
}

#[tokio::test]
async fn a_reset_gives_no_answer_at_all() {
    let server = faulty(Effect::Reset).await;
    assert!(get(&server, "/api/villages").await.unwrap_err().is_request());
    assert_eq!((server.log()[0].status, server.log()[0].faults.as_slice()), (0, ["reset"].as_slice()));
}

#[tokio::test]
async fn a_stuck_server_never_answers_but_answers_others() {
    let when = When { prefix: "/api/cities".into(), ..When::default() };
    let server = with(Options::faults([Effect::Stuck.when(when)])).await;
    let patient = Client::builder().timeout(Duration::from_millis(300)).build().unwrap();
    assert!(patient.get(format!("{}/api/cities", server.url())).send().await.unwrap_err().is_timeout());
    assert_eq!(get(&server, "/api/provinces").await.unwrap().status(), 200);
    // The client has left: the request no longer counts as being answered.
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.control.journal.stats().concurrent > 0 {
        assert!(Instant::now() < deadline, "the stuck request is still held");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn html_comes_with_200() {
    let server = faulty(Effect::Html).await;
    let response = get(&server, "/api/villages").await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(response.text().await.unwrap().starts_with("<!doctype html>"));
}

#[tokio::test]
async fn truncated_json_is_a_complete_message() {
    let server = faulty(Effect::TruncatedJson).await;
    let text = get(&server, "/api/villages").await.unwrap().text().await.unwrap();
    assert!(text.starts_with("{\"data\":[") && serde_json::from_str::<Value>(&text).is_err());
}

#[tokio::test]
async fn a_delay_delays() {
    let server = faulty(Effect::Delay { milliseconds: 200 }).await;
    let before = Instant::now();
    assert_eq!(get(&server, "/api/villages").await.unwrap().status(), 200);
    assert!(before.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_wrong_total_is_wrong_everywhere() {
    let server = faulty(Effect::WrongTotal { add: 5 }).await;
    let response = get(&server, "/api/districts?size=100").await.unwrap();
    assert_eq!(response.headers()["x-total-count"], "25");
    let list: Value = response.json().await.unwrap();
    assert_eq!((list["total"].as_u64(), rows(&list)), (Some(25), 20));
    assert_eq!(page(&server, "/api/summary").await["districts"], 25);
}

#[tokio::test]
async fn a_clamped_page_still_leads_to_every_row() {
    let server = faulty(Effect::ClampSize { max: 8 }).await;
    let first = page(&server, "/api/districts?page=1&size=100").await;
    assert_eq!((rows(&first), first["size"].as_u64(), first["has_more"].as_bool()), (8, Some(8), Some(true)));
    let third = page(&server, "/api/districts?page=3&size=100").await;
    assert_eq!((rows(&third), third["has_more"].as_bool()), (4, Some(false)));
}

#[tokio::test]
async fn duplicates_do_not_count_in_the_total() {
    let server = faulty(Effect::Duplicate { every: 10 }).await;
    let list = page(&server, "/api/districts?size=100").await;
    assert_eq!((rows(&list), list["total"].as_u64()), (22, Some(20)));
    assert_eq!(list["data"][9], list["data"][10]);
    let second = page(&server, "/api/districts?page=2&size=10").await;
    assert_eq!((rows(&second), &second["data"][9]), (11, &second["data"][10]));
}

#[tokio::test]
async fn a_source_moves_while_it_is_read() {
    let moved = Effect::HideRows { rows: 3, at_start: true }.when(When { skip: 2, ..When::default() });
    let server = with(Options::faults([moved])).await;
    let before = page(&server, "/api/districts?page=1&size=10").await;
    let old_second = page(&server, "/api/districts?page=2&size=10").await;
    let new_second = page(&server, "/api/districts?page=2&size=10").await;
    assert_eq!((before["total"].as_u64(), new_second["total"].as_u64()), (Some(20), Some(17)));
    assert_eq!(new_second["data"][0], old_second["data"][3]);

    let growing = Effect::HideRows { rows: 3, at_start: false }.first(1);
    server.control.set_options(Options::faults([growing]));
    assert_eq!(page(&server, "/api/districts").await["total"], 17);
    assert_eq!(page(&server, "/api/districts").await["total"], 20);
}

#[tokio::test]
async fn a_looping_source_always_gives_its_first_page() {
    let server = faulty(Effect::FirstPageForever).await;
    let second = page(&server, "/api/districts?page=2&size=10").await;
    assert_eq!((&second["data"][0]["code"], second["has_more"].as_bool()), (&json!("110101"), Some(true)));
    assert!(second["next"].as_str().unwrap().contains("page=3"));
}

#[tokio::test]
async fn credentials_are_asked_for() {
    let key = ApiKey { header: "X-Api-Key".into(), value: "k".into() };
    let server = with(Options { token: Some("t".into()), api_key: Some(key), ..Options::default() }).await;
    let refused = get(&server, "/api/cities").await.unwrap();
    assert_eq!(
        (refused.status(), &refused.headers()["www-authenticate"]),
        (StatusCode::UNAUTHORIZED, &"Bearer".parse().unwrap())
    );
    let url = format!("{}/api/cities", server.url());
    assert_eq!(Client::new().get(&url).bearer_auth("t").send().await.unwrap().status(), 200);
    assert_eq!(Client::new().get(&url).bearer_auth("x").send().await.unwrap().status(), 401);
    assert_eq!(Client::new().get(&url).header("x-api-key", "k").send().await.unwrap().status(), 200);
    let present: Vec<bool> = server.log().iter().map(|entry| entry.authorization_present).collect();
    assert_eq!(present, [false, true, true, true]);

    server.control.set_options(Options { basic: Some("u:p".into()), ..Options::default() });
    assert_eq!(Client::new().get(&url).basic_auth("u", Some("p")).send().await.unwrap().status(), 200);
    assert_eq!(Client::new().get(&url).bearer_auth("t").send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn the_rate_limit_answers_429_with_retry_after() {
    let server = with(Options { requests_per_second: Some(0.5), burst: Some(3), ..Options::default() }).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        let response = get(&server, "/api/provinces").await.unwrap();
        let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        statuses.push((response.status().as_u16(), retry_after));
    }
    let limited = (429, Some("2".to_owned()));
    assert_eq!(statuses, [(200, None), (200, None), (200, None), limited.clone(), limited]);
}

#[tokio::test]
async fn options_change_at_run_time() {
    let server = with(Options { token: Some("t".into()), ..Options::default() }).await;
    let control = format!("{}/_control", server.url());
    let client = Client::new();
    let patch = json!({"faults": [{"effect": {"status": {"code": 404}}, "when": {"prefix": "/api/cities"}}]});
    let patched: Options = client.patch(&control).json(&patch).send().await.unwrap().json().await.unwrap();
    assert_eq!((patched.token.as_deref(), patched.faults.len()), (Some("t"), 1));
    let answer = client.get(format!("{}/api/cities", server.url())).bearer_auth("t").send().await.unwrap();
    assert_eq!(answer.status(), 404);
    client.patch(&control).json(&json!({"token": null})).send().await.unwrap();
    assert_eq!(get(&server, "/api/provinces").await.unwrap().status(), 200);
    assert_eq!(client.put(&control).json(&json!({"tokn": 1})).send().await.unwrap().status(), 400);
    client.put(&control).json(&json!({})).send().await.unwrap();
    assert_eq!(server.control.options(), Options::default());
    assert_eq!(get(&server, "/_control").await.unwrap().json::<Options>().await.unwrap(), Options::default());
}

#[tokio::test]
async fn the_log_says_exactly_what_was_asked() {
    let server = with(Options::default()).await;
    for path in ["/api/provinces?size=2", "/api/cities", "/api/nowhere/x/y"] {
        get(&server, path).await.unwrap();
    }
    let log: Value = page(&server, "/_log").await;
    let seen: Vec<_> = log
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["path"].as_str(), e["query"].as_str(), e["status"].as_u64(), e["records"].as_u64()))
        .collect();
    assert_eq!(
        seen,
        [
            (Some("/api/provinces"), Some("size=2"), Some(200), Some(2)),
            (Some("/api/cities"), Some(""), Some(200), Some(9)),
            (Some("/api/nowhere/x/y"), Some(""), Some(404), Some(0)),
        ]
    );
    assert_eq!(page(&server, "/_log?since=2").await.as_array().unwrap().len(), 1);
    let stats = page(&server, "/_stats").await;
    assert_eq!(
        (stats["requests"].as_u64(), stats["records"].as_u64(), &stats["by_status"]["200"]),
        (Some(3), Some(11), &json!(2))
    );
    Client::new().delete(format!("{}/_log", server.url())).send().await.unwrap();
    assert!(server.log().is_empty());
}

#[tokio::test]
async fn a_held_request_is_answered_once_the_options_are_set_anew() {
    let server = faulty(Effect::Hold).await;
    let held = tokio::spawn(reqwest::get(format!("{}/api/cities", server.url())));
    while server.log().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.log()[0].status, 0);
    server.control.set_options(Options::default());
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn the_log_holds_what_hooks_bring() {
    let down = Effect::Status { code: 503, retry_after_seconds: None };
    let server = with(Options::faults([down.first(1)])).await;
    let url = format!("{}/api/hooks/done", server.url());
    let send = async || Client::new().post(&url).body("{\"run\":1}").send().await.unwrap().status().as_u16();
    assert_eq!([send().await, send().await], [503, 204]);
    assert!(server.log().iter().all(|entry| entry.path == "/api/hooks/done" && entry.body == "{\"run\":1}"));
}

#[tokio::test]
async fn dropping_the_handle_ends_the_server() {
    let server = faulty(Effect::Stuck).await;
    let url = format!("{}/api/cities", server.url());
    let held = tokio::spawn(reqwest::get(url.clone()));
    while server.log().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(server);
    assert!(held.await.unwrap().is_err());
    assert!(reqwest::get(url).await.is_err());
}

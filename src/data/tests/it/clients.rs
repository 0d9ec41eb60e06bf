//! Redirects, foreign origins and oversized answers, against a server of a few canned answers.

use std::sync::{Arc, Mutex};

use collect_api::{protocol::RateShare, source::HttpSource};
use collect_data::{
    Class, Control,
    http::{Answer, Client, Endpoint, HttpError, Variables},
    secrets::Secrets,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server that answers each path with what `answers` has for it, and keeps what it was asked.
pub struct Canned {
    pub url: String,
    pub asked: Arc<Mutex<Vec<String>>>,
}

pub async fn canned(answers: Vec<(&'static str, String)>) -> Canned {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut chunk = [0; 1024];
                match stream.read(&mut chunk).await {
                    Ok(n) if n > 0 => request.extend_from_slice(&chunk[..n]),
                    _ => break,
                }
            }
            let request = String::from_utf8(request).unwrap();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer =
                answers.iter().find(|(wanted, _)| *wanted == path).map_or("HTTP/1.1 404 Not Found\r\n\r\n", |(_, a)| a);
            seen.lock().unwrap().push(request);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Canned { url, asked }
}

pub fn redirect(code: u16, to: &str) -> String {
    format!("HTTP/1.1 {code} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

pub fn good(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

async fn send(source: Value, max_body: usize) -> Result<Answer, HttpError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("s")).unwrap();
    std::fs::write(dir.path().join("s/k"), "tok-s3cret").unwrap();
    let source: HttpSource = serde_json::from_value(source).unwrap();
    let control = Control::new(&RateShare::default());
    let client = Client::new(&source, &Secrets::below(dir.path()), max_body, &control)?;
    client.send(&Endpoint::of(&source).unwrap().draft(&Variables::default()).unwrap()).await
}

fn bearer() -> Value {
    json!({"bearer": {"secretRef": {"name": "s", "key": "k"}}})
}

#[tokio::test]
async fn redirects_are_followed_at_home_with_credentials() {
    let server =
        canned(vec![("/a?x=1", redirect(302, "/b")), ("/b", redirect(308, "c?y=2")), ("/c?y=2", good("[1]"))]).await;
    let source = json!({"url": server.url, "path": "/a", "query": {"x": "1"}, "auth": bearer()});
    let answer = send(source, 1000).await.unwrap();
    assert_eq!((answer.body.get(), answer.url.path(), answer.url.query()), ("[1]", "/c", Some("y=2")));
    let asked = server.asked.lock().unwrap();
    assert!(
        asked.len() == 3 && asked.iter().all(|request| request.contains("authorization: Bearer tok-s3cret")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_post_that_is_redirected_by_303_becomes_a_get() {
    let server = canned(vec![("/a", redirect(303, "/b")), ("/b", good("[]"))]).await;
    send(json!({"url": server.url, "path": "/a", "method": "POST", "body": {"json": {"q": 1}}}), 1000).await.unwrap();
    let asked = server.asked.lock().unwrap();
    assert!(asked[0].starts_with("POST /a") && asked[0].contains("content-type: application/json"), "{asked:?}");
    assert!(asked[1].starts_with("GET /b") && !asked[1].contains("content-type"), "{asked:?}");
}

#[tokio::test]
async fn other_origins_are_asked_only_if_they_are_allowed() {
    let other = canned(vec![("/b", good("[2]"))]).await;
    let server = canned(vec![("/a", redirect(302, &format!("{}/b", other.url)))]).await;
    let error = send(json!({"url": server.url, "path": "/a", "auth": bearer()}), 1000).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("SourceRedirects", Class::Permanent));
    assert!(error.to_string().contains(&other.url) && error.to_string().contains("allowOrigins"), "{error}");
    assert!(other.asked.lock().unwrap().is_empty());
    let allowed = json!({"url": server.url, "path": "/a", "auth": bearer(), "allowOrigins": [other.url]});
    assert_eq!(send(allowed, 1000).await.unwrap().body.get(), "[2]");
}

#[tokio::test]
async fn redirects_without_end_fail() {
    let server = canned(vec![("/a", redirect(302, "/a"))]).await;
    let error = send(json!({"url": server.url, "path": "/a"}), 1000).await.unwrap_err();
    assert!(matches!(error, HttpError::TooManyRedirects { .. }), "{error}");
    assert_eq!(server.asked.lock().unwrap().len(), 6);
}

#[tokio::test]
async fn answers_above_the_bound_are_refused() {
    let server = canned(vec![("/a", good(&format!("[{}1]", "1,".repeat(1000))))]).await;
    let error = send(json!({"url": server.url, "path": "/a"}), 1000).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("PageTooLarge", Class::Permanent));
    assert!(error.to_string().contains("smaller pages"), "{error}");
}

#[tokio::test]
async fn an_api_key_in_the_query_shows_in_no_message() {
    let server = canned(vec![]).await;
    let key = json!({"apiKey": {"secretRef": {"name": "s", "key": "k"}, "into": "query:key"}});
    let error = send(json!({"url": server.url, "path": "/a", "auth": key}), 1000).await.unwrap_err();
    assert!(server.asked.lock().unwrap()[0].starts_with("GET /a?key=tok-s3cret "));
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    let nowhere = json!({"url": "http://127.0.0.1:1", "auth": key, "retry": {"maxAttempts": 1}});
    let error = send(nowhere, 1000).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("SourceUnavailable", Class::Retryable));
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
}

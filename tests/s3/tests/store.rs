//! The server as the sink's own client sees it: object_store, over real sockets.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "clippy knows only functions marked as tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use collect_s3::{Controlled, Effect, Options, Running, S3Server, When};
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    ClientOptions, Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
    UpdateVersion,
};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

struct Lake {
    _dir: TempDir,
    server: Running,
}

impl Lake {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = S3Server::start(dir.path(), ["lake"]).await.unwrap();
        Self { _dir: dir, server }
    }

    fn builder(&self) -> AmazonS3Builder {
        AmazonS3Builder::new()
            .with_endpoint(&self.server.endpoint)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_region("us-east-1")
            .with_bucket_name("lake")
            .with_access_key_id(&self.server.access_key)
            .with_secret_access_key(&self.server.secret_key)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
    }

    fn store(&self) -> AmazonS3 {
        self.builder().build().unwrap()
    }

    /// A client that reports the first failure.
    fn impatient(&self) -> AmazonS3 {
        self.builder().with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() }).build().unwrap()
    }
}

fn create() -> PutOptions {
    PutOptions { mode: PutMode::Create, ..PutOptions::default() }
}

async fn read(store: &AmazonS3, key: &str) -> Bytes {
    store.get(&Path::parse(key).unwrap()).await.unwrap().bytes().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_32_racing_creates_exactly_one_wins_every_time() {
    let lake = Lake::start().await;
    let stores: Vec<Arc<AmazonS3>> = (0..32).map(|_| Arc::new(lake.store())).collect();
    for round in 0..50 {
        let key = Path::from(format!("race/{round}/manifest.json"));
        let contenders = stores.iter().enumerate().map(|(i, store)| {
            let (store, key) = (Arc::clone(store), key.clone());
            tokio::spawn(
                async move { store.put_opts(&key, PutPayload::from(format!("contender {i}")), create()).await },
            )
        });
        let mut winners = Vec::new();
        for (i, outcome) in join_all(contenders).await.into_iter().enumerate() {
            match outcome.unwrap() {
                Ok(_) => winners.push(i),
                Err(Error::AlreadyExists { .. }) => {}
                Err(other) => panic!("round {round}: {other}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?} all won");
        let stored = read(&stores[0], key.as_ref()).await;
        assert_eq!(stored, format!("contender {}", winners[0]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_racing_updates_of_one_version_exactly_one_wins() {
    let lake = Lake::start().await;
    let store = Arc::new(lake.store());
    let key = Path::from("current.json");
    let mut version = UpdateVersion::from(store.put(&key, "start".into()).await.unwrap());
    for round in 0..20 {
        let contenders = (0..16).map(|i| {
            let (store, key, version) = (Arc::clone(&store), key.clone(), version.clone());
            tokio::spawn(async move {
                let options = PutOptions { mode: PutMode::Update(version), ..PutOptions::default() };
                store.put_opts(&key, PutPayload::from(format!("round {round} by {i}")), options).await
            })
        });
        let mut won = Vec::new();
        for outcome in join_all(contenders).await {
            match outcome.unwrap() {
                Ok(result) => won.push(result),
                Err(Error::Precondition { .. }) => {}
                Err(other) => panic!("round {round}: {other}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        version = won.remove(0).into();
    }
}

#[tokio::test]
async fn objects_are_put_got_listed_and_deleted() {
    let lake = Lake::start().await;
    let store = lake.store();
    let keys: Vec<Path> = (0..25).map(|i| Path::from(format!("runs/1/{:02}/part {i}+ä.ndjson", i % 3))).collect();
    for key in &keys {
        store.put(key, PutPayload::from(key.to_string())).await.unwrap();
    }
    assert_eq!(read(&store, keys[7].as_ref()).await, keys[7].to_string());
    assert_eq!(store.get_range(&keys[7], 5..6).await.unwrap(), "1");
    assert_eq!(store.head(&keys[7]).await.unwrap().size, keys[7].to_string().len() as u64);

    let mut listed: Vec<Path> =
        store.list(Some(&Path::from("runs"))).map_ok(|meta| meta.location).try_collect().await.unwrap();
    listed.sort();
    let mut expected = keys.clone();
    expected.sort();
    assert_eq!(listed, expected);
    let level = store.list_with_delimiter(Some(&Path::from("runs/1"))).await.unwrap();
    assert_eq!(level.common_prefixes, ["runs/1/00", "runs/1/01", "runs/1/02"].map(Path::from));

    store.delete(&keys[0]).await.unwrap();
    assert!(matches!(store.get(&keys[0]).await, Err(Error::NotFound { .. })));
    store.put_opts(&keys[0], "again".into(), create()).await.unwrap();
    assert_eq!(read(&store, keys[0].as_ref()).await, "again");
}

#[tokio::test]
async fn a_list_goes_on_after_its_first_thousand() {
    let lake = Lake::start().await;
    let store = lake.store();
    for batch in 0..11 {
        let puts = (0..100).map(|i| {
            let key = Path::from(format!("many/{:04}", batch * 100 + i));
            let store = &store;
            async move { store.put(&key, "x".into()).await.unwrap() }
        });
        join_all(puts).await;
    }
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    assert_eq!(listed.len(), 1100);
}

#[tokio::test]
async fn an_upload_in_parts_appears_when_it_is_completed() {
    let lake = Lake::start().await;
    let store = lake.store();
    let key = Path::from("large.bin");
    let mut upload = store.put_multipart(&key).await.unwrap();
    for byte in [1u8, 2, 3] {
        upload.put_part(vec![byte; 5 << 20].into()).await.unwrap();
    }
    assert!(matches!(store.head(&key).await, Err(Error::NotFound { .. })));
    upload.complete().await.unwrap();
    let whole = read(&store, "large.bin").await;
    assert_eq!((whole.len(), whole[0], whole[(5 << 20) + 1], whole[(15 << 20) - 1]), (15 << 20, 1, 2, 3));

    let mut aborted = store.put_multipart(&Path::from("never")).await.unwrap();
    aborted.put_part(vec![0; 1000].into()).await.unwrap();
    aborted.abort().await.unwrap();
    assert!(matches!(store.head(&Path::from("never")).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn wrong_keys_are_refused() {
    let lake = Lake::start().await;
    let stranger = lake.builder().with_secret_access_key("wrong").build().unwrap();
    assert!(stranger.put(&Path::from("a"), "x".into()).await.is_err());
    assert!(matches!(lake.store().head(&Path::from("a")).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn objects_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let first =
        Lake { server: S3Server::start(dir.path(), ["lake"]).await.unwrap(), _dir: tempfile::tempdir().unwrap() };
    first.store().put(&Path::from("kept"), "x".into()).await.unwrap();
    drop(first);
    let second = Lake { server: S3Server::start(dir.path(), ["lake"]).await.unwrap(), _dir: dir };
    assert_eq!(read(&second.store(), "kept").await, "x");
    assert!(matches!(
        second.store().put_opts(&Path::from("kept"), "y".into(), create()).await,
        Err(Error::AlreadyExists { .. })
    ));
}

#[tokio::test]
async fn slow_down_comes_at_its_numbers_and_is_overcome() {
    let lake = Lake::start().await;
    lake.server.control.set_faults([Effect::SlowDown.every(3)]);
    let store = lake.store();
    for i in 0..6 {
        store.put(&Path::from(format!("k{i}")), "x".into()).await.unwrap();
    }
    let statuses: Vec<u16> = lake.server.control.log().iter().map(|entry| entry.status).collect();
    assert_eq!(statuses, [200, 200, 503, 200, 200, 503, 200, 200]);
}

#[tokio::test]
async fn an_ambiguous_create_is_written_though_the_client_sees_an_error() {
    let lake = Lake::start().await;
    let once = When { method: Some("PUT".into()), first: Some(1), ..When::default() };
    lake.server.control.set_faults([Effect::ResetAfter.when(once.clone())]);
    let outcome = lake.impatient().put_opts(&Path::from("manifest.json"), "mine".into(), create()).await;
    assert!(matches!(outcome, Err(Error::Generic { .. })), "{outcome:?}");
    assert_eq!(read(&lake.store(), "manifest.json").await, "mine");

    lake.server.control.set_faults([Effect::ResetBefore.when(once.clone())]);
    let outcome = lake.impatient().put_opts(&Path::from("other.json"), "mine".into(), create()).await;
    assert!(matches!(outcome, Err(Error::Generic { .. })), "{outcome:?}");
    assert!(matches!(lake.store().head(&Path::from("other.json")).await, Err(Error::NotFound { .. })));

    // With its default retries the client must never report a create as lost to someone else's object without saying so.
    lake.server.control.set_faults([Effect::ResetAfter.when(once)]);
    let outcome = lake.store().put_opts(&Path::from("third.json"), "mine".into(), create()).await;
    println!("object_store after a reset create: {outcome:?}");
    assert_eq!(read(&lake.store(), "third.json").await, "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_leaves_never_leaves_half_a_write() {
    let lake = Lake::start().await;
    let (store, key) = (lake.store(), Path::from("k"));
    let (old, new) = (vec![1u8; 1 << 16], vec![2u8; 1 << 16]);
    let tag_of = async |body: &Vec<u8>| store.put(&key, body.clone().into()).await.unwrap().e_tag;
    let tags = [tag_of(&old).await, tag_of(&new).await];
    let url = store.signed_url(http::Method::PUT, &key, Duration::from_secs(600)).await.unwrap();
    let (path, query) = (url.path(), url.query().unwrap());
    let host = lake.server.endpoint.trim_start_matches("http://");
    let head = format!("PUT {path}?{query} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n\r\n", new.len());
    let mut written = 0;
    // Sends all of it, and leaves a little later each time: before it is written, in the middle, afterwards.
    for i in 0..100 {
        store.put(&key, old.clone().into()).await.unwrap();
        let mut client = TcpStream::connect(host).await.unwrap();
        client.write_all(&[head.as_bytes(), &new].concat()).await.unwrap();
        let left = Instant::now();
        while left.elapsed() < Duration::from_micros(40 * i) {
            tokio::task::yield_now().await;
        }
        drop(client);
        while lake.server.control.journal().stats().concurrent > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The read waits for a write that goes on without its client.
        let found = store.get(&key).await.unwrap();
        let tag = found.meta.e_tag.clone();
        let body = found.bytes().await.unwrap();
        assert!(body == old || body == new, "neither version, {} bytes", body.len());
        assert_eq!(tag, tags[usize::from(body == new)], "the tag is that of the other version");
        written += usize::from(body == new);
    }
    assert!(written > 0, "the client always left too early");
}

#[tokio::test]
async fn a_stuck_writer_holds_up_nobody() {
    let lake = Lake::start().await;
    let first = When { prefix: "/lake/key".into(), first: Some(1), ..When::default() };
    lake.server.control.set_faults([Effect::Stuck.when(first)]);
    let (stuck, store) = (Arc::new(lake.store()), lake.store());
    let held = tokio::spawn(async move { stuck.put(&Path::from("key"), "never".into()).await });
    while lake.server.control.log().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.put_opts(&Path::from("key"), "mine".into(), create()).await.unwrap();
    assert_eq!(read(&store, "key").await, "mine");
    held.abort();
}

#[tokio::test]
async fn a_held_create_is_done_once_the_faults_are_set_anew() {
    let lake = Lake::start().await;
    lake.server.control.set_faults([Effect::Hold.first(1)]);
    let (held, store) = (Arc::new(lake.store()), lake.store());
    let late = tokio::spawn(async move { held.put_opts(&Path::from("key"), "late".into(), create()).await });
    while lake.server.control.log().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.put_opts(&Path::from("key"), "first".into(), create()).await.unwrap();
    lake.server.control.set_faults([]);
    assert!(matches!(late.await.unwrap(), Err(object_store::Error::AlreadyExists { .. })));
    assert_eq!(read(&store, "key").await, "first");
}

#[tokio::test]
async fn a_cut_get_never_completes_and_a_delay_delays() {
    let lake = Lake::start().await;
    let store = lake.impatient();
    store.put(&Path::from("k"), PutPayload::from(vec![1u8; 100_000])).await.unwrap();
    lake.server.control.set_faults([Effect::Cut.always()]);
    assert!(async { store.get(&Path::from("k")).await?.bytes().await }.await.is_err());
    lake.server.control.set_faults([Effect::Delay { milliseconds: 150 }.always()]);
    let before = Instant::now();
    assert_eq!(read(&store, "k").await.len(), 100_000);
    assert!(before.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn a_store_without_conditions_lets_the_second_create_win() {
    let lake = Lake::start().await;
    lake.server.control.set_faults([Effect::IgnoreConditions.always()]);
    let (store, key) = (lake.store(), Path::from("probe"));
    store.put_opts(&key, "first".into(), create()).await.unwrap();
    store.put_opts(&key, "second".into(), create()).await.unwrap();
    assert_eq!(read(&store, "probe").await, "second");
}

#[tokio::test]
async fn a_key_that_is_too_long_is_refused_as_such() {
    let lake = Lake::start().await;
    let store = lake.store();
    let of = |length: usize| Path::from(format!("a/{}", "k".repeat(length - 2)));
    store.put(&of(164), "x".into()).await.unwrap();
    assert_eq!(read(&store, of(164).as_ref()).await, "x");
    let refused = store.put(&of(165), "x".into()).await.unwrap_err().to_string();
    assert!(refused.contains("KeyTooLongError"), "{refused}");
    let mut upload = store.put_multipart(&of(131)).await.unwrap();
    upload.put_part("x".into()).await.unwrap();
    upload.complete().await.unwrap();
    assert!(store.put_multipart(&of(132)).await.unwrap_err().to_string().contains("KeyTooLongError"));
}

#[tokio::test]
async fn faults_are_set_over_the_control_port() {
    let lake = Lake::start().await;
    let url = format!("{}/_control", lake.server.control_endpoint);
    let faults = r#"{"faults": [{"effect": "slowDown", "when": {"prefix": "/lake/a", "first": 1}}, {"effect": {"status": {"code": 409}}, "when": {"prefix": "/lake/b"}}]}"#;
    let set: Options = reqwest::Client::new().put(&url).body(faults).send().await.unwrap().json().await.unwrap();
    assert_eq!((set.faults.len(), lake.server.control.options()), (2, set));
    let store = lake.impatient();
    assert!(store.put(&Path::from("a"), "x".into()).await.unwrap_err().to_string().contains("SlowDown"));
    store.put(&Path::from("a"), "x".into()).await.unwrap();
    assert!(
        store.put(&Path::from("b"), "x".into()).await.unwrap_err().to_string().contains("ConditionalRequestConflict")
    );
    let log: serde_json::Value =
        reqwest::get(format!("{}/_log?since=1", lake.server.control_endpoint)).await.unwrap().json().await.unwrap();
    let seen: Vec<_> =
        log.as_array().unwrap().iter().map(|entry| (entry["path"].as_str(), entry["status"].as_u64())).collect();
    assert_eq!(seen, [(Some("/lake/a"), Some(200)), (Some("/lake/b"), Some(409))]);
}

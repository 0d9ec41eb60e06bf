//! Who is refused at the worker endpoint and how: over the network, with tokens that the API server issued.
//!
//! The rightful worker is held at its source meanwhile, and reports as it always does. Each caller who has no business there claims
//! a number of records that nobody collected; it must show up nowhere.

use std::time::Duration;

use collect_api::{
    CollectShard, labels,
    protocol::{PLAN_PATH, PROGRESS_PATH, TOKEN_AUDIENCE},
};
use collect_e2e::{
    Space,
    demo::{RELEASE, SYSTEM},
    figure, http as plain_http,
    tasks::SOON,
};
use http::{Method, Request};
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    batch::v1::Job,
    core::v1::{Pod, Service, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    client::Body,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

use crate::{
    chart::{self, Run},
    lab::Lab,
};

/// Records that nobody collected.
const CLAIM: i64 = 987_654_321;
/// Keeps a Job of the test until it lets it go.
const HOLD: &str = "example.dev/hold";
/// A body larger than a report may be.
const TOO_LONG: usize = 65 * 1024;

/// The worker endpoint, as a worker reaches it: by its certificate's authority and name.
struct Door {
    client: Client,
    address: String,
}

impl Door {
    async fn new(lab: &Lab) -> Self {
        let services: Api<Service> = Api::namespaced(lab.client.clone(), SYSTEM);
        let service = services.get(RELEASE).await.expect("the endpoint has a Service");
        let ip = service.spec.and_then(|spec| spec.cluster_ip).expect("it has an address");
        let address = format!("{ip}:8443");
        let mut config = Config::new(format!("https://{address}").parse().expect("a URL"));
        let pem = chart::authority(lab).await;
        let authorities = CertificateDer::pem_slice_iter(&pem).map(|one| one.expect("a certificate").to_vec());
        config.root_cert = Some(authorities.collect());
        config.tls_server_name = Some(format!("{RELEASE}.{SYSTEM}.svc"));
        config.default_retry = false;
        Self { client: Client::try_from(config).expect("a client"), address }
    }

    /// Status and body of the answer.
    async fn knock(&self, method: Method, path: &str, token: Option<&str>, kind: &str, body: String) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).header("content-type", kind);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Body::from(body.into_bytes())).expect("a request");
        let answer = self.client.send(request).await.expect("the endpoint answers over TLS");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect_bytes().await.expect("the answer has an end");
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn report(&self, token: Option<&str>, report: &Value) -> (u16, String) {
        self.knock(Method::POST, PROGRESS_PATH, token, "application/json", report.to_string()).await
    }
}

/// A report of an attempt.
fn report(attempt: i32, seq: i64, records: i64) -> Value {
    json!({"attempt": attempt, "seq": seq, "stage": "reading", "records": records, "bytes": records})
}

/// A token of a namespace's default account, bound to this pod if there is one.
async fn token(space: &Space, pod: Option<&Pod>, audience: &str) -> String {
    let mut spec = json!({"audiences": [audience], "expirationSeconds": 3600});
    if let Some(pod) = pod {
        spec["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "uid": pod.uid()});
    }
    let request: TokenRequest = serde_json::from_value(json!({"spec": spec})).expect("a request");
    let accounts: Api<ServiceAccount> = space.api();
    let made = accounts.create_token_request("default", &PostParams::default(), &request).await.expect("a token");
    made.status.and_then(|status| status.token).expect("it has one")
}

/// A pod that the API server knows and that no node runs.
fn idle() -> Value {
    json!({
        "schedulerName": "nobody",
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "idle",
            "image": "registry.example/idle",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }],
    })
}

/// A Job of somebody else's, and the pod that Kubernetes makes for it.
async fn foreign(space: &Space, name: &str, owner: Option<&CollectShard>) -> Pod {
    // Kubernetes collects what names an owner of another namespace; the finalizer keeps it for as long as the test takes.
    let metadata = json!({"name": name, "finalizers": [HOLD]});
    let template = json!({"metadata": {"labels": {"idle": name}}, "spec": idle()});
    let job: Job =
        serde_json::from_value(json!({"metadata": metadata, "spec": {"template": template}})).expect("a Job");
    space.jobs().create(&PostParams::default(), &job).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    let label = format!("idle={name}");
    let pods = space.until_labelled::<Pod>(&label, "the Job has a pod", SOON, |pods| !pods.is_empty()).await;
    if let Some(shard) = owner {
        let (name, uid) = (shard.name_any(), shard.uid());
        let owner = json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectShard", "name": name, "uid": uid, "controller": true});
        let owned = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        space
            .jobs()
            .patch(&job.name_any(), &PatchParams::default(), &owned)
            .await
            .expect("anybody may claim to be owned");
    }
    pods.into_iter().next().expect("it was seen")
}

/// The shard of a worker's pod, as it stands.
async fn shard_of(lab: &Lab, worker: &Pod) -> CollectShard {
    let shard = worker.labels().get(labels::SHARD).expect("a worker's pod names its shard");
    lab.space.shards().get(shard).await.expect("the shard is there")
}

pub async fn it_refuses_everyone_but_the_rightful_worker(lab: &Lab, run: &Run) {
    let door = Door::new(lab).await;
    let collect = format!("{}=collect", labels::WORK);
    let workers = lab.space.until_labelled::<Pod>(&collect, "two workers", SOON, |pods| pods.len() >= 2).await;
    let running = |pod: &&Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
    let workers: Vec<&Pod> = workers.iter().filter(running).collect();
    let (worker, other) = (workers[0], workers[1]);
    // The worker has reported by itself: what it says next has a number.
    let name = worker.labels()[labels::SHARD].clone();
    let has_reported = |shard: &CollectShard| shard.status.as_ref().is_some_and(|status| status.progress.is_some());
    let shard = lab.space.until::<CollectShard>(&name, "its worker has reported", SOON, has_reported).await;
    let attempt = shard.status.as_ref().and_then(|status| status.attempts.last()).expect("it has an attempt").n;

    let elsewhere = Space::new(lab.cluster, "elsewhere").await;
    elsewhere.until::<ServiceAccount>("default", "its account is there", SOON, |_| true).await;
    let bare = serde_json::from_value(json!({"metadata": {"name": "bare"}, "spec": idle()})).expect("a pod");
    let bare = lab.space.pods().create(&PostParams::default(), &bare).await.expect("a pod of nobody");
    let no_collection = foreign(&lab.space, "no-collection", None).await;
    let pretender = foreign(&lab.space, "pretender", Some(&shard)).await;
    let stranger = foreign(&elsewhere, "stranger", Some(&shard)).await;

    let rightful = token(&lab.space, Some(worker), TOKEN_AUDIENCE).await;
    let tokens = [
        ("no token", None, 401),
        ("garbage", Some("garbage".to_owned()), 401),
        ("a token with another signature", Some(forged(&rightful)), 401),
        (
            "the worker's own token for another audience",
            Some(token(&lab.space, Some(worker), "https://kubernetes.default.svc").await),
            401,
        ),
        ("a token that is bound to no pod", Some(token(&lab.space, None, TOKEN_AUDIENCE).await), 403),
        ("a pod of no Job", Some(token(&lab.space, Some(&bare), TOKEN_AUDIENCE).await), 403),
        ("a Job of no collection", Some(token(&lab.space, Some(&no_collection), TOKEN_AUDIENCE).await), 403),
        // These have proved to be pods of a Job that names a shard. It is not the shard's attempt: they are told to leave.
        ("a Job that claims the shard", Some(token(&lab.space, Some(&pretender), TOKEN_AUDIENCE).await), 200),
        (
            "a Job of another namespace that claims the shard",
            Some(token(&elsewhere, Some(&stranger), TOKEN_AUDIENCE).await),
            200,
        ),
    ];
    let mut refused = 0;
    for (who, token, expected) in tokens {
        let (status, body) = door.report(token.as_deref(), &report(attempt, 1_000_000, CLAIM)).await;
        assert_eq!(status, expected, "{who}: {body}");
        assert_eq!(status == 200, body.contains("\"Abort\""), "{who}: {body}");
        assert!(status == 200 || body.contains("\"error\""), "{who} is told why: {body}");
        refused += 1;
    }
    // The rightful token, for what is not the worker's to say.
    let claim = report(attempt, 1_000_000, CLAIM).to_string();
    let json = "application/json";
    let chunk = json!({"attempt": 1, "index": 0, "data": ""}).to_string();
    let long =
        json!({"attempt": attempt, "seq": 1_000_000, "stage": "x".repeat(TOO_LONG), "records": CLAIM, "bytes": 0})
            .to_string();
    for (what, method, path, kind, body, expected) in [
        ("another method", Method::GET, PROGRESS_PATH, json, String::new(), 405),
        ("another method", Method::PUT, PROGRESS_PATH, json, claim.clone(), 405),
        ("another path", Method::POST, "/v1/shards", json, claim.clone(), 404),
        ("the root", Method::GET, "/", json, String::new(), 404),
        ("a body that is too long", Method::POST, PROGRESS_PATH, json, long, 413),
        ("another content type", Method::POST, PROGRESS_PATH, "text/plain", claim.clone(), 415),
        ("half of a body", Method::POST, PROGRESS_PATH, json, claim[..claim.len() / 2].to_owned(), 400),
        ("something else", Method::POST, PROGRESS_PATH, json, json!({"records": CLAIM}).to_string(), 422),
        ("a plan", Method::POST, PLAN_PATH, json, chunk, 403),
    ] {
        let (status, body) = door.knock(method.clone(), path, Some(&rightful), kind, body).await;
        assert_eq!(status, expected, "{what}: {method} {path}: {body}");
        refused += 1;
    }
    for n in [attempt + 1, 0] {
        let (status, body) = door.report(Some(&rightful), &report(n, 1_000_000, CLAIM)).await;
        assert!(status == 200 && body.contains("\"Abort\""), "attempt {n}: {status} {body}");
        refused += 1;
    }
    // Without TLS nobody speaks HTTP there.
    let without = plain_http::request("POST", &door.address, PROGRESS_PATH, &claim).await;
    assert!(!matches!(without, Ok((status, _)) if status != 0), "without TLS: {without:?}");
    refused += 1;

    for worker in [worker, other] {
        let now = shard_of(lab, worker).await;
        let text = serde_json::to_string(&now).expect("it is JSON");
        assert!(!text.contains(&CLAIM.to_string()), "nothing of it is written: {text}");
        let attempts = now.status.map(|status| status.attempts).unwrap_or_default();
        assert!(attempts.len() == 1 && attempts[0].is_live(), "{attempts:?}");
    }

    // The rightful worker is heard at the same moment, and so is the other one: each for its own shard.
    for (worker, records) in [(worker, 7), (other, 8)] {
        let token = token(&lab.space, Some(worker), TOKEN_AUDIENCE).await;
        let mine = shard_of(lab, worker).await;
        let status = mine.status.expect("it has a status");
        let seq = status.progress.as_ref().map_or(1, |progress| progress.seq + 1);
        let attempt = status.attempts.last().expect("it has an attempt").n;
        let (code, body) = door.report(Some(&token), &report(attempt, seq, records)).await;
        assert!(code == 200 && body.contains("\"Continue\""), "{code} {body}");
        let name = worker.labels()[labels::SHARD].clone();
        lab.space
            .until::<CollectShard>(
                &name,
                "what the rightful worker says is written",
                Duration::from_secs(10),
                |shard| {
                    let progress = shard.status.as_ref().and_then(|status| status.progress.as_ref());
                    progress.is_some_and(|progress| {
                        progress.seq > seq || (progress.seq == seq && progress.records == records)
                    })
                },
            )
            .await;
    }
    figure("ways in that the worker endpoint refuses", refused);

    for space in [&lab.space, &elsewhere] {
        for job in space.all::<Job>().await.iter().filter(|job| job.finalizers().iter().any(|one| one == HOLD)) {
            let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            space.jobs().patch(&job.name_any(), &PatchParams::default(), &free).await.expect("it can be let go");
            // Gone already, if its owner never was there.
            let _ = space.jobs().delete(&job.name_any(), &kube::api::DeleteParams::background()).await;
        }
    }
    lab.space.kubectl("delete pod bare --now");
    run.goes_on(lab).await;
}

/// The same token but for the last letters of its signature.
fn forged(token: &str) -> String {
    let (rest, last) = token.split_at(token.len() - 8);
    let other: String = last.chars().map(|letter| if letter == 'A' { 'B' } else { 'A' }).collect();
    format!("{rest}{other}")
}

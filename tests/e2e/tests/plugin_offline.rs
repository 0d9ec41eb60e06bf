//! The commands of `kubectl collect` that judge, foretell and explain: through the real kubectl, against the real API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    process::{Command, Output},
    time::Duration,
};

use collect_api::{CollectShard, CollectTask, Phase};
use collect_e2e::{
    Cluster, Node, Operator, Space, audit,
    cases::{bounds, creations, object, smallest, task, updates},
    cluster, programs,
    space::phase,
    tasks::{SOON, World},
};
use collect_registry::Registry;
use futures::StreamExt as _;
use http::{Method, Request};
use kube::{Client, ResourceExt};
use object_store::ObjectStore as _;
use serde_json::{Value, json};

fn process_cluster() -> &'static Cluster {
    Cluster::shared("e2e-plugin-offline", Node::Process).expect("a process node needs nothing that could be missing")
}

/// kubectl as administrator, with the plugin in its path.
fn kubectl(space: &Space) -> Command {
    let mut kubectl = space.cluster.kubectl();
    let plugin = programs::plugin();
    let folder = plugin.parent().expect("it lies in a folder").display().to_string();
    kubectl.env("PATH", format!("{folder}:{}", std::env::var("PATH").unwrap_or_default()));
    kubectl.env_remove("NO_COLOR").current_dir(&space.folder);
    kubectl
}

fn collect(space: &Space, args: &[&str]) -> Output {
    kubectl(space).args(["collect", "-n", &space.name]).args(args).output().expect("kubectl runs")
}

/// What a command printed; it must end with this code.
#[track_caller]
fn said(space: &Space, args: &[&str], code: i32) -> String {
    let output = collect(space, args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
    out.into_owned()
}

#[track_caller]
fn json_of(space: &Space, args: &[&str], code: i32) -> Value {
    let text = said(space, args, code);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

// ---------------------------------------------------------------------------------------------------------------------
// lint is the API server's judge.

/// Numbers as JSON has them after kubectl read YAML: whole ones are integers.
fn whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| number.as_i64().is_none() && float.fract() == 0.0) {
                *value = json!(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole),
        Value::Object(members) => members.values_mut().for_each(whole),
        _ => {}
    }
}

async fn ask(client: &Client, method: Method, path: &str, body: &Value) -> Result<Value, kube::core::Status> {
    let request = Request::builder()
        .method(method)
        .uri(format!("/apis/collect.dev/v1alpha1/namespaces/{path}?fieldValidation=Strict&dryRun=All"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(body).unwrap())
        .unwrap();
    client.request::<Value>(request).await.map_err(|error| match error {
        kube::Error::Api(status) => *status,
        other => panic!("{path}: {other}"),
    })
}

fn plural(kind: &str) -> String {
    format!("{}s", kind.to_lowercase())
}

/// Each message of the API server with its field; empty for the object itself.
fn causes(status: &kube::core::Status) -> BTreeSet<(String, String)> {
    let details = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    details
        .iter()
        .map(|cause| (if cause.field == "<nil>" { String::new() } else { cause.field.clone() }, cause.message.clone()))
        .collect()
}

/// What lint says of one document: field and message.
fn errors_of(findings: &Value, document: usize) -> BTreeSet<(String, String)> {
    findings["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["document"] == document && finding["severity"] == "error")
        .map(|finding| (finding["field"].as_str().unwrap().to_owned(), finding["message"].as_str().unwrap().to_owned()))
        .collect()
}

/// The first difference between what the two say of an object, if there is one.
fn difference(
    says: &str,
    server: &Result<Value, kube::core::Status>,
    lint: &BTreeSet<(String, String)>,
) -> Option<String> {
    let status = match server {
        Ok(_) if lint.is_empty() => return None,
        Ok(_) => return Some(format!("{says}: accepted, but lint says {lint:#?}")),
        Err(status) => status,
    };
    let causes = causes(status);
    if causes.is_empty() {
        // It could not be decoded; the API server looks at nothing else then.
        let decoding: Vec<_> = lint.iter().filter(|(_, message)| status.message.contains(message.as_str())).collect();
        let all = status.message.matches("unknown field").count() + status.message.matches("cannot unmarshal").count();
        return (decoding.len() != all || all == 0)
            .then(|| format!("{says}: {}\nbut lint says {lint:#?}", status.message));
    }
    // Some messages of the API server name their field only in words.
    let nameless: BTreeSet<&String> =
        causes.iter().filter(|(field, _)| field.is_empty()).map(|(_, message)| message).collect();
    let of_lint: BTreeSet<(String, String)> = lint
        .iter()
        .map(|(field, message)| {
            (if nameless.contains(message) { String::new() } else { field.clone() }, message.clone())
        })
        .collect();
    (of_lint != causes).then(|| format!("{says}:\nthe API server says {causes:#?}\nlint says {of_lint:#?}"))
}

fn lint(space: &Space, file: &str, objects: &[Value], more: &[&str]) -> Value {
    let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    fs::write(space.folder.join(file), text).unwrap();
    let output = collect(space, &[&["lint", "-o", "json", "-f", file], more].concat());
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lint_says_of_every_row_what_the_api_server_says() {
    let space = Space::new(process_cluster(), "lint").await;
    let mut rows: Vec<(String, Value)> = creations()
        .into_iter()
        .map(|(says, kind, name, spec, _)| (says.to_owned(), object(kind, &name, &spec)))
        .collect();
    let (beyond, unused) = bounds(&cluster::crds());
    assert!(unused.is_empty() && beyond.len() > 150, "{unused:?} {}", beyond.len());
    rows.extend(
        beyond.into_iter().map(|(kind, spec, path, _)| (format!("beyond {path}"), object(&kind, "sample", &spec))),
    );
    let t =
        |says: &str, changes: &[(&str, Value)]| (says.to_owned(), object("CollectTask", "stations", &task(changes)));
    rows.extend([
        t("a fraction where a whole number belongs", &[("/parallelism", json!(1.5))]),
        t("a boolean where a number belongs", &[("/parallelism", json!(true))]),
        t("an object where a number belongs", &[("/parallelism", json!({}))]),
        t("a list where a number belongs", &[("/parallelism", json!([1]))]),
        t("more than 32 bits", &[("/parallelism", json!(3_000_000_000_i64))]),
        t("a number where a word belongs", &[("/source/http/url", json!(5))]),
        t("a number where an object belongs", &[("/source/http", json!(5))]),
        t("null in a map", &[("/source/http/query", json!({"a": null}))]),
        t("null in a list", &[("/dependsOn", json!([null]))]),
        t("null in a record", &[("/source/http/limits", json!({"concurrency": null}))]),
        t("no requests a second, as a whole number", &[("/source/http/limits", json!({"requestsPerSecond": 0}))]),
        t("a quote in a bad pattern", &[("/source/http/records", json!("a\"b\\c\nd"))]),
        t("several errors at once", &[("/parallelism", json!(-1)), ("/history", json!(9999)), ("/retry", json!({"maxAttempts": "x"}))]),
        t("an unknown field in a list", &[("/dependsOn", json!([{"name": "other", "optional": true}]))]),
        ("a name in upper case".into(), object("CollectTask", "Stations", &smallest())),
        ("a name with an underscore".into(), object("CollectTask", "a_b", &smallest())),
        ("no spec".into(), json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": "a"}})),
        ("a status is not looked at".into(), json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": "a"}, "spec": smallest(), "status": {"phase": 5}})),
        ("an unknown field at the top".into(), json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": "a"}, "spec": smallest(), "specs": {}})),
        ("an unknown field of the metadata".into(), json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": "a", "label": {}}, "spec": smallest()})),
    ]);
    rows.iter_mut().for_each(|(_, object)| whole(object));
    let objects: Vec<Value> = rows.iter().map(|(_, object)| object.clone()).collect();
    let findings = lint(&space, "rows.yaml", &objects, &[]);
    assert_eq!(findings["objects"], rows.len());
    let mut wrong = Vec::new();
    let mut refused = 0;
    for (index, (says, object)) in rows.iter().enumerate() {
        let path = format!("{}/{}", space.name, plural(object["kind"].as_str().unwrap()));
        let server = ask(&space.client, Method::POST, &path, object).await;
        refused += usize::from(server.is_err());
        wrong.extend(difference(says, &server, &errors_of(&findings, index)));
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    collect_e2e::figure("rows that lint judges as the API server does", format!("{} ({refused} refused)", rows.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lint_judges_changes_as_the_api_server_does() {
    let space = Space::new(process_cluster(), "lint-changes").await;
    let rows = updates();
    let named = |index: usize, kind: &str, spec: &Value| object(kind, &format!("case-{index}"), spec);
    let before: Vec<Value> = rows.iter().enumerate().map(|(i, (_, kind, before, ..))| named(i, kind, before)).collect();
    let after: Vec<Value> = rows.iter().enumerate().map(|(i, (_, kind, _, after, _))| named(i, kind, after)).collect();
    let text: String = before.iter().map(|object| format!("---\n{object}\n")).collect();
    fs::write(space.folder.join("before.yaml"), text).unwrap();
    let findings = lint(&space, "after.yaml", &after, &["--against", "before.yaml"]);
    let mut wrong = Vec::new();
    for (index, ((says, kind, ..), (old, new))) in rows.iter().zip(before.iter().zip(&after)).enumerate() {
        let path = format!("{}/{}", space.name, plural(kind));
        let create = Request::post(format!("/apis/collect.dev/v1alpha1/namespaces/{path}"))
            .header("content-type", "application/json")
            .body(serde_json::to_vec(old).unwrap())
            .unwrap();
        let stored = space.client.request::<Value>(create).await.unwrap_or_else(|error| panic!("{says}: {error}"));
        let mut changed = new.clone();
        changed["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        let server = ask(&space.client, Method::PUT, &format!("{path}/case-{index}"), &changed).await;
        wrong.extend(difference(says, &server, &errors_of(&findings, index)));
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert_eq!(errors_of(&findings, rows.len()), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lint_reads_yaml_as_kubectl_does_and_names_the_line() {
    let space = Space::new(process_cluster(), "lint-yaml").await;
    let text = "apiVersion: collect.dev/v1alpha1\nkind: CollectTask\nmetadata:\n  name: stations\n  labels: {a: on}\nspec:\n  parallelism: 010\n  source:\n    http:\n      url: https://weather.example/stations\n      headers: {X: n}\n  record: {key: [id]}\n  sink: {objectStore: {url: 's3://lake/stations'}}\n";
    fs::write(space.folder.join("a.yaml"), text).unwrap();
    let refused =
        kubectl(&space).args(["-n", &space.name, "apply", "--dry-run=server", "-f", "a.yaml"]).output().unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    let lint = said(&space, &["lint", "-f", "a.yaml"], 1);
    assert!(!refused.status.success() && words.contains("cannot unmarshal bool"), "{words}");
    assert!(lint.contains("a.yaml:5: error: metadata.labels.a: json: cannot unmarshal bool"), "{lint}");
    assert!(lint.contains("a.yaml:11: error: spec.source.http.headers.X: Invalid value: \"boolean\""), "{lint}");
    let good = text.replace("{a: on}", "{a: 'on'}").replace("{X: n}", "{X: 'n'}");
    fs::write(space.folder.join("a.yaml"), &good).unwrap();
    assert!(
        said(&space, &["lint", "-f", "a.yaml"], 0).contains("a.yaml:9: warning: spec.source.http: no total is known")
    );
    said(&space, &["lint", "--strict", "-f", "a.yaml"], 1);
    space.kubectl(&format!("apply --dry-run=server -f {}", space.folder.join("a.yaml").display()));
    // The samples that are shipped.
    let samples = cluster::repository().join("deploy/samples");
    said(&space, &["lint", "-f", &samples.display().to_string()], 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// What is foretold, what comes of it, and what is told afterwards.

fn names<'a>(values: impl Iterator<Item = &'a Value>) -> BTreeSet<String> {
    values.map(|value| value["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_foretold_and_becomes_what_was_foretold() {
    let space = Space::new(process_cluster(), "foretold").await;
    let world = World::new(&space, Registry::small()).await;
    let mut spec = world.villages("villages");
    spec["source"]["http"]["headers"] = json!({"X-Trace": "planted-header-value"});
    spec["source"]["http"]["query"] = json!({"token": "planted-query-value"});
    let file = json!({"apiVersion": "collect.dev/v1alpha1", "kind": "CollectTask", "metadata": {"name": "villages"}, "spec": spec});
    fs::write(space.folder.join("task.yaml"), serde_yaml::to_string(&file).unwrap()).unwrap();

    let before = audit::now(space.cluster);
    let foretold = json_of(
        &space,
        &["explain-plan", "-f", "task.yaml", "--secret", "registry/token=open-sesame", "-o", "json"],
        0,
    );
    assert_eq!(foretold["records"], world.codes("villages").len());
    let text =
        said(&space, &["explain-plan", "-f", "task.yaml", "--secret", "registry/token=open-sesame", "--limit", "1"], 0);
    assert!(text.contains(" more at depth 2") && text.contains("requests for records"), "{text}");
    let refused = collect(&space, &["explain-plan", "-f", "task.yaml"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(2) && words.contains("SecretMissing") && words.contains("no key `token`"),
        "{words}"
    );
    assert!(world.bucket().list(None).next().await.is_none(), "nothing was written to the sink");
    let written: Vec<_> = asked_since(&space, before).into_iter().filter(audit::Request::is_write).collect();
    assert!(written.is_empty(), "nothing was written to the cluster: {written:?}");

    let _operator = Operator::start(&space).await;
    space.create("villages", spec).await;
    let over = space.until_over("villages", SOON).await;
    assert_eq!(phase(&over), Some(&Phase::Succeeded));
    let sealed = json_of(&space, &["explain-plan", "villages", "-o", "json"], 0);
    for field in
        ["digest", "tasks", "shards", "items", "records", "total", "levels", "duplicateValues", "emptyTasks", "cost"]
    {
        assert_eq!(foretold[field], sealed[field], "{field}");
    }
    assert_eq!(sealed["digest"], over.status.clone().unwrap().plan.unwrap().result.unwrap().digest);
    let nodes = sealed["nodes"].as_array().unwrap();
    assert_eq!(names(nodes.iter()), names(foretold["nodes"].as_array().unwrap().iter()));
    let made: BTreeSet<String> = space.all::<CollectTask>().await.iter().map(ResourceExt::name_any).collect();
    assert_eq!(made, names(nodes.iter()), "the tasks that were foretold, and no others");
    let shards: BTreeSet<String> = space.all::<CollectShard>().await.iter().map(ResourceExt::name_any).collect();
    let planned: Vec<&Value> = nodes.iter().flat_map(|node| node["shards"].as_array().unwrap()).collect();
    assert_eq!(shards, names(planned.iter().copied()));
    let folders: BTreeMap<String, String> = planned
        .iter()
        .map(|shard| (shard["name"].as_str().unwrap().into(), shard["folder"].as_str().unwrap().into()))
        .collect();
    for shard in space.all::<CollectShard>().await {
        let manifest = shard.status.clone().unwrap().result.unwrap().manifest;
        let folder = folders[&shard.name_any()].trim_start_matches("s3://lake/villages/").to_owned();
        assert!(manifest.starts_with(&folder), "{manifest} lies in {folder}");
    }

    // A part of the tree has its own plan.
    let first_child = nodes[1]["name"].as_str().unwrap();
    let part = json_of(&space, &["explain-plan", first_child, "-o", "json"], 0);
    assert_eq!(part["nodes"][0], nodes[1]);

    report_is_told(&space).await;
    bundle_is_clean(&space).await;
}

/// What people asked about the test's namespace; what controllers put into every new one is not theirs.
fn asked_since(space: &Space, before: u64) -> Vec<audit::Request> {
    let all = audit::between(space.cluster, before, audit::now(space.cluster));
    let controllers = ["system:kube-controller-manager", "system:serviceaccount:kube-system:"];
    all.filter(|request| request.namespace == space.name)
        .filter(|request| !controllers.iter().any(|controller| request.user.starts_with(controller)))
        .collect()
}

async fn report_is_told(space: &Space) {
    let text = said(space, &["report", "villages"], 0);
    assert!(text.starts_with("Pass  villages, run 1"), "{text}");
    let report = json_of(space, &["report", "villages", "--run", "1", "-o", "json"], 0);
    assert_eq!(
        (report["kind"].as_str(), report["status"]["verdict"].as_str()),
        (Some("ValidationReport"), Some("Pass"))
    );
    let page = said(space, &["report", "villages", "-o", "html"], 0);
    assert!(page.starts_with("<!doctype html>") && page.contains("<title>Pass: villages, run 1</title>"), "{page}");
    assert!(page.contains("44 province 44") && page.contains("How the work went"), "{page}");
    if let Some(file) = std::env::var_os("COLLECT_E2E_PAGE") {
        fs::write(file, &page).unwrap();
    }
    let missing = collect(space, &["report", "villages", "--run", "7"]);
    assert_eq!(missing.status.code(), Some(2), "{}", String::from_utf8_lossy(&missing.stderr));
    let good = said(space, &["diagnose", "villages"], 0);
    assert!(good.starts_with("villages: Succeeded it is over: Succeeded."), "{good}");
}

async fn bundle_is_clean(space: &Space) {
    let before = audit::now(space.cluster);
    said(space, &["support-bundle", "villages", "-o", "bundle.tar.gz"], 0);
    let asked = asked_since(space, before);
    assert!(asked.iter().any(|request| request.resource == "collecttasks"), "the log tells of it");
    assert!(asked.iter().all(|request| request.resource != "secrets"), "Secrets are never read");
    let packed = fs::read(space.folder.join("bundle.tar.gz")).unwrap();
    let mut data = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut data).unwrap();
    let text = String::from_utf8_lossy(&data);
    for planted in ["planted-header-value", "planted-query-value", "open-sesame"] {
        let at = text.find(planted);
        assert_eq!(at, None, "{planted}: {}", at.map_or("", |at| &text[at.saturating_sub(200)..at + 50]));
    }
    for kept in [
        "manifest.yaml",
        "objects/collecttasks.yaml",
        "objects/collectshards.yaml",
        "versions.yaml",
        "kind: CollectTask",
        "name: villages",
        "X-Trace: '***'",
        ".log",
        "leftOut:",
    ] {
        assert!(text.contains(kept), "{kept} is not in the bundle");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Why it does not move.

/// Asks until the first finding is this one: evidence comes when the operator has got so far.
async fn until_diagnosed(space: &Space, task: &str, code: &str) -> Value {
    let ask = async {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tick.tick().await;
            let output = collect(space, &["diagnose", task, "-o", "json"]);
            let all: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
            if all["findings"][0]["code"] == code {
                assert_eq!(output.status.code(), Some(1), "something holds it");
                return all;
            }
        }
    };
    match tokio::time::timeout(SOON, ask).await {
        Ok(all) => all,
        Err(_) => panic!("{code} is not the answer; the last was:\n{}", said(space, &["diagnose", task], 1)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn diagnose_finds_what_is_really_the_matter() {
    let space = Space::new(process_cluster(), "diagnose").await;
    let world = World::new(&space, Registry::small()).await;
    let _operator = Operator::start(&space).await;

    let mut paused = world.provinces("paused");
    paused["desiredState"] = json!("Paused");
    space.create("paused", paused).await;
    let all = until_diagnosed(&space, "paused", "Paused").await;
    assert_eq!(all["findings"][0]["next"][0], format!("kubectl collect -n {} resume paused", space.name));

    let mut secret = world.provinces("secret");
    secret["source"]["http"]["auth"]["bearer"]["secretRef"]["name"] = json!("nowhere");
    space.create("secret", secret).await;
    let all = until_diagnosed(&space, "secret", "SecretMissing").await;
    let first = &all["findings"][0];
    assert!(first["answer"].as_str().unwrap().contains("nowhere"), "{first}");
    assert_eq!(first["next"][0], format!("kubectl -n {} get secret nowhere", space.name));

    let mut unreachable = world.provinces("unreachable");
    unreachable["source"]["http"]["url"] = json!("http://127.0.0.1:9/api");
    unreachable["source"]["http"]["retry"] = json!({"maxAttempts": 1});
    unreachable["retry"] = json!({"backoff": {"initial": "60s", "max": "60s"}});
    space.create("unreachable", unreachable).await;
    let all = until_diagnosed(&space, "unreachable", "SourceUnavailable").await;
    let answer = all["findings"][0]["answer"].as_str().unwrap().to_owned();
    assert!(
        answer.starts_with("shard unreachable-0 failed (SourceUnavailable)")
            && answer.contains("the next attempt starts in"),
        "{answer}"
    );

    let mut image = world.provinces("image");
    image["worker"] = json!({"image": "docker.io/local/nowhere:dev"});
    space.create("image", image).await;
    let all = until_diagnosed(&space, "image", "ImagePull").await;
    assert!(all["findings"][0]["answer"].as_str().unwrap().contains("the image can't be pulled"), "{all}");

    space
        .create("waits", {
            let mut waits = world.provinces("waits");
            waits["dependsOn"] = json!([{"name": "paused"}]);
            waits
        })
        .await;
    let all = until_diagnosed(&space, "waits", "WaitingForDependency").await;
    assert_eq!(all["findings"][0]["next"][0], format!("kubectl collect -n {} diagnose paused", space.name));

    // Without the right to look, it says so and does not guess.
    let text = collect(&space, &["diagnose", "paused", "--as", "system:serviceaccount:default:nobody"]);
    assert_eq!(text.status.code(), Some(2), "{}", String::from_utf8_lossy(&text.stderr));
    space.kubectl(&format!(
        "create role reader --verb=get,list --resource=collecttasks.collect.dev,collectshards.collect.dev -n {}",
        space.name
    ));
    space.kubectl("create rolebinding reader --role=reader --user=reader");
    let text = said(&space, &["diagnose", "paused", "--as", "reader"], 1);
    assert!(
        text.starts_with("paused: Paused") && text.contains("Not looked at\n") && text.contains("pods: "),
        "{text}"
    );
}

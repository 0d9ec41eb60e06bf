//! Dashboards and alerts against the real thing: Debian's Prometheus scrapes a real operator while tasks succeed, fail and run,
//! and every expression of every board must find data at some moment.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use collect_api::{CollectTask, Phase};
use collect_e2e::{
    Cluster, Node, Operator, Space,
    cluster::repository,
    figure, http, skip,
    space::phase,
    tasks::{SOON, World},
};
use collect_registry::{Effect, Options, Registry, When};
use serde_json::{Value, json};

/// Job under which Prometheus scrapes the operator.
const JOB: &str = "collect-operator";
/// Namespace that the operator's target says it is in: it must not take the place of the tasks' namespace.
const TARGET_NAMESPACE: &str = "collect-system";

/// Expressions that need not find data here, by board and panel, each with the reason.
const MAY_BE_EMPTY: &[(&str, &str, &str)] = &[];

/// A Prometheus with the rules of deploy/alerts, on a port of its own. Dropping it kills it.
struct Prometheus {
    address: String,
    child: Child,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Starts one that scrapes this operator; nothing where the machine has none.
    async fn start(folder: &Path, operator: &Operator) -> Option<Self> {
        if Command::new("prometheus").arg("--version").output().is_err() {
            skip("dashboards", "there is no prometheus (Debian: prometheus)");
            return None;
        }
        let address =
            TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").to_string();
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [repository().join("deploy/alerts/collect.rules.yaml")],
            "scrape_configs": [{
                "job_name": JOB,
                "honor_labels": true,
                "static_configs": [{"targets": [operator.http], "labels": {"namespace": TARGET_NAMESPACE}}],
            }],
        });
        let file = folder.join("prometheus.yaml");
        fs::write(&file, serde_yaml::to_string(&config).expect("YAML")).expect("the configuration can be written");
        let log = fs::File::create(folder.join("prometheus.log")).expect("the log can be written");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "prometheus"])
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus can be started");
        let prometheus = Self { address, child };
        until("prometheus is ready", async || {
            matches!(http::get(&prometheus.address, "/-/ready").await, Ok((200, _))).then_some(())
        })
        .await;
        Some(prometheus)
    }

    /// Asks its API; gives `data`.
    async fn api(&self, path: &str) -> Value {
        let (status, body) = http::get(&self.address, path).await.expect("prometheus answers");
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
        assert_eq!((status, &answer["status"]), (200, &json!("success")), "{path}: {answer}");
        answer["data"].clone()
    }

    /// The series that an expression gives now.
    async fn query(&self, expr: &str) -> Vec<Value> {
        let encoded: String = expr.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.api(&format!("/api/v1/query?query={encoded}")).await;
        data["result"].as_array().unwrap_or_else(|| panic!("{expr}: {data}")).clone()
    }
}

/// Waits until something is there. Prometheus announces nothing: it is asked.
async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tick.tick().await;
            if let Some(found) = found().await {
                return found;
            }
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("waited {SOON:?} until {what}"))
}

/// An expression of a board.
#[derive(Debug)]
struct Expression {
    board: String,
    panel: String,
    expr: String,
}

fn boards() -> Vec<Value> {
    let files = fs::read_dir(repository().join("deploy/dashboards")).expect("there are boards");
    let read = |path| serde_json::from_str(&fs::read_to_string(path).expect("it can be read")).expect("it is JSON");
    files.map(|file| read(file.expect("a file").path())).collect()
}

fn expressions(boards: &[Value]) -> Vec<Expression> {
    fn of_panels(board: &Value, panels: &Value, all: &mut Vec<Expression>) {
        for panel in panels.as_array().into_iter().flatten() {
            of_panels(board, &panel["panels"], all);
            for target in panel["targets"].as_array().into_iter().flatten() {
                let text = |value: &Value| value.as_str().expect("a text").to_owned();
                let (board, panel) = (text(&board["uid"]), text(&panel["title"]));
                all.push(Expression { board, panel, expr: text(&target["expr"]) });
            }
        }
    }
    let mut all = Vec::new();
    boards.iter().for_each(|board| of_panels(board, &board["panels"], &mut all));
    all
}

/// An expression as Grafana would send it.
fn substituted(expr: &str, namespace: &str, task: &str) -> String {
    let expr = expr
        .replace("$__rate_interval", "5m")
        .replace("$job", JOB)
        .replace("$instance", ".+")
        .replace("$namespace", namespace)
        .replace("$task", task);
    assert!(!expr.contains('$'), "{expr} has a variable that nobody fills in");
    expr
}

fn faults(effects: &[(&str, Effect)]) -> Options {
    let when = |prefix: &str| When { prefix: prefix.to_owned(), ..When::default() };
    Options::faults(effects.iter().map(|(prefix, effect)| effect.clone().when(when(prefix))).collect::<Vec<_>>())
}

/// The villages tree with a deadline and few workers at once.
fn villages(world: &World, folder: &str) -> Value {
    let mut spec = world.villages(folder);
    spec["deadline"] = json!("10m");
    spec["parallelism"] = json!(2);
    spec
}

/// Every request for villages takes this long.
fn slow(milliseconds: u64) -> Options {
    faults(&[("/api/districts", Effect::Delay { milliseconds })])
}

/// Sum over the series of a metric, from the operator itself.
async fn told(operator: &Operator, metric: &str) -> f64 {
    let (_, text) = http::get(&operator.http, "/metrics").await.expect("the operator answers");
    let lines = text.lines().filter(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines.map(|line| line.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_expression_finds_data_in_a_real_operator() {
    let cluster = Cluster::shared("e2e-dashboards", Node::Process).expect("a process node needs nothing");
    let space = Space::new(cluster, "boards").await;
    let world = World::new(&space, Registry::small()).await;
    let operator = Operator::start(&space).await;
    let Some(prometheus) = Prometheus::start(&space.folder, &operator).await else { return };
    until("the operator is scraped", async || {
        let targets = prometheus.api("/api/v1/targets").await;
        let target = targets["activeTargets"].get(0)?.clone();
        assert_eq!(target["lastError"], "", "the operator's text is what Prometheus reads");
        (target["health"] == "up").then_some(())
    })
    .await;

    // One that succeeds, one that fails, and one that runs as long as it is looked at.
    space.create("good", villages(&world, "good")).await;
    assert_eq!(phase(&space.until_over("good", SOON).await), Some(&Phase::Succeeded));
    let district = world.codes("districts").into_iter().next().expect("there are districts");
    let broken = format!("/api/districts/{district}/");
    let mut spec = villages(&world, "bad");
    // The planner asks for no totals, so only the worker meets the fault.
    spec["decompose"]["shards"] = json!({"perValue": {}});
    world.set_source(faults(&[(&broken, Effect::Status { code: 404, retry_after_seconds: None })]));
    space.create("bad", spec).await;
    assert_eq!(phase(&space.until_over("bad", SOON).await), Some(&Phase::Failed));
    until("every request that the source saw is told of", async || {
        let (requests, asked) =
            (told(&operator, "collect_worker_source_requests_total").await, world.source.log().len());
        assert!(requests <= asked as f64, "{requests} requests are told of, the source saw {asked}");
        (requests == asked as f64).then_some(())
    })
    .await;
    space.create("busy", villages(&world, "busy")).await;
    world.set_source(slow(100));
    space.until::<CollectTask>("busy", "it runs", SOON, |task| phase(task) == Some(&Phase::Running)).await;
    // Slow enough that workers report before they are done.
    world.set_source(slow(4_000));

    let boards = boards();
    let mut waiting = expressions(&boards);
    let all = waiting.len();
    assert!(all > 50, "only {all} expressions");
    for (board, panel, _) in MAY_BE_EMPTY {
        assert!(waiting.iter().any(|e| e.board == *board && e.panel == *panel), "there is no {board} {panel}");
    }
    waiting.retain(|e| !MAY_BE_EMPTY.iter().any(|(board, panel, _)| e.board == *board && e.panel == *panel));
    // Some find data only while the slow task runs, or once its workers have reported.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !waiting.is_empty() && Instant::now() < deadline {
        let mut left = Vec::new();
        for expression in waiting {
            let mut series = 0;
            for task in ["busy", "good", "bad"] {
                series += prometheus.query(&substituted(&expression.expr, &space.name, task)).await.len();
            }
            if series == 0 {
                left.push(expression);
            }
        }
        waiting = left;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(waiting.is_empty(), "{} of {all} expressions found nothing: {waiting:#?}", waiting.len());
    figure("expressions of boards with data", all);
    for board in &boards {
        for variable in
            board["templating"]["list"].as_array().expect("variables").iter().filter(|v| v["type"] == "query")
        {
            let definition = variable["definition"].as_str().expect("a query");
            let inner = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (metric, label) = inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values(metric, label)");
            let series = prometheus.query(&substituted(metric, &space.name, ".+")).await;
            assert!(series.iter().any(|series| series["metric"][label].is_string()), "{definition}: {series:?}");
        }
    }

    the_numbers_are_those_of_the_tasks(&prometheus, &space, &world).await;
    the_alert_of_the_failed_task_fires(&prometheus, &space).await;

    // What is deleted is told of no more.
    space.delete("good").await;
    until("its series are gone", async || {
        let (_, text) = http::get(&operator.http, "/metrics").await.expect("the operator answers");
        assert!(text.contains(r#"task="bad""#), "the others stay");
        (!text.contains(r#"task="good""#)).then_some(())
    })
    .await;
    // Nobody waits for the slow one.
    space.delete("busy").await;
}

async fn the_numbers_are_those_of_the_tasks(prometheus: &Prometheus, space: &Space, world: &World) {
    let villages = world.codes("villages").len();
    let of = |metric: &str, task: &str| format!(r#"{metric}{{namespace="{}", task="{task}"}}"#, space.name);
    for (expr, expected) in [
        (of("collect_task_records", "good"), villages),
        (of("collect_task_records_expected", "good"), villages),
        (of("collect_task_match_ratio", "good"), 1),
        (of("collect_task_verified", "good"), 1),
        (of("collect_task_stalled", "good"), 0),
        (of("collect_task_stalled", "bad"), 1),
        (r#"sum(collect_attempts_total{work="commit", outcome="Succeeded"})"#.into(), 1),
        (r#"sum(collect_attempts_total{work="plan", outcome="Succeeded"})"#.into(), 3),
        (r#"sum(collect_attempt_failures_total{work="collect", cause="source"})"#.into(), 1),
        ("collect_leader".into(), 1),
        ("collect_tasks_unlisted".into(), 0),
    ] {
        let series = prometheus.query(&expr).await;
        let values: Vec<f64> =
            series.iter().map(|s| s["value"][1].as_str().expect("a value").parse().expect("a number")).collect();
        assert_eq!(values, [expected as f64], "{expr}: {series:?}");
    }
}

async fn the_alert_of_the_failed_task_fires(prometheus: &Prometheus, space: &Space) {
    let rules = prometheus.api("/api/v1/rules").await;
    let rules: Vec<&Value> = rules["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .flat_map(|g| g["rules"].as_array().expect("rules"))
        .collect();
    let broken: Vec<_> = rules.iter().filter(|rule| rule["health"] != "ok").collect();
    assert!(rules.len() > 15 && broken.is_empty(), "{} rules: {broken:?}", rules.len());
    let expr = format!(r#"ALERTS{{alertname="CollectTaskFailed", alertstate="firing", namespace="{}"}}"#, space.name);
    let fired =
        until("the alert fires", async || Some(prometheus.query(&expr).await).filter(|series| !series.is_empty()))
            .await;
    let tasks: BTreeSet<_> = fired.iter().map(|series| series["metric"]["task"].as_str().unwrap_or_default()).collect();
    assert_eq!(tasks, BTreeSet::from(["bad"]));
    // A pass now and then may be in the way of another, but nothing here is an error of the operator's.
    let others = prometheus.query(r#"ALERTS{alertstate="firing", severity="critical"}"#).await;
    assert!(others.is_empty(), "{others:?}");
}

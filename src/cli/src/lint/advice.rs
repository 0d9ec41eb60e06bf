//! Advice: what the API server accepts and a person would rather have known. Each is true of the code that will run: where it
//! can, it asks that code.

use std::collections::{BTreeMap, BTreeSet};

use collect_api::{
    CollectTaskSpec,
    decompose::{Become, Decompose, Shards},
    hooks::{Hook, HookRun},
    plan::{KeySpan, MAX_ITEMS},
    report::ValidationLevel,
    sink::Sink,
    source::{HttpSource, Pagination, Source},
};
use collect_core::{names, resolve};
use collect_data::{
    Settings,
    decompose::{ranges, whole},
    http::{Endpoint, JsonPath, Variables},
};

use super::schema::Place;
use crate::support_bundle::redact;

/// Requests at once of one worker, where nothing else is said.
const REQUESTS_AT_ONCE: i32 = 4;
/// Workers from which a source without a limit deserves a word.
const MANY_WORKERS: i32 = 16;
/// Records below which a shard costs more than it carries.
const FEW_RECORDS: i64 = 1000;
/// Values of one level from which tasks become many objects.
const MANY_VALUES: usize = 100;

/// A piece of advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What it is about.
    pub field: String,
    /// The same as JSON pointer.
    pub pointer: String,
    /// What will happen, and what to do instead.
    pub message: String,
}

#[derive(Default)]
struct Adviser(Vec<Advice>);

impl Adviser {
    fn say(&mut self, at: &Place, message: impl Into<String>) {
        self.0.push(Advice { field: at.field.clone(), pointer: at.pointer.clone(), message: message.into() });
    }
}

/// A place by the names of the fields that lead there.
fn place(names: &[&str]) -> Place {
    names.iter().fold(Place::default(), |at, name| match name.parse() {
        Ok(index) => at.index(index),
        Err(_) => at.child(name),
    })
}

/// Advice about a root task. A child's spec belongs to the operator.
pub fn advise(name: &str, spec: &CollectTaskSpec) -> Vec<Advice> {
    let mut adviser = Adviser::default();
    if spec.part_of.is_some() {
        return adviser.0;
    }
    let decompose = spec.decompose.clone().unwrap_or_default();
    if let Some(Source::Http(source)) = &spec.source {
        verification(spec, source, &mut adviser);
        pressure(spec, source, &mut adviser);
        requests(source, &decompose, &mut adviser);
        credentials(source, &mut adviser);
        sizes(source, &decompose, &mut adviser);
    }
    levels(name, &decompose, &mut adviser);
    record(spec, &mut adviser);
    sink(spec, &mut adviser);
    times(spec, &mut adviser);
    hooks(spec, &mut adviser);
    adviser.0
}

fn verification(spec: &CollectTaskSpec, source: &HttpSource, adviser: &mut Adviser) {
    let independent = spec.validation.as_ref().and_then(|validation| validation.total.as_ref());
    if resolve::validation_level(spec) == ValidationLevel::None {
        adviser.say(
            &place(&["spec", "validation", "level"]),
            "nothing will be compared: the task ends as Collected, never as Succeeded; use counts",
        );
    } else if source.total.is_none() && independent.is_none() {
        adviser.say(
            &place(&["spec", "source", "http"]),
            "no total is known, so nothing can be compared and the task ends as Collected; set total, or spec.validation.total",
        );
    }
}

fn pressure(spec: &CollectTaskSpec, source: &HttpSource, adviser: &mut Adviser) {
    let workers = resolve::root_parallelism(spec);
    let limits = source.limits.as_ref();
    let at = place(&["spec", "parallelism"]);
    if workers == 0 {
        adviser.say(&at, "no worker will start before parallelism is raised");
    }
    let bounded = limits.is_some_and(|limits| limits.requests_per_second.is_some() || limits.concurrency.is_some());
    if workers >= MANY_WORKERS && !bounded {
        let requests = workers.saturating_mul(REQUESTS_AT_ONCE);
        adviser.say(
            &at,
            format!("{workers} workers may send {requests} requests at once; tell what the source can bear in spec.source.http.limits"),
        );
    }
}

/// What would end the planner or the first worker: found by the code that they run.
fn requests(source: &HttpSource, decompose: &Decompose, adviser: &mut Adviser) {
    let mut known = BTreeSet::new();
    for (index, level) in decompose.levels.iter().enumerate() {
        let at = place(&["spec", "decompose", "levels", &index.to_string()]);
        if let Some(discover) = &level.discover {
            let values = known.iter().map(|name: &String| (name.clone(), "x".to_owned())).collect();
            let drafted = Endpoint::of_discovery(source, &level.name, discover, &known)
                .map_err(|error| ("LocatorInvalid", error.to_string()))
                .and_then(|endpoint| {
                    endpoint.draft(&Variables::of(values)).map_err(|error| (error.category(), error.to_string()))
                });
            if let Err((reason, why)) = drafted {
                adviser.say(&at.child("discover"), format!("the plan will fail as {reason}: {why}"));
            }
            let paths = [("value", Some(&discover.value)), ("label", discover.label.as_ref())];
            for (field, path) in paths.into_iter().filter_map(|(field, path)| Some((field, path?))) {
                if let Err(error) = JsonPath::parse(path) {
                    adviser.say(&at.child("discover").child(field), format!("the plan will fail: {error}"));
                }
            }
        }
        known.insert(level.name.clone());
    }
    let ranged = matches!(&decompose.shards, Some(Shards::Range(_)));
    let at = place(&["spec", "source", "http"]);
    match Endpoint::of(source) {
        Err(error) => adviser.say(&at, format!("the run will fail as LocatorInvalid: {error}")),
        Ok(endpoint) => {
            let values: BTreeMap<_, _> = known.iter().map(|name| (name.clone(), "x".to_owned())).collect();
            let span = KeySpan { from: "0".into(), to: "1".into() };
            let variables = Variables { values, range: ranged.then_some(span) };
            if let Err(error) = endpoint.draft(&variables) {
                adviser.say(&at, format!("the run will fail as {}: {error}", error.category()));
            }
        }
    }
    if let Some(Shards::Range(range)) = &decompose.shards {
        let at = place(&["spec", "decompose", "shards", "range"]);
        let text = serde_json::to_string(source).unwrap_or_default();
        if !(text.contains("range.from") && text.contains("range.to")) {
            adviser.say(&at, "no request uses {{ range.from }} and {{ range.to }}, so every shard reads everything");
        }
        let most = decompose.limits.as_ref().and_then(|limits| limits.max_shards);
        let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(100_000);
        let made = match range.records_per_shard {
            Some(_) => whole(range).map(drop),
            None => ranges(range, None, most).map(drop),
        };
        if let Err(error) = made {
            adviser.say(&at, format!("the plan will fail as {}: {error}", error.category()));
        }
    }
    let all_values: BTreeSet<&String> = decompose
        .levels
        .iter()
        .map(|level| &level.name)
        .filter(|name| !template_uses(source, decompose, name))
        .collect();
    for name in all_values {
        adviser.say(
            &place(&["spec", "decompose", "levels"]),
            format!("no request uses {{{{ {name} }}}}, so every value of level `{name}` reads the same records"),
        );
    }
}

/// Whether a level's value shows in the request of records, or in the discovery of a level below.
fn template_uses(source: &HttpSource, decompose: &Decompose, name: &str) -> bool {
    let mut texts = vec![source.path.clone().unwrap_or_default()];
    texts.extend(source.query.values().chain(source.headers.values()).cloned());
    texts.push(serde_json::to_string(&source.body).unwrap_or_default());
    texts.extend(
        decompose.levels.iter().filter_map(|level| level.discover.as_ref()).map(|discover| discover.path.clone()),
    );
    texts.iter().any(|text| text.contains("{{") && text.contains(name))
}

fn credentials(source: &HttpSource, adviser: &mut Adviser) {
    let at = place(&["spec", "source", "http"]);
    inline(&at, &source.url, source.headers.iter(), adviser);
    for (name, value) in &source.query {
        if redact::names_a_secret(name) && !value.contains("{{") {
            adviser.say(
                &at.child("query").child(name),
                "a credential in the spec can be read by everybody who may read the task; put it into a Secret and name it in auth.apiKey",
            );
        }
    }
}

/// Credentials in a URL or in headers.
fn inline<'a>(at: &Place, url: &str, headers: impl Iterator<Item = (&'a String, &'a String)>, adviser: &mut Adviser) {
    if redact::has_userinfo(url) {
        adviser.say(
            &at.child("url"),
            "a password in the URL can be read by everybody who may read the task; put it into a Secret and name it in auth.basic",
        );
    }
    for (name, value) in headers {
        if redact::names_a_secret(name) && !value.contains("{{") {
            adviser.say(
                &at.child("headers").child(name),
                "a credential in the spec can be read by everybody who may read the task; put it into a Secret and name it in auth",
            );
        }
    }
}

fn sizes(source: &HttpSource, decompose: &Decompose, adviser: &mut Adviser) {
    let page = match &source.pagination {
        Some(Pagination::Page(page)) => page.size,
        Some(Pagination::Offset(offset)) => Some(offset.limit),
        _ => None,
    };
    let Some(Shards::Count(count)) = &decompose.shards else { return };
    let Some(records) = count.records_per_shard else { return };
    let at = place(&["spec", "decompose", "shards", "count", "recordsPerShard"]);
    let is_split = matches!(&source.pagination, Some(Pagination::Page(_) | Pagination::Offset(_)));
    if !is_split {
        adviser.say(&at, "without page or offset pagination no value can be split: each is one part, however large");
    }
    match page.filter(|page| *page > records) {
        Some(page) => {
            adviser.say(&at, format!("it is rounded up to whole pages: a shard holds {page} records, the size of a page"));
        }
        None if records < FEW_RECORDS => adviser.say(
            &at,
            format!("a pod is started for every {records} records; a shard should take minutes, such as 20000 records or more"),
        ),
        None => {}
    }
}

fn levels(name: &str, decompose: &Decompose, adviser: &mut Adviser) {
    for (index, level) in decompose.levels.iter().enumerate() {
        let at = place(&["spec", "decompose", "levels", &index.to_string()]);
        let Some(values) = &level.values else { continue };
        let mut seen = BTreeSet::new();
        if let Some(twice) = values.iter().find(|value| !seen.insert(value.as_str())) {
            adviser.say(&at.child("values"), format!("{twice:?} stands twice and counts once"));
        }
        if level.become_ == Some(Become::Slices) {
            continue;
        }
        if values.len() > MANY_VALUES {
            let objects = values.len();
            adviser.say(
                &at,
                format!("{objects} values become {objects} CollectTasks below each parent; with `as: slices` they are packed into shards, {MAX_ITEMS} to each"),
            );
        }
        let hashed = values.iter().find(|value| {
            let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            !plain
        });
        if let Some(value) = hashed {
            let child = names::child_task(name, value);
            adviser.say(
                &at.child("values"),
                format!("names are made of lower-case letters and digits: the child of {value:?} is called {child}"),
            );
        }
    }
    let tasks = decompose.levels.iter().filter(|level| level.become_ != Some(Become::Slices)).count();
    let packs = decompose.levels.len() > tasks;
    if tasks >= 3 && !packs {
        let last = decompose.levels.len() - 1;
        adviser.say(
            &place(&["spec", "decompose", "levels", &last.to_string()]),
            "every value of every level becomes a CollectTask; `as: slices` makes items of shards of the last level's values, which is far fewer objects",
        );
    }
}

fn record(spec: &CollectTaskSpec, adviser: &mut Adviser) {
    let Some(record) = &spec.record else { return };
    let at = place(&["spec", "record"]);
    for (name, field) in &record.fields {
        if let Some(Err(error)) = field.path.as_deref().map(JsonPath::parse) {
            adviser.say(&at.child("fields").child(name).child("path"), format!("the run will fail: {error}"));
        }
    }
    let levels = spec.decompose.as_ref().map(|decompose| decompose.levels.as_slice()).unwrap_or_default();
    for (index, key) in record.key.iter().enumerate() {
        let is_level = levels.iter().any(|level| level.name == *key);
        if is_level && !record.levels.contains(key) && !record.fields.contains_key(key) {
            adviser.say(
                &at.child("key").index(index),
                format!("`{key}` is read from the record, not from the level of that name; add it to spec.record.levels if the level is meant"),
            );
        }
    }
}

fn sink(spec: &CollectTaskSpec, adviser: &mut Adviser) {
    let Some(Sink::ObjectStore(store)) = &spec.sink else { return };
    let at = place(&["spec", "sink", "objectStore"]);
    if store.volume.is_some() && resolve::root_parallelism(spec) > 1 {
        adviser.say(
            &at.child("volume"),
            "every worker mounts the claim: on several nodes it must be ReadWriteMany, else all but the first wait",
        );
    }
    if store.secret_ref.is_none() && store.url.starts_with("s3://") && store.endpoint.is_some() {
        adviser.say(
            &at,
            "no secretRef: requests to this endpoint are signed with the pod's own cloud identity, if it has one",
        );
    }
}

fn times(spec: &CollectTaskSpec, adviser: &mut Adviser) {
    let part_age = Settings::default().part_age;
    let people = |time: std::time::Duration| collect_api::Duration::from_secs(time.as_secs());
    let attempt = resolve::attempt_deadline(spec);
    if spec.attempt_deadline.is_some() && attempt <= part_age {
        adviser.say(
            &place(&["spec", "attemptDeadline"]),
            format!(
                "a worker leaves its first checkpoint after {} or 64 MiB: attempts that end sooner may begin anew each time",
                people(part_age)
            ),
        );
    }
    let limits = resolve::TimeLimits::of(spec);
    let request = match &spec.source {
        Some(Source::Http(source)) => {
            source.timeout.map_or(std::time::Duration::from_secs(60), collect_api::Duration::get)
        }
        None => std::time::Duration::ZERO,
    };
    if spec.stall_timeout.is_some() && limits.stall <= request {
        adviser.say(
            &place(&["spec", "stallTimeout"]),
            format!(
                "one request may take {}: a worker that waits for a slow answer is replaced before",
                people(request)
            ),
        );
    }
    if let Some(deadline) = spec.deadline.map(collect_api::Duration::get).filter(|deadline| *deadline < attempt)
        && spec.attempt_deadline.is_some()
    {
        adviser.say(
            &place(&["spec", "attemptDeadline"]),
            format!(
                "the whole run ends after {} (spec.deadline), before an attempt could reach this",
                people(deadline)
            ),
        );
    }
    if spec.history == Some(0) {
        adviser.say(
            &place(&["spec", "history"]),
            "no finished child stays as an object: what became of it is only counted in its parent's status",
        );
    }
}

fn hooks(spec: &CollectTaskSpec, adviser: &mut Adviser) {
    let Some(hooks) = &spec.hooks else { return };
    let all: [(&str, Option<&Hook>); 3] = [
        ("beforeStart", hooks.before_start.as_ref()),
        ("afterSuccess", hooks.after_success.as_ref()),
        ("afterFailure", hooks.after_failure.as_ref()),
    ];
    for (name, hook) in all.into_iter().filter_map(|(name, hook)| Some((name, hook?))) {
        let at = place(&["spec", "hooks", name, "run"]);
        match &hook.run {
            HookRun::Http(http) => inline(&at.child("http"), &http.url, http.headers.iter(), adviser),
            HookRun::Job(job) => {
                for key in job.env.keys().filter(|key| redact::names_a_secret(key)) {
                    adviser.say(
                        &at.child("job").child("env").child(key),
                        "a credential in the spec can be read by everybody who may read the task; put it into a Secret and name it in secretRef",
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn base() -> Value {
        json!({
            "source": {"http": {
                "url": "https://x.example/api", "path": "/districts/{{ district }}/villages", "total": "$.total",
                "pagination": {"page": {"param": "page", "size": 1000}},
                "limits": {"requestsPerSecond": 10},
            }},
            "record": {"key": ["code"]},
            "decompose": {
                "levels": [{"name": "district", "as": "slices", "discover": {"path": "/districts", "value": "$.code"}}],
                "shards": {"count": {"recordsPerShard": 20000}},
            },
            "sink": {"objectStore": {"url": "s3://lake/x"}},
        })
    }

    fn advice(changes: &[(&str, Value)]) -> Vec<(String, String)> {
        let mut spec = base();
        for (pointer, value) in changes {
            let (above, last) = pointer.rsplit_once('/').unwrap();
            let mut at = &mut spec;
            for step in above.split('/').skip(1) {
                at = match at {
                    Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
                    other => &mut other[step],
                };
            }
            match value {
                Value::Null => drop(at.as_object_mut().unwrap().remove(last)),
                value => at[last] = value.clone(),
            }
        }
        let spec: CollectTaskSpec = serde_json::from_value(spec).unwrap();
        advise("villages", &spec).into_iter().map(|advice| (advice.field, advice.message)).collect()
    }

    #[test]
    fn a_good_task_gets_none() {
        assert_eq!(advice(&[]), []);
    }

    #[test]
    fn each_piece_of_advice_has_its_cause() {
        let levels = |levels: Value| ("/decompose/levels", levels);
        let many: Vec<String> = (0..101).map(|n| format!("v{n}")).collect();
        let range = |range: Value| ("/decompose/shards", json!({"range": range}));
        for (changes, field, words) in [
            (vec![("/source/http/total", Value::Null)], "spec.source.http", "ends as Collected"),
            (vec![("/validation", json!({"level": "none"}))], "spec.validation.level", "never as Succeeded"),
            (
                vec![("/parallelism", json!(50)), ("/source/http/limits", Value::Null)],
                "spec.parallelism",
                "200 requests at once",
            ),
            (vec![("/parallelism", json!(0))], "spec.parallelism", "no worker will start"),
            (
                vec![("/source/http/path", json!("/districts/{{ distrikt }}"))],
                "spec.source.http",
                "will fail as TemplateInvalid",
            ),
            (vec![("/source/http/records", json!("$.["))], "spec.source.http", "will fail as LocatorInvalid"),
            (
                vec![levels(json!([{"name": "district", "discover": {"path": "/{{ province }}", "value": "$.code"}}]))],
                "spec.decompose.levels[0].discover",
                "the plan will fail as TemplateInvalid",
            ),
            (
                vec![levels(json!([{"name": "district", "discover": {"path": "/d", "value": "$["}}]))],
                "spec.decompose.levels[0].discover.value",
                "the plan will fail",
            ),
            (
                vec![levels(json!([{"name": "district", "values": ["1"]}, {"name": "year", "values": ["2024"]}]))],
                "spec.decompose.levels",
                "no request uses {{ year }}",
            ),
            (
                vec![("/source/http/headers", json!({"X-Api-Key": "abc"}))],
                "spec.source.http.headers.X-Api-Key",
                "put it into a Secret",
            ),
            (vec![("/source/http/query", json!({"token": "abc"}))], "spec.source.http.query.token", "auth.apiKey"),
            (vec![("/source/http/url", json!("https://a:b@x.example"))], "spec.source.http.url", "auth.basic"),
            (
                vec![("/decompose/shards/count/recordsPerShard", json!(200))],
                "spec.decompose.shards.count.recordsPerShard",
                "a shard holds 1000 records",
            ),
            (
                vec![
                    ("/decompose/shards/count/recordsPerShard", json!(200)),
                    ("/source/http/pagination", json!({"page": {"param": "p", "size": 100}})),
                ],
                "spec.decompose.shards.count.recordsPerShard",
                "a pod is started for every 200 records",
            ),
            (
                vec![("/source/http/pagination", Value::Null)],
                "spec.decompose.shards.count.recordsPerShard",
                "no value can be split",
            ),
            (
                vec![levels(json!([{"name": "district", "values": many}]))],
                "spec.decompose.levels[0]",
                "101 CollectTasks",
            ),
            (
                vec![levels(json!([{"name": "district", "values": ["GD"]}]))],
                "spec.decompose.levels[0].values",
                "is called villages-gd-",
            ),
            (
                vec![levels(json!([{"name": "district", "values": ["a", "a"]}]))],
                "spec.decompose.levels[0].values",
                "counts once",
            ),
            (
                vec![range(json!({"field": "id", "from": "0", "to": "9", "step": 3}))],
                "spec.decompose.shards.range",
                "every shard reads everything",
            ),
            (
                vec![range(json!({"field": "id", "from": "9", "to": "0", "step": 3}))],
                "spec.decompose.shards.range",
                "the plan will fail as RangeInvalid",
            ),
            (vec![("/record", json!({"key": ["district"]}))], "spec.record.key[0]", "add it to spec.record.levels"),
            (
                vec![("/record", json!({"key": ["a"], "fields": {"a": {"type": "int64", "path": "$["}}}))],
                "spec.record.fields.a.path",
                "the run will fail",
            ),
            (
                vec![("/sink/objectStore", json!({"url": "file:///x", "volume": {"claimName": "c"}}))],
                "spec.sink.objectStore.volume",
                "ReadWriteMany",
            ),
            (vec![("/sink/objectStore/endpoint", json!("http://minio:9000"))], "spec.sink.objectStore", "no secretRef"),
            (vec![("/attemptDeadline", json!("30s"))], "spec.attemptDeadline", "first checkpoint"),
            (
                vec![("/attemptDeadline", json!("2h")), ("/deadline", json!("1h"))],
                "spec.attemptDeadline",
                "the whole run ends after 1h",
            ),
            (vec![("/stallTimeout", json!("30s"))], "spec.stallTimeout", "one request may take 1m"),
            (vec![("/history", json!(0))], "spec.history", "only counted"),
            (
                vec![("/hooks", json!({"afterFailure": {"run": {"job": {"image": "i", "env": {"CHAT_TOKEN": "x"}}}}}))],
                "spec.hooks.afterFailure.run.job.env.CHAT_TOKEN",
                "secretRef",
            ),
            (
                vec![("/hooks", json!({"beforeStart": {"run": {"http": {"url": "https://u:p@x.example/"}}}}))],
                "spec.hooks.beforeStart.run.http.url",
                "a password in the URL",
            ),
        ] {
            let found = advice(&changes);
            assert!(
                found.iter().any(|(at, message)| at == field && message.contains(words)),
                "{changes:?}: {field}: {words} is not in {found:#?}"
            );
        }
    }

    #[test]
    fn three_levels_of_tasks_are_many_objects() {
        let level = |name: &str| json!({"name": name, "discover": {"path": format!("/{name}"), "value": "$.code"}});
        let found = advice(&[
            ("/decompose/levels", json!([level("a"), level("b"), level("district")])),
            ("/source/http/query", json!({"a": "{{ a }}", "b": "{{ b }}"})),
        ]);
        assert!(found.len() == 1 && found[0].0 == "spec.decompose.levels[2]", "{found:#?}");
    }
}

//! What the API server must accept and refuse, as tables: what it says is tested against the real one, and `kubectl collect lint`
//! must judge the same rows the same way.

use serde_json::{Value, json};

/// What the API server shall do.
#[derive(Clone, Copy)]
pub enum Then {
    /// Accept.
    Accept,
    /// Refuse, with this in its message.
    Refuse(&'static str),
}
use Then::{Accept, Refuse};

/// An object of ours.
pub fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "collect.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

// ---------------------------------------------------------------------------------------------------------------------
// Specs.

/// A spec with values put at JSON pointers; null takes away. Objects on the way are made.
pub fn with(mut spec: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (above, last) = pointer.rsplit_once('/').unwrap();
        let mut at = &mut spec;
        for step in above.split('/').skip(1) {
            at = match at {
                Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
                other => &mut other[step],
            };
        }
        match at {
            Value::Array(items) => items[last.parse::<usize>().unwrap()] = value.clone(),
            other if value.is_null() => drop(other.as_object_mut().unwrap().remove(last)),
            other => other[last] = value.clone(),
        }
    }
    spec
}

/// The smallest task of the documentation.
pub fn smallest() -> Value {
    json!({
        "source": {"http": {"url": "https://weather.example/stations"}},
        "record": {"key": ["id"]},
        "sink": {"objectStore": {"url": "s3://lake/stations"}},
    })
}

/// The smallest task with changes.
pub fn task(changes: &[(&str, Value)]) -> Value {
    with(smallest(), changes)
}

/// A task whose source has a total and pages.
pub fn paged(changes: &[(&str, Value)]) -> Value {
    let base = task(&[
        ("/source/http/total", json!("$.total")),
        ("/source/http/pagination", json!({"page": {"param": "page", "size": 100, "sizeParam": "size"}})),
    ]);
    with(base, changes)
}

/// A task with these levels.
pub fn levels(levels: Value) -> Value {
    task(&[("/decompose/levels", levels)])
}

/// A child of a tree, with changes.
pub fn child(changes: &[(&str, Value)]) -> Value {
    let step = json!({"level": "province", "value": "44", "label": "广东省"});
    with(
        json!({"partOf": {"root": "villages", "rootUid": "3f9c2a71-0000-4000-8000-000000000000", "run": 1, "path": [step]}}),
        changes,
    )
}

pub fn shard_spec() -> Value {
    json!({
        "task": "villages-44", "rootUid": "3f9c2a71", "run": 1, "index": 0,
        "firstAttempt": {"authorisedBy": "5ad0c2", "authorisedAt": "2026-01-01T00:00:00Z"},
        "slice": {"items": [{"values": {"district": "440304"}, "part": {"pages": {"from": 0, "to": 4, "size": 100}}, "records": 321}]},
    })
}

pub fn report_spec() -> Value {
    json!({
        "task": "villages-44", "taskUid": "77aa", "rootUid": "3f9c2a71", "run": 1, "planDigest": "00ff", "level": "counts",
        "path": [{"level": "province", "value": "44", "label": "广东省"}],
    })
}

const ONE_SOURCE: &str = "set exactly one of: http";
const ONE_SINK: &str = "set exactly one of: objectStore";
const ONE_PAGINATION: &str = "set exactly one of: none, page, offset, cursor, next";
const ONE_AUTH: &str = "set exactly one of: bearer, basic, apiKey";
const ONE_BODY: &str = "set exactly one of: json, form, text";
const ONE_STRATEGY: &str = "set exactly one of: single, count, range, perValue";
const ONE_PART: &str = "set exactly one of: whole, pages, offsets, range";
const ONE_HOOK: &str = "set exactly one of: http, job";
const ONE_TOLERANCE: &str = "set exactly one of: shards, percent";
const OWN_NAME: &str = "a CollectTask can't depend on itself: remove its own name from spec.dependsOn";
const ROOT_NAME: &str =
    "the name of a root CollectTask has at most 40 characters, to leave room for the names of its children";
const PART_OF: &str = "spec.partOf is written by the operator when it creates a child and never changes";
const NEEDS: &str = "a CollectTask needs spec.source, spec.sink and spec.record";
const CHILD: &str = "a child CollectTask may set only spec.desiredState and spec.parallelism; everything else comes from its root: change it there";
const RUN: &str = "spec.run never falls; raise it to collect anew";
const ANEW: &str =
    "source, sink, record and decompose change only together with a higher spec.run, which collects anew";
const FILE_SINK: &str = "a file:// sink needs spec.sink.objectStore.volume: name the PersistentVolumeClaim to write to";
const S3_VOLUME: &str = "spec.sink.objectStore.volume is only for file:// URLs; remove it or change the url";
const PARQUET: &str = "format: parquet needs typed columns: declare them in spec.record.fields";
const COUNT_TOTAL: &str =
    "shards.count.recordsPerShard needs to know how many records a value has: set spec.source.http.total";
const CURSOR_SPLIT: &str = "a source with cursor or next-link pagination can't be split by number of records: remove shards.count.recordsPerShard, or split by levels";
const RANGE_TOTAL: &str = "shards.range.recordsPerShard needs to know how many records there are: set spec.source.http.total, or use step or every";
const RANGE_ONE: &str = "shards.range needs exactly one of recordsPerShard, step (integer key) and every (time key)";
const LEVEL_ONE: &str = "each level needs exactly one of values and discover";
const LEVEL_NAMES: &str = "the names of the levels must differ";
const LEVEL_RANGE: &str =
    "a level can't be called range: the template variable range holds the bounds of a range slice";
const SLICES_LAST: &str = "below a level with as: slices come only levels with as: slices";
const RECORD_LEVELS: &str = "spec.record.levels names a level that spec.decompose.levels does not have";
const BODY_POST: &str = "spec.source.http.body needs method: POST";
const CURSOR_ONE: &str = "pagination.cursor needs exactly one of next and lastOf";
const SHARD_FIXED: &str = "a CollectShard's spec never changes; change the root CollectTask and raise its spec.run";
const REPORT_FIXED: &str = "a ValidationReport's spec never changes; it names what was compared";

/// Creates: what it says, kind, name, spec, and what shall become of it.
pub fn creations() -> Vec<(&'static str, &'static str, String, Value, Then)> {
    let t = |says, spec, then| (says, "CollectTask", "stations".to_owned(), spec, then);
    let s = |says, spec, then| (says, "CollectShard", "villages-44-0".to_owned(), spec, then);
    let cursor = |cursor: Value| task(&[("/source/http/pagination", json!({"cursor": cursor}))]);
    let range = |range: Value| task(&[("/decompose/shards", json!({"range": range}))]);
    let file = |changes: &[(&str, Value)]| with(task(&[("/sink/objectStore/url", json!("file:///stations"))]), changes);
    vec![
        t("the smallest task is enough", smallest(), Accept),
        t("a hook does one thing", task(&[("/hooks/beforeStart/run", json!({}))]), Refuse(ONE_HOOK)),
        t(
            "a tolerance is a number or a share",
            task(&[("/completion/tolerate", json!({"shards": 1, "percent": 1}))]),
            Refuse(ONE_TOLERANCE),
        ),
        t("no task waits for itself", task(&[("/dependsOn", json!([{"name": "stations"}]))]), Refuse(OWN_NAME)),
        t("a child has no deadline of its own", child(&[("/deadline", json!("1h"))]), Refuse(CHILD)),
        t("a child has no history of its own", child(&[("/history", json!(3))]), Refuse(CHILD)),
        t("a task needs a source", task(&[("/source", Value::Null)]), Refuse(NEEDS)),
        t("a task needs a sink", task(&[("/sink", Value::Null)]), Refuse(NEEDS)),
        t("a task needs to say what a record is", task(&[("/record", Value::Null)]), Refuse(NEEDS)),
        t("an empty spec says what is missing", json!({}), Refuse(NEEDS)),
        ("a root's name may have 40 characters", "CollectTask", "a".repeat(40), smallest(), Accept),
        ("a root's name may not have 41 characters", "CollectTask", "a".repeat(41), smallest(), Refuse(ROOT_NAME)),
        ("a child's name may have more than 40", "CollectTask", "a".repeat(52), child(&[]), Accept),
        // Unions.
        t("a source is of a kind", task(&[("/source", json!({}))]), Refuse(ONE_SOURCE)),
        t("a sink is of a kind", task(&[("/sink", json!({}))]), Refuse(ONE_SINK)),
        t("a pagination is of a kind", task(&[("/source/http/pagination", json!({}))]), Refuse(ONE_PAGINATION)),
        t(
            "a pagination is of one kind only",
            paged(&[("/source/http/pagination/none", json!({}))]),
            Refuse(ONE_PAGINATION),
        ),
        t("no pagination can be said", task(&[("/source/http/pagination", json!({"none": {}}))]), Accept),
        t("auth is of a kind", task(&[("/source/http/auth", json!({}))]), Refuse(ONE_AUTH)),
        t(
            "auth is of one kind only",
            task(&[(
                "/source/http/auth",
                json!({"bearer": {"secretRef": {"name": "a", "key": "b"}}, "basic": {"secretRef": {"name": "a"}}}),
            )]),
            Refuse(ONE_AUTH),
        ),
        t(
            "a bearer token is a key of a secret",
            task(&[("/source/http/auth", json!({"bearer": {"secretRef": {"name": "a"}}}))]),
            Refuse("spec.source.http.auth.bearer.secretRef.key: Required value"),
        ),
        t("a strategy is of a kind", task(&[("/decompose/shards", json!({}))]), Refuse(ONE_STRATEGY)),
        t(
            "a strategy is of one kind only",
            task(&[("/decompose/shards", json!({"single": {}, "perValue": {}}))]),
            Refuse(ONE_STRATEGY),
        ),
        // Bodies.
        t("a body needs POST", task(&[("/source/http/body", json!({"text": "x"}))]), Refuse(BODY_POST)),
        t(
            "a body does not go with GET",
            task(&[("/source/http/method", json!("GET")), ("/source/http/body", json!({"text": "x"}))]),
            Refuse(BODY_POST),
        ),
        t(
            "a body is of a kind",
            task(&[("/source/http/method", json!("POST")), ("/source/http/body", json!({}))]),
            Refuse(ONE_BODY),
        ),
        t(
            "a body is of one kind only",
            task(&[("/source/http/method", json!("POST")), ("/source/http/body", json!({"text": "x", "json": {}}))]),
            Refuse(ONE_BODY),
        ),
        t(
            "a JSON body may hold anything",
            task(&[
                ("/source/http/method", json!("POST")),
                (
                    "/source/http/body",
                    json!({"json": {"query": "{ a }", "variables": {"n": 1, "deep": [{"x": null}, true, 1.5]}}}),
                ),
            ]),
            Accept,
        ),
        t(
            "a form may be posted",
            task(&[
                ("/source/http/method", json!("POST")),
                ("/source/http/body", json!({"form": {"a": "{{ city }}"}})),
            ]),
            Accept,
        ),
        t(
            "PUT is not offered",
            task(&[("/source/http/method", json!("PUT"))]),
            Refuse("supported values: \"GET\", \"POST\""),
        ),
        // Cursors.
        t("a cursor is taken from the answer", cursor(json!({"next": "$.next", "into": "cursor"})), Accept),
        t("a cursor is taken from the last record", cursor(json!({"lastOf": "$.id", "into": "query:after"})), Accept),
        t("a cursor comes from somewhere", cursor(json!({"into": "cursor"})), Refuse(CURSOR_ONE)),
        t(
            "a cursor comes from one place",
            cursor(json!({"next": "$.n", "lastOf": "$.id", "into": "c"})),
            Refuse(CURSOR_ONE),
        ),
        t(
            "a cursor goes somewhere",
            cursor(json!({"next": "$.next"})),
            Refuse("spec.source.http.pagination.cursor.into: Required value"),
        ),
        // Sinks.
        t("a file sink needs a claim", file(&[]), Refuse(FILE_SINK)),
        t("a file sink may name a claim", file(&[("/sink/objectStore/volume", json!({"claimName": "lake"}))]), Accept),
        t(
            "an s3 sink takes no claim",
            task(&[("/sink/objectStore/volume", json!({"claimName": "lake"}))]),
            Refuse(S3_VOLUME),
        ),
        t("parquet needs columns", task(&[("/sink/objectStore/format", json!("parquet"))]), Refuse(PARQUET)),
        t(
            "parquet with columns is fine",
            task(&[
                ("/sink/objectStore/format", json!("parquet")),
                ("/record/fields", json!({"id": {"type": "int64"}})),
            ]),
            Accept,
        ),
        t(
            "csv is not offered",
            task(&[("/sink/objectStore/format", json!("csv"))]),
            Refuse("supported values: \"ndjson\", \"parquet\""),
        ),
        t(
            "a sink's url names a store",
            task(&[("/sink/objectStore/url", json!("gs://lake/x"))]),
            Refuse("spec.sink.objectStore.url"),
        ),
        t(
            "a sink's url names a bucket",
            task(&[("/sink/objectStore/url", json!("s3:///x"))]),
            Refuse("spec.sink.objectStore.url"),
        ),
        // Sources.
        t(
            "a source's url is http",
            task(&[("/source/http/url", json!("ftp://x.example"))]),
            Refuse("spec.source.http.url"),
        ),
        t(
            "a source's url has no query",
            task(&[("/source/http/url", json!("https://x.example/?a=1"))]),
            Refuse("spec.source.http.url"),
        ),
        t(
            "a timeout is a duration",
            task(&[("/source/http/timeout", json!("1 minute"))]),
            Refuse("spec.source.http.timeout"),
        ),
        t("a duration may have parts", task(&[("/source/http/timeout", json!("1m30s"))]), Accept),
        t("a total may stand in a header", task(&[("/source/http/total", json!("header:X-Total-Count"))]), Accept),
        t("a total is no bare word", task(&[("/source/http/total", json!("total"))]), Refuse("spec.source.http.total")),
        // Strategies.
        t(
            "records per shard need a total",
            task(&[("/decompose/shards", json!({"count": {"recordsPerShard": 10}}))]),
            Refuse(COUNT_TOTAL),
        ),
        t(
            "records per shard with a total",
            paged(&[("/decompose/shards", json!({"count": {"recordsPerShard": 10}}))]),
            Accept,
        ),
        t("packing needs no total", task(&[("/decompose/shards", json!({"count": {"valuesPerShard": 10}}))]), Accept),
        t(
            "a cursor can't be split",
            paged(&[
                ("/source/http/pagination", json!({"cursor": {"next": "$.n", "into": "c"}})),
                ("/decompose/shards", json!({"count": {"recordsPerShard": 10}})),
            ]),
            Refuse(CURSOR_SPLIT),
        ),
        t(
            "next links can't be split",
            paged(&[
                ("/source/http/pagination", json!({"next": {"url": "link:next"}})),
                ("/decompose/shards", json!({"count": {"recordsPerShard": 10}})),
            ]),
            Refuse(CURSOR_SPLIT),
        ),
        t(
            "cursors can be packed",
            paged(&[
                ("/source/http/pagination", json!({"cursor": {"next": "$.n", "into": "c"}})),
                ("/decompose/shards", json!({"count": {"valuesPerShard": 10}})),
            ]),
            Accept,
        ),
        t("a range by step", range(json!({"field": "id", "from": "0", "to": "100", "step": 10})), Accept),
        t(
            "a range by time",
            range(json!({"field": "at", "from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z", "every": "1d"})),
            Accept,
        ),
        t("a range has a width", range(json!({"field": "id", "from": "0", "to": "100"})), Refuse(RANGE_ONE)),
        t(
            "a range has one width",
            range(json!({"field": "id", "from": "0", "to": "9", "step": 1, "every": "1d"})),
            Refuse(RANGE_ONE),
        ),
        t(
            "a range by number of records needs a total",
            range(json!({"field": "id", "from": "0", "to": "9", "recordsPerShard": 5})),
            Refuse(RANGE_TOTAL),
        ),
        t(
            "a range by number of records with a total",
            paged(&[(
                "/decompose/shards",
                json!({"range": {"field": "id", "from": "0", "to": "9", "recordsPerShard": 5}}),
            )]),
            Accept,
        ),
        // Levels.
        t("a level with values", levels(json!([{"name": "a", "values": ["1"]}])), Accept),
        t(
            "a level with a discovery",
            levels(json!([{"name": "a", "discover": {"path": "/a", "value": "$.code"}}])),
            Accept,
        ),
        t("a level has values from somewhere", levels(json!([{"name": "a"}])), Refuse(LEVEL_ONE)),
        t(
            "a level has values from one place",
            levels(json!([{"name": "a", "values": ["1"], "discover": {"path": "/a", "value": "$.code"}}])),
            Refuse(LEVEL_ONE),
        ),
        t(
            "levels differ in name",
            levels(json!([{"name": "a", "values": ["1"]}, {"name": "a", "values": ["1"]}])),
            Refuse(LEVEL_NAMES),
        ),
        t("no level is called range", levels(json!([{"name": "range", "values": ["1"]}])), Refuse(LEVEL_RANGE)),
        t(
            "slices come last",
            levels(
                json!([{"name": "a", "values": ["1"]}, {"name": "b", "values": ["1"], "as": "slices"}, {"name": "c", "values": ["1"], "as": "slices"}]),
            ),
            Accept,
        ),
        t(
            "no tasks below slices",
            levels(json!([{"name": "a", "values": ["1"], "as": "slices"}, {"name": "b", "values": ["1"]}])),
            Refuse(SLICES_LAST),
        ),
        t(
            "no tasks between slices",
            levels(
                json!([{"name": "a", "values": ["1"], "as": "slices"}, {"name": "b", "values": ["1"], "as": "tasks"}, {"name": "c", "values": ["1"], "as": "slices"}]),
            ),
            Refuse(SLICES_LAST),
        ),
        t(
            "a record may hold its level",
            with(levels(json!([{"name": "a", "values": ["1"]}])), &[("/record/levels", json!(["a"]))]),
            Accept,
        ),
        t("a record can't hold a level that is not", task(&[("/record/levels", json!(["a"]))]), Refuse(RECORD_LEVELS)),
        t(
            "a record can't hold another level",
            with(levels(json!([{"name": "a", "values": ["1"]}])), &[("/record/levels", json!(["b"]))]),
            Refuse(RECORD_LEVELS),
        ),
        // Children.
        t("a child needs only its place", child(&[]), Accept),
        t(
            "a child may be paused and bounded",
            child(&[("/desiredState", json!("Paused")), ("/parallelism", json!(2))]),
            Accept,
        ),
        t("a child has no source", child(&[("/source", smallest()["source"].clone())]), Refuse(CHILD)),
        t("a child has no sink", child(&[("/sink", smallest()["sink"].clone())]), Refuse(CHILD)),
        t("a child has no record", child(&[("/record", smallest()["record"].clone())]), Refuse(CHILD)),
        t("a child has no levels", child(&[("/decompose", json!({}))]), Refuse(CHILD)),
        t("a child has no retry", child(&[("/retry", json!({}))]), Refuse(CHILD)),
        t("a child has no deadline", child(&[("/attemptDeadline", json!("1h"))]), Refuse(CHILD)),
        t("a child has no validation", child(&[("/validation", json!({}))]), Refuse(CHILD)),
        t("a child has no worker", child(&[("/worker", json!({}))]), Refuse(CHILD)),
        t("a child has no run", child(&[("/run", json!(1))]), Refuse(CHILD)),
        t("a child has no runs", child(&[("/runs", json!({}))]), Refuse(CHILD)),
        // Unknown fields, as a typing error gives them.
        t(
            "an unknown field is refused",
            task(&[("/paralelism", json!(3))]),
            Refuse("unknown field \"spec.paralelism\""),
        ),
        t(
            "an unknown field deep down is refused",
            task(&[("/source/http/pagination", json!({"page": {"param": "p", "sise": 3}}))]),
            Refuse("unknown field \"spec.source.http.pagination.page.sise\""),
        ),
        t(
            "another desired state is refused",
            task(&[("/desiredState", json!("Stopped"))]),
            Refuse("supported values: \"Running\", \"Paused\", \"Cancelled\""),
        ),
        t(
            "a level that is not offered is refused",
            task(&[("/validation/level", json!("keys"))]),
            Refuse("supported values: \"none\", \"counts\""),
        ),
        t(
            "a word where a number belongs is refused",
            task(&[("/parallelism", json!("many"))]),
            Refuse("spec.parallelism"),
        ),
        // Shards and reports.
        s("a shard of a slice", shard_spec(), Accept),
        s("an item is a part", with(shard_spec(), &[("/slice/items/0/part", json!({}))]), Refuse(ONE_PART)),
        s(
            "an item is one part",
            with(shard_spec(), &[("/slice/items/0/part", json!({"whole": {}, "offsets": {"from": 0}}))]),
            Refuse(ONE_PART),
        ),
        s("an item may be whole", with(shard_spec(), &[("/slice/items/0/part", json!({"whole": {}}))]), Accept),
        s("a shard knows its task", with(shard_spec(), &[("/task", Value::Null)]), Refuse("spec.task: Required value")),
        ("a report", "ValidationReport", "villages-44-r1".into(), report_spec(), Accept),
        (
            "a report knows what was compared",
            "ValidationReport",
            "villages-44-r1".into(),
            with(report_spec(), &[("/planDigest", Value::Null)]),
            Refuse("spec.planDigest: Required value"),
        ),
    ]
}

/// Updates: what it says, kind, spec before, spec after, and what shall become of it.
pub fn updates() -> Vec<(&'static str, &'static str, Value, Value, Then)> {
    let t = |says, before, after, then| (says, "CollectTask", before, after, then);
    let tree = levels(json!([{"name": "a", "values": ["1"]}]));
    let rich = task(&[("/run", json!(3)), ("/parallelism", json!(4))]);
    let moved = ("/source/http/url", json!("https://weather.example/elsewhere"));
    vec![
        t("parallelism may change", smallest(), task(&[("/parallelism", json!(9))]), Accept),
        t("the desired state may change", smallest(), task(&[("/desiredState", json!("Paused"))]), Accept),
        t(
            "retry, deadline and validation may change",
            smallest(),
            task(&[
                ("/retry/maxAttempts", json!(9)),
                ("/attemptDeadline", json!("1h")),
                ("/validation/level", json!("none")),
            ]),
            Accept,
        ),
        t("the worker may change", smallest(), task(&[("/worker/resources/limits/memory", json!("1Gi"))]), Accept),
        t("run may rise", rich.clone(), with(rich.clone(), &[("/run", json!(4))]), Accept),
        t("run may be raised by some", rich.clone(), with(rich.clone(), &[("/run", json!(9))]), Accept),
        t("run never falls", rich.clone(), with(rich.clone(), &[("/run", json!(2))]), Refuse(RUN)),
        t("run can't be taken away", rich.clone(), with(rich.clone(), &[("/run", Value::Null)]), Refuse(RUN)),
        t("run 1 is the default", smallest(), task(&[("/run", json!(1))]), Accept),
        t("run 1 may be left out again", task(&[("/run", json!(1))]), smallest(), Accept),
        t("the source is fixed", smallest(), task(std::slice::from_ref(&moved)), Refuse(ANEW)),
        t("run 1 said is not a higher run", smallest(), task(&[moved.clone(), ("/run", json!(1))]), Refuse(ANEW)),
        t("the source changes with a higher run", smallest(), task(&[moved.clone(), ("/run", json!(2))]), Accept),
        t(
            "the source's small print is fixed",
            smallest(),
            task(&[("/source/http/query", json!({"a": "b"}))]),
            Refuse(ANEW),
        ),
        t(
            "the sink is fixed",
            smallest(),
            task(&[("/sink/objectStore/url", json!("s3://lake/elsewhere"))]),
            Refuse(ANEW),
        ),
        t("the record is fixed", smallest(), task(&[("/record/key", json!(["code"]))]), Refuse(ANEW)),
        t("levels can't be added", smallest(), tree.clone(), Refuse(ANEW)),
        t("levels can't be taken away", tree.clone(), smallest(), Refuse(ANEW)),
        t(
            "levels can't change",
            tree.clone(),
            with(tree.clone(), &[("/decompose/levels/0/values", json!(["2"]))]),
            Refuse(ANEW),
        ),
        t(
            "levels change with a higher run",
            tree.clone(),
            with(tree.clone(), &[("/decompose/levels/0/values", json!(["2"])), ("/run", json!(2))]),
            Accept,
        ),
        t(
            "all may change with a higher run",
            tree.clone(),
            with(
                smallest(),
                &[
                    moved,
                    ("/sink/objectStore/url", json!("s3://lake/b")),
                    ("/record/key", json!(["c"])),
                    ("/run", json!(2)),
                ],
            ),
            Accept,
        ),
        t(
            "the source can't be taken away",
            smallest(),
            task(&[("/source", Value::Null), ("/run", json!(2))]),
            Refuse(NEEDS),
        ),
        t("a root can't become a child", smallest(), child(&[]), Refuse(PART_OF)),
        t("a child can't become a root", child(&[]), smallest(), Refuse(PART_OF)),
        t("a child keeps its place", child(&[]), child(&[("/partOf/run", json!(2))]), Refuse(PART_OF)),
        t("a child keeps its path", child(&[]), child(&[("/partOf/path/0/value", json!("45"))]), Refuse(PART_OF)),
        t("a child may be paused", child(&[]), child(&[("/desiredState", json!("Paused"))]), Accept),
        t("a child may be bounded", child(&[]), child(&[("/parallelism", json!(0))]), Accept),
        t("a child gets no run of its own", child(&[]), child(&[("/run", json!(2))]), Refuse(CHILD)),
        (
            "a shard is fixed",
            "CollectShard",
            shard_spec(),
            with(shard_spec(), &[("/index", json!(1))]),
            Refuse(SHARD_FIXED),
        ),
        ("a shard may be written as it is", "CollectShard", shard_spec(), shard_spec(), Accept),
        (
            "a report is fixed",
            "ValidationReport",
            report_spec(),
            with(report_spec(), &[("/run", json!(2))]),
            Refuse(REPORT_FIXED),
        ),
        (
            "a report's path can't be taken away",
            "ValidationReport",
            report_spec(),
            with(report_spec(), &[("/path", Value::Null)]),
            Refuse(REPORT_FIXED),
        ),
    ]
}

/// Visits a schema and all below it; `path` is a JSON pointer with `0` for a list's element and `k` for a map's value.
pub fn walk(path: &mut String, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    let mut below = |step: &str, schema: &Value| {
        let length = path.len();
        path.push('/');
        path.push_str(step);
        walk(path, schema, visit);
        path.truncate(length);
    };
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        below(name, inner);
    }
    for (key, step) in [("items", "0"), ("additionalProperties", "k")] {
        if schema[key].is_object() {
            below(step, &schema[key]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Bounds: samples that use every field once, and a value just beyond each bound of the schema.

/// Specs that together use every field. Maps have the key `k`.
pub fn samples() -> Vec<(&'static str, Value)> {
    let full = r#"
      source:
        http:
          url: https://x.example/api
          path: "/a/{{ province }}"
          method: POST
          query: {k: v}
          headers: {k: v}
          body: {json: {a: 1}}
          records: $.data
          total: $.total
          pagination: {page: {param: page, start: 1, size: 100, sizeParam: size}}
          auth: {bearer: {secretRef: {name: registry, key: token}}}
          limits: {requestsPerSecond: 10.5, concurrency: 4}
          retry: {maxAttempts: 3, backoff: {initial: 1s, factor: 2, max: 60s}}
          timeout: 30s
          allowOrigins: ["https://y.example"]
      sink:
        objectStore: {url: "s3://lake/a", format: ndjson, compression: zstd, secretRef: {name: lake}, endpoint: "http://minio:9000", region: eu-west-1}
      record: {key: [code], levels: [province], fields: {k: {type: string, path: $.code}}}
      decompose:
        levels:
          - {name: province, as: tasks, discover: {path: /p, records: $.data, value: $.code, label: $.name, allowEmpty: true}}
        shards: {count: {recordsPerShard: 100, valuesPerShard: 10}}
        limits: {maxChildren: 10, maxShards: 100}
      parallelism: 4
      desiredState: Running
      retry: {maxAttempts: 4, maxDisruptions: 20, backoff: {initial: 1s, factor: 2, max: 60s}, overrides: [{errors: [OutOfMemory], maxAttempts: 1, backoff: {initial: 1s, factor: 2, max: 60s}}]}
      attemptDeadline: 6h
      dependsOn: [{name: other, allowUnverified: true}]
      deadline: 2d
      stallTimeout: 5m
      pendingTimeout: 15m
      completion: {tolerate: {shards: 3}, failFast: true}
      ttl: {succeeded: 7d, collected: 7d, failed: 30d, cancelled: 1h}
      history: 100
      hooks:
        beforeStart: {deadline: 1m, maxAttempts: 3, run: {http: {url: "https://x.example/hook", method: POST, headers: {k: v}, body: {json: {a: 1}}, auth: {bearer: {secretRef: {name: a, key: k}}}}}}
        afterSuccess: {deadline: 1m, maxAttempts: 3, run: {http: {url: "https://x.example/hook", method: POST, headers: {k: v}, body: {form: {k: v}}, auth: {basic: {secretRef: {name: a}}}}}}
        afterFailure: {deadline: 1m, maxAttempts: 3, run: {job: {image: "example.org/notify:1", command: [notify], args: ["-v"], env: {k: v}, secretRef: {name: chat}}}}
      validation: {level: counts, total: {path: /summary, value: $.n}}
      worker:
        image: example.org/w:1
        resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
        nodeSelector: {k: v}
        tolerations: [{key: a, operator: Equal, value: b, effect: NoSchedule}]
        priorityClassName: low
        serviceAccountName: worker
      run: 1
      runs: {keep: 2}
    "#;
    let full: Value = serde_yaml::from_str(full).unwrap();
    let shard = |part: Value| {
        (
            "CollectShard",
            with(shard_spec(), &[("/slice/items/0/part", part), ("/slice/items/0/values", json!({"k": "v"}))]),
        )
    };
    let request = |body: Value, auth: Value| json!({"http": {"url": "https://x.example/hook", "method": "POST", "headers": {"k": "v"}, "body": body, "auth": auth}});
    let own =
        json!({"job": {"image": "a", "command": ["a"], "args": ["a"], "env": {"k": "v"}, "secretRef": {"name": "a"}}});
    let runs = [
        request(json!({"json": {"a": 1}}), json!({"bearer": {"secretRef": {"name": "a", "key": "k"}}})),
        request(json!({"form": {"k": "v"}}), json!({"basic": {"secretRef": {"name": "a"}}})),
        request(json!({"text": "t"}), json!({"apiKey": {"secretRef": {"name": "a", "key": "k"}, "into": "query:key"}})),
        own,
    ];
    let hooks = runs.map(|run| {
        let hook = json!({"run": run, "deadline": "1m", "maxAttempts": 3});
        let all = json!({"beforeStart": hook, "afterSuccess": hook, "afterFailure": hook});
        ("CollectTask", with(smallest(), &[("/hooks", all)]))
    });
    let source = |pointer: &'static str, value: Value| {
        ("CollectTask", with(full.clone(), &[("/decompose/shards", Value::Null), (pointer, value)]))
    };
    vec![
        ("CollectTask", full.clone()),
        ("CollectTask", child(&[])),
        source("/completion/tolerate", json!({"percent": 10})),
        source("/source/http/body", json!({"form": {"k": "v"}})),
        source("/source/http/body", json!({"text": "t"})),
        source("/source/http/auth", json!({"basic": {"secretRef": {"name": "a"}}})),
        source(
            "/source/http/auth",
            json!({"apiKey": {"secretRef": {"name": "a", "key": "k"}, "into": "header:X-Api-Key"}}),
        ),
        source("/source/http/pagination", json!({"none": {}})),
        source("/source/http/pagination", json!({"offset": {"param": "offset", "limit": 10, "limitParam": "limit"}})),
        source("/source/http/pagination", json!({"cursor": {"next": "$.next", "more": "$.more", "into": "cursor"}})),
        source("/source/http/pagination", json!({"cursor": {"lastOf": "$.id", "into": "cursor"}})),
        source("/source/http/pagination", json!({"next": {"url": "link:next"}})),
        source("/sink/objectStore", json!({"url": "file:///a", "volume": {"claimName": "lake"}})),
        source("/decompose/levels", json!([{"name": "province", "values": ["44"]}])),
        source("/decompose/shards", json!({"single": {}})),
        source("/decompose/shards", json!({"perValue": {}})),
        source("/decompose/shards", json!({"range": {"field": "id", "from": "0", "to": "9", "step": 3}})),
        source("/decompose/shards", json!({"range": {"field": "at", "from": "0", "to": "9", "every": "1d"}})),
        source("/decompose/shards", json!({"range": {"field": "at", "from": "0", "to": "9", "recordsPerShard": 9}})),
        shard(json!({"whole": {}})),
        shard(json!({"pages": {"from": 0, "to": 1, "size": 10}})),
        shard(json!({"offsets": {"from": 0, "to": 1}})),
        shard(json!({"range": {"from": "0", "to": "1"}})),
        ("ValidationReport", report_spec()),
    ]
    .into_iter()
    .chain(hooks)
    .collect()
}

/// Values that a schema refuses, each with what the API server says about it.
pub fn beyond(schema: &Value, sample: &Value) -> Vec<(Value, &'static str)> {
    let mut values = Vec::new();
    let number = |key: &str| schema[key].as_f64();
    let count = |key: &str| schema[key].as_u64().and_then(|n| usize::try_from(n).ok());
    let like = |n: f64| if schema["type"] == "integer" { json!(n as i64) } else { json!(n) };
    if let Some(n) = number("minimum") {
        values.push((like(n - 1.0), "should be greater than or equal to"));
    }
    if let Some(n) = number("maximum") {
        values.push((like(n + 1.0), "should be less than or equal to"));
    }
    if let Some(n) = count("minLength") {
        values.push((json!("x".repeat(n - 1)), "should be at least"));
    }
    if let Some(n) = count("maxLength") {
        values.push((json!("x".repeat(n + 1)), "Too long"));
    }
    if schema["pattern"].is_string() {
        values.push((json!("? ?? ?? ?"), "should match"));
    }
    if schema["enum"].is_array() {
        values.push((json!("Nonsense"), "Unsupported value"));
    }
    if count("minItems").is_some() {
        values.push((json!([]), "should have at least"));
    }
    if let Some(n) = count("maxItems") {
        values.push((json!(vec![sample[0].clone(); n + 1]), "Too many"));
    }
    if let Some(n) = count("maxProperties") {
        let map: serde_json::Map<_, _> = (0..=n).map(|i| (format!("k{i}"), sample["k"].clone())).collect();
        values.push((Value::Object(map), "Too many"));
    }
    values
}

/// A value just beyond a bound: kind, spec, JSON pointer of the field, what the API server says of it.
pub type Beyond = (String, Value, String, &'static str);

/// A value just beyond each bound of the definitions, put into a sample; and the fields that no sample has.
pub fn bounds(crds: &[Value]) -> (Vec<Beyond>, Vec<String>) {
    let samples = samples();
    let mut cases = Vec::new();
    let mut unused = Vec::new();
    for crd in crds {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let spec_schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        walk(&mut String::new(), spec_schema, &mut |path, schema| {
            let using = samples
                .iter()
                .find_map(|(of, spec)| spec.pointer(path).filter(|_| *of == kind).map(|value| (spec, value)));
            match using {
                None => unused.push(format!("{kind} {path}")),
                Some((spec, value)) => {
                    cases.extend(beyond(schema, value).into_iter().map(|(value, says)| {
                        (kind.clone(), with(spec.clone(), &[(path, value)]), path.to_owned(), says)
                    }))
                }
            }
        });
    }
    (cases, unused)
}

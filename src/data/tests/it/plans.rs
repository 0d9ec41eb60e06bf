//! Plans of the sample tree.

use std::io::Read;

use collect_api::plan::{Part, PlanLine};
use collect_data::{Class, Plan};
use collect_registry::{Effect, Options, Registry};
use serde_json::{Value, json};

use crate::lab::{Lab, pages};

fn level(name: &str, path: &str) -> Value {
    json!({"name": name, "discover": {"path": path, "records": "$.data", "value": "$.code", "label": "$.name"}})
}

fn levels() -> Value {
    let mut district = level("district", "/cities/{{ city }}/districts");
    district["as"] = json!("slices");
    json!([level("province", "/provinces"), level("city", "/provinces/{{ province }}/cities"), district])
}

fn source() -> Value {
    json!({"path": "/districts/{{ district }}/villages", "pagination": pages(4)})
}

fn lines(plan: &Plan) -> Vec<PlanLine> {
    let mut text = String::new();
    for chunk in &plan.chunks {
        flate2::read::GzDecoder::new(chunk.as_slice()).read_to_string(&mut text).unwrap();
    }
    assert_eq!(plan.result.digest, blake3::hash(text.as_bytes()).to_hex().as_str());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_tree_is_walked_split_and_packed() {
    let lab = Lab::small().await;
    let decompose = json!({"levels": levels(), "shards": {"count": {"recordsPerShard": 8, "valuesPerShard": 3}}});
    let plan = lab.plan(source(), decompose.clone()).await.unwrap();
    let lines = lines(&plan);
    let PlanLine::Task(root) = &lines[0] else { panic!() };
    assert_eq!((root.tasks, root.shards, root.records), (3, 0, Some(216)));
    assert_eq!((plan.result.tasks, plan.result.records, plan.result.empty_tasks), (12, Some(216), 1));
    let PlanLine::Task(second) = &lines[1] else { panic!() };
    assert!(second.path[0].label.is_some());
    let mut districts = Vec::new();
    let mut records = 0;
    for line in &lines {
        let PlanLine::Shard(shard) = line else { continue };
        let expected: i64 = shard.items.iter().map(|item| item.records.unwrap()).sum();
        assert!(shard.items.len() <= 3 && (shard.items.len() == 1 || expected <= 8));
        records += expected;
        for item in &shard.items {
            let code = item.values["district"].clone();
            match &item.part {
                Part::Pages(span) => assert_eq!((span.size, span.from % 2), (4, 0)),
                Part::Whole {} => {}
                other => panic!("{other:?}"),
            }
            if districts.last() != Some(&code) {
                districts.push(code);
            }
        }
    }
    assert_eq!((districts, records), (lab.held(2), 216));
    // Deterministic, whatever order answers come in.
    assert_eq!(lab.plan(source(), decompose).await.unwrap(), plan);
}

#[tokio::test]
async fn ranges_are_made_for_every_value() {
    let lab = Lab::small().await;
    let source = json!({
        "path": "/provinces/{{ province }}/villages".replace("/provinces/{{ province }}", ""),
        "query": {"from": "{{ range.from }}", "to": "{{ range.to }}", "p": "{{ province }}"}, "pagination": pages(50)
    });
    let mut province = level("province", "/provinces");
    province["as"] = json!("slices");
    let range =
        json!({"range": {"field": "code", "from": "100000000000", "to": "700000000000", "recordsPerShard": 100}});
    let plan = lab.plan(source, json!({"levels": [province], "shards": range})).await.unwrap();
    // 216 records of 100 each are 3 ranges, for each of 3 provinces.
    assert_eq!((plan.result.shards, plan.result.items, plan.result.records), (9, 9, None));
}

#[tokio::test]
async fn the_independent_total_is_read_once() {
    let lab = Lab::small().await;
    let work = collect_api::protocol::PlanWork {
        decompose: serde_json::from_value(json!({"levels": levels()})).unwrap(),
        total: Some(serde_json::from_value(json!({"path": "/summary", "value": "$.villages"})).unwrap()),
    };
    let assignment = lab.assignment(source(), collect_api::protocol::Work::Plan(work.clone()));
    let control = collect_data::Control::new(&Default::default());
    let plan = collect_data::plan(&assignment, &work, &lab.settings("a"), &control).await.unwrap();
    let PlanLine::Task(root) = &lines(&plan)[0] else { panic!() };
    assert_eq!((root.total, root.records), (Some(216), None));
    assert_eq!(lab.registry.log().iter().filter(|entry| entry.path == "/api/summary").count(), 1);
    assert_eq!(lab.registry.log().iter().filter(|entry| entry.path.ends_with("/villages")).count(), 0);
}

#[tokio::test]
async fn plans_that_can_not_work_fail_before_anything_exists() {
    let twice = Effect::Duplicate { every: 1 };
    let lab = Lab::with(Registry::small(), Options::faults([twice.always()])).await;
    let plan = lab.plan(
        json!({"path": "/provinces/{{ province }}/villages"}),
        json!({"levels": [level("province", "/provinces")]}),
    );
    assert_eq!(plan.await.unwrap().result.duplicate_values, 3);

    let lab = Lab::small().await;
    let few = json!({"levels": levels(), "limits": {"maxChildren": 2}});
    let error = lab.plan(source(), few).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("TooManyChildren", Class::Permanent));
    assert!(error.to_string().contains("`as: slices`"), "{error}");

    let error =
        lab.plan(source(), json!({"levels": levels(), "shards": {"perValue": {}}, "limits": {"maxShards": 5}})).await;
    assert_eq!(error.unwrap_err().category(), "TooManyShards");

    let empty = json!({"levels": [level("x", "/cities/6503/districts")]});
    let error = lab.plan(json!({}), empty).await.unwrap_err();
    assert_eq!(error.category(), "EmptyDiscovery", "{error}");

    let mut object = level("province", "/provinces");
    object["discover"]["value"] = json!("$.none");
    let error = lab.plan(json!({}), json!({"levels": [object]})).await.unwrap_err();
    assert_eq!(error.category(), "LevelValueInvalid", "{error}");

    let unknown = json!({"path": "/districts/{{ distrct }}/villages", "pagination": pages(4)});
    let count = json!({"levels": levels(), "shards": {"count": {"recordsPerShard": 5}}});
    let error = lab.plan(unknown, count).await.unwrap_err();
    assert!(error.to_string().contains("known: city, district, province"), "{error}");
}

#[tokio::test]
async fn the_planner_claims_the_sink() {
    let lab = Lab::small().await.on_s3().await;
    lab.plan(json!({}), json!({})).await.unwrap();
    let current = std::fs::read_to_string(lab.files().join("_current.json")).unwrap();
    assert_eq!(current, "{\"owner\":\"default/villages\",\"run\":null}\n");
    lab.plan(json!({}), json!({})).await.unwrap();
    std::fs::write(lab.files().join("_current.json"), r#"{"owner": "other/task", "run": 3}"#).unwrap();
    let error = lab.plan(json!({}), json!({})).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("SinkOccupied", Class::Permanent));
    assert!(error.to_string().contains("belongs to other/task, not to default/villages"), "{error}");
    let left: Vec<_> = std::fs::read_dir(lab.files()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["_current.json"]);
}

#[tokio::test]
async fn a_sink_without_conditional_puts_is_refused() {
    let lab = Lab::small().await.on_s3().await;
    lab.s3.as_ref().unwrap().control.set_faults([collect_s3::Effect::IgnoreConditions.always()]);
    let error = lab.plan(json!({}), json!({})).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("SinkNotConditional", Class::Permanent), "{error}");
}

#[tokio::test]
async fn a_preview_follows_one_branch() {
    let lab = Lab::small().await;
    let assignment = lab.assignment(
        source(),
        collect_api::protocol::Work::Plan(collect_api::protocol::PlanWork {
            decompose: Default::default(),
            total: None,
        }),
    );
    let collect_api::source::Source::Http(http) = assignment.source;
    let decompose = serde_json::from_value(json!({"levels": levels()})).unwrap();
    let values = [("province".to_owned(), "44".to_owned())].into();
    let preview = collect_data::preview(&http, &decompose, values, &lab.settings("a")).await.unwrap();
    let first = preview.answer.unwrap();
    assert!(preview.request[0].starts_with("GET http://127.0.0.1:") && preview.request[0].contains("/districts/44"));
    assert_eq!((first.status, first.columns[0].name.as_str()), (200, "code"));
    assert_eq!(preview.tree.nodes.len(), 3);
}

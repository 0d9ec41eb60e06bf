//! I7: every paginator gives the exact set, in the order of the source.

use collect_api::plan::{Item, OffsetSpan, PageSpan, Part};
use collect_data::Ending;
use serde_json::{Value, json};

use crate::lab::{Lab, identity, pages, whole};

fn styles() -> Vec<(&'static str, Value)> {
    vec![
        ("page", json!({"pagination": pages(50)})),
        ("page whose size divides the total", json!({"pagination": pages(54)})),
        ("page of unknown size", json!({"pagination": {"page": {"param": "page"}}})),
        ("page above what is granted", json!({"pagination": pages(1_000_000)})),
        ("offset", json!({"pagination": {"offset": {"param": "offset", "limit": 40, "limitParam": "limit"}}})),
        (
            "cursor",
            json!({"query": {"cursor": "", "limit": "33"}, "pagination": {"cursor": {"next": "$.cursor", "more": "$.has_more", "into": "cursor"}}}),
        ),
        (
            "cursor that ends by itself",
            json!({"query": {"cursor": "", "limit": "33"}, "pagination": {"cursor": {"next": "$.cursor", "into": "query:cursor"}}}),
        ),
        (
            "last record",
            json!({"query": {"after": "", "limit": "31"}, "pagination": {"cursor": {"lastOf": "$.code", "more": "$.has_more", "into": "after"}}}),
        ),
        ("next in the body", json!({"query": {"size": "45"}, "pagination": {"next": {"url": "$.next"}}})),
        ("next in the Link header", json!({"query": {"size": "45"}, "pagination": {"next": {"url": "link:next"}}})),
        (
            "GraphQL",
            json!({
                "path": "/graphql", "method": "POST", "records": "$.data.items.nodes", "total": "$.data.items.totalCount",
                "body": {"json": {"query": "query{}", "variables": {"n": 25}}},
                "pagination": {"cursor": {"next": "$.data.items.pageInfo.endCursor", "more": "$.data.items.pageInfo.hasNextPage", "into": "body:/variables/after"}}
            }),
        ),
        ("the one array is found", json!({"records": null, "pagination": pages(100)})),
        ("total in a header", json!({"total": "header:X-Total-Count", "pagination": pages(100)})),
        ("no total", json!({"total": null, "pagination": pages(100)})),
        ("one request", json!({"query": {"size": "1000"}})),
    ]
}

#[tokio::test]
async fn every_style_gives_every_record_once() {
    for (name, source) in styles() {
        let lab = Lab::small().await;
        let result = lab.collect(source.clone()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(lab.codes(), lab.held(4), "{name}");
        let known = !source["total"].is_null() || source.get("total").is_none();
        let tally = result.tally;
        assert_eq!((tally.records, tally.items, tally.duplicates), (216, 1, Some(0)), "{name}");
        assert_eq!((tally.source, tally.without_total), if known { (216, 0) } else { (0, 1) }, "{name}");
        assert_eq!((tally.moved, tally.unreliable, tally.samples.len()), (0, 0, 0), "{name}");
    }
}

#[tokio::test]
async fn parts_of_a_value_give_it_whole_together() {
    let page = |from, to| Part::Pages(PageSpan { from, to, size: 20 });
    let offset = |from, to| Part::Offsets(OffsetSpan { from, to });
    for (pagination, parts) in [
        (pages(20), vec![page(0, Some(4)), page(4, Some(8)), page(8, None)]),
        (
            json!({"offset": {"param": "offset", "limit": 20, "limitParam": "limit"}}),
            vec![offset(0, Some(80)), offset(80, Some(160)), offset(160, None)],
        ),
    ] {
        let lab = Lab::small().await;
        let items = parts.into_iter().map(|part| Item { part, ..whole() }).collect();
        let Ending::Done(result) = lab.collect_items(json!({"pagination": pagination}), items).await.unwrap() else {
            panic!()
        };
        assert_eq!(lab.codes(), lab.held(4));
        assert_eq!((result.tally.items, result.tally.source, result.tally.samples.len()), (3, 216, 0));
        // 216 records are 11 pages of 20, and nothing was asked for twice.
        assert_eq!(lab.requests(), 11);
    }
}

#[tokio::test]
async fn items_of_a_slice_each_have_a_paginator_of_their_own() {
    let lab = Lab::small().await;
    let item = |code: &str| Item { values: [("district".to_owned(), code.to_owned())].into(), ..whole() };
    let districts = lab.held(2);
    let source = json!({"path": "/districts/{{ district }}/villages", "pagination": pages(5)});
    let items = districts.iter().map(|code| item(code)).collect();
    let Ending::Done(result) = lab.collect_items(source, items).await.unwrap() else { panic!() };
    assert_eq!(lab.codes(), lab.held(4));
    assert_eq!((result.tally.items, result.tally.source), (20, 216));
    let levels = &lab.manifest(&identity()).parts[0].levels["district"];
    // 440203 has no village and so no row.
    assert_eq!(levels.len(), 19);
}

#[tokio::test]
async fn ranges_go_into_the_request() {
    let lab = Lab::small().await;
    let span = |from: &str, to: &str| Part::Range(collect_api::plan::KeySpan { from: from.into(), to: to.into() });
    let source = json!({"query": {"from": "{{ range.from }}", "to": "{{ range.to }}"}, "pagination": pages(50)});
    let items =
        vec![Item { part: span("0", "440000000000"), ..whole() }, Item { part: span("440000000000", "9"), ..whole() }];
    let Ending::Done(result) = lab.collect_items(source, items).await.unwrap() else { panic!() };
    assert_eq!((lab.codes(), result.tally.source), (lab.held(4), 216));
}

#[tokio::test]
async fn credentials_are_sent_and_never_kept() {
    let options = collect_registry::Options { token: Some("tok-s3cret".into()), ..Default::default() };
    let lab = Lab::with(collect_registry::Registry::small(), options).await;
    let auth = json!({"bearer": {"secretRef": {"name": "registry", "key": "token"}}});
    lab.collect(json!({"auth": auth, "pagination": pages(100)})).await.unwrap();
    assert!(lab.registry.log().iter().all(|entry| entry.authorization_present && entry.status == 200));
    let missing = json!({"bearer": {"secretRef": {"name": "registry", "key": "other"}}});
    let error = lab.collect(json!({"auth": missing})).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "secret `registry` has no key `other`; add it or change spec.source.http.auth.bearer.secretRef.key"
    );
}

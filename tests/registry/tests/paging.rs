//! Every paging style must give the same rows in the same order.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "clippy knows only functions marked as tests")]

use collect_registry::{Options, Registry, Running, serve};
use serde_json::{Value, json};

async fn small() -> Running {
    serve(Registry::small(), Options::default(), "127.0.0.1:0".parse().unwrap()).await.unwrap()
}

async fn get(url: &str) -> Value {
    reqwest::get(url).await.unwrap().error_for_status().unwrap().json().await.unwrap()
}

fn codes(page: &Value) -> Vec<String> {
    page["data"].as_array().unwrap().iter().map(|row| row["code"].as_str().unwrap().to_owned()).collect()
}

/// Follows a list until `next` gives no further URL.
async fn follow(first: String, next: impl Fn(&str, &Value) -> Option<String>) -> Vec<String> {
    let (mut rows, mut url) = (Vec::new(), Some(first));
    while let Some(current) = url {
        let page = get(&current).await;
        rows.extend(codes(&page));
        url = next(&current, &page);
    }
    rows
}

#[tokio::test]
async fn all_styles_give_the_same_rows() {
    let server = small().await;
    for list in [
        "/api/villages",
        "/api/provinces/44/villages",
        "/api/villages?from=4402&to=65",
        "/api/streets/110101001/villages",
    ] {
        let list = format!("{}{list}", server.url());
        let join = if list.contains('?') { '&' } else { '?' };
        let whole = get(&format!("{list}{join}size=5000")).await;
        let expected = codes(&whole);
        assert_eq!(whole["total"], expected.len());
        assert_eq!((&whole["has_more"], &whole["next"], &whole["cursor"]), (&json!(false), &Value::Null, &Value::Null));

        for start in ["page=1&size=7", "size=7", "offset=0&limit=7", "limit=7", "cursor=&limit=7", "after=&limit=7"] {
            let by_next =
                follow(format!("{list}{join}{start}"), |_, page| page["next"].as_str().map(str::to_owned)).await;
            assert_eq!(by_next, expected, "next of {list} from {start}");
        }
        let by_cursor = follow(format!("{list}{join}limit=7"), |_, page| {
            page["cursor"].as_str().map(|cursor| format!("{list}{join}limit=7&cursor={cursor}"))
        });
        assert_eq!(by_cursor.await, expected, "cursor of {list}");
        let by_last = follow(format!("{list}{join}limit=7"), |_, page| {
            let last = codes(page).pop()?;
            page["has_more"].as_bool()?.then(|| format!("{list}{join}limit=7&after={last}"))
        });
        assert_eq!(by_last.await, expected, "last of {list}");
    }
}

#[tokio::test]
async fn links_and_totals_are_in_the_headers() {
    let server = small().await;
    let first = reqwest::get(format!("{}/api/districts?size=15", server.url())).await.unwrap();
    assert_eq!(first.headers()["x-total-count"], "20");
    let link = first.headers()["link"].to_str().unwrap().to_owned();
    assert_eq!(link, format!("<{}/api/districts?page=2&size=15>; rel=\"next\"", server.url()));
    let second = reqwest::get(format!("{}/api/districts?page=2&size=15", server.url())).await.unwrap();
    assert!(second.headers().get("link").is_none());
    assert_eq!(second.json::<Value>().await.unwrap()["data"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn a_body_pages_as_well() {
    let server = small().await;
    let client = reqwest::Client::new();
    let (mut rows, mut after) = (Vec::new(), Value::Null);
    loop {
        let question =
            json!({"query": "query($n:Int){items}", "variables": {"n": 3, "after": after, "district": "440301"}});
        let answer = client.post(format!("{}/api/graphql", server.url())).json(&question).send().await.unwrap();
        let items = &answer.json::<Value>().await.unwrap()["data"]["items"];
        rows.extend(items["nodes"].as_array().unwrap().iter().map(|row| row["code"].as_str().unwrap().to_owned()));
        after = items["pageInfo"]["endCursor"].clone();
        if items["pageInfo"]["hasNextPage"] == false {
            break;
        }
    }
    let whole = get(&format!("{}/api/districts/440301/villages?size=5000", server.url())).await;
    assert!(rows.len() > 3);
    assert_eq!(rows, codes(&whole));

    let question = json!({"query": "", "variables": {"district": "nowhere"}});
    let answer = client.post(format!("{}/api/graphql", server.url())).json(&question).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json::<Value>().await.unwrap()["errors"][0]["message"], "no district nowhere");
}

#[tokio::test]
async fn the_tree_adds_up_to_the_summary() {
    let server = small().await;
    let api = format!("{}/api", server.url());
    let mut districts = Vec::new();
    for province in codes(&get(&format!("{api}/provinces")).await) {
        for city in codes(&get(&format!("{api}/provinces/{province}/cities")).await) {
            districts.extend(codes(&get(&format!("{api}/cities/{city}/districts")).await));
        }
    }
    let mut villages = 0;
    for district in &districts {
        villages += codes(&get(&format!("{api}/districts/{district}/villages")).await).len();
    }
    let summary = get(&format!("{api}/summary")).await;
    assert_eq!(
        summary,
        json!({"provinces": 3, "cities": 9, "districts": districts.len(), "streets": 48, "villages": villages})
    );
    let below = get(&format!("{api}/cities/4403/summary")).await;
    assert_eq!(below.as_object().unwrap().keys().collect::<Vec<_>>(), ["districts", "streets", "villages"]);
    assert_eq!(get(&format!("{api}/cities/6503/summary")).await, json!({"districts": 0, "streets": 0, "villages": 0}));
}

#[tokio::test]
async fn rows_name_everything_above_them() {
    let server = small().await;
    let page = get(&format!("{}/api/districts/440101/villages?size=1", server.url())).await;
    let row = &page["data"][0];
    assert_eq!(
        (&row["provinceCode"], &row["cityCode"], &row["areaCode"], &row["streetCode"]),
        (&json!("44"), &json!("4401"), &json!("440101"), &json!("440101001"))
    );
    assert!(row["code"].as_str().unwrap().starts_with("440101001") && row["name"].is_string());
}

#[tokio::test]
async fn nonsense_is_refused() {
    let server = small().await;
    for (path, status) in [
        ("/api/provinces/99/cities", 404),
        ("/api/planets", 404),
        ("/api/cities/44/districts", 404),
        ("/api/villages/440101001001/provinces", 404),
        ("/nowhere", 404),
        ("/api/villages?page=0", 400),
        ("/api/villages?limit=no", 400),
        ("/api/villages?cursor=bm9uc2Vuc2U", 400),
    ] {
        assert_eq!(reqwest::get(format!("{}{path}", server.url())).await.unwrap().status(), status, "{path}");
    }
    let cursor = get(&format!("{}/api/villages?limit=1", server.url())).await["cursor"].as_str().unwrap().to_owned();
    let elsewhere = format!("{}/api/streets?cursor={cursor}", server.url());
    assert_eq!(reqwest::get(elsewhere).await.unwrap().status(), 400);
}

#[tokio::test]
async fn gzip_shrinks_and_changes_nothing() {
    let server = small().await;
    let url = format!("{}/api/villages?size=5000", server.url());
    let plain = reqwest::Client::builder().no_gzip().build().unwrap().get(&url).send().await.unwrap();
    assert!(plain.headers().get("content-encoding").is_none());
    let plain = plain.text().await.unwrap();
    assert_eq!(reqwest::get(&url).await.unwrap().text().await.unwrap(), plain);
    let sent = server.control.journal.stats().bytes - plain.len() as u64;
    assert!(sent < plain.len() as u64 / 3, "{sent} of {}", plain.len());
}

#[tokio::test]
async fn synthetic_groups_hold_what_was_ordered() {
    let made = Registry::synthetic("values=30,records=10".parse().unwrap());
    let server = serve(made, Options::default(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let api = format!("{}/api", server.url());
    let groups = codes(&get(&format!("{api}/groups")).await);
    assert_eq!((groups.len(), groups[29].as_str()), (30, "g0000029"));
    let items =
        follow(format!("{api}/groups/g0000029/items?size=4"), |_, page| page["next"].as_str().map(str::to_owned)).await;
    assert_eq!((items.len(), items[9].as_str()), (10, "g0000029-0000009"));
    assert_eq!(get(&format!("{api}/summary")).await, json!({"groups": 30, "items": 300}));
}

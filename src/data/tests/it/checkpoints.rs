//! I7, I8: a slice that was killed at 90 % goes on there, for every paginator and every kind of slice.
//!
//! What an undisturbed run asks the source for is the measure: the second attempt asks for exactly the rest of it.

use collect_api::{
    plan::{Item, KeySpan, OffsetSpan, PageSpan, Part},
    protocol::{Checkpoint, CollectWork, MAX_CHECKPOINT_BYTES, RateShare, Work},
};
use collect_data::{Control, Ending, Settings};
use collect_registry::{Controlled, Effect, Options, Registry, When};
use serde_json::{Value, json};

use crate::{
    clients::{canned, good},
    lab::{Lab, collect_until, identity, pages, whole},
};

/// Villages of the sample source.
pub const ALL: i64 = 216;

/// Path and query of a request, and the records that it gave.
pub type Asked = (String, i64);

pub fn paginators() -> Vec<(&'static str, Value)> {
    let cursor = |query: Value, cursor: Value| json!({"query": query, "pagination": {"cursor": cursor}});
    let next = |url: &str| json!({"query": {"size": "10"}, "pagination": {"next": {"url": url}}});
    vec![
        ("none", json!({"query": {"size": "5000"}, "pagination": {"none": {}}})),
        ("page", json!({"pagination": pages(10)})),
        ("offset", json!({"pagination": {"offset": {"param": "offset", "limit": 10, "limitParam": "limit"}}})),
        ("cursor by next", cursor(json!({"cursor": "", "limit": "10"}), json!({"next": "$.cursor", "into": "cursor"}))),
        (
            "cursor by lastOf",
            cursor(
                json!({"after": "", "limit": "10"}),
                json!({"lastOf": "$.code", "more": "$.has_more", "into": "after"}),
            ),
        ),
        ("next link in the body", next("$.next")),
        ("next link in a header", next("link:next")),
    ]
}

/// The kinds of slices that a paginator can be cut into, with what they add to the source.
fn slices(paginator: &str) -> Vec<(&'static str, Value, Vec<Item>)> {
    let registry = Registry::small();
    let code = |level, n| registry.code(level, n).unwrap();
    let part = |part| Item { part, ..whole() };
    // Nine cities; the last has no village.
    let city = |n| Item { values: [("city".to_owned(), code(1, n))].into(), ..whole() };
    // Ten ranges of about 22 villages, by the code.
    let bound = |n: usize| if n == 10 { "9".to_owned() } else { code(4, n * 22) };
    let range = |n: usize| part(Part::Range(KeySpan { from: bound(n), to: bound(n + 1) }));
    let mut slices = vec![
        ("whole", json!({"path": "/cities/{{ city }}/villages"}), (0..9).map(city).collect()),
        (
            "range",
            json!({"query": {"from": "{{ range.from }}", "to": "{{ range.to }}"}}),
            (0..10).map(range).collect::<Vec<_>>(),
        ),
    ];
    let spans = [(0, Some(8)), (8, Some(16)), (16, None)];
    if paginator == "page" {
        let pages = |(from, to)| part(Part::Pages(PageSpan { from, to, size: 10 }));
        slices.push(("pages", json!({}), spans.map(pages).into()));
    }
    if paginator == "offset" {
        let offsets = |(from, to): (i64, Option<i64>)| OffsetSpan { from: from * 10, to: to.map(|to| to * 10) };
        slices.push(("offsets", json!({}), spans.map(|span| part(Part::Offsets(offsets(span)))).into()));
    }
    slices
}

/// Every pair of paginator and slice that there is.
fn table() -> Vec<(String, Value, Vec<Item>)> {
    let join = |(paginator, source): (&'static str, Value)| {
        slices(paginator).into_iter().map(move |(slice, over, items)| {
            let mut source = source.clone();
            for (name, value) in over.as_object().unwrap() {
                match (source.get_mut(name).and_then(Value::as_object_mut), value.as_object()) {
                    (Some(into), Some(more)) => into.extend(more.clone()),
                    _ => source[name] = value.clone(),
                }
            }
            (format!("{paginator}, {slice}"), source, items)
        })
    };
    paginators().into_iter().flat_map(join).collect()
}

pub fn asked(lab: &Lab) -> Vec<Asked> {
    let log = lab.registry.log().into_iter();
    log.map(|entry| (format!("{}?{}", entry.path, entry.query), entry.records as i64)).collect()
}

/// What an undisturbed run asks for.
pub async fn undisturbed(source: &Value, items: &[Item]) -> Vec<Asked> {
    let lab = Lab::small().await;
    let work = CollectWork { items: items.to_vec(), checkpoint: None };
    let assignment = lab.assignment(source.clone(), Work::Collect(work.clone()));
    let ending = collect_data::collect(&assignment, &work, &lab.settings("0bbbbbbb"), &control(1)).await.unwrap();
    assert!(matches!(ending, Ending::Done(_)));
    asked(&lab)
}

pub fn control(at_once: i32) -> Control {
    Control::new(&RateShare { concurrency: Some(at_once), ..RateShare::default() })
}

/// Waits for a condition; whoever runs the tests sets the limit.
async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// Collects with a checkpoint after every page until the source holds back its answer, and is killed there.
pub async fn killed(lab: &Lab, source: &Value, items: &[Item], hold: When, at_once: i32) -> Checkpoint {
    killed_with(lab, source, items, hold, at_once, 1).await.unwrap()
}

/// The same with a checkpoint after so many bytes.
pub async fn killed_with(
    lab: &Lab,
    source: &Value,
    items: &[Item],
    hold: When,
    at_once: i32,
    part_bytes: u64,
) -> Option<Checkpoint> {
    lab.registry.control.set_options(Options::faults([Effect::Hold.when(hold)]));
    let work = CollectWork { items: items.to_vec(), checkpoint: None };
    let assignment = lab.assignment(source.clone(), Work::Collect(work.clone()));
    let settings = Settings { part_bytes, ..lab.settings("1bbbbbbb") };
    let control = control(at_once);
    let held = until(|| lab.registry.log().iter().any(|entry| entry.faults.contains(&"hold")));
    // Dropping the future is what a kill looks like to source and sink.
    tokio::select! {
        ending = collect_data::collect(&assignment, &work, &settings, &control) => panic!("{ending:?}"),
        () = held => {}
    }
    lab.registry.control.set_options(Options::default());
    // On its way through the operator a checkpoint is JSON.
    let json = serde_json::to_vec(&control.progress().checkpoint).unwrap();
    assert!(json.len() <= MAX_CHECKPOINT_BYTES);
    serde_json::from_slice(&json).unwrap()
}

/// Kills a slice at 90 % and goes on.
async fn kill_and_go_on((name, source, items): (String, Value, Vec<Item>)) {
    let all = undisturbed(&source, &items).await;
    let records = |asked: &[Asked]| asked.iter().map(|(_, records)| records).sum::<i64>();
    let done = (1..all.len()).find(|n| records(&all[..*n]) * 10 >= ALL * 9).unwrap();

    let lab = Lab::small().await;
    let skip = done as u64;
    let checkpoint = killed(&lab, &source, &items, When { skip, ..When::default() }, 1).await;
    assert_eq!(checkpoint.tally.records, records(&all[..done]), "{name}: everything that was answered is in parts");
    assert!(!lab.files().join("runs/1-3f9c2a71/0/manifest.json").exists(), "{name}");

    let before = asked(&lab).len();
    let ending = collect_until(&lab, source, items.clone(), Some(checkpoint), 2, None).await;
    let Ok(Ending::Done(result)) = ending else { panic!("{name}: {ending:?}") };
    assert_eq!(asked(&lab)[before..], all[done..], "{name}: nothing that lies in closed parts is asked for again");
    // Each item is in the order of the source, and the items follow each other.
    assert_eq!(lab.codes(), lab.held(4), "{name}");
    let tally = result.tally;
    assert_eq!((tally.records, tally.source, tally.duplicates), (ALL, ALL, Some(0)), "{name}");
    assert_eq!((tally.items, tally.moved, tally.samples.len()), (items.len() as i32, 0, 0), "{name}");
    let by = |attempt: &str| lab.manifest(&identity()).parts.iter().filter(|p| p.path.contains(attempt)).count();
    assert!(by("/1-1bbbbbbb/") > 0 && by("/2-2bbbbbbb/") > 0, "{name}: both attempts' parts make up the slice");
}

#[tokio::test]
async fn a_killed_slice_goes_on_where_it_was() {
    // Side by side: each has a source and a sink of its own, and waits for the disk most of the time.
    futures::future::join_all(table().into_iter().map(kill_and_go_on)).await;
}

#[tokio::test]
async fn what_was_fetched_ahead_is_no_reason_to_ask_again() {
    for (source, held) in [
        (json!({"pagination": pages(10)}), "page=20"),
        (json!({"pagination": {"offset": {"param": "offset", "limit": 10, "limitParam": "limit"}}}), "offset=190"),
    ] {
        let lab = Lab::small().await;
        let checkpoint = killed(&lab, &source, &[whole()], When { query: held.into(), ..When::default() }, 4).await;
        let all = undisturbed(&source, &[whole()]).await;
        let closed = usize::try_from(checkpoint.tally.records / 10).unwrap();
        assert!((15..20).contains(&closed), "{closed} pages");
        let before = asked(&lab).len();
        let work = CollectWork { items: vec![whole()], checkpoint: Some(checkpoint) };
        let mut assignment = lab.assignment(source, Work::Collect(work.clone()));
        assignment.attempt = 2;
        let control = control(4);
        let ending = collect_data::collect(&assignment, &work, &lab.settings("2bbbbbbb"), &control).await.unwrap();
        assert!(matches!(ending, Ending::Done(_)), "{ending:?}");
        let mut after = asked(&lab).split_off(before);
        after.sort_by_key(|request| all.iter().position(|known| known == request));
        assert_eq!(after, all[closed..]);
        assert_eq!(lab.codes(), lab.held(4));
    }
}

#[tokio::test]
async fn a_slice_that_was_read_to_its_end_is_committed_without_a_request() {
    let lab = Lab::small().await.on_s3().await;
    let manifest =
        collect_s3::When { prefix: "/lake/villages/runs/1-3f9c2a71/0/manifest".into(), ..Default::default() };
    let refused =
        collect_s3::Effect::Status { code: 403 }.when(collect_s3::When { method: Some("PUT".into()), ..manifest });
    lab.s3.as_ref().unwrap().control.set_faults([refused]);
    let mut work = CollectWork { items: vec![whole()], checkpoint: None };
    let mut assignment = lab.assignment(json!({"pagination": pages(50)}), Work::Collect(work.clone()));
    let (control, settings) = (control(1), Settings { part_bytes: 1, ..lab.settings("1bbbbbbb") });
    collect_data::collect(&assignment, &work, &settings, &control).await.unwrap_err();
    lab.s3.as_ref().unwrap().control.set_faults([]);

    work.checkpoint = control.progress().checkpoint;
    assert_eq!(work.checkpoint.as_ref().map(|c| (c.item, c.tally.records)), Some((1, ALL)));
    assignment.attempt = 2;
    let (before, control) = (lab.requests(), self::control(1));
    let ending = collect_data::collect(&assignment, &work, &settings, &control).await.unwrap();
    assert!(matches!(ending, Ending::Done(_)), "{ending:?}");
    assert_eq!((lab.requests(), control.written(), lab.codes()), (before, (0, 0), lab.held(4)));
}

#[tokio::test]
async fn an_attempt_that_goes_on_says_at_once_how_far_the_slice_has_got() {
    let (lab, source) = (Lab::small().await, json!({"pagination": pages(10)}));
    let checkpoint = killed(&lab, &source, &[whole()], When { skip: 20, ..When::default() }, 1).await;
    let (records, bytes) = (checkpoint.tally.records, checkpoint.tally.bytes);
    lab.registry.control.set_options(Options::faults([Effect::Hold.always()]));
    let work = CollectWork { items: vec![whole()], checkpoint: Some(checkpoint) };
    let assignment = lab.assignment(source, Work::Collect(work.clone()));
    let (control, settings) = (control(1), lab.settings("2bbbbbbb"));
    tokio::select! {
        ending = collect_data::collect(&assignment, &work, &settings, &control) => panic!("{ending:?}"),
        () = until(|| lab.registry.log().last().unwrap().faults == ["hold"] && lab.requests() > 21) => {}
    }
    assert_eq!((control.progress().records, control.progress().bytes), (records, bytes));
    assert_eq!(control.written(), (0, 0));
}

#[tokio::test]
async fn the_end_of_the_source_is_known_again_after_a_kill() {
    for (source, behind) in [
        (json!({"pagination": pages(54)}), "page=5"),
        (json!({"pagination": {"offset": {"param": "offset", "limit": 54, "limitParam": "limit"}}}), "offset=216"),
    ] {
        let lab = Lab::small().await;
        let when = When { query: behind.into(), ..When::default() };
        let checkpoint = killed(&lab, &source, &[whole()], when.clone(), 1).await;
        assert_eq!((checkpoint.item, checkpoint.tally.records), (0, ALL));
        // Some sources answer 404 behind their last page; with all of the total read, that is the end.
        let missing = Effect::Status { code: 404, retry_after_seconds: None };
        lab.registry.control.set_options(Options::faults([missing.when(when)]));
        let ending = collect_until(&lab, source, vec![whole()], Some(checkpoint), 2, None).await;
        assert!(matches!(ending, Ok(Ending::Done(_))), "{behind}: {ending:?}");
        assert_eq!(lab.codes(), lab.held(4));
    }
}

#[tokio::test]
async fn a_checkpoint_that_does_not_fit_leaves_the_one_before() {
    let page = |code: u32, next: &str| good(&json!({"d": [{"code": code}], "next": next}).to_string());
    // Longer than a checkpoint may be.
    let long = "t".repeat(3000);
    let wait = "HTTP/1.1 503 Wait\r\nRetry-After: 50\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
    let behind: &'static str = format!("/a?after={long}").leak();
    let server = canned(vec![("/a?after=", page(1, "t1")), ("/a?after=t1", page(2, &long)), (behind, wait)]).await;
    let lab = Lab::small().await;
    let source = json!({
        "url": server.url, "path": "/a", "query": {"after": ""}, "records": "$.d", "total": null,
        "pagination": {"cursor": {"next": "$.next", "into": "after"}}
    });
    let asked = || server.asked.lock().unwrap().len();
    let mut last: Option<Checkpoint> = None;
    for attempt in 1..=2 {
        let work = CollectWork { items: vec![whole()], checkpoint: last.clone() };
        let mut assignment = lab.assignment(source.clone(), Work::Collect(work.clone()));
        assignment.attempt = attempt;
        let settings = Settings { part_bytes: 1, ..lab.settings(&format!("{attempt}bbbbbbb")) };
        let (control, before) = (control(1), asked());
        let pausing = async {
            // The first attempt pauses with page 2 on its way or just behind it, the second behind it.
            until(|| asked() - before >= 2).await;
            control.send(collect_data::Signal::Pause);
        };
        let (ending, ()) = tokio::join!(collect_data::collect(&assignment, &work, &settings, &control), pausing);
        let Ok(Ending::Checkpointed(checkpoint)) = ending else { panic!("{ending:?}") };
        assert_eq!((checkpoint.item, checkpoint.tally.records), (0, 1), "attempt {attempt}: {checkpoint:?}");
        last = Some(checkpoint);
    }
}

#[tokio::test]
async fn a_place_that_can_not_be_understood_is_not_taken_for_the_beginning() {
    for paginator in ["", "{}", r#"{"at":{"somewhere":3}}"#] {
        let (lab, source) =
            (Lab::small().await, json!({"path": "/cities/{{ city }}/villages", "pagination": pages(10)}));
        let items = slices("page").remove(0).2;
        let mut checkpoint = killed(&lab, &source, &items, When { skip: 20, ..When::default() }, 1).await;
        assert!(checkpoint.paginator.is_some());
        checkpoint.paginator = Some(paginator.to_owned());
        let ending = collect_until(&lab, source, items, Some(checkpoint), 2, None).await;
        assert!(matches!(ending, Ok(Ending::Done(_))), "{paginator}: {ending:?}");
        assert_eq!(lab.codes(), lab.held(4), "{paginator}");
    }
}

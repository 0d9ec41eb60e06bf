//! Pause, resume, zombies: nothing twice, nothing lost, nothing read again without need.

use collect_api::protocol::{Checkpoint, CollectWork, MAX_CHECKPOINT_BYTES, RateShare, Work};
use collect_data::{Class, Control, Ending};
use collect_registry::{Controlled, Effect, Options, When};
use serde_json::{Value, json};

use crate::lab::{Lab, collect_until, pages, whole};

fn styles() -> Vec<Value> {
    vec![
        json!({"pagination": pages(10)}),
        json!({"pagination": {"offset": {"param": "offset", "limit": 10, "limitParam": "limit"}}}),
        json!({"query": {"cursor": "", "limit": "10"}, "pagination": {"cursor": {"next": "$.cursor", "into": "cursor"}}}),
        json!({"query": {"size": "10"}, "pagination": {"next": {"url": "$.next"}}}),
    ]
}

fn checkpoint(ending: Ending) -> Checkpoint {
    match ending {
        Ending::Checkpointed(checkpoint) => checkpoint,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_paused_slice_goes_on_where_it_was() {
    for source in styles() {
        let lab = Lab::small().await;
        // 22 pages; pause after about 90 %.
        let paused = collect_until(&lab, source.clone(), vec![whole()], None, 1, Some(20)).await.unwrap();
        let checkpoint = checkpoint(paused);
        assert!(serde_json::to_vec(&checkpoint).unwrap().len() <= MAX_CHECKPOINT_BYTES);
        assert!(checkpoint.tally.records >= 190, "{checkpoint:?}");
        let before: Vec<String> = lab.queries();
        let done = collect_until(&lab, source.clone(), vec![whole()], Some(checkpoint.clone()), 2, None).await.unwrap();
        let Ending::Done(result) = done else { panic!("{done:?}") };
        assert_eq!(lab.codes(), lab.held(4), "{source}");
        assert_eq!((result.tally.records, result.tally.duplicates, result.tally.source), (216, Some(0), 216));
        let after = lab.queries().split_off(before.len());
        assert!(after.len() <= 3, "{source}: read again: {after:?}");
        // At most the page that was under way is asked for twice.
        assert!(after.iter().filter(|query| before.contains(query)).count() <= 1, "{source}: {after:?}");
    }
}

#[tokio::test]
async fn a_slice_may_be_paused_again_and_again() {
    let lab = Lab::small().await;
    let source = json!({"path": "/cities/{{ city }}/villages", "pagination": pages(7)});
    let items: Vec<_> = lab
        .held(1)
        .into_iter()
        .map(|code| collect_api::plan::Item { values: [("city".to_owned(), code)].into(), ..whole() })
        .collect();
    let mut last: Option<Checkpoint> = None;
    for attempt in 1..100 {
        let ending = collect_until(&lab, source.clone(), items.clone(), last.clone(), attempt, Some(3)).await.unwrap();
        match ending {
            Ending::Checkpointed(next) => {
                // I8: never backwards.
                let (seq, item, records) = last.map_or((0, 0, 0), |last| (last.seq, last.item, last.tally.records));
                assert!(next.seq > seq && next.item >= item && next.tally.records >= records);
                last = Some(next);
            }
            Ending::Done(result) => {
                assert_eq!(lab.codes(), lab.held(4));
                assert_eq!((result.tally.items, result.tally.source, result.tally.duplicates), (9, 216, Some(0)));
                assert!(attempt > 5);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("it never ended");
}

#[tokio::test]
async fn duplicates_are_counted_across_attempts() {
    let lab = Lab::small().await;
    // The same value twice: every record of the second item was in the first.
    let items = vec![whole(), whole()];
    let source = json!({"pagination": pages(20)});
    let paused = checkpoint(collect_until(&lab, source.clone(), items.clone(), None, 1, Some(16)).await.unwrap());
    assert_eq!(paused.item, 1);
    let done = collect_until(&lab, source, items, Some(paused), 2, None).await.unwrap();
    assert!(matches!(done, Ending::Done(result) if result.tally.duplicates == Some(216)));
}

#[tokio::test]
async fn parts_that_are_gone_or_changed_are_collected_again() {
    for change in [(|path: &std::path::Path| std::fs::remove_file(path).unwrap()) as fn(&std::path::Path), |path| {
        std::fs::write(path, b"short").unwrap()
    }] {
        let lab = Lab::small().await;
        let source = json!({"pagination": pages(10)});
        let paused = checkpoint(collect_until(&lab, source.clone(), vec![whole()], None, 1, Some(10)).await.unwrap());
        change(&lab.files().join("runs/1-3f9c2a71/0/1-1bbbbbbb/part-2.ndjson.zst"));
        let done = collect_until(&lab, source, vec![whole()], Some(paused), 2, None).await.unwrap();
        assert!(matches!(done, Ending::Done(_)));
        assert_eq!(lab.codes(), lab.held(4));
    }
}

/// A worker that was given up comes back after its run was committed without it.
#[tokio::test]
async fn a_manifest_never_names_a_part_that_was_removed_meanwhile() {
    let slowly = Effect::Delay { milliseconds: 20 }.always();
    let lab = Lab::with(collect_registry::Registry::small(), Options::faults([slowly])).await;
    let folder = lab.files().join("runs/1-3f9c2a71/0");
    let collecting = collect_until(&lab, json!({"pagination": pages(10)}), vec![whole()], None, 1, None);
    let removing = async {
        let part = folder.join("1-1bbbbbbb/part-0.ndjson.zst");
        while !part.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        std::fs::remove_file(part).unwrap();
    };
    let (ended, ()) = tokio::join!(collecting, removing);
    let error = ended.unwrap_err();
    assert_eq!((error.category(), error.class()), ("PartMissing", Class::Retryable), "{error}");
    assert!(!folder.join("manifest.json").exists());
    let done = collect_until(&lab, json!({"pagination": pages(10)}), vec![whole()], None, 2, None).await.unwrap();
    assert!(matches!(done, Ending::Done(_)));
    assert_eq!(lab.codes(), lab.held(4));
}

#[tokio::test]
async fn a_pause_during_a_retry_is_obeyed_at_once() {
    let down = Effect::Status { code: 503, retry_after_seconds: Some(50) }.when(When { skip: 3, ..When::default() });
    let lab = Lab::with(collect_registry::Registry::small(), Options::faults([down])).await;
    let start = std::time::Instant::now();
    let source = json!({"pagination": pages(10)});
    let paused = checkpoint(collect_until(&lab, source, vec![whole()], None, 1, Some(4)).await.unwrap());
    assert!(start.elapsed() < std::time::Duration::from_secs(10));
    assert_eq!(paused.tally.records, 30);
}

#[tokio::test]
async fn an_abort_ends_at_once() {
    let lab = Lab::faulty(Effect::Stuck).await;
    let work = CollectWork { items: vec![whole()], checkpoint: None };
    let assignment = lab.assignment(json!({}), Work::Collect(work.clone()));
    let control = Control::new(&RateShare::default());
    let settings = lab.settings("a");
    let collecting = collect_data::collect(&assignment, &work, &settings, &control);
    let aborting = async {
        while lab.requests() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        control.send(collect_data::Signal::Abort);
    };
    let (ending, ()) = tokio::join!(collecting, aborting);
    assert_eq!(ending.unwrap(), Ending::Fenced);
}

#[tokio::test]
async fn a_source_with_a_small_quota_is_read_in_the_end() {
    let lab = Lab::small().await;
    let source = json!({"pagination": pages(20)});
    let work = CollectWork { items: vec![whole()], checkpoint: None };
    let mut assignment = lab.assignment(source, Work::Collect(work.clone()));
    let mut checkpoint: Option<Checkpoint> = None;
    for attempt in 1..=10 {
        // Three requests an hour; parts would stay open for a minute.
        let quota =
            Effect::Status { code: 429, retry_after_seconds: Some(3600) }.when(When { skip: 3, ..When::default() });
        lab.registry.control.set_options(Options::faults([quota]));
        let work = CollectWork { checkpoint: checkpoint.clone(), ..work.clone() };
        assignment.attempt = attempt;
        let control = Control::new(&RateShare { concurrency: Some(1), ..RateShare::default() });
        let settings = lab.settings(&format!("pod{attempt}"));
        match collect_data::collect(&assignment, &work, &settings, &control).await {
            Ok(ending) => {
                assert!(matches!(ending, Ending::Done(_)) && attempt == 4, "{ending:?} in attempt {attempt}");
                assert_eq!((lab.codes(), lab.requests()), (lab.held(4), 14));
                return;
            }
            Err(error) => assert_eq!(error.category(), "SourceLimited"),
        }
        checkpoint = control.progress().checkpoint;
        assert_eq!(checkpoint.as_ref().unwrap().tally.records, i64::from(attempt) * 60);
    }
    panic!("it never ended");
}

//! A cursor that the source has forgotten: the item starts again without its parts, and everything before it stays.

use collect_api::{
    plan::Item,
    protocol::{Checkpoint, CollectWork, Work},
};
use collect_data::Ending;
use collect_registry::{Controlled, Effect, Options, When};
use serde_json::{Value, json};

use crate::{
    checkpoints::{ALL, Asked, asked, control, killed, killed_with, paginators, undisturbed},
    lab::{Lab, collect_until, identity, whole},
};

/// The styles whose place may be forgotten, and whether the source knows by itself that the token is not one of its own.
fn styles() -> Vec<(&'static str, Value, bool)> {
    let graphql = json!({
        "path": "/graphql", "method": "POST", "records": "$.data.items.nodes", "total": "$.data.items.totalCount",
        "body": {"json": {"query": "query{}", "variables": {"n": 10, "province": "{{ province }}"}}},
        "pagination": {"cursor": {"next": "$.data.items.pageInfo.endCursor", "more": "$.data.items.pageInfo.hasNextPage", "into": "body:/variables/after"}}
    });
    let lists = paginators().split_off(3).into_iter().map(|(name, mut source)| {
        source["path"] = json!("/provinces/{{ province }}/villages");
        (name, source, name == "cursor by next")
    });
    lists.chain([("GraphQL", graphql, true)]).collect()
}

fn provinces(lab: &Lab) -> Vec<Item> {
    lab.held(0).into_iter().map(|code| Item { values: [("province".to_owned(), code)].into(), ..whole() }).collect()
}

fn records(asked: &[Asked]) -> i64 {
    asked.iter().map(|(_, records)| records).sum()
}

/// The checkpoint with a token that the source never gave.
fn garbled(mut checkpoint: Checkpoint) -> Checkpoint {
    let mut state: Value = serde_json::from_str(checkpoint.paginator.as_deref().unwrap()).unwrap();
    state["at"] = json!({"token": "forgotten"});
    checkpoint.paginator = Some(state.to_string());
    checkpoint
}

/// Kills a slice in its last item and goes on from a cursor that the source refuses: with a status, or because the token
/// is none of its own.
async fn forget((name, source, by_status): (&str, Value, bool)) {
    let lab = Lab::small().await;
    let items = provinces(&lab);
    let all = undisturbed(&source, &items).await;
    let last = lab.held(4).iter().filter(|code| code.starts_with("65")).count() as i64;
    let start = (0..all.len()).find(|n| records(&all[*n..]) == last).unwrap();
    let done = all.len() - 2;
    assert!(done > start + 2, "{name}: the kill is in the middle of the last item");
    let when = When { skip: done as u64, ..When::default() };
    let mut checkpoint = killed(&lab, &source, &items, when, 1).await;
    let seq = checkpoint.seq;
    if by_status {
        let gone = Effect::Status { code: 410, retry_after_seconds: None };
        lab.registry.control.set_options(Options::faults([gone.first(1)]));
    } else {
        checkpoint = garbled(checkpoint);
    }

    let before = asked(&lab).len();
    let work = CollectWork { items, checkpoint: Some(checkpoint) };
    let mut assignment = lab.assignment(source.clone(), Work::Collect(work.clone()));
    assignment.attempt = 2;
    let settings = collect_data::Settings { part_bytes: 1, ..lab.settings("2bbbbbbb") };
    let control = control(1);
    let ending = collect_data::collect(&assignment, &work, &settings, &control).await;
    let Ok(Ending::Done(result)) = ending else { panic!("{name}: {ending:?}") };

    let after = asked(&lab).split_off(before);
    assert_eq!(after[0].1, 0, "{name}: the forgotten cursor is refused");
    assert_eq!(after[1..], all[start..], "{name}: the item starts again, and no other");
    assert_eq!(control.written().0, last, "{name}");
    assert!(control.progress().checkpoint.unwrap().seq > seq, "{name}");
    assert_eq!(lab.codes(), lab.held(4), "{name}");
    let tally = result.tally;
    assert_eq!((tally.records, tally.source, tally.duplicates), (ALL, ALL, Some(0)), "{name}");
    assert_eq!((tally.items, tally.moved, tally.samples.len()), (3, 0, 0), "{name}");
    for part in lab.manifest(&identity()).parts {
        let of_last = part.levels["province"].contains("65");
        assert_eq!(part.path.contains("/2-2bbbbbbb/"), of_last, "{name}: {part:?}");
    }
}

#[tokio::test]
async fn a_forgotten_cursor_starts_the_item_again_without_its_parts() {
    let both = styles().into_iter().flat_map(|(name, source, knows)| {
        let by_token = knows.then_some((name, source.clone(), false));
        [(name, source, true)].into_iter().chain(by_token)
    });
    futures::future::join_all(both.map(forget)).await;
}

#[tokio::test]
async fn items_that_share_parts_go_back_together() {
    let source = styles()[0].1.clone();
    let gone = || Effect::Status { code: 404, retry_after_seconds: None };
    for part_bytes in [1, 3_000, 10_000, 20_000] {
        let kept = futures::future::join_all((4..22).step_by(3).map(async |skip| {
            let lab = Lab::small().await;
            let items: Vec<Item> = provinces(&lab);
            let when = When { skip, ..When::default() };
            let checkpoint = killed_with(&lab, &source, &items, when, 1, part_bytes).await;
            // At the beginning of an item there is no cursor to forget.
            if checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.paginator.is_some()) {
                lab.registry.control.set_options(Options::faults([gone().first(1)]));
            }
            let ending = collect_until(&lab, source.clone(), items, checkpoint, 2, None).await;
            let Ok(Ending::Done(result)) = ending else { panic!("{part_bytes}, {skip}: {ending:?}") };
            assert_eq!(lab.codes(), lab.held(4), "{part_bytes}, {skip}");
            assert_eq!((result.tally.items, result.tally.duplicates), (3, Some(0)), "{part_bytes}, {skip}");
            let parts = lab.manifest(&identity()).parts;
            parts.iter().filter(|part| part.path.contains("/1-1bbbbbbb/")).count()
        }));
        assert!(kept.await.into_iter().sum::<usize>() > 0, "{part_bytes}: what was finished is kept");
    }
}

#[tokio::test]
async fn a_page_number_never_grows_old() {
    let (lab, source) = (Lab::small().await, json!({"pagination": crate::lab::pages(10)}));
    let checkpoint = killed(&lab, &source, &[whole()], When { skip: 10, ..When::default() }, 1).await;
    let gone = Effect::Status { code: 410, retry_after_seconds: None };
    lab.registry.control.set_options(Options::faults([gone.first(1)]));
    let error = collect_until(&lab, source, vec![whole()], Some(checkpoint), 2, None).await.unwrap_err();
    assert_eq!(error.category(), "SourceNotFound");
}

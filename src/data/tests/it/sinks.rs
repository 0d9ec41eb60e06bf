//! I5 and I6 at the sink: one manifest, whatever races or breaks.

use collect_api::protocol::{CollectWork, RateShare, Work};
use collect_data::{Class, Control, Ending};
use collect_s3::{Effect, When};
use serde_json::json;

use crate::lab::{Lab, identity, pages, whole};

fn manifest_puts() -> When {
    When {
        method: Some("PUT".into()),
        prefix: "/lake/villages/runs/1-3f9c2a71/0/manifest.json".into(),
        ..When::default()
    }
}

#[tokio::test]
async fn a_slice_goes_to_s3() {
    let lab = Lab::small().await.on_s3().await;
    let result = lab.collect(json!({"pagination": pages(50)})).await.unwrap();
    assert_eq!((lab.codes(), result.files, result.tally.records), (lab.held(4), 1, 216));
    assert_eq!(result.manifest, "runs/1-3f9c2a71/0/manifest.json");
}

#[tokio::test]
async fn of_racing_workers_one_commits() {
    for on_s3 in [true, false] {
        let lab = Lab::small().await;
        let lab = if on_s3 { lab.on_s3().await } else { lab };
        let source = json!({"pagination": pages(20)});
        let racers = (0..4).map(|n| {
            let (lab, source) = (&lab, source.clone());
            async move {
                let work = CollectWork { items: vec![whole()], checkpoint: None };
                let mut assignment = lab.assignment(source, Work::Collect(work.clone()));
                assignment.attempt = n;
                let settings = lab.settings(&format!("pod0000{n}"));
                collect_data::collect(&assignment, &work, &settings, &Control::new(&RateShare::default()))
                    .await
                    .unwrap()
            }
        });
        let endings = futures::future::join_all(racers).await;
        let won = endings.iter().filter(|ending| matches!(ending, Ending::Done(_))).count();
        assert_eq!(won, 1, "{endings:?}");
        let results: Vec<_> = endings
            .into_iter()
            .map(|ending| match ending {
                Ending::Done(result) | Ending::AlreadyCommitted(result) => result,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(results.iter().all(|result| *result == results[0]), "every worker reports the committed result");
        assert_eq!(lab.codes(), lab.held(4));
    }
}

#[tokio::test]
async fn a_manifest_whose_answer_is_lost_counts_as_ours() {
    for effect in [
        Effect::ResetAfter,
        Effect::ResetBefore,
        Effect::Cut,
        Effect::Status { code: 409 },
        Effect::Status { code: 500 },
        Effect::SlowDown,
    ] {
        let lab = Lab::small().await.on_s3().await;
        let name = effect.name();
        lab.s3.as_ref().unwrap().control.set_faults([effect.when(When { first: Some(1), ..manifest_puts() })]);
        let result =
            lab.collect(json!({"pagination": pages(50)})).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((lab.codes(), result.tally.records), (lab.held(4), 216), "{name}");
    }
}

#[tokio::test]
async fn another_attempts_manifest_is_found_before_anything_is_read() {
    let lab = Lab::small().await.on_s3().await;
    let first = lab.collect(json!({"pagination": pages(50)})).await.unwrap();
    let before = lab.requests();
    let ending = lab.collect_items(json!({"pagination": pages(50)}), vec![whole()]).await.unwrap();
    assert_eq!((ending, lab.requests()), (Ending::AlreadyCommitted(first), before));
}

#[tokio::test]
async fn a_manifest_of_another_identity_is_an_occupied_sink() {
    let lab = Lab::small().await.on_s3().await;
    lab.collect(json!({"pagination": pages(50)})).await.unwrap();
    let work = CollectWork { items: vec![whole()], checkpoint: None };
    let mut assignment = lab.assignment(json!({}), Work::Collect(work.clone()));
    assignment.identity.plan_digest = "d2".into();
    let control = Control::new(&RateShare::default());
    let error = collect_data::collect(&assignment, &work, &lab.settings("b"), &control).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("SinkOccupied", Class::Permanent), "{error}");
    assert!(error.to_string().contains("default/villages"), "{error}");
}

#[tokio::test]
async fn a_sink_that_refuses_says_what_to_do() {
    let lab = Lab::small().await.on_s3().await;
    lab.s3.as_ref().unwrap().control.set_faults([Effect::Status { code: 403 }.always()]);
    let error = lab.collect(json!({})).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("SinkDenied", Class::Permanent), "{error}");
    std::fs::write(lab.dir.path().join("secrets/lake/secret_access_key"), "wrong-s3cret").unwrap();
    lab.s3.as_ref().unwrap().control.set_faults([]);
    let error = lab.collect(json!({})).await.unwrap_err();
    assert!(!error.to_string().contains("s3cret") && error.class() == Class::Permanent, "{error}");
    std::fs::remove_file(lab.dir.path().join("secrets/lake/secret_access_key")).unwrap();
    let error = lab.collect(json!({})).await.unwrap_err();
    assert_eq!(error.category(), "SecretMissing", "{error}");
}

#[tokio::test]
async fn large_parts_are_uploaded_in_pieces() {
    let made = collect_registry::Registry::synthetic("values=1,records=6000,bytes=2000".parse().unwrap());
    let lab = Lab::with(made, collect_registry::Options::default()).await.on_s3().await;
    let mut work = CollectWork { items: vec![whole()], checkpoint: None };
    work.items[0].values = [("group".to_owned(), "g0000000".to_owned())].into();
    let source = json!({"path": "/groups/{{ group }}/items", "pagination": pages(1000)});
    let mut assignment = lab.assignment(source, Work::Collect(work.clone()));
    let mut sink = lab.sink();
    sink["objectStore"]["compression"] = json!("none");
    assignment.sink = serde_json::from_value(sink).unwrap();
    let control = Control::new(&RateShare::default());
    let ending = collect_data::collect(&assignment, &work, &lab.settings("b"), &control).await.unwrap();
    let Ending::Done(result) = ending else { panic!("{ending:?}") };
    assert_eq!((result.files, result.tally.records), (1, 6000));
    assert!(result.file_bytes > 12_000_000);
    let part = &lab.manifest(&identity()).parts[0];
    let bytes = std::fs::read(lab.files().join(&part.path)).unwrap();
    assert_eq!(blake3::hash(&bytes).to_hex().as_str(), part.hash);
    let log = lab.s3.as_ref().unwrap().control.log();
    assert!(log.iter().filter(|entry| entry.query.contains("partNumber=")).count() >= 3);
}

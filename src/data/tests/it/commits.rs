//! Commits of runs.

use collect_api::protocol::{CollectWork, CommitWork, Identity, RateShare, Work};
use collect_data::{Class, Control, Ending};
use collect_s3::{Effect, When};
use serde_json::{Value, json};

use crate::lab::{Lab, collect_until, identity, pages, whole};

fn run(run: i64) -> Identity {
    Identity { run, ..identity() }
}

async fn slice(lab: &Lab, identity: Identity) {
    let work = CollectWork { items: vec![whole()], checkpoint: None };
    let mut assignment = lab.assignment(json!({"pagination": pages(50)}), Work::Collect(work.clone()));
    assignment.identity = identity;
    let control = Control::new(&RateShare::default());
    let ending = collect_data::collect(&assignment, &work, &lab.settings("a"), &control).await.unwrap();
    assert!(matches!(ending, Ending::Done(_)));
}

fn work(slices: i64) -> CommitWork {
    CommitWork { slices, records: slices * 216, keep_runs: 2, revision: 0 }
}

fn current(lab: &Lab) -> Value {
    serde_json::from_slice(&std::fs::read(lab.files().join("_current.json")).unwrap()).unwrap()
}

/// Paths of all files below a folder of the sink.
fn files(lab: &Lab, folder: &str) -> Vec<String> {
    fn walk(folder: &std::path::Path, base: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                walk(&entry.path(), base, found);
            } else {
                found.push(entry.path().strip_prefix(base).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&lab.files().join(folder), &lab.files(), &mut found);
    found.retain(|path| !path.rsplit('/').next().unwrap().starts_with('.'));
    found.sort();
    found
}

#[tokio::test]
async fn a_run_becomes_the_valid_one_and_nothing_else_is_left_in_it() {
    for on_s3 in [true, false] {
        let lab = Lab::small().await;
        let lab = if on_s3 { lab.on_s3().await } else { lab };
        // An attempt that left parts and a checkpoint, and one that did not use them.
        collect_until(&lab, json!({"pagination": pages(20)}), vec![whole()], None, 1, Some(5)).await.unwrap();
        slice(&lab, run(1)).await;
        slice(&lab, Identity { index: 1, ..run(1) }).await;
        let result = lab.commit(run(1), work(2)).await.unwrap();
        assert_eq!((result.files, result.records), (2, 432));
        assert!(result.removed >= 4, "{result:?}");
        assert_eq!(
            files(&lab, "runs"),
            [
                "runs/1-3f9c2a71/0/1-a/part-0.ndjson.zst",
                "runs/1-3f9c2a71/0/manifest.json",
                "runs/1-3f9c2a71/1/1-a/part-0.ndjson.zst",
                "runs/1-3f9c2a71/1/manifest.json",
                "runs/1-3f9c2a71/_files.ndjson",
            ]
        );
        let list = std::fs::read_to_string(lab.files().join(&result.list)).unwrap();
        let paths: Vec<Value> =
            list.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["path"].clone()).collect();
        assert_eq!(paths, ["runs/1-3f9c2a71/0/1-a/part-0.ndjson.zst", "runs/1-3f9c2a71/1/1-a/part-0.ndjson.zst"]);
        let current = current(&lab);
        assert_eq!(
            (&current["owner"], &current["run"], &current["records"]),
            (&json!("default/villages"), &json!(1), &json!(432))
        );
        // Again: the same.
        let again = lab.commit(run(1), work(2)).await.unwrap();
        assert_eq!((again.files, again.removed), (2, 0));
    }
}

#[tokio::test]
async fn a_run_with_missing_slices_is_not_committed() {
    let lab = Lab::small().await;
    slice(&lab, run(1)).await;
    let error = lab.commit(run(1), work(2)).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("ManifestMismatch", Class::Permanent), "{error}");
    assert!(!lab.files().join("_current.json").exists());
}

#[tokio::test]
async fn a_slice_that_counts_as_failed_but_is_there_is_not_passed_over() {
    let lab = Lab::small().await;
    slice(&lab, run(1)).await;
    slice(&lab, Identity { index: 1, ..run(1) }).await;
    let error = lab.commit(run(1), work(1)).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("ManifestMismatch", Class::Permanent), "{error}");
    assert!(error.to_string().contains("collect.dev/retry"), "{error}");
    assert_eq!(lab.commit(run(1), work(2)).await.unwrap().files, 2, "a retry takes it in");
}

#[tokio::test]
async fn a_list_never_names_a_file_that_is_not_there_as_it_was_written() {
    for on_s3 in [true, false] {
        for is_cut_off in [false, true] {
            let lab = Lab::small().await;
            let lab = if on_s3 { lab.on_s3().await } else { lab };
            slice(&lab, run(1)).await;
            let part = lab.files().join("runs/1-3f9c2a71/0/1-a/part-0.ndjson.zst");
            if is_cut_off { std::fs::write(part, "cut off") } else { std::fs::remove_file(part) }.unwrap();
            let error = lab.commit(run(1), work(1)).await.unwrap_err();
            assert_eq!((error.category(), error.class()), ("PartMissing", Class::Permanent), "{error}");
            assert!(!lab.files().join("_current.json").exists());
        }
    }
}

#[tokio::test]
async fn older_runs_are_pruned_and_never_come_back() {
    let lab = Lab::small().await.on_s3().await;
    for n in 1..=3 {
        slice(&lab, run(n)).await;
        lab.commit(run(n), work(1)).await.unwrap();
    }
    slice(&lab, run(4)).await;
    assert_eq!(files(&lab, "runs/1-3f9c2a71"), Vec::<String>::new());
    assert_eq!(files(&lab, "runs/2-3f9c2a71").len(), 3);
    let error = lab.commit(run(2), work(1)).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("Superseded", Class::Permanent), "{error}");
    assert_eq!(current(&lab)["run"], 3);
    // The run that is being collected is no concern of the valid one.
    lab.commit(run(3), work(1)).await.unwrap();
    assert_eq!(files(&lab, "runs/4-3f9c2a71").len(), 2);
}

#[tokio::test]
async fn a_commit_that_comes_too_late_undoes_nothing_of_a_later_task_of_the_same_name() {
    for on_s3 in [true, false] {
        let lab = Lab::small().await;
        let lab = if on_s3 { lab.on_s3().await } else { lab };
        let of = |uid: &str, run| Identity { root_uid: format!("{uid}-0000"), run, ..identity() };
        // The task was deleted with its commit still to come, on a node that is out of reach.
        slice(&lab, of("aaaaaaaa", 7)).await;
        for run in 1..=3 {
            slice(&lab, of("bbbbbbbb", run)).await;
            lab.commit(of("bbbbbbbb", run), CommitWork { keep_runs: 3, ..work(1) }).await.unwrap();
        }
        let before = (current(&lab), files(&lab, "runs/1-bbbbbbbb"), files(&lab, "runs/3-bbbbbbbb"));
        let late = lab.commit(of("aaaaaaaa", 7), CommitWork { keep_runs: 1, ..work(1) }).await;
        let error = late.unwrap_err();
        assert_eq!((error.category(), error.class()), ("Superseded", Class::Permanent), "{error}");
        assert_eq!((current(&lab), files(&lab, "runs/1-bbbbbbbb"), files(&lab, "runs/3-bbbbbbbb")), before);
        // A task that is created again later takes over all the same.
        slice(&lab, of("cccccccc", 1)).await;
        lab.commit(of("cccccccc", 1), CommitWork { keep_runs: 1, ..work(1) }).await.unwrap();
        assert_eq!(current(&lab)["folder"], "runs/1-cccccccc");
        assert_eq!(files(&lab, "runs/3-bbbbbbbb"), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_commit_that_is_cut_off_anywhere_is_completed_by_the_next() {
    let count = {
        let lab = Lab::small().await.on_s3().await;
        slice(&lab, run(1)).await;
        let before = lab.s3.as_ref().unwrap().control.log().len();
        lab.commit(run(1), work(1)).await.unwrap();
        lab.s3.as_ref().unwrap().control.log().len() - before
    };
    assert!(count > 5);
    let lab = Lab::small().await.on_s3().await;
    for cut in 0..count as u64 {
        let index = i32::try_from(cut).unwrap();
        let identity = Identity { root_uid: format!("{index:08}-0000"), ..run(1) };
        slice(&lab, identity.clone()).await;
        let dies = When { skip: cut, ..When::default() };
        lab.s3.as_ref().unwrap().control.set_faults([Effect::Status { code: 403 }.when(dies)]);
        let first = lab.commit(identity.clone(), work(1)).await;
        lab.s3.as_ref().unwrap().control.set_faults([]);
        lab.commit(identity.clone(), work(1)).await.unwrap_or_else(|error| panic!("{cut}: {first:?}, then {error}"));
        assert_eq!(current(&lab)["folder"], json!(identity.run_folder()));
    }
}

#[tokio::test]
async fn an_answer_that_is_lost_on_the_way_changes_nothing() {
    let lab = Lab::small().await.on_s3().await;
    slice(&lab, run(1)).await;
    let puts = When { method: Some("PUT".into()), ..When::default() };
    lab.s3.as_ref().unwrap().control.set_faults([Effect::ResetAfter.when(When { every: Some(2), ..puts })]);
    lab.commit(run(1), work(1)).await.unwrap();
    slice(&lab, run(2)).await;
    lab.commit(run(2), work(1)).await.unwrap();
    assert_eq!(current(&lab)["run"], 2);
}

#[tokio::test]
async fn another_tasks_folder_is_never_touched() {
    let lab = Lab::small().await;
    slice(&lab, run(1)).await;
    let theirs = r#"{"owner": "other/task", "run": 3}"#;
    std::fs::write(lab.files().join("_current.json"), theirs).unwrap();
    let error = lab.commit(run(1), work(1)).await.unwrap_err();
    assert_eq!(error.category(), "SinkOccupied");
    assert_eq!(std::fs::read_to_string(lab.files().join("_current.json")).unwrap(), theirs);
}

#[tokio::test]
async fn a_run_that_is_completed_later_gets_a_second_list_and_readers_find_it() {
    let lab = Lab::small().await;
    slice(&lab, run(1)).await;
    let first = lab.commit(run(1), work(1)).await.unwrap();
    slice(&lab, Identity { index: 1, ..run(1) }).await;
    assert!(lab.commit(run(1), work(2)).await.is_err(), "a list is never written over");
    let again = CommitWork { revision: 3, ..work(2) };
    for _ in 0..2 {
        let second = lab.commit(run(1), again.clone()).await.unwrap();
        assert_eq!((second.files, second.list.as_str()), (2, "runs/1-3f9c2a71/_files-3.ndjson"));
    }
    assert_eq!(current(&lab)["list"], "runs/1-3f9c2a71/_files-3.ndjson");
    assert!(files(&lab, "runs").contains(&first.list), "who has the first one open can go on reading");
}

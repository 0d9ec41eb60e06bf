//! I5, I6, I7 against zombies: a worker that was taken for dead is frozen in the middle of its slice, another attempt takes
//! over, and the first one wakes up. Whoever commits first stands; what is visible is exactly the set.

use collect_api::protocol::{Checkpoint, CommitWork, Work, WorkResult, exit};
use collect_registry::{Controlled, Effect, Options, When};
use serde_json::{Value, json};

use crate::lab::{Ended, Lab, Worker, pages, until};
use crate::operator::Operator;

/// Pages of the slice, and pages that an attempt has closed when it is frozen.
const PAGES: usize = 22;
const CLOSED: u64 = 10;

async fn labs() -> Vec<(Lab, Operator)> {
    let mut labs = Vec::new();
    for mut lab in [Lab::small().await, Lab::small().await.on_s3().await] {
        let operator = Operator::default();
        lab.endpoint = Some(operator.serve(lab.dir.path()).await);
        labs.push((lab, operator));
    }
    labs
}

fn source() -> Value {
    json!({"pagination": pages(10)})
}

/// Starts an attempt and freezes it once it has closed so many more pages and waits for the answer to the next request.
async fn frozen(lab: &Lab, operator: &Operator, attempt: i32, closed: u64, from: Option<Checkpoint>) -> Worker {
    let hold = Effect::Hold.when(When { skip: closed, ..When::default() });
    lab.registry.control.set_options(Options::faults([hold]));
    let wanted = from.as_ref().map_or(0, |from| from.tally.records) + 10 * closed as i64;
    let mut assignment = lab.collect(source(), from);
    assignment.attempt = attempt;
    let worker = lab.start(&assignment, &pod(attempt));
    until(|| checkpoint(operator, attempt).is_some_and(|checkpoint| checkpoint.tally.records == wanted)).await;
    worker.freeze().await;
    lab.registry.control.set_options(Options::default());
    worker
}

fn pod(attempt: i32) -> String {
    format!("{attempt}{attempt}{attempt}{attempt}{attempt}{attempt}{attempt}{attempt}-pod")
}

/// The last checkpoint that an attempt has reported.
fn checkpoint(operator: &Operator, attempt: i32) -> Option<Checkpoint> {
    let of_attempt = operator.reports().into_iter().rev().filter(|report| report.attempt == attempt);
    of_attempt.filter_map(|report| report.checkpoint).next()
}

/// Runs attempt 2 from the last checkpoint of attempt 1.
async fn second(lab: &Lab, operator: &Operator) -> Ended {
    let mut assignment = lab.collect(source(), checkpoint(operator, 1));
    assignment.attempt = 2;
    lab.run(&assignment, &pod(2)).await
}

fn result(ended: &Ended) -> &WorkResult {
    ended.message.result.as_ref().unwrap()
}

/// Whether the manifest names parts of an attempt.
fn names(lab: &Lab, attempt: i32) -> bool {
    lab.manifest().unwrap().contains(&format!("/{attempt}-{}/part-", &pod(attempt)[..8]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_wakes_up_behind_the_commit_adopts_it() {
    for (lab, operator) in labs().await {
        let zombie = frozen(&lab, &operator, 1, CLOSED, None).await;
        let winner = second(&lab, &operator).await;
        assert_eq!((winner.code, lab.codes()), (exit::DONE, lab.held()), "{winner:?}");
        assert!(names(&lab, 1) && names(&lab, 2), "attempt 2 adopted what attempt 1 had closed");
        let (manifest, before) = (lab.manifest(), lab.requests().len());
        assert_eq!(before, PAGES + 1, "only the request that attempt 1 was frozen in came twice");

        zombie.thaw();
        let zombie = zombie.end().await;
        assert_eq!((zombie.code, result(&zombie)), (exit::ALREADY_COMMITTED, result(&winner)), "{zombie:?}");
        assert!(lab.requests().len() > before, "it went on reading");
        assert_eq!((lab.manifest(), lab.codes()), (manifest, lab.held()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_whose_report_is_answered_with_abort_ends_as_fenced() {
    for (lab, operator) in labs().await {
        let zombie = frozen(&lab, &operator, 1, CLOSED, None).await;
        operator.fence(2);
        let heir = frozen(&lab, &operator, 2, 5, checkpoint(&operator, 1)).await;
        // The source keeps the zombie from its end, so that it is the answer that ends it.
        lab.registry.control.set_options(Options::faults([Effect::Hold.always()]));
        zombie.thaw();
        let zombie = zombie.end().await;
        assert_eq!((zombie.code, &zombie.message.result, lab.manifest()), (exit::FENCED, &None, None), "{zombie:?}");

        lab.registry.control.set_options(Options::default());
        heir.thaw();
        let heir = heir.end().await;
        assert_eq!((heir.code, lab.codes()), (exit::DONE, lab.held()), "{heir:?}");
        assert!(names(&lab, 1) && names(&lab, 2), "what the zombie had closed before stays adopted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_commits_first_stands_and_its_successor_adopts_it() {
    for (lab, operator) in labs().await {
        let zombie = frozen(&lab, &operator, 1, CLOSED, None).await;
        let heir = frozen(&lab, &operator, 2, 5, checkpoint(&operator, 1)).await;
        zombie.thaw();
        let zombie = zombie.end().await;
        assert_eq!((zombie.code, lab.codes()), (exit::DONE, lab.held()), "{zombie:?}");
        assert!(names(&lab, 1) && !names(&lab, 2));
        let manifest = lab.manifest();

        heir.thaw();
        let heir = heir.end().await;
        assert_eq!((heir.code, result(&heir)), (exit::ALREADY_COMMITTED, result(&zombie)), "{heir:?}");
        assert_eq!((lab.manifest(), lab.codes()), (manifest, lab.held()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_and_its_successor_side_by_side_commit_once() {
    for (lab, operator) in labs().await {
        let zombie = frozen(&lab, &operator, 1, CLOSED, None).await;
        let heir = frozen(&lab, &operator, 2, 5, checkpoint(&operator, 1)).await;
        zombie.thaw();
        heir.thaw();
        let (zombie, heir) = tokio::join!(zombie.end(), heir.end());
        let mut codes = [zombie.code, heir.code];
        codes.sort_unstable();
        assert_eq!(codes, [exit::DONE, exit::ALREADY_COMMITTED], "{zombie:?} {heir:?}");
        assert_eq!(result(&zombie), result(&heir));
        assert_eq!(lab.codes(), lab.held());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_that_wakes_up_behind_the_commit_of_the_run_changes_nothing() {
    for (lab, operator) in labs().await {
        let zombie = frozen(&lab, &operator, 1, CLOSED, None).await;
        second(&lab, &operator).await;
        let work = Work::Commit(CommitWork { slices: 1, records: 216, keep_runs: 2, revision: 0 });
        let commit = lab.assignment(source(), work);
        assert_eq!(lab.run(&commit, "cccccccc-pod").await.code, exit::DONE);
        let read = |path: &str| std::fs::read_to_string(lab.files().join(path)).unwrap();
        let (current, list) = (read("_current.json"), read("runs/1-3f9c2a71/_files.ndjson"));

        zombie.thaw();
        let zombie = zombie.end().await;
        assert_eq!((zombie.code, lab.codes()), (exit::ALREADY_COMMITTED, lab.held()), "{zombie:?}");
        assert_eq!((read("_current.json"), read("runs/1-3f9c2a71/_files.ndjson")), (current, list));
        // What it wrote in vain goes with the next commit of the run, and nothing else does.
        let again = lab.run(&commit, "dddddddd-pod").await;
        let Some(WorkResult::Commit(again)) = again.message.result else { panic!("{again:?}") };
        assert!(again.removed > 0 && again.records == 216, "{again:?}");
        assert_eq!(lab.codes(), lab.held());
    }
}

/// A store's client that is frozen with its manifest on the wire.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_was_on_its_way_is_refused_or_stands() {
    for zombie_first in [false, true] {
        let (lab, operator) = labs().await.pop().unwrap();
        let control = &lab.s3.as_ref().unwrap().control;
        let puts = When {
            method: Some("PUT".into()),
            prefix: "/lake/villages/runs/1-3f9c2a71/0/manifest.json".into(),
            first: Some(1),
            ..When::default()
        };
        control.set_faults([collect_s3::Effect::Hold.when(puts)]);
        let zombie = lab.start(&lab.collect(source(), None), &pod(1));
        until(|| control.log().iter().any(|entry| entry.faults.contains(&"hold"))).await;
        until(|| checkpoint(&operator, 1).is_some_and(|checkpoint| checkpoint.item == 1)).await;
        zombie.freeze().await;
        if zombie_first {
            control.set_faults([]);
            until(|| lab.manifest().is_some()).await;
        }
        let heir = second(&lab, &operator).await;
        let manifest = lab.manifest();
        control.set_faults([]);
        zombie.thaw();
        let zombie = zombie.end().await;
        let wanted = if zombie_first { [0, 1] } else { [1, 0] }.map(|n| [exit::DONE, exit::ALREADY_COMMITTED][n]);
        assert_eq!([zombie.code, heir.code], wanted, "{zombie:?} {heir:?}");
        assert_eq!(result(&zombie), result(&heir));
        assert_eq!((lab.manifest(), lab.codes()), (manifest, lab.held()));
        assert_eq!(lab.requests().len(), PAGES, "the checkpoint was that of the whole slice");
    }
}

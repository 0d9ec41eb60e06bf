use collect_api::{
    Outcome,
    report::Counts,
    task::{CollectTaskSpec, CommitStatus, RecordCounts, ShardCounts},
};

use super::*;
use crate::{
    attempts,
    redrive::{Redrive, is_to_be_redriven, redriven},
    resolve::RetryPolicy,
    rollup::Above,
    tell::events,
};

fn at(second: i64) -> At {
    At { generation: Some(1), now: Timestamp::from_second(second).unwrap() }
}

fn begin() -> CollectTaskStatus {
    begun(&CollectTask::new("t", CollectTaskSpec::default()), 1, None, at(0).now)
}

fn progress(rolled: &Rolled, desired: DesiredState) -> Progress<'_> {
    Progress {
        rolled,
        desired,
        halt: None,
        tolerated: 0,
        comparison: None,
        commit: Commit::NotHere,
        report: None,
        waiting: None,
        stragglers: Vec::new(),
        token: None,
    }
}

fn rolled(succeeded: i32, failed: i32, total: i32) -> Rolled {
    Rolled {
        shards: ShardCounts { total, succeeded, failed, pending: total - succeeded - failed, ..Default::default() },
        records: RecordCounts {
            expected: Some(i64::from(total) * 10),
            collected: i64::from(succeeded) * 10,
            verified: None,
        },
        complete: succeeded + failed == total,
        at_rest: true,
        ..Rolled::default()
    }
}

fn comparison(verdict: Verdict, reason: Option<&str>) -> ValidationReportStatus {
    ValidationReportStatus {
        verdict: Some(verdict),
        reason: reason.map(Into::into),
        counts: Some(Counts { source: Some(20), collected: 20, delta: Some(0), ..Default::default() }),
        ..Default::default()
    }
}

fn validating() -> CollectTaskStatus {
    waiting(&begin(), Phase::Validating, reason::VALIDATING, "comparing", at(5))
}

fn end(verdict: Verdict, reason: Option<&str>, commit: Commit, report: bool) -> (CollectTaskStatus, Needs) {
    end_from(&validating(), verdict, reason, commit, report)
}

fn end_from(
    status: &CollectTaskStatus,
    verdict: Verdict,
    reason: Option<&str>,
    commit: Commit,
    report: bool,
) -> (CollectTaskStatus, Needs) {
    let comparison = comparison(verdict, reason);
    let rolled = rolled(2, 0, 2);
    let seen = Progress {
        comparison: Some(&comparison),
        commit,
        report: report.then(|| "t-r1".into()),
        ..progress(&rolled, DesiredState::Running)
    };
    advance(status, &seen, at(9))
}

fn step(status: &CollectTaskStatus, rolled: &Rolled, desired: DesiredState, second: i64) -> (CollectTaskStatus, Needs) {
    advance(status, &progress(rolled, desired), at(second))
}

#[test]
fn the_end_needs_a_commit_then_a_report() {
    assert_eq!(end(Verdict::Pass, None, Commit::Open, false).1, Needs::Commit);
    assert_eq!(end(Verdict::Pass, None, Commit::Done(CommitResult::default()), false).1, Needs::Report);
    let (status, needs) = end(Verdict::Pass, None, Commit::Done(CommitResult::default()), true);
    assert_eq!((status.phase, needs), (Some(Phase::Succeeded), Needs::Nothing));
    assert!(conditions::is_true(&status.conditions, COMPLETE) && conditions::is_true(&status.conditions, VERIFIED));
    assert_eq!(status.milestones.len(), 4);
}

#[test]
fn a_task_ends_only_from_validating() {
    let done = || Commit::Done(CommitResult::default());
    let (status, needs) = end_from(&begin(), Verdict::Pass, None, done(), true);
    assert_eq!((status.phase.clone(), needs), (Some(Phase::Validating), Needs::Nothing));
    assert_eq!(end_from(&status, Verdict::Pass, None, done(), true).0.phase, Some(Phase::Succeeded));
}

#[test]
fn nothing_is_committed_when_the_comparison_fails() {
    let (status, needs) = end(Verdict::Fail, Some("CountsDiffer"), Commit::Open, true);
    assert_eq!((status.phase.clone(), needs), (Some(Phase::Failed), Needs::Nothing));
    assert!(conditions::is_true(&status.conditions, FAILED) && !conditions::is_true(&status.conditions, COMPLETE));
    assert!(status.conditions.iter().any(|c| c.type_ == VERIFIED && c.status == "False"));
}

#[test]
fn what_can_not_be_compared_is_collected_never_succeeded() {
    let (status, _) = end(Verdict::Inconclusive, Some("NoTotal"), Commit::Done(CommitResult::default()), true);
    assert_eq!(status.phase, Some(Phase::Collected));
    assert!(status.conditions.iter().any(|c| c.type_ == VERIFIED && c.status == "Unknown" && c.reason == "NoTotal"));
    assert!(conditions::is_true(&status.conditions, COMPLETE));
}

#[test]
fn progress_never_falls() {
    let (half, _) = step(&begin(), &rolled(1, 0, 2), DesiredState::Running, 5);
    assert_eq!((half.progress, half.milestones.len()), (Some(50), 2));
    let (back, _) = step(&half, &rolled(0, 0, 2), DesiredState::Running, 6);
    assert_eq!(back.progress, Some(50));
}

#[test]
fn a_new_run_clears_the_ends_of_the_last_one() {
    let (mut task, (status, _)) = (
        CollectTask::new("t", CollectTaskSpec::default()),
        end(Verdict::Pass, None, Commit::Done(CommitResult::default()), true),
    );
    task.status = Some(status);
    let new = begun(&task, 2, None, at(20).now);
    assert!(!new.conditions.iter().any(|c| [COMPLETE, FAILED, VERIFIED].contains(&c.type_.as_str())));
    assert_eq!((new.run, new.progress, new.report), (Some(2), None, None));
}

#[test]
fn cancel_waits_until_nothing_runs() {
    let mut busy = rolled(1, 0, 2);
    busy.at_rest = false;
    assert_eq!(step(&begin(), &busy, DesiredState::Cancelled, 5).0.phase, Some(Phase::Running));
    assert_eq!(step(&begin(), &rolled(1, 0, 2), DesiredState::Cancelled, 5).0.phase, Some(Phase::Cancelled));
}

#[test]
fn what_came_into_view_after_a_cancel_is_counted_all_the_same() {
    let (cancelled, _) = step(&begin(), &rolled(0, 0, 2), DesiredState::Cancelled, 5);
    assert_eq!(recounted(&cancelled, &rolled(0, 0, 2)), None);
    let mut later = rolled(1, 0, 2);
    (later.shards.pending, later.shards.cancelled) = (0, 1);
    let counted = recounted(&cancelled, &later).unwrap();
    assert_eq!((counted.phase.as_ref(), counted.shards.as_ref()), (Some(&Phase::Cancelled), Some(&later.shards)));
    assert_eq!(recounted(&counted, &later), None);
    let due = Rolled { at_rest: false, ..rolled(1, 0, 2) };
    assert_eq!(recounted(&cancelled, &due), None, "a retry is about to take it up");
    let (good, _) = end(Verdict::Pass, None, Commit::Done(CommitResult::default()), true);
    assert_eq!(recounted(&good, &rolled(0, 0, 2)), None, "what was collected stays collected");
}

#[test]
fn events_are_told_once() {
    let (half, _) = step(&begin(), &rolled(1, 0, 2), DesiredState::Running, 5);
    assert_eq!(
        events(&begin(), &half).iter().map(|told| told.reason.as_str()).collect::<Vec<_>>(),
        ["Running", "Milestone", "Milestone"]
    );
    assert_eq!(events(&half, &half), []);
}

#[test]
fn borne_failures_are_a_success_in_part() {
    let (rolled, comparison) = (rolled(1, 1, 2), comparison(Verdict::Pass, None));
    let seen = Progress {
        tolerated: 1,
        comparison: Some(&comparison),
        commit: Commit::Done(CommitResult::default()),
        report: Some("t-r1".into()),
        ..progress(&rolled, DesiredState::Running)
    };
    let (status, _) = advance(&validating(), &seen, at(9));
    assert_eq!(status.phase, Some(Phase::PartiallySucceeded));
    assert!(conditions::is_true(&status.conditions, COMPLETE));
    assert!(status.message.unwrap().contains("1 of 2 shards failed"));
}

#[test]
fn a_stopped_run_fails_with_the_reason_for_which_it_was_stopped() {
    let halt = Halt { reason: reason::DEADLINE_EXCEEDED, message: "too late".into() };
    let with = |rolled: &Rolled| {
        let seen = Progress { halt: Some(&halt), ..progress(rolled, DesiredState::Cancelled) };
        advance(&begin(), &seen, at(9)).0
    };
    let mut busy = rolled(1, 0, 2);
    busy.workers = 1;
    assert_eq!(with(&busy).phase, Some(Phase::Running));
    let ended = with(&rolled(1, 0, 2));
    assert_eq!(ended.phase, Some(Phase::Failed));
    assert!(ended.conditions.iter().any(|c| c.type_ == FAILED && c.reason == "DeadlineExceeded"));
}

#[test]
fn what_never_began_below_a_stopped_task_is_no_success() {
    let halt = Halt { reason: reason::DEADLINE_EXCEEDED, message: "too late".into() };
    let comparison = comparison(Verdict::Pass, None);
    let mut stopped = rolled(1, 0, 2);
    // Its one child task failed when the run was stopped, before its second shard was created.
    (stopped.tasks.total, stopped.tasks.failed, stopped.complete) = (1, 1, true);
    let end = |halt| {
        let seen = Progress {
            halt,
            comparison: Some(&comparison),
            report: Some("t-r1".into()),
            ..progress(&stopped, DesiredState::Cancelled)
        };
        let (status, _) = advance(&validating(), &seen, at(9));
        let reason = status.conditions.iter().find(|c| c.type_ == FAILED).map(|c| c.reason.clone());
        (status.phase, reason)
    };
    assert_eq!(end(Some(&halt)), (Some(Phase::Failed), Some("DeadlineExceeded".into())));
    assert_eq!(end(None), (Some(Phase::Failed), Some("Failed".into())), "even if the deadline was raised since");
}

#[test]
fn what_fail_fast_stopped_elsewhere_is_no_success() {
    let halt = Halt { reason: reason::SHARDS_FAILED, message: "1 of 9 shards failed".into() };
    let comparison = comparison(Verdict::Pass, None);
    let mut stopped = rolled(1, 0, 2);
    (stopped.shards.pending, stopped.shards.cancelled, stopped.complete) = (0, 1, true);
    let seen = Progress {
        halt: Some(&halt),
        comparison: Some(&comparison),
        report: Some("t-r1".into()),
        ..progress(&stopped, DesiredState::Cancelled)
    };
    let (status, needs) = advance(&validating(), &seen, at(9));
    assert_eq!((status.phase, needs), (Some(Phase::Failed), Needs::Nothing));
}

#[test]
fn a_retry_takes_a_failed_task_up_again_and_keeps_what_is_done() {
    let mut failed = failed(&begin(), Phase::Failed, reason::SHARDS_FAILED, "x", at(9));
    failed.shards = Some(ShardCounts { total: 2, succeeded: 1, failed: 1, ..Default::default() });
    failed.progress = Some(50);
    failed.folded = Some(collect_api::fold::Folded {
        done: Some(collect_api::fold::FoldedPart { shards: "0".into(), ..Default::default() }),
        undone: Some(collect_api::fold::FoldedPart { shards: "1".into(), redrives: 2, ..Default::default() }),
    });
    let again = redriven(&failed, Redrive::Here, Some("t1".into()), at(20));
    assert_eq!((again.phase.clone(), again.progress), (Some(Phase::Running), Some(50)));
    assert_eq!((again.finished_at.clone(), again.redrives), (None, Some(1)));
    assert!(!conditions::is_true(&again.conditions, FAILED));
    let shards = again.shards.unwrap();
    assert_eq!((shards.pending, shards.failed), (1, 0), "failFast would stop it again at once");
    let folded = again.folded.unwrap();
    assert_eq!((folded.undone, folded.done.unwrap().redrives), (None, 2));
}

#[test]
fn a_retry_comes_from_the_path_or_from_below() {
    let mut failed = failed(&begin(), Phase::Failed, "x", "x", at(9));
    failed.redrives_below = Some(2);
    let above = |token: Option<&str>, desired| Above { desired, token: token.map(str::to_owned) };
    let running = above(None, DesiredState::Running);
    assert_eq!(is_to_be_redriven(&failed, 2, &running), None);
    assert_eq!(is_to_be_redriven(&failed, 1, &running), None, "an old view");
    assert_eq!(is_to_be_redriven(&failed, 3, &running), Some(Redrive::Below(3)));
    let token = above(Some("a"), DesiredState::Running);
    assert_eq!(is_to_be_redriven(&failed, 0, &token), Some(Redrive::Here));
    assert_eq!(is_to_be_redriven(&failed, 0, &above(Some("a"), DesiredState::Cancelled)), None);
    let mut good = failed;
    good.phase = Some(Phase::Succeeded);
    assert_eq!(is_to_be_redriven(&good, 9, &token), None, "there is nothing to retry");
}

/// A root in Validating with one attempt of its commit.
fn committing(outcome: Option<Outcome>) -> CollectTaskStatus {
    let mut attempts = Vec::new();
    attempts::authorise(&mut attempts, &mut None, 0, &RetryPolicy::of(None), "me", at(6).now);
    let result = outcome.as_ref().map(|_| CommitResult::default());
    attempts[0].outcome = outcome;
    let commit = CommitStatus { attempts, result, ..CommitStatus::default() };
    CollectTaskStatus { commit: Some(commit), ..validating() }
}

#[test]
fn what_was_committed_is_committed_again_when_a_retry_comes_before_the_end() {
    let comparison = comparison(Verdict::Pass, None);
    let (over, busy) = (rolled(1, 1, 2), rolled(1, 0, 2));
    let advance = |status: &CollectTaskStatus, rolled, token: Option<&str>| {
        let commit = status.commit.as_ref().and_then(|commit| commit.result.clone());
        let seen = Progress {
            comparison: Some(&comparison),
            commit: commit.map_or(Commit::Open, Commit::Done),
            tolerated: 1,
            token: token.map(str::to_owned),
            ..progress(rolled, DesiredState::Running)
        };
        advance(status, &seen, at(9))
    };
    let result = |status: &CollectTaskStatus| status.commit.as_ref().unwrap().result.clone();
    let (done, under_way) = (committing(Some(Outcome::Succeeded)), committing(None));
    let (same, needs) = advance(&done, &over, None);
    assert!(result(&same).is_some() && needs == Needs::Report);
    for (before, rolled, token, expected) in [
        (&done, &over, Some("again"), Needs::Nothing),
        (&done, &busy, None, Needs::Nothing),
        (&under_way, &over, Some("again"), Needs::CommitToLeave),
        (&under_way, &busy, None, Needs::CommitToLeave),
    ] {
        let (again, needs) = advance(before, rolled, token);
        assert_eq!((result(&again), again.redrives, needs), (None, Some(1), expected));
        // What the commit from before comes to afterwards does not count.
        let mut late = again.clone();
        let commit = late.commit.as_mut().unwrap();
        commit.result = Some(CommitResult::default());
        commit.attempts[0].outcome = Some(Outcome::Succeeded);
        let (later, _) = advance(&late, &over, token);
        assert_eq!((result(&later), later.redrives), (None, Some(1)));
    }
}

#[test]
fn the_tasks_above_learn_of_a_retry_whatever_becomes_of_what_was_retried() {
    let failed = failed(&begin(), Phase::Failed, "x", "x", at(9));
    let again = redriven(&failed, Redrive::Below(1), None, at(20));
    assert_eq!((again.redrives, again.redrives_below), (Some(1), Some(1)), "its parent sees it at once");
    let without = Rolled { redrives: 0, ..rolled(1, 0, 2) };
    let (later, _) = step(&again, &without, DesiredState::Running, 21);
    assert_eq!((later.redrives, later.redrives_below), (Some(1), None), "what was retried is deleted by hand");
    assert_eq!(round(&later, 1), 2, "and retried once more");
}

#[test]
fn a_planner_is_heard_while_its_attempt_is_live() {
    let mut planning = waiting(&begin(), Phase::Planning, reason::PLANNING, &planning_message(None), at(1));
    let plan = planning.plan.get_or_insert_default();
    attempts::authorise(&mut plan.attempts, &mut None, 0, &RetryPolicy::of(None), "me", at(1).now);
    let report = |attempt, seq, requests| ProgressReport {
        attempt,
        seq,
        stage: "planning".into(),
        records: 0,
        bytes: 0,
        expected: None,
        checkpoint: None,
        requests,
        retries: 0,
    };
    let first = heard(&planning, &report(1, 3, 40), at(9).now).unwrap();
    let said = first.plan.as_ref().unwrap().heartbeat.clone().unwrap();
    assert_eq!((said.attempt, said.seq, said.requests), (1, 3, 40));
    assert!(first.message.as_ref().unwrap().ends_with("40 requests so far"), "{:?}", first.message);
    assert_eq!(heard(&first, &report(1, 3, 40), at(10).now), None, "an old report");
    assert_eq!(heard(&first, &report(2, 4, 50), at(10).now), None, "another attempt");
    let mut over = first.clone();
    over.plan.as_mut().unwrap().attempts[0].outcome = Some(Outcome::Lost);
    assert_eq!(heard(&over, &report(1, 4, 50), at(10).now), None, "an attempt that is over");
    let commit = heard(&committing(None), &report(1, 1, 0), at(10).now).unwrap();
    assert!(commit.commit.unwrap().heartbeat.is_some() && commit.plan.is_none());
}

#[test]
fn time_to_live_counts_from_the_end() {
    let ended = failed(&begin(), Phase::Failed, "x", "x", at(100));
    let left = |second| ttl_left(&ended, Some(Duration::from_secs(60)), at(second).now);
    assert_eq!((left(130), left(999)), (Some(Duration::from_secs(30)), Some(Duration::ZERO)));
    assert_eq!(ttl_left(&ended, None, at(999).now), None);
    assert_eq!(ttl_left(&begin(), Some(Duration::ZERO), at(999).now), None, "not before it has ended");
}

use collect_api::{protocol::WorkError, shard::FoldedAttempts};

use super::*;
use crate::attempts::{LISTED, Used, authorise, forgive, record};

const ME: &str = "me";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn seen(worker: WorkerSeen) -> Seen<'static> {
    Seen { me: ME, admitted: true, worker, ..Seen::nothing() }
}

/// A ledger that plays along.
#[derive(Clone, Default)]
struct Book {
    attempts: Vec<Attempt>,
    folded: Option<FoldedAttempts>,
    forgiven: i32,
}

impl Book {
    fn entries(&self) -> Entries<'_> {
        Entries { attempts: &self.attempts, folded: self.folded.as_ref(), forgiven: self.forgiven }
    }

    fn authorise(&mut self, policy: &RetryPolicy, by: &str, second: i64) -> i32 {
        authorise(&mut self.attempts, &mut self.folded, self.forgiven, policy, by, at(second))
    }

    fn end(&mut self, policy: &RetryPolicy, end: &Ended, second: i64) {
        let (used, n) = (self.entries().used(policy), self.entries().last_number());
        record(&mut self.attempts, &used, n, end, policy, "uid", at(second));
    }

    fn step(&self, policy: &RetryPolicy, second: i64) -> Step {
        decide(self.entries(), policy, &seen(WorkerSeen::Unseen), at(second))
    }
}

fn authorised(by: &str) -> Vec<Attempt> {
    let mut book = Book::default();
    book.authorise(&policy(), by, 0);
    book.attempts
}

fn with_end(outcome: Outcome) -> Vec<Attempt> {
    let mut book = Book { attempts: authorised(ME), ..Book::default() };
    book.end(&policy(), &ended(outcome, "x"), 10);
    book.attempts
}

fn policy() -> RetryPolicy {
    RetryPolicy::of(None)
}

fn listed(attempts: &[Attempt], forgiven: Option<i32>) -> Entries<'_> {
    Entries { attempts, folded: None, forgiven: forgiven.unwrap_or_default() }
}

fn next(attempts: &[Attempt], seen: &Seen<'_>, second: i64) -> Step {
    decide(listed(attempts, None), &policy(), seen, at(second))
}

#[test]
fn work_starts_only_when_admitted() {
    assert_eq!(next(&[], &seen(WorkerSeen::Unseen), 0), Step::Authorise(1));
    let waiting = Seen { admitted: false, ..seen(WorkerSeen::Unseen) };
    assert_eq!(next(&[], &waiting, 0), Step::Wait { after: None, why: None });
}

#[test]
fn only_the_process_that_authorised_creates() {
    assert_eq!(next(&authorised(ME), &seen(WorkerSeen::Unseen), 0), Step::Create(1));
    assert!(matches!(next(&authorised("other"), &seen(WorkerSeen::Unseen), 0), Step::Wait { after: Some(_), .. }));
}

#[test]
fn a_create_that_was_sent_is_never_sent_again() {
    let sent = Seen { post: Post::Sent, ..seen(WorkerSeen::Unseen) };
    assert!(matches!(next(&authorised(ME), &sent, 0), Step::Wait { after: Some(_), .. }), "it comes into view soon");
    let late = Seen { watched: Watched { state: crate::resolve::IN_VIEW_AFTER, ..Watched::default() }, ..sent };
    assert_eq!(next(&authorised(ME), &late, 0), Step::Look);
    let absent = Seen { post: Post::Sent, ..seen(WorkerSeen::Absent) };
    assert!(matches!(next(&authorised(ME), &absent, 0), Step::Record(1, end) if end.outcome == Some(Outcome::Lost)));
}

#[test]
fn what_was_stopped_counts_as_stopped_also_if_it_is_wanted_again_by_then() {
    let stopped = |worker| Seen { post: Post::Stopped, ..seen(worker) };
    for by in [ME, "other"] {
        assert_eq!(next(&authorised(by), &stopped(WorkerSeen::Unseen), 0), Step::Look);
        let step = next(&authorised(by), &stopped(WorkerSeen::Absent), 0);
        assert!(matches!(step, Step::Record(1, end) if end.outcome == Some(Outcome::Stopped)));
        let stays = Seen {
            watched: Watched { state: STOP_GRACE, ..Watched::default() },
            ..stopped(WorkerSeen::Active { deleting: true, pending: None })
        };
        let step = next(&authorised(by), &stays, 0);
        assert!(matches!(step, Step::Record(1, end) if end.outcome == Some(Outcome::Stopped)));
    }
}

#[test]
fn an_ambiguous_create_that_left_nothing_is_abandoned() {
    let unknown = |worker| Seen { post: Post::Unknown, ..seen(worker) };
    assert_eq!(next(&authorised(ME), &unknown(WorkerSeen::Unseen), 0), Step::Look);
    let step = next(&authorised(ME), &unknown(WorkerSeen::Absent), 0);
    assert!(matches!(step, Step::Record(1, end) if end.outcome == Some(Outcome::Abandoned)));
}

#[test]
fn a_refused_create_is_sent_again_for_the_same_attempt_slowly() {
    let refused = |ago| Seen {
        post: Post::Refused { message: "exceeded quota".into(), ago: Duration::from_secs(ago), times: 2 },
        ..seen(WorkerSeen::Unseen)
    };
    assert!(matches!(
        next(&authorised(ME), &refused(3), 0),
        Step::Wait { after: Some(_), why: Some(("JobRefused", _)) }
    ));
    assert_eq!(next(&authorised(ME), &refused(10), 0), Step::Create(1));
}

#[test]
fn anothers_attempt_is_abandoned_only_after_a_look_and_thirty_seconds() {
    let long = |worker| Seen { watched: Watched { state: ABANDON_AFTER, ..Watched::default() }, ..seen(worker) };
    assert_eq!(next(&authorised("other"), &long(WorkerSeen::Unseen), 0), Step::Look);
    assert!(
        matches!(next(&authorised("other"), &long(WorkerSeen::Absent), 0), Step::Record(1, end) if end.outcome == Some(Outcome::Abandoned))
    );
}

#[test]
fn a_lost_job_is_followed_by_the_next_attempt_never_the_same_one() {
    let attempts = with_end(Outcome::Lost);
    assert_eq!(next(&attempts, &seen(WorkerSeen::Unseen), 12), Step::Authorise(2));
}

#[test]
fn a_terminal_outcome_wins_over_pause_and_cancel() {
    for desired in [DesiredState::Paused, DesiredState::Cancelled] {
        let done = Seen { desired, ..seen(WorkerSeen::Ended(ended(Outcome::Succeeded, ""))) };
        assert!(matches!(next(&authorised(ME), &done, 0), Step::Record(1, _)));
        assert_eq!(
            next(&with_end(Outcome::Succeeded), &Seen { desired, ..seen(WorkerSeen::Unseen) }, 20),
            Step::Finish(Finish::Done)
        );
    }
}

#[test]
fn pause_stops_a_running_worker_and_starts_none() {
    let active = WorkerSeen::Active { deleting: false, pending: None };
    let paused = |worker| Seen { desired: DesiredState::Paused, ..seen(worker) };
    assert_eq!(next(&authorised(ME), &paused(active), 0), Step::Stop(1));
    assert!(
        matches!(next(&authorised(ME), &paused(WorkerSeen::Unseen), 0), Step::Record(1, end) if end.outcome == Some(Outcome::Stopped))
    );
    assert!(matches!(next(&with_end(Outcome::Checkpointed), &paused(WorkerSeen::Unseen), 20), Step::Wait { .. }));
    assert_eq!(next(&with_end(Outcome::Checkpointed), &seen(WorkerSeen::Unseen), 20), Step::Authorise(2));
}

#[test]
fn cancel_ends_what_is_not_done() {
    let cancelled = Seen { desired: DesiredState::Cancelled, ..seen(WorkerSeen::Unseen) };
    assert_eq!(next(&[], &cancelled, 0), Step::Finish(Finish::Cancelled));
    assert_eq!(next(&with_end(Outcome::Stopped), &cancelled, 20), Step::Finish(Finish::Cancelled));
}

#[test]
fn a_permanent_error_is_not_tried_again() {
    assert!(matches!(
        next(&with_end(Outcome::Permanent), &seen(WorkerSeen::Unseen), 99),
        Step::Finish(Finish::Failed(_))
    ));
}

#[test]
fn failures_wait_for_their_backoff_and_use_up_the_budget() {
    let mut book = Book::default();
    let mut second = 0;
    for n in 1..=4 {
        assert_eq!(book.step(&policy(), second), Step::Authorise(n));
        assert_eq!(book.authorise(&policy(), ME, second), n);
        book.end(&policy(), &ended(Outcome::Retryable, "503"), second);
        if n < 4 {
            assert!(matches!(book.step(&policy(), second), Step::Wait { after: Some(_), .. }));
        }
        second += 100;
    }
    let step = book.step(&policy(), second);
    assert!(matches!(step, Step::Finish(Finish::Failed(why)) if why.contains("4 of 4")));
}

#[test]
fn a_retry_forgives_what_was_and_never_uses_a_number_again() {
    let mut book = Book { attempts: with_end(Outcome::Permanent), ..Book::default() };
    assert!(matches!(book.step(&policy(), 99), Step::Finish(Finish::Failed(_))));
    let mut folded = book.folded.take();
    book.forgiven = forgive(book.entries(), &mut folded);
    book.folded = folded;
    assert_eq!(book.step(&policy(), 10), Step::Authorise(2), "no backoff stands in a retry's way");
    for _ in 0..3 {
        book.authorise(&policy(), ME, 10);
        book.end(&policy(), &ended(Outcome::Crashed, ""), 10);
    }
    assert_eq!(book.entries().used(&policy()).failures, 3);
    assert_eq!(book.step(&policy(), 999), Step::Authorise(5), "the budget begins anew");
}

#[test]
fn what_was_committed_is_done_whatever_is_forgiven() {
    let attempts = with_end(Outcome::Succeeded);
    let entries = listed(&attempts, Some(1));
    assert_eq!(decide(entries, &policy(), &seen(WorkerSeen::Unseen), at(20)), Step::Finish(Finish::Done));
}

#[test]
fn what_is_done_again_still_waits_for_a_pause_and_ends_with_a_cancel() {
    let attempts = with_end(Outcome::Succeeded);
    let again = |desired| {
        let seen = Seen { desired, ..seen(WorkerSeen::Unseen) };
        decide_again(listed(&attempts, None), &policy(), &seen, at(20))
    };
    assert_eq!(again(DesiredState::Running), Step::Authorise(2));
    assert!(matches!(again(DesiredState::Paused), Step::Wait { why: Some(("Paused", _)), .. }));
    assert_eq!(again(DesiredState::Cancelled), Step::Finish(Finish::Cancelled));
}

#[test]
fn older_attempts_are_summed_up_and_disruptions_do_not_count_as_failures() {
    let mut book = Book::default();
    for _ in 1..=15 {
        book.authorise(&policy(), ME, 0);
        let mut end = ended(Outcome::Disrupted, "");
        end.message.usage.records = 10;
        book.end(&policy(), &end, 0);
    }
    assert_eq!(book.attempts.len(), LISTED);
    assert_eq!(book.folded.as_ref().unwrap().records, 70);
    assert_eq!(book.entries().used(&policy()), Used { disruptions: 15, ..Used::default() });
    assert_eq!(book.step(&policy(), 99), Step::Authorise(16));
}

#[test]
fn a_worker_of_an_attempt_that_is_over_is_superseded_however_long_ago_it_was() {
    let mut book = Book::default();
    for n in 1..=LISTED as i32 + 2 {
        assert!(!book.entries().is_superseded(n), "it may come into view before its ledger");
        book.authorise(&policy(), ME, 0);
        assert!(!book.entries().is_superseded(n), "it is live");
        book.end(&policy(), &ended(Outcome::Disrupted, ""), 0);
        assert!((1..=n).all(|n| book.entries().is_superseded(n)), "{n}");
    }
}

#[test]
fn an_override_has_a_budget_of_its_own() {
    let over = |error: &str, attempts| collect_api::task::RetryOverride {
        errors: vec![error.into()],
        max_attempts: Some(attempts),
        backoff: None,
    };
    let overrides = vec![over("OutOfMemory", 1), over("NotFound", 12)];
    let policy = RetryPolicy::of(Some(&collect_api::task::Retry { overrides, ..Default::default() }));
    let mut book = Book::default();
    book.authorise(&policy, ME, 0);
    book.end(&policy, &ended(Outcome::OutOfMemory, ""), 0);
    assert!(matches!(book.step(&policy, 99), Step::Finish(Finish::Failed(why)) if why.contains("overrides[0]")));

    // A permanent error that may be tried again, more often than attempts are listed.
    let mut book = Book::default();
    let mut end = ended(Outcome::Permanent, "");
    end.message.error = Some(WorkError { reason: "NotFound".into(), message: "404".into(), retry_after_ms: None });
    for n in 1..=12 {
        assert_eq!(book.step(&policy, n * 1000), Step::Authorise(n as i32));
        book.authorise(&policy, ME, n * 1000);
        book.end(&policy, &end, n * 1000);
    }
    assert!(matches!(book.step(&policy, 99_000), Step::Finish(Finish::Failed(why)) if why.contains("12 of 12")));
}

fn active(pending: Option<Pending>) -> WorkerSeen {
    WorkerSeen::Active { deleting: false, pending }
}

fn outcome_of(step: Step) -> (Option<Outcome>, Option<&'static str>) {
    match step {
        Step::Record(_, end) => (end.outcome, end.reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_without_life_or_progress_is_replaced() {
    let stall = crate::resolve::STALL_TIMEOUT;
    let with = |watched| Seen { watched, ..seen(active(None)) };
    let silent = with(Watched { silent: stall, still: stall, ..Watched::default() });
    assert_eq!(outcome_of(next(&authorised(ME), &silent, 0)), (Some(Outcome::Stalled), Some("HeartbeatLost")));
    let still = with(Watched { still: stall, ..Watched::default() });
    assert_eq!(outcome_of(next(&authorised(ME), &still, 0)), (Some(Outcome::Stalled), Some("NoProgress")));
    let soon = with(Watched { still: stall - Duration::from_secs(3), ..Watched::default() });
    assert_eq!(next(&authorised(ME), &soon, 0), Step::Wait { after: Some(Duration::from_secs(3)), why: None });
}

#[test]
fn an_attempt_has_a_deadline_even_while_it_makes_progress() {
    let long = Watched { attempt: crate::resolve::ATTEMPT_DEADLINE, ..Watched::default() };
    let step = next(&authorised(ME), &Seen { watched: long, ..seen(active(None)) }, 0);
    assert_eq!(outcome_of(step).0, Some(Outcome::DeadlineExceeded));
}

#[test]
fn waiting_for_an_image_ends_and_waiting_for_room_does_not() {
    let pending = |reason, may_pass| active(Some(Pending { reason, message: Some("why".into()), may_pass }));
    let long = Watched { state: PENDING_TIMEOUT, ..Watched::default() };
    let image = Seen { watched: long, ..seen(pending("ImagePull", false)) };
    assert_eq!(outcome_of(next(&authorised(ME), &image, 0)), (Some(Outcome::NotStarted), Some("ImagePull")));
    let room = Seen { watched: long, ..seen(pending("NoRoom", true)) };
    assert!(matches!(next(&authorised(ME), &room, 0), Step::Wait { why: Some(("PodPending", _)), .. }));
    let limits = TimeLimits { pending: Some(Duration::from_secs(60)), ..room.limits };
    assert_eq!(outcome_of(next(&authorised(ME), &Seen { limits, ..room }, 0)).1, Some("NoRoom"));
}

#[test]
fn nobody_waits_for_a_pod_that_never_goes() {
    let leaving = WorkerSeen::Active { deleting: true, pending: None };
    let at_once = seen(leaving.clone());
    assert!(matches!(next(&authorised(ME), &at_once, 0), Step::Wait { .. }));
    let watched = Watched { state: STOP_GRACE, ..Watched::default() };
    let step = next(&authorised(ME), &Seen { watched, ..seen(leaving) }, 0);
    assert_eq!(outcome_of(step).0, Some(Outcome::Lost));
}

#[test]
fn the_source_says_when_to_come_back() {
    let mut book = Book { attempts: authorised(ME), ..Book::default() };
    let mut end = ended(Outcome::SourceLimited, "");
    end.message.error =
        Some(WorkError { reason: "SourceLimited".into(), message: "429".into(), retry_after_ms: Some(300_000) });
    book.end(&policy(), &end, 0);
    assert!(matches!(book.step(&policy(), 299), Step::Wait { after: Some(_), .. }));
    assert_eq!(book.step(&policy(), 301), Step::Authorise(2));
}

#[test]
fn an_outcome_is_recorded_once() {
    let mut book = Book { attempts: with_end(Outcome::Succeeded), ..Book::default() };
    book.end(&policy(), &ended(Outcome::Lost, ""), 20);
    assert_eq!(book.attempts[0].outcome, Some(Outcome::Succeeded));
}

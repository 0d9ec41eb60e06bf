use collect_api::plan::{OffsetSpan, PageSpan};
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A source of `holds` records that says it holds `total`, grants at most `grants` a page, and may cut pages to half
/// from some page on.
#[derive(Clone, Copy, Debug)]
struct Source {
    holds: i64,
    total: Option<i64>,
    grants: i64,
    cuts_from: Option<i64>,
}

impl Source {
    fn page(&self, from: i64, asked: i64, nth: i64) -> Facts {
        let size = asked.min(self.grants);
        let size = if self.cuts_from.is_some_and(|cut| nth >= cut) { (size / 2).max(1) } else { size };
        let records = (self.holds - from).clamp(0, size);
        Facts {
            records,
            digest: xxh3_64(format!("{from}+{records}").as_bytes()),
            total: self.total,
            next: None,
            more: None,
        }
    }
}

/// Reads a span and gives the records read and the requests sent.
fn run(rule: Rule, span: Span, source: Source) -> Result<(Vec<i64>, i64, Stop), PaginateError> {
    let mut state = State::start(rule, span);
    let mut records = Vec::new();
    for nth in 0..10_000 {
        let (from, asked) = match (&state.at, rule) {
            (At::Page(page), Rule::Pages { asked }) => {
                let asked = asked.unwrap_or(source.grants);
                (page * asked.min(source.grants), asked)
            }
            (At::Offset(offset), Rule::Offsets { limit }) => (*offset, limit),
            other => panic!("{other:?}"),
        };
        let facts = source.page(from, asked, nth);
        records.extend(from..from + facts.records);
        // Every state survives a checkpoint.
        let text = serde_json::to_string(&state).unwrap();
        assert!(text.len() < 512, "{text}");
        state = serde_json::from_str(&text).unwrap();
        match next(rule, span, &state, &facts)? {
            Outcome::Next(after) => state = after,
            Outcome::Stop(_, stop) => return Ok((records, nth + 1, stop)),
        }
    }
    panic!("it never ended");
}

fn honest(holds: i64) -> Source {
    Source { holds, total: Some(holds), grants: 1000, cuts_from: None }
}

#[test]
fn requests_per_value_are_as_few_as_safety_allows() {
    let page =
        |asked, source| run(Rule::Pages { asked }, Span::default(), source).map(|(r, n, stop)| (r.len(), n, stop));
    let blind = Source { total: None, ..honest(8) };
    let cases = [
        ("a short page that the total confirms", page(Some(10), honest(8)), (8, 1, Stop::ShortPage)),
        ("a short first page of an unknown total", page(Some(10), blind), (8, 2, Stop::EmptyPage)),
        ("a full last page", page(Some(10), honest(20)), (20, 3, Stop::EmptyPage)),
        ("a short last page", page(Some(10), honest(25)), (25, 3, Stop::ShortPage)),
        ("an empty value", page(Some(10), honest(0)), (0, 1, Stop::EmptyPage)),
        ("a size that was not asked for", page(None, Source { grants: 10, ..honest(25) }), (25, 3, Stop::ShortPage)),
        (
            "a size that was not granted",
            page(Some(1000), Source { grants: 10, ..honest(25) }),
            (25, 3, Stop::ShortPage),
        ),
        (
            "a total that says too little",
            page(Some(10), Source { total: Some(10), ..honest(25) }),
            (25, 3, Stop::ShortPage),
        ),
        (
            "a total that says too much",
            page(Some(10), Source { total: Some(30), ..honest(25) }),
            (25, 4, Stop::EmptyPage),
        ),
    ];
    for (name, found, wanted) in cases {
        assert_eq!(found.unwrap(), wanted, "{name}");
    }
}

#[test]
fn offsets_need_no_more_requests_than_pages() {
    let offset = |limit, source| run(Rule::Offsets { limit }, Span::default(), source).map(|(r, n, _)| (r.len(), n));
    assert_eq!(offset(10, honest(8)).unwrap(), (8, 1));
    assert_eq!(offset(10, honest(25)).unwrap(), (25, 3));
    assert_eq!(offset(10, honest(20)).unwrap(), (20, 3));
    assert_eq!(offset(500, Source { grants: 10, ..honest(25) }).unwrap(), (25, 3));
}

#[test]
fn pages_that_are_cut_on_the_way_fail() {
    let cutting = Source { cuts_from: Some(2), ..honest(100) };
    let page = run(Rule::Pages { asked: Some(10) }, Span::default(), cutting);
    assert_eq!(page, Err(PaginateError::PageSizeClamped { page: 4, held: 5, size: 10 }));
    let offset = run(Rule::Offsets { limit: 10 }, Span::default(), cutting);
    assert!(matches!(offset, Err(PaginateError::PageSizeClamped { .. })), "{offset:?}");
}

#[test]
fn a_part_fails_when_pages_are_smaller_than_its_plan() {
    let span = Span { first: 2, end: Some(4), size: Some(20) };
    let found = run(Rule::Pages { asked: Some(20) }, span, Source { grants: 10, ..honest(100) });
    assert!(matches!(found, Err(PaginateError::PageSizeClamped { .. })), "{found:?}");
}

#[test]
fn a_part_of_a_source_that_shrank_ends_without_error() {
    let span = Span { first: 2, end: Some(4), size: Some(10) };
    let (records, requests, stop) = run(Rule::Pages { asked: Some(10) }, span, honest(25)).unwrap();
    assert_eq!((records, requests, stop), ((20..25).collect(), 2, Stop::EmptyPage));
}

fn walk(rule: Rule, answers: &[Facts]) -> (usize, Result<Stop, PaginateError>) {
    let mut state = State::start(rule, Span::default());
    for (nth, facts) in answers.iter().enumerate() {
        match next(rule, Span::default(), &state, facts) {
            Err(error) => return (nth + 1, Err(error)),
            Ok(Outcome::Stop(_, stop)) => return (nth + 1, Ok(stop)),
            Ok(Outcome::Next(after)) => state = after,
        }
    }
    panic!("it did not end");
}

fn facts(records: i64, digest: u64, next: Option<Value>, more: Option<bool>) -> Facts {
    Facts { records, digest, total: None, next, more }
}

#[test]
fn cursors_end_as_the_source_says() {
    let token = |t: &str| Some(json!(t));
    let cases: Vec<(&str, Vec<Facts>, Result<Stop, PaginateError>)> = vec![
        ("no token", vec![facts(5, 1, token("a"), None), facts(5, 2, None, None)], Ok(Stop::NoNext)),
        ("an empty token", vec![facts(5, 1, token(""), None)], Ok(Stop::NoNext)),
        ("nothing more, though there is a token", vec![facts(5, 1, token("a"), Some(false))], Ok(Stop::NoMore)),
        ("an empty page", vec![facts(5, 1, token("a"), None), facts(0, 0, token("b"), None)], Ok(Stop::EmptyPage)),
        (
            "an empty page in the middle",
            vec![
                facts(5, 1, token("a"), Some(true)),
                facts(0, 0, token("b"), Some(true)),
                facts(1, 2, token("c"), Some(false)),
            ],
            Ok(Stop::NoMore),
        ),
        ("more without a token", vec![facts(5, 1, None, Some(true))], Err(PaginateError::NoToken { read: 5 })),
        (
            "the same token twice",
            vec![facts(5, 1, token("a"), None), facts(5, 2, token("a"), None)],
            Err(PaginateError::Loop { what: "token", pages: 2 }),
        ),
        (
            "the same page twice",
            vec![facts(5, 1, Some(json!(7)), None), facts(5, 1, Some(json!(8)), None)],
            Err(PaginateError::Loop { what: "page", pages: 2 }),
        ),
    ];
    for (name, answers, wanted) in cases {
        let (requests, found) = walk(Rule::Cursor, &answers);
        assert_eq!((requests, found), (answers.len(), wanted), "{name}");
    }
}

#[test]
fn next_urls_end_where_there_is_none_and_never_go_round() {
    let url = |u: &str| Some(json!(u));
    assert_eq!(
        walk(Rule::Next, &[facts(1, 1, url("/2"), None), facts(0, 0, url("/3"), None), facts(1, 2, None, None)]).1,
        Ok(Stop::NoNext)
    );
    let round: Vec<Facts> = (0..40).map(|n| facts(1, 1000 + n, url(&format!("/{}", n % 5)), None)).collect();
    assert!(matches!(walk(Rule::Next, &round).1, Err(PaginateError::Loop { what: "next URL", .. })));
}

#[test]
fn a_source_that_ignores_the_page_number_is_found_out() {
    let same = Facts { records: 10, digest: 7, total: Some(100), next: None, more: None };
    let (requests, found) = walk(Rule::Pages { asked: Some(10) }, &[same.clone(), same]);
    assert_eq!((requests, found), (2, Err(PaginateError::Loop { what: "page", pages: 2 })));
}

#[test]
fn a_stopped_paginator_stays_stopped() {
    let mut state = State::start(Rule::Cursor, Span::default());
    state.stop = Some(Stop::NoMore);
    let more = facts(5, 1, Some(json!("t")), Some(true));
    assert_eq!(next(Rule::Cursor, Span::default(), &state, &more), Ok(Outcome::Stop(state.clone(), Stop::NoMore)));
}

#[test]
fn a_part_that_the_pagination_does_not_have_is_refused() {
    let pages = Part::Pages(PageSpan { from: 0, to: None, size: 10 });
    let offsets = Part::Offsets(OffsetSpan { from: 0, to: None });
    assert_eq!(Span::of(Rule::Cursor, &pages), Err(PaginateError::WrongPart));
    assert_eq!(Span::of(Rule::Pages { asked: None }, &offsets), Err(PaginateError::WrongPart));
}

proptest! {
    /// I7: whatever sizes are asked for and granted and whatever the total says, every record is read exactly once.
    #[test]
    fn every_record_is_read_once(holds in 0i64..300, lie in -20i64..20, known: bool, asked in 1i64..40, grants in 1i64..40) {
        let total = known.then_some((holds + lie).max(0));
        let source = Source { holds, total, grants, cuts_from: None };
        // A total that happens to equal one cut first page can't be told from the truth.
        prop_assume!(lie == 0 || total != Some(asked.min(grants)));
        for rule in [Rule::Pages { asked: Some(asked) }, Rule::Offsets { limit: asked }] {
            let (records, _, _) = run(rule, Span::default(), source).unwrap();
            prop_assert_eq!(records, (0..holds).collect::<Vec<_>>());
        }
    }

    /// The spans of a split value are read exactly once together, and their shares add up to the total.
    #[test]
    fn spans_cover_a_value(holds in 0i64..500, size in 1i64..30, per in 1i64..6) {
        let source = Source { grants: size, ..honest(holds) };
        let count = (holds / (size * per)).max(1);
        let (mut paged, mut by_offset, mut share) = (Vec::new(), Vec::new(), 0);
        for nth in 0..count {
            let end = (nth + 1 < count).then_some((nth + 1) * per);
            let span = Span { first: nth * per, end, size: Some(size) };
            share += span.share(holds);
            paged.extend(run(Rule::Pages { asked: Some(size) }, span, source).unwrap().0);
            let span = Span { first: nth * per * size, end: end.map(|end| end * size), size: None };
            by_offset.extend(run(Rule::Offsets { limit: size }, span, source).unwrap().0);
        }
        let all: Vec<i64> = (0..holds).collect();
        prop_assert_eq!(&paged, &all);
        prop_assert_eq!(&by_offset, &all);
        prop_assert_eq!(share, holds);
    }

    /// A cycle of any length after any beginning is found within a few rounds.
    #[test]
    fn a_cycle_is_always_found(lead in 0u64..50, length in 1u64..50) {
        let mut cycle = Cycle::default();
        let at = |step: u64| if step < lead { step } else { lead + (step - lead) % length };
        let found = (0..(lead + length) * 4 + 8).find(|step| cycle.visit(at(*step) + 1));
        prop_assert!(found.is_some_and(|step| step >= lead + length), "{:?}", found);
    }
}

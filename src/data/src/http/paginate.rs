//! The paginator: a pure function from a state and the facts of an answer to the next state or a reason to stop.
//!
//! The state is serialisable and is what a checkpoint holds. Every item has a fresh one; nothing is shared between items.
//! Stop reasons are sticky: whatever an answer says, a stopped paginator stays stopped. It never trusts a total to end:
//! a total only tells whether a short page is the last one.

use collect_api::plan::Part;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

/// How the source gives its pages, as far as deciding needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// One request holds everything.
    Once,
    /// Numbered pages; with the size that is asked for, if any.
    Pages {
        /// Records per page that are asked for.
        asked: Option<i64>,
    },
    /// Offset and limit.
    Offsets {
        /// Records per request that are asked for.
        limit: i64,
    },
    /// A token of the answer goes into the next request.
    Cursor,
    /// The answer holds the URL of the next request.
    Next,
}

/// The part of a value that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First page or offset, from 0.
    pub first: i64,
    /// Page or offset after the last one; absent where the source's end is read.
    pub end: Option<i64>,
    /// Records per page that a split by pages relies on.
    pub size: Option<i64>,
}

impl Span {
    /// The span of a part.
    ///
    /// # Errors
    /// When the source's pagination can't be split like that.
    pub fn of(rule: Rule, part: &Part) -> Result<Self, PaginateError> {
        match (part, rule) {
            (Part::Whole {} | Part::Range(_), _) => Ok(Self::default()),
            (Part::Pages(span), Rule::Pages { .. }) => {
                Ok(Self { first: span.from, end: span.to, size: Some(span.size.max(1)) })
            }
            (Part::Offsets(span), Rule::Offsets { .. }) => Ok(Self { first: span.from, end: span.to, size: None }),
            (Part::Pages(_) | Part::Offsets(_), _) => Err(PaginateError::WrongPart),
        }
    }

    /// Records of the value before this span and within it, in a source that holds `total`.
    /// Over the spans of a value the shares add up to the total.
    pub fn share(self, total: i64) -> i64 {
        let unit = self.size.unwrap_or(1);
        let before = self.first.saturating_mul(unit).min(total);
        let until = self.end.map_or(total, |end| end.saturating_mul(unit).min(total));
        (until - before).max(0)
    }
}

/// Where the next request starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum At {
    /// At the beginning, with no token yet.
    Start,
    /// Page by number, from 0.
    Page(i64),
    /// Offset, from 0.
    Offset(i64),
    /// Behind this token.
    Token(Value),
    /// At this URL.
    Url(String),
}

/// State of a paginator. Its JSON is the checkpoint's `paginator`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Where the next request starts.
    pub at: At,
    /// Requests answered so far.
    pub pages: i64,
    /// Records read so far.
    pub read: i64,
    /// Records per page, as the first answer showed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// The last page was short though more should follow; a further record proves that pages were cut.
    #[serde(default)]
    pub probing: bool,
    /// Watches for pages that come again.
    pub seen_pages: Cycle,
    /// Watches for tokens and URLs that come again.
    pub seen_tokens: Cycle,
    /// Why it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

/// What an answer says, as far as deciding needs to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Records on the page.
    pub records: i64,
    /// Digest of the page.
    pub digest: u64,
    /// Records that the source says it holds.
    pub total: Option<i64>,
    /// Token or URL of the next page.
    pub next: Option<Value>,
    /// Whether the source says that more follows.
    pub more: Option<bool>,
}

/// Why a paginator stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stop {
    /// One request was all.
    Once,
    /// A page without records.
    EmptyPage,
    /// A page shorter than the others.
    ShortPage,
    /// The end of the part.
    PartEnd,
    /// No token or URL.
    NoNext,
    /// The source says that nothing follows.
    NoMore,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Another request, from this state.
    Next(State),
    /// Nothing; the state holds the reason for good.
    Stop(State, Stop),
}

/// Why a source can't be paged through. All are permanent: another attempt would meet the same.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PaginateError {
    /// The same page or token twice.
    #[error(
        "the source gave the same {what} twice after {pages} pages, so it would never end; check spec.source.http.pagination: the parameter that selects the page seems to be ignored"
    )]
    Loop {
        /// `page` or `token`.
        what: &'static str,
        /// Pages read.
        pages: i64,
    },
    /// A short page that is not the last.
    #[error(
        "page {page} held {held} records instead of {size} and more follow: the source cuts its pages; set spec.source.http.pagination to a page size that it grants and raise spec.run"
    )]
    PageSizeClamped {
        /// Page, from 1 within the part.
        page: i64,
        /// Records on the short page.
        held: i64,
        /// Records per page before.
        size: i64,
    },
    /// The source says that more follows and gives no token.
    #[error(
        "the source says that more follows after {read} records and gives no token; check spec.source.http.pagination.cursor"
    )]
    NoToken {
        /// Records read.
        read: i64,
    },
    /// The part needs another pagination.
    #[error(
        "the plan splits by pages or offsets, which spec.source.http.pagination does not have; raise spec.run to plan again"
    )]
    WrongPart,
    /// A state that does not belong to this source.
    #[error("the checkpoint's paginator does not fit spec.source.http.pagination; raise spec.run to collect anew")]
    WrongState,
}

impl PaginateError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Loop { .. } => "PaginationLoop",
            Self::PageSizeClamped { .. } => "PageSizeClamped",
            Self::NoToken { .. } => "PaginationBroken",
            Self::WrongPart | Self::WrongState => "PlanMismatch",
        }
    }
}

impl State {
    /// The state before the first request of a part.
    pub fn start(rule: Rule, span: Span) -> Self {
        let at = match rule {
            Rule::Pages { .. } => At::Page(span.first),
            Rule::Offsets { .. } => At::Offset(span.first),
            Rule::Once | Rule::Cursor | Rule::Next => At::Start,
        };
        Self {
            at,
            pages: 0,
            read: 0,
            size: span.size,
            probing: false,
            seen_pages: Cycle::default(),
            seen_tokens: Cycle::default(),
            stop: None,
        }
    }

    /// Records of the value before the next request, with those of the parts before this one.
    pub fn position(&self, span: Span) -> i64 {
        span.first.saturating_mul(span.size.unwrap_or(1)).saturating_add(self.read)
    }

    fn stopped(mut self, stop: Stop) -> Outcome {
        self.stop = Some(stop);
        Outcome::Stop(self, stop)
    }

    fn to(mut self, at: At, probing: bool) -> Outcome {
        self.at = at;
        self.probing = probing;
        Outcome::Next(self)
    }
}

/// Decides what follows an answer.
///
/// # Errors
/// When the source repeats itself, cuts pages or contradicts itself.
pub fn next(rule: Rule, span: Span, state: &State, facts: &Facts) -> Result<Outcome, PaginateError> {
    if let Some(stop) = state.stop {
        return Ok(Outcome::Stop(state.clone(), stop));
    }
    let mut after = state.clone();
    after.pages += 1;
    after.read += facts.records;
    if facts.records > 0 && rule != Rule::Once && after.seen_pages.visit(facts.digest) {
        return Err(PaginateError::Loop { what: "page", pages: after.pages });
    }
    match (rule, &state.at) {
        (Rule::Once, At::Start) => Ok(after.stopped(Stop::Once)),
        (Rule::Pages { asked }, At::Page(page)) => pages(asked, span, *page, after, facts),
        (Rule::Offsets { limit }, At::Offset(offset)) => offsets(limit, span, *offset, after, facts),
        (Rule::Cursor, At::Start | At::Token(_)) => cursor(after, facts),
        (Rule::Next, At::Start | At::Url(_)) => url(after, facts),
        _ => Err(PaginateError::WrongState),
    }
}

fn clamped(after: &State, held: i64, size: i64) -> PaginateError {
    PaginateError::PageSizeClamped { page: after.pages, held, size }
}

fn pages(asked: Option<i64>, span: Span, page: i64, mut after: State, facts: &Facts) -> Result<Outcome, PaginateError> {
    let held = facts.records;
    if held == 0 {
        return Ok(after.stopped(Stop::EmptyPage));
    }
    if after.probing {
        return Err(clamped(&after, held, after.size.unwrap_or(held)));
    }
    let position = after.position(span);
    let following = At::Page(page + 1);
    let Some(size) = after.size else {
        // The first page sets the size. Shorter than asked for, it is the last one if the total says so; otherwise the
        // source grants no more than this, or it is the last one: the next page tells.
        after.size = Some(asked.map_or(held, |asked| held.min(asked)));
        let is_short = asked.is_some_and(|asked| held < asked);
        let is_all = is_short && facts.total == Some(position);
        return Ok(if is_all { after.stopped(Stop::ShortPage) } else { after.to(following, false) });
    };
    let is_short = held < size;
    if is_short {
        let more_expected = span.end.is_some() || facts.total.is_some_and(|total| position < total);
        return Ok(if more_expected { after.to(following, true) } else { after.stopped(Stop::ShortPage) });
    }
    Ok(if span.end.is_some_and(|end| page + 1 >= end) {
        after.stopped(Stop::PartEnd)
    } else {
        after.to(following, false)
    })
}

fn offsets(limit: i64, span: Span, offset: i64, mut after: State, facts: &Facts) -> Result<Outcome, PaginateError> {
    let held = facts.records;
    if held == 0 {
        return Ok(after.stopped(Stop::EmptyPage));
    }
    if after.probing {
        return Err(clamped(&after, held, after.size.unwrap_or(limit)));
    }
    let first = after.size.is_none();
    let size = *after.size.get_or_insert(held.min(limit));
    // A page with more than was asked for moves on by what was asked for: skipping would lose records.
    let following = offset + held.min(size);
    let is_short = held < if first { limit } else { size };
    if is_short && facts.total == Some(following) {
        return Ok(after.stopped(Stop::ShortPage));
    }
    match span.end {
        Some(end) if following == end => return Ok(after.stopped(Stop::PartEnd)),
        Some(end) if following > end => return Err(clamped(&after, held, limit)),
        _ => {}
    }
    if is_short && !first {
        let more_expected = span.end.is_some() || facts.total.is_some_and(|total| following < total);
        return Ok(if more_expected { after.to(At::Offset(following), true) } else { after.stopped(Stop::ShortPage) });
    }
    Ok(after.to(At::Offset(following), false))
}

fn cursor(mut after: State, facts: &Facts) -> Result<Outcome, PaginateError> {
    let token = facts.next.as_ref().filter(|token| token.as_str() != Some(""));
    match (facts.more, token) {
        (Some(false), _) => Ok(after.stopped(Stop::NoMore)),
        (Some(true), None) => Err(PaginateError::NoToken { read: after.read }),
        (None, None) => Ok(after.stopped(Stop::NoNext)),
        (None, Some(_)) if facts.records == 0 => Ok(after.stopped(Stop::EmptyPage)),
        (_, Some(token)) => {
            if after.seen_tokens.visit(xxh3_64(token.to_string().as_bytes())) {
                return Err(PaginateError::Loop { what: "token", pages: after.pages });
            }
            Ok(after.to(At::Token(token.clone()), false))
        }
    }
}

fn url(mut after: State, facts: &Facts) -> Result<Outcome, PaginateError> {
    let Some(url) = facts.next.as_ref().and_then(Value::as_str).filter(|url| !url.is_empty()) else {
        return Ok(after.stopped(Stop::NoNext));
    };
    if after.seen_tokens.visit(xxh3_64(url.as_bytes())) {
        return Err(PaginateError::Loop { what: "next URL", pages: after.pages });
    }
    Ok(after.to(At::Url(url.to_owned()), false))
}

/// Finds out that a sequence repeats, in constant space (R. P. Brent, "An improved Monte Carlo factorization
/// algorithm", BIT 20, 1980): a value is compared with the one before it and with an anchor that moves at powers of two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    #[serde(rename = "l")]
    last: u64,
    #[serde(rename = "a")]
    anchor: u64,
    #[serde(rename = "n")]
    steps: u64,
    #[serde(rename = "p")]
    power: u64,
}

impl Default for Cycle {
    fn default() -> Self {
        Self { last: 0, anchor: 0, steps: 0, power: 1 }
    }
}

impl Cycle {
    /// Whether this value has been here before, as far as it can tell by now.
    fn visit(&mut self, value: u64) -> bool {
        if self.steps > 0 && (value == self.last || value == self.anchor) {
            return true;
        }
        self.last = value;
        self.steps += 1;
        if self.steps == self.power {
            self.anchor = value;
            self.power = self.power.saturating_mul(2);
        }
        false
    }
}

#[cfg(test)]
#[path = "paginate_tests.rs"]
mod tests;

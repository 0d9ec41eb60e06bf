//! What the time of an item was spent on, told in its span however the item ends: a span for each page would be too many.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{Span, debug_span, field::Empty};

/// Adds up until it is dropped, and then tells.
pub struct Spent {
    span: Span,
    pages: i64,
    records: i64,
    fetch: Duration,
    write: Duration,
}

impl Spent {
    /// The span of an item of the slice, and what tells in it.
    pub fn on(index: usize) -> (Span, Self) {
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        let span = debug_span!("item", index, pages = Empty, records = Empty, fetch_ms = Empty, write_ms = Empty);
        (span.clone(), Self { span, pages: 0, records: 0, fetch: Duration::ZERO, write: Duration::ZERO })
    }

    /// A page was waited for since then.
    pub fn fetched(&mut self, begun: Instant) {
        self.fetch += begun.elapsed();
    }

    /// A page was written since then; the item has given so many records by now.
    pub fn written(&mut self, begun: Instant, records: i64) {
        self.write += begun.elapsed();
        self.pages += 1;
        self.records = records;
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        self.span
            .record("pages", self.pages)
            .record("records", self.records)
            .record("fetch_ms", milliseconds(self.fetch))
            .record("write_ms", milliseconds(self.write));
    }
}

//! What was asked of a test server: a bounded log of requests, and figures over all of them.
//!
//! An entry is made when a request arrives and completed when it is answered, so a request that never gets an answer is
//! in the log too (status 0).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Entries kept; older ones are dropped.
pub const CAPACITY: usize = 200_000;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Number of the request, from 1, in order of arrival. Never used again, not even after the log was cleared.
    pub seq: u64,
    /// HTTP method.
    pub method: String,
    /// Path as sent.
    pub path: String,
    /// Raw query string, without the question mark.
    pub query: String,
    /// Status sent; 0 while unanswered, and for good if the connection was reset or the client left.
    pub status: u16,
    /// Arrival, in milliseconds since the server started.
    pub at_ms: u64,
    /// Whether an Authorization or API key header came along.
    pub authorization_present: bool,
    /// Records in the answer.
    pub records: u64,
    /// Body of a hook, as text.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// Names of the faults that were applied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<&'static str>,
}

/// Figures since the start or the last clearing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests that arrived.
    pub requests: u64,
    /// Answered ones by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Being answered right now.
    pub concurrent: u64,
    /// Most at one time.
    pub peak_concurrent: u64,
    /// Most arrivals within any one second (a sliding window).
    pub peak_requests_per_second: u64,
    /// Records sent in answers.
    pub records: u64,
    /// Body bytes sent, after compression.
    pub bytes: u64,
}

#[derive(Debug)]
struct Inner {
    next_seq: u64,
    entries: VecDeque<Entry>,
    recent: VecDeque<Instant>,
    stats: Stats,
}

/// The log. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Journal {
    started: Instant,
    inner: Arc<Mutex<Inner>>,
}

impl Default for Journal {
    fn default() -> Self {
        let inner = Inner { next_seq: 1, entries: VecDeque::new(), recent: VecDeque::new(), stats: Stats::default() };
        Self { started: Instant::now(), inner: Arc::new(Mutex::new(inner)) }
    }
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a request that has just arrived.
    pub fn begin(&self, method: &str, path: &str, query: &str, authorization_present: bool) -> Ticket {
        let now = Instant::now();
        let mut inner = self.lock();
        let seq = inner.next_seq;
        inner.next_seq += 1;
        if inner.entries.len() == CAPACITY {
            inner.entries.pop_front();
        }
        inner.entries.push_back(Entry {
            seq,
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            status: 0,
            at_ms: u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX),
            authorization_present,
            records: 0,
            body: String::new(),
            faults: Vec::new(),
        });
        inner.recent.push_back(now);
        while inner.recent.front().is_some_and(|first| now.duration_since(*first) >= Duration::from_secs(1)) {
            inner.recent.pop_front();
        }
        let recent = inner.recent.len() as u64;
        let stats = &mut inner.stats;
        stats.requests += 1;
        stats.concurrent += 1;
        stats.peak_concurrent = stats.peak_concurrent.max(stats.concurrent);
        stats.peak_requests_per_second = stats.peak_requests_per_second.max(recent);
        Ticket { journal: self.clone(), seq }
    }

    /// Entries with a number above `seq`, oldest first; 0 gives all that are kept.
    pub fn since(&self, seq: u64) -> Vec<Entry> {
        let inner = self.lock();
        let from = inner.entries.partition_point(|entry| entry.seq <= seq);
        inner.entries.range(from..).cloned().collect()
    }

    /// Figures so far.
    pub fn stats(&self) -> Stats {
        self.lock().stats.clone()
    }

    /// Forgets entries and figures; requests in flight stay counted as concurrent.
    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.entries.clear();
        inner.recent.clear();
        let concurrent = inner.stats.concurrent;
        inner.stats = Stats { concurrent, peak_concurrent: concurrent, ..Stats::default() };
    }
}

/// A request in flight; it counts as concurrent until dropped.
#[derive(Debug)]
pub struct Ticket {
    journal: Journal,
    seq: u64,
}

impl Ticket {
    fn update(&self, change: impl FnOnce(&mut Entry)) {
        let mut inner = self.journal.lock();
        // Numbers are consecutive, so the place follows from the first; a cleared or dropped entry is simply not there.
        let place = inner.entries.front().and_then(|first| self.seq.checked_sub(first.seq));
        let entry = place.and_then(|at| usize::try_from(at).ok()).and_then(|at| inner.entries.get_mut(at));
        if let Some(entry) = entry {
            change(entry);
        }
    }

    /// Notes a fault that hits this request.
    pub fn fault(&self, name: &'static str) {
        self.update(|entry| entry.faults.push(name));
    }

    /// Notes what came along.
    pub fn body(&self, text: String) {
        self.update(|entry| entry.body = text);
    }

    /// Notes the answer.
    pub fn answered(&self, status: u16, records: u64, bytes: u64) {
        self.update(|entry| {
            entry.status = status;
            entry.records = records;
        });
        let mut inner = self.journal.lock();
        *inner.stats.by_status.entry(status).or_default() += 1;
        inner.stats.records += records;
        inner.stats.bytes += bytes;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.journal.lock();
        inner.stats.concurrent = inner.stats.concurrent.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_outlive_their_answer_and_numbers_outlive_clearing() {
        let journal = Journal::default();
        let first = journal.begin("GET", "/a", "", false);
        let second = journal.begin("GET", "/b", "x=1", true);
        second.answered(200, 5, 100);
        drop(second);
        assert_eq!(journal.since(0).iter().map(|e| (e.seq, e.status)).collect::<Vec<_>>(), [(1, 0), (2, 200)]);
        assert_eq!(journal.since(1).len(), 1);
        assert_eq!((journal.stats().concurrent, journal.stats().peak_concurrent), (1, 2));

        journal.clear();
        first.answered(503, 0, 0);
        drop(first);
        assert!(journal.since(0).is_empty());
        drop(journal.begin("GET", "/c", "", false));
        assert_eq!(journal.since(0)[0].seq, 3);
        assert_eq!(journal.stats().requests, 1);
    }

    #[test]
    fn the_log_is_a_ring() {
        let journal = Journal::default();
        for _ in 0..CAPACITY + 10 {
            journal.begin("GET", "/", "", false).answered(200, 0, 0);
        }
        let entries = journal.since(0);
        assert_eq!((entries.len(), entries[0].seq, entries[0].status), (CAPACITY, 11, 200));
    }
}

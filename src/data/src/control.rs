//! What goes in and out of running work besides its result: signals and the rate share in, progress out.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicI64, Ordering},
};

use collect_api::protocol::{Checkpoint, RateShare};
use tokio::sync::watch;

use crate::http::Limiter;

/// What running work shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Go on.
    Go,
    /// Close the part, leave a checkpoint, end.
    Pause,
    /// End at once: a newer attempt is in place.
    Abort,
}

/// What running work does at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Waits for the source's next answer.
    #[default]
    Reading,
    /// Writes to the sink.
    Writing,
    /// Waits before it repeats a request.
    Waiting,
    /// Commits.
    Committing,
    /// Walks the levels.
    Planning,
}

impl Stage {
    /// The word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Writing => "writing",
            Self::Waiting => "waiting",
            Self::Committing => "committing",
            Self::Planning => "planning",
        }
    }
}

/// How far the work has got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// What it does at the moment.
    pub stage: Stage,
    /// Records of the slice so far, in closed and open parts, over all attempts.
    pub records: i64,
    /// Bytes of these records' text.
    pub bytes: i64,
    /// Records expected, as far as known.
    pub expected: Option<i64>,
    /// The newest checkpoint of this attempt.
    pub checkpoint: Option<Checkpoint>,
}

#[derive(Debug)]
struct Inner {
    signal: watch::Sender<Signal>,
    progress: Mutex<Progress>,
    limiter: Limiter,
    requests: AtomicI64,
    retries: AtomicI64,
    records: AtomicI64,
    bytes: AtomicI64,
    waiting: AtomicI64,
}

/// The handle that running work and whoever watches it share. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Control(Arc<Inner>);

impl Control {
    /// A handle for work that may use this share of the source's limits.
    pub fn new(share: &RateShare) -> Self {
        Self(Arc::new(Inner {
            signal: watch::Sender::new(Signal::Go),
            progress: Mutex::default(),
            limiter: Limiter::new(share),
            requests: AtomicI64::new(0),
            retries: AtomicI64::new(0),
            records: AtomicI64::new(0),
            bytes: AtomicI64::new(0),
            waiting: AtomicI64::new(0),
        }))
    }

    /// Tells the work what to do. Abort is final; Pause gives way only to Abort.
    pub fn send(&self, signal: Signal) {
        let rank = |signal| match signal {
            Signal::Go => 0,
            Signal::Pause => 1,
            Signal::Abort => 2,
        };
        self.0.signal.send_if_modified(|now| {
            let stronger = rank(signal) > rank(*now);
            if stronger {
                *now = signal;
            }
            stronger
        });
    }

    /// The signal in force.
    pub fn signal(&self) -> Signal {
        *self.0.signal.borrow()
    }

    /// Returns once the work shall end, with the signal that says so.
    pub async fn stopped(&self) -> Signal {
        let mut signals = self.0.signal.subscribe();
        // The sender lives as long as this handle, so waiting can't fail.
        signals.wait_for(|signal| *signal != Signal::Go).await.map_or(Signal::Abort, |signal| *signal)
    }

    /// Returns once the work shall end at once.
    pub async fn aborted(&self) {
        let mut signals = self.0.signal.subscribe();
        let _ = signals.wait_for(|signal| *signal == Signal::Abort).await;
    }

    /// This worker's share of the source's limits; it may be changed while requests run.
    pub fn limiter(&self) -> &Limiter {
        &self.0.limiter
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the work has got.
    pub fn progress(&self) -> Progress {
        let mut progress = self.lock().clone();
        if progress.stage == Stage::Reading && self.0.waiting.load(Ordering::Relaxed) > 0 {
            progress.stage = Stage::Waiting;
        }
        progress
    }

    /// Notes how far the work has got.
    pub fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
    }

    /// Requests sent to the source so far.
    pub fn requests(&self) -> i64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Requests repeated so far.
    pub fn retries(&self) -> i64 {
        self.0.retries.load(Ordering::Relaxed)
    }

    /// Records that this attempt has written so far, and bytes of their text. What it adopted is not among them.
    pub fn written(&self) -> (i64, i64) {
        (self.0.records.load(Ordering::Relaxed), self.0.bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn count_written(&self, records: i64, bytes: i64) {
        self.0.records.fetch_add(records, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_retry(&self) {
        self.0.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Marks a wait before a repetition, until the guard is dropped.
    pub(crate) fn waiting(&self) -> Waiting {
        self.0.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self.clone())
    }
}

/// A wait before a repetition.
#[derive(Debug)]
pub(crate) struct Waiting(Control);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stronger_signal_wins_and_stays() {
        let control = Control::new(&RateShare::default());
        control.send(Signal::Pause);
        control.send(Signal::Go);
        assert_eq!(control.stopped().await, Signal::Pause);
        control.send(Signal::Abort);
        control.send(Signal::Pause);
        assert_eq!((control.signal(), control.stopped().await), (Signal::Abort, Signal::Abort));
    }
}

//! This worker's share of the source's limits: requests a second and requests at once. Both may change while requests wait.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use collect_api::protocol::RateShare;
use tokio::{sync::Notify, time::Instant};

/// Requests at once when nothing is said.
pub const DEFAULT_CONCURRENCY: usize = 4;

#[derive(Debug)]
struct State {
    /// Time between two requests.
    interval: Option<Duration>,
    concurrency: usize,
    in_flight: usize,
    /// When the next request may start.
    next: Option<Instant>,
}

/// Lets requests through at the pace of the share.
#[derive(Debug)]
pub struct Limiter {
    state: Mutex<State>,
    changed: Notify,
}

/// Leave to send one request; given back when dropped.
#[derive(Debug)]
pub struct Permit<'a>(&'a Limiter);

impl Limiter {
    /// A limiter with this share.
    pub fn new(share: &RateShare) -> Self {
        let state = State { interval: None, concurrency: DEFAULT_CONCURRENCY, in_flight: 0, next: None };
        let limiter = Self { state: Mutex::new(state), changed: Notify::new() };
        limiter.set(share);
        limiter
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the share; requests that wait feel it at once.
    pub fn set(&self, share: &RateShare) {
        let mut state = self.lock();
        let rate = share.requests_per_second.filter(|rate| *rate > 0.0);
        state.interval = rate.and_then(|rate| Duration::try_from_secs_f64(1.0 / rate).ok());
        state.concurrency =
            share.concurrency.and_then(|n| usize::try_from(n).ok()).map_or(DEFAULT_CONCURRENCY, |n| n.max(1));
        // A slower pace of before must not hold the next request longer than the new one would.
        let latest = state.interval.map(|interval| Instant::now() + interval);
        state.next = state.next.zip(latest).map(|(next, latest)| next.min(latest));
        drop(state);
        self.changed.notify_waiters();
    }

    /// Requests at once.
    pub fn concurrency(&self) -> usize {
        self.lock().concurrency
    }

    /// Waits until a request may be sent.
    pub async fn permit(&self) -> Permit<'_> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wait = {
                let mut state = self.lock();
                let now = Instant::now();
                let ready = state.next.is_none_or(|next| next <= now);
                if state.in_flight < state.concurrency && ready {
                    state.in_flight += 1;
                    state.next = state.interval.map(|interval| now + interval);
                    return Permit(self);
                }
                state.next.filter(|_| state.in_flight < state.concurrency)
            };
            match wait {
                None => changed.await,
                Some(until) => {
                    let _ = tokio::time::timeout_at(until, changed).await;
                }
            }
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        drop(state);
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(requests_per_second: Option<f64>, concurrency: Option<i32>) -> RateShare {
        RateShare { requests_per_second, concurrency }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_keep_the_pace() {
        let limiter = Limiter::new(&share(Some(10.0), None));
        let start = Instant::now();
        for _ in 0..11 {
            drop(limiter.permit().await);
        }
        assert_eq!(start.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_share_is_felt_at_once() {
        let limiter = Limiter::new(&share(Some(0.01), None));
        drop(limiter.permit().await);
        let start = Instant::now();
        let waiting = limiter.permit();
        let change = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            limiter.set(&share(Some(100.0), None));
        };
        tokio::join!(waiting, change);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_at_once() {
        let limiter = Limiter::new(&share(None, Some(2)));
        let (first, _second) = (limiter.permit().await, limiter.permit().await);
        assert!(tokio::time::timeout(Duration::from_secs(5), limiter.permit()).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(Duration::from_secs(5), limiter.permit()).await.is_ok());
    }
}

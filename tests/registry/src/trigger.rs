//! Which requests a fault hits. Shared by the test servers of this workspace.
//!
//! The n-th matching request always gets the same decision for the same seed, whatever the clock says, so a failing test
//! can be run again. With concurrent clients it is the order of arrival that decides who is the n-th.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// Selects requests: first by what they are, then by their number among the matching ones (counted from 1).
/// The default selects every request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct When {
    /// Only this HTTP method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Only paths that start with this.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Only raw query strings that contain this.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub query: String,
    /// Spare this many matching requests; the numbering of `first` and `every` begins after them.
    #[serde(skip_serializing_if = "is_zero")]
    pub skip: u64,
    /// Hit only among the first this many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// Hit every n-th.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Hit with this probability, 0 to 1, drawn from the seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl When {
    fn matches(&self, method: &str, path: &str, query: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method))
            && path.starts_with(&self.prefix)
            && query.contains(&self.query)
    }

    /// Whether the n-th matching request is hit. `salt` keeps two faults with one seed apart.
    fn hits(&self, n: u64, seed: u64, salt: u64) -> bool {
        let Some(n) = n.checked_sub(self.skip).filter(|n| *n > 0) else { return false };
        self.first.is_none_or(|first| n <= first)
            && self.every.is_none_or(|every| every > 0 && n.is_multiple_of(every))
            && self.probability.is_none_or(|p| draw(seed, salt, n) < p)
    }
}

/// A `When` with its count of matching requests.
#[derive(Debug)]
pub struct Trigger {
    when: When,
    seed: u64,
    salt: u64,
    matched: AtomicU64,
}

impl Trigger {
    /// A trigger that has seen nothing yet.
    pub fn new(when: When, seed: u64, salt: u64) -> Self {
        Self { when, seed, salt, matched: AtomicU64::new(0) }
    }

    /// Counts the request if it matches, and says whether it is hit.
    pub fn fires(&self, method: &str, path: &str, query: &str) -> bool {
        if !self.when.matches(method, path, query) {
            return false;
        }
        let n = self.matched.fetch_add(1, Ordering::Relaxed) + 1;
        self.when.hits(n, self.seed, self.salt)
    }
}

/// The faults of a server: effects with the requests that they hit.
#[derive(Debug)]
pub struct Faults<E> {
    faults: Vec<(E, Trigger)>,
    /// Has no permit, and is closed once other faults are in force.
    held: Semaphore,
}

impl<E: Clone> Faults<E> {
    /// Faults that have hit nothing yet.
    pub fn new(faults: impl IntoIterator<Item = (E, When)>, seed: u64) -> Self {
        let fault = |(salt, (effect, when))| (effect, Trigger::new(when, seed, salt));
        Self { faults: (0u64..).zip(faults).map(fault).collect(), held: Semaphore::new(0) }
    }

    /// The effects on a request, which counts.
    pub fn on(&self, method: &str, path: &str, query: &str) -> Vec<E> {
        let hits = self.faults.iter().filter(|(_, trigger)| trigger.fires(method, path, query));
        hits.map(|(effect, _)| effect.clone()).collect()
    }

    /// Returns once these faults are no longer in force.
    pub async fn hold(&self) {
        let _ = self.held.acquire().await;
    }

    /// These faults are no longer in force: what is held goes on.
    pub fn release(&self) {
        self.held.close();
    }
}

/// A number in [0, 1) that depends on the arguments only (splitmix64).
fn draw(seed: u64, salt: u64, n: u64) -> f64 {
    let mut z = seed ^ salt.wrapping_mul(0xD1B5_4A32_D192_ED03) ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(when: &When, count: u64) -> Vec<u64> {
        (1..=count).filter(|n| when.hits(*n, 7, 0)).collect()
    }

    #[test]
    fn numbers_count_after_the_spared_ones() {
        assert_eq!(hit(&When::default(), 3), [1, 2, 3]);
        assert_eq!(hit(&When { every: Some(2), ..When::default() }, 6), [2, 4, 6]);
        assert_eq!(hit(&When { skip: 1, every: Some(2), first: Some(4), ..When::default() }, 20), [3, 5]);
    }

    #[test]
    fn probability_is_drawn_from_the_seed() {
        let when = When { probability: Some(0.25), ..When::default() };
        let hits = hit(&when, 4000);
        assert_eq!(hits, hit(&when, 4000));
        assert!((850..1150).contains(&hits.len()), "{} of 4000", hits.len());
        assert_ne!(hits, (1..=4000).filter(|n| when.hits(*n, 8, 0)).collect::<Vec<_>>());
    }

    #[test]
    fn only_matching_requests_are_counted() {
        let trigger =
            Trigger::new(When { prefix: "/a".into(), query: "page=2".into(), every: Some(2), ..When::default() }, 0, 0);
        assert!(!trigger.fires("GET", "/a", "page=2"));
        assert!(!trigger.fires("GET", "/b", "page=2"));
        assert!(!trigger.fires("GET", "/a", "page=1"));
        assert!(trigger.fires("GET", "/a/x", "size=1&page=2"));
    }
}

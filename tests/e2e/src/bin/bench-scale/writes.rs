//! Who writes how often, from the audit log.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use collect_e2e::{Cluster, audit};

/// Requests between two places of the log.
#[derive(Debug, Default)]
pub struct Writes {
    /// Writes that were asked for, carried out or not, by user.
    pub by_user: BTreeMap<String, usize>,
    /// Those of the operator, by verb and resource.
    pub of_operator: BTreeMap<String, usize>,
    /// Reads of single objects and lists by the operator, by verb and resource.
    pub reads: BTreeMap<String, usize>,
}

impl Writes {
    /// Counts them.
    pub fn between(cluster: &Cluster, operator: &str, from: u64, to: u64) -> Self {
        let mut writes = Self::default();
        for request in audit::between(cluster, from, to) {
            let what = || format!("{} {}", request.verb, request.resource);
            if request.is_write() {
                if request.user == operator {
                    *writes.of_operator.entry(what()).or_default() += 1;
                }
                *writes.by_user.entry(request.user).or_default() += 1;
            } else if request.user == operator && request.verb != "watch" {
                *writes.reads.entry(what()).or_default() += 1;
            }
        }
        writes
    }

    /// All of the operator's.
    pub fn operator(&self) -> usize {
        self.of_operator.values().sum()
    }
}

/// Waits until the operator has written nothing for `quiet`, and gives back how long that took without the quiet itself.
///
/// # Panics
/// If it goes on for `patience`.
pub async fn until_quiet(cluster: &Cluster, operator: &str, quiet: Duration, patience: Duration) -> Duration {
    let began = Instant::now();
    let (mut from, mut last) = (audit::now(cluster), began);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    while last.elapsed() < quiet {
        tick.tick().await;
        let to = audit::now(cluster);
        if Writes::between(cluster, operator, from, to).operator() > 0 {
            last = Instant::now();
        }
        from = to;
        assert!(began.elapsed() < patience, "the operator still writes {patience:?} after the end");
    }
    last.duration_since(began)
}

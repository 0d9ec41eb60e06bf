//! How often the operator looks at its objects and how long that takes, from its own metrics.

use collect_e2e::{Operator, http};

/// Passes over one kind.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    /// Kind of object.
    pub kind: &'static str,
    /// Number so far.
    pub count: f64,
    /// Seconds that they took together, waiting for the API server included.
    pub seconds: f64,
}

/// Passes over shards and over tasks so far.
///
/// # Panics
/// If the operator does not answer, or counts no passes.
pub async fn passes(operator: &Operator) -> [Passes; 2] {
    let (status, text) = http::get(&operator.http, "/metrics").await.expect("the operator serves its metrics");
    assert_eq!(status, 200, "{text}");
    ["CollectShard", "CollectTask"].map(|kind| {
        let of = |name: &str| sum(&text, &format!("collect_reconcile_duration_seconds_{name}"), kind);
        let passes = Passes { kind, count: of("count"), seconds: of("sum") };
        assert!(passes.count > 0.0, "passes over {kind} are counted:\n{text}");
        passes
    })
}

/// Sum of a metric's samples about a kind.
fn sum(text: &str, name: &str, kind: &str) -> f64 {
    let label = format!("kind=\"{kind}\"");
    let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "));
    samples
        .filter(|(labels, _)| labels.split(',').any(|pair| pair == label))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

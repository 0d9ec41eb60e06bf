//! The one place that reads a clock or makes randomness.

use std::time::Instant;

use jiff::Timestamp;

/// Wall clock, for what is written into objects.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Monotonic clock, for durations.
pub fn instant() -> Instant {
    Instant::now()
}

/// A random id, for this process.
pub fn random_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// A factor between 0.8 and 1.2, to spread what would otherwise happen at the same moment.
pub fn jitter() -> f64 {
    0.8 + 0.4 * rand::random::<f64>()
}

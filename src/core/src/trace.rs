//! The identity of traces and spans: derived from names that never change, never stored and never drawn.
//!
//! So every process that knows a run gives it the same trace id, and the operator's span of an attempt has the id that the
//! worker takes as its parent, without a word between them and across restarts of either. The forms are those of the W3C's
//! Trace Context.

use std::fmt::Write;

/// Tells these hashes from all others; a change makes new ids for everything.
const TRACE: &str = "collect.dev v1 trace of a run";
const RUN: &str = "collect.dev v1 span of a run";
const ATTEMPT: &str = "collect.dev v1 span of an attempt";

/// A span within its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanRef {
    trace: [u8; 16],
    span: [u8; 8],
}

/// The span of a run, from its first status to its end: the root of the trace.
pub fn run(root_uid: &str, run: i64) -> SpanRef {
    let number = run.to_string();
    let parts = [root_uid, &number];
    SpanRef { trace: id(TRACE, &parts), span: id(RUN, &parts) }
}

/// The span of an attempt, from the entry in the ledger to its recorded outcome; below that of its run. `ledger_uid` is the
/// uid of the object that holds the ledger, `work` the kind of work that the ledger is about.
pub fn attempt(root_uid: &str, run_number: i64, ledger_uid: &str, work: &str, attempt: i32) -> SpanRef {
    let (number, n) = (run_number.to_string(), attempt.to_string());
    let span = id(ATTEMPT, &[root_uid, &number, ledger_uid, work, &n]);
    SpanRef { span, ..run(root_uid, run_number) }
}

impl SpanRef {
    /// 32 hexadecimal digits, in every log line of the run.
    pub fn trace_id(&self) -> String {
        hex(&self.trace)
    }

    /// 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        hex(&self.span)
    }

    /// Both, as a parent for spans of another process: always sampled.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace_id(), self.span_id())
    }
}

/// The first bytes of a hash. All zeros would mean that there is no id.
fn id<const N: usize>(kind: &str, parts: &[&str]) -> [u8; N] {
    let mut id = [0; N];
    blake3::Hasher::new_derive_key(kind).update(parts.join("\u{0}").as_bytes()).finalize_xof().fill(&mut id);
    if id == [0; N]
        && let Some(last) = id.last_mut()
    {
        *last = 1;
    }
    id
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const UID: &str = "3f9c2a71-0000-4000-8000-000000000000";

    #[test]
    fn the_ids_of_a_run_never_change() {
        // Another value here means that operator and workers of two versions would not meet in one trace.
        assert_eq!(run(UID, 1).traceparent(), "00-9c2d95aea7e6956d2673a46c31c7b52c-046314c10460aa52-01");
        assert_eq!(
            attempt(UID, 1, "b0a1", "collect", 2).traceparent(),
            "00-9c2d95aea7e6956d2673a46c31c7b52c-e2f851dfca4ff263-01"
        );
    }

    #[test]
    fn an_attempt_lies_in_the_trace_of_its_run() {
        assert_eq!(attempt(UID, 3, "b0a1", "collect", 2).trace_id(), run(UID, 3).trace_id());
        assert_ne!(run(UID, 3).trace_id(), run(UID, 4).trace_id());
        assert_ne!(run(UID, 3).trace_id(), run("another", 3).trace_id());
    }

    #[test]
    fn every_attempt_of_every_ledger_has_a_span_of_its_own() {
        let mut spans = BTreeSet::from([run(UID, 1).span_id()]);
        let mut count = 1;
        for ledger in [UID, "b0a1", "b0a2"] {
            for work in ["collect", "plan", "commit", "before-start"] {
                for n in 1..20 {
                    spans.insert(attempt(UID, 1, ledger, work, n).span_id());
                    count += 1;
                }
            }
        }
        assert_eq!(spans.len(), count);
    }

    proptest! {
        #[test]
        fn ids_have_the_form_of_the_w3c_and_are_never_zero(uid in "\\PC{0,64}", number in any::<i64>(), n in any::<i32>()) {
            for span in [run(&uid, number), attempt(&uid, number, &uid, "collect", n)] {
                let parent = span.traceparent();
                let parts: Vec<&str> = parent.split('-').collect();
                prop_assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
                prop_assert!(parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))));
                prop_assert!(span.trace_id().bytes().any(|b| b != b'0') && span.span_id().bytes().any(|b| b != b'0'));
            }
        }
    }
}

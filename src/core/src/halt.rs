//! What ends a run before its work is done: more failures than are borne, with failFast, or the deadline.

use std::time::Duration;

use collect_api::{CollectTask, CollectTaskSpec, CollectTaskStatus, DesiredState, condition::reason, task::Tolerate};

use crate::{resolve::strictest, retry, rollup::Above};

/// Why a run is stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// Short word.
    pub reason: &'static str,
    /// For people, with what to do.
    pub message: String,
}

/// Failed shards that are borne of so many.
pub fn tolerated(spec: &CollectTaskSpec, shards: i32) -> i32 {
    match spec.completion.as_ref().and_then(|completion| completion.tolerate) {
        None => 0,
        Some(Tolerate::Shards(number)) => number,
        Some(Tolerate::Percent(percent)) => {
            i32::try_from(i64::from(shards.max(0)) * i64::from(percent) / 100).unwrap_or(i32::MAX)
        }
    }
}

/// What shall become of the work below the first task of a line that ends at the root, and why it is stopped, if it is.
pub fn standing(line: &[impl AsRef<CollectTask>]) -> (Above, Option<Halt>) {
    let line = || line.iter().map(AsRef::as_ref);
    let asked = strictest(line().map(|task| task.spec.desired_state));
    let halt = line().last().and_then(halt);
    let token = line()
        .rev()
        .fold(None::<String>, |above, task| retry::token(above.as_deref(), task.metadata.annotations.as_ref()));
    (Above { desired: desired(asked, halt.as_ref()), token }, halt)
}

/// Whether a run is stopped, by what its root's status says. It holds for the whole tree.
///
/// A retry token that the root has not taken up yet lifts it: what was counted before says nothing any more.
pub fn halt(root: &CollectTask) -> Option<Halt> {
    let status = root.status.as_ref()?;
    let token = retry::token(None, root.metadata.annotations.as_ref());
    if token.is_some() && token != status.retried {
        return None;
    }
    late(&root.spec, status).or_else(|| too_many_failed(&root.spec, status))
}

fn late(spec: &CollectTaskSpec, status: &CollectTaskStatus) -> Option<Halt> {
    let deadline = spec.deadline?;
    let elapsed = Duration::from_secs(u64::try_from(status.elapsed_seconds?).ok()?);
    (elapsed >= deadline.get()).then(|| Halt {
        reason: reason::DEADLINE_EXCEEDED,
        message: format!(
            "the run took {deadline}, as long as spec.deadline allows; what was committed stays at the sink. Raise spec.deadline and set a new value of the annotation collect.dev/retry to go on"
        ),
    })
}

fn too_many_failed(spec: &CollectTaskSpec, status: &CollectTaskStatus) -> Option<Halt> {
    spec.completion.as_ref().and_then(|completion| completion.fail_fast).filter(|fast| *fast)?;
    let shards = status.shards.as_ref()?;
    let borne = tolerated(spec, shards.total);
    (shards.failed > borne).then(|| Halt {
        reason: reason::SHARDS_FAILED,
        message: format!(
            "{} of {} shards failed, more than the {borne} that are borne, so the rest was stopped (spec.completion.failFast). Mend the cause and set a new value of the annotation collect.dev/retry to go on",
            shards.failed, shards.total
        ),
    })
}

/// What shall become of work in a tree: what people ask for, unless the run is stopped.
pub fn desired(asked: DesiredState, halt: Option<&Halt>) -> DesiredState {
    if halt.is_some() { DesiredState::Cancelled } else { asked }
}

/// The elapsed time as it is written: in steps, so that time alone costs few writes.
pub fn elapsed_seconds(spec: &CollectTaskSpec, elapsed: Duration) -> Option<i64> {
    let deadline = spec.deadline?.get();
    if elapsed >= deadline {
        return i64::try_from(deadline.as_secs().max(1)).ok();
    }
    let step = (deadline.as_secs() / 20).clamp(1, 30);
    i64::try_from(elapsed.as_secs() / step * step).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use collect_api::{
        labels,
        task::{Completion, ShardCounts},
    };

    use super::*;

    fn root(spec: CollectTaskSpec, status: CollectTaskStatus) -> CollectTask {
        let mut root = CollectTask::new("root", spec);
        root.status = Some(status);
        root
    }

    fn fail_fast(tolerate: Tolerate) -> CollectTaskSpec {
        let completion = Completion { tolerate: Some(tolerate), fail_fast: Some(true) };
        CollectTaskSpec { completion: Some(completion), ..Default::default() }
    }

    fn failed(failed: i32, total: i32) -> CollectTaskStatus {
        CollectTaskStatus { shards: Some(ShardCounts { total, failed, ..Default::default() }), ..Default::default() }
    }

    #[test]
    fn fail_fast_stops_at_the_first_failure_that_is_not_borne() {
        for (tolerate, failures, stops) in [
            (Tolerate::Shards(2), 2, false),
            (Tolerate::Shards(2), 3, true),
            (Tolerate::Percent(10), 5, false),
            (Tolerate::Percent(10), 6, true),
        ] {
            let halt = halt(&root(fail_fast(tolerate), failed(failures, 50)));
            assert_eq!(halt.is_some(), stops, "{tolerate:?} {failures}");
        }
        assert_eq!(halt(&root(CollectTaskSpec::default(), failed(9, 9))), None, "without failFast the rest goes on");
    }

    #[test]
    fn a_retry_lifts_it() {
        let mut root = root(fail_fast(Tolerate::Shards(0)), failed(1, 2));
        assert!(halt(&root).is_some());
        root.metadata.annotations = Some(BTreeMap::from([(labels::RETRY.to_owned(), "again".to_owned())]));
        assert_eq!(halt(&root), None);
        root.status.as_mut().unwrap().retried = Some("again".into());
        assert!(halt(&root).is_some(), "taken up, and failed again");
    }

    #[test]
    fn a_deadline_is_met_to_the_second_and_written_in_steps() {
        let spec = CollectTaskSpec { deadline: Some(collect_api::Duration::from_secs(600)), ..Default::default() };
        let at = |seconds| elapsed_seconds(&spec, Duration::from_secs(seconds));
        assert_eq!((at(29), at(31), at(599), at(600)), (Some(0), Some(30), Some(570), Some(600)));
        let status = |seconds| CollectTaskStatus { elapsed_seconds: at(seconds), ..Default::default() };
        assert_eq!(halt(&root(spec.clone(), status(599))), None);
        assert_eq!(halt(&root(spec.clone(), status(600))).unwrap().reason, "DeadlineExceeded");
        assert_eq!(elapsed_seconds(&CollectTaskSpec::default(), Duration::from_secs(9)), None);
    }
}

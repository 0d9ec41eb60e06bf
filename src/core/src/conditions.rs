//! Conditions as Kubernetes means them: the transition time moves only with the status (I16).

use collect_api::condition::{READY, RECONCILING, STALLED};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::text;

/// What a status is written for: the generation that it is about, and the moment.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Generation of the object's spec.
    pub generation: Option<i64>,
    /// Now.
    pub now: Timestamp,
}

/// A time as it is written: whole seconds, so that what is read back compares equal.
pub fn whole_seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// Sets a condition; keeps the transition time while the status stays the same.
pub fn set(conditions: &mut Vec<Condition>, type_: &str, status: &str, reason: &str, message: &str, at: At) {
    let message = text::cut(message, 1024);
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(condition) => {
            if condition.status != status {
                condition.status = status.into();
                condition.last_transition_time = whole_seconds(at.now);
            }
            condition.reason = reason.into();
            condition.message = message;
            condition.observed_generation = at.generation;
        }
        None => conditions.push(Condition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            observed_generation: at.generation,
            last_transition_time: whole_seconds(at.now),
        }),
    }
}

/// Removes a condition: abnormal-true ones exist only while they are true.
pub fn clear(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|condition| condition.type_ != type_);
}

/// Ready=False with Reconciling=True: work goes on.
pub fn working(conditions: &mut Vec<Condition>, reason: &str, message: &str, at: At) {
    clear(conditions, STALLED);
    set(conditions, READY, "False", reason, message, at);
    set(conditions, RECONCILING, "True", reason, message, at);
}

/// Ready=False with Stalled=True: nothing goes on without help.
pub fn stalled(conditions: &mut Vec<Condition>, reason: &str, message: &str, at: At) {
    clear(conditions, RECONCILING);
    set(conditions, READY, "False", reason, message, at);
    set(conditions, STALLED, "True", reason, message, at);
}

/// Ready=True: done and good.
pub fn ready(conditions: &mut Vec<Condition>, reason: &str, message: &str, at: At) {
    clear(conditions, RECONCILING);
    clear(conditions, STALLED);
    set(conditions, READY, "True", reason, message, at);
}

/// Whether a condition is there and True.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(generation: i64, second: i64) -> At {
        At { generation: Some(generation), now: Timestamp::from_second(second).unwrap() }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        working(&mut conditions, "Planning", "a", at(1, 1));
        working(&mut conditions, "Running", "b", at(2, 2));
        assert!(conditions.iter().all(|c| c.last_transition_time.0 == at(1, 1).now && c.reason == "Running"));
        ready(&mut conditions, "Succeeded", "c", at(2, 3));
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time.0, at(2, 3).now);
    }
}

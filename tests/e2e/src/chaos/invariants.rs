//! What must hold between two versions of an object that follow each other; design and numbers are those of the invariants' table.
//!
//! It reads the JSON and shares no type with the operator, so that it sees what a client sees.

use serde_json::Value;

const TERMINAL: &[&str] = &["Succeeded", "PartiallySucceeded", "Collected", "Failed", "Cancelled"];

/// What a version breaks, compared with the one before; each line begins with the invariant's number.
pub fn broken(before: Option<&Value>, after: &Value) -> Vec<String> {
    let nothing = Value::Null;
    let before = before.unwrap_or(&nothing);
    let name = after["metadata"]["name"].as_str().unwrap_or("?");
    let mut found = Vec::new();
    match after["kind"].as_str() {
        Some("CollectTask") => task(before, after, &mut found),
        Some("CollectShard") => {
            shard(&before["status"], &after["status"], &mut found);
            first_attempt(after, &mut found);
        }
        _ => {}
    }
    generation(before, after, &mut found);
    conditions(&before["status"], &after["status"], &mut found);
    found.into_iter().map(|(invariant, what)| format!("{invariant}: {name}: {what}")).collect()
}

type Found = Vec<(&'static str, String)>;

fn task(before: &Value, after: &Value, found: &mut Found) {
    let (old, new) = (&before["status"], &after["status"]);
    let progress = new["progress"].as_i64();
    if progress.is_some_and(|percent| !(0..=100).contains(&percent)) {
        found.push(("I10", format!("progress is {progress:?}")));
    }
    let counts = |of: &Value| {
        let phases = ["pending", "running", "succeeded", "failed", "cancelled"];
        phases.iter().filter_map(|phase| of[phase].as_i64()).sum::<i64>()
    };
    let total = new["shards"]["total"].as_i64();
    if total.is_some_and(|total| counts(&new["shards"]) > total) {
        found.push(("I10", format!("more shards than there are: {}", new["shards"])));
    }
    // While the tree of the run before is removed, the status is still that run's and begins anew.
    if old["run"] != new["run"] || asked_for(after) != new["run"].as_i64() {
        return;
    }
    if progress.unwrap_or(0) < old["progress"].as_i64().unwrap_or(0) {
        found.push(("I10", format!("progress falls from {} to {} within a run", old["progress"], new["progress"])));
    }
    phase(old, new, found);
    for work in ["plan", "commit"] {
        ledger(&old[work], &new[work], found);
    }
}

/// Run that a task is to carry out.
fn asked_for(task: &Value) -> Option<i64> {
    let spec = &task["spec"];
    Some(spec["partOf"]["run"].as_i64().or(spec["run"].as_i64()).unwrap_or(1))
}

fn shard(old: &Value, new: &Value, found: &mut Found) {
    phase(old, new, found);
    ledger(old, new, found);
    let seq = |of: &Value| of["checkpoint"]["seq"].as_i64();
    if seq(new).is_some_and(|new| seq(old).is_some_and(|old| new < old)) {
        found.push(("I8", format!("the checkpoint goes back from {:?} to {:?}", seq(old), seq(new))));
    }
}

/// What authorised a first attempt when the shard was created stays what did.
fn first_attempt(shard: &Value, found: &mut Found) {
    let spec = &shard["spec"]["firstAttempt"];
    let listed = shard["status"]["attempts"].as_array().into_iter().flatten().find(|attempt| attempt["number"] == 1);
    let same = |listed: &Value| ["authorisedBy", "authorisedAt"].iter().all(|field| listed[field] == spec[field]);
    if !spec.is_null() && listed.is_some_and(|listed| !same(listed)) {
        found.push(("I3", format!("attempt 1 is authorised twice: {spec} and {listed:?}")));
    }
}

fn phase(old: &Value, new: &Value, found: &mut Found) {
    let was_over = old["phase"].as_str().is_some_and(|phase| TERMINAL.contains(&phase));
    if was_over && old["phase"] != new["phase"] {
        found.push(("I9", format!("{} becomes {}", old["phase"], new["phase"])));
    }
}

/// The attempts of a ledger: n+1 only after n has ended, and never the same number twice.
fn ledger(old: &Value, new: &Value, found: &mut Found) {
    let attempts = |of: &Value| of["attempts"].as_array().cloned().unwrap_or_default();
    let (old, new) = (attempts(old), attempts(new));
    for pair in new.windows(2) {
        let (n, next) = (&pair[0]["number"], &pair[1]["number"]);
        if n.as_i64() >= next.as_i64() {
            found.push(("I3", format!("attempt {next} stands after {n}")));
        }
        if pair[0]["outcome"].is_null() {
            found.push(("I3", format!("attempt {next} is authorised while {n} is live")));
        }
    }
    for attempt in &new {
        let same = old.iter().find(|other| other["number"] == attempt["number"]);
        if same.is_some_and(|other| other["authorisedBy"] != attempt["authorisedBy"]) {
            found.push(("I3", format!("attempt {} is authorised twice", attempt["number"])));
        }
    }
    let last = |of: &[Value]| of.last().and_then(|attempt| attempt["number"].as_i64());
    if !new.is_empty() && last(&new) < last(&old) {
        found.push(("I3", format!("the ledger forgets attempt {:?}", last(&old))));
    }
}

fn generation(before: &Value, after: &Value, found: &mut Found) {
    let observed = |of: &Value| of["status"]["observedGeneration"].as_i64();
    let generation = after["metadata"]["generation"].as_i64();
    if observed(after) < observed(before) {
        found.push(("I16", format!("observedGeneration falls from {:?} to {:?}", observed(before), observed(after))));
    }
    if observed(after).is_some_and(|observed| generation.is_some_and(|generation| observed > generation)) {
        found.push(("I16", format!("observes generation {:?} of {generation:?}", observed(after))));
    }
}

fn conditions(old: &Value, new: &Value, found: &mut Found) {
    for condition in new["conditions"].as_array().into_iter().flatten() {
        let same = old["conditions"].as_array().into_iter().flatten().find(|other| other["type"] == condition["type"]);
        let moved = same.is_some_and(|other| {
            other["lastTransitionTime"] != condition["lastTransitionTime"] && other["status"] == condition["status"]
        });
        if moved {
            let (type_, status) = (&condition["type"], &condition["status"]);
            found.push(("I16", format!("{type_} stays {status}, and its lastTransitionTime moves")));
        }
    }
}

/// Each rule is shown what it must see, and what it must let pass.
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(status: Value) -> Value {
        json!({"kind": "CollectTask", "metadata": {"name": "t", "generation": 2}, "status": status})
    }

    fn shard(status: Value) -> Value {
        json!({"kind": "CollectShard", "metadata": {"name": "s", "generation": 1}, "status": status})
    }

    fn numbers(before: &Value, after: &Value) -> Vec<String> {
        let found = broken(Some(before), after);
        found.iter().map(|line| line.split(':').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_first_version_is_compared_with_nothing() {
        assert_eq!(broken(None, &task(json!({"run": 1, "phase": "Pending", "progress": 0}))), [""; 0]);
        assert_eq!(broken(None, &json!({"kind": "CollectTask", "metadata": {"name": "t"}})), [""; 0]);
    }

    #[test]
    fn a_terminal_phase_is_final_within_a_run() {
        let over = task(json!({"run": 1, "phase": "Succeeded"}));
        assert_eq!(numbers(&over, &task(json!({"run": 1, "phase": "Running"}))), ["I9"]);
        assert_eq!(numbers(&over, &task(json!({"run": 2, "phase": "Pending"}))), [""; 0]);
        let mut again = task(json!({"run": 1, "phase": "Pending"}));
        again["spec"]["run"] = json!(2);
        assert_eq!(numbers(&over, &again), [""; 0], "a new run is asked for");
        let over = shard(json!({"phase": "Failed"}));
        assert_eq!(numbers(&over, &shard(json!({"phase": "Running"}))), ["I9"]);
        assert_eq!(numbers(&shard(json!({"phase": "Running"})), &over), [""; 0]);
    }

    #[test]
    fn progress_stays_in_bounds_and_never_falls_within_a_run() {
        let half = task(json!({"run": 1, "progress": 50}));
        assert_eq!(numbers(&half, &task(json!({"run": 1, "progress": 49}))), ["I10"]);
        assert_eq!(numbers(&half, &task(json!({"run": 1, "progress": 101}))), ["I10"]);
        assert_eq!(numbers(&half, &task(json!({"run": 2, "progress": 0}))), [""; 0]);
    }

    #[test]
    fn shards_are_never_more_than_there_are() {
        let counts = |running: i64| task(json!({"run": 1, "shards": {"total": 3, "running": running, "succeeded": 1}}));
        assert_eq!(numbers(&counts(1), &counts(2)), [""; 0]);
        assert_eq!(numbers(&counts(2), &counts(3)), ["I10"]);
    }

    #[test]
    fn an_attempt_follows_only_one_that_has_ended() {
        let first = |outcome: Value| json!({"number": 1, "authorisedBy": "x", "outcome": outcome});
        let second = json!({"number": 2, "authorisedBy": "y"});
        let one = shard(json!({"attempts": [first(Value::Null)]}));
        assert_eq!(numbers(&one, &shard(json!({"attempts": [first(Value::Null), second]}))), ["I3"]);
        assert_eq!(numbers(&one, &shard(json!({"attempts": [first(json!("Crashed")), second]}))), [""; 0]);
        let none = task(json!({"run": 1}));
        assert_eq!(
            numbers(&none, &task(json!({"run": 1, "plan": {"attempts": [first(Value::Null), second]}}))),
            ["I3"],
            "planner and commit have a ledger too"
        );
    }

    #[test]
    fn a_number_is_never_authorised_twice_or_forgotten() {
        let attempts = |n: i64, by: &str| shard(json!({"attempts": [{"number": n, "authorisedBy": by}]}));
        assert_eq!(numbers(&attempts(2, "x"), &attempts(2, "y")), ["I3"]);
        assert_eq!(numbers(&attempts(2, "x"), &attempts(1, "x")), ["I3"]);
        assert_eq!(numbers(&attempts(2, "x"), &attempts(2, "x")), [""; 0]);
    }

    #[test]
    fn the_first_attempt_is_the_one_that_the_creation_authorised() {
        let by = |who: &str| json!({"number": 1, "authorisedBy": who, "authorisedAt": "2026-01-01T00:00:00Z"});
        let mut one = shard(json!({"attempts": [by("x")]}));
        one["spec"]["firstAttempt"] = json!({"authorisedBy": "x", "authorisedAt": "2026-01-01T00:00:00Z"});
        assert_eq!(numbers(&one, &one), [""; 0]);
        let mut other = one.clone();
        other["status"]["attempts"] = json!([by("y")]);
        assert_eq!(numbers(&shard(json!({})), &other), ["I3"]);
    }

    #[test]
    fn a_checkpoint_never_goes_back() {
        let at = |seq: i64| shard(json!({"checkpoint": {"seq": seq}}));
        assert_eq!(numbers(&at(2), &at(1)), ["I8"]);
        assert_eq!(numbers(&at(1), &at(2)), [""; 0]);
    }

    #[test]
    fn generations_and_transitions_are_honest() {
        let observed = |generation: i64| task(json!({"observedGeneration": generation}));
        assert_eq!(numbers(&observed(2), &observed(1)), ["I16"]);
        assert_eq!(numbers(&observed(2), &observed(3)), ["I16"]);
        let ready = |at: &str, status: &str| {
            task(json!({"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": at}]}))
        };
        assert_eq!(numbers(&ready("1", "True"), &ready("2", "True")), ["I16"]);
        assert_eq!(numbers(&ready("1", "True"), &ready("2", "False")), [""; 0]);
    }
}

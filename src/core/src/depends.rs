//! Dependencies between tasks: who must have succeeded first, and whether some wait for each other.

use std::collections::BTreeSet;

use collect_api::{Phase, task::Dependency};

/// What was seen of a task that others depend on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DependencySeen {
    /// Its phase.
    pub phase: Option<Phase>,
    /// Names of the tasks that it depends on itself.
    pub depends_on: Vec<String>,
}

/// Whether a task may start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dependencies {
    /// All have succeeded.
    Met,
    /// One has not yet: why, for people.
    Waiting(String),
    /// One has ended, and not well enough: it takes a person to go on.
    Blocked(String),
    /// Tasks wait for each other, in this order.
    Cycle(Vec<String>),
}

/// Looks at the dependencies of a task; `look` gives what is known of a task of the same namespace.
pub fn dependencies(
    name: &str,
    depends_on: &[Dependency],
    look: &impl Fn(&str) -> Option<DependencySeen>,
) -> Dependencies {
    if let Some(cycle) = cycle(name, depends_on, look) {
        return Dependencies::Cycle(cycle);
    }
    let mut waiting = None;
    for dependency in depends_on {
        match missing(dependency, look(&dependency.name)) {
            None => {}
            Some(Dependencies::Waiting(why)) => {
                waiting.get_or_insert(Dependencies::Waiting(why));
            }
            Some(blocked) => return blocked,
        }
    }
    waiting.unwrap_or(Dependencies::Met)
}

fn missing(dependency: &Dependency, seen: Option<DependencySeen>) -> Option<Dependencies> {
    let name = &dependency.name;
    let Some(seen) = seen else {
        return Some(Dependencies::Waiting(format!("waits for CollectTask {name}, which does not exist yet")));
    };
    match seen.phase {
        Some(Phase::Succeeded | Phase::PartiallySucceeded) => None,
        Some(Phase::Collected) if dependency.allow_unverified == Some(true) => None,
        Some(Phase::Collected) => Some(Dependencies::Blocked(format!(
            "CollectTask {name} is Collected, but was not compared with its source; give it a total, or set allowUnverified: true in spec.dependsOn"
        ))),
        Some(phase @ (Phase::Failed | Phase::Cancelled)) => Some(Dependencies::Blocked(format!(
            "CollectTask {name} is {phase}; mend it and have it tried again, or remove it from spec.dependsOn"
        ))),
        phase => {
            let phase = phase.unwrap_or(Phase::Pending);
            Some(Dependencies::Waiting(format!("waits for CollectTask {name}, which is {phase}")))
        }
    }
}

/// The way from a task back to itself, if there is one.
fn cycle(name: &str, depends_on: &[Dependency], look: &impl Fn(&str) -> Option<DependencySeen>) -> Option<Vec<String>> {
    let mut known = BTreeSet::new();
    let mut ways: Vec<Vec<String>> =
        depends_on.iter().map(|dependency| vec![name.to_owned(), dependency.name.clone()]).collect();
    while let Some(way) = ways.pop() {
        let Some(last) = way.last() else { continue };
        if last == name {
            return Some(way);
        }
        if !known.insert(last.clone()) {
            continue;
        }
        // What has ended well holds nobody up, whatever it depends on.
        let seen = look(last).filter(|seen| !seen.phase.as_ref().is_some_and(Phase::is_terminal));
        for next in seen.map(|seen| seen.depends_on).unwrap_or_default() {
            ways.push(way.iter().cloned().chain([next]).collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn on(names: &[&str]) -> Vec<Dependency> {
        names.iter().map(|name| Dependency { name: (*name).into(), allow_unverified: None }).collect()
    }

    fn world<'a>(all: &[(&'a str, Option<Phase>, &[&str])]) -> BTreeMap<&'a str, DependencySeen> {
        all.iter()
            .map(|(name, phase, depends_on)| {
                let depends_on = depends_on.iter().map(|name| (*name).to_owned()).collect();
                (*name, DependencySeen { phase: phase.clone(), depends_on })
            })
            .collect()
    }

    #[test]
    fn all_must_have_succeeded() {
        let world = world(&[
            ("good", Some(Phase::Succeeded), &[]),
            ("partly", Some(Phase::PartiallySucceeded), &[]),
            ("busy", Some(Phase::Running), &[]),
            ("bad", Some(Phase::Failed), &[]),
            ("unverified", Some(Phase::Collected), &[]),
        ]);
        let look = |name: &str| world.get(name).cloned();
        let ask = |names: &[&str]| dependencies("me", &on(names), &look);
        assert_eq!(ask(&[]), Dependencies::Met);
        assert_eq!(ask(&["good", "partly"]), Dependencies::Met);
        assert!(matches!(ask(&["good", "busy"]), Dependencies::Waiting(why) if why.contains("busy, which is Running")));
        assert!(matches!(ask(&["none"]), Dependencies::Waiting(why) if why.contains("does not exist")));
        assert!(matches!(ask(&["busy", "bad"]), Dependencies::Blocked(why) if why.contains("bad is Failed")));
        assert!(matches!(ask(&["unverified"]), Dependencies::Blocked(why) if why.contains("allowUnverified")));
        let allowed = [Dependency { name: "unverified".into(), allow_unverified: Some(true) }];
        assert_eq!(dependencies("me", &allowed, &look), Dependencies::Met);
    }

    #[test]
    fn a_cycle_is_found_and_named() {
        let world = world(&[("b", None, &["c"]), ("c", None, &["a", "d"]), ("d", None, &["d"])]);
        let look = |name: &str| world.get(name).cloned();
        let found = dependencies("a", &on(&["b"]), &look);
        assert_eq!(found, Dependencies::Cycle(["a", "b", "c", "a"].map(String::from).to_vec()));
        // A cycle that does not lead back here is another task's to tell, and ends the search all the same.
        assert!(matches!(dependencies("x", &on(&["d"]), &look), Dependencies::Waiting(_)));
    }
}

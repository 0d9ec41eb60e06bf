//! What the user made: the shape of the tree, its source, and the policies of the root. Small, and readable when it fails.

use std::{collections::BTreeMap, io::Write};

use collect_api::{
    CollectTask, CollectTaskSpec,
    hooks::{Hook, HookRun, Hooks, JobHook},
    plan::{Item, Part, PathStep, PlanLine, PlannedShard, PlannedTask},
    report::ValidationLevel,
    task::{Completion, Retry, RetryOverride, Tolerate, Validation},
};
use proptest::prelude::*;

pub const ROOT: &str = "root";

/// Path of each task with the number of its shards, in the order of the plan.
pub type Shape = &'static [(&'static [&'static str], i32)];

const SHAPES: [Shape; 7] = [
    &[(&[], 1)],
    &[(&[], 3)],
    &[(&[], 6)],
    &[(&[], 0), (&["a"], 1), (&["b"], 2)],
    &[(&[], 0), (&["a"], 0), (&["b"], 2)],
    &[(&[], 0), (&["a"], 0), (&["a", "x"], 1), (&["a", "y"], 2), (&["b"], 1)],
    &[(&[], 0), (&["a"], 1), (&["b"], 1), (&["c"], 1), (&["d"], 1)],
];

#[derive(Clone, Debug)]
pub struct Setup {
    pub shape: Shape,
    pub operators: usize,
    pub parallelism: i32,
    pub history: i32,
    pub max_attempts: i32,
    pub max_disruptions: i32,
    /// Attempts that may run out of memory; absent means that they count as any other failure.
    pub out_of_memory: Option<i32>,
    pub tolerate: Option<i32>,
    pub fail_fast: bool,
    pub deadline: Option<u64>,
    pub stall_timeout: u64,
    pub compare: bool,
    pub hooks: bool,
}

pub fn setup() -> impl Strategy<Value = Setup> {
    let tree = (proptest::sample::select(SHAPES.to_vec()), 1..4usize, 1..4i32, 0..4i32);
    let retry = (1..4i32, 0..3i32, proptest::option::weighted(0.3, 1..3i32));
    let end = (
        proptest::option::weighted(0.3, 0..3i32),
        proptest::bool::weighted(0.2),
        proptest::option::weighted(0.2, Just(900u64)),
        prop_oneof![3 => Just(300u64), 1 => Just(20)],
        proptest::bool::weighted(0.8),
        proptest::bool::weighted(0.15),
    );
    (tree, retry, end).prop_map(|(tree, retry, end)| {
        let (shape, operators, parallelism, history) = tree;
        let (max_attempts, max_disruptions, out_of_memory) = retry;
        let (tolerate, fail_fast, deadline, stall_timeout, compare, hooks) = end;
        Setup {
            shape,
            operators,
            parallelism,
            history,
            max_attempts,
            max_disruptions,
            out_of_memory,
            tolerate,
            fail_fast,
            deadline,
            stall_timeout,
            compare,
            hooks,
        }
    })
}

/// Name of the task at a path.
pub fn name_of(path: &[String]) -> String {
    path.iter().fold(ROOT.to_owned(), |parent, value| collect_core::names::child_task(&parent, value))
}

fn step((depth, value): (usize, &&str)) -> PathStep {
    PathStep { level: format!("level{depth}"), value: (*value).to_owned(), label: None }
}

impl Setup {
    pub fn root(&self) -> CollectTask {
        let hook = || Some(Hook { run: HookRun::Job(JobHook::default()), deadline: None, max_attempts: Some(2) });
        let overrides = self.out_of_memory.map(|attempts| RetryOverride {
            errors: vec!["OutOfMemory".into()],
            max_attempts: Some(attempts),
            backoff: None,
        });
        let spec = CollectTaskSpec {
            parallelism: Some(self.parallelism),
            history: Some(self.history),
            retry: Some(Retry {
                max_attempts: Some(self.max_attempts),
                max_disruptions: Some(self.max_disruptions),
                backoff: None,
                overrides: overrides.into_iter().collect(),
            }),
            completion: Some(Completion {
                tolerate: self.tolerate.map(Tolerate::Shards),
                fail_fast: Some(self.fail_fast),
            }),
            deadline: self.deadline.map(collect_api::Duration::from_secs),
            stall_timeout: Some(collect_api::Duration::from_secs(self.stall_timeout)),
            validation: (!self.compare).then_some(Validation { level: Some(ValidationLevel::None), total: None }),
            hooks: self.hooks.then(|| Hooks { before_start: hook(), after_success: hook(), after_failure: hook() }),
            ..CollectTaskSpec::default()
        };
        CollectTask::new(ROOT, spec)
    }

    /// Every slice that there is: path and index.
    pub fn slices(&self) -> Vec<(Vec<String>, i32)> {
        let owned = |path: &[&str]| path.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
        self.shape.iter().flat_map(|(path, shards)| (0..*shards).map(move |index| (owned(path), index))).collect()
    }

    /// The records that the source holds for a slice: one to three.
    pub fn records(&self, path: &[String], index: i32) -> Vec<i64> {
        let place = self.slices().iter().position(|(p, i)| p == path && *i == index).unwrap();
        let base = i64::try_from(place).unwrap() * 10;
        (0..=base / 10 % 3).map(|record| base + record).collect()
    }

    pub fn all_records(&self) -> Vec<i64> {
        self.slices().iter().flat_map(|(path, index)| self.records(path, *index)).collect()
    }

    /// The plan as the planner makes it.
    pub fn plan(&self) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut line = |line: PlanLine| writeln!(out, "{}", serde_json::to_string(&line).unwrap()).unwrap();
        for (path, shards) in self.shape {
            let is_child = |other: &[&str]| other.len() == path.len() + 1 && other.starts_with(path);
            let children = self.shape.iter().filter(|(other, _)| is_child(other)).count();
            let below = self.slices().into_iter().filter(|(other, _)| {
                path.len() <= other.len() && path.iter().zip(other).all(|(value, other)| value == other)
            });
            let records: usize = below.map(|(path, index)| self.records(&path, index).len()).sum();
            line(PlanLine::Task(PlannedTask {
                path: path.iter().enumerate().map(step).collect(),
                tasks: i32::try_from(children).unwrap(),
                shards: *shards,
                records: Some(i64::try_from(records).unwrap()),
                total: None,
            }));
            let owned: Vec<String> = path.iter().map(|value| (*value).to_owned()).collect();
            for index in 0..*shards {
                let records = i64::try_from(self.records(&owned, index).len()).ok();
                let items = vec![Item { values: BTreeMap::new(), part: Part::Whole {}, records }];
                line(PlanLine::Shard(PlannedShard { index, items }));
            }
        }
        out.finish().unwrap()
    }
}

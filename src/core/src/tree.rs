//! A sealed plan in memory: the tree of tasks and their shards, as the planner found it.

use std::{collections::BTreeMap, io::Read};

use collect_api::plan::{Item, PathStep, PlanLine};

use crate::names;

/// A node of the tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name of its CollectTask.
    pub name: String,
    /// Steps from the root.
    pub path: Vec<PathStep>,
    /// Index of the parent in [`PlanTree::nodes`]; absent at the root.
    pub parent: Option<usize>,
    /// Position among the parent's children; 0 at the root.
    pub position: i32,
    /// Indexes of the child tasks, in the order of the plan.
    pub children: Vec<usize>,
    /// Its shards by index.
    pub shards: Vec<Vec<Item>>,
    /// Records that the planner expects below it.
    pub records: Option<i64>,
    /// An independent total, where one was read.
    pub total: Option<i64>,
    /// Shards of the node and of all nodes below it.
    pub shards_below: i32,
    /// Tasks below it.
    pub tasks_below: i32,
}

/// A sealed plan in memory. The nodes are in depth-first order, the root first.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanTree {
    /// Digest of the lines.
    pub digest: String,
    /// The nodes.
    pub nodes: Vec<Node>,
    by_values: BTreeMap<Vec<String>, usize>,
}

/// A plan that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A chunk is no gzip.
    #[error("chunk {0} of the plan can't be unpacked")]
    Unpack(usize, #[source] std::io::Error),
    /// A line is no plan line.
    #[error("line {0} of the plan can't be read")]
    Line(usize, #[source] serde_json::Error),
    /// The lines don't form a tree.
    #[error("line {0} of the plan does not fit the lines before it: {1}")]
    Shape(usize, &'static str),
    /// The digest is another one.
    #[error("the plan's digest is {found}, not {expected}")]
    Digest {
        /// What was sealed.
        expected: String,
        /// What the chunks give.
        found: String,
    },
}

impl PlanTree {
    /// Reads the chunks of a plan of the root task `root`. `expected` is the sealed digest; empty means any.
    pub fn read<B: AsRef<[u8]>>(root: &str, chunks: &[B], expected: &str) -> Result<Self, PlanError> {
        let mut hasher = blake3::Hasher::new();
        let mut builder = Builder::default();
        let mut number = 0;
        for (index, chunk) in chunks.iter().enumerate() {
            let mut text = String::new();
            flate2::read::MultiGzDecoder::new(chunk.as_ref())
                .read_to_string(&mut text)
                .map_err(|error| PlanError::Unpack(index, error))?;
            hasher.update(text.as_bytes());
            for line in text.lines() {
                number += 1;
                let line = serde_json::from_str(line).map_err(|error| PlanError::Line(number, error))?;
                builder.push(root, line).map_err(|why| PlanError::Shape(number, why))?;
            }
        }
        let digest = hasher.finalize().to_hex().to_string();
        if !expected.is_empty() && digest != expected {
            return Err(PlanError::Digest { expected: expected.into(), found: digest });
        }
        builder.finish(digest).ok_or(PlanError::Shape(number, "the plan ends before its tree is whole"))
    }

    /// The root.
    pub fn root(&self) -> Option<&Node> {
        self.nodes.first()
    }

    /// The node with this path.
    pub fn find(&self, path: &[PathStep]) -> Option<&Node> {
        let values: Vec<String> = path.iter().map(|step| step.value.clone()).collect();
        self.by_values.get(&values).and_then(|index| self.nodes.get(*index)).filter(|node| {
            node.path.len() == path.len()
                && node.path.iter().zip(path).all(|(a, b)| a.level == b.level && a.value == b.value)
        })
    }

    /// The child tasks of a node.
    pub fn children<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Node> {
        node.children.iter().filter_map(|index| self.nodes.get(*index))
    }
}

#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    by_values: BTreeMap<Vec<String>, usize>,
    /// For each open node: its index and how many tasks and shards are still to come.
    open: Vec<(usize, i32, i32)>,
}

impl Builder {
    fn push(&mut self, root: &str, line: PlanLine) -> Result<(), &'static str> {
        match line {
            PlanLine::Task(task) => {
                while matches!(self.open.last(), Some((_, 0, 0))) {
                    self.open.pop();
                }
                let (parent, name) = match (self.open.last_mut(), task.path.last()) {
                    (None, None) if self.nodes.is_empty() => (None, root.to_owned()),
                    (Some((parent, tasks, _)), Some(step)) if *tasks > 0 => {
                        *tasks -= 1;
                        let above = self.nodes.get(*parent).ok_or("a parent is missing")?;
                        if task.path.len() != above.path.len() + 1
                            || !above.path.iter().zip(&task.path).all(|(a, b)| a.value == b.value)
                        {
                            return Err("a task's path does not continue its parent's");
                        }
                        (Some(*parent), names::child_task(&above.name, &step.value))
                    }
                    _ => return Err("a task without a parent"),
                };
                let index = self.nodes.len();
                let mut position = 0;
                if let Some(node) = parent.and_then(|parent| self.nodes.get_mut(parent)) {
                    position = i32::try_from(node.children.len()).map_err(|_| "too many children")?;
                    node.children.push(index);
                }
                let values = task.path.iter().map(|step| step.value.clone()).collect();
                if self.by_values.insert(values, index).is_some() {
                    return Err("a path appears twice");
                }
                self.open.push((index, task.tasks, task.shards));
                self.nodes.push(Node {
                    name,
                    path: task.path,
                    parent,
                    position,
                    children: Vec::new(),
                    shards: Vec::new(),
                    records: task.records,
                    total: task.total,
                    shards_below: 0,
                    tasks_below: 0,
                });
            }
            PlanLine::Shard(shard) => {
                let (index, _, shards) = self.open.last_mut().ok_or("a shard before any task")?;
                let node = self.nodes.get_mut(*index).ok_or("a task is missing")?;
                if *shards <= 0 || usize::try_from(shard.index) != Ok(node.shards.len()) {
                    return Err("a shard out of order");
                }
                *shards -= 1;
                node.shards.push(shard.items);
            }
        }
        Ok(())
    }

    fn finish(mut self, digest: String) -> Option<PlanTree> {
        if self.nodes.is_empty() || self.open.iter().any(|(_, tasks, shards)| *tasks != 0 || *shards != 0) {
            return None;
        }
        // Children come after their parents, so walking backwards sums from the leaves up.
        for index in (0..self.nodes.len()).rev() {
            let node = self.nodes.get_mut(index)?;
            node.shards_below += i32::try_from(node.shards.len()).ok()?;
            let (shards, tasks, parent) = (node.shards_below, node.tasks_below, node.parent);
            if let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(parent)) {
                parent.shards_below += shards;
                parent.tasks_below += tasks + 1;
            }
        }
        Some(PlanTree { digest, nodes: self.nodes, by_values: self.by_values })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use collect_api::plan::{Part, PlannedShard, PlannedTask};

    use super::*;

    pub(crate) fn step(value: &str) -> PathStep {
        PathStep { level: "l".into(), value: value.into(), label: None }
    }

    pub(crate) fn task(path: &[&str], tasks: i32, shards: i32) -> PlanLine {
        let path = path.iter().map(|value| step(value)).collect();
        PlanLine::Task(PlannedTask { path, tasks, shards, records: None, total: None })
    }

    pub(crate) fn shard(index: i32) -> PlanLine {
        let items = vec![Item { values: BTreeMap::new(), part: Part::Whole {}, records: Some(10) }];
        PlanLine::Shard(PlannedShard { index, items })
    }

    pub(crate) fn chunk(lines: &[PlanLine]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for line in lines {
            writeln!(out, "{}", serde_json::to_string(line).unwrap()).unwrap();
        }
        out.finish().unwrap()
    }

    pub(crate) fn tree(lines: &[PlanLine]) -> PlanTree {
        PlanTree::read("root", &[chunk(lines)], "").unwrap()
    }

    #[test]
    fn a_plan_becomes_a_tree() {
        let lines = [
            task(&[], 2, 0),
            task(&["a"], 0, 2),
            shard(0),
            shard(1),
            task(&["b"], 1, 0),
            task(&["b", "c"], 0, 1),
            shard(0),
        ];
        let whole = tree(&lines);
        let (first, rest) = lines.split_at(3);
        let cut = PlanTree::read("root", &[chunk(first), chunk(rest)], &whole.digest).unwrap();
        assert_eq!(whole, cut, "where a plan is cut into chunks makes no difference");
        let names: Vec<_> =
            whole.nodes.iter().map(|node| (node.name.as_str(), node.shards_below, node.tasks_below)).collect();
        assert_eq!(names, [("root", 3, 3), ("root-a", 2, 0), ("root-b", 1, 1), ("root-b-c", 1, 0)]);
        assert_eq!(whole.find(&[step("b"), step("c")]).unwrap().name, "root-b-c");
        assert!(whole.find(&[step("c")]).is_none());
    }

    #[test]
    fn a_plan_that_is_not_whole_is_refused() {
        for lines in [
            vec![],
            vec![task(&[], 1, 0)],
            vec![shard(0)],
            vec![task(&[], 0, 1), shard(1)],
            vec![task(&[], 0, 0), task(&["a"], 0, 0)],
        ] {
            assert!(PlanTree::read("root", &[chunk(&lines)], "").is_err(), "{lines:?}");
        }
        assert!(matches!(PlanTree::read("root", &[chunk(&[task(&[], 0, 0)])], "x"), Err(PlanError::Digest { .. })));
    }
}

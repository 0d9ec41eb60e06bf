//! Makes the plan: claims the sink, walks the levels, reads totals where shards depend on them, and writes the lines.
//!
//! The same answers of the source always give the same lines, and so the same digest.

mod chunk;
mod claim;
mod walk;

use std::collections::BTreeMap;

use collect_api::{
    plan::{PlanLine, PlannedShard, PlannedTask},
    protocol::{Assignment, PlanResult, PlanWork},
    sink::Sink,
    source::Source,
};

use tracing::{Instrument, debug_span};

pub use chunk::Chunks;
pub use claim::{CURRENT, Current, claim};
pub use walk::{Choice, Node, Tree, independent_total, walk};

use crate::{
    Control, Error, Settings, control::Stage, decompose::DecomposeError, http::Client, secrets::Secrets, sink::Store,
};

/// A plan that can't be made. All are permanent.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The source has no values for the first level.
    #[error(
        "level `{level}` has no values; check spec.decompose.levels[0].discover, or set its allowEmpty if the source may be empty"
    )]
    EmptyDiscovery {
        /// Name of the level.
        level: String,
    },
    /// An element without a value.
    #[error("level `{level}`: `{path}` gives no text or number in {element:?}; make discover.value select one")]
    NoValue {
        /// Name of the level.
        level: String,
        /// JSONPath of the value.
        path: String,
        /// Beginning of the element.
        element: String,
    },
    /// A value that is too long.
    #[error(
        "level `{level}` has the value {value:?} of more than {max} characters; make discover.value select a short code"
    )]
    LongValue {
        /// Name of the level.
        level: String,
        /// Beginning of the value.
        value: String,
        /// Bound.
        max: usize,
    },
    /// Too many child tasks.
    #[error(
        "`{task}` would have more than {max} child tasks of level `{level}`; set `as: slices` for this level, so that its values become items of shards, or raise spec.decompose.limits.maxChildren"
    )]
    TooManyChildren {
        /// Path of the parent, joined by `/`.
        task: String,
        /// Name of the level.
        level: String,
        /// Bound.
        max: usize,
    },
    /// No total where one is needed.
    #[error(
        "{what} gives no total at `{locator}`, which spec.decompose.shards needs; change spec.source.http.total, or split by valuesPerShard, step or every"
    )]
    NoTotal {
        /// The request.
        what: String,
        /// The locator.
        locator: String,
    },
    /// No independent total.
    #[error("{what} gives no number at `{locator}`; change spec.validation.total")]
    NoIndependentTotal {
        /// The request.
        what: String,
        /// The locator.
        locator: String,
    },
    /// The work can't be split.
    #[error(transparent)]
    Decompose(#[from] DecomposeError),
    /// A line that is larger than a chunk.
    #[error("the plan can't be cut into chunks; this is a bug, please report it")]
    Chunk,
}

impl PlanError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::EmptyDiscovery { .. } => "EmptyDiscovery",
            Self::NoValue { .. } | Self::LongValue { .. } => "LevelValueInvalid",
            Self::TooManyChildren { .. } => "TooManyChildren",
            Self::NoTotal { .. } | Self::NoIndependentTotal { .. } => "TotalMissing",
            Self::Decompose(error) => error.category(),
            Self::Chunk => "Internal",
        }
    }
}

impl From<DecomposeError> for Error {
    fn from(error: DecomposeError) -> Self {
        PlanError::from(error).into()
    }
}

/// A plan, ready to be handed over.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// gzip-compressed chunks of lines, each at most `MAX_CHUNK_BYTES`.
    pub chunks: Vec<Vec<u8>>,
    /// What it holds.
    pub result: PlanResult,
}

/// Claims the sink and makes the plan.
///
/// # Errors
/// Whatever makes the plan impossible. Nothing but the claim has been written then.
pub async fn plan(
    assignment: &Assignment,
    work: &PlanWork,
    settings: &Settings,
    control: &Control,
) -> Result<Plan, Error> {
    let Source::Http(source) = &assignment.source;
    let Sink::ObjectStore(sink) = &assignment.sink;
    control.note(|progress| progress.stage = Stage::Planning);
    let client = Client::new(source, &Secrets::below(&settings.secrets_dir), settings.page_bytes, control)?;
    let (store, folder) = (Store::open(sink, settings)?, settings.attempt_folder(assignment.attempt));
    claim(&store, &assignment.identity, &folder).instrument(debug_span!("claim")).await?;
    let client = std::sync::Arc::new(client);
    let tree = walk(&client, source, &work.decompose, &Choice::All).instrument(debug_span!("walk")).await?;
    let total = match &work.total {
        Some(total) => Some(walk::independent_total(&client, source, total).instrument(debug_span!("total")).await?),
        None => None,
    };
    write(&tree, total)
}

/// Writes a tree as lines.
///
/// # Errors
/// Never in practice.
pub fn write(tree: &Tree, total: Option<i64>) -> Result<Plan, Error> {
    let mut chunks = Chunks::default();
    let mut result = PlanResult { duplicate_values: tree.duplicates, ..PlanResult::default() };
    for line in lines(tree, total) {
        match &line {
            PlanLine::Task(task) => {
                result.tasks += i32::from(!task.path.is_empty());
                result.empty_tasks += i32::from(task.tasks == 0 && task.shards == 0);
                if task.path.is_empty() {
                    result.records = task.records;
                }
            }
            PlanLine::Shard(shard) => {
                result.shards += 1;
                result.items += i64::try_from(shard.items.len()).unwrap_or(i64::MAX);
            }
        }
        chunks.push(&line)?;
    }
    let (chunks, digest) = chunks.finish()?;
    result.digest = digest;
    result.chunks = i32::try_from(chunks.len()).unwrap_or(i32::MAX);
    Ok(Plan { chunks, result })
}

/// The lines of a tree, depth first.
pub fn lines(tree: &Tree, total: Option<i64>) -> impl Iterator<Item = PlanLine> {
    let records = records(tree);
    let mut open = if tree.nodes.is_empty() { Vec::new() } else { vec![0] };
    std::iter::from_fn(move || {
        let place: usize = open.pop()?;
        let node = tree.nodes.get(place)?;
        open.extend(node.children.iter().rev());
        let task = PlanLine::Task(PlannedTask {
            path: node.path.clone(),
            tasks: i32::try_from(node.children.len()).unwrap_or(i32::MAX),
            shards: i32::try_from(node.shards.len()).unwrap_or(i32::MAX),
            records: records.get(&place).copied().flatten(),
            total: total.filter(|_| node.path.is_empty()),
        });
        let shard = |(index, items): (usize, &Vec<_>)| {
            PlanLine::Shard(PlannedShard { index: i32::try_from(index).unwrap_or(i32::MAX), items: items.clone() })
        };
        let shards = node.shards.iter().enumerate().map(shard);
        Some(std::iter::once(task).chain(shards).collect::<Vec<_>>())
    })
    .flatten()
}

/// Records expected below every node; a node of which a part is unknown is unknown.
fn records(tree: &Tree) -> BTreeMap<usize, Option<i64>> {
    let mut sums = BTreeMap::new();
    // Children always stand behind their parent.
    for (place, node) in tree.nodes.iter().enumerate().rev() {
        let own: Option<i64> = node.shards.iter().flatten().map(|item| item.records).sum();
        let below: Option<i64> = node.children.iter().map(|child| sums.get(child).copied().flatten()).sum();
        sums.insert(place, own.zip(below).map(|(own, below)| own + below));
    }
    sums
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use collect_api::plan::{Item, Part, PathStep};

    use super::*;

    fn item(records: Option<i64>) -> Item {
        Item { values: BTreeMap::new(), part: Part::Whole {}, records }
    }

    fn node(values: &[&str], children: &[usize], shards: Vec<Vec<Item>>) -> Node {
        let step = |value: &&str| PathStep { level: "l".into(), value: (*value).into(), label: None };
        Node { path: values.iter().map(step).collect(), children: children.to_vec(), shards }
    }

    #[test]
    fn lines_come_depth_first_with_sums() {
        let tree = Tree {
            nodes: vec![
                node(&[], &[1, 2], vec![]),
                node(&["a"], &[3], vec![]),
                node(&["b"], &[], vec![]),
                node(&["a", "x"], &[], vec![vec![item(Some(3)), item(Some(4))], vec![item(Some(5))]]),
            ],
            duplicates: 2,
        };
        let plan = write(&tree, Some(99)).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(plan.chunks[0].as_slice()).read_to_string(&mut text).unwrap();
        assert_eq!(plan.result.digest, blake3::hash(text.as_bytes()).to_hex().as_str());
        let short: Vec<String> = text
            .lines()
            .map(|line| match serde_json::from_str(line).unwrap() {
                PlanLine::Task(t) => {
                    format!("{}:{}t{}s {:?} {:?}", t.path.len(), t.tasks, t.shards, t.records, t.total)
                }
                PlanLine::Shard(s) => format!("shard {} of {}", s.index, s.items.len()),
            })
            .collect();
        assert_eq!(
            short,
            [
                "0:2t0s Some(12) Some(99)",
                "1:1t0s Some(12) None",
                "2:0t2s Some(12) None",
                "shard 0 of 2",
                "shard 1 of 1",
                "1:0t0s Some(0) None"
            ]
        );
        let r = plan.result;
        assert_eq!(
            (r.tasks, r.shards, r.items, r.records, r.empty_tasks, r.duplicate_values),
            (3, 2, 3, Some(12), 1, 2)
        );
    }

    #[test]
    fn one_unknown_part_makes_the_sum_unknown() {
        let tree = Tree { nodes: vec![node(&[], &[], vec![vec![item(Some(3)), item(None)]])], duplicates: 0 };
        assert_eq!(write(&tree, None).unwrap().result.records, None);
    }
}

//! How values become items and items become shards. Pure: the same input always gives the same shards.

mod pack;
mod range;
mod split;

use std::collections::BTreeMap;

use collect_api::{
    decompose::{CountShards, Shards},
    plan::{Item, KeySpan, MAX_ITEMS, MAX_SLICE_BYTES, Part},
};

pub use pack::{Bounds, pack};
pub use range::{ranges, whole};
pub use split::{Measured, split};

use crate::http::paginate::Rule;

/// A value of the levels that become slices, with what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Value {
    /// Level values below the task.
    pub values: BTreeMap<String, String>,
    /// Its size, where it was asked for.
    pub measured: Measured,
    /// Its ranges, where shards are ranges.
    pub ranges: Vec<KeySpan>,
}

/// Work that can't be split as declared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecomposeError {
    /// More shards than allowed.
    #[error(
        "the plan has more than {max} shards; make shards larger (spec.decompose.shards) or raise spec.decompose.limits.maxShards"
    )]
    TooManyShards {
        /// Bound.
        max: usize,
    },
    /// More values than one shard can hold.
    #[error(
        "{values} values don't fit into one shard (at most {MAX_ITEMS}, and {MAX_SLICE_BYTES} bytes); use spec.decompose.shards.count instead of single"
    )]
    TooLargeForOne {
        /// Values.
        values: usize,
    },
    /// An item above the bound.
    #[error("the level values of one item take more than {MAX_SLICE_BYTES} bytes; use shorter values")]
    ItemTooLarge,
    /// A range that is none.
    #[error("spec.decompose.shards.range: {0}")]
    BadRange(String),
}

impl DecomposeError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::TooManyShards { .. } => "TooManyShards",
            Self::TooLargeForOne { .. } | Self::ItemTooLarge => "SliceTooLarge",
            Self::BadRange(_) => "RangeInvalid",
        }
    }
}

/// Makes the shards of one task from its values. Without a declaration the values are packed into as few shards as their
/// bounds allow.
///
/// # Errors
/// When the shards would break their bounds.
pub fn shards(
    declared: Option<&Shards>,
    rule: Rule,
    values: Vec<Value>,
    max: usize,
) -> Result<Vec<Vec<Item>>, DecomposeError> {
    let whole = |value: Value| Item { values: value.values, part: Part::Whole {}, records: value.measured.total };
    let shards = match declared {
        None => pack(values.into_iter().map(whole).collect(), Bounds::default())?,
        Some(Shards::Single {}) => {
            let count = values.len();
            let shards = pack(values.into_iter().map(whole).collect(), Bounds::default())?;
            if shards.len() > 1 {
                return Err(DecomposeError::TooLargeForOne { values: count });
            }
            shards
        }
        Some(Shards::PerValue {}) => values.into_iter().map(|value| vec![whole(value)]).collect(),
        Some(Shards::Count(count)) => by_count(count, rule, values, max)?,
        Some(Shards::Range(_)) => values
            .into_iter()
            .flat_map(|value| {
                let item = move |range| Item { values: value.values.clone(), part: Part::Range(range), records: None };
                value.ranges.into_iter().map(item)
            })
            .map(|item| vec![item])
            .collect(),
    };
    if shards.len() > max {
        return Err(DecomposeError::TooManyShards { max });
    }
    Ok(shards)
}

fn by_count(count: &CountShards, rule: Rule, values: Vec<Value>, max: usize) -> Result<Vec<Vec<Item>>, DecomposeError> {
    let mut items = Vec::new();
    for value in values {
        for (part, records) in split(rule, value.measured, count.records_per_shard) {
            items.push(Item { values: value.values.clone(), part, records });
        }
        if items.len() > max.saturating_mul(MAX_ITEMS) {
            return Err(DecomposeError::TooManyShards { max });
        }
    }
    let values = count.values_per_shard.and_then(|n| usize::try_from(n).ok()).unwrap_or(MAX_ITEMS);
    pack(items, Bounds { records: count.records_per_shard, items: values.clamp(1, MAX_ITEMS) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str, total: Option<i64>) -> Value {
        Value {
            values: BTreeMap::from([("d".to_owned(), name.to_owned())]),
            measured: Measured { total, size: Some(10) },
            ranges: vec![KeySpan { from: "0".into(), to: "5".into() }, KeySpan { from: "5".into(), to: "9".into() }],
        }
    }

    fn sizes(declared: Option<&Shards>, values: Vec<Value>) -> Result<Vec<usize>, DecomposeError> {
        Ok(shards(declared, Rule::Pages { asked: Some(10) }, values, 1000)?.iter().map(Vec::len).collect())
    }

    #[test]
    fn every_kind_gives_its_shards() {
        let three = || ["a", "b", "c"].map(|name| value(name, Some(8))).to_vec();
        let count =
            |records, values| Some(Shards::Count(CountShards { records_per_shard: records, values_per_shard: values }));
        let range: Shards = serde_json::from_str(r#"{"range":{"field":"f","from":"0","to":"9","step":5}}"#).unwrap();
        assert_eq!(sizes(None, three()).unwrap(), [3]);
        assert_eq!(sizes(Some(&Shards::Single {}), three()).unwrap(), [3]);
        assert_eq!(sizes(Some(&Shards::PerValue {}), three()).unwrap(), [1, 1, 1]);
        assert_eq!(sizes(count(Some(20), None).as_ref(), three()).unwrap(), [2, 1]);
        assert_eq!(sizes(count(None, Some(2)).as_ref(), three()).unwrap(), [2, 1]);
        assert_eq!(sizes(Some(&range), three()).unwrap(), [1; 6]);
        assert_eq!(sizes(None, vec![]).unwrap(), [0_usize; 0]);
    }

    #[test]
    fn too_much_for_one_shard_is_an_error_only_if_one_was_asked_for() {
        let many: Vec<Value> = (0..101).map(|n| value(&n.to_string(), None)).collect();
        assert_eq!(sizes(None, many.clone()).unwrap(), [100, 1]);
        assert_eq!(sizes(Some(&Shards::Single {}), many), Err(DecomposeError::TooLargeForOne { values: 101 }));
    }

    #[test]
    fn too_many_shards_are_an_error() {
        let many: Vec<Value> = (0..5).map(|n| value(&n.to_string(), None)).collect();
        let found = shards(Some(&Shards::PerValue {}), Rule::Once, many, 4);
        assert_eq!(found, Err(DecomposeError::TooManyShards { max: 4 }));
    }
}

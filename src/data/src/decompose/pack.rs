//! Packs items into shards, in their order, so that neighbours stay together.

use collect_api::plan::{Item, MAX_ITEMS, MAX_SLICE_BYTES};

use super::DecomposeError;

/// What one shard may hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Records, as far as known; one item alone may exceed it.
    pub records: Option<i64>,
    /// Items.
    pub items: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { records: None, items: MAX_ITEMS }
    }
}

/// Puts items into shards one after another; a shard is full when the next item would break a bound.
///
/// # Errors
/// When one item alone is larger than a slice may be.
pub fn pack(items: Vec<Item>, bounds: Bounds) -> Result<Vec<Vec<Item>>, DecomposeError> {
    let mut shards: Vec<Vec<Item>> = Vec::new();
    let (mut records, mut bytes) = (0_i64, 0_usize);
    for item in items {
        // Its JSON and a comma.
        let size = serde_json::to_vec(&item).map_err(|_| DecomposeError::ItemTooLarge)?.len() + 1;
        if size + 2 > MAX_SLICE_BYTES {
            return Err(DecomposeError::ItemTooLarge);
        }
        let more = item.records.unwrap_or(0);
        let fits = |shard: &Vec<Item>| {
            shard.len() < bounds.items
                && bytes + size <= MAX_SLICE_BYTES
                && bounds.records.is_none_or(|max| records.saturating_add(more) <= max)
        };
        match shards.last_mut() {
            Some(shard) if fits(shard) => {
                shard.push(item);
                records = records.saturating_add(more);
                bytes += size;
            }
            _ => {
                shards.push(vec![item]);
                // The brackets around the items.
                (records, bytes) = (more, size + 2);
            }
        }
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use collect_api::plan::Part;
    use proptest::prelude::*;

    use super::*;

    fn item(name: String, records: Option<i64>) -> Item {
        Item { values: BTreeMap::from([("d".into(), name)]), part: Part::Whole {}, records }
    }

    #[test]
    fn one_item_alone_may_exceed_the_records_but_never_the_bytes() {
        let shards =
            pack(vec![item("a".into(), Some(50)), item("b".into(), Some(0))], Bounds { records: Some(10), items: 5 });
        assert_eq!(shards.unwrap().len(), 2);
        assert_eq!(pack(vec![item("x".repeat(9000), None)], Bounds::default()), Err(DecomposeError::ItemTooLarge));
    }

    proptest! {
        #[test]
        fn every_item_is_packed_once_in_order_within_the_bounds(
            sizes in proptest::collection::vec((1usize..600, proptest::option::of(0i64..40)), 0..80),
            max_records in proptest::option::of(1i64..100),
            max_items in 1usize..=100,
        ) {
            let items: Vec<Item> = sizes.iter().map(|(length, records)| item("v".repeat(*length), *records)).collect();
            let shards = pack(items.clone(), Bounds { records: max_records, items: max_items }).unwrap();
            prop_assert_eq!(shards.concat(), items);
            for shard in &shards {
                prop_assert!(!shard.is_empty() && shard.len() <= max_items);
                prop_assert!(serde_json::to_vec(shard).unwrap().len() <= MAX_SLICE_BYTES);
                let records: i64 = shard.iter().filter_map(|item| item.records).sum();
                prop_assert!(shard.len() == 1 || max_records.is_none_or(|max| records <= max));
            }
        }
    }
}

//! Makes a checkpoint that fits its bounds. Pure.

use collect_api::protocol::{Checkpoint, ClosedParts, ItemTally, MAX_CHECKPOINT_BYTES, Tally};

use crate::http::paginate::State;

/// Longest paginator state, in bytes of JSON. A source whose tokens are longer is resumed at the last item boundary.
pub const MAX_STATE_BYTES: usize = 2048;
/// Most folders of closed parts.
pub const MAX_FOLDERS: usize = 64;
/// A checkpoint leaves room beside it in a termination message.
const MAX_BYTES: usize = MAX_CHECKPOINT_BYTES - 512;

/// A page boundary within an item.
#[derive(Clone, Debug)]
pub struct Place {
    /// Index of the item.
    pub item: usize,
    /// The paginator's state.
    pub state: State,
    /// What the item has given so far.
    pub tally: ItemTally,
}

impl Place {
    /// Nothing of the item has been read yet.
    fn is_beginning(&self) -> bool {
        self.state.pages == 0
    }
}

/// The checkpoint at a place, or before `item` if there is none. `None` if it would not fit.
pub fn make(seq: i64, item: usize, place: Option<&Place>, parts: &[ClosedParts], tally: &Tally) -> Option<Checkpoint> {
    let place = place.filter(|place| !place.is_beginning());
    let paginator = place.map(|place| serde_json::to_string(&place.state)).transpose().ok()?;
    if paginator.as_ref().is_some_and(|state| state.len() > MAX_STATE_BYTES) || parts.len() > MAX_FOLDERS {
        return None;
    }
    let mut checkpoint = Checkpoint {
        seq,
        item: i32::try_from(item).ok()?,
        paginator,
        parts: parts.to_vec(),
        tally: tally.clone(),
        item_tally: place.map(|place| place.tally.clone()),
    };
    // Samples are for people; they give way.
    while serde_json::to_vec(&checkpoint).ok()?.len() > MAX_BYTES {
        checkpoint.tally.samples.pop()?;
    }
    Some(checkpoint)
}

#[cfg(test)]
mod tests {
    use collect_api::protocol::ItemDifference;
    use serde_json::json;

    use super::*;
    use crate::http::paginate::{At, Rule, Span};

    fn place(token: &str) -> Place {
        let mut state = State::start(Rule::Cursor, Span::default());
        (state.at, state.pages) = (At::Token(json!(token)), 3);
        Place { item: 1, state, tally: ItemTally { records: 5, total: Some(9) } }
    }

    fn parts(count: usize) -> Vec<ClosedParts> {
        (0..count).map(|n| ClosedParts { folder: format!("{n}-abcdef01"), count: 9 }).collect()
    }

    #[test]
    fn a_checkpoint_survives_json() {
        let checkpoint = make(7, 1, Some(&place("t")), &parts(2), &Tally::default()).unwrap();
        let read: Checkpoint = serde_json::from_slice(&serde_json::to_vec(&checkpoint).unwrap()).unwrap();
        assert_eq!(read, checkpoint);
        let state: State = serde_json::from_str(&read.paginator.unwrap()).unwrap();
        assert_eq!(state, place("t").state);
    }

    #[test]
    fn the_beginning_of_an_item_has_no_paginator() {
        let mut place = place("t");
        place.state.pages = 0;
        let checkpoint = make(1, 1, Some(&place), &[], &Tally::default()).unwrap();
        assert_eq!((checkpoint.item, checkpoint.paginator, checkpoint.item_tally), (1, None, None));
    }

    #[test]
    fn samples_give_way_and_long_tokens_do_not_fit() {
        let sample = ItemDifference { item: "村".repeat(128), source: 1, collected: 2 };
        let tally = Tally { samples: vec![sample; 5], ..Tally::default() };
        let checkpoint = make(1, 1, Some(&place(&"t".repeat(1800))), &parts(20), &tally).unwrap();
        let bytes = serde_json::to_vec(&checkpoint).unwrap().len();
        assert!(bytes <= MAX_BYTES && checkpoint.tally.samples.len() < 5, "{bytes}");
        assert_eq!(make(1, 1, Some(&place(&"t".repeat(2048))), &[], &tally), None);
        assert_eq!(make(1, 1, None, &parts(65), &tally), None);
    }
}

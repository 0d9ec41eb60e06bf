//! Sets of indexes as people read them: `0-411,413`. What was folded is remembered this way.

use std::fmt;

/// Longest text of a set that is kept in a status, in bytes. A set that would grow beyond waits until its gaps close.
pub const LONGEST: usize = 4096;

/// A set of indexes, from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexSet(Vec<(i32, i32)>);

/// A text that is no set of indexes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no list of indexes such as 0-411,413")]
pub struct NotASet(String);

impl IndexSet {
    /// Reads `0-411,413`; the empty text is the empty set.
    pub fn parse(text: &str) -> Result<Self, NotASet> {
        let mut set = Self::default();
        for piece in text.split(',').filter(|piece| !piece.is_empty()) {
            let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
            match (first.parse::<i32>(), last.parse::<i32>()) {
                (Ok(first), Ok(last)) if 0 <= first && first <= last => set.insert_all(first, last),
                _ => return Err(NotASet(piece.chars().take(40).collect())),
            }
        }
        Ok(set)
    }

    /// Whether the index is in the set.
    pub fn contains(&self, index: i32) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= index);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|(_, last)| index <= *last)
    }

    /// Adds an index.
    pub fn insert(&mut self, index: i32) {
        self.insert_all(index, index);
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Self) {
        for (first, last) in &other.0 {
            self.insert_all(*first, *last);
        }
    }

    /// Number of indexes.
    pub fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn insert_all(&mut self, first: i32, last: i32) {
        let start = self.0.partition_point(|(_, end)| *end < first.saturating_sub(1));
        let end = self.0.partition_point(|(begin, _)| *begin <= last.saturating_add(1));
        let joined = self.0.get(start..end).unwrap_or_default();
        let first = joined.first().map_or(first, |(begin, _)| first.min(*begin));
        let last = joined.last().map_or(last, |(_, end)| last.max(*end));
        self.0.splice(start..end, [(first, last)]);
    }
}

impl fmt::Display for IndexSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        let mut set = IndexSet::parse("0-3,5").unwrap();
        set.insert(4);
        set.insert(9);
        assert_eq!(set.to_string(), "0-5,9");
        assert_eq!(set.len(), 7);
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for text in ["a", "3-1", "-1", "1-", "1,,x"] {
            assert!(IndexSet::parse(text).is_err(), "{text}");
        }
        assert!(IndexSet::parse("").unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn it_is_a_set(indexes in proptest::collection::vec(0..60i32, 0..60), more in proptest::collection::vec(0..60i32, 0..20)) {
            let model: BTreeSet<i32> = indexes.iter().chain(&more).copied().collect();
            let (mut set, mut other) = (IndexSet::default(), IndexSet::default());
            indexes.iter().for_each(|index| set.insert(*index));
            more.iter().for_each(|index| other.insert(*index));
            set.extend(&other);
            prop_assert_eq!(set.len() as usize, model.len());
            for index in 0..61 {
                prop_assert_eq!(set.contains(index), model.contains(&index));
            }
            prop_assert_eq!(IndexSet::parse(&set.to_string()).unwrap(), set);
        }
    }
}

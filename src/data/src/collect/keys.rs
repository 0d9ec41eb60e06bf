//! Counts duplicates within a slice, exactly, by 64-bit hashes of the keys, up to a bounded number of keys.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
};

/// Keys seen in a slice. Two of a million keys collide with a probability below 10⁻⁷.
#[derive(Debug)]
pub struct Keys {
    seen: Option<HashSet<u64, BuildHasherDefault<AsIs>>>,
    max: usize,
    /// Keys since the last part closed, for its sidecar.
    fresh: Vec<u64>,
}

impl Keys {
    /// No keys yet; above `max` duplicates are no longer counted.
    pub fn new(max: usize) -> Self {
        Self { seen: Some(HashSet::default()), max, fresh: Vec::new() }
    }

    /// Gives up counting and the memory.
    pub fn forget(&mut self) {
        self.seen = None;
        self.fresh = Vec::new();
    }

    /// Takes in keys and gives how many had been there before; `None` once there are too many to tell.
    pub fn visit(&mut self, keys: &[u64]) -> Option<i64> {
        let seen = self.seen.as_mut()?;
        let before = seen.len();
        seen.extend(keys);
        let new = seen.len() - before;
        if seen.len() > self.max {
            self.forget();
            return None;
        }
        self.fresh.extend_from_slice(keys);
        i64::try_from(keys.len() - new).ok()
    }

    /// The keys since the last call; `None` once there are too many.
    pub fn take_fresh(&mut self) -> Option<Vec<u64>> {
        self.seen.as_ref()?;
        Some(std::mem::take(&mut self.fresh))
    }
}

/// The keys are hashes already.
#[derive(Debug, Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_counted_until_there_are_too_many_keys() {
        let mut keys = Keys::new(4);
        assert_eq!(keys.visit(&[1, 2, 1]), Some(1));
        assert_eq!(keys.visit(&[2, 3]), Some(1));
        assert_eq!(keys.take_fresh(), Some(vec![1, 2, 1, 2, 3]));
        assert_eq!(keys.take_fresh(), Some(vec![]));
        assert_eq!(keys.visit(&[4]), Some(0));
        assert_eq!(keys.visit(&[5]), None);
        assert_eq!((keys.visit(&[1]), keys.take_fresh()), (None, None));
    }
}

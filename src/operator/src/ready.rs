//! Which caches have had their first list.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Which caches have had their first list; clones share it.
#[derive(Clone, Default)]
pub struct Ready(Arc<Mutex<BTreeMap<&'static str, bool>>>);

impl Ready {
    /// Adds a cache that has to be waited for.
    pub fn expect(&self, kind: &'static str) {
        self.set(kind, false);
    }

    /// A cache has had its first list.
    pub fn done(&self, kind: &'static str) {
        self.set(kind, true);
    }

    /// Caches that are still empty.
    pub fn missing(&self) -> Vec<&'static str> {
        let kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().filter(|(_, done)| !**done).map(|(kind, _)| *kind).collect()
    }

    fn set(&self, kind: &'static str, done: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, done);
    }
}

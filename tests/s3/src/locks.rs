//! One lock per object key, there only while someone holds or awaits it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

type Table = Arc<Mutex<HashMap<String, Arc<RwLock<()>>>>>;

/// The locks. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks(Table);

#[derive(Debug)]
#[allow(dead_code, reason = "held, never looked at")]
enum Held {
    Shared(OwnedRwLockReadGuard<()>),
    Exclusive(OwnedRwLockWriteGuard<()>),
}

/// A held lock; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Guard {
    table: Table,
    key: String,
    held: Option<Held>,
}

fn lock(table: &Table) -> MutexGuard<'_, HashMap<String, Arc<RwLock<()>>>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Locks {
    fn of(&self, key: &str) -> Arc<RwLock<()>> {
        Arc::clone(lock(&self.0).entry(key.to_owned()).or_default())
    }

    pub(crate) async fn shared(&self, key: &str) -> Guard {
        let held = Held::Shared(self.of(key).read_owned().await);
        Guard { table: Arc::clone(&self.0), key: key.to_owned(), held: Some(held) }
    }

    pub(crate) async fn exclusive(&self, key: &str) -> Guard {
        let held = Held::Exclusive(self.of(key).write_owned().await);
        Guard { table: Arc::clone(&self.0), key: key.to_owned(), held: Some(held) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        self.held = None;
        // Whoever holds or awaits the lock has a reference, and gets a new one only through the table.
        if table.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn one_writer_a_key_and_nothing_left_behind() {
        let locks = Locks::default();
        let inside = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..64)
            .map(|i| {
                let (locks, inside) = (locks.clone(), Arc::clone(&inside));
                tokio::spawn(async move {
                    let _guard = locks.exclusive("a").await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    if i % 2 == 0 {
                        tokio::task::yield_now().await;
                    }
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(lock(&locks.0).is_empty());
    }

    #[tokio::test]
    async fn readers_share_and_keys_are_apart() {
        let locks = Locks::default();
        let (_first, _second, _other) = (locks.shared("a").await, locks.shared("a").await, locks.exclusive("b").await);
        assert_eq!(lock(&locks.0).len(), 2);
    }
}

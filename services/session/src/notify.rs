//! Wake-ups inside this process: who waits for a session or an execution hears that its row changed.
//!
//! A wake-up carries nothing. Who is woken reads the row, which is the truth; so a wake-up too many is
//! harmless, and subscribing before reading makes sure that none is missed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedMutexGuard, watch};

/// The rows that somebody waits for. Holds an entry for each while it is waited for, and no longer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Topics(Arc<Mutex<HashMap<String, watch::Sender<()>>>>);

/// Hears of changes of one row.
#[derive(Debug)]
pub(crate) struct Subscription {
    topics: Topics,
    id: String,
    receiver: watch::Receiver<()>,
}

impl Topics {
    /// Hears of every change of a row from now on.
    pub(crate) fn subscribe(&self, id: &str) -> Subscription {
        let receiver = self.lock().entry(id.to_owned()).or_insert_with(|| watch::Sender::new(())).subscribe();
        Subscription { topics: self.clone(), id: id.to_owned(), receiver }
    }

    /// Wakes those who wait for a row.
    pub(crate) fn publish(&self, id: &str) {
        if let Some(sender) = self.lock().get(id) {
            sender.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Waits for a change after the last that was heard of. Cancellation safe.
    pub(crate) async fn changed(&mut self) {
        // The sender lives as long as its subscriptions.
        let _ = self.receiver.changed().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topics = self.topics.lock();
        if topics.get(&self.id).is_some_and(|sender| sender.receiver_count() <= 1) {
            topics.remove(&self.id);
        }
    }
}

/// One lock for each id: who holds it alone does what the lock is for to that session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Locks(Arc<Mutex<HashMap<String, Entry>>>);

type Entry = Arc<tokio::sync::Mutex<()>>;

/// Holds the lock of an id until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    locks: Locks,
    id: String,
    entry: Entry,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits for the lock of an id.
    pub(crate) async fn lock(&self, id: &str) -> Lock {
        let mut lock = self.entry(id);
        lock.guard = Some(Arc::clone(&lock.entry).lock_owned().await);
        lock
    }

    /// Takes the lock of an id if nobody has it.
    pub(crate) fn try_lock(&self, id: &str) -> Option<Lock> {
        let mut lock = self.entry(id);
        lock.guard = Some(Arc::clone(&lock.entry).try_lock_owned().ok()?);
        Some(lock)
    }

    fn entry(&self, id: &str) -> Lock {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Arc::clone(locks.entry(id.to_owned()).or_default());
        Lock { locks: self.clone(), id: id.to_owned(), entry, guard: None }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut locks = self.locks.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.guard = None;
        // One reference is the map's and one is ours: nobody else waits.
        if Arc::strong_count(&self.entry) <= 2 {
            locks.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_between_subscribing_and_waiting_is_heard() {
        let topics = Topics::default();
        let mut subscription = topics.subscribe("a");
        topics.publish("a");
        subscription.changed().await;
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_forgotten() {
        let topics = Topics::default();
        let (first, second) = (topics.subscribe("a"), topics.subscribe("a"));
        drop(first);
        assert_eq!(topics.lock().len(), 1);
        drop(second);
        assert!(topics.lock().is_empty());

        let locks = Locks::default();
        let held = locks.lock("a").await;
        assert!(locks.try_lock("a").is_none());
        drop(held);
        assert!(locks.try_lock("a").is_some());
        assert!(locks.0.lock().unwrap().is_empty());
    }
}

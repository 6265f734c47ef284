//! The published state. Its tables are persistent maps, so who follows it keeps the state that it has seen and gets what
//! differs from the next one by [`super::changed`], at a cost of the difference. Nothing is missed: a follower that is slow gets all
//! of it at once.
//!
//! Transactions that were committed together are published together. Who reports each change to users
//! ([`PublishedStore::steps`]) gets the states in between as well.

use super::object::{Action, Kind, Store};
use super::transaction::Transaction;
use std::sync::Arc;
use tokio::sync::{broadcast, watch};

/// States in between that wait for a slow follower.
const STEPS: usize = 256;

/// The sending side. Belongs to what applies the transactions.
#[derive(Debug)]
pub struct StorePublisher {
    view: watch::Sender<Arc<Store>>,
    steps: broadcast::Sender<Arc<Store>>,
    /// Since the last publication.
    applied: Vec<Arc<Store>>,
}

/// The receiving side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PublishedStore {
    view: watch::Receiver<Arc<Store>>,
    steps: broadcast::Sender<Arc<Store>>,
}

impl Default for StorePublisher {
    /// An empty state.
    fn default() -> Self {
        let (view, steps) = (watch::channel(Arc::new(Store::default())).0, broadcast::channel(STEPS).0);
        Self { view, steps, applied: Vec::new() }
    }
}

impl StorePublisher {
    /// What readers get.
    pub fn reader(&self) -> PublishedStore {
        PublishedStore { view: self.view.subscribe(), steps: self.steps.clone() }
    }

    /// The state after a transaction, which is to be published with those that follow. One of tasks alone is no step: they
    /// have no events.
    pub fn applied(&mut self, store: &Store, transaction: &Transaction) {
        let is_step = |action: &Action| action.target().0 != Kind::Task;
        if self.steps.receiver_count() > 0 && transaction.actions.iter().any(is_step) {
            self.applied.push(Arc::new(store.clone()));
        }
    }

    /// Publishes the state if it is newer than the published one: after a disk failure the log is applied again from its
    /// snapshot on, while readers have seen later states.
    pub fn publish(&mut self, store: &Store) {
        let applied = std::mem::take(&mut self.applied);
        if store.index() <= self.view.borrow().index() {
            return;
        }
        // Before the state that has them: who sees that state finds all its steps.
        for step in applied {
            // Its last receiver may be gone.
            let _ = self.steps.send(step);
        }
        self.view.send_replace(Arc::new(store.clone()));
    }
}

impl PublishedStore {
    /// The newest state.
    pub fn read(&self) -> Arc<Store> {
        self.view.borrow().clone()
    }
    /// True if both have one publisher.
    pub fn is_same(&self, other: &Self) -> bool {
        self.view.same_channel(&other.view)
    }
    /// A receiver that wakes at every publication, and ends with the publisher.
    pub fn watch(&self) -> watch::Receiver<Arc<Store>> {
        self.view.clone()
    }
    /// The state after each transaction of something else than tasks, from now on. All that a state has are there before
    /// [`Self::read`] returns it. One that is slow loses the oldest.
    pub fn steps(&self) -> broadcast::Receiver<Arc<Store>> {
        self.steps.subscribe()
    }
}

//! The published state. Its tables are persistent maps, so who follows it keeps the state that it has seen and gets what
//! differs from the next one by [`super::changed`], at a cost of the difference. No queue of changes is needed, and nothing is
//! missed: a follower that is slow gets all of it at once.

use super::object::Store;
use std::sync::Arc;
use tokio::sync::watch;

/// The sending side. Belongs to what applies the transactions.
#[derive(Debug)]
pub struct StorePublisher {
    view: watch::Sender<Arc<Store>>,
}

/// The receiving side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PublishedStore {
    view: watch::Receiver<Arc<Store>>,
}

impl Default for StorePublisher {
    /// An empty state.
    fn default() -> Self {
        Self { view: watch::channel(Arc::new(Store::default())).0 }
    }
}

impl StorePublisher {
    /// What readers get.
    pub fn reader(&self) -> PublishedStore {
        PublishedStore { view: self.view.subscribe() }
    }

    /// Publishes the state if it is newer than the published one: after a disk failure the log is applied again from its
    /// snapshot on, while readers have seen later states.
    pub fn publish(&mut self, store: &Store) {
        if store.index() > self.view.borrow().index() {
            self.view.send_replace(Arc::new(store.clone()));
        }
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
}

//! The change feed: everything that the store's transactions change, in order, for planners, views and watchers that would
//! otherwise compare whole states. Its memory is bounded: a follower that is too slow gets the newest state instead of what
//! it missed, as it does first of all.

use super::changes::Changes;
use super::object::Store;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

/// Transactions that wait for a slow follower.
const CAPACITY: usize = 1024;

/// What the publisher sends.
#[derive(Clone, Debug)]
enum FeedItem {
    Changes(Arc<Changes>),
    /// There are no changes that lead to the published state.
    Replaced,
}

/// What a follower gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FeedEvent {
    /// The whole state: the first event, and again after a gap. Replaces whatever the follower has derived so far.
    Snapshot(Arc<Store>),
    /// The changes of the next transaction.
    Changes(Arc<Changes>),
}

/// The published state and the feed's sending side. Belongs to what applies the transactions.
#[derive(Debug)]
pub struct StorePublisher {
    view: watch::Sender<Arc<Store>>,
    feed: broadcast::Sender<FeedItem>,
    capacity: usize,
    /// Applied and not published yet.
    pending: Vec<Changes>,
    /// The state was replaced since the last publication.
    replaced: bool,
}

/// The published state, and the feed's receiving side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PublishedStore {
    view: watch::Receiver<Arc<Store>>,
    /// Weak, so that the feed ends with its publisher.
    feed: broadcast::WeakSender<FeedItem>,
}

impl Default for StorePublisher {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl StorePublisher {
    /// An empty published state. `capacity` is the number of transactions that wait for a slow follower.
    pub fn with_capacity(capacity: usize) -> Self {
        let (view, _) = watch::channel(Arc::new(Store::default()));
        let (feed, _) = broadcast::channel(capacity);
        Self { view, feed, capacity, pending: Vec::new(), replaced: false }
    }

    /// What readers get.
    pub fn reader(&self) -> PublishedStore {
        PublishedStore { view: self.view.subscribe(), feed: self.feed.downgrade() }
    }

    /// Adds the changes of a transaction to the next publication.
    pub fn applied(&mut self, changes: Changes) {
        // A log that is replayed has more than any follower could wait for.
        if self.pending.len() == self.capacity {
            self.replaced();
        }
        self.pending.push(changes);
    }

    /// The state was replaced by that of a snapshot.
    pub fn replaced(&mut self) {
        self.pending.clear();
        self.replaced = true;
    }

    /// Publishes the state if it is newer than the published one: after a disk failure the log is applied again from its
    /// snapshot on, while readers have seen later states.
    pub fn publish(&mut self, store: &Store) {
        let seen = self.view.borrow().index();
        if store.index() <= seen {
            return self.pending.clear();
        }
        self.view.send_replace(Arc::new(store.clone()));
        // Sending fails if there is no follower.
        if std::mem::take(&mut self.replaced) {
            let _ = self.feed.send(FeedItem::Replaced);
        }
        for changes in self.pending.drain(..).filter(|changes| changes.index > seen) {
            let _ = self.feed.send(FeedItem::Changes(Arc::new(changes)));
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
    /// A receiver that wakes at every publication.
    pub fn watch(&self) -> watch::Receiver<Arc<Store>> {
        self.view.clone()
    }
    /// A follower, which first gets the newest state.
    pub fn changes(&self) -> ChangeFollower {
        let feed = self.feed.upgrade().map(|feed| feed.subscribe());
        ChangeFollower { view: self.view.clone(), feed, index: 0, has_gap: true }
    }
}

/// A follower of the store.
#[derive(Debug)]
pub struct ChangeFollower {
    view: watch::Receiver<Arc<Store>>,
    /// `None`: the publisher is gone.
    feed: Option<broadcast::Receiver<FeedItem>>,
    /// Raft index of the last event.
    index: u64,
    /// The next event is a snapshot.
    has_gap: bool,
}

impl ChangeFollower {
    /// The next event; `None` once the publisher is gone. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<FeedEvent> {
        loop {
            if std::mem::take(&mut self.has_gap) {
                let store = self.view.borrow_and_update().clone();
                self.index = store.index();
                return Some(FeedEvent::Snapshot(store));
            }
            match self.feed.as_mut()?.recv().await {
                Ok(FeedItem::Changes(changes)) if changes.index > self.index => {
                    self.index = changes.index;
                    return Some(FeedEvent::Changes(changes));
                }
                // Part of the snapshot that the follower got.
                Ok(FeedItem::Changes(_)) => {}
                Ok(FeedItem::Replaced) | Err(RecvError::Lagged(_)) => self.has_gap = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

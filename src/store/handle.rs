//! How the rest of a manager reads the store and gets transactions into the log.

use super::object::{Action, Store, StoreError};
use super::published::{PublishedStore, StorePublisher};
use super::transaction::Transaction;
use crate::model::Timestamp;
use crate::sync::lock;
use async_trait::async_trait;
use std::sync::{Arc, Mutex};
use tokio::sync::{broadcast, watch};

/// Why a proposal did not become part of the store.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The store refused the transaction; nothing was written.
    #[error(transparent)]
    Refused(#[from] StoreError),
    /// This manager is not the leader.
    #[error("this manager is not the leader")]
    NotLeader,
    /// No majority answered in time. It may still be written later.
    #[error("no majority of the managers answered in time")]
    TimedOut,
    /// The transaction is larger than an entry of the log may be; nothing was written.
    #[error("too large to be written: {0}")]
    TooLarge(String),
    /// The manager shuts down or its log failed.
    #[error("the manager cannot write: {0}")]
    Stopped(String),
}

/// Writes a transaction to the log and waits until it is applied on this manager.
#[async_trait]
pub trait Propose: Send + Sync {
    /// Returns the index at which it was applied.
    async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError>;
}

/// Read side and write side of the store. Cheap to clone.
#[derive(Clone)]
pub struct StoreHandle {
    published: PublishedStore,
    proposer: Arc<dyn Propose>,
}

impl StoreHandle {
    /// From what the state machine publishes, and the proposer in front of it.
    pub fn new(published: PublishedStore, proposer: Arc<dyn Propose>) -> Self {
        Self { published, proposer }
    }
    /// The newest applied state.
    pub fn read(&self) -> Arc<Store> {
        self.published.read()
    }
    /// A receiver that wakes when transactions were applied.
    pub fn watch(&self) -> watch::Receiver<Arc<Store>> {
        self.published.watch()
    }
    /// The state after each transaction; see [`PublishedStore::steps`].
    pub fn steps(&self) -> broadcast::Receiver<Arc<Store>> {
        self.published.steps()
    }
    /// True if both are handles of one store.
    pub fn is_same(&self, other: &Self) -> bool {
        self.published.is_same(&other.published)
    }
    /// Proposes the actions and waits until they are applied on this manager; returns the index.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn write(&self, at: Timestamp, actions: Vec<Action>) -> Result<u64, ProposeError> {
        self.propose(Transaction::new(at, actions)).await
    }
    /// As [`Self::write`], for a transaction with conditions.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        self.proposer.propose(transaction).await
    }
}

/// Applies transactions immediately, in memory: the store without raft, for tests and simulations.
pub struct LocalProposer(Mutex<LocalStore>);

struct LocalStore {
    store: Store,
    publisher: StorePublisher,
}

impl LocalProposer {
    /// An empty store and its handle.
    pub fn handle() -> StoreHandle {
        Self::with(Store::default())
    }
    /// A handle of this store.
    pub fn with(store: Store) -> StoreHandle {
        let mut publisher = StorePublisher::default();
        publisher.publish(&store);
        let published = publisher.reader();
        StoreHandle::new(published, Arc::new(Self(Mutex::new(LocalStore { store, publisher }))))
    }
}

#[async_trait]
impl Propose for LocalProposer {
    async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let LocalStore { store, publisher } = &mut *lock(&self.0);
        let index = store.index() + 1;
        let outcome = store.apply(index, &transaction);
        if outcome.is_ok() {
            publisher.applied(store, &transaction);
        }
        publisher.publish(store);
        Ok(outcome.map(|()| index)?)
    }
}

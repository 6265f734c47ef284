//! How the rest of a manager reads the store and gets transactions into the log.

use super::object::{Action, Store, StoreError, Transaction};
use crate::model::Timestamp;
use crate::sync::lock;
use async_trait::async_trait;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

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
    view: watch::Receiver<Arc<Store>>,
    proposer: Arc<dyn Propose>,
}

impl StoreHandle {
    /// From the watch that the state machine publishes on, and the proposer in front of it.
    pub fn new(view: watch::Receiver<Arc<Store>>, proposer: Arc<dyn Propose>) -> Self {
        Self { view, proposer }
    }
    /// The newest applied state.
    pub fn read(&self) -> Arc<Store> {
        self.view.borrow().clone()
    }
    /// A receiver that wakes at every applied transaction.
    pub fn watch(&self) -> watch::Receiver<Arc<Store>> {
        self.view.clone()
    }
    /// True if both are handles of one store.
    pub fn is_same(&self, other: &Self) -> bool {
        self.view.same_channel(&other.view)
    }
    /// Proposes the actions and waits until they are applied on this manager; returns the index.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn write(&self, at: Timestamp, actions: Vec<Action>) -> Result<u64, ProposeError> {
        self.proposer.propose(Transaction { at, actions }).await
    }
}

/// Applies transactions immediately, in memory: the store without raft, for tests and simulations.
pub struct LocalProposer {
    sender: watch::Sender<Arc<Store>>,
    index: Mutex<u64>,
}

impl LocalProposer {
    /// An empty store and its handle.
    pub fn handle() -> StoreHandle {
        let (sender, view) = watch::channel(Arc::new(Store::default()));
        StoreHandle::new(view, Arc::new(Self { sender, index: Mutex::new(0) }))
    }
}

#[async_trait]
impl Propose for LocalProposer {
    async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let mut index = lock(&self.index);
        *index += 1;
        let mut store = (**self.sender.borrow()).clone();
        let outcome = store.apply(*index, &transaction);
        self.sender.send_replace(Arc::new(store));
        outcome?;
        Ok(*index)
    }
}

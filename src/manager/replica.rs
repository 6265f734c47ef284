//! The store as raft's state machine: an entry is a transaction with a format number, its outcome is returned to the
//! proposer, and the newest state is published on a watch. The only file that knows both raft and the store.

use crate::raft::{self, Raft, RaftConfig, RaftError, StateMachine, Transport};
use crate::store::{Propose, ProposeError, Store, StoreError, StoreHandle, Transaction, check_level, decode_document};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A transaction as an entry of the log. The format is the feature level that it was written at.
#[derive(Serialize, Deserialize)]
struct TransactionEntry {
    format: u32,
    transaction: Transaction,
}

/// Outcome of applying a transaction.
pub type ApplyOutcome = Result<(), StoreError>;

/// This manager's copy of the store, driven by raft.
#[derive(Debug)]
pub struct Replica {
    store: Store,
    view: watch::Sender<Arc<Store>>,
}

impl Replica {
    /// Starts raft with the store as its state machine. When this returns the store is restored and everything known to be
    /// committed is applied. `bootstrap` as in [`raft::start`].
    ///
    /// # Errors
    /// See [`raft::start`].
    pub async fn start(
        config: RaftConfig,
        bootstrap: bool,
        transport: Arc<dyn Transport>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<(StoreHandle, Raft<ApplyOutcome>)> {
        let (view, watched) = watch::channel(Arc::new(Store::default()));
        let raft = raft::start(config, bootstrap, Self { store: Store::default(), view }, transport, shutdown).await?;
        let proposer = Proposer { raft: raft.clone(), view: watched.clone() };
        Ok((StoreHandle::new(watched, Arc::new(proposer)), raft))
    }

    /// Publishes the state if it is newer than the published one: after a disk failure the log is applied again from its
    /// snapshot on, while readers have seen later states.
    fn publish(&self) {
        self.view.send_if_modified(|published| {
            let newer = self.store.index() > published.index();
            if newer {
                *published = Arc::new(self.store.clone());
            }
            newer
        });
    }
}

impl StateMachine for Replica {
    type Outcome = ApplyOutcome;

    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<ApplyOutcome> {
        let entry: TransactionEntry = decode_document(data)?;
        let outcome = self.store.apply(index, &entry.transaction);
        self.publish();
        Ok(outcome)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.store.snapshot()
    }

    fn restore(&mut self, _: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.store = Store::restore(bytes)?;
        self.publish();
        Ok(())
    }
}

struct Proposer {
    raft: Raft<ApplyOutcome>,
    view: watch::Receiver<Arc<Store>>,
}

#[async_trait]
impl Propose for Proposer {
    async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let level = self.view.borrow().feature_level();
        check_level(&transaction, level)?;
        let data = serde_json::to_vec(&TransactionEntry { format: level, transaction })
            .map_err(|e| ProposeError::Stopped(format!("the transaction cannot be written: {e}")))?;
        let (index, outcome) = self.raft.propose(data).await.map_err(|error| match error {
            RaftError::NotLeader { .. } | RaftError::Superseded => ProposeError::NotLeader,
            RaftError::TimedOut => ProposeError::TimedOut,
            other => ProposeError::Stopped(other.to_string()),
        })?;
        outcome?;
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_an_earlier_build_wrote_is_applied_and_written_the_same() {
        let recorded = include_bytes!("../../tests/it/store/recorded/entry.json");
        let (view, watched) = watch::channel(Arc::new(Store::default()));
        let mut replica = Replica { store: Store::default(), view };
        replica.apply(5, recorded).expect("readable").expect("applied");
        let snapshot = include_bytes!("../../tests/it/store/recorded/snapshot.json");
        assert_eq!(watched.borrow().snapshot(), snapshot);
        let entry: TransactionEntry = decode_document(recorded).expect("readable");
        assert_eq!(serde_json::to_vec(&entry).expect("plain data"), recorded);
    }
}

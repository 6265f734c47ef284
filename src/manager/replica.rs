//! The store as raft's state machine: an entry is a transaction with a format number, its outcome is returned to the
//! proposer, and the newest state is published. The only file that knows both raft and the store.

use crate::raft::{self, Raft, RaftConfig, RaftError, StateMachine, Transport};
use crate::store::{
    Propose, ProposeError, PublishedStore, Store, StoreError, StoreHandle, StorePublisher, Transaction, decode_document,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
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
#[derive(Default, Debug)]
pub struct Replica {
    store: Store,
    publisher: StorePublisher,
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
        let replica = Self::default();
        let published = replica.publisher.reader();
        let raft = raft::start(config, bootstrap, replica, transport, shutdown).await?;
        let proposer = Proposer { raft: raft.clone(), published: published.clone() };
        Ok((StoreHandle::new(published, Arc::new(proposer)), raft))
    }
}

impl StateMachine for Replica {
    type Outcome = ApplyOutcome;

    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<ApplyOutcome> {
        let entry: TransactionEntry = decode_document(data)?;
        Ok(self.store.apply(index, &entry.transaction))
    }

    fn publish(&mut self) {
        self.publisher.publish(&self.store);
    }

    fn snapshot(&self) -> Vec<u8> {
        self.store.snapshot()
    }

    fn later_snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let store = self.store.clone();
        Box::new(move || store.snapshot())
    }

    fn restore(&mut self, _: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.store = Store::restore(bytes)?;
        Ok(())
    }
}

struct Proposer {
    raft: Raft<ApplyOutcome>,
    published: PublishedStore,
}

#[async_trait]
impl Propose for Proposer {
    async fn propose(&self, mut transaction: Transaction) -> Result<u64, ProposeError> {
        if let Some(plan) = &mut transaction.plan {
            plan.term = self.raft.status().borrow().term;
        }
        let store = self.published.read();
        let transaction = transaction.at_level_of(&store)?;
        let data = serde_json::to_vec(&TransactionEntry { format: store.feature_level(), transaction })
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
        let mut replica = Replica::default();
        let published = replica.publisher.reader();
        replica.apply(5, recorded).expect("readable").expect("applied");
        replica.publish();
        let snapshot = include_bytes!("../../tests/it/store/recorded/snapshot.json");
        assert_eq!(published.read().snapshot(), snapshot);
        let entry: TransactionEntry = decode_document(recorded).expect("readable");
        assert_eq!(serde_json::to_vec(&entry).expect("plain data"), recorded);
    }
}

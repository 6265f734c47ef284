//! The store as raft's state machine: an entry is a transaction with a format number, its outcome is returned to the
//! proposer, and the newest state is published.

use super::entry::{ApplyOutcome, TransactionEntry};
use super::outcomes::RecentOutcomes;
use super::proposer::{Forward, Proposer};
use crate::raft::{self, LogCipher, LogSummary, Raft, RaftConfig, StateMachine, Transport};
use crate::store::{Store, StoreHandle, StorePublisher, decode_document};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// This manager's copy of the store, driven by raft.
#[derive(Default, Debug)]
pub struct Replica {
    store: Store,
    publisher: StorePublisher,
    outcomes: Arc<RecentOutcomes>,
}

/// A running replica.
pub struct StartedReplica {
    pub store: StoreHandle,
    pub raft: Raft<ApplyOutcome>,
    /// Answers proposals that other managers forward.
    pub proposer: Arc<Proposer>,
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
        forward: Arc<dyn Forward>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<StartedReplica> {
        let replica = Self::default();
        let (published, outcomes) = (replica.publisher.reader(), replica.outcomes.clone());
        let timeout = config.propose_timeout;
        let raft = raft::start(config, bootstrap, replica, transport, shutdown).await?;
        let proposer = Arc::new(Proposer::new(raft.clone(), published.clone(), forward, outcomes, timeout));
        Ok(StartedReplica { store: StoreHandle::new(published, proposer.clone()), raft, proposer })
    }
}

/// The state of a manager that does not run, after the last entry of its log, and what the log says of itself. Blocks.
///
/// # Errors
/// See [`raft::replay`].
pub fn replayed(dir: &Path, cipher: &Arc<dyn LogCipher>) -> anyhow::Result<(Store, LogSummary)> {
    let mut replica = Replica::default();
    let summary = raft::replay(dir, &mut replica, cipher)?;
    Ok((replica.store, summary))
}

impl StateMachine for Replica {
    type Outcome = ApplyOutcome;

    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<ApplyOutcome> {
        let entry: TransactionEntry = decode_document(data)?;
        let outcome = self.store.apply(index, &entry.transaction);
        if let Some(id) = entry.id {
            self.outcomes.applied(id, index, outcome.clone());
        }
        Ok(outcome)
    }

    fn publish(&mut self) {
        self.publisher.publish(&self.store);
    }

    fn snapshot_every(&self) -> Option<u64> {
        self.store.cluster()?.spec.snapshot_every()
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

//! The store as raft's state machine: an entry is a transaction with a format number, its outcome is returned to the
//! proposer, and the newest state is published.

use super::entry::{ApplyOutcome, TransactionEntry};
use super::outcomes::RecentOutcomes;
use super::proposer::{Forward, Proposer};
use crate::protocol::compression::{compressed, expanded};
use crate::raft::{self, LogCipher, LogSummary, Raft, RaftConfig, StateMachine, Transport};
use crate::store::{COMPRESSED_SNAPSHOTS, Store, StoreHandle, StorePublisher, decode_document};
use anyhow::Context as _;
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
        if outcome.is_ok() {
            self.publisher.applied(&self.store, &entry.transaction);
        }
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
        snapshot_of(&self.store)
    }

    fn later_snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let store = self.store.clone();
        Box::new(move || snapshot_of(&store))
    }

    fn restore(&mut self, _: u64, bytes: &[u8]) -> anyhow::Result<()> {
        // Of this manager's own log, or of the leader: without a bound.
        let document = expanded(bytes, usize::MAX).context("its compressed bytes are damaged")?;
        self.store = Store::restore(&document)?;
        Ok(())
    }
}

/// The state as it is kept in the log. Compressed: raft's thread writes it, and answers no other manager meanwhile.
fn snapshot_of(store: &Store) -> Vec<u8> {
    let document = store.snapshot();
    if store.feature_level() < COMPRESSED_SNAPSHOTS { document } else { compressed(document).to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cluster, ServiceSpec, Timestamp, fixture};
    use crate::store::{Action, Transaction};

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

    /// `SKEP_RECORD=1` writes the recorded file.
    #[test]
    fn a_snapshot_is_compressed_where_every_manager_reads_that_and_both_are_read() {
        let services = (0..200).map(|n| {
            let name = format!("web{n}");
            Action::create(fixture::service(&name, ServiceSpec { name: name.clone(), ..ServiceSpec::default() }))
        });
        let mut replica = Replica::default();
        let mut cluster = Cluster { feature_level: COMPRESSED_SNAPSHOTS - 1, ..fixture::cluster() };
        let actions = [Action::create(cluster.clone())].into_iter().chain(services).collect();
        replica.store.apply(1, &Transaction::new(Timestamp(1), actions)).unwrap();
        let plain = replica.snapshot();
        assert_eq!(plain, replica.store.snapshot());
        cluster.meta.version = 1;
        cluster.feature_level = COMPRESSED_SNAPSHOTS;
        replica.store.apply(2, &Transaction::new(Timestamp(2), vec![Action::update(cluster)])).unwrap();
        let small = replica.later_snapshot()();
        assert!(small.len() < plain.len() / 5, "{} of {}", small.len(), plain.len());
        for (bytes, index) in [(&plain, 1), (&small, 2)] {
            let mut restored = Replica::default();
            restored.restore(index, bytes).unwrap();
            assert_eq!(restored.store.index(), index);
            assert_eq!(restored.store.services().count(), 200);
        }
        assert!(Replica::default().restore(2, &small[..small.len() / 2]).is_err(), "cut short");

        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/formats/snapshot-3.zlib");
        if std::env::var_os("SKEP_RECORD").is_some() {
            std::fs::write(path, &small).unwrap();
        }
        let mut recorded = Replica::default();
        recorded.restore(2, &std::fs::read(path).unwrap()).unwrap();
        assert_eq!(recorded.store.snapshot(), replica.store.snapshot());
    }
}

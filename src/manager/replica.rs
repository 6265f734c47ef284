//! The store as raft's state machine: what an entry says (a format-numbered transaction), how its outcome gets back
//! to the proposer, and where the newest store is published. The only file that knows both raft and the store.

use crate::raft::{self, Raft, RaftConfig, RaftError, StateMachine, Transport};
use crate::store::{Propose, ProposeError, Store, StoreError, StoreHandle, Transaction};
use anyhow::Context as _;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Number of the entries' format; goes up when an older build could not read it.
const FORMAT: u32 = 1;

/// A transaction as an entry of the log.
#[derive(Serialize, Deserialize)]
struct Entry<T> {
    format: u32,
    transaction: T,
}

/// Only the number: read first, because what follows may be of a format that this build does not know.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// What applying a transaction gives.
pub type Outcome = Result<(), StoreError>;

/// This manager's copy of the store, driven by raft.
#[derive(Debug)]
pub struct Replica {
    store: Store,
    view: watch::Sender<Arc<Store>>,
}

impl Replica {
    /// Starts raft with the store behind it; the store is restored and everything known to be committed applied when
    /// this returns. `bootstrap` as in [`raft::start`].
    ///
    /// # Errors
    /// As [`raft::start`].
    pub async fn start(
        config: RaftConfig,
        bootstrap: bool,
        transport: Arc<dyn Transport>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<(StoreHandle, Raft<Outcome>)> {
        let (view, watched) = watch::channel(Arc::new(Store::default()));
        let raft = raft::start(config, bootstrap, Self { store: Store::default(), view }, transport, shutdown).await?;
        Ok((StoreHandle::new(watched, Arc::new(Proposer(raft.clone()))), raft))
    }

    /// Never goes back: after a failed disk the log is read again from its snapshot on, and readers have seen more.
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
    type Outcome = Outcome;

    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<Outcome> {
        let Format { format } = serde_json::from_slice(data).context("it has no format number")?;
        anyhow::ensure!(
            format == FORMAT,
            "it has format {format}, this skep reads format {FORMAT}: install the newer skep again"
        );
        let entry: Entry<Transaction> = serde_json::from_slice(data)?;
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

struct Proposer(Raft<Outcome>);

#[async_trait]
impl Propose for Proposer {
    async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let data = serde_json::to_vec(&Entry { format: FORMAT, transaction })
            .map_err(|e| ProposeError::Stopped(format!("the transaction cannot be written: {e}")))?;
        let (index, outcome) = self.0.propose(data).await.map_err(|error| match error {
            RaftError::NotLeader { .. } | RaftError::Superseded => ProposeError::NotLeader,
            RaftError::TimedOut => ProposeError::TimedOut,
            other => ProposeError::Stopped(other.to_string()),
        })?;
        outcome?;
        Ok(index)
    }
}

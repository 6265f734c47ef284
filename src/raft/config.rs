//! What goes into raft (settings, the two traits) and what comes out of it (status, errors). No behaviour.

use std::path::PathBuf;
use std::time::Duration;

/// What committed entries are applied to. Runs on raft's own thread; must be deterministic.
pub trait StateMachine: Send + 'static {
    /// What applying an entry gives to whoever proposed it.
    type Outcome: Send + 'static;
    /// Called for every committed entry with data, in order, each once between two calls of `restore`.
    ///
    /// # Errors
    /// The entry cannot be read (damaged, or written by a newer skep). This stops the manager: an entry that the
    /// others applied may not be skipped here. A *refused* entry is an outcome, not an error.
    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<Self::Outcome>;
    /// The state as bytes.
    fn snapshot(&self) -> Vec<u8>;
    /// Replaces the state, whatever it was, by that of a snapshot taken after the entry `index`.
    ///
    /// # Errors
    /// The snapshot cannot be read (damaged, or written by a newer skep).
    fn restore(&mut self, index: u64, bytes: &[u8]) -> anyhow::Result<()>;
}

/// Carries messages to other managers. Best effort: raft repeats what got lost, and bears doubles and disorder.
pub trait Transport: Send + Sync + 'static {
    /// Sends without blocking; drops what it cannot send.
    fn send(&self, to: u64, message: Vec<u8>);
}

/// Settings of one manager's raft.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// Folder that holds the log (`raft.redb`); made if it is missing.
    pub dir: PathBuf,
    /// This manager's raft id: not 0, and never used again once it was removed.
    pub id: u64,
    /// Length of a tick.
    pub tick: Duration,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader until an election: at least the first, fewer than the second.
    pub election_ticks: (usize, usize),
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot for slow followers.
    pub keep_entries: u64,
    /// How long a proposal may take.
    pub propose_timeout: Duration,
    /// Seed of the election time-outs.
    pub seed: u64,
}

impl RaftConfig {
    /// The defaults of the daemon.
    pub fn new(dir: impl Into<PathBuf>, id: u64, seed: u64) -> Self {
        Self {
            dir: dir.into(),
            id,
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: (10, 20),
            snapshot_every: 10_000,
            keep_entries: 500,
            propose_timeout: Duration::from_secs(20),
            seed,
        }
    }
}

/// What this manager's raft is doing.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RaftStatus {
    /// Own raft id.
    pub id: u64,
    /// Term.
    pub term: u64,
    /// Raft id of the leader, if one is known.
    pub leader: Option<u64>,
    /// This manager leads *and* has applied everything that earlier leaders committed.
    pub is_leader: bool,
    /// Index of the last entry applied here.
    pub applied: u64,
    /// Raft ids that vote, sorted.
    pub voters: Vec<u64>,
    /// Raft ids that only listen yet, sorted.
    pub learners: Vec<u64>,
    /// Why this manager cannot write now, for people; `None` if it can.
    pub problem: Option<String>,
}

/// Why a proposal was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RaftError {
    /// Another manager leads, or none. Nothing was written.
    #[error("this manager is not the leader{}", .leader.map(|l| format!(" (raft id {l} is)")).unwrap_or_default())]
    NotLeader {
        /// Who leads, if known.
        leader: Option<u64>,
    },
    /// Another leader took over and wrote something else in its place. Nothing was written.
    #[error("another leader took over before this was committed")]
    Superseded,
    /// Not known in time. It may still be written later.
    #[error("no majority of the managers answered in time")]
    TimedOut,
    /// Too much waits to be committed, or another change of membership is under way. Nothing was written.
    #[error("too much is waiting to be committed: try again")]
    Busy,
    /// The entry is too large. Nothing was written.
    #[error("an entry of {size} bytes is too large: the limit is {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The change of membership makes no sense (last voter, id 0). Nothing was written.
    #[error("membership not changed: {0}")]
    BadChange(String),
    /// Raft has stopped or cannot write to its disk. A proposal that was under way may still be written later.
    #[error("{0}")]
    Stopped(String),
}

//! Input of raft (settings, the two traits) and output (status, errors). No behaviour.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What committed entries are applied to. Called on raft's thread; must be deterministic.
pub trait StateMachine: Send + 'static {
    /// Result of applying an entry, returned to its proposer.
    type Outcome: Send + 'static;
    /// Applies a committed entry. Called for every entry with data in order, for each one once between two calls of `restore`.
    ///
    /// # Errors
    /// The entry cannot be read (it is damaged, or a newer skep wrote it). This stops the manager: an entry that the other
    /// managers applied must not be skipped. A *refused* entry is an outcome, not an error.
    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<Self::Outcome>;
    /// Makes the state visible to readers. Called after entries that were committed together, before any of their proposers
    /// gets its outcome, and after `restore`.
    fn publish(&mut self) {}
    /// Entries from one snapshot to the next, if the state says so: before what [`RaftConfig::snapshot_every`] says.
    fn snapshot_every(&self) -> Option<u64> {
        None
    }
    /// The state as bytes.
    fn snapshot(&self) -> Vec<u8>;
    /// What makes [`Self::snapshot`] of the state of this moment, on another thread, while further entries are applied.
    fn later_snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let bytes = self.snapshot();
        Box::new(move || bytes)
    }
    /// Replaces the state by that of a snapshot taken after the entry `index`.
    ///
    /// # Errors
    /// The snapshot cannot be read (it is damaged, or a newer skep wrote it).
    fn restore(&mut self, index: u64, bytes: &[u8]) -> anyhow::Result<()>;
}

/// Carries messages to other managers. Best effort: raft repeats lost messages, and tolerates duplicates and reordering.
pub trait Transport: Send + Sync + 'static {
    /// Sends without blocking; drops a message that it cannot send. `to` is a raft id.
    fn send(&self, to: u64, message: Vec<u8>);
}

/// Encrypts entries and snapshots on their way to the disk. Errors are for people.
pub trait LogCipher: Send + Sync + fmt::Debug + 'static {
    /// Names the key that a log is written with from now on; `None`: it is not encrypted.
    fn key(&self) -> Option<String>;
    /// Seals a row for its place, with the key of this name.
    ///
    /// # Errors
    /// There is no such key.
    fn seal(&self, key: &str, place: &str, row: &[u8]) -> Result<Vec<u8>, String>;
    /// Opens what was sealed.
    ///
    /// # Errors
    /// There is no such key, or the row was changed or is of another place.
    fn open(&self, key: &str, place: &str, row: &[u8]) -> Result<Vec<u8>, String>;
}

/// No encryption.
#[derive(Clone, Copy, Debug)]
pub struct NoCipher;

impl LogCipher for NoCipher {
    fn key(&self) -> Option<String> {
        None
    }
    fn seal(&self, key: &str, _: &str, _: &[u8]) -> Result<Vec<u8>, String> {
        Err(format!("there is no key {key}"))
    }
    fn open(&self, key: &str, _: &str, _: &[u8]) -> Result<Vec<u8>, String> {
        let _ = key;
        Err("it is encrypted, and its key is not here".to_owned())
    }
}

/// Settings of one manager's raft.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// Folder of the log file (`raft.redb`); created if it is missing.
    pub dir: PathBuf,
    /// Encrypts the log.
    pub cipher: Arc<dyn LogCipher>,
    /// This manager's raft id: not 0, and never used again after a manager with that id was removed.
    pub id: u64,
    /// Unit of the times in ticks.
    pub tick: Duration,
    /// Ticks between the leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader until an election: at least the first and less than the second, other ones on each manager.
    pub election_ticks: (usize, usize),
    /// Entries from one snapshot to the next.
    pub snapshot_every: u64,
    /// Bytes of entries from one snapshot to the next, if these are fewer entries: a start applies them all.
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot for slow followers.
    pub keep_entries: u64,
    /// Bytes of these, if those are fewer entries.
    pub keep_bytes: u64,
    /// Timeout of a proposal.
    pub propose_timeout: Duration,
}

impl RaftConfig {
    /// The daemon's defaults.
    pub fn new(dir: impl Into<PathBuf>, id: u64) -> Self {
        Self {
            dir: dir.into(),
            cipher: Arc::new(NoCipher),
            id,
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: (7, 14),
            snapshot_every: 10_000,
            snapshot_bytes: 64 << 20,
            keep_entries: 500,
            keep_bytes: 16 << 20,
            propose_timeout: Duration::from_secs(20),
        }
    }
}

/// Status of this manager's raft.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RaftStatus {
    pub id: u64,
    pub term: u64,
    /// Raft id of the leader, if known.
    pub leader: Option<u64>,
    /// This manager leads *and* has applied everything that earlier leaders committed.
    pub is_leader: bool,
    /// The leader whose place this one took without being asked to, and that it has not heard since: its process has ended, its machine
    /// is down, or it is cut off.
    pub lost_leader: Option<u64>,
    /// Index of the last entry that this manager applied.
    pub applied: u64,
    /// Index and term of the last entry of its log, committed or not.
    pub last: (u64, u64),
    /// Raft ids of the voters, sorted.
    pub voters: Vec<u64>,
    /// Raft ids of the learners, sorted.
    pub learners: Vec<u64>,
    /// Voters that were heard within the longest election timeout, this manager included, sorted: of the leader, they are the majority
    /// that it writes with.
    pub heard: Vec<u64>,
    /// Learners that may become voters, sorted; known to the leader only.
    pub caught_up: Vec<u64>,
    /// More than half of the voters, this one included, were heard a moment ago: without a leader one is about to be elected.
    pub hears_majority: bool,
    /// Messages and snapshots of other managers that were not taken, since the start: they cannot be read, or no manager sends such.
    pub ignored: u64,
    /// Why this manager cannot write now, for users; `None` if it can.
    pub problem: Option<String>,
}

impl RaftStatus {
    /// Raft ids of voters and learners.
    pub fn members(&self) -> impl Iterator<Item = u64> {
        self.voters.iter().chain(&self.learners).copied()
    }
}

/// Why a proposal failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RaftError {
    /// Another manager leads, or none. Nothing was written.
    #[error("this manager is not the leader{}", .leader.map(|l| format!(" (raft id {l} is)")).unwrap_or_default())]
    NotLeader {
        /// Raft id, if known.
        leader: Option<u64>,
    },
    /// Another leader took over and committed another entry at its index. Nothing was written.
    #[error("another leader took over before this was committed")]
    Superseded,
    /// The outcome was not known in time. The entry may still be written later.
    #[error("no majority of the managers answered in time")]
    TimedOut,
    /// Too many bytes wait to be committed, or another change of membership is in progress. Nothing was written.
    #[error("too much is waiting to be committed: try again")]
    Busy,
    /// The entry is too large. Nothing was written.
    #[error("an entry of {size} bytes is too large: the limit is {limit}")]
    TooLarge {
        /// In bytes.
        size: usize,
        /// In bytes.
        limit: usize,
    },
    /// The change of membership is invalid (last voter, id 0). Nothing was written.
    #[error("membership not changed: {0}")]
    BadChange(String),
    /// Raft has stopped or cannot write to its disk. A proposal in progress may still be written later.
    #[error("{0}")]
    Stopped(String),
    /// The log was not encrypted again; it is written on as it was.
    #[error("{0}")]
    NotSealed(String),
}

//! A log on disk that no raft runs on: reading it to its end, and replacing it by that of a new cluster. Blocks.

use super::config::{LogCipher, StateMachine};
use super::disk::{Disk, DiskError};
use super::log::Log;
use anyhow::Context as _;
use raft::eraftpb::EntryType;
use std::path::Path;
use std::sync::Arc;

/// What a log says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSummary {
    /// Raft id of the manager that it is of.
    pub id: u64,
    /// The newest term that it knows.
    pub term: u64,
    /// Index of the last entry, and the term in which it was written. Of two logs the one with the later term there has more.
    pub last: u64,
    pub last_term: u64,
    /// Index of the last entry that this manager knew to be committed.
    pub committed: u64,
    /// Members of the last snapshot.
    pub voters: Vec<u64>,
}

/// Puts a machine into the state after the last entry of the log, whether this manager knew that it is committed or not: a leader
/// that is gone may have committed it, and answered.
///
/// # Errors
/// The log cannot be opened, or the machine cannot read it.
pub fn replay<S: StateMachine>(dir: &Path, machine: &mut S, cipher: &Arc<dyn LogCipher>) -> anyhow::Result<LogSummary> {
    let (_disk, log, id) = Disk::open_any(dir, cipher)?;
    if log.snapshot_index() > 0 {
        let index = log.snapshot_index();
        machine.restore(index, &log.snapshot.data).with_context(|| format!("the snapshot of entry {index} cannot be read"))?;
    }
    for entry in log.entries.iter().filter(|entry| entry.index > log.snapshot_index()) {
        if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
            // A refused entry is an outcome, as it was when it was written.
            let _ = machine.apply(entry.index, &entry.data).with_context(|| format!("entry {} cannot be read", entry.index))?;
        }
    }
    Ok(LogSummary {
        id,
        term: log.hard_state.term,
        last: log.last(),
        last_term: log.term_of(log.last()).unwrap_or_default(),
        committed: log.hard_state.commit,
        voters: log.snapshot.get_metadata().get_conf_state().get_voters().to_vec(),
    })
}

/// Replaces the log, or creates it, by one of which `id`, a raft id never used before, is the only voter. It begins with this state of
/// the machine after the entry `index` of `term`. A crash leaves the old log or the new one.
///
/// # Errors
/// The log cannot be written.
pub fn rebuild(
    dir: &Path,
    id: u64,
    (index, term): (u64, u64),
    machine: Vec<u8>,
    cipher: &Arc<dyn LogCipher>,
) -> Result<(), DiskError> {
    Disk::create(dir, id, &Log::begin_at(id, (index, term), machine), cipher)
}

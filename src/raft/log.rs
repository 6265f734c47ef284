//! The log as the raft crate reads it: in memory, bounded by the snapshots. Every write to it is a [`LogBatch`], which is also
//! written to the disk; reading the disk returns a [`Log`].

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// What must become durable together. The parts are written in the order of the fields.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct LogBatch {
    /// Replaces the snapshot.
    pub snapshot: Option<Snapshot>,
    /// The snapshot was sent by the leader: all entries are dropped.
    pub reset: bool,
    /// Index and term up to which entries are dropped.
    pub compacted: Option<(u64, u64)>,
    /// New entries, in order; they replace all entries from the first one's index on.
    pub entries: Vec<Entry>,
    /// Term, vote and commit index.
    pub hard_state: Option<HardState>,
}

impl LogBatch {
    /// True if there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_none() && self.compacted.is_none() && self.entries.is_empty() && self.hard_state.is_none()
    }
}

/// Snapshot, entries before and after it, term, vote and commit index.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Log {
    pub(super) snapshot: Snapshot,
    /// Index and term of the entry before the first one in `entries`.
    pub(super) compacted: (u64, u64),
    pub(super) entries: VecDeque<Entry>,
    pub(super) hard_state: HardState,
}

impl Log {
    /// The log of a new cluster: one voter, and the state of a new machine as a snapshot at index 1. An empty log at index 0
    /// would not do: a manager that joins later needs the membership, which it gets from a snapshot.
    #[must_use]
    pub fn bootstrap(id: u64, machine: Vec<u8>) -> Self {
        Self::begin_at(id, (1, 1), machine)
    }

    /// The log of a cluster with one voter, that begins with this state of the machine after the entry with this index and term.
    #[must_use]
    pub(super) fn begin_at(id: u64, (index, term): (u64, u64), machine: Vec<u8>) -> Self {
        let metadata = SnapshotMetadata {
            conf_state: Some(ConfState { voters: vec![id], ..ConfState::default() }).into(),
            index,
            term,
            ..SnapshotMetadata::default()
        };
        let snapshot = Snapshot { data: machine.into(), metadata: Some(metadata).into(), ..Snapshot::default() };
        let hard_state = HardState { term, commit: index, ..HardState::default() };
        Self { snapshot, compacted: (index, term), entries: VecDeque::new(), hard_state }
    }

    /// The whole log as one batch, for an empty disk.
    #[must_use]
    pub fn as_batch(&self) -> LogBatch {
        LogBatch {
            snapshot: Some(self.snapshot.clone()),
            reset: true,
            compacted: Some(self.compacted),
            entries: self.entries.iter().cloned().collect(),
            hard_state: Some(self.hard_state.clone()),
        }
    }

    /// Writes a batch.
    pub fn write(&mut self, batch: &LogBatch) {
        if let Some(snapshot) = &batch.snapshot {
            self.snapshot = snapshot.clone();
        }
        if batch.reset {
            self.entries.clear();
            let metadata = self.snapshot.get_metadata();
            self.compacted = (metadata.index, metadata.term);
        }
        if let Some((index, term)) = batch.compacted {
            while self.entries.front().is_some_and(|e| e.index <= index) {
                self.entries.pop_front();
            }
            self.compacted = (index, term);
        }
        if let Some(first) = batch.entries.first() {
            while self.entries.back().is_some_and(|e| e.index >= first.index) {
                self.entries.pop_back();
            }
            self.entries.extend(batch.entries.iter().cloned());
        }
        if let Some(hard_state) = &batch.hard_state {
            self.hard_state = hard_state.clone();
        }
    }

    /// Index of the last entry.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.entries.back().map_or(self.compacted.0, |e| e.index)
    }

    /// Index of the snapshot; 0 if there is none.
    #[must_use]
    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Index of the entry before those that are kept of the ones up to `index`: the newest, so many and of so many bytes at most.
    #[must_use]
    pub fn keep_from(&self, index: u64, entries: u64, bytes: u64) -> u64 {
        let mut left = bytes;
        let newest_first = self.entries.iter().rev().skip_while(|entry| entry.index > index);
        let fits = |entry: &&Entry| {
            let rest = left.checked_sub(entry.data.len() as u64);
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        let kept = newest_first.take(usize::try_from(entries).unwrap_or(usize::MAX)).take_while(fits).count();
        index.saturating_sub(kept as u64)
    }

    /// Term of the entry with this index; `None` if the log does not have it.
    #[must_use]
    pub fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        let offset = usize::try_from(index.checked_sub(self.compacted.0 + 1)?).ok()?;
        self.entries.get(offset).map(|e| e.term)
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        // The membership of the snapshot, not the newest one: entries after it are applied again, changes included.
        Ok(RaftState::new(self.hard_state.clone(), self.snapshot.get_metadata().get_conf_state().clone()))
    }

    fn entries(&self, low: u64, high: u64, max: impl Into<Option<u64>>, _: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let skip = usize::try_from(low - self.compacted.0 - 1).unwrap_or(usize::MAX);
        let take = usize::try_from(high.saturating_sub(low)).unwrap_or(usize::MAX);
        let mut found: Vec<Entry> = self.entries.iter().skip(skip).take(take).cloned().collect();
        raft::util::limit_size(&mut found, max.into());
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.compacted.0 {
            return Err(StorageError::Compacted.into());
        }
        self.term_of(index).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let members = self.snapshot.get_metadata().get_conf_state();
        let is_member = members.get_voters().contains(&to) || members.get_learners().contains(&to);
        if self.snapshot_index() == 0 || self.snapshot_index() < request_index || !is_member {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(self.snapshot.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_for_slow_followers_is_bounded_in_number_and_in_bytes() {
        let entry = |index: u64, size: usize| Entry { index, term: 1, data: vec![0; size].into(), ..Entry::default() };
        let entries = [(11, 10), (12, 900), (13, 10), (14, 0), (15, 10), (16, 5000)].map(|(index, size)| entry(index, size));
        let log = Log { compacted: (10, 1), entries: entries.into(), ..Log::default() };
        for (index, most, bytes, from) in [
            (15, 500, 1 << 20, 10),
            (15, 2, 1 << 20, 13),
            (15, 500, 25, 12),
            (15, 500, 5, 15),
            (16, 500, 4999, 16),
            (15, 0, 100, 15),
            (9, 5, 5, 9),
        ] {
            assert_eq!(log.keep_from(index, most, bytes), from, "up to {index}: {most} entries, {bytes} bytes");
        }
    }
}

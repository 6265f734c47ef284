//! What must hold whatever goes wrong: one leader a term, one history for all managers, and writes that are linearizable. The log's
//! index is the order of the writes, so that is checked directly: what had ended before another began has a lower index, what was
//! acknowledged stays, what was refused never happened, nothing happens twice, and a manager shows what it has acknowledged.

use super::world::Process;
use skep::model::Timestamp;
use skep::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

/// How a write ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// At this index.
    Applied(u64),
    /// The store refused it, at this index.
    Refused(u64, String),
    /// It is not in the log and never will be.
    NotWritten,
    /// There was no answer.
    Unknown,
}

impl Outcome {
    pub fn index(&self) -> Option<u64> {
        match self {
            Self::Applied(index) | Self::Refused(index, _) => Some(*index),
            Self::NotWritten | Self::Unknown => None,
        }
    }
}

#[derive(Debug)]
struct Operation {
    began: Timestamp,
    ended: Option<(Timestamp, Outcome)>,
}

struct Entry {
    operation: u64,
    data: u64,
    outcome: Outcome,
}

/// States are compared at every so many entries.
const STATE_EVERY: u64 = 5;

#[derive(Default)]
pub struct History {
    entries: BTreeMap<u64, Entry>,
    states: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    operations: BTreeMap<u64, Operation>,
    /// Newest index that a client has seen at a process.
    seen: BTreeMap<Process, u64>,
    /// Snapshots that managers got from another one.
    pub transfers: u64,
    /// Every raft id that the store ever had.
    raft_ids: BTreeSet<u64>,
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl History {
    pub fn leads(&mut self, term: u64, id: u64) {
        let first = *self.leaders.entry(term).or_insert(id);
        assert_eq!(first, id, "two leaders in term {term}");
    }

    pub fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// A manager has applied an entry; true if it is the first one to.
    pub fn applied(&mut self, index: u64, operation: u64, data: &[u8], outcome: &Outcome) -> bool {
        let data = digest(data);
        if let Some(known) = self.entries.get(&index) {
            assert_eq!((known.operation, known.data), (operation, data), "managers apply different entries at {index}");
            assert_eq!(known.outcome, *outcome, "managers apply the entry {index} differently");
            return false;
        }
        self.entries.insert(index, Entry { operation, data, outcome: outcome.clone() });
        true
    }

    /// An entry's effect on the managers' raft ids: one is given once, for good.
    pub fn named(&mut self, before: &Store, after: &Store) {
        let ids =
            |store: &Store| -> BTreeSet<u64> { store.nodes().filter_map(|node| Some(node.manager.as_ref()?.raft_id)).collect() };
        for id in ids(after).difference(&ids(before)) {
            assert!(self.raft_ids.insert(*id), "the raft id {id} is used again");
        }
    }

    /// A manager's state after an entry.
    pub fn state(&mut self, index: u64, store: &Store) {
        if index.is_multiple_of(STATE_EVERY) {
            let digest = digest(&store.snapshot());
            assert_eq!(
                *self.states.entry(index).or_insert(digest),
                digest,
                "managers have different states after the entry {index}"
            );
        }
    }

    pub fn restored(&mut self, index: u64, store: &Store, is_own: bool) {
        self.transfers += u64::from(!is_own);
        let newest = self.entries.range(..=index).next_back().map_or(0, |(index, _)| *index);
        assert!(store.index() >= newest, "a snapshot at {index} has the state of {}", store.index());
    }

    pub fn begin(&mut self, operation: u64, now: Timestamp, at: Process, read: u64) {
        let seen = self.seen.get(&at).copied().unwrap_or(0);
        assert!(read >= seen, "the manager {at:?} has acknowledged the entry {seen} and shows the state at {read}");
        self.operations.insert(operation, Operation { began: now, ended: None });
    }

    /// The client has no answer yet, and still waits for one.
    pub fn is_waited_for(&self, operation: u64, now: Timestamp, most: Duration) -> bool {
        self.operations.get(&operation).is_some_and(|op| op.ended.is_none() && now.since(op.began) < most)
    }

    pub fn end(&mut self, operation: u64, now: Timestamp, at: Process, outcome: Outcome) {
        if let Some(index) = outcome.index() {
            let seen = self.seen.entry(at).or_default();
            *seen = (*seen).max(index);
        }
        let known = self.operations.get_mut(&operation).expect("an operation");
        if known.ended.is_none() {
            known.ended = Some((now, outcome));
        }
    }

    pub fn acknowledged(&self) -> usize {
        self.operations.values().filter(|op| matches!(op.ended, Some((_, Outcome::Applied(_))))).count()
    }

    /// Checks all operations against what was applied.
    pub fn check(&self) {
        let mut by_operation: BTreeMap<u64, Vec<(u64, &Outcome)>> = BTreeMap::new();
        for (index, entry) in self.entries.iter().filter(|(_, entry)| entry.operation > 0) {
            by_operation.entry(entry.operation).or_default().push((*index, &entry.outcome));
        }
        for (operation, written) in &by_operation {
            let effective = written.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Applied(_))).count();
            assert!(effective <= 1, "operation {operation} was applied more than once: {written:?}");
        }
        let mut ends: Vec<(Timestamp, u64)> = Vec::new();
        for (operation, known) in &self.operations {
            let written = by_operation.get(operation).map(Vec::as_slice).unwrap_or_default();
            match &known.ended {
                Some((at, outcome @ (Outcome::Applied(index) | Outcome::Refused(index, _)))) => {
                    assert!(
                        written.contains(&(*index, outcome)),
                        "operation {operation} was answered with {outcome:?}, but the log has {written:?}"
                    );
                    ends.push((*at, *index));
                }
                Some((_, Outcome::NotWritten)) => {
                    assert!(written.is_empty(), "operation {operation} was refused, and written: {written:?}");
                }
                Some((_, Outcome::Unknown)) | None => {}
            }
        }
        ends.sort_unstable();
        let mut highest = 0;
        let ends: Vec<(Timestamp, u64)> = ends
            .into_iter()
            .map(|(at, index)| {
                highest = highest.max(index);
                (at, highest)
            })
            .collect();
        for (operation, known) in &self.operations {
            let Some(index) = known.ended.as_ref().and_then(|(_, outcome)| outcome.index()) else { continue };
            let before = ends.partition_point(|(at, _)| *at < known.began);
            let earlier = before.checked_sub(1).map_or(0, |at| ends[at].1);
            assert!(earlier < index, "operation {operation} at {index} began after the one at {earlier} had ended");
        }
    }

    pub fn process_ended(&mut self, at: Process) {
        self.seen.remove(&at);
    }
}

//! Faults of skep itself, put between its cores and the simulated machine: each must be found.

use serde_json::Value;
use skep::raft::LogBatch;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    TermIsNotDurable,
    EntriesAreNotDurable,
    CommitIsAheadOfTheLog,
    SnapshotWithoutMembership,
    SendsBeforeItIsDurable,
    LastEntryIsLostInACrash,
    SnapshotIsNotRestored,
    AnEntryIsSkipped,
    StalePlansAreWritten,
    ApplyReadsTheClock,
    AnswersBeforeItIsCommitted,
    AnswersBeforeItIsShown,
    CallsWhatWasWrittenNotWritten,
    AddressesAreReusedAtOnce,
    ANodeAppliesNothing,
    JudgesAtOnceAfterTakeOver,
    LeadsOn,
    ForwardedTwiceIsWrittenTwice,
    SnapshotOfAnEarlierState,
    SnapshotWithoutItsEnd,
    CompactsWithoutItsSnapshot,
    EntriesAreNotReplaced,
    DemotedLeaderLeadsOn,
    RaftIdsAreUsedAgain,
    OldReadsAreNotMarked,
}

impl Mutant {
    pub const ALL: [Self; 25] = [
        Self::TermIsNotDurable,
        Self::EntriesAreNotDurable,
        Self::CommitIsAheadOfTheLog,
        Self::SnapshotWithoutMembership,
        Self::SendsBeforeItIsDurable,
        Self::LastEntryIsLostInACrash,
        Self::SnapshotIsNotRestored,
        Self::AnEntryIsSkipped,
        Self::StalePlansAreWritten,
        Self::ApplyReadsTheClock,
        Self::AnswersBeforeItIsCommitted,
        Self::AnswersBeforeItIsShown,
        Self::CallsWhatWasWrittenNotWritten,
        Self::AddressesAreReusedAtOnce,
        Self::ANodeAppliesNothing,
        Self::JudgesAtOnceAfterTakeOver,
        Self::LeadsOn,
        Self::ForwardedTwiceIsWrittenTwice,
        Self::SnapshotOfAnEarlierState,
        Self::SnapshotWithoutItsEnd,
        Self::CompactsWithoutItsSnapshot,
        Self::EntriesAreNotReplaced,
        Self::DemotedLeaderLeadsOn,
        Self::RaftIdsAreUsedAgain,
        Self::OldReadsAreNotMarked,
    ];

    /// What becomes durable instead, on a disk whose last entry is that one.
    pub fn change_batch(self, batch: &mut LogBatch, last: u64) {
        match self {
            Self::CompactsWithoutItsSnapshot if batch.compacted.is_some() => batch.snapshot = None,
            Self::EntriesAreNotReplaced if !batch.reset => batch.entries.retain(|entry| entry.index > last),
            Self::TermIsNotDurable => {
                if let Some(state) = &mut batch.hard_state {
                    (state.term, state.vote) = (state.term.min(1), 0);
                }
            }
            Self::EntriesAreNotDurable => batch.entries.clear(),
            Self::CommitIsAheadOfTheLog => {
                if let Some(state) = &mut batch.hard_state {
                    state.commit += 1;
                }
            }
            Self::SnapshotWithoutMembership => {
                if let Some(snapshot) = &mut batch.snapshot {
                    snapshot.mut_metadata().clear_conf_state();
                }
            }
            _ => {}
        }
    }
}

/// A snapshot of which the end is missing, that looks like a whole one: its last task, or service, is not there.
pub fn without_its_end(snapshot: &[u8]) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(snapshot).unwrap();
    for kind in ["tasks", "services"] {
        let table = document["store"][kind].as_object_mut().unwrap_or_else(|| panic!("{kind} are an object by id"));
        if let Some(last) = table.keys().next_back().cloned() {
            table.remove(&last);
            break;
        }
    }
    serde_json::to_vec(&document).unwrap()
}

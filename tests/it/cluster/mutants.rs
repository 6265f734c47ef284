//! Faults of skep itself, put between its cores and the simulated machine: each must be found.

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
}

impl Mutant {
    pub const ALL: [Self; 18] = [
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
    ];

    /// What becomes durable instead.
    pub fn change_batch(self, batch: &mut LogBatch) {
        match self {
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

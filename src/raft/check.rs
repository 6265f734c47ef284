//! What must hold before the raft crate sees a stored log or a message: it panics on a log that went backwards and on
//! entries with gaps, so both are looked at first.

use super::log::Log;
use raft::eraftpb::{Message, MessageType};

/// Why a message is not stepped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// It makes no sense: ignored.
    Malformed(&'static str),
    /// It takes for granted that this log holds what it does not: this manager lost acknowledged writes.
    WentBackwards(String),
}

/// A log from disk: contiguous, terms in order, commit index and snapshot within it.
pub(super) fn log(log: &Log) -> Result<(), String> {
    let (mut index, mut term) = log.compacted;
    for entry in &log.entries {
        if entry.index != index + 1 {
            return Err(format!("entry {} follows entry {index}", entry.index));
        }
        if entry.term < term {
            return Err(format!("entry {} has term {}, the one before it {term}", entry.index, entry.term));
        }
        (index, term) = (entry.index, entry.term);
    }
    let (snapshot, commit) = (log.snapshot_index(), log.hard_state.commit);
    if snapshot < log.compacted.0 || snapshot > index {
        return Err(format!("the snapshot is of entry {snapshot}, the log holds {} to {index}", log.compacted.0 + 1));
    }
    if snapshot > 0 && log.term_of(snapshot) != Some(log.snapshot.get_metadata().term) {
        return Err(format!("the snapshot's term is not that of entry {snapshot}"));
    }
    if commit < snapshot || commit > index {
        return Err(format!("{commit} entries are committed, the snapshot is of entry {snapshot}, the last entry is {index}"));
    }
    if log.hard_state.term < term {
        return Err(format!("the term is {}, that of the last entry {term}", log.hard_state.term));
    }
    if snapshot > 0 && log.snapshot.get_metadata().get_conf_state().get_voters().is_empty() {
        return Err("the snapshot names no voter".to_owned());
    }
    Ok(())
}

/// What a message is checked against.
pub(super) struct Known<F> {
    /// Own raft id.
    pub id: u64,
    /// Own term.
    pub term: u64,
    /// Last entry known to be committed.
    pub committed: u64,
    /// Last entry, written or about to be.
    pub last: u64,
    /// Term of an entry, if it is held.
    pub term_of: F,
}

/// A message from another manager.
pub(super) fn message(message: &Message, known: &Known<impl Fn(u64) -> Option<u64>>) -> Result<(), Refusal> {
    use MessageType as T;
    if message.to != known.id {
        return Err(Refusal::Malformed("it is for another raft id"));
    }
    if message.from == 0 || message.from == known.id {
        return Err(Refusal::Malformed("its sender is this manager or nobody"));
    }
    if message.term == 0 {
        return Err(Refusal::Malformed("it has no term"));
    }
    match message.get_msg_type() {
        T::MsgAppend => {
            let (mut index, mut last_term) = (message.index, message.log_term);
            for entry in message.get_entries() {
                if index.checked_add(1) != Some(entry.index) || entry.term < last_term || entry.term > message.term {
                    return Err(Refusal::Malformed("its entries do not follow each other"));
                }
                (index, last_term) = (entry.index, entry.term);
            }
            if message.term >= known.term
                && let Some(entry) = message
                    .get_entries()
                    .iter()
                    .find(|e| e.index <= known.committed && (known.term_of)(e.index).is_some_and(|term| term != e.term))
            {
                return Err(Refusal::WentBackwards(format!(
                    "the leader has another entry {} than was committed here",
                    entry.index
                )));
            }
            Ok(())
        }
        T::MsgHeartbeat if message.term >= known.term && message.commit > known.last => Err(Refusal::WentBackwards(format!(
            "the leader was told that entry {} is here, the last one is {}",
            message.commit, known.last
        ))),
        T::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            if metadata.index == 0 || metadata.get_conf_state().get_voters().is_empty() || metadata.term > message.term {
                return Err(Refusal::Malformed("its snapshot names no entry or no voter"));
            }
            Ok(())
        }
        T::MsgAppendResponse
        | T::MsgRequestVote
        | T::MsgRequestVoteResponse
        | T::MsgRequestPreVote
        | T::MsgRequestPreVoteResponse
        | T::MsgHeartbeat
        | T::MsgHeartbeatResponse
        | T::MsgTimeoutNow => Ok(()),
        // Proposals are not forwarded (the proposer must know the outcome), the rest is local to a manager.
        _ => Err(Refusal::Malformed("managers do not send this kind")),
    }
}

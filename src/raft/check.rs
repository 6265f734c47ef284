//! Checks of a stored log and of messages before the raft crate gets them: it panics on a log that lost entries and on
//! entries with gaps.

use super::log::Log;
use raft::eraftpb::{ConfState, Message, MessageType};
use std::collections::BTreeSet;

/// Above every index of a log: raft adds to those that it is sent.
const NO_INDEX: u64 = 1 << 62;
/// Terms that a manager may be behind, which is more than elections in a lifetime; those that a message skips are gone for good, and
/// after the last one no leader is elected.
const TERMS_BEHIND: u64 = 1 << 32;

/// Why a message is not passed to raft.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum MessageError {
    /// No manager sends such a message. It is ignored.
    Malformed(&'static str),
    /// The sender relies on entries that this log does not have: this manager lost acknowledged writes.
    WentBackwards(String),
}

/// Checks a log from disk: contiguous, terms in order, commit index and snapshot within it.
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
        return Err(format!("the snapshot is of entry {snapshot}, the log has {} to {index}", log.compacted.0 + 1));
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

/// State of this manager that a message is checked against.
pub(super) struct LocalState<F> {
    /// Raft id.
    pub id: u64,
    /// Raft id of the manager that has sent the message.
    pub sender: u64,
    pub term: u64,
    /// Index of the last entry known to be committed.
    pub committed: u64,
    /// Index of the last entry, durable or not.
    pub last: u64,
    /// Term of the entry with an index; `None` if the log does not have it.
    pub term_of: F,
}

/// Checks a message from another manager.
pub(super) fn message(message: &Message, local: &LocalState<impl Fn(u64) -> Option<u64>>) -> Result<(), MessageError> {
    use MessageType as T;
    if message.to != local.id {
        return Err(MessageError::Malformed("it is for another raft id"));
    }
    if message.from == 0 || message.from == local.id {
        return Err(MessageError::Malformed("its sender is this manager or has no raft id"));
    }
    if message.from != local.sender {
        return Err(MessageError::Malformed("it is in the name of another manager than the one that sent it"));
    }
    if message.term == 0 || message.term.saturating_sub(local.term) > TERMS_BEHIND {
        return Err(MessageError::Malformed("it has no term, or one that no election can have reached"));
    }
    if [message.index, message.commit, message.reject_hint].into_iter().any(|index| index >= NO_INDEX) {
        return Err(MessageError::Malformed("no log has such an index"));
    }
    match message.get_msg_type() {
        T::MsgAppend => {
            // Of an entry that its log does not have raft says that the term is 0, and compares that with this one.
            if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
                return Err(MessageError::Malformed("the entry before its entries has no term, or a later one"));
            }
            let (mut index, mut last_term) = (message.index, message.log_term);
            for entry in message.get_entries() {
                let follows = index.checked_add(1) == Some(entry.index) && entry.term >= last_term.max(1);
                if !follows || entry.term > message.term {
                    return Err(MessageError::Malformed("its entries do not follow each other"));
                }
                (index, last_term) = (entry.index, entry.term);
            }
            if message.term >= local.term
                && let Some(entry) = message
                    .get_entries()
                    .iter()
                    .find(|e| e.index <= local.committed && (local.term_of)(e.index).is_some_and(|term| term != e.term))
            {
                return Err(MessageError::WentBackwards(format!(
                    "the leader has another entry {} than was committed here",
                    entry.index
                )));
            }
            Ok(())
        }
        T::MsgHeartbeat if message.term >= local.term && message.commit > local.last => Err(MessageError::WentBackwards(
            format!("the leader has an acknowledgement of entry {}, the last one in this log is {}", message.commit, local.last),
        )),
        T::MsgAppendResponse if message.term == local.term && message.index > local.last => {
            Err(MessageError::Malformed("it acknowledges an entry that this leader has not sent"))
        }
        T::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            if metadata.index == 0 || metadata.index >= NO_INDEX || metadata.term == 0 || metadata.term > message.term {
                return Err(MessageError::Malformed("its snapshot names no entry"));
            }
            if is_membership(metadata.get_conf_state()) {
                Ok(())
            } else {
                Err(MessageError::Malformed("its snapshot names no membership"))
            }
        }
        T::MsgAppendResponse
        | T::MsgRequestVote
        | T::MsgRequestVoteResponse
        | T::MsgRequestPreVote
        | T::MsgRequestPreVoteResponse
        | T::MsgHeartbeat
        | T::MsgHeartbeatResponse
        | T::MsgTimeoutNow => Ok(()),
        // Proposals are not forwarded, because the proposer needs the outcome; the other kinds are local to a manager.
        _ => Err(MessageError::Malformed("managers do not send this kind")),
    }
}

/// Whether changes of one manager at a time, as skep makes them, lead to this membership: raft panics at one that contradicts itself.
fn is_membership(members: &ConfState) -> bool {
    let (voters, learners) = (members.get_voters(), members.get_learners());
    let all: BTreeSet<u64> = voters.iter().chain(learners).copied().collect();
    let is_simple =
        members.get_voters_outgoing().is_empty() && members.get_learners_next().is_empty() && !members.get_auto_leave();
    is_simple && !voters.is_empty() && !all.contains(&0) && all.len() == voters.len() + learners.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;

    fn check_from(sender: u64, bytes: &[u8]) -> Result<(), MessageError> {
        let parsed = Message::parse_from_bytes(bytes).expect("a message");
        message(&parsed, &LocalState { id: 2, sender, term: 3, committed: 0, last: 0, term_of: |_| None })
    }

    #[test]
    fn a_message_is_of_the_manager_that_sent_it() {
        let mut vote = Message { to: 2, from: 1, term: 3, ..Message::default() };
        vote.set_msg_type(MessageType::MsgRequestVoteResponse);
        let mut bytes = vote.write_to_bytes().expect("written");
        assert_eq!(super::super::sender(&bytes), Some(1));
        assert_eq!(check_from(1, &bytes), Ok(()));
        assert!(matches!(check_from(3, &bytes), Err(MessageError::Malformed(why)) if why.contains("another manager")));
        // The last of two fields counts, and the beginning has the first.
        bytes.extend([3 << 3, 7]);
        assert_eq!(super::super::sender(&bytes), Some(1));
        assert!(check_from(1, &bytes).is_err());
    }

    #[test]
    fn what_does_not_begin_as_raft_writes_it_has_no_sender() {
        for bytes in
            [&b""[..], &[1 << 3], &[1 << 3, 5, 3 << 3, 1], &[1 << 3, 5, 2 << 3, 2, 4 << 3, 1], &[1 << 3, 5, 2 << 3, 2, 3 << 3]]
        {
            assert_eq!(super::super::sender(bytes), None, "{bytes:?}");
        }
        let large = Message { to: 2, from: (1 << 53) - 1, msg_type: MessageType::MsgHeartbeat, ..Message::default() };
        assert_eq!(super::super::sender(&large.write_to_bytes().expect("written")), Some((1 << 53) - 1));
    }
}

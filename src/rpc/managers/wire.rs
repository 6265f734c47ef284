//! What a frame between managers holds: a kind, and for proposals a number that their answer repeats.

use bytes::{Buf as _, BufMut as _, Bytes};

/// Largest frame, in bytes: a snapshot is one message. Only managers get this far.
pub const MAX_FRAME: usize = 1 << 30;

/// Largest first frame: a greeting.
pub const MAX_GREETING: usize = 64 << 10;
/// Number of the answer that is a greeting.
pub const GREETING_NUMBER: u64 = 0;

const RAFT: u8 = 1;
const PROPOSAL: u8 = 2;
const GREETING: u8 = 3;

/// From the manager that dialed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ManagerFrame {
    /// A message for the other manager's raft.
    Raft(Bytes),
    /// A proposal for the leader. Numbers begin at 1.
    Proposal { number: u64, document: Bytes },
    /// What the manager says of itself: the first frame, and the only one that is read of a node which is no manager here. Answered with
    /// the other one's greeting.
    Greeting(Bytes),
}

impl ManagerFrame {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Raft(message) => {
                out.put_u8(RAFT);
                out.put_slice(message);
            }
            Self::Proposal { number, document } => {
                out.put_u8(PROPOSAL);
                out.put_u64(*number);
                out.put_slice(document);
            }
            Self::Greeting(greeting) => {
                out.put_u8(GREETING);
                out.put_slice(greeting);
            }
        }
        out
    }

    /// `None` if it is no such frame.
    pub fn decode(mut frame: Bytes) -> Option<Self> {
        match frame.try_get_u8().ok()? {
            RAFT => Some(Self::Raft(frame)),
            GREETING => Some(Self::Greeting(frame)),
            PROPOSAL => Some(Self::Proposal { number: frame.try_get_u64().ok()?, document: frame }),
            _ => None,
        }
    }
}

/// The answer to a proposal.
pub fn encode_answer(number: u64, document: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + document.len());
    out.put_u64(number);
    out.put_slice(document);
    out
}

/// The number of the proposal and its answer; `None` if it is no answer.
pub fn decode_answer(mut frame: Bytes) -> Option<(u64, Bytes)> {
    Some((frame.try_get_u64().ok()?, frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_written(number: u64, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let document = Bytes::from(bytes);
            let proposal = ManagerFrame::Proposal { number, document: document.clone() };
            for frame in [ManagerFrame::Raft(document.clone()), proposal, ManagerFrame::Greeting(document.clone())] {
                prop_assert_eq!(ManagerFrame::decode(frame.encode().into()), Some(frame));
            }
            prop_assert_eq!(decode_answer(encode_answer(number, &document).into()), Some((number, document)));
        }
        #[test]
        fn garbage_is_no_frame_or_a_frame(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
            let _ = ManagerFrame::decode(Bytes::from(bytes.clone()));
            let _ = decode_answer(Bytes::from(bytes));
        }
    }

    #[test]
    fn what_is_cut_short_is_no_frame() {
        for cut in [&[][..], &[9], &[PROPOSAL, 1, 2]] {
            assert_eq!(ManagerFrame::decode(Bytes::copy_from_slice(cut)), None);
        }
        assert_eq!(decode_answer(Bytes::from_static(&[1, 2, 3])), None);
    }
}

//! A session as the leader's cores see it: its number, and what they want done with it.

use crate::protocol::ToNode;

/// Number of a session on this manager. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// Output of the leader's cores, to be carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Sends a message in a session.
    Send { session: SessionId, message: ToNode },
    /// Ends a session after the messages before this.
    Close { session: SessionId },
}

impl Effect {
    /// Sends a last message and ends the session.
    pub(super) fn refuse(session: SessionId, message: ToNode) -> [Self; 2] {
        [Self::Send { session, message }, Self::Close { session }]
    }
}

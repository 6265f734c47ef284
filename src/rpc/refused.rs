//! Connections on 2377 that a manager refuses for what the other side is or does, counted by reason. What ends for another reason, such as
//! a network that breaks, is not among them.

use super::frame::FrameError;
use super::key_change::KeyChangeRefusal;
use crate::protocol::{JoinRefused, NoCommonFormat, RenewalRefused};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PeerRefusal {
    /// Too many connections that are not authenticated.
    Connections,
    /// No TLS, or a certificate of another swarm.
    Handshake,
    /// No TLS within its time.
    HandshakeTime,
    /// It does not say what it is for, at the wrong listener, or in a format that is not spoken here.
    Protocol,
    /// A join without a token of the swarm.
    Token,
    /// A join that failed for another reason.
    Join,
    /// No certificate, a foreign one, or one that has expired.
    Certificate,
    /// A node at another node's address.
    Address,
    /// A node that is no member any more.
    Member,
    /// A node that is no manager, on a connection of managers.
    Manager,
    /// A message of raft in the name of another manager.
    Sender,
    /// A WireGuard key that was not accepted.
    Key,
    /// A frame that is too large or not understood.
    Frame,
}

impl PeerRefusal {
    pub const ALL: [Self; 13] = [
        Self::Connections,
        Self::Handshake,
        Self::HandshakeTime,
        Self::Protocol,
        Self::Token,
        Self::Join,
        Self::Certificate,
        Self::Address,
        Self::Member,
        Self::Manager,
        Self::Sender,
        Self::Key,
        Self::Frame,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Handshake => "handshake",
            Self::HandshakeTime => "handshake_time",
            Self::Protocol => "protocol",
            Self::Token => "token",
            Self::Join => "join",
            Self::Certificate => "certificate",
            Self::Address => "address",
            Self::Member => "member",
            Self::Manager => "manager",
            Self::Sender => "sender",
            Self::Key => "key",
            Self::Frame => "frame",
        }
    }

    /// An error with this reason.
    pub fn of(self, error: anyhow::Error) -> anyhow::Error {
        RefusedPeer { reason: self, error }.into()
    }

    pub fn error(self, text: impl Into<String>) -> anyhow::Error {
        self.of(anyhow::anyhow!(text.into()))
    }

    /// Why the connection that ended with this error was refused; `None` if it was not.
    pub fn cause_of(error: &anyhow::Error) -> Option<Self> {
        error.chain().find_map(|cause| {
            if let Some(refused) = cause.downcast_ref::<RefusedPeer>() {
                return Some(refused.reason);
            }
            if let Some(FrameError::TooLong { .. } | FrameError::Garbage(_)) = cause.downcast_ref() {
                return Some(Self::Frame);
            }
            if cause.is::<NoCommonFormat>() {
                return Some(Self::Protocol);
            }
            if let Some(KeyChangeRefusal::Refused(_)) = cause.downcast_ref() {
                return Some(Self::Key);
            }
            match (cause.downcast_ref::<JoinRefused>(), cause.downcast_ref::<RenewalRefused>()) {
                (Some(JoinRefused::Token), _) => Some(Self::Token),
                (Some(JoinRefused::Format { .. }), _) => Some(Self::Protocol),
                (Some(JoinRefused::Other(_)), _) => Some(Self::Join),
                (_, Some(RenewalRefused::NotAMember)) => Some(Self::Member),
                (_, Some(RenewalRefused::ForeignAddress)) => Some(Self::Address),
                (_, Some(RenewalRefused::Expired)) => Some(Self::Certificate),
                _ => None,
            }
        })
    }
}

/// An error with its reason.
#[derive(Debug, thiserror::Error)]
#[error("{error:#}")]
struct RefusedPeer {
    reason: PeerRefusal,
    error: anyhow::Error,
}

/// Counters by reason.
#[derive(Default, Debug)]
pub struct RefusedPeers([AtomicU64; PeerRefusal::ALL.len()]);

impl RefusedPeers {
    pub(super) fn count(&self, reason: PeerRefusal) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// By the name of the reason, those without any too.
    pub fn read(&self) -> BTreeMap<String, u64> {
        let read = |reason: PeerRefusal| (reason.name().to_owned(), self.0[reason as usize].load(Ordering::Relaxed));
        PeerRefusal::ALL.into_iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn each_reason_has_a_counter_of_its_own() {
        let refused = RefusedPeers::default();
        for (times, reason) in PeerRefusal::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| refused.count(reason));
        }
        let read = refused.read();
        assert!(PeerRefusal::ALL.iter().enumerate().all(|(times, reason)| read[reason.name()] == times as u64), "{read:?}");
    }

    #[test]
    fn a_reason_is_found_below_what_is_said_of_the_connection_and_a_broken_network_is_none() {
        let cause = |error: anyhow::Error| PeerRefusal::cause_of(&error.context("session of node x"));
        assert_eq!(cause(PeerRefusal::Address.error("it is elsewhere")), Some(PeerRefusal::Address));
        assert_eq!(cause(FrameError::TooLong { len: 2, max: 1 }.into()), Some(PeerRefusal::Frame));
        assert_eq!(cause(FrameError::Truncated.into()), None);
        assert_eq!(cause(JoinRefused::Token.into()), Some(PeerRefusal::Token));
        assert_eq!(cause(JoinRefused::Unavailable("no leader".to_owned()).into()), None);
        assert_eq!(cause(RenewalRefused::NotAMember.into()), Some(PeerRefusal::Member));
        let error = Err::<(), _>(PeerRefusal::Frame.error("?")).context("read").unwrap_err();
        assert_eq!((cause(error), cause(std::io::Error::other("reset").into())), (Some(PeerRefusal::Frame), None));
    }
}

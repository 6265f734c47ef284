//! What the handle asks of raft's thread.

use super::config::RaftError;
use super::core::MembershipChange;
use tokio::sync::oneshot;

pub(super) type Responder<T> = oneshot::Sender<Result<T, RaftError>>;

/// `O` is the outcome of applying an entry.
pub(super) enum RaftRequest<O> {
    Propose {
        data: Vec<u8>,
        responder: Responder<(u64, O)>,
    },
    Change {
        change: MembershipChange,
        responder: Responder<u64>,
    },
    Message {
        from: u64,
        bytes: Vec<u8>,
    },
    TransferLeadership,
    Ended(u64),
    Supersede(String),
    /// Encrypt the log as one that is written now.
    SealAgain {
        responder: Responder<()>,
    },
}

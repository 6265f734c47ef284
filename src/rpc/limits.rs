//! Bounds on what a client may do to the server.

use std::time::Duration;

/// Bounds of a [`super::Server`].
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time from the end of the handshake to the complete first message.
    pub first_message: Duration,
    /// Time for a whole join, proof of UDP reachability included.
    pub join: Duration,
    /// Time between reads of the tunnel's counters during a join.
    pub proof_interval: Duration,
    /// A session ends when no byte was received, or a frame was not taken, for this long.
    pub session_silence: Duration,
    /// Messages queued for a node; the dispatcher waits when the queue is full.
    pub session_queue: usize,
    /// Open connections to a listener that have not shown a certificate, per source address.
    pub unauthenticated_per_source: usize,
    /// Open connections to a listener that have not shown a certificate, in all. Each listener has its own, and members' own
    /// addresses in the mesh count by source alone: nothing else keeps a member from opening its session.
    pub unauthenticated: usize,
    /// Failed joins of one source address (of IPv6, of a /64), refused ones and revoked ones apart; one more is allowed in each
    /// [`Self::join_forgiven_after`].
    pub failed_joins: u32,
    pub join_forgiven_after: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            first_message: Duration::from_secs(5),
            join: Duration::from_secs(15),
            proof_interval: Duration::from_millis(100),
            session_silence: Duration::from_secs(10),
            session_queue: 64,
            unauthenticated_per_source: 16,
            unauthenticated: 256,
            failed_joins: 32,
            join_forgiven_after: Duration::from_secs(2),
        }
    }
}

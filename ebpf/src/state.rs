//! What a reply entry says of the state of a TCP connection. Pure.

use crate::Reply;

/// Flag of a reply entry: the container has answered the client's SYN; [`Reply::expected`] is valid.
pub const SYN_ACKED: u32 = 1;
/// Flag of a reply entry: the container has sent a segment of an established connection.
pub const ANSWERED: u32 = 2;
/// Flag of a reply entry: the client has sent a FIN.
pub const CLIENT_FIN: u32 = 4;
/// Flag of a reply entry: the container has sent a FIN.
pub const CONTAINER_FIN: u32 = 8;
/// Flag of a reply entry: the connection found no room among the established ones, and was counted.
pub const NO_ROOM: u32 = 16;

/// Seconds of silence of an established connection's entry node from which a packet that comes by another one moves the
/// connection there. The clock counts whole seconds, so this is at least one second. A client that did move repeats what it
/// says until then.
pub const TAKEOVER_SILENCE: u32 = 2;

impl Reply {
    /// Whether both ends have sent a FIN.
    #[inline(always)]
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.flags & (CLIENT_FIN | CONTAINER_FIN) == CLIENT_FIN | CONTAINER_FIN
    }

    /// Whether a segment of the client that acknowledges `number` (as packets hold it) shows that both ends have the
    /// connection. A forged one does not know the number, and a container answers a segment of no connection with RST.
    #[inline(always)]
    #[must_use]
    pub fn is_established_by(&self, number: u32) -> bool {
        !self.is_closed() && (self.flags & ANSWERED != 0 || self.flags & SYN_ACKED != 0 && self.expected == number)
    }

    /// Whether a SYN of the same client continues this handshake; else it begins a new connection.
    #[inline(always)]
    #[must_use]
    pub fn is_handshake(&self) -> bool {
        self.flags & !SYN_ACKED == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_established_by_the_right_number_or_after_an_answer() {
        let reply = |flags| Reply { flags, expected: 7, ..Reply::default() };
        assert!(!reply(0).is_established_by(7), "the container is silent");
        assert!(reply(SYN_ACKED).is_established_by(7));
        assert!(!reply(SYN_ACKED).is_established_by(8), "forged");
        assert!(reply(ANSWERED).is_established_by(8));
        assert!(reply(ANSWERED | CLIENT_FIN).is_established_by(8), "half closed");
        assert!(!reply(ANSWERED | CLIENT_FIN | CONTAINER_FIN).is_established_by(8), "the last acknowledgements");
    }
}

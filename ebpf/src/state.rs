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
/// Flag of a reply entry: [`Reply::expected`] is the number that the container acknowledged last.
pub const ACKED: u32 = 32;
/// Flag of a reply entry of a client that entered by this node: [`Reply::seen`] is the sequence number of its SYN.
pub const SYN_KNOWN: u32 = 64;

/// Octets that a FIN or RST of the client may be ahead of what the container acknowledged last: more than are on their way
/// unacknowledged. A forged one is within them once in 512 times.
const AHEAD: u32 = 1 << 23;
/// Octets that it may be behind: a segment that is sent again, longer than before.
const BEHIND: u32 = 1 << 16;

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
        !self.is_closed()
            && (self.flags & ANSWERED != 0 || self.flags & (SYN_ACKED | ACKED) == SYN_ACKED && self.expected == number)
    }

    /// Whether a SYN with the sequence number `number` (as packets hold it) of the same client is the one that this connection
    /// began with, sent again; another one begins a new connection. Only a backend that has answered is kept if it no longer
    /// serves.
    #[inline(always)]
    #[must_use]
    pub fn is_begun_by(&self, number: u32, serving: bool) -> bool {
        self.flags & SYN_KNOWN != 0 && self.seen == number && (serving || self.flags & (SYN_ACKED | ANSWERED) != 0)
    }

    /// Whether the container may accept a FIN or RST with the sequence number `number` (as packets hold it). Unknown before it
    /// has acknowledged anything: then it may.
    #[inline(always)]
    #[must_use]
    pub fn is_in_window(&self, number: u32) -> bool {
        let ahead = u32::from_be(number).wrapping_sub(u32::from_be(self.expected));
        self.flags & ACKED == 0 || ahead.wrapping_add(BEHIND) < AHEAD + BEHIND
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
        assert!(!reply(SYN_ACKED | ACKED).is_established_by(7), "the number is the client's");
    }

    #[test]
    fn a_syn_that_is_sent_again_has_the_same_number() {
        let reply = |flags| Reply { flags, seen: 7, ..Reply::default() };
        assert!(reply(SYN_KNOWN).is_begun_by(7, true));
        assert!(!reply(SYN_KNOWN).is_begun_by(8, true), "a new connection");
        assert!(!reply(SYN_KNOWN).is_begun_by(7, false), "no answer yet, and the backend is on its way out");
        assert!(reply(SYN_KNOWN | SYN_ACKED).is_begun_by(7, false), "it has the connection");
        assert!(!reply(SYN_ACKED).is_begun_by(7, true), "`seen` is a time");
    }

    #[test]
    fn the_end_of_a_connection_is_near_what_was_acknowledged() {
        for last in [0_u32, 5, u32::MAX - 2, 1 << 31] {
            let reply = Reply { flags: ACKED, expected: last.to_be(), ..Reply::default() };
            for (ahead, accepted) in [
                (0, true),
                (AHEAD - 1, true),
                (AHEAD, false),
                (1 << 31, false),
                (BEHIND.wrapping_neg(), true),
                ((BEHIND + 1).wrapping_neg(), false),
            ] {
                assert_eq!(reply.is_in_window(last.wrapping_add(ahead).to_be()), accepted, "{last} {ahead}");
            }
        }
        assert!(Reply { expected: 5, ..Reply::default() }.is_in_window(u32::MAX), "nothing was acknowledged yet");
    }
}

//! Whether UDP passes between a joiner and its manager in both directions, judged by what both have received through the
//! tunnel. Pure: counters and probes are the caller's.

use crate::protocol::Proof;

/// Which side of a join a [`UdpReachability`] belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JoinSide {
    Joiner,
    Manager,
}

/// What both sides have received, as known to one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpReachability {
    side: JoinSide,
    /// Bytes that this side has received from the other.
    received: u64,
    /// Bytes that the other side reports to have received from this one.
    reported: u64,
}

/// A direction, as seen from one side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From this side to the other.
    Out,
    /// From the other side to this one.
    In,
}

impl UdpReachability {
    /// Nothing received yet.
    pub fn new(side: JoinSide) -> Self {
        Self { side, received: 0, reported: 0 }
    }
    /// Records this side's counter, in bytes. A smaller value than before is ignored.
    pub fn set_received(&mut self, bytes: u64) {
        self.received = self.received.max(bytes);
    }
    /// Records the other side's counter. A smaller value than before is ignored.
    pub fn set_reported(&mut self, proof: Proof) {
        self.reported = self.reported.max(proof.received);
    }
    /// The report for the other side.
    pub fn proof(&self) -> Proof {
        Proof { received: self.received }
    }
    /// Both directions have carried packets.
    pub fn proved(&self) -> bool {
        self.received > 0 && self.reported > 0
    }
    /// The direction that has carried nothing; `None` if both have. If neither has, it is the one from the joiner to the
    /// manager: the joiner sends first, so while its packets are lost the manager has nothing to answer.
    pub fn blocked(&self) -> Option<Direction> {
        match (self.received > 0, self.reported > 0, self.side) {
            (true, true, _) => None,
            (false, false, JoinSide::Joiner) | (true, false, _) => Some(Direction::Out),
            (false, false, JoinSide::Manager) | (false, true, _) => Some(Direction::In),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(side: JoinSide, received: u64, reported: u64) -> UdpReachability {
        UdpReachability { side, received, reported }
    }

    #[test]
    fn both_sides_name_the_same_direction() {
        for (joiner_received, manager_received) in [(0, 0), (0, 9), (9, 0), (9, 9)] {
            let joiner = state(JoinSide::Joiner, joiner_received, manager_received);
            let manager = state(JoinSide::Manager, manager_received, joiner_received);
            let mirrored = manager.blocked().map(|d| match d {
                Direction::Out => Direction::In,
                Direction::In => Direction::Out,
            });
            assert_eq!(joiner.blocked(), mirrored);
            assert_eq!(joiner.proved(), joiner.blocked().is_none());
        }
        assert_eq!(state(JoinSide::Joiner, 0, 9).blocked(), Some(Direction::In));
        assert_eq!(state(JoinSide::Joiner, 0, 0).blocked(), Some(Direction::Out));
    }

    #[test]
    fn counters_only_grow() {
        let mut udp = UdpReachability::new(JoinSide::Manager);
        udp.set_received(5);
        udp.set_received(0);
        udp.set_reported(Proof { received: 7 });
        udp.set_reported(Proof { received: 1 });
        assert_eq!(udp, state(JoinSide::Manager, 5, 7));
    }
}

//! Whether the UDP way between a joiner and its manager works in both directions, judged by what both ends received
//! through the tunnel. Pure: who counts and who sends is elsewhere.

use crate::protocol::Proof;

/// What both ends have received, as seen from one end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Way {
    /// Bytes that this end got from the other.
    pub here: u64,
    /// Bytes that the other end says it got from this one.
    pub there: u64,
}

/// A direction, as seen from one end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From this end to the other.
    Out,
    /// From the other end to this one.
    In,
}

impl Way {
    /// What this end counted.
    pub fn received(&mut self, bytes: u64) {
        self.here = self.here.max(bytes);
    }
    /// What the other end said.
    pub fn told(&mut self, proof: Proof) {
        self.there = self.there.max(proof.received);
    }
    /// What to tell the other end.
    pub fn proof(&self) -> Proof {
        Proof { received: self.here }
    }
    /// Both directions carried something.
    pub fn proved(&self) -> bool {
        self.here > 0 && self.there > 0
    }
    /// The direction that carried nothing; `None` if both did. When neither did it is the way from the joiner to the
    /// manager: the joiner speaks first, so while its packets are lost there is nothing that could come back.
    pub fn blocked(&self, joiner: bool) -> Option<Direction> {
        match (self.here > 0, self.there > 0) {
            (true, true) => None,
            (false, false) => Some(if joiner { Direction::Out } else { Direction::In }),
            (false, true) => Some(Direction::In),
            (true, false) => Some(Direction::Out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_name_the_same_direction() {
        for (joiner_got, manager_got) in [(0, 0), (0, 9), (9, 0), (9, 9)] {
            let joiner = Way { here: joiner_got, there: manager_got };
            let manager = Way { here: manager_got, there: joiner_got };
            let mirrored = manager.blocked(false).map(|d| match d {
                Direction::Out => Direction::In,
                Direction::In => Direction::Out,
            });
            assert_eq!(joiner.blocked(true), mirrored);
            assert_eq!(joiner.proved(), joiner.blocked(true).is_none());
        }
        assert_eq!(Way { here: 0, there: 9 }.blocked(true), Some(Direction::In));
        assert_eq!(Way { here: 0, there: 0 }.blocked(true), Some(Direction::Out));
    }

    #[test]
    fn counters_only_grow() {
        let mut way = Way::default();
        way.received(5);
        way.received(0);
        way.told(Proof { received: 7 });
        way.told(Proof { received: 1 });
        assert_eq!(way, Way { here: 5, there: 7 });
    }
}

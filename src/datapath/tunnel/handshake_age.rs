//! Ages of handshakes, where the kernel gives wall-clock times: a clock that is set must not make sessions look old, or live for ever.
//! Pure.

use crate::model::WgKey;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What was seen of each peer's last handshake.
#[derive(Default, Debug)]
pub(super) struct HandshakeAges(HashMap<WgKey, Seen>);

#[derive(Debug)]
struct Seen {
    /// Wall-clock time of the handshake.
    at: Duration,
    /// When it was first seen, and how old it was then.
    first: Instant,
    age: Duration,
    /// When the peer was last looked at.
    last: Instant,
}

impl HandshakeAges {
    /// The age of the handshake at the wall-clock time `at`. `wall` and `now` are the present time of both clocks.
    pub(super) fn age(&mut self, key: WgKey, at: Duration, wall: Duration, now: Instant) -> Duration {
        if let Some(seen) = self.0.get_mut(&key).filter(|seen| seen.at == at) {
            seen.last = now;
            return seen.age + now.duration_since(seen.first);
        }
        // A new one is not older than the last look, whatever the wall clock says. Of the first look there is only the wall clock.
        let bound = self.0.get(&key).map_or(Duration::MAX, |seen| now.duration_since(seen.last));
        let age = wall.saturating_sub(at).min(bound);
        self.0.insert(key, Seen { at, first: now, age, last: now });
        age
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_changes_no_age() {
        let key = WgKey([1; 32]);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let s = Duration::from_secs;
        let mut ages = HandshakeAges::default();
        assert_eq!(ages.age(key, s(1000), s(1010), start), s(10));
        assert_eq!(ages.age(key, s(1000), s(1015), after(5)), s(15));
        // The clock is set an hour ahead, then an hour back.
        assert_eq!(ages.age(key, s(1000), s(4620), after(10)), s(20));
        assert_eq!(ages.age(key, s(1000), s(900), after(200)), s(210), "it does not look young for ever");
        // Handshakes after each.
        assert_eq!(ages.age(key, s(4700), s(900), after(205)), s(0));
        assert_eq!(ages.age(key, s(902), s(9000), after(210)), s(5), "not older than the last look");
        assert_eq!(ages.age(key, s(902), s(9000), after(215)), s(10));
        assert_eq!(ages.age(WgKey([2; 32]), s(50), s(40), after(215)), s(0));
    }
}

//! Which manager to try next, and after what pause. Pure: chance is passed in, time is the caller's.

use rand::Rng;
use std::net::SocketAddr;
use std::time::Duration;

/// How a try ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tried {
    /// There was a session, now it is closed.
    Lost,
    /// There was a session, but the leader said nothing any more.
    Silent,
    /// There was none.
    Failed,
    /// That manager does not lead; it named another, or not.
    NotLeader(Option<SocketAddr>),
}

/// The search for the leader.
#[derive(Clone, Debug)]
pub struct Search {
    shortest: Duration,
    longest: Duration,
    /// Tries since the last session.
    failures: u32,
    /// Where the leader is said to be: tried first, without a pause.
    hint: Option<SocketAddr>,
    /// Hints followed since the last session or pause.
    hops: u32,
    last: Option<SocketAddr>,
}

/// Hints followed without a pause; more are managers that point at each other.
const HOPS: u32 = 3;

impl Search {
    /// With pauses from `shortest`, doubling up to `longest`.
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, failures: 0, hint: None, hops: 0, last: None }
    }

    /// The leader answers in a session. Being welcome is not enough: a manager may welcome and then be of no use.
    pub fn found(&mut self) {
        self.failures = 0;
        self.hops = 0;
    }

    /// A try is over.
    pub fn over(&mut self, how: Tried) {
        self.failures += 1;
        self.hint = None;
        match how {
            Tried::Lost | Tried::Failed => {}
            // Not a restart, which would have closed the session: on to the next one.
            Tried::Silent => self.failures = self.failures.max(2),
            Tried::NotLeader(hint) => self.hint = hint.filter(|h| Some(*h) != self.last),
        }
    }

    /// Whom to try next, after which pause; `None` while no manager is known.
    pub fn next(&mut self, candidates: &[SocketAddr], rng: &mut impl Rng) -> Option<(Duration, SocketAddr)> {
        if let Some(hint) = self.hint.take()
            && self.hops < HOPS
        {
            self.hops += 1;
            self.last = Some(hint);
            return Some((Duration::ZERO, hint));
        }
        self.hops = 0;
        let position = self.last.and_then(|last| candidates.iter().position(|c| *c == last));
        let next = match position {
            // The first failure may be a restart: the same one again, then round.
            Some(at) if self.failures <= 1 => candidates.get(at),
            Some(at) => candidates.get((at + 1) % candidates.len()),
            // Everybody begins somewhere else, so that not all ask the same one.
            None if candidates.is_empty() => None,
            None => candidates.get(rng.random_range(0..candidates.len())),
        };
        let next = *next?;
        self.last = Some(next);
        Some((self.pause(rng), next))
    }

    fn pause(&self, rng: &mut impl Rng) -> Duration {
        if self.failures == 0 {
            return Duration::ZERO;
        }
        let full = self.shortest.saturating_mul(1 << (self.failures - 1).min(16)).min(self.longest);
        // Between half and all of it, so that nodes which lost the same leader do not come back in step.
        full.mul_f64(0.5 + rng.random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const MS: Duration = Duration::from_millis(1);

    fn managers(n: u16) -> Vec<SocketAddr> {
        (1..=n).map(|i| SocketAddr::from(([10, 0, 0, 1], i))).collect()
    }

    #[test]
    fn pauses_grow_are_jittered_and_bounded() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let mut search = Search::new(100 * MS, 2000 * MS);
        assert_eq!(search.next(&managers(1), rng).unwrap().0, Duration::ZERO, "the first try is at once");
        for full in [100, 200, 400, 800, 1600, 2000, 2000] {
            search.over(Tried::Failed);
            let (pause, _) = search.next(&managers(1), rng).unwrap();
            assert!(pause >= full / 2 * MS && pause <= full * MS, "{pause:?} of {full}");
        }
        search.found();
        search.over(Tried::Lost);
        assert!(search.next(&managers(1), rng).unwrap().0 <= 100 * MS);
    }

    #[test]
    fn every_manager_is_tried_in_turn() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let all = managers(3);
        let mut search = Search::new(MS, MS);
        let mut seen = Vec::new();
        for _ in 0..7 {
            seen.push(search.next(&all, rng).unwrap().1);
            search.over(Tried::Failed);
        }
        assert_eq!(seen[0], seen[1], "once more");
        for manager in &all {
            assert!(seen.contains(manager));
        }
        assert_eq!(search.next(&[], rng), None);
    }

    #[test]
    fn a_silent_leader_is_not_asked_again_first() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let all = managers(2);
        let mut search = Search::new(MS, MS);
        let first = search.next(&all, rng).unwrap().1;
        search.found();
        search.over(Tried::Lost);
        assert_eq!(search.next(&all, rng).unwrap().1, first, "it may have been restarted");
        search.found();
        search.over(Tried::Silent);
        assert_ne!(search.next(&all, rng).unwrap().1, first);
    }

    #[test]
    fn hints_are_followed_at_once_but_not_in_circles() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let all = managers(3);
        let mut search = Search::new(100 * MS, 2000 * MS);
        search.next(&all, rng);
        let mut at_once = 0;
        for turn in 0..20 {
            search.over(Tried::NotLeader(Some(all[turn % 2])));
            if let Some((Duration::ZERO, hinted)) = search.next(&all, rng) {
                assert_eq!(hinted, all[turn % 2]);
                at_once += 1;
            }
        }
        assert!((3..=16).contains(&at_once), "{at_once}");
        let own = search.last;
        search.over(Tried::NotLeader(own));
        assert!(search.next(&all, rng).unwrap().0 > Duration::ZERO, "one that names itself is not asked again at once");
    }
}

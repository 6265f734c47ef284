//! Which manager to try next, and after what pause. Pure: randomness is passed in, waiting is the caller's.

use crate::backoff::Backoff;
use rand::Rng;
use std::net::SocketAddr;
use std::time::Duration;

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttemptOutcome {
    /// A session was open and was closed.
    Lost,
    /// The node itself closed the session, to open the next one with another certificate.
    Renewed,
    /// A session was open, but nothing more was received from the leader.
    Silent,
    /// No session was opened.
    Failed,
    /// That manager does not lead; it may have named the leader.
    NotLeader(Option<SocketAddr>),
}

/// The search for the leader.
#[derive(Clone, Debug)]
pub struct LeaderSearch {
    backoff: Backoff,
    /// Attempts since the leader last answered.
    failures: u32,
    /// The leader's address as another manager named it: tried first, without a pause.
    hint: Option<SocketAddr>,
    /// Hints followed since the leader last answered, or since the last pause.
    hops: u32,
    last: Option<SocketAddr>,
}

/// Hints followed without a pause; after more of them, managers name each other.
const HOPS: u32 = 3;

impl LeaderSearch {
    /// With these pauses between failed attempts.
    pub fn new(backoff: Backoff) -> Self {
        Self { backoff, failures: 0, hint: None, hops: 0, last: None }
    }

    /// The leader has answered a heartbeat. A `Welcome` is not enough: a manager may send one and then stop answering.
    pub fn leader_answers(&mut self) {
        self.failures = 0;
        self.hops = 0;
    }

    /// An attempt has ended.
    pub fn ended(&mut self, outcome: AttemptOutcome) {
        self.hint = None;
        match outcome {
            // Nothing failed: the same manager again.
            AttemptOutcome::Renewed => return,
            AttemptOutcome::Lost | AttemptOutcome::Failed => {}
            // Not a restart, which would have closed the session: continue with the next manager.
            AttemptOutcome::Silent => self.failures = self.failures.max(1),
            AttemptOutcome::NotLeader(hint) => self.hint = hint.filter(|h| Some(*h) != self.last),
        }
        self.failures += 1;
    }

    /// The manager to try next, and the pause before it; `None` while no manager is known.
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
            // The first failure may be a restart: the same manager again, then round-robin.
            Some(at) if self.failures <= 1 => candidates.get(at),
            Some(at) => candidates.get((at + 1) % candidates.len()),
            // A random start, so that the nodes do not all try the same manager.
            None if candidates.is_empty() => None,
            None => candidates.get(rng.random_range(0..candidates.len())),
        };
        let next = *next?;
        self.last = Some(next);
        // Jittered, so that nodes which lost the same leader do not return together.
        Some((self.backoff.jittered(self.failures, rng), next))
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
    fn a_session_that_is_renewed_returns_to_the_same_manager_without_a_pause() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let mut search = LeaderSearch::new(Backoff::new(100 * MS, 2000 * MS));
        let (_, leader) = search.next(&managers(3), rng).unwrap();
        search.leader_answers();
        for _ in 0..5 {
            search.ended(AttemptOutcome::Renewed);
            assert_eq!(search.next(&managers(3), rng), Some((Duration::ZERO, leader)));
        }
    }

    #[test]
    fn pauses_grow_are_jittered_and_bounded() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let mut search = LeaderSearch::new(Backoff::new(100 * MS, 2000 * MS));
        assert_eq!(search.next(&managers(1), rng).unwrap().0, Duration::ZERO, "the first attempt is immediate");
        for full in [100, 200, 400, 800, 1600, 2000, 2000] {
            search.ended(AttemptOutcome::Failed);
            let (pause, _) = search.next(&managers(1), rng).unwrap();
            assert!(pause >= full / 2 * MS && pause <= full * MS, "{pause:?} of {full}");
        }
        search.leader_answers();
        search.ended(AttemptOutcome::Lost);
        assert!(search.next(&managers(1), rng).unwrap().0 <= 100 * MS);
    }

    #[test]
    fn every_manager_is_tried_in_turn() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let all = managers(3);
        let mut search = LeaderSearch::new(Backoff::new(MS, MS));
        let mut seen = Vec::new();
        for _ in 0..7 {
            seen.push(search.next(&all, rng).unwrap().1);
            search.ended(AttemptOutcome::Failed);
        }
        assert_eq!(seen[0], seen[1], "the first failure retries the same manager");
        for manager in &all {
            assert!(seen.contains(manager));
        }
        assert_eq!(search.next(&[], rng), None);
    }

    #[test]
    fn a_silent_leader_is_not_tried_first() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let all = managers(2);
        let mut search = LeaderSearch::new(Backoff::new(MS, MS));
        let first = search.next(&all, rng).unwrap().1;
        search.leader_answers();
        search.ended(AttemptOutcome::Lost);
        assert_eq!(search.next(&all, rng).unwrap().1, first, "it may have been restarted");
        search.leader_answers();
        search.ended(AttemptOutcome::Silent);
        assert_ne!(search.next(&all, rng).unwrap().1, first);
    }

    #[test]
    fn hints_are_followed_at_once_but_not_in_a_cycle() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let all = managers(3);
        let mut search = LeaderSearch::new(Backoff::new(100 * MS, 2000 * MS));
        search.next(&all, rng);
        let mut at_once = 0;
        for turn in 0..20 {
            search.ended(AttemptOutcome::NotLeader(Some(all[turn % 2])));
            if let Some((Duration::ZERO, hinted)) = search.next(&all, rng) {
                assert_eq!(hinted, all[turn % 2]);
                at_once += 1;
            }
        }
        assert!((3..=16).contains(&at_once), "{at_once}");
        let own = search.last;
        search.ended(AttemptOutcome::NotLeader(own));
        assert!(search.next(&all, rng).unwrap().0 > Duration::ZERO, "a manager that names itself is not tried again at once");
    }
}

//! Pauses between attempts that failed.

use rand::Rng;
use std::time::Duration;

/// Bounds of the pauses: the first one, doubled after each further failure up to the longest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// Pause after the first failure.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
}

impl Backoff {
    /// With these bounds.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// Pause after so many failures in a row; none after none.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        self.first.saturating_mul(1 << doublings.min(16)).min(self.longest)
    }

    /// Between half of the pause and all of it, so that many who failed together do not try again together.
    #[must_use]
    pub fn jittered(&self, failures: u32, rng: &mut impl Rng) -> Duration {
        self.pause(failures).mul_f64(0.5 + rng.random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff::new(100 * MS, 1000 * MS);
        let pauses: Vec<u128> = [0, 1, 2, 3, 4, 5, u32::MAX].map(|n| backoff.pause(n).as_millis()).into();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        let backoff = Backoff::new(100 * MS, 1000 * MS);
        let rng = &mut rand::rngs::StdRng::seed_from_u64(3);
        let pauses: Vec<Duration> = (0..100).map(|_| backoff.jittered(2, rng)).collect();
        assert!(pauses.iter().all(|pause| (100 * MS..=200 * MS).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}

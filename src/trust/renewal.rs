//! When a node certificate is due for renewal. Pure: clock and randomness are passed in.

use crate::model::Timestamp;
use rand::Rng;
use std::time::Duration;

/// Life of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Validity {
    /// When the certificate is due: at a random point between 50 and 80 % of its life, as in SwarmKit. The spread keeps the
    /// nodes of a cluster from requesting certificates together; the rest of the life is for attempts that fail.
    #[must_use]
    pub fn renewal_time(&self, rng: &mut impl Rng) -> Timestamp {
        let life = self.not_after.since(self.not_before);
        self.not_before.plus(life.mul_f64(rng.random_range(0.5..0.8)))
    }

    /// Time from `now` until the certificate is due; zero if it is due already.
    #[must_use]
    pub fn until_renewal(&self, now: Timestamp, rng: &mut impl Rng) -> Duration {
        self.renewal_time(rng).since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    const DAY: Duration = Duration::from_hours(24);
    const START: Timestamp = Timestamp(1_795_000_000_000_000_000);

    fn validity() -> Validity {
        Validity { not_before: START, not_after: START.plus(90 * DAY) }
    }

    #[test]
    fn a_certificate_is_due_between_50_and_80_percent_of_its_life() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(7);
        let times: Vec<Timestamp> = (0..1000).map(|_| validity().renewal_time(rng)).collect();
        let (first, last) = (START.plus(45 * DAY), START.plus(72 * DAY));
        assert!(times.iter().all(|time| (first..=last).contains(time)));
        let spread = times.iter().max().unwrap().since(*times.iter().min().unwrap());
        assert!(spread > 20 * DAY, "the times are spread over the range: {spread:?}");
    }

    #[test]
    fn an_old_certificate_is_due_at_once_and_a_young_one_is_not() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(7);
        for days in [72, 90, 400] {
            assert_eq!(validity().until_renewal(START.plus(days * DAY), rng), Duration::ZERO, "after {days} days");
        }
        let wait = validity().until_renewal(START.plus(10 * DAY), rng);
        assert!((35 * DAY..=62 * DAY).contains(&wait), "{wait:?}");
        // A clock that is behind the manager's.
        assert!(validity().until_renewal(Timestamp(0), rng) > 45 * DAY);
    }

    #[test]
    fn a_certificate_without_a_life_is_due_at_once() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(7);
        let reversed = Validity { not_before: START, not_after: START };
        assert_eq!(reversed.renewal_time(rng), START);
        assert_eq!(reversed.until_renewal(START, rng), Duration::ZERO);
    }
}

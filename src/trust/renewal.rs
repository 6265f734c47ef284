//! When a node certificate is due for renewal, and how near its end is. Pure: clock and randomness are passed in.

use super::{TrustError, name};
use crate::model::Timestamp;
use rand::Rng;
use std::time::Duration;

/// Certificates are valid from this long before they are issued, as Swarm's: a machine whose clock is behind accepts a
/// certificate that was just issued. It is not part of the life that renewals are computed from, which would make a
/// certificate of an hour or less due as soon as it is issued.
pub(super) const BACKDATED: Duration = Duration::from_hours(1);

const SECOND: Duration = Duration::from_secs(1);

/// Below this part of its life a certificate's end is near: renewals, which begin at half of it, have failed since.
const NEAR: f64 = 0.2;

/// Life of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// What is left of a certificate's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remaining {
    /// More than a fifth.
    Enough,
    /// A fifth or less.
    Little,
    /// Nothing.
    Expired,
}

impl Validity {
    /// Of a certificate, DER. Does not check its signature.
    ///
    /// # Errors
    /// It is unreadable.
    pub fn of_der(der: &[u8]) -> Result<Self, TrustError> {
        let certificate = name::parse(der)?;
        let time = |seconds: i64| Timestamp(seconds.saturating_mul(1_000_000_000));
        let validity = certificate.validity();
        Ok(Self { not_before: time(validity.not_before.timestamp()), not_after: time(validity.not_after.timestamp()) })
    }

    /// When it was issued, by the issuer's clock.
    fn issued(&self) -> Timestamp {
        let issued = self.not_before.plus(BACKDATED);
        if issued < self.not_after { issued } else { self.not_before }
    }

    /// Time from its issue to its end.
    #[must_use]
    pub fn life(&self) -> Duration {
        self.not_after.since(self.issued())
    }

    /// When the certificate is due: at a random point between 50 and 80 % of its life, as in SwarmKit. The spread keeps the
    /// nodes of a cluster from requesting certificates together; the rest of the life is for attempts that fail.
    #[must_use]
    pub fn renewal_time(&self, rng: &mut impl Rng) -> Timestamp {
        self.issued().plus(self.life().mul_f64(rng.random_range(0.5..0.8)))
    }

    /// The first moment at which it is no longer valid: `not_after` is a whole second, which is the last one.
    #[must_use]
    pub fn end(&self) -> Timestamp {
        self.not_after.plus(SECOND)
    }

    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.end()
    }

    /// What is left at `now`.
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> Remaining {
        if self.is_over(now) {
            Remaining::Expired
        } else if self.not_after.since(now) <= self.life().mul_f64(NEAR) {
            Remaining::Little
        } else {
            Remaining::Enough
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    const DAY: Duration = Duration::from_hours(24);
    const MINUTE: Duration = Duration::from_mins(1);
    const START: Timestamp = Timestamp(1_795_000_000_000_000_000);

    /// Of a certificate that was issued at [`START`].
    fn validity(life: Duration) -> Validity {
        Validity { not_before: Timestamp(START.0 - 3_600_000_000_000), not_after: START.plus(life) }
    }

    #[test]
    fn a_certificate_is_due_between_50_and_80_percent_of_its_life() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(7);
        for life in [2 * MINUTE, 60 * MINUTE, 90 * DAY] {
            let times: Vec<Timestamp> = (0..1000).map(|_| validity(life).renewal_time(rng)).collect();
            let (first, last) = (START.plus(life / 2), START.plus(life * 4 / 5));
            assert!(times.iter().all(|time| (first..=last).contains(time)), "{life:?}");
            let spread = times.iter().max().unwrap().since(*times.iter().min().unwrap());
            assert!(spread > life / 4, "the times are spread over the range: {spread:?} of {life:?}");
        }
    }

    #[test]
    fn the_end_is_near_below_a_fifth() {
        let validity = validity(90 * DAY);
        let after = |days: u32| validity.remaining(START.plus(days * DAY));
        assert_eq!([0, 45, 71].map(after), [Remaining::Enough; 3]);
        assert_eq!([72, 89].map(after), [Remaining::Little; 2]);
        assert_eq!([91, 400].map(after), [Remaining::Expired; 2]);
        assert_eq!(after(90), Remaining::Little, "the last second is part of it, as TLS has it");
        assert!(validity.is_over(validity.not_after.plus(SECOND)));
        assert_eq!(validity.remaining(Timestamp(0)), Remaining::Enough, "a clock that is behind the manager's");
    }

    #[test]
    fn a_certificate_without_a_life_is_over_and_due_at_once() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(7);
        let reversed = Validity { not_before: START, not_after: START };
        assert_eq!(reversed.renewal_time(rng), START);
        assert_eq!(reversed.remaining(START.plus(SECOND)), Remaining::Expired);
    }

    #[test]
    fn a_certificate_of_another_issuer_may_begin_when_it_is_issued() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(7);
        let short = Validity { not_before: START, not_after: START.plus(30 * MINUTE) };
        assert!(short.renewal_time(rng) >= START.plus(15 * MINUTE));
    }
}

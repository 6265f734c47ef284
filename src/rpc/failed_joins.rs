//! How many joins of one source may fail: someone who guesses tokens, or a host that tries for ever, must not keep a manager
//! busy. Each source has a number of failures, of which one is forgiven every so often. Pure: the time is passed in.

use crate::model::Timestamp;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Sources that are remembered; the one that failed longest ago is forgotten first.
const SOURCES: usize = 4096;

/// The failed joins by source.
#[derive(Debug)]
pub struct FailedJoins {
    /// Failures that remain, and when that number was right.
    sources: BTreeMap<IpAddr, (u32, Timestamp)>,
    most: u32,
    forgiven_after: Duration,
}

impl FailedJoins {
    /// With at most so many failures, of which one is forgiven in each of these intervals.
    pub fn new(most: u32, forgiven_after: Duration) -> Self {
        Self { sources: BTreeMap::new(), most, forgiven_after }
    }

    /// Whether the source may try to join; if not, the time until it may.
    ///
    /// # Errors
    /// That time.
    pub fn may_join(&self, source: IpAddr, now: Timestamp) -> Result<(), Duration> {
        let Some((count, at)) = self.sources.get(&source).filter(|_| self.count(source, now) >= self.most) else { return Ok(()) };
        // The one that is over the bound has to be forgiven.
        let forgiven = self.forgiven_after.saturating_mul(count.saturating_sub(self.most).saturating_add(1));
        Err(forgiven.saturating_sub(now.since(*at)))
    }

    /// A join of the source has failed.
    pub fn failed(&mut self, source: IpAddr, now: Timestamp) {
        let count = self.count(source, now).saturating_add(1).min(self.most);
        self.sources.insert(source, (count, now));
        if self.sources.len() > SOURCES
            && let Some(oldest) = self.sources.iter().min_by_key(|(_, (_, at))| *at).map(|(source, _)| *source)
        {
            self.sources.remove(&oldest);
        }
    }

    fn count(&self, source: IpAddr, now: Timestamp) -> u32 {
        let Some((count, at)) = self.sources.get(&source) else { return 0 };
        let forgiven = now.since(*at).as_nanos() / self.forgiven_after.as_nanos().max(1);
        count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_fails_has_to_wait_and_disturbs_no_other() {
        let mut failed = FailedJoins::new(3, Duration::from_secs(10));
        let at = |seconds| Timestamp(0).plus(Duration::from_secs(seconds));
        let (bad, good) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(failed.may_join(bad, at(0)), Ok(()));
            failed.failed(bad, at(0));
        }
        assert_eq!(failed.may_join(bad, at(9)), Err(Duration::from_secs(1)));
        assert_eq!(failed.may_join(good, at(9)), Ok(()));
        assert_eq!(failed.may_join(bad, at(10)), Ok(()), "one is forgiven");
        failed.failed(bad, at(10));
        assert_eq!(failed.may_join(bad, at(11)), Err(Duration::from_secs(9)));
    }

    #[test]
    fn the_sources_of_an_attack_are_bounded() {
        let mut failed = FailedJoins::new(3, Duration::from_secs(10));
        for n in 0..10_000_u32 {
            failed.failed(std::net::Ipv4Addr::from_bits(n).into(), Timestamp(i64::from(n)));
        }
        assert_eq!(failed.sources.len(), SOURCES);
    }
}

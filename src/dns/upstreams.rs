//! Which resolvers are asked first: those that answer, in the order of resolv.conf. Pure; the clock is passed in.
//!
//! A resolver that does not answer is *demoted*: it is asked after the others, and now and then tested with a copy of a query
//! whose answer is not used. Demotion ends with its first answer. All resolvers keep their order otherwise: a slower first one is
//! still the first, because it may know names that the others do not (a company's resolver before a public one).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Slower than the pause before the next one is asked, so often in a row, is as bad as not answering.
const STRIKES: u32 = 3;
/// Time between tests of a demoted resolver, doubled after each until [`MAX_TEST`].
const FIRST_TEST: Duration = Duration::from_secs(2);
const MAX_TEST: Duration = Duration::from_secs(30);
/// Resolvers that are remembered. Specs of tasks can name any number.
const MAX_REMEMBERED: usize = 256;

/// What is remembered of resolvers.
#[derive(Default, Debug)]
pub struct UpstreamHealth {
    resolvers: BTreeMap<IpAddr, ResolverHealth>,
}

#[derive(Default, Debug)]
struct ResolverHealth {
    strikes: u32,
    demoted: Option<Demotion>,
}

#[derive(Debug)]
struct Demotion {
    next_test: Instant,
    interval: Duration,
}

/// The order in which a query asks resolvers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct UpstreamOrder {
    pub resolvers: Vec<IpAddr>,
    /// How many of them, at the beginning, are not demoted.
    pub healthy: usize,
    /// Demoted resolvers that are to be tested with this query.
    pub tests: Vec<IpAddr>,
}

impl UpstreamHealth {
    /// Orders the resolvers for a query. A test counts as begun.
    pub fn order(&mut self, resolvers: impl IntoIterator<Item = IpAddr>, now: Instant) -> UpstreamOrder {
        let is_demoted = |address: &IpAddr| self.resolvers.get(address).is_some_and(|health| health.demoted.is_some());
        let (demoted, mut all): (Vec<IpAddr>, Vec<IpAddr>) = resolvers.into_iter().partition(is_demoted);
        let healthy = all.len();
        let mut tests = Vec::new();
        // Without a healthy one they are all asked anyway.
        for address in demoted.iter().filter(|_| healthy > 0) {
            let demotion = self.resolvers.get_mut(address).and_then(|health| health.demoted.as_mut());
            if let Some(demotion) = demotion.filter(|demotion| demotion.next_test <= now) {
                demotion.interval = (demotion.interval * 2).min(MAX_TEST);
                demotion.next_test = now + demotion.interval;
                tests.push(*address);
            }
        }
        all.extend(demoted);
        UpstreamOrder { resolvers: all, healthy, tests }
    }

    /// It answered, with whatever code.
    pub fn answered(&mut self, address: IpAddr) {
        self.resolvers.remove(&address);
    }

    /// Another one was asked after it and has answered before it.
    pub fn slow(&mut self, address: IpAddr, now: Instant) {
        let Some(health) = self.entry(address) else { return };
        health.strikes += 1;
        if health.strikes >= STRIKES {
            demote(health, now);
        }
    }

    /// It cannot be reached, or has not answered in time.
    pub fn failed(&mut self, address: IpAddr, now: Instant) {
        if let Some(health) = self.entry(address) {
            demote(health, now);
        }
    }

    fn entry(&mut self, address: IpAddr) -> Option<&mut ResolverHealth> {
        if self.resolvers.len() >= MAX_REMEMBERED && !self.resolvers.contains_key(&address) {
            return None;
        }
        Some(self.resolvers.entry(address).or_default())
    }
}

fn demote(health: &mut ResolverHealth, now: Instant) {
    health.demoted.get_or_insert(Demotion { next_test: now + FIRST_TEST, interval: FIRST_TEST });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolvers(lasts: &[u8]) -> Vec<IpAddr> {
        lasts.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect()
    }

    #[test]
    fn a_failed_resolver_is_last_until_it_answers() {
        let (mut health, now) = (UpstreamHealth::default(), Instant::now());
        let all = resolvers(&[1, 2, 3]);
        assert_eq!(health.order(all.clone(), now), UpstreamOrder { resolvers: all.clone(), healthy: 3, tests: Vec::new() });
        health.failed(all[0], now);
        let order = health.order(all.clone(), now);
        assert_eq!((order.resolvers, order.healthy), (resolvers(&[2, 3, 1]), 2));
        health.answered(all[0]);
        assert_eq!(health.order(all.clone(), now).resolvers, all);
    }

    #[test]
    fn only_a_resolver_that_is_slow_several_times_in_a_row_is_demoted() {
        let (mut health, now) = (UpstreamHealth::default(), Instant::now());
        let all = resolvers(&[1, 2]);
        for _ in 0..10 {
            health.slow(all[0], now);
            health.slow(all[0], now);
            health.answered(all[0]);
        }
        assert_eq!(health.order(all.clone(), now).resolvers, all);
        for _ in 0..STRIKES {
            health.slow(all[0], now);
        }
        assert_eq!(health.order(all.clone(), now).resolvers, resolvers(&[2, 1]));
    }

    #[test]
    fn a_demoted_resolver_is_tested_ever_less_often_and_one_query_tests_it_at_a_time() {
        let (mut health, start) = (UpstreamHealth::default(), Instant::now());
        let all = resolvers(&[1, 2]);
        health.failed(all[0], start);
        let mut tested = Vec::new();
        for second in 0..120 {
            let now = start + Duration::from_secs(second);
            health.failed(all[0], now);
            for _ in 0..3 {
                tested.extend(health.order(all.clone(), now).tests.iter().map(|_| second));
            }
        }
        assert_eq!(tested, [2, 6, 14, 30, 60, 90]);
    }

    #[test]
    fn without_a_healthy_resolver_the_order_is_kept_and_what_is_remembered_is_bounded() {
        let (mut health, now) = (UpstreamHealth::default(), Instant::now());
        for address in 0..10_000_u32 {
            health.failed(IpAddr::from(std::net::Ipv4Addr::from(address)), now);
        }
        assert_eq!(health.resolvers.len(), MAX_REMEMBERED);
        let all = vec![IpAddr::from([0, 0, 0, 1]), IpAddr::from([0, 0, 0, 2])];
        let later = now + Duration::from_secs(100);
        assert_eq!(health.order(all.clone(), later), UpstreamOrder { resolvers: all, healthy: 0, tests: Vec::new() });
    }
}

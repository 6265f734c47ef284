//! Which resolvers are asked first: those that answer, in the order of resolv.conf. Pure; the clock is passed in.
//!
//! A resolver that does not answer, or is slow again and again, is *demoted*: it is asked after the others, and now and then tested
//! with a copy of a query whose answer is not used. Demotion ends with its first answer. All resolvers keep their order otherwise: a
//! slower first one is still the first, because it may know names that the others do not (a company's resolver before a public one).
//! For that reason its word is waited for where another one knows no such name ([`RankedUpstream`]), unless it has failed.

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
    /// It was not only slow.
    failed: bool,
    next_test: Instant,
    interval: Duration,
}

/// A resolver of a query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RankedUpstream {
    pub address: IpAddr,
    /// Its place in resolv.conf.
    pub rank: usize,
    /// It may know a name that those of higher rank do not: it has not failed, or all have.
    pub may_answer: bool,
}

/// The order in which a query asks resolvers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct UpstreamOrder {
    pub resolvers: Vec<RankedUpstream>,
    /// Demoted resolvers that are to be tested with this query.
    pub tests: Vec<IpAddr>,
}

impl UpstreamHealth {
    /// Orders the resolvers for a query. A test counts as begun.
    pub fn order(&mut self, resolvers: impl IntoIterator<Item = IpAddr>, now: Instant) -> UpstreamOrder {
        let demotion = |address: &IpAddr| self.resolvers.get(address).and_then(|health| health.demoted.as_ref());
        let ranked = resolvers.into_iter().enumerate().map(|(rank, address)| {
            let may_answer = demotion(&address).is_none_or(|demotion| !demotion.failed);
            RankedUpstream { address, rank, may_answer }
        });
        let (demoted, mut all): (Vec<_>, Vec<_>) = ranked.partition(|upstream| demotion(&upstream.address).is_some());
        let mut tests = Vec::new();
        // Without a healthy one they are all asked anyway.
        for RankedUpstream { address, .. } in demoted.iter().filter(|_| !all.is_empty()) {
            let demotion = self.resolvers.get_mut(address).and_then(|health| health.demoted.as_mut());
            if let Some(demotion) = demotion.filter(|demotion| demotion.next_test <= now) {
                demotion.interval = (demotion.interval * 2).min(MAX_TEST);
                demotion.next_test = now + demotion.interval;
                tests.push(*address);
            }
        }
        all.extend(demoted);
        if all.iter().all(|upstream| !upstream.may_answer) {
            for upstream in &mut all {
                upstream.may_answer = true;
            }
        }
        UpstreamOrder { resolvers: all, tests }
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
            demote(health, false, now);
        }
    }

    /// It cannot be reached, or has not answered in time.
    pub fn failed(&mut self, address: IpAddr, now: Instant) {
        if let Some(health) = self.entry(address) {
            demote(health, true, now);
        }
    }

    fn entry(&mut self, address: IpAddr) -> Option<&mut ResolverHealth> {
        if self.resolvers.len() >= MAX_REMEMBERED && !self.resolvers.contains_key(&address) {
            return None;
        }
        Some(self.resolvers.entry(address).or_default())
    }
}

fn demote(health: &mut ResolverHealth, failed: bool, now: Instant) {
    let demoted = Demotion { failed, next_test: now + FIRST_TEST, interval: FIRST_TEST };
    health.demoted.get_or_insert(demoted).failed |= failed;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolvers(lasts: &[u8]) -> Vec<IpAddr> {
        lasts.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect()
    }

    /// The resolvers in the order in which they are asked, and those that may know names that others do not.
    fn ordered(health: &mut UpstreamHealth, all: &[u8], now: Instant) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let order = health.order(resolvers(all), now).resolvers;
        let heard = order.iter().filter(|upstream| upstream.may_answer).map(|upstream| upstream.address).collect();
        (order.iter().map(|upstream| upstream.address).collect(), heard)
    }

    #[test]
    fn a_failed_resolver_is_last_until_it_answers() {
        let (mut health, now) = (UpstreamHealth::default(), Instant::now());
        let all = resolvers(&[1, 2, 3]);
        assert_eq!(ordered(&mut health, &[1, 2, 3], now), (all.clone(), all.clone()));
        health.failed(all[0], now);
        assert_eq!(ordered(&mut health, &[1, 2, 3], now), (resolvers(&[2, 3, 1]), resolvers(&[2, 3])));
        let ranks: Vec<usize> = health.order(all.clone(), now).resolvers.iter().map(|upstream| upstream.rank).collect();
        assert_eq!(ranks, [1, 2, 0]);
        health.answered(all[0]);
        assert_eq!(ordered(&mut health, &[1, 2, 3], now), (all.clone(), all));
    }

    #[test]
    fn only_a_resolver_that_is_slow_several_times_in_a_row_is_demoted_and_its_word_is_still_waited_for() {
        let (mut health, now) = (UpstreamHealth::default(), Instant::now());
        let all = resolvers(&[1, 2]);
        for _ in 0..10 {
            health.slow(all[0], now);
            health.slow(all[0], now);
            health.answered(all[0]);
        }
        assert_eq!(ordered(&mut health, &[1, 2], now).0, all);
        for _ in 0..STRIKES {
            health.slow(all[0], now);
        }
        assert_eq!(ordered(&mut health, &[1, 2], now), (resolvers(&[2, 1]), resolvers(&[2, 1])));
        health.failed(all[0], now);
        assert_eq!(ordered(&mut health, &[1, 2], now), (resolvers(&[2, 1]), resolvers(&[2])));
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
        let all = [IpAddr::from([0, 0, 0, 1]), IpAddr::from([0, 0, 0, 2])];
        let order = health.order(all, now + Duration::from_secs(100));
        let ranked = |rank: usize| RankedUpstream { address: all[rank], rank, may_answer: true };
        assert_eq!(order, UpstreamOrder { resolvers: vec![ranked(0), ranked(1)], tests: Vec::new() });
    }
}

//! Which sources may use a published port. The host's firewall cannot decide that: packets that the eBPF datapath redirects
//! never reach its INPUT rules. [`AllowList`] is pure; [`SharedAllowList`] gives it to the loops that receive.

use crate::sync::lock;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// The sources that may use a port: disjoint ranges of addresses in order, so that a look-up takes as many steps as the
/// number of prefixes has bits. IPv4 addresses are mapped ones. `None`: all sources may.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AllowList(Option<Vec<(u128, u128)>>);

impl AllowList {
    /// The list of a port with these prefixes (none: all sources). Processes of the node itself always may; their source is
    /// loopback or one of the node's `own` addresses.
    #[must_use]
    pub fn new(prefixes: &[IpNet], own: &BTreeSet<IpAddr>) -> Self {
        if prefixes.is_empty() {
            return Self::default();
        }
        let loopback = [(number(Ipv4Addr::new(127, 0, 0, 0).into()), number(Ipv4Addr::new(127, 255, 255, 255).into()))];
        let loopback6 = number(Ipv6Addr::LOCALHOST.into());
        let own = own.iter().map(|address| (number(*address), number(*address)));
        let prefixes = prefixes.iter().map(|net| (number(net.network()), number(last(net))));
        let mut all: Vec<(u128, u128)> = prefixes.chain(own).chain(loopback).chain([(loopback6, loopback6)]).collect();
        all.sort_unstable();
        let mut disjoint: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (from, to) in all {
            match disjoint.last_mut() {
                Some(previous) if from <= previous.1.saturating_add(1) => previous.1 = previous.1.max(to),
                _ => disjoint.push((from, to)),
            }
        }
        Self(Some(disjoint))
    }

    /// Whether `source` may use the port.
    #[must_use]
    pub fn admits(&self, source: IpAddr) -> bool {
        let Some(ranges) = &self.0 else { return true };
        let source = number(source);
        let after = ranges.partition_point(|(from, _)| *from <= source);
        after > 0 && source <= ranges[after - 1].1
    }
}

/// The last address of a prefix.
fn last(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) => net.broadcast().into(),
        IpNet::V6(net) => net.broadcast().into(),
    }
}

/// An address as a number; an IPv4 address as its mapped one.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// A list that may be replaced while loops read it.
#[derive(Default, Debug)]
pub(super) struct SharedAllowList {
    /// Counts the replacements.
    generation: AtomicU64,
    list: Mutex<Arc<AllowList>>,
    replaced: Notify,
}

impl SharedAllowList {
    pub fn replace(&self, list: AllowList) {
        let mut current = lock(&self.list);
        if **current != list {
            *current = Arc::new(list);
            self.generation.fetch_add(1, Ordering::Release);
            drop(current);
            self.replaced.notify_waiters();
        }
    }

    /// Waits until the list does not contain `source`.
    pub async fn excludes(&self, source: IpAddr) {
        loop {
            // Before the look: a change that comes meanwhile is not missed.
            let replaced = self.replaced.notified();
            if !lock(&self.list).admits(source) {
                return;
            }
            replaced.await;
        }
    }
}

/// A loop's view of a shared list: takes no lock unless the list was replaced.
#[derive(Debug)]
pub(super) struct AllowReader {
    generation: u64,
    list: Arc<AllowList>,
}

impl AllowReader {
    pub fn new(shared: &SharedAllowList) -> Self {
        let list = lock(&shared.list);
        Self { generation: shared.generation.load(Ordering::Acquire), list: Arc::clone(&list) }
    }

    /// As [`AllowList::admits`], of the current list.
    pub fn admits(&mut self, shared: &SharedAllowList, source: IpAddr) -> bool {
        if shared.generation.load(Ordering::Acquire) != self.generation {
            *self = Self::new(shared);
        }
        self.list.admits(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    #[test]
    fn prefixes_of_either_family_and_the_node_itself_are_admitted() {
        let allow: Vec<IpNet> = ["192.0.2.0/24", "2001:db8::/32"].map(|p| p.parse().unwrap()).to_vec();
        let own = BTreeSet::from(["198.51.100.1".parse().unwrap(), "fd99::1".parse().unwrap()]);
        let list = AllowList::new(&allow, &own);
        let admitted = |source: &str| list.admits(source.parse().unwrap());
        for yes in ["192.0.2.9", "::ffff:192.0.2.9", "2001:db8:9::1", "127.0.0.5", "::1", "198.51.100.1", "fd99::1"] {
            assert!(admitted(yes), "{yes}");
        }
        for no in ["192.0.3.9", "::ffff:192.0.3.9", "2001:db9::1", "198.51.100.2", "fd99::2", "0.0.0.0", "ffff::"] {
            assert!(!admitted(no), "{no}");
        }
        assert!(AllowList::new(&[], &BTreeSet::new()).admits("203.0.113.7".parse().unwrap()), "an empty list admits all sources");
        let all: Vec<IpNet> = ["0.0.0.0/0", "::/0"].map(|p| p.parse().unwrap()).to_vec();
        assert!(AllowList::new(&all, &own).admits("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()));
    }

    #[test]
    fn a_reader_follows_the_list() {
        let shared = SharedAllowList::default();
        let mut reader = AllowReader::new(&shared);
        let source: IpAddr = "192.0.2.9".parse().unwrap();
        assert!(reader.admits(&shared, source));
        shared.replace(AllowList::new(&["10.0.0.0/8".parse().unwrap()], &BTreeSet::new()));
        assert!(!reader.admits(&shared, source));
        shared.replace(AllowList::default());
        assert!(reader.admits(&shared, source));
    }

    #[tokio::test]
    async fn who_is_admitted_waits_until_a_list_excludes_him() {
        let shared = SharedAllowList::default();
        let list = |net: &str| AllowList::new(&[net.parse().unwrap()], &BTreeSet::new());
        let source: IpAddr = "192.0.2.9".parse().unwrap();
        let excluded = shared.excludes(source);
        tokio::pin!(excluded);
        for admitting in [AllowList::default(), list("192.0.2.0/24"), list("192.0.2.9/32"), AllowList::default()] {
            shared.replace(admitting);
            assert_eq!((&mut excluded).now_or_never(), None);
        }
        shared.replace(list("198.51.100.0/24"));
        assert_eq!((&mut excluded).now_or_never(), Some(()));
        assert_eq!(shared.excludes(source).now_or_never(), Some(()), "from the beginning");
    }

    proptest! {
        #[test]
        fn it_admits_exactly_what_one_of_the_prefixes_contains(
            prefixes in proptest::collection::vec((0u32..64, 24u8..=32), 1..20),
            sources in proptest::collection::vec(0u32..64, 1..40),
        ) {
            // Few addresses at the end of the range, so that prefixes meet, contain each other and end at 255.255.255.255.
            let address = |n: u32| Ipv4Addr::from_bits(u32::MAX - n);
            let nets: Vec<IpNet> =
                prefixes.iter().map(|(n, length)| IpNet::new(address(*n).into(), *length).unwrap()).collect();
            let list = AllowList::new(&nets, &BTreeSet::new());
            for source in sources.into_iter().map(|n| IpAddr::V4(address(n))) {
                prop_assert_eq!(list.admits(source), nets.iter().any(|net| net.contains(&source)));
            }
        }
    }
}

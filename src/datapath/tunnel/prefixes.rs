//! Longest-prefix match of addresses. Peers have prefixes of few lengths (/32, /128, /64), so that one look-up in a hash map per
//! length is faster than a trie. Pure.

use ipnet::IpNet;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Values by prefix.
pub(super) struct Prefixes<T> {
    values: HashMap<IpNet, T>,
    /// Number of prefixes by family and length.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { values: HashMap::new(), lengths: BTreeMap::new() }
    }
}

impl<T> Prefixes<T> {
    /// Sets the value of a prefix; an earlier one is replaced.
    pub(super) fn insert(&mut self, net: IpNet, value: T) {
        let net = net.trunc();
        if self.values.insert(net, value).is_none() {
            *self.lengths.entry((net.addr().is_ipv6(), net.prefix_len())).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, net: IpNet) {
        let net = net.trunc();
        let length = (net.addr().is_ipv6(), net.prefix_len());
        if self.values.remove(&net).is_some()
            && let Some(count) = self.lengths.get_mut(&length)
        {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    /// Keeps the prefixes for which `keep` returns true.
    pub(super) fn retain(&mut self, keep: impl Fn(&IpNet, &T) -> bool) {
        let gone: Vec<IpNet> = self.values.iter().filter(|(net, value)| !keep(net, value)).map(|(net, _)| *net).collect();
        for net in gone {
            self.remove(net);
        }
    }

    /// The value of the longest prefix that contains the address.
    pub(super) fn find(&self, address: IpAddr) -> Option<&T> {
        let v6 = address.is_ipv6();
        let lengths = self.lengths.range((v6, 0)..=(v6, 128)).rev();
        lengths.filter_map(|((_, length), _)| IpNet::new(address, *length).ok()).find_map(|net| self.values.get(&net.trunc()))
    }

    /// The value of exactly this prefix.
    pub(super) fn get(&self, net: IpNet) -> Option<&T> {
        self.values.get(&net.trunc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins_in_each_family() {
        let mut prefixes = Prefixes::default();
        for (number, net) in
            ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "fd00::/48", "fd00::/64", "0.0.0.0/0"].iter().enumerate()
        {
            prefixes.insert(net.parse().unwrap(), number);
        }
        let find = |prefixes: &Prefixes<usize>, text: &str| prefixes.find(text.parse().unwrap()).copied();
        for (address, expected) in [
            ("10.1.2.3", Some(2)),
            ("10.1.2.4", Some(1)),
            ("10.2.0.1", Some(0)),
            ("192.0.2.1", Some(5)),
            ("fd00::1", Some(4)),
            ("fd00:0:0:1::1", Some(3)),
            ("2001:db8::1", None),
        ] {
            assert_eq!(find(&prefixes, address), expected, "{address}");
        }
        prefixes.insert("10.1.2.3/32".parse().unwrap(), 9);
        assert_eq!(find(&prefixes, "10.1.2.3"), Some(9));
        prefixes.remove("10.1.2.3/32".parse().unwrap());
        prefixes.remove("10.1.2.3/32".parse().unwrap());
        assert_eq!(find(&prefixes, "10.1.2.3"), Some(1));
        prefixes.retain(|net, _| net.prefix_len() == 16);
        assert_eq!((find(&prefixes, "10.1.2.3"), find(&prefixes, "10.2.0.1"), find(&prefixes, "fd00::1")), (Some(1), None, None));
    }
}

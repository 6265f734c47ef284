//! A subnet of IPv4 and the part of its network's IPv6 subnet that belongs to it. A host has the same number in both: the IPv6 address of a task, of a virtual address
//! and of the default gateway follows from the IPv4 address. So one allocation and one quarantine serve both families, no address
//! is given twice in either, and a socket hook translates by changing the last 32 bits. Pure arithmetic.

use super::mesh::MeshPrefix;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Prefix length of the IPv6 subnets that skep draws.
pub const DRAWN_PREFIX: u8 = 64;
/// Subnets that the table of the socket hooks has room for (`SUBNETS6` in `ebpf/src/maps.rs`).
pub const MOST_OF_HOOKS: usize = 1_024;
/// Subnets of a cluster's /48 that networks may get: its upper half, without the one of the addresses on `ingress`.
const DRAWN: std::ops::RangeInclusive<u16> = 0x8001..=0xffff;

/// The subnets of a network in both families. The IPv6 one has room for every host number of the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SubnetPair {
    pub v4: Ipv4Net,
    pub v6: Ipv6Net,
}

impl SubnetPair {
    /// `None` if the IPv6 subnet has fewer addresses than the IPv4 one.
    #[must_use]
    pub fn new(v4: Ipv4Net, v6: Ipv6Net) -> Option<Self> {
        let (v4, v6) = (v4.trunc(), v6.trunc());
        (128 - v6.prefix_len() >= 32 - v4.prefix_len()).then_some(Self { v4, v6 })
    }

    /// The IPv6 address of the host with this IPv4 address; `None` if that is in another subnet.
    #[must_use]
    pub fn to_v6(self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let number = address.to_bits() & self.v4.hostmask().to_bits();
        self.v4.contains(&address).then(|| Ipv6Addr::from_bits(self.v6.addr().to_bits() | u128::from(number)))
    }

    /// The IPv4 address of the host with this IPv6 address; `None` if that is in another subnet, or its number is too large.
    #[must_use]
    pub fn to_v4(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let number =
            u32::try_from(address.to_bits() & self.v6.hostmask().to_bits()).ok().filter(|_| self.v6.contains(&address))?;
        (number & self.v4.netmask().to_bits() == 0).then(|| Ipv4Addr::from_bits(self.v4.addr().to_bits() | number))
    }

    /// The first and the last host number that is in a range of IPv6 addresses; `None` if it has none of them.
    #[must_use]
    pub fn numbers_of(self, range: Ipv6Net) -> Option<(u32, u32)> {
        let start = self.v6.addr().to_bits();
        let end = start | u128::from(self.v4.hostmask().to_bits());
        let (first, last) = (range.network().to_bits().max(start), range.broadcast().to_bits().min(end));
        let number = |address: u128| u32::try_from(address - start).ok();
        if first > last { None } else { Some((number(first)?, number(last)?)) }
    }
}

/// Longest prefix of the IPv6 subnet of a network with several IPv4 subnets.
pub const LONGEST_FOR_SEVERAL: u8 = 96;

/// The pairs of a network's subnets, in the order of the IPv4 ones. With several of these the IPv6 subnet is divided: a host's
/// number is the whole IPv4 address then, so that each pair differs from its IPv4 subnet in the same bits, as the socket hooks
/// need it. None if the IPv6 subnet has too few addresses.
#[must_use]
pub fn pairs(subnets: &[Ipv4Net], v6: Ipv6Net) -> Vec<SubnetPair> {
    let part = |v4: &Ipv4Net| {
        let first = v6.trunc().addr().to_bits() | u128::from(v4.network().to_bits());
        let v6 = Ipv6Net::new(Ipv6Addr::from_bits(first), 96 + v4.prefix_len()).ok()?;
        SubnetPair::new(*v4, v6)
    };
    match subnets {
        [one] => SubnetPair::new(*one, v6).into_iter().collect(),
        several if v6.prefix_len() <= LONGEST_FOR_SEVERAL => several.iter().filter_map(part).collect(),
        _ => Vec::new(),
    }
}

/// The IPv6 half of a network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NetworkV6 {
    pub subnet: Ipv6Net,
    pub gateway: Ipv6Addr,
}

/// The pair of subnets that an IPv4 address is in; `pairs` are sorted and do not overlap.
#[must_use]
pub fn pair_of(pairs: &[SubnetPair], address: Ipv4Addr) -> Option<SubnetPair> {
    let after = pairs.partition_point(|pair| pair.v4.network() <= address);
    pairs[..after].last().copied().filter(|pair| pair.v4.contains(&address))
}

/// The gateway of a subnet for which the user chose none: its first address.
#[must_use]
pub fn gateway6(subnet: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet.trunc().addr().to_bits() | 1)
}

/// The subnets of a cluster that its networks may get, in this order.
pub fn drawn_subnets(mesh: MeshPrefix) -> impl Iterator<Item = Ipv6Net> {
    DRAWN.map(move |number| {
        Ipv6Net::new_assert(Ipv6Addr::from_bits(mesh.0.addr().to_bits() | (u128::from(number) << 64)), DRAWN_PREFIX)
    })
}

/// True if an address is in both.
#[must_use]
pub fn overlap6(a: &Ipv6Net, b: &Ipv6Net) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(v4: &str, v6: &str) -> Option<SubnetPair> {
        SubnetPair::new(v4.parse().unwrap(), v6.parse().unwrap())
    }

    #[test]
    fn a_host_has_one_number_in_both_families() {
        for (subnet4, subnet6, v4, v6) in [
            ("10.0.3.0/24", "fd00:1::/64", "10.0.3.7", "fd00:1::7"),
            ("172.16.0.0/12", "fd00:2::/96", "172.31.255.254", "fd00:2::f:fffe"),
            ("192.168.7.128/25", "2001:db8::1:80/121", "192.168.7.129", "2001:db8::1:81"),
            ("10.0.0.0/8", "fd00::/104", "10.1.2.3", "fd00::1:203"),
        ] {
            let pair = pair(subnet4, subnet6).expect(subnet6);
            let (v4, v6) = (v4.parse().unwrap(), v6.parse().unwrap());
            assert_eq!(pair.to_v6(v4), Some(v6));
            assert_eq!(pair.to_v4(v6), Some(v4));
        }
    }

    #[test]
    fn what_is_outside_has_no_number() {
        assert_eq!(pair("10.0.3.0/24", "fd00::/121"), None, "128 addresses for 256 hosts");
        let pair = pair("10.0.3.0/24", "fd00:1::/64").unwrap();
        assert_eq!(pair.to_v6("10.0.4.7".parse().unwrap()), None);
        for outside in ["fd00:2::7", "fd00:1::100", "fd00:1::1:0:7"] {
            assert_eq!(pair.to_v4(outside.parse().unwrap()), None, "{outside}");
        }
    }

    #[test]
    fn a_range_has_the_numbers_that_both_subnets_have() {
        let pair = pair("10.0.3.0/24", "fd00:1::/64").unwrap();
        for (range, numbers) in [
            ("fd00:1::40/122", Some((0x40, 0x7f))),
            ("fd00:1::/64", Some((0, 0xff))),
            ("fd00:1::80/121", Some((0x80, 0xff))),
            ("fd00:1::100/120", None),
            ("fd00:1::1:0:0:0/80", None),
            ("fd00::/16", Some((0, 0xff))),
            ("fd00:2::/64", None),
        ] {
            assert_eq!(pair.numbers_of(range.parse().unwrap()), numbers, "{range}");
        }
    }

    #[test]
    fn hosts_of_several_subnets_have_their_whole_address_in_one() {
        let nets = ["10.9.1.0/24", "10.9.4.0/22", "172.16.0.128/25"].map(|net| net.parse().unwrap());
        let pairs = super::pairs(&nets, "fd00:7::/64".parse().unwrap());
        assert_eq!(pairs.len(), 3);
        for (pair, host, six) in [
            (pairs[0], "10.9.1.5", "fd00:7::a09:105"),
            (pairs[1], "10.9.7.254", "fd00:7::a09:7fe"),
            (pairs[2], "172.16.0.130", "fd00:7::ac10:82"),
        ] {
            let (host, six) = (host.parse().unwrap(), six.parse().unwrap());
            assert_eq!((pair.to_v6(host), pair.to_v4(six)), (Some(six), Some(host)));
        }
        assert!(super::pairs(&nets, "fd00:7::/100".parse().unwrap()).is_empty());
        let one = super::pairs(&nets[..1], "fd00:7::/120".parse().unwrap());
        assert_eq!(one[0].to_v6("10.9.1.5".parse().unwrap()), Some("fd00:7::5".parse().unwrap()));
    }

    #[test]
    fn no_drawn_subnet_has_an_address_of_a_node_or_of_a_task_on_ingress() {
        let mesh = super::super::fixture::mesh();
        let ingress = mesh.container(Ipv4Addr::BROADCAST);
        assert!(
            drawn_subnets(mesh)
                .all(|subnet| { mesh.0.contains(&subnet) && !overlap6(&subnet, &mesh.nodes()) && !subnet.contains(&ingress) })
        );
        assert_eq!(drawn_subnets(mesh).count(), 0x7fff);
    }
}

//! Conversion between the address types of `core::net` and the words of packets and maps, both ways.

use crate::{Address, PortNumber, Prefix, Subnet6, V4, packet::mapped};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address as packets hold it.
#[must_use]
pub const fn v4(address: Ipv4Addr) -> V4 {
    u32::from_ne_bytes(address.octets())
}

/// The inverse of [`v4`].
#[must_use]
pub const fn to_v4(word: V4) -> Ipv4Addr {
    let [a, b, c, d] = word.to_ne_bytes();
    Ipv4Addr::new(a, b, c, d)
}

/// A [`crate::hash_key`] in halves, as the programs read it.
#[must_use]
pub const fn hash_key(key: u64) -> [u32; 2] {
    [(key >> 32) as u32, key as u32]
}

/// An address of either family; IPv4 in its mapped form.
#[must_use]
pub fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => mapped(v4(address)),
        IpAddr::V6(address) => {
            let bytes = address.octets();
            core::array::from_fn(|i| u32::from_ne_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
        }
    }
}

/// The inverse of [`address`]; a mapped IPv4 address becomes an IPv4 one.
#[must_use]
pub fn to_address(words: Address) -> IpAddr {
    let mut bytes = [0; 16];
    for (i, word) in words.iter().enumerate() {
        bytes[4 * i..4 * i + 4].copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes).to_canonical()
}

/// The IPv6 subnet of a dual-stack network: length and first address of its prefix, and the IPv4 addresses that its addresses stand
/// for. A host has the same number in both subnets.
#[must_use]
pub fn subnet6(v6: Ipv6Addr, length: u8, network: Ipv4Addr, mask: Ipv4Addr) -> (u32, Address, Subnet6) {
    let first = address(IpAddr::V6(v6));
    let subnet = Subnet6 { network: v4(network), mask: v4(mask), change: first[3] ^ v4(network) };
    (u32::from(length), first, subnet)
}

/// The entry of a further IPv4 subnet: the network that it is part of, by the first address of that one's first subnet. The key is
/// its mapped form, which is no IPv6 address of a container, and nothing is translated by the entry.
#[must_use]
pub fn further_subnet(subnet: Ipv4Addr, length: u8, network: Ipv4Addr) -> (u32, Address, Subnet6) {
    let entry = Subnet6 { network: v4(network), mask: u32::MAX, change: 0 };
    (96 + u32::from(length), address(IpAddr::V4(subnet)), entry)
}

/// The IPv6 address that belongs to an IPv4 address on a network, by what [`subnet6`] returns; `None` if that is on another one.
#[must_use]
pub fn to_v6(host: Ipv4Addr, mut first: Address, subnet: Subnet6) -> Option<Ipv6Addr> {
    first[3] = v4(host) ^ subnet.change;
    match to_address(first) {
        IpAddr::V6(address) if subnet.to_v4(first[3]).is_some() => Some(address),
        _ => None,
    }
}

/// The first half of an address.
#[must_use]
pub fn prefix(whole: Ipv6Addr) -> Prefix {
    let words = address(IpAddr::V6(whole));
    [words[0], words[1]]
}

/// A port number of the host as packets hold it.
#[must_use]
pub const fn port(number: u16) -> PortNumber {
    number.to_be()
}

/// The inverse of [`port`].
#[must_use]
pub const fn to_port(word: PortNumber) -> u16 {
    u16::from_be(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_dual_stack_network_stands_for_the_host_with_its_number() {
        let [first, mask] = [[172, 16, 7, 128], [255, 255, 255, 128]].map(Ipv4Addr::from);
        for (subnet, length, host) in [("fd00:1::", 64, "fd00:1::9"), ("2001:db8::1:80", 121, "2001:db8::1:89")] {
            let (bits, key, subnet) = subnet6(subnet.parse().unwrap(), length, first, mask);
            let text: Ipv6Addr = host.parse().unwrap();
            assert_eq!(to_v6(Ipv4Addr::new(172, 16, 7, 137), key, subnet), Some(text));
            assert_eq!(to_v6(Ipv4Addr::new(172, 16, 8, 9), key, subnet), None);
            let host = address(text.into());
            assert_eq!((bits, key[0]), (u32::from(length), host[0]));
            assert_eq!(subnet.to_v4(host[3]), Some(v4(Ipv4Addr::new(172, 16, 7, 137))));
            let outside = address("fd00:1::1:9".parse().unwrap());
            assert_eq!(subnet.to_v4(outside[3]), None, "the number is larger than the IPv4 subnet");
        }
    }

    #[test]
    fn conversions_are_inverse_and_in_network_order() {
        for text in ["192.0.2.7", "fd12:3456:789a:1::5e", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(to_address(address(ip)), ip);
        }
        assert_eq!(to_v4(v4(Ipv4Addr::new(10, 0, 1, 2))), Ipv4Addr::new(10, 0, 1, 2));
        assert_eq!(v4(Ipv4Addr::new(10, 0, 1, 2)).to_ne_bytes(), [10, 0, 1, 2], "as in a packet");
        assert_eq!(port(8080).to_ne_bytes(), [0x1f, 0x90]);
        assert_eq!(to_port(port(8080)), 8080);
    }
}

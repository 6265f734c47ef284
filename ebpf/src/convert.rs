//! Conversion between the address types of `core::net` and the words of packets and maps, both ways.

use crate::{Address, PortNumber, Prefix, V4, packet::mapped};
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

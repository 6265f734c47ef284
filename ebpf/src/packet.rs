//! Packet arithmetic: headers as bytes, translation between IPv4 and IPv6, addresses of translated packets. Pure.

use crate::{Address, Prefix, V4 as Ipv4};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const V4: usize = 20;
/// Length of an IPv6 header.
pub const V6: usize = 40;
/// Protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP of IPv6.
pub const ICMP6: u8 = 58;
/// The header of a piece, between IPv6 and the rest.
pub const FRAGMENT: u8 = 44;
/// IPv4 in another header.
pub const IN_V4: u8 = 4;
/// IPv6 in another header.
pub const IN_V6: u8 = 41;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;
/// TCP flags.
pub const SYN: u8 = 2;
/// RST.
pub const RST: u8 = 4;
/// ACK.
pub const ACK: u8 = 16;

/// Third word of IPv4 addresses among those of both families.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv4 address among addresses of both families.
#[inline(always)]
pub const fn mapped(v4: Ipv4) -> Address {
    [0, 0, MAPPED, v4]
}

/// A container's IPv6 address, made of its IPv4 one.
#[inline(always)]
pub const fn container6(containers: Prefix, v4: Ipv4) -> Address {
    [containers[0], containers[1], 0, v4]
}

/// Third word of translated addresses; a node's own address has zero there. From a client to a container.
pub const REQUEST: u32 = 0x5e01_0000_u32.to_be();
/// From a container to a client.
pub const REPLY: u32 = 0x5e02_0000_u32.to_be();

/// The address that stands for `address` behind the node `prefix`.
#[inline(always)]
pub const fn translated(prefix: Prefix, kind: u32, address: Ipv4) -> Address {
    [prefix[0], prefix[1], kind, address]
}

/// A byte of a word of a header.
#[inline(always)]
pub const fn byte(word: u32, at: usize) -> u8 {
    word.to_ne_bytes()[at]
}

/// The IPv4 header `v4` has no options, and what is behind it is no later piece.
#[inline(always)]
pub const fn is_plain(v4: &[u32; 5]) -> bool {
    byte(v4[0], 0) == 0x45 && byte(v4[1], 2) & 0x1f == 0 && byte(v4[1], 3) == 0
}

/// More pieces follow.
#[inline(always)]
pub const fn has_more(v4: &[u32; 5]) -> bool {
    byte(v4[1], 2) & 0x20 != 0
}

/// The IPv6 header before an unchanged packet.
#[inline(always)]
pub const fn around(length: u16, next: u8, source: &Address, destination: &Address) -> [u32; 10] {
    let length = length.to_be_bytes();
    let second = u32::from_ne_bytes([length[0], length[1], next, 64]);
    header6(0x6000_0000_u32.to_be(), second, source, destination)
}

#[inline(always)]
const fn header6(first: u32, second: u32, source: &Address, destination: &Address) -> [u32; 10] {
    let (s, d) = (source, destination);
    [first, second, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]]
}

/// The IPv6 header of what was behind the IPv4 header `v4` (without options).
#[inline(always)]
pub const fn to_v6(v4: &[u32; 5], source: &Address, destination: &Address) -> [u32; 10] {
    let service = byte(v4[0], 1);
    let length = u16::from_be_bytes([byte(v4[0], 2), byte(v4[0], 3)]).wrapping_sub(V4 as u16).to_be_bytes();
    let first = u32::from_ne_bytes([0x60 | service >> 4, service << 4, 0, 0]);
    // Protocol and time to live.
    let second = u32::from_ne_bytes([length[0], length[1], byte(v4[2], 1), byte(v4[2], 0)]);
    header6(first, second, source, destination)
}

/// The IPv4 header of what was behind the IPv6 header `v6`. Never to be fragmented.
#[inline(always)]
pub const fn to_v4(v6: &[u32; 10], source: Ipv4, destination: Ipv4) -> [u32; 5] {
    let length = u16::from_be_bytes([byte(v6[1], 0), byte(v6[1], 1)]).wrapping_add(V4 as u16).to_be_bytes();
    let service = byte(v6[0], 0) << 4 | byte(v6[0], 1) >> 4;
    let mut v4 = [
        u32::from_ne_bytes([0x45, service, length[0], length[1]]),
        u32::from_ne_bytes([0, 0, 0x40, 0]),
        u32::from_ne_bytes([byte(v6[1], 3), byte(v6[1], 2), 0, 0]),
        source,
        destination,
    ];
    let sum = header_checksum(&v4).to_ne_bytes();
    v4[2] = u32::from_ne_bytes([byte(v6[1], 3), byte(v6[1], 2), sum[0], sum[1]]);
    v4
}

/// Checksum, as it stands in memory, of an IPv4 header whose checksum field is zero.
#[inline(always)]
pub const fn header_checksum(v4: &[u32; 5]) -> u16 {
    // One's complement sums are the same in either order of bytes.
    let sum = v4[0] as u64 + v4[1] as u64 + v4[2] as u64 + v4[3] as u64 + v4[4] as u64;
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
        core::array::from_fn(|i| u32::from_ne_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap()))
    }

    const HEADER: [u8; V4] =
        [0x45, 0x02, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x06, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7];

    #[test]
    fn checksum_of_a_known_header() {
        let known = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00,
            0xc7,
        ];
        assert_eq!(header_checksum(&words(&known)).to_ne_bytes(), [0xb8, 0x61]);
    }

    #[test]
    fn there_and_back_is_the_same_packet() {
        let header: [u32; 5] = words(&HEADER);
        let prefix = [0xfd01, 7];
        let (source, destination) = (translated(prefix, REQUEST, header[3]), translated(prefix, REQUEST, header[4]));
        let v6 = to_v6(&header, &source, &destination);
        assert_eq!(byte(v6[0], 0) >> 4, 6);
        assert_eq!(u16::from_be_bytes([byte(v6[1], 0), byte(v6[1], 1)]), 0x73 - 20);
        assert_eq!((byte(v6[1], 2), byte(v6[1], 3)), (TCP, 64));
        let mut v4 = to_v4(&v6, v6[5], v6[9]);
        v4[2] = u32::from_ne_bytes([byte(v4[2], 0), byte(v4[2], 1), 0, 0]);
        assert_eq!(v4, header, "the congestion bits and the time to live included");
    }

    #[test]
    fn a_node_address_is_no_translated_one() {
        let node: std::net::Ipv6Addr = "fd00:1:2:3::1".parse().unwrap();
        let third = words::<4>(&node.octets())[2];
        assert!(third != REQUEST && third != REPLY);
    }

    #[test]
    fn a_later_piece_is_not_plain_and_a_first_one_has_more() {
        let mut bytes = HEADER;
        assert!(is_plain(&words(&bytes)) && !has_more(&words(&bytes)));
        bytes[6] = 0x20;
        assert!(is_plain(&words(&bytes)) && has_more(&words(&bytes)));
        (bytes[6], bytes[7]) = (0, 185);
        assert!(!is_plain(&words(&bytes)));
    }
}

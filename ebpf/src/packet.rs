//! Packet arithmetic: constants of headers, translation of headers between IPv4 and IPv6, addresses of translated packets.
//! Pure.

use crate::{Address, Prefix, V4 as Ipv4};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options.
pub const V4: usize = 20;
/// Length of an IPv6 header.
pub const V6: usize = 40;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number.
pub const TCP: u8 = 6;
/// IP protocol number.
pub const UDP: u8 = 17;
/// IP protocol number. The header has ports and checksum where that of UDP has them.
pub const UDP_LITE: u8 = 136;
/// IP protocol number of `ICMPv6`.
pub const ICMP6: u8 = 58;
/// IP protocol number of the IPv6 fragment header.
pub const FRAGMENT: u8 = 44;
/// IP protocol number of an encapsulated IPv4 packet.
pub const IN_V4: u8 = 4;
/// IP protocol number of an encapsulated IPv6 packet.
pub const IN_V6: u8 = 41;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;
/// TCP flag.
pub const FIN: u8 = 1;
/// TCP flag.
pub const SYN: u8 = 2;
/// TCP flag.
pub const RST: u8 = 4;
/// TCP flag.
pub const ACK: u8 = 16;

/// Third word of an IPv4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv4 address in its mapped form.
#[inline(always)]
pub const fn mapped(v4: Ipv4) -> Address {
    [0, 0, MAPPED, v4]
}

/// A container's IPv6 address, derived from its IPv4 one.
#[inline(always)]
pub const fn container6(containers: Prefix, v4: Ipv4) -> Address {
    [containers[0], containers[1], 0, v4]
}

/// Third word of the outer addresses of packets from a client to a container. (In a node's own address this word is zero.)
pub const REQUEST: u32 = 0x5e01_0000_u32.to_be();
/// Third word of the outer addresses of packets from a container to a client.
pub const REPLY: u32 = 0x5e02_0000_u32.to_be();

/// The outer IPv6 address: the node of `prefix`, the direction, and the IPv4 address that it replaces (0 when encapsulated).
#[inline(always)]
pub const fn translated(prefix: Prefix, kind: u32, address: Ipv4) -> Address {
    [prefix[0], prefix[1], kind, address]
}

/// The byte at `at` (0 to 3) of a header word.
#[inline(always)]
pub const fn byte(word: u32, at: usize) -> u8 {
    word.to_ne_bytes()[at]
}

/// Whether the IPv4 header has no options and the packet is not a later fragment.
#[inline(always)]
pub const fn is_plain(v4: &[u32; 5]) -> bool {
    byte(v4[0], 0) == 0x45 && byte(v4[1], 2) & 0x1f == 0 && byte(v4[1], 3) == 0
}

/// Whether more fragments follow.
#[inline(always)]
pub const fn has_more(v4: &[u32; 5]) -> bool {
    byte(v4[1], 2) & 0x20 != 0
}

/// The outer IPv6 header of an encapsulated packet of `length` bytes. Longer segments than the field can say (BIG TCP) have 0
/// there, until the kernel divides them.
#[inline(always)]
pub const fn encapsulation_header(length: u32, next: u8, source: &Address, destination: &Address) -> [u32; 10] {
    let length = if length > 0xffff { 0 } else { length as u16 }.to_be_bytes();
    let second = u32::from_ne_bytes([length[0], length[1], next, 64]);
    header6(0x6000_0000_u32.to_be(), second, source, destination)
}

/// An IPv6 header: its first two words, and the addresses.
#[inline(always)]
pub const fn header6(first: u32, second: u32, source: &Address, destination: &Address) -> [u32; 10] {
    let (s, d) = (source, destination);
    [first, second, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]]
}

/// The IPv6 header that replaces the IPv4 header `v4` (without options). A length of 0, of segments that the kernel has merged
/// to more than the field can say (BIG TCP), stays.
#[inline(always)]
pub const fn to_v6(v4: &[u32; 5], source: &Address, destination: &Address) -> [u32; 10] {
    let service = byte(v4[0], 1);
    let length = u16::from_be_bytes([byte(v4[0], 2), byte(v4[0], 3)]).saturating_sub(V4 as u16).to_be_bytes();
    let first = u32::from_ne_bytes([0x60 | service >> 4, service << 4, 0, 0]);
    // Payload length, next header and hop limit.
    let second = u32::from_ne_bytes([length[0], length[1], byte(v4[2], 1), byte(v4[2], 0)]);
    header6(first, second, source, destination)
}

/// The IPv4 header that replaces the IPv6 header `v6`, with the flag "do not fragment".
#[inline(always)]
pub const fn to_v4(v6: &[u32; 10], source: Ipv4, destination: Ipv4) -> [u32; 5] {
    let length = u16::from_be_bytes([byte(v6[1], 0), byte(v6[1], 1)]);
    // More than the field can say: BIG TCP.
    let length = if length == 0 || length > u16::MAX - V4 as u16 { 0 } else { length + V4 as u16 }.to_be_bytes();
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

/// Sum of words for a checksum. (One's complement sums do not depend on the byte order.)
#[inline(always)]
pub fn sum<const N: usize>(words: &[u32; N]) -> u64 {
    let (mut sum, mut at) = (0, 0);
    while at < N {
        sum += words[at] as u64;
        at += 1;
    }
    sum
}

/// The sum as 16 bits, in memory order; a checksum is its complement.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Checksum, in memory order, of an IPv4 header whose checksum field is zero.
#[inline(always)]
pub const fn header_checksum(v4: &[u32; 5]) -> u16 {
    !fold(v4[0] as u64 + v4[1] as u64 + v4[2] as u64 + v4[3] as u64 + v4[4] as u64)
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
    fn translation_to_ipv6_and_back_restores_the_header() {
        let header: [u32; 5] = words(&HEADER);
        let prefix = [0xfd01, 7];
        let (source, destination) = (translated(prefix, REQUEST, header[3]), translated(prefix, REQUEST, header[4]));
        let v6 = to_v6(&header, &source, &destination);
        assert_eq!(byte(v6[0], 0) >> 4, 6);
        assert_eq!(u16::from_be_bytes([byte(v6[1], 0), byte(v6[1], 1)]), 0x73 - 20);
        assert_eq!((byte(v6[1], 2), byte(v6[1], 3)), (TCP, 64));
        let mut v4 = to_v4(&v6, v6[5], v6[9]);
        v4[2] = u32::from_ne_bytes([byte(v4[2], 0), byte(v4[2], 1), 0, 0]);
        assert_eq!(v4, header, "with ECN bits and TTL");
    }

    #[test]
    fn a_length_that_the_field_cannot_say_is_0() {
        let header = |length: u16| {
            let mut bytes = HEADER;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            words::<5>(&bytes)
        };
        let length6 = |v6: [u32; 10]| u16::from_be_bytes([byte(v6[1], 0), byte(v6[1], 1)]);
        let length4 = |v4: [u32; 5]| u16::from_be_bytes([byte(v4[0], 2), byte(v4[0], 3)]);
        let ends = [[0; 4]; 2];
        for (v4, v6) in [(0, 0), (40, 20), (u16::MAX, u16::MAX - 20)] {
            let translated = to_v6(&header(v4), &ends[0], &ends[1]);
            assert_eq!(length6(translated), v6);
            assert_eq!(length4(to_v4(&translated, 1, 2)), v4);
        }
        let mut merged = to_v6(&header(40), &ends[0], &ends[1]);
        merged[1] = u32::from_ne_bytes([0xff, 0xf0, TCP, 64]);
        assert_eq!(length4(to_v4(&merged, 1, 2)), 0);
        for (length, said) in [(40, 40), (0xffff, 0xffff), (0x1_0000, 0), (0x2_0028, 0)] {
            assert_eq!(length6(encapsulation_header(length, IN_V6, &ends[0], &ends[1])), said);
        }
    }

    #[test]
    fn a_node_address_is_never_taken_for_a_translated_one() {
        let node: std::net::Ipv6Addr = "fd00:1:2:3::1".parse().unwrap();
        let third = words::<4>(&node.octets())[2];
        assert!(third != REQUEST && third != REPLY);
    }

    #[test]
    fn a_later_fragment_is_not_plain_and_a_first_one_has_more() {
        let mut bytes = HEADER;
        assert!(is_plain(&words(&bytes)) && !has_more(&words(&bytes)));
        bytes[6] = 0x20;
        assert!(is_plain(&words(&bytes)) && has_more(&words(&bytes)));
        (bytes[6], bytes[7]) = (0, 185);
        assert!(!is_plain(&words(&bytes)));
    }
}

//! Packet arithmetic: headers as bytes, translation between IPv4 and IPv6, addresses of translated packets. Pure.

use crate::{Address, Prefix};

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
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// TCP flags.
pub const SYN: u8 = 2;
/// ACK.
pub const ACK: u8 = 16;

/// Third and fourth byte of the interface part of translated addresses; a node's own address has zeros there.
/// From a client to a container.
pub const REQUEST: [u8; 2] = [0x5e, 1];
/// From a container to a client.
pub const REPLY: [u8; 2] = [0x5e, 2];

/// The address that stands for `address` behind the node `prefix`.
#[inline(always)]
pub fn translated(prefix: Prefix, kind: [u8; 2], address: Address) -> [u8; 16] {
    let mut whole = [0; 16];
    let mut i = 0;
    while i < 8 {
        whole[i] = prefix[i];
        i += 1;
    }
    whole[8] = kind[0];
    whole[9] = kind[1];
    whole[12] = address[0];
    whole[13] = address[1];
    whole[14] = address[2];
    whole[15] = address[3];
    whole
}

/// Prefix, kind and address of a translated address.
#[inline(always)]
pub fn untranslated(whole: &[u8]) -> (Prefix, [u8; 2], Address) {
    let prefix = [whole[0], whole[1], whole[2], whole[3], whole[4], whole[5], whole[6], whole[7]];
    (prefix, [whole[8], whole[9]], [whole[12], whole[13], whole[14], whole[15]])
}

/// The IPv6 header of what was behind the IPv4 header `v4` (without options).
#[inline(always)]
pub fn to_v6(v4: &[u8; V4], source: &[u8; 16], destination: &[u8; 16]) -> [u8; V6] {
    let length = u16::from_be_bytes([v4[2], v4[3]]).wrapping_sub(V4 as u16).to_be_bytes();
    let mut v6 = [0; V6];
    v6[0] = 0x60 | v4[1] >> 4;
    v6[1] = v4[1] << 4;
    v6[4] = length[0];
    v6[5] = length[1];
    v6[6] = v4[9];
    v6[7] = v4[8];
    let mut i = 0;
    while i < 16 {
        v6[8 + i] = source[i];
        v6[24 + i] = destination[i];
        i += 1;
    }
    v6
}

/// The IPv4 header of what was behind the IPv6 header `v6`. Never to be fragmented.
#[inline(always)]
pub fn to_v4(v6: &[u8; V6], source: Address, destination: Address) -> [u8; V4] {
    let length = u16::from_be_bytes([v6[4], v6[5]]).wrapping_add(V4 as u16).to_be_bytes();
    let mut v4 = [0; V4];
    v4[0] = 0x45;
    v4[1] = v6[0] << 4 | v6[1] >> 4;
    v4[2] = length[0];
    v4[3] = length[1];
    v4[6] = 0x40;
    v4[8] = v6[7];
    v4[9] = v6[6];
    let mut i = 0;
    while i < 4 {
        v4[12 + i] = source[i];
        v4[16 + i] = destination[i];
        i += 1;
    }
    let checksum = header_checksum(&v4).to_be_bytes();
    v4[10] = checksum[0];
    v4[11] = checksum[1];
    v4
}

/// Checksum of an IPv4 header whose checksum field is zero.
#[inline(always)]
pub fn header_checksum(v4: &[u8; V4]) -> u16 {
    let mut sum = 0_u32;
    let mut i = 0;
    while i < V4 {
        sum += u32::from(v4[i]) << 8 | u32::from(v4[i + 1]);
        i += 2;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: [u8; V4] =
        [0x45, 0x02, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x06, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7];

    #[test]
    fn checksum_of_a_known_header() {
        let known = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00,
            0xc7,
        ];
        assert_eq!(header_checksum(&known), 0xb861);
    }

    #[test]
    fn there_and_back_is_the_same_packet() {
        let prefix = [0xfd, 1, 2, 3, 4, 5, 0, 7];
        let source = translated(prefix, REQUEST, [192, 168, 0, 1]);
        let destination = translated(prefix, REQUEST, [192, 168, 0, 199]);
        let v6 = to_v6(&HEADER, &source, &destination);
        assert_eq!(v6[0] >> 4, 6);
        assert_eq!(u16::from_be_bytes([v6[4], v6[5]]), 0x73 - 20);
        assert_eq!((v6[6], v6[7]), (TCP, 64));
        assert_eq!(untranslated(&v6[8..24]), (prefix, REQUEST, [192, 168, 0, 1]));
        let mut v4 = to_v4(&v6, [192, 168, 0, 1], [192, 168, 0, 199]);
        (v4[10], v4[11]) = (0, 0);
        assert_eq!(v4, HEADER, "the congestion bits and the time to live included");
    }

    #[test]
    fn a_node_address_is_no_translated_one() {
        let node: std::net::Ipv6Addr = "fd00:1:2:3::1".parse().unwrap();
        let (_, kind, _) = untranslated(&node.octets());
        assert!(kind != REQUEST && kind != REPLY);
    }
}

//! Frames, byte by byte.

use std::net::{IpAddr, SocketAddr};

/// MAC address of the uplink.
pub const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of the second uplink.
pub const OTHER_UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 254];

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A frame as it arrives at the uplink.
#[derive(Clone, Debug)]
pub struct Frame {
    pub destination_mac: [u8; 6],
    pub packet: Vec<u8>,
    pub ipv6: bool,
}

impl Frame {
    /// A TCP segment for the host's MAC address, with sequence and acknowledgement number 1.
    pub fn tcp(from: &str, to: &str, flags: u8) -> Self {
        Self::segment(from, to, flags, (1, 1), b"")
    }

    /// A TCP segment with these sequence and acknowledgement numbers.
    pub fn segment(from: &str, to: &str, flags: u8, (sequence, acknowledges): (u32, u32), payload: &[u8]) -> Self {
        Self::with(from, to, 6, |from, to| {
            let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
            segment.extend(sequence.to_be_bytes());
            segment.extend(acknowledges.to_be_bytes());
            segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            segment.extend(payload);
            (segment, 16)
        })
    }

    /// The SYN of a connection whose first sequence number is this.
    pub fn syn(from: &str, to: &str, sequence: u32) -> Self {
        Self::segment(from, to, SYN, (sequence, 0), b"")
    }

    /// A UDP datagram of eight bytes.
    pub fn udp(from: &str, to: &str) -> Self {
        Self::datagram(from, to, 17)
    }

    /// A UDP-Lite datagram of eight bytes, whose checksum covers all of them.
    pub fn udp_lite(from: &str, to: &str) -> Self {
        Self::datagram(from, to, 136)
    }

    /// "Port unreachable" from an address, to the sender of a packet, which it quotes with eight bytes of its payload.
    pub fn unreachable(from: &str, about: &Self) -> Self {
        let from = octets(from.parse().unwrap());
        if about.ipv6 {
            let mut message = vec![1, 4, 0, 0, 0, 0, 0, 0];
            message.extend(&about.packet[..48]);
            let length = u16::try_from(message.len()).unwrap().to_be_bytes();
            let mut summed = [&from[..], &about.packet[8..24], &[0, 0], &length, &[0, 0, 0, 58]].concat();
            summed.extend(&message);
            message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
            let packet = [&[0x60, 0, 0, 0], &length[..], &[58, 64], &from, &about.packet[8..24], &message].concat();
            return Self { destination_mac: UPLINK_MAC, packet, ipv6: true };
        }
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message.extend(&about.packet[..28]);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x45, 0];
        packet.extend((20 + u16::try_from(message.len()).unwrap()).to_be_bytes());
        packet.extend([0, 7, 0x40, 0, 64, 1, 0, 0]);
        packet.extend(from);
        packet.extend(&about.packet[12..16]);
        packet.extend(message);
        Self { destination_mac: UPLINK_MAC, packet, ipv6: false }.summed()
    }

    fn datagram(from: &str, to: &str, protocol: u8) -> Self {
        Self::with(from, to, protocol, |from, to| {
            let mut segment = [from.to_be_bytes(), to.to_be_bytes(), 16_u16.to_be_bytes(), [0, 0]].concat();
            segment.extend(*b"datagram");
            (segment, 6)
        })
    }

    fn with(from: &str, to: &str, protocol: u8, segment: impl FnOnce(u16, u16) -> (Vec<u8>, usize)) -> Self {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let (mut segment, sum_at) = segment(from.port(), to.port());
        let length = u16::try_from(segment.len()).unwrap();
        let mut summed = [octets(from.ip()), octets(to.ip())].concat();
        summed.extend([0, protocol]);
        summed.extend(length.to_be_bytes());
        summed.extend(&segment);
        segment[sum_at..sum_at + 2].copy_from_slice(&checksum(&summed).to_be_bytes());
        let mut packet = match from {
            SocketAddr::V4(_) => {
                let mut header = vec![0x45, 0];
                header.extend((20 + length).to_be_bytes());
                header.extend([0, 7, 0x40, 0, 64, protocol, 0, 0]);
                header.extend(octets(from.ip()));
                header.extend(octets(to.ip()));
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            SocketAddr::V6(_) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([protocol, 64]);
                header.extend(octets(from.ip()));
                header.extend(octets(to.ip()));
                header
            }
        };
        packet.extend(segment);
        Self { destination_mac: UPLINK_MAC, packet, ipv6: from.is_ipv6() }
    }

    /// The same with DSCP and ECN.
    pub fn class(mut self, class: u8) -> Self {
        if self.ipv6 {
            self.packet[..2].copy_from_slice(&[0x60 | class >> 4, class << 4]);
            return self;
        }
        self.packet[1] = class;
        self.summed()
    }

    /// The same with a TTL, or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.packet[if self.ipv6 { 7 } else { 8 }] = ttl;
        self.summed()
    }

    /// The same with another length in the IPv4 header.
    pub fn length(mut self, length: u16) -> Self {
        assert!(!self.ipv6);
        self.packet[2..4].copy_from_slice(&length.to_be_bytes());
        self.summed()
    }

    /// The same with an IPv4 option, "router alert".
    pub fn router_alert(mut self) -> Self {
        assert!(!self.ipv6);
        self.packet[0] = 0x46;
        let length = u16::from_be_bytes([self.packet[2], self.packet[3]]) + 4;
        self.packet.splice(20..20, [0x94, 4, 0, 0]);
        self.length(length)
    }

    /// The same with the right sum of an IPv4 header.
    fn summed(mut self) -> Self {
        if !self.ipv6 {
            let header = usize::from(self.packet[0] & 0xf) * 4;
            self.packet[10..12].fill(0);
            let sum = checksum(&self.packet[..header]);
            self.packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        self
    }

    /// The same for another MAC address.
    pub fn for_mac(mut self, mac: [u8; 6]) -> Self {
        self.destination_mac = mac;
        self
    }

    /// The same with an IPv6 extension header of options, all padding: 0 is hop-by-hop, 60 destination options.
    pub fn extension(mut self, kind: u8) -> Self {
        assert!(self.ipv6);
        let next = std::mem::replace(&mut self.packet[6], kind);
        self.packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        self.payload_length()
    }

    /// The same with the right length in the IPv6 header.
    fn payload_length(mut self) -> Self {
        let length = u16::try_from(self.packet.len() - 40).unwrap();
        self.packet[4..6].copy_from_slice(&length.to_be_bytes());
        self
    }

    /// A fragment: its identification, offset in bytes, and whether more follow. Of a later fragment the ports are payload.
    pub fn fragment(mut self, id: u16, offset: u16, more: bool) -> Self {
        if self.ipv6 {
            let next = std::mem::replace(&mut self.packet[6], 44);
            let field = (offset & !7 | u16::from(more)).to_be_bytes();
            let header = [&[next, 0], &field[..], &[0, 0], &id.to_be_bytes()].concat();
            self.packet.splice(40..40, header);
            return self.payload_length();
        }
        self.packet[4..6].copy_from_slice(&id.to_be_bytes());
        let field = (offset / 8) | if more { 0x2000 } else { 0 };
        self.packet[6..8].copy_from_slice(&field.to_be_bytes());
        self.summed()
    }

    /// What the wire carries.
    pub fn bytes(&self) -> Vec<u8> {
        let kind: [u8; 2] = if self.ipv6 { [0x86, 0xdd] } else { [8, 0] };
        [&self.destination_mac[..], &ROUTER_MAC, &kind, &self.packet].concat()
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The Internet checksum.
pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

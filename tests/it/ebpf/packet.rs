//! IPv4 packets for raw sockets: without a socket call that is translated, or with a forged source.

use std::net::SocketAddrV4;

pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut segment = ports(from, to);
    segment.extend(u16::try_from(8 + payload.len()).expect("short").to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(payload);
    // A checksum of 0 is none, which UDP over IPv4 allows.
    ip(from, to, 17, &segment)
}

/// A TCP segment without options; `flags` as in its header.
pub fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut segment = ports(from, to);
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    let mut summed = [from.ip().octets(), to.ip().octets()].concat();
    summed.extend([0, 6]);
    summed.extend(u16::try_from(segment.len()).expect("short").to_be_bytes());
    summed.extend(&segment);
    segment[16..18].copy_from_slice(&checksum(&summed).to_be_bytes());
    ip(from, to, 6, &segment)
}

fn ports(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    [from.port().to_be_bytes(), to.port().to_be_bytes()].concat()
}

fn ip(from: SocketAddrV4, to: SocketAddrV4, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(u16::try_from(20 + segment.len()).expect("short").to_be_bytes());
    packet.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(segment);
    packet
}

fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

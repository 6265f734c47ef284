//! Frames of a trace: built from addresses and ports, read back after a program. Pure.

use skep_ebpf::packet::{ACK, ICMP, ICMP6, IN_V4, IN_V6, REPLY, REQUEST, SYN, TCP, UDP, translated};
use skep_ebpf::{Prefix, convert};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Length of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// TCP flag.
const FIN: u8 = 1;
/// MAC address of what sends the packet of a trace: of a local administration, and no digit 4 or 6 in front, by which a program
/// recognizes a packet without an Ethernet header.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 254];
/// Type of an ICMP echo request.
const ECHO: u8 = 8;
/// Type of an `ICMPv6` echo request.
const ECHO6: u8 = 128;

/// The headers of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeaders {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// 0 if the protocol has no ports.
    pub source_port: u16,
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags; 0 for other protocols.
    pub flags: u8,
}

/// A packet as a hook has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TracedFrame {
    pub headers: FrameHeaders,
    /// The packet inside, if it is encapsulated in IPv6.
    pub inner: Option<FrameHeaders>,
}

impl FrameHeaders {
    /// Both ends exchanged, as in an answer. Of TCP with the flags that an answer has.
    #[must_use]
    pub fn answer(self) -> Self {
        let flags = match self.flags {
            _ if self.protocol != TCP => 0,
            SYN => SYN | ACK,
            flags => ACK | flags & FIN,
        };
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            flags,
            ..self
        }
    }

    /// The least length of such a packet in bytes, from its IP header on.
    #[must_use]
    pub fn least(&self) -> usize {
        let transport = if self.protocol == TCP { 20 } else { 8 };
        transport + if self.source.is_ipv4() { 20 } else { 40 }
    }

    /// Source with its port, if it has one.
    #[must_use]
    pub fn source_text(&self) -> String {
        endpoint(self.source, self.source_port)
    }

    /// Destination with its port, if it has one.
    #[must_use]
    pub fn destination_text(&self) -> String {
        endpoint(self.destination, self.destination_port)
    }
}

fn endpoint(address: IpAddr, port: u16) -> String {
    if port == 0 { address.to_string() } else { SocketAddr::new(address, port).to_string() }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The Internet checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Writes the checksum of a transport header and what follows it at its offset. `source` and `destination` are those of the
/// pseudo header; `ICMP` has none.
fn write_checksum(segment: &mut [u8], protocol: u8, source: IpAddr, destination: IpAddr) {
    let at = match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    };
    segment[at..at + 2].fill(0);
    let length = u32::try_from(segment.len()).unwrap_or_default();
    let mut summed = Vec::new();
    if protocol != ICMP {
        summed.extend(octets(source));
        summed.extend(octets(destination));
        summed.extend(length.to_be_bytes());
        summed.extend([0, 0, 0, protocol]);
    }
    summed.extend_from_slice(segment);
    segment[at..at + 2].copy_from_slice(&checksum(&summed).to_be_bytes());
}

/// TCP, UDP or ICMP echo with zeros behind it, `length` bytes.
fn segment(headers: &FrameHeaders, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    match headers.protocol {
        TCP | UDP => {
            bytes[..2].copy_from_slice(&headers.source_port.to_be_bytes());
            bytes[2..4].copy_from_slice(&headers.destination_port.to_be_bytes());
            if headers.protocol == TCP {
                bytes[7] = 1;
                bytes[11] = u8::from(headers.flags & ACK != 0);
                bytes[12] = 0x50;
                bytes[13] = headers.flags;
                bytes[14..16].copy_from_slice(&[0xff, 0xff]);
            } else {
                bytes[4..6].copy_from_slice(&u16::try_from(length).unwrap_or_default().to_be_bytes());
            }
        }
        protocol => bytes[0] = if protocol == ICMP6 { ECHO6 } else { ECHO },
    }
    write_checksum(&mut bytes, headers.protocol, headers.source, headers.destination);
    bytes
}

fn ip_header(source: IpAddr, destination: IpAddr, protocol: u8, payload: usize) -> Vec<u8> {
    let mut header;
    if source.is_ipv4() {
        let length = u16::try_from(20 + payload).unwrap_or_default().to_be_bytes();
        header = vec![0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
        header.extend(octets(source));
        header.extend(octets(destination));
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
    } else {
        let length = u16::try_from(payload).unwrap_or_default().to_be_bytes();
        header = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
        header.extend(octets(source));
        header.extend(octets(destination));
    }
    header
}

fn ethernet(to: [u8; 6], ip: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&to[..], &SENDER, &kind, ip].concat()
}

fn ip_packet(headers: &FrameHeaders, length: usize) -> Vec<u8> {
    let least = headers.least();
    let transport = if headers.protocol == TCP { 20 } else { 8 };
    let segment = segment(headers, transport + length.saturating_sub(least));
    let mut packet = ip_header(headers.source, headers.destination, headers.protocol, segment.len());
    packet.extend(segment);
    packet
}

/// A packet with an Ethernet header for this MAC address; `length` bytes from its IP header on, at least what its headers take.
pub(super) fn frame(headers: &FrameHeaders, length: usize, to: [u8; 6]) -> Vec<u8> {
    ethernet(to, &ip_packet(headers, length))
}

/// Which packets a node sends to another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MeshDirection {
    /// Of a client that entered by the sending node.
    Request,
    /// The answer of a container of the sending node.
    Reply,
}

/// A packet as the node `from` sends it to the node `to`: TCP over IPv4 translated to IPv6, all else encapsulated.
pub(super) fn carried(headers: &FrameHeaders, length: usize, direction: MeshDirection, from: Prefix, to: Prefix) -> Vec<u8> {
    let kind = if direction == MeshDirection::Request { REQUEST } else { REPLY };
    let packet = ip_packet(headers, length);
    let outer = |prefix, inner| convert::to_address(translated(prefix, kind, inner));
    if let (TCP, IpAddr::V4(source), IpAddr::V4(destination)) = (headers.protocol, headers.source, headers.destination) {
        let (source, destination) = (outer(from, convert::v4(source)), outer(to, convert::v4(destination)));
        let mut segment = packet[20..].to_vec();
        write_checksum(&mut segment, TCP, source, destination);
        let mut translated = ip_header(source, destination, TCP, segment.len());
        translated.extend(segment);
        return ethernet([2; 6], &translated);
    }
    let next = if headers.source.is_ipv4() { IN_V4 } else { IN_V6 };
    let mut outside = ip_header(outer(from, 0), outer(to, 0), next, packet.len());
    outside.extend(packet);
    ethernet([2; 6], &outside)
}

/// Reads a frame back; `None` if it is no packet of IPv4 or IPv6.
pub(super) fn read(frame: &[u8]) -> Option<TracedFrame> {
    let packet = frame.get(ETHERNET..)?;
    let (headers, rest) = read_headers(packet)?;
    let inner = if headers.protocol == IN_V4 || headers.protocol == IN_V6 { Some(read_headers(rest)?.0) } else { None };
    Some(TracedFrame { headers, inner })
}

fn read_headers(packet: &[u8]) -> Option<(FrameHeaders, &[u8])> {
    let (source, destination, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = if packet.first()? >> 4 == 4 {
        let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
        (v4(12)?, v4(16)?, *packet.get(9)?, packet.get(20..)?)
    } else {
        let v6 = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
        (v6(8)?, v6(24)?, *packet.get(6)?, packet.get(40..)?)
    };
    let (mut source_port, mut destination_port, mut flags) = (0, 0, 0);
    if protocol == TCP || protocol == UDP {
        source_port = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        destination_port = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]);
        if protocol == TCP {
            flags = *rest.get(13)?;
        }
    }
    Some((FrameHeaders { source, destination, source_port, destination_port, protocol, flags }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(source: &str, destination: &str, protocol: u8, flags: u8) -> FrameHeaders {
        let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        FrameHeaders {
            source: source.ip(),
            destination: destination.ip(),
            source_port: source.port(),
            destination_port: destination.port(),
            protocol,
            flags,
        }
    }

    fn valid(bytes: &[u8], source: IpAddr, destination: IpAddr, protocol: u8) -> bool {
        let mut again = bytes.to_vec();
        write_checksum(&mut again, protocol, source, destination);
        again == bytes
    }

    #[test]
    fn a_frame_is_read_as_it_was_built() {
        for built in [
            headers("192.168.7.9:40000", "172.16.3.1:8080", TCP, SYN),
            headers("192.168.7.9:40000", "172.16.3.1:8080", UDP, 0),
            headers("[2001:db8::9]:40000", "[2001:db8::1]:8080", TCP, ACK),
            headers("10.0.0.9:0", "10.0.0.1:0", ICMP, 0),
            headers("[2001:db8::9]:0", "[2001:db8::1]:0", ICMP6, 0),
        ] {
            for length in [0, 1400] {
                let bytes = frame(&built, length, [2, 0, 0, 0, 0, 1]);
                assert_eq!(bytes.len(), ETHERNET + length.max(built.least()));
                assert_eq!(read(&bytes), Some(TracedFrame { headers: built, inner: None }));
            }
        }
    }

    #[test]
    fn a_packet_between_nodes_holds_the_addresses_and_valid_checksums() {
        let (from, to) = ([0x0100_00fd, 0x0200_0000], [0x0100_00fd, 0x0300_0000]);
        let tcp = headers("203.0.113.9:40000", "10.0.0.11:80", TCP, SYN);
        let bytes = carried(&tcp, 0, MeshDirection::Request, from, to);
        let seen = read(&bytes).unwrap();
        assert_eq!(seen.headers.source, convert::to_address(translated(from, REQUEST, convert::v4([203, 0, 113, 9].into()))));
        assert_eq!((seen.headers.source_port, seen.headers.protocol, seen.inner), (40_000, TCP, None));
        assert!(valid(&bytes[ETHERNET + 40..], seen.headers.source, seen.headers.destination, TCP));

        let udp = headers("[2001:db8::9]:40000", "[fd02::1]:80", UDP, 0);
        let seen = read(&carried(&udp, 0, MeshDirection::Reply, from, to)).unwrap();
        assert_eq!((seen.headers.protocol, seen.inner), (IN_V6, Some(udp)));
        assert_eq!(seen.headers.destination, convert::to_address(translated(to, REPLY, 0)));
    }

    #[test]
    fn an_answer_has_the_flags_of_one() {
        let syn = headers("203.0.113.9:40000", "10.0.0.11:80", TCP, SYN);
        let answer = syn.answer();
        assert_eq!((answer.source_port, answer.destination_port, answer.flags), (80, 40_000, SYN | ACK));
        assert_eq!(FrameHeaders { flags: ACK | FIN, ..syn }.answer().flags, ACK | FIN);
        assert_eq!(FrameHeaders { flags: 4, ..syn }.answer().flags, ACK);
        assert_eq!(FrameHeaders { protocol: UDP, flags: 0, ..syn }.answer().flags, 0);
    }

    #[test]
    fn what_is_cut_off_is_no_packet() {
        let bytes = frame(&headers("203.0.113.9:40000", "10.0.0.11:80", TCP, SYN), 0, [2; 6]);
        for length in 0..ETHERNET + 34 {
            assert_eq!(read(&bytes[..length]), None, "{length}");
        }
    }
}

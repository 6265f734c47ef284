//! The IP header of a packet inside the tunnel: what the tunnel needs of it, and the congestion mark that it carries over
//! (RFC 6040). Pure.

use super::checksum::checksum;
use std::net::IpAddr;

/// Congestion experienced.
pub(super) const CE: u8 = 3;

/// Fields of an IPv4 or IPv6 header. Options and extension headers are payload here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Inner {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Bytes of the packet; what follows is padding.
    pub length: usize,
    /// The two ECN bits.
    pub ecn: u8,
}

impl Inner {
    /// `None` if it is no IP packet, or one that is longer than `packet`.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        Self::of_headers(packet).filter(|inner| inner.length <= packet.len())
    }

    /// Reads the header alone: in a packet that is yet to be segmented the length may be anything.
    pub(super) fn of_headers(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 if packet.len() >= 20 => {
                let headers = usize::from(packet[0] & 0x0f) * 4;
                let length = usize::from(u16::from_be_bytes([packet[2], packet[3]])).max(headers);
                let (source, destination) = (v4(packet, 12), v4(packet, 16));
                (headers >= 20).then_some(Self { source, destination, length, ecn: packet[1] & 3 })
            }
            6 if packet.len() >= 40 => {
                let length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                Some(Self { source: v6(packet, 8)?, destination: v6(packet, 24)?, length, ecn: packet[1] >> 4 & 3 })
            }
            _ => None,
        }
    }
}

fn v4(packet: &[u8], at: usize) -> IpAddr {
    IpAddr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

fn v6(packet: &[u8], at: usize) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?))
}

/// Takes the mark of the outer header over into the packet. Returns whether the packet may pass: a sender that does not react to
/// marks has to see a loss instead (RFC 6040, section 4.2).
pub(super) fn carry_mark(packet: &mut [u8], inner: Inner, outer: u8) -> bool {
    if outer & 3 != CE || inner.ecn == CE {
        return true;
    }
    if inner.ecn == 0 {
        return false;
    }
    if packet[0] >> 4 == 6 {
        packet[1] |= CE << 4;
        return true;
    }
    let headers = usize::from(packet[0] & 0x0f) * 4;
    packet[1] |= CE;
    packet[10..12].fill(0);
    let sum = checksum(&[&packet[..headers]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet_v4(ecn: u8, options: &[u8]) -> Vec<u8> {
        let headers = 20 + options.len();
        let mut packet = vec![0x40 | u8::try_from(headers / 4).unwrap(), 0xb8 | ecn, 0, 0, 1, 2, 0x40, 0, 64, 17, 0, 0];
        packet.extend([10, 0, 0, 1, 172, 16, 0, 2]);
        packet.extend(options);
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend([7; 8]);
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..headers]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn packet_v6(ecn: u8) -> Vec<u8> {
        let mut packet = vec![0x60, ecn << 4, 0, 0, 0, 8, 17, 64];
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
        packet.extend([7; 8]);
        packet
    }

    #[test]
    fn headers_with_options_are_read_and_padding_is_not_part_of_the_packet() {
        for options in [&[][..], &[0x94, 4, 0, 0], &[1; 40]] {
            let mut packet = packet_v4(1, options);
            let length = packet.len();
            packet.extend([0; 5]);
            let inner = Inner::read(&packet).unwrap();
            assert_eq!((inner.length, inner.ecn), (length, 1));
            assert_eq!((inner.source, inner.destination), (IpAddr::from([10, 0, 0, 1]), IpAddr::from([172, 16, 0, 2])));
        }
        let inner = Inner::read(&packet_v6(2)).unwrap();
        assert_eq!((inner.length, inner.ecn, inner.source), (48, 2, IpAddr::from([0xfd; 16])));
    }

    #[test]
    fn what_is_no_whole_packet_is_refused() {
        let whole = packet_v4(0, &[]);
        for malformed in [&[][..], &[0x45], &whole[..whole.len() - 1], &packet_v6(0)[..47], &[0x50; 60], &[0x44; 60], &[0x45; 20]]
        {
            assert_eq!(Inner::read(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn a_mark_is_carried_in_and_a_packet_that_cannot_carry_it_is_dropped() {
        for ecn in 0..4 {
            for outer in 0..4 {
                for original in [packet_v4(ecn, &[]), packet_v4(ecn, &[1; 4]), packet_v6(ecn)] {
                    let mut packet = original.clone();
                    let passes = carry_mark(&mut packet, Inner::read(&original).unwrap(), outer);
                    assert_eq!(passes, !(outer == CE && ecn == 0));
                    let now = Inner::read(&packet).unwrap().ecn;
                    assert_eq!(now, if outer == CE && ecn > 0 { CE } else { ecn });
                    let headers = usize::from(packet[0] & 0x0f) * 4;
                    assert!(packet[0] >> 4 == 6 || checksum(&[&packet[..headers]]) == 0, "the header's checksum");
                }
            }
        }
    }
}

//! Segmentation and receive offload at the TUN device. A packet that the kernel delivers unsegmented and without checksum is
//! segmented; consecutive received packets are joined before they are written to the kernel. Pure: bytes in, bytes out.
//! The header is that of `linux/virtio_net.h`, in the machine's byte order.

use super::checksum::checksum;
use std::io::IoSlice;
use std::ops::{Deref, DerefMut};

/// Bytes of the header before each packet.
pub(super) const VNET_HEADER: usize = 10;
/// Largest packet after it, bytes.
pub(super) const LARGEST: usize = 65_535;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Flag of the type: TCP with ECN.
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// The fields of `virtio_net_hdr`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct VnetHeader {
    flags: u8,
    kind: u8,
    headers: u16,
    size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl VnetHeader {
    /// Parses the first bytes.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        Some(Self {
            flags: *bytes.first()?,
            kind: *bytes.get(1)? & !GSO_ECN,
            headers: word(2)?,
            size: word(4)?,
            checksum_start: word(6)?,
            checksum_offset: word(8)?,
        })
    }

    pub(super) fn write(self) -> [u8; VNET_HEADER] {
        let mut bytes = [self.flags, self.kind, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.headers.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }
}

/// Segments `packet`, which was read with `header`. Calls `each` with the headers and the payload of each segment, in order.
/// A packet that contradicts its header is dropped.
pub(super) fn segment(header: VnetHeader, packet: &mut [u8], mut each: impl FnMut(&[u8], &[u8])) {
    let start = usize::from(header.checksum_start);
    let field = start + usize::from(header.checksum_offset);
    if header.kind == 0 {
        if header.flags & NEEDS_CHECKSUM != 0 {
            if field + 2 > packet.len() {
                return;
            }
            // The field contains the sum of the pseudo-header.
            let sum = match checksum(&[&packet[start..]]) {
                // Zero means "no checksum" in UDP.
                0 if header.checksum_offset == 6 => 0xffff,
                sum => sum,
            };
            packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        }
        each(packet, &[]);
        return;
    }
    let size = usize::from(header.size);
    let v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let Some(end) = headers_end(header.kind, packet, start) else { return };
    if size == 0 || end > packet.len() || start < if v6 { 40 } else { 20 } || start > end {
        return;
    }
    let (headers, payload) = packet.split_at_mut(end);
    let count = payload.len().div_ceil(size).max(1);
    let sequence = word32(headers, start + 4);
    let id = u16::from_be_bytes([headers[4], headers[5]]);
    let flags = if header.kind == GSO_UDP { 0 } else { headers[start + 13] };
    for (number, part) in (0u16..).zip(payload.chunks(size)) {
        let transport = end - start + part.len();
        set_length(headers, v6, start, transport, id.wrapping_add(number));
        if header.kind == GSO_UDP {
            headers[start + 4..start + 6].copy_from_slice(&length16(transport).to_be_bytes());
        } else {
            let offset = u32::from(number).wrapping_mul(u32::from(header.size));
            headers[start + 4..start + 8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
            let mut now = flags;
            if usize::from(number) + 1 < count {
                now &= !(FIN | PSH);
            }
            if number > 0 {
                now &= !CWR;
            }
            headers[start + 13] = now;
        }
        let field = start + if header.kind == GSO_UDP { 6 } else { 16 };
        headers[field..field + 2].fill(0);
        let pseudo = pseudo_header(headers, v6, if header.kind == GSO_UDP { 17 } else { TCP }, transport);
        let sum = match checksum(&[&pseudo, &headers[start..], part]) {
            0 if header.kind == GSO_UDP => 0xffff,
            sum => sum,
        };
        headers[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        each(headers, part);
    }
}

/// Offset of the payload of a packet to segment.
fn headers_end(kind: u8, packet: &[u8], start: usize) -> Option<usize> {
    match kind {
        GSO_UDP => Some(start + 8),
        GSO_TCP4 | GSO_TCP6 => {
            let length = usize::from(packet.get(start + 12)? >> 4) * 4;
            (length >= 20).then_some(start + length)
        }
        _ => None,
    }
}

/// Writes length, and in IPv4 id and checksum, of an IP header; `transport` counts the bytes from `start` on.
fn set_length(headers: &mut [u8], v6: bool, start: usize, transport: usize, id: u16) {
    if v6 {
        headers[4..6].copy_from_slice(&length16(start - 40 + transport).to_be_bytes());
        return;
    }
    headers[2..4].copy_from_slice(&length16(start + transport).to_be_bytes());
    headers[4..6].copy_from_slice(&id.to_be_bytes());
    headers[10..12].fill(0);
    let sum = checksum(&[&headers[..start]]);
    headers[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Addresses, length and protocol, which a transport checksum includes. Trailing zeros do not change the sum.
fn pseudo_header(headers: &[u8], v6: bool, protocol: u8, transport: usize) -> [u8; 40] {
    let mut pseudo = [0; 40];
    if v6 {
        pseudo[..32].copy_from_slice(&headers[8..40]);
    } else {
        pseudo[..8].copy_from_slice(&headers[12..20]);
    }
    pseudo[34..36].copy_from_slice(&length16(transport).to_be_bytes());
    pseudo[39] = protocol;
    pseudo
}

fn length16(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Packets that are written to the kernel as one.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct GroGroup {
    /// Indices of its packets, in order.
    pub(super) members: Vec<usize>,
    /// Offsets of the TCP header and of the payload; both 0 for a packet that is never joined.
    tcp: (usize, usize),
    /// Bytes of payload of each packet except the last.
    size: usize,
    /// Bytes of the joined packet.
    length: usize,
    /// The sequence number of the next packet.
    next: u32,
    /// Whether another packet may be joined.
    open: bool,
}

/// Groups the packets that may be joined, and keeps the order within each flow. Does not change them.
pub(super) fn group(packets: &[impl Deref<Target = [u8]>]) -> Vec<GroGroup> {
    let mut groups: Vec<GroGroup> = Vec::with_capacity(packets.len());
    for (number, packet) in packets.iter().enumerate() {
        let packet: &[u8] = packet;
        let Some((start, end)) = tcp_offsets(packet) else {
            groups.push(GroGroup { members: vec![number], tcp: (0, 0), size: 0, length: 0, next: 0, open: false });
            continue;
        };
        let size = packet.len() - end;
        let flags = packet[start + 13];
        let plain = flags & !PSH == ACK && size > 0 && is_joinable(packet);
        let sequence = word32(packet, start + 4);
        // The latest group of this flow. The search is linear: a batch has few flows.
        let same_flow_group =
            groups.iter_mut().rev().find(|group| group.tcp.0 == start && same_flow(&packets[group.members[0]], packet, start));
        if let Some(group) = same_flow_group {
            if plain
                && group.open
                && group.tcp == (start, end)
                && group.next == sequence
                && size <= group.size
                && group.length + size <= LARGEST
                && same_headers(&packets[group.members[0]], packet, start, end)
            {
                group.members.push(number);
                group.length += size;
                group.next = sequence.wrapping_add(u32::from(length16(size)));
                group.open = size == group.size && flags & PSH == 0;
                continue;
            }
            group.open = false;
        }
        let next = sequence.wrapping_add(u32::from(length16(size)));
        let open = plain && flags & PSH == 0;
        groups.push(GroGroup { members: vec![number], tcp: (start, end), size, length: packet.len(), next, open });
    }
    groups
}

/// Offsets of the TCP header and of its payload in an unfragmented TCP packet.
fn tcp_offsets(packet: &[u8]) -> Option<(usize, usize)> {
    let start = match packet.first()? >> 4 {
        4 if packet.len() >= 40 && packet[0] == 0x45 && packet[9] == TCP && (packet[6] & 0x3f, packet[7]) == (0, 0) => 20,
        6 if packet.len() >= 60 && packet[6] == TCP => 40,
        _ => return None,
    };
    let end = start + usize::from(packet[start + 12] >> 4) * 4;
    let length = usize::from(u16::from_be_bytes(if start == 20 { [packet[2], packet[3]] } else { [packet[4], packet[5]] }));
    let whole = length + if start == 20 { 0 } else { 40 };
    (end >= start + 20 && end <= packet.len() && whole == packet.len()).then_some((start, end))
}

/// The id of an IPv4 packet without "don't fragment" may be significant.
fn is_joinable(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 || packet[6] & 0x40 != 0
}

/// Same addresses and ports.
fn same_flow(one: &[u8], other: &[u8], start: usize) -> bool {
    let addresses = if start == 20 { 12..20 } else { 8..40 };
    one.len() >= start + 20
        && one[0] >> 4 == other[0] >> 4
        && one[addresses.clone()] == other[addresses]
        && one[start..start + 4] == other[start..start + 4]
}

/// Whether all header fields are equal that the joined packet has only once.
fn same_headers(one: &[u8], other: &[u8], start: usize, end: usize) -> bool {
    let ip = if start == 20 {
        one[1] == other[1] && one[6] == other[6] && one[8] == other[8]
    } else {
        one[..4] == other[..4] && one[7] == other[7]
    };
    // Acknowledgement, length, window, urgent pointer and options; not sequence, flags and checksum.
    ip && one[start + 8..start + 13] == other[start + 8..start + 13]
        && one[start + 14..start + 16] == other[start + 14..start + 16]
        && one[start + 18..end] == other[start + 18..end]
}

/// The virtio header of a group and the parts of its packet, in order. Changes the headers of the first packet to those of the
/// joined one.
pub(super) fn join<'a>(group: &GroGroup, packets: &'a mut [impl DerefMut<Target = [u8]>]) -> (VnetHeader, Vec<IoSlice<'a>>) {
    let (start, end) = group.tcp;
    let (Some(&first), Some(&last)) = (group.members.first(), group.members.last()) else {
        return (VnetHeader::default(), Vec::new());
    };
    let mut header = VnetHeader::default();
    if first != last {
        let pushed = packets[last][start + 13] & PSH;
        let v6 = start == 40;
        let head: &mut [u8] = &mut packets[first];
        head[start + 13] |= pushed;
        let id = u16::from_be_bytes([head[4], head[5]]);
        let transport = group.length - start;
        set_length(&mut head[..start], v6, start, transport, id);
        // The kernel completes the checksum; the field contains the sum of the pseudo-header, not inverted.
        let sum = !checksum(&[&pseudo_header(head, v6, TCP, transport)]);
        head[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        header = VnetHeader {
            flags: NEEDS_CHECKSUM,
            kind: if v6 { GSO_TCP6 } else { GSO_TCP4 },
            headers: length16(end),
            size: length16(group.size),
            checksum_start: length16(start),
            checksum_offset: 16,
        };
    }
    let packets: &'a [_] = packets;
    let part = |(place, number): (usize, &usize)| {
        let packet: &[u8] = &packets[*number];
        IoSlice::new(if place == 0 { packet } else { &packet[end..] })
    };
    (header, group.members.iter().enumerate().map(part).collect())
}

#[cfg(test)]
mod tests;

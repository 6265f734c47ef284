//! Parses packets. There is one description per CPU: the stack is too small for it, and a CPU handles one packet at a time.

use crate::ctx::{ethertype, ifindex};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{
    ACK, ETHERNET, FRAGMENT, ICMP, ICMP6, SYN, TCP, UDP, UDP_LITE, V4, V6, byte, has_more, is_plain, mapped,
};
use skep_ebpf::{Address, FragmentKey, PortNumber, Tuple};

/// Ethernet type of IPv4, as the context holds it.
pub const ETH_V4: u32 = 0x0800_u16.to_be() as u32;
/// Ethernet type of IPv6, likewise.
pub const ETH_V6: u32 = 0x86dd_u16.to_be() as u32;

/// Fragment state of a packet, or that it is an ICMP error.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PacketKind {
    Unfragmented,
    /// Has the transport header with the ports.
    FirstFragment,
    /// Has no transport header.
    LaterFragment,
    /// An ICMP error that quotes a packet of the opposite direction.
    IcmpError,
}

/// A TCP segment, a UDP or UDP-Lite datagram, a fragment of one, or an ICMP error that quotes one. Other packets are not described.
/// `l3`, `l4` and the like are offsets in bytes from the start of the packet.
#[repr(C)]
pub struct Packet {
    /// Its connection; without ports for a later fragment. For an error: the quoted packet's connection, in the direction of
    /// the error.
    pub tuple: Tuple,
    /// The opposite direction of the connection, after [`Packet::fill_reverse`].
    pub reverse: Tuple,
    pub source: Address,
    pub destination: Address,
    /// Identification field; valid for fragments.
    pub id: u32,
    /// Its IP header.
    pub l3: u32,
    /// Its transport header.
    pub l4: u32,
    /// For an error: the IP header of the quoted packet.
    pub inner_l3: u32,
    /// For an error: the transport header of the quoted packet.
    pub inner_l4: u32,
    /// Index of the device that it is on.
    pub device: u32,
    /// Sequence number of a TCP segment, as packets hold it.
    pub sequence: u32,
    /// Acknowledgement number of a TCP segment, likewise.
    pub acknowledges: u32,
    /// 4 or 6.
    pub family: u8,
    /// TCP flags; 0 for other protocols.
    pub flags: u8,
    pub kind: PacketKind,
}

#[map]
static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

impl Packet {
    /// Whether it opens a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tuple.protocol == TCP && self.flags & (SYN | ACK) == SYN && self.kind as u8 != PacketKind::IcmpError as u8
    }

    #[inline(always)]
    pub fn is(&self, kind: PacketKind) -> bool {
        self.kind as u8 == kind as u8
    }

    /// The key of the fragmented datagram that it belongs to.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.source,
            destination: self.destination,
            id: self.id,
            protocol: self.tuple.protocol,
            zero: [0; 3],
        }
    }

    /// Writes the opposite direction of its connection to `reverse`.
    #[inline(always)]
    pub fn fill_reverse(&mut self) {
        self.reverse.source = self.tuple.destination;
        self.reverse.destination = self.tuple.source;
        self.reverse.source_port = self.tuple.destination_port;
        self.reverse.destination_port = self.tuple.source_port;
        self.reverse.via = [0; 2];
        self.reverse.protocol = self.tuple.protocol;
        self.reverse.zero = [0; 3];
    }

    /// Corrects the offsets after an Ethernet header was added.
    #[inline(always)]
    pub fn shift_by_ethernet_header(&mut self) {
        self.l3 += ETHERNET as u32;
        self.l4 += ETHERNET as u32;
        self.inner_l3 += ETHERNET as u32;
        self.inner_l4 += ETHERNET as u32;
    }
}

/// Describes the packet whose IP header begins at offset `l3`.
#[inline(always)]
pub fn parse(ctx: &TcContext, l3: usize) -> Option<&'static mut Packet> {
    // SAFETY: the entry is this CPU's, and none of these programs interrupts another one.
    let packet = unsafe { &mut *PACKET.get_ptr_mut(0)? };
    packet.l3 = l3 as u32;
    packet.flags = 0;
    packet.device = ifindex(ctx);
    packet.tuple.via = [0; 2];
    packet.tuple.zero = [0; 3];
    match ethertype(ctx) {
        ETH_V4 => parse_v4(ctx, packet, l3)?,
        ETH_V6 => parse_v6(ctx, packet, l3)?,
        _ => return None,
    }
    Some(packet)
}

#[inline(always)]
fn parse_v4(ctx: &TcContext, packet: &mut Packet, l3: usize) -> Option<()> {
    let v4: [u32; 5] = ctx.load(l3).ok()?;
    if byte(v4[0], 0) != 0x45 {
        return None;
    }
    packet.family = 4;
    packet.source = mapped(v4[3]);
    packet.destination = mapped(v4[4]);
    packet.id = v4[1] & 0xffff_u32.to_le();
    packet.l4 = (l3 + V4) as u32;
    parse_transport(ctx, packet, l3 + V4, byte(v4[2], 1), !is_plain(&v4), has_more(&v4))
}

#[inline(always)]
fn parse_v6(ctx: &TcContext, packet: &mut Packet, l3: usize) -> Option<()> {
    let v6: [u32; 10] = ctx.load(l3).ok()?;
    packet.family = 6;
    packet.source = [v6[2], v6[3], v6[4], v6[5]];
    packet.destination = [v6[6], v6[7], v6[8], v6[9]];
    let next = byte(v6[1], 2);
    if next != FRAGMENT {
        packet.l4 = (l3 + V6) as u32;
        return parse_transport(ctx, packet, l3 + V6, next, false, false);
    }
    let fragment: [u32; 2] = ctx.load(l3 + V6).ok()?;
    packet.id = fragment[1];
    packet.l4 = (l3 + V6 + 8) as u32;
    parse_transport(ctx, packet, l3 + V6 + 8, byte(fragment[0], 0), is_later_fragment(fragment[0]), byte(fragment[0], 3) & 1 != 0)
}

/// Whether the first word of an IPv6 fragment header is that of a later fragment.
#[inline(always)]
fn is_later_fragment(word: u32) -> bool {
    byte(word, 2) != 0 || byte(word, 3) & 0xf8 != 0
}

#[inline(always)]
fn parse_transport(ctx: &TcContext, packet: &mut Packet, l4: usize, protocol: u8, later: bool, more: bool) -> Option<()> {
    packet.tuple.protocol = protocol;
    packet.tuple.source = packet.source;
    packet.tuple.destination = packet.destination;
    packet.tuple.source_port = 0;
    packet.tuple.destination_port = 0;
    packet.kind = if later {
        PacketKind::LaterFragment
    } else if more {
        PacketKind::FirstFragment
    } else {
        PacketKind::Unfragmented
    };
    let ports: u32 = match protocol {
        TCP | UDP | UDP_LITE if later => return Some(()),
        TCP => {
            let header: [u32; 4] = ctx.load(l4).ok()?;
            packet.sequence = header[1];
            packet.acknowledges = header[2];
            packet.flags = byte(header[3], 1);
            header[0]
        }
        UDP | UDP_LITE => ctx.load(l4).ok()?,
        ICMP if packet.family == 4 && !later => return parse_error_v4(ctx, packet, l4),
        ICMP6 if packet.family == 6 && !later => return parse_error_v6(ctx, packet, l4),
        _ => return None,
    };
    let ports = ports.to_ne_bytes();
    packet.tuple.source_port = u16::from_ne_bytes([ports[0], ports[1]]);
    packet.tuple.destination_port = u16::from_ne_bytes([ports[2], ports[3]]);
    Some(())
}

/// `ICMPv4` errors: unreachable, time exceeded, parameter problem.
#[inline(always)]
fn parse_error_v4(ctx: &TcContext, packet: &mut Packet, l4: usize) -> Option<()> {
    let kind: u8 = ctx.load(l4).ok()?;
    if !matches!(kind, 3 | 11 | 12) {
        return None;
    }
    let inner = l4 + 8;
    let v4: [u32; 5] = ctx.load(inner).ok()?;
    if !is_plain(&v4) {
        return None;
    }
    describe_error(ctx, packet, (inner, inner + V4), byte(v4[2], 1), mapped(v4[3]), mapped(v4[4]))
}

/// `ICMPv6` errors: unreachable, too big, time exceeded, parameter problem.
#[inline(always)]
fn parse_error_v6(ctx: &TcContext, packet: &mut Packet, l4: usize) -> Option<()> {
    let kind: u8 = ctx.load(l4).ok()?;
    if !matches!(kind, 1..=4) {
        return None;
    }
    let inner = l4 + 8;
    let v6: [u32; 10] = ctx.load(inner).ok()?;
    let (sender, receiver) = ([v6[2], v6[3], v6[4], v6[5]], [v6[6], v6[7], v6[8], v6[9]]);
    if byte(v6[1], 2) != FRAGMENT {
        return describe_error(ctx, packet, (inner, inner + V6), byte(v6[1], 2), sender, receiver);
    }
    let fragment: u32 = ctx.load(inner + V6).ok()?;
    if is_later_fragment(fragment) {
        return None;
    }
    describe_error(ctx, packet, (inner, inner + V6 + 8), byte(fragment, 0), sender, receiver)
}

/// Describes an error that quotes a packet of this protocol from `sender` to `receiver`; `inner` holds the offsets of its IP
/// and transport headers.
#[inline(always)]
fn describe_error(
    ctx: &TcContext,
    packet: &mut Packet,
    inner: (usize, usize),
    protocol: u8,
    sender: Address,
    receiver: Address,
) -> Option<()> {
    if protocol != TCP && protocol != UDP && protocol != UDP_LITE {
        return None;
    }
    let ports: [PortNumber; 2] = ctx.load(inner.1).ok()?;
    packet.kind = PacketKind::IcmpError;
    packet.inner_l3 = inner.0 as u32;
    packet.inner_l4 = inner.1 as u32;
    packet.tuple.protocol = protocol;
    packet.tuple.source = receiver;
    packet.tuple.destination = sender;
    packet.tuple.source_port = ports[1];
    packet.tuple.destination_port = ports[0];
    Some(())
}

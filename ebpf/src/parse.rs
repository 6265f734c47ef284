//! What a packet is. One description per CPU: the stack is too small for it, and packets are handled one at a time.

use crate::change::{ifindex, protocol};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ACK, ETHERNET, FRAGMENT, ICMP, ICMP6, SYN, TCP, UDP, V4, V6, byte, has_more, is_plain, mapped};
use skep_ebpf::{Address, Fragment, PortNumber, Tuple};

/// Ethernet type of IPv4, as the context holds it.
pub const ETH_V4: u32 = 0x0800_u16.to_be() as u32;
/// Ethernet type of IPv6.
pub const ETH_V6: u32 = 0x86dd_u16.to_be() as u32;

/// What of a datagram it is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Whole,
    /// The first piece, with ports.
    First,
    /// Another piece, without.
    Later,
    /// An ICMP error about a packet that went the other way.
    Error,
}

/// A TCP segment, a UDP datagram, a piece of one, or an ICMP error about one. Others are not described.
#[repr(C)]
pub struct Packet {
    /// Its connection. Of an error: the one that it is about, in the direction that the error takes. Of a later piece: no ports.
    pub tuple: Tuple,
    /// Room for the connection's other direction.
    pub back: Tuple,
    /// Its sender.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// The sender's number for it, of pieces.
    pub id: u32,
    /// Where the IP header begins.
    pub l3: u32,
    /// Where the header after it begins.
    pub l4: u32,
    /// Of an error: where the IP header of the packet that it is about begins.
    pub inner_l3: u32,
    /// And the header after that.
    pub inner_l4: u32,
    /// Device that it came in by.
    pub device: u32,
    /// 4 or 6.
    pub family: u8,
    /// TCP flags.
    pub flags: u8,
    /// What of a datagram it is.
    pub kind: Kind,
}

#[map]
static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

impl Packet {
    /// Asks for a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tuple.protocol == TCP && self.flags & (SYN | ACK) == SYN && self.kind as u8 != Kind::Error as u8
    }

    #[inline(always)]
    pub fn is(&self, kind: Kind) -> bool {
        self.kind as u8 == kind as u8
    }

    /// Its name as a piece.
    #[inline(always)]
    pub fn fragment(&self) -> Fragment {
        Fragment { source: self.source, destination: self.destination, id: self.id, protocol: self.tuple.protocol, zero: [0; 3] }
    }

    /// Its connection seen from the other end goes into `back`.
    #[inline(always)]
    pub fn turn_round(&mut self) {
        self.back.source = self.tuple.destination;
        self.back.destination = self.tuple.source;
        self.back.source_port = self.tuple.destination_port;
        self.back.destination_port = self.tuple.source_port;
        self.back.via = [0; 2];
        self.back.protocol = self.tuple.protocol;
        self.back.zero = [0; 3];
    }

    /// An Ethernet header was put before it.
    #[inline(always)]
    pub fn moved(&mut self) {
        self.l3 += ETHERNET as u32;
        self.l4 += ETHERNET as u32;
        self.inner_l3 += ETHERNET as u32;
        self.inner_l4 += ETHERNET as u32;
    }
}

/// Describes the packet whose IP header begins at `l3`.
#[inline(always)]
pub fn parse(ctx: &TcContext, l3: usize) -> Option<&'static mut Packet> {
    // SAFETY: the slot is this CPU's own, and programs do not interrupt each other.
    let packet = unsafe { &mut *PACKET.get_ptr_mut(0)? };
    packet.l3 = l3 as u32;
    packet.flags = 0;
    packet.device = ifindex(ctx);
    packet.tuple.via = [0; 2];
    packet.tuple.zero = [0; 3];
    match protocol(ctx) {
        ETH_V4 => v4(ctx, packet, l3)?,
        ETH_V6 => v6(ctx, packet, l3)?,
        _ => return None,
    }
    Some(packet)
}

#[inline(always)]
fn v4(ctx: &TcContext, packet: &mut Packet, l3: usize) -> Option<()> {
    let v4: [u32; 5] = ctx.load(l3).ok()?;
    if byte(v4[0], 0) != 0x45 {
        return None;
    }
    packet.family = 4;
    packet.source = mapped(v4[3]);
    packet.destination = mapped(v4[4]);
    packet.id = v4[1] & 0xffff_u32.to_le();
    packet.l4 = (l3 + V4) as u32;
    transport(ctx, packet, l3 + V4, byte(v4[2], 1), !is_plain(&v4), has_more(&v4))
}

#[inline(always)]
fn v6(ctx: &TcContext, packet: &mut Packet, l3: usize) -> Option<()> {
    let v6: [u32; 10] = ctx.load(l3).ok()?;
    packet.family = 6;
    packet.source = [v6[2], v6[3], v6[4], v6[5]];
    packet.destination = [v6[6], v6[7], v6[8], v6[9]];
    let next = byte(v6[1], 2);
    if next != FRAGMENT {
        packet.l4 = (l3 + V6) as u32;
        return transport(ctx, packet, l3 + V6, next, false, false);
    }
    let piece: [u32; 2] = ctx.load(l3 + V6).ok()?;
    packet.id = piece[1];
    packet.l4 = (l3 + V6 + 8) as u32;
    transport(ctx, packet, l3 + V6 + 8, byte(piece[0], 0), is_later(piece[0]), byte(piece[0], 3) & 1 != 0)
}

/// Whether the header of a piece is that of a later one.
#[inline(always)]
fn is_later(word: u32) -> bool {
    byte(word, 2) != 0 || byte(word, 3) & 0xf8 != 0
}

#[inline(always)]
fn transport(ctx: &TcContext, packet: &mut Packet, l4: usize, protocol: u8, later: bool, more: bool) -> Option<()> {
    packet.tuple.protocol = protocol;
    packet.tuple.source = packet.source;
    packet.tuple.destination = packet.destination;
    packet.tuple.source_port = 0;
    packet.tuple.destination_port = 0;
    packet.kind = if later {
        Kind::Later
    } else if more {
        Kind::First
    } else {
        Kind::Whole
    };
    let ports: [PortNumber; 2] = match protocol {
        TCP | UDP if later => return Some(()),
        TCP => {
            packet.flags = ctx.load(l4 + 13).ok()?;
            ctx.load(l4).ok()?
        }
        UDP => ctx.load(l4).ok()?,
        ICMP if packet.family == 4 && !later => return error4(ctx, packet, l4),
        ICMP6 if packet.family == 6 && !later => return error6(ctx, packet, l4),
        _ => return None,
    };
    packet.tuple.source_port = ports[0];
    packet.tuple.destination_port = ports[1];
    Some(())
}

/// Unreachable, time exceeded, parameter problem.
#[inline(always)]
fn error4(ctx: &TcContext, packet: &mut Packet, l4: usize) -> Option<()> {
    let kind: u8 = ctx.load(l4).ok()?;
    if !matches!(kind, 3 | 11 | 12) {
        return None;
    }
    let inner = l4 + 8;
    let v4: [u32; 5] = ctx.load(inner).ok()?;
    if !is_plain(&v4) {
        return None;
    }
    about(ctx, packet, (inner, inner + V4), byte(v4[2], 1), mapped(v4[3]), mapped(v4[4]))
}

/// Unreachable, too big, time exceeded, parameter problem.
#[inline(always)]
fn error6(ctx: &TcContext, packet: &mut Packet, l4: usize) -> Option<()> {
    let kind: u8 = ctx.load(l4).ok()?;
    if !matches!(kind, 1..=4) {
        return None;
    }
    let inner = l4 + 8;
    let v6: [u32; 10] = ctx.load(inner).ok()?;
    let (sender, receiver) = ([v6[2], v6[3], v6[4], v6[5]], [v6[6], v6[7], v6[8], v6[9]]);
    if byte(v6[1], 2) != FRAGMENT {
        return about(ctx, packet, (inner, inner + V6), byte(v6[1], 2), sender, receiver);
    }
    let piece: u32 = ctx.load(inner + V6).ok()?;
    if is_later(piece) {
        return None;
    }
    about(ctx, packet, (inner, inner + V6 + 8), byte(piece, 0), sender, receiver)
}

/// An error about a packet of this protocol, from `sender` to `receiver`; its headers begin at `inner`.
#[inline(always)]
fn about(
    ctx: &TcContext,
    packet: &mut Packet,
    inner: (usize, usize),
    protocol: u8,
    sender: Address,
    receiver: Address,
) -> Option<()> {
    if protocol != TCP && protocol != UDP {
        return None;
    }
    let ports: [PortNumber; 2] = ctx.load(inner.1).ok()?;
    packet.kind = Kind::Error;
    packet.inner_l3 = inner.0 as u32;
    packet.inner_l4 = inner.1 as u32;
    packet.tuple.protocol = protocol;
    packet.tuple.source = receiver;
    packet.tuple.destination = sender;
    packet.tuple.source_port = ports[1];
    packet.tuple.destination_port = ports[0];
    Some(())
}

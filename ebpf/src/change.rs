//! What the programs do to packets. Every change of a checksum stands here, beside the change that it belongs to.

use crate::parse::{ETH_V6, Kind, Packet};
use crate::way::Way;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_proto,
};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{self, ETHERNET, IN_V4, IN_V6, TCP_CHECKSUM, UDP, UDP_CHECKSUM, V4, V6};
use skep_ebpf::{Address, Counter, PortNumber, V4 as Ipv4, same};

/// The kernel refused a change; the packet is spoilt.
pub struct Refused;

impl From<Refused> for Way {
    #[inline(always)]
    fn from(_: Refused) -> Self {
        Self::Drop(Counter::DropChange)
    }
}

type Done = Result<(), Refused>;

#[inline(always)]
fn done(result: i64) -> Done {
    if result < 0 { Err(Refused) } else { Ok(()) }
}

#[inline(always)]
pub fn raw(ctx: &TcContext) -> *mut __sk_buff {
    ctx.skb.skb
}

#[inline(always)]
pub fn protocol(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel hands over a valid context.
    unsafe { core::ptr::read_volatile(&(*raw(ctx)).protocol) }
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*raw(ctx)).ifindex }
}

#[inline(always)]
fn length(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*raw(ctx)).len }
}

#[inline(always)]
fn store<T>(ctx: &TcContext, at: u32, bytes: &T) -> Done {
    ctx.store(at as usize, bytes, 0).map_err(|_| Refused)
}

#[inline(always)]
fn sum(ctx: &TcContext, at: u32, from: u64, to: u64, flags: u64) -> Done {
    // SAFETY: the context is a valid one; the verifier knows the helper.
    unsafe { done(bpf_l4_csum_replace(raw(ctx), at, from, to, flags)) }
}

/// The checksum of the IPv4 header at `l3`, after four bytes of it changed.
#[inline(always)]
fn header_sum(ctx: &TcContext, l3: u32, from: Ipv4, to: Ipv4) -> Done {
    // SAFETY: as above.
    unsafe { done(bpf_l3_csum_replace(raw(ctx), l3 + 10, u64::from(from), u64::from(to), 4)) }
}

/// What a sum loses and gains when `from` becomes `to`.
#[inline(always)]
fn difference<const A: usize, const B: usize>(from: &[u32; A], to: &[u32; B]) -> u64 {
    let (old, new) = (from.as_ptr().cast_mut(), to.as_ptr().cast_mut());
    // SAFETY: the lengths are those of the arrays.
    unsafe { bpf_csum_diff(old, 4 * A as u32, new, 4 * B as u32, 0) as u64 }
}

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

impl End {
    /// Where its address is in a header of this family.
    #[inline(always)]
    fn address(self, family: u8) -> u32 {
        match (self, family == 4) {
            (Self::Source, true) => 12,
            (Self::Destination, true) => 16,
            (Self::Source, false) => 8,
            (Self::Destination, false) => 24,
        }
    }
    #[inline(always)]
    fn port(self) -> u32 {
        if self == Self::Source { 0 } else { 2 }
    }
    #[inline(always)]
    fn other(self) -> Self {
        if self == Self::Source { Self::Destination } else { Self::Source }
    }
}

/// Where the checksum of the packet's transport header is, and the flag that goes with it: a datagram without a checksum
/// stays without.
#[inline(always)]
fn transport_sum(packet: &Packet) -> (u32, u64) {
    if packet.tuple.protocol == UDP {
        (packet.l4 + UDP_CHECKSUM as u32, u64::from(BPF_F_MARK_MANGLED_0))
    } else {
        (packet.l4 + TCP_CHECKSUM as u32, 0)
    }
}

/// Turns one end of a packet to another address and port, and sets the other end's port. What a packet has no room for
/// (ports of a later piece) stays.
#[inline(always)]
pub fn turn(ctx: &TcContext, packet: &Packet, end: End, to: &Address, port: PortNumber, other: PortNumber) -> Done {
    if packet.is(Kind::Error) {
        return turn_error(ctx, packet, end, to, port, other);
    }
    let from = if end == End::Source { &packet.source } else { &packet.destination };
    let (at, flag) = transport_sum(packet);
    let later = packet.is(Kind::Later);
    if packet.family == 4 {
        let (old, new) = (from[3], to[3]);
        if !later {
            sum(ctx, at, u64::from(old), u64::from(new), u64::from(BPF_F_PSEUDO_HDR) | flag | 4)?;
        }
        header_sum(ctx, packet.l3, old, new)?;
        store(ctx, packet.l3 + end.address(4), &new)?;
    } else {
        if !later {
            sum(ctx, at, 0, difference(from, to), u64::from(BPF_F_PSEUDO_HDR) | flag)?;
        }
        store(ctx, packet.l3 + end.address(6), to)?;
    }
    if later {
        return Ok(());
    }
    set_port(ctx, packet, end, port)?;
    set_port(ctx, packet, end.other(), other)
}

/// Sets a port of a packet.
#[inline(always)]
pub fn set_port(ctx: &TcContext, packet: &Packet, end: End, to: PortNumber) -> Done {
    let from = if end == End::Source { packet.tuple.source_port } else { packet.tuple.destination_port };
    if from == to {
        return Ok(());
    }
    let (old, new) = (u64::from(from), u64::from(to));
    if packet.is(Kind::Error) {
        // In the packet that the error is about the ends are the other way round.
        sum(ctx, packet.l4 + 2, old, new, 2)?;
        return store(ctx, packet.inner_l4 + end.other().port(), &to);
    }
    let (at, flag) = transport_sum(packet);
    sum(ctx, at, old, new, flag | 2)?;
    store(ctx, packet.l4 + end.port(), &to)
}

/// The error's own end, and the other end of the packet that it is about. (The sum of that packet's own transport header
/// is left as it is: nobody looks at it.)
#[inline(always)]
fn turn_error(ctx: &TcContext, packet: &Packet, end: End, to: &Address, port: PortNumber, other: PortNumber) -> Done {
    let (from, own) = match end {
        End::Source => (&packet.tuple.source, same(&packet.source, &packet.tuple.source)),
        End::Destination => (&packet.tuple.destination, true),
    };
    if packet.family == 4 {
        let (old, new) = (from[3], to[3]);
        if own {
            header_sum(ctx, packet.l3, old, new)?;
            store(ctx, packet.l3 + end.address(4), &new)?;
        }
        // Address and sum of the inner header change against each other: the error's sum stays right.
        header_sum(ctx, packet.inner_l3, old, new)?;
        store(ctx, packet.inner_l3 + end.other().address(4), &new)?;
    } else {
        let change = difference(from, to);
        if own {
            sum(ctx, packet.l4 + 2, 0, change, u64::from(BPF_F_PSEUDO_HDR))?;
            store(ctx, packet.l3 + end.address(6), to)?;
        }
        sum(ctx, packet.l4 + 2, 0, change, 0)?;
        store(ctx, packet.inner_l3 + end.other().address(6), to)?;
    }
    set_port(ctx, packet, end, port)?;
    set_port(ctx, packet, end.other(), other)
}

/// Turns TCP over IPv4 behind an Ethernet header into IPv6 with these addresses. The kernel's large packets stay large.
#[inline(always)]
pub fn to_v6(ctx: &TcContext, v4: &[u32; 5], source: &Address, destination: &Address) -> Done {
    let v6 = packet::to_v6(v4, source, destination);
    let new = [v6[2], v6[3], v6[4], v6[5], v6[6], v6[7], v6[8], v6[9]];
    let change = difference(&[v4[3], v4[4]], &new);
    // SAFETY: the context is a valid one.
    unsafe { done(bpf_skb_change_proto(raw(ctx), 0x86dd_u16.to_be(), 0))? };
    store(ctx, ETHERNET as u32, &v6)?;
    sum(ctx, (ETHERNET + V6 + TCP_CHECKSUM) as u32, 0, change, u64::from(BPF_F_PSEUDO_HDR))
}

/// Undoes [`to_v6`] on a device without link header, and puts an Ethernet header before it.
#[inline(always)]
pub fn to_v4(ctx: &TcContext, v6: &[u32; 10], source: Ipv4, destination: Ipv4) -> Done {
    let v4 = packet::to_v4(v6, source, destination);
    let old = [v6[2], v6[3], v6[4], v6[5], v6[6], v6[7], v6[8], v6[9]];
    let change = difference(&old, &[source, destination]);
    // SAFETY: the context is a valid one.
    unsafe { done(bpf_skb_change_proto(raw(ctx), 0x0800_u16.to_be(), 0))? };
    store(ctx, 0, &v4)?;
    sum(ctx, (V4 + TCP_CHECKSUM) as u32, 0, change, u64::from(BPF_F_PSEUDO_HDR))?;
    link(ctx)
}

/// Puts an Ethernet header before a packet of a device that has none: without one it vanishes at a redirect.
#[inline(always)]
pub fn link(ctx: &TcContext) -> Done {
    // SAFETY: the context is a valid one.
    unsafe { done(bpf_skb_change_head(raw(ctx), ETHERNET as u32, 0))? };
    let mut link = [0_u8; ETHERNET];
    (link[12], link[13]) = if protocol(ctx) == ETH_V6 { (0x86, 0xdd) } else { (8, 0) };
    store(ctx, 0, &link)
}

/// Puts the packet behind an Ethernet header, unchanged, into IPv6 with these addresses.
#[inline(always)]
pub fn encapsulate(ctx: &TcContext, source: &Address, destination: &Address) -> Done {
    let next = if protocol(ctx) == ETH_V6 { IN_V6 } else { IN_V4 };
    let v6 = packet::around(length(ctx).wrapping_sub(ETHERNET as u32) as u16, next, source, destination);
    let flags = u64::from(BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_FIXED_GSO);
    // SAFETY: the context is a valid one.
    unsafe { done(bpf_skb_adjust_room(raw(ctx), V6 as i32, BPF_ADJ_ROOM_MAC, flags))? };
    store(ctx, ETHERNET as u32, &v6)
}

/// Undoes [`encapsulate`] on a device without link header, and puts an Ethernet header before what was inside.
#[inline(always)]
pub fn decapsulate(ctx: &TcContext, next: u8) -> Done {
    let inside = if next == IN_V4 { BPF_F_ADJ_ROOM_DECAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_DECAP_L3_IPV6 };
    let fixed = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
    // SAFETY: the context is a valid one.
    unsafe {
        if bpf_skb_adjust_room(raw(ctx), -(V6 as i32), BPF_ADJ_ROOM_MAC, u64::from(inside) | fixed) < 0 {
            // Kernels before 6.3 cannot say what was inside: the protocol is changed first, which takes 20 bytes away.
            let left = if next == IN_V4 {
                done(bpf_skb_change_proto(raw(ctx), 0x0800_u16.to_be(), 0))?;
                V4
            } else {
                V6
            };
            done(bpf_skb_adjust_room(raw(ctx), -(left as i32), BPF_ADJ_ROOM_MAC, fixed))?;
        }
    }
    link(ctx)
}

//! Rewrites packets: NAT, translation between IPv4 and IPv6, encapsulation. Each rewrite updates the checksums that cover it.

use crate::ctx::{ethertype, has_tag, is_test_run, length, no_link_header, raw};
use crate::parse::{ETH_V6, Packet, PacketKind};
use crate::verdict::Verdict;
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_proto,
    bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{self, ETHERNET, IN_V4, IN_V6, TCP, TCP_CHECKSUM, UDP_CHECKSUM, V4, V6};
use skep_ebpf::{Address, Counter, PortNumber, V4 as Ipv4, same_address};

/// A helper refused a rewrite. The packet may be half rewritten, so it is dropped.
pub struct RewriteFailed;

impl From<RewriteFailed> for Verdict {
    #[inline(always)]
    fn from(_: RewriteFailed) -> Self {
        Self::Drop(Counter::DropChange)
    }
}

type Rewrite = Result<(), RewriteFailed>;

/// The result of a helper; negative is an error.
#[inline(always)]
fn check(result: i64) -> Rewrite {
    if result < 0 { Err(RewriteFailed) } else { Ok(()) }
}

#[inline(always)]
fn store<T>(ctx: &TcContext, offset: u32, bytes: &T) -> Rewrite {
    ctx.store(offset as usize, bytes, 0).map_err(|_| RewriteFailed)
}

/// Stores an IPv6 address that the transport checksum covers. With the flag of pseudo headers the kernel takes the change of
/// that checksum off the sum that some cards deliver of the whole packet (`CHECKSUM_COMPLETE`), as is right for IPv4, whose
/// header has a checksum that cancels the address out; here the address itself must be added to it.
#[inline(always)]
fn store_ipv6_address(ctx: &TcContext, offset: u32, address: &Address) -> Rewrite {
    ctx.store(offset as usize, address, u64::from(BPF_F_RECOMPUTE_CSUM)).map_err(|_| RewriteFailed)
}

/// Updates the transport checksum at `offset`, after `from` became `to` in what it covers.
#[inline(always)]
fn update_l4_checksum(ctx: &TcContext, offset: u32, from: u64, to: u64, flags: u64) -> Rewrite {
    // SAFETY: the context is a valid one; the verifier checks the offset.
    unsafe { check(bpf_l4_csum_replace(raw(ctx), offset, from, to, flags)) }
}

/// Updates the checksum of the IPv4 header at `l3`, after four bytes of the header changed.
#[inline(always)]
fn update_ipv4_checksum(ctx: &TcContext, l3: u32, from: Ipv4, to: Ipv4) -> Rewrite {
    // SAFETY: as above.
    unsafe { check(bpf_l3_csum_replace(raw(ctx), l3 + 10, u64::from(from), u64::from(to), 4)) }
}

/// The change of a checksum when `from` becomes `to`.
#[inline(always)]
fn checksum_difference<const A: usize, const B: usize>(from: &[u32; A], to: &[u32; B]) -> u64 {
    let (old, new) = (from.as_ptr().cast_mut(), to.as_ptr().cast_mut());
    // SAFETY: the lengths are those of the arrays.
    unsafe { bpf_csum_diff(old, 4 * A as u32, new, 4 * B as u32, 0) as u64 }
}

/// Removes the tag of a packet that has a priority and no VLAN. The kernel does so for the host; a redirected packet would keep it, and
/// the tunnel's device would write it into the packet.
#[inline(always)]
pub fn remove_priority_tag(ctx: &TcContext) -> Rewrite {
    if !has_tag(ctx) {
        return Ok(());
    }
    // SAFETY: the context is a valid one.
    unsafe { check(bpf_skb_vlan_pop(raw(ctx))) }
}

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

impl End {
    /// Offset of its address in the IP header of this family.
    #[inline(always)]
    fn address_offset(self, family: u8) -> u32 {
        match (self, family == 4) {
            (Self::Source, true) => 12,
            (Self::Destination, true) => 16,
            (Self::Source, false) => 8,
            (Self::Destination, false) => 24,
        }
    }
    /// Offset of its port in the transport header.
    #[inline(always)]
    fn port_offset(self) -> u32 {
        if self == Self::Source { 0 } else { 2 }
    }
    #[inline(always)]
    fn other(self) -> Self {
        if self == Self::Source { Self::Destination } else { Self::Source }
    }
}

/// Offset of the packet's transport checksum, and the flag that updates of it need: a UDP datagram without a checksum stays
/// without.
#[inline(always)]
fn l4_checksum(packet: &Packet) -> (u32, u64) {
    if packet.tuple.protocol == TCP {
        (packet.l4 + TCP_CHECKSUM as u32, 0)
    } else {
        (packet.l4 + UDP_CHECKSUM as u32, u64::from(BPF_F_MARK_MANGLED_0))
    }
}

/// NAT: rewrites address and port of one end of a packet, and the port of the other end. A later fragment has no ports, so
/// only its address is rewritten.
#[inline(always)]
pub fn nat_rewrite(ctx: &TcContext, packet: &Packet, end: End, to: &Address, port: PortNumber, other: PortNumber) -> Rewrite {
    if packet.is(PacketKind::IcmpError) {
        return nat_rewrite_error(ctx, packet, end, to, port, other);
    }
    let from = if end == End::Source { &packet.source } else { &packet.destination };
    let (offset, flag) = l4_checksum(packet);
    let later_fragment = packet.is(PacketKind::LaterFragment);
    if packet.family == 4 {
        let (old, new) = (from[3], to[3]);
        if !later_fragment {
            update_l4_checksum(ctx, offset, u64::from(old), u64::from(new), u64::from(BPF_F_PSEUDO_HDR) | flag | 4)?;
        }
        update_ipv4_checksum(ctx, packet.l3, old, new)?;
        store(ctx, packet.l3 + end.address_offset(4), &new)?;
    } else {
        if !later_fragment {
            update_l4_checksum(ctx, offset, 0, checksum_difference(from, to), u64::from(BPF_F_PSEUDO_HDR) | flag)?;
        }
        store_ipv6_address(ctx, packet.l3 + end.address_offset(6), to)?;
    }
    if later_fragment {
        return Ok(());
    }
    set_port(ctx, packet, end, port)?;
    set_port(ctx, packet, end.other(), other)
}

/// Rewrites the port of one end of a packet.
#[inline(always)]
pub fn set_port(ctx: &TcContext, packet: &Packet, end: End, to: PortNumber) -> Rewrite {
    let from = if end == End::Source { packet.tuple.source_port } else { packet.tuple.destination_port };
    if from == to {
        return Ok(());
    }
    let (old, new) = (u64::from(from), u64::from(to));
    if packet.is(PacketKind::IcmpError) {
        // The quoted packet travelled in the opposite direction, so its ends are swapped.
        update_l4_checksum(ctx, packet.l4 + 2, old, new, 2)?;
        return store(ctx, packet.inner_l4 + end.other().port_offset(), &to);
    }
    let (offset, flag) = l4_checksum(packet);
    update_l4_checksum(ctx, offset, old, new, flag | 2)?;
    store(ctx, packet.l4 + end.port_offset(), &to)
}

/// NAT of an ICMP error: rewrites one end of the error, and the other end of the packet that it quotes. (The transport
/// checksum of the quoted packet is not updated: no receiver checks it.)
#[inline(always)]
fn nat_rewrite_error(ctx: &TcContext, packet: &Packet, end: End, to: &Address, port: PortNumber, other: PortNumber) -> Rewrite {
    let (from, rewrite_outer) = match end {
        End::Source => (&packet.tuple.source, same_address(&packet.source, &packet.tuple.source)),
        End::Destination => (&packet.tuple.destination, true),
    };
    if packet.family == 4 {
        let (old, new) = (from[3], to[3]);
        if rewrite_outer {
            update_ipv4_checksum(ctx, packet.l3, old, new)?;
            store(ctx, packet.l3 + end.address_offset(4), &new)?;
        }
        // The changes of address and checksum in the quoted header cancel out: the checksum of the error stays valid.
        update_ipv4_checksum(ctx, packet.inner_l3, old, new)?;
        store(ctx, packet.inner_l3 + end.other().address_offset(4), &new)?;
    } else {
        let change = checksum_difference(from, to);
        if rewrite_outer {
            update_l4_checksum(ctx, packet.l4 + 2, 0, change, u64::from(BPF_F_PSEUDO_HDR))?;
            store_ipv6_address(ctx, packet.l3 + end.address_offset(6), to)?;
        }
        update_l4_checksum(ctx, packet.l4 + 2, 0, change, 0)?;
        store(ctx, packet.inner_l3 + end.other().address_offset(6), to)?;
    }
    set_port(ctx, packet, end, port)?;
    set_port(ctx, packet, end.other(), other)
}

/// Translates a TCP packet over IPv4 with an Ethernet header to IPv6 with these addresses. Segments that the kernel has
/// merged (GSO) stay merged.
#[inline(always)]
pub fn to_v6(ctx: &TcContext, v4: &[u32; 5], source: &Address, destination: &Address) -> Rewrite {
    let v6 = packet::to_v6(v4, source, destination);
    let new = [v6[2], v6[3], v6[4], v6[5], v6[6], v6[7], v6[8], v6[9]];
    let change = checksum_difference(&[v4[3], v4[4]], &new);
    // SAFETY: the context is a valid one.
    unsafe { check(bpf_skb_change_proto(raw(ctx), 0x86dd_u16.to_be(), 0))? };
    store(ctx, ETHERNET as u32, &v6)?;
    update_l4_checksum(ctx, (ETHERNET + V6 + TCP_CHECKSUM) as u32, 0, change, u64::from(BPF_F_PSEUDO_HDR))
}

/// Undoes [`to_v6`] on a device without link header, and adds an Ethernet header.
#[inline(always)]
pub fn to_v4(ctx: &TcContext, v6: &[u32; 10], source: Ipv4, destination: Ipv4) -> Rewrite {
    let v4 = packet::to_v4(v6, source, destination);
    let old = [v6[2], v6[3], v6[4], v6[5], v6[6], v6[7], v6[8], v6[9]];
    let change = checksum_difference(&old, &[source, destination]);
    // SAFETY: the context is a valid one.
    unsafe { check(bpf_skb_change_proto(raw(ctx), 0x0800_u16.to_be(), 0))? };
    let l3 = no_link_header();
    store(ctx, l3 as u32, &v4)?;
    update_l4_checksum(ctx, (l3 + V4 + TCP_CHECKSUM) as u32, 0, change, u64::from(BPF_F_PSEUDO_HDR))?;
    add_ethernet_header(ctx)
}

/// Adds an Ethernet header to a packet on a device that has none: without one the kernel drops it at a redirect. (In a test
/// run the packet has one.)
#[inline(always)]
pub fn add_ethernet_header(ctx: &TcContext) -> Rewrite {
    if !is_test_run() {
        // SAFETY: the context is a valid one.
        unsafe { check(bpf_skb_change_head(raw(ctx), ETHERNET as u32, 0))? };
    }
    let mut header = [0_u8; ETHERNET];
    (header[12], header[13]) = if ethertype(ctx) == ETH_V6 { (0x86, 0xdd) } else { (8, 0) };
    store(ctx, 0, &header)
}

/// Encapsulates the packet behind the Ethernet header, unchanged, in IPv6 with these addresses.
#[inline(always)]
pub fn encapsulate(ctx: &TcContext, source: &Address, destination: &Address) -> Rewrite {
    let next = if ethertype(ctx) == ETH_V6 { IN_V6 } else { IN_V4 };
    let v6 = packet::encapsulation_header(length(ctx).wrapping_sub(ETHERNET as u32), next, source, destination);
    let flags = u64::from(BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_FIXED_GSO);
    // SAFETY: the context is a valid one.
    unsafe { check(bpf_skb_adjust_room(raw(ctx), V6 as i32, BPF_ADJ_ROOM_MAC, flags))? };
    store(ctx, ETHERNET as u32, &v6)
}

/// Undoes [`encapsulate`] on a device without link header, and adds an Ethernet header. `next` is the protocol number of the
/// inner packet.
#[inline(always)]
pub fn decapsulate(ctx: &TcContext, next: u8) -> Rewrite {
    let decap = if next == IN_V4 { BPF_F_ADJ_ROOM_DECAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_DECAP_L3_IPV6 };
    let fixed = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
    // SAFETY: the context is a valid one.
    unsafe {
        if bpf_skb_adjust_room(raw(ctx), -(V6 as i32), BPF_ADJ_ROOM_MAC, u64::from(decap) | fixed) < 0 {
            // Kernels before 6.3 have no flag for the inner protocol: the protocol is changed first, which removes 20 bytes.
            let remaining = if next == IN_V4 {
                check(bpf_skb_change_proto(raw(ctx), 0x0800_u16.to_be(), 0))?;
                V4
            } else {
                V6
            };
            check(bpf_skb_adjust_room(raw(ctx), -(remaining as i32), BPF_ADJ_ROOM_MAC, fixed))?;
        }
    }
    add_ethernet_header(ctx)
}

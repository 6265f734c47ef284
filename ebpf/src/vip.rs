//! Virtual addresses at the socket calls: translated once, when a process connects or sends. Only for namespaces that
//! are on the address's network; every other process of the machine passes.

use crate::maps::{DATAGRAM_PEERS, MEMBERS, PEERS, SLOTS, VIP_COUNTS, VIPS, add, count, look, recall};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use skep_ebpf::{Counter, Member, Peer, PortNumber, V4, mix, slot};

/// Upper part of an IPv4 address in IPv6 form, as the context holds it.
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// Which family's fields of the context are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// The IPv4 address that the call is about; `None` for a real IPv6 one.
#[inline(always)]
fn address(ctx: &SockAddrContext, family: Family) -> Option<V4> {
    // SAFETY: the kernel hands over a valid context; the verifier checks every offset.
    unsafe {
        match family {
            Family::V4 => Some((*ctx.sock_addr).user_ip4),
            Family::V6 => {
                let whole = &(*ctx.sock_addr).user_ip6;
                let upper = [
                    core::ptr::read_volatile(&whole[0]),
                    core::ptr::read_volatile(&whole[1]),
                    core::ptr::read_volatile(&whole[2]),
                ];
                if upper[0] != MAPPED[0] || upper[1] != MAPPED[1] || upper[2] != MAPPED[2] {
                    return None;
                }
                Some(core::ptr::read_volatile(&whole[3]))
            }
        }
    }
}

#[inline(always)]
fn set_address(ctx: &SockAddrContext, family: Family, address: V4) {
    // SAFETY: as above; both fields may be written.
    unsafe {
        match family {
            Family::V4 => core::ptr::write_volatile(&mut (*ctx.sock_addr).user_ip4, address),
            Family::V6 => core::ptr::write_volatile(&mut (*ctx.sock_addr).user_ip6[3], address),
        }
    }
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> PortNumber {
    // SAFETY: as above. The port is the lower half of the field, in network order.
    let field = unsafe { core::ptr::read_volatile(&(*ctx.sock_addr).user_port) };
    field as u16
}

#[inline(always)]
fn peer(ctx: &SockAddrContext, address: V4) -> Peer {
    // SAFETY: the context is a valid one.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    Peer { cookie, address, port: port(ctx), zero: 0 }
}

#[inline(always)]
fn is_udp(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is a valid one.
    unsafe { (*ctx.sock_addr).protocol == u32::from(skep_ebpf::packet::UDP) }
}

/// A call that names where to: connect, or a datagram. One socket that sends many datagrams sends them to one backend.
#[inline(always)]
pub fn toward(ctx: &SockAddrContext, family: Family, sticky: bool) -> Option<()> {
    let virtual_address = address(ctx, family)?;
    let vip = look(&VIPS, &virtual_address)?;
    // SAFETY: the context is a valid one.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    look(&MEMBERS, &Member { cookie, network: vip.network, zero: 0 })?;
    if vip.size == 0 {
        count(Counter::VipEmpty);
        return None;
    }
    let hash = if sticky {
        // SAFETY: the context is a valid one.
        mix(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) } << 16 ^ u64::from(u32::from_be(virtual_address)))
    } else {
        // SAFETY: takes nothing.
        unsafe { bpf_get_prandom_u32() }
    };
    let backend = *SLOTS.get(slot(vip.base, vip.size, hash))?;
    if backend == 0 {
        return None;
    }
    let known = peer(ctx, backend);
    if !sticky && is_udp(ctx) {
        DATAGRAM_PEERS.insert(&known, &virtual_address, 0).ok()?;
        count(Counter::VipConnect);
        add(VIP_COUNTS.get_ptr_mut(virtual_address));
    // A look costs less than a change: each datagram of an unconnected socket comes by here.
    } else if recall(&PEERS, &known).is_none_or(|before| *before != virtual_address) {
        PEERS.insert(&known, &virtual_address, 0).ok()?;
        count(Counter::VipConnect);
        add(VIP_COUNTS.get_ptr_mut(virtual_address));
    }
    set_address(ctx, family, backend);
    Some(())
}

/// A call that tells where from: the peer's name, or a datagram's sender.
#[inline(always)]
pub fn back(ctx: &SockAddrContext, family: Family) -> Option<()> {
    let real = address(ctx, family)?;
    let peer = peer(ctx, real);
    let connected = if is_udp(ctx) { recall(&DATAGRAM_PEERS, &peer) } else { None };
    let known = connected.or_else(|| recall(&PEERS, &peer))?;
    set_address(ctx, family, *known);
    Some(())
}

//! Virtual addresses at the socket calls: translated once, when a process connects or sends. Only in network namespaces
//! that are on the address's network; the calls of every other process pass unchanged.

use crate::maps::{DATAGRAM_PEERS, MEMBERS, PEERS, SLOTS, VIP_COUNTS, VIPS, add, count, lookup, lookup_lru};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use skep_ebpf::{Counter, NetnsMembership, PortNumber, SocketPeer, V4, mix, slot};

/// Upper part of an IPv4-mapped address, as the context holds it.
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// Address family of the call: selects the fields of the context that are valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SockaddrFamily {
    Inet,
    Inet6,
}

/// The call that names a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `connect`: each one selects a backend at random.
    Connect,
    /// `sendmsg` and `sendto`: all datagrams of one socket go to one backend.
    SendMsg,
}

/// What became of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It continues with another address.
    Translated,
    /// It fails at once, as a connection to a port without a listener: the service has no task.
    Refused,
}

/// The IPv4 address in the call; `None` for an IPv6 address that is not a mapped one.
#[inline(always)]
pub fn address(ctx: &SockAddrContext, family: SockaddrFamily) -> Option<V4> {
    // SAFETY: the kernel passes a valid context; the verifier checks every offset.
    unsafe {
        match family {
            SockaddrFamily::Inet => Some((*ctx.sock_addr).user_ip4),
            SockaddrFamily::Inet6 => {
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
fn set_address(ctx: &SockAddrContext, family: SockaddrFamily, address: V4) {
    // SAFETY: as above; both fields are writable.
    unsafe {
        match family {
            SockaddrFamily::Inet => core::ptr::write_volatile(&mut (*ctx.sock_addr).user_ip4, address),
            SockaddrFamily::Inet6 => core::ptr::write_volatile(&mut (*ctx.sock_addr).user_ip6[3], address),
        }
    }
}

#[inline(always)]
pub fn port(ctx: &SockAddrContext) -> PortNumber {
    // SAFETY: as above. The port is the lower half of the field, in network order.
    let field = unsafe { core::ptr::read_volatile(&(*ctx.sock_addr).user_port) };
    field as u16
}

#[inline(always)]
fn peer(ctx: &SockAddrContext, address: V4) -> SocketPeer {
    // SAFETY: the context is a valid one.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    SocketPeer { cookie, address, port: port(ctx), zero: 0 }
}

#[inline(always)]
fn is_udp(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is a valid one.
    unsafe { (*ctx.sock_addr).protocol == u32::from(skep_ebpf::packet::UDP) }
}

/// Replaces a virtual address as the destination of a call by a backend, and records which virtual address it was.
/// `None`: the call continues unchanged.
#[inline(always)]
pub fn translate(ctx: &SockAddrContext, family: SockaddrFamily, call: Call) -> Option<Outcome> {
    let virtual_address = address(ctx, family)?;
    let vip = lookup(&VIPS, &virtual_address)?;
    // SAFETY: the context is a valid one.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    lookup(&MEMBERS, &NetnsMembership { cookie, network: vip.network, zero: 0 })?;
    if vip.size == 0 {
        count(Counter::VipEmpty);
        return Some(Outcome::Refused);
    }
    let hash = match call {
        // SAFETY: takes no argument.
        Call::Connect => unsafe { bpf_get_prandom_u32() },
        // SAFETY: the context is a valid one.
        Call::SendMsg => mix(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) } << 16 ^ u64::from(u32::from_be(virtual_address))),
    };
    let backend = *SLOTS.get(slot(vip.base, vip.size, hash))?;
    if backend == 0 {
        return None;
    }
    if record_peer(ctx, call, &peer(ctx, backend), virtual_address)? {
        count(Counter::VipConnect);
        add(VIP_COUNTS.get_ptr_mut(virtual_address));
    }
    set_address(ctx, family, backend);
    Some(Outcome::Translated)
}

/// Records the virtual address that a socket asked for, for [`untranslate`]. `false`: it was recorded before.
#[inline(always)]
fn record_peer(ctx: &SockAddrContext, call: Call, peer: &SocketPeer, virtual_address: V4) -> Option<bool> {
    if call == Call::Connect && is_udp(ctx) {
        DATAGRAM_PEERS.insert(peer, &virtual_address, 0).ok()?;
        return Some(true);
    }
    // A lookup costs less than an update, and each datagram of an unconnected socket passes here.
    if lookup_lru(&PEERS, peer).is_some_and(|before| *before == virtual_address) {
        return Some(false);
    }
    PEERS.insert(peer, &virtual_address, 0).ok()?;
    Some(true)
}

/// Replaces a backend by the virtual address that the socket asked for, where a call returns an address to the process:
/// the peer's name, or the sender of a datagram. `None`: the address is returned unchanged.
#[inline(always)]
pub fn untranslate(ctx: &SockAddrContext, family: SockaddrFamily) -> Option<Outcome> {
    let backend = address(ctx, family)?;
    let peer = peer(ctx, backend);
    let connected = if is_udp(ctx) { lookup_lru(&DATAGRAM_PEERS, &peer) } else { None };
    let virtual_address = connected.or_else(|| lookup_lru(&PEERS, &peer))?;
    set_address(ctx, family, *virtual_address);
    Some(Outcome::Translated)
}

//! Virtual addresses at the socket calls: translated once, when a process connects or sends. Only in network namespaces
//! that are on the address's network; the calls of every other process pass unchanged.

use crate::call::{SockaddrFamily, address, is_udp, port, set_address, socket_cookie};
use crate::maps::{DATAGRAM_PEERS, MEMBERS, PEERS, SLOTS, VIP_COUNTS, VIPS, add, count, lookup, lookup_lru};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::programs::SockAddrContext;
use skep_ebpf::{Counter, NetnsMembership, SocketPeer, V4, mix, slot};

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

#[inline(always)]
fn peer(ctx: &SockAddrContext, address: V4) -> SocketPeer {
    SocketPeer { cookie: socket_cookie(ctx), address, port: port(ctx), zero: 0 }
}

/// Replaces a virtual address as the destination of a call by a backend, and records which virtual address it was.
/// `cookie`: that of the network namespace. `None`: the call continues unchanged.
#[inline(always)]
pub fn translate(ctx: &SockAddrContext, family: SockaddrFamily, call: Call, cookie: u64) -> Option<Outcome> {
    let virtual_address = address(ctx, family)?;
    let vip = lookup(&VIPS, &virtual_address)?;
    lookup(&MEMBERS, &NetnsMembership { cookie, network: vip.network, zero: 0 })?;
    if vip.size == 0 {
        count(Counter::VipEmpty);
        return Some(Outcome::Refused);
    }
    let hash = match call {
        // SAFETY: takes no argument.
        Call::Connect => unsafe { bpf_get_prandom_u32() },
        Call::SendMsg => mix(socket_cookie(ctx) << 16 ^ u64::from(u32::from_be(virtual_address))),
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

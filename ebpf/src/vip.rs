//! Virtual addresses at the socket calls: translated once, when a process connects or sends. Only in network namespaces
//! that are on the address's network; the calls of every other process pass unchanged.

use crate::call::{
    CallAddress, SockaddrFamily, address, is_udp, netns_cookie, port, protocol, set_last_word, socket, socket_cookie,
    whole_address,
};
use crate::maps::{
    BACKENDS, CHOICES, DATAGRAM_PEERS, MEMBERS, PEERS, VIP_COUNTS, VIPS, add, backend_at, count, lookup, lookup_lru,
};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::SockAddrContext;
use skep_ebpf::packet::{ICMP, ICMP6, TCP};
use skep_ebpf::{Counter, NetnsMembership, OF_NAMESPACE, SocketPeer, V4, Vip, mix, slot};

/// Number of the protocol of MPTCP sockets, at the calls of their processes.
const MPTCP: u32 = 262;

/// The call that names a destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `connect`: each one selects a backend at random.
    Connect,
    /// `sendmsg` and `sendto`: all datagrams of one socket go to one backend, as long as that serves.
    SendMsg,
}

/// What became of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It continues with another address.
    Translated,
    /// It fails at once, as a connection to a port without a listener: the service has no task.
    Refused,
    /// It fails at once, as a call of a socket whose address this host does not have: the socket is bound to an address that is
    /// not the container's on the network.
    ForeignSource,
}

#[inline(always)]
fn peer(ctx: &SockAddrContext, address: V4) -> SocketPeer {
    SocketPeer { cookie: socket_cookie(ctx), address, port: port(ctx), flags: 0 }
}

/// As [`peer`], of any socket of the namespace.
#[inline(always)]
fn namespace_peer(ctx: &SockAddrContext, address: V4) -> SocketPeer {
    SocketPeer { cookie: netns_cookie(ctx), address, port: port(ctx), flags: OF_NAMESPACE }
}

/// Replaces a virtual address as the destination of a call by a backend, and records which virtual address it was.
/// `cookie`: that of the network namespace. `None`: the call continues unchanged.
#[inline(always)]
pub fn translate(ctx: &SockAddrContext, family: SockaddrFamily, call: Call, cookie: u64) -> Option<Outcome> {
    let named = address(ctx, family)?;
    let virtual_address = named.v4;
    let vip = lookup(&VIPS, &virtual_address)?;
    // An echo request is answered at the virtual address itself, also one of a socket that is not connected.
    if protocol(ctx) == u32::from(ICMP) || protocol(ctx) == u32::from(ICMP6) {
        return None;
    }
    let own = lookup(&MEMBERS, &NetnsMembership { cookie, network: vip.network, zero: 0 })?;
    if vip.size == 0 {
        count(Counter::VipEmpty);
        return Some(Outcome::Refused);
    }
    if has_foreign_source(ctx, call, family, &named, own)? {
        count(Counter::VipForeignSource);
        return Some(Outcome::ForeignSource);
    }
    let backend = match call {
        // SAFETY: takes no argument.
        Call::Connect => backend_at(slot(vip.base, vip.size, unsafe { bpf_get_prandom_u32() }))?,
        Call::SendMsg => datagram_backend(ctx, virtual_address, &vip)?,
    };
    if backend == 0 {
        return None;
    }
    if record_peer(ctx, call, &peer(ctx, backend), virtual_address)? {
        count(Counter::VipConnect);
        add(VIP_COUNTS.get_ptr_mut(virtual_address));
    }
    set_last_word(ctx, family, named.word_of(backend));
    Some(Outcome::Translated)
}

/// The backend of an unconnected socket's datagrams to a virtual address: the one that was selected before, while it serves.
/// When tasks start or end, only the sockets of those that ended select again.
#[inline(always)]
fn datagram_backend(ctx: &SockAddrContext, virtual_address: V4, vip: &Vip) -> Option<V4> {
    let key = peer(ctx, virtual_address);
    if let Some(before) = lookup_lru(&CHOICES, &key)
        && lookup(&BACKENDS, before).is_some_and(|backend| backend.serving != 0 && backend.owner == vip.owner)
    {
        return Some(*before);
    }
    let hash = mix(key.cookie << 16 ^ u64::from(u32::from_be(virtual_address)));
    let backend = backend_at(slot(vip.base, vip.size, hash))?;
    let _ = CHOICES.insert(&key, &backend, 0);
    Some(backend)
}

/// Whether a call names another source than `own`, the container's address on the network: no reply would find it.
#[inline(always)]
fn has_foreign_source(ctx: &SockAddrContext, call: Call, family: SockaddrFamily, named: &CallAddress, own: V4) -> Option<bool> {
    if named.is_v6 {
        return has_foreign_source6(ctx, call, named.word_of(own));
    }
    // SAFETY: the kernel passes a valid context; the verifier checks that the fields are those of the call and of the socket.
    let source = unsafe {
        match (call, family) {
            // Also that of control data.
            (Call::SendMsg, SockaddrFamily::Inet) => core::ptr::read_volatile(&(*ctx.sock_addr).msg_src_ip4),
            _ => (*socket(ctx)?).src_ip4,
        }
    };
    Some(source != 0 && source != own)
}

/// As [`has_foreign_source`], of an IPv6 address; `own`: the last word of the container's, which has the other words of the virtual
/// address.
#[inline(always)]
fn has_foreign_source6(ctx: &SockAddrContext, call: Call, own: u32) -> Option<bool> {
    // SAFETY: as above.
    let source = unsafe {
        let source = match call {
            Call::SendMsg => &raw const (*ctx.sock_addr).msg_src_ip6,
            Call::Connect => &raw const (*socket(ctx)?).src_ip6,
        };
        let word = |i: usize| core::ptr::read_volatile((source.cast::<u32>()).add(i));
        [word(0), word(1), word(2), word(3)]
    };
    let to = whole_address(ctx, SockaddrFamily::Inet6);
    let is_own = (source[0] ^ to[0]) | (source[1] ^ to[1]) | (source[2] ^ to[2]) | (source[3] ^ own) == 0;
    Some(source[0] | source[1] | source[2] | source[3] != 0 && !is_own)
}

/// Records the virtual address that a socket asked for, for [`untranslate`]. `false`: it was recorded before.
#[inline(always)]
fn record_peer(ctx: &SockAddrContext, call: Call, peer: &SocketPeer, virtual_address: V4) -> Option<bool> {
    if call == Call::Connect {
        if is_udp(ctx) {
            DATAGRAM_PEERS.insert(peer, &virtual_address, 0).ok()?;
            return Some(true);
        }
        // The first socket of an MPTCP connection looks as any other one.
        if protocol(ctx) == u32::from(TCP) {
            record(&PEERS, &namespace_peer(ctx, peer.address), virtual_address)?;
        }
    }
    record(&PEERS, peer, virtual_address)
}

/// Updates an entry if it is not there. (A lookup costs less than an update, and each datagram of an unconnected socket passes
/// here.)
#[inline(always)]
fn record(map: &'static LruHashMap<SocketPeer, V4>, peer: &SocketPeer, virtual_address: V4) -> Option<bool> {
    if lookup_lru(map, peer).is_some_and(|before| *before == virtual_address) {
        return Some(false);
    }
    map.insert(peer, &virtual_address, 0).ok()?;
    Some(true)
}

/// Replaces a backend by the virtual address that the socket asked for, where a call returns an address to the process:
/// the peer's name, or the sender of a datagram. `None`: the address is returned unchanged.
#[inline(always)]
pub fn untranslate(ctx: &SockAddrContext, family: SockaddrFamily) -> Option<Outcome> {
    let named = address(ctx, family)?;
    let backend = named.v4;
    let virtual_address = if protocol(ctx) == MPTCP {
        lookup_lru(&PEERS, &namespace_peer(ctx, backend))?
    } else {
        let peer = peer(ctx, backend);
        let connected = if is_udp(ctx) { lookup_lru(&DATAGRAM_PEERS, &peer) } else { None };
        connected.or_else(|| lookup_lru(&PEERS, &peer))?
    };
    set_last_word(ctx, family, named.word_of(*virtual_address));
    Some(Outcome::Translated)
}

//! Virtual addresses at the socket calls: translated once, when a process connects or sends. Only for namespaces that
//! are on the address's network; every other process of the machine passes.

use crate::maps::{MEMBERS, PEERS, SLOTS, VIPS, count, look, look_lru};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use skep_ebpf::{Address, Counter, Member, Peer, mix, slot};

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
fn address(ctx: &SockAddrContext, family: Family) -> Option<Address> {
    // SAFETY: the kernel hands over a valid context; the verifier checks every offset.
    unsafe {
        match family {
            Family::V4 => Some((*ctx.sock_addr).user_ip4.to_ne_bytes()),
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
                Some(core::ptr::read_volatile(&whole[3]).to_ne_bytes())
            }
        }
    }
}

#[inline(always)]
fn set_address(ctx: &SockAddrContext, family: Family, address: Address) {
    // SAFETY: as above; both fields may be written.
    unsafe {
        match family {
            Family::V4 => core::ptr::write_volatile(&mut (*ctx.sock_addr).user_ip4, u32::from_ne_bytes(address)),
            Family::V6 => core::ptr::write_volatile(&mut (*ctx.sock_addr).user_ip6[3], u32::from_ne_bytes(address)),
        }
    }
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> [u8; 2] {
    // SAFETY: as above. The port is the lower half of the field, in network order.
    let field = unsafe { core::ptr::read_volatile(&(*ctx.sock_addr).user_port) };
    (field as u16).to_ne_bytes()
}

#[inline(always)]
fn peer(ctx: &SockAddrContext, address: Address) -> Peer {
    // SAFETY: the context is a valid one.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    Peer { cookie, address, port: port(ctx), zero: 0 }
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
        mix(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) } << 16 ^ u64::from(u32::from_be_bytes(virtual_address)))
    } else {
        // SAFETY: takes nothing.
        unsafe { bpf_get_prandom_u32() }
    };
    let backend = *SLOTS.get(slot(vip.base, vip.size, hash))?;
    if backend == [0; 4] {
        return None;
    }
    let known = peer(ctx, backend);
    PEERS.insert(&known, &virtual_address, 0).ok()?;
    set_address(ctx, family, backend);
    count(Counter::VipConnect);
    Some(())
}

/// A call that tells where from: the peer's name, or a datagram's sender.
#[inline(always)]
pub fn back(ctx: &SockAddrContext, family: Family) -> Option<()> {
    let real = address(ctx, family)?;
    let known = look_lru(&PEERS, &peer(ctx, real))?;
    set_address(ctx, family, known);
    Some(())
}

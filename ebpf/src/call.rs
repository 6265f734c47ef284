//! Fields of a socket call's context (`struct bpf_sock_addr`), for the programs at socket calls.

use crate::maps::subnet_of;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use core::ptr::read_volatile;
use skep_ebpf::packet::{UDP, mapped};
use skep_ebpf::{Address, PortNumber, V4};

/// Upper part of an IPv4-mapped address, as the context holds it.
const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

/// Address family of the call: selects the fields of the context that are valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SockaddrFamily {
    Inet,
    Inet6,
}

#[inline(always)]
fn raw(ctx: &SockAddrContext) -> *mut bpf_sock_addr {
    ctx.sock_addr
}

/// The whole address in the call; IPv4 in its mapped form.
#[inline(always)]
pub fn whole_address(ctx: &SockAddrContext, family: SockaddrFamily) -> Address {
    // SAFETY: the kernel passes a valid context; the verifier checks every offset.
    unsafe {
        match family {
            SockaddrFamily::Inet => mapped((*raw(ctx)).user_ip4),
            SockaddrFamily::Inet6 => {
                let whole = &(*raw(ctx)).user_ip6;
                [read_volatile(&whole[0]), read_volatile(&whole[1]), read_volatile(&whole[2]), read_volatile(&whole[3])]
            }
        }
    }
}

/// The address in a call, as an IPv4 address.
#[derive(Clone, Copy)]
pub struct CallAddress {
    /// The IPv4 address, or the one that belongs to an IPv6 address of a dual-stack network.
    pub v4: V4,
    /// What the last word of the address in the call differs by from that.
    change: u32,
    /// It is an IPv6 address of a dual-stack network.
    pub is_v6: bool,
}

/// The address in the call; `None` for an IPv6 address that belongs to no IPv4 address.
#[inline(always)]
pub fn address(ctx: &SockAddrContext, family: SockaddrFamily) -> Option<CallAddress> {
    let whole = whole_address(ctx, family);
    if family == SockaddrFamily::Inet || is_mapped(&whole) {
        return Some(CallAddress { v4: whole[3], change: 0, is_v6: false });
    }
    let subnet = subnet_of(&whole)?;
    Some(CallAddress { v4: subnet.to_v4(whole[3])?, change: subnet.change, is_v6: true })
}

impl CallAddress {
    /// The last word of the address that belongs to an IPv4 address of the same network.
    #[inline(always)]
    pub fn word_of(&self, address: V4) -> u32 {
        address ^ self.change
    }
}

/// Whether an address is an IPv4 one in its mapped form.
#[inline(always)]
pub fn is_mapped(whole: &Address) -> bool {
    whole[0] == MAPPED[0] && whole[1] == MAPPED[1] && whole[2] == MAPPED[2]
}

/// Replaces the last word of the address in the call.
#[inline(always)]
pub fn set_last_word(ctx: &SockAddrContext, family: SockaddrFamily, address: u32) {
    // SAFETY: as above; both fields are writable.
    unsafe {
        match family {
            SockaddrFamily::Inet => core::ptr::write_volatile(&mut (*raw(ctx)).user_ip4, address),
            SockaddrFamily::Inet6 => core::ptr::write_volatile(&mut (*raw(ctx)).user_ip6[3], address),
        }
    }
}

#[inline(always)]
pub fn port(ctx: &SockAddrContext) -> PortNumber {
    // SAFETY: as above. The port is the lower half of the field, in network order.
    let field = unsafe { read_volatile(&(*raw(ctx)).user_port) };
    field as u16
}

/// IP protocol number of the socket.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*raw(ctx)).protocol }
}

#[inline(always)]
pub fn is_udp(ctx: &SockAddrContext) -> bool {
    protocol(ctx) == u32::from(UDP)
}

/// The socket, whose fields the kernel lets a program read.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> Option<*const bpf_sock> {
    // SAFETY: as above. A union of the pointer and its bits.
    let socket = unsafe { (*raw(ctx)).__bindgen_anon_1.sk };
    (!socket.is_null()).then_some(socket.cast_const())
}

/// Cookie of the socket.
#[inline(always)]
pub fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is a valid one.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Cookie of the socket's network namespace.
#[inline(always)]
pub fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is a valid one.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

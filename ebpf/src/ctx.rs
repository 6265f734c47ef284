//! Raw fields of a packet's context (`struct __sk_buff`), for the other modules.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;

/// The context as the helpers take it.
#[inline(always)]
pub fn raw(ctx: &TcContext) -> *mut __sk_buff {
    ctx.skb.skb
}

/// Ethernet type, in network order.
#[inline(always)]
pub fn ethertype(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { core::ptr::read_volatile(&(*raw(ctx)).protocol) }
}

/// Index of the device that the packet is on.
#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*raw(ctx)).ifindex }
}

/// Length of the packet in bytes, with the link header.
#[inline(always)]
pub fn length(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*raw(ctx)).len }
}

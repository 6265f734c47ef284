//! Raw fields of a packet's context (`struct __sk_buff`), for the other modules.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::ETHERNET;

/// 1 in the programs that are loaded for a trace. Set by the loader; a constant to the verifier, which removes what depends on
/// it from all others.
#[unsafe(no_mangle)]
static IS_TEST_RUN: u32 = 0;

/// Whether the program is one that a trace runs by `BPF_PROG_TEST_RUN`.
#[inline(always)]
pub fn is_test_run() -> bool {
    // SAFETY: reads a constant.
    unsafe { core::ptr::read_volatile(&IS_TEST_RUN) != 0 }
}

/// Bytes in front of the IP header of a packet on a device without link header. In a test run every packet has an Ethernet
/// header: the kernel makes no others.
#[inline(always)]
pub fn no_link_header() -> usize {
    if is_test_run() { ETHERNET } else { 0 }
}

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

/// Bits of a tag that have the number of its VLAN; 0 in one that has a priority alone.
const VLAN_NUMBER: u32 = 0xfff;

/// Whether the packet is addressed to this machine (not a broadcast, a multicast, or a frame for another MAC address) and on no
/// VLAN: those of a VLAN pass again on the VLAN's own device.
#[inline(always)]
pub fn is_for_host(ctx: &TcContext) -> bool {
    // SAFETY: as above. `PACKET_HOST` is 0.
    let is_host = unsafe { core::ptr::read_volatile(&(*raw(ctx)).pkt_type) } == 0;
    // SAFETY: as above. (Kernels before 6.2 leave an earlier tag in the field.)
    is_host && (!has_tag(ctx) || unsafe { core::ptr::read_volatile(&(*raw(ctx)).vlan_tci) } & VLAN_NUMBER == 0)
}

/// Whether the packet has a VLAN tag.
#[inline(always)]
pub fn has_tag(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&(*raw(ctx)).vlan_present) != 0 }
}

/// Seconds of the monotonic clock.
#[inline(always)]
pub fn seconds() -> u32 {
    // SAFETY: takes no argument.
    unsafe { (bpf_ktime_get_coarse_ns() / 1_000_000_000) as u32 }
}

/// Length of the packet in bytes, with the link header.
#[inline(always)]
pub fn length(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*raw(ctx)).len }
}

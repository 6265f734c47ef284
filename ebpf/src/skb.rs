//! What the programs do to packets. Every change of a checksum stands here, beside the change that it belongs to.

use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_change_proto,
};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{self, ETHERNET, TCP, TCP_CHECKSUM, V4, V6};
use skep_ebpf::{Address, Tuple};

/// Ethernet type of IPv4, as the context holds it.
pub const ETH_V4: u32 = 0x0800_u16.to_be() as u32;
/// Ethernet type of IPv6.
pub const ETH_V6: u32 = 0x86dd_u16.to_be() as u32;

/// The kernel refused a change; the packet is spoilt.
pub struct Refused;

#[inline(always)]
fn done(result: i64) -> Result<(), Refused> {
    if result < 0 { Err(Refused) } else { Ok(()) }
}

#[inline(always)]
pub fn raw(ctx: &TcContext) -> *mut __sk_buff {
    ctx.skb.skb
}

#[inline(always)]
pub fn protocol(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel hands over a valid context.
    unsafe { (*raw(ctx)).protocol }
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*raw(ctx)).ifindex }
}

/// A whole TCP segment over IPv4 without options: its header, tuple and flags.
pub struct Segment {
    pub v4: [u8; V4],
    pub tuple: Tuple,
    pub flags: u8,
}

/// The segment behind an Ethernet header; `None` for anything else.
#[inline(always)]
pub fn segment(ctx: &TcContext) -> Option<Segment> {
    if protocol(ctx) != ETH_V4 {
        return None;
    }
    let v4: [u8; V4] = ctx.load(ETHERNET).ok()?;
    if v4[0] != 0x45 || v4[9] != TCP || v4[6] & 0x3f != 0 || v4[7] != 0 {
        return None;
    }
    let tcp: [u8; 14] = ctx.load(ETHERNET + V4).ok()?;
    let tuple = Tuple {
        source: [v4[12], v4[13], v4[14], v4[15]],
        destination: [v4[16], v4[17], v4[18], v4[19]],
        source_port: [tcp[0], tcp[1]],
        destination_port: [tcp[2], tcp[3]],
        protocol: TCP,
        zero: [0; 3],
    };
    Some(Segment { v4, tuple, flags: tcp[13] })
}

/// Sets the source or the destination of a segment behind an Ethernet header.
#[inline(always)]
pub fn set_end(ctx: &TcContext, source: bool, from: (Address, [u8; 2]), to: (Address, [u8; 2])) -> Result<(), Refused> {
    let address_at = ETHERNET + if source { 12 } else { 16 };
    let l4 = ETHERNET + V4;
    if from.0 != to.0 {
        let (old, new) = (u64::from(u32::from_ne_bytes(from.0)), u64::from(u32::from_ne_bytes(to.0)));
        // SAFETY: the context is a valid one; the verifier knows these helpers.
        unsafe {
            done(bpf_l4_csum_replace(raw(ctx), (l4 + TCP_CHECKSUM) as u32, old, new, u64::from(BPF_F_PSEUDO_HDR) | 4))?;
            done(bpf_l3_csum_replace(raw(ctx), (ETHERNET + 10) as u32, old, new, 4))?;
        }
        ctx.store(address_at, &to.0, 0).map_err(|_| Refused)?;
    }
    set_port(ctx, l4, source, from.1, to.1)
}

/// Sets a port of the TCP header at `l4`.
#[inline(always)]
pub fn set_port(ctx: &TcContext, l4: usize, source: bool, from: [u8; 2], to: [u8; 2]) -> Result<(), Refused> {
    if from == to {
        return Ok(());
    }
    let (old, new) = (u64::from(u16::from_ne_bytes(from)), u64::from(u16::from_ne_bytes(to)));
    // SAFETY: as above.
    unsafe { done(bpf_l4_csum_replace(raw(ctx), (l4 + TCP_CHECKSUM) as u32, old, new, 2))? };
    ctx.store(l4 + if source { 0 } else { 2 }, &to, 0).map_err(|_| Refused)
}

/// What the sum of a TCP checksum loses and gains when its pseudo header changes.
#[inline(always)]
fn difference(from: *const u8, from_length: usize, to: *const u8, to_length: usize) -> u64 {
    // SAFETY: the lengths are those of arrays on the stack; the verifier checks them.
    unsafe { bpf_csum_diff(from.cast_mut().cast(), from_length as u32, to.cast_mut().cast(), to_length as u32, 0) as u64 }
}

/// Turns IPv4 behind an Ethernet header into IPv6 with these addresses.
#[inline(always)]
pub fn to_v6(ctx: &TcContext, v4: &[u8; V4], source: &[u8; 16], destination: &[u8; 16]) -> Result<(), Refused> {
    let v6 = packet::to_v6(v4, source, destination);
    let mut old = [0_u8; 8];
    old.copy_from_slice(&v4[12..20]);
    let mut new = [0_u8; 32];
    new.copy_from_slice(&v6[8..40]);
    let change = difference(old.as_ptr(), 8, new.as_ptr(), 32);
    // SAFETY: the context is a valid one.
    unsafe { done(bpf_skb_change_proto(raw(ctx), 0x86dd_u16.to_be(), 0))? };
    ctx.store(ETHERNET, &v6, 0).map_err(|_| Refused)?;
    let at = (ETHERNET + V6 + TCP_CHECKSUM) as u32;
    // SAFETY: as above.
    unsafe { done(bpf_l4_csum_replace(raw(ctx), at, 0, change, u64::from(BPF_F_PSEUDO_HDR))) }
}

/// Turns IPv6 without any link header into IPv4 with these addresses, and puts an Ethernet header before it: without one
/// packets vanish at a redirect.
#[inline(always)]
pub fn to_v4(ctx: &TcContext, v6: &[u8; V6], source: Address, destination: Address) -> Result<(), Refused> {
    let v4 = packet::to_v4(v6, source, destination);
    let mut old = [0_u8; 32];
    old.copy_from_slice(&v6[8..40]);
    let mut new = [0_u8; 8];
    new.copy_from_slice(&v4[12..20]);
    let change = difference(old.as_ptr(), 32, new.as_ptr(), 8);
    // SAFETY: the context is a valid one.
    unsafe { done(bpf_skb_change_proto(raw(ctx), 0x0800_u16.to_be(), 0))? };
    ctx.store(0, &v4, 0).map_err(|_| Refused)?;
    // SAFETY: as above.
    unsafe {
        done(bpf_l4_csum_replace(raw(ctx), (V4 + TCP_CHECKSUM) as u32, 0, change, u64::from(BPF_F_PSEUDO_HDR)))?;
        done(bpf_skb_change_head(raw(ctx), ETHERNET as u32, 0))?;
    }
    let mut link = [0_u8; ETHERNET];
    link[12] = 8;
    ctx.store(0, &link, 0).map_err(|_| Refused)
}

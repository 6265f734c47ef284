//! Where a packet goes.

use crate::maps::count;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use skep_ebpf::Counter;

/// What a program decides.
pub enum Way {
    /// Not ours: whoever comes next decides.
    Next,
    /// Out of the other end of this veth of ours.
    Peer(u32),
    /// Out of this device, as it is.
    Out(u32),
    /// Out of this device, to the neighbour that the host's routes name.
    Neighbour(u32),
    /// Nowhere, and counted.
    Drop(Counter),
}

/// The verdict of a way.
#[inline(always)]
pub fn verdict(way: Way) -> i32 {
    // SAFETY: these helpers take numbers only.
    unsafe {
        match way {
            Way::Next => -1,
            Way::Peer(ifindex) => bpf_redirect_peer(ifindex, 0) as i32,
            Way::Out(ifindex) => bpf_redirect(ifindex, 0) as i32,
            Way::Neighbour(ifindex) => bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32,
            Way::Drop(counter) => {
                count(counter);
                2
            }
        }
    }
}

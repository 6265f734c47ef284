//! The verdict of a program on a packet.

use crate::ctx::{is_test_run, raw};
use crate::seen;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use skep_ebpf::{Counter, VerdictKind};

/// What happens to a packet. Devices are interface indexes.
pub enum Verdict {
    /// Unchanged or rewritten, the packet continues: the next program or the kernel's stack decides.
    Pass,
    /// Received by the peer of this veth end, in the peer's network namespace.
    RedirectPeer(u32),
    /// Sent out of this device with the link header that it has.
    Redirect(u32),
    /// Sent out of this device, to the neighbour that the host's routes name.
    RedirectNeighbour(u32),
    /// Dropped, and counted under this reason.
    Drop(Counter),
    /// Dropped; it is counted already.
    Discard,
}

impl Verdict {
    /// Carries it out as far as a program can; the return value of the program (`TC_ACT_*`). `hook`: the program's number.
    #[inline(always)]
    pub fn into_action(self, ctx: &TcContext, hook: u32) -> i32 {
        if is_test_run() {
            self.write_to(ctx);
        }
        // SAFETY: these helpers take numbers only.
        unsafe {
            match self {
                Self::Pass => TC_ACT_UNSPEC,
                Self::RedirectPeer(ifindex) => bpf_redirect_peer(ifindex, 0) as i32,
                Self::Redirect(ifindex) => bpf_redirect(ifindex, 0) as i32,
                Self::RedirectNeighbour(ifindex) => bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32,
                Self::Drop(reason) => {
                    seen::dropped(ctx, hook, reason);
                    TC_ACT_SHOT as i32
                }
                Self::Discard => TC_ACT_SHOT as i32,
            }
        }
    }

    /// Writes the verdict where a trace reads it.
    #[inline(always)]
    fn write_to(&self, ctx: &TcContext) {
        let (kind, ifindex) = match self {
            Self::Pass => (VerdictKind::Pass, 0),
            Self::RedirectPeer(ifindex) => (VerdictKind::RedirectPeer, *ifindex),
            Self::Redirect(ifindex) => (VerdictKind::Redirect, *ifindex),
            Self::RedirectNeighbour(ifindex) => (VerdictKind::RedirectNeighbour, *ifindex),
            Self::Drop(_) | Self::Discard => (VerdictKind::Drop, 0),
        };
        // SAFETY: the context is a valid one, and the words may be written.
        unsafe {
            let words = &raw mut (*raw(ctx)).cb;
            core::ptr::write_volatile(&raw mut (*words)[0], kind as u32);
            core::ptr::write_volatile(&raw mut (*words)[1], ifindex);
        }
    }
}

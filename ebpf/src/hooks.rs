//! Entry points.

use crate::vip::{Family, back, toward};
use crate::way::verdict;
use crate::{clients, containers, mesh};
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};

/// With the feature `changed` every program differs from those without, and does the same.
#[inline(always)]
fn begin() {
    #[cfg(feature = "changed")]
    {
        let word = 0_u32;
        // SAFETY: a word of its own.
        unsafe { core::ptr::read_volatile(&word) };
    }
}

/// The call goes on, changed or not.
const ALLOW: i32 = 1;

macro_rules! calls {
    ($($name:ident: $call:expr;)*) => {$(
        #[cgroup_sock_addr($name)]
        pub fn $name(ctx: SockAddrContext) -> i32 {
            begin();
            let call: fn(&SockAddrContext) -> Option<()> = $call;
            match call(&ctx) {
                Some(()) | None => ALLOW,
            }
        }
    )*};
}

calls! {
    connect4: |ctx| toward(ctx, Family::V4, false);
    connect6: |ctx| toward(ctx, Family::V6, false);
    sendmsg4: |ctx| toward(ctx, Family::V4, true);
    sendmsg6: |ctx| toward(ctx, Family::V6, true);
    recvmsg4: |ctx| back(ctx, Family::V4);
    recvmsg6: |ctx| back(ctx, Family::V6);
    getpeername4: |ctx| back(ctx, Family::V4);
    getpeername6: |ctx| back(ctx, Family::V6);
}

macro_rules! packets {
    ($($name:ident in $room:ident;)*) => {$(
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            begin();
            match $room::$name(&ctx) {
                Ok(way) | Err(way) => verdict(way),
            }
        }
    )*};
}

packets! {
    from_uplink in clients;
    to_uplink in clients;
    out_uplink in clients;
    from_host in mesh;
    from_mesh in mesh;
    from_container in containers;
}

//! Entry points.

use crate::port::{self, verdict};
use crate::vip::{Family, back, toward};
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};

/// The call goes on, changed or not.
const ALLOW: i32 = 1;

macro_rules! calls {
    ($($name:ident: $call:expr;)*) => {$(
        #[cgroup_sock_addr($name)]
        pub fn $name(ctx: SockAddrContext) -> i32 {
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
    ($($name:ident)*) => {$(
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            match port::$name(&ctx) {
                Ok(way) | Err(way) => verdict(way),
            }
        }
    )*};
}

packets! { from_uplink from_host from_mesh from_container to_uplink }

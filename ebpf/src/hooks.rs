//! Entry points: one per hook.

use crate::vip::{Call, SockaddrFamily, translate, untranslate};
use crate::{clients, containers, mesh};
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};

/// With the feature `changed` every program has other instructions than without, and the same behaviour.
#[inline(always)]
fn begin() {
    #[cfg(feature = "changed")]
    {
        let word = 0_u32;
        // SAFETY: reads a local variable.
        unsafe { core::ptr::read_volatile(&word) };
    }
}

/// Return value of a program at a socket call: the call continues, translated or not.
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
    connect4: |ctx| translate(ctx, SockaddrFamily::Inet, Call::Connect);
    connect6: |ctx| translate(ctx, SockaddrFamily::Inet6, Call::Connect);
    sendmsg4: |ctx| translate(ctx, SockaddrFamily::Inet, Call::SendMsg);
    sendmsg6: |ctx| translate(ctx, SockaddrFamily::Inet6, Call::SendMsg);
    recvmsg4: |ctx| untranslate(ctx, SockaddrFamily::Inet);
    recvmsg6: |ctx| untranslate(ctx, SockaddrFamily::Inet6);
    getpeername4: |ctx| untranslate(ctx, SockaddrFamily::Inet);
    getpeername6: |ctx| untranslate(ctx, SockaddrFamily::Inet6);
}

macro_rules! packets {
    ($($name:ident in $module:ident;)*) => {$(
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            begin();
            match $module::$name(&ctx) {
                Ok(verdict) | Err(verdict) => verdict.into_action(),
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

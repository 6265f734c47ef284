//! Entry points: one per hook.

use crate::call::{SockaddrFamily, netns_cookie, port, protocol, socket, whole_address};
use crate::client_flow::{choose_source, mark_socket};
use crate::maps::{MEMBERS, is_marked, lookup};
use crate::vip::{Call, Outcome, translate, untranslate};
use crate::{clients, containers, leaving, mesh, seen};
use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use skep_ebpf::{Counter, NetnsMembership, RefusalEvent, hook_number};

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
/// Return value of a program at a socket call: the call fails, with EPERM if no other error was set.
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EADDRNOTAVAIL: i32 = 99;

/// 1 where the kernel has `bpf_set_retval` (5.18). Set by the loader; a constant to the verifier, which never sees the helper
/// where it is 0.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u32 = 0;

/// Cookie of the host's network namespace. Set by the loader; 0: not known.
#[unsafe(no_mangle)]
static HOST_NAMESPACE: u64 = 0;

/// Lets the call fail with an error where the kernel can, else with EPERM.
#[inline(always)]
fn refuse(error: i32) -> i32 {
    // SAFETY: reads a constant; the helper takes a number.
    unsafe {
        if core::ptr::read_volatile(&HAS_SET_RETVAL) != 0 {
            bpf_set_retval(-error);
        }
    }
    REFUSE
}

/// Whether a program at a socket call is one for IPv4 sockets.
const fn is_inet4(program: &str) -> bool {
    program.as_bytes()[program.len() - 1] == b'4'
}

/// What is known of a call that names a destination. (The local address may not be bound yet.)
#[inline(always)]
fn call_event(ctx: &SockAddrContext, inet4: bool) -> RefusalEvent {
    let family = if inet4 { SockaddrFamily::Inet } else { SockaddrFamily::Inet6 };
    let mut event = RefusalEvent { destination: whole_address(ctx, family), ..RefusalEvent::default() };
    event.destination_port = port(ctx);
    event.protocol = protocol(ctx) as u8;
    event
}

/// Cookie of the socket's network namespace, unless that is the host's. These programs run for every process of the machine, and
/// for every datagram of the tunnel: these leave here, at the first instructions.
#[inline(always)]
fn outside_host(ctx: &SockAddrContext) -> Option<u64> {
    let cookie = netns_cookie(ctx);
    // SAFETY: reads a constant.
    (cookie != unsafe { core::ptr::read_volatile(&HOST_NAMESPACE) }).then_some(cookie)
}

/// Whether a network namespace is a container's on a network of the swarm; the processes of all others leave here.
#[inline(always)]
fn is_container(cookie: u64) -> bool {
    is_marked(cookie) && lookup(&MEMBERS, &NetnsMembership::any(cookie)).is_some()
}

/// Whether a datagram is for the peer that its socket is connected to, whose address `connect` has translated. The kernel runs
/// these programs for such a datagram if it has control data, and then names no destination, or if the socket is an IPv6 one
/// and its peer a mapped address.
#[inline(always)]
fn is_to_peer(ctx: &SockAddrContext, family: SockaddrFamily) -> bool {
    let to = port(ctx);
    if to == 0 {
        return true;
    }
    // SAFETY: the verifier checks that these are fields of the socket that a program may read.
    let Some(socket) = socket(ctx) else { return false };
    family == SockaddrFamily::Inet
        && unsafe { (*socket).dst_port } == to
        && whole_address(ctx, family)[3] == unsafe { (*socket).dst_ip4 }
}

/// `connect`.
#[inline(always)]
fn connect(ctx: &SockAddrContext, family: SockaddrFamily) -> Option<Outcome> {
    let cookie = outside_host(ctx).filter(|cookie| is_container(*cookie))?;
    let outcome = translate(ctx, family, Call::Connect, cookie);
    if outcome.is_none() {
        mark_socket(ctx, family, cookie);
    }
    outcome
}

/// `sendmsg` and `sendto`.
#[inline(always)]
fn send(ctx: &SockAddrContext, family: SockaddrFamily) -> Option<Outcome> {
    let cookie = outside_host(ctx)?;
    if is_to_peer(ctx, family) || !is_container(cookie) {
        return None;
    }
    let outcome = translate(ctx, family, Call::SendMsg, cookie);
    if outcome.is_none() {
        choose_source(ctx, family, cookie);
    }
    outcome
}

/// `recvmsg`, `getpeername`, and `accept` with an address.
#[inline(always)]
fn name(ctx: &SockAddrContext, family: SockaddrFamily) -> Option<Outcome> {
    outside_host(ctx).filter(|cookie| is_container(*cookie))?;
    untranslate(ctx, family)
}

macro_rules! calls {
    ($($name:ident: $call:expr;)*) => {$(
        #[cgroup_sock_addr($name)]
        pub fn $name(ctx: SockAddrContext) -> i32 {
            begin();
            let call: fn(&SockAddrContext) -> Option<Outcome> = $call;
            let (reason, error) = match call(&ctx) {
                Some(Outcome::Refused) => (Counter::VipEmpty, ECONNREFUSED),
                Some(Outcome::ForeignSource) => (Counter::VipForeignSource, EADDRNOTAVAIL),
                Some(Outcome::Translated) | None => return ALLOW,
            };
            let mut event = call_event(&ctx, const { is_inet4(stringify!($name)) });
            seen::refused(const { hook_number(stringify!($name)) }, reason, &mut event);
            refuse(error)
        }
    )*};
}

calls! {
    connect4: |ctx| connect(ctx, SockaddrFamily::Inet);
    connect6: |ctx| connect(ctx, SockaddrFamily::Inet6);
    sendmsg4: |ctx| send(ctx, SockaddrFamily::Inet);
    sendmsg6: |ctx| send(ctx, SockaddrFamily::Inet6);
    recvmsg4: |ctx| name(ctx, SockaddrFamily::Inet);
    recvmsg6: |ctx| name(ctx, SockaddrFamily::Inet6);
    getpeername4: |ctx| name(ctx, SockaddrFamily::Inet);
    getpeername6: |ctx| name(ctx, SockaddrFamily::Inet6);
}

macro_rules! packets {
    ($($name:ident in $module:ident;)*) => {$(
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            begin();
            match $module::$name(&ctx) {
                Ok(verdict) | Err(verdict) => verdict.into_action(&ctx, const { hook_number(stringify!($name)) }),
            }
        }
    )*};
}

packets! {
    from_uplink in clients;
    to_uplink in leaving;
    out_uplink in leaving;
    from_host in mesh;
    from_mesh in mesh;
    from_container in containers;
}

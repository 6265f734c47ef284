//! Datagrams that a container sends to clients of its published ports. A server that binds the wildcard address leaves the
//! choice of the source to the kernel, which takes that of the default route; a client knows the container's address on
//! `ingress` only. The source is chosen here, by the flow: what the container sends to others from the same port keeps the
//! source, and the route, that it has without a published port.

use crate::call::{SockaddrFamily, is_mapped, is_udp, port, socket, whole_address};
use crate::maps::{MEMBERS, UDP_REPLIES, config, lookup, lookup_lru};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_setsockopt;
use aya_ebpf::programs::SockAddrContext;
use core::ptr::{read_volatile, write_volatile};
use skep_ebpf::packet::{UDP, container6, mapped};
use skep_ebpf::{Address, CLIENT_MARK, NetnsMembership, Reply, Tuple};

const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

/// The reverse entry of a client's flow, by the tuple of the container's datagrams.
#[inline(always)]
fn reply(datagram: &Tuple) -> Option<&'static Reply> {
    lookup_lru(&UDP_REPLIES, datagram)
}

/// The container's address on `ingress`, if the call names a client that has a flow to the socket's own port; `own_port` in
/// host order.
#[inline(always)]
fn flow_source(ctx: &SockAddrContext, family: SockaddrFamily, cookie: u64, own_port: u32) -> Option<Address> {
    let config = config()?;
    let own = lookup(&MEMBERS, &NetnsMembership { cookie, network: config.ingress, zero: 0 })?;
    let client = whole_address(ctx, family);
    let source = if is_mapped(&client) { mapped(own) } else { container6(config.containers, own) };
    let datagram = Tuple {
        source,
        destination: client,
        via: [0; 2],
        source_port: (own_port as u16).to_be(),
        destination_port: port(ctx),
        protocol: UDP,
        zero: [0; 3],
    };
    reply(&datagram)?;
    Some(source)
}

/// `sendmsg` and `sendto` without a source: to a client, from the address that it knows. (A socket that is bound to an
/// address or names one in the call has a source.)
#[inline(always)]
pub fn choose_source(ctx: &SockAddrContext, family: SockaddrFamily, cookie: u64) -> Option<()> {
    if !is_udp(ctx) {
        return None;
    }
    let raw = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context; the verifier checks every offset, and that the fields are those of the call.
    unsafe {
        let bound = match family {
            SockaddrFamily::Inet => read_volatile(&(*raw).msg_src_ip4),
            SockaddrFamily::Inet6 => {
                let own = &(*raw).msg_src_ip6;
                read_volatile(&own[0]) | read_volatile(&own[1]) | read_volatile(&own[2]) | read_volatile(&own[3])
            }
        };
        if bound != 0 {
            return None;
        }
        let socket = socket(ctx)?;
        let Some(source) = flow_source(ctx, family, cookie, (*socket).src_port) else {
            // Was connected to a client, and disconnected since.
            if (*socket).mark == CLIENT_MARK {
                set_mark(ctx, 0);
            }
            return None;
        };
        match family {
            SockaddrFamily::Inet => write_volatile(&mut (*raw).msg_src_ip4, source[3]),
            SockaddrFamily::Inet6 => {
                let own = &mut (*raw).msg_src_ip6;
                write_volatile(&mut own[0], source[0]);
                write_volatile(&mut own[1], source[1]);
                write_volatile(&mut own[2], source[2]);
                write_volatile(&mut own[3], source[3]);
            }
        }
    }
    Some(())
}

/// `connect` of a UDP socket that is bound to a port and to no address, as some servers do per client: the kernel lets a
/// program choose no source there, so the socket is marked, and a rule of the namespace chooses by the mark. A socket that
/// connects elsewhere afterwards loses the mark.
#[inline(always)]
pub fn mark_socket(ctx: &SockAddrContext, family: SockaddrFamily, cookie: u64) -> Option<()> {
    if !is_udp(ctx) {
        return None;
    }
    // SAFETY: the verifier checks that these are fields of the socket that a program may read.
    let (bound, own_port, mark) = unsafe {
        let socket = socket(ctx)?;
        let bound = match family {
            SockaddrFamily::Inet => (*socket).src_ip4,
            SockaddrFamily::Inet6 => {
                let own = &(*socket).src_ip6;
                read_volatile(&own[0]) | read_volatile(&own[1]) | read_volatile(&own[2]) | read_volatile(&own[3])
            }
        };
        (bound, (*socket).src_port, (*socket).mark)
    };
    if bound != 0 || own_port == 0 {
        return None;
    }
    let wanted = if flow_source(ctx, family, cookie, own_port).is_some() { CLIENT_MARK } else { 0 };
    // A mark that the process has set itself stays.
    if mark != wanted && (mark == 0 || mark == CLIENT_MARK) {
        set_mark(ctx, wanted);
    }
    Some(())
}

#[inline(always)]
fn set_mark(ctx: &SockAddrContext, mut mark: u32) {
    // SAFETY: the helper reads the four bytes.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), 4) };
}

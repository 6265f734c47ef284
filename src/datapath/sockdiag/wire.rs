//! The kernel's `inet_diag` messages (linux/inet_diag.h): requests and replies. Pure.

use crate::model::Protocol;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// `AF_INET` and `AF_INET6`.
pub const V4: u8 = 2;
pub const V6: u8 = 10;

/// Multicast groups of TCP sockets that are destroyed (`SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY`).
pub const TCP_DESTROY_GROUPS: [i32; 2] = [1, 3];

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const MULTI: u16 = 2;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

const HEADER: usize = 16;
/// `inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;
/// `inet_diag_msg`, before the attributes.
const BODY: usize = 72;
const ENOENT: i32 = 2;

/// Socket states, as numbers and as bits of masks.
const ESTABLISHED: u8 = 1;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
/// A connection request without a full socket.
const NEW_SYN_RECV: u8 = 12;
/// States 1 to 12.
const ALL: u32 = 0x1ffe;

/// Attribute of a request: a filter program.
const BYTECODE: u16 = 1;
/// Operations of a filter: jump, compare the remote address (`INET_DIAG_BC_D_COND`).
const JUMP: u8 = 1;
const REMOTE_CONDITION: u8 = 8;

/// A socket in a reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InetSocket {
    pub family: u8,
    pub state: u8,
    id: [u8; ID],
}

/// How far a datagram of the kernel brings the reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyStatus {
    /// More datagrams follow.
    Partial,
    Complete,
    /// No socket matches the request.
    NotFound,
}

/// State of a socket that receives from unknown clients.
pub fn listening_state(protocol: Protocol) -> u8 {
    if protocol == Protocol::Tcp { LISTEN } else { CLOSE }
}

fn protocol_number(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::Tcp => Some(6),
        Protocol::Udp => Some(17),
        Protocol::Sctp => None,
    }
}

/// Requests the one socket that would receive a packet to `at` from an unknown address, which excludes connected ones.
pub fn listener_request(protocol: Protocol, at: SocketAddr) -> Option<Vec<u8>> {
    let family = if at.is_ipv4() { V4 } else { V6 };
    let mut id = [0; ID];
    // For UDP the kernel has source and destination swapped, for compatibility.
    let (port, address) = if protocol == Protocol::Udp { (2, 20) } else { (0, 4) };
    id[port..port + 2].copy_from_slice(&at.port().to_be_bytes());
    match at.ip() {
        IpAddr::V4(v4) => id[address..address + 4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => id[address..address + 16].copy_from_slice(&v6.octets()),
    }
    // Any cookie.
    id[40..].fill(0xff);
    Some(message(SOCK_DIAG_BY_FAMILY, REQUEST, &request(family, protocol_number(protocol)?, ALL, &id)))
}

/// Requests all sockets of a family that receive from unknown clients, on whatever address.
pub fn listeners_request(protocol: Protocol, family: u8) -> Option<Vec<u8>> {
    let states = 1 << listening_state(protocol);
    Some(message(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, &request(family, protocol_number(protocol)?, states, &[0; ID])))
}

/// Requests all established TCP connections of a family.
pub fn established_request(family: u8) -> Option<Vec<u8>> {
    let body = request(family, protocol_number(Protocol::Tcp)?, 1 << ESTABLISHED, &[0; ID]);
    Some(message(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, &body))
}

/// Requests all sockets of a family whose remote address is one of these. IPv4 addresses also match the v4-mapped form of an
/// IPv6 socket.
pub fn connections_request(protocol: Protocol, family: u8, remotes: &[IpAddr]) -> Option<Vec<u8>> {
    let states = match protocol {
        Protocol::Tcp => ALL & !(1 << LISTEN | 1 << TIME_WAIT | 1 << CLOSE | 1 << NEW_SYN_RECV),
        _ => 1 << ESTABLISHED,
    };
    if remotes.is_empty() {
        return None;
    }
    let mut body = request(family, protocol_number(protocol)?, states, &[0; ID]);
    let filter = filter(remotes)?;
    body.extend(u16::try_from(filter.len() + 4).ok()?.to_ne_bytes());
    body.extend(BYTECODE.to_ne_bytes());
    body.extend(filter);
    Some(message(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, &body))
}

impl InetSocket {
    /// The kernel's id of the socket, never used again for another one.
    pub fn cookie(&self) -> u64 {
        u64::from(u32_at(&self.id, 40)) | u64::from(u32_at(&self.id, 44)) << 32
    }

    /// Local port.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes([self.id[0], self.id[1]])
    }

    /// Remote address and port; IPv4 also if the socket has the v4-mapped form.
    pub fn remote(&self) -> SocketAddr {
        let octets: [u8; 16] = std::array::from_fn(|i| self.id[20 + i]);
        let address = match self.family {
            V4 => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
            _ => Ipv6Addr::from(octets).to_canonical(),
        };
        SocketAddr::new(address, u16::from_be_bytes([self.id[2], self.id[3]]))
    }

    /// Requests that the kernel destroys it.
    pub fn destroy_request(&self, protocol: Protocol) -> Vec<u8> {
        let protocol = protocol_number(protocol).unwrap_or_default();
        message(SOCK_DESTROY, REQUEST | ACK, &request(self.family, protocol, 1 << self.state, &self.id))
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port id: there is one request at a time on a socket.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn request(family: u8, protocol: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// A filter program: a sequence of comparisons, each followed by a jump to the end, which accepts. A jump beyond the end
/// rejects.
fn filter(remotes: &[IpAddr]) -> Option<Vec<u8>> {
    let conditions: Vec<Vec<u8>> = remotes.iter().map(|remote| condition(*remote)).collect();
    // Operation, condition, operation.
    let size = |condition: &Vec<u8>| 4 + condition.len() + 4;
    let mut remaining: usize = conditions.iter().map(size).sum();
    let mut program = Vec::with_capacity(remaining);
    for condition in &conditions {
        let here = size(condition);
        let (yes, no) = (u8::try_from(here - 4).ok()?, if remaining == here { here + 4 } else { here });
        operation(&mut program, REMOTE_CONDITION, yes, u16::try_from(no).ok()?);
        program.extend(condition);
        operation(&mut program, JUMP, 4, u16::try_from(remaining - here + 4).ok()?);
        remaining -= here;
    }
    Some(program)
}

fn operation(program: &mut Vec<u8>, code: u8, yes: u8, no: u16) {
    program.extend([code, yes]);
    program.extend(no.to_ne_bytes());
}

/// Family, prefix length, any port, address.
fn condition(remote: IpAddr) -> Vec<u8> {
    let (family, bits, octets) = match remote {
        IpAddr::V4(v4) => (V4, 32, v4.octets().to_vec()),
        IpAddr::V6(v6) => (V6, 128, v6.octets().to_vec()),
    };
    let mut condition = vec![family, bits, 0, 0];
    condition.extend((-1_i32).to_ne_bytes());
    condition.extend(octets);
    condition
}

/// Reads one datagram.
pub fn read(mut datagram: &[u8], found: &mut Vec<InetSocket>) -> io::Result<ReplyStatus> {
    let mut status = ReplyStatus::Partial;
    while datagram.len() >= HEADER {
        let length = u32_at(datagram, 0) as usize;
        let (kind, flags) = (u16_at(datagram, 4), u16_at(datagram, 6));
        let Some(body) = datagram.get(HEADER..length) else { return Err(malformed()) };
        match kind {
            NLMSG_DONE => status = ReplyStatus::Complete,
            NLMSG_ERROR => {
                let code = if body.len() < 4 { return Err(malformed()) } else { u32_at(body, 0).cast_signed() };
                match -code {
                    0 => status = ReplyStatus::Complete,
                    ENOENT => status = ReplyStatus::NotFound,
                    other => return Err(io::Error::from_raw_os_error(other)),
                }
            }
            SOCK_DIAG_BY_FAMILY => {
                found.push(socket(body).ok_or_else(malformed)?);
                if flags & MULTI == 0 {
                    status = ReplyStatus::Complete;
                }
            }
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(status)
}

fn socket(body: &[u8]) -> Option<InetSocket> {
    let body = body.get(..BODY)?;
    Some(InetSocket { family: body[0], state: body[1], id: body[4..4 + ID].try_into().ok()? })
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed reply of the kernel's socket diagnostics")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_have_the_length_in_their_header() {
        let all = [
            listener_request(Protocol::Tcp, "10.0.0.7:80".parse().unwrap()).unwrap(),
            listeners_request(Protocol::Tcp, V4).unwrap(),
            connections_request(Protocol::Udp, V6, &["10.0.0.7".parse().unwrap(), "fd00::1".parse().unwrap()]).unwrap(),
            InetSocket { family: V4, state: ESTABLISHED, id: [7; ID] }.destroy_request(Protocol::Tcp),
        ];
        for message in all {
            assert_eq!(u32_at(&message, 0) as usize, message.len());
            assert_eq!(message.len() % 4, 0);
        }
    }

    /// Runs a filter as the kernel does (`inet_diag_bc_run`), for IPv4.
    fn accepts(program: &[u8], remote: [u8; 4]) -> bool {
        let (mut at, end) = (0, program.len());
        while at < end {
            let (code, yes, no) = (program[at], usize::from(program[at + 1]), usize::from(u16_at(program, at + 2)));
            let matches = match code {
                REMOTE_CONDITION => program[at + 4] == V4 && program[at + 12..at + 16] == remote,
                _ => false,
            };
            at += if matches { yes } else { no };
        }
        at == end
    }

    proptest! {
        #[test]
        fn a_filter_accepts_exactly_its_addresses(
            some in proptest::collection::btree_set(any::<u8>(), 1..60), one: u8, with_v6: bool,
        ) {
            let mut remotes: Vec<IpAddr> = some.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect();
            if with_v6 {
                remotes.insert(remotes.len() / 2, "fd00::7".parse().unwrap());
            }
            prop_assert_eq!(accepts(&filter(&remotes).unwrap(), [10, 0, 0, one]), some.contains(&one));
        }

        #[test]
        fn any_reply_is_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, &mut Vec::new());
        }
    }
}

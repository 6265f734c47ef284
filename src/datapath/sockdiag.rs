//! The kernel's socket diagnostics (`sock_diag(7)`) for any namespace: whether a port has a listener, and the destruction of
//! connections by remote address. Knows nothing of the reasons.
//!
//! The cost of a request does not depend on the number of connections that a namespace has: the kernel looks the listener up
//! as it would for a packet, and filters connections before it returns them.

mod wire;

use super::netns;
use super::sockets::join_netlink_group;
use crate::model::Listens;
use crate::model::Protocol;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Buffer for one datagram of a reply, bytes; the kernel sends no longer ones.
const REPLY_BUFFER: usize = 64 << 10;
/// Addresses in one request; the others follow in further ones.
const REMOTES_PER_REQUEST: usize = 256;
/// Bound for a kernel that does not reply; normally it does at once.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// An open netlink socket for the diagnostics of one namespace.
struct SockDiag(socket2::Socket);

impl SockDiag {
    fn open(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = netns::briefly(namespace, || {
            let protocol = Some(socket2::Protocol::from(libc::NETLINK_SOCK_DIAG));
            socket2::Socket::new(socket2::Domain::from(libc::AF_NETLINK), socket2::Type::DGRAM, protocol)
        })?;
        socket.set_read_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Self(socket))
    }

    /// Sends the request and reads the whole reply; `None` if no socket matches it.
    fn request(&self, request: &[u8]) -> io::Result<Option<Vec<wire::InetSocket>>> {
        use io::Read as _;
        self.0.send(request)?;
        let (mut found, mut buffer) = (Vec::new(), vec![0; REPLY_BUFFER]);
        loop {
            let length = (&self.0).read(&mut buffer)?;
            match wire::read(&buffer[..length], &mut found)? {
                wire::ReplyStatus::Partial => {}
                wire::ReplyStatus::Complete => return Ok(Some(found)),
                wire::ReplyStatus::NotFound => return Ok(None),
            }
        }
    }

    /// Destroys the connected sockets whose remote address is one of these and that `which` selects by cookie and remote
    /// address. Returns how many.
    fn destroy(
        &self,
        protocol: Protocol,
        remotes: &BTreeSet<IpAddr>,
        which: impl Fn(u64, SocketAddr) -> bool,
    ) -> io::Result<usize> {
        let remotes: Vec<IpAddr> = remotes.iter().map(IpAddr::to_canonical).collect();
        let mut destroyed = 0;
        for chunk in remotes.chunks(REMOTES_PER_REQUEST) {
            for family in [wire::V4, wire::V6] {
                let Some(request) = wire::connections_request(protocol, family, chunk) else { continue };
                let found = self.request(&request)?.unwrap_or_default();
                for socket in found.iter().filter(|socket| which(socket.cookie(), socket.remote())) {
                    // `None`: it was closed meanwhile.
                    destroyed += usize::from(self.request(&socket.destroy_request(protocol))?.is_some());
                }
            }
        }
        Ok(destroyed)
    }

    /// Ports of sockets that receive from unknown clients on some address, the lowest first.
    fn listening_ports(&self, protocol: Protocol) -> io::Result<BTreeSet<u16>> {
        let mut ports = BTreeSet::new();
        for request in [wire::V4, wire::V6].into_iter().filter_map(|family| wire::listeners_request(protocol, family)) {
            ports.extend(self.request(&request)?.unwrap_or_default().iter().map(wire::InetSocket::port));
        }
        Ok(ports)
    }

    /// Whether a socket receives what an unknown client sends to this address.
    fn has_listener(&self, protocol: Protocol, at: SocketAddr) -> io::Result<bool> {
        let Some(request) = wire::listener_request(protocol, at) else { return Ok(false) };
        let found = self.request(&request)?.unwrap_or_default();
        Ok(found.first().is_some_and(|socket| socket.state == wire::listening_state(protocol)))
    }
}

/// Which of these ports have a listener on these addresses: a listening TCP socket or an unconnected UDP socket, on the
/// address itself or on the wildcard one. A dual-stack IPv6 socket counts for both families. Does not check that the
/// namespace has the address.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses.
pub fn listening(
    namespace: BorrowedFd<'_>,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    ports: impl IntoIterator<Item = (Protocol, u16)>,
) -> io::Result<Vec<Listens>> {
    let diag = SockDiag::open(namespace)?;
    let listens = |(protocol, port): (Protocol, u16)| {
        let has_listener = |address: IpAddr| diag.has_listener(protocol, SocketAddr::new(address, port));
        Ok(Listens { v4: has_listener(v4.into())?, v6: has_listener(v6.into())? })
    };
    ports.into_iter().map(listens).collect()
}

/// The first port that has a listener on this address, as in [`listening`]: a TCP port, or a UDP port if there is none. At most
/// the first 64 of each are looked at.
///
/// # Errors
/// See [`listening`].
pub fn first_listener(namespace: BorrowedFd<'_>, address: Ipv4Addr) -> io::Result<Option<(Protocol, u16)>> {
    let diag = SockDiag::open(namespace)?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for port in diag.listening_ports(protocol)?.into_iter().filter(|port| *port != 0).take(64) {
            if diag.has_listener(protocol, SocketAddr::new(address.into(), port))? {
                return Ok(Some((protocol, port)));
            }
        }
    }
    Ok(None)
}

/// TCP connections to ports of a namespace that have a listener.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AcceptedConnections {
    /// The ports.
    pub ports: BTreeSet<u16>,
    /// Connections that are established, without those over loopback.
    pub established: u32,
}

impl AcceptedConnections {
    /// Reads them. The cost grows with the number of connections.
    ///
    /// # Errors
    /// See [`listening`].
    pub fn read(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let diag = SockDiag::open(namespace)?;
        let ports = diag.listening_ports(Protocol::Tcp)?;
        let mut established = 0;
        for request in [wire::V4, wire::V6].into_iter().filter_map(wire::established_request) {
            let found = diag.request(&request)?.unwrap_or_default();
            let accepted = found.iter().filter(|socket| is_accepted(socket, &ports));
            established += u32::try_from(accepted.count()).unwrap_or(u32::MAX);
        }
        Ok(Self { ports, established })
    }
}

fn is_accepted(socket: &wire::InetSocket, ports: &BTreeSet<u16>) -> bool {
    ports.contains(&socket.port()) && !socket.remote().ip().is_loopback()
}

/// The ends of a namespace's TCP connections from now on, however short they were.
pub struct EndedConnections(SockDiag);

impl EndedConnections {
    /// Watches a namespace: the kernel says of each socket that it is gone.
    ///
    /// # Errors
    /// See [`listening`].
    pub fn watch(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let diag = SockDiag::open(namespace)?;
        // The kernel gives a socket its number with the first request, and sends nothing to one without.
        diag.listening_ports(Protocol::Tcp)?;
        diag.0.set_nonblocking(true)?;
        for group in wire::TCP_DESTROY_GROUPS {
            join_netlink_group(&diag.0, group)?;
        }
        Ok(Self(diag))
    }

    /// Whether a connection to one of these ports has ended since the last call, not over loopback. Also if there were more than the
    /// kernel keeps.
    ///
    /// # Errors
    /// The kernel's.
    pub fn any(&mut self, ports: &BTreeSet<u16>) -> io::Result<bool> {
        use io::Read as _;
        let (mut any, mut buffer) = (false, vec![0; REPLY_BUFFER]);
        loop {
            match (&self.0.0).read(&mut buffer) {
                Ok(length) => {
                    let mut ended = Vec::new();
                    wire::read(&buffer[..length], &mut ended)?;
                    any |= ended.iter().any(|socket| is_accepted(socket, ports));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Destroys the namespace's TCP connections and connected UDP sockets whose remote address is one of these, also in
/// v4-mapped form: their processes get an error at once (`ECONNABORTED`), also those that wait. Returns how many.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses. Some may be destroyed by then.
pub fn destroy(namespace: BorrowedFd<'_>, remotes: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let diag = SockDiag::open(namespace)?;
    Ok(diag.destroy(Protocol::Tcp, remotes, |_, _| true)? + diag.destroy(Protocol::Udp, remotes, |_, _| true)?)
}

/// The same for connected UDP sockets only, and of these only those that `which` selects by cookie and remote address.
///
/// # Errors
/// See [`destroy`].
pub fn destroy_datagrams(
    namespace: BorrowedFd<'_>,
    remotes: &BTreeSet<IpAddr>,
    which: impl Fn(u64, SocketAddr) -> bool,
) -> io::Result<usize> {
    SockDiag::open(namespace)?.destroy(Protocol::Udp, remotes, which)
}

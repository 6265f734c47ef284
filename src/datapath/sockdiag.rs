//! Sockets of a namespace, seen from outside by the kernel's socket diagnostics: who listens on a port, and an end to
//! connections whose other end is dead. Knows nothing of why anybody wants to know.
//!
//! A question costs the same however many connections a namespace has: the kernel looks the listener up as it would for a
//! packet, and gives of all connections only those that were asked for.

mod wire;

use super::netns;
use crate::model::Listens;
use crate::model::Protocol;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Bytes of one answer; the kernel packs no more into one.
const ANSWER: usize = 64 << 10;
/// Addresses in one question; more are asked for in turns.
const AT_ONCE: usize = 256;
/// The kernel answers at once; this is for a kernel that does not.
const PATIENCE: Duration = Duration::from_secs(2);

/// An open socket toward the diagnostics of the namespace that it was made in.
struct Diag(socket2::Socket);

impl Diag {
    fn open(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = netns::briefly(namespace, || {
            let protocol = Some(socket2::Protocol::from(libc::NETLINK_SOCK_DIAG));
            socket2::Socket::new(socket2::Domain::from(libc::AF_NETLINK), socket2::Type::DGRAM, protocol)
        })?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// Asks and reads to the end of the answer; `None` if there is no such socket.
    fn ask(&self, request: &[u8]) -> io::Result<Option<Vec<wire::Found>>> {
        use io::Read as _;
        self.0.send(request)?;
        let (mut found, mut buffer) = (Vec::new(), vec![0; ANSWER]);
        loop {
            let length = (&self.0).read(&mut buffer)?;
            match wire::read(&buffer[..length], &mut found)? {
                wire::Answer::More => {}
                wire::Answer::End => return Ok(Some(found)),
                wire::Answer::None => return Ok(None),
            }
        }
    }

    fn end(&self, protocol: Protocol, remotes: &BTreeSet<IpAddr>, which: impl Fn(u64, SocketAddr) -> bool) -> io::Result<usize> {
        let remotes: Vec<IpAddr> = remotes.iter().map(IpAddr::to_canonical).collect();
        let mut ended = 0;
        for some in remotes.chunks(AT_ONCE) {
            for family in [wire::V4, wire::V6] {
                let Some(request) = wire::connected_to(protocol, family, some) else { continue };
                let found = self.ask(&request)?.unwrap_or_default();
                for socket in found.iter().filter(|socket| which(socket.cookie(), socket.remote())) {
                    // `None`: it ended by itself meanwhile.
                    ended += usize::from(self.ask(&socket.destroy(protocol))?.is_some());
                }
            }
        }
        Ok(ended)
    }

    /// Whether somebody takes what comes to this address from anybody.
    fn is_open(&self, protocol: Protocol, at: SocketAddr) -> io::Result<bool> {
        let Some(request) = wire::lookup(protocol, at) else { return Ok(false) };
        let found = self.ask(&request)?.unwrap_or_default();
        Ok(found.first().is_some_and(|socket| socket.state == wire::open_state(protocol)))
    }
}

/// Whether the namespace's processes take what comes to `port` of these addresses: a TCP socket that listens or an
/// unconnected UDP socket, on the address itself or on the wildcard one. An IPv6 socket that is for both families counts
/// for both. Says nothing of whether the namespace has the address.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses.
pub fn listening(
    namespace: BorrowedFd<'_>,
    (v4, v6): (Ipv4Addr, Ipv6Addr),
    ports: impl IntoIterator<Item = (Protocol, u16)>,
) -> io::Result<Vec<Listens>> {
    let diag = Diag::open(namespace)?;
    let look = |(protocol, port): (Protocol, u16)| {
        let open = |address: IpAddr| diag.is_open(protocol, SocketAddr::new(address, port));
        Ok(Listens { v4: open(v4.into())?, v6: open(v6.into())? })
    };
    ports.into_iter().map(look).collect()
}

/// Destroys the namespace's TCP connections and connected UDP sockets whose other end is one of these addresses, however
/// their family spells it: their processes get an error at once (`ECONNABORTED`), also those that wait. Says how many.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses. Some may be destroyed by then.
pub fn destroy(namespace: BorrowedFd<'_>, remotes: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let diag = Diag::open(namespace)?;
    Ok(diag.end(Protocol::Tcp, remotes, |_, _| true)? + diag.end(Protocol::Udp, remotes, |_, _| true)?)
}

/// The same for connected UDP sockets only, of which `which` chooses by their cookie and their other end.
///
/// # Errors
/// See [`destroy`].
pub fn destroy_datagrams(
    namespace: BorrowedFd<'_>,
    remotes: &BTreeSet<IpAddr>,
    which: impl Fn(u64, SocketAddr) -> bool,
) -> io::Result<usize> {
    Diag::open(namespace)?.end(Protocol::Udp, remotes, which)
}

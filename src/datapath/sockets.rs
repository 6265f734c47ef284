//! Sockets in the calling thread's own namespace: the daemon's listeners outside the mesh, and those of tests.

use super::Sockets;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

/// Creates sockets in the namespace of the calling thread.
#[derive(Clone, Copy, Default, Debug)]
pub struct HereSockets;

impl Sockets for HereSockets {
    fn udp(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        udp(address)
    }
    fn listen(&self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        listen(address)
    }
    fn stream(&self, source: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
        stream(source)
    }
}

pub(super) fn udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

pub(super) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

pub(super) fn stream(source: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
    let socket = if source.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    if source.is_ipv4() && source.port() == 0 {
        port_at_connect(&socket)?;
    }
    socket.bind(source)?;
    Ok(socket)
}

/// Leaves the selection of the local port to `connect`, for which it must be free for one destination only. For `bind` it
/// must be free for all, so that some 28,000 connections (those in TIME_WAIT included) would use up a source address.
fn port_at_connect(socket: &tokio::net::TcpSocket) -> io::Result<()> {
    set(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// Number of an interface that no kernel assigns.
const NO_INTERFACE: libc::c_int = libc::c_int::MAX;

/// Makes a bound socket receive nothing while its port stays bound, or receive again. The kernel then answers as it does for
/// a port without a socket, with RST or "port unreachable", and refuses the port to other programs as before: the socket is
/// bound to an interface that does not exist. Connections that were accepted are not affected.
///
/// # Errors
/// The kernel's.
pub fn set_refusing(socket: &impl AsFd, refuse: bool) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, if refuse { NO_INTERFACE } else { 0 })
}

/// Makes a netlink socket receive what the kernel sends to a group.
///
/// # Errors
/// The kernel's.
pub(super) fn join_netlink_group(socket: &impl AsFd, group: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)
}

#[expect(unsafe_code, reason = "no crate at hand offers IP_BIND_ADDRESS_NO_PORT and SO_BINDTOIFINDEX")]
fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor lives as long as `socket`; the option reads `size` bytes at the pointer, those of `value`.
    let done = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! Sockets in the calling thread's own namespace: the daemon's listeners outside the mesh, and those of tests.

use super::Sockets;
use std::io;
use std::net::SocketAddr;

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
#[expect(unsafe_code, reason = "no crate at hand offers IP_BIND_ADDRESS_NO_PORT")]
fn port_at_connect(socket: &tokio::net::TcpSocket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: the descriptor lives as long as `socket`; the option reads `size` bytes at the pointer, which are those of `on`.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, (&raw const on).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

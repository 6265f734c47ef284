//! Sockets in this thread's own namespace: what the daemon listens on outside the mesh, and what tests stand on.

use super::Sockets;
use std::io;
use std::net::SocketAddr;

/// Makes sockets where the calling thread is.
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
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
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
    socket.bind(source)?;
    Ok(socket)
}

//! The tunnel's UDP socket: bound once, in the host's namespace, before the device is opened, so that a port in use is an error
//! that names the process.
#![allow(unsafe_code, reason = "some socket options have no safe wrapper")]

use super::datagrams::{ReceivedDatagram, Receiver, run_length, send_run};
use super::holder;
use anyhow::{Context as _, anyhow};
use gotatun::packet::Packet;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

/// Size of the socket buffers in bytes: some 10 ms at 1 Gbit/s.
const BUFFER: usize = 2 << 20;

/// The tunnel's UDP socket, for use from any thread.
pub(super) struct TunnelSocket {
    socket: Socket,
    /// It is an IPv6 socket that carries IPv4 too.
    dual_stack: bool,
    /// The kernel (or the network card) refuses to segment datagrams (GSO).
    without_gso: AtomicBool,
}

impl TunnelSocket {
    /// Binds `listen`. An unspecified address of either family means both families.
    pub(super) fn bind(listen: SocketAddr) -> anyhow::Result<Self> {
        let bound = if listen.ip().is_unspecified() {
            let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), listen.port());
            match open(both, false) {
                Err(error) if is_without_v6(&error) => open(listen, true),
                other => other,
            }
        } else {
            open(listen, true)
        };
        let socket = bound.map_err(|error| bind_error(listen, error))?;
        let is_v6 = socket.domain().context("cannot read the UDP socket")? == Domain::IPV6;
        set_options(&socket, is_v6).context("cannot set the UDP socket's options")?;
        if let Err(error) = set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1) {
            tracing::info!(%error, "this kernel has no GRO for UDP: receiving is slower");
        }
        Ok(Self { socket, dual_stack: is_v6, without_gso: AtomicBool::new(false) })
    }

    /// The address that it is bound to.
    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP address"))
    }

    /// Sends all that it can: an unreachable peer loses only its own datagrams.
    pub(super) fn send(&self, to: SocketAddr, ecn: u8, mut packets: &[Packet]) {
        while !packets.is_empty() {
            let without_gso = self.without_gso.load(Ordering::Relaxed);
            let count = if without_gso { 1 } else { run_length(packets.iter().map(|packet| packet.len())) };
            let (run, rest) = packets.split_at(count);
            packets = rest;
            let Err(error) = send_run(&self.socket, self.dual_stack, to, ecn, run) else { continue };
            match error.raw_os_error() {
                Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) if count > 1 => {
                    tracing::info!(%error, "GSO for UDP does not work, datagrams are sent one by one from now on");
                    self.without_gso.store(true, Ordering::Relaxed);
                    self.send(to, ecn, run);
                }
                // A segment is larger than the path MTU: sent one by one, in fragments.
                Some(libc::EINVAL | libc::EMSGSIZE) if count > 1 => {
                    for packet in run.chunks(1) {
                        let _ = send_run(&self.socket, self.dual_stack, to, ecn, packet);
                    }
                }
                _ => tracing::trace!(%error, "datagrams were lost"),
            }
        }
    }

    /// Ends the wait of a thread in [`Self::receive`], and every later one.
    pub(super) fn end_receiving(&self) {
        // A UDP socket without a peer answers ENOTCONN, and wakes those that wait all the same.
        let _ = self.socket.shutdown(std::net::Shutdown::Read);
    }

    /// Waits for datagrams and appends those that are there.
    pub(super) fn receive(&self, receiver: &mut Receiver, datagrams: &mut Vec<ReceivedDatagram>) -> io::Result<()> {
        receiver.receive(&self.socket, datagrams)
    }
}

fn open(address: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn set(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the option takes a number of the size given, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(&value).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Datagrams are fragmented on a path with a smaller MTU than its routes say, as with kernel WireGuard, instead of being dropped;
/// the buffers get their size also above the system's limit; ECN bits are received.
fn set_options(socket: &Socket, is_v6: bool) -> io::Result<()> {
    if is_v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    let buffer = libc::c_int::try_from(BUFFER).map_err(io::Error::other)?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        if let Err(error) = set(socket, libc::SOL_SOCKET, option, buffer) {
            tracing::debug!(%error, "the socket's buffers keep their size");
        }
    }
    // Also for datagrams that a dual-stack socket carries over IPv4.
    set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
}

/// The error of a failed bind; names the process if the port is in use.
pub(super) fn bind_error(listen: SocketAddr, error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::AddrInUse {
        let holder = holder::of_udp_port(listen);
        return anyhow!("UDP port {} is taken by {holder}: end it, or choose another port with --data-path-port", listen.port());
    }
    anyhow::Error::new(error).context(format!("cannot listen on UDP {listen}"))
}

fn is_without_v6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc};

    #[test]
    fn the_port_is_free_once_the_thread_that_waits_for_datagrams_has_ended() {
        for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
            let socket = Arc::new(TunnelSocket::bind(listen.parse().unwrap()).unwrap());
            let bound = SocketAddr::new(listen.parse::<SocketAddr>().unwrap().ip(), socket.local_address().unwrap().port());
            let (waiting, is_waiting) = mpsc::channel();
            let ended = std::thread::spawn({
                let socket = Arc::clone(&socket);
                move || {
                    let (mut receiver, mut datagrams) = (Receiver::new(), Vec::new());
                    waiting.send(()).unwrap();
                    let _ = socket.receive(&mut receiver, &mut datagrams);
                }
            });
            is_waiting.recv().unwrap();
            socket.end_receiving();
            ended.join().unwrap();
            drop(socket);
            TunnelSocket::bind(bound).expect("free again");
        }
    }
}

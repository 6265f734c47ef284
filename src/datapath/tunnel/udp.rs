//! The tunnel's UDP socket: bound once, in the host's namespace, before the device is opened, so that a port in use is an error
//! that names the process; gotatun gets a clone whenever it binds.
#![allow(unsafe_code, reason = "one socket option has no safe wrapper")]

use super::holder;
use anyhow::{Context as _, anyhow};
use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{SockOpt, UdpSocket};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use socket2::{MsgHdr, SockAddr, SockRef};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::Interest;

/// Size of the socket buffers in bytes: some 10 ms at 1 Gbit/s.
const BUFFER: usize = 2 << 20;

/// Most datagrams that the kernel segments in one call, and most bytes.
const GSO_LIMIT: (usize, usize) = (64, 65_000);

/// The tunnel's UDP socket.
#[derive(Clone)]
pub(super) struct TunnelSocket {
    inner: UdpSocket,
    /// The kernel (or the network card) refuses to segment datagrams (GSO).
    without_gso: Arc<AtomicBool>,
}

impl TunnelSocket {
    /// Binds `listen`. An unspecified address of either family means both families.
    pub(super) fn bind(listen: SocketAddr) -> anyhow::Result<Self> {
        let options = SockOpt {
            recv_buffer_size: Some(BUFFER),
            send_buffer_size: Some(BUFFER),
            only_v6: listen.is_ipv6().then_some(!listen.ip().is_unspecified()),
            ..SockOpt::default()
        };
        let bound = if listen.ip().is_unspecified() {
            let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), listen.port());
            match UdpSocket::bind(both, SockOpt { only_v6: Some(false), ..options }) {
                Err(error) if is_without_v6(&error) => UdpSocket::bind(listen, options),
                other => other,
            }
        } else {
            UdpSocket::bind(listen, options)
        };
        let socket = bound.map_err(|error| bind_error(listen, error))?;
        set_options(&socket).context("cannot set the UDP socket's options")?;
        if let Err(error) = UdpRecv::enable_udp_gro(&socket) {
            tracing::info!(%error, "this kernel has no GRO for UDP: receiving is slower");
        }
        Ok(Self { inner: socket, without_gso: Arc::default() })
    }

    /// The address that it is bound to.
    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Sends datagrams of one size (the last may be smaller) in one call, which the kernel or the network card segments.
    async fn send_run(&self, run: &[(Packet, SocketAddr)]) -> io::Result<()> {
        let Some((first, destination)) = run.first() else { return Ok(()) };
        let size = u16::try_from(first.len()).map_err(io::Error::other)?;
        let parts: Vec<IoSlice<'_>> = run.iter().map(|(packet, _)| IoSlice::new(packet)).collect();
        let destination = SockAddr::from(*destination);
        let control = segment_size(size);
        let socket = self.inner.socket();
        let send = || {
            let message = MsgHdr::new().with_addr(&destination).with_buffers(&parts).with_control(&control);
            SockRef::from(socket).sendmsg(&message, 0)
        };
        socket.async_io(Interest::WRITABLE, send).await.map(drop)
    }
}

/// The control message with the size of each datagram (`UDP_SEGMENT`).
fn segment_size(size: u16) -> [u8; CONTROL] {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let mut control = [0; CONTROL];
    control[..size_of::<usize>()].copy_from_slice(&(HEADER + size_of::<u16>()).to_ne_bytes());
    control[size_of::<usize>()..][..4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    control[size_of::<usize>() + 4..][..4].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    control[HEADER..HEADER + 2].copy_from_slice(&size.to_ne_bytes());
    control
}

/// Bytes of that message: its header and one aligned word.
const CONTROL: usize = size_of::<libc::cmsghdr>() + size_of::<usize>();

/// How many of the first datagrams can be sent in one call: same destination, same size, the last may be smaller.
fn run_length(packets: &[(Packet, SocketAddr)]) -> usize {
    let Some((first, destination)) = packets.first() else { return 0 };
    let (mut count, mut bytes) = (0, 0);
    for (packet, to) in packets.iter().take(GSO_LIMIT.0) {
        if to != destination || packet.len() > first.len() || bytes + packet.len() > GSO_LIMIT.1 {
            break;
        }
        count += 1;
        bytes += packet.len();
        if packet.len() < first.len() {
            break;
        }
    }
    count.max(1)
}

/// Datagrams are fragmented on a path with a smaller MTU than configured, as with kernel WireGuard, instead of being dropped;
/// and the buffers get their size also above the system's limit.
fn set_options(socket: &UdpSocket) -> io::Result<()> {
    let set = |level: libc::c_int, option: libc::c_int, value: libc::c_int| {
        let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open; the option takes a number of the size given, which outlives the call.
        let result =
            unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, std::ptr::from_ref(&value).cast(), size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    if socket.local_addr()?.is_ipv6() {
        set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
    }
    let buffer = libc::c_int::try_from(BUFFER).map_err(io::Error::other)?;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        if let Err(error) = set(libc::SOL_SOCKET, option, buffer) {
            tracing::debug!(%error, "the socket's buffers keep their size");
        }
    }
    // Also for datagrams that a dual-stack socket sends over IPv4.
    set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
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

impl UdpTransportFactory for TunnelSocket {
    type Send = Self;
    type Recv = Self;

    async fn bind(&mut self, _: &UdpTransportFactoryParams) -> io::Result<(Self, Self)> {
        Ok((self.clone(), self.clone()))
    }
}

impl UdpSend for TunnelSocket {
    type SendManyBuf = ();

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.inner.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.inner.max_number_of_packets_to_send()
    }

    /// Sends all it can: an unreachable peer loses only its own datagrams.
    async fn send_many_to(&self, (): &mut (), packets: &mut Vec<(Packet, SocketAddr)>) -> io::Result<()> {
        let mut sent = 0;
        while sent < packets.len() {
            let mut count = if self.without_gso.load(Ordering::Relaxed) { 1 } else { run_length(&packets[sent..]) };
            if count > 1
                && let Err(error) = self.send_run(&packets[sent..sent + count]).await
            {
                match error.raw_os_error() {
                    Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
                        tracing::info!(%error, "GSO for UDP does not work, datagrams are sent one by one from now on");
                        self.without_gso.store(true, Ordering::Relaxed);
                        continue;
                    }
                    // A segment is larger than the path MTU: sent one by one, in fragments.
                    Some(libc::EINVAL | libc::EMSGSIZE) => count = 1,
                    _ => tracing::trace!(%error, "datagrams were lost"),
                }
            }
            if count == 1 {
                let (packet, destination) = &packets[sent];
                if let Err(error) = self.inner.socket().send_to(packet, *destination).await {
                    tracing::trace!(%error, "a datagram was lost");
                }
            }
            sent += count;
        }
        packets.clear();
        Ok(())
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.local_address().map(Some)
    }
}

impl UdpRecv for TunnelSocket {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        self.inner.recv_from(pool).await
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        // gotatun stops receiving after an error; here it means one lost batch (out of memory, for instance).
        while let Err(error) = self.inner.recv_many_from(buffer, pool, packets).await {
            if error.raw_os_error() == Some(libc::EBADF) {
                return Err(error);
            }
            tracing::debug!(%error, "receiving from the UDP socket");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.inner.enable_udp_gro()
    }
}

impl std::fmt::Debug for TunnelSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TunnelSocket").field(&self.local_address()).finish()
    }
}

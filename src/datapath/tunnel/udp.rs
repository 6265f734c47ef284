//! The tunnel's UDP socket: bound once, in the host's namespace, before anything else, so that a taken port is an error
//! with a name; handed to gotatun whenever it asks for a socket.

use super::holder;
use anyhow::anyhow;
use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{SockOpt, UdpSocket};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Bytes of packets that may wait in the socket: some 10 ms at 1 Gbit/s.
const BUFFER: usize = 2 << 20;

/// The one socket.
#[derive(Clone)]
pub(super) struct Socket(UdpSocket);

impl Socket {
    /// Binds `listen`. An unspecified address of either family means both.
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
        if let Err(error) = gotatun::udp::UdpRecv::enable_udp_gro(&socket) {
            tracing::info!(%error, "this kernel joins no UDP datagrams (GRO): receiving is slower");
        }
        Ok(Self(socket))
    }

    /// Where it is bound.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// The error for a port that cannot be had; names the holder if it is taken.
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

impl UdpTransportFactory for Socket {
    type Send = Self;
    type Recv = Self;

    async fn bind(&mut self, _: &UdpTransportFactoryParams) -> io::Result<(Self, Self)> {
        Ok((self.clone(), self.clone()))
    }
}

impl UdpSend for Socket {
    type SendManyBuf = <UdpSocket as UdpSend>::SendManyBuf;

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        self.0.send_to(packet, destination).await
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.0.max_number_of_packets_to_send()
    }

    async fn send_many_to(&self, buffer: &mut Self::SendManyBuf, packets: &mut Vec<(Packet, SocketAddr)>) -> io::Result<()> {
        self.0.send_many_to(buffer, packets).await
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.local().map(Some)
    }
}

impl UdpRecv for Socket {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        self.0.recv_from(pool).await
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        // To gotatun an error here is the end; to us it is one lost batch (memory short, for instance).
        while let Err(error) = self.0.recv_many_from(buffer, pool, packets).await {
            if error.raw_os_error() == Some(libc::EBADF) {
                return Err(error);
            }
            tracing::debug!(%error, "receiving from the UDP socket");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.0.enable_udp_gro()
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Socket").field(&self.local()).finish()
    }
}

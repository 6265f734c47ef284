//! A UDP socket on every address of a family that reports which one a datagram was sent to and replies from it: a client
//! discards a reply from another address than the one that it sent to. Knows nothing of the payload.

#![expect(unsafe_code, reason = "no crate at hand offers recvmsg and sendmsg with IP_PKTINFO")]

use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Socket buffer for bursts, in bytes; the kernel allocates only what is in use.
const BUFFER: libc::c_int = 4 << 20;

/// Bytes; no datagram is longer.
pub const LONGEST: usize = 65_536;

/// Bound to a port on 0.0.0.0 or [::].
pub struct UdpPort {
    socket: UdpSocket,
}

/// The path of a datagram, as seen by its receiver: a reply takes it in the other direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DatagramPath {
    /// The sender.
    pub peer: SocketAddr,
    /// Address of this host that the datagram was sent to and replies leave from.
    pub local: IpAddr,
    /// Interface index where the address alone does not determine it (IPv6 link-local); otherwise 0.
    pub interface: u32,
}

/// A datagram that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Bytes.
    pub len: usize,
    pub path: DatagramPath,
    /// It was sent to this host alone, not broadcast or multicast.
    pub unicast: bool,
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl UdpPort {
    /// Takes over a bound socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let fd = socket.as_raw_fd();
        if socket.local_addr()?.is_ipv4() {
            set(fd, libc::SOL_IP, libc::IP_PKTINFO, 1)?;
        } else {
            set(fd, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
        // Else the eBPF datapath takes these clients for the host's own peers, and leaves them here.
        match set(fd, libc::SOL_SOCKET, libc::SO_MARK, skep_ebpf::USERSPACE_MARK.cast_signed()) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
        for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
            // Only root may exceed the system's limit.
            set(fd, libc::SOL_SOCKET, force, BUFFER).or_else(|_| set(fd, libc::SOL_SOCKET, plain, BUFFER))?;
        }
        Ok(Self { socket: UdpSocket::from_std(socket)? })
    }

    /// Waits until [`Self::try_recv`] may return a datagram.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// The next datagram, [`io::ErrorKind::WouldBlock`] if there is none. `buffer` needs [`LONGEST`] bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        self.socket.try_io(Interest::READABLE, || recv(self.socket.as_raw_fd(), buffer))
    }

    /// Sends to `path.peer` from `path.local`. [`io::ErrorKind::WouldBlock`] if the socket buffer is full.
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_send(&self, data: &[u8], path: DatagramPath) -> io::Result<()> {
        self.socket.try_io(Interest::WRITABLE, || send(self.socket.as_raw_fd(), data, path))
    }
}

/// Buffer for ancillary data, aligned as the kernel's headers are.
#[repr(C, align(8))]
struct AncillaryData([u8; 64]);

fn set(fd: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = length(size_of_val(&value))?;
    // SAFETY: the caller's socket owns `fd`; the option reads `size` bytes at the pointer, which are those of `value`.
    let done = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn recv(fd: RawFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = AncillaryData([0; 64]);
    let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `storage` is room for `size` bytes of an address; recvmsg writes at most that many and reports
    // the count in `msg_namelen`; `data` and `control` point at live memory of the lengths given.
    let ((len, to), peer) = unsafe {
        socket2::SockAddr::try_init(|storage, size| {
            let mut message: libc::msghdr = zeroed();
            message.msg_name = storage.cast();
            message.msg_namelen = *size;
            message.msg_iov = &raw mut data;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = size_of::<AncillaryData>();
            let len = libc::recvmsg(fd, &raw mut message, 0);
            let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
            *size = message.msg_namelen;
            Ok((len, sent_to(&message)))
        })?
    };
    let peer = peer.as_socket().ok_or_else(|| io::Error::other("a datagram without a sender"))?;
    let (local, interface, unicast) = to.ok_or_else(|| io::Error::other("a datagram without a destination"))?;
    Ok(Datagram { len, path: DatagramPath { peer, local, interface }, unicast })
}

/// Local address, interface if needed, and whether it was unicast, from the ancillary data.
///
/// # Safety
/// The message was filled by recvmsg, its control buffer is alive.
unsafe fn sent_to(message: &libc::msghdr) -> Option<(IpAddr, u32, bool)> {
    // SAFETY: the caller's promise; CMSG_* stay inside `msg_controllen`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so a whole header inside the control buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        // SAFETY: as above; the payload follows its header.
        let payload = unsafe { libc::CMSG_DATA(header) };
        match (level, kind) {
            (libc::SOL_IP, libc::IP_PKTINFO) => {
                // SAFETY: the payload is an in_pktinfo; it may be unaligned.
                let info: libc::in_pktinfo = unsafe { payload.cast::<libc::in_pktinfo>().read_unaligned() };
                let local = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                let destination = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
                return Some((local.into(), 0, local == destination));
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: the payload is an in6_pktinfo; it may be unaligned.
                let info: libc::in6_pktinfo = unsafe { payload.cast::<libc::in6_pktinfo>().read_unaligned() };
                let destination = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let interface = if destination.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                return Some((destination.into(), interface, !destination.is_multicast()));
            }
            // SAFETY: both from the same live message.
            _ => header = unsafe { libc::CMSG_NXTHDR(message, header) },
        }
    }
    None
}

fn send(fd: RawFd, data: &[u8], path: DatagramPath) -> io::Result<()> {
    let peer = socket2::SockAddr::from(path.peer);
    let mut control = AncillaryData([0; 64]);
    let mut data = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all bytes zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = peer.as_ptr().cast_mut().cast();
    message.msg_namelen = peer.len();
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    match path.local {
        IpAddr::V4(local) => {
            let from = libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: from, ipi_addr: libc::in_addr { s_addr: 0 } };
            // SAFETY: `control` has room for one header with either of these payloads (at most 40 of its 64 bytes).
            unsafe { set_ancillary(&mut message, libc::SOL_IP, libc::IP_PKTINFO, info)? };
        }
        IpAddr::V6(local) => {
            let from = libc::in6_addr { s6_addr: local.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: from, ipi6_ifindex: path.interface };
            // SAFETY: as above.
            unsafe { set_ancillary(&mut message, libc::SOL_IPV6, libc::IPV6_PKTINFO, info)? };
        }
    }
    // SAFETY: name, data and control point at live memory of the lengths given; sendmsg only reads.
    let sent = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets `payload` as the message's only ancillary data.
///
/// # Safety
/// `msg_control` points at live, aligned, zeroed memory with room for `CMSG_SPACE` of the payload.
unsafe fn set_ancillary<T>(message: &mut libc::msghdr, level: libc::c_int, kind: libc::c_int, payload: T) -> io::Result<()> {
    let size = length(size_of::<T>())?;
    // SAFETY: arithmetic only.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size) } as usize;
    // SAFETY: the caller's promise: there is room for a header and its payload.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        if header.is_null() {
            return Err(io::Error::other("no room for ancillary data"));
        }
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(payload);
    }
    Ok(())
}

fn length(size: usize) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{Sockets as _, sockets::HereSockets};

    async fn next(port: &UdpPort, buffer: &mut [u8]) -> Datagram {
        loop {
            port.readable().await.expect("readable");
            match port.try_recv(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other.expect("received"),
            }
        }
    }

    async fn echo(bind: &str, client: &str, server: &str) {
        let socket = HereSockets.udp(bind.parse().expect("address")).expect("bound");
        let number = socket.local_addr().expect("address").port();
        let port = UdpPort::new(socket).expect("port");
        let client = std::net::UdpSocket::bind(client).expect("client");
        client.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("timeout");
        let server = SocketAddr::new(server.parse().expect("address"), number);
        // A connected socket receives from the address that it is connected to only.
        client.connect(server).expect("connected");
        let (sent, mut buffer) = (vec![7; 60_000], vec![0; LONGEST]);
        client.send(&sent).expect("sent");
        let got = next(&port, &mut buffer).await;
        assert_eq!((got.len, got.path.local, got.unicast), (60_000, server.ip(), true));
        assert_eq!(got.path.peer, client.local_addr().expect("address"));
        port.try_send(&buffer[..got.len], got.path).expect("replied");
        let len = client.recv(&mut buffer).expect("the reply arrives from the address that was sent to");
        assert_eq!(buffer[..len], sent);
    }

    /// Needs `CAP_NET_ADMIN`, which the daemon has.
    #[tokio::test]
    async fn datagrams_have_the_mark_by_which_the_programs_know_them() {
        for bind in ["0.0.0.0:0", "[::]:0"] {
            let port = UdpPort::new(HereSockets.udp(bind.parse().expect("address")).expect("bound")).expect("port");
            let mark = socket2::SockRef::from(&port.socket).mark().expect("readable");
            assert_eq!(mark, skep_ebpf::USERSPACE_MARK, "{bind}");
        }
    }

    #[tokio::test]
    async fn replies_leave_from_the_address_that_was_sent_to() {
        echo("0.0.0.0:0", "127.0.0.1:0", "127.0.0.77").await;
        echo("[::]:0", "[::1]:0", "::1").await;
    }

    #[tokio::test]
    async fn both_families_can_bind_the_same_port_and_broadcasts_are_flagged() {
        let four = HereSockets.udp("0.0.0.0:0".parse().expect("address")).expect("bound");
        let number = four.local_addr().expect("address").port();
        let six = HereSockets.udp(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), number)).expect("the same number on IPv6");
        drop(UdpPort::new(six).expect("port"));
        let port = UdpPort::new(four).expect("port");
        let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("client");
        client.set_broadcast(true).expect("option");
        client.send_to(b"all", ("127.255.255.255", number)).expect("sent");
        assert!(!next(&port, &mut vec![0; LONGEST]).await.unicast);
    }
}

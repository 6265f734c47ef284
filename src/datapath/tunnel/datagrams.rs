//! Sending and receiving many datagrams per system call: runs of one size that the kernel segments (GSO), runs that it has joined
//! (GRO), several of them at once, with the ECN bits of the outer header.
#![allow(unsafe_code, reason = "recvmmsg and control messages have no safe wrapper")]

use bytes::BytesMut;
use gotatun::packet::Packet;
use socket2::{SockAddr, SockAddrStorage, Socket};
use std::io;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;

/// Most datagrams that the kernel segments in one call, and most bytes.
const GSO_LIMIT: (usize, usize) = (64, 65_000);
/// Messages received in one call.
const MESSAGES: usize = 8;
/// Bytes of one message: the largest run that the kernel joins.
const MESSAGE: usize = 65_536;
/// Bytes of the control messages of one message, either way.
const CONTROL: usize = 128;

/// Aligned as the kernel's header is.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// How many of the first datagrams can be sent in one call: one size, the last may be smaller.
pub(super) fn run_length(sizes: impl Iterator<Item = usize>) -> usize {
    let (mut first, mut count, mut bytes) = (0, 0, 0);
    for size in sizes.take(GSO_LIMIT.0) {
        if count == 0 {
            first = size;
        }
        if size > first || bytes + size > GSO_LIMIT.1 {
            break;
        }
        count += 1;
        bytes += size;
        if size < first {
            break;
        }
    }
    count.max(1)
}

/// Sends datagrams of one size (the last may be smaller) with these ECN bits.
pub(super) fn send_run(socket: &Socket, dual_stack: bool, to: SocketAddr, ecn: u8, run: &[Packet]) -> io::Result<()> {
    let Some(first) = run.first() else { return Ok(()) };
    let mut parts: [libc::iovec; GSO_LIMIT.0] = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; GSO_LIMIT.0];
    for (part, packet) in parts.iter_mut().zip(run) {
        *part = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
    }
    let destination = SockAddr::from(as_seen_by(dual_stack, to));
    let mut control = Control([0; CONTROL]);
    let mut used = 0;
    if run.len() > 1 {
        let size = u16::try_from(first.len()).map_err(io::Error::other)?;
        used += put(&mut control.0[used..], (libc::SOL_UDP, libc::UDP_SEGMENT), &size.to_ne_bytes());
    }
    if ecn != 0 {
        let kind = if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_TOS) } else { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) };
        used += put(&mut control.0[used..], kind, &i32::from(ecn).to_ne_bytes());
    }
    // SAFETY: all zeros is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = destination.as_ptr().cast_mut().cast();
    message.msg_namelen = destination.len();
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = run.len().min(GSO_LIMIT.0);
    if used > 0 {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = used;
    }
    // SAFETY: name, parts and control messages outlive the call, and the kernel only reads them.
    if unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Writes a control message and returns the bytes it takes.
fn put(control: &mut [u8], (level, kind): (libc::c_int, libc::c_int), value: &[u8]) -> usize {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    control[..size_of::<usize>()].copy_from_slice(&(HEADER + value.len()).to_ne_bytes());
    control[size_of::<usize>()..][..4].copy_from_slice(&level.to_ne_bytes());
    control[size_of::<usize>() + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
    control[HEADER..][..value.len()].copy_from_slice(value);
    (HEADER + value.len()).next_multiple_of(size_of::<usize>())
}

/// A dual-stack socket has IPv4 addresses in their IPv6 form.
fn as_seen_by(dual_stack: bool, to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(v4) if dual_stack => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        other => other,
    }
}

/// A received datagram.
pub(super) struct ReceivedDatagram {
    pub packet: Packet,
    /// IPv4 addresses in their own form.
    pub from: SocketAddr,
    /// Of the outer header.
    pub ecn: u8,
}

/// Buffers to receive into; datagrams are slices of them, without a copy. A buffer is used again when its datagrams are gone.
pub(super) struct Receiver {
    buffers: Vec<BytesMut>,
    names: Vec<SockAddrStorage>,
    controls: Vec<Control>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            buffers: (0..MESSAGES).map(|_| fresh()).collect(),
            names: (0..MESSAGES).map(|_| SockAddrStorage::zeroed()).collect(),
            controls: vec![Control([0; CONTROL]); MESSAGES],
        }
    }

    /// Waits for datagrams and appends those that are there.
    pub(super) fn receive(&mut self, socket: &Socket, datagrams: &mut Vec<ReceivedDatagram>) -> io::Result<()> {
        // SAFETY: all zeros is a valid `mmsghdr`.
        let mut messages: [libc::mmsghdr; MESSAGES] = unsafe { std::mem::zeroed() };
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MESSAGES];
        for number in 0..MESSAGES {
            let buffer = &mut self.buffers[number];
            if buffer.capacity() < MESSAGE && !buffer.try_reclaim(MESSAGE) {
                *buffer = fresh();
            }
            // SAFETY: the allocation has this capacity and was filled with zeros when it was made; nothing uninitialised is in it.
            unsafe { buffer.set_len(MESSAGE) };
            parts[number] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: MESSAGE };
            let header = &mut messages[number].msg_hdr;
            header.msg_name = (&raw mut self.names[number]).cast();
            header.msg_namelen = self.names[number].size_of();
            header.msg_iov = &raw mut parts[number];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[number].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL;
        }
        // SAFETY: names, parts, buffers and control messages are distinct and outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                libc::c_uint::try_from(MESSAGES).unwrap_or(1),
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let error = io::Error::last_os_error();
        let count = usize::try_from(count).unwrap_or(0);
        for (number, message) in messages.iter().enumerate() {
            let length = if number < count { usize::try_from(message.msg_len).unwrap_or(0).min(MESSAGE) } else { 0 };
            let mut bytes = self.buffers[number].split_to(length);
            self.buffers[number].clear();
            let Some(from) =
                sender(std::mem::replace(&mut self.names[number], SockAddrStorage::zeroed()), message.msg_hdr.msg_namelen)
                    .filter(|_| length > 0)
            else {
                continue;
            };
            let used = message.msg_hdr.msg_controllen.min(CONTROL);
            let (size, ecn) = marks(&self.controls[number].0[..used]);
            while bytes.len() > size && size > 0 {
                datagrams.push(ReceivedDatagram { packet: Packet::from_bytes(bytes.split_to(size)), from, ecn });
            }
            datagrams.push(ReceivedDatagram { packet: Packet::from_bytes(bytes), from, ecn });
        }
        if count == 0 { Err(error) } else { Ok(()) }
    }
}

fn fresh() -> BytesMut {
    let mut buffer = BytesMut::zeroed(MESSAGE);
    buffer.clear();
    buffer
}

fn sender(name: SockAddrStorage, length: libc::socklen_t) -> Option<SocketAddr> {
    // SAFETY: the kernel wrote an address of this length, or none, in which case the family is 0.
    let address = unsafe { SockAddr::new(name, length) }.as_socket()?;
    Some(match address {
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().map_or(address, |v4| SocketAddr::new(v4.into(), v6.port())),
        SocketAddr::V4(_) => address,
    })
}

/// Size of the joined datagrams (0: there is one) and the ECN bits, from the control messages.
fn marks(mut control: &[u8]) -> (usize, u8) {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let (mut size, mut ecn) = (0, 0);
    while control.len() >= HEADER {
        let word = |at: usize| i32::from_ne_bytes([control[at], control[at + 1], control[at + 2], control[at + 3]]);
        let mut length = [0; size_of::<usize>()];
        length.copy_from_slice(&control[..size_of::<usize>()]);
        let length = usize::from_ne_bytes(length);
        if length < HEADER || length > control.len() {
            break;
        }
        let value = &control[HEADER..length];
        let number = match value {
            [byte] => i32::from(*byte),
            [a, b, c, d, ..] => i32::from_ne_bytes([*a, *b, *c, *d]),
            _ => 0,
        };
        match (word(size_of::<usize>()), word(size_of::<usize>() + 4)) {
            (libc::SOL_UDP, libc::UDP_GRO) => size = usize::try_from(number).unwrap_or(0),
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                ecn = u8::try_from(number & 3).unwrap_or(0);
            }
            _ => {}
        }
        control = control.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
    }
    (size, ecn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_one_size_and_bounds() {
        for (sizes, expected) in [
            (&[][..], 1),
            (&[100][..], 1),
            (&[100, 100, 100], 3),
            (&[100, 100, 60, 100], 3),
            (&[100, 101], 1),
            (&[60_000, 5_000, 5_000], 2),
            (&[60_000, 6_000], 1),
            (&[10; 100], 64),
        ] {
            assert_eq!(run_length(sizes.iter().copied()), expected, "{sizes:?}");
        }
    }

    #[test]
    fn control_messages_are_read_as_written() {
        let mut control = [0; CONTROL];
        let mut used = put(&mut control, (libc::SOL_UDP, libc::UDP_GRO), &1452_i32.to_ne_bytes());
        used += put(&mut control[used..], (libc::IPPROTO_IPV6, libc::IPV6_TCLASS), &0xbb_i32.to_ne_bytes());
        assert_eq!(marks(&control[..used]), (1452, 3));
        used += put(&mut control[used..], (libc::IPPROTO_IP, libc::IP_TOS), &[1]);
        assert_eq!(marks(&control[..used]), (1452, 1));
        assert_eq!(marks(&control[..7]), (0, 0));
        assert_eq!(marks(&[0; CONTROL]), (0, 0));
    }
}

//! The cookie of a network namespace, by which programs recognise it.
#![allow(unsafe_code, reason = "the cookie of a namespace is a socket option that no crate offers")]

use crate::datapath::netns;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Not in the headers of the libc crate.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of a network namespace.
pub(super) fn cookie_of(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    netns::briefly(namespace, || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        let mut cookie = 0_u64;
        let mut size = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open; the option writes `size` bytes at the pointer, which are those of `cookie`.
        let done = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut size)
        };
        if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
    })
}

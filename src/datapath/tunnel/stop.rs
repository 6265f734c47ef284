//! Ends the threads of the tunnel, so that its socket and its device are closed before the process says that it stops. The
//! process is gone for others as soon as its first thread is, while threads that wait in the kernel still hold both.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once; wakes a thread that waits for its descriptor.
#[derive(Debug)]
pub(super) struct StopSignal {
    is_set: AtomicBool,
    wakes: OwnedFd,
}

impl StopSignal {
    pub(super) fn new() -> io::Result<Self> {
        let wakes = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { is_set: AtomicBool::new(false), wakes })
    }

    pub(super) fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&self.wakes, &1_u64.to_ne_bytes()) {
            tracing::warn!(%error, "a thread of the tunnel is not woken");
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// The error with which a thread ends.
    pub(super) fn error() -> io::Error {
        io::Error::other("the tunnel stops")
    }
}

impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakes.as_fd()
    }
}

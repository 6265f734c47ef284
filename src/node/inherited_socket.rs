//! Listening sockets that systemd holds: they outlive the daemon. A task which has the API's socket mounted reaches the next
//! daemon through the same file; the engine's calls of the network driver wait for the next daemon, or start it.

use anyhow::Context as _;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::path::Path;
use tokio::net::UnixListener;

/// The socket that systemd passed under this name (`FileDescriptorName=`); otherwise a new one at the path.
///
/// # Errors
/// As [`crate::http::bind_unix`], or the socket that was passed is none.
pub(super) fn listen(name: &str, path: &Path) -> anyhow::Result<UnixListener> {
    let passed = sd_notify::listen_fds_with_names().ok().and_then(|mut all| all.find(|(_, passed)| passed == name));
    let Some((number, _)) = passed else { return crate::http::bind_unix(path) };
    let take = || -> std::io::Result<UnixListener> {
        // A copy of the descriptor: only its number is known.
        let copy = pidfd_getfd(pidfd_open(getpid(), PidfdFlags::empty())?, number, PidfdGetfdFlags::empty())?;
        let listener = std::os::unix::net::UnixListener::from(copy);
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    take().with_context(|| format!("the socket {name} that systemd passed cannot be used"))
}

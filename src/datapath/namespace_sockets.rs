//! Sockets in a pinned namespace, for a process beside the daemon, which has no [`super::mesh::Mesh`].

use super::{Sockets, netns, sockets};
use anyhow::Context as _;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

/// Creates sockets in a pinned namespace.
#[derive(Debug)]
pub struct NamespaceSockets {
    namespace: OwnedFd,
}

impl NamespaceSockets {
    /// In the namespace pinned at `pin`.
    ///
    /// # Errors
    /// No namespace is pinned there.
    pub fn open(pin: &Path) -> anyhow::Result<Self> {
        let namespace = netns::pinned(pin).with_context(|| format!("cannot read {}", pin.display()))?;
        let namespace = namespace.with_context(|| format!("no network namespace is pinned at {}", pin.display()))?;
        Ok(Self { namespace })
    }

    /// Device and inode, which identify the namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.namespace)?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

impl Sockets for NamespaceSockets {
    fn udp(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        netns::briefly(self.namespace.as_fd(), || sockets::udp(address))
    }
    fn listen(&self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        netns::briefly(self.namespace.as_fd(), || sockets::listen(address))
    }
    fn stream(&self, source: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
        netns::briefly(self.namespace.as_fd(), || sockets::stream(source))
    }
}

//! Connections to tasks, from the mesh namespace.

use crate::datapath::Sockets;
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::l4::stream::Stream;
use pingora::{Error, ErrorType, OrErr as _, Result};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Time to connect to a task, which is in the same cluster; another one is asked then.
const CONNECT: Duration = Duration::from_secs(2);

/// Connects from the node's address on `ingress`.
pub(super) struct MeshConnector {
    mesh: Arc<dyn Sockets>,
    source: ArcSwapOption<Ipv4Addr>,
}

impl std::fmt::Debug for MeshConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the mesh namespace")
    }
}

impl MeshConnector {
    pub fn new(mesh: Arc<dyn Sockets>) -> Self {
        Self { mesh, source: ArcSwapOption::empty() }
    }

    /// Sets the address to connect from.
    pub fn set_source(&self, source: Option<Ipv4Addr>) {
        self.source.store(source.map(Arc::new));
    }
}

#[async_trait]
impl Connect for MeshConnector {
    async fn connect(&self, address: &PeerAddress) -> Result<Stream> {
        let to = address.as_inet().ok_or_else(|| Error::explain(ErrorType::ConnectError, "not an address of a task"))?;
        Ok(self.open(*to).await?.into())
    }
}

impl MeshConnector {
    /// Opens a connection.
    ///
    /// # Errors
    /// The kernel's, or there is no address to connect from yet.
    pub async fn open(&self, to: SocketAddr) -> Result<TcpStream> {
        let source = self.source.load_full();
        let source = source.ok_or_else(|| Error::explain(ErrorType::ConnectError, "this node has no address on ingress yet"))?;
        let socket = self.mesh.stream((IpAddr::V4(*source), 0).into()).or_err(ErrorType::ConnectError, "a socket in the mesh")?;
        let connected = tokio::time::timeout(CONNECT, socket.connect(to)).await;
        let stream = connected
            .or_err(ErrorType::ConnectTimedout, "connecting to a task")?
            .or_err(ErrorType::ConnectError, "connecting to a task")?;
        stream.set_nodelay(true).or_err(ErrorType::ConnectError, "TCP_NODELAY")?;
        Ok(stream)
    }
}

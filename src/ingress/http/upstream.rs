//! How a task is connected to: the peer that pingora's pool knows a connection by.

use super::connector::MeshConnector;
use super::proxy_header::{self, ConnectionEnds};
use super::routes::ServedRoute;
use super::upgrade_stream::UpgradeStream;
use crate::model::http::{HttpBackend, HttpScheme};
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, OrErr as _, Result};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// Idle connections to tasks are closed after this time: common servers close theirs after 5 s, and a request that meets such a
/// close is lost.
pub(super) const TASK_IDLE: Duration = Duration::from_secs(4);
/// Time for a server of this host to take a connection, and to answer.
const LOCAL: Duration = Duration::from_secs(10);
/// Requests at a time on a connection of HTTP/2 to a task.
const STREAMS: usize = 100;

/// A task as the peer of a request. `ends`: client and listener, for tasks that want a PROXY header; `upgrade`: the request asks for one.
pub(super) fn peer(
    connector: &Arc<MeshConnector>,
    route: &ServedRoute,
    backend: &HttpBackend,
    host: &str,
    ends: Option<ConnectionEnds>,
    upgrade: bool,
) -> HttpPeer {
    let address = SocketAddr::from((backend.address, route.route.port));
    let is_tls = route.route.scheme == HttpScheme::Https;
    let mut peer = HttpPeer::new(address, is_tls, if is_tls { host.to_owned() } else { String::new() });
    let header = route.route.proxy_protocol.zip(ends).map(|(version, ends)| proxy_header::write(version, ends));
    // An address may be another task's later: a connection in the pool belongs to its task, and with a PROXY header to its client.
    let mut hasher = DefaultHasher::new();
    backend.task_id.as_str().hash(&mut hasher);
    header.hash(&mut hasher);
    // It is no connection for other requests.
    upgrade.then(rand::random::<u64>).hash(&mut hasher);
    peer.group_key = hasher.finish();
    let options = &mut peer.options;
    let limit = route.route.timeout_ms.map(Duration::from_millis);
    options.custom_l4 = Some(match header {
        None if !upgrade => connector.clone(),
        header => {
            let header = header.unwrap_or_default();
            Arc::new(SpecialConnector { connector: connector.clone(), header, upgrade, limit })
        }
    });
    options.idle_timeout = Some(if upgrade { Duration::ZERO } else { TASK_IDLE });
    options.read_timeout = limit.filter(|_| !upgrade);
    match route.route.scheme {
        HttpScheme::Http => {}
        HttpScheme::H2c => options.set_http_version(2, 2),
        // HTTP/2 has no upgrade.
        HttpScheme::Https if upgrade => options.set_http_version(1, 1),
        HttpScheme::Https => options.set_http_version(2, 1),
    }
    options.max_h2_streams = STREAMS;
    (options.verify_cert, options.verify_hostname) = (false, false);
    peer
}

/// A server of this host, on a unix socket.
///
/// # Errors
/// The path is none of a socket.
pub(super) fn local(socket: &Path) -> Result<Box<HttpPeer>> {
    let mut peer = HttpPeer::new_uds(&socket.to_string_lossy(), false, String::new())?;
    peer.options.connection_timeout = Some(LOCAL);
    // Its connections are for one request.
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer.options.read_timeout = Some(LOCAL);
    Ok(Box::new(peer))
}

/// Connects, and sends a PROXY header first, if there is one.
#[derive(Debug)]
struct SpecialConnector {
    connector: Arc<MeshConnector>,
    header: Vec<u8>,
    /// An upgrade is asked for.
    upgrade: bool,
    /// Time for the answer to that.
    limit: Option<Duration>,
}

#[async_trait::async_trait]
impl Connect for SpecialConnector {
    async fn connect(&self, address: &PeerAddress) -> Result<Stream> {
        let to = address.as_inet().ok_or_else(|| Error::explain(ErrorType::ConnectError, "not an address of a task"))?;
        let mut stream = self.connector.open(*to).await?;
        stream.write_all(&self.header).await.or_err(ErrorType::ConnectError, "sending the PROXY header")?;
        if self.upgrade {
            return Ok(VirtualSocketStream::new(Box::new(UpgradeStream::new(stream, self.limit))).into());
        }
        Ok(stream.into())
    }
}

//! Accepts connections on 2377: hand-shake, then by ALPN to the join or the session. Strangers are bounded in number,
//! size and time; whatever does not speak the protocol is closed with a line in the log and loses nobody anything.

use super::frame::FrameError;
use super::limiter::ConnectionLimiter;
use super::{JoinAuthority, SessionServer, admit, sessions, tls};
use crate::clock::Clock;
use crate::trust::Identity;
use anyhow::Context as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// What a listener is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerKind {
    /// Faces the LAN: joins only.
    Outer,
    /// Inside the mesh: sessions only.
    Mesh,
}

/// Bounds on what the other end may do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time for the TLS hand-shake.
    pub handshake: Duration,
    /// Time for the first message.
    pub first_message: Duration,
    /// Time for a whole join, proof of the UDP way included.
    pub join: Duration,
    /// Time between looks at the tunnel's counters during a join.
    pub proof_interval: Duration,
    /// A session ends when nothing was heard, or nothing taken, for so long.
    pub session_silence: Duration,
    /// Messages that may wait for a node to take them; then the one who puts more in waits.
    pub session_queue: usize,
    /// Connections without a certificate, per source address.
    pub strangers_per_source: usize,
    /// Connections without a certificate, in all.
    pub strangers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            first_message: Duration::from_secs(5),
            join: Duration::from_secs(15),
            proof_interval: Duration::from_millis(100),
            session_silence: Duration::from_secs(10),
            session_queue: 64,
            strangers_per_source: 16,
            strangers: 256,
        }
    }
}

/// The manager's end of the protocol. One serves both listeners.
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    identity: Arc<Identity>,
    acceptor: TlsAcceptor,
    join: Arc<dyn JoinAuthority>,
    sessions: Arc<dyn SessionServer>,
    limits: Limits,
    gate: ConnectionLimiter,
}

impl Server {
    /// With this node's identity, which must be a manager's to be of use to others.
    ///
    /// # Errors
    /// The identity cannot be used for TLS.
    pub fn new(
        identity: Arc<Identity>,
        clock: Arc<dyn Clock>,
        join: Arc<dyn JoinAuthority>,
        sessions: Arc<dyn SessionServer>,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&identity, clock)?));
        let gate = ConnectionLimiter::new(limits.strangers_per_source, limits.strangers);
        Ok(Self { shared: Arc::new(Shared { identity, acceptor, join, sessions, limits, gate }) })
    }

    /// Serves a listener until shut down; then open joins are revoked and sessions closed, which it waits for.
    pub async fn serve(&self, listener: TcpListener, door: ListenerKind, shutdown: CancellationToken) {
        let connections = tokio_util::task::TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    let (shared, shutdown) = (self.shared.clone(), shutdown.clone());
                    connections.spawn(async move { connection(&shared, stream, from, door, shutdown).await });
                }
                Err(error) => {
                    // Out of descriptors, most likely: the next accept would fail at once as well.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
    }
}

async fn connection(shared: &Shared, stream: TcpStream, from: SocketAddr, door: ListenerKind, shutdown: CancellationToken) {
    let Some(pass) = shared.gate.enter(from.ip()) else {
        tracing::info!(%from, "closed a connection: too many at a time that have not shown a certificate");
        return;
    };
    let _ = stream.set_nodelay(true);
    let handshake = tokio::select! {
        () = shutdown.cancelled() => return,
        done = tokio::time::timeout(shared.limits.handshake, shared.acceptor.accept(stream)) => done,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%from, %error, "closed a connection that does not speak skep's protocol");
            return;
        }
        Err(_) => {
            tracing::info!(%from, "closed a connection that said nothing");
            return;
        }
    };
    let outcome = match (stream.get_ref().1.alpn_protocol(), door) {
        (Some(tls::JOIN), ListenerKind::Outer) => {
            let outcome = admit::serve(stream, from, shared.join.as_ref(), &shared.limits, &shutdown).await;
            drop(pass);
            outcome
        }
        (Some(tls::SESSION), ListenerKind::Mesh) => session(shared, stream, from, pass, &shutdown).await,
        (Some(tls::JOIN), ListenerKind::Mesh) => {
            admit::refuse(stream, "this address is for members; join at the manager's outer address").await;
            Err(anyhow::anyhow!("a join at the mesh address"))
        }
        (Some(tls::SESSION), ListenerKind::Outer) => {
            sessions::refuse(stream, "sessions go through the tunnel; this address is for joins only").await;
            Err(anyhow::anyhow!("a session from outside the mesh"))
        }
        _ => Err(anyhow::anyhow!("it does not say what it is for")),
    };
    if let Err(error) = outcome {
        tracing::info!(%from, error = format!("{error:#}"), "closed a connection");
    }
}

async fn session(
    shared: &Shared,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    pass: super::limiter::Permit,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let name = tls::client_name(stream.get_ref().1.peer_certificates(), &shared.identity);
    let name = match name {
        Ok(Some(name)) => name,
        Ok(None) => {
            sessions::refuse(stream, "a session needs a certificate of this cluster").await;
            anyhow::bail!("a session without a certificate");
        }
        Err(error) => {
            sessions::refuse(stream, &format!("a session needs a certificate of this cluster: {error}")).await;
            return Err(error.into());
        }
    };
    drop(pass); // a member, no stranger any more
    let node = name.node_id.clone();
    sessions::serve(stream, name, shared.sessions.as_ref(), &shared.limits, shutdown)
        .await
        .with_context(|| format!("session of node {node} from {from}"))
}

/// What to tell the other end about a frame that was not understood.
pub(super) fn complaint(error: &FrameError) -> Option<String> {
    match error {
        FrameError::TooLong { .. } | FrameError::Garbage(_) | FrameError::Truncated | FrameError::Silent(_) => {
            Some(error.to_string())
        }
        FrameError::Stuck(_) | FrameError::Io(_) => None,
    }
}

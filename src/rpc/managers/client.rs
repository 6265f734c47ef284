//! The dialing side: one connection to one manager, opened when there is something to send. Raft's messages are best effort,
//! because raft repeats them; a proposal is answered, or its sender learns that it may not have arrived.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::session::explain;
use super::super::tls;
use super::wire::{MAX_FRAME, ManagerFrame, decode_answer};
use crate::clock::Clock;
use crate::datapath::Sockets;
use crate::model::NodeId;
use crate::trust::Identity;
use anyhow::Context as _;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Frames that wait for the connection; further messages of raft are dropped.
const QUEUE: usize = 4096;
/// Pause after a connection that failed. What waits meanwhile is dropped: raft's messages would be outdated.
const PAUSE: Duration = Duration::from_millis(50);
/// The other side takes nothing.
const STUCK: Duration = Duration::from_secs(5);
/// No answer and no message for this long: the connection is not needed.
const IDLE: Duration = Duration::from_mins(2);

/// How to reach other managers.
pub struct ManagerLinkConfig {
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The time that certificates are checked against.
    pub clock: Arc<dyn Clock>,
    /// Makes sockets in the mesh namespace.
    pub sockets: Arc<dyn Sockets>,
    /// This manager's own mesh address.
    pub source: IpAddr,
    /// Time for TCP and the TLS handshake.
    pub connect: Duration,
    /// Runs the connections: raft sends from a thread of its own.
    pub runtime: tokio::runtime::Handle,
}

enum Request {
    Raft(Vec<u8>),
    Proposal { document: Vec<u8>, answer: oneshot::Sender<Vec<u8>> },
}

/// Sends to one manager. The connection ends when this is dropped.
pub struct ManagerLink {
    requests: mpsc::Sender<Request>,
    stop: CancellationToken,
}

impl Drop for ManagerLink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ManagerLink {
    /// To the manager at this mesh address, which must be this node.
    pub fn start(config: Arc<ManagerLinkConfig>, address: SocketAddr, node: NodeId) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let stop = CancellationToken::new();
        let (runtime, stopped) = (config.runtime.clone(), stop.clone());
        let connections = Connections { config, address, node, queue };
        runtime.spawn(async move { stopped.run_until_cancelled(connections.run()).await });
        Self { requests, stop }
    }

    /// Sends a message for raft, or drops it.
    pub fn raft(&self, message: Vec<u8>) {
        let _ = self.requests.try_send(Request::Raft(message));
    }

    /// Sends a proposal and returns the answer.
    ///
    /// # Errors
    /// The connection failed or the queue is full; the proposal may have arrived.
    pub async fn propose(&self, document: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(Request::Proposal { document, answer }).map_err(|_| anyhow::anyhow!("too many proposals wait"))?;
        answered.await.context("the connection to the leader was lost")
    }
}

struct Connections {
    config: Arc<ManagerLinkConfig>,
    address: SocketAddr,
    node: NodeId,
    queue: mpsc::Receiver<Request>,
}

impl Connections {
    async fn run(mut self) {
        let mut failures = 0_u32;
        while let Some(first) = self.queue.recv().await {
            let Err(error) = self.connection(first, &mut failures).await else { continue };
            failures = failures.saturating_add(1);
            tracing::debug!(manager = %self.node, error = format!("{error:#}"), failures, "no connection to another manager");
            tokio::time::sleep(PAUSE).await;
            while self.queue.try_recv().is_ok() {}
        }
    }

    /// Serves the queue on one connection until that breaks or was not needed for [`IDLE`].
    async fn connection(&mut self, first: Request, failures: &mut u32) -> anyhow::Result<()> {
        let config = self.config.clone();
        let stream = tokio::time::timeout(config.connect, self.dial()).await.context("no connection in time")??;
        *failures = 0;
        let mut identity = config.identity.clone();
        identity.mark_unchanged();
        let (read, write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read, MAX_FRAME, Duration::MAX);
        let mut writer = FrameWriter::new(write, MAX_FRAME, STUCK);
        let mut waiting: BTreeMap<u64, oneshot::Sender<Vec<u8>>> = BTreeMap::new();
        let mut number = 0_u64;
        let mut next = Some(first);
        loop {
            if let Some(request) = next.take() {
                let frame = match request {
                    Request::Raft(message) => ManagerFrame::Raft(Bytes::from(message)),
                    Request::Proposal { document, answer } => {
                        number += 1;
                        waiting.insert(number, answer);
                        ManagerFrame::Proposal { number, document: document.into() }
                    }
                };
                writer.write_document(&frame.encode()).await?;
            }
            tokio::select! {
                request = self.queue.recv() => match request {
                    Some(request) => next = Some(request),
                    None => return Ok(()),
                },
                frame = reader.document() => {
                    let frame = frame?.context("the manager closed the connection")?;
                    let (number, answer) = decode_answer(frame).context("an answer that is not understood")?;
                    if let Some(waits) = waiting.remove(&number) {
                        let _ = waits.send(answer.into());
                    }
                }
                // Another certificate: the next message opens a connection with it.
                _ = identity.changed(), if waiting.is_empty() => return Ok(()),
                () = tokio::time::sleep(IDLE), if waiting.is_empty() => return Ok(()),
            }
        }
    }

    async fn dial(&self) -> anyhow::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
        let config = &self.config;
        let socket = config.sockets.stream(SocketAddr::new(config.source, 0)).context("no socket in the mesh")?;
        let stream = socket.connect(self.address).await.context("cannot connect")?;
        let _ = stream.set_nodelay(true);
        let identity = config.identity.borrow().clone();
        let tls = tls::manager_config(&identity, config.clock.clone(), self.node.clone())?;
        let now = config.clock.now();
        TlsConnector::from(Arc::new(tls)).connect(tls::server_name()?, stream).await.map_err(|e| explain(e, &identity, now))
    }
}

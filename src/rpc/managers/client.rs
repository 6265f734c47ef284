//! The dialing side: one connection to one manager, opened when there is something to send. Raft's messages are best effort,
//! because raft repeats them; a proposal is answered, or its sender learns that it may not have arrived. A snapshot has a connection of its
//! own: on a slow link nothing else could be sent for seconds, and raft would elect another leader.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::session::explain;
use super::super::tls;
use super::greeter::ManagerGreeter;
use super::wire::{GREETING_NUMBER, MAX_FRAME, ManagerFrame, decode_answer};
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
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Frames that wait for the connection; further messages of raft are dropped.
const QUEUE: usize = 4096;
/// Snapshots that wait for theirs: raft sends another one only when it takes the one before for lost.
const SNAPSHOTS: usize = 1;
/// Pause after a connection that failed. What waits meanwhile is dropped: raft's messages would be outdated.
const PAUSE: Duration = Duration::from_millis(50);
/// That pause grows to 2 to this power times as much while the other manager closes every connection.
const LONGEST_PAUSE: u32 = 6;
/// Bytes of frames that are written together.
const TOGETHER: usize = 64 << 10;
/// The other side takes nothing.
const STUCK: Duration = Duration::from_secs(5);
/// No answer and no message for this long: the connection is not needed.
const IDLE: Duration = Duration::from_mins(2);
/// Attempts to open a connection that broke again at once; a process that ends closes its connections some time before its listener.
const REDIALS: u32 = 10;
/// Pause between them.
const REDIAL: Duration = Duration::from_millis(10);

/// How to reach other managers.
pub struct ManagerLinkConfig {
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The time that certificates are checked against.
    pub clock: Arc<dyn Clock>,
    /// Makes sockets in the mesh namespace.
    pub sockets: Arc<dyn Sockets>,
    /// This manager's own mesh address.
    pub source: IpAddr,
    /// What is said at the begin of each connection.
    pub greeter: Arc<dyn ManagerGreeter>,
    /// Time for TCP and the TLS handshake.
    pub connect: Duration,
    /// A connection that broke after this time is opened again at once, to find out whether the other manager has ended. One that
    /// broke earlier was closed by a manager that does not want it.
    pub steady: Duration,
    /// Runs the connections: raft sends from a thread of its own.
    pub runtime: tokio::runtime::Handle,
}

enum Request {
    /// Only opens a connection; notified when it has been answered.
    Greet(oneshot::Sender<()>),
    Raft(Vec<u8>),
    Proposal {
        document: Vec<u8>,
        answer: oneshot::Sender<Vec<u8>>,
    },
}

/// Sends to one manager. The connection ends when this is dropped.
pub struct ManagerLink {
    requests: mpsc::Sender<Request>,
    snapshots: mpsc::Sender<Request>,
    stop: CancellationToken,
}

impl Drop for ManagerLink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ManagerLink {
    /// To the manager at this mesh address, which must be this node. `ended` is called when a connection was lost and its host refuses
    /// another one: the manager's process is gone.
    pub fn start(
        config: &Arc<ManagerLinkConfig>,
        address: SocketAddr,
        node: &NodeId,
        ended: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        let stop = CancellationToken::new();
        let start = |length: usize, ended: Arc<dyn Fn() + Send + Sync>| {
            let ((requests, queue), stopped) = (mpsc::channel(length), stop.clone());
            let connections = Connections { config: config.clone(), address, node: node.clone(), ended, queue };
            config.runtime.spawn(async move { stopped.run_until_cancelled(connections.run()).await });
            requests
        };
        // The end of the process shows on the connection that is always there.
        Self { requests: start(QUEUE, ended), snapshots: start(SNAPSHOTS, Arc::new(|| ())), stop }
    }

    /// Opens a connection, if there is none; returns once the other manager has greeted, or cannot be reached.
    pub async fn greet(&self) {
        let (done, greeted) = oneshot::channel();
        if self.requests.try_send(Request::Greet(done)).is_ok() {
            let _ = greeted.await;
        }
    }

    /// What serves it has ended because of a bug; another link is to take its place.
    pub fn has_ended(&self) -> bool {
        self.requests.is_closed() || self.snapshots.is_closed()
    }

    /// Sends a message for raft, or drops it.
    pub fn raft(&self, message: Vec<u8>) {
        let _ = self.requests.try_send(Request::Raft(message));
    }

    /// Sends a message for raft that carries a snapshot, or drops it.
    pub fn snapshot(&self, message: Vec<u8>) {
        let _ = self.snapshots.try_send(Request::Raft(message));
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
    ended: Arc<dyn Fn() + Send + Sync>,
    queue: mpsc::Receiver<Request>,
}

/// Why a connection is no more.
enum ConnectionEnd {
    /// It was not needed.
    Idle,
    /// There was none.
    NotOpened(anyhow::Error),
    /// It broke after this time.
    Lost(anyhow::Error, Duration),
}

impl Connections {
    async fn run(mut self) {
        let mut failures = 0_u32;
        // Connections that the other manager closed soon, one after the other.
        let mut unwanted = 0_u32;
        // Attempts that are made without a message to send, because an open connection broke.
        let mut redials = 0;
        loop {
            let first = if redials > 0 {
                None
            } else {
                let Some(first) = self.queue.recv().await else { return };
                Some(first)
            };
            let error = match self.connection(first, &mut failures).await {
                ConnectionEnd::Idle => {
                    (redials, unwanted) = (0, 0);
                    continue;
                }
                ConnectionEnd::Lost(error, after) if after >= self.config.steady => {
                    tracing::debug!(manager = %self.node, error = format!("{error:#}"), "the connection to another manager broke");
                    (redials, unwanted) = (REDIALS, 0);
                    continue;
                }
                ConnectionEnd::Lost(error, _) => {
                    (redials, unwanted) = (0, unwanted.saturating_add(1));
                    error
                }
                ConnectionEnd::NotOpened(error) => {
                    if redials > 0 && is_refused(&error) {
                        tracing::info!(manager = %self.node, "the process of another manager has ended");
                        (self.ended)();
                        redials = 0;
                    }
                    redials = redials.saturating_sub(1);
                    error
                }
            };
            failures = failures.saturating_add(1);
            tracing::debug!(manager = %self.node, error = format!("{error:#}"), failures, "no connection to another manager");
            tokio::time::sleep(if redials > 0 { REDIAL } else { PAUSE * 2_u32.pow(unwanted.min(LONGEST_PAUSE)) }).await;
            while self.queue.try_recv().is_ok() {}
        }
    }

    /// Serves the queue on one connection until that breaks or was not needed for [`IDLE`].
    async fn connection(&mut self, first: Option<Request>, failures: &mut u32) -> ConnectionEnd {
        let stream = match tokio::time::timeout(self.config.connect, self.dial()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return ConnectionEnd::NotOpened(error),
            Err(_) => return ConnectionEnd::NotOpened(anyhow::anyhow!("no connection in time")),
        };
        *failures = 0;
        let since = Instant::now();
        match self.serve(stream, first).await {
            Ok(()) => ConnectionEnd::Idle,
            Err(error) => ConnectionEnd::Lost(error, since.elapsed()),
        }
    }

    async fn serve(&mut self, stream: TlsStream<TcpStream>, first: Option<Request>) -> anyhow::Result<()> {
        let mut identity = self.config.identity.clone();
        identity.mark_unchanged();
        let (read, write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read, MAX_FRAME, Duration::MAX);
        let mut writer = FrameWriter::new(write, MAX_FRAME, STUCK);
        let mut waiting: BTreeMap<u64, oneshot::Sender<Vec<u8>>> = BTreeMap::new();
        let mut number = GREETING_NUMBER;
        let (mut greeted, mut awaiting) = (false, Vec::new());
        writer.write_document(&ManagerFrame::Greeting(self.config.greeter.greeting().into()).encode()).await?;
        let mut next = first;
        loop {
            // What waits is written together: each write is a system call, a record of TLS and a packet of the tunnel.
            while let Some(request) = next.take() {
                let frame = match request {
                    Request::Greet(done) => {
                        // Dropped, which tells it, if the connection breaks.
                        awaiting.push(done);
                        if greeted {
                            awaiting.clear();
                        }
                        continue;
                    }
                    Request::Raft(message) => ManagerFrame::Raft(Bytes::from(message)),
                    Request::Proposal { document, answer } => {
                        number += 1;
                        waiting.insert(number, answer);
                        ManagerFrame::Proposal { number, document: document.into() }
                    }
                };
                if writer.queue_document(&frame.encode())? < TOGETHER {
                    next = self.queue.try_recv().ok();
                }
            }
            writer.flush().await?;
            tokio::select! {
                request = self.queue.recv() => match request {
                    Some(request) => next = Some(request),
                    None => return Ok(()),
                },
                frame = reader.document() => {
                    let frame = frame?.context("the manager closed the connection")?;
                    let (number, answer) = decode_answer(frame).context("an answer that is not understood")?;
                    if number == GREETING_NUMBER {
                        self.config.greeter.greeted(&self.node, &answer);
                        greeted = true;
                        awaiting.clear();
                    } else if let Some(waits) = waiting.remove(&number) {
                        let _ = waits.send(answer.into());
                    }
                }
                // Another certificate: the next message opens a connection with it.
                Ok(()) = identity.changed(), if waiting.is_empty() => return Ok(()),
                () = tokio::time::sleep(IDLE), if waiting.is_empty() => return Ok(()),
            }
        }
    }

    async fn dial(&self) -> anyhow::Result<TlsStream<TcpStream>> {
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

/// Nothing listens at the address, and its host says so.
fn is_refused(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused)
}

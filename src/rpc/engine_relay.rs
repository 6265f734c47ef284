//! A node's Docker API for managers, byte by byte: the manager dials the node (on its mesh address, so through the tunnel), the node
//! connects it to its own socket. A connection is one request, whatever becomes of it (attach, exec, logs that are followed). The node
//! answers first, with a byte and, if it refuses, the reason.

use super::logs::LogLink;
use super::tls;
use crate::accept::keep_alive;
use crate::model::NodeId;
use crate::splice::{WatchedStream, splice};
use anyhow::{Context as _, bail, ensure};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::{client, server};

/// The node has connected the manager to its API.
const OPEN: u8 = 0;
/// The node refuses; the reason follows.
const REFUSED: u8 = 1;
/// Relays of one node at a time.
const RELAYS: usize = 512;
/// Time for the node to answer, and for it to connect to its own socket.
const ANSWER: Duration = Duration::from_secs(3);
/// Longest reason that is read, in bytes.
const REASON: u64 = 1024;
/// How often a node checks that the manager still is one.
const CHECK: Duration = Duration::from_secs(1);
/// Silence after which the other end has to show that it is there.
const IDLE: Duration = Duration::from_secs(15);

/// What a node lets managers use.
pub struct EngineRelay {
    /// The Docker API's socket of this node.
    socket: PathBuf,
    /// Whether a manager has sent a view since this node started. The view before that may name one that is none any more.
    has_view: watch::Receiver<bool>,
    slots: Arc<Semaphore>,
}

impl EngineRelay {
    pub fn new(socket: PathBuf, has_view: watch::Receiver<bool>) -> Self {
        Self { socket, has_view, slots: Arc::new(Semaphore::new(RELAYS)) }
    }
}

/// The node's side. Ends with the request, or when `allowed` is false: the manager is none any more.
///
/// # Errors
/// Why the manager was refused, or cut off.
pub(super) async fn serve(
    relay: Option<&EngineRelay>,
    mut stream: client::TlsStream<TcpStream>,
    allowed: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let _ = keep_alive(stream.get_ref().0, IDLE);
    let Some(relay) = relay else {
        return refuse(stream, "it refuses (access_point.relay is false in its settings)").await;
    };
    if !*relay.has_view.borrow() {
        return refuse(stream, "no manager has sent it a view since it started: try again when its session is open").await;
    }
    let Ok(_slot) = relay.slots.clone().try_acquire_owned() else {
        return refuse(stream, &format!("{RELAYS} requests of managers are relayed there already")).await;
    };
    let api = match tokio::time::timeout(ANSWER, UnixStream::connect(&relay.socket)).await {
        Ok(Ok(api)) => api,
        Ok(Err(error)) => return refuse(stream, &format!("its socket {} cannot be used: {error}", relay.socket.display())).await,
        Err(_) => return refuse(stream, &format!("its socket {} accepts no connection", relay.socket.display())).await,
    };
    stream.write_all(&[OPEN]).await?;
    let stays = async {
        while allowed() {
            tokio::time::sleep(CHECK).await;
        }
    };
    tokio::select! {
        () = splice(WatchedStream::new(stream, |stream| stream.get_ref().0.as_fd()), api) => Ok(()),
        () = stays => bail!("cut off: it is not a manager any more, or this node's certificate has expired"),
    }
}

async fn refuse(mut stream: impl AsyncWrite + Unpin, reason: &str) -> anyhow::Result<()> {
    stream.write_all(&[REFUSED]).await?;
    stream.write_all(reason.as_bytes()).await?;
    stream.shutdown().await?;
    bail!("refused: {reason}")
}

impl LogLink {
    /// A connection to a node's Docker API.
    ///
    /// # Errors
    /// The node cannot be reached in time, is another one, is of a build that has no relay, or refuses.
    pub async fn engine(&self, node: &NodeId, address: SocketAddr) -> anyhow::Result<server::TlsStream<TcpStream>> {
        let mut stream = self.dial(node, address, tls::engine_server_config).await?;
        let _ = keep_alive(stream.get_ref().0, IDLE);
        let answered = tokio::time::timeout(ANSWER, stream.read_u8()).await;
        let answer = answered.context("it gave no answer in time")?.context("it closed the connection")?;
        if answer == OPEN {
            return Ok(stream);
        }
        ensure!(answer == REFUSED, "it gave an answer that is not understood");
        let mut reason = Vec::new();
        let _ = tokio::time::timeout(ANSWER, stream.take(REASON).read_to_end(&mut reason)).await;
        bail!("{}", String::from_utf8_lossy(&reason))
    }
}

//! The manager's side: dials a node for one reader of logs.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::tls;
use super::wire::{FromLogs, MAX_FRAME, ToLogs};
use super::{ALIVE, SILENCE};
use crate::clock::Clock;
use crate::datapath::Sockets;
use crate::model::{LogRequest, NodeId, TaskId, TaskLog};
use crate::trust::Identity;
use anyhow::{Context as _, ensure};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How to reach the other nodes.
#[derive(Clone)]
pub struct LogLink {
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The time that certificates are checked against.
    pub clock: Arc<dyn Clock>,
    /// Makes sockets in the mesh namespace.
    pub sockets: Arc<dyn Sockets>,
    /// This manager's own mesh address.
    pub source: IpAddr,
    /// Time for TCP and the TLS handshake.
    pub connect: Duration,
}

/// What is asked for and has not ended.
#[derive(Default)]
struct Outstanding {
    asked: AtomicUsize,
    /// Nothing more will be asked for.
    closed: AtomicBool,
    changed: Notify,
}

impl LogLink {
    /// Reads logs of a node's tasks as [`super::read_here`] does of this node's.
    ///
    /// # Errors
    /// The node cannot be reached, is another one, or the connection was lost.
    pub async fn read(
        &self,
        node: &NodeId,
        address: SocketAddr,
        requests: mpsc::Receiver<LogRequest>,
        logs: mpsc::Sender<(TaskId, TaskLog)>,
    ) -> anyhow::Result<()> {
        let dialed = tokio::time::timeout(self.connect, self.dial(node, address));
        let stream = dialed.await.context("no connection in time")??;
        let (read, write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read, MAX_FRAME, SILENCE);
        let writer = FrameWriter::new(write, MAX_FRAME, SILENCE);
        let outstanding = Outstanding::default();
        let receive = async {
            let mut ended = 0;
            loop {
                if outstanding.closed.load(Ordering::Acquire) && ended == outstanding.asked.load(Ordering::Acquire) {
                    return anyhow::Ok(());
                }
                let frame = tokio::select! {
                    () = outstanding.changed.notified() => continue,
                    frame = reader.document() => frame?.context("the node closed the connection")?,
                };
                let FromLogs::Log(task, log) = FromLogs::decode(frame).context("an answer that is not understood")? else {
                    continue;
                };
                ended += usize::from(matches!(log, TaskLog::Ended(_)));
                if logs.send((task, log)).await.is_err() {
                    return Ok(());
                }
            }
        };
        // While `receive` waits for what was read to be taken, only this notices that the queue is closed.
        tokio::select! {
            ended = receive => ended,
            ended = ask(requests, writer, &outstanding) => ended,
            () = logs.closed() => Ok(()),
        }
    }

    async fn dial(&self, node: &NodeId, address: SocketAddr) -> anyhow::Result<TlsStream<TcpStream>> {
        let socket = self.sockets.stream(SocketAddr::new(self.source, 0)).context("no socket in the mesh")?;
        let stream = socket.connect(address).await.context("cannot connect")?;
        let _ = stream.set_nodelay(true);
        let identity = self.identity.borrow().clone();
        let config = Arc::new(tls::logs_server_config(&identity, self.clock.clone())?);
        let stream = TlsAcceptor::from(config).accept(stream).await.context("TLS failed")?;
        let name = tls::client_name(stream.get_ref().1.peer_certificates(), &identity)?.context("it shows no certificate")?;
        ensure!(name.node_id == *node, "it is node {}", name.node_id);
        Ok(stream)
    }
}

/// Passes requests on, and signs of life between them, which must not wait for what the node sends.
async fn ask<W: tokio::io::AsyncWrite + Unpin>(
    mut requests: mpsc::Receiver<LogRequest>,
    mut writer: FrameWriter<W>,
    outstanding: &Outstanding,
) -> anyhow::Result<()> {
    let mut open = true;
    loop {
        let message = tokio::select! {
            request = requests.recv(), if open => if let Some(request) = request {
                outstanding.asked.fetch_add(1, Ordering::AcqRel);
                ToLogs::Read(request)
            } else {
                open = false;
                outstanding.closed.store(true, Ordering::Release);
                outstanding.changed.notify_one();
                continue;
            },
            () = tokio::time::sleep(ALIVE) => ToLogs::Alive,
        };
        writer.write(&message).await?;
    }
}

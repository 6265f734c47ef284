//! The manager's side: dials a node for one reader of logs.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::tls;
use super::wire::{FromLogs, MAX_FRAME, ToLogs};
use super::{ALIVE, SILENCE};
use crate::clock::Clock;
use crate::datapath::Sockets;
use crate::model::{LogRequest, NodeId, TaskId, TaskLog};
use crate::sync::lock;
use crate::trust::Identity;
use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
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

/// Makes the TLS configuration of a manager's side.
type TlsFor = fn(&Identity, Arc<dyn Clock>) -> anyhow::Result<rustls::ServerConfig>;

/// Longest reason of an end that is passed on, in characters.
const REASON: usize = 1024;

/// What is asked for and has not ended. A node can answer for nothing else.
#[derive(Default)]
struct Outstanding {
    asked: Mutex<BTreeSet<TaskId>>,
    /// Nothing more will be asked for.
    closed: AtomicBool,
    changed: Notify,
}

impl Outstanding {
    fn ask(&self, task: &TaskId) {
        lock(&self.asked).insert(task.clone());
    }

    /// What the node says of a task, if that was asked for and has not ended.
    fn answered(&self, task: &TaskId, log: TaskLog) -> Option<TaskLog> {
        let mut asked = lock(&self.asked);
        match log {
            TaskLog::Piece(piece) => asked.contains(task).then_some(TaskLog::Piece(piece)),
            TaskLog::Ended(reason) => {
                let short = reason.map(|reason| reason.chars().take(REASON).collect());
                asked.remove(task).then_some(TaskLog::Ended(short))
            }
        }
    }

    fn is_done(&self) -> bool {
        self.closed.load(Ordering::Acquire) && lock(&self.asked).is_empty()
    }
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
        let stream = self.dial(node, address, tls::logs_server_config).await?;
        let (read, write) = tokio::io::split(stream);
        let mut reader = FrameReader::new(read, MAX_FRAME, SILENCE);
        let writer = FrameWriter::new(write, MAX_FRAME, SILENCE);
        let outstanding = Outstanding::default();
        let receive = async {
            loop {
                if outstanding.is_done() {
                    return anyhow::Ok(());
                }
                let frame = tokio::select! {
                    () = outstanding.changed.notified() => continue,
                    frame = reader.document() => frame?.context("the node closed the connection")?,
                };
                let FromLogs::Log(task, log) = FromLogs::decode(frame).context("an answer that is not understood")? else {
                    continue;
                };
                let Some(log) = outstanding.answered(&task, log) else { continue };
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

    /// A connection to a node for what the configuration names.
    ///
    /// # Errors
    /// The node cannot be reached in time, is another one, or does not know what it is asked for.
    pub(in crate::rpc) async fn dial(
        &self,
        node: &NodeId,
        address: SocketAddr,
        config: TlsFor,
    ) -> anyhow::Result<TlsStream<TcpStream>> {
        let dialed = tokio::time::timeout(self.connect, self.handshake(node, address, config));
        dialed.await.context("no connection in time")?
    }

    async fn handshake(&self, node: &NodeId, address: SocketAddr, config: TlsFor) -> anyhow::Result<TlsStream<TcpStream>> {
        let socket = self.sockets.stream(SocketAddr::new(self.source, 0)).context("no socket in the mesh")?;
        let stream = socket.connect(address).await.context("cannot connect")?;
        let _ = stream.set_nodelay(true);
        let identity = self.identity.borrow().clone();
        let config = Arc::new(config(&identity, self.clock.clone())?);
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
                outstanding.ask(&request.task);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LogPiece, LogStream};
    use bytes::Bytes;

    #[test]
    fn a_node_answers_only_for_what_it_was_asked_and_once() {
        let piece = || TaskLog::Piece(LogPiece { stream: LogStream::Stdout, data: Bytes::from_static(b"line\n") });
        let (outstanding, mine, other) = (Outstanding::default(), TaskId::from("t1"), TaskId::from("t2"));
        assert_eq!(outstanding.answered(&mine, TaskLog::Ended(None)), None, "before it was asked");
        outstanding.ask(&mine);
        assert_eq!((outstanding.answered(&other, piece()), outstanding.answered(&mine, piece())), (None, Some(piece())));
        let long = TaskLog::Ended(Some("\u{e4}".repeat(9000)));
        let ended = outstanding.answered(&mine, long.clone());
        assert!(matches!(&ended, Some(TaskLog::Ended(Some(reason))) if reason.chars().count() == REASON));
        assert_eq!((outstanding.answered(&mine, piece()), outstanding.answered(&mine, long)), (None, None));
        assert!(!outstanding.is_done(), "more may be asked");
        outstanding.closed.store(true, Ordering::Release);
        assert!(outstanding.is_done());
    }
}

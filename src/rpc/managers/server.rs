//! The accepting side: passes raft's messages on, and answers proposals, several at a time.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::refused::PeerRefusal;
use super::greeter::ManagerGreeter;
use super::wire::{GREETING_NUMBER, MAX_FRAME, MAX_GREETING, ManagerFrame, encode_answer};
use crate::model::NodeId;
use anyhow::Context as _;
use async_trait::async_trait;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A connection on which nothing came for this long is closed: the other side dials again when it has something to say.
const IDLE: Duration = Duration::from_mins(2);
/// Bytes of answers that are written together.
const TOGETHER: usize = 64 << 10;
/// The other side takes nothing.
const STUCK: Duration = Duration::from_secs(5);
/// Proposals of one manager that are worked on at a time.
const PROPOSALS: usize = 1024;

/// The message is in the name of another manager than the one that sends it, or cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a raft message in the name of another manager")]
pub struct WrongSender;

/// Serves other managers.
#[async_trait]
pub trait ManagerServer: ManagerGreeter {
    /// Whether the node is a manager of the cluster as this one knows it, and this is its mesh address. A certificate alone may be of
    /// before a demotion, or stolen.
    fn is_manager(&self, node: &NodeId, address: IpAddr) -> bool;
    /// A message for raft, from this node.
    ///
    /// # Errors
    /// It is not this node's: the connection ends.
    fn raft(&self, node: &NodeId, message: Vec<u8>) -> Result<(), WrongSender>;
    /// Answers a proposal.
    async fn propose(&self, document: Vec<u8>) -> Vec<u8>;
}

/// An accepted connection of a node with a manager's certificate, at its own mesh address.
pub(in super::super) struct AcceptedManager {
    reader: FrameReader<ReadHalf<TlsStream<TcpStream>>>,
    writer: FrameWriter<WriteHalf<TlsStream<TcpStream>>>,
}

/// Exchanges greetings.
///
/// # Errors
/// The connection broke, or does not begin with a greeting.
pub(in super::super) async fn greet(
    stream: TlsStream<TcpStream>,
    node: &NodeId,
    server: &dyn ManagerServer,
    limit: Duration,
) -> anyhow::Result<AcceptedManager> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_GREETING, IDLE);
    let mut writer = FrameWriter::new(write, MAX_FRAME, STUCK);
    let first = tokio::time::timeout(limit, reader.document()).await.context("no greeting in time")??;
    let Some(ManagerFrame::Greeting(greeting)) = first.and_then(ManagerFrame::decode) else {
        return Err(PeerRefusal::Frame.error("a connection that does not begin with a greeting"));
    };
    server.greeted(node, &greeting);
    writer.write_document(&encode_answer(GREETING_NUMBER, &server.greeting())).await?;
    reader.set_max(MAX_FRAME);
    Ok(AcceptedManager { reader, writer })
}

/// Serves one connection until it is closed, or until `expired` ends.
pub(in super::super) async fn serve(
    connection: AcceptedManager,
    (node, address): (&NodeId, IpAddr),
    server: &Arc<dyn ManagerServer>,
    shutdown: &CancellationToken,
    expired: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let AcceptedManager { mut reader, mut writer } = connection;
    let (answers, mut queue) = mpsc::channel::<Vec<u8>>(PROPOSALS);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let _ends_tasks = stop.clone().drop_guard();
    let receive = async {
        while let Some(frame) = reader.document().await? {
            // A node that was demoted meanwhile has no more to say.
            if !server.is_manager(node, address) {
                return Err(PeerRefusal::Manager.error(format!("node {node} is not a manager any more")));
            }
            let Some(frame) = ManagerFrame::decode(frame) else {
                return Err(PeerRefusal::Frame.error("a frame that is not understood"));
            };
            match frame {
                ManagerFrame::Raft(message) => {
                    server.raft(node, message.into()).map_err(|wrong| PeerRefusal::Sender.of(wrong.into()))?;
                }
                ManagerFrame::Greeting(greeting) => server.greeted(node, &greeting),
                ManagerFrame::Proposal { number, document } => {
                    let (server, stop) = (server.clone(), stop.clone());
                    let answer = answers.clone().reserve_owned().await?;
                    tasks.spawn(async move {
                        if let Some(done) = stop.run_until_cancelled(server.propose(document.into())).await {
                            answer.send(encode_answer(number, &done));
                        }
                    });
                }
            }
        }
        anyhow::Ok(())
    };
    let send = async {
        while let Some(answer) = queue.recv().await {
            let mut length = writer.queue_document(&answer)?;
            while length < TOGETHER
                && let Ok(answer) = queue.try_recv()
            {
                length = writer.queue_document(&answer)?;
            }
            writer.flush().await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = expired => Ok(()),
        ended = receive => ended,
        ended = send => ended,
    }
}

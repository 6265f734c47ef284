//! The accepting side: passes raft's messages on, and answers proposals, several at a time.

use super::super::frame::{FrameReader, FrameWriter};
use super::wire::{MAX_FRAME, ManagerFrame, encode_answer};
use crate::model::NodeId;
use anyhow::Context as _;
use async_trait::async_trait;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A connection on which nothing came for this long is closed: the other side dials again when it has something to say.
const IDLE: Duration = Duration::from_mins(2);
/// The other side takes nothing.
const STUCK: Duration = Duration::from_secs(5);
/// Proposals of one manager that are worked on at a time.
const PROPOSALS: usize = 1024;

/// Serves other managers.
#[async_trait]
pub trait ManagerServer: Send + Sync {
    /// Whether the node is a manager of the cluster as this one knows it, and this is its mesh address. A certificate alone may be of
    /// before a demotion, or stolen.
    fn is_manager(&self, node: &NodeId, address: IpAddr) -> bool;
    /// A message for raft.
    fn raft(&self, message: Vec<u8>);
    /// Answers a proposal.
    async fn propose(&self, document: Vec<u8>) -> Vec<u8>;
}

/// Serves one connection until it is closed, or until `expired` ends.
pub(in super::super) async fn serve(
    stream: TlsStream<TcpStream>,
    (node, address): (&NodeId, IpAddr),
    server: &Arc<dyn ManagerServer>,
    shutdown: &CancellationToken,
    expired: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_FRAME, IDLE);
    let mut writer = FrameWriter::new(write, MAX_FRAME, STUCK);
    let (answers, mut queue) = mpsc::channel::<Vec<u8>>(PROPOSALS);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let _ends_tasks = stop.clone().drop_guard();
    let receive = async {
        while let Some(frame) = reader.document().await? {
            // A node that was demoted meanwhile has no more to say.
            anyhow::ensure!(server.is_manager(node, address), "node {node} is not a manager any more");
            match ManagerFrame::decode(frame).context("a frame that is not understood")? {
                ManagerFrame::Raft(message) => server.raft(message.into()),
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
            writer.write_document(&answer).await?;
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

//! The leader's side of a session: hello, then messages in both directions until one side closes.

use super::super::frame::{FrameError, FrameReader, FrameWriter};
use super::super::limits::ServerLimits;
use super::super::refused::PeerRefusal;
use super::super::tls::{ServerReader, ServerWriter};
use crate::model::NodeId;
use crate::protocol::MAX_FRAME;
use crate::protocol::shared_documents::SharedDocuments;
use crate::protocol::view_stream::{ViewEncoder, merge};
use crate::protocol::{FORMATS, PIECES, ToManager, ToNode, agree, formats_in};
use crate::trust::NodeName;
use anyhow::bail;
use async_trait::async_trait;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Keeps the sessions (the dispatcher).
#[async_trait]
pub trait SessionServer: Send + Sync {
    /// Whether this is the node's own address in the mesh. The tunnel has checked the key of that address, so that a
    /// certificate and its key alone open no session. True for a node that the store does not have, to which `open` reports it.
    fn is_at(&self, node: &NodeId, address: IpAddr) -> bool;
    /// Whether this is the mesh address of a node that the store has.
    fn is_member(&self, address: IpAddr) -> bool;
    /// Opens a session for a node that has sent its hello; returns the session's number. `out` carries messages to the
    /// node, the first of them `Welcome`. A node that noticed a broken connection before the leader did opens a second
    /// session: the older one is to be ended then. The session also ends when every `out` is dropped.
    ///
    /// On an error the node receives what is in `out` (`NotLeader`, `Removed`), or else `Refused` with the error's text,
    /// and the connection is closed.
    async fn open(&self, node: NodeId, hello: ToManager, out: mpsc::Sender<ToNode>) -> anyhow::Result<u64>;
    /// Handles a message of the node; a heartbeat is answered with `Alive`, by which the node knows that the leader is
    /// alive. While this waits, nothing more is read from the node; it is cancelled when the connection closes.
    async fn message(&self, session: u64, message: ToManager);
    /// The connection is closed. Called once for each session opened.
    async fn closed(&self, session: u64);
}

/// Why an open session ends.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a certificate of the two has expired")]
    Expired,
}

impl SessionError {
    /// The text to answer the node with; `None` when it would not receive an answer.
    fn answer(&self) -> Option<String> {
        match self {
            Self::Frame(error) => error.answer(),
            Self::Expired => Some(self.to_string()),
        }
    }
}

/// Serves one session until it is closed, or until `expired` ends: then a certificate of the two is no longer valid.
pub(in super::super) async fn serve(
    stream: TlsStream<TcpStream>,
    name: NodeName,
    server: &dyn SessionServer,
    limits: &ServerLimits,
    documents: &Arc<SharedDocuments>,
    shutdown: &CancellationToken,
    expired: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_FRAME, limits.first_message);
    let mut writer = FrameWriter::new(write, MAX_FRAME, limits.session_silence);
    let (hello, format) = match read_hello(&mut reader, limits).await? {
        Ok(hello) => hello,
        Err(why) => {
            close_with(&mut writer, ToNode::Refused(why.clone())).await;
            return Err(PeerRefusal::Frame.error(why));
        }
    };
    let (out, mut queue) = mpsc::channel(limits.session_queue);
    let session = match server.open(name.node_id, hello, out).await {
        Ok(session) => session,
        Err(error) => {
            let is_removed = refuse_session(&mut writer, &mut queue, &error).await;
            return if is_removed { Err(PeerRefusal::Member.of(error)) } else { Ok(()) };
        }
    };
    reader.set_idle_limit(limits.session_silence);
    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = expired => Err(SessionError::Expired),
        ended = receive(&mut reader, server, session) => ended.map_err(SessionError::from),
        ended = send(&mut writer, &mut queue, format, documents.clone()) => ended.map_err(SessionError::from),
    };
    server.closed(session).await;
    if let Err(error) = &ended
        && let Some(why) = error.answer()
    {
        // The write that was cancelled may have stopped within a frame; the node then fails to decode this one, and
        // closes as well.
        let _ = writer.write(&ToNode::Refused(why)).await;
    }
    writer.close().await;
    ended.map_err(|error| match error {
        SessionError::Frame(error) => error.into(),
        expired @ SessionError::Expired => expired.into(),
    })
}

/// Reads the first message; returns it and the format of the session. The inner error is the text that refuses the session.
async fn read_hello(reader: &mut ServerReader, limits: &ServerLimits) -> anyhow::Result<Result<(ToManager, u32), String>> {
    Ok(match tokio::time::timeout(limits.first_message, reader.document()).await {
        Ok(Ok(Some(document))) => parse_hello(&document),
        Ok(Ok(None)) => bail!("the node closed the connection without a hello"),
        Ok(Err(error)) => Err(error.answer().unwrap_or_default()),
        Err(_) => Err("no hello was received in time".to_owned()),
    })
}

fn parse_hello(document: &[u8]) -> Result<(ToManager, u32), String> {
    let format = match formats_in(document) {
        Some(node) => agree(FORMATS, node).map_err(|error| error.to_string())?,
        // Not a hello; parsing it gives the reason.
        None => FORMATS.newest,
    };
    match serde_json::from_slice::<ToManager>(document) {
        Ok(hello @ ToManager::Hello { .. }) => Ok((hello, format)),
        Ok(_) => Err("a session begins with a hello".to_owned()),
        Err(error) => Err(format!("a hello that is not understood: {error}")),
    }
}

/// Sends what the dispatcher has queued for a session that it did not open, or the error; returns whether the node was removed.
async fn refuse_session(writer: &mut ServerWriter, queue: &mut mpsc::Receiver<ToNode>, error: &anyhow::Error) -> bool {
    let (mut queued, mut is_removed) = (false, false);
    while let Ok(message) = queue.try_recv() {
        queued = true;
        is_removed |= matches!(message, ToNode::Removed(_));
        let _ = writer.write(&message).await;
    }
    if !queued {
        let _ = writer.write(&ToNode::Refused(format!("{error:#}"))).await;
    }
    writer.close().await;
    // DEBUG: a manager that does not lead refuses every session.
    tracing::debug!(error = format!("{error:#}"), "session refused");
    is_removed
}

/// Passes the node's messages to the dispatcher until the node closes the connection.
async fn receive(reader: &mut ServerReader, server: &dyn SessionServer, session: u64) -> Result<(), FrameError> {
    while let Some(message) = reader.message::<ToManager>().await? {
        server.message(session, message).await;
    }
    Ok(())
}

/// Sends the queued messages until the dispatcher has dropped the session's sender.
/// Views that wait behind one that a slow node still takes are sent as one. Before format [`PIECES`] a view is one message.
async fn send(
    writer: &mut ServerWriter,
    queue: &mut mpsc::Receiver<ToNode>,
    format: u32,
    documents: Arc<SharedDocuments>,
) -> Result<(), FrameError> {
    let mut encoder = ViewEncoder::new(documents, format);
    let mut next = None;
    loop {
        let message = match next.take() {
            Some(message) => message,
            None => match queue.recv().await {
                Some(message) => message,
                None => return Ok(()),
            },
        };
        let mut message = message;
        let mut answers = false;
        while matches!(message, ToNode::View { .. })
            && next.is_none()
            && let Ok(waiting) = queue.try_recv()
        {
            match merge(&mut message, waiting) {
                Ok(()) => {}
                Err(ToNode::Alive) => answers = true,
                Err(other) => next = Some(other),
            }
        }
        if format >= PIECES {
            for document in encoder.encode(message) {
                writer.write_document(&document).await?;
            }
        } else {
            writer.write(&message).await?;
        }
        if answers {
            writer.write(&ToNode::Alive).await?;
        }
    }
}

async fn close_with(writer: &mut ServerWriter, message: ToNode) {
    let _ = writer.write(&message).await;
    writer.close().await;
}

/// Refuses a session on a connection that cannot have one; the reason is for people.
pub(in super::super) async fn refuse(stream: TlsStream<TcpStream>, why: &str) {
    let limits = ServerLimits::default();
    let (_read, write) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(write, MAX_FRAME, limits.first_message);
    close_with(&mut writer, ToNode::Refused(why.to_owned())).await;
}

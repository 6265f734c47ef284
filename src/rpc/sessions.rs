//! The leader's end of a session: hello, then messages both ways until one end goes.

use super::frame::{FrameError, FrameReader, FrameWriter};
use super::server::{Limits, complaint};
use crate::model::NodeId;
use crate::protocol::MAX_FRAME;
use crate::protocol::{FORMAT, ToManager, ToNode, format_of};
use crate::trust::NodeName;
use anyhow::bail;
use async_trait::async_trait;
use tokio::io::WriteHalf;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Who keeps sessions (the dispatcher).
#[async_trait]
pub trait SessionServer: Send + Sync {
    /// A node says hello (a second time, if it noticed a broken connection first: then the older session is to be ended); `out` goes to it, and the first message in it is `Welcome`. Returns the session's number. On an error the node gets what was put into
    /// `out` so far (`NotLeader`, `Removed`), or else `Refused` with the error's text, and the connection is closed.
    /// The session ends as well when every `out` is dropped.
    async fn open(&self, node: NodeId, hello: ToManager, out: mpsc::Sender<ToNode>) -> anyhow::Result<u64>;
    /// The node says something; a heartbeat is answered with `Alive`, by which the node knows that the leader lives. While
    /// this waits nothing more is read from the node; it is dropped midway when the connection ends.
    async fn message(&self, session: u64, message: ToManager);
    /// The connection is gone. Called once for each session opened.
    async fn closed(&self, session: u64);
}

type Writer = FrameWriter<WriteHalf<TlsStream<TcpStream>>>;

/// Serves one session to its end.
pub(super) async fn serve(
    stream: TlsStream<TcpStream>,
    name: NodeName,
    server: &dyn SessionServer,
    limits: &Limits,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_FRAME, limits.first_message);
    let mut writer = FrameWriter::new(write, MAX_FRAME, limits.session_silence);
    let hello = match tokio::time::timeout(limits.first_message, reader.document()).await {
        Ok(Ok(Some(document))) => hello(&document),
        Ok(Ok(None)) => bail!("it ended before it began"),
        Ok(Err(error)) => Err(complaint(&error).unwrap_or_default()),
        Err(_) => Err("no hello came".to_owned()),
    };
    let hello = match hello {
        Ok(hello) => hello,
        Err(why) => {
            end(&mut writer, ToNode::Refused(why.clone())).await;
            bail!(why);
        }
    };
    let (out, mut queue) = mpsc::channel(limits.session_queue);
    let session = match server.open(name.node_id, hello, out).await {
        Ok(session) => session,
        Err(error) => {
            let mut said = false;
            while let Ok(message) = queue.try_recv() {
                said = true;
                let _ = writer.write(&message).await;
            }
            if !said {
                let _ = writer.write(&ToNode::Refused(format!("{error:#}"))).await;
            }
            writer.close().await;
            // Not leading is no news.
            tracing::debug!(error = format!("{error:#}"), "session refused");
            return Ok(());
        }
    };
    reader.set_patience(limits.session_silence);
    let incoming = async {
        loop {
            match reader.message::<ToManager>().await {
                Ok(Some(message)) => server.message(session, message).await,
                Ok(None) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    };
    let outgoing = async {
        while let Some(message) = queue.recv().await {
            writer.write(&message).await?;
        }
        Ok::<(), FrameError>(())
    };
    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = incoming => ended,
        ended = outgoing => ended,
    };
    server.closed(session).await;
    if let Err(error) = &ended
        && let Some(why) = complaint(error)
    {
        // The other half may have been cut in the middle of a frame; then the node sees garbage, which says as much.
        let _ = writer.write(&ToNode::Refused(why)).await;
    }
    writer.close().await;
    ended.map_err(Into::into)
}

fn hello(document: &[u8]) -> Result<ToManager, String> {
    match format_of(document) {
        Some(node) if node != FORMAT => {
            return Err(format!(
                "the manager speaks protocol {FORMAT}, this node {node}: install the same version of skep on both"
            ));
        }
        _ => {}
    }
    match serde_json::from_slice::<ToManager>(document) {
        Ok(hello @ ToManager::Hello { .. }) => Ok(hello),
        Ok(_) => Err("a session begins with a hello".to_owned()),
        Err(error) => Err(format!("a hello that is not understood: {error}")),
    }
}

async fn end(writer: &mut Writer, message: ToNode) {
    let _ = writer.write(&message).await;
    writer.close().await;
}

/// Says why there is no session here.
pub(super) async fn refuse(stream: TlsStream<TcpStream>, why: &str) {
    let limits = Limits::default();
    let (_read, write) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(write, MAX_FRAME, limits.first_message);
    end(&mut writer, ToNode::Refused(why.to_owned())).await;
}

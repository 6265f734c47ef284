//! The manager's end of a join: admit, answer, prove the UDP way both ways, confirm; revoke when anything of it fails.

use super::frame::{FrameReader, FrameWriter};
use super::proof::{Direction, Way};
use super::server::{Limits, complaint};
use crate::model::NodeId;
use crate::protocol::{FORMAT, FromJoiner, JoinRefused, JoinReply, JoinRequest, ToJoiner, format_of};
use crate::protocol::{MAX_FRAME, MAX_JOINER_FRAME};
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use std::net::SocketAddr;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Who decides over joins. A node that is admitted is either confirmed or revoked, whatever happens in between; a manager
/// that dies in between leaves it admitted.
#[async_trait]
pub trait JoinAuthority: Send + Sync {
    /// Checks token and format of names, gives the node its place and certificate, writes it. `from` is where the
    /// connection comes from. When this returns the tunnel knows the node or soon will.
    async fn admit(&self, request: &JoinRequest, from: SocketAddr) -> Result<JoinReply, JoinRefused>;
    /// Bytes that this manager's tunnel got from the node so far; zero while it does not know it.
    async fn received(&self, node: &NodeId) -> u64;
    /// Makes this manager's tunnel send the node something, so that a blocked way toward it shows. May do nothing.
    async fn send_probe(&self, _node: &NodeId) {}
    /// The join succeeded.
    async fn confirm(&self, node: &NodeId);
    /// The join failed: forget the node.
    async fn revoke(&self, node: &NodeId);
}

/// Time was up.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Late(String);

type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
type Writer = FrameWriter<WriteHalf<TlsStream<TcpStream>>>;

fn split(stream: TlsStream<TcpStream>, limits: &Limits) -> (Reader, Writer) {
    let (read, write) = tokio::io::split(stream);
    (FrameReader::new(read, MAX_JOINER_FRAME, limits.first_message), FrameWriter::new(write, MAX_FRAME, limits.first_message))
}

/// Serves one join connection to its end.
pub(super) async fn serve(
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    authority: &dyn JoinAuthority,
    limits: &Limits,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let (mut reader, mut writer) = split(stream, limits);
    let request = match tokio::time::timeout(limits.first_message, request(&mut reader)).await {
        Ok(Ok(request)) => request,
        Ok(Err((refused, error))) => {
            if let Some(refused) = refused {
                let _ = writer.write(&ToJoiner::Refused(refused)).await;
                writer.close().await;
            }
            return Err(error);
        }
        Err(_) => bail!("a joiner did not say what it wants"),
    };
    let host = request.description.hostname.clone();
    let reply = match authority.admit(&request, from).await {
        Ok(reply) => reply,
        Err(refused) => {
            let _ = writer.write(&ToJoiner::Refused(refused.clone())).await;
            writer.close().await;
            return Err(refused).with_context(|| format!("refused to let {host:?} join"));
        }
    };
    let node = reply.node_id.clone();
    // From here on the node exists: every way out confirms or revokes it.
    let proved = tokio::select! {
        () = shutdown.cancelled() => Err(anyhow::anyhow!("the manager shuts down")),
        // A proof that fails says so itself; this is only for one that hangs in a call.
        proved = tokio::time::timeout(limits.join * 2, prove(&mut reader, &mut writer, reply, authority, limits)) => {
            proved.unwrap_or_else(|_| Err(anyhow::anyhow!("the join hung")))
        }
    };
    match proved {
        Ok(()) => {
            authority.confirm(&node).await;
            if let Err(error) = writer.write(&ToJoiner::Done).await {
                authority.revoke(&node).await;
                return Err(error)
                    .with_context(|| format!("{host:?} went away as its join was done; node {node} is forgotten again"));
            }
            tracing::info!(%node, host, %from, "a node has joined");
            writer.close().await;
            Ok(())
        }
        Err(error) => {
            authority.revoke(&node).await;
            let last = if error.is::<Late>() { ToJoiner::Late } else { ToJoiner::GaveUp(format!("{error:#}")) };
            let _ = writer.write(&last).await;
            writer.close().await;
            Err(error).with_context(|| format!("join of {host:?} failed; node {node} is forgotten again"))
        }
    }
}

/// Reads the request. An error comes with what the joiner shall hear, if anything.
async fn request(reader: &mut Reader) -> Result<JoinRequest, (Option<JoinRefused>, anyhow::Error)> {
    let bad = |text: String| (Some(JoinRefused::Other(text.clone())), anyhow::anyhow!(text));
    let document = match reader.document().await {
        Ok(Some(document)) => document,
        Ok(None) => return Err((None, anyhow::anyhow!("a joiner went away without a word"))),
        Err(error) => return Err((complaint(&error).map(JoinRefused::Other), error.into())),
    };
    match format_of(&document) {
        Some(joiner) if joiner != FORMAT => {
            let refused = JoinRefused::Format { manager: FORMAT, joiner };
            return Err((Some(refused.clone()), refused.into()));
        }
        _ => {}
    }
    match serde_json::from_slice::<FromJoiner>(&document) {
        Ok(FromJoiner::Request(request)) => Ok(*request),
        Ok(_) => Err(bad("a join begins with a request".to_owned())),
        Err(error) => Err(bad(format!("a request that is not understood: {error}"))),
    }
}

/// Answers, then compares counters with the joiner until both ways are proved or time is up.
async fn prove(
    reader: &mut Reader,
    writer: &mut Writer,
    reply: JoinReply,
    authority: &dyn JoinAuthority,
    limits: &Limits,
) -> anyhow::Result<()> {
    let (node, port) = (reply.node_id.clone(), reply.data_path_port);
    // A key that was a member before may have counters from then.
    let before = authority.received(&node).await;
    writer.write(&ToJoiner::Reply(Box::new(reply))).await?;
    reader.set_patience(limits.join);
    let mut way = Way::default();
    let mut tick = tokio::time::interval(limits.proof_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let deadline = tokio::time::sleep(limits.join);
    tokio::pin!(deadline);
    let mut done = false;
    while !(done && way.proved()) {
        tokio::select! {
            () = &mut deadline => {
                let late = match way.blocked(false) {
                    Some(Direction::In) => format!("UDP {port} from the joiner to the manager is blocked: the manager received nothing"),
                    Some(Direction::Out) => format!("UDP {port} from the manager to the joiner is blocked: the joiner received nothing"),
                    None => "the joiner did not end its join".to_owned(),
                };
                // What the joiner judges by.
                writer.write(&ToJoiner::Proof(way.proof())).await?;
                return Err(Late(late).into());
            }
            _ = tick.tick() => {
                authority.send_probe(&node).await;
                way.received(authority.received(&node).await.saturating_sub(before));
                writer.write(&ToJoiner::Proof(way.proof())).await?;
            }
            message = reader.message::<FromJoiner>() => match message? {
                Some(FromJoiner::Proof(proof)) => way.told(proof),
                Some(FromJoiner::Done) => done = true,
                Some(FromJoiner::GaveUp(why)) => bail!("the joiner gave up: {why}"),
                Some(FromJoiner::Request(_)) => bail!("a second request on the same connection"),
                None => bail!("the joiner went away"),
            },
        }
    }
    Ok(())
}

/// Says why this is not the place to join.
pub(super) async fn refuse(stream: TlsStream<TcpStream>, why: &str) {
    let (_reader, mut writer) = split(stream, &Limits::default());
    let _ = writer.write(&ToJoiner::Refused(JoinRefused::Other(why.to_owned()))).await;
    writer.close().await;
}

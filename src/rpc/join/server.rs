//! The manager's side of a join: admit, answer, prove that UDP passes in both directions, confirm; revoke when any of it
//! fails.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::limits::ServerLimits;
use super::super::proof::{Direction, JoinSide, UdpReachability};
use super::super::tls::{ServerReader, ServerWriter};
use crate::model::NodeId;
use crate::protocol::{FORMATS, FromJoiner, JoinRefused, JoinReply, JoinRequest, ToJoiner, agree, formats_in};
use crate::protocol::{MAX_FRAME, MAX_JOINER_FRAME};
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Decides over joins. An admitted node is either confirmed or revoked, whatever happens in between; a manager that is
/// killed in between leaves it admitted.
#[async_trait]
pub trait JoinAuthority: Send + Sync {
    /// Checks the token and the names in the request, assigns subnet and address, issues the certificate and stores the
    /// node. `from` is the source address of the connection. Once this returns, the tunnel knows the node or is about to.
    async fn admit(&self, request: &JoinRequest, from: SocketAddr) -> Result<JoinReply, JoinRefused>;
    /// Bytes that this manager's tunnel has received from the node; zero while it does not know the node.
    async fn received(&self, node: &NodeId) -> u64;
    /// Sends the node a packet through the tunnel, so that a blocked direction is detected. May do nothing.
    async fn send_probe(&self, _node: &NodeId) {}
    /// The join succeeded.
    async fn confirm(&self, node: &NodeId);
    /// The join failed: removes the node.
    async fn revoke(&self, node: &NodeId);
}

/// The joiner did not prove UDP reachability in time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct ProofTimeout(String);

fn split(stream: TlsStream<TcpStream>, limits: &ServerLimits) -> (ServerReader, ServerWriter) {
    let (read, write) = tokio::io::split(stream);
    (FrameReader::new(read, MAX_JOINER_FRAME, limits.first_message), FrameWriter::new(write, MAX_FRAME, limits.first_message))
}

/// Serves one join connection until it is closed.
pub(in super::super) async fn serve(
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    authority: &dyn JoinAuthority,
    limits: &ServerLimits,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let (mut reader, mut writer) = split(stream, limits);
    let request = match tokio::time::timeout(limits.first_message, read_request(&mut reader)).await {
        Ok(Ok(request)) => request,
        Ok(Err((refused, error))) => {
            if let Some(refused) = refused {
                close_with(&mut writer, &ToJoiner::Refused(refused)).await;
            }
            return Err(error);
        }
        Err(_) => bail!("a joiner sent no request in time"),
    };
    let host = request.description.hostname.clone();
    let reply = match authority.admit(&request, from).await {
        Ok(reply) => reply,
        Err(refused) => {
            close_with(&mut writer, &ToJoiner::Refused(refused.clone())).await;
            return Err(refused).with_context(|| format!("refused the join of {host:?}"));
        }
    };
    let node = reply.node_id.clone();
    // From here on the node exists: every path confirms or revokes it.
    let proved = tokio::select! {
        () = shutdown.cancelled() => Err(anyhow::anyhow!("the manager shuts down")),
        // The proof has its own deadline; this one is for a call that hangs.
        proved = tokio::time::timeout(limits.join * 2, prove(&mut reader, &mut writer, reply, authority, limits)) => {
            proved.unwrap_or_else(|_| Err(anyhow::anyhow!("the join hung")))
        }
    };
    match proved {
        Ok(()) => confirm(&mut writer, authority, &node, &host, from).await,
        Err(error) => {
            authority.revoke(&node).await;
            let last = if error.is::<ProofTimeout>() { ToJoiner::Late } else { ToJoiner::GaveUp(format!("{error:#}")) };
            close_with(&mut writer, &last).await;
            Err(error).with_context(|| format!("join of {host:?} failed; node {node} is removed again"))
        }
    }
}

/// Confirms the node and notifies the joiner; revokes the node if the joiner has disconnected.
async fn confirm(
    writer: &mut ServerWriter,
    authority: &dyn JoinAuthority,
    node: &NodeId,
    host: &str,
    from: SocketAddr,
) -> anyhow::Result<()> {
    authority.confirm(node).await;
    if let Err(error) = writer.write(&ToJoiner::Done).await {
        authority.revoke(node).await;
        return Err(error).with_context(|| format!("{host:?} disconnected as its join was done; node {node} is removed again"));
    }
    tracing::info!(%node, host, %from, "node joined");
    writer.close().await;
    Ok(())
}

/// Reads the request. An error carries the answer for the joiner, if there is one.
async fn read_request(reader: &mut ServerReader) -> Result<JoinRequest, (Option<JoinRefused>, anyhow::Error)> {
    let bad = |text: String| (Some(JoinRefused::Other(text.clone())), anyhow::anyhow!(text));
    let document = match reader.document().await {
        Ok(Some(document)) => document,
        Ok(None) => return Err((None, anyhow::anyhow!("a joiner closed the connection without a request"))),
        Err(error) => return Err((error.answer().map(JoinRefused::Other), error.into())),
    };
    if let Some(Err(error)) = formats_in(&document).map(|joiner| agree(FORMATS, joiner)) {
        return Err((Some(error.into()), error.into()));
    }
    match serde_json::from_slice::<FromJoiner>(&document) {
        Ok(FromJoiner::Request(request)) => Ok(*request),
        Ok(_) => Err(bad("a join begins with a request".to_owned())),
        Err(error) => Err(bad(format!("a request that is not understood: {error}"))),
    }
}

/// Sends the reply, then exchanges counters with the joiner until both directions are proved or the time is over.
async fn prove(
    reader: &mut ServerReader,
    writer: &mut ServerWriter,
    reply: JoinReply,
    authority: &dyn JoinAuthority,
    limits: &ServerLimits,
) -> anyhow::Result<()> {
    let (node, port) = (reply.node_id.clone(), reply.data_path_port);
    // A key that was a member before may have counters from that time.
    let before = authority.received(&node).await;
    writer.write(&ToJoiner::Reply(Box::new(reply))).await?;
    reader.set_idle_limit(limits.join);
    let mut udp = UdpReachability::new(JoinSide::Manager);
    let mut tick = tokio::time::interval(limits.proof_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let deadline = tokio::time::sleep(limits.join);
    tokio::pin!(deadline);
    let mut done = false;
    while !(done && udp.proved()) {
        tokio::select! {
            () = &mut deadline => {
                // The joiner derives the blocked direction from this last report.
                writer.write(&ToJoiner::Proof(udp.proof())).await?;
                return Err(proof_timeout(udp, port).into());
            }
            _ = tick.tick() => {
                authority.send_probe(&node).await;
                udp.set_received(authority.received(&node).await.saturating_sub(before));
                writer.write(&ToJoiner::Proof(udp.proof())).await?;
            }
            message = reader.message::<FromJoiner>() => match message? {
                Some(FromJoiner::Proof(proof)) => udp.set_reported(proof),
                Some(FromJoiner::Done) => done = true,
                Some(FromJoiner::GaveUp(why)) => bail!("the joiner gave up: {why}"),
                Some(FromJoiner::Request(_)) => bail!("a second request on the same connection"),
                None => bail!("the joiner disconnected"),
            },
        }
    }
    Ok(())
}

fn proof_timeout(udp: UdpReachability, port: u16) -> ProofTimeout {
    ProofTimeout(match udp.blocked() {
        Some(Direction::In) => format!("UDP {port} from the joiner to the manager is blocked: the manager received nothing"),
        Some(Direction::Out) => format!("UDP {port} from the manager to the joiner is blocked: the joiner received nothing"),
        None => "the joiner did not end its join".to_owned(),
    })
}

async fn close_with(writer: &mut ServerWriter, message: &ToJoiner) {
    let _ = writer.write(message).await;
    writer.close().await;
}

/// Refuses a join on a listener that is not for joins.
pub(in super::super) async fn refuse(stream: TlsStream<TcpStream>, why: &str) {
    let (_reader, mut writer) = split(stream, &ServerLimits::default());
    close_with(&mut writer, &ToJoiner::Refused(JoinRefused::Other(why.to_owned()))).await;
}

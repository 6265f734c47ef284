//! The manager's side of a join: admit, answer, prove that UDP passes in both directions, confirm; revoke when any of it
//! fails.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::limits::ServerLimits;
use super::super::proof::{Direction, JoinSide, UdpReachability};
use super::super::refused::PeerRefusal;
use super::super::tls::{ServerReader, ServerWriter};
use crate::model::{FormatRange, NodeId, Secret};
use crate::protocol::MembershipAnswer;
use crate::protocol::{
    FORMATS, FromJoiner, JoinRefused, JoinReply, JoinRequest, KEY_PROOF, KeyAnswer, NoCommonFormat, ToJoiner, agree, formats_in,
};
use crate::protocol::{MAX_FRAME, MAX_JOINER_FRAME};
use crate::trust::{AwaitedProof, NotProved, has_low_order};
use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::Bytes;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// Decides over joins. An admitted node is either confirmed or revoked, whatever happens in between; a manager that is
/// killed in between leaves it admitted.
#[async_trait]
pub trait JoinAuthority: Send + Sync {
    /// Whether this is a join token of the cluster.
    fn knows(&self, token: &Secret<String>) -> bool;
    /// Whether every joiner has to prove that it has its tunnel's key, so that one that names an old format is refused.
    fn requires_key_proof(&self) -> bool;
    /// Checks the token and the names in the request, assigns subnet and address, issues the certificate and stores the
    /// node. Its key is proved to be the joiner's, unless the joiner's format has no proof; whether another node has the key is for
    /// this to check. `from` is the source address of the connection. Once this returns, the tunnel knows the node or is about to.
    async fn admit(&self, request: &JoinRequest, from: SocketAddr) -> Result<JoinReply, JoinRefused>;
    /// Bytes that this manager's tunnel has received from the node; zero while it does not know the node.
    async fn received(&self, node: &NodeId) -> u64;
    /// Sends the node a packet through the tunnel, so that a blocked direction is detected. May do nothing.
    async fn send_probe(&self, _node: &NodeId) {}
    /// Whether the cluster has this node, which has proved that it once was a member. Removed is only what this manager is sure of: no
    /// join that it does not know yet is newer than its answer.
    async fn membership(&self, node: &NodeId) -> MembershipAnswer;
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

/// Why a join was served in vain.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum FailedJoin {
    /// The node was not admitted.
    #[error("{0:#}")]
    Refused(anyhow::Error),
    /// The node was admitted, and is removed again.
    #[error("{0:#}")]
    Revoked(anyhow::Error),
}

/// Serves one join connection until it is closed. `wait`: too many joins of the source were refused, so that it has to wait this
/// long, unless it has a token of the cluster: behind one address there may be many hosts.
pub(in super::super) async fn serve(
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    wait: Option<Duration>,
    authority: &dyn JoinAuthority,
    limits: &ServerLimits,
    shutdown: &CancellationToken,
) -> Result<(), FailedJoin> {
    let (mut reader, mut writer) = split(stream, limits);
    let (request, reply) = admit(&mut reader, &mut writer, from, wait, authority, limits).await.map_err(FailedJoin::Refused)?;
    let served = establish(&mut reader, &mut writer, &request, reply, from, authority, limits, shutdown).await;
    served.map_err(FailedJoin::Revoked)
}

/// Has the request decided; answers the joiner if it is not admitted.
async fn admit(
    reader: &mut ServerReader,
    writer: &mut ServerWriter,
    from: SocketAddr,
    wait: Option<Duration>,
    authority: &dyn JoinAuthority,
    limits: &ServerLimits,
) -> anyhow::Result<(JoinRequest, JoinReply)> {
    let read = tokio::time::timeout(limits.first_message, async {
        let received = read_request(reader).await?;
        if let Some(wait) = wait.filter(|_| !authority.knows(&received.request.token)) {
            return Err(bad_request(PeerRefusal::Token, has_to_wait(from, wait)));
        }
        // Before the authority hears of the node, and so before the store does.
        prove_key(&received, authority.requires_key_proof(), reader, writer).await.map(|()| received.request)
    });
    let request = match read.await {
        Ok(Ok(request)) => request,
        Ok(Err((refused, error))) => {
            if let Some(refused) = refused {
                close_with(writer, &ToJoiner::Refused(refused)).await;
            }
            return Err(error);
        }
        Err(_) => bail!("a joiner sent no request, or no proof of its key, in time"),
    };
    match authority.admit(&request, from).await {
        Ok(reply) => Ok((request, reply)),
        Err(refused) => {
            close_with(writer, &ToJoiner::Refused(refused.clone())).await;
            Err(refused).with_context(|| format!("refused the join of {:?}", request.description.hostname))
        }
    }
}

/// From the admission on: confirms or revokes the node, on every path.
#[expect(clippy::too_many_arguments, reason = "both ends of the connection, the join, and what `serve` was given")]
async fn establish(
    reader: &mut ServerReader,
    writer: &mut ServerWriter,
    request: &JoinRequest,
    reply: JoinReply,
    from: SocketAddr,
    authority: &dyn JoinAuthority,
    limits: &ServerLimits,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let (host, node) = (&request.description.hostname, reply.node_id.clone());
    let proved = tokio::select! {
        () = shutdown.cancelled() => Err(anyhow::anyhow!("the manager shuts down")),
        // The proof has its own deadline; this one is for a call that hangs.
        proved = tokio::time::timeout(limits.join * 2, prove(reader, writer, reply, authority, limits)) => {
            proved.unwrap_or_else(|_| Err(anyhow::anyhow!("the join hung")))
        }
    };
    match proved {
        Ok(()) => confirm(writer, authority, &node, host, from).await,
        Err(error) => {
            authority.revoke(&node).await;
            let last = if error.is::<ProofTimeout>() { ToJoiner::Late } else { ToJoiner::GaveUp(format!("{error:#}")) };
            close_with(writer, &last).await;
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

/// A request as it was received.
struct ReceivedRequest {
    request: JoinRequest,
    document: Bytes,
    /// The newest format that both sides have.
    format: u32,
}

/// The answer for a joiner whose request does not come to a decision, if there is one, and the error for the log.
type NoRequest = (Option<JoinRefused>, anyhow::Error);

fn bad_request(reason: PeerRefusal, text: String) -> NoRequest {
    (Some(JoinRefused::Other(text.clone())), reason.error(text))
}

/// Why a source has to wait.
fn has_to_wait(from: SocketAddr, wait: Duration) -> String {
    format!(
        "too many joins from {} have failed, and this one has no valid join token: compare it with `docker swarm join-token worker` \
         on a manager, and try again in {} s (behind NAT, all hosts of that address count as one)",
        from.ip().to_canonical(),
        wait.as_secs() + 1
    )
}

/// Reads the request.
async fn read_request(reader: &mut ServerReader) -> Result<ReceivedRequest, NoRequest> {
    let document = match reader.document().await {
        Ok(Some(document)) => document,
        Ok(None) => return Err((None, anyhow::anyhow!("a joiner closed the connection without a request"))),
        Err(error) => return Err((error.answer().map(JoinRefused::Other), error.into())),
    };
    let format = match formats_in(&document) {
        Some(joiner) => agree(FORMATS, joiner).map_err(|error| (Some(error.into()), error.into()))?,
        // Not a request; parsing it gives the reason.
        None => FORMATS.newest,
    };
    match serde_json::from_slice::<FromJoiner>(&document) {
        Ok(FromJoiner::Request(request)) => Ok(ReceivedRequest { request: *request, document, format }),
        Ok(_) => Err(bad_request(PeerRefusal::Frame, "a join begins with a request".to_owned())),
        Err(error) => Err(bad_request(PeerRefusal::Frame, format!("a request that is not understood: {error}"))),
    }
}

/// Has the joiner prove that it has the private key of its tunnel. Before format [`KEY_PROOF`] a joiner cannot: what its tunnel
/// delivers within the join proves it then, where that is accepted.
async fn prove_key(
    received: &ReceivedRequest,
    requires_proof: bool,
    reader: &mut ServerReader,
    writer: &mut ServerWriter,
) -> Result<(), NoRequest> {
    let key = received.request.key;
    let not_proved = |why: NotProved| {
        bad_request(PeerRefusal::Key, format!("the joiner has not proved that the WireGuard key {key:?} is its own: {why}"))
    };
    if has_low_order(key) {
        return Err(not_proved(NotProved::LowOrder));
    }
    if received.format < KEY_PROOF {
        if !requires_proof {
            return Ok(());
        }
        let manager = FormatRange::new(KEY_PROOF, FORMATS.newest);
        let node = formats_in(&received.document).unwrap_or(FormatRange::only(received.format));
        let refusal = NoCommonFormat { manager, node };
        return Err((Some(refusal.into()), refusal.into()));
    }
    let awaited = AwaitedProof::draw(&mut rand::rng());
    writer.write(&ToJoiner::Key(*awaited.challenge())).await.map_err(|error| (None, error.into()))?;
    match reader.message::<FromJoiner>().await {
        Ok(Some(FromJoiner::Key(KeyAnswer(answer)))) => awaited.check(key, &received.document, &answer).map_err(not_proved),
        Ok(Some(FromJoiner::GaveUp(why))) => Err((None, anyhow::anyhow!("the joiner gave up: {why}"))),
        Ok(Some(_)) => Err(bad_request(PeerRefusal::Frame, "a challenge is answered with the proof of the key".to_owned())),
        Ok(None) => Err((None, anyhow::anyhow!("the joiner disconnected"))),
        Err(error) => Err((error.answer().map(JoinRefused::Other), error.into())),
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
                Some(FromJoiner::Request(_) | FromJoiner::Key(_)) => bail!("a second request on the same connection"),
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

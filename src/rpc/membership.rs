//! The question of a node whose tunnel no manager answers: is it still a member? The tunnel knows the keys of members only, so a node that
//! was removed while it was down would search for ever. It is asked outside the tunnel, and both sides show certificates: a peer that is
//! no manager of the cluster says nothing that counts.

use super::frame::{FrameError, FrameReader, FrameWriter};
use super::join::JoinAuthority;
use super::limits::ServerLimits;
use super::session::explain;
use super::tls;
use crate::clock::Clock;
use crate::model::NodeId;
use crate::protocol::{MAX_MEMBERSHIP_FRAME, MembershipAnswer};
use crate::trust::Identity;
use anyhow::Context as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::server::TlsStream;

/// Asks the manager at this address, outside the tunnel. Only that manager's answer counts.
///
/// # Errors
/// There is no answer in time, or not of that manager.
pub async fn ask_membership(
    identity: &Identity,
    clock: Arc<dyn Clock>,
    (manager, address): (NodeId, SocketAddr),
    timeout: Duration,
) -> anyhow::Result<MembershipAnswer> {
    let asked = ask(identity, clock, manager, address, timeout);
    let answer = tokio::time::timeout(timeout, asked).await;
    answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} ms", timeout.as_millis())))
}

async fn ask(
    identity: &Identity,
    clock: Arc<dyn Clock>,
    manager: NodeId,
    address: SocketAddr,
    timeout: Duration,
) -> anyhow::Result<MembershipAnswer> {
    let stream = TcpStream::connect(address).await.context("cannot connect")?;
    let now = clock.now();
    let tls = TlsConnector::from(Arc::new(tls::membership_config(identity, clock, manager)?));
    let stream = tls.connect(tls::server_name()?, stream).await.map_err(|e| explain(e, identity, now))?;
    let (read, _write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_MEMBERSHIP_FRAME, timeout);
    match reader.message::<MembershipAnswer>().await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => anyhow::bail!("it closed the connection"),
        Err(FrameError::Io(error)) => Err(explain(error, identity, now)),
        Err(error) => Err(error.into()),
    }
}

/// Answers the node that the client's certificate names, which may have expired.
pub(super) async fn serve(
    stream: TlsStream<TcpStream>,
    node: &NodeId,
    authority: &dyn JoinAuthority,
    limits: &ServerLimits,
) -> anyhow::Result<()> {
    let (_read, write) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(write, MAX_MEMBERSHIP_FRAME, limits.first_message);
    let answer = authority.membership(node).await;
    let written = writer.write(&answer).await;
    writer.close().await;
    Ok(written?)
}

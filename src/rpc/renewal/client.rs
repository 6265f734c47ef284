//! The member's side of a renewal: asks one manager after the other until one issues the certificate.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::session::{NodeAt, explain};
use super::super::tls;
use crate::clock::Clock;
use crate::datapath::Sockets;
use crate::protocol::{MAX_RENEWAL_FRAME, RenewalAnswer, RenewalRefused, RenewalRequest, RenewedCertificate};
use crate::trust::Identity;
use anyhow::Context as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

/// How to ask for a certificate.
pub struct RenewalConfig {
    /// The time that the managers' certificates are checked against.
    pub clock: Arc<dyn Clock>,
    /// Managers' mesh addresses with port.
    pub candidates: watch::Receiver<Vec<SocketAddr>>,
    /// Which node has a mesh address: only that one is accepted there.
    pub node_at: NodeAt,
    /// Makes sockets in the mesh namespace.
    pub sockets: Arc<dyn Sockets>,
    /// The node's own mesh address, by which the tunnel authenticates it.
    pub source: IpAddr,
    /// The node's own address as a manager: it is not asked.
    pub own: Option<IpAddr>,
    /// Time for one manager's answer, connection included.
    pub timeout: Duration,
}

/// Why no manager has issued a certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    #[error("no manager is known")]
    NoManager,
    /// A manager that was asked refused.
    #[error("{address}: {why}")]
    Refused { address: SocketAddr, why: RenewalRefused },
    /// The last manager that was asked did not answer.
    #[error("{address}: {why:#}")]
    Failed { address: SocketAddr, why: anyhow::Error },
}

/// Asks the managers that are known, each once. Any of them may answer: it need not lead.
///
/// # Errors
/// Of the last one asked; a refusal is reported before a connection that failed.
pub async fn request_certificate(
    config: &RenewalConfig,
    identity: &Identity,
    request: &RenewalRequest,
) -> Result<RenewedCertificate, RenewalError> {
    let candidates = config.candidates.borrow().clone();
    let mut result = RenewalError::NoManager;
    // What a manager has issued to itself is of the state that it has.
    for address in candidates.into_iter().filter(|address| Some(address.ip()) != config.own) {
        let attempt = tokio::time::timeout(config.timeout, ask(config, identity, request, address)).await;
        match attempt.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} ms", config.timeout.as_millis()))) {
            Ok(RenewalAnswer::Renewed(renewed)) => return Ok(renewed),
            Ok(RenewalAnswer::Refused(why)) => result = RenewalError::Refused { address, why },
            Err(_) if matches!(result, RenewalError::Refused { .. }) => {}
            Err(why) => result = RenewalError::Failed { address, why },
        }
    }
    Err(result)
}

async fn ask(
    config: &RenewalConfig,
    identity: &Identity,
    request: &RenewalRequest,
    address: SocketAddr,
) -> anyhow::Result<RenewalAnswer> {
    let socket = config.sockets.stream(SocketAddr::new(config.source, 0)).context("no socket in the mesh")?;
    let stream = socket.connect(address).await.context("cannot connect")?;
    let tls = TlsConnector::from(Arc::new(tls::renewal_config(identity, config.clock.clone(), (config.node_at)(address.ip()))?));
    let now = config.clock.now();
    let stream = tls.connect(tls::server_name()?, stream).await.map_err(|e| explain(e, identity, now))?;
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_RENEWAL_FRAME, config.timeout);
    let mut writer = FrameWriter::new(write, MAX_RENEWAL_FRAME, config.timeout);
    // A manager that has refused the connection may have said why: that is read below.
    let written = writer.write(request).await;
    match reader.message::<RenewalAnswer>().await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => anyhow::bail!("it closed the connection"),
        Err(super::super::frame::FrameError::Io(error)) => Err(explain(error, identity, now)),
        Err(error) => Err(written.err().unwrap_or(error).into()),
    }
}

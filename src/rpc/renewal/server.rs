//! The manager's side of a renewal: one request, one answer. The TLS handshake has proved that the client has the key of a
//! certificate that the cluster's CA issued; unlike for a session the certificate may have expired, which the authority
//! judges.

use super::super::frame::{FrameReader, FrameWriter};
use super::super::limits::ServerLimits;
use crate::protocol::{MAX_RENEWAL_FRAME, RenewalAnswer, RenewalRefused, RenewalRequest, RenewedCertificate};
use crate::trust::{NodeName, Validity};
use async_trait::async_trait;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Who asks for a certificate, as far as TLS has verified it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateHolder {
    /// As the certificate names it; the role is the one of its issue.
    pub name: NodeName,
    /// Life of the certificate, which may be over.
    pub validity: Validity,
    /// It is of a root CA that was replaced.
    pub is_of_retired_root: bool,
    /// Source of the connection, inside the mesh.
    pub from: SocketAddr,
}

/// Decides over renewals.
#[async_trait]
pub trait CertificateAuthority: Send + Sync {
    /// Issues the next certificate of a member for the key in the request.
    async fn renew(&self, holder: &CertificateHolder, request: &RenewalRequest) -> Result<RenewedCertificate, RenewalRefused>;
}

/// Serves one renewal connection until it is closed.
pub(in super::super) async fn serve(
    stream: TlsStream<TcpStream>,
    holder: CertificateHolder,
    authority: &dyn CertificateAuthority,
    limits: &ServerLimits,
) -> anyhow::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, MAX_RENEWAL_FRAME, limits.first_message);
    let mut writer = FrameWriter::new(write, MAX_RENEWAL_FRAME, limits.first_message);
    let request = match tokio::time::timeout(limits.first_message, reader.message::<RenewalRequest>()).await {
        Ok(Ok(Some(request))) => Ok(request),
        Ok(Ok(None)) => anyhow::bail!("the node closed the connection without a request"),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(anyhow::anyhow!("no request was received in time")),
    };
    let (answer, outcome) = match request {
        Ok(request) => match authority.renew(&holder, &request).await {
            Ok(renewed) => (RenewalAnswer::Renewed(renewed), Ok(())),
            Err(refused) => (RenewalAnswer::Refused(refused.clone()), Err(refused.into())),
        },
        Err(error) => (RenewalAnswer::Refused(RenewalRefused::Other(error.to_string())), Err(error)),
    };
    let written = writer.write(&answer).await;
    writer.close().await;
    outcome?;
    Ok(written?)
}

//! TLS as skep uses it: version 1.3 only, ring, mutual except for joiners, who have no certificate yet. ALPN names what a
//! connection is for.

use super::frame::{FrameReader, FrameWriter};
use crate::clock::Clock;
use crate::model::Role;
use crate::sync::lock;
use crate::trust::{CaDigest, Identity, NodeName};
use anyhow::Context as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme, time_provider::TimeProvider, version::TLS13,
};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, client, server};

/// ALPN of a join.
pub const JOIN: &[u8] = b"skep-join/1";
/// ALPN of a session.
pub const SESSION: &[u8] = b"skep-session/1";
/// The server name that clients send. It is not checked: a server proves itself by its CA and its role.
const SERVER_NAME: &str = "swarm-manager";

/// Why a certificate is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Distrust {
    /// The chain has no CA with the token's digest.
    #[error("remote CA does not match fingerprint. Expected: {0}")]
    ForeignCa(CaDigest),
    /// A certificate of the cluster, but not a manager's.
    #[error("{0} is not a manager")]
    NotAManager(String),
    /// The certificate names another cluster, or has no node name.
    #[error("the certificate is not of this cluster: {0}")]
    Name(String),
}

/// Frames that a server reads from a client.
pub type ServerReader = FrameReader<ReadHalf<server::TlsStream<TcpStream>>>;
/// Frames that a server writes to a client.
pub type ServerWriter = FrameWriter<WriteHalf<server::TlsStream<TcpStream>>>;
/// Frames that a client reads from a server.
pub type ClientReader = FrameReader<ReadHalf<client::TlsStream<TcpStream>>>;
/// Frames that a client writes to a server.
pub type ClientWriter = FrameWriter<WriteHalf<client::TlsStream<TcpStream>>>;

/// The server's TLS configuration, built again when the node's identity is replaced: a renewed certificate is presented to
/// the next connection, without a restart.
pub struct ServerTls {
    identity: watch::Receiver<Arc<Identity>>,
    clock: Arc<dyn Clock>,
    /// The identity that the acceptor was built from.
    current: Mutex<(Arc<Identity>, TlsAcceptor)>,
}

impl ServerTls {
    /// # Errors
    /// The identity of this moment cannot be used for TLS.
    pub fn new(identity: watch::Receiver<Arc<Identity>>, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let first = identity.borrow().clone();
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&first, clock.clone())?));
        Ok(Self { identity, clock, current: Mutex::new((first, acceptor)) })
    }

    /// The identity of this moment and the acceptor that presents it. An identity that cannot be used for TLS is logged;
    /// the one before stays in use then.
    pub fn current(&self) -> (Arc<Identity>, TlsAcceptor) {
        let latest = self.identity.borrow().clone();
        let mut current = lock(&self.current);
        if !Arc::ptr_eq(&current.0, &latest) {
            match server_config(&latest, self.clock.clone()) {
                Ok(config) => *current = (latest, TlsAcceptor::from(Arc::new(config))),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "the renewed identity cannot be used for TLS: connections use the previous certificate until it expires"
                ),
            }
        }
        current.clone()
    }
}

/// The server's side: a client certificate is checked if the client has one; joiners have none.
fn server_config(identity: &Identity, clock: Arc<dyn Clock>) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(roots(CertificateDer::from(identity.ca_der()?))?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).allow_unauthenticated().build()?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity)?, key(identity)?)
        .context("cannot use this node's certificate")?;
    config.alpn_protocols = vec![JOIN.to_vec(), SESSION.to_vec()];
    // A resumed session would skip the check of the certificate.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A joiner's side: it has no certificate and trusts the CA whose digest is in its token.
pub fn join_config(digest: CaDigest, clock: Arc<dyn Clock>) -> anyhow::Result<ClientConfig> {
    client_config(TrustAnchor::Digest(digest), clock, None)
}

/// A member's side: it presents its certificate and trusts managers of its cluster.
pub fn session_config(identity: &Identity, clock: Arc<dyn Clock>) -> anyhow::Result<ClientConfig> {
    let ca = CertificateDer::from(identity.ca_der()?);
    client_config(TrustAnchor::Cluster { ca, cluster: identity.cluster_id().as_str().to_owned() }, clock, Some(identity))
}

fn client_config(anchor: TrustAnchor, clock: Arc<dyn Clock>, identity: Option<&Identity>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(ManagerVerifier { anchor, algorithms: algorithms(&provider) });
    let builder = ClientConfig::builder_with_details(provider, Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_auth_cert(chain(identity)?, key(identity)?).context("cannot use this node's certificate")?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![if identity.is_some() { SESSION.to_vec() } else { JOIN.to_vec() }];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The server name to connect with.
pub fn server_name() -> anyhow::Result<ServerName<'static>> {
    Ok(ServerName::try_from(SERVER_NAME)?)
}

/// The node that a client's certificate names, which TLS has verified; `None` if the client has no certificate.
pub fn client_name(certificates: Option<&[CertificateDer<'_>]>, own: &Identity) -> Result<Option<NodeName>, Distrust> {
    let Some(certificate) = certificates.and_then(<[_]>::first) else { return Ok(None) };
    let name = NodeName::of_der(certificate).map_err(|e| Distrust::Name(e.to_string()))?;
    if name.cluster_id != *own.cluster_id() {
        return Err(Distrust::Name(format!("it names cluster {}", name.cluster_id)));
    }
    Ok(Some(name))
}

/// Why a handshake failed, if the cause was the server's certificate.
pub fn distrust(error: &std::io::Error) -> Option<&Distrust> {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = tls_error(error)? else { return None };
    other.downcast_ref()
}

/// The TLS error that an IO error wraps.
pub fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The servers that a client accepts.
enum TrustAnchor {
    Digest(CaDigest),
    Cluster { ca: CertificateDer<'static>, cluster: String },
}

struct ManagerVerifier {
    anchor: TrustAnchor,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for ManagerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ManagerVerifier")
    }
}

impl ServerCertVerifier for ManagerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = match &self.anchor {
            TrustAnchor::Cluster { ca, .. } => ca.clone(),
            TrustAnchor::Digest(digest) => intermediates
                .iter()
                .find(|der| CaDigest::of_der(der) == *digest)
                .map(|der| der.clone().into_owned())
                .ok_or_else(|| other(Distrust::ForeignCa(*digest)))?,
        };
        let roots = roots(ca).map_err(|e| other(Distrust::Name(e.to_string())))?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, self.algorithms.all)?;
        let name = NodeName::of_der(end_entity).map_err(|e| other(Distrust::Name(e.to_string())))?;
        match &self.anchor {
            TrustAnchor::Cluster { cluster, .. } if name.cluster_id.as_str() != cluster => {
                Err(other(Distrust::Name(format!("it names cluster {}", name.cluster_id))))
            }
            _ if name.role != Role::Manager => Err(other(Distrust::NotAManager(name.node_id.to_string()))),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

fn other(distrust: Distrust) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(distrust))))
}

fn algorithms(provider: &CryptoProvider) -> WebPkiSupportedAlgorithms {
    provider.signature_verification_algorithms
}

fn roots(ca: CertificateDer<'static>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca).context("the CA certificate cannot be trusted")?;
    Ok(roots)
}

fn chain(identity: &Identity) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    Ok(vec![CertificateDer::from(identity.certificate_der()?), CertificateDer::from(identity.ca_der()?)])
}

fn key(identity: &Identity) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(identity.key().as_bytes()).map_err(|e| anyhow::anyhow!("the node key is unreadable: {e}"))
}

/// skep's clock as rustls' time source.
struct ClockTime(Arc<dyn Clock>);

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let nanos = u64::try_from(self.0.now().0).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_nanos(nanos)))
    }
}

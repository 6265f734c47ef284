//! TLS as skep uses it: version 1.3 only, ring, mutual except for joiners, who have no certificate yet. ALPN names what a
//! connection is for.

use super::frame::{FrameReader, FrameWriter};
use crate::clock::Clock;
use crate::model::{NodeId, Role, Timestamp};
use crate::sync::lock;
use crate::trust::{CaDigest, Identity, NodeName, Validity};
use anyhow::Context as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, ParsedCertificate, WebPkiClientVerifier};
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
use tokio_rustls::{LazyConfigAcceptor, client, server};

// The number in a name is the version of what its connection carries, and TLS negotiates it: a server that does not know the name
// refuses the handshake, and one that knows two speaks what it selects. So these messages and frames need no number of their own: one
// that older builds cannot read goes under the next number, which is dialed once every node knows it. (Joins and sessions, whose
// messages change often, agree on a format within their connection too: `protocol::agreement`.) The bytes of each version are in
// `tests/it/formats/connections-1.json`.

/// ALPN of a join.
pub const JOIN: &[u8] = b"skep-join/1";
/// ALPN of a session.
pub const SESSION: &[u8] = b"skep-session/1";
/// ALPN of a renewal.
pub const CERTIFICATE: &[u8] = b"skep-certificate/1";
/// ALPN of the question whether a node still is a member.
pub const MEMBERSHIP: &[u8] = b"skep-membership/1";
/// ALPN of a node that changes its WireGuard key.
pub const TUNNEL_KEY: &[u8] = b"skep-tunnel-key/1";
/// ALPN of a connection between managers.
pub const MANAGER: &[u8] = b"skep-manager/1";
/// ALPN of a connection for logs. The manager dials, and is the server of the handshake: what is accepted of a manager is the same
/// in every direction.
pub const LOGS: &[u8] = b"skep-logs/1";
/// ALPN of a relay of a node's Docker API. As [`LOGS`]: the manager dials, and is the server of the handshake.
pub const ENGINE: &[u8] = b"skep-engine/1";
/// The server name that clients send. It is not checked: a server proves itself by its CA, its role and its node id.
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
    /// A manager, but another node than the one that was dialed.
    #[error("the certificate is of node {found}, the node at this address is {dialed}")]
    AnotherNode { dialed: NodeId, found: NodeId },
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
    current: Mutex<ServerConfigs>,
}

/// What a server uses of one identity.
#[derive(Clone)]
pub struct ServerConfigs {
    /// The identity that is presented.
    pub identity: Arc<Identity>,
    /// For joins and sessions.
    usual: Arc<ServerConfig>,
    /// For renewals alone: it names no other protocol, so nothing else can be spoken with an expired certificate.
    renewal: Arc<ServerConfig>,
    /// For questions about memberships alone, in the same way.
    membership: Arc<ServerConfig>,
}

impl ServerConfigs {
    fn new(identity: Arc<Identity>, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        let usual = Arc::new(server_config(&identity, clock.clone())?);
        let renewal = Arc::new(lenient_server_config(&identity, clock.clone(), CERTIFICATE)?);
        let membership = Arc::new(lenient_server_config(&identity, clock.clone(), MEMBERSHIP)?);
        Ok(Self { identity, usual, renewal, membership })
    }

    /// The server's side of a handshake. A client that names this protocol, [`CERTIFICATE`] or [`MEMBERSHIP`], may show a certificate
    /// that has expired.
    pub async fn accept(&self, stream: TcpStream, lenient: &[u8]) -> std::io::Result<server::TlsStream<TcpStream>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let is_named = start.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == lenient));
        let config = match lenient {
            CERTIFICATE if is_named => &self.renewal,
            MEMBERSHIP if is_named => &self.membership,
            _ => &self.usual,
        };
        start.into_stream(config.clone()).await
    }
}

impl ServerTls {
    /// # Errors
    /// The identity of this moment cannot be used for TLS.
    pub fn new(identity: watch::Receiver<Arc<Identity>>, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let first = identity.borrow().clone();
        let configs = ServerConfigs::new(first, &clock)?;
        Ok(Self { identity, clock, current: Mutex::new(configs) })
    }

    /// The configurations that present the identity of this moment. An identity that cannot be used for TLS is logged;
    /// the one before stays in use then.
    pub fn current(&self) -> ServerConfigs {
        let latest = self.identity.borrow().clone();
        let mut current = lock(&self.current);
        if !Arc::ptr_eq(&current.identity, &latest) {
            match ServerConfigs::new(latest, &self.clock) {
                Ok(configs) => *current = configs,
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
    let verifier = client_verifier(identity)?.allow_unauthenticated().build()?;
    server_config_with(identity, clock, verifier, vec![JOIN.to_vec(), SESSION.to_vec(), TUNNEL_KEY.to_vec(), MANAGER.to_vec()])
}

/// A manager's side of a connection for logs: the node that it dials has a certificate.
pub fn logs_server_config(identity: &Identity, clock: Arc<dyn Clock>) -> anyhow::Result<ServerConfig> {
    server_config_with(identity, clock, client_verifier(identity)?.build()?, vec![LOGS.to_vec()])
}

/// As [`logs_server_config`], for a relay of the node's Docker API.
pub fn engine_server_config(identity: &Identity, clock: Arc<dyn Clock>) -> anyhow::Result<ServerConfig> {
    server_config_with(identity, clock, client_verifier(identity)?.build()?, vec![ENGINE.to_vec()])
}

/// The side of a node that a manager asks for logs or for its Docker API: the manager chooses.
pub fn logs_client_config(identity: &Identity, clock: Arc<dyn Clock>, manager: NodeId) -> anyhow::Result<ClientConfig> {
    let mut config = member_config(identity, clock, Some(manager), LOGS)?;
    config.alpn_protocols.push(ENGINE.to_vec());
    Ok(config)
}

/// The server's side of a protocol in which every client has a certificate, which may have expired.
fn lenient_server_config(identity: &Identity, clock: Arc<dyn Clock>, protocol: &[u8]) -> anyhow::Result<ServerConfig> {
    let verifier = Arc::new(ExpiredAllowed(renewal_verifier(identity)?.build()?));
    server_config_with(identity, clock, verifier, vec![protocol.to_vec()])
}

fn client_verifier(identity: &Identity) -> anyhow::Result<rustls::server::ClientCertVerifierBuilder> {
    Ok(verifier_of(roots(identity.trusted_ders()?)?))
}

/// Also takes certificates of root CAs that were replaced.
fn renewal_verifier(identity: &Identity) -> anyhow::Result<rustls::server::ClientCertVerifierBuilder> {
    Ok(verifier_of(roots([identity.trusted_ders()?, identity.retired_ders()?].concat())?))
}

fn verifier_of(roots: RootCertStore) -> rustls::server::ClientCertVerifierBuilder {
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
}

fn server_config_with(
    identity: &Identity,
    clock: Arc<dyn Clock>,
    verifier: Arc<dyn ClientCertVerifier>,
    protocols: Vec<Vec<u8>>,
) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity)?, key(identity)?)
        .context("cannot use this node's certificate")?;
    config.alpn_protocols = protocols;
    // A resumed session would skip the check of the certificate.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A joiner's side: it has no certificate and trusts the CA whose digest is in its token.
pub fn join_config(digest: CaDigest, clock: Arc<dyn Clock>) -> anyhow::Result<ClientConfig> {
    client_config(TrustAnchor::Digest(digest), clock, None, JOIN)
}

/// A member's side: it presents its certificate and trusts managers of its cluster; if it knows which node it dials, only that
/// one.
pub fn session_config(identity: &Identity, clock: Arc<dyn Clock>, dialed: Option<NodeId>) -> anyhow::Result<ClientConfig> {
    member_config(identity, clock, dialed, SESSION)
}

/// As [`session_config`], for a renewal.
pub fn renewal_config(identity: &Identity, clock: Arc<dyn Clock>, dialed: Option<NodeId>) -> anyhow::Result<ClientConfig> {
    member_config(identity, clock, dialed, CERTIFICATE)
}

/// As [`session_config`], for a change of this node's WireGuard key.
pub fn key_change_config(identity: &Identity, clock: Arc<dyn Clock>, dialed: Option<NodeId>) -> anyhow::Result<ClientConfig> {
    member_config(identity, clock, dialed, TUNNEL_KEY)
}

/// As [`session_config`], for the question whether this node still is a member.
pub fn membership_config(identity: &Identity, clock: Arc<dyn Clock>, dialed: NodeId) -> anyhow::Result<ClientConfig> {
    member_config(identity, clock, Some(dialed), MEMBERSHIP)
}

/// As [`session_config`], for a connection between managers.
pub fn manager_config(identity: &Identity, clock: Arc<dyn Clock>, dialed: NodeId) -> anyhow::Result<ClientConfig> {
    member_config(identity, clock, Some(dialed), MANAGER)
}

fn member_config(
    identity: &Identity,
    clock: Arc<dyn Clock>,
    dialed: Option<NodeId>,
    protocol: &[u8],
) -> anyhow::Result<ClientConfig> {
    let roots = roots(identity.trusted_ders()?)?;
    let cluster = identity.cluster_id().as_str().to_owned();
    client_config(TrustAnchor::Cluster { roots, cluster, dialed }, clock, Some(identity), protocol)
}

fn client_config(
    anchor: TrustAnchor,
    clock: Arc<dyn Clock>,
    identity: Option<&Identity>,
    protocol: &[u8],
) -> anyhow::Result<ClientConfig> {
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
    config.alpn_protocols = vec![protocol.to_vec()];
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

/// Whether the certificate that the other side has shown, which TLS has verified, is of a root that is accepted for more than a renewal.
pub fn is_of_trusted_root(certificates: Option<&[CertificateDer<'_>]>, own: &Identity) -> bool {
    certificates.and_then(<[_]>::first).is_some_and(|certificate| own.trusts(certificate))
}

/// Life of the certificate that the other side has shown, which TLS has verified; `None` if it has shown none.
pub fn peer_validity(certificates: Option<&[CertificateDer<'_>]>) -> Option<Validity> {
    Validity::of_der(certificates?.first()?).ok()
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

/// Verifies a client's certificate as it was at its own end: issuer, key and purpose are checked as ever, and a certificate
/// that is not valid yet is refused. What an expired one is good for is decided later.
#[derive(Debug)]
struct ExpiredAllowed(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ExpiredAllowed {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) =
            verified
        else {
            return verified;
        };
        let end = Validity::of_der(end_entity).ok().and_then(|validity| unix_time(validity.not_after));
        self.0.verify_client_cert(end_entity, intermediates, end.unwrap_or(now))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The servers that a client accepts.
enum TrustAnchor {
    Digest(CaDigest),
    Cluster {
        roots: RootCertStore,
        cluster: String,
        /// The one node that is accepted; `None`: every manager.
        dialed: Option<NodeId>,
    },
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
        let found;
        let roots = match &self.anchor {
            TrustAnchor::Cluster { roots, .. } => roots,
            TrustAnchor::Digest(digest) => {
                let ca = intermediates.iter().find(|der| CaDigest::of_der(der) == *digest);
                let ca = ca.ok_or_else(|| other(Distrust::ForeignCa(*digest)))?;
                found = roots([ca.to_vec()]).map_err(|e| other(Distrust::Name(e.to_string())))?;
                &found
            }
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)?;
        let name = NodeName::of_der(end_entity).map_err(|e| other(Distrust::Name(e.to_string())))?;
        match &self.anchor {
            TrustAnchor::Cluster { cluster, .. } if name.cluster_id.as_str() != cluster => {
                Err(other(Distrust::Name(format!("it names cluster {}", name.cluster_id))))
            }
            _ if name.role != Role::Manager => Err(other(Distrust::NotAManager(name.node_id.to_string()))),
            TrustAnchor::Cluster { dialed: Some(dialed), .. } if name.node_id != *dialed => {
                Err(other(Distrust::AnotherNode { dialed: dialed.clone(), found: name.node_id }))
            }
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

fn roots(ders: impl IntoIterator<Item = Vec<u8>>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for der in ders {
        roots.add(CertificateDer::from(der)).context("the CA certificate cannot be trusted")?;
    }
    Ok(roots)
}

/// What a node shows: its certificate, what leads from replaced roots to its CA, and the roots, by which a joiner finds the one that its
/// token names.
fn chain(identity: &Identity) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let own = [identity.certificate_der()?];
    let ders = own.into_iter().chain(identity.chain_ders()?).chain(identity.trusted_ders()?);
    Ok(ders.map(CertificateDer::from).collect())
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
        unix_time(self.0.now())
    }
}

fn unix_time(time: Timestamp) -> Option<UnixTime> {
    let nanos = u64::try_from(time.0).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_nanos(nanos)))
}

//! What the listeners with TLS agree on.

use super::certificates::Certificates;
use super::challenges::PROTOCOL;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::ALPN;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::version::{TLS12, TLS13};
use std::io;
use std::sync::Arc;

/// Protocols that may follow, the preferred one first. The last is a certificate authority's alone, which asks for nothing more.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", PROTOCOL];

/// TLS 1.2 and 1.3 with the certificates of the table.
///
/// # Errors
/// The crypto library has not what it needs.
pub(super) fn acceptor(certificates: Arc<Certificates>) -> io::Result<Acceptor> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_protocol_versions(&[&TLS13, &TLS12]).map_err(io::Error::other)?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(certificates);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // Clients that come back need no whole handshake.
    config.ticketer = ring::Ticketer::new().map_err(io::Error::other)?;
    Ok(Acceptor::from_server_config(Arc::new(config)))
}

/// Whether a connection is a challenge of a certificate authority: it has its answer with the handshake.
pub(super) fn is_challenge(agreed: Option<&ALPN>) -> bool {
    matches!(agreed, Some(ALPN::Custom(_)))
}

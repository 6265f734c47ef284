//! The Docker API over TCP: with TLS, and with a certificate of the client. There is no other way to make [`ApiTls`].

use crate::accept::{ConnectionLimiter, Listener, Refusals, accept_each, keep_alive};
use crate::http::BoxedStream;
use crate::splice::WatchedStream;
use anyhow::{Context as _, ensure};
use futures_util::future::BoxFuture;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections of clients with a certificate at a time, of one listener.
const CONNECTIONS: usize = 1024;
/// Connections that have not shown a certificate, of one listener in all and of one source address.
const UNAUTHENTICATED: usize = 512;
const UNAUTHENTICATED_PER_SOURCE: usize = 64;
/// Time for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Silence after which a client has to show that it is there: an event stream may say nothing for days.
const IDLE: Duration = Duration::from_secs(30);
/// In the log.
const SERVER: &str = "the Docker API over TCP";

/// The server's side of mutual TLS, of PEM files.
#[derive(Clone)]
pub struct ApiTls(Arc<ServerConfig>);

impl ApiTls {
    /// # Errors
    /// A file is missing or holds something else; the message names it.
    pub fn read(ca: &Path, certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).with_context(|| format!("{} holds something that is no CA", ca.display()))?;
        }
        let chain = certificates(certificate)?;
        let private = PrivateKeyDer::from_pem_file(key).with_context(|| format!("{} holds no private key", key.display()))?;
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private)
            .with_context(|| format!("{} and {} do not belong together", certificate.display(), key.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.with_context(|| format!("{} cannot be read as PEM", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

/// Serves clients that show a certificate of the CA, until shut down.
pub async fn serve_tls<L, C>(listener: L, tls: ApiTls, connection: C, shutdown: CancellationToken)
where
    L: Listener<Stream = TcpStream, From = SocketAddr>,
    C: Fn(BoxedStream) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static,
{
    let unauthenticated = ConnectionLimiter::new(UNAUTHENTICATED_PER_SOURCE, UNAUTHENTICATED);
    let (slots, refusals) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Refusals::default()));
    accept_each(listener, SERVER, &shutdown, |stream, from| {
        let Some(permit) = unauthenticated.acquire(from.ip()) else {
            return refusals.refused(from, SERVER, "too many connections that made no handshake yet");
        };
        let (acceptor, connection, shutdown) = (TlsAcceptor::from(tls.0.clone()), connection.clone(), shutdown.clone());
        let (slots, refusals) = (slots.clone(), refusals.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let _ = keep_alive(&stream, IDLE);
            let served = async {
                let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
                drop(permit);
                match shaken {
                    Ok(Ok(stream)) => {
                        if let Ok(_slot) = slots.try_acquire() {
                            connection(Box::new(WatchedStream::new(stream, |stream| stream.get_ref().0.as_fd()))).await;
                        } else {
                            tracing::warn!(%from, "{SERVER} has {CONNECTIONS} clients already: closed a connection");
                        }
                    }
                    Ok(Err(error)) => refusals.refused(from, SERVER, error),
                    Err(_) => refusals.refused(from, SERVER, "no TLS handshake in time"),
                }
            };
            let _ = shutdown.run_until_cancelled(served).await;
        });
    })
    .await;
}

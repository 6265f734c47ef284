//! The Docker API over TCP: with TLS, and with a certificate of the client. There is no other way to make [`ApiTls`].

use crate::http::BoxedStream;
use anyhow::{Context as _, ensure};
use futures_util::future::BoxFuture;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at a time, of one listener.
const CONNECTIONS: usize = 1024;
/// Time for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a failed `accept`.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

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
pub async fn serve_tls<C>(listener: TcpListener, tls: ApiTls, connection: C, shutdown: CancellationToken)
where
    C: Fn(BoxedStream) -> BoxFuture<'static, ()> + Clone + Send + Sync + 'static,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the Docker API over TCP cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!(%from, "closed a connection to the Docker API over TCP: there are {CONNECTIONS} already");
            continue;
        };
        let (acceptor, connection, shutdown) = (TlsAcceptor::from(tls.0.clone()), connection.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let _ = stream.set_nodelay(true);
            let served = async {
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => connection(Box::new(stream)).await,
                    Ok(Err(error)) => tracing::info!(%from, %error, "refused a client of the Docker API over TCP"),
                    Err(_) => tracing::info!(%from, "a client of the Docker API over TCP made no TLS handshake in time"),
                }
            };
            let _ = shutdown.run_until_cancelled(served).await;
        });
    }
}

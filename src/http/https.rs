//! A client of servers with TLS: a connection per request, and a bound on the time of each.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Largest body of an answer, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Why there is no answer: text with all causes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotSend(pub String);

/// The client.
#[derive(Clone, Debug)]
pub struct HttpsClient {
    tls: Arc<ClientConfig>,
    limit: Duration,
}

impl HttpsClient {
    /// Verifies servers with these roots (PEM), or with the host's. `limit` is the time for a request and its answer.
    ///
    /// # Errors
    /// There is no readable root.
    pub fn new(roots: Option<&str>, limit: Duration) -> anyhow::Result<Self> {
        let mut store = RootCertStore::empty();
        if let Some(pem) = roots {
            for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                store.add(root.map_err(|error| anyhow::anyhow!("a root certificate is not readable: {error:?}"))?)?;
            }
            anyhow::ensure!(!store.is_empty(), "there is no certificate in PEM");
        } else {
            let of_host = rustls_native_certs::load_native_certs().unwrap_or_default();
            store.add_parsable_certificates(of_host);
            anyhow::ensure!(!store.is_empty(), "this host has no root certificates: install ca-certificates");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut tls = tls.with_root_certificates(store).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Arc::new(tls), limit })
    }

    /// Sends a request whose URI is complete.
    ///
    /// # Errors
    /// No connection, no answer in time, one that is too large.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, CannotSend> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let sent = tokio::time::timeout(self.limit, self.exchange(request)).await;
        match sent {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(CannotSend(format!("{host}: {error:#}"))),
            Err(_) => Err(CannotSend(format!("{host} does not answer within {:?}", self.limit))),
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> anyhow::Result<Response<Bytes>> {
        use anyhow::Context as _;
        let (mut head, body) = request.into_parts();
        anyhow::ensure!(head.uri.scheme_str() == Some("https"), "{} does not begin with https://", head.uri);
        let authority = head.uri.authority().context("the URL names no host")?.clone();
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let addresses = tokio::net::lookup_host((host.as_str(), authority.port_u16().unwrap_or(443))).await;
        let stream = connect(addresses.context("cannot connect")?.collect(), self.limit).await.context("cannot connect")?;
        let name = ServerName::try_from(host)?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await.context("no TLS connection")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = path.parse::<Uri>()?;
        head.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
        let answered = async {
            let response = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let answered = answered.await;
        connection.abort();
        answered
    }
}

/// Connects to the first of a host's addresses that takes the connection. Each has its share of half of the time: one that swallows
/// packets, as IPv6 without a way out, leaves enough for the next.
async fn connect(addresses: Vec<SocketAddr>, limit: Duration) -> io::Result<TcpStream> {
    let each = limit / 2 / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match tokio::time::timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_swallows_packets_leaves_time_for_the_next() {
        let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        // The kernel drops what comes to a full queue.
        socket2::SockRef::from(&full).listen(0).unwrap();
        let silent = full.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&silent, Duration::from_millis(200)) {
            held.push(stream);
        }
        let listens = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = connect(vec![silent, listens.local_addr().unwrap()], Duration::from_secs(2)).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listens.local_addr().unwrap());
    }
}

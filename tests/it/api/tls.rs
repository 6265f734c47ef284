//! The Docker API over TCP, as hosts meet it that have no certificate.

use crate::raft::fixture::TempDir;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use skep::api::{ApiTls, serve_tls};
use skep::http::BoxedStream;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Makes the files of a CA, of a server at this address and of a client.
pub fn certificates(dir: &Path, server: &str) {
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, key()).expect("a CA");
    std::fs::create_dir_all(dir).expect("a directory");
    std::fs::write(dir.join("ca.pem"), ca.pem()).expect("written");
    for (name, usage) in [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)] {
        let mut params = CertificateParams::new(vec![server.to_owned()]).expect("parameters");
        params.extended_key_usages = vec![usage];
        let key = key();
        let certificate = params.signed_by(&key, &ca).expect("signed");
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("written");
        std::fs::write(dir.join(format!("{name}-key.pem")), key.serialize_pem()).expect("written");
    }
}

/// A client with the certificate of these files.
fn client(dir: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(dir.join("client.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(dir.join("client-key.pem")).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    TlsConnector::from(Arc::new(config))
}

async fn connect_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// What a client with a certificate reads; an error if the connection is closed before it is served.
async fn ask(tls: &TlsConnector, stream: TcpStream) -> std::io::Result<String> {
    let mut stream = tls.connect(ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST)), stream).await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    Ok(said)
}

#[tokio::test]
async fn a_host_that_opens_many_connections_and_shows_no_certificate_keeps_no_other_host_out() {
    let files = TempDir::new("api-tls");
    certificates(&files.0, "127.0.0.1");
    let file = |name: &str| files.0.join(name);
    let tls = ApiTls::read(&file("ca.pem"), &file("server.pem"), &file("server-key.pem")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serve = |mut stream: BoxedStream| -> futures_util::future::BoxFuture<'static, ()> {
        Box::pin(async move {
            let _ = stream.write_all(b"served").await;
            let _ = stream.shutdown().await;
        })
    };
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve_tls(listener, tls, serve, stop.clone()));

    let (stranger, other) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let mut silent = Vec::new();
    let closed = async {
        loop {
            let mut one = connect_from(stranger, at).await;
            // What is refused is closed at once; what is not says nothing while it waits for a handshake.
            match tokio::time::timeout(Duration::from_millis(20), one.read_u8()).await {
                Ok(_) => break,
                Err(_) => silent.push(one),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(9), closed)
        .await
        .expect("one source has a bound, before any handshake has timed out");
    let connector = client(&files.0);
    let said = ask(&connector, connect_from(other, at).await).await.expect("another host is served");
    assert_eq!(said, "served");

    drop(silent);
    let again = async {
        while ask(&connector, connect_from(stranger, at).await).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), again).await.expect("connections that are closed do not count");
    stop.cancel();
    server.await.unwrap();
}

#[tokio::test]
async fn a_client_that_was_reset_after_it_has_ended_its_side_is_seen_by_what_serves_it() {
    let files = TempDir::new("api-tls-reset");
    certificates(&files.0, "127.0.0.1");
    let file = |name: &str| files.0.join(name);
    let tls = ApiTls::read(&file("ca.pem"), &file("server.pem"), &file("server-key.pem")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (seen, mut ends) = tokio::sync::mpsc::channel(1);
    let serve = move |mut stream: BoxedStream| -> futures_util::future::BoxFuture<'static, ()> {
        let seen = seen.clone();
        Box::pin(async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            // Nothing is sent.
            while stream.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            seen.send(()).await.unwrap();
        })
    };
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve_tls(listener, tls, serve, stop.clone()));
    let stream = connect_from(Ipv4Addr::LOCALHOST, at).await;
    let mut stream = client(&files.0).connect(ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST)), stream).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(500), ends.recv()).await.is_err(), "it still waits for its reply");
    stream.get_ref().0.set_zero_linger().unwrap();
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), ends.recv()).await.expect("it is gone").unwrap();
    stop.cancel();
    server.await.unwrap();
}

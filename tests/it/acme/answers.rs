//! Answers of an authority that is overloaded, silent, or none.

use super::super::http::pem_of;
use rand::SeedableRng as _;
use skep::acme::{AcmeError, AcmeErrorKind, AcmeExecutor};
use skep::model::acme::AcmeSettings;
use skep::trust::DataKey;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// What a registration says of a server that answers each request with these bytes.
async fn registered_at(answer: &'static str) -> AcmeError {
    let made = skep::trust::self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let key = PrivatePkcs8KeyDer::from(made.key.expose().clone()).into();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider())).with_safe_default_protocol_versions();
    let config = config.expect("TLS").with_no_client_auth();
    let config = config.with_single_cert(vec![CertificateDer::from(made.certificate.clone())], key).expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    let settings = AcmeSettings {
        directory: format!("https://localhost:{port}/dir"),
        root_certificate: pem_of(&made).0,
        terms_agreed: true,
        ..AcmeSettings::default()
    };
    let key = DataKey::draw(&mut rand::rngs::StdRng::seed_from_u64(1));
    AcmeExecutor { key, hook: None }.register(&settings).await.expect_err("no account")
}

#[tokio::test]
async fn overload_is_waited_for_as_long_as_the_authority_says() {
    let page = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 120\r\nContent-Length: 6\r\n\r\n<html>";
    let error = registered_at(page).await;
    assert_eq!((error.kind, error.retry_after), (AcmeErrorKind::Transient, Some(Duration::from_mins(2))), "{error}");
    assert!(error.reason.contains("HTTP 503"), "{error}");
    let limit = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: Sun, 29 Nov 2026 22:10:00 GMT\r\nDate: Sun, 29 Nov 2026 22:00:00 GMT\r\n\
                 Content-Length: 2\r\n\r\nno";
    let error = registered_at(limit).await;
    assert_eq!((error.kind, error.retry_after), (AcmeErrorKind::RateLimited, Some(Duration::from_mins(10))), "{error}");
}

#[tokio::test]
async fn a_server_that_is_no_authority_is_named() {
    let error = registered_at("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
    assert_eq!(error.kind, AcmeErrorKind::Transient, "{error}");
    let settings = AcmeSettings { directory: "https://127.0.0.1:1/dir".to_owned(), ..AcmeSettings::default() };
    let roots = pem_of(&skep::trust::self_signed(vec!["localhost".to_owned()]).expect("a certificate")).0;
    let key = DataKey::draw(&mut rand::rngs::StdRng::seed_from_u64(1));
    let settings = AcmeSettings { root_certificate: roots, ..settings };
    let error = AcmeExecutor { key, hook: None }.register(&settings).await.expect_err("refused");
    assert!(error.reason.contains("127.0.0.1") && error.reason.contains("refused"), "the cause is named: {error}");
}

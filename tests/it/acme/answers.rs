//! Answers of an authority that is overloaded, silent, or none.

use super::super::http::pem_of;
use rand::SeedableRng as _;
use skep::acme::{AcmeError, AcmeErrorKind, AcmeExecutor};
use skep::model::acme::{AcmeRenewal, AcmeSettings, IssuedCertificate};
use skep::model::{AcmeAccount, PayloadId, Timestamp};
use skep::trust::DataKey;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// What a registration says of a server that answers each request with these bytes.
async fn registered_at(answer: &'static str) -> AcmeError {
    let (settings, _) = server(move |_, _| answer.to_owned()).await;
    let key = DataKey::draw(&mut rand::rngs::StdRng::seed_from_u64(1));
    AcmeExecutor { key, hook: None }.register(&AcmeAccount::new("c".into(), settings)).await.expect_err("no account")
}

/// Settings for a server with TLS that gives each request line, and its own address, to this; the server's port.
pub async fn server(answer: impl Fn(&str, &str) -> String + Send + 'static) -> (AcmeSettings, u16) {
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
            let mut head = vec![0; 16384];
            let length = stream.read(&mut head).await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let answer = answer(head.lines().next().unwrap_or_default(), &format!("https://localhost:{port}"));
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
    (settings, port)
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
    let error = AcmeExecutor { key, hook: None }.register(&AcmeAccount::new("c".into(), settings)).await.expect_err("refused");
    assert!(error.reason.contains("127.0.0.1") && error.reason.contains("refused"), "the cause is named: {error}");
}

/// A certificate for `a.test` of an authority of its own, as openssl makes it, with its key, PEM.
fn issued_by_an_authority(dir: &std::path::Path) -> String {
    std::fs::create_dir_all(dir).expect("a directory");
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 9 && \
                  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout a.key -out a.csr -subj /CN=a && \
                  printf 'subjectAltName=DNS:a.test\\nauthorityKeyIdentifier=keyid' > ext && \
                  openssl x509 -req -in a.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -out a.pem -extfile ext";
    let done = std::process::Command::new("sh").args(["-ec", script]).current_dir(dir).output().expect("openssl");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("written");
    read("a.pem") + &read("a.key")
}

/// The authority's window for a certificate is asked for by the name that it has there; an answer that says nothing is none.
#[tokio::test]
async fn the_authority_says_when_to_renew() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let (settings, _) =
        server(move |line, at| {
            let reply = |status: &str, headers: &str, body: &str| {
                format!("HTTP/1.1 {status}\r\nReplay-Nonce: bm9uY2U\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
            };
            match line.split(' ').nth(1).unwrap_or_default() {
            "/dir" => reply("200 OK", "", &serde_json::json!({
                "newNonce": format!("{at}/nonce"), "newAccount": format!("{at}/account"), "newOrder": format!("{at}/order"),
                "revokeCert": format!("{at}/revoke"), "keyChange": format!("{at}/key"), "renewalInfo": format!("{at}/ari"),
            }).to_string()),
            "/account" => reply("201 Created", &format!("Location: {at}/account/1\r\n"), "{\"status\":\"valid\"}"),
            // Key identifier of the authority and serial number, each in base64url.
            path if path.strip_prefix("/ari/").is_some_and(|id| id.split('.').filter(|part| part.len() > 8).count() == 2) => {
                let window = "{\"suggestedWindow\":{\"start\":\"2027-01-03T00:00:00Z\",\"end\":\"2027-01-04T00:00:00Z\"}}";
                match count.fetch_add(1, Ordering::Relaxed) {
                    0 => reply("200 OK", "Retry-After: 21600\r\n", window),
                    _ => reply("404 Not Found", "", ""),
                }
            }
            _ => reply("200 OK", "", ""),
        }
        })
        .await;
    let dir = std::env::temp_dir().join(format!("skep-ari-{}", std::process::id()));
    let pem = issued_by_an_authority(&dir);
    let executor = AcmeExecutor { key: DataKey::draw(&mut rand::rngs::StdRng::seed_from_u64(1)), hook: None };
    let mut account = AcmeAccount::new("c".into(), settings);
    account.registration = Some(executor.register(&account).await.expect("an account"));
    let payload = "p".into();
    let data = executor.key.seal(&PayloadId::Secret("p".into()), pem.as_bytes(), &mut rand::rng()).expect("sealed");
    let (now, names) = (Timestamp(1), vec!["a.test".to_owned()]);
    let renewal = AcmeRenewal { at: now, window: None, ask_at: now };
    let issued = IssuedCertificate { payload, data, names, issuer: "ca".to_owned(), not_before: now, not_after: now, renewal };
    let (window, again) = executor.renewal(&account, &issued).await.expect("an answer").expect("a window");
    assert_eq!(
        (window.0.to_rfc3339().as_str(), window.1.to_rfc3339().as_str()),
        ("2027-01-03T00:00:00Z", "2027-01-04T00:00:00Z")
    );
    assert!(again.abs_diff(Duration::from_hours(6)) < Duration::from_mins(1), "{again:?}");
    assert!(executor.renewal(&account, &issued).await.is_err(), "the renewal at two thirds stays");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let _ = std::fs::remove_dir_all(&dir);
}

#[tokio::test]
async fn a_silent_server_is_not_waited_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let roots = pem_of(&skep::trust::self_signed(vec!["localhost".to_owned()]).expect("a certificate")).0;
    let client = skep::http::HttpsClient::new(Some(&roots), Duration::from_millis(300)).expect("a client");
    let url = format!("https://{}/dir", listener.local_addr().expect("bound"));
    let request = skep::http::Request::get(url).body(bytes::Bytes::new()).expect("a request");
    let failed = tokio::time::timeout(Duration::from_secs(10), client.send(request)).await.expect("in time");
    assert!(failed.expect_err("no answer").to_string().contains("127.0.0.1 does not answer within 300ms"));
}

//! Renewals of certificates: requests for them, and what a renewed identity does to connections, without a restart.

use super::fixture::{Manager, OffBy, Setup, Trust, eventually, tls};
use super::session::node;
use rustls::pki_types::CertificateDer;
use skep::clock::{Clock, SystemClock};
use skep::datapath::sockets::HereSockets;
use skep::model::Role;
use skep::protocol::{RenewalRefused, RenewalRequest};
use skep::rpc::{ListenerKind, RenewalConfig, RenewalError, request_certificate};
use skep::trust::{Identity, NodeKey, NodeName};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

fn presented(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone()
}

#[tokio::test]
async fn a_server_presents_a_renewed_certificate_to_the_next_connection() {
    let trust = Trust::new();
    let setup = Setup::new(&trust, ListenerKind::Mesh);
    let first = setup.identity.certificate_der().unwrap();
    let manager = setup.start();
    // A session that is open during the renewal.
    let mut worker = node(trust.identity(Role::Worker), vec![manager.address]);
    worker.welcome().await;

    let client = trust.identity(Role::Worker);
    let before = tls(manager.address, "skep-session/1", Some(&client)).await.unwrap();
    assert_eq!(presented(&before), CertificateDer::from(first));

    let renewed = trust.identity(Role::Manager);
    manager.identity.send_replace(Arc::new(renewed.clone()));
    let after = tls(manager.address, "skep-session/1", Some(&client)).await.unwrap();
    assert_eq!(presented(&after), CertificateDer::from(renewed.certificate_der().unwrap()));

    let beats = manager.dispatcher.journal.count("applied 0");
    eventually("the open session continues", || manager.dispatcher.journal.count("applied 0") > beats).await;
    assert_eq!(worker.state.borrow().leader, Some(manager.address));
    assert_eq!(manager.dispatcher.journal.count(&format!("open {}", worker.id)), 1);
}

#[tokio::test]
async fn a_node_with_a_new_certificate_opens_its_session_again() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let first = trust.identity(Role::Worker);
    let mut worker = node(first.clone(), vec![manager.address]);
    worker.welcome().await;
    let renewed = trust.issue(first.name(), SystemClock.now(), Duration::ZERO);
    worker.identity.send_replace(Arc::new(renewed));
    worker.welcome().await;
    eventually("the session before is closed", || manager.dispatcher.journal.has("closed")).await;
    let open = format!("open {}", first.node_id());
    assert_eq!(manager.dispatcher.journal.count(&open), 2, "{:?}", manager.dispatcher.journal.all());
    assert_eq!(worker.state.borrow().last_error, None, "nothing failed");
}

#[tokio::test]
async fn a_session_ends_with_the_certificate_of_the_node() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let name = trust.identity(Role::Worker).name().clone();
    let short = trust.issue(&name, SystemClock.now(), Duration::from_secs(3));
    let mut worker = node(short, vec![manager.address]);
    worker.welcome().await;
    worker.error("this node's certificate has expired at").await;
    let journal = manager.dispatcher.journal.all();
    assert!(manager.dispatcher.journal.has("closed"), "{journal:?}");
    assert_eq!(manager.dispatcher.journal.count(&format!("open {}", name.node_id)), 1, "{journal:?}");
}

#[tokio::test]
async fn a_session_ends_with_the_certificate_of_the_manager_and_continues_with_its_next() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Mesh);
    let name = setup.identity.name().clone();
    setup.identity = trust.issue(&name, SystemClock.now(), Duration::from_secs(4));
    let manager = setup.start();
    let mut worker = node(trust.identity(Role::Worker), vec![manager.address]);
    worker.welcome().await;
    manager.identity.send_replace(Arc::new(trust.issue(&name, SystemClock.now(), Duration::ZERO)));
    worker.welcome().await;
    assert!(manager.dispatcher.journal.has("closed"));
    assert_eq!(worker.state.borrow().leader, Some(manager.address));
}

/// Asks this manager to renew an identity.
pub async fn renew(manager: &Manager, identity: &Identity, clock: Arc<dyn Clock>) -> Result<Identity, RenewalError> {
    let key = NodeKey::generate().unwrap();
    let config = RenewalConfig {
        clock,
        candidates: watch::channel(vec![manager.address]).1,
        node_at: Arc::new(|_| None),
        sockets: Arc::new(HereSockets),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        own: None,
        timeout: Duration::from_secs(5),
    };
    let request = RenewalRequest { csr: key.request().unwrap() };
    let renewed = request_certificate(&config, identity, &request).await?;
    Ok(Identity::new(&key.to_pem(), &renewed.certificate, &renewed.ca_certificate).unwrap())
}

#[tokio::test]
async fn a_member_renews_its_certificate_with_the_one_that_it_has() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let before = trust.identity(Role::Worker);
    let renewed = renew(&manager, &before, Arc::new(SystemClock)).await.unwrap();
    assert_eq!(renewed.name(), before.name());
    assert_ne!(renewed.key(), before.key());
    let mut worker = node(renewed, vec![manager.address]);
    worker.welcome().await;
}

#[tokio::test]
async fn an_expired_certificate_renews_when_allowed_and_opens_no_session() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let name = trust.identity(Role::Worker).name().clone();
    let old = trust.issue(&name, OffBy(-3600).now(), Duration::from_mins(1));
    let refused = renew(&manager, &old, Arc::new(SystemClock)).await.expect_err("not allowed");
    assert!(matches!(&refused, RenewalError::Refused { why: RenewalRefused::Expired, .. }), "{refused}");
    manager.renewals.recovers.store(true, SeqCst);
    // Whatever a client offers beside the renewal, it is a renewal.
    let stream = tls(manager.address, "skep-session/1 skep-join/1 skep-certificate/1", Some(&old)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"skep-certificate/1"[..]));
    for protocols in ["skep-session/1", "skep-join/1"] {
        match tls(manager.address, protocols, Some(&old)).await {
            Ok(mut stream) => drop(stream.read_u8().await.expect_err("refused by TLS")),
            Err(error) => assert!(error.to_string().contains("alert"), "{error}"),
        }
    }
    let renewed = renew(&manager, &old, Arc::new(SystemClock)).await.unwrap();
    assert_eq!(*renewed.name(), name);
    let mut worker = node(renewed, vec![manager.address]);
    worker.welcome().await;
}

#[tokio::test]
async fn an_expired_certificate_of_another_ca_or_none_renews_nothing() {
    let (trust, other) = (Trust::new(), Trust::new());
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    manager.renewals.recovers.store(true, SeqCst);
    let name = trust.identity(Role::Worker).name().clone();
    let long_ago = OffBy(-3600).now();
    let foreign = other.issue(&name, long_ago, Duration::from_mins(1));
    for identity in [Some(&foreign), None] {
        match tls(manager.address, "skep-certificate/1", identity).await {
            Ok(mut stream) => drop(stream.read_u8().await.expect_err("refused by TLS")),
            Err(error) => assert!(error.to_string().contains("alert"), "{error}"),
        }
    }
    // The right CA, and another cluster's name.
    let mistaken = trust.issue(&NodeName { cluster_id: "another".into(), ..name }, long_ago, Duration::from_mins(1));
    if let Ok(mut stream) = tls(manager.address, "skep-certificate/1", Some(&mistaken)).await {
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert!(manager.journal.all().is_empty(), "no request reached the authority: {:?}", manager.journal.all());
    manager.has_refused(&[("handshake", 2), ("certificate", 1)]).await;
}

#[tokio::test]
async fn renewals_are_not_served_outside_the_mesh() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Outer).start();
    manager.renewals.recovers.store(true, SeqCst);
    let refused = renew(&manager, &trust.identity(Role::Worker), Arc::new(SystemClock)).await.expect_err("refused");
    assert!(refused.to_string().contains("does not speak this protocol"), "{refused}");
    assert!(manager.journal.all().is_empty());
}

#[tokio::test]
async fn an_oversized_or_malformed_request_is_answered_and_disturbs_no_one() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let member = trust.identity(Role::Worker);
    for (bytes, expected) in [
        (u32::to_be_bytes(1 << 20).to_vec(), "are allowed"),
        ([&u32::to_be_bytes(1)[..], b"?"].concat(), "not understood"),
        ([&u32::to_be_bytes(11)[..], br#"{"csr":"?"}"#].concat(), "certificate request"),
    ] {
        let mut stream = tls(manager.address, "skep-certificate/1", Some(&member)).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.expect("answered");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(expected), "{answer}");
    }
    renew(&manager, &member, Arc::new(SystemClock)).await.unwrap();
    manager.has_refused(&[("frame", 2)]).await;
}

#[tokio::test]
async fn clocks_five_minutes_apart_keep_sessions_and_renew() {
    let trust = Trust::new();
    for off in [-300, 300] {
        // A certificate that was issued this moment, by the manager's clock.
        let mut setup = Setup::new(&trust, ListenerKind::Mesh);
        setup.clock = Arc::new(OffBy(off));
        setup.identity = trust.identity_in(Role::Manager, &trust.cluster, OffBy(off).now());
        let manager = setup.start();
        let name = trust.identity(Role::Worker).name().clone();
        let fresh = trust.issue(&name, OffBy(off).now(), Duration::from_hours(1));
        let mut worker = node(fresh.clone(), vec![manager.address]);
        worker.welcome().await;
        renew(&manager, &fresh, Arc::new(SystemClock)).await.unwrap();
    }
    // Two hours apart: the reason names the clocks.
    let mut setup = Setup::new(&trust, ListenerKind::Mesh);
    setup.clock = Arc::new(OffBy(-7200));
    let manager = setup.start();
    node(trust.identity(Role::Worker), vec![manager.address]).error("its clock differs").await;
}

//! A renewed identity is used by the next connection, without a restart.

use super::fixture::{Setup, Trust, eventually, tls};
use super::session::node;
use rustls::pki_types::CertificateDer;
use skep::model::Role;
use skep::rpc::ListenerKind;
use std::sync::Arc;
use tokio::net::TcpStream;
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
async fn a_node_presents_a_renewed_certificate_in_its_next_session() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let mut worker = node(trust.identity(Role::Worker), vec![manager.address]);
    worker.welcome().await;
    let renewed = trust.identity(Role::Worker);
    worker.identity.send_replace(Arc::new(renewed.clone()));
    // The leader closes the session.
    manager.dispatcher.outs.lock().unwrap().clear();
    worker.welcome().await;
    assert!(manager.dispatcher.journal.has(&format!("open {}", renewed.node_id())), "{:?}", manager.dispatcher.journal.all());
}

//! Who a node is, is decided by the store and by what is dialed, not by a certificate alone.

use super::fixture::{Setup, Trust, eventually};
use super::session::{node, node_with};
use skep::clock::SystemClock;
use skep::datapath::sockets::HereSockets;
use skep::model::{NodeId, Role};
use skep::protocol::{RenewalRequest, ToNode};
use skep::rpc::{ListenerKind, RenewalConfig, SessionEnd, request_certificate};
use skep::trust::NodeKey;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

#[tokio::test]
async fn a_manager_s_certificate_is_good_for_that_manager_s_address_alone() {
    let trust = Trust::new();
    let setup = Setup::new(&trust, ListenerKind::Mesh);
    let is = setup.identity.node_id().clone();
    let manager = setup.start();
    let dialed = NodeId::from("another");
    let expects = dialed.clone();
    let worker = node_with(trust.identity(Role::Worker), vec![manager.address], move |config| {
        config.node_at = Arc::new(move |_| Some(expects.clone()));
    });
    worker.error(&format!("the certificate is of node {is}, the node at this address is {dialed}")).await;
    assert!(manager.dispatcher.journal.all().is_empty(), "it got no hello");

    let renew = async |node: NodeId| {
        let config = RenewalConfig {
            clock: Arc::new(SystemClock),
            candidates: watch::channel(vec![manager.address]).1,
            node_at: Arc::new(move |_| Some(node.clone())),
            sockets: Arc::new(HereSockets),
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            own: None,
            timeout: Duration::from_secs(5),
        };
        let request = RenewalRequest { csr: NodeKey::generate().unwrap().request().unwrap() };
        request_certificate(&config, &trust.identity(Role::Worker), &request).await.map_err(|e| e.to_string())
    };
    let refused = renew(dialed).await.unwrap_err();
    assert!(refused.contains(&format!("the certificate is of node {is}")), "{refused}");
    renew(is.clone()).await.expect("the node that is dialed");

    let mut right = node_with(trust.identity(Role::Worker), vec![manager.address], move |config| {
        config.node_at = Arc::new(move |_| Some(is.clone()));
    });
    right.welcome().await;
}

#[tokio::test]
async fn a_certificate_used_from_another_node_s_address_opens_no_session() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    for role in [Role::Worker, Role::Manager] {
        let stolen = trust.identity(role);
        manager.dispatcher.elsewhere.lock().unwrap().push(stolen.node_id().clone());
        node(stolen, vec![manager.address]).error("from its own address in the mesh").await;
    }
    assert!(manager.dispatcher.journal.all().is_empty(), "neither reached the dispatcher");
    node(trust.identity(Role::Worker), vec![manager.address]).welcome().await;
}

#[tokio::test]
async fn a_manager_that_the_store_has_removed_gets_no_session_with_its_certificate() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    *manager.dispatcher.instead.lock().unwrap() = Some(ToNode::Removed("removed".to_owned()));
    let mut removed = node(trust.identity(Role::Manager), vec![manager.address]);
    assert_eq!(removed.end().await, SessionEnd::Removed("removed".to_owned()));
    eventually("asked", || manager.dispatcher.journal.has(&format!("open {}", removed.id))).await;
}

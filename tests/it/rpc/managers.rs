//! Connections between managers: what is sent arrives, answers find their proposals, and no other node gets in.

use super::fixture::{Manager, Setup, Trust, eventually};
use skep::clock::SystemClock;
use skep::datapath::sockets::HereSockets;
use skep::model::{NodeId, Role};
use skep::rpc::{ListenerKind, ManagerLink, ManagerLinkConfig};
use skep::trust::Identity;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A link of a node with this identity to the manager, which it takes for `dialed`.
fn link(identity: &Identity, to: &Manager, dialed: &NodeId) -> ManagerLink {
    let config = ManagerLinkConfig {
        identity: watch::channel(Arc::new(identity.clone())).1,
        clock: Arc::new(SystemClock),
        sockets: Arc::new(HereSockets),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        connect: Duration::from_secs(5),
        runtime: tokio::runtime::Handle::current(),
    };
    ManagerLink::start(Arc::new(config), to.address, dialed.clone())
}

/// A running manager and its node id.
fn started() -> (Arc<Trust>, Manager, NodeId) {
    let trust = Trust::new();
    let setup = Setup::new(&trust, ListenerKind::Mesh);
    let dialed = setup.identity.node_id().clone();
    (trust, setup.start(), dialed)
}

#[tokio::test]
async fn messages_and_proposals_of_a_manager_arrive_and_are_answered() {
    let (trust, manager, dialed) = started();
    let other = trust.identity(Role::Manager);
    manager.managers.known.lock().unwrap().push(other.node_id().clone());
    let link = link(&other, &manager, &dialed);
    // Larger than what TLS and the sockets buffer: a snapshot is one message.
    let snapshot = vec![7; 4 << 20];
    link.raft(snapshot.clone());
    let (a, b) = tokio::join!(link.propose(b"abc".to_vec()), link.propose(b"xyz".to_vec()));
    assert_eq!((a.unwrap(), b.unwrap()), (b"cba".to_vec(), b"zyx".to_vec()));
    eventually("the message arrives", || *manager.managers.messages.lock().unwrap() == [snapshot.clone()]).await;
}

#[tokio::test]
async fn only_a_manager_gets_in() {
    let (trust, manager, dialed) = started();
    let known = |identity: &Identity| manager.managers.known.lock().unwrap().push(identity.node_id().clone());
    // A certificate of before a demotion.
    let demoted = trust.identity(Role::Manager);
    link(&demoted, &manager, &dialed).propose(b"abc".to_vec()).await.expect_err("the store decides");
    // Another cluster's manager.
    let foreign = Trust::new().identity(Role::Manager);
    known(&foreign);
    link(&foreign, &manager, &dialed).propose(b"abc".to_vec()).await.expect_err("another cluster");
    // The other way: a manager dials another node than it wants.
    let right = trust.identity(Role::Manager);
    known(&right);
    link(&right, &manager, &NodeId::from("someone")).propose(b"abc".to_vec()).await.expect_err("not the dialed node");
    link(&right, &manager, &dialed).propose(b"abc".to_vec()).await.expect("and that one gets in");
    assert!(manager.managers.messages.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_manager_that_is_demoted_loses_its_connection() {
    let (trust, manager, dialed) = started();
    let other = trust.identity(Role::Manager);
    manager.managers.known.lock().unwrap().push(other.node_id().clone());
    let link = link(&other, &manager, &dialed);
    link.propose(b"abc".to_vec()).await.expect("a manager");
    manager.managers.known.lock().unwrap().clear();
    link.propose(b"abc".to_vec()).await.expect_err("on the open connection as well");
}

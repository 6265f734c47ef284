//! Connections between managers: what is sent arrives, answers find their proposals, and no other node gets in.

use super::fixture::{Manager, OtherManagers, Setup, Trust, eventually};
use skep::clock::SystemClock;
use skep::datapath::sockets::HereSockets;
use skep::model::{NodeId, Role};
use skep::rpc::{ListenerKind, ManagerLink, ManagerLinkConfig};
use skep::trust::Identity;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// A link of a node with this identity to the manager, which it takes for `dialed`.
fn reporting_link(identity: &Identity, to: &Manager, dialed: &NodeId, ended: Arc<dyn Fn() + Send + Sync>) -> ManagerLink {
    let config = ManagerLinkConfig {
        identity: watch::channel(Arc::new(identity.clone())).1,
        clock: Arc::new(SystemClock),
        sockets: Arc::new(HereSockets),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        greeter: Arc::new(OtherManagers::default()),
        connect: Duration::from_secs(5),
        steady: Duration::ZERO,
        runtime: tokio::runtime::Handle::current(),
    };
    ManagerLink::start(Arc::new(config), to.address, dialed.clone(), ended)
}

/// A link that reports nothing.
fn link(identity: &Identity, to: &Manager, dialed: &NodeId) -> ManagerLink {
    reporting_link(identity, to, dialed, Arc::new(|| ()))
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
    link.greet().await;
    assert_eq!(*manager.managers.greetings.lock().unwrap(), [b"server".to_vec()], "each connection begins with it");
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

#[tokio::test]
async fn a_manager_whose_process_ends_is_reported_and_one_that_closes_a_connection_is_not() {
    let (trust, mut manager, dialed) = started();
    let other = trust.identity(Role::Manager);
    manager.managers.known.lock().unwrap().push(other.node_id().clone());
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    let report = move || {
        count.fetch_add(1, Ordering::SeqCst);
    };
    let link = reporting_link(&other, &manager, &dialed, Arc::new(report));
    link.propose(b"abc".to_vec()).await.expect("a manager");
    manager.managers.known.lock().unwrap().clear();
    link.propose(b"abc".to_vec()).await.expect_err("closed");
    manager.managers.known.lock().unwrap().push(other.node_id().clone());
    eventually_answers(&link).await;
    assert_eq!(ended.load(Ordering::SeqCst), 0, "it is there");
    manager.shutdown.cancel();
    manager.served.take().expect("served").await.expect("ends");
    eventually("the end is reported", || ended.load(Ordering::SeqCst) == 1).await;
}

async fn eventually_answers(link: &ManagerLink) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while link.propose(b"abc".to_vec()).await.is_err() {
        assert!(tokio::time::Instant::now() < end, "no answer within 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! Connections between managers: what is sent arrives, answers find their proposals, and no other node gets in.

use super::fixture::{Manager, OtherManagers, Setup, Trust, eventually};
use skep::clock::{Clock as _, SystemClock};
use skep::datapath::sockets::HereSockets;
use skep::model::{NodeId, Role};
use skep::rpc::{ListenerKind, ManagerGreeter, ManagerLink, ManagerLinkConfig};
use skep::trust::{Identity, NodeName};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A link of a node with this identity to the manager, which it takes for `dialed`.
fn reporting_link(identity: &Identity, to: &Manager, dialed: &NodeId, ended: Arc<dyn Fn() + Send + Sync>) -> ManagerLink {
    renewed_link(watch::channel(Arc::new(identity.clone())).1, to, dialed, ended)
}

/// As [`reporting_link`], of a node whose identity changes.
fn renewed_link(
    identity: watch::Receiver<Arc<Identity>>,
    to: &Manager,
    dialed: &NodeId,
    ended: Arc<dyn Fn() + Send + Sync>,
) -> ManagerLink {
    let config = config(identity, Arc::new(OtherManagers::default()));
    ManagerLink::start(&Arc::new(config), to.address, dialed, ended)
}

fn config(identity: watch::Receiver<Arc<Identity>>, greeter: Arc<dyn ManagerGreeter>) -> ManagerLinkConfig {
    ManagerLinkConfig {
        identity,
        clock: Arc::new(SystemClock),
        sockets: Arc::new(HereSockets),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        greeter,
        connect: Duration::from_secs(5),
        steady: Duration::ZERO,
        runtime: tokio::runtime::Handle::current(),
    }
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

struct PanickingGreeter;

impl ManagerGreeter for PanickingGreeter {
    fn greeting(&self) -> Vec<u8> {
        panic!("a bug")
    }
    fn greeted(&self, _: &NodeId, _: &[u8]) {}
}

#[tokio::test]
async fn a_link_that_a_bug_has_ended_says_so_to_be_replaced() {
    let (trust, manager, dialed) = started();
    let other = trust.identity(Role::Manager);
    let identity = watch::channel(Arc::new(other.clone())).1;
    let broken =
        ManagerLink::start(&Arc::new(config(identity, Arc::new(PanickingGreeter))), manager.address, &dialed, Arc::new(|| ()));
    assert!(!broken.has_ended());
    broken.greet().await;
    eventually("it says so", || broken.has_ended()).await;
    let healthy = link(&other, &manager, &dialed);
    healthy.greet().await;
    assert!(!healthy.has_ended());
}

#[tokio::test]
async fn messages_and_proposals_of_a_manager_arrive_and_are_answered() {
    let (trust, manager, dialed) = started();
    let other = trust.identity(Role::Manager);
    manager.managers.known.lock().unwrap().push(other.node_id().clone());
    let link = link(&other, &manager, &dialed);
    link.greet().await;
    assert_eq!(*manager.managers.greetings.lock().unwrap(), [b"server".to_vec()], "each connection begins with it");
    // Larger than what TLS and the sockets buffer.
    let snapshot = vec![7; 4 << 20];
    link.raft(snapshot.clone());
    let (a, b) = tokio::join!(link.propose(b"abc".to_vec()), link.propose(b"xyz".to_vec()));
    assert_eq!((a.unwrap(), b.unwrap()), (b"cba".to_vec(), b"zyx".to_vec()));
    eventually("the message arrives", || *manager.managers.messages.lock().unwrap() == [snapshot.clone()]).await;
    manager.has_refused(&[]).await;
}

/// Passes connections on to `to`; of each the first MiB, and the rest when `open` is true.
async fn narrow_link(to: SocketAddr, open: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            let mut open = open.clone();
            tokio::spawn(async move {
                let (mut from_read, mut from_write) = from.into_split();
                let (mut to_read, mut to_write) = TcpStream::connect(to).await.unwrap().into_split();
                tokio::spawn(async move { tokio::io::copy(&mut to_read, &mut from_write).await });
                let mut first = (&mut from_read).take(1 << 20);
                let passed = tokio::io::copy(&mut first, &mut to_write).await;
                if passed.is_ok_and(|passed| passed == 1 << 20) && open.wait_for(|open| *open).await.is_ok() {
                    let _ = tokio::io::copy(&mut from_read, &mut to_write).await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_snapshot_on_a_slow_link_delays_neither_heartbeats_nor_proposals() {
    let (trust, mut manager, dialed) = started();
    let other = trust.identity(Role::Manager);
    manager.managers.known.lock().unwrap().push(other.node_id().clone());
    let (open, opens) = watch::channel(false);
    manager.address = narrow_link(manager.address, opens).await;
    let link = link(&other, &manager, &dialed);
    // 100,000 tasks have more.
    let snapshot = vec![7; 32 << 20];
    link.snapshot(snapshot.clone());
    for number in 0..20_u8 {
        link.raft(vec![number]);
        let answer = tokio::time::timeout(Duration::from_secs(5), link.propose(vec![number, b'a'])).await;
        assert_eq!(answer.expect("in time").unwrap(), [b'a', number]);
    }
    let beats: Vec<Vec<u8>> = (0..20).map(|number| vec![number]).collect();
    eventually("the heartbeats arrive", || *manager.managers.messages.lock().unwrap() == beats).await;
    open.send_replace(true);
    eventually("the snapshot arrives", || manager.managers.messages.lock().unwrap().last() == Some(&snapshot)).await;
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
    // A link dials again: how often is not said.
    let refused = manager.refused.read();
    assert!(refused["manager"] > 0 && refused["handshake"] > 0, "{refused:?}");
    assert_eq!(refused["manager"] + refused["handshake"], refused.values().sum::<u64>(), "{refused:?}");
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
    assert!(manager.refused.read()["manager"] > 0);
}

#[tokio::test]
async fn a_manager_that_speaks_in_anothers_name_loses_its_connection() {
    let (trust, manager, dialed) = started();
    let other = trust.identity(Role::Manager);
    manager.managers.known.lock().unwrap().push(other.node_id().clone());
    *manager.managers.foreign.lock().unwrap() = Some(b'f');
    let connections = || manager.managers.greetings.lock().unwrap().len();
    let link = link(&other, &manager, &dialed);
    link.greet().await;
    link.raft(b"forged".to_vec());
    link.propose(b"abc".to_vec()).await.expect_err("its connection is closed");
    eventually_answers(&link).await;
    link.raft(b"own".to_vec());
    eventually("its own arrives", || *manager.managers.messages.lock().unwrap() == [b"own".to_vec()]).await;
    assert!(connections() > 1);
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

#[tokio::test]
async fn a_connection_ends_with_the_certificate_of_either_manager_and_the_next_is_made_with_a_renewed_one() {
    for is_short_at_server in [false, true] {
        let trust = Trust::new();
        let mut setup = Setup::new(&trust, ListenerKind::Mesh);
        let dialed = setup.identity.name().clone();
        let other = trust.identity(Role::Manager);
        let issue = |name: &NodeName, life| trust.issue(name, SystemClock.now(), Duration::from_secs(life));
        let mut first = other.clone();
        if is_short_at_server {
            setup.identity = issue(&dialed, 3);
        } else {
            first = issue(other.name(), 3);
        }
        let end = if is_short_at_server { setup.identity.validity() } else { first.validity() }.end();
        let manager = setup.start();
        manager.managers.known.lock().unwrap().push(other.node_id().clone());
        let (identity, identities) = watch::channel(Arc::new(first));
        let link = renewed_link(identities, &manager, &dialed.node_id, Arc::new(|| ()));
        link.propose(b"abc".to_vec()).await.expect("it is valid");
        skep::clock::reached(&SystemClock, end).await;
        // The connection is open, and no other can be made.
        let eventually_refused = async { while link.propose(b"abc".to_vec()).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(5), eventually_refused).await.expect("the certificate is over");
        link.propose(b"abc".to_vec()).await.expect_err("with the same certificate");
        if is_short_at_server {
            manager.identity.send_replace(Arc::new(issue(&dialed, 0)));
        } else {
            identity.send_replace(Arc::new(issue(other.name(), 0)));
        }
        eventually_answers(&link).await;
    }
}

async fn eventually_answers(link: &ManagerLink) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while link.propose(b"abc".to_vec()).await.is_err() {
        assert!(tokio::time::Instant::now() < end, "no answer within 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

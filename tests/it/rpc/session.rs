//! A node keeps a session to the leader, through restarts, failures and changes of the leader.

use super::fixture::{Manager, OffBy, Setup, Trust, eventually, view};
use skep::backoff::Backoff;
use skep::clock::SystemClock;
use skep::datapath::sockets::HereSockets;
use skep::model::mesh::{DEFAULT_POOL, MeshPrefix};
use skep::model::node::NodeDescription;
use skep::model::view::ClusterPart;
use skep::model::{Revision, Role, fixture};
use skep::protocol::view_delta::{ViewDelta, apply};
use skep::protocol::{FORMATS, ToManager, ToNode};
use skep::rpc::{ListenerKind, SessionChannels, SessionConfig, SessionEnd, SessionState, keep_session};
use skep::trust::Identity;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub struct Node {
    pub id: String,
    pub identity: watch::Sender<Arc<Identity>>,
    candidates: watch::Sender<Vec<SocketAddr>>,
    incoming: mpsc::Receiver<ToNode>,
    outgoing: mpsc::Sender<ToManager>,
    applied: watch::Sender<Revision>,
    pub state: watch::Receiver<SessionState>,
    shutdown: CancellationToken,
    kept: Option<JoinHandle<SessionEnd>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub fn node(identity: Identity, candidates: Vec<SocketAddr>) -> Node {
    node_with(identity, candidates, |_| {})
}

pub fn node_with(identity: Identity, candidates: Vec<SocketAddr>, change: impl FnOnce(&mut SessionConfig)) -> Node {
    let id = identity.node_id().to_string();
    let (candidates, candidates_rx) = watch::channel(candidates);
    let (incoming_tx, incoming) = mpsc::channel(16);
    let (outgoing, outgoing_rx) = mpsc::channel(16);
    let (applied, applied_rx) = watch::channel(Revision::default());
    let (state_tx, state) = watch::channel(SessionState::default());
    let (identity, identities) = watch::channel(Arc::new(identity));
    let mut config = SessionConfig::new(
        identities,
        Arc::new(SystemClock),
        candidates_rx,
        Arc::new(HereSockets),
        IpAddr::V4(Ipv4Addr::LOCALHOST),
    );
    config.dead_after = Duration::from_secs(2);
    config.backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(100));
    change(&mut config);
    let hello = || ToManager::Hello {
        format: FORMATS.oldest,
        formats: Some(FORMATS),
        description: NodeDescription::default(),
        endpoints: vec![],
        have: Revision::default(),
    };
    let channels = SessionChannels { incoming: incoming_tx, outgoing: outgoing_rx, applied: applied_rx, state: state_tx };
    let shutdown = CancellationToken::new();
    let kept = Some(tokio::spawn(keep_session(config, hello, channels, shutdown.clone())));
    Node { id, identity, candidates, incoming, outgoing, applied, state, shutdown, kept }
}

impl Node {
    async fn next(&mut self) -> ToNode {
        tokio::time::timeout(Duration::from_secs(10), self.incoming.recv()).await.expect("in time").expect("open")
    }
    pub async fn send(&self, message: ToManager) {
        self.outgoing.send(message).await.unwrap();
    }
    pub async fn welcome(&mut self) {
        let message = self.next().await;
        assert!(matches!(message, ToNode::Welcome { .. }), "{message:?}");
    }
    async fn state(&self, what: &str, is: impl Fn(&SessionState) -> bool) -> SessionState {
        let mut state = self.state.clone();
        let waited = tokio::time::timeout(Duration::from_secs(10), state.wait_for(|s| is(s))).await;
        let Ok(state) = waited else { panic!("not within 10 s: {what}; {:?}", self.state.borrow()) };
        state.expect("kept").clone()
    }
    pub async fn error(&self, expected: &str) -> SessionState {
        self.state(expected, |s| s.last_error.as_ref().is_some_and(|e| e.contains(expected))).await
    }
    pub async fn end(&mut self) -> SessionEnd {
        tokio::time::timeout(Duration::from_secs(10), self.kept.take().expect("once")).await.expect("ends").expect("no panic")
    }
}

fn manager(trust: &Arc<Trust>) -> Manager {
    Setup::new(trust, ListenerKind::Mesh).start()
}

#[tokio::test]
async fn messages_are_exchanged_in_both_directions() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    let state = node.state("open", |s| s.leader == Some(manager.address)).await;
    assert!(state.since.0 > 0 && state.last_error.is_none());
    assert!(manager.dispatcher.journal.has(&format!("open {}", node.id)), "it is named by its certificate");

    let whole = view(MeshPrefix("fd00:1:2::/48".parse().unwrap()), 7);
    let (tasks, networks, cluster) = (Some(whole.tasks.clone()), Some(whole.networks.clone()), Some(whole.cluster.clone()));
    manager.dispatcher.send(ToNode::View { revision: whole.revision, tasks, networks, cluster }).await;
    let delta = ViewDelta::from_message(&node.next().await).expect("a view");
    assert_eq!(apply(None, delta).unwrap(), whole);
    node.applied.send(Revision { incarnation: 1, index: 7 }).unwrap();
    eventually("acknowledged", || manager.dispatcher.journal.has("applied 7")).await;
    node.outgoing.send(ToManager::Status(vec![])).await.unwrap();
    eventually("received", || manager.dispatcher.journal.has("Status([])")).await;
}

/// The session's first hello was made before: the leader would not hear of the change until the next one.
#[tokio::test]
async fn a_description_that_changes_while_the_session_is_being_opened_reaches_the_leader() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut node = node(trust.identity(Role::Worker), vec![slow.local_addr().unwrap()]);
    let (mut near, _) = slow.accept().await.unwrap();
    let description = NodeDescription { hostname: "renamed".to_owned(), ..NodeDescription::default() };
    let (endpoints, have) = (vec![], Revision::default());
    node.send(ToManager::Hello { format: FORMATS.oldest, formats: Some(FORMATS), description, endpoints, have }).await;
    eventually("taken", || node.outgoing.capacity() == node.outgoing.max_capacity()).await;
    let mut far = tokio::net::TcpStream::connect(manager.address).await.unwrap();
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
    node.welcome().await;
    eventually("the change", || manager.dispatcher.journal.all().iter().any(|line| line.contains("renamed"))).await;
}

#[tokio::test]
async fn a_leave_before_a_shutdown_is_delivered() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    node.outgoing.send(ToManager::Leave).await.unwrap();
    node.shutdown.cancel();
    assert_eq!(node.end().await, SessionEnd::Shutdown);
    eventually("received", || manager.dispatcher.journal.has("Leave")).await;
    eventually("closed", || manager.dispatcher.journal.has("closed")).await;
}

#[tokio::test]
async fn a_node_that_left_opens_no_new_session() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    node.outgoing.send(ToManager::Leave).await.unwrap();
    assert_eq!(node.end().await, SessionEnd::Shutdown);
    assert_eq!(node.state.borrow().leader, None);
    assert_eq!(manager.dispatcher.journal.count(&format!("open {}", node.id)), 1);
}

#[tokio::test]
async fn a_large_view_is_delivered() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    let mut part = ClusterPart::clone(&view(MeshPrefix("fd00:1:2::/48".parse().unwrap()), 7).cluster);
    part.pools = vec![DEFAULT_POOL; 500_000]; // some 6 MB of JSON
    let cluster = Some(Arc::new(part));
    manager
        .dispatcher
        .send(ToNode::View { revision: Revision::default(), tasks: None, networks: None, cluster: cluster.clone() })
        .await;
    let delta = ViewDelta::from_message(&node.next().await).expect("a view");
    assert!(delta.cluster == cluster);
    assert_eq!(node.state.borrow().leader, Some(manager.address));
}

#[tokio::test]
async fn the_session_to_a_restarted_leader_is_opened_again() {
    let trust = Trust::new();
    let mut manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    let address = manager.address;
    manager.shutdown.cancel();
    manager.served.take().unwrap().await.unwrap();
    assert!(manager.dispatcher.journal.has("closed"), "serve ends after its sessions");
    node.state("lost", |s| s.leader.is_none() && s.last_error.is_some()).await;
    // Messages without a session are dropped and do not block the sender.
    for _ in 0..100 {
        tokio::time::timeout(Duration::from_secs(5), node.outgoing.send(ToManager::Status(vec![]))).await.unwrap().unwrap();
    }
    let mut setup = Setup::new(&trust, ListenerKind::Mesh);
    setup.address = address;
    let again = setup.start();
    node.welcome().await;
    node.state("back", |s| s.leader == Some(again.address) && s.last_error.is_none()).await;
}

#[tokio::test]
async fn a_manager_that_does_not_lead_redirects_to_the_leader() {
    let trust = Trust::new();
    let (first, second) = (manager(&trust), manager(&trust));
    // A manager that the node does not know yet.
    let named = fixture::peer(2);
    let instead = ToNode::NotLeader { leader: Some(second.address), manager: Some(Box::new(named.clone())) };
    *first.dispatcher.instead.lock().unwrap() = Some(instead);
    let (learned, identity) = (Arc::new(Mutex::new(Vec::new())), trust.identity(Role::Worker));
    let (learns, journal, opened) = (learned.clone(), second.journal.clone(), format!("open {}", identity.node_id()));
    let mut node = node_with(identity, vec![first.address], |c| {
        c.backoff.first = Duration::from_mins(1);
        c.learn = Arc::new(move |manager| {
            assert!(!journal.has(&opened), "before it is dialed");
            learns.lock().unwrap().push(manager.clone());
        });
    });
    node.welcome().await;
    node.state("with the leader", |s| s.leader == Some(second.address)).await;
    assert_eq!(*learned.lock().unwrap(), [named]);

    // The leader changes during a session.
    *first.dispatcher.instead.lock().unwrap() = None;
    second.dispatcher.send(ToNode::NotLeader { leader: Some(first.address), manager: None }).await;
    node.welcome().await;
    node.state("with the new leader", |s| s.leader == Some(first.address)).await;
}

#[tokio::test]
async fn the_session_to_a_silent_leader_is_given_up() {
    let trust = Trust::new();
    let (first, second) = (manager(&trust), manager(&trust));
    let mut node = node(trust.identity(Role::Worker), vec![first.address]);
    node.welcome().await;
    node.candidates.send(vec![first.address, second.address]).unwrap();
    // Answered heartbeats keep the session beyond the time after which the leader counts as lost.
    let beats = first.dispatcher.journal.count("applied 0");
    eventually("heartbeats", || first.dispatcher.journal.count("applied 0") > beats + 60).await;
    assert_eq!(node.state.borrow().leader, Some(first.address));
    first.dispatcher.dead.store(true, SeqCst);
    node.error("nothing was received for 2000 ms").await;
    eventually("the other manager is tried", || second.dispatcher.journal.has(&format!("open {}", node.id))).await;
}

#[tokio::test]
async fn a_node_that_does_not_read_keeps_its_session() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    // More than the node's queue holds, while nothing reads it.
    let at = |index| Revision { incarnation: 1, index };
    for index in 1..=40 {
        manager.dispatcher.send(ToNode::View { revision: at(index), tasks: None, networks: None, cluster: None }).await;
    }
    let beats = manager.dispatcher.journal.count("applied 0");
    eventually("heartbeats continue", || manager.dispatcher.journal.count("applied 0") > beats + 60).await;
    assert_eq!(node.state.borrow().leader, Some(manager.address));
    // Views that waited together arrive as one; the last one arrives in any case.
    let mut last = at(0);
    while last < at(40) {
        let ToNode::View { revision, .. } = node.next().await else { panic!("no view") };
        assert!(revision > last, "{revision:?} after {last:?}");
        last = revision;
    }
}

#[tokio::test]
async fn a_removed_node_stops() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut early = node(trust.identity(Role::Worker), vec![manager.address]);
    early.welcome().await;
    manager.dispatcher.send(ToNode::Removed("removed by docker node rm".to_owned())).await;
    assert!(matches!(early.next().await, ToNode::Removed(_)));
    assert_eq!(early.end().await, SessionEnd::Removed("removed by docker node rm".to_owned()));

    *manager.dispatcher.instead.lock().unwrap() = Some(ToNode::Removed("long ago".to_owned()));
    let mut late = node(trust.identity(Role::Worker), vec![manager.address]);
    assert!(matches!(late.next().await, ToNode::Removed(_)));
    assert_eq!(late.end().await, SessionEnd::Removed("long ago".to_owned()));
    manager.has_refused(&[("member", 1)]).await;
}

#[tokio::test]
async fn a_refusal_is_shown_and_the_session_retried() {
    let trust = Trust::new();
    let manager = manager(&trust);
    *manager.dispatcher.refuses.lock().unwrap() = Some("the store is not ready".to_owned());
    let mut node = node(trust.identity(Role::Worker), vec![]);
    node.candidates.send(vec![manager.address]).unwrap();
    node.error("it refuses: the store is not ready").await;
    *manager.dispatcher.refuses.lock().unwrap() = None;
    node.welcome().await;
}

#[tokio::test]
async fn neither_a_worker_nor_a_manager_of_another_cluster_is_accepted_as_leader() {
    let (trust, other) = (Trust::new(), Trust::new());
    let mut setup = Setup::new(&trust, ListenerKind::Mesh);
    setup.identity = trust.identity(Role::Worker);
    let worker = setup.start();
    node(trust.identity(Role::Worker), vec![worker.address]).error("is not a manager").await;
    let foreign = manager(&other);
    node(trust.identity(Role::Worker), vec![foreign.address]).error("it cannot be trusted").await;
    assert!(foreign.dispatcher.journal.all().is_empty() && worker.dispatcher.journal.all().is_empty());
}

#[tokio::test]
async fn a_node_with_an_expired_certificate_reports_it() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let now = skep::clock::Clock::now(&OffBy(-100 * 24 * 3600));
    let old = trust.identity_in(Role::Worker, &trust.cluster, now);
    assert!(old.expires() < skep::clock::Clock::now(&SystemClock));
    node(old, vec![manager.address]).error("this node's certificate has expired at").await;
}

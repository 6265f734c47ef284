//! A node keeps a session to the leader, through restarts, changes of leader and dead ones.

use super::stage::{Manager, OffBy, Setup, Trust, eventually, view};
use skep::clock::SystemClock;
use skep::datapath::sockets::HereSockets;
use skep::model::mesh::{DEFAULT_POOL, MeshPrefix};
use skep::model::node::NodeDescription;
use skep::model::view::ClusterPart;
use skep::model::{Revision, Role};
use skep::protocol::view_delta::{Delta, apply};
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::rpc::{ListenerKind, SessionConfig, SessionEnd, SessionEnds, SessionState, keep_session};
use skep::trust::Identity;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Node {
    id: String,
    candidates: watch::Sender<Vec<SocketAddr>>,
    incoming: mpsc::Receiver<ToNode>,
    outgoing: mpsc::Sender<ToManager>,
    applied: watch::Sender<Revision>,
    state: watch::Receiver<SessionState>,
    shutdown: CancellationToken,
    kept: Option<JoinHandle<SessionEnd>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn node(identity: Identity, candidates: Vec<SocketAddr>) -> Node {
    node_with(identity, candidates, |_| {})
}

fn node_with(identity: Identity, candidates: Vec<SocketAddr>, change: impl FnOnce(&mut SessionConfig)) -> Node {
    let id = identity.node_id().to_string();
    let (candidates, candidates_rx) = watch::channel(candidates);
    let (incoming_tx, incoming) = mpsc::channel(16);
    let (outgoing, outgoing_rx) = mpsc::channel(16);
    let (applied, applied_rx) = watch::channel(Revision::default());
    let (state_tx, state) = watch::channel(SessionState::default());
    let mut config = SessionConfig::new(
        Arc::new(identity),
        Arc::new(SystemClock),
        candidates_rx,
        Arc::new(HereSockets),
        IpAddr::V4(Ipv4Addr::LOCALHOST),
    );
    config.dead_after = Duration::from_secs(2);
    config.pauses = (Duration::from_millis(10), Duration::from_millis(100));
    change(&mut config);
    let hello = || ToManager::Hello {
        format: FORMAT,
        description: NodeDescription::default(),
        endpoints: vec![],
        have: Revision::default(),
    };
    let ends = SessionEnds { incoming: incoming_tx, outgoing: outgoing_rx, applied: applied_rx, state: state_tx };
    let shutdown = CancellationToken::new();
    let kept = Some(tokio::spawn(keep_session(config, hello, ends, shutdown.clone())));
    Node { id, candidates, incoming, outgoing, applied, state, shutdown, kept }
}

impl Node {
    async fn next(&mut self) -> ToNode {
        tokio::time::timeout(Duration::from_secs(10), self.incoming.recv()).await.expect("in time").expect("open")
    }
    async fn welcome(&mut self) {
        let message = self.next().await;
        assert!(matches!(message, ToNode::Welcome { .. }), "{message:?}");
    }
    async fn state(&self, what: &str, is: impl Fn(&SessionState) -> bool) -> SessionState {
        let mut state = self.state.clone();
        let waited = tokio::time::timeout(Duration::from_secs(10), state.wait_for(|s| is(s))).await;
        let Ok(state) = waited else { panic!("in vain: {what}; {:?}", self.state.borrow()) };
        state.expect("kept").clone()
    }
    async fn error(&self, says: &str) -> SessionState {
        self.state(says, |s| s.last_error.as_ref().is_some_and(|e| e.contains(says))).await
    }
    async fn end(&mut self) -> SessionEnd {
        tokio::time::timeout(Duration::from_secs(10), self.kept.take().expect("once")).await.expect("ends").expect("no panic")
    }
}

fn manager(trust: &Arc<Trust>) -> Manager {
    Setup::new(trust, ListenerKind::Mesh).start()
}

#[tokio::test]
async fn messages_go_both_ways() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    let state = node.state("open", |s| s.leader == Some(manager.address)).await;
    assert!(state.since.0 > 0 && state.last_error.is_none());
    assert!(manager.dispatcher.journal.has(&format!("open {}", node.id)), "its name is the certificate's");

    let whole = view(MeshPrefix("fd00:1:2::/48".parse().unwrap()), 7);
    let (tasks, networks, cluster) = (Some(whole.tasks.clone()), Some(whole.networks.clone()), Some(whole.cluster.clone()));
    manager.dispatcher.send(ToNode::View { revision: whole.revision, tasks, networks, cluster }).await;
    let delta = Delta::of(&node.next().await).expect("a view");
    assert_eq!(apply(None, delta).unwrap(), whole);
    node.applied.send(Revision { incarnation: 1, index: 7 }).unwrap();
    eventually("acknowledged", || manager.dispatcher.journal.has("applied 7")).await;
    node.outgoing.send(ToManager::Status(vec![])).await.unwrap();
    eventually("heard", || manager.dispatcher.journal.has("Status([])")).await;
}

#[tokio::test]
async fn the_last_word_before_a_shutdown_is_heard() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    node.outgoing.send(ToManager::Leave).await.unwrap();
    node.shutdown.cancel();
    assert_eq!(node.end().await, SessionEnd::Shutdown);
    eventually("heard", || manager.dispatcher.journal.has("Leave")).await;
    eventually("closed", || manager.dispatcher.journal.has("closed")).await;
}

#[tokio::test]
async fn a_node_that_left_does_not_come_back() {
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
async fn a_view_may_be_large() {
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
    let delta = Delta::of(&node.next().await).expect("a view");
    assert!(delta.cluster == cluster);
    assert_eq!(node.state.borrow().leader, Some(manager.address));
}

#[tokio::test]
async fn a_restarted_leader_is_found_again() {
    let trust = Trust::new();
    let mut manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    let address = manager.address;
    manager.shutdown.cancel();
    manager.served.take().unwrap().await.unwrap();
    assert!(manager.dispatcher.journal.has("closed"), "serve ends after its sessions");
    node.state("lost", |s| s.leader.is_none() && s.last_error.is_some()).await;
    // What is said meanwhile blocks nobody.
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
async fn the_leader_is_followed_where_others_point() {
    let trust = Trust::new();
    let (first, second) = (manager(&trust), manager(&trust));
    *first.dispatcher.instead.lock().unwrap() = Some(ToNode::NotLeader { leader: Some(second.address) });
    let mut node = node_with(trust.identity(Role::Worker), vec![first.address], |c| c.pauses.0 = Duration::from_mins(1));
    node.welcome().await;
    node.state("with the leader", |s| s.leader == Some(second.address)).await;

    // The leader hands over in the middle of a session.
    *first.dispatcher.instead.lock().unwrap() = None;
    second.dispatcher.send(ToNode::NotLeader { leader: Some(first.address) }).await;
    node.welcome().await;
    node.state("with the new leader", |s| s.leader == Some(first.address)).await;
}

#[tokio::test]
async fn a_leader_that_falls_silent_is_left() {
    let trust = Trust::new();
    let (first, second) = (manager(&trust), manager(&trust));
    let mut node = node(trust.identity(Role::Worker), vec![first.address]);
    node.welcome().await;
    node.candidates.send(vec![first.address, second.address]).unwrap();
    // Alive keeps it: longer than it would take to call it dead.
    let beats = first.dispatcher.journal.count("applied 0");
    eventually("heartbeats", || first.dispatcher.journal.count("applied 0") > beats + 60).await;
    assert_eq!(node.state.borrow().leader, Some(first.address));
    first.dispatcher.dead.store(true, SeqCst);
    node.error("nothing was heard for 2000 ms").await;
    eventually("the other is asked", || second.dispatcher.journal.has(&format!("open {}", node.id))).await;
}

#[tokio::test]
async fn a_busy_node_is_no_dead_leader() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    // More than the node's queue holds, and nobody takes it.
    let delta = ToNode::View { revision: Revision::default(), tasks: None, networks: None, cluster: None };
    for _ in 0..40 {
        manager.dispatcher.send(delta.clone()).await;
    }
    let beats = manager.dispatcher.journal.count("applied 0");
    eventually("heartbeats go on", || manager.dispatcher.journal.count("applied 0") > beats + 60).await;
    assert_eq!(node.state.borrow().leader, Some(manager.address));
    for _ in 0..40 {
        assert!(matches!(node.next().await, ToNode::View { .. }));
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
}

#[tokio::test]
async fn a_refusal_is_shown_and_tried_again() {
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
async fn neither_a_worker_nor_a_stranger_passes_for_the_leader() {
    let (trust, other) = (Trust::new(), Trust::new());
    let mut setup = Setup::new(&trust, ListenerKind::Mesh);
    setup.identity = trust.identity(Role::Worker);
    let worker = setup.start();
    node(trust.identity(Role::Worker), vec![worker.address]).error("is not a manager").await;
    let stranger = manager(&other);
    node(trust.identity(Role::Worker), vec![stranger.address]).error("it cannot be trusted").await;
    assert!(stranger.dispatcher.journal.all().is_empty() && worker.dispatcher.journal.all().is_empty());
}

#[tokio::test]
async fn a_node_whose_certificate_has_expired_is_told() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let now = skep::clock::Clock::now(&OffBy(-100 * 24 * 3600));
    let old = trust.identity_in(Role::Worker, &trust.cluster, now);
    assert!(old.expires() < skep::clock::Clock::now(&SystemClock));
    node(old, vec![manager.address]).error("does not accept this node's certificate").await;
}

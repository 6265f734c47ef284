//! The shell: a real clock, a store in memory, sessions over channels.

use super::build::{self, newcomer, service};
use skep::clock::{Clock, SystemClock};
use skep::manager::{Manager, ManagerSettings, SessionId, bootstrap, start};
use skep::model::{NodeId, NodeState, Revision, TaskState, TaskStatus};
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::{Action, LocalProposer, StoreHandle};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);

struct Rig {
    store: StoreHandle,
    manager: Manager,
    leads: watch::Sender<bool>,
    shutdown: CancellationToken,
}

async fn rig() -> Rig {
    let store = LocalProposer::handle();
    store.write(SystemClock.now(), bootstrap(build::cluster(), "ingress-id".into(), newcomer("n1")).unwrap()).await.unwrap();
    let (leads, is_leader) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let settings = ManagerSettings::default();
    let manager = start(store.clone(), is_leader, settings, Arc::new(SystemClock), 1, shutdown.clone());
    Rig { store, manager, leads, shutdown }
}

impl Rig {
    async fn hello(&self) -> (SessionId, mpsc::Receiver<ToNode>) {
        let (out, incoming) = mpsc::channel(4);
        let hello = ToManager::Hello {
            format: FORMAT,
            description: build::description("n1"),
            endpoints: vec!["192.0.2.1:2377".parse().unwrap()],
            have: Revision::default(),
        };
        (self.manager.sessions.open("n1".into(), hello, out).await, incoming)
    }

    async fn until(&self, what: &str, mut so: impl FnMut(&skep::store::Store) -> bool) {
        let mut view = self.store.watch();
        let wait = async {
            while !so(&view.borrow_and_update().clone()) {
                view.changed().await.unwrap();
            }
        };
        timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never came true: {what}"));
    }
}

async fn next(incoming: &mut mpsc::Receiver<ToNode>) -> Option<ToNode> {
    timeout(SOON, incoming.recv()).await.expect("the manager says something in time")
}

#[tokio::test]
async fn a_follower_says_so_and_a_leader_welcomes() {
    let rig = rig().await;
    let (_, mut incoming) = rig.hello().await;
    assert!(matches!(next(&mut incoming).await, Some(ToNode::NotLeader { leader: None })));
    assert!(next(&mut incoming).await.is_none(), "and ends the session");
    rig.leads.send_replace(true);
    let mut incoming = loop {
        let (_, mut incoming) = rig.hello().await;
        match next(&mut incoming).await {
            Some(ToNode::Welcome { format: FORMAT, heartbeat_ms: 500 }) => break incoming,
            Some(ToNode::NotLeader { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    let Some(ToNode::View { tasks, networks, cluster, .. }) = next(&mut incoming).await else { panic!("no view") };
    assert!(tasks.is_some() && networks.is_some_and(|n| n.by_id.len() == 1) && cluster.is_some_and(|c| c.nodes.len() == 1));
    rig.until("ready", |s| {
        s.node(&"n1".into()).is_some_and(|n| n.status.state == NodeState::Ready && !n.mesh.endpoints.is_empty())
    })
    .await;
    rig.leads.send_replace(false);
    loop {
        match next(&mut incoming).await {
            Some(ToNode::NotLeader { .. }) => break,
            Some(_) => {}
            None => panic!("the session ended without a word"),
        }
    }
    rig.shutdown.cancel();
    timeout(SOON, rig.manager.finished).await.unwrap().unwrap();
}

#[tokio::test]
async fn thirty_tasks_are_assigned_with_one_commit_and_reach_the_node() {
    let rig = rig().await;
    rig.leads.send_replace(true);
    let (session, mut incoming) = loop {
        let (session, mut incoming) = rig.hello().await;
        if matches!(next(&mut incoming).await, Some(ToNode::Welcome { .. })) {
            break (session, incoming);
        }
    };
    rig.until("ready", |s| s.node(&"n1".into()).is_some_and(|n| n.status.state == NodeState::Ready)).await;
    let created = rig.store.write(SystemClock.now(), vec![Action::create(service("web", 30, &[(8080, 80)], &[]))]).await.unwrap();
    let id = NodeId::from("n1");
    rig.until("assigned", |s| s.tasks().filter(|t| t.node_id.as_ref() == Some(&id)).count() == 30).await;
    let indices: std::collections::BTreeSet<u64> = rig.store.read().tasks().map(|t| t.meta.version).collect();
    assert_eq!(indices.len(), 1, "one transaction: {indices:?} after {created}");
    let (tasks, revision) = loop {
        match next(&mut incoming).await.expect("the session lives") {
            ToNode::View { tasks: Some(tasks), revision, .. } if tasks.by_id.len() == 30 => break (tasks, revision),
            _ => {}
        }
    };
    let status = TaskStatus { timestamp: SystemClock.now(), state: TaskState::Running, ..TaskStatus::default() };
    let reports = tasks.by_id.keys().map(|id| (id.clone(), status.clone())).collect();
    rig.manager.sessions.message(session, ToManager::Status(reports)).await;
    rig.until("running", |s| s.tasks().all(|t| t.status.state == TaskState::Running)).await;
    rig.manager.sessions.message(session, ToManager::Heartbeat { applied: revision }).await;
    let mut seen = Vec::new();
    while !seen.contains(&"alive") || !seen.contains(&"backends") {
        match next(&mut incoming).await.expect("the session lives") {
            ToNode::Alive => seen.push("alive"),
            ToNode::View { cluster: Some(cluster), .. } if cluster.ports[0].backends.len() == 30 => seen.push("backends"),
            _ => {}
        }
    }
    // A session that is closed and never comes back.
    rig.manager.sessions.close(session);
    rig.until("down", |s| s.node(&"n1".into()).is_some_and(|n| n.status.state == NodeState::Down)).await;
    rig.shutdown.cancel();
}

#[tokio::test]
async fn a_stranger_is_told_that_it_is_none_of_us() {
    let rig = rig().await;
    rig.leads.send_replace(true);
    for _ in 0..200 {
        let (out, mut incoming) = mpsc::channel(4);
        let hello = ToManager::Hello {
            format: FORMAT,
            description: build::description("x"),
            endpoints: Vec::new(),
            have: Revision::default(),
        };
        rig.manager.sessions.open("stranger".into(), hello, out).await;
        match next(&mut incoming).await {
            Some(ToNode::Removed(why)) => {
                assert!(why.contains("stranger"), "{why}");
                assert!(next(&mut incoming).await.is_none());
                return;
            }
            Some(ToNode::NotLeader { .. }) => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
    panic!("never led");
}

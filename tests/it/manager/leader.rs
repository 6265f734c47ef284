//! The leader's loop: a real clock, a store in memory, sessions over channels.

use super::fixture::{self, joining_node, service};
use skep::clock::{Clock, SystemClock};
use skep::manager::{Leadership, Manager, ManagerSettings, SessionId, bootstrap, node_allocation, start};
use skep::model::task::Placement;
use skep::model::{NodeId, NodeState, Revision, TaskState, TaskStatus, Timestamp, UpdateState};
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::{Action, LocalProposer, StoreHandle};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LEADS: Leadership = Leadership::Leads { lost_leader: None };
const TIMEOUT: Duration = Duration::from_secs(20);

struct ManagerFixture {
    store: StoreHandle,
    manager: Manager,
    leads: watch::Sender<Leadership>,
    shutdown: CancellationToken,
}

async fn manager_fixture() -> ManagerFixture {
    manager_with_clock(Arc::new(SystemClock)).await
}

async fn manager_with_clock(clock: Arc<dyn Clock>) -> ManagerFixture {
    let store = LocalProposer::handle();
    store
        .write(SystemClock.now(), bootstrap(fixture::cluster(), "ingress-id".into(), joining_node("n1")).unwrap())
        .await
        .unwrap();
    let (leads, is_leader) = watch::channel(Leadership::Follows);
    let shutdown = CancellationToken::new();
    let settings = ManagerSettings::default();
    let manager = start(store.clone(), is_leader, settings, clock, 1, shutdown.clone());
    ManagerFixture { store, manager, leads, shutdown }
}

impl ManagerFixture {
    async fn hello(&self) -> (SessionId, mpsc::Receiver<ToNode>) {
        let (out, incoming) = mpsc::channel(4);
        let hello = ToManager::Hello {
            format: FORMAT,
            formats: None,
            description: fixture::description("n1"),
            endpoints: vec!["192.0.2.1:2377".parse().unwrap()],
            have: Revision::default(),
        };
        (self.manager.sessions.open("n1".into(), hello, out).await, incoming)
    }

    async fn until(&self, what: &str, mut condition: impl FnMut(&skep::store::Store) -> bool) {
        let mut view = self.store.watch();
        let wait = async {
            while !condition(&view.borrow_and_update().clone()) {
                view.changed().await.unwrap();
            }
        };
        timeout(TIMEOUT, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }
}

async fn next(incoming: &mut mpsc::Receiver<ToNode>) -> Option<ToNode> {
    timeout(TIMEOUT, incoming.recv()).await.expect("a message in time")
}

#[tokio::test]
async fn a_follower_refuses_sessions_and_a_leader_opens_them() {
    let fixture = manager_fixture().await;
    let (_, mut incoming) = fixture.hello().await;
    assert!(matches!(next(&mut incoming).await, Some(ToNode::NotLeader { leader: None, .. })));
    assert!(next(&mut incoming).await.is_none(), "and ends the session");
    fixture.leads.send_replace(LEADS);
    let mut incoming = loop {
        let (_, mut incoming) = fixture.hello().await;
        match next(&mut incoming).await {
            Some(ToNode::Welcome { format: FORMAT, heartbeat_ms: 500 }) => break incoming,
            Some(ToNode::NotLeader { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    let Some(ToNode::View { tasks, networks, cluster, .. }) = next(&mut incoming).await else { panic!("no view") };
    assert!(tasks.is_some() && networks.is_some_and(|n| n.by_id.len() == 1) && cluster.is_some_and(|c| c.nodes.len() == 1));
    fixture
        .until("ready", |s| {
            s.node(&"n1".into()).is_some_and(|n| n.status.state == NodeState::Ready && !n.mesh.endpoints.is_empty())
        })
        .await;
    fixture.leads.send_replace(Leadership::Follows);
    loop {
        match next(&mut incoming).await {
            Some(ToNode::NotLeader { .. }) => break,
            Some(_) => {}
            None => panic!("the session ended without a message"),
        }
    }
    fixture.shutdown.cancel();
    timeout(TIMEOUT, fixture.manager.finished).await.unwrap().unwrap();
}

#[tokio::test]
async fn thirty_tasks_are_assigned_with_one_commit_and_reach_the_node() {
    let fixture = manager_fixture().await;
    fixture.leads.send_replace(LEADS);
    let (session, mut incoming) = loop {
        let (session, mut incoming) = fixture.hello().await;
        if matches!(next(&mut incoming).await, Some(ToNode::Welcome { .. })) {
            break (session, incoming);
        }
    };
    fixture.until("ready", |s| s.node(&"n1".into()).is_some_and(|n| n.status.state == NodeState::Ready)).await;
    let created =
        fixture.store.write(SystemClock.now(), vec![Action::create(service("web", 30, &[(8080, 80)], &[]))]).await.unwrap();
    let id = NodeId::from("n1");
    fixture.until("assigned", |s| s.tasks().filter(|t| t.node_id.as_ref() == Some(&id)).count() == 30).await;
    let indices: std::collections::BTreeSet<u64> = fixture.store.read().tasks().map(|t| t.meta.version).collect();
    assert_eq!(indices.len(), 1, "one transaction: {indices:?} after {created}");
    let (tasks, revision) = loop {
        match next(&mut incoming).await.expect("the session lives") {
            ToNode::View { tasks: Some(tasks), revision, .. } if tasks.by_id.len() == 30 => break (tasks, revision),
            _ => {}
        }
    };
    let status = TaskStatus { timestamp: SystemClock.now(), state: TaskState::Running, ..TaskStatus::default() };
    let reports = tasks.by_id.keys().map(|id| (id.clone(), status.clone())).collect();
    fixture.manager.sessions.message(session, ToManager::Status(reports)).await;
    fixture.until("running", |s| s.tasks().all(|t| t.status.state == TaskState::Running)).await;
    fixture.manager.sessions.message(session, ToManager::Heartbeat { applied: revision }).await;
    let mut seen = Vec::new();
    while !seen.contains(&"alive") || !seen.contains(&"backends") {
        match next(&mut incoming).await.expect("the session lives") {
            ToNode::Alive => seen.push("alive"),
            ToNode::View { cluster: Some(cluster), .. } if cluster.ports[0].backends.len() == 30 => seen.push("backends"),
            _ => {}
        }
    }
    // The session ends, and the node opens no other.
    fixture.manager.sessions.close(session);
    fixture.until("down", |s| s.node(&"n1".into()).is_some_and(|n| n.status.state == NodeState::Down)).await;
    fixture.shutdown.cancel();
}

#[tokio::test]
async fn an_unknown_node_is_refused_as_not_a_member() {
    let fixture = manager_fixture().await;
    fixture.leads.send_replace(LEADS);
    for _ in 0..200 {
        let (out, mut incoming) = mpsc::channel(4);
        let hello = ToManager::Hello {
            format: FORMAT,
            formats: None,
            description: fixture::description("x"),
            endpoints: Vec::new(),
            have: Revision::default(),
        };
        fixture.manager.sessions.open("unknown".into(), hello, out).await;
        match next(&mut incoming).await {
            Some(ToNode::Removed(why)) => {
                assert!(why.contains("unknown"), "{why}");
                assert!(next(&mut incoming).await.is_none());
                return;
            }
            Some(ToNode::NotLeader { .. }) => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
    panic!("the manager never led");
}

/// Panics once when it is asked to.
#[derive(Default)]
struct FailingClock(std::sync::atomic::AtomicBool);

impl Clock for FailingClock {
    fn now(&self) -> skep::model::Timestamp {
        assert!(!self.0.swap(false, std::sync::atomic::Ordering::SeqCst), "the clock has failed");
        SystemClock.now()
    }
}

#[tokio::test]
async fn the_loops_are_started_again_after_a_panic_and_the_failure_is_shown() {
    let clock = Arc::new(FailingClock::default());
    let mut fixture = manager_with_clock(clock.clone()).await;
    fixture.leads.send_replace(LEADS);
    let open = async |fixture: &ManagerFixture| loop {
        let (_, mut incoming) = fixture.hello().await;
        if matches!(next(&mut incoming).await, Some(ToNode::Welcome { .. })) {
            return incoming;
        }
    };
    let mut incoming = open(&fixture).await;
    clock.0.store(true, std::sync::atomic::Ordering::SeqCst);
    timeout(TIMEOUT, fixture.manager.health.wait_for(|health| health.restarts == 1)).await.expect("in time").expect("runs");
    assert_eq!(fixture.manager.health.borrow().panic.as_deref(), Some("the clock has failed"));
    while next(&mut incoming).await.is_some() {}
    // The node's next session is as any other.
    let mut incoming = open(&fixture).await;
    assert!(matches!(next(&mut incoming).await, Some(ToNode::View { .. })));
    fixture.shutdown.cancel();
}

/// Five minutes behind.
struct SlowClock;

impl Clock for SlowClock {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0 - 300_000_000_000)
    }
}

/// What the leader before wrote is later than the clock of this one: its limits are no longer for that.
#[tokio::test]
async fn a_leader_whose_clock_is_behind_finds_a_failed_update_in_time() {
    let fixture = manager_with_clock(Arc::new(SlowClock)).await;
    fixture.leads.send_replace(LEADS);
    let mut web = service("web", 1, &[], &[]);
    web.spec.update_config = Some(fixture::updating(1, Duration::from_secs(1)));
    let constraints = vec!["node.labels.none==here".to_owned()];
    web.spec.task_template.placement = Some(Placement { constraints, ..Placement::default() });
    fixture.store.write(SlowClock.now(), vec![Action::create(web)]).await.unwrap();
    fixture.until("a task that waits", |s| s.tasks().any(|task| !task.status.err.is_empty())).await;
    let update = fixture::updated(&fixture.store.read(), "web", SlowClock.now(), |spec| {
        "v2".clone_into(&mut spec.task_template.container_spec.image);
    });
    fixture.store.write(SlowClock.now(), vec![update]).await.unwrap();
    fixture
        .until("a paused update", |s| {
            let update = s.service(&"web".into()).and_then(|web| web.update.as_ref());
            update.is_some_and(|update| update.state == UpdateState::Paused)
        })
        .await;
    fixture.shutdown.cancel();
    timeout(TIMEOUT, fixture.manager.finished).await.unwrap().unwrap();
}

/// A leader takes over while every node opens its session at once and planning stands still: the one thread for long work is taken. No
/// node waits for that, and none is judged by it.
#[test]
fn a_hundred_nodes_at_once_are_answered_while_planning_takes_seconds() {
    const NODES: usize = 100;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = LocalProposer::handle();
        let now = SystemClock.now();
        store.write(now, bootstrap(fixture::cluster(), "ingress-id".into(), joining_node("n1")).unwrap()).await.unwrap();
        for n in 2..=NODES {
            let (_, actions) = node_allocation::admit(&store.read(), joining_node(&format!("n{n}"))).unwrap();
            store.write(now, actions).await.unwrap();
        }
        let before = store.read();
        let ready = before.nodes().map(|node| {
            let mut node = node.clone();
            node.status.state = NodeState::Ready;
            Action::update(node)
        });
        let mut actions: Vec<Action> = ready.collect();
        // A /24 has no room for more on the ingress network.
        actions.push(Action::create(service("web", 100, &[(8080, 80)], &[])));
        actions.push(Action::create(service("work", 4_900, &[], &[])));
        store.write(now, actions).await.unwrap();

        let (release, held) = std::sync::mpsc::channel::<()>();
        let hold = tokio::task::spawn_blocking(move || held.recv());
        let settings = ManagerSettings::default();
        let (_leads, is_leader) = watch::channel(LEADS);
        let shutdown = CancellationToken::new();
        let manager = start(store.clone(), is_leader, settings.clone(), Arc::new(SystemClock), 1, shutdown.clone());
        let open = async |n: usize| {
            let (out, incoming) = mpsc::channel(4);
            let hello = ToManager::Hello {
                format: FORMAT,
                formats: None,
                description: fixture::description(&format!("n{n}")),
                endpoints: Vec::new(),
                have: Revision::default(),
            };
            (manager.sessions.open(fixture::node(n), hello, out).await, incoming)
        };
        let mut nodes = Vec::new();
        for n in 1..=NODES {
            nodes.push(open(n).await);
        }
        for (_, incoming) in &mut nodes {
            assert!(matches!(next(incoming).await, Some(ToNode::Welcome { format: FORMAT, .. })));
        }
        // For longer than a silent node has.
        let begun = std::time::Instant::now();
        let mut rounds = 0;
        while begun.elapsed() < 2 * settings.down_after {
            for (session, incoming) in &mut nodes {
                manager.sessions.message(*session, ToManager::Heartbeat { applied: Revision::default() }).await;
                // Nothing else comes: planning has not begun.
                let answer = timeout(settings.down_after / 2, incoming.recv()).await.expect("an answer in time");
                assert!(matches!(answer, Some(ToNode::Alive)), "{answer:?}");
            }
            rounds += 1;
            tokio::time::sleep(settings.heartbeat / 5).await;
        }
        assert!(rounds > 2, "{rounds} heartbeats of each node");
        release.send(()).unwrap();
        hold.await.unwrap().unwrap();
        // Each has its view, and all are what they were.
        for (_, incoming) in &mut nodes {
            while !matches!(next(incoming).await.expect("the session lives"), ToNode::View { cluster: Some(_), .. }) {}
        }
        assert!(store.read().nodes().all(|node| node.status.state == NodeState::Ready));
        shutdown.cancel();
        timeout(TIMEOUT, manager.finished).await.unwrap().unwrap();
    });
}

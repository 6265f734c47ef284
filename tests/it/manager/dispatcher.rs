//! The dispatcher's core: events and their effects.

use super::fixture::{self, apply, node, service};
use super::leader_cores::LeaderCores;
use skep::manager::dispatcher::{Effect, view_of};
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::{ManagerSettings, SessionId};
use skep::model::ListeningPort;
use skep::model::Listens;
use skep::model::view::Tasks;
use skep::model::{NodeState, Protocol, Revision, Task, TaskId, TaskState, TaskStatus, Timestamp};
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::{Action, Store};
use std::sync::Arc;
use std::time::Duration;

const ONE: SessionId = SessionId(1);

struct DispatcherFixture {
    store: Store,
    core: LeaderCores,
    planner: RoundPlanner,
    now: Timestamp,
}

impl DispatcherFixture {
    fn new(nodes: usize) -> Self {
        let store = fixture::store(nodes);
        let settings = ManagerSettings::default();
        let core = LeaderCores::new(settings.clone(), Arc::new(store.clone()), fixture::START);
        Self { store, core, planner: RoundPlanner::new(settings, 1), now: fixture::START }
    }

    fn handle(&mut self, event: Event) -> Vec<Effect> {
        self.core.handle(self.now, event)
    }

    fn open(&mut self, n: usize, session: SessionId) -> Vec<Effect> {
        self.handle(Event::Opened { node: node(n), session, hello: hello(FORMAT) })
    }

    fn send(&mut self, session: SessionId, message: ToManager) -> Vec<Effect> {
        self.handle(Event::Message { session, message })
    }

    /// Lets time pass with regular ticks.
    fn wait(&mut self, ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..ms / 100 {
            self.now = self.now.plus(Duration::from_millis(100));
            effects.extend(self.handle(Event::Tick));
        }
        effects
    }

    /// Writes all that is planned.
    fn settle(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        loop {
            let reports = self.core.plan(&self.store, self.now);
            let actions = self.planner.round(&self.store, reports, self.core.lowest_applied(self.now), self.now);
            if actions.is_empty() {
                return effects;
            }
            effects.extend(self.write(actions));
        }
    }

    fn write(&mut self, actions: Vec<Action>) -> Vec<Effect> {
        apply(&mut self.store, self.now, actions);
        let store = Arc::new(self.store.clone());
        self.handle(Event::StoreChanged(store))
    }

    fn state(&self, n: usize) -> NodeState {
        self.store.node(&node(n)).unwrap().status.state
    }
}

fn hello(format: u32) -> ToManager {
    ToManager::Hello {
        format,
        formats: None,
        description: fixture::description("n"),
        endpoints: Vec::new(),
        have: Revision::default(),
    }
}

fn status(state: TaskState, at: Timestamp) -> TaskStatus {
    TaskStatus { timestamp: at, state, ..TaskStatus::default() }
}

fn tasks(effects: &[Effect]) -> Vec<Arc<Tasks>> {
    let part = |e: &Effect| match e {
        Effect::Send { message: ToNode::View { tasks, .. }, .. } => tasks.clone(),
        _ => None,
    };
    effects.iter().filter_map(part).collect()
}

fn closed(effects: &[Effect]) -> Vec<SessionId> {
    effects.iter().filter_map(|e| if let Effect::Close { session } = e { Some(*session) } else { None }).collect()
}

#[test]
fn another_format_is_refused_with_the_reason() {
    let mut fixture = DispatcherFixture::new(1);
    let effects = fixture.handle(Event::Opened { node: node(1), session: ONE, hello: hello(FORMAT + 1) });
    let [Effect::Send { message: ToNode::Refused(why), .. }, Effect::Close { session: ONE }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert!(why.contains("upgrade skep on the manager"), "{why}");
}

#[test]
fn only_what_changed_is_sent() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.open(2, SessionId(2));
    fixture.settle();
    let made = service("web", 1, &[], &[]);
    fixture.write(vec![Action::create(made)]);
    let effects = fixture.settle();
    // One task without networks: its node gets its tasks, the other one nothing.
    assert_eq!(effects.len(), 1, "{effects:?}");
    let Effect::Send { message: ToNode::View { tasks: Some(tasks), networks: None, cluster: None, .. }, .. } = &effects[0] else {
        panic!("{effects:?}")
    };
    assert_eq!(tasks.by_id.len(), 1);
}

#[test]
fn a_nodes_own_reports_are_echoed_late_and_once() {
    let mut fixture = DispatcherFixture::new(1);
    fixture.open(1, ONE);
    fixture.settle();
    fixture.write(vec![Action::create(service("web", 1, &[], &[]))]);
    fixture.settle();
    let id: TaskId = fixture.store.tasks().next().unwrap().id.clone();
    let mut echoes = Vec::new();
    for state in [TaskState::Accepted, TaskState::Preparing, TaskState::Starting, TaskState::Running] {
        let report = ToManager::Status(vec![(id.clone(), status(state, fixture.now))]);
        echoes.extend(fixture.send(ONE, report));
        echoes.extend(fixture.settle());
        assert_eq!(fixture.store.task(&id).unwrap().status.state, state);
    }
    assert!(tasks(&echoes).is_empty(), "{echoes:?}");
    fixture.send(ONE, ToManager::Heartbeat { applied: fixture.store.revision() });
    let later = tasks(&fixture.wait(1500));
    assert_eq!(later.len(), 1);
    assert_eq!(later[0].by_id[&id].status.state, TaskState::Running);
}

#[test]
fn statuses_never_go_back_and_are_accepted_only_from_the_tasks_node() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.settle();
    fixture.write(vec![Action::create(service("web", 1, &[], &[]))]);
    fixture.settle();
    let id: TaskId = fixture.store.tasks().next().unwrap().id.clone();
    let state = |fixture: &DispatcherFixture| fixture.store.task(&id).unwrap().status.state;
    // Two in one message, the older one last.
    let both =
        vec![(id.clone(), status(TaskState::Running, fixture.now)), (id.clone(), status(TaskState::Starting, fixture.now))];
    fixture.send(ONE, ToManager::Status(both));
    fixture.settle();
    assert_eq!(state(&fixture), TaskState::Running);
    for refused in [TaskState::Preparing, TaskState::Assigned, TaskState::Orphaned, TaskState::Remove] {
        fixture.send(ONE, ToManager::Status(vec![(id.clone(), status(refused, fixture.now.plus(Duration::from_secs(9))))]));
        fixture.settle();
        assert_eq!(state(&fixture), TaskState::Running, "{refused:?}");
    }
    fixture.open(2, SessionId(2));
    fixture.send(SessionId(2), ToManager::Status(vec![(id.clone(), status(TaskState::Failed, fixture.now))]));
    fixture.settle();
    assert_eq!(state(&fixture), TaskState::Running, "another node's report does not count");
}

#[test]
fn a_silent_node_is_down_and_a_stalled_manager_declares_no_node_down() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.settle();
    assert_eq!(fixture.state(1), NodeState::Ready);
    // The whole process is stopped for a minute.
    fixture.now = fixture.now.plus(Duration::from_mins(1));
    let effects = fixture.handle(Event::Tick);
    assert!(closed(&effects).is_empty());
    fixture.settle();
    assert_ne!((fixture.state(1), fixture.state(2)), (NodeState::Down, NodeState::Down));
    let effects = fixture.wait(2500);
    assert_eq!(closed(&effects), [ONE]);
    fixture.settle();
    assert_eq!((fixture.state(1), fixture.state(2)), (NodeState::Down, NodeState::Unknown));
    assert_eq!(fixture.store.node(&node(1)).unwrap().status.message, "heartbeat failure");
    fixture.wait(10_000);
    fixture.settle();
    assert_eq!(fixture.state(2), NodeState::Down, "it has never opened a session with this leader");
    fixture.open(1, SessionId(5));
    fixture.settle();
    assert_eq!(fixture.state(1), NodeState::Ready);
    // The clock is set back by an hour: silence is still detected.
    fixture.now = Timestamp(fixture.now.0 - 3_600_000_000_000);
    fixture.wait(2500);
    fixture.settle();
    assert_eq!(fixture.state(1), NodeState::Down);
}

#[test]
fn a_joining_node_has_the_grace_time_for_its_first_session() {
    let mut fixture = DispatcherFixture::new(1);
    fixture.open(1, ONE);
    fixture.wait(5000);
    fixture.settle();
    let (_, actions) = skep::manager::node_allocation::admit(&fixture.store, fixture::joining_node("n2")).unwrap();
    fixture.open(1, SessionId(3));
    fixture.write(actions);
    fixture.settle();
    fixture.send(SessionId(3), ToManager::Heartbeat { applied: fixture.store.revision() });
    assert_eq!(fixture.core.applied(fixture.now), fixture.store.revision(), "it is not waited for");
    for _ in 0..10 {
        fixture.wait(1500);
        fixture.send(SessionId(3), ToManager::Heartbeat { applied: fixture.store.revision() });
        fixture.settle();
        assert_eq!(fixture.state(2), NodeState::Unknown);
    }
    fixture.wait(6000);
    fixture.settle();
    assert_eq!(fixture.state(2), NodeState::Down);
    fixture.open(2, SessionId(4));
    fixture.settle();
    assert_eq!(fixture.state(2), NodeState::Ready);
}

#[test]
fn tasks_of_a_node_that_leaves_are_replaced_immediately() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.open(2, SessionId(2));
    fixture.settle();
    fixture.write(vec![Action::create(service("web", 2, &[(80, 80)], &[]))]);
    fixture.settle();
    let effects = fixture.send(ONE, ToManager::Leave);
    assert_eq!(closed(&effects), [ONE]);
    fixture.settle();
    assert_eq!(fixture.state(1), NodeState::Disconnected);
    let live: Vec<_> =
        fixture.store.tasks().filter(|t| t.desired_state == TaskState::Running).map(|t| t.node_id.clone()).collect();
    assert_eq!(live, [Some(node(2)), Some(node(2))]);
    let left = fixture.store.tasks().find(|t| t.node_id == Some(node(1))).unwrap();
    assert_eq!(left.status.state, TaskState::Orphaned);
}

#[test]
fn a_second_session_of_a_node_ends_the_first() {
    let mut fixture = DispatcherFixture::new(1);
    fixture.open(1, ONE);
    let effects = fixture.open(1, SessionId(2));
    assert_eq!(closed(&effects), [ONE]);
    fixture.handle(Event::Closed { session: ONE });
    fixture.settle();
    fixture.send(SessionId(2), ToManager::Heartbeat { applied: fixture.store.revision() });
    let alive = fixture.send(SessionId(2), ToManager::Heartbeat { applied: fixture.store.revision() });
    let is_answer = |e: &Effect| matches!(e, Effect::Send { session: SessionId(2), message: ToNode::Alive });
    assert!(alive.iter().any(is_answer), "the late end of the first session does not end the second: {alive:?}");
    assert_eq!(fixture.state(1), NodeState::Ready);
}

#[test]
fn applied_is_the_revision_of_the_slowest_live_node() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    assert_eq!(fixture.core.applied(fixture.now), Revision::default(), "a node without a session may still be alive");
    fixture.open(2, SessionId(2));
    fixture.settle();
    let now = fixture.store.revision();
    fixture.send(ONE, ToManager::Heartbeat { applied: now });
    assert_eq!(fixture.core.applied(fixture.now), Revision::default());
    fixture.send(SessionId(2), ToManager::Heartbeat { applied: now });
    assert_eq!(fixture.core.applied(fixture.now), now);
    // A change that no node is sent counts as applied by all of them.
    let mut labelled = fixture.store.node(&node(1)).unwrap().clone();
    labelled.spec.labels.insert("zone".to_owned(), "a".to_owned());
    fixture.write(vec![Action::update(labelled)]);
    fixture.settle();
    assert_eq!(fixture.core.applied(fixture.now), fixture.store.revision());
    assert!(fixture.store.revision() > now);
}

/// Two nodes, and a task of the published service `web` that runs on the first.
fn with_a_published_task() -> (DispatcherFixture, Task) {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.open(2, SessionId(2));
    fixture.settle();
    fixture.write(vec![Action::create(service("web", 1, &[(80, 80)], &[]))]);
    fixture.settle();
    let task = fixture.store.tasks().next().unwrap().clone();
    assert_eq!(task.node_id, Some(node(1)));
    fixture.send(ONE, ToManager::Status(vec![(task.id.clone(), status(TaskState::Running, fixture.now))]));
    fixture.settle();
    (fixture, task)
}

/// The service `web` has no replica any more.
fn scale_to_zero(fixture: &mut DispatcherFixture) {
    let mut next = fixture.store.service(&"web".into()).unwrap().clone();
    next.spec.mode.replicated = Some(skep::model::service::Replicated { replicas: Some(0) });
    fixture.write(vec![Action::update(next)]);
}

/// Milliseconds for what is on the way to a task.
const PAUSE: u64 = 200;

#[test]
fn a_task_is_stopped_after_no_node_sends_to_it() {
    let (mut fixture, task) = with_a_published_task();
    for session in [ONE, SessionId(2)] {
        fixture.send(session, ToManager::Heartbeat { applied: fixture.store.revision() });
    }
    scale_to_zero(&mut fixture);
    let effects = fixture.settle();
    assert!(tasks(&effects).iter().all(|m| m.by_id[&task.id].desired_state == TaskState::Running), "{effects:?}");
    let backends = effects.iter().rev().find_map(|e| match e {
        Effect::Send { message: ToNode::View { cluster: Some(c), .. }, .. } => Some(c.ports[0].backends.len()),
        _ => None,
    });
    assert_eq!(backends, Some(0), "all nodes are sent the change first");
    let revision = fixture.store.revision();
    assert!(tasks(&fixture.send(ONE, ToManager::Heartbeat { applied: revision })).is_empty());
    assert!(tasks(&fixture.send(SessionId(2), ToManager::Heartbeat { applied: revision })).is_empty(), "packets are on the way");
    let stopped = tasks(&fixture.wait(PAUSE));
    assert_eq!(stopped[0].by_id[&task.id].desired_state, TaskState::Remove);
}

#[test]
fn a_live_node_that_applies_nothing_is_waited_for_for_a_bounded_time_and_shown_as_degraded() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.open(2, SessionId(2));
    fixture.settle();
    let beat = |fixture: &mut DispatcherFixture, session, applied| fixture.send(session, ToManager::Heartbeat { applied });
    let stuck = fixture.store.revision();
    for session in [ONE, SessionId(2)] {
        beat(&mut fixture, session, stuck);
    }
    fixture.write(vec![Action::create(service("web", 1, &[(80, 80)], &[]))]);
    fixture.settle();
    let message = |fixture: &DispatcherFixture, n| fixture.store.node(&node(n)).unwrap().status.message.clone();
    let run = |fixture: &mut DispatcherFixture, second: SessionId, seconds: u64| {
        for _ in 0..seconds {
            fixture.wait(1000);
            let newest = fixture.store.revision();
            beat(fixture, ONE, newest);
            beat(fixture, second, stuck);
            fixture.settle();
        }
    };
    run(&mut fixture, SessionId(2), 28);
    assert_eq!(fixture.core.applied(fixture.now), stuck, "it is waited for at first");
    assert_eq!(message(&fixture, 2), "");
    // Another session makes it no younger.
    fixture.open(2, SessionId(3));
    fixture.send(SessionId(3), ToManager::Troubles([("ebpf".to_owned(), "map SOURCES is full".to_owned())].into()));
    run(&mut fixture, SessionId(3), 4);
    let lowest = fixture.core.lowest_applied(fixture.now);
    assert!(lowest.awaited > stuck && lowest.all <= stuck, "{lowest:?}");
    let why = message(&fixture, 2);
    assert!(why.contains("degraded") && why.contains("30 s") && why.contains("ebpf: map SOURCES is full"), "{why}");
    assert_eq!((fixture.state(2), message(&fixture, 1)), (NodeState::Ready, String::new()));
    // It recovers.
    let newest = fixture.store.revision();
    beat(&mut fixture, SessionId(3), newest);
    fixture.send(SessionId(3), ToManager::Troubles([].into()));
    fixture.settle();
    assert_eq!(message(&fixture, 2), "");
}

#[test]
fn a_nodes_report_of_troubles_is_bounded() {
    let mut fixture = DispatcherFixture::new(1);
    fixture.open(1, ONE);
    let many = (0..10_000).map(|n| (format!("loop {n}"), "\u{e4}".repeat(5000))).collect();
    fixture.send(ONE, ToManager::Troubles(many));
    fixture.settle();
    let length = fixture.store.node(&node(1)).unwrap().status.message.len();
    assert!((1..4000).contains(&length), "{length}");
}

#[test]
fn a_new_leader_holds_the_tasks_back_that_are_on_their_way_out() {
    let (mut fixture, task) = with_a_published_task();
    scale_to_zero(&mut fixture);
    fixture.settle();
    // The manager restarts before a node has applied that.
    fixture.core = LeaderCores::new(ManagerSettings::default(), Arc::new(fixture.store.clone()), fixture.now);
    let first = fixture.open(1, SessionId(11));
    assert_eq!(tasks(&first)[0].by_id[&task.id].desired_state, TaskState::Running, "node 2 may still send to it");
    fixture.open(2, SessionId(12));
    let revision = fixture.store.revision();
    assert!(tasks(&fixture.send(SessionId(11), ToManager::Heartbeat { applied: revision })).is_empty());
    assert!(tasks(&fixture.send(SessionId(12), ToManager::Heartbeat { applied: revision })).is_empty());
    let stopped = tasks(&fixture.wait(PAUSE));
    assert_eq!(stopped[0].by_id[&task.id].desired_state, TaskState::Remove);
}

#[test]
fn an_unhealthy_task_leaves_the_tables_of_all_nodes_before_it_is_stopped() {
    let (mut fixture, task) = with_a_published_task();
    let unhealthy = TaskStatus { unhealthy: true, ..status(TaskState::Running, fixture.now) };
    fixture.send(ONE, ToManager::Status(vec![(task.id.clone(), unhealthy)]));
    let effects = fixture.settle();
    assert!(tasks(&effects).iter().all(|m| m.by_id[&task.id].desired_state == TaskState::Running), "{effects:?}");
    assert_eq!(view_of(&fixture.store, &node(2)).unwrap().cluster.ports[0].backends.len(), 0);
    let revision = fixture.store.revision();
    fixture.send(ONE, ToManager::Heartbeat { applied: revision });
    assert!(tasks(&fixture.send(SessionId(2), ToManager::Heartbeat { applied: revision })).is_empty(), "packets are on the way");
    let stopped = tasks(&fixture.wait(PAUSE));
    assert_eq!(stopped[0].by_id[&task.id].desired_state, TaskState::Shutdown);
    // The store waits for the agent's report; then the task is replaced as after any failure.
    assert_eq!(fixture.store.task(&task.id).unwrap().desired_state, TaskState::Running);
    fixture.send(ONE, ToManager::Status(vec![(task.id.clone(), status(TaskState::Failed, fixture.now))]));
    fixture.settle();
    assert!(fixture.store.tasks().any(|t| t.id != task.id && t.desired_state <= TaskState::Running), "replaced");
}

#[test]
fn listening_ports_are_sent_to_every_node_and_are_no_orders_for_the_tasks_node() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.open(2, SessionId(2));
    fixture.settle();
    fixture.write(vec![Action::create(service("web", 1, &[(80, 8080)], &[]))]);
    fixture.settle();
    let id: TaskId = fixture.store.tasks().next().unwrap().id.clone();
    fixture.send(ONE, ToManager::Status(vec![(id.clone(), status(TaskState::Running, fixture.now))]));
    fixture.settle();
    let listens = |effects: &[Effect]| -> Vec<(bool, bool)> {
        let first_backend = |e: &Effect| match e {
            Effect::Send { message: ToNode::View { cluster: Some(c), .. }, .. } => Some(c.ports[0].backends[0].listens),
            _ => None,
        };
        effects.iter().filter_map(first_backend).map(|l| (l.v4, l.v6)).collect()
    };
    let port = |number, v4, v6| ListeningPort { protocol: Protocol::Tcp, port: number, listens: Listens { v4, v6 } };
    let seen = |ports: &[ListeningPort]| ToManager::Listens(vec![(id.clone(), ports.to_vec())]);
    let before = view_of(&fixture.store, &node(2)).unwrap().cluster.ports[0].backends[0].listens;
    assert_eq!(before, Listens::default(), "a new task listens on nothing");

    // Another node's report does not count; a new status in the same round is not lost.
    fixture.send(SessionId(2), seen(&[port(8080, true, true)]));
    assert!(listens(&fixture.settle()).is_empty());
    fixture.send(ONE, seen(&[port(8080, true, false), port(9, true, true)]));
    let later =
        TaskStatus { message: "still".to_owned(), ..status(TaskState::Running, fixture.now.plus(Duration::from_millis(1))) };
    fixture.send(ONE, ToManager::Status(vec![(id.clone(), later)]));
    let effects = fixture.settle();
    assert_eq!(listens(&effects), [(true, false); 2], "both nodes are sent the change");
    assert!(tasks(&effects).is_empty(), "{effects:?}");
    assert_eq!(fixture.store.task(&id).unwrap().status.message, "still");

    // A repeated report changes nothing, nor does one that is revoked before it is written.
    fixture.send(ONE, seen(&[port(8080, true, false), port(9, true, true)]));
    fixture.send(ONE, seen(&[]));
    fixture.send(ONE, seen(&[port(8080, true, false), port(9, true, true)]));
    assert!(fixture.core.plan(&fixture.store, fixture.now).is_empty() && fixture.settle().is_empty());
    fixture.send(ONE, seen(&[]));
    assert_eq!(listens(&fixture.settle()), [(false, false); 2]);
}

#[test]
fn every_node_is_sent_the_port_labels_of_a_service() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(2, ONE);
    fixture.settle();
    let mut web = service("web", 1, &[(80, 80)], &[]);
    web.spec.labels.insert("skep.allow".to_owned(), "2001:db8::/32, 192.0.2.7".to_owned());
    fixture.write(vec![Action::create(web)]);
    fixture.settle();
    let port = |fixture: &DispatcherFixture| view_of(&fixture.store, &node(2)).unwrap().cluster.ports[0].clone();
    assert_eq!(port(&fixture).allow.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.7/32", "2001:db8::/32"]);
    assert!(!port(&fixture).affinity);
    let mut web = fixture.store.service(&"web".into()).unwrap().clone();
    web.spec.labels = [("skep.affinity".to_owned(), "source".to_owned())].into();
    let effects = fixture.write(vec![Action::update(web)]);
    let has_affinity =
        |e: &Effect| matches!(e, Effect::Send { message: ToNode::View { cluster: Some(c), .. }, .. } if c.ports[0].affinity);
    assert!(effects.iter().any(has_affinity), "{effects:?}");
    assert!(port(&fixture).allow.is_empty());
}

#[test]
fn a_service_without_a_task_keeps_its_names_and_ports_in_the_view() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(2, ONE);
    let mut idle = service("idle", 0, &[(8080, 80)], &[]);
    idle.spec.endpoint_spec.as_mut().unwrap().ports[0].name = "web".to_owned();
    fixture.write(vec![Action::create(idle)]);
    fixture.settle();
    let view = view_of(&fixture.store, &node(2)).unwrap();
    let ingress = view.networks.by_id.values().find(|network| network.ingress).unwrap();
    assert!(ingress.members.is_empty());
    let [names] = ingress.names.as_slice() else { panic!("{:?}", ingress.names) };
    assert_eq!((names.name.as_str(), names.ports[0].name.as_str(), names.ports[0].target_port), ("idle", "web", 80));
    // A view of an older manager has none.
    let mut json = serde_json::to_value(&*view.networks).unwrap();
    for part in json["by_id"].as_object_mut().unwrap().values_mut() {
        part.as_object_mut().unwrap().remove("names").expect("sent");
    }
    let older: skep::model::view::Networks = serde_json::from_value(json).unwrap();
    assert!(older.by_id.values().all(|network| network.names.is_empty()));
}

#[test]
fn the_view_of_a_joining_node_is_complete() {
    let fixture = DispatcherFixture::new(3);
    let view = view_of(&fixture.store, &node(3)).unwrap();
    assert_eq!(view.cluster.nodes.len(), 3);
    assert_eq!(view.networks.by_id.len(), 1);
    assert_eq!(view.revision, fixture.store.revision());
}

#[test]
fn a_node_that_cannot_apply_a_view_is_sent_all_of_it_and_one_that_is_ahead_a_new_incarnation() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.settle();
    let is_whole = |e: &Effect| {
        let Effect::Send { message: ToNode::View { tasks, networks, cluster, .. }, .. } = e else { return false };
        tasks.is_some() && networks.is_some() && cluster.is_some()
    };
    let revision = fixture.store.revision();
    let behind = fixture.send(ONE, ToManager::Behind { have: Revision { index: 1, ..revision } });
    assert!(behind.iter().filter(|e| is_whole(e)).count() == 1, "{behind:?}");
    let nothing = fixture.send(ONE, ToManager::Heartbeat { applied: revision });
    assert!(!nothing.iter().any(is_whole), "once");

    for _ in 0..5 {
        fixture.wait(500);
        fixture.send(ONE, ToManager::Heartbeat { applied: revision });
    }
    let ahead = Revision { index: revision.index + 500, ..revision };
    let none = fixture.send(ONE, ToManager::Behind { have: ahead });
    assert!(!none.iter().any(is_whole), "it would refuse that again: {none:?}");
    let effects = fixture.settle();
    assert_eq!(fixture.store.revision().incarnation, revision.incarnation + 1);
    assert!(effects.iter().any(is_whole), "{effects:?}");
}

#[test]
fn a_node_that_follows_a_later_state_than_the_managers_have_is_sent_a_whole_view_of_a_new_incarnation() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.settle();
    let (revision, later) = (fixture.store.revision(), 500);
    let have = Revision { index: later, ..revision };
    let hello =
        ToManager::Hello { format: FORMAT, formats: None, description: fixture::description("n"), endpoints: Vec::new(), have };
    fixture.handle(Event::Opened { node: node(2), session: SessionId(2), hello });
    fixture.settle();
    assert_eq!(fixture.store.revision().incarnation, revision.incarnation, "a new leader may have entries to apply");
    for _ in 0..5 {
        fixture.wait(500);
        for session in [ONE, SessionId(2)] {
            fixture.send(session, ToManager::Heartbeat { applied: have });
        }
    }
    let effects = fixture.settle();
    assert_eq!(fixture.store.revision().incarnation, revision.incarnation + 1);
    let whole = |e: &&Effect| {
        let Effect::Send { message: ToNode::View { revision, tasks, networks, cluster }, .. } = e else { return false };
        *revision > have && tasks.is_some() && networks.is_some() && cluster.is_some()
    };
    assert_eq!(effects.iter().filter(whole).count(), 2, "for each node: {effects:?}");
    assert!(fixture.core.applied(fixture.now).index < fixture.store.index(), "what they applied of the lost history is nothing");
    fixture.settle();
    assert_eq!(fixture.store.revision().incarnation, revision.incarnation + 1, "once");
}

#[test]
fn a_node_of_a_later_incarnation_is_named_and_not_overruled() {
    let mut fixture = DispatcherFixture::new(2);
    fixture.open(1, ONE);
    fixture.settle();
    let own = fixture.store.revision();
    let have = Revision { incarnation: own.incarnation + 5, index: 3 };
    let hello =
        ToManager::Hello { format: FORMAT, formats: None, description: fixture::description("n"), endpoints: Vec::new(), have };
    fixture.handle(Event::Opened { node: node(2), session: SessionId(2), hello });
    for _ in 0..5 {
        fixture.wait(500);
        for session in [ONE, SessionId(2)] {
            fixture.send(session, ToManager::Heartbeat { applied: own });
        }
    }
    fixture.settle();
    assert_eq!(fixture.store.revision().incarnation, own.incarnation, "another manager has re-created the cluster");
    let message = fixture.store.node(&node(2)).expect("a node").status.message.clone();
    assert!(message.contains(&format!("follows the managers of incarnation {}", have.incarnation)), "{message}");
}

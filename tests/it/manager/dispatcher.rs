//! The dispatcher's core, event by event.

use super::build::{self, apply, node, service};
use skep::manager::dispatcher::{Dispatcher, Effect, Event, view_of};
use skep::manager::round::Planner;
use skep::manager::{ManagerSettings, SessionId};
use skep::model::ListeningPort;
use skep::model::Listens;
use skep::model::view::Tasks;
use skep::model::{NodeState, Protocol, Revision, TaskId, TaskState, TaskStatus, Timestamp};
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::{Action, Store};
use std::sync::Arc;
use std::time::Duration;

const ONE: SessionId = SessionId(1);

struct Rig {
    store: Store,
    core: Dispatcher,
    planner: Planner,
    now: Timestamp,
}

impl Rig {
    fn new(nodes: usize) -> Self {
        let store = build::store(nodes);
        let settings = ManagerSettings::default();
        let core = Dispatcher::new(settings.clone(), Arc::new(store.clone()), build::START);
        Self { store, core, planner: Planner::new(settings, 1), now: build::START }
    }

    fn handle(&mut self, event: Event) -> Vec<Effect> {
        self.core.handle(self.now, event)
    }

    fn open(&mut self, n: usize, session: SessionId) -> Vec<Effect> {
        self.handle(Event::Opened { node: node(n), session, hello: hello(FORMAT) })
    }

    fn say(&mut self, session: SessionId, message: ToManager) -> Vec<Effect> {
        self.handle(Event::Message { session, message })
    }

    /// Time passes as it does for a process that is not stopped.
    fn wait(&mut self, ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for _ in 0..ms / 100 {
            self.now = self.now.plus(Duration::from_millis(100));
            effects.extend(self.handle(Event::Tick));
        }
        effects
    }

    /// Everything planned is written.
    fn settle(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        loop {
            let reports = self.core.plan(&self.store, self.now);
            let actions = self.planner.round(&self.store, reports, self.core.applied(self.now), self.now);
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
    ToManager::Hello { format, description: build::description("n"), endpoints: Vec::new(), have: Revision::default() }
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
    let mut rig = Rig::new(1);
    let effects = rig.handle(Event::Opened { node: node(1), session: ONE, hello: hello(FORMAT + 1) });
    let [Effect::Send { message: ToNode::Refused(why), .. }, Effect::Close { session: ONE }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert!(why.contains("install the same version"), "{why}");
}

#[test]
fn only_what_changed_is_sent() {
    let mut rig = Rig::new(2);
    rig.open(1, ONE);
    rig.open(2, SessionId(2));
    rig.settle();
    let made = service("web", 1, &[], &[]);
    rig.write(vec![Action::create(made)]);
    let effects = rig.settle();
    // One task without networks: its node gets its tasks, the other one nothing.
    assert_eq!(effects.len(), 1, "{effects:?}");
    let Effect::Send { message: ToNode::View { tasks: Some(tasks), networks: None, cluster: None, .. }, .. } = &effects[0] else {
        panic!("{effects:?}")
    };
    assert_eq!(tasks.by_id.len(), 1);
}

#[test]
fn a_nodes_own_reports_come_back_late_and_once() {
    let mut rig = Rig::new(1);
    rig.open(1, ONE);
    rig.settle();
    rig.write(vec![Action::create(service("web", 1, &[], &[]))]);
    rig.settle();
    let id: TaskId = rig.store.tasks().next().unwrap().id.clone();
    let mut echoes = Vec::new();
    for state in [TaskState::Accepted, TaskState::Preparing, TaskState::Starting, TaskState::Running] {
        let report = ToManager::Status(vec![(id.clone(), status(state, rig.now))]);
        echoes.extend(rig.say(ONE, report));
        echoes.extend(rig.settle());
        assert_eq!(rig.store.task(&id).unwrap().status.state, state);
    }
    assert!(tasks(&echoes).is_empty(), "{echoes:?}");
    rig.say(ONE, ToManager::Heartbeat { applied: rig.store.revision() });
    let later = tasks(&rig.wait(1500));
    assert_eq!(later.len(), 1);
    assert_eq!(later[0].by_id[&id].status.state, TaskState::Running);
}

#[test]
fn statuses_never_go_back_and_come_only_from_the_tasks_node() {
    let mut rig = Rig::new(2);
    rig.open(1, ONE);
    rig.settle();
    rig.write(vec![Action::create(service("web", 1, &[], &[]))]);
    rig.settle();
    let id: TaskId = rig.store.tasks().next().unwrap().id.clone();
    let state = |rig: &Rig| rig.store.task(&id).unwrap().status.state;
    // Two in one go, the older one last.
    let both = vec![(id.clone(), status(TaskState::Running, rig.now)), (id.clone(), status(TaskState::Starting, rig.now))];
    rig.say(ONE, ToManager::Status(both));
    rig.settle();
    assert_eq!(state(&rig), TaskState::Running);
    for never in [TaskState::Preparing, TaskState::Assigned, TaskState::Orphaned, TaskState::Remove] {
        rig.say(ONE, ToManager::Status(vec![(id.clone(), status(never, rig.now.plus(Duration::from_secs(9))))]));
        rig.settle();
        assert_eq!(state(&rig), TaskState::Running, "{never:?}");
    }
    rig.open(2, SessionId(2));
    rig.say(SessionId(2), ToManager::Status(vec![(id.clone(), status(TaskState::Failed, rig.now))]));
    rig.settle();
    assert_eq!(state(&rig), TaskState::Running, "another node's word does not count");
}

#[test]
fn silence_is_down_and_a_stalled_manager_blames_nobody() {
    let mut rig = Rig::new(2);
    rig.open(1, ONE);
    rig.settle();
    assert_eq!(rig.state(1), NodeState::Ready);
    // The whole process stands still for a minute.
    rig.now = rig.now.plus(Duration::from_mins(1));
    let effects = rig.handle(Event::Tick);
    assert!(closed(&effects).is_empty());
    rig.settle();
    assert_ne!((rig.state(1), rig.state(2)), (NodeState::Down, NodeState::Down));
    let effects = rig.wait(2500);
    assert_eq!(closed(&effects), [ONE]);
    rig.settle();
    assert_eq!((rig.state(1), rig.state(2)), (NodeState::Down, NodeState::Down));
    assert_eq!(rig.store.node(&node(1)).unwrap().status.message, "heartbeat failure");
    rig.open(1, SessionId(5));
    rig.settle();
    assert_eq!(rig.state(1), NodeState::Ready);
    // The clock is set back by an hour: silence is still noticed.
    rig.now = Timestamp(rig.now.0 - 3_600_000_000_000);
    rig.wait(2500);
    rig.settle();
    assert_eq!(rig.state(1), NodeState::Down);
}

#[test]
fn a_node_that_joins_has_the_time_that_a_join_takes() {
    let mut rig = Rig::new(1);
    rig.open(1, ONE);
    rig.wait(5000);
    rig.settle();
    let (_, actions) = skep::manager::node_allocation::admit(&rig.store, build::newcomer("n2")).unwrap();
    rig.open(1, SessionId(3));
    rig.write(actions);
    rig.settle();
    rig.say(SessionId(3), ToManager::Heartbeat { applied: rig.store.revision() });
    assert_eq!(rig.core.applied(rig.now), rig.store.revision(), "nobody waits for it");
    for _ in 0..10 {
        rig.wait(1500);
        rig.say(SessionId(3), ToManager::Heartbeat { applied: rig.store.revision() });
        rig.settle();
        assert_eq!(rig.state(2), NodeState::Unknown);
    }
    rig.wait(6000);
    rig.settle();
    assert_eq!(rig.state(2), NodeState::Down);
    rig.open(2, SessionId(4));
    rig.settle();
    assert_eq!(rig.state(2), NodeState::Ready);
}

#[test]
fn who_leaves_is_replaced_at_once() {
    let mut rig = Rig::new(2);
    rig.open(1, ONE);
    rig.open(2, SessionId(2));
    rig.settle();
    rig.write(vec![Action::create(service("web", 2, &[(80, 80)], &[]))]);
    rig.settle();
    let effects = rig.say(ONE, ToManager::Leave);
    assert_eq!(closed(&effects), [ONE]);
    rig.settle();
    assert_eq!(rig.state(1), NodeState::Disconnected);
    let live: Vec<_> = rig.store.tasks().filter(|t| t.desired_state == TaskState::Running).map(|t| t.node_id.clone()).collect();
    assert_eq!(live, [Some(node(2)), Some(node(2))]);
    let left = rig.store.tasks().find(|t| t.node_id == Some(node(1))).unwrap();
    assert_eq!(left.status.state, TaskState::Orphaned);
}

#[test]
fn a_second_session_of_a_node_ends_the_first() {
    let mut rig = Rig::new(1);
    rig.open(1, ONE);
    let effects = rig.open(1, SessionId(2));
    assert_eq!(closed(&effects), [ONE]);
    rig.handle(Event::Closed { session: ONE });
    rig.settle();
    rig.say(SessionId(2), ToManager::Heartbeat { applied: rig.store.revision() });
    assert_eq!(rig.core.applied_by_node().len(), 1, "the late end of the first is not the end of the second");
}

#[test]
fn applied_is_the_slowest_live_nodes() {
    let mut rig = Rig::new(2);
    rig.open(1, ONE);
    assert_eq!(rig.core.applied(rig.now), Revision::default(), "one that was not heard of may still come");
    rig.open(2, SessionId(2));
    rig.settle();
    let now = rig.store.revision();
    rig.say(ONE, ToManager::Heartbeat { applied: now });
    assert_eq!(rig.core.applied(rig.now), Revision::default());
    rig.say(SessionId(2), ToManager::Heartbeat { applied: now });
    assert_eq!(rig.core.applied(rig.now), now);
    // A change that concerns nobody is applied by all of them.
    rig.write(vec![Action::create(build::network("lonely", None))]);
    rig.settle();
    assert_eq!(rig.core.applied(rig.now), rig.store.revision());
    assert!(rig.store.revision() > now);
}

#[test]
fn a_task_is_told_to_stop_once_all_nodes_have_let_go_of_it() {
    let mut rig = Rig::new(2);
    rig.open(1, ONE);
    rig.open(2, SessionId(2));
    rig.settle();
    rig.write(vec![Action::create(service("web", 1, &[(80, 80)], &[]))]);
    rig.settle();
    let task = rig.store.tasks().next().unwrap().clone();
    assert_eq!(task.node_id, Some(node(1)));
    rig.say(ONE, ToManager::Status(vec![(task.id.clone(), status(TaskState::Running, rig.now))]));
    rig.settle();
    for session in [ONE, SessionId(2)] {
        rig.say(session, ToManager::Heartbeat { applied: rig.store.revision() });
    }
    let mut next = rig.store.service(&"web".into()).unwrap().clone();
    next.spec.mode.replicated = Some(skep::model::service::Replicated { replicas: Some(0) });
    rig.write(vec![Action::update(next)]);
    let effects = rig.settle();
    assert!(tasks(&effects).iter().all(|m| m.by_id[&task.id].desired_state == TaskState::Running), "{effects:?}");
    let backends = effects.iter().rev().find_map(|e| match e {
        Effect::Send { message: ToNode::View { cluster: Some(c), .. }, .. } => Some(c.ports[0].backends.len()),
        _ => None,
    });
    assert_eq!(backends, Some(0), "all nodes are told first");
    let revision = rig.store.revision();
    assert!(tasks(&rig.say(ONE, ToManager::Heartbeat { applied: revision })).is_empty());
    let told = tasks(&rig.say(SessionId(2), ToManager::Heartbeat { applied: revision }));
    assert_eq!(told[0].by_id[&task.id].desired_state, TaskState::Remove);
}

#[test]
fn who_listens_is_told_to_every_node_and_is_no_order_to_its_own() {
    let mut rig = Rig::new(2);
    rig.open(1, ONE);
    rig.open(2, SessionId(2));
    rig.settle();
    rig.write(vec![Action::create(service("web", 1, &[(80, 8080)], &[]))]);
    rig.settle();
    let id: TaskId = rig.store.tasks().next().unwrap().id.clone();
    rig.say(ONE, ToManager::Status(vec![(id.clone(), status(TaskState::Running, rig.now))]));
    rig.settle();
    let listens = |effects: &[Effect]| -> Vec<(bool, bool)> {
        let of = |e: &Effect| match e {
            Effect::Send { message: ToNode::View { cluster: Some(c), .. }, .. } => Some(c.ports[0].backends[0].listens),
            _ => None,
        };
        effects.iter().filter_map(of).map(|l| (l.v4, l.v6)).collect()
    };
    let port = |number, v4, v6| ListeningPort { protocol: Protocol::Tcp, port: number, listens: Listens { v4, v6 } };
    let seen = |ports: &[ListeningPort]| ToManager::Listens(vec![(id.clone(), ports.to_vec())]);
    let before = view_of(&rig.store, &node(2)).unwrap().cluster.ports[0].backends[0].listens;
    assert_eq!(before, Listens::default(), "a task starts with nothing");

    // Another node's word does not count; a new status in the same round does not get lost.
    rig.say(SessionId(2), seen(&[port(8080, true, true)]));
    assert!(listens(&rig.settle()).is_empty());
    rig.say(ONE, seen(&[port(8080, true, false), port(9, true, true)]));
    let later = TaskStatus { message: "still".to_owned(), ..status(TaskState::Running, rig.now.plus(Duration::from_millis(1))) };
    rig.say(ONE, ToManager::Status(vec![(id.clone(), later)]));
    let effects = rig.settle();
    assert_eq!(listens(&effects), [(true, false); 2], "both nodes are told");
    assert!(tasks(&effects).is_empty(), "{effects:?}");
    assert_eq!(rig.store.task(&id).unwrap().status.message, "still");

    // The same again is nothing new; what was taken back before it was written neither.
    rig.say(ONE, seen(&[port(8080, true, false), port(9, true, true)]));
    rig.say(ONE, seen(&[]));
    rig.say(ONE, seen(&[port(8080, true, false), port(9, true, true)]));
    assert!(!rig.core.has_reports() && rig.settle().is_empty());
    rig.say(ONE, seen(&[]));
    assert_eq!(listens(&rig.settle()), [(false, false); 2]);
}

#[test]
fn every_node_is_told_what_a_services_labels_say_of_its_ports() {
    let mut rig = Rig::new(2);
    rig.open(2, ONE);
    rig.settle();
    let mut web = service("web", 1, &[(80, 80)], &[]);
    web.spec.labels.insert("skep.allow".to_owned(), "2001:db8::/32, 192.0.2.7".to_owned());
    rig.write(vec![Action::create(web)]);
    rig.settle();
    let port = |rig: &Rig| view_of(&rig.store, &node(2)).unwrap().cluster.ports[0].clone();
    assert_eq!(port(&rig).allow.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.7/32", "2001:db8::/32"]);
    assert!(!port(&rig).affinity);
    let mut web = rig.store.service(&"web".into()).unwrap().clone();
    web.spec.labels = [("skep.affinity".to_owned(), "source".to_owned())].into();
    let effects = rig.write(vec![Action::update(web)]);
    let told =
        |e: &Effect| matches!(e, Effect::Send { message: ToNode::View { cluster: Some(c), .. }, .. } if c.ports[0].affinity);
    assert!(effects.iter().any(told), "{effects:?}");
    assert!(port(&rig).allow.is_empty());
}

#[test]
fn the_view_of_a_joiner_is_whole() {
    let rig = Rig::new(3);
    let view = view_of(&rig.store, &node(3)).unwrap();
    assert_eq!(view.cluster.nodes.len(), 3);
    assert_eq!(view.networks.by_id.len(), 1);
    assert_eq!(view.revision, rig.store.revision());
}

//! Which nodes are found to be down, held or alive, and what happens to their tasks.

use super::fixture::{self, node, service};
use super::leader_cores::LeaderCores;
use super::simulation::Simulation;
use skep::manager::dispatcher::Effect;
use skep::manager::liveness::{Event, Liveness, Verdict};
use skep::manager::round_scope::RoundScope;
use skep::manager::session::SessionId;
use skep::manager::{ManagerSettings, reaper};
use skep::model::node::ManagerStatus;
use skep::model::{Availability, NodeState, Revision, TaskId, TaskState, Timestamp};
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::{Action, Kind, Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// The liveness core, with nodes that send heartbeats unless they are silent.
struct LivenessFixture {
    core: Liveness,
    now: Timestamp,
    nodes: usize,
    silent: BTreeSet<usize>,
}

impl LivenessFixture {
    fn new(nodes: usize) -> Self {
        let core = Liveness::new(ManagerSettings::default(), Arc::new(fixture::store(nodes)), None, fixture::START);
        let mut fixture = Self { core, now: fixture::START.plus(SECOND), nodes, silent: BTreeSet::new() };
        for n in 1..=nodes {
            fixture.hello(n, 0);
        }
        fixture
    }

    /// The node's session number grows with `attempt`.
    fn hello(&mut self, n: usize, attempt: u64) {
        let description = fixture::description("n");
        let hello =
            ToManager::Hello { format: FORMAT, formats: None, description, endpoints: Vec::new(), have: Revision::default() };
        let session = SessionId(n as u64 + 1000 * attempt);
        self.core.handle(self.now, Event::Opened { node: node(n), session, hello });
    }

    /// Ticks every 100 ms; each node that is not silent sends a heartbeat every 500 ms, at a time of its own.
    fn run(&mut self, time: Duration) {
        for step in 0..time.as_millis() / 100 {
            self.now = self.now.plus(Duration::from_millis(100));
            for n in (1..=self.nodes).filter(|n| (step + *n as u128).is_multiple_of(5) && !self.silent.contains(n)) {
                let message = ToManager::Heartbeat { applied: Revision::default() };
                self.core.handle(self.now, Event::Message { session: SessionId(n as u64), message });
            }
            self.core.handle(self.now, Event::Tick);
        }
    }

    fn with(&self, is: impl Fn(&Verdict) -> bool) -> Vec<usize> {
        let snapshot = self.core.snapshot(self.now);
        (1..=self.nodes).filter(|n| is(&snapshot.nodes[&node(*n)].verdict)).collect()
    }
    fn down(&self) -> Vec<usize> {
        self.with(|verdict| *verdict == Verdict::Down)
    }
    fn held(&self) -> Vec<usize> {
        self.with(|verdict| matches!(verdict, Verdict::Unknown(_)))
    }
}

#[test]
fn one_silent_node_of_three_is_down_within_two_seconds_and_a_half() {
    let mut fixture = LivenessFixture::new(3);
    fixture.run(3 * SECOND);
    fixture.silent = [2].into();
    fixture.run(Duration::from_millis(1500));
    assert_eq!(fixture.down(), [] as [usize; 0]);
    fixture.run(SECOND);
    assert_eq!((fixture.down(), fixture.held()), (vec![2], vec![]));
    // The next one alone as well, although most of the first three are silent now.
    fixture.silent = [2, 3].into();
    fixture.run(Duration::from_millis(2500));
    assert_eq!((fixture.down(), fixture.held()), (vec![2, 3], vec![]));
}

#[test]
fn with_a_longer_heartbeat_period_silence_is_borne_in_proportion() {
    let mut fixture = LivenessFixture::new(3);
    fixture.run(2 * SECOND);
    let mut store = fixture::store(3);
    let mut cluster = store.cluster().unwrap().clone();
    cluster.spec.dispatcher.heartbeat_period = Some(skep::model::Nanos(10_000_000_000));
    fixture::apply(&mut store, fixture::START, vec![Action::update(cluster)]);
    fixture.core.handle(fixture.now, Event::StoreChanged(Arc::new(store)));
    fixture.silent = [2].into();
    fixture.run(Duration::from_millis(3500));
    assert_eq!(fixture.down(), [] as [usize; 0], "twice as long as otherwise");
    fixture.run(SECOND);
    assert_eq!((fixture.down(), fixture.held()), (vec![2], vec![]));
}

#[test]
fn half_of_the_nodes_are_down_and_more_than_half_are_held() {
    for (nodes, silent, held) in [(2, 1, false), (4, 2, false), (3, 2, true), (4, 3, true), (6, 5, true), (100, 51, true)] {
        let mut fixture = LivenessFixture::new(nodes);
        fixture.run(2 * SECOND);
        fixture.silent = (nodes - silent + 1..=nodes).collect();
        let all: Vec<usize> = fixture.silent.iter().copied().collect();
        fixture.run(Duration::from_millis(2600));
        let expected = if held { (vec![], all.clone()) } else { (all.clone(), vec![]) };
        assert_eq!((fixture.down(), fixture.held()), expected, "{silent} of {nodes}");
        fixture.run(27 * SECOND);
        assert_eq!(fixture.down().is_empty(), held, "{silent} of {nodes}, at the end of the hold");
        fixture.run(3 * SECOND);
        assert_eq!(fixture.down(), all, "{silent} of {nodes}: not for ever");
    }
}

#[test]
fn a_held_node_that_returns_is_ready_and_may_go_down_alone_later() {
    let mut fixture = LivenessFixture::new(3);
    fixture.silent = [2, 3].into();
    fixture.run(3 * SECOND);
    assert_eq!(fixture.held(), [2, 3]);
    let snapshot = fixture.core.snapshot(fixture.now);
    let Verdict::Unknown(why) = &snapshot.nodes[&node(2)].verdict else { panic!("held") };
    assert!(why.contains("2 of 3 nodes are silent at once") && why.contains("30 s"), "{why}");
    for n in [2, 3] {
        fixture.hello(n, 1);
    }
    assert_eq!(fixture.held(), [] as [usize; 0]);
    assert_eq!(fixture.with(|v| *v == Verdict::Ready), [1, 2, 3]);
}

#[test]
fn after_a_take_over_no_node_is_judged_before_it_could_open_a_session() {
    let mut fixture = take_over(None);
    fixture.silent = [4].into();
    fixture.run(11 * SECOND);
    assert_eq!(fixture.down(), [] as [usize; 0]);
    for n in 1..=3 {
        fixture.hello(n, 0);
    }
    fixture.run(2 * SECOND);
    assert_eq!((fixture.down(), fixture.held()), (vec![4], vec![]), "the one that did not come");
}

/// A new leader of four nodes that were ready; the raft id of each is its number.
fn take_over(lost_leader: Option<u64>) -> LivenessFixture {
    let ready = fixture::ready_nodes(fixture::cluster(), 4, |node| {
        let raft_id = node.id.as_str()[1..].parse().unwrap();
        node.manager = Some(ManagerStatus { raft_id, addr: "192.0.2.1:2377".parse().unwrap() });
    });
    let now = fixture::START.plus(SECOND);
    let core = Liveness::new(ManagerSettings::default(), Arc::new(ready), lost_leader, now);
    LivenessFixture { core, now, nodes: 4, silent: BTreeSet::new() }
}

#[test]
fn the_node_of_a_lost_leader_is_judged_like_one_that_fell_silent_once_most_others_are_here() {
    let mut fixture = take_over(Some(4));
    fixture.silent = [4].into();
    fixture.run(SECOND);
    assert_eq!(fixture.down(), [] as [usize; 0], "it may open a session like the others");
    for n in 1..=3 {
        fixture.hello(n, 0);
    }
    fixture.run(SECOND + SECOND / 2);
    assert_eq!((fixture.down(), fixture.held()), (vec![4], vec![]));

    let mut fixture = take_over(Some(4));
    fixture.silent = [2, 3, 4].into();
    fixture.hello(1, 0);
    fixture.run(11 * SECOND);
    assert_eq!(fixture.down(), [] as [usize; 0], "most nodes have not come: this manager's network, or its backlog");

    let mut fixture = take_over(Some(4));
    for n in 1..=4 {
        fixture.hello(n, 0);
    }
    fixture.run(5 * SECOND);
    assert_eq!((fixture.down(), fixture.held()), (vec![], vec![]), "only raft had lost it");
}

#[test]
fn heartbeats_are_answered_and_no_node_is_silent_while_planning_stands_still() {
    let mut store = fixture::store(3);
    fixture::apply(&mut store, fixture::START, vec![Action::create(service("web", 3, &[], &[]))]);
    let mut cores = LeaderCores::new(ManagerSettings::default(), Arc::new(store), fixture::START);
    let mut now = fixture::START;
    for n in 1..=3 {
        let description = fixture::description("n");
        let hello =
            ToManager::Hello { format: FORMAT, formats: None, description, endpoints: Vec::new(), have: Revision::default() };
        let effects = cores.hear(now, Event::Opened { node: node(n), session: SessionId(n as u64), hello });
        assert!(matches!(&effects[..], [Effect::Send { message: ToNode::Welcome { .. }, .. }]), "{effects:?}");
    }
    for _ in 0..30 {
        now = now.plus(Duration::from_millis(500));
        for n in 1..=3 {
            let message = ToManager::Heartbeat { applied: Revision::default() };
            let effects = cores.hear(now, Event::Message { session: SessionId(n), message });
            assert!(matches!(&effects[..], [Effect::Send { message: ToNode::Alive, .. }]), "{effects:?}");
        }
        assert!(cores.hear(now, Event::Tick).is_empty());
    }
    let views = cores.catch_up(now);
    assert_eq!(views.len(), 3, "each node is sent its first view at last: {views:?}");
}

#[test]
fn the_session_of_a_node_that_is_removed_ends_and_its_heartbeats_are_answered_no_longer() {
    let mut fixture = LivenessFixture::new(3);
    fixture.run(SECOND);
    let mut store = (**fixture.core.store()).clone();
    fixture::apply(&mut store, fixture::START, vec![Action::Remove(Kind::Node, node(2).to_string())]);
    let effects = fixture.core.handle(fixture.now, Event::StoreChanged(Arc::new(store))).effects;
    let [Effect::Send { session: notified, message: ToNode::Removed(why) }, Effect::Close { session: closed }] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((*notified, *closed), (SessionId(2), SessionId(2)));
    assert!(why.contains("node n2 is not a member"), "{why}");
    // What was on the way.
    let heartbeat = |session| Event::Message { session, message: ToManager::Heartbeat { applied: Revision::default() } };
    let effects = fixture.core.handle(fixture.now, heartbeat(SessionId(2))).effects;
    assert!(matches!(&effects[..], [Effect::Close { session: SessionId(2) }]), "{effects:?}");
    let effects = fixture.core.handle(fixture.now, heartbeat(SessionId(1))).effects;
    assert!(matches!(&effects[..], [Effect::Send { message: ToNode::Alive, .. }]), "the others stay: {effects:?}");
}

fn six_on_three() -> Simulation {
    let mut simulation = Simulation::new(3, 1);
    simulation.command(vec![Action::create(service("whoami", 6, &[(8080, 80)], &[]))]);
    simulation.until("six run", |s| s.running("whoami").len() == 6);
    simulation.run(SECOND);
    simulation
}

fn live(simulation: &Simulation) -> BTreeSet<TaskId> {
    let live = simulation.tasks("whoami").into_iter().filter(|t| t.desired_state <= TaskState::Running);
    live.map(|t| t.id.clone()).collect()
}

#[test]
fn when_most_nodes_fall_silent_at_once_no_task_is_moved_and_the_nodes_say_why() {
    let mut simulation = six_on_three();
    let before = live(&simulation);
    for n in [2, 3] {
        simulation.disconnect(&node(n));
    }
    simulation.run(20 * SECOND);
    assert_eq!(live(&simulation), before);
    for n in [2, 3] {
        let status = &simulation.store.node(&node(n)).unwrap().status;
        assert_eq!(status.state, NodeState::Unknown);
        assert!(status.message.contains("2 of 3 nodes are silent at once"), "{}", status.message);
    }
    for n in [2, 3] {
        simulation.reconnect(&node(n));
    }
    simulation.until("ready", |s| [2, 3].iter().all(|n| s.state_of(&node(*n)) == NodeState::Ready));
    assert_eq!(simulation.store.node(&node(2)).unwrap().status.message, "");
    simulation.run(5 * SECOND);
    assert_eq!((live(&simulation), simulation.running_containers("whoami")), (before, 6));
}

#[test]
fn the_tasks_of_nodes_that_stay_silent_are_moved_after_the_hold() {
    let mut simulation = six_on_three();
    for n in [2, 3] {
        simulation.disconnect(&node(n));
    }
    simulation.run(28 * SECOND);
    assert_eq!(simulation.per_node("whoami").into_values().sum::<usize>(), 6);
    simulation.until("all on the node that is left", |s| s.per_node("whoami").get("n1") == Some(&6));
}

#[test]
fn a_node_that_returns_within_a_minute_keeps_the_tasks_that_were_not_replaced() {
    let mut simulation = six_on_three();
    let before = live(&simulation);
    // There is no room for replacements.
    for n in [1, 3] {
        simulation.availability(&node(n), Availability::Pause);
    }
    simulation.disconnect(&node(2));
    simulation.until("down", |s| s.state_of(&node(2)) == NodeState::Down);
    assert_eq!(simulation.running("whoami").len(), 4, "no traffic goes to the node");
    let down_since = simulation.store.node(&node(2)).unwrap().status.down_since;
    assert!(down_since.is_some());
    // A change of the node's labels is no news of it.
    let mut labelled = simulation.store.node(&node(2)).unwrap().clone();
    labelled.spec.labels.insert("zone".to_owned(), "a".to_owned());
    simulation.run(10 * SECOND);
    simulation.command(vec![Action::update(labelled)]);
    assert_eq!(simulation.store.node(&node(2)).unwrap().status.down_since, down_since);
    simulation.run(30 * SECOND);
    simulation.reconnect(&node(2));
    simulation.until("ready", |s| s.state_of(&node(2)) == NodeState::Ready);
    assert_eq!(simulation.store.node(&node(2)).unwrap().status.down_since, None);
    simulation.run(5 * SECOND);
    assert_eq!((live(&simulation), simulation.running("whoami").len()), (before, 6));
    assert_eq!(simulation.running_containers("whoami"), 6);
}

#[test]
fn a_node_that_returns_later_does_not() {
    let mut simulation = six_on_three();
    let here = |s: &Simulation| -> Vec<TaskState> {
        let on_node = s.tasks("whoami").into_iter().filter(|t| t.node_id == Some(node(2)));
        on_node.map(|t| t.desired_state).collect()
    };
    for n in [1, 3] {
        simulation.availability(&node(n), Availability::Pause);
    }
    simulation.disconnect(&node(2));
    simulation.run(50 * SECOND);
    assert_eq!(here(&simulation), [TaskState::Running; 2]);
    simulation.run(15 * SECOND);
    assert_eq!(here(&simulation), [TaskState::Shutdown; 2]);
}

#[test]
fn a_node_that_announces_a_restart_has_time_for_it_and_no_more() {
    for (announced_ms, quiet, down) in
        [(20_000, 19, false), (20_000, 22, true), (3_600_000, 29, false), (3_600_000, 32, true), (0, 4, true)]
    {
        let mut fixture = LivenessFixture::new(5);
        let message = ToManager::Restarting { for_ms: announced_ms };
        fixture.core.handle(fixture.now, Event::Message { session: SessionId(2), message });
        fixture.core.handle(fixture.now, Event::Closed { session: SessionId(2) });
        fixture.silent.insert(2);
        fixture.run(SECOND * quiet);
        assert_eq!(fixture.down() == [2], down, "{announced_ms} ms announced, {quiet} s silent");
        assert_eq!(fixture.held(), Vec::<usize>::new());
    }
    // Back in time: from then on it is judged as any other.
    let mut fixture = LivenessFixture::new(5);
    let message = ToManager::Restarting { for_ms: 20_000 };
    fixture.core.handle(fixture.now, Event::Message { session: SessionId(2), message });
    fixture.hello(2, 1);
    fixture.silent.insert(2);
    fixture.run(SECOND * 3);
    assert_eq!(fixture.down(), [2]);
}

#[test]
fn a_label_on_a_node_that_is_down_does_not_restart_the_time_after_which_its_tasks_are_orphaned() {
    let mut simulation = six_on_three();
    simulation.disconnect(&node(2));
    simulation.until("down", |s| s.state_of(&node(2)) == NodeState::Down);
    let day = Duration::from_hours(24);
    let mut store: Store = (*simulation.store).clone();
    let mut labelled = store.node(&node(2)).unwrap().clone();
    labelled.spec.labels.insert("zone".to_owned(), "a".to_owned());
    let now = simulation.now.plus(day);
    fixture::apply(&mut store, now, vec![Action::update(labelled)]);
    let orphaned = |store: &Store| reaper::plan(store, now, &ManagerSettings::default(), &RoundScope::full()).len();
    assert_eq!(orphaned(&store), 2);
}

//! What a change and a take-over cost the leader with 100 nodes and 5,000 published tasks. Prints and asserts no time: run it
//! with `cargo test --test it -- --ignored --nocapture cost_of`.

use super::fixture::{self, apply, joining_node, node, service};
use super::leader_cores::LeaderCores as Cores;
use skep::manager::dispatcher::Effect;
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings, SessionId, bootstrap, node_allocation};
use skep::model::{Cluster, NodeState, Revision, TaskState, TaskStatus};
use skep::protocol::view_stream::ViewEncoder;
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::{Action, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODES: usize = 100;
const SERVICES: u16 = 100;
const REPLICAS: u64 = 50;

/// Every task runs, and every node is ready.
fn running() -> Store {
    let mut store = Store::default();
    let wide = Cluster { subnet_size: 16, ..fixture::cluster() };
    apply(&mut store, fixture::START, bootstrap(wide, "ingress-id".into(), joining_node("n1")).unwrap());
    for i in 2..=NODES {
        let (_, actions) = node_allocation::admit(&store, joining_node(&format!("n{i}"))).unwrap();
        apply(&mut store, fixture::START, actions);
    }
    let nodes = store.nodes().map(|n| {
        let mut n = n.clone();
        n.status.state = NodeState::Ready;
        Action::update(n)
    });
    let nodes = nodes.collect();
    apply(&mut store, fixture::START, nodes);
    let services = (0..SERVICES).map(|n| Action::create(service(&format!("s{n}"), REPLICAS, &[(10_000 + n, 80)], &[])));
    apply(&mut store, fixture::START, services.collect());
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    loop {
        let applied = LowestApplied::by_all(store.revision());
        let actions = planner.round(&store, Vec::new(), applied, fixture::START);
        if actions.is_empty() {
            break;
        }
        apply(&mut store, fixture::START, actions);
    }
    let tasks = store.tasks().map(|t| {
        let mut t = t.clone();
        t.status.state = TaskState::Running;
        Action::update(t)
    });
    let tasks = tasks.collect();
    apply(&mut store, fixture::START, tasks);
    store
}

fn hello(n: usize) -> Event {
    let description = fixture::description(node(n).as_str());
    let hello = ToManager::Hello { format: FORMAT, formats: None, description, endpoints: Vec::new(), have: Revision::default() };
    Event::Opened { node: node(n), session: SessionId(n as u64), hello }
}

#[test]
#[ignore = "measures"]
#[allow(clippy::disallowed_methods, clippy::print_stderr, reason = "measures")]
fn cost_of_a_take_over_and_of_a_change() {
    let mut store = running();
    let mut now = fixture::START.plus(Duration::from_mins(1));
    let begin = Instant::now();
    let mut cores = Cores::new(ManagerSettings::default(), Arc::new(store.clone()), now);
    eprintln!("new leader: {:?}", begin.elapsed());

    // All hellos wait at the moment of the take-over; heartbeats cannot be sent before they are answered.
    let begin = Instant::now();
    let mut effects = Vec::new();
    let mut longest = Duration::ZERO;
    for n in 1..=NODES {
        let one = Instant::now();
        effects.extend(cores.hear(now, hello(n)));
        longest = longest.max(one.elapsed());
    }
    let answered = begin.elapsed();
    effects.extend(cores.catch_up(now));
    eprintln!("100 hellos: answered after {answered:?}, with all views after {:?}, {} messages", begin.elapsed(), effects.len());
    now = now.plus(begin.elapsed());
    cores.handle(now, Event::Tick);
    let down = |cores: &Cores, store: &Store, now| {
        let is_down = |a: &Action| matches!(a, Action::Update(skep::store::Object::Node(n)) if n.status.state == NodeState::Down);
        cores.plan(store, now).iter().filter(|a| is_down(a)).count()
    };
    eprintln!("nodes down: {}", down(&cores, &store, now));
    assert_eq!(down(&cores, &store, now), 0);

    let shared = Arc::default();
    let mut encoders: Vec<ViewEncoder> = (0..=NODES).map(|_| ViewEncoder::new(Arc::clone(&shared))).collect();
    let mut send = |effects: Vec<Effect>| -> (usize, usize, Duration) {
        let begin = Instant::now();
        let (mut messages, mut bytes) = (0, 0);
        for effect in effects {
            if let Effect::Send { session, message: message @ ToNode::View { .. } } = effect {
                messages += 1;
                bytes += encoders[usize::try_from(session.0).unwrap()].encode(message).iter().map(|d| d.len()).sum::<usize>();
            }
        }
        (messages, bytes, begin.elapsed())
    };
    let (messages, bytes, time) = send(effects);
    eprintln!("first views: {messages} views, {bytes} bytes, encoded in {time:?}");

    for _ in 0..3 {
        let mut task = store.tasks().nth(2500).unwrap().clone();
        task.status = TaskStatus { unhealthy: !task.status.unhealthy, ..task.status };
        let begin = Instant::now();
        apply(&mut store, now, vec![Action::update(task)]);
        let applied = begin.elapsed();
        let next = Arc::new(store.clone());
        let begin = Instant::now();
        let effects = cores.handle(now, Event::StoreChanged(next));
        let looped = begin.elapsed();
        let (messages, bytes, encoded) = send(effects);
        let begin = Instant::now();
        let reports = cores.plan(&store, now);
        let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
        planner.round(&store, reports, LowestApplied::by_all(store.revision()), now);
        let planned = begin.elapsed();
        eprintln!(
            "one task's change: applied {applied:?}, in the loop {looped:?}, {messages} views, {bytes} bytes, encoded in \
             {encoded:?}; a round {planned:?}"
        );
    }
}

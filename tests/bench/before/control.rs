//! What the manager of commit b71afbd costs, for `make bench` to compare with. `config/build-before` builds it as an example of that
//! commit, against that commit's library. Prints one JSON object.

#[allow(dead_code, reason = "its tests use the rest")]
#[path = "../tests/it/manager/build.rs"]
mod build;

use build::{START, apply};
use ipnet::Ipv4Net;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use skep::manager::dispatcher::{Dispatcher, Effect, Event};
use skep::manager::round::Planner;
use skep::manager::{ManagerSettings, SessionId, membership};
use skep::model::service::{Protocol, Replicated};
use skep::model::task::{Attachment, ListeningPort};
use skep::model::view::Listens;
use skep::model::{Cluster, Meta, NodeId, NodeState, Revision, Service, Task, TaskId, TaskState, TaskStatus, Timestamp};
use skep::rpc::message::{FORMAT, ToManager, ToNode};
use skep::store::{Action, Store, Transaction};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ready nodes, services with a published port each, and their tasks spread over the nodes.
fn running(nodes: usize, services: u16, replicas: u64) -> Store {
    let mut store = Store::default();
    let cluster = Cluster { subnet_size: 14, ..build::cluster() };
    apply(&mut store, START, skep::manager::bootstrap(cluster, "ingress-id".into(), build::newcomer("n1")).unwrap());
    for i in 2..=nodes {
        let (_, actions) = membership::admit(&store, build::newcomer(&format!("n{i}"))).unwrap();
        apply(&mut store, START, actions);
    }
    let ready = store.nodes().map(|node| {
        let mut node = node.clone();
        node.status.state = NodeState::Ready;
        Action::update(node)
    });
    let ready = ready.collect();
    apply(&mut store, START, ready);
    let published = |n: u16| build::service(&format!("s{n}"), 0, &[(10_000 + n, 80)], &[]);
    apply(&mut store, START, (0..services).map(|n| Action::create(published(n))).collect());
    let mut planner = Planner::new(ManagerSettings::default(), 1);
    loop {
        let applied = store.revision();
        let actions = planner.round(&store, Vec::new(), applied, START);
        if actions.is_empty() {
            break;
        }
        apply(&mut store, START, actions);
    }
    let ids: Vec<NodeId> = store.nodes().map(|node| node.id.clone()).collect();
    let first = u32::try_from(nodes).unwrap() + u32::from(services) + 16;
    let mut rng = StdRng::seed_from_u64(1);
    let mut number = 0;
    for n in 0..services {
        let mut scaled: Service = store.service(&format!("s{n}").as_str().into()).unwrap().clone();
        scaled.spec.mode.replicated = Some(Replicated { replicas: Some(replicas) });
        let subnet = scaled.endpoint.vips[0].addr;
        let mut actions = vec![];
        for slot in 1..=replicas {
            let address = Ipv4Addr::from_bits(subnet.network().to_bits() + first + number);
            actions.push(Action::create(Task {
                id: TaskId::draw(&mut rng),
                meta: Meta::default(),
                spec: scaled.spec.task_template.clone(),
                spec_version: scaled.spec_version,
                service_id: scaled.id.clone(),
                service_name: scaled.spec.name.clone(),
                service_labels: Default::default(),
                slot,
                node_id: Some(ids[number as usize % ids.len()].clone()),
                desired_state: TaskState::Running,
                status: TaskStatus {
                    timestamp: START,
                    state: TaskState::Running,
                    message: "started".to_owned(),
                    ..TaskStatus::default()
                },
                attachments: vec![Attachment {
                    network_id: "ingress-id".into(),
                    address: Ipv4Net::new(address, subnet.prefix_len()).unwrap(),
                }],
                not_before: None,
                ports: Vec::new(),
                listens: Vec::new(),
            }));
            number += 1;
        }
        actions.push(Action::update(scaled));
        apply(&mut store, START, actions);
    }
    store
}

struct Leader {
    store: Store,
    dispatcher: Dispatcher,
    planner: Planner,
    now: Timestamp,
}

/// Bytes of what is sent, as the sessions frame it: one JSON document each.
fn bytes(effects: &[Effect]) -> usize {
    let sent = effects.iter().map(|effect| match effect {
        Effect::Send { message: message @ ToNode::View { .. }, .. } => serde_json::to_vec(message).unwrap().len(),
        _ => 0,
    });
    sent.sum()
}

impl Leader {
    /// The hellos of all nodes; also the time of each one's answer and the bytes of the first views.
    fn take_over(store: Store, nodes: usize) -> (Self, Duration, usize) {
        let now = START.plus(Duration::from_secs(60));
        let mut dispatcher = Dispatcher::new(ManagerSettings::default(), Arc::new(store.clone()), now);
        let begin = Instant::now();
        let mut sent = 0;
        for n in 1..=nodes {
            let description = build::description(&format!("n{n}"));
            let hello = ToManager::Hello { format: FORMAT, description, endpoints: Vec::new(), have: Revision::default() };
            let opened = Event::Opened { node: build::node(n), session: SessionId(n as u64), hello };
            sent += bytes(&dispatcher.handle(now, opened));
        }
        let planner = Planner::new(ManagerSettings::default(), 1);
        (Self { store, dispatcher, planner, now }, begin.elapsed(), sent)
    }

    /// One task listens, or no more: time on the leader's loop, and bytes to all nodes.
    fn change(&mut self) -> (Duration, usize) {
        self.now = self.now.plus(Duration::from_millis(10));
        let middle = self.store.tasks().count() / 2;
        let mut task = self.store.tasks().nth(middle).unwrap().clone();
        task.listens = if task.listens.is_empty() {
            vec![ListeningPort { protocol: Protocol::Tcp, port: 80, listens: Listens { v4: true, v6: false } }]
        } else {
            Vec::new()
        };
        apply(&mut self.store, self.now, vec![Action::update(task)]);
        let store = Arc::new(self.store.clone());
        let begin = Instant::now();
        let effects = self.dispatcher.handle(self.now, Event::StoreChanged(store));
        self.planner.round(&self.store, Vec::new(), self.store.revision(), self.now);
        (begin.elapsed(), bytes(&effects))
    }
}

/// A report of a task, as an entry of the log has it.
fn entry_of(store: &Store, n: usize) -> Vec<u8> {
    let mut task = store.tasks().nth(n).unwrap().clone();
    task.status.timestamp = START.plus(Duration::from_secs(1));
    serde_json::to_vec(&Transaction { at: START, actions: vec![Action::update(task)] }).unwrap()
}

/// Applies entries one after the other, each published; the time of one.
fn applied(store: &mut Store, entries: &[Vec<u8>]) -> Duration {
    let begin = Instant::now();
    let mut published = Arc::new(store.clone());
    for entry in entries {
        let transaction = serde_json::from_slice(entry).unwrap();
        store.apply(store.index() + 1, &transaction).unwrap();
        published = Arc::new(store.clone());
    }
    assert_eq!(published.index(), store.index());
    begin.elapsed() / u32::try_from(entries.len()).unwrap()
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn median<T: Ord + Copy>(mut values: Vec<T>) -> T {
    values.sort_unstable();
    values[values.len() / 2]
}

fn main() {
    let argument = |n: usize| -> usize { std::env::args().nth(n).and_then(|text| text.parse().ok()).unwrap_or(1) };
    // Divides the sizes, as SKEP_BENCH_SCALE does.
    let scale = argument(1).max(1);
    let scaled = |number: usize| (number / scale).max(2);
    let before = resident();
    let store = running(scaled(100), 100, scaled(500) as u64);
    let tasks = store.tasks().count();
    let stored = (resident() - before) / tasks;
    let (leader, _, _) = Leader::take_over(store, scaled(100));
    let with_leader = (resident() - before) / tasks;
    drop(leader);
    let mut changes = Vec::new();
    for tasks in [100, 1_000, 5_000, 10_000].map(scaled) {
        let services = (tasks / 50).max(1);
        let store = running(scaled(100), services as u16, (tasks / services) as u64);
        let (mut leader, _, first) = Leader::take_over(store, scaled(100));
        let runs: Vec<(Duration, usize)> = (0..6).map(|_| leader.change()).collect();
        changes.push(json!({
            "tasks": leader.store.tasks().count(),
            "first_view_bytes": first / scaled(100),
            "bytes": median(runs.iter().map(|run| run.1).collect()),
            "micros": median(runs.iter().map(|run| run.0.as_micros() as u64).collect()),
        }));
    }
    let store = running(scaled(200), 100, scaled(100) as u64);
    let (_, take_over, _) = Leader::take_over(store, scaled(200));
    let mut store = running(scaled(300), 100, scaled(1_000) as u64);
    let entries: Vec<Vec<u8>> = (0..20).map(|n| entry_of(&store, n)).collect();
    let entry = applied(&mut store, &entries);
    let store = running(scaled(300), 100, scaled(500) as u64);
    let entries: Vec<Vec<u8>> = (0..200).map(|n| entry_of(&store, n)).collect();
    let snapshot = store.snapshot();
    drop(store);
    let begin = Instant::now();
    let mut store = Store::restore(&snapshot).unwrap();
    let restored = begin.elapsed();
    let each = applied(&mut store, &entries);
    let measured = json!({
        "memory": { "tasks": tasks, "store_bytes": stored, "all_bytes": with_leader },
        "changes": changes,
        "take_over_micros": take_over.as_micros() as u64,
        "entry_nanos": entry.as_nanos() as u64,
        "restart": { "restored_micros": restored.as_micros() as u64, "entry_nanos": each.as_nanos() as u64 },
    });
    println!("{measured}");
}

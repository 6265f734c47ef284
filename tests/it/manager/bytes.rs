//! What a change costs on the wire, with a hundred nodes: in bytes, never in time.

use super::fixture::{self, apply, node, service};
use super::leader_cores::LeaderCores;
use skep::manager::dispatcher::{Effect, view_of};
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings, SessionId};
use skep::model::service::Replicated;
use skep::model::view::{ClusterPart, Networks};
use skep::model::{ListeningPort, Listens, Protocol, Revision, TaskState, TaskStatus};
use skep::protocol::compression::expanded;
use skep::protocol::view_stream::{PIECE, ViewDecoder, ViewEncoder};
use skep::protocol::{FORMAT, MAX_FRAME, ToManager, ToNode};
use skep::store::{Action, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

const NODES: usize = 100;
const SERVICES: usize = 60;
const REPLICAS: u64 = 3;

/// A node's end of its session.
#[derive(Default)]
struct Receiver {
    encoder: ViewEncoder,
    decoder: ViewDecoder,
    networks: Arc<Networks>,
    cluster: Option<Arc<ClusterPart>>,
    /// Bytes received.
    bytes: usize,
}

struct Cluster {
    store: Store,
    core: LeaderCores,
    planner: RoundPlanner,
    receivers: BTreeMap<SessionId, Receiver>,
    largest: usize,
}

impl Cluster {
    fn new() -> Self {
        let store = fixture::store(NODES);
        let settings = ManagerSettings::default();
        let core = LeaderCores::new(settings.clone(), Arc::new(store.clone()), fixture::START);
        let planner = RoundPlanner::new(settings, 1);
        let mut cluster = Self { store, core, planner, receivers: BTreeMap::new(), largest: 0 };
        for n in 1..=NODES {
            let session = SessionId(n as u64);
            cluster.receivers.insert(session, Receiver::default());
            let description = fixture::description(node(n).as_str());
            let hello =
                ToManager::Hello { format: FORMAT, formats: None, description, endpoints: Vec::new(), have: Revision::default() };
            cluster.event(Event::Opened { node: node(n), session, hello });
        }
        cluster.settle();
        cluster
    }

    fn event(&mut self, event: Event) {
        for effect in self.core.handle(fixture::START, event) {
            let Effect::Send { session, message } = effect else { continue };
            let receiver = self.receivers.get_mut(&session).unwrap();
            for document in receiver.encoder.encode(message) {
                receiver.bytes += document.len();
                self.largest = self.largest.max(document.len());
                let document = expanded(&document, MAX_FRAME).unwrap();
                let ToNode::Piece(piece) = serde_json::from_slice(&document).unwrap() else { continue };
                if let Some(ToNode::View { networks, cluster, .. }) = receiver.decoder.take(piece).unwrap() {
                    receiver.networks = networks.unwrap_or_else(|| receiver.networks.clone());
                    receiver.cluster = cluster.or(receiver.cluster.take());
                }
            }
        }
    }

    fn write(&mut self, actions: Vec<Action>) {
        apply(&mut self.store, fixture::START, actions);
        self.event(Event::StoreChanged(Arc::new(self.store.clone())));
    }

    fn settle(&mut self) {
        loop {
            let reports = self.core.plan(&self.store, fixture::START);
            let applied = LowestApplied::by_all(self.store.revision());
            let actions = self.planner.round(&self.store, reports, applied, fixture::START);
            if actions.is_empty() {
                return;
            }
            self.write(actions);
        }
    }

    /// Every task that is to run does, and listens.
    fn start_tasks(&mut self) {
        let listens = vec![ListeningPort { protocol: Protocol::Tcp, port: 80, listens: Listens { v4: true, v6: true } }];
        let starting = self.store.tasks().filter(|t| t.status.state == TaskState::Assigned).cloned();
        let actions = starting.map(|mut task| {
            task.status = TaskStatus { state: TaskState::Running, ..task.status };
            task.listens.clone_from(&listens);
            Action::update(task)
        });
        let actions: Vec<Action> = actions.collect();
        if !actions.is_empty() {
            self.write(actions);
        }
        self.settle();
    }

    fn bytes(&self) -> usize {
        self.receivers.values().map(|r| r.bytes).sum()
    }

    /// Every node has the tables that a first view would have.
    fn check(&self) {
        for n in [1, NODES / 2, NODES] {
            let wanted = view_of(&self.store, &node(n)).unwrap();
            let receiver = &self.receivers[&SessionId(n as u64)];
            assert_eq!(receiver.networks, wanted.networks, "node {n}");
            assert_eq!(receiver.cluster.as_ref(), Some(&wanted.cluster), "node {n}");
        }
    }
}

#[test]
fn a_replaced_task_costs_a_node_a_few_entries_however_many_there_are() {
    let mut cluster = Cluster::new();
    let net = fixture::network("back", Some("172.16.0.0/16"));
    let mut actions = vec![Action::create(net)];
    let published = |n: usize| u16::try_from(8000 + n).unwrap();
    actions
        .extend((0..SERVICES).map(|n| Action::create(service(&format!("web{n}"), REPLICAS, &[(published(n), 80)], &["back"]))));
    cluster.write(actions);
    cluster.settle();
    cluster.start_tasks();
    cluster.check();
    let view = serde_json::to_vec(&view_of(&cluster.store, &node(7)).unwrap()).unwrap().len();

    // One replica more and one less of services all over, with the task's start and end.
    let before = cluster.bytes();
    let rounds = 20;
    for n in 0..rounds {
        for replicas in [4, 3] {
            let mut scaled = cluster.store.service(&format!("web{n}").as_str().into()).unwrap().clone();
            scaled.spec.mode.replicated = Some(Replicated { replicas: Some(replicas) });
            cluster.write(vec![Action::update(scaled)]);
            cluster.settle();
            cluster.start_tasks();
        }
    }
    cluster.check();
    let per_node = (cluster.bytes() - before) / NODES / rounds;
    // Assignment, start, listening, end of a backend: the task's entry on two networks, its port, its node.
    assert!(per_node < 16 << 10, "{per_node} bytes per node for one task that comes and goes");
    assert!(per_node * 8 < view, "{per_node} bytes; the whole view has {view}");
    assert!(cluster.largest < PIECE + (8 << 10), "{}", cluster.largest);
}

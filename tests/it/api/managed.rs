//! The API over a swarm with a leader's real loops and simulated nodes: everything but engines and packets.

use super::fixture::{ApiFixture, FakeNode};
use crate::manager::simulated_agent::SimulatedAgent;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::manager::{JoiningNode, Leadership, ManagerSettings, Sessions, bootstrap, node_allocation, start};
use skep::model::node::{ManagerStatus, NodeDescription};
use skep::model::{Availability, LogPiece, LogRequest, LogStream, NodeId, NodeState, Role, Secret, TaskState};
use skep::protocol::{ToManager, ToNode};
use skep::rpc::LogReader;
use skep::store::{LocalProposer, StoreHandle};
use skep::trust::TunnelKey;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bound on every wait.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Ids of the nodes, the first one the manager's.
pub const NODES: [&str; 3] = ["ej9fe8a4i12wa7r06tdh2hha7", "drwr0n2tcmgjuamlus2eyenpw", "ymrqj25p8la8xztehs0leksm4"];

/// A swarm of lab1 (the manager), lab2 and lab3.
pub struct ManagedSwarm {
    pub api: ApiFixture,
    pub store: StoreHandle,
    _leads: watch::Sender<Leadership>,
    _stop: DropGuard,
}

impl ManagedSwarm {
    pub async fn new() -> Self {
        let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
        let store = LocalProposer::handle();
        let joining = |number: usize| JoiningNode {
            id: NODES[number].into(),
            role: if number == 0 { Role::Manager } else { Role::Worker },
            availability: Availability::Active,
            description: description(number),
            addr: Some(format!("10.123.0.{}", number + 1).parse().unwrap()),
            // The manager's is the one that its vault opens secrets with.
            key: TunnelKey::new(Secret::new([7 + u8::try_from(number).unwrap(); 32])).public(),
            endpoints: Vec::new(),
            manager: (number == 0).then(|| ManagerStatus { raft_id: 1, addr: "10.123.0.1:2377".parse().unwrap() }),
        };
        store
            .write(SystemClock.now(), bootstrap(super::recorded_store::cluster(), "ingress".into(), joining(0)).unwrap())
            .await
            .unwrap();
        for number in 1..NODES.len() {
            let (_, actions) = node_allocation::admit(&store.read(), joining(number)).unwrap();
            store.write(SystemClock.now(), actions).await.unwrap();
        }
        let stop = CancellationToken::new();
        let settings = ManagerSettings { vault: Some(Arc::new(FakeNode::payload_vault())), ..ManagerSettings::default() };
        let (leads, leadership) = watch::channel(Leadership::Leads { lost_leader: None });
        let manager = start(store.clone(), leadership, settings, Arc::new(SystemClock), 1, stop.clone());
        for (number, id) in NODES.iter().enumerate() {
            let mut agent = SimulatedAgent::new((*id).into());
            agent.description = description(number);
            tokio::spawn(stop.clone().run_until_cancelled_owned(run_agent(agent, manager.sessions.clone())));
        }
        *node.store.lock().unwrap() = Some(store.clone());
        let logs = NODES.map(|id| (NodeId::from(id), Arc::new(OneLine) as Arc<dyn LogReader>));
        node.logs.lock().unwrap().extend(logs);
        let swarm = Self { api: ApiFixture::serve(node, None), store, _leads: leads, _stop: stop.drop_guard() };
        swarm.until("ready nodes", |store| store.nodes().all(|node| node.status.state == NodeState::Ready)).await;
        swarm
    }

    pub async fn until(&self, what: &str, mut condition: impl FnMut(&skep::store::Store) -> bool) {
        let mut view = self.store.watch();
        let wait = async {
            while !condition(&view.borrow_and_update().clone()) {
                view.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(TIMEOUT, wait).await.is_err() {
            let tasks: Vec<String> = self
                .store
                .read()
                .tasks()
                .map(|t| format!("{} {:?} {}", t.display_name(), t.status.state, t.status.err))
                .collect();
            panic!("not in time: {what}: {tasks:#?}");
        }
    }

    /// Waits until every service has as many running tasks as it wants, and no others.
    pub async fn converged(&self) {
        let end = Instant::now() + TIMEOUT;
        loop {
            let services: Value = self.api.client.get("/services?status=true").await.unwrap().json().unwrap();
            let wrong: Vec<&Value> = services
                .as_array()
                .unwrap()
                .iter()
                .filter(|s| s["ServiceStatus"]["RunningTasks"] != s["ServiceStatus"]["DesiredTasks"])
                .collect();
            if wrong.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "not in time: {wrong:#?}\n{:#?}", self.errors());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn errors(&self) -> Vec<String> {
        self.store.read().tasks().map(|t| format!("{} {:?} {}", t.display_name(), t.status.state, t.status.err)).collect()
    }

    /// Ids of the tasks that are wanted, with their services' names.
    pub fn tasks(&self) -> Vec<(String, String)> {
        let store = self.store.read();
        let wanted = store.tasks().filter(|task| task.desired_state == TaskState::Running);
        wanted.map(|task| (task.service_name.clone(), task.id.to_string())).collect()
    }
}

/// Of an engine as Debian has it.
fn description(number: usize) -> NodeDescription {
    let recorded = super::recorded_store::node(NODES[number], &format!("lab{}", number + 1), Role::Worker).description;
    let plugins = recorded.plugins.into_iter().chain([("Log".to_owned(), "local".to_owned())]).collect();
    NodeDescription { plugins, ..recorded }
}

/// Every task has written one line.
struct OneLine;

#[async_trait]
impl LogReader for OneLine {
    async fn read(&self, request: &LogRequest) -> anyhow::Result<BoxStream<'static, anyhow::Result<LogPiece>>> {
        let data = Bytes::from(format!("2026-11-23T20:37:47.338074499Z line of {}\n", request.task));
        Ok(futures_util::stream::iter([Ok(LogPiece { stream: LogStream::Stdout, data })]).boxed())
    }
}

/// A node whose containers start within some steps of 5 ms.
async fn run_agent(mut agent: SimulatedAgent, sessions: Sessions) {
    let mut rng = StdRng::seed_from_u64(7);
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        let (out, mut incoming) = mpsc::channel::<ToNode>(64);
        let hello = agent.hello();
        let session = sessions.open(NodeId::from(agent.id.as_str()), hello, out).await;
        let mut steps = 0_u32;
        loop {
            tokio::select! {
                message = incoming.recv() => match message {
                    Some(ToNode::NotLeader { .. }) | None => break,
                    Some(message) => if let Some(answer) = agent.receive(message) {
                        sessions.message(session, answer).await;
                    },
                },
                _ = tick.tick() => {
                    agent.step(SystemClock.now(), &mut rng);
                    for report in agent.reports() {
                        sessions.message(session, report).await;
                    }
                    steps += 1;
                    if steps.is_multiple_of(40) {
                        sessions.message(session, ToManager::Heartbeat { applied: agent.revision }).await;
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

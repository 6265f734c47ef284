//! The simulated cluster: planners, dispatcher core and simulated nodes in one thread, with a virtual clock, from a seed.
//! Every state of the store and every step is checked, and so are the running containers.

use super::fixture;
use super::fixture::{rolled_back, updated};
use super::leader_cores::LeaderCores;
use super::proof::rules::Running;
use super::simulated_agent::SimulatedAgent;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep::manager::dispatcher::Effect;
use skep::manager::liveness::Event;
use skep::manager::orchestrator::Orchestrator;
use skep::manager::round::RoundPlanner;
use skep::manager::round_scope::RoundScope;
use skep::manager::{ManagerSettings, SessionId, invariants, reaper};
use skep::model::node::NodeDescription;
use skep::model::service::Replicated;
use skep::model::{Availability, Node, NodeId, NodeState, ServiceSpec, Task, TaskId, TaskState, Timestamp, UpdateState};
use skep::protocol::{ToManager, ToNode};
use skep::store::{Action, Store, Transaction};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Something that happens at a time.
enum Occurrence {
    ToManager(SessionId, ToManager),
    Opened(NodeId, SessionId, ToManager),
    Closed(SessionId),
    ToNode(NodeId, SessionId, ToNode),
    SessionEnded(NodeId, SessionId),
    AgentStep(NodeId),
    Heartbeat(NodeId),
    Tick,
}

/// What happens to reports, and to nodes; nothing by default.
#[derive(Default)]
pub struct Faults {
    /// Share of reports that are lost, and the session with them.
    pub lose: f64,
    /// Share of reports that arrive twice.
    pub repeat: f64,
    /// Nodes that take seconds for a step.
    pub slow: BTreeSet<NodeId>,
}

/// Looks at every plan and at the containers that run.
pub trait Witness {
    /// The plan to write, or what is wrong with it.
    fn planned(&mut self, store: &Store, actions: Vec<Action>, now: Timestamp) -> Result<Vec<Action>, Vec<String>>;
    /// What is wrong with the containers that run.
    fn running(&mut self, running: &[Running], store: &Store) -> Vec<String>;
}

/// A user's change of some state.
pub type Write = Box<dyn FnOnce(&Store, Timestamp) -> Action>;

pub struct Simulation {
    pub now: Timestamp,
    pub rng: StdRng,
    pub store: Arc<Store>,
    pub agents: BTreeMap<NodeId, SimulatedAgent>,
    pub settings: ManagerSettings,
    core: LeaderCores,
    planner: RoundPlanner,
    queue: BTreeMap<(Timestamp, u64), Occurrence>,
    number: u64,
    owners: BTreeMap<SessionId, NodeId>,
    /// Each is written between a plan and its commit.
    pub concurrent_writes: Vec<Write>,
    pub faults: Faults,
    pub witness: Option<Box<dyn Witness>>,
    pub commits: u64,
    /// When a connection changed last.
    stable_since: Timestamp,
}

impl Simulation {
    pub fn new(nodes: usize, seed: u64) -> Self {
        let store = Arc::new(fixture::store(nodes));
        let settings = ManagerSettings::default();
        let now = fixture::START.plus(Duration::from_secs(1));
        let mut simulation = Self {
            now,
            rng: StdRng::seed_from_u64(seed),
            core: LeaderCores::new(settings.clone(), store.clone(), now),
            planner: RoundPlanner::new(settings.clone(), seed),
            store,
            settings,
            agents: BTreeMap::new(),
            queue: BTreeMap::new(),
            number: 0,
            owners: BTreeMap::new(),
            concurrent_writes: Vec::new(),
            faults: Faults::default(),
            witness: None,
            commits: 0,
            stable_since: now,
        };
        for i in 1..=nodes {
            simulation.start_agent(fixture::node(i));
        }
        simulation.later(0, Occurrence::Tick);
        simulation.run(Duration::from_secs(1));
        simulation
    }

    pub fn start_agent(&mut self, id: NodeId) {
        self.agents.insert(id.clone(), SimulatedAgent::new(id.clone()));
        self.later(1, Occurrence::AgentStep(id.clone()));
        self.later(2, Occurrence::Heartbeat(id));
    }

    fn later(&mut self, ms: u64, due: Occurrence) {
        self.number += 1;
        self.queue.insert((self.now.plus(Duration::from_millis(ms)), self.number), due);
    }

    /// Delivers a message. The delay depends on the node, so order is kept within a session and not between sessions.
    fn deliver(&mut self, due: Occurrence) {
        let node = match &due {
            Occurrence::ToManager(session, _) | Occurrence::Closed(session) => &self.owners[session],
            Occurrence::Opened(node, ..) | Occurrence::ToNode(node, ..) | Occurrence::SessionEnded(node, _) => node,
            Occurrence::AgentStep(_) | Occurrence::Heartbeat(_) | Occurrence::Tick => unreachable!("not a message"),
        };
        let distance = node.as_str().bytes().last().map_or(0, |b| u64::from(b % 4));
        self.later(2 + distance * 45, due);
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while let Some((&key, _)) = self.queue.iter().next().filter(|((at, _), _)| *at <= end) {
            let due = self.queue.remove(&key).unwrap();
            self.now = self.now.max(key.0);
            self.occur(due);
        }
        self.now = end;
    }

    /// Runs until the condition is true; returns the virtual time that it took.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) -> Duration {
        let start = self.now;
        while !condition(self) {
            assert!(self.now.since(start) < Duration::from_mins(3), "not in time: {what}\n{}", self.dump());
            self.run(Duration::from_millis(10));
        }
        self.now.since(start)
    }

    fn occur(&mut self, due: Occurrence) {
        match due {
            Occurrence::ToManager(session, message) => self.event(Event::Message { session, message }),
            Occurrence::Opened(node, session, hello) => {
                if self.agents[&node].session == Some(session) {
                    self.event(Event::Opened { node, session, hello });
                }
            }
            Occurrence::Closed(session) => self.event(Event::Closed { session }),
            Occurrence::ToNode(node, session, message) => {
                let Some(agent) = self.agents.get_mut(&node).filter(|a| a.connected && a.session == Some(session)) else {
                    return;
                };
                if let Some(answer) = agent.receive(message) {
                    self.deliver(Occurrence::ToManager(session, answer));
                }
            }
            Occurrence::SessionEnded(node, session) => {
                if let Some(agent) = self.agents.get_mut(&node).filter(|a| a.connected && a.session == Some(session)) {
                    agent.session = None;
                }
            }
            Occurrence::AgentStep(node) => self.agent_step(node),
            Occurrence::Heartbeat(node) => {
                let Some(agent) = self.agents.get(&node).filter(|a| !a.removed) else { return };
                if let Some(session) = agent.session.filter(|_| agent.connected) {
                    let applied = agent.revision;
                    self.deliver(Occurrence::ToManager(session, ToManager::Heartbeat { applied }));
                }
                self.later(500, Occurrence::Heartbeat(node));
            }
            Occurrence::Tick => {
                self.event(Event::Tick);
                self.later(100, Occurrence::Tick);
            }
        }
    }

    fn agent_step(&mut self, node: NodeId) {
        let Some(agent) = self.agents.get_mut(&node).filter(|a| !a.removed) else { return };
        if agent.session.is_none() && agent.connected {
            self.number += 1;
            let session = SessionId(self.number);
            agent.session = Some(session);
            self.owners.insert(session, node.clone());
            let hello = agent.hello();
            self.deliver(Occurrence::Opened(node.clone(), session, hello));
        }
        let agent = self.agents.get_mut(&node).unwrap();
        let stop_began = agent.step(self.now, &mut self.rng);
        if let Some(session) = agent.session.filter(|_| agent.connected) {
            let reports = agent.reports();
            self.send_reports(&node, session, reports);
        }
        for task in stop_began {
            self.check_ordered_stop(&task);
        }
        self.check_containers();
        self.ask_witness_of_containers();
        let slow = self.faults.slow.contains(&node);
        let pause = if slow { self.rng.random_range(500..3000) } else { self.rng.random_range(10..80) };
        self.later(pause, Occurrence::AgentStep(node));
    }

    fn send_reports(&mut self, node: &NodeId, session: SessionId, reports: Vec<ToManager>) {
        let Faults { lose, repeat, .. } = self.faults;
        for report in reports {
            if lose > 0.0 && self.rng.random_bool(lose) {
                // A session that loses something ends; the next one begins with everything.
                self.agents.get_mut(node).unwrap().session = None;
                return self.deliver(Occurrence::Closed(session));
            }
            if repeat > 0.0 && self.rng.random_bool(repeat) {
                self.deliver(Occurrence::ToManager(session, report.clone()));
            }
            self.deliver(Occurrence::ToManager(session, report));
        }
    }

    fn ask_witness_of_containers(&mut self) {
        let Some(mut witness) = self.witness.take() else { return };
        let is_stable = self.now.since(self.stable_since) >= Duration::from_secs(3);
        let reachable = |a: &SimulatedAgent| {
            is_stable && a.connected && a.session.is_some() && self.state_of_agent(a) == Some(NodeState::Ready)
        };
        let agents = self.agents.values().filter(|a| !a.removed && self.store.node(&a.id).is_some());
        let running: Vec<Running> = agents
            .flat_map(|a| {
                let reachable = reachable(a);
                let containers = a.containers.values().filter(|c| c.runs());
                containers.map(move |c| Running { task: &c.task, node: &a.id, reachable })
            })
            .collect();
        let wrong = witness.running(&running, &self.store);
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", self.dump());
        self.witness = Some(witness);
    }

    fn event(&mut self, event: Event) {
        // As the leader's loop does: heartbeats alone give the planners nothing to do.
        let round_due = !matches!(event, Event::Message { message: ToManager::Heartbeat { .. }, .. });
        let effects = self.core.handle(self.now, event);
        self.carry_out(effects);
        if round_due {
            self.plan();
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { session, message } => {
                    let node = self.owners[&session].clone();
                    self.deliver(Occurrence::ToNode(node, session, message));
                }
                Effect::Close { session } => {
                    let node = self.owners[&session].clone();
                    self.deliver(Occurrence::SessionEnded(node, session));
                }
            }
        }
    }

    /// Rounds until there is nothing left to do.
    pub fn plan(&mut self) {
        for round in 0.. {
            assert!(round < 500, "the planners do not settle\n{}", self.dump());
            let reports = self.core.plan(&self.store, self.now);
            let applied = self.core.lowest_applied(self.now);
            let planned = self.planner.round(&self.store, reports, applied, self.now);
            let is_idle = planned.is_empty();
            let actions = match &mut self.witness {
                Some(witness) if !is_idle => witness.planned(&self.store, planned, self.now),
                _ => Ok(planned),
            };
            let actions = actions.unwrap_or_else(|wrong| panic!("{wrong:#?}\n{}", self.dump()));
            if actions.is_empty() && !is_idle {
                return;
            }
            if is_idle {
                let left = reaper::plan(&self.store, self.now, &self.settings, &RoundScope::full());
                assert!(left.is_empty(), "a round leaves out what it should look at: {left:?}");
                self.check_that_nothing_is_left_out();
                return;
            }
            if let Some(write) = self.concurrent_writes.pop() {
                let action = write(&self.store, self.now);
                self.write(vec![action]);
            }
            if self.write(actions) {
                self.planner.written();
            }
        }
    }

    /// A round looks at what has changed and at what waits for a time. Looking at everything gives the same.
    fn check_that_nothing_is_left_out(&self) {
        let mut rng = StdRng::seed_from_u64(1);
        let whole = Orchestrator::default().plan(&self.store, self.now, &mut rng, &self.settings, &RoundScope::full());
        let changes = |action: &&Action| !matches!(action, Action::Update(object) if object.is_stored(&self.store));
        let left: Vec<&Action> = whole.actions.iter().filter(changes).collect();
        assert!(left.is_empty(), "a round leaves out what it should look at: {left:?}\n{}", self.dump());
    }

    /// Applies a transaction as raft would, and passes the new state on.
    pub fn write(&mut self, actions: Vec<Action>) -> bool {
        let before = self.store.clone();
        let mut next = (*before).clone();
        let applied = next.apply(before.index() + 1, &Transaction::new(self.now, actions)).is_ok();
        let wrong: Vec<String> = [invariants::check(&next), invariants::check_step(&before, &next)].concat();
        self.store = Arc::new(next);
        self.commits += 1;
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", self.dump());
        let effects = self.core.handle(self.now, Event::StoreChanged(self.store.clone()));
        self.carry_out(effects);
        applied
    }

    /// A user's change, and the rounds that follow.
    pub fn command(&mut self, actions: Vec<Action>) {
        assert!(self.write(actions));
        self.plan();
    }

    pub fn scale(&mut self, name: &str, replicas: u64) {
        let mut service = self.store.service(&name.into()).unwrap().clone();
        service.spec.mode.replicated = Some(Replicated { replicas: Some(replicas) });
        self.command(vec![Action::update(service)]);
    }

    /// A user's update, as the API writes it.
    pub fn update(&mut self, name: &str, change: impl FnOnce(&mut ServiceSpec)) {
        let action = updated(&self.store, name, self.now, change);
        self.command(vec![action]);
    }

    /// `docker service rollback`.
    pub fn rollback(&mut self, name: &str) {
        let action = rolled_back(&self.store, name, self.now);
        self.command(vec![action]);
    }

    /// State of the service's last update.
    pub fn update_state(&self, name: &str) -> Option<UpdateState> {
        self.store.service(&name.into()).unwrap().update.as_ref().filter(|u| u.started_at.is_some()).map(|u| u.state)
    }

    pub fn availability(&mut self, node: &NodeId, availability: Availability) {
        let mut node: Node = self.store.node(node).unwrap().clone();
        node.spec.availability = availability;
        self.command(vec![Action::update(node)]);
    }

    /// Messages to and from the node are lost from now on.
    pub fn disconnect(&mut self, node: &NodeId) {
        self.agents.get_mut(node).unwrap().connected = false;
        self.stable_since = self.now;
    }

    /// Messages are delivered again; the old session has ended.
    pub fn reconnect(&mut self, node: &NodeId) {
        let agent = self.agents.get_mut(node).unwrap();
        agent.connected = true;
        self.stable_since = self.now;
        if let Some(session) = agent.session.take() {
            self.deliver(Occurrence::Closed(session));
        }
    }

    /// The node describes itself again within its session.
    pub fn describe(&mut self, node: &NodeId, change: impl FnOnce(&mut NodeDescription)) {
        let agent = self.agents.get_mut(node).unwrap();
        change(&mut agent.description);
        let (session, hello) = (agent.session.unwrap(), agent.hello());
        self.deliver(Occurrence::ToManager(session, hello));
    }

    /// Another manager takes over: no node has a session with it.
    pub fn change_leader(&mut self) {
        let seed = self.rng.random();
        self.core = LeaderCores::new(self.settings.clone(), self.store.clone(), self.now);
        self.planner = RoundPlanner::new(self.settings.clone(), seed);
        self.queue.retain(|_, due| {
            !matches!(due, Occurrence::ToManager(..) | Occurrence::ToNode(..) | Occurrence::Opened(..) | Occurrence::Closed(_))
        });
        for agent in self.agents.values_mut() {
            agent.session = None;
        }
        self.plan();
    }

    pub fn tasks(&self, service: &str) -> Vec<&Task> {
        let id = service.into();
        self.store.tasks().filter(|t| t.service_id == id).collect()
    }

    pub fn running(&self, service: &str) -> Vec<&Task> {
        let is_up = |task: &Task| task.node_id.as_ref().is_some_and(|id| self.state_of(id) != NodeState::Down);
        self.tasks(service).into_iter().filter(|t| t.is_backend() && is_up(t)).collect()
    }

    pub fn per_node(&self, service: &str) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for task in self.running(service) {
            *all.entry(task.node_id.as_ref().unwrap().to_string()).or_default() += 1;
        }
        all
    }

    pub fn state_of(&self, node: &NodeId) -> NodeState {
        self.store.node(node).unwrap().status.state
    }

    /// A container is stopped only when no ready node sends to it any more. Only checked in stable times: the wait for
    /// other nodes is bounded.
    fn check_ordered_stop(&self, task: &TaskId) {
        if self.now.since(self.stable_since) < Duration::from_secs(3) {
            return;
        }
        for agent in self.agents.values().filter(|a| a.connected && !a.removed && a.session.is_some()) {
            if self.state_of_agent(agent) != Some(NodeState::Ready) {
                continue;
            }
            let sends = agent.cluster.iter().flat_map(|c| &c.ports).flat_map(|p| &p.backends).any(|b| b.task_id == *task);
            assert!(!sends, "{task} is stopped while {} still sends to it\n{}", agent.id, self.dump());
        }
    }

    /// The listening ports in the store and on every node are those of the containers.
    pub fn check_listens(&self) {
        for container in self.agents.values().flat_map(|a| a.containers.values()).filter(|c| c.runs()) {
            let stored = self.store.task(&container.task.id).map(|t| t.listens.clone());
            assert_eq!(stored.as_ref(), Some(&container.listens), "{}\n{}", container.task.id, self.dump());
            for agent in self.agents.values().filter(|a| a.session.is_some()) {
                let ports = agent.cluster.iter().flat_map(|c| &c.ports).filter(|p| p.target == 80);
                for backend in ports.flat_map(|p| &p.backends).filter(|b| b.task_id == container.task.id) {
                    let listens = container.listens.first().map(|p| p.listens).unwrap_or_default();
                    assert_eq!(backend.listens, listens, "on {}, of {}", agent.id, container.task.id);
                }
            }
        }
    }

    fn state_of_agent(&self, agent: &SimulatedAgent) -> Option<NodeState> {
        self.store.node(&agent.id).map(|n| n.status.state)
    }

    /// No two running containers have the same address, whatever the store contains.
    fn check_containers(&self) {
        let mut owners = BTreeMap::new();
        for agent in self.agents.values().filter(|a| !a.removed && self.store.node(&a.id).is_some()) {
            for container in agent.containers.values().filter(|c| c.runs()) {
                for a in &container.task.attachments {
                    let other = owners.insert((a.address, &a.network_id), &container.task.id);
                    assert!(other.is_none(), "{} and {other:?} both run with {}\n{}", container.task.id, a.address, self.dump());
                }
            }
        }
    }

    /// The whole state as text, for failures.
    pub fn dump(&self) -> String {
        use std::fmt::Write as _;
        let mut out = format!("at {}\n", self.now.to_rfc3339());
        for n in self.store.nodes() {
            writeln!(out, "node {} {:?} {:?}", n.id, n.status.state, n.spec.availability).unwrap();
        }
        for s in self.store.services() {
            let update = s.update.as_ref().map(|u| (u.state.as_str(), u.dirty, u.failed, u.message.as_str()));
            writeln!(out, "service {} {:?} version {} {update:?}", s.spec.name, s.spec.mode, s.spec_version).unwrap();
        }
        let mut tasks: Vec<&Task> = self.store.tasks().collect();
        tasks.sort_by_key(|t| (t.service_name.clone(), t.slot_key(), t.meta.created_at));
        for t in tasks {
            let addresses: Vec<String> = t.attachments.iter().map(|a| a.address.to_string()).collect();
            writeln!(
                out,
                "  {} v{} {:?} {:?} {} {:?} desired {:?} state {:?} {} {:?} {}",
                t.display_name(),
                t.spec_version,
                t.cause,
                t.end,
                &t.id.as_str()[..6],
                t.node_id,
                t.desired_state,
                t.status.state,
                addresses.join(","),
                t.not_before.map(Timestamp::to_rfc3339),
                t.status.err
            )
            .unwrap();
        }
        out
    }

    /// Number of running containers of a service, on all nodes.
    pub fn running_containers(&self, service: &str) -> usize {
        let on_node = |a: &SimulatedAgent| {
            a.containers.values().filter(|c| c.status.state == TaskState::Running && c.task.service_name == service).count()
        };
        self.agents.values().filter(|a| !a.removed).map(on_node).sum()
    }
}

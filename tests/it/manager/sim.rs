//! The simulated cluster: planners, dispatcher core and obedient nodes in one thread, under a virtual clock, from a
//! seed. Every state of the store and every step is checked; so are the containers that really run.

use super::agent::Agent;
use super::build;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep::manager::dispatcher::{Dispatcher, Effect, Event};
use skep::manager::round::Planner;
use skep::manager::{ManagerSettings, SessionId, invariants};
use skep::model::service::Replicated;
use skep::model::{Availability, Node, NodeId, NodeState, Task, TaskId, TaskState, Timestamp};
use skep::protocol::{ToManager, ToNode};
use skep::store::{Action, Store, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

enum Due {
    ToManager(SessionId, ToManager),
    Opened(NodeId, SessionId, ToManager),
    Closed(SessionId),
    ToNode(NodeId, SessionId, ToNode),
    Hangup(NodeId, SessionId),
    AgentStep(NodeId),
    Heartbeat(NodeId),
    Tick,
}

pub struct Sim {
    pub now: Timestamp,
    pub rng: StdRng,
    pub store: Arc<Store>,
    pub agents: BTreeMap<NodeId, Agent>,
    pub settings: ManagerSettings,
    core: Dispatcher,
    planner: Planner,
    queue: BTreeMap<(Timestamp, u64), Due>,
    number: u64,
    owners: BTreeMap<SessionId, NodeId>,
    /// Written between a plan and its commit, once each.
    pub intruders: Vec<Action>,
    pub commits: u64,
    /// Since when no link and no leader has changed.
    calm_since: Timestamp,
}

impl Sim {
    pub fn new(nodes: usize, seed: u64) -> Self {
        let store = Arc::new(build::store(nodes));
        let settings = ManagerSettings::default();
        let now = build::START.plus(Duration::from_secs(1));
        let mut sim = Self {
            now,
            rng: StdRng::seed_from_u64(seed),
            core: Dispatcher::new(settings.clone(), store.clone(), now),
            planner: Planner::new(settings.clone(), seed),
            store,
            settings,
            agents: BTreeMap::new(),
            queue: BTreeMap::new(),
            number: 0,
            owners: BTreeMap::new(),
            intruders: Vec::new(),
            commits: 0,
            calm_since: now,
        };
        for i in 1..=nodes {
            sim.start_agent(build::node(i));
        }
        sim.later(0, Due::Tick);
        sim.run(Duration::from_secs(1));
        sim
    }

    pub fn start_agent(&mut self, id: NodeId) {
        self.agents.insert(id.clone(), Agent::new(id.clone()));
        self.later(1, Due::AgentStep(id.clone()));
        self.later(2, Due::Heartbeat(id));
    }

    fn later(&mut self, ms: u64, due: Due) {
        self.number += 1;
        self.queue.insert((self.now.plus(Duration::from_millis(ms)), self.number), due);
    }

    /// Every node is another distance away; so order within a session is kept and between sessions it is not.
    fn transit(&mut self, due: Due) {
        let node = match &due {
            Due::ToManager(session, _) | Due::Closed(session) => &self.owners[session],
            Due::Opened(node, ..) | Due::ToNode(node, ..) | Due::Hangup(node, _) => node,
            Due::AgentStep(_) | Due::Heartbeat(_) | Due::Tick => unreachable!("not a message"),
        };
        let far = node.as_str().bytes().last().map_or(0, |b| u64::from(b % 4));
        self.later(2 + far * 45, due);
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while let Some((&key, _)) = self.queue.iter().next().filter(|((at, _), _)| *at <= end) {
            let due = self.queue.remove(&key).unwrap();
            self.now = self.now.max(key.0);
            self.happen(due);
        }
        self.now = end;
    }

    /// Runs until it is so; the virtual time that it took.
    pub fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) -> Duration {
        let start = self.now;
        while !so(self) {
            assert!(self.now.since(start) < Duration::from_mins(3), "never came true: {what}\n{}", self.picture());
            self.run(Duration::from_millis(10));
        }
        self.now.since(start)
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::ToManager(session, message) => self.event(Event::Message { session, message }),
            Due::Opened(node, session, hello) => {
                if self.agents[&node].session == Some(session) {
                    self.event(Event::Opened { node, session, hello });
                }
            }
            Due::Closed(session) => self.event(Event::Closed { session }),
            Due::ToNode(node, session, message) => {
                let Some(agent) = self.agents.get_mut(&node).filter(|a| a.linked && a.session == Some(session)) else { return };
                if let Some(answer) = agent.hear(message) {
                    self.transit(Due::ToManager(session, answer));
                }
            }
            Due::Hangup(node, session) => {
                if let Some(agent) = self.agents.get_mut(&node).filter(|a| a.linked && a.session == Some(session)) {
                    agent.session = None;
                }
            }
            Due::AgentStep(node) => self.agent_step(node),
            Due::Heartbeat(node) => {
                let Some(agent) = self.agents.get(&node).filter(|a| !a.removed) else { return };
                if let Some(session) = agent.session.filter(|_| agent.linked) {
                    let applied = agent.revision;
                    self.transit(Due::ToManager(session, ToManager::Heartbeat { applied }));
                }
                self.later(500, Due::Heartbeat(node));
            }
            Due::Tick => {
                self.event(Event::Tick);
                self.later(100, Due::Tick);
            }
        }
    }

    fn agent_step(&mut self, node: NodeId) {
        let Some(agent) = self.agents.get_mut(&node).filter(|a| !a.removed) else { return };
        if agent.session.is_none() && agent.linked {
            self.number += 1;
            let session = SessionId(self.number);
            agent.session = Some(session);
            self.owners.insert(session, node.clone());
            let hello = agent.hello();
            self.transit(Due::Opened(node.clone(), session, hello));
        }
        let agent = self.agents.get_mut(&node).unwrap();
        let told = agent.step(self.now, &mut self.rng);
        if let Some(session) = agent.session.filter(|_| agent.linked) {
            for report in agent.reports() {
                self.transit(Due::ToManager(session, report));
            }
        }
        for task in told {
            self.check_ordered_stop(&task);
        }
        self.check_containers();
        let pause = self.rng.random_range(10..80);
        self.later(pause, Due::AgentStep(node));
    }

    fn event(&mut self, event: Event) {
        // As the shell does: a heartbeat is no reason to plan.
        let due = !matches!(event, Event::Message { message: ToManager::Heartbeat { .. }, .. });
        let effects = self.core.handle(self.now, event);
        self.carry_out(effects);
        if due {
            self.plan();
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send { session, message } => {
                    let node = self.owners[&session].clone();
                    self.transit(Due::ToNode(node, session, message));
                }
                Effect::Close { session } => {
                    let node = self.owners[&session].clone();
                    self.transit(Due::Hangup(node, session));
                }
            }
        }
    }

    /// Rounds until there is nothing left to do.
    pub fn plan(&mut self) {
        for round in 0.. {
            assert!(round < 500, "the planners never come to an end\n{}", self.picture());
            let reports = self.core.plan(&self.store, self.now);
            let applied = self.core.applied(self.now);
            let actions = self.planner.round(&self.store, reports, applied, self.now);
            if actions.is_empty() {
                return;
            }
            if let Some(intruder) = self.intruders.pop() {
                self.write(vec![intruder]);
            }
            self.write(actions);
        }
    }

    /// Applies as raft would: all or nothing; then everybody sees it.
    pub fn write(&mut self, actions: Vec<Action>) -> bool {
        let before = self.store.clone();
        let mut next = (*before).clone();
        let applied = next.apply(before.index() + 1, &Transaction { at: self.now, actions }).is_ok();
        let wrong: Vec<String> = [invariants::check(&next), invariants::check_step(&before, &next)].concat();
        self.store = Arc::new(next);
        self.commits += 1;
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", self.picture());
        let effects = self.core.handle(self.now, Event::StoreChanged(self.store.clone()));
        self.carry_out(effects);
        applied
    }

    /// What a user does: written, then planned upon.
    pub fn command(&mut self, actions: Vec<Action>) {
        assert!(self.write(actions));
        self.plan();
    }

    pub fn scale(&mut self, name: &str, replicas: u64) {
        let mut service = self.store.service(&name.into()).unwrap().clone();
        service.spec.mode.replicated = Some(Replicated { replicas: Some(replicas) });
        self.command(vec![Action::update(service)]);
    }

    pub fn availability(&mut self, node: &NodeId, availability: Availability) {
        let mut node: Node = self.store.node(node).unwrap().clone();
        node.spec.availability = availability;
        self.command(vec![Action::update(node)]);
    }

    /// Packets to and from the node are lost from now on.
    pub fn cut(&mut self, node: &NodeId) {
        self.agents.get_mut(node).unwrap().linked = false;
        self.calm_since = self.now;
    }

    /// Packets go through again; the old session is known to be dead.
    pub fn mend(&mut self, node: &NodeId) {
        let agent = self.agents.get_mut(node).unwrap();
        agent.linked = true;
        self.calm_since = self.now;
        if let Some(session) = agent.session.take() {
            self.transit(Due::Closed(session));
        }
    }

    /// Another manager takes over: it has heard of nobody.
    pub fn change_leader(&mut self) {
        let seed = self.rng.random();
        self.calm_since = self.now;
        self.core = Dispatcher::new(self.settings.clone(), self.store.clone(), self.now);
        self.planner = Planner::new(self.settings.clone(), seed);
        self.queue.retain(|_, due| !matches!(due, Due::ToManager(..) | Due::ToNode(..) | Due::Opened(..) | Due::Closed(_)));
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
        self.tasks(service).into_iter().filter(|t| t.is_backend()).collect()
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

    /// A container is stopped only when no node that is well sends to it any more. The wait for others is bounded, and a
    /// new leader does not know who was told what: only calm times count.
    fn check_ordered_stop(&self, task: &TaskId) {
        if self.now.since(self.calm_since) < Duration::from_secs(3) {
            return;
        }
        for agent in self.agents.values().filter(|a| a.linked && !a.removed && a.session.is_some()) {
            if self.state_of_agent(agent) != Some(NodeState::Ready) {
                continue;
            }
            let sends = agent.cluster.iter().flat_map(|c| &c.ports).flat_map(|p| &p.backends).any(|b| b.task_id == *task);
            assert!(!sends, "{task} is stopped while {} still sends to it\n{}", agent.id, self.picture());
        }
    }

    /// What the store and every node know of who listens is what containers do.
    pub fn check_listens(&self) {
        for container in self.agents.values().flat_map(|a| a.containers.values()).filter(|c| c.runs()) {
            let stored = self.store.task(&container.task.id).map(|t| t.listens.clone());
            assert_eq!(stored.as_ref(), Some(&container.listens), "{}\n{}", container.task.id, self.picture());
            for agent in self.agents.values().filter(|a| a.session.is_some()) {
                let ports = agent.cluster.iter().flat_map(|c| &c.ports).filter(|p| p.target == 80);
                for backend in ports.flat_map(|p| &p.backends).filter(|b| b.task_id == container.task.id) {
                    let listens = container.listens.first().map(|p| p.listens).unwrap_or_default();
                    assert_eq!(backend.listens, listens, "as {} knows {}", agent.id, container.task.id);
                }
            }
        }
    }

    fn state_of_agent(&self, agent: &Agent) -> Option<NodeState> {
        self.store.node(&agent.id).map(|n| n.status.state)
    }

    /// No address is in use twice, whatever the store says.
    fn check_containers(&self) {
        let mut owners = BTreeMap::new();
        for agent in self.agents.values().filter(|a| !a.removed && self.store.node(&a.id).is_some()) {
            for container in agent.containers.values().filter(|c| c.runs()) {
                for a in &container.task.attachments {
                    let other = owners.insert((a.address, &a.network_id), &container.task.id);
                    assert!(
                        other.is_none(),
                        "{} and {other:?} both run with {}\n{}",
                        container.task.id,
                        a.address,
                        self.picture()
                    );
                }
            }
        }
    }

    /// Everything, for people.
    pub fn picture(&self) -> String {
        use std::fmt::Write as _;
        let mut out = format!("at {}\n", self.now.to_rfc3339());
        for n in self.store.nodes() {
            writeln!(out, "node {} {:?} {:?}", n.id, n.status.state, n.spec.availability).unwrap();
        }
        for s in self.store.services() {
            writeln!(out, "service {} wants {}", s.spec.name, s.spec.mode.replicas()).unwrap();
        }
        let mut tasks: Vec<&Task> = self.store.tasks().collect();
        tasks.sort_by_key(|t| (t.service_name.clone(), t.slot, t.meta.created_at));
        for t in tasks {
            let addresses: Vec<String> = t.attachments.iter().map(|a| a.address.to_string()).collect();
            writeln!(
                out,
                "  {} {} {:?} desired {:?} state {:?} {} {:?} {}",
                t.display_name(),
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

    /// Containers of each node that run, by service.
    pub fn really_running(&self, service: &str) -> usize {
        let of = |a: &Agent| {
            a.containers.values().filter(|c| c.status.state == TaskState::Running && c.task.service_name == service).count()
        };
        self.agents.values().filter(|a| !a.removed).map(of).sum()
    }
}

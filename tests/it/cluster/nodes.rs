//! The nodes: their sessions with the managers, and what must hold for their containers.

use super::manager::SimulatedManager;
use super::mutants::Mutant;
use super::world::{Due, End, Process, World};
use crate::manager::simulated_agent::SimulatedAgent;
use rand::Rng;
use skep::manager::SessionId;
use skep::model::{NodeId, NodeState, Timestamp};
use skep::protocol::{ToManager, ToNode};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long a node waits for a manager to say something.
const SILENCE: Duration = Duration::from_millis(1500);

/// How long a node has had its session when it is no more behind than others.
const SETTLED: Duration = Duration::from_secs(3);

pub struct SimulatedNode {
    pub agent: SimulatedAgent,
    /// The manager of its session.
    pub manager: Option<Process>,
    last_message: Timestamp,
    /// When the session was opened.
    opened: Timestamp,
    /// Which manager is dialled next.
    next: usize,
    /// What has come and is not processed.
    inbox: VecDeque<(SessionId, ToNode)>,
    /// Its loops still apply a view.
    is_busy: bool,
}

impl SimulatedNode {
    pub fn new(id: NodeId) -> Self {
        Self {
            agent: SimulatedAgent::new(id),
            manager: None,
            last_message: Timestamp::default(),
            opened: Timestamp::default(),
            next: 0,
            inbox: VecDeque::new(),
            is_busy: false,
        }
    }
}

impl World {
    fn node(&mut self, id: &NodeId) -> &mut SimulatedNode {
        self.nodes.get_mut(id).expect("a node")
    }

    pub fn heartbeat(&mut self, id: &NodeId) {
        self.later(500, Due::Heartbeat(id.clone()));
        let node = self.node(id);
        if let (Some(process), Some(session)) = (node.manager, node.agent.session) {
            let applied = node.agent.revision;
            self.send_to_manager(id, process, session, ToManager::Heartbeat { applied });
        }
    }

    fn send_to_manager(&mut self, id: &NodeId, process: Process, session: SessionId, message: ToManager) {
        let due = Due::ToManager(process, session, Box::new(message));
        if !self.send(&End::Node(id.clone()), &End::Manager(process.0), true, due) {
            self.broken.insert(session);
        }
    }

    pub fn node_step(&mut self, id: &NodeId) {
        let pause = self.rng.random_range(20..120);
        self.later(pause, Due::NodeStep(id.clone()));
        let now = self.now;
        let node = self.node(id);
        if node.agent.session.is_some() && now.since(node.last_message) > SILENCE {
            self.leave_session(id);
        }
        if self.node(id).agent.session.is_none() {
            self.dial(id);
        }
        let mut rng = self.rng.clone();
        self.rng.random::<u64>();
        let node = self.node(id);
        node.agent.step(now, &mut rng);
        if let (Some(process), Some(session)) = (node.manager, node.agent.session) {
            for report in node.agent.reports() {
                self.send_to_manager(id, process, session, report);
            }
        }
        self.check_containers();
    }

    fn leave_session(&mut self, id: &NodeId) {
        let node = self.node(id);
        let (session, process) = (node.agent.session.take(), node.manager.take());
        if let (Some(session), Some(process)) = (session, process) {
            self.send(&End::Node(id.clone()), &End::Manager(process.0), true, Due::Closed(process, session));
            self.broken.insert(session);
        }
    }

    /// Tries the managers in turn.
    fn dial(&mut self, id: &NodeId) {
        let (session, now) = (SessionId(self.next_number()), self.now);
        let running: Vec<Process> =
            self.managers.values().filter(|m| m.running.is_some()).map(SimulatedManager::process).collect();
        let node = self.node(id);
        node.next += 1;
        let Some(process) = running.get(node.next % running.len().max(1)).copied() else { return };
        (node.agent.session, node.manager) = (Some(session), Some(process));
        (node.last_message, node.opened) = (now, now);
        let hello = Box::new(node.agent.hello());
        let due = Due::Opened(process, id.clone(), session, hello);
        if !self.send(&End::Node(id.clone()), &End::Manager(process.0), true, due) {
            self.broken.insert(session);
        }
    }

    pub fn node_receives(&mut self, id: &NodeId, session: SessionId, message: ToNode) {
        let (now, is_broken) = (self.now, self.broken.contains(&session));
        let node = self.node(id);
        if node.agent.session != Some(session) || is_broken {
            return;
        }
        node.last_message = now;
        node.inbox.push_back((session, message));
        if node.inbox.len() == 1 && !node.is_busy {
            self.node_applies(id);
        }
    }

    /// Processes what has come, until a view keeps the node busy.
    pub fn node_applies(&mut self, id: &NodeId) {
        self.node(id).is_busy = false;
        while let Some((session, message)) = self.node(id).inbox.pop_front() {
            let is_slow = self.faults.slow_nodes.contains(id) && matches!(message, ToNode::View { .. });
            self.node_processes(id, session, message);
            if is_slow {
                self.node(id).is_busy = true;
                let ms = self.rng.random_range(300..2500);
                return self.later(ms, Due::NodeApplies(id.clone()));
            }
        }
    }

    fn node_processes(&mut self, id: &NodeId, session: SessionId, message: ToNode) {
        let node = self.node(id);
        if node.agent.session != Some(session) {
            return;
        }
        if matches!(message, ToNode::NotLeader { .. }) {
            (node.agent.session, node.manager) = (None, None);
            return;
        }
        let process = node.manager;
        let before = node.agent.cluster.clone();
        if let (Some(answer), Some(process)) = (node.agent.receive(message), process) {
            self.send_to_manager(id, process, session, answer);
        }
        if self.mutant == Some(Mutant::ANodeAppliesNothing) && id.as_str() == "n4" && before.is_some() {
            self.node(id).agent.cluster = before;
        }
    }

    pub fn session_ended(&mut self, id: &NodeId, session: SessionId) {
        let node = self.node(id);
        if node.agent.session == Some(session) {
            (node.agent.session, node.manager) = (None, None);
        }
    }

    /// No two containers that run have one address, whatever any manager knows, and no node that the managers wait for sends what is
    /// for one task to another.
    fn check_containers(&self) {
        let mut owners = BTreeMap::new();
        for container in self.nodes.values().flat_map(|node| node.agent.containers.values()).filter(|c| c.runs()) {
            for attachment in &container.task.attachments {
                let other = owners.insert((&attachment.network_id, attachment.address), &container.task.id);
                let id = &container.task.id;
                assert!(
                    other.is_none(),
                    "seed {}: {id} and {other:?} both run with {}\n{}",
                    self.seed,
                    attachment.address,
                    self.dump()
                );
            }
        }
        let Some(store) = self.leader().and_then(|id| self.managers[&id].running.as_ref()).map(|running| &running.store) else {
            return;
        };
        let Some(ingress) = store.networks().find(|network| network.spec.ingress) else { return };
        let owners: BTreeMap<_, _> =
            owners.into_iter().filter(|((id, _), _)| **id == ingress.id).map(|((_, a), t)| (a.addr(), t)).collect();
        // One that was away may have an old view until it has got the next one.
        let is_awaited = |node: &&SimulatedNode| {
            node.agent.session.is_some()
                && self.now.since(node.opened) > SETTLED
                && store.node(&node.agent.id).is_some_and(|stored| stored.status.state == NodeState::Ready)
        };
        for node in self.nodes.values().filter(is_awaited) {
            for backend in node.agent.cluster.iter().flat_map(|cluster| &cluster.ports).flat_map(|port| &port.backends) {
                let owner = owners.get(&backend.address);
                let wrong = owner.filter(|owner| ***owner != backend.task_id);
                assert!(
                    wrong.is_none(),
                    "seed {}: {} sends to {} as {}, it is {wrong:?}\n{}",
                    self.seed,
                    node.agent.id,
                    backend.address,
                    backend.task_id,
                    self.dump()
                );
            }
        }
    }
}

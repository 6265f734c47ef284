//! Time, the network and what happens next.

use super::clients::Clients;
use super::faults::Faults;
use super::history::History;
use super::manager::{SimulatedManager, Waiter};
use super::mutants::Mutant;
use super::nodes::SimulatedNode;
use crate::manager::fixture;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep::manager::{JoiningNode, ManagerSettings, SessionId, bootstrap, node_allocation};
use skep::model::node::ManagerStatus;
use skep::model::{Cluster, NodeId, Role, Timestamp};
use skep::protocol::{ToManager, ToNode};
use skep::raft::Log;
use skep::store::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

/// Length of raft's tick, in milliseconds.
pub const TICK: u64 = 50;
/// Pause of the leader's planning loop, in milliseconds.
const STEP: u64 = 100;
const FIRST: u64 = 1;

/// A process of a manager: its raft id, and which start of it.
pub type Process = (u64, u64);

/// Something that happens at a time. What belongs to a process that has ended since is void.
pub enum Due {
    Tick(Process),
    LeaderStep(Process),
    /// A write to the disk has ended.
    Written(Process),
    SnapshotMade(Process, u64, Vec<u8>),
    WriteFails(Process),
    /// The process ends in a write, for so long in milliseconds.
    EndsInWrite(Process, u64),
    Raft {
        from: u64,
        to: u64,
        message: Vec<u8>,
    },
    Boot(u64),
    Opened(Process, NodeId, SessionId, Box<ToManager>),
    ToManager(Process, SessionId, Box<ToManager>),
    Closed(Process, SessionId),
    ToNode(NodeId, SessionId, Box<ToNode>),
    SessionEnded(NodeId, SessionId),
    /// A slow node has applied a view.
    NodeApplies(NodeId),
    NodeStep(NodeId),
    Heartbeat(NodeId),
    /// A client writes something.
    Client,
    /// A write that a manager forwards to the leader: its number, and who forwards it.
    Forwarded {
        to: Process,
        from: Process,
        operation: u64,
        transaction: Box<Transaction>,
    },
    ForwardAgain {
        from: Process,
        operation: u64,
        transaction: Box<Transaction>,
    },
    /// The leader's answer.
    Answered {
        to: Process,
        operation: u64,
        outcome: super::history::Outcome,
    },
    Fault,
}

/// The end of the network that a manager or a node is at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum End {
    Manager(u64),
    Node(NodeId),
}

pub struct World {
    pub seed: u64,
    pub rng: StdRng,
    pub now: Timestamp,
    pub settings: ManagerSettings,
    pub managers: BTreeMap<u64, SimulatedManager>,
    pub nodes: BTreeMap<NodeId, SimulatedNode>,
    pub clients: Clients,
    pub faults: Faults,
    pub history: History,
    pub mutant: Option<Mutant>,
    queue: BTreeMap<(Timestamp, u64), Due>,
    number: u64,
    /// Messages keep their order from one end to the other within a session.
    last: BTreeMap<(End, End), Timestamp>,
    /// Sessions of which a message was lost: nothing behind it arrives.
    pub broken: BTreeSet<SessionId>,
    /// Hash of all that happened, to compare two runs.
    pub trace: u64,
}

impl World {
    /// Managers `n1` … and workers behind them, of which `n1` leads.
    pub fn new(seed: u64, managers: usize, workers: usize) -> Self {
        let mut world = Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            now: fixture::START.plus(Duration::from_secs(1)),
            // Without the pause, which would hide faults of the order that it follows.
            settings: ManagerSettings { stop_pause: Duration::ZERO, ..ManagerSettings::default() },
            managers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            clients: Clients::default(),
            faults: Faults::default(),
            history: History::default(),
            mutant: None,
            queue: BTreeMap::new(),
            number: 0,
            last: BTreeMap::new(),
            broken: BTreeSet::new(),
            trace: 0,
        };
        world.start_manager(FIRST, Log::bootstrap(FIRST, Vec::new()));
        // So small that addresses are used again soon.
        let cluster = Cluster { subnet_size: 27, ..fixture::cluster() };
        let first = bootstrap(cluster, "ingress-id".into(), joining(1, managers)).unwrap();
        world.propose(FIRST, 0, Transaction::new(fixture::START, first), Waiter::Admin);
        for n in 2..=managers + workers {
            world.admit(&joining(n, managers));
        }
        for n in 1..=managers + workers {
            let node = fixture::node(n);
            world.nodes.insert(node.clone(), SimulatedNode::new(node.clone()));
            world.later(5 * n as u64, Due::NodeStep(node.clone()));
            world.later(7 * n as u64, Due::Heartbeat(node));
        }
        world.until("all managers vote", Duration::from_mins(1), |world| world.voters() == managers && world.is_quiet());
        world
    }

    /// Writes a node into the store, again if another write was first.
    fn admit(&mut self, joining: &JoiningNode) {
        while self.running(FIRST).store.node(&joining.id).is_none() {
            if let Ok((_, actions)) = node_allocation::admit(&self.running(FIRST).store, joining.clone()) {
                self.propose(FIRST, 0, Transaction::new(fixture::START, actions), Waiter::Admin);
            }
            self.run(Duration::from_millis(20));
        }
    }

    pub fn later(&mut self, ms: u64, due: Due) {
        self.number += 1;
        self.queue.insert((self.now.plus(Duration::from_millis(ms)), self.number), due);
    }

    pub fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// Delivers something after the time that the way takes; not if the way is cut or it is lost. Returns whether it will arrive.
    pub fn send(&mut self, from: &End, to: &End, in_order: bool, due: Due) -> bool {
        let lost = self.faults.loss > 0.0 && self.rng.random_bool(self.faults.loss);
        if lost || self.faults.is_cut(from, to) {
            return false;
        }
        let mut ms = self.rng.random_range(1..8);
        if self.faults.delay_ms > 0 && self.rng.random_bool(0.2) {
            ms += self.rng.random_range(0..self.faults.delay_ms);
        }
        let mut at = self.now.plus(Duration::from_millis(ms));
        if in_order {
            let last = self.last.entry((from.clone(), to.clone())).or_default();
            at = at.max(*last);
            *last = at;
        }
        self.number += 1;
        self.queue.insert((at, self.number), due);
        true
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), due) = entry.remove_entry();
            self.now = self.now.max(at);
            self.occur(due);
        }
        self.now = end;
    }

    pub fn until(&mut self, what: &str, most: Duration, condition: impl Fn(&Self) -> bool) {
        let start = self.now;
        while !condition(self) {
            assert!(self.now.since(start) < most, "seed {}: not in time: {what}\n{}", self.seed, self.dump());
            self.run(Duration::from_millis(50));
        }
    }

    /// Adds to the trace.
    pub fn note(&mut self, what: &impl Debug) {
        let text = format!("{what:?}");
        self.trace =
            text.bytes().fold(self.trace.rotate_left(5), |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    }

    fn occur(&mut self, due: Due) {
        match due {
            Due::Tick(process) => {
                if self.is_running(process) {
                    self.later(TICK, Due::Tick(process));
                    self.raft_event(process.0, skep::raft::Event::Tick);
                }
            }
            Due::LeaderStep(process) => {
                if self.is_running(process) {
                    self.later(STEP, Due::LeaderStep(process));
                    self.leader_step(process.0);
                }
            }
            Due::Written(process) => {
                if self.is_running(process) {
                    self.written(process.0);
                }
            }
            Due::SnapshotMade(process, index, bytes) => {
                if self.is_running(process) {
                    self.raft_event(process.0, skep::raft::Event::Snapshot { index, bytes });
                }
            }
            Due::Raft { from, to, message } => {
                // The members of a raft know each other's keys: one that was removed is not answered.
                if self.managers.get(&to).is_some_and(|manager| manager.running.is_some()) && self.managers.contains_key(&from) {
                    self.running(to).heard = self.now;
                    self.raft_event(to, skep::raft::Event::Message { from, bytes: message });
                }
            }
            Due::WriteFails(process) => self.write_fails(process),
            Due::EndsInWrite(process, ms) => self.ends_in_write(process, ms),
            Due::Boot(id) => self.boot(id),
            Due::Opened(process, node, session, hello) => self.session_opened(process, node, session, *hello),
            Due::ToManager(process, session, message) => self.session_message(process, session, *message),
            Due::Closed(process, session) => self.session_closed(process, session),
            Due::ToNode(node, session, message) => self.node_receives(&node, session, *message),
            Due::SessionEnded(node, session) => self.session_ended(&node, session),
            Due::NodeApplies(node) => self.node_applies(&node),
            Due::NodeStep(node) => self.node_step(&node),
            Due::Heartbeat(node) => self.heartbeat(&node),
            Due::Client => self.client_writes(),
            Due::Forwarded { to, from, operation, transaction } => self.forwarded(to, from, operation, *transaction),
            Due::ForwardAgain { from, operation, transaction } => self.forward(from, operation, *transaction),
            Due::Answered { to, operation, outcome } => self.answered(to, operation, outcome),
            Due::Fault => self.fault(),
        }
    }

    pub fn is_running(&self, (id, boot): Process) -> bool {
        self.managers.get(&id).is_some_and(|manager| manager.boot == boot && manager.running.is_some())
    }

    /// The leader that leads the newest term.
    pub fn leader(&self) -> Option<u64> {
        let leading = self.managers.values().filter_map(|m| m.status().filter(|s| s.is_leader));
        leading.max_by_key(|status| status.term).map(|status| status.id)
    }

    /// Voters as the leader has them.
    pub fn voters(&self) -> usize {
        self.leader().and_then(|id| self.managers[&id].status()).map_or(0, |status| status.voters.len())
    }

    /// All managers run, have the same state, and every node has a session with the leader.
    pub fn is_quiet(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let applied = self.managers[&leader].status().map(|status| status.last.0);
        let agree = self.managers.values().all(|m| m.status().is_some_and(|s| Some(s.applied) == applied));
        agree && self.nodes.values().all(|node| node.manager.is_some_and(|process| process.0 == leader))
    }

    pub fn dump(&self) -> String {
        use std::fmt::Write as _;
        let mut out = format!("at {}\n", self.now.to_rfc3339());
        for manager in self.managers.values() {
            writeln!(out, "manager {:?} {:?}", (manager.id, manager.boot), manager.status()).unwrap();
        }
        for node in self.nodes.values() {
            writeln!(out, "node {} manager {:?} session {:?}", node.agent.id, node.manager, node.agent.session).unwrap();
        }
        if let Some(store) = self.leader().and_then(|id| self.managers[&id].running.as_ref()).map(|running| &running.store) {
            for node in store.nodes() {
                let (state, raft) = (node.status.state, node.manager.as_ref().map(|m| m.raft_id));
                writeln!(out, "  {} {state:?} {:?} {:?} raft {raft:?}", node.id, node.spec.availability, node.spec.role).unwrap();
            }
            for task in store.tasks() {
                let (state, err) = (task.status.state, &task.status.err);
                writeln!(out, "  {} {:?} {:?} {state:?} {err}", task.display_name(), task.node_id, task.desired_state).unwrap();
            }
        }
        out
    }
}

/// The first nodes are managers, and the first of all makes the cluster.
fn joining(n: usize, managers: usize) -> JoiningNode {
    let addr = SocketAddr::from(([192, 168, 7, u8::try_from(n).unwrap()], 2377));
    JoiningNode {
        addr: Some(addr.ip()),
        role: if n <= managers { Role::Manager } else { Role::Worker },
        manager: (n == 1).then_some(ManagerStatus { raft_id: FIRST, addr }),
        ..fixture::joining_node(&format!("n{n}"))
    }
}

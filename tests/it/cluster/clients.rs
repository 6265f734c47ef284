//! Clients: each writes through some manager, which forwards to the leader it knows, and waits until its manager shows the write.

use super::history::Outcome;
use super::manager::Waiter;
use super::mutants::Mutant;
use super::world::{Due, End, Process, World};
use crate::manager::fixture::{self, service, updated};
use rand::Rng;
use rand::seq::IndexedRandom as _;
use skep::model::service::Replicated;
use skep::model::{Availability, Node, Role, Timestamp};
use skep::store::{Action, Kind, Store, Transaction};
use std::time::Duration;

const SERVICES: usize = 3;
/// Pause before the leader is asked again, in milliseconds.
const FORWARD_PAUSE: u64 = 150;
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Default)]
pub struct Clients {
    pub active: bool,
    /// Written, and not yet applied by the manager that was asked.
    unseen: Vec<(Process, u64, Outcome)>,
    services: u64,
}

impl World {
    pub fn start_clients(&mut self) {
        self.clients.active = true;
        self.later(0, Due::Client);
    }

    pub fn client_writes(&mut self) {
        if !self.clients.active {
            return;
        }
        let pause = self.rng.random_range(50..600);
        self.later(pause, Due::Client);
        let running: Vec<u64> = self.managers.values().filter(|m| m.running.is_some()).map(|m| m.id).collect();
        let Some(id) = running.choose(&mut self.rng).copied() else { return };
        let manager = &self.managers[&id];
        let at = manager.process();
        let now = self.now.plus(Duration::from_millis(manager.ahead_ms));
        let store = manager.running.as_ref().unwrap().store.clone();
        let Some(action) = self.draw_write(&store, now) else { return };
        let operation = self.next_number();
        self.check_read(id);
        self.history.begin(operation, self.now, at, store.index());
        self.submit(at, operation, Transaction::new(now, vec![action]));
    }

    fn submit(&mut self, at: Process, operation: u64, transaction: Transaction) {
        let leader = self.managers[&at.0].status().and_then(|status| status.leader);
        match leader {
            None => self.history.end(operation, self.now, at, Outcome::NotWritten),
            Some(id) if id == at.0 => {
                self.propose(id, operation, transaction, Waiter::Client { operation, from: at });
                if self.mutant == Some(Mutant::AnswersBeforeItIsCommitted) {
                    let index = self.managers[&id].status().map_or(0, |status| status.last.0);
                    self.history.end(operation, self.now, at, Outcome::Applied(index));
                }
            }
            Some(_) => self.forward(at, operation, transaction),
        }
    }

    /// Asks the leader, and again until there is an answer or a time-out: under one number, so that it is written once.
    pub fn forward(&mut self, from: Process, operation: u64, transaction: Transaction) {
        if !self.is_running(from) || !self.history.is_waited_for(operation, self.now, FORWARD_TIMEOUT) {
            return;
        }
        let leader = self.managers[&from.0].status().and_then(|status| status.leader).filter(|id| *id != from.0);
        if let Some(to) = leader.and_then(|id| self.managers.get(&id)).map(super::manager::SimulatedManager::process) {
            let due = Due::Forwarded { to, from, operation, transaction: Box::new(transaction.clone()) };
            self.send(&End::Manager(from.0), &End::Manager(to.0), false, due);
        }
        self.later(FORWARD_PAUSE, Due::ForwardAgain { from, operation, transaction: Box::new(transaction) });
    }

    pub fn forwarded(&mut self, to: Process, from: Process, operation: u64, transaction: Transaction) {
        if !self.is_running(to) {
            return;
        }
        let (leads, running) = (self.managers[&to.0].status().is_some_and(|status| status.is_leader), self.running(to.0));
        let (known, in_flight) = (running.outcomes.get(&operation).cloned(), running.is_in_flight(operation));
        let forgets = self.mutant == Some(Mutant::ForwardedTwiceIsWrittenTwice);
        if let Some(outcome) = known.filter(|_| !forgets) {
            self.answer(to.0, from, operation, outcome);
        } else if in_flight && !forgets {
            // Its outcome is the answer to both.
        } else if leads {
            self.propose(to.0, operation, transaction, Waiter::Client { operation, from });
        } else {
            self.answer(to.0, from, operation, Outcome::NotWritten);
        }
    }

    /// The leader's answer on its way to the manager that was asked.
    pub fn answer(&mut self, id: u64, from: Process, operation: u64, outcome: Outcome) {
        let mut outcome = outcome;
        if self.mutant == Some(Mutant::CallsWhatWasWrittenNotWritten) && operation.is_multiple_of(3) {
            outcome = Outcome::NotWritten;
        }
        if from.0 == id {
            return self.answered(from, operation, outcome);
        }
        // An earlier attempt may have been written: the manager that forwards asks again.
        if outcome == Outcome::NotWritten && self.mutant != Some(Mutant::CallsWhatWasWrittenNotWritten) {
            return;
        }
        self.send(&End::Manager(id), &End::Manager(from.0), false, Due::Answered { to: from, operation, outcome });
    }

    pub fn answered(&mut self, to: Process, operation: u64, outcome: Outcome) {
        if self.is_running(to) {
            self.clients.unseen.push((to, operation, outcome));
            self.applied_here(to.0);
        }
    }

    /// Ends the operations whose writes this manager shows.
    pub fn applied_here(&mut self, id: u64) {
        let index = self.running(id).store.index();
        let at_once = self.mutant == Some(Mutant::AnswersBeforeItIsShown);
        let is_shown = |(at, _, outcome): &(Process, u64, Outcome)| {
            at.0 == id && (at_once || outcome.index().is_none_or(|written| written <= index))
        };
        let (shown, rest) = std::mem::take(&mut self.clients.unseen).into_iter().partition(is_shown);
        self.clients.unseen = rest;
        let shown: Vec<(Process, u64, Outcome)> = shown;
        for (at, operation, outcome) in shown {
            self.history.end(operation, self.now, at, outcome);
        }
    }

    fn draw_write(&mut self, store: &Store, now: Timestamp) -> Option<Action> {
        let names: Vec<String> = store.services().map(|service| service.spec.name.clone()).collect();
        let nodes: Vec<Node> = store.nodes().cloned().collect();
        let rng = &mut self.rng;
        let name = names.choose(rng);
        match rng.random_range(0..10) {
            0..=2 if names.len() < SERVICES => {
                self.clients.services += 1;
                let port = 8000 + u16::try_from(self.clients.services).unwrap();
                let ports = [(port, 80)];
                Some(Action::create(service(&format!("web{}", self.clients.services), rng.random_range(1..4), &ports, &[])))
            }
            3..=5 => {
                let (name, replicas) = (name?, rng.random_range(0..4));
                Some(updated(store, name, now, |spec| spec.mode.replicated = Some(Replicated { replicas: Some(replicas) })))
            }
            6 => {
                let (name, value) = (name?, rng.random_range(0..1000));
                Some(updated(store, name, now, |spec| spec.task_template.container_spec.env = vec![format!("N={value}")]))
            }
            7 if names.len() > 2 => {
                // The id is the name.
                Some(Action::Remove(Kind::Service, name?.clone()))
            }
            8 => {
                let mut node = nodes.choose(rng)?.clone();
                node.spec.availability = if rng.random_bool(0.3) { Availability::Drain } else { Availability::Active };
                Some(Action::update(node))
            }
            9 if self.faults.changes_members => {
                let managers = nodes.iter().filter(|node| node.spec.role == Role::Manager).count();
                let mut node = nodes.choose(rng)?.clone();
                node.spec.role = match node.spec.role {
                    Role::Manager if managers > 3 => Role::Worker,
                    Role::Worker if managers < 5 => Role::Manager,
                    other => other,
                };
                Some(Action::update(node))
            }
            _ => None,
        }
    }

    /// The node that leads is to be a worker.
    pub fn demote_leader(&mut self) {
        let id = self.leader().expect("a leader");
        let store = self.running(id).store.clone();
        let leads = |node: &&Node| node.manager.as_ref().is_some_and(|manager| manager.raft_id == id);
        let mut node = store.nodes().find(leads).expect("the leader's node").clone();
        node.spec.role = Role::Worker;
        self.propose(id, 0, Transaction::new(fixture::START, vec![Action::update(node)]), Waiter::Admin);
    }

    /// All nodes take tasks again.
    pub fn open_all_nodes(&mut self) {
        let id = self.leader().expect("a leader");
        let store = self.running(id).store.clone();
        let open = |node: &Node| {
            let mut node = node.clone();
            node.spec.availability = Availability::Active;
            Action::update(node)
        };
        let transaction = Transaction::new(fixture::START, store.nodes().map(open).collect());
        self.propose(id, 0, transaction, Waiter::Admin);
    }
}

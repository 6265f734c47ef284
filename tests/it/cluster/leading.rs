//! The leader's part: liveness, dispatcher and planners, put together as their loops do, and the members of raft.

use super::history::Outcome;
use super::manager::{SimulatedManager, Waiter};
use super::mutants::Mutant;
use super::world::{Due, End, World};
use crate::manager::leader_cores::LeaderCores;
use rand::Rng;
use skep::manager::dispatcher::Effect;
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, SessionId, roles};
use skep::model::{NodeId, Revision, Timestamp};
use skep::protocol::{ToManager, ToNode};
use skep::raft::Log;
use skep::store::{Action, Object, StoreError, Transaction};
use std::collections::BTreeMap;
use std::time::Duration;

const PROPOSE_TIMEOUT: Duration = Duration::from_millis(300);

pub struct Leading {
    cores: LeaderCores,
    planner: RoundPlanner,
    /// Since when a plan is on its way into the log.
    writing: Option<Timestamp>,
    sessions: BTreeMap<SessionId, NodeId>,
}

impl World {
    /// The manager's own clock.
    fn clock(&self, id: u64) -> Timestamp {
        self.now.plus(Duration::from_millis(self.managers[&id].ahead_ms))
    }

    /// Starts or ends the leader's part as raft says.
    pub fn follow_leadership(&mut self, id: u64) {
        let Some(status) = self.managers.get(&id).and_then(SimulatedManager::status) else { return };
        let (leads, leads_on) = (status.is_leader, self.mutant == Some(Mutant::LeadsOn));
        let running = self.running(id);
        match (leads, running.leading.is_some()) {
            (true, false) => {
                let (store, now) = (running.store.clone(), self.clock(id));
                let mut settings = self.settings.clone();
                if self.mutant == Some(Mutant::JudgesAtOnceAfterTakeOver) {
                    (settings.takeover_grace, settings.disruption_hold) = (Duration::ZERO, Duration::ZERO);
                    settings.down_after = Duration::from_millis(1);
                }
                let cores = LeaderCores::in_place_of(status.lost_leader, settings.clone(), store, now);
                let planner = RoundPlanner::new(settings, self.rng.random());
                self.running(id).leading = Some(Leading { cores, planner, writing: None, sessions: BTreeMap::new() });
            }
            (false, true) if !leads_on => {
                let leading = running.leading.take().unwrap();
                for (session, node) in leading.sessions {
                    self.send_to_session(id, &node, session, ToNode::NotLeader { leader: None, manager: None });
                    self.end_session(id, &node, session);
                }
            }
            _ => {}
        }
    }

    pub fn store_changed(&mut self, id: u64) {
        let store = self.running(id).store.clone();
        self.leader_event(id, Event::StoreChanged(store));
    }

    fn leader_event(&mut self, id: u64, event: Event) {
        let now = self.clock(id);
        let Some(leading) = self.managers.get_mut(&id).and_then(|m| m.running.as_mut()).and_then(|r| r.leading.as_mut()) else {
            return;
        };
        let effects = leading.cores.hear(now, event);
        self.session_effects(id, effects);
    }

    /// A step of both loops.
    pub fn leader_step(&mut self, id: u64) {
        self.start_promoted(id);
        self.leader_event(id, Event::Tick);
        let (now, no_quarantine) = (self.clock(id), self.mutant == Some(Mutant::AddressesAreReusedAtOnce));
        let running = self.managers.get_mut(&id).and_then(|manager| manager.running.as_mut()).unwrap();
        let Some(leading) = &mut running.leading else { return };
        let effects = leading.cores.catch_up(now);
        let mut plan = Vec::new();
        let status = running.core.status();
        // It may be written later, when it is a stale one.
        leading.writing.take_if(|since| now.since(*since) > PROPOSE_TIMEOUT);
        if leading.writing.is_none() || self.mutant == Some(Mutant::StalePlansAreWritten) {
            let reports = leading.cores.plan(&running.store, now);
            let newest = Revision { incarnation: u64::MAX, index: u64::MAX };
            let lowest = if no_quarantine { LowestApplied::by_all(newest) } else { leading.cores.lowest_applied(now) };
            plan = leading.planner.round(&running.store, reports, lowest, now);
        }
        let base = running.store.index();
        let members: Vec<u64> = [status.voters.clone(), status.learners.clone()].concat();
        let change = roles::next_change(&running.store, &status);
        let leads_on = self.mutant == Some(Mutant::DemotedLeaderLeadsOn);
        let transfers = roles::transfers_leadership(&running.store, &status) && !leads_on;
        let mut promoted = roles::plan(&running.store, &members, &mut self.rng);
        if self.mutant == Some(Mutant::RaftIdsAreUsedAgain) {
            promoted.iter_mut().for_each(name_as_before);
        }
        self.session_effects(id, effects);
        if !plan.is_empty() {
            self.running(id).leading.as_mut().unwrap().writing = Some(now);
            let mut transaction = Transaction::new(now, plan).planned_from(base);
            if self.mutant == Some(Mutant::StalePlansAreWritten) {
                transaction.plan = None;
            }
            self.propose(id, 0, transaction, Waiter::Plan);
        }
        if !promoted.is_empty() {
            self.propose(id, 0, Transaction::new(now, promoted), Waiter::Admin);
        }
        if let Some(change) = change {
            self.change_membership(id, change);
        } else if transfers {
            self.raft_event(id, skep::raft::Event::TransferLeadership);
        }
    }

    pub fn plan_ended(&mut self, id: u64, outcome: &Outcome, refusal: Option<StoreError>) {
        let now = self.clock(id);
        let running = self.running(id);
        let Some(leading) = &mut running.leading else { return };
        leading.writing = None;
        match (outcome, refusal) {
            (Outcome::Applied(_), _) => leading.planner.written(),
            (_, Some(StoreError::StalePlan) | None) => {}
            (_, Some(error)) => leading.planner.refused(&running.store, &error.to_string(), now),
        }
    }

    /// Processes of managers: a node that has got a raft id starts raft, one that raft does not count any more ends it.
    fn start_promoted(&mut self, id: u64) {
        let running = self.running(id);
        let store = running.store.clone();
        if self.leader() != Some(id) || store.nodes().next().is_none() {
            return;
        }
        let named: Vec<u64> = store.nodes().filter_map(|node| Some(node.manager.as_ref()?.raft_id)).collect();
        let gone: Vec<u64> = self.managers.keys().copied().filter(|known| !named.contains(known) && *known != id).collect();
        for new in named {
            if !self.managers.contains_key(&new) && !self.faults.removed.contains(&new) {
                self.start_manager(new, Log::default());
            }
        }
        for gone in gone {
            self.faults.removed.insert(gone);
            self.crash(gone, false);
            self.managers.remove(&gone);
        }
    }

    pub fn session_opened(&mut self, process: (u64, u64), node: NodeId, session: SessionId, hello: ToManager) {
        if !self.is_running(process) || self.broken.contains(&session) {
            return;
        }
        let id = process.0;
        let Some(leading) = &mut self.running(id).leading else {
            self.send_to_session(id, &node, session, ToNode::NotLeader { leader: None, manager: None });
            return self.end_session(id, &node, session);
        };
        leading.sessions.insert(session, node.clone());
        self.leader_event(id, Event::Opened { node, session, hello });
    }

    pub fn session_message(&mut self, process: (u64, u64), session: SessionId, message: ToManager) {
        if self.is_running(process) && !self.broken.contains(&session) {
            self.leader_event(process.0, Event::Message { session, message });
        }
    }

    pub fn session_closed(&mut self, process: (u64, u64), session: SessionId) {
        if self.is_running(process) {
            self.leader_event(process.0, Event::Closed { session });
        }
    }

    fn session_effects(&mut self, id: u64, effects: Vec<Effect>) {
        for effect in effects {
            let (Effect::Send { session, .. } | Effect::Close { session }) = &effect;
            let leading = self.running(id).leading.as_ref().unwrap();
            let Some(node) = leading.sessions.get(session).cloned() else { continue };
            match effect {
                Effect::Send { session, message } => self.send_to_session(id, &node, session, message),
                Effect::Close { session } => self.end_session(id, &node, session),
            }
        }
    }

    fn send_to_session(&mut self, id: u64, node: &NodeId, session: SessionId, message: ToNode) {
        let due = Due::ToNode(node.clone(), session, Box::new(message));
        if !self.send(&End::Manager(id), &End::Node(node.clone()), true, due) {
            self.broken.insert(session);
        }
    }

    fn end_session(&mut self, id: u64, node: &NodeId, session: SessionId) {
        self.send(&End::Manager(id), &End::Node(node.clone()), true, Due::SessionEnded(node.clone(), session));
    }
}

/// A promoted node gets the raft id that it had before, by its number.
fn name_as_before(action: &mut Action) {
    if let Action::Update(Object::Node(node)) = action
        && let Some(manager) = &mut node.manager
        && manager.raft_id > 1
    {
        manager.raft_id = 1000 + node.id.as_str().trim_start_matches('n').parse::<u64>().unwrap();
    }
}

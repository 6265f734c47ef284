//! The core's state, and what each event does to it.

use super::event::{Event, Handled, Notice};
use super::verdict::{LivenessSnapshot, NodeLiveness, Verdict};
use crate::manager::session::{Effect, SessionId};
use crate::manager::settings::ManagerSettings;
use crate::model::{Node, NodeId, NodeState, Revision, Timestamp};
use crate::protocol::{FORMATS, ToManager, ToNode, agree, formats_of_peer, removal_reason};
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Swarm's text.
const LEADER_CHANGED: &str = "Node moved to \"unknown\" state due to leadership change in cluster";

/// The core.
pub struct Liveness {
    settings: ManagerSettings,
    store: Arc<Store>,
    /// When this leader took over.
    since: Timestamp,
    /// The manager that led before, if it did not hand over: raft lost it, and its node is expected like one that fell silent then.
    lost_leader: Option<u64>,
    last_tick: Timestamp,
    nodes: BTreeMap<NodeId, ObservedNode>,
    sessions: BTreeMap<SessionId, NodeId>,
    /// Nodes that fell silent together with most others: until when they are held, and why.
    held: BTreeMap<NodeId, (Timestamp, String)>,
    /// Nodes that this leader found to be down, and that have opened no session since.
    down: BTreeSet<NodeId>,
    /// The snapshot may differ from the one that was made last.
    changed: bool,
}

/// Longest silence of a node whose daemon has announced a restart.
const RESTART_GRACE: Duration = Duration::from_secs(30);

/// A node that has, or had, a session with this leader.
struct ObservedNode {
    session: Option<SessionId>,
    last_heard: Timestamp,
    applied: Revision,
    has_left: bool,
    /// It restarts, and is not expected before this time.
    back_by: Option<Timestamp>,
}

impl Liveness {
    /// For a manager that has just become the leader: no node has a session yet.
    pub fn new(settings: ManagerSettings, store: Arc<Store>, lost_leader: Option<u64>, now: Timestamp) -> Self {
        let (nodes, sessions, held, down) = Default::default();
        Self { settings, store, since: now, lost_leader, last_tick: now, nodes, sessions, held, down, changed: true }
    }

    /// Processes an event.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Handled {
        let mut out = Handled::default();
        self.changed |= !matches!(event, Event::Message { .. });
        match event {
            Event::Opened { node, session, hello } => self.open(now, node, session, hello, &mut out),
            Event::Message { session, message } => self.message(now, session, message, &mut out),
            Event::Closed { session } => self.closed(session, &mut out),
            Event::StoreChanged(store) => self.store_changed(store, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        out
    }

    /// The newest state of the store that this core was given.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Whether [`Self::snapshot`] may differ from what it was at the last call of this.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What is known of every node.
    pub fn snapshot(&self, now: Timestamp) -> LivenessSnapshot {
        LivenessSnapshot { nodes: self.store.nodes().map(|node| (node.id.clone(), self.liveness(node, now))).collect() }
    }

    fn open(&mut self, now: Timestamp, node: NodeId, session: SessionId, hello: ToManager, out: &mut Handled) {
        let ToManager::Hello { format, formats, .. } = hello else {
            let why = "the first message of a session is Hello".to_owned();
            return out.effects.extend(Effect::refuse(session, ToNode::Refused(why)));
        };
        let format = match agree(FORMATS, formats_of_peer(format, formats)) {
            Ok(format) => format,
            Err(error) => return out.effects.extend(Effect::refuse(session, ToNode::Refused(error.to_string()))),
        };
        if self.store.node(&node).is_none() {
            return out.effects.extend(Effect::refuse(session, removed(&node)));
        }
        if let Some(old) = self.nodes.get(&node).and_then(|n| n.session) {
            self.sessions.remove(&old);
            out.close(node.clone(), old);
        }
        self.sessions.insert(session, node.clone());
        let observed = ObservedNode {
            session: Some(session),
            last_heard: now,
            applied: Revision::default(),
            has_left: false,
            back_by: None,
        };
        self.nodes.insert(node.clone(), observed);
        self.down.remove(&node);
        if self.held.remove(&node).is_some() {
            tracing::info!(%node, "the node is back");
        }
        let heartbeat_ms = u64::try_from(self.settings.heartbeat.as_millis()).unwrap_or(u64::MAX);
        out.send(session, ToNode::Welcome { format, heartbeat_ms });
        out.notices.push(Notice::Opened { node, session, hello });
    }

    fn message(&mut self, now: Timestamp, session: SessionId, message: ToManager, out: &mut Handled) {
        let Some(id) = self.sessions.get(&session).cloned() else {
            return out.effects.push(Effect::Close { session });
        };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.last_heard = now;
        match message {
            ToManager::Heartbeat { applied } => {
                self.changed |= node.applied != applied;
                node.applied = applied;
                out.send(session, ToNode::Alive);
            }
            ToManager::Restarting { for_ms } => {
                let time = Duration::from_millis(for_ms).min(RESTART_GRACE);
                tracing::info!(node = %id, ?time, "the node's daemon restarts");
                node.back_by = Some(now.plus(time));
            }
            ToManager::Leave => {
                self.changed = true;
                node.has_left = true;
                node.session = None;
                self.sessions.remove(&session);
                out.close(id, session);
            }
            message => out.notices.push(Notice::Report { node: id, message }),
        }
    }

    fn closed(&mut self, session: SessionId, out: &mut Handled) {
        let Some(id) = self.sessions.remove(&session) else { return };
        if let Some(node) = self.nodes.get_mut(&id).filter(|n| n.session == Some(session)) {
            node.session = None;
            out.notices.push(Notice::Closed { node: id, session });
        }
    }

    fn store_changed(&mut self, store: Arc<Store>, out: &mut Handled) {
        self.store = store;
        let gone: Vec<NodeId> = self.nodes.keys().filter(|id| self.store.node(id).is_none()).cloned().collect();
        for node in gone {
            if let Some(session) = self.nodes.remove(&node).and_then(|n| n.session) {
                self.sessions.remove(&session);
                out.send(session, removed(&node));
                out.close(node, session);
            }
        }
        self.held.retain(|id, _| self.store.node(id).is_some());
        self.down.retain(|id| self.store.node(id).is_some());
    }

    fn tick(&mut self, now: Timestamp, out: &mut Handled) {
        self.adjust_clock(now);
        self.judge(now);
        let down_after = self.down_after();
        for (id, node) in &mut self.nodes {
            if now.since(node.last_heard) > down_after
                && let Some(session) = node.session.take()
            {
                self.sessions.remove(&session);
                out.close(id.clone(), session);
            }
        }
    }

    /// Finds the nodes that are down, and those that are held because most are silent.
    fn judge(&mut self, now: Timestamp) {
        let deadlines: Vec<(NodeId, Timestamp)> =
            self.store.nodes().filter_map(|node| Some((node.id.clone(), self.deadline(node)?))).collect();
        // A node that is still joining says nothing about the manager's network.
        let late = |node: &&Node| self.is_joining(node) && now.since(node.meta.created_at) > self.settings.join_grace;
        let joining = self.store.nodes().filter(late).filter(|node| !self.down.contains(&node.id));
        let mut lost: Vec<NodeId> = joining.map(|node| node.id.clone()).collect();
        // Nodes are not heard at the same time: those that are about to become silent count with the first.
        let slack = self.down_after().saturating_sub(self.suspect_after());
        let members = deadlines.len();
        let suspects = deadlines.iter().filter(|(_, deadline)| now.plus(slack) > *deadline).count();
        let disrupted = suspects >= 2 && suspects * 2 > members;
        let first = self.held.is_empty();
        for (id, _) in deadlines.iter().filter(|(_, deadline)| now > *deadline) {
            match self.held.get(id) {
                Some((until, _)) if now < *until => {}
                None if disrupted => {
                    let hold = self.settings.disruption_hold;
                    let why = format!(
                        "{suspects} of {members} nodes are silent at once: the fault may be the manager's network, so their tasks \
                         are not moved for {} s",
                        hold.as_secs_f64()
                    );
                    self.held.insert(id.clone(), (now.plus(hold), why));
                }
                _ => lost.push(id.clone()),
            }
        }
        if first && let Some((_, (_, why))) = self.held.first_key_value() {
            let nodes: Vec<&str> = self.held.keys().map(NodeId::as_str).collect();
            tracing::warn!(?nodes, why, "partial disruption");
        }
        for id in lost {
            tracing::info!(node = %id, "the node is down");
            self.held.remove(&id);
            self.down.insert(id);
        }
    }

    /// A node is down after this long without a heartbeat.
    fn down_after(&self) -> Duration {
        let patience = self.store.cluster().map_or(1.0, |cluster| cluster.spec.patience());
        self.settings.down_after.mul_f64(patience)
    }

    /// A node is suspected to be silent after this long: two heartbeats are missing, or half of the node-down timeout.
    fn suspect_after(&self) -> Duration {
        (self.down_after() / 2).max(self.settings.heartbeat * 3 / 2).min(self.down_after())
    }

    /// The last moment at which a node is not silent. `None`: it is not judged with the others, because it has
    /// left, is down already, or is still joining.
    fn deadline(&self, node: &Node) -> Option<Timestamp> {
        if self.down.contains(&node.id) {
            return None;
        }
        match self.nodes.get(&node.id) {
            Some(observed) if observed.has_left => None,
            Some(observed) => {
                let silent = observed.last_heard.plus(self.down_after());
                Some(observed.back_by.map_or(silent, |back| back.max(silent)))
            }
            None if self.is_joining(node) || !node.status.state.may_be_up() => None,
            None if self.is_lost_leader(node) => Some(self.since.plus(self.down_after())),
            None => Some(self.since.plus(self.settings.takeover_grace.max(self.down_after()))),
        }
    }

    /// Once most other nodes are here, this leader's network and its backlog are no reason any more for the absence of the one before.
    fn is_lost_leader(&self, node: &Node) -> bool {
        let lost = self.lost_leader.is_some() && node.manager.as_ref().map(|manager| manager.raft_id) == self.lost_leader;
        lost && self.sessions.len() * 2 > self.store.nodes().filter(|node| node.status.state.may_be_up()).count()
    }

    /// Admitted under this leader, and without a first session.
    fn is_joining(&self, node: &Node) -> bool {
        let has_session = self.nodes.contains_key(&node.id);
        !has_session && node.status.state == NodeState::Unknown && node.meta.created_at >= self.since
    }

    fn liveness(&self, node: &Node, now: Timestamp) -> NodeLiveness {
        let observed = self.nodes.get(&node.id);
        let verdict = match observed {
            Some(observed) if observed.has_left => Verdict::Left,
            Some(observed) if observed.session.is_some() => Verdict::Ready,
            _ if self.down.contains(&node.id) => Verdict::Down,
            _ if self.held.contains_key(&node.id) => Verdict::Unknown(self.held[&node.id].1.clone()),
            None if matches!(node.status.state, NodeState::Down | NodeState::Disconnected) => Verdict::Absent,
            // The node has one heartbeat interval to open a session with the new leader before its state changes.
            None if node.status.state == NodeState::Ready && now.since(self.since) > self.settings.heartbeat => {
                Verdict::Unknown(LEADER_CHANGED.to_owned())
            }
            _ => Verdict::Awaited,
        };
        let may_be_alive = match &verdict {
            Verdict::Ready => true,
            // A node that is still joining sends no traffic yet.
            Verdict::Awaited => observed.is_some() || !self.is_joining(node),
            Verdict::Unknown(_) => observed.is_none() && !self.held.contains_key(&node.id),
            Verdict::Down | Verdict::Left | Verdict::Absent => false,
        };
        NodeLiveness {
            verdict,
            session: observed.and_then(|o| o.session),
            applied: observed.map(|o| o.applied).unwrap_or_default(),
            may_be_alive,
        }
    }

    /// Corrects the times that nodes were last heard from, where the clock does not tell how long a node was silent.
    fn adjust_clock(&mut self, now: Timestamp) {
        // This process itself was stopped: no node could be heard in that time.
        let stall = now.since(self.last_tick);
        if stall > self.settings.heartbeat {
            self.since = self.since.plus(stall);
            for node in self.nodes.values_mut() {
                node.last_heard = node.last_heard.plus(stall).min(now);
                node.back_by = node.back_by.map(|back| back.plus(stall));
            }
        }
        // The clock was set back: times in the future would hide silence.
        if now < self.last_tick {
            self.since = self.since.min(now);
            for node in self.nodes.values_mut() {
                node.last_heard = node.last_heard.min(now);
                node.back_by = node.back_by.map(|back| back.min(now.plus(RESTART_GRACE)));
            }
            for (until, _) in self.held.values_mut() {
                *until = (*until).min(now.plus(self.settings.disruption_hold));
            }
        }
        self.last_tick = now;
    }
}

fn removed(node: &NodeId) -> ToNode {
    ToNode::Removed(removal_reason(node))
}

//! The dispatcher's state, and what each event does to it.

use super::drain_hold::DrainHolds;
use super::event::{Effect, Event, SessionId};
use super::registered_node::{RegisteredNode, SentView};
use super::view::{TaskListChange, ViewIndex};
use crate::manager::lowest_applied::LowestApplied;
use crate::manager::settings::ManagerSettings;
use crate::model::view::{ClusterPart, NetworkPart};
use crate::model::{ListeningPort, NetworkId, Node, NodeId, NodeState, Revision, TaskId, TaskStatus, Timestamp};
use crate::protocol::{FORMATS, ToManager, ToNode, agree, formats_of_peer};
use crate::store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Shortest time between two task lists that differ only in what the node itself reported: a burst of reports must not
/// send the whole list each time.
const ECHO_INTERVAL: Duration = Duration::from_secs(1);

/// The core.
pub struct Dispatcher {
    pub(super) settings: ManagerSettings,
    pub(super) store: Arc<Store>,
    /// When this leader took over.
    pub(super) since: Timestamp,
    last_tick: Timestamp,
    pub(super) nodes: BTreeMap<NodeId, RegisteredNode>,
    sessions: BTreeMap<SessionId, NodeId>,
    /// Reported by the node and not in the store yet.
    pub(super) statuses: BTreeMap<TaskId, (NodeId, TaskStatus)>,
    /// Reported by the node and not in the store yet.
    pub(super) listening: BTreeMap<TaskId, (NodeId, Vec<ListeningPort>)>,
    drain_holds: DrainHolds,
    cluster: Option<Arc<ClusterPart>>,
    networks: BTreeMap<NetworkId, NetworkPart>,
}

impl Dispatcher {
    /// For a manager that has just become the leader: no node has a session yet.
    pub fn new(settings: ManagerSettings, store: Arc<Store>, now: Timestamp) -> Self {
        let drain_holds = DrainHolds::of_new_leader(&store, now);
        Self {
            settings,
            store,
            since: now,
            last_tick: now,
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            statuses: BTreeMap::new(),
            listening: BTreeMap::new(),
            drain_holds,
            cluster: None,
            networks: BTreeMap::new(),
        }
    }

    /// Processes an event.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Opened { node, session, hello } => self.open(now, &node, session, hello, &mut out),
            Event::Message { session, message } => self.message(now, session, message, &mut out),
            Event::Closed { session } => self.close(session),
            Event::StoreChanged(store) => self.store_changed(now, store, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        out
    }

    /// Lowest revision that every live node has applied. A node counts until it was silent for the node-down timeout, or has
    /// applied nothing for [`ManagerSettings::node_lag`]; a node that has no session with this leader yet counts too.
    pub fn applied(&self, now: Timestamp) -> Revision {
        let revision_of = |node: &Node| {
            let Some(registered) = self.nodes.get(&node.id) else {
                // A node that is still joining sends no traffic yet.
                let may_be_alive = self.in_grace(node, now) && !self.is_joining(node) && node.status.state.may_be_up();
                return may_be_alive.then(Revision::default);
            };
            let is_alive = registered.session.is_some() || now.since(registered.last_heard) <= self.settings.down_after;
            let counts = is_alive && !registered.has_left && !registered.is_behind(now, self.settings.node_lag);
            counts.then(|| registered.effective_revision())
        };
        let live = self.store.nodes().filter_map(revision_of);
        live.min().unwrap_or_else(|| self.store.revision())
    }

    /// [`Self::applied`], and the lowest revision of all nodes that may still follow an older view.
    pub fn lowest_applied(&self, now: Timestamp) -> LowestApplied {
        let awaited = self.applied(now);
        let revision_of = |node: &Node| match self.nodes.get(&node.id) {
            Some(registered) => (!registered.has_left).then(|| registered.effective_revision()),
            None => (node.status.state != NodeState::Disconnected && !self.is_joining(node)).then(Revision::default),
        };
        let all = self.store.nodes().filter_map(revision_of).min().unwrap_or(awaited);
        LowestApplied { awaited, all: all.min(awaited) }
    }

    /// True while a node without a session is not yet considered down.
    pub(super) fn in_grace(&self, node: &Node, now: Timestamp) -> bool {
        if self.is_joining(node) {
            now.since(node.meta.created_at) <= self.settings.join_grace
        } else {
            now.since(self.since) <= self.settings.down_after
        }
    }

    /// Admitted under this leader, and without a first session.
    fn is_joining(&self, node: &Node) -> bool {
        node.status.state == NodeState::Unknown && node.meta.created_at >= self.since
    }

    fn open(&mut self, now: Timestamp, node: &NodeId, session: SessionId, hello: ToManager, out: &mut Vec<Effect>) {
        let ToManager::Hello { format, formats, description, endpoints, have: _ } = hello else {
            return refuse(session, ToNode::Refused("the first message of a session is Hello".to_owned()), out);
        };
        let format = match agree(FORMATS, formats_of_peer(format, formats)) {
            Ok(format) => format,
            Err(error) => return refuse(session, ToNode::Refused(error.to_string()), out),
        };
        if self.store.node(node).is_none() {
            return refuse(session, removed(node), out);
        }
        if let Some(old) = self.nodes.get(node).and_then(|n| n.session) {
            self.sessions.remove(&old);
            out.push(Effect::Close { session: old });
        }
        self.sessions.insert(session, node.clone());
        let mut registered = RegisteredNode::new(session, now, description, endpoints);
        if let Some(old) = self.nodes.remove(node) {
            // A node that is behind does not catch up by opening another session.
            registered.unapplied = old.unapplied;
            registered.troubles = old.troubles;
        }
        self.nodes.insert(node.clone(), registered);
        let heartbeat_ms = u64::try_from(self.settings.heartbeat.as_millis()).unwrap_or(u64::MAX);
        out.push(Effect::Send { session, message: ToNode::Welcome { format, heartbeat_ms } });
        self.sync(now, Some(node), out);
    }

    fn message(&mut self, now: Timestamp, session: SessionId, message: ToManager, out: &mut Vec<Effect>) {
        let Some(id) = self.sessions.get(&session).cloned() else {
            return out.push(Effect::Close { session });
        };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.last_heard = now;
        match message {
            ToManager::Hello { description, endpoints, .. } => {
                node.description = description;
                node.endpoints = endpoints;
            }
            ToManager::Heartbeat { applied } => {
                node.applied = applied;
                node.unapplied.applied(applied);
                out.push(Effect::Send { session, message: ToNode::Alive });
                self.release_drained(now, out);
            }
            ToManager::Status(statuses) => self.report_statuses(&id, statuses),
            ToManager::Listens(ports) => self.report_listening(&id, ports),
            ToManager::Troubles(troubles) => node.troubles = bounded(troubles),
            ToManager::Leave => {
                node.has_left = true;
                node.session = None;
                self.sessions.remove(&session);
                out.push(Effect::Close { session });
            }
        }
    }

    fn close(&mut self, session: SessionId) {
        let Some(node) = self.sessions.remove(&session) else { return };
        if let Some(node) = self.nodes.get_mut(&node).filter(|n| n.session == Some(session)) {
            node.session = None;
        }
    }

    fn store_changed(&mut self, now: Timestamp, store: Arc<Store>, out: &mut Vec<Effect>) {
        self.drain_holds.observe(&self.store, &store, now);
        self.store = store;
        self.prune_reports();
        let gone: Vec<NodeId> = self.nodes.keys().filter(|id| self.store.node(id).is_none()).cloned().collect();
        for node in gone {
            let session = self.nodes.remove(&node).and_then(|n| n.session);
            if let Some(session) = session {
                self.sessions.remove(&session);
                refuse(session, removed(&node), out);
            }
        }
        self.sync(now, None, out);
        self.release_drained(now, out);
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.adjust_clock(now);
        for node in self.nodes.values_mut().filter(|n| now.since(n.last_heard) > self.settings.down_after) {
            if let Some(session) = node.session.take() {
                self.sessions.remove(&session);
                out.push(Effect::Close { session });
            }
        }
        self.release_drained(now, out);
        let is_due = |n: &RegisteredNode| n.echo_due && n.session.is_some() && now.since(n.tasks_sent_at) >= ECHO_INTERVAL;
        let due: Vec<NodeId> = self.nodes.iter().filter(|(_, n)| is_due(n)).map(|(id, _)| id.clone()).collect();
        for node in due {
            self.sync(now, Some(&node), out);
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
                node.unapplied.adjust(|at| at.plus(stall).min(now));
            }
        }
        // The clock was set back: times in the future would hide silence.
        if now < self.last_tick {
            self.since = self.since.min(now);
            for node in self.nodes.values_mut() {
                node.last_heard = node.last_heard.min(now);
                node.tasks_sent_at = node.tasks_sent_at.min(now);
                node.unapplied.adjust(|at| at.min(now));
            }
        }
        self.last_tick = now;
    }

    /// Sends the desired state of tasks that no node sends new traffic to any more.
    fn release_drained(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if self.drain_holds.is_empty() {
            return;
        }
        let applied = self.applied(now);
        for node in self.drain_holds.release(&self.store, applied, now, self.settings.stop_hold) {
            self.sync(now, Some(&node), out);
        }
    }

    /// Sends the changed parts of the view to one node, or to all.
    fn sync(&mut self, now: Timestamp, only: Option<&NodeId>, out: &mut Vec<Effect>) {
        if self.sessions.is_empty() {
            return;
        }
        let Some(mut index) = ViewIndex::from_store(&self.store, self.cluster.as_ref()) else { return };
        index.share(&self.networks);
        self.cluster = Some(index.cluster());
        let revision = self.store.revision();
        for (id, node) in &mut self.nodes {
            let Some(session) = node.session.filter(|_| only.is_none_or(|o| o == id)) else { continue };
            node.synced = revision;
            let sent = node.sent.as_ref();
            let change = index.tasks(id, |task| self.drain_holds.contains(&task.id), sent.map(|s| &s.tasks));
            let tasks = match change {
                TaskListChange::Echo(_) if now.since(node.tasks_sent_at) < ECHO_INTERVAL => {
                    node.echo_due = true;
                    None
                }
                TaskListChange::Echo(tasks) | TaskListChange::Orders(tasks) => Some(tasks),
                TaskListChange::None => None,
            };
            if tasks.is_some() {
                node.tasks_sent_at = now;
                node.echo_due = false;
            }
            let networks = index.networks(id, sent.map(|s| &s.networks));
            let cluster = Some(index.cluster()).filter(|c| sent.is_none_or(|s| !Arc::ptr_eq(&s.cluster, c) && s.cluster != *c));
            if tasks.is_none() && networks.is_none() && cluster.is_none() {
                continue;
            }
            let message = ToNode::View { revision, tasks: tasks.clone(), networks: networks.clone(), cluster: cluster.clone() };
            out.push(Effect::Send { session, message });
            node.unapplied.sent(now, revision);
            let before = node.sent.take();
            node.sent = Some(SentView {
                revision,
                tasks: tasks.or_else(|| before.as_ref().map(|s| s.tasks.clone())).unwrap_or_default(),
                networks: networks.or_else(|| before.as_ref().map(|s| s.networks.clone())).unwrap_or_default(),
                cluster: cluster.unwrap_or_else(|| before.map_or_else(|| index.cluster(), |s| s.cluster)),
            });
        }
        self.networks = index.into_networks();
    }
}

fn refuse(session: SessionId, message: ToNode, out: &mut Vec<Effect>) {
    out.push(Effect::Send { session, message });
    out.push(Effect::Close { session });
}

/// A node's report, cut to what a node may make the store keep.
fn bounded(mut troubles: BTreeMap<String, String>) -> BTreeMap<String, String> {
    const MOST: usize = 8;
    const LONGEST: usize = 400;
    while troubles.len() > MOST {
        troubles.pop_last();
    }
    for text in troubles.values_mut() {
        let end = (0..=LONGEST.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
    }
    troubles
}

fn removed(node: &NodeId) -> ToNode {
    ToNode::Removed(format!(
        "node {node} is not a member of the cluster (any more): it was removed, or never joined; leave and join again"
    ))
}

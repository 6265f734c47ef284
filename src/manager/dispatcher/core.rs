//! The dispatcher's state, and what each event does to it.

use super::drain_hold::DrainHolds;
use super::event::{Event, NodeHello, NodeReports};
use super::payloads;
use super::registered_node::{RegisteredNode, SentView};
use super::task_list::{self, TaskListChange};
use super::view_index::{DirtyViews, ViewIndex};
use crate::manager::liveness::{LivenessSnapshot, NodeLiveness, Verdict};
use crate::manager::lowest_applied::LowestApplied;
use crate::manager::session::{Effect, SessionId};
use crate::manager::settings::ManagerSettings;
use crate::model::{Demand, ListeningPort, Node, NodeId, NodeState, PayloadId, Revision, Task, TaskId, TaskStatus, Timestamp};
use crate::protocol::ToNode;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
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
    pub(super) liveness: Arc<LivenessSnapshot>,
    pub(super) nodes: BTreeMap<NodeId, RegisteredNode>,
    sessions: BTreeMap<SessionId, NodeId>,
    /// Reported by the node and not in the store yet.
    pub(super) statuses: BTreeMap<TaskId, (NodeId, TaskStatus)>,
    /// Reported by the node and not in the store yet.
    pub(super) listening: BTreeMap<TaskId, (NodeId, Vec<ListeningPort>)>,
    /// Nodes that opened a session with a view of a later state than this leader's.
    pub(super) ahead: BTreeMap<NodeId, Revision>,
    drain_holds: DrainHolds,
    index: ViewIndex,
    dirty: DirtyViews,
    /// The certificates of HTTP routes that every node was sent.
    certificates: BTreeSet<PayloadId>,
}

impl Dispatcher {
    /// For a manager that has just become the leader: no node has a session yet.
    pub fn new(settings: ManagerSettings, store: Arc<Store>, now: Timestamp) -> Self {
        let drain_holds = DrainHolds::of_new_leader(&store, now);
        Self {
            settings,
            index: ViewIndex::new(&store),
            store,
            since: now,
            last_tick: now,
            liveness: Arc::default(),
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            statuses: BTreeMap::new(),
            listening: BTreeMap::new(),
            ahead: BTreeMap::new(),
            drain_holds,
            dirty: DirtyViews::default(),
            certificates: BTreeSet::new(),
        }
    }

    /// Processes an event. What nodes are to be sent because of it, [`Self::views`] returns.
    pub fn handle(&mut self, now: Timestamp, event: Event) {
        match event {
            Event::Opened { node, session, hello } => self.open(now, node, session, hello),
            Event::Reports { node, reports } => self.report(&node, reports),
            Event::Closed { session } => self.close(session),
            Event::StoreChanged(store) => self.store_changed(now, store),
            Event::Liveness(snapshot) => self.liveness_changed(now, snapshot),
            Event::Tick => self.tick(now),
        }
    }

    /// Lowest revision that every live node has applied. A node counts while it may be alive, unless it has applied nothing
    /// for [`ManagerSettings::node_lag`]; a node that has no session with this leader yet counts too.
    pub fn applied(&self, now: Timestamp) -> Revision {
        let revision_of = |node: &Node| {
            let liveness = self.liveness.nodes.get(&node.id);
            if let Some(registered) = self.nodes.get(&node.id) {
                let counts = liveness.is_none_or(|l| l.may_be_alive) && !registered.is_behind(now, self.settings.node_lag);
                return counts.then(|| self.revision_of(registered));
            }
            let may_be_alive = liveness.map_or(node.status.state.may_be_up(), |l| l.may_be_alive);
            may_be_alive.then(Revision::default)
        };
        let live = self.store.nodes().filter_map(revision_of);
        live.min().unwrap_or_else(|| self.store.revision())
    }

    /// Connections of the tasks that are counted, as their nodes reported them last in sessions that are open.
    pub fn loads(&self) -> BTreeMap<TaskId, u32> {
        let connected = self.nodes.values().filter(|node| node.session.is_some());
        connected.flat_map(|node| node.loads.iter().map(|(id, load)| (id.clone(), *load))).collect()
    }

    /// What all nodes see of the clients of services that are scaled by load. Complete if each that is not down has said so in a
    /// session that is open.
    pub fn demand(&self) -> Demand {
        let mut all = Demand { complete: true, ..Demand::default() };
        for node in self.store.nodes() {
            let said = self.nodes.get(&node.id).filter(|node| node.session.is_some()).and_then(|node| node.demand.as_ref());
            match said {
                Some(demand) => all.add(demand),
                None => all.complete &= matches!(node.status.state, NodeState::Down | NodeState::Disconnected),
            }
        }
        all
    }

    /// [`Self::applied`], and the lowest revision of all nodes that may still follow an older view.
    pub fn lowest_applied(&self, now: Timestamp) -> LowestApplied {
        let awaited = self.applied(now);
        let revision_of = |node: &Node| match self.nodes.get(&node.id) {
            Some(registered) => (!self.has_left(&node.id)).then(|| self.revision_of(registered)),
            // A node that is still joining sends no traffic yet.
            None => (node.status.state != NodeState::Disconnected && !self.is_joining(node)).then(Revision::default),
        };
        let all = self.store.nodes().filter_map(revision_of).min().unwrap_or(awaited);
        LowestApplied { awaited, all: all.min(awaited) }
    }

    /// What the node has applied of this cluster's history: nothing of it, while the node follows another incarnation.
    fn revision_of(&self, node: &RegisteredNode) -> Revision {
        let applied = node.effective_revision();
        if applied.incarnation == self.store.revision().incarnation { applied } else { Revision::default() }
    }

    fn has_left(&self, node: &NodeId) -> bool {
        self.liveness.nodes.get(node).is_some_and(|l| l.verdict == Verdict::Left)
    }

    /// Admitted under this leader, and without a first session.
    fn is_joining(&self, node: &Node) -> bool {
        node.status.state == NodeState::Unknown && node.meta.created_at >= self.since
    }

    fn open(&mut self, now: Timestamp, node: NodeId, session: SessionId, hello: NodeHello) {
        if self.store.node(&node).is_none() {
            return; // Removed since; the liveness core has ended the session.
        }
        let mut registered = RegisteredNode::new(session, now, hello);
        if let Some(old) = self.nodes.remove(&node) {
            old.session.map(|old| self.sessions.remove(&old));
            // A node that is behind does not catch up by opening another session.
            registered.unapplied = old.unapplied;
            registered.troubles = old.troubles;
        }
        if registered.hello.have > self.store.revision() {
            self.ahead.insert(node.clone(), registered.hello.have);
        }
        self.sessions.insert(session, node.clone());
        self.dirty.nodes.insert(node.clone());
        self.nodes.insert(node, registered);
    }

    fn report(&mut self, id: &NodeId, reports: NodeReports) {
        let NodeReports { statuses, listens, troubles, attachments, loads, demand, hello, behind } = reports;
        self.report_statuses(id, statuses);
        self.report_listening(id, listens);
        let Some(node) = self.nodes.get_mut(id) else { return };
        if let Some(troubles) = troubles {
            node.troubles = troubles;
        }
        if attachments.is_some() {
            node.attachments = attachments;
        }
        if let Some(loads) = loads {
            node.loads = loads;
        }
        if demand.is_some() {
            node.demand = demand;
        }
        if let Some(hello) = hello {
            node.hello = hello;
        }
        match behind {
            Some(have) if have > self.store.revision() => drop(self.ahead.insert(id.clone(), have)),
            // What it has is no base of what it is sent: it gets all of it.
            Some(_) => {
                node.sent = None;
                self.dirty.nodes.insert(id.clone());
            }
            None => {}
        }
    }

    fn close(&mut self, session: SessionId) {
        let Some(node) = self.sessions.remove(&session) else { return };
        if let Some(node) = self.nodes.get_mut(&node).filter(|n| n.session == Some(session)) {
            node.session = None;
        }
    }

    fn liveness_changed(&mut self, now: Timestamp, snapshot: Arc<LivenessSnapshot>) {
        for (id, NodeLiveness { session, applied, .. }) in &snapshot.nodes {
            let Some(node) = self.nodes.get_mut(id).filter(|node| node.session.is_some() && node.session == *session) else {
                continue;
            };
            if node.applied != *applied {
                node.applied = *applied;
                node.unapplied.applied(*applied);
            }
        }
        self.liveness = snapshot;
        self.release_drained(now);
    }

    fn store_changed(&mut self, now: Timestamp, store: Arc<Store>) {
        if Arc::ptr_eq(&self.store, &store) {
            return;
        }
        self.drain_holds.observe(&self.store, &store, now);
        self.index.update(&self.store, &store, &mut self.dirty);
        if self.store.revision().incarnation != store.revision().incarnation {
            // A view of a new incarnation has no base.
            for node in self.nodes.values_mut() {
                node.sent = None;
            }
        }
        self.store = store;
        self.prune_reports();
        let gone: Vec<NodeId> = self.nodes.keys().filter(|id| self.store.node(id).is_none()).cloned().collect();
        for node in gone {
            let session = self.nodes.remove(&node).and_then(|n| n.session);
            session.map(|session| self.sessions.remove(&session));
            self.ahead.remove(&node);
        }
        self.release_drained(now);
    }

    fn tick(&mut self, now: Timestamp) {
        self.adjust_clock(now);
        self.release_drained(now);
        let is_due = |n: &RegisteredNode| n.echo_due && n.session.is_some() && now.since(n.tasks_sent_at) >= ECHO_INTERVAL;
        self.dirty.nodes.extend(self.nodes.iter().filter(|(_, n)| is_due(n)).map(|(id, _)| id.clone()));
    }

    /// Corrects times, where the clock does not tell how long a node had to apply a view.
    fn adjust_clock(&mut self, now: Timestamp) {
        // This loop stood still: no node's progress could be seen in that time.
        let stall = now.since(self.last_tick);
        if stall > self.settings.heartbeat {
            self.since = self.since.plus(stall);
            for node in self.nodes.values_mut() {
                node.unapplied.adjust(|at| at.plus(stall).min(now));
            }
        }
        // The clock was set back.
        if now < self.last_tick {
            self.since = self.since.min(now);
            for node in self.nodes.values_mut() {
                node.tasks_sent_at = node.tasks_sent_at.min(now);
                node.unapplied.adjust(|at| at.min(now));
            }
        }
        self.last_tick = now;
    }

    /// Sends the desired state of tasks that no node sends new traffic to any more.
    fn release_drained(&mut self, now: Timestamp) {
        if self.drain_holds.is_empty() {
            return;
        }
        let applied = self.applied(now);
        let nodes = self.drain_holds.release(&self.store, applied, now, &self.settings);
        self.dirty.nodes.extend(nodes);
    }

    /// The changed parts of the views, for each node that has a session. One view per node for all events since the last
    /// call.
    pub fn views(&mut self, now: Timestamp) -> Vec<Effect> {
        let mut out = Vec::new();
        let dirty = std::mem::take(&mut self.dirty);
        let Some(cluster) = self.index.cluster() else { return out };
        let revision = self.store.revision();
        let certificates = payloads::certificates(&cluster);
        let other_certificates = self.certificates != certificates;
        for (id, node) in &mut self.nodes {
            let Some(session) = node.session else { continue };
            node.synced = revision;
            let is_first = node.sent.is_none();
            let is_dirty = is_first || dirty.nodes.contains(id);
            let tasks = if is_dirty {
                let tasks: Vec<&Arc<Task>> = self.store.shared_tasks_of_node(id).collect();
                let has = node.sent.as_ref().map(|s| &s.tasks);
                match task_list::compare(&tasks, |task| self.drain_holds.contains(&task.id), has) {
                    TaskListChange::Echo(_) if now.since(node.tasks_sent_at) < ECHO_INTERVAL => {
                        node.echo_due = true;
                        None
                    }
                    TaskListChange::Echo(tasks) | TaskListChange::Orders(tasks) => Some(tasks),
                    TaskListChange::None => None,
                }
            } else {
                None
            };
            let before = node.sent.as_ref().map(|sent| &*sent.tasks);
            let tasks = tasks.or_else(|| node.sent.as_ref().filter(|_| other_certificates).map(|sent| sent.tasks.clone()));
            let vault = self.settings.vault.as_deref();
            let tasks = tasks.map(|tasks| payloads::attach(tasks, &certificates, before, &self.store, vault));
            if tasks.is_some() {
                node.tasks_sent_at = now;
                node.echo_due = false;
            }
            if is_dirty {
                node.network_ids = self.index.network_ids(&self.store, id);
            }
            let may_differ = is_dirty || !node.network_ids.is_disjoint(&dirty.networks);
            let versions = may_differ.then(|| self.index.versions_of(&node.network_ids));
            let networks = versions
                .filter(|now| node.sent.as_ref().is_none_or(|s| s.networks.versions != *now))
                .map(|_| self.index.networks(&node.network_ids));
            let cluster_part = Some(&cluster).filter(|now| node.sent.as_ref().is_none_or(|s| !Arc::ptr_eq(&s.cluster, now)));
            if tasks.is_none() && networks.is_none() && cluster_part.is_none() {
                continue;
            }
            let part = networks.as_ref().map(|n| n.part.clone());
            let message = ToNode::View { revision, tasks: tasks.clone(), networks: part, cluster: cluster_part.cloned() };
            out.push(Effect::Send { session, message });
            node.unapplied.sent(now, revision);
            let before = node.sent.take();
            node.sent = Some(SentView {
                revision,
                tasks: tasks.or_else(|| before.as_ref().map(|s| s.tasks.clone())).unwrap_or_default(),
                networks: networks.or_else(|| before.as_ref().map(|s| s.networks.clone())).unwrap_or_default(),
                cluster: cluster.clone(),
            });
        }
        self.certificates = certificates;
        out
    }
}

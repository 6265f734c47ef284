//! Sessions with the nodes, as a sans-IO core: events in, messages out. It knows who is alive, sends every node its view
//! whenever a part of it changed, and plans what the store is to know of nodes and tasks. Knows no sockets and no raft;
//! heartbeats and applied revisions live only here, in the leader's memory.

mod hold;
mod reports;
mod view;

use view::Change;
pub use view::{Source, view_of};

use super::ManagerSettings;
use super::orchestrator::is_up;
use super::sessions::SessionId;
use crate::model::ListeningPort;
use crate::model::view::{ClusterPart, Networks, Tasks};
use crate::model::{Node, NodeId, NodeState, Revision, TaskId, TaskStatus, Timestamp, node::NodeDescription};
use crate::protocol::{FORMAT, ToManager, ToNode};
use crate::store::Store;
use hold::DrainHolds;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Nodes are shown their own reports no more often than this: a burst of reports must not send every task each time.
const ECHO_EVERY: Duration = Duration::from_secs(1);

/// What happens to the dispatcher.
#[derive(Debug)]
pub enum Event {
    /// A node opened a session; its first message.
    Opened {
        /// The node, proved by its certificate.
        node: NodeId,
        /// Number of the session, never used before.
        session: SessionId,
        /// What it said first.
        hello: ToManager,
    },
    /// A node said something.
    Message {
        /// Its session.
        session: SessionId,
        /// What it said.
        message: ToManager,
    },
    /// A session ended.
    Closed {
        /// The session.
        session: SessionId,
    },
    /// The store is now this.
    StoreChanged(Arc<Store>),
    /// Time has passed. Expected every fifth of a heartbeat.
    Tick,
}

/// What is to be done about it.
#[derive(Debug)]
pub enum Effect {
    /// Say this.
    Send {
        /// To whom.
        session: SessionId,
        /// What.
        message: ToNode,
    },
    /// End the session once everything is said.
    Close {
        /// Which.
        session: SessionId,
    },
}

/// What a node was last sent.
struct Sent {
    revision: Revision,
    tasks: Arc<Tasks>,
    networks: Arc<Networks>,
    cluster: Arc<ClusterPart>,
}

/// A node that this leader has heard of.
struct Presence {
    session: Option<SessionId>,
    last_heard: Timestamp,
    /// As the node says.
    applied: Revision,
    /// Last state of the store that its view was compared with.
    synced: Revision,
    sent: Option<Sent>,
    /// When its tasks were last sent, and whether it reported something since that they do not show.
    told: Timestamp,
    echo_due: bool,
    description: NodeDescription,
    endpoints: Vec<SocketAddr>,
    /// It said that it leaves.
    left: bool,
}

impl Presence {
    /// What it has applied: everything up to `synced` if it has applied all that it was sent.
    fn reached(&self) -> Revision {
        let caught_up = self.sent.as_ref().is_some_and(|sent| self.applied >= sent.revision);
        if caught_up { self.synced } else { self.applied }
    }
}

/// The core.
pub struct Dispatcher {
    settings: ManagerSettings,
    store: Arc<Store>,
    /// When this leader took over.
    since: Timestamp,
    last_tick: Timestamp,
    nodes: BTreeMap<NodeId, Presence>,
    sessions: BTreeMap<SessionId, NodeId>,
    /// Reported, not yet in the store.
    reports: BTreeMap<TaskId, (NodeId, TaskStatus)>,
    listens: BTreeMap<TaskId, (NodeId, Vec<ListeningPort>)>,
    holds: DrainHolds,
    cluster: Option<Arc<ClusterPart>>,
}

impl Dispatcher {
    /// A dispatcher of a manager that has just become leader: it has heard of nobody.
    pub fn new(settings: ManagerSettings, store: Arc<Store>, now: Timestamp) -> Self {
        Self {
            settings,
            store,
            since: now,
            last_tick: now,
            nodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            reports: BTreeMap::new(),
            listens: BTreeMap::new(),
            holds: DrainHolds::default(),
            cluster: None,
        }
    }

    /// Takes in an event.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Opened { node, session, hello } => self.open(now, &node, session, hello, &mut out),
            Event::Message { session, message } => self.message(now, session, message, &mut out),
            Event::Closed { session } => self.forget_session(session),
            Event::StoreChanged(store) => self.store_changed(now, store, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        out
    }

    /// Lowest revision that every live node has applied. A node counts until it has been silent for the down time-out;
    /// so does one that this leader has not heard of yet.
    pub fn applied(&self, now: Timestamp) -> Revision {
        let expected = |node: &Node| {
            let Some(p) = self.nodes.get(&node.id) else {
                // One that is only just joining sends nothing to anybody yet.
                let may_come = self.in_grace(node, now) && !self.is_joining(node) && is_up(node.status.state);
                return may_come.then(Revision::default);
            };
            let lives = p.session.is_some() || now.since(p.last_heard) <= self.settings.down_after;
            (lives && !p.left).then(|| p.reached())
        };
        let live = self.store.nodes().filter_map(expected);
        live.min().unwrap_or_else(|| self.store.revision())
    }

    /// What each live node has applied, for status displays.
    pub fn applied_by_node(&self) -> BTreeMap<NodeId, Revision> {
        self.nodes.iter().filter(|(_, p)| p.session.is_some()).map(|(id, p)| (id.clone(), p.reached())).collect()
    }

    /// True while a node that this leader has not heard of is not to be called down.
    fn in_grace(&self, node: &Node, now: Timestamp) -> bool {
        if self.is_joining(node) {
            now.since(node.meta.created_at) <= self.settings.join_grace
        } else {
            now.since(self.since) <= self.settings.down_after
        }
    }

    /// Admitted under this leader, never heard of.
    fn is_joining(&self, node: &Node) -> bool {
        node.status.state == NodeState::Unknown && node.meta.created_at >= self.since
    }

    fn open(&mut self, now: Timestamp, node: &NodeId, session: SessionId, hello: ToManager, out: &mut Vec<Effect>) {
        let ToManager::Hello { format, description, endpoints, have: _ } = hello else {
            return refuse(session, ToNode::Refused("the first message of a session is Hello".to_owned()), out);
        };
        if format != FORMAT {
            let text = format!(
                "node {node} speaks format {format} of the node protocol, this manager {FORMAT}: install the same version of skep on both"
            );
            return refuse(session, ToNode::Refused(text), out);
        }
        if self.store.node(node).is_none() {
            return refuse(session, removed(node), out);
        }
        if let Some(old) = self.nodes.get(node).and_then(|p| p.session) {
            self.sessions.remove(&old);
            out.push(Effect::Close { session: old });
        }
        self.sessions.insert(session, node.clone());
        let presence = Presence {
            session: Some(session),
            last_heard: now,
            applied: Revision::default(),
            synced: Revision::default(),
            sent: None,
            told: now,
            echo_due: false,
            description,
            endpoints,
            left: false,
        };
        self.nodes.insert(node.clone(), presence);
        let heartbeat_ms = u64::try_from(self.settings.heartbeat.as_millis()).unwrap_or(u64::MAX);
        out.push(Effect::Send { session, message: ToNode::Welcome { format: FORMAT, heartbeat_ms } });
        self.sync(now, Some(node), out);
    }

    fn message(&mut self, now: Timestamp, session: SessionId, message: ToManager, out: &mut Vec<Effect>) {
        let Some(node) = self.sessions.get(&session).cloned() else {
            return out.push(Effect::Close { session });
        };
        let Some(presence) = self.nodes.get_mut(&node) else { return };
        presence.last_heard = now;
        match message {
            ToManager::Hello { description, endpoints, .. } => {
                presence.description = description;
                presence.endpoints = endpoints;
            }
            ToManager::Heartbeat { applied } => {
                presence.applied = applied;
                out.push(Effect::Send { session, message: ToNode::Alive });
                self.release(now, out);
            }
            ToManager::Status(statuses) => self.report(&node, statuses),
            ToManager::Listens(seen) => self.report_listens(&node, seen),
            ToManager::Leave => {
                presence.left = true;
                presence.session = None;
                self.sessions.remove(&session);
                out.push(Effect::Close { session });
            }
        }
    }

    fn forget_session(&mut self, session: SessionId) {
        let Some(node) = self.sessions.remove(&session) else { return };
        if let Some(presence) = self.nodes.get_mut(&node).filter(|p| p.session == Some(session)) {
            presence.session = None;
        }
    }

    fn store_changed(&mut self, now: Timestamp, store: Arc<Store>, out: &mut Vec<Effect>) {
        self.holds.observe(&self.store, &store, now);
        self.store = store;
        self.prune_reports();
        let gone: Vec<NodeId> = self.nodes.keys().filter(|id| self.store.node(id).is_none()).cloned().collect();
        for node in gone {
            let session = self.nodes.remove(&node).and_then(|p| p.session);
            if let Some(session) = session {
                self.sessions.remove(&session);
                refuse(session, removed(&node), out);
            }
        }
        self.sync(now, None, out);
        self.release(now, out);
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        // If this process itself stood still, the silence was ours: nobody is blamed for it.
        let stall = now.since(self.last_tick);
        if stall > self.settings.heartbeat {
            self.since = self.since.plus(stall);
            self.nodes.values_mut().for_each(|p| p.last_heard = p.last_heard.plus(stall).min(now));
        }
        // A clock that was set back must not make the past the future.
        if now < self.last_tick {
            self.since = self.since.min(now);
            for presence in self.nodes.values_mut() {
                presence.last_heard = presence.last_heard.min(now);
                presence.told = presence.told.min(now);
            }
        }
        self.last_tick = now;
        let silent = |p: &&mut Presence| now.since(p.last_heard) > self.settings.down_after;
        for presence in self.nodes.values_mut().filter(silent) {
            if let Some(session) = presence.session.take() {
                self.sessions.remove(&session);
                out.push(Effect::Close { session });
            }
        }
        self.release(now, out);
        let due = |p: &Presence| p.echo_due && p.session.is_some() && now.since(p.told) >= ECHO_EVERY;
        let echoes: Vec<NodeId> = self.nodes.iter().filter(|(_, p)| due(p)).map(|(id, _)| id.clone()).collect();
        for node in echoes {
            self.sync(now, Some(&node), out);
        }
    }

    /// Lets tasks stop that nobody sends anything to any more.
    fn release(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if self.holds.is_empty() {
            return;
        }
        let applied = self.applied(now);
        for node in self.holds.release(&self.store, applied, now, self.settings.stop_hold) {
            self.sync(now, Some(&node), out);
        }
    }

    /// Sends what changed to one node or to all.
    fn sync(&mut self, now: Timestamp, only: Option<&NodeId>, out: &mut Vec<Effect>) {
        if self.sessions.is_empty() {
            return;
        }
        let Some(source) = Source::of(&self.store, self.cluster.as_ref()) else { return };
        self.cluster = Some(source.cluster());
        let revision = self.store.revision();
        for (id, presence) in &mut self.nodes {
            let Some(session) = presence.session.filter(|_| only.is_none_or(|o| o == id)) else { continue };
            presence.synced = revision;
            let sent = presence.sent.as_ref();
            let tasks = source.tasks(id, |task| self.holds.holds(&task.id), sent.map(|s| &s.tasks));
            let tasks = match tasks {
                Change::Echo(_) if now.since(presence.told) < ECHO_EVERY => {
                    presence.echo_due = true;
                    None
                }
                Change::Echo(tasks) | Change::New(tasks) => Some(tasks),
                Change::None => None,
            };
            if tasks.is_some() {
                presence.told = now;
                presence.echo_due = false;
            }
            let networks = source.networks(id, sent.map(|s| &s.networks));
            let cluster = Some(source.cluster()).filter(|c| sent.is_none_or(|s| !Arc::ptr_eq(&s.cluster, c) && s.cluster != *c));
            if tasks.is_none() && networks.is_none() && cluster.is_none() {
                continue;
            }
            let message = ToNode::View { revision, tasks: tasks.clone(), networks: networks.clone(), cluster: cluster.clone() };
            out.push(Effect::Send { session, message });
            let before = presence.sent.take();
            presence.sent = Some(Sent {
                revision,
                tasks: tasks.or_else(|| before.as_ref().map(|s| s.tasks.clone())).unwrap_or_default(),
                networks: networks.or_else(|| before.as_ref().map(|s| s.networks.clone())).unwrap_or_default(),
                cluster: cluster.unwrap_or_else(|| before.map_or_else(|| source.cluster(), |s| s.cluster)),
            });
        }
    }
}

fn refuse(session: SessionId, message: ToNode, out: &mut Vec<Effect>) {
    out.push(Effect::Send { session, message });
    out.push(Effect::Close { session });
}

fn removed(node: &NodeId) -> ToNode {
    ToNode::Removed(format!(
        "node {node} is not a member of the cluster (any more): it was removed, or never joined; leave and join again"
    ))
}

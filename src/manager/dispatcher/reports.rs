//! What the dispatcher writes to the store: node states, node descriptions, and what agents report of tasks. Planned from
//! the core and the store each time, so that a write that failed is planned again.

use super::core::Dispatcher;
use super::registered_node::RegisteredNode;
use crate::manager::bounds;
use crate::manager::limits::BATCH;
use crate::manager::liveness::Verdict;
use crate::model::{FormatRange, ListeningPort, Node, NodeId, NodeState, Revision, TaskId, TaskState, TaskStatus, Timestamp};
use crate::store::{Action, FieldUpdate, Store, is_new_listening, is_new_status};
use std::collections::{BTreeMap, BTreeSet};

/// Swarm's text.
const HEARTBEAT_FAILURE: &str = "heartbeat failure";
/// The node is connected, but can neither start nor stop tasks.
const ENGINE_LOST: &str = "the node's Docker Engine does not answer";

impl Dispatcher {
    /// Updates of nodes and tasks that the store does not have yet.
    pub fn plan(&self, store: &Store, now: Timestamp) -> Vec<Action> {
        let nodes = store.nodes().filter_map(|node| self.node_report(node, now));
        let reported: BTreeSet<&TaskId> = self.statuses.keys().chain(self.listening.keys()).collect();
        let tasks = reported.into_iter().filter_map(|id| {
            let task = store.task(id)?;
            let status = self.statuses.get(id).filter(|(node, status)| is_new_status(task, node, status));
            let listens = self.listening.get(id).filter(|(node, ports)| is_new_listening(task, node, ports));
            let node = status.map(|(node, _)| node).or(listens.map(|(node, _)| node))?;
            Some(FieldUpdate::TaskReport {
                id: id.clone(),
                node: node.clone(),
                status: status.map(|(_, status)| Box::new(status.clone())),
                listens: listens.map(|(_, ports)| ports.clone()),
            })
        });
        let cluster = self.new_incarnation(store, now);
        let updates = cluster.into_iter().chain(nodes).chain(tasks).map(Action::Set);
        updates.chain(self.attachments(store, now)).take(BATCH).collect()
    }

    /// What the leader observes of the node now, as far as it differs from the node object.
    fn node_report(&self, node: &Node, now: Timestamp) -> Option<FieldUpdate> {
        let liveness = self.liveness.nodes.get(&node.id)?;
        let (mut description, mut endpoints) = (None, None);
        let mut status = node.status.clone();
        let (state, message) = match &liveness.verdict {
            Verdict::Left => (NodeState::Disconnected, "the node left the swarm".to_owned()),
            Verdict::Ready => {
                // Until the session is known here too, its description is not.
                let registered = self.nodes.get(&node.id).filter(|r| r.session.is_some() && r.session == liveness.session)?;
                let hello = &registered.hello;
                status.levels_since = levels_since(node, hello.description.feature_levels, now);
                let said = bounds::at_level(&self.store, hello.description.clone());
                description = (said != node.description).then(|| Box::new(said));
                let news = !hello.endpoints.is_empty() && hello.endpoints != node.mesh.endpoints;
                endpoints = news.then(|| hello.endpoints.clone());
                let is_behind = registered.is_behind(now, self.settings.node_lag);
                status.behind_since = is_behind.then(|| node.status.behind_since.unwrap_or(now));
                if hello.description.engine_lost {
                    (NodeState::Down, ENGINE_LOST.to_owned())
                } else {
                    (NodeState::Ready, self.degradation(registered, now).unwrap_or_default())
                }
            }
            Verdict::Down => (NodeState::Down, HEARTBEAT_FAILURE.to_owned()),
            Verdict::Unknown(why) if node.status.state.may_be_up() => (NodeState::Unknown, why.clone()),
            Verdict::Unknown(_) | Verdict::Awaited | Verdict::Absent => return None,
        };
        status.down_since = match state {
            NodeState::Down if node.status.state == NodeState::Down => node.status.down_since,
            NodeState::Down => Some(now),
            _ => None,
        };
        // A node that is ready may become degraded, and recover; one that is unknown may be so for another reason.
        if state != node.status.state || matches!(state, NodeState::Ready | NodeState::Unknown) {
            status.state = state;
            status.message = message;
        }
        let status = (status != node.status).then(|| Box::new(status));
        let differs = status.is_some() || description.is_some() || endpoints.is_some();
        differs.then(|| FieldUpdate::NodeReport { id: node.id.clone(), status, description, endpoints })
    }

    /// A new incarnation, if a node has a view of a later state than this leader's: the managers were restored to an older
    /// state, and the node would refuse every view until their index has passed its own. By its own number, a new incarnation
    /// is later than any view.
    fn new_incarnation(&self, store: &Store, now: Timestamp) -> Option<FieldUpdate> {
        let cluster = store.cluster()?;
        // A new leader may have entries to apply that are committed already.
        if now.since(self.since) <= self.settings.down_after {
            return None;
        }
        // A node of a later incarnation is one of a cluster that was re-created elsewhere: which of the two stays is the user's decision.
        let is_later = |have: &Revision| have.incarnation == cluster.incarnation && *have > store.revision();
        let (node, have) = self.ahead.iter().find(|(_, have)| is_later(have))?;
        tracing::warn!(%node, have = have.index, index = store.index(), "the node follows a later state than the managers have: \
            they were restored to an older one. All nodes follow the managers again, as a new incarnation");
        let incarnation = cluster.incarnation + 1;
        Some(FieldUpdate::Incarnation { id: cluster.id.clone(), incarnation })
    }

    /// What is wrong with a node that is live; the text changes only when that does.
    fn degradation(&self, node: &RegisteredNode, now: Timestamp) -> Option<String> {
        let lag = self.settings.node_lag;
        let behind = node.is_behind(now, lag).then(|| {
            let seconds = lag.as_secs();
            format!("a change was not applied within {seconds} s: tasks are stopped and addresses assigned without this node")
        });
        let own = self.store.revision().incarnation;
        let other = Some(node.hello.have.incarnation).filter(|incarnation| *incarnation > own).map(|incarnation| {
            format!(
                "it follows the managers of incarnation {incarnation}, these are of incarnation {own}: to make it follow these, run \
                 `docker swarm init --force-new-cluster` on one of them"
            )
        });
        let troubles = node.troubles.iter().map(|(name, reason)| format!("{name}: {reason}"));
        let all: Vec<String> = behind.into_iter().chain(other).chain(troubles).collect();
        (!all.is_empty()).then(|| format!("degraded: {}", all.join("; ")))
    }

    /// Keeps the newest status of each task. States that an agent may not write are dropped.
    pub(super) fn report_statuses(&mut self, node: &NodeId, statuses: BTreeMap<TaskId, TaskStatus>) {
        for (id, status) in statuses {
            let is_agents_state = (TaskState::Accepted..=TaskState::Rejected).contains(&status.state);
            if !is_agents_state || !self.store.task(&id).is_some_and(|t| is_new_status(t, node, &status)) {
                continue;
            }
            match self.statuses.get(&id) {
                Some((_, kept)) if kept.state > status.state => {}
                _ => drop(self.statuses.insert(id, (node.clone(), status))),
            }
        }
    }

    /// Keeps the newest list of listening ports of each task.
    pub(super) fn report_listening(&mut self, node: &NodeId, reported: BTreeMap<TaskId, Vec<ListeningPort>>) {
        for (id, ports) in reported {
            match self.store.task(&id) {
                // That a server which is stopped closes its ports says nothing of its service.
                Some(task) if !task.is_wanted() => drop(self.listening.remove(&id)),
                Some(task) if is_new_listening(task, node, &ports) => drop(self.listening.insert(id, (node.clone(), ports))),
                // As in the store again: a report in between that is not written yet is obsolete.
                Some(task) if task.node_id.as_ref() == Some(node) => drop(self.listening.remove(&id)),
                _ => {}
            }
        }
    }

    /// Drops reports that are in the store, or obsolete.
    pub(super) fn prune_reports(&mut self) {
        let store = &self.store;
        self.listening.retain(|id, (node, ports)| store.task(id).is_some_and(|t| is_new_listening(t, node, ports)));
        self.statuses.retain(|id, (node, status)| store.task(id).is_some_and(|t| is_new_status(t, node, status)));
    }
}

/// Since when a node has the feature levels that it reports now: another build begins again, and so does a clock that was set
/// back.
fn levels_since(node: &Node, levels: Option<FormatRange>, now: Timestamp) -> Option<Timestamp> {
    let since = node.status.levels_since.filter(|since| node.description.feature_levels == levels && *since <= now);
    levels.map(|_| since.unwrap_or(now))
}

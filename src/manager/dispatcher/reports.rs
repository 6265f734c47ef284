//! What the dispatcher writes to the store: node states, node descriptions, and what agents report of tasks. Planned from
//! the core and the store each time, so that a write that failed is planned again.

use super::core::Dispatcher;
use super::registered_node::RegisteredNode;
use crate::manager::limits::BATCH;
use crate::manager::liveness::Verdict;
use crate::model::{
    Cluster, FormatRange, ListeningPort, Node, NodeId, NodeState, Task, TaskId, TaskState, TaskStatus, Timestamp,
};
use crate::store::{Action, Store};
use std::collections::{BTreeMap, BTreeSet};

/// Swarm's text.
const HEARTBEAT_FAILURE: &str = "heartbeat failure";
/// The node is connected, but can neither start nor stop tasks.
const ENGINE_LOST: &str = "the node's Docker Engine does not answer";

impl Dispatcher {
    /// Updates of nodes and tasks that the store does not have yet.
    pub fn plan(&self, store: &Store, now: Timestamp) -> Vec<Action> {
        let nodes = store.nodes().filter_map(|node| {
            let next = self.observed_node(node, now);
            (next != *node).then(|| Action::update(next))
        });
        let reported: BTreeSet<&TaskId> = self.statuses.keys().chain(self.listening.keys()).collect();
        let tasks = reported.into_iter().filter_map(|id| {
            let task = store.task(id)?;
            let status = self.statuses.get(id).filter(|(node, status)| is_new_status(task, node, status));
            let listens = self.listening.get(id).filter(|(node, ports)| is_new_listening(task, node, ports));
            if status.is_none() && listens.is_none() {
                return None;
            }
            // Both in one action: a transaction writes a task once.
            Some(Action::update(Task {
                status: status.map_or_else(|| task.status.clone(), |(_, status)| task.status_by_report(status)),
                listens: listens.map_or_else(|| task.listens.clone(), |(_, ports)| ports.clone()),
                ..task.clone()
            }))
        });
        let cluster = self.new_incarnation(store, now);
        cluster.into_iter().chain(nodes).chain(tasks).take(BATCH).collect()
    }

    /// The node object as the leader observes the node now.
    fn observed_node(&self, node: &Node, now: Timestamp) -> Node {
        let mut next = node.clone();
        let Some(liveness) = self.liveness.nodes.get(&node.id) else { return next };
        let (state, message) = match &liveness.verdict {
            Verdict::Left => (NodeState::Disconnected, "the node left the swarm".to_owned()),
            Verdict::Ready => {
                // Until the session is known here too, its description is not.
                let registered = self.nodes.get(&node.id).filter(|r| r.session.is_some() && r.session == liveness.session);
                let Some(registered) = registered else { return next };
                next.description = registered.hello.description.clone();
                next.status.levels_since = levels_since(node, next.description.feature_levels, now);
                if !registered.hello.endpoints.is_empty() {
                    next.mesh.endpoints.clone_from(&registered.hello.endpoints);
                }
                if next.description.engine_lost {
                    (NodeState::Down, ENGINE_LOST.to_owned())
                } else {
                    (NodeState::Ready, self.degradation(registered, now).unwrap_or_default())
                }
            }
            Verdict::Down => (NodeState::Down, HEARTBEAT_FAILURE.to_owned()),
            Verdict::Unknown(why) if node.status.state.may_be_up() => (NodeState::Unknown, why.clone()),
            Verdict::Unknown(_) | Verdict::Awaited | Verdict::Absent => return next,
        };
        next.status.down_since = match state {
            NodeState::Down if node.status.state == NodeState::Down => node.status.down_since,
            NodeState::Down => Some(now),
            _ => None,
        };
        // A node that is ready may become degraded, and recover; one that is unknown may be so for another reason.
        if state != node.status.state || matches!(state, NodeState::Ready | NodeState::Unknown) {
            next.status.state = state;
            next.status.message = message;
        }
        next
    }

    /// A new incarnation, if a node has a view of a later state than this leader's: the managers were restored to an older
    /// state, and the node would refuse every view until their index has passed its own. By its own number, a new incarnation
    /// is later than any view.
    fn new_incarnation(&self, store: &Store, now: Timestamp) -> Option<Action> {
        let cluster = store.cluster()?;
        // A new leader may have entries to apply that are committed already.
        if now.since(self.since) <= self.settings.down_after {
            return None;
        }
        let (node, have) = self.ahead.iter().find(|(_, have)| **have > store.revision())?;
        tracing::warn!(%node, have = have.index, index = store.index(), "the node follows a later state than the managers have: \
            they were restored to an older one. All nodes follow the managers again, as a new incarnation");
        Some(Action::update(Cluster { incarnation: have.incarnation.max(cluster.incarnation) + 1, ..cluster.clone() }))
    }

    /// What is wrong with a node that is live; the text changes only when that does.
    fn degradation(&self, node: &RegisteredNode, now: Timestamp) -> Option<String> {
        let lag = self.settings.node_lag;
        let behind = node.is_behind(now, lag).then(|| {
            let seconds = lag.as_secs();
            format!("a change was not applied within {seconds} s: tasks are stopped and addresses assigned without this node")
        });
        let troubles = node.troubles.iter().map(|(name, reason)| format!("{name}: {reason}"));
        let all: Vec<String> = behind.into_iter().chain(troubles).collect();
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

/// True if the task belongs to the node, may still run, and the ports differ from the stored ones.
fn is_new_listening(task: &Task, node: &NodeId, ports: &[ListeningPort]) -> bool {
    task.node_id.as_ref() == Some(node) && !task.status.state.is_final() && task.listens != ports
}

/// True if the task belongs to the node, the state does not go back, and the status differs from the stored one.
fn is_new_status(task: &Task, node: &NodeId, status: &TaskStatus) -> bool {
    let is_later = status.state > task.status.state
        || (status.state == task.status.state
            && status.timestamp >= task.status.timestamp
            && task.status_by_report(status) != task.status);
    task.node_id.as_ref() == Some(node) && is_later
}

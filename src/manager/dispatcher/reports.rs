//! What the dispatcher writes to the store: node states, node descriptions, and what agents report of tasks. Planned from
//! the core and the store each time, so that a write that failed is planned again.

use super::core::Dispatcher;
use super::registered_node::RegisteredNode;
use crate::manager::limits::BATCH;
use crate::model::{ListeningPort, Node, NodeId, NodeState, Task, TaskId, TaskState, TaskStatus, Timestamp};
use crate::store::{Action, Store};
use std::collections::BTreeSet;

/// Swarm's text.
const HEARTBEAT_FAILURE: &str = "heartbeat failure";
/// The node is connected, but can neither start nor stop tasks.
const ENGINE_LOST: &str = "the node's Docker Engine does not answer";
/// Swarm's text.
const LEADER_CHANGED: &str = "Node moved to \"unknown\" state due to leadership change in cluster";

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
                status: status.map_or_else(|| task.status.clone(), |(_, status)| status.clone()),
                listens: listens.map_or_else(|| task.listens.clone(), |(_, ports)| ports.clone()),
                ..task.clone()
            }))
        });
        nodes.chain(tasks).take(BATCH).collect()
    }

    /// The node object as the leader observes the node now.
    fn observed_node(&self, node: &Node, now: Timestamp) -> Node {
        let mut next = node.clone();
        let before = node.status.state;
        let (state, message) = match self.nodes.get(&node.id) {
            Some(RegisteredNode { has_left: true, .. }) => (NodeState::Disconnected, "the node left the swarm".to_owned()),
            Some(registered) if registered.session.is_some() => {
                next.description = registered.description.clone();
                if !registered.endpoints.is_empty() {
                    next.mesh.endpoints.clone_from(&registered.endpoints);
                }
                if next.description.engine_lost {
                    (NodeState::Down, ENGINE_LOST.to_owned())
                } else {
                    (NodeState::Ready, self.degradation(registered, now).unwrap_or_default())
                }
            }
            _ if matches!(before, NodeState::Down | NodeState::Disconnected) => return next,
            Some(registered) if now.since(registered.last_heard) > self.settings.down_after => {
                (NodeState::Down, HEARTBEAT_FAILURE.to_owned())
            }
            None if !self.in_grace(node, now) => (NodeState::Down, HEARTBEAT_FAILURE.to_owned()),
            // The node has one heartbeat interval to open a session with the new leader before its state changes.
            None if before == NodeState::Ready && now.since(self.since) > self.settings.heartbeat => {
                (NodeState::Unknown, LEADER_CHANGED.to_owned())
            }
            _ => return next,
        };
        // A node that is ready may become degraded, and recover.
        if state != before || state == NodeState::Ready {
            next.status.state = state;
            next.status.message = message;
        }
        next
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
    pub(super) fn report_statuses(&mut self, node: &NodeId, statuses: Vec<(TaskId, TaskStatus)>) {
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
    pub(super) fn report_listening(&mut self, node: &NodeId, reported: Vec<(TaskId, Vec<ListeningPort>)>) {
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

/// True if the task belongs to the node, may still run, and the ports differ from the stored ones.
fn is_new_listening(task: &Task, node: &NodeId, ports: &[ListeningPort]) -> bool {
    task.node_id.as_ref() == Some(node) && !task.status.state.is_final() && task.listens != ports
}

/// True if the task belongs to the node, the state does not go back, and the status differs from the stored one.
fn is_new_status(task: &Task, node: &NodeId, status: &TaskStatus) -> bool {
    let is_later = status.state > task.status.state
        || (status.state == task.status.state && status.timestamp >= task.status.timestamp && *status != task.status);
    task.node_id.as_ref() == Some(node) && is_later
}

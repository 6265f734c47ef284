//! What the dispatcher has to write: node states, what nodes say of themselves, and task statuses from agents. Planned
//! anew from the core and the store each time, so that a write that failed is simply planned again.

use super::{Dispatcher, Presence};
use crate::manager::round::BATCH;
use crate::model::ListeningPort;
use crate::model::{Node, NodeId, NodeState, Task, TaskId, TaskState, TaskStatus, Timestamp};
use crate::store::{Action, Store};
use std::collections::BTreeSet;

const LEADER_CHANGED: &str = "Node moved to \"unknown\" state due to leadership change in cluster";

impl Dispatcher {
    /// What the store should know by now and does not.
    pub fn plan(&self, store: &Store, now: Timestamp) -> Vec<Action> {
        let nodes = store.nodes().filter_map(|node| {
            let next = self.node_as_seen(node, now);
            (next != *node).then(|| Action::update(next))
        });
        let reported: BTreeSet<&TaskId> = self.reports.keys().chain(self.listens.keys()).collect();
        let tasks = reported.into_iter().filter_map(|id| {
            let task = store.task(id)?;
            let status = self.reports.get(id).filter(|(node, status)| is_news(task, node, status));
            let listens = self.listens.get(id).filter(|(node, listens)| listens_anew(task, node, listens));
            if status.is_none() && listens.is_none() {
                return None;
            }
            // One write per task.
            Some(Action::update(Task {
                status: status.map_or_else(|| task.status.clone(), |(_, status)| status.clone()),
                listens: listens.map_or_else(|| task.listens.clone(), |(_, listens)| listens.clone()),
                ..task.clone()
            }))
        });
        nodes.chain(tasks).take(BATCH).collect()
    }

    /// True if some report is not in the store yet.
    pub fn has_reports(&self) -> bool {
        !self.reports.is_empty() || !self.listens.is_empty()
    }

    fn node_as_seen(&self, node: &Node, now: Timestamp) -> Node {
        let mut next = node.clone();
        let was = node.status.state;
        let (state, message) = match self.nodes.get(&node.id) {
            Some(Presence { left: true, .. }) => (NodeState::Disconnected, "the node left the swarm"),
            Some(presence) if presence.session.is_some() => {
                next.description = presence.description.clone();
                if !presence.endpoints.is_empty() {
                    next.mesh.endpoints.clone_from(&presence.endpoints);
                }
                (NodeState::Ready, "")
            }
            _ if matches!(was, NodeState::Down | NodeState::Disconnected) => return next,
            Some(presence) if now.since(presence.last_heard) > self.settings.down_after => (NodeState::Down, "heartbeat failure"),
            None if !self.in_grace(node, now) => (NodeState::Down, "heartbeat failure"),
            // One heartbeat's time to open a session with the new leader, before anybody is told.
            None if was == NodeState::Ready && now.since(self.since) > self.settings.heartbeat => {
                (NodeState::Unknown, LEADER_CHANGED)
            }
            _ => return next,
        };
        if state != was {
            next.status.state = state;
            message.clone_into(&mut next.status.message);
        }
        next
    }

    /// Keeps the newest status of each task. States that are not an agent's to write are dropped.
    pub(super) fn report(&mut self, node: &NodeId, statuses: Vec<(TaskId, TaskStatus)>) {
        for (id, status) in statuses {
            let its_own = (TaskState::Accepted..=TaskState::Rejected).contains(&status.state);
            if !its_own || !self.store.task(&id).is_some_and(|t| is_news(t, node, &status)) {
                continue;
            }
            match self.reports.get(&id) {
                Some((_, known)) if known.state > status.state => {}
                _ => drop(self.reports.insert(id, (node.clone(), status))),
            }
        }
    }

    /// Keeps what was last seen of each task.
    pub(super) fn report_listens(&mut self, node: &NodeId, seen: Vec<(TaskId, Vec<ListeningPort>)>) {
        for (id, listens) in seen {
            match self.store.task(&id) {
                Some(task) if listens_anew(task, node, &listens) => drop(self.listens.insert(id, (node.clone(), listens))),
                // As it was: what was said in between is over.
                Some(task) if task.node_id.as_ref() == Some(node) => drop(self.listens.remove(&id)),
                _ => {}
            }
        }
    }

    pub(super) fn prune_reports(&mut self) {
        let store = &self.store;
        self.listens.retain(|id, (node, listens)| store.task(id).is_some_and(|t| listens_anew(t, node, listens)));
        self.reports.retain(|id, (node, status)| store.task(id).is_some_and(|t| is_news(t, node, status)));
    }
}

/// Counts if it is of that node's task, which may still run, and says something new.
fn listens_anew(task: &Task, node: &NodeId, listens: &[ListeningPort]) -> bool {
    task.node_id.as_ref() == Some(node) && !task.status.state.is_final() && task.listens != listens
}

/// A status counts if it is of that node's task, does not go back in state, and says something new.
fn is_news(task: &Task, node: &NodeId, status: &TaskStatus) -> bool {
    let forward = status.state > task.status.state
        || (status.state == task.status.state && status.timestamp >= task.status.timestamp && *status != task.status);
    task.node_id.as_ref() == Some(node) && forward
}

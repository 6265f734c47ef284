//! PENDING → ASSIGNED: selects a node for each task. Filters exclude nodes, each with its reason; of the remaining nodes
//! the least loaded one is selected (spread).

mod filter;
mod load;
mod spread;

use super::limits::BATCH;
use crate::model::{Node, NodeId, Task, TaskState, Timestamp};
use crate::store::{Action, Store};
use filter::Exclusions;
use load::Load;

/// Assignments, and for tasks that stay pending the reason.
pub fn plan(store: &Store, now: Timestamp) -> Vec<Action> {
    let waits = |t: &&Task| t.node_id.is_none() && t.is_wanted();
    let mut pending: Vec<&Task> = store.pending_tasks().filter(waits).collect();
    if pending.is_empty() {
        return Vec::new();
    }
    pending.sort_by(|a, b| {
        (a.meta.created_at, &a.service_id, a.slot, &a.id).cmp(&(b.meta.created_at, &b.service_id, b.slot, &b.id))
    });
    let mut load = Load::from_store(store, now);
    let mut out = Vec::new();
    for task in pending {
        if out.len() >= BATCH {
            break;
        }
        let mut next = task.clone();
        match select_node(store, task, &load) {
            Ok(node) => {
                load.add_task(task, &node);
                load.add_host_ports(task, &node);
                next.node_id = Some(node);
                next.status.state = TaskState::Assigned;
                "scheduler assigned task to node".clone_into(&mut next.status.message);
                next.status.err.clear();
            }
            Err(reason) if reason == task.status.err => continue,
            Err(reason) => next.status.err = reason,
        }
        next.status.timestamp = now;
        out.push(Action::update(next));
    }
    out
}

/// The node with the lowest rank that passes all filters, or why there is none.
fn select_node(store: &Store, task: &Task, load: &Load) -> Result<NodeId, String> {
    let mut exclusions = Exclusions::default();
    let leaving = spread::leaving(store, task);
    let mut best: Option<(spread::Rank, &Node)> = None;
    for node in store.nodes().filter(|node| task.slot_node.as_ref().is_none_or(|of| *of == node.id)) {
        if !exclusions.passes(node, task, load) {
            continue;
        }
        let rank = spread::rank(load, task, &node.id, &leaving);
        if best.as_ref().is_none_or(|(lowest, _)| rank < *lowest) {
            best = Some((rank, node));
        }
    }
    best.map(|(_, node)| node.id.clone()).ok_or_else(|| exclusions.explain(task.slot_node.is_some()))
}

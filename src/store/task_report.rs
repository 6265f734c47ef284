//! Which reports of a node about a task are written. The dispatcher asks before it plans the write, the store when it applies it.

use crate::model::{ListeningPort, NodeId, Task, TaskStatus};

/// True if the task belongs to the node, the state does not go back, and the status differs from the stored one.
#[must_use]
pub fn is_new_status(task: &Task, node: &NodeId, status: &TaskStatus) -> bool {
    let is_later = status.state > task.status.state
        || (status.state == task.status.state
            && status.timestamp >= task.status.timestamp
            && task.status_by_report(status) != task.status);
    task.node_id.as_ref() == Some(node) && is_later
}

/// True if the task belongs to the node, may still run, and the ports differ from the stored ones.
#[must_use]
pub fn is_new_listening(task: &Task, node: &NodeId, ports: &[ListeningPort]) -> bool {
    task.node_id.as_ref() == Some(node) && !task.status.state.is_final() && task.listens != ports
}

//! Order of preference among suitable nodes: spread the tasks of a service, then all tasks.

use super::load::Load;
use crate::model::task::EarlierFailures;
use crate::model::{NodeId, Task};
use crate::store::Store;

/// Rank of a node for a task, lower is better: better avoided or not, tasks of the service, failures, all tasks.
pub(super) type Rank = (bool, usize, u32, usize);

/// `leaving` are nodes of tasks whose place the task takes: those do not count.
pub(super) fn rank(load: &Load, task: &Task, node: &NodeId, leaving: &[&NodeId]) -> Rank {
    let failures = load.failures(task, node);
    let leaves = leaving.iter().filter(|id| **id == node).count();
    let of_service = load.tasks_of_service(&task.service_id, node).saturating_sub(leaves);
    (failures >= EarlierFailures::AVOID, of_service, failures, load.tasks(node).saturating_sub(leaves))
}

/// Nodes of the tasks whose place the task takes: those of its slot that are still wanted.
pub(super) fn leaving<'a>(store: &'a Store, task: &'a Task) -> Vec<&'a NodeId> {
    let is_before = |t: &&Task| t.id != task.id && t.is_wanted() && !t.status.state.is_final() && t.slot_key() == task.slot_key();
    store.tasks_of_service(&task.service_id).filter(is_before).filter_map(|t| t.node_id.as_ref()).collect()
}

//! Order of preference among suitable nodes: spread the tasks of a service, then all tasks.

use super::load::Load;
use crate::model::task::EarlierFailures;
use crate::model::{NodeId, Task};

/// Rank of a node for a task, lower is better: better avoided or not, tasks of the service, failures, all tasks.
pub(super) type Rank = (bool, usize, u32, usize);

pub(super) fn rank(load: &Load, task: &Task, node: &NodeId) -> Rank {
    let failures = load.failures(task, node);
    (failures >= EarlierFailures::AVOID, load.tasks_of_service(&task.service_id, node), failures, load.tasks(node))
}

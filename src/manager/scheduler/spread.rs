//! Order of preference among suitable nodes: spread the tasks of a service, then all tasks.

use super::load::Load;
use crate::model::{NodeId, ServiceId};

/// A node on which this many tasks of the service failed recently is the last choice.
const MAX_FAILURES: usize = 5;

/// Rank of a node for a service, lower is better: many failures or not, tasks of the service, all tasks.
pub(super) type Rank = (bool, usize, usize);

pub(super) fn rank(load: &Load, service: &ServiceId, node: &NodeId) -> Rank {
    let (tasks, failures) = load.of_service(service, node);
    (failures >= MAX_FAILURES, tasks, load.tasks(node))
}

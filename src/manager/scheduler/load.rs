//! What runs where: tasks, reservations, host-mode ports and recent failures per node. Counted up and down as tasks appear and
//! disappear, so that no round reads all tasks.

use super::generic::GenericUse;
use crate::model::task::EarlierFailures;
use crate::model::{NodeId, Protocol, ServiceId, Task, TaskId, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

/// Failures count for this long.
const FAILURE_WINDOW: Duration = Duration::from_mins(5);

/// A port of a node, published in mode `host`.
pub(super) type HostPort = (Protocol, u16);

/// Host-mode ports of a task with a fixed number.
pub(super) fn fixed_host_ports(task: &Task) -> impl Iterator<Item = HostPort> {
    task.ports.iter().filter(|p| p.published_port != 0).map(|p| (p.protocol, p.published_port))
}

/// What the tasks of one node take of it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct NodeLoad {
    /// Those that are wanted.
    pub tasks: usize,
    by_service: BTreeMap<ServiceId, usize>,
    /// Reserved by all that have not ended: a task that is being stopped keeps what it has.
    pub nano_cpus: i128,
    pub memory_bytes: i128,
    pub generic: GenericUse,
    /// Number of tasks by port: the engine holds a port until the container has ended.
    host_ports: BTreeMap<HostPort, usize>,
    /// Number of tasks by image, ended ones included, that have or had a container here.
    images: BTreeMap<String, usize>,
}

impl NodeLoad {
    /// Wanted tasks of a service.
    pub(super) fn of_service(&self, service: &ServiceId) -> usize {
        self.by_service.get(service).copied().unwrap_or(0)
    }
    pub(super) fn has_host_port(&self, port: HostPort) -> bool {
        self.host_ports.contains_key(&port)
    }
    /// A container was created from the image here, so that the node has it, unless it was removed since.
    pub(super) fn has_image(&self, image: &str) -> bool {
        self.images.contains_key(image)
    }

    /// The load as it is once these tasks of the node are gone.
    pub(super) fn without(&self, tasks: &[&Task]) -> Self {
        let mut load = self.clone();
        for task in tasks {
            load.count(task, false);
        }
        load
    }

    fn count(&mut self, task: &Task, appears: bool) {
        if task.status.container.is_some() {
            add(&mut self.images, &task.spec.container_spec.image, appears);
        }
        if task.status.state.is_final() {
            return;
        }
        for port in fixed_host_ports(task) {
            add(&mut self.host_ports, &port, appears);
        }
        if let Some(reserved) = task.spec.resources.as_ref().and_then(|r| r.reservations.as_ref()) {
            let sign = if appears { 1 } else { -1 };
            self.nano_cpus += sign * i128::from(reserved.nano_cpus);
            self.memory_bytes += sign * i128::from(reserved.memory_bytes);
        }
        self.generic.count(&task.generic_resources, appears);
        if task.is_wanted() {
            self.tasks = if appears { self.tasks + 1 } else { self.tasks.saturating_sub(1) };
            add(&mut self.by_service, &task.service_id, appears);
        }
    }
}

/// Counts one up or down; what is zero has no entry.
fn add<K: Ord + Clone>(counts: &mut BTreeMap<K, usize>, key: &K, up: bool) {
    let count = counts.entry(key.clone()).or_default();
    *count = if up { *count + 1 } else { count.saturating_sub(1) };
    if *count == 0 {
        counts.remove(key);
    }
}

/// A task that ended badly.
#[derive(Clone, PartialEq, Eq, Debug)]
struct FailedTask {
    node: NodeId,
    weight: u32,
    at: Timestamp,
}

/// The load of every node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Loads {
    /// Nodes without tasks have no entry.
    nodes: BTreeMap<NodeId, NodeLoad>,
    /// By service and version of its spec.
    failed: BTreeMap<(ServiceId, u64), BTreeMap<TaskId, FailedTask>>,
}

impl Loads {
    /// A task is in the store now, or no longer.
    pub(super) fn count(&mut self, task: &Task, appears: bool) {
        // Plain containers are the user's: nothing is known of what they take.
        let Some(node) = task.node_id.as_ref().filter(|_| task.attached.is_none()) else { return };
        self.count_on(node, task, appears);
        let weight = if task.is_evicted() { 0 } else { EarlierFailures::weight(task.status.state) };
        if weight > 0 {
            let key = (task.service_id.clone(), task.spec_version);
            let of_service = self.failed.entry(key.clone()).or_default();
            let failed = FailedTask { node: node.clone(), weight, at: task.status.timestamp };
            let _ = if appears { of_service.insert(task.id.clone(), failed) } else { of_service.remove(&task.id) };
            if of_service.is_empty() {
                self.failed.remove(&key);
            }
        }
    }

    fn count_on(&mut self, node: &NodeId, task: &Task, appears: bool) {
        let load = self.nodes.entry(node.clone()).or_default();
        load.count(task, appears);
        if !appears && *load == NodeLoad::default() {
            self.nodes.remove(node);
        }
    }

    /// The load of a node.
    pub(super) fn of(&self, node: &NodeId) -> Option<&NodeLoad> {
        self.nodes.get(node)
    }

    /// What recent failures of the service with this version of its spec say against nodes: [`EarlierFailures::AVOID`] and more if a
    /// node is better avoided.
    pub(super) fn failures(&self, service: &ServiceId, spec_version: u64, now: Timestamp) -> BTreeMap<&NodeId, u32> {
        let mut weights = BTreeMap::new();
        let failed = self.failed.get(&(service.clone(), spec_version));
        for task in failed.into_iter().flat_map(BTreeMap::values).filter(|task| now.since(task.at) < FAILURE_WINDOW) {
            *weights.entry(&task.node).or_default() += task.weight;
        }
        weights
    }
}

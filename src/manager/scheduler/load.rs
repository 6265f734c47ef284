//! What runs where: tasks, recent failures and host-mode ports per node.

use crate::model::task::EarlierFailures;
use crate::model::{NodeId, Protocol, ServiceId, SlotKey, Task, Timestamp};
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Failures count for this long.
const FAILURE_WINDOW: Duration = Duration::from_mins(5);

/// A port of a node, published in mode `host`.
pub(super) type HostPort = (Protocol, u16);

/// Host-mode ports of a task with a fixed number.
pub(super) fn fixed_host_ports(task: &Task) -> impl Iterator<Item = HostPort> {
    task.ports.iter().filter(|p| p.published_port != 0).map(|p| (p.protocol, p.published_port))
}

/// Load of all nodes, tasks that were just assigned included.
#[derive(Default)]
pub(super) struct Load {
    /// Services whose new tasks start before the old ones stop.
    start_first: BTreeSet<ServiceId>,
    tasks: BTreeMap<NodeId, usize>,
    tasks_of_service: BTreeMap<(ServiceId, NodeId), usize>,
    /// Weight of the failures of a service and version of its spec on a node.
    failures: BTreeMap<(ServiceId, u64, NodeId), u32>,
    /// By service and slot.
    host_ports: BTreeMap<(NodeId, HostPort), BTreeSet<(ServiceId, SlotKey)>>,
}

impl Load {
    pub(super) fn from_store(store: &Store, now: Timestamp) -> Self {
        let start_first = store.services().filter(|s| s.current_update_config().starts_first()).map(|s| s.id.clone());
        let mut load = Self { start_first: start_first.collect(), ..Self::default() };
        for task in store.tasks() {
            let Some(node) = &task.node_id else { continue };
            let weight = EarlierFailures::weight(task.status.state);
            if weight > 0 && now.since(task.status.timestamp) < FAILURE_WINDOW {
                *load.failures.entry((task.service_id.clone(), task.spec_version, node.clone())).or_default() += weight;
            }
            if task.status.state.is_final() {
                continue;
            }
            // Also of a task that is being stopped: the engine holds the port until the container has ended.
            load.add_host_ports(task, node);
            if task.is_wanted() {
                load.add_task(task, node);
            }
        }
        load
    }

    pub(super) fn add_host_ports(&mut self, task: &Task, node: &NodeId) {
        for port in fixed_host_ports(task) {
            let owners = self.host_ports.entry((node.clone(), port)).or_default();
            owners.insert((task.service_id.clone(), task.slot_key()));
        }
    }

    pub(super) fn add_task(&mut self, task: &Task, node: &NodeId) {
        *self.tasks.entry(node.clone()).or_default() += 1;
        *self.tasks_of_service.entry((task.service_id.clone(), node.clone())).or_default() += 1;
    }

    /// The port is in use on the node for the task. One that a task of the same slot has is not, if that one stops before this one
    /// starts.
    pub(super) fn has_host_port(&self, node: &NodeId, port: HostPort, task: &Task) -> bool {
        let slot = (task.service_id.clone(), task.slot_key());
        let starts_beside = self.start_first.contains(&task.service_id);
        let owners = self.host_ports.get(&(node.clone(), port));
        owners.is_some_and(|owners| owners.iter().any(|owner| starts_beside || *owner != slot))
    }

    /// Tasks on the node.
    pub(super) fn tasks(&self, node: &NodeId) -> usize {
        self.tasks.get(node).copied().unwrap_or(0)
    }

    /// Tasks of the service on the node.
    pub(super) fn tasks_of_service(&self, service: &ServiceId, node: &NodeId) -> usize {
        self.tasks_of_service.get(&(service.clone(), node.clone())).copied().unwrap_or(0)
    }

    /// What the recent failures of the task's slot, and of other slots of its service with the same spec, say against a node:
    /// [`EarlierFailures::AVOID`] and more if it is better avoided.
    pub(super) fn failures(&self, task: &Task, node: &NodeId) -> u32 {
        let key = (task.service_id.clone(), task.spec_version, node.clone());
        let of_service = self.failures.get(&key).copied().unwrap_or(0);
        of_service.max(task.failures.on(node))
    }
}

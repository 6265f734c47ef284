//! Indexes over the tables: where a planner or a check would otherwise read every object. Written by `apply` together with the
//! tables, rebuilt when a snapshot is read, and never part of one.

use super::ids_by::IdsBy;
use super::shared_specs::SharedSpecs;
use crate::model::autoscale;
use crate::model::{
    AcmeAccount, AcmeCertificate, Cluster, ClusterConfig, ClusterSecret, ConfigId, Network, NetworkId, Node, NodeId, PayloadId,
    PayloadKeys,
};
use crate::model::{Protocol, PublishMode, SecretId, Service, ServiceId};
use crate::model::{Task, TaskId, TaskState, Timestamp, WgKey, task::Attachment};

/// All indexes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct StoreIndexes {
    /// In lower case; of those that are not being removed.
    pub(super) network_names: IdsBy<String, NetworkId>,
    /// In lower case.
    pub(super) service_names: IdsBy<String, ServiceId>,
    pub(super) tasks_of_service: IdsBy<ServiceId, TaskId>,
    pub(super) tasks_of_node: IdsBy<NodeId, TaskId>,
    /// Those that have no node yet.
    pub(super) unassigned_tasks: IdsBy<TaskState, TaskId>,
    /// With their addresses there, as numbers.
    pub(super) tasks_on_network: IdsBy<NetworkId, (u32, TaskId)>,
    /// Those that are to run and have a start time.
    pub(super) delayed_tasks: IdsBy<Timestamp, TaskId>,
    pub(super) services_on_network: IdsBy<NetworkId, ServiceId>,
    pub(super) node_keys: IdsBy<WgKey, NodeId>,
    pub(super) ports: IdsBy<(PublishMode, Protocol, u16), ServiceId>,
    pub(super) specs: SharedSpecs,
    /// In lower case.
    pub(super) secret_names: IdsBy<String, SecretId>,
    /// In lower case.
    pub(super) config_names: IdsBy<String, ConfigId>,
    pub(super) services_with: IdsBy<PayloadId, ServiceId>,
    /// Those with the label `skep.autoscale`.
    pub(super) autoscaled_services: IdsBy<(), ServiceId>,
}

/// What an object is found by, and its id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IndexEntry {
    NetworkName(String, NetworkId),
    ServiceName(String, ServiceId),
    TaskOfService(ServiceId, TaskId),
    TaskOfNode(NodeId, TaskId),
    /// New or pending.
    UnassignedTask(TaskState, TaskId),
    /// It has an address on the network.
    TaskOnNetwork(NetworkId, (u32, TaskId)),
    /// It is to run, and not before this time.
    DelayedTask(Timestamp, TaskId),
    /// Its spec names the network.
    ServiceOnNetwork(NetworkId, ServiceId),
    NodeKey(WgKey, NodeId),
    /// A port that its spec sets, or that the allocator has chosen.
    PublishedPort((PublishMode, Protocol, u16), ServiceId),
    SecretName(String, SecretId),
    ConfigName(String, ConfigId),
    /// Its spec names the secret or config.
    ServiceWith(PayloadId, ServiceId),
    /// It has the label `skep.autoscale`.
    AutoscaledService(ServiceId),
}

impl StoreIndexes {
    /// Replaces the entries of an object's state by those of its next state.
    pub(super) fn replace<T: Indexed>(&mut self, before: Option<&T>, after: Option<&T>) {
        let (before_task, after_task) = (before.and_then(Indexed::as_task), after.and_then(Indexed::as_task));
        let entries_of = |object: Option<&T>| {
            let mut entries = object.map(Indexed::index_entries).unwrap_or_default();
            entries.sort_unstable();
            entries
        };
        let (before, after) = (entries_of(before), entries_of(after));
        for gone in before.iter().filter(|entry| after.binary_search(entry).is_err()) {
            self.set(gone, false);
        }
        for new in after.iter().filter(|entry| before.binary_search(entry).is_err()) {
            self.set(new, true);
        }
        self.specs.replace(before_task, after_task);
    }

    fn set(&mut self, entry: &IndexEntry, present: bool) {
        match entry {
            IndexEntry::NetworkName(name, id) => set(&mut self.network_names, name, id, present),
            IndexEntry::ServiceName(name, id) => set(&mut self.service_names, name, id, present),
            IndexEntry::TaskOfService(service, id) => set(&mut self.tasks_of_service, service, id, present),
            IndexEntry::TaskOfNode(node, id) => set(&mut self.tasks_of_node, node, id, present),
            IndexEntry::UnassignedTask(state, id) => set(&mut self.unassigned_tasks, state, id, present),
            IndexEntry::TaskOnNetwork(network, id) => set(&mut self.tasks_on_network, network, id, present),
            IndexEntry::DelayedTask(start, id) => set(&mut self.delayed_tasks, start, id, present),
            IndexEntry::ServiceOnNetwork(network, id) => set(&mut self.services_on_network, network, id, present),
            IndexEntry::NodeKey(key, id) => set(&mut self.node_keys, key, id, present),
            IndexEntry::PublishedPort(port, id) => set(&mut self.ports, port, id, present),
            IndexEntry::SecretName(name, id) => set(&mut self.secret_names, name, id, present),
            IndexEntry::ConfigName(name, id) => set(&mut self.config_names, name, id, present),
            IndexEntry::ServiceWith(payload, id) => set(&mut self.services_with, payload, id, present),
            IndexEntry::AutoscaledService(id) => set(&mut self.autoscaled_services, &(), id, present),
        }
    }
}

fn set<K: Ord + Clone, I: Ord + Clone>(ids: &mut IdsBy<K, I>, key: &K, id: &I, present: bool) {
    if present { ids.insert(key, id) } else { ids.remove(key, id) }
}

/// An object with entries in the indexes.
pub trait Indexed {
    /// Its entries, in any order; some twice.
    fn index_entries(&self) -> Vec<IndexEntry>;
    /// The object, if it is a task: tasks share their specs.
    fn as_task(&self) -> Option<&Task> {
        None
    }
    /// See [`Indexed::as_task`].
    fn as_task_mut(&mut self) -> Option<&mut Task> {
        None
    }
}

impl Indexed for Cluster {
    fn index_entries(&self) -> Vec<IndexEntry> {
        Vec::new()
    }
}

impl Indexed for Node {
    fn index_entries(&self) -> Vec<IndexEntry> {
        let keys = std::iter::once(self.mesh.key).chain(self.mesh.next.map(|next| next.key));
        keys.map(|key| IndexEntry::NodeKey(key, self.id.clone())).collect()
    }
}

impl Indexed for Network {
    fn index_entries(&self) -> Vec<IndexEntry> {
        let name = IndexEntry::NetworkName(self.spec.name.to_ascii_lowercase(), self.id.clone());
        if self.removing { Vec::new() } else { vec![name] }
    }
}

impl Indexed for Service {
    fn index_entries(&self) -> Vec<IndexEntry> {
        let name = IndexEntry::ServiceName(self.spec.name.to_ascii_lowercase(), self.id.clone());
        let networks = self.spec.task_template.networks.iter();
        let networks = networks.map(|n| IndexEntry::ServiceOnNetwork(n.target.as_str().into(), self.id.clone()));
        let ports = self.spec.endpoint_spec.iter().flat_map(|e| &e.ports).chain(&self.endpoint.ports);
        let ports = ports.filter(|p| p.published_port != 0);
        let ports = ports.map(|p| IndexEntry::PublishedPort((p.publish_mode, p.protocol, p.published_port), self.id.clone()));
        let payloads = self.spec.task_template.container_spec.payloads();
        let payloads = payloads.map(|payload| IndexEntry::ServiceWith(payload, self.id.clone()));
        let is_scaled = self.spec.labels.contains_key(autoscale::RANGE);
        let scaled = is_scaled.then(|| IndexEntry::AutoscaledService(self.id.clone()));
        std::iter::once(name).chain(networks).chain(ports).chain(payloads).chain(scaled).collect()
    }
}

impl Indexed for ClusterSecret {
    fn index_entries(&self) -> Vec<IndexEntry> {
        vec![IndexEntry::SecretName(self.spec.name.to_ascii_lowercase(), self.id.clone())]
    }
}

impl Indexed for ClusterConfig {
    fn index_entries(&self) -> Vec<IndexEntry> {
        vec![IndexEntry::ConfigName(self.spec.name.to_ascii_lowercase(), self.id.clone())]
    }
}

impl Indexed for PayloadKeys {
    fn index_entries(&self) -> Vec<IndexEntry> {
        Vec::new()
    }
}

impl Indexed for AcmeAccount {
    fn index_entries(&self) -> Vec<IndexEntry> {
        Vec::new()
    }
}

impl Indexed for AcmeCertificate {
    fn index_entries(&self) -> Vec<IndexEntry> {
        Vec::new()
    }
}

impl Indexed for Task {
    fn index_entries(&self) -> Vec<IndexEntry> {
        let service = IndexEntry::TaskOfService(self.service_id.clone(), self.id.clone());
        let node = self.node_id.iter().map(|node| IndexEntry::TaskOfNode(node.clone(), self.id.clone()));
        let address = |a: &Attachment| (a.address.addr().to_bits(), self.id.clone());
        let networks = self.attachments.iter().map(|a| IndexEntry::TaskOnNetwork(a.network_id.clone(), address(a)));
        let start = self.not_before.filter(|_| self.desired_state <= TaskState::Running);
        let start = start.map(|start| IndexEntry::DelayedTask(start, self.id.clone()));
        let waits = self.status.state < TaskState::Assigned;
        let state = waits.then(|| IndexEntry::UnassignedTask(self.status.state, self.id.clone()));
        std::iter::once(service).chain(node).chain(networks).chain(state).chain(start).collect()
    }
    fn as_task(&self) -> Option<&Task> {
        Some(self)
    }
    fn as_task_mut(&mut self) -> Option<&mut Task> {
        Some(self)
    }
}

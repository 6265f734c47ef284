//! Reads by way of the indexes.

use super::object::{Store, StoreObject};
use crate::model::{
    AcmeAccount, ClusterConfig, ClusterSecret, Network, NetworkId, Node, NodeId, PayloadId, PayloadKeys, Protocol,
};
use crate::model::{PublishMode, Service, ServiceId, Task, TaskId, TaskState, Timestamp, WgKey};
use std::net::Ipv4Addr;
use std::sync::Arc;

impl Store {
    /// The network with this name, without regard to case, unless it is being removed.
    pub fn network_named(&self, name: &str) -> Option<&Network> {
        self.indexes.network_names.of(&name.to_ascii_lowercase()).find_map(|id| self.network(id))
    }
    /// The service with this name, without regard to case.
    pub fn service_named(&self, name: &str) -> Option<&Service> {
        self.indexes.service_names.of(&name.to_ascii_lowercase()).find_map(|id| self.service(id))
    }
    /// The secret with this name, without regard to case.
    pub fn secret_named(&self, name: &str) -> Option<&ClusterSecret> {
        self.indexes.secret_names.of(&name.to_ascii_lowercase()).find_map(|id| self.get(id))
    }
    /// The config with this name, without regard to case.
    pub fn config_named(&self, name: &str) -> Option<&ClusterConfig> {
        self.indexes.config_names.of(&name.to_ascii_lowercase()).find_map(|id| self.get(id))
    }
    /// Services whose spec names a secret or config, by id.
    pub fn services_with(&self, payload: &PayloadId) -> impl Iterator<Item = &Service> {
        self.indexes.services_with.of(payload).filter_map(|id| self.service(id))
    }
    /// Services that are scaled by load, by id.
    pub fn autoscaled_services(&self) -> impl Iterator<Item = &Service> {
        self.indexes.autoscaled_services.of(&()).filter_map(|id| self.service(id))
    }
    /// The key of secrets and configs; `None` until there is a first of these.
    pub fn payload_keys(&self) -> Option<&PayloadKeys> {
        self.all().next()
    }
    /// The switch of ACME and the account; `None` until it was first switched on.
    pub fn acme_account(&self) -> Option<&AcmeAccount> {
        self.all().next()
    }
    /// Tasks of a service in any state, by id.
    pub fn tasks_of_service(&self, service: &ServiceId) -> impl Iterator<Item = &Task> {
        self.indexes.tasks_of_service.of(service).filter_map(|id| self.task(id))
    }
    /// Tasks that a node has or had, by id.
    pub fn tasks_of_node(&self, node: &NodeId) -> impl Iterator<Item = &Task> {
        self.shared_tasks_of_node(node).map(Arc::as_ref)
    }
    /// [`Self::tasks_of_node`], as the store has them.
    pub fn shared_tasks_of_node(&self, node: &NodeId) -> impl Iterator<Item = &Arc<Task>> {
        self.indexes.tasks_of_node.of(node).filter_map(|id| Task::table(self).get(id))
    }
    /// New tasks, which wait for addresses, by id.
    pub fn new_tasks(&self) -> impl Iterator<Item = &Task> {
        self.indexes.unassigned_tasks.of(&TaskState::New).filter_map(|id| self.task(id))
    }
    /// Pending tasks, which wait for a node, by id.
    pub fn pending_tasks(&self) -> impl Iterator<Item = &Task> {
        self.indexes.unassigned_tasks.of(&TaskState::Pending).filter_map(|id| self.task(id))
    }
    /// Tasks with an address on a network, by address.
    pub fn tasks_on_network(&self, network: &NetworkId) -> impl Iterator<Item = &Task> {
        self.indexes.tasks_on_network.of(network).filter_map(|(_, id)| self.task(id))
    }
    /// Tasks with this address on a network: one, unless it passes from a plain container to the next.
    pub fn tasks_at(&self, network: &NetworkId, address: Ipv4Addr) -> impl Iterator<Item = &Task> {
        let entries = self.indexes.tasks_on_network.from(network, &(address.to_bits(), TaskId::default()));
        entries.take_while(move |(bits, _)| *bits == address.to_bits()).filter_map(|(_, id)| self.task(id))
    }
    /// The addresses that tasks have on a network, from one on, in order.
    pub fn task_addresses(&self, network: &NetworkId, from: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
        let entries = self.indexes.tasks_on_network.from(network, &(from.to_bits(), TaskId::default()));
        entries.map(|(address, _)| Ipv4Addr::from_bits(*address))
    }
    /// Tasks that are to run and have a start time, by that.
    pub fn delayed_tasks(&self) -> impl Iterator<Item = (Timestamp, &Task)> {
        self.indexes.delayed_tasks.all().filter_map(|(start, id)| Some((*start, self.task(id)?)))
    }
    /// Services whose spec names a network, by id.
    pub fn services_on_network(&self, network: &NetworkId) -> impl Iterator<Item = &Service> {
        self.indexes.services_on_network.of(network).filter_map(|id| self.service(id))
    }
    /// Nodes with a WireGuard key: one at most, unless an earlier build admitted several.
    pub fn nodes_with_key(&self, key: &WgKey) -> impl Iterator<Item = &Node> {
        self.indexes.node_keys.of(key).filter_map(|id| self.node(id))
    }
    /// Services that publish a port in this mode, by id.
    pub fn services_publishing(&self, mode: PublishMode, protocol: Protocol, port: u16) -> impl Iterator<Item = &Service> {
        self.indexes.ports.of(&(mode, protocol, port)).filter_map(|id| self.service(id))
    }

    /// The service besides `except` whose port excludes this one, and its publish mode. Host mode excludes only `ingress`: two
    /// services may publish a port in host mode, on different nodes.
    pub fn port_conflict(
        &self,
        mode: PublishMode,
        protocol: Protocol,
        port: u16,
        except: Option<&ServiceId>,
    ) -> Option<(&Service, PublishMode)> {
        let excluded: &[PublishMode] = match mode {
            PublishMode::Ingress => &[PublishMode::Ingress, PublishMode::Host],
            PublishMode::Host => &[PublishMode::Ingress],
        };
        excluded.iter().find_map(|taken| {
            let mut services = self.services_publishing(*taken, protocol, port);
            services.find(|s| Some(&s.id) != except).map(|service| (service, *taken))
        })
    }
}

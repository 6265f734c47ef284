//! The names of one network: built from its part of the node's view. Pure.

use super::service_port::ServicePort;
use crate::datapath::ebpf::VipReadiness;
use crate::model::service::EndpointMode;
use crate::model::view::{NetworkPart, ServiceNames, TaskEndpoint};
use crate::model::{ServiceId, SubnetPair};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// The names of one network.
#[derive(Debug)]
pub struct Zone {
    /// As the network is spelled.
    pub name: String,
    lower: String,
    pub subnets: Vec<Ipv4Net>,
    /// With the IPv6 ones, if it has some: the IPv6 address of each name follows from its IPv4 address.
    pub pairs: Vec<SubnetPair>,
    /// All of its IPv6 addresses; with several IPv4 subnets more than those that belong to one of these.
    pub subnet6: Option<Ipv6Net>,
    /// By lower-case name.
    names: HashMap<String, NameEntry>,
    /// Address → container or, of a virtual address, service.
    reverse: HashMap<Ipv4Addr, String>,
    /// Published ports of the service of the task with this address.
    ports: HashMap<Ipv4Addr, Arc<[ServicePort]>>,
}

/// What a name stands for.
#[derive(Default, Debug)]
pub struct NameEntry {
    /// Of the backends with that name; empty if no task of that name is a backend.
    pub addresses: Vec<Ipv4Addr>,
    /// The virtual address of the service, if the eBPF datapath serves it.
    pub vip: Option<Ipv4Addr>,
    /// Published ports of the services with that name.
    pub ports: Vec<ServicePort>,
}

/// Where a task accepts what an SRV query asks for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServiceTarget {
    /// `CONTAINER.NETWORK`, a name of ours.
    pub host: String,
    pub address: Ipv4Addr,
    pub port: u16,
}

impl Zone {
    /// The names of a network. `ready` names the virtual addresses that work.
    #[must_use]
    pub fn build(network: &NetworkPart, ready: &VipReadiness) -> Self {
        let mut zone = Self {
            name: network.name.clone(),
            lower: network.name.to_ascii_lowercase(),
            subnets: network.subnets(),
            pairs: network.pairs(),
            subnet6: network.v6.map(|v6| v6.subnet.trunc()),
            names: HashMap::new(),
            reverse: HashMap::new(),
            ports: HashMap::new(),
        };
        let services: BTreeMap<&ServiceId, &ServiceNames> = network.names.iter().map(|s| (&s.service_id, s.as_ref())).collect();
        let ports: BTreeMap<&ServiceId, Arc<[ServicePort]>> =
            services.iter().map(|(id, service)| (*id, service.ports.iter().filter_map(ServicePort::new).collect())).collect();
        for service in services.values() {
            zone.add_service(service, &ports[&service.service_id]);
        }
        for member in &network.members {
            zone.add_task(member, ports.get(&member.service_id));
        }
        zone.add_vips(network, &services, ready);
        #[expect(clippy::iter_over_hash_type, reason = "each entry is sorted by itself")]
        for entry in zone.names.values_mut() {
            entry.addresses.sort_unstable();
            entry.addresses.dedup();
            entry.ports.sort_unstable();
            entry.ports.dedup();
        }
        zone
    }

    /// A service has its names without a task, too: a service that is scaled to zero is not unknown.
    fn add_service(&mut self, service: &ServiceNames, ports: &[ServicePort]) {
        for name in std::iter::once(&service.name).chain(&service.aliases) {
            self.entry_mut(name).ports.extend_from_slice(ports);
            self.entry_mut(&format!("tasks.{name}")).ports.extend_from_slice(ports);
        }
    }

    fn add_task(&mut self, member: &TaskEndpoint, ports: Option<&Arc<[ServicePort]>>) {
        for name in names_of(member) {
            let entry = self.entry_mut(&name);
            entry.ports.extend_from_slice(ports.map_or(&[][..], AsRef::as_ref));
            if member.backend {
                entry.addresses.push(member.address);
            }
        }
        if !member.container_name.is_empty() {
            self.reverse.insert(member.address, member.container_name.clone());
        }
        if let Some(ports) = ports {
            self.ports.insert(member.address, Arc::clone(ports));
        }
    }

    /// The names of a service in mode `vip` have its virtual address, with a backend or without: a connection to it without one
    /// is refused at once, and a client that keeps the address (nginx resolves once) needs no restart when a task comes.
    fn add_vips(&mut self, network: &NetworkPart, services: &BTreeMap<&ServiceId, &ServiceNames>, ready: &VipReadiness) {
        let mut tasks: BTreeMap<&ServiceId, Vec<&TaskEndpoint>> = BTreeMap::new();
        for member in &network.members {
            tasks.entry(&member.service_id).or_default().push(member);
        }
        for service in network.services.iter().filter(|service| ready.vips.contains(&service.vip)) {
            self.reverse.insert(service.vip, service.name.clone());
            let own = tasks.get(&service.service_id).map_or(&[][..], Vec::as_slice);
            if own.iter().any(|member| member.endpoint_mode != EndpointMode::Vip) {
                continue;
            }
            let aliases = services.get(&service.service_id).into_iter().flat_map(|service| &service.aliases);
            let of_tasks = own.iter().flat_map(|member| std::iter::once(&member.service_name).chain(&member.aliases));
            for name in std::iter::once(&service.name).chain(aliases).chain(of_tasks) {
                self.entry_mut(name).vip = Some(service.vip);
            }
        }
    }

    fn entry_mut(&mut self, name: &str) -> &mut NameEntry {
        self.names.entry(name.to_ascii_lowercase()).or_default()
    }

    /// The entry of a lower-case name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&NameEntry> {
        self.names.get(name)
    }

    /// The entry of a lower-case name that ends in the network's name.
    #[must_use]
    pub fn entry_within(&self, name: &str) -> Option<&NameEntry> {
        let rest = name.strip_suffix(self.lower.as_str())?.strip_suffix('.')?;
        self.names.get(rest)
    }

    /// The container or service with this address.
    #[must_use]
    pub fn name_of(&self, address: Ipv4Addr) -> Option<&str> {
        self.reverse.get(&address).map(String::as_str)
    }

    /// The tasks of a name, with the port that is called `label` and `protocol`.
    #[must_use]
    pub fn targets(&self, entry: &NameEntry, label: &str, protocol: &str) -> Vec<ServiceTarget> {
        let ports = |address| self.ports.get(address).into_iter().flat_map(|ports| ports.iter());
        let matching = |address| ports(address).filter(|port| port.matches(label, protocol));
        let target = |address: &Ipv4Addr, port: &ServicePort| {
            let host = format!("{}.{}", self.reverse.get(address)?, self.name);
            Some(ServiceTarget { host, address: *address, port: port.number() })
        };
        entry.addresses.iter().flat_map(|address| matching(address).filter_map(move |port| target(address, port))).collect()
    }
}

/// The names of a task. On the userspace datapath `service` and `tasks.service` have the same records; on the eBPF datapath
/// `service` is the virtual address, see [`NameEntry::vip`].
fn names_of(member: &TaskEndpoint) -> Vec<String> {
    if member.is_plain() {
        let all = std::iter::once(&member.container_name).chain(&member.aliases);
        return all.filter(|name| !name.is_empty()).cloned().collect();
    }
    let mut names = vec![member.container_name.clone()];
    names.extend_from_slice(&member.own_names);
    for name in std::iter::once(&member.service_name).chain(&member.aliases) {
        names.push(name.clone());
        names.push(format!("tasks.{name}"));
    }
    // Without a number it is in the slot of its node, or the first one of a job, which Docker names in the same way.
    names.push(match member.slot {
        0 => format!("{}.{}", member.service_name, member.node_id),
        slot => format!("{}.{slot}", member.service_name),
    });
    names
}

//! Clients and answers: an index of names, built from the node's view. Pure; knows neither sockets nor time nor resolvers.
//!
//! A name is ours as long as a task of the network has it, and its records are the addresses of those tasks that are backends.
//! So the name of a service without a running task has no records (NODATA); it is neither unknown nor forwarded.

use crate::datapath::ebpf::VipReadiness;
use crate::model::service::EndpointMode;
use crate::model::view::{NetworkPart, TaskEndpoint};
use crate::model::{NodeId, NodeView, ServiceId, TaskId};
use hickory_proto::rr::{Name, RecordType};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand::Rng;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Names of the networks of this node.
#[derive(Default, Debug)]
pub struct Records {
    /// User networks by name, `ingress` last: the order of a lookup.
    zones: Vec<Zone>,
    /// The gateway of each network.
    gateways: BTreeSet<Ipv4Addr>,
    /// Containers of this node, by (gateway that they query, their address).
    clients: BTreeMap<(Ipv4Addr, Ipv4Addr), TaskId>,
    access: BTreeMap<TaskId, ClientAccess>,
    /// Addresses of nodes and containers inside the mesh, whose names are not forwarded either.
    mesh: Option<Ipv6Net>,
}

/// The names of one network.
#[derive(Debug)]
struct Zone {
    name: String,
    lower: String,
    subnet: Ipv4Net,
    /// Lower-case name → addresses of the backends with that name; empty if no task of that name is a backend.
    names: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Lower-case name of a service with a backend → its virtual address, if the eBPF datapath serves it.
    vips: BTreeMap<String, Ipv4Addr>,
    /// Address → container name.
    reverse: BTreeMap<Ipv4Addr, String>,
}

/// What the answers to a container depend on.
#[derive(Default, Debug)]
struct ClientAccess {
    /// Indexes of its networks in `Records::zones`.
    zones: Vec<usize>,
    /// Virtual addresses work in its namespace.
    vips: bool,
    /// One of its networks is not internal.
    external: bool,
    /// Resolvers of its task's spec.
    nameservers: Vec<IpAddr>,
}

/// The answer to a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordAnswer {
    /// A records, in this order.
    Addresses(Vec<Ipv4Addr>),
    /// A PTR record with this name.
    Pointer(String),
    /// The name is ours and has no record of that type (NODATA).
    Empty,
    /// The name would be ours and does not exist (NXDOMAIN).
    NoSuchName,
    /// The client is no container of this node, or may not query this name.
    Refused,
    /// Not ours: to be forwarded to these resolvers, or to the host's if there are none.
    Forward(Vec<IpAddr>),
}

impl Records {
    /// Builds the index of a view, for the containers of node `me`. `ready` names the containers in which virtual addresses work.
    #[must_use]
    pub fn build(me: &NodeId, view: &NodeView, ready: &VipReadiness) -> Self {
        let mut networks: Vec<&NetworkPart> = view.networks.by_id.values().collect();
        networks.sort_by_key(|n| (n.ingress, &n.name));
        let mut records = Self { mesh: Some(view.cluster.mesh.0), ..Self::default() };
        for network in networks {
            let index = records.zones.len();
            records.zones.push(Zone::build(network, ready));
            records.gateways.insert(network.gateway);
            for member in network.members.iter().filter(|m| m.node_id == *me) {
                records.clients.insert((network.gateway, member.address), member.task_id.clone());
                let access = records.access.entry(member.task_id.clone()).or_default();
                access.zones.push(index);
                access.vips |= ready.containers.contains(&member.address);
                access.external |= !network.internal;
                access.nameservers = spec_nameservers(view, &member.task_id);
            }
        }
        records
    }

    /// Answers a query of the container with address `source` on the network of `gateway`. Addresses are shuffled.
    pub fn answer(&self, gateway: Ipv4Addr, source: IpAddr, name: &Name, kind: RecordType, rng: &mut impl Rng) -> RecordAnswer {
        let IpAddr::V4(source) = source else { return RecordAnswer::Refused };
        let Some(access) = self.clients.get(&(gateway, source)).and_then(|task| self.access.get(task)) else {
            return RecordAnswer::Refused;
        };
        let own = self.lookup_pointer(access, name, kind).or_else(|| self.lookup_name(access, &text(name), kind, rng));
        match own {
            Some(answer) => answer,
            // An internal network must not leak data through forwarded queries.
            None if !access.external => RecordAnswer::Refused,
            None => RecordAnswer::Forward(access.nameservers.clone()),
        }
    }

    /// Whether the address is one of our name servers: a query must not be forwarded to this server.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if self.gateways.contains(&address))
    }

    fn lookup_name(&self, access: &ClientAccess, name: &str, kind: RecordType, rng: &mut impl Rng) -> Option<RecordAnswer> {
        let visible = || access.zones.iter().filter_map(|index| self.zones.get(*index));
        let whole = visible().filter_map(|zone| zone.names.get(name));
        let within = visible().filter_map(|zone| {
            let rest = name.strip_suffix(zone.lower.as_str())?.strip_suffix('.')?;
            zone.names.get(rest)
        });
        // Of a service on several networks, its virtual address on the first of them.
        if access.vips {
            let whole = visible().find_map(|zone| zone.vips.get(name));
            let within = || {
                visible().find_map(|zone| {
                    let rest = name.strip_suffix(zone.lower.as_str())?.strip_suffix('.')?;
                    zone.vips.get(rest)
                })
            };
            if let Some(address) = whole.or_else(within) {
                let fits = matches!(kind, RecordType::A | RecordType::ANY);
                return Some(if fits { RecordAnswer::Addresses(vec![*address]) } else { RecordAnswer::Empty });
            }
        }
        let mut ours = false;
        for addresses in whole.chain(within) {
            ours = true;
            if addresses.is_empty() {
                continue;
            }
            if !matches!(kind, RecordType::A | RecordType::ANY) {
                return Some(RecordAnswer::Empty);
            }
            let mut addresses: Vec<Ipv4Addr> = addresses.iter().copied().collect();
            addresses.shuffle(rng);
            return Some(RecordAnswer::Addresses(addresses));
        }
        ours.then_some(RecordAnswer::Empty)
    }

    fn lookup_pointer(&self, access: &ClientAccess, name: &Name, kind: RecordType) -> Option<RecordAnswer> {
        match name.parse_arpa_name().ok()? {
            IpNet::V4(net) if net.prefix_len() == 32 => {
                let address = net.addr();
                let index = self.zones.iter().position(|zone| zone.subnet.contains(&address))?;
                let zone = &self.zones[index];
                let container = zone.reverse.get(&address).filter(|_| access.zones.contains(&index));
                Some(match container {
                    None => RecordAnswer::NoSuchName,
                    Some(_) if !matches!(kind, RecordType::PTR | RecordType::ANY) => RecordAnswer::Empty,
                    Some(container) => RecordAnswer::Pointer(format!("{container}.{}", zone.name)),
                })
            }
            IpNet::V6(net) if self.mesh.is_some_and(|mesh| mesh.contains(&net)) => Some(RecordAnswer::NoSuchName),
            _ => None,
        }
    }
}

impl Zone {
    fn build(network: &NetworkPart, ready: &VipReadiness) -> Self {
        let mut zone = Self {
            name: network.name.clone(),
            lower: network.name.to_ascii_lowercase(),
            subnet: network.subnet,
            names: BTreeMap::new(),
            vips: BTreeMap::new(),
            reverse: BTreeMap::new(),
        };
        for member in &network.members {
            for name in names_of(member) {
                let addresses = zone.names.entry(name.to_ascii_lowercase()).or_default();
                if member.backend {
                    addresses.insert(member.address);
                }
            }
            zone.reverse.insert(member.address, member.container_name.clone());
        }
        let mut tasks: BTreeMap<&ServiceId, Vec<&TaskEndpoint>> = BTreeMap::new();
        for member in &network.members {
            tasks.entry(&member.service_id).or_default().push(member);
        }
        for service in network.services.iter().filter(|service| ready.vips.contains(&service.vip)) {
            zone.reverse.insert(service.vip, service.name.clone());
            let own = tasks.get(&service.service_id).map_or(&[][..], Vec::as_slice);
            if own.iter().any(|m| m.backend && m.endpoint_mode == EndpointMode::Vip) {
                for name in own.iter().flat_map(|m| std::iter::once(&m.service_name).chain(&m.aliases)) {
                    zone.vips.insert(name.to_ascii_lowercase(), service.vip);
                }
            }
        }
        zone
    }
}

/// The names of a task. On the userspace datapath `service` and `tasks.service` have the same records; on the eBPF datapath
/// `service` is the virtual address, see [`Zone::vips`].
fn names_of(member: &TaskEndpoint) -> Vec<String> {
    let mut names = vec![member.container_name.clone()];
    for name in std::iter::once(&member.service_name).chain(&member.aliases) {
        names.push(name.clone());
        names.push(format!("tasks.{name}"));
    }
    if member.slot > 0 {
        names.push(format!("{}.{}", member.service_name, member.slot));
    }
    names
}

/// Resolvers of the task's spec. The API refuses what is no address, so that none is omitted here.
fn spec_nameservers(view: &NodeView, task: &TaskId) -> Vec<IpAddr> {
    let config = view.tasks.by_id.get(task).and_then(|task| task.spec.container_spec.dns_config.as_ref());
    config.map(|config| config.nameservers.iter().filter_map(|text| text.parse().ok()).collect()).unwrap_or_default()
}

/// A name's lower-case text without the final dot. A dot inside a label is escaped, unlike those between labels.
fn text(name: &Name) -> String {
    let labels: Vec<String> =
        name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase().replace('.', "\\.")).collect();
    labels.join(".")
}

#[cfg(test)]
mod tests;

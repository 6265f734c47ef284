//! Who may ask and what the answer is: the node's view turned into an index of names. Pure; knows neither sockets nor
//! time nor how a foreign name is looked up.
//!
//! A name is owned as long as a member of the network bears it, and answers those members that are backends. So a service
//! without a running task is an empty answer, not an unknown name, and never asked of the world.

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
    /// User networks by name, `ingress` last: the order in which names are looked for.
    zones: Vec<Zone>,
    /// Every network's gateway.
    gateways: BTreeSet<Ipv4Addr>,
    /// Containers of this node, by (gateway that they ask, their address).
    askers: BTreeMap<(Ipv4Addr, Ipv4Addr), TaskId>,
    /// What each of them may see.
    rights: BTreeMap<TaskId, Rights>,
    /// The cluster's own addresses, not asked of the world either.
    mesh: Option<Ipv6Net>,
}

/// One network.
#[derive(Debug)]
struct Zone {
    name: String,
    lower: String,
    subnet: Ipv4Net,
    /// Lower-case name → addresses of the backends that bear it (empty: owned, nobody there).
    names: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    /// Lower-case name of a service with a backend → its virtual address, as far as the eBPF datapath carries it.
    virtuals: BTreeMap<String, Ipv4Addr>,
    /// Address → container name.
    reverse: BTreeMap<Ipv4Addr, String>,
}

/// What a container may see.
#[derive(Default, Debug)]
struct Rights {
    /// Indexes of its networks.
    zones: Vec<usize>,
    /// Virtual addresses work in its namespace.
    virtuals: bool,
    /// One of its networks has a way out.
    outside: bool,
    /// Resolvers from its own spec.
    nameservers: Vec<IpAddr>,
}

/// What is to be said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// These addresses, in this order.
    Addresses(Vec<Ipv4Addr>),
    /// This name (of an address).
    Pointer(String),
    /// The name is ours and has nothing of that type.
    Empty,
    /// Would be ours and is not there.
    NoSuchName,
    /// The asker is nobody we know, or may not ask for this.
    Refused,
    /// Not ours: ask these resolvers, or the host's if there are none.
    Foreign(Vec<IpAddr>),
}

impl Records {
    /// The index of a view, for the containers of node `me`. `ready` says where virtual addresses work.
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
                records.askers.insert((network.gateway, member.address), member.task_id.clone());
                let rights = records.rights.entry(member.task_id.clone()).or_default();
                rights.zones.push(index);
                rights.virtuals |= ready.containers.contains(&member.address);
                rights.outside |= !network.internal;
                rights.nameservers = own_nameservers(view, &member.task_id);
            }
        }
        records
    }

    /// Answers one question of the container that has `source` on the network of `gateway`. Addresses come shuffled.
    pub fn answer(&self, gateway: Ipv4Addr, source: IpAddr, name: &Name, kind: RecordType, rng: &mut impl Rng) -> Answer {
        let IpAddr::V4(source) = source else { return Answer::Refused };
        let Some(rights) = self.askers.get(&(gateway, source)).and_then(|task| self.rights.get(task)) else {
            return Answer::Refused;
        };
        let owned = self.reverse(rights, name, kind).or_else(|| self.forward(rights, &text(name), kind, rng));
        match owned {
            Some(answer) => answer,
            // A network without a way out must not leak through questions either.
            None if !rights.outside => Answer::Refused,
            None => Answer::Foreign(rights.nameservers.clone()),
        }
    }

    /// Whether the address is ours: a resolver must not be told to ask itself.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if self.gateways.contains(&address))
    }

    fn forward(&self, rights: &Rights, name: &str, kind: RecordType, rng: &mut impl Rng) -> Option<Answer> {
        let visible = || rights.zones.iter().filter_map(|index| self.zones.get(*index));
        let whole = visible().filter_map(|zone| zone.names.get(name));
        let within = visible().filter_map(|zone| {
            let rest = name.strip_suffix(zone.lower.as_str())?.strip_suffix('.')?;
            zone.names.get(rest)
        });
        // A service on several networks: its virtual address on the first of them.
        if rights.virtuals {
            let whole = visible().find_map(|zone| zone.virtuals.get(name));
            let within = || {
                visible().find_map(|zone| {
                    let rest = name.strip_suffix(zone.lower.as_str())?.strip_suffix('.')?;
                    zone.virtuals.get(rest)
                })
            };
            if let Some(address) = whole.or_else(within) {
                let fits = matches!(kind, RecordType::A | RecordType::ANY);
                return Some(if fits { Answer::Addresses(vec![*address]) } else { Answer::Empty });
            }
        }
        let mut owned = false;
        for addresses in whole.chain(within) {
            owned = true;
            if addresses.is_empty() {
                continue;
            }
            if !matches!(kind, RecordType::A | RecordType::ANY) {
                return Some(Answer::Empty);
            }
            let mut addresses: Vec<Ipv4Addr> = addresses.iter().copied().collect();
            addresses.shuffle(rng);
            return Some(Answer::Addresses(addresses));
        }
        owned.then_some(Answer::Empty)
    }

    fn reverse(&self, rights: &Rights, name: &Name, kind: RecordType) -> Option<Answer> {
        match name.parse_arpa_name().ok()? {
            IpNet::V4(net) if net.prefix_len() == 32 => {
                let address = net.addr();
                let index = self.zones.iter().position(|zone| zone.subnet.contains(&address))?;
                let zone = &self.zones[index];
                let container = zone.reverse.get(&address).filter(|_| rights.zones.contains(&index));
                Some(match container {
                    None => Answer::NoSuchName,
                    Some(_) if !matches!(kind, RecordType::PTR | RecordType::ANY) => Answer::Empty,
                    Some(container) => Answer::Pointer(format!("{container}.{}", zone.name)),
                })
            }
            IpNet::V6(net) if self.mesh.is_some_and(|mesh| mesh.contains(&net)) => Some(Answer::NoSuchName),
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
            virtuals: BTreeMap::new(),
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
                    zone.virtuals.insert(name.to_ascii_lowercase(), service.vip);
                }
            }
        }
        zone
    }
}

/// The names that a task answers to. On the userspace datapath `service` and `tasks.service` are the same; on the eBPF datapath the
/// service's virtual address comes before.
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

/// Resolvers that the task's spec names. What is no address is left out: the API has refused it long before.
fn own_nameservers(view: &NodeView, task: &TaskId) -> Vec<IpAddr> {
    let config = view.tasks.by_id.get(task).and_then(|task| task.spec.container_spec.dns_config.as_ref());
    config.map(|config| config.nameservers.iter().filter_map(|text| text.parse().ok()).collect()).unwrap_or_default()
}

/// A name's lower-case text without the final dot. A dot within a label is kept apart from those between labels.
fn text(name: &Name) -> String {
    let labels: Vec<String> =
        name.iter().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase().replace('.', "\\.")).collect();
    labels.join(".")
}

#[cfg(test)]
mod tests;

//! Clients and answers: an index of names, built from the node's view. Pure; knows neither sockets nor time nor resolvers.
//!
//! A name is ours as long as a service or a task of the network has it, and its records are the addresses of those tasks that
//! are backends. So the name of a service without a running task is neither unknown nor forwarded: it has the service's
//! virtual address, or no records (NODATA).

use super::service_port;
use super::zone::{NameEntry, ServiceTarget, Zone};
use crate::datapath::ebpf::VipReadiness;
use crate::model::task::DnsConfig;
use crate::model::view::NetworkPart;
use crate::model::{NodeId, NodeView, TaskId};
use hickory_proto::rr::{Name, RecordType};
use ipnet::{IpNet, Ipv6Net};
use rand::Rng;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Names of the networks of this node.
#[derive(Default, Debug)]
pub struct Records {
    /// User networks by name, `ingress` last: the order of a lookup.
    zones: Vec<Zone>,
    /// The gateway of each network.
    gateways: BTreeSet<Ipv4Addr>,
    /// Containers of this node, by (gateway that they query, their address): index of `access`.
    clients: HashMap<(Ipv4Addr, Ipv4Addr), usize>,
    access: Vec<ClientAccess>,
    /// Addresses of nodes and containers inside the mesh, whose names are not forwarded either.
    mesh: Option<Ipv6Net>,
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
    nameservers: Arc<[IpAddr]>,
    /// Lower-case search domains after which its names are ours, too; see [`searched`].
    search: Vec<String>,
}

/// The answer to a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordAnswer {
    /// A records, in this order.
    Addresses(Vec<Ipv4Addr>),
    /// AAAA records, in this order.
    Addresses6(Vec<Ipv6Addr>),
    /// SRV records, in this order, and the A records of their targets.
    Services(Vec<ServiceTarget>),
    /// A PTR record with this name.
    Pointer(String),
    /// The name is ours and has no record of that type (NODATA).
    Empty,
    /// The name would be ours and does not exist, or there is no other network to ask on (NXDOMAIN).
    NoSuchName,
    /// The client is no container of this node.
    Refused,
    /// Not ours.
    Forward(OutsideName),
}

/// How a name outside the cluster is resolved.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct OutsideName {
    /// The client's own resolvers; empty: the host's.
    pub resolvers: Arc<[IpAddr]>,
    /// The answer if the name does not exist outside or no resolver answers.
    pub otherwise: Option<Box<RecordAnswer>>,
}

impl Records {
    /// Builds the index of a view, for the containers of node `me`. `ready` names the containers in which virtual addresses work.
    #[must_use]
    pub fn build(me: &NodeId, view: &NodeView, ready: &VipReadiness) -> Self {
        let mut networks: Vec<&NetworkPart> = view.networks.by_id.values().collect();
        networks.sort_by_key(|n| (n.ingress, &n.name));
        let mut records = Self { mesh: Some(view.cluster.mesh.0), ..Self::default() };
        let mut by_task: BTreeMap<&TaskId, usize> = BTreeMap::new();
        for network in networks {
            let zone = records.zones.len();
            records.zones.push(Zone::build(network, ready));
            records.gateways.insert(network.gateway);
            for member in network.members.iter().filter(|m| m.node_id == *me) {
                let index = *by_task.entry(&member.task_id).or_insert_with(|| {
                    records.access.push(ClientAccess::of_task(view, &member.task_id));
                    records.access.len() - 1
                });
                records.clients.insert((network.gateway, member.address), index);
                let access = &mut records.access[index];
                access.zones.push(zone);
                access.vips |= ready.containers.contains(&member.address);
                access.external |= !network.internal;
            }
        }
        records
    }

    /// Answers a query of the container with address `source` on the network of `gateway`, for a name as
    /// [`super::message::DnsQuery::name`] spells it. Records are shuffled.
    pub fn answer(&self, gateway: Ipv4Addr, source: IpAddr, name: &str, kind: RecordType, rng: &mut impl Rng) -> RecordAnswer {
        let IpAddr::V4(source) = source else { return RecordAnswer::Refused };
        let Some(access) = self.clients.get(&(gateway, source)).and_then(|index| self.access.get(*index)) else {
            return RecordAnswer::Refused;
        };
        if let Some(answer) = self.own_answer(access, name, kind, rng) {
            return answer;
        }
        let searched = access.search.iter().find_map(|domain| name.strip_suffix(domain.as_str())?.strip_suffix('.'));
        let otherwise = searched.and_then(|rest| self.own_answer(access, rest, kind, rng));
        if access.external {
            return RecordAnswer::Forward(OutsideName {
                resolvers: Arc::clone(&access.nameservers),
                otherwise: otherwise.map(Box::new),
            });
        }
        // An internal network must not leak data through forwarded queries. An error instead of NXDOMAIN would make clients
        // ask again: musl waits 5 s after REFUSED.
        otherwise.unwrap_or(RecordAnswer::NoSuchName)
    }

    /// Whether the address is one of our name servers: a query must not be forwarded to this server.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if self.gateways.contains(&address))
    }

    fn own_answer(&self, access: &ClientAccess, name: &str, kind: RecordType, rng: &mut impl Rng) -> Option<RecordAnswer> {
        if name.rsplit('.').next() == Some("arpa")
            && let Some(answer) = self.lookup_pointer(access, name, kind)
        {
            return Some(answer);
        }
        self.lookup_name(access, name, kind, rng).or_else(|| self.lookup_service(access, name, kind, rng))
    }

    /// The entries of a name: as it is in each of the client's networks, then with the network's name at its end.
    fn entries<'a>(&'a self, access: &'a ClientAccess, name: &'a str) -> impl Iterator<Item = (&'a Zone, &'a NameEntry)> {
        let visible = || access.zones.iter().filter_map(|index| self.zones.get(*index));
        let whole = visible().filter_map(move |zone| Some((zone, zone.entry(name)?)));
        let within = visible().filter_map(move |zone| Some((zone, zone.entry_within(name)?)));
        whole.chain(within)
    }

    fn lookup_name(&self, access: &ClientAccess, name: &str, kind: RecordType, rng: &mut impl Rng) -> Option<RecordAnswer> {
        let (mut ours, mut vip, mut addresses) = (false, None, None);
        for (zone, entry) in self.entries(access, name) {
            ours = true;
            // Of IPv6 addresses, the first network on which the name has some.
            if kind == RecordType::AAAA && zone.pairs.is_empty() {
                continue;
            }
            let served = !entry.addresses.is_empty();
            if let Some(address) = entry.vip.filter(|_| access.vips) {
                // Of a service on several networks, its virtual address on the first of them.
                if served {
                    vip = Some((zone, address, true));
                    break;
                }
                vip = vip.or(Some((zone, address, false)));
            }
            if served && addresses.is_none() {
                addresses = Some((zone, &entry.addresses));
            }
        }
        if !ours || !matches!(kind, RecordType::A | RecordType::AAAA | RecordType::ANY) {
            return ours.then_some(RecordAnswer::Empty);
        }
        Some(match (vip, addresses) {
            (Some((zone, vip, true)), _) | (Some((zone, vip, false)), None) => zone.answer(vec![vip], kind),
            (_, Some((zone, addresses))) => {
                let mut addresses = addresses.clone();
                addresses.shuffle(rng);
                zone.answer(addresses, kind)
            }
            (None, None) => RecordAnswer::Empty,
        })
    }

    /// `_PORT._PROTOCOL.NAME`, where NAME is ours: its tasks, also of a service with a virtual address, because a client that
    /// asks for SRV records balances by itself.
    fn lookup_service(&self, access: &ClientAccess, name: &str, kind: RecordType, rng: &mut impl Rng) -> Option<RecordAnswer> {
        let (label, protocol, service) = service_port::parse(name)?;
        let (mut ours, mut published) = (false, false);
        for (zone, entry) in self.entries(access, service) {
            ours = true;
            published |= entry.ports.iter().any(|port| port.matches(label, protocol));
            let mut targets = zone.targets(entry, label, protocol);
            if !targets.is_empty() && matches!(kind, RecordType::SRV | RecordType::ANY) {
                targets.shuffle(rng);
                return Some(RecordAnswer::Services(targets));
            }
        }
        ours.then_some(if published { RecordAnswer::Empty } else { RecordAnswer::NoSuchName })
    }

    fn lookup_pointer(&self, access: &ClientAccess, name: &str, kind: RecordType) -> Option<RecordAnswer> {
        match Name::from_ascii(format!("{name}.")).ok()?.parse_arpa_name().ok()? {
            IpNet::V4(net) if net.prefix_len() == 32 => {
                let index = self.zones.iter().position(|zone| zone.subnets.iter().any(|subnet| subnet.contains(&net.addr())))?;
                Some(self.pointer(access, index, Some(net.addr()), kind))
            }
            IpNet::V6(net) if net.prefix_len() == 128 && self.zone6(net.addr()).is_some() => {
                let index = self.zone6(net.addr())?;
                let address = self.zones[index].pairs.iter().find_map(|pair| pair.to_v4(net.addr()));
                Some(self.pointer(access, index, address, kind))
            }
            IpNet::V6(net) if self.mesh.is_some_and(|mesh| mesh.contains(&net)) => Some(RecordAnswer::NoSuchName),
            _ => None,
        }
    }
}

impl Records {
    /// The index of the network with this IPv6 address.
    fn zone6(&self, address: Ipv6Addr) -> Option<usize> {
        self.zones.iter().position(|zone| zone.subnet6.is_some_and(|subnet| subnet.contains(&address)))
    }

    /// The name of a host, by its IPv4 address.
    fn pointer(&self, access: &ClientAccess, index: usize, address: Option<Ipv4Addr>, kind: RecordType) -> RecordAnswer {
        let zone = &self.zones[index];
        let container = address.and_then(|address| zone.name_of(address)).filter(|_| access.zones.contains(&index));
        match container {
            None => RecordAnswer::NoSuchName,
            Some(_) if !matches!(kind, RecordType::PTR | RecordType::ANY) => RecordAnswer::Empty,
            Some(container) => RecordAnswer::Pointer(format!("{container}.{}", zone.name)),
        }
    }
}

impl Zone {
    /// Addresses of this network as records of this type.
    fn answer(&self, addresses: Vec<Ipv4Addr>, kind: RecordType) -> RecordAnswer {
        if kind != RecordType::AAAA || self.pairs.is_empty() {
            return RecordAnswer::Addresses(addresses);
        }
        let to_v6 = |address| self.pairs.iter().find_map(|pair| pair.to_v6(address));
        RecordAnswer::Addresses6(addresses.into_iter().filter_map(to_v6).collect())
    }
}

impl ClientAccess {
    fn of_task(view: &NodeView, task: &TaskId) -> Self {
        let config = view.tasks.by_id.get(task).and_then(|task| task.spec.container_spec.dns_config.as_ref());
        // The API refuses what is no address, so that none is omitted for that here. The host reaches no address of an overlay network,
        // and would ask the machine that has it on the networks outside.
        let is_outside = |address: &IpAddr| match address {
            IpAddr::V4(v4) => !view.cluster.subnets.iter().any(|subnet| subnet.contains(v4)),
            IpAddr::V6(v6) => !view.cluster.pairs.iter().any(|pair| pair.v6.contains(v6)),
        };
        let nameservers = config.iter().flat_map(|config| &config.nameservers).filter_map(|text| text.parse().ok());
        let nameservers = nameservers.filter(is_outside).collect();
        Self { nameservers, search: config.map(searched).unwrap_or_default(), ..Self::default() }
    }
}

/// The search domains of a task whose resolv.conf has `ndots`. The engine's resolver keeps such a task's names of one label to
/// itself (it expects the client to ask `NAME.DOMAIN` next), so our names exist within these domains as well, after those that
/// the domain itself has.
fn searched(config: &DnsConfig) -> Vec<String> {
    if !crate::model::resolv_options::keeps_ndots(config) {
        return Vec::new();
    }
    config.search.iter().map(|domain| domain.trim_matches('.').to_ascii_lowercase()).filter(|d| !d.is_empty()).collect()
}

#[cfg(test)]
mod tests;

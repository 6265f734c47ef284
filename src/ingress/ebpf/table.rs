//! What the maps of the eBPF datapath shall hold, from the view and from what the node stands on: `desired` as a whole,
//! `follow` from one view to the next. `plan` is the difference to what they hold, `space` says where tables lie. Pure.

mod follow;
#[cfg(test)]
mod follow_tests;
mod plan;
mod space;

pub use follow::{Changed, DesiredState, Dirty};
pub use plan::plan;
pub use space::SlotAllocator;

use super::maglev::Built;
use crate::datapath::ebpf::{
    EbpfStep, HOST_END, Hook, HostDevices, MESH_END, ProgramLink, SCTP, Slots, Sources, Tables, ports_unavailable,
};
use crate::datapath::mesh::TUNNEL;
use crate::model::IpFamily;
use crate::model::service::EndpointMode;
use crate::model::view::{NetworkPart, Peer, PublishedPort, TaskEndpoint};
use crate::model::{NodeId, NodeView, Protocol, ServiceId};
use ipnet::IpNet;
use skep_ebpf::{
    AFFINITY, Address, Backend, Config, GUARDED, NO_CLIENT, NetnsMembership, Port, PortNumber, Source, V4, convert, packet,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// What shall be there. Tables by content; where they lie follows from where they are.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// What this node is.
    pub config: Config,
    /// Virtual addresses: network, mask, backends.
    pub vips: BTreeMap<V4, (V4, V4, Slots)>,
    /// Namespaces on networks.
    pub members: BTreeSet<NetnsMembership>,
    /// Published ports: target, flags and table. Those that the eBPF datapath does not serve are here without a backend: what
    /// leaves from their numbers is told apart all the same.
    pub ports: BTreeMap<Port, (PortNumber, u16, Slots)>,
    /// Containers.
    pub backends: BTreeMap<V4, Backend>,
    /// The host's addresses.
    pub locals: BTreeSet<Address>,
    /// Who may use which port, and who is nobody's client.
    pub sources: Sources,
    /// Programs at their places.
    pub links: BTreeSet<ProgramLink>,
}

/// Which plane serves a published port, and why not the ebpf one.
pub type PortPlane = Result<(), String>;

/// What there is on this node besides its view.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// This node.
    pub me: &'a NodeId,
    /// Devices and addresses.
    pub around: &'a HostDevices,
    /// Namespaces on networks.
    pub members: &'a BTreeSet<NetnsMembership>,
    /// Hooks that cannot be had, and why.
    pub unavailable: &'a BTreeMap<Hook, String>,
}

/// What shall be there, with the tables that were built before.
#[must_use]
pub fn desired(built: &mut Built, view: &NodeView, given: &Inputs) -> Desired {
    built.begin();
    let Inputs { me, around, members, unavailable } = *given;
    let nodes = nodes(view);
    let mut desired = Desired { members: members.clone(), config: config(view, given), ..Desired::default() };
    desired.locals = around.locals.iter().copied().map(convert::address).collect();
    for network in view.networks.by_id.values() {
        virtual_addresses(network, &mut desired);
        let all = network.members.iter().filter_map(|task| backend(&nodes, me, around, task));
        desired.backends.extend(all);
        desired.sources.insert(source(NO_CLIENT, IpNet::V4(network.subnet)));
    }
    // Addresses that only the swarm gives: who has one is no client from outside, and answers would not find it.
    desired.sources.extend(view.cluster.pools.iter().map(|pool| source(NO_CLIENT, IpNet::V4(*pool))));
    desired.sources.insert(source(NO_CLIENT, IpNet::V6(view.cluster.mesh.0)));
    if ports_unavailable(unavailable).is_none() {
        let planes = Planes::of(view, unavailable);
        for port in view.cluster.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
            for family in IpFamily::ALL {
                frontend(built, &planes, port, family, &mut desired);
            }
        }
    }
    built.forget();
    desired.links = links(around, unavailable);
    desired
}

/// Containers that virtual addresses lead to no more once these steps are carried out.
#[must_use]
pub fn left(desired: &Desired, tables: &Tables, steps: &[EbpfStep]) -> BTreeSet<Ipv4Addr> {
    let turned = steps.iter().filter_map(|step| match step {
        EbpfStep::SetVip(address, _) | EbpfStep::RemoveVip(address) => Some(address),
        _ => None,
    });
    let mut left = BTreeSet::new();
    for address in turned {
        let before = tables.vips.get(address).and_then(|vip| tables.slots.get(&(vip.base, vip.size)));
        let now = desired.vips.get(address).map(|(.., slots)| &slots[..]).unwrap_or_default();
        left.extend(before.into_iter().flat_map(|slots| slots.iter()).filter(|slot| !now.contains(slot)));
    }
    left.into_iter().map(convert::to_v4).collect()
}

/// Nodes by id.
type Nodes<'a> = BTreeMap<&'a NodeId, &'a Peer>;

fn nodes(view: &NodeView) -> Nodes<'_> {
    view.cluster.nodes.iter().map(|node| (&node.node_id, node)).collect()
}

fn config(view: &NodeView, given: &Inputs) -> Config {
    let Some(own) = view.cluster.node(given.me) else { return Config::default() };
    let around = given.around;
    let mut uplinks = around.uplinks.values();
    Config {
        host_end: around.host_end.unwrap_or_default(),
        mesh_end: around.mesh_end.unwrap_or_default(),
        tunnel: around.tunnel.unwrap_or_default(),
        uplink: uplinks.next().copied().filter(|_| uplinks.next().is_none()).unwrap_or_default(),
        prefix: convert::prefix(own.subnet.addr()),
        containers: convert::prefix(view.cluster.mesh.container(Ipv4Addr::UNSPECIFIED)),
    }
}

/// What decides which plane serves a port, looked up once for all of them.
pub struct Planes<'a> {
    unavailable: Option<(Hook, &'a str)>,
    /// Nodes without a eBPF datapath, with their names.
    without: BTreeMap<&'a NodeId, &'a str>,
}

impl<'a> Planes<'a> {
    /// Of this node.
    #[must_use]
    pub fn of(view: &'a NodeView, unavailable: &'a BTreeMap<Hook, String>) -> Self {
        let without = view.cluster.nodes.iter().filter(|node| !node.ebpf);
        Self {
            unavailable: ports_unavailable(unavailable),
            without: without.map(|node| (&node.node_id, node.hostname.as_str())).collect(),
        }
    }

    /// Whether the eBPF datapath serves a port for clients of a family on this node.
    ///
    /// # Errors
    /// Why it does not.
    pub fn serves(&self, port: &PublishedPort, family: IpFamily) -> PortPlane {
        if let Some((hook, why)) = self.unavailable {
            return Err(format!("{} cannot run: {why}", hook.program()));
        }
        if port.protocol == Protocol::Sctp {
            return Err("neither TCP nor UDP".to_owned());
        }
        if let Some(node) = port.backends.iter().find_map(|backend| self.without.get(&backend.node_id)) {
            return Err(format!("node {node} has no eBPF datapath"));
        }
        if listening(port, family).next().is_none() {
            return Err(match (port.backends.is_empty(), family) {
                (true, _) => "no task runs".to_owned(),
                (false, IpFamily::V4) => format!("no task was seen to listen on {}", port.target),
                (false, IpFamily::V6) => format!("no task was seen to listen on {} over IPv6", port.target),
            });
        }
        Ok(())
    }
}

/// Backends that take connections of this family.
fn listening(port: &PublishedPort, family: IpFamily) -> impl Iterator<Item = Ipv4Addr> + '_ {
    let takes = move |b: &&crate::model::view::Backend| if family == IpFamily::V4 { b.listens.v4 } else { b.listens.v6 };
    port.backends.iter().filter(takes).map(|b| b.address)
}

fn source(scope: u32, net: IpNet) -> (u32, Source) {
    let length = match net {
        IpNet::V4(net) => 96 + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    };
    (32 + length, Source { scope, address: convert::address(net.network()) })
}

fn virtual_addresses(network: &NetworkPart, desired: &mut Desired) {
    let (net, mask) = (convert::v4(network.subnet.network()), convert::v4(network.subnet.netmask()));
    let mut backends: BTreeMap<&ServiceId, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for task in network.members.iter().filter(|task| takes_connections(task)) {
        backends.entry(&task.service_id).or_default().insert(task.address);
    }
    for service in &network.services {
        let own = backends.get(&service.service_id).into_iter().flatten();
        desired.vips.insert(convert::v4(service.vip), (net, mask, own.copied().map(convert::v4).collect()));
    }
}

/// Whether its service's virtual address leads to it.
fn takes_connections(task: &TaskEndpoint) -> bool {
    task.backend && task.endpoint_mode == EndpointMode::Vip
}

/// Where a task's container is; `None` if its node is not known, or it is here and has no device.
fn backend(nodes: &Nodes, me: &NodeId, around: &HostDevices, task: &TaskEndpoint) -> Option<(V4, Backend)> {
    let node = nodes.get(&task.node_id)?;
    let ifindex = if task.node_id == *me { around.veths.get(&task.address)?.1 } else { 0 };
    let backend = Backend { ifindex, serving: task.backend.into(), prefix: convert::prefix(node.subnet.addr()) };
    Some((convert::v4(task.address), backend))
}

/// The port as the maps name it.
#[must_use]
pub fn port_key(port: &PublishedPort, family: IpFamily) -> Port {
    let protocol = match port.protocol {
        Protocol::Udp => packet::UDP,
        Protocol::Tcp => packet::TCP,
        Protocol::Sctp => SCTP,
    };
    Port { protocol, family: if family == IpFamily::V4 { 4 } else { 6 }, port: convert::port(port.published) }
}

fn frontend(built: &mut Built, planes: &Planes, port: &PublishedPort, family: IpFamily, desired: &mut Desired) {
    let key = port_key(port, family);
    let mut flags = 0;
    if port.affinity {
        flags |= AFFINITY;
    }
    if !port.allow.is_empty() {
        flags |= GUARDED;
        let nets =
            port.allow.iter().filter(|net| matches!((net, family), (IpNet::V4(_), IpFamily::V4) | (IpNet::V6(_), IpFamily::V6)));
        desired.sources.extend(nets.map(|net| source(key.scope(), *net)));
    }
    let slots = if planes.serves(port, family).is_ok() {
        // In one order on every node.
        let backends: BTreeSet<Ipv4Addr> = listening(port, family).collect();
        let backends: Vec<Ipv4Addr> = backends.into_iter().collect();
        built.slots(&backends)
    } else {
        Slots::default()
    };
    desired.ports.insert(key, (convert::port(port.target), flags, slots));
}

fn links(around: &HostDevices, unavailable: &BTreeMap<Hook, String>) -> BTreeSet<ProgramLink> {
    let mut links = BTreeSet::new();
    let ports = ports_unavailable(unavailable).is_none();
    for hook in Hook::ALL.into_iter().filter(|hook| !unavailable.contains_key(hook)) {
        let mut put = |device: &str, index: u32| {
            links.insert(ProgramLink { hook, device: device.to_owned(), index });
        };
        match hook {
            Hook::FromUplink | Hook::OutUplink | Hook::FromHost | Hook::FromMesh | Hook::ToUplink if !ports => {}
            Hook::FromUplink | Hook::OutUplink => around.uplinks.iter().for_each(|(name, index)| put(name, *index)),
            Hook::FromHost => around.mesh_end.iter().for_each(|index| put(MESH_END, *index)),
            Hook::ToUplink => around.host_end.iter().for_each(|index| put(HOST_END, *index)),
            Hook::FromMesh => around.tunnel.iter().for_each(|index| put(TUNNEL, *index)),
            Hook::FromContainer => around.veths.values().for_each(|(name, index)| put(name, *index)),
            _ => put("", 0),
        }
    }
    links
}

#[cfg(test)]
mod tests;

//! The desired contents of the eBPF maps and the desired program attachments, computed from the node's view and from what
//! this node has: host devices, container namespaces, available hooks. Pure. Knows neither the current contents of the maps
//! nor where a Maglev table lies in the slot array.

use super::eligibility::PortEligibility;
use super::inputs::Inputs;
use super::left_objects::LeftObjects;
use super::maglev::TableCache;
use crate::datapath::ebpf::{
    HOST_END, Hook, HostDevices, MESH_END, Members, ProgramLink, SCTP, Slots, Sources, Subnets6, ports_unavailable,
};
use crate::datapath::mesh::TUNNEL;
use crate::model::mesh::DEFAULT_PORT;
use crate::model::service::EndpointMode;
use crate::model::view::{NetworkPart, Peer, PublishedPort, TaskEndpoint};
use crate::model::{IpFamily, NodeId, NodeView, Protocol, ServiceId};
use ipnet::IpNet;
use skep_ebpf::{
    AFFINITY, Address, Backend, Config, GUARDED, INGRESS, NO_CLIENT, NODE, Port, PortNumber, Source, V4, convert, hash_key,
    owner, packet,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

/// What the maps and attachments should contain. Backends by content; their place in the slot array is decided by the plan.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DesiredDatapath {
    /// Device numbers and address prefixes of this node.
    pub config: Config,
    /// By virtual address.
    pub vips: BTreeMap<V4, DesiredVip>,
    /// Container namespaces on networks.
    pub members: Members,
    /// IPv6 subnets of the networks that this node has.
    pub subnets6: Subnets6,
    /// Published ports. Those that the eBPF datapath does not serve are included without backends: the programs must still
    /// recognise packets that leave from these port numbers.
    pub ports: BTreeMap<Port, DesiredPort>,
    /// By container address.
    pub backends: BTreeMap<V4, Backend>,
    /// Addresses of the host's uplinks.
    pub locals: BTreeSet<Address>,
    /// Indexes of the host's uplinks.
    pub uplinks: BTreeSet<u32>,
    /// Client prefixes that may use a port, and prefixes whose packets are never from external clients.
    pub sources: Sources,
    /// Attached programs.
    pub links: BTreeSet<ProgramLink>,
    /// What is not in the above because it does not fit, or the kernel did not take it.
    pub left: LeftObjects,
}

/// A virtual address with its network and the Maglev table of its backends.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DesiredVip {
    pub network: V4,
    pub mask: V4,
    pub slots: Slots,
    /// [`owner`] of the service.
    pub owner: u32,
    /// Its tasks that receive traffic, and whether each was seen to listen.
    pub tasks: BTreeMap<Ipv4Addr, bool>,
}

impl DesiredVip {
    /// Computes the slots: the tasks that were seen to listen, or all if none was. (What does not listen to what skep knows of
    /// would else be cut off.)
    pub(super) fn select(&mut self, tables: &mut TableCache) {
        let ready: BTreeSet<Ipv4Addr> = self.tasks.iter().filter(|(_, ready)| **ready).map(|(address, _)| *address).collect();
        self.slots = tables.slots(&if ready.is_empty() { self.tasks.keys().copied().collect() } else { ready });
    }
}

/// A published port with the Maglev table of its backends.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DesiredPort {
    /// Port in the container.
    pub target: PortNumber,
    /// [`AFFINITY`], [`GUARDED`].
    pub flags: u16,
    pub slots: Slots,
    /// [`owner`] of the service.
    pub owner: u32,
}

/// Computes the desired datapath; takes Maglev tables that did not change from `tables`.
pub(super) fn desired_datapath(tables: &mut TableCache, view: &NodeView, inputs: &Inputs) -> DesiredDatapath {
    tables.start_generation(cluster_key(view));
    let Inputs { me, host_devices, members, unavailable, .. } = *inputs;
    let nodes = nodes(view);
    let mut desired = DesiredDatapath { members: members.clone(), config: config(view, inputs), ..DesiredDatapath::default() };
    desired.locals = host_devices.locals.iter().copied().map(convert::address).collect();
    desired.uplinks = host_devices.uplinks.values().copied().collect();
    for network in view.networks.by_id.values() {
        add_vips(tables, network, &mut desired);
        for pair in network.pairs() {
            let (length, first, subnet) =
                convert::subnet6(pair.v6.addr(), pair.v6.prefix_len(), pair.v4.network(), pair.v4.netmask());
            desired.subnets6.insert((length, first), subnet);
        }
        for further in &network.further {
            let (length, first, subnet) =
                convert::further_subnet(further.subnet.network(), further.subnet.prefix_len(), network.subnet.network());
            desired.subnets6.insert((length, first), subnet);
        }
        let backends = network.members.iter().filter_map(|task| backend(&nodes, inputs, network.ingress, task));
        desired.backends.extend(backends);
        desired.sources.extend(network.subnets().into_iter().map(|subnet| source(NO_CLIENT, IpNet::V4(subnet))));
    }
    // Containers route replies to these addresses to a network of the cluster, not to the client. Only the subnets that
    // networks have: the rest of a pool may be the addresses of clients outside (10.0.0.0/8 is the default pool, and the most
    // common private network).
    let subnets = if view.cluster.subnets.is_empty() { &view.cluster.pools } else { &view.cluster.subnets };
    desired.sources.extend(subnets.iter().map(|subnet| source(NO_CLIENT, IpNet::V4(*subnet))));
    desired.sources.extend(view.cluster.pairs.iter().map(|pair| source(NO_CLIENT, IpNet::V6(pair.v6))));
    for node in view.cluster.nodes.iter().filter(|node| node.node_id != *me) {
        desired.sources.extend(node.known_addresses().map(|address| source(NODE, address.into())));
    }
    desired.sources.insert(source(NO_CLIENT, IpNet::V6(view.cluster.mesh.0)));
    if ports_unavailable(unavailable).is_none() {
        let eligibility = PortEligibility::new(view, inputs.unavailable, inputs.held.map(|held| &**held));
        for port in view.cluster.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
            for family in IpFamily::ALL {
                add_port(tables, &eligibility, port, family, &mut desired);
            }
        }
    }
    tables.drop_unused();
    desired.links = links(host_devices, unavailable);
    desired
}

/// Nodes by id.
pub(super) type NodesById<'a> = BTreeMap<&'a NodeId, &'a Peer>;

pub(super) fn nodes(view: &NodeView) -> NodesById<'_> {
    view.cluster.nodes.iter().map(|node| (&node.node_id, node)).collect()
}

fn config(view: &NodeView, inputs: &Inputs) -> Config {
    let Some(own) = view.cluster.node(inputs.me) else { return Config::default() };
    let devices = inputs.host_devices;
    let mut uplinks = devices.uplinks.values();
    let ingress = view.networks.by_id.values().find(|network| network.ingress);
    Config {
        host_end: devices.host_end.unwrap_or_default(),
        mesh_end: devices.mesh_end.unwrap_or_default(),
        tunnel: devices.tunnel.unwrap_or_default(),
        uplink: uplinks.next().copied().filter(|_| uplinks.next().is_none()).unwrap_or_default(),
        prefix: convert::prefix(own.subnet.addr()),
        containers: convert::prefix(view.cluster.mesh.container(Ipv4Addr::UNSPECIFIED)),
        ingress: ingress.map_or(0, |network| convert::v4(network.subnet.network())),
        udp_idle: u32::try_from(inputs.udp_idle.as_secs()).unwrap_or(u32::MAX).max(1),
        tunnel_port: convert::port(own.endpoints.first().map_or(DEFAULT_PORT, SocketAddr::port)),
        // With further subnets an address says nothing by itself.
        ingress_length: ingress.filter(|n| n.further.is_empty()).map_or(0, |network| network.subnet.prefix_len().into()),
        hash_key: convert::hash_key(cluster_key(view)),
    }
}

/// The key of the cluster's hashes. The prefix of its mesh is drawn at random and is the same on all nodes; no address that
/// clients see has a part of it.
fn cluster_key(view: &NodeView) -> u64 {
    hash_key(&view.cluster.mesh.0.addr().octets())
}

fn source(scope: u32, net: IpNet) -> (u32, Source) {
    let length = match net {
        IpNet::V4(net) => 96 + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    };
    (32 + length, Source { scope, address: convert::address(net.network()) })
}

fn add_vips(tables: &mut TableCache, network: &NetworkPart, desired: &mut DesiredDatapath) {
    let (net, mask) = (convert::v4(network.subnet.network()), convert::v4(network.subnet.netmask()));
    let mut tasks: BTreeMap<&ServiceId, BTreeMap<Ipv4Addr, bool>> = BTreeMap::new();
    for task in network.members.iter().filter(|task| is_vip_backend(task)) {
        tasks.entry(&task.service_id).or_default().insert(task.address, !task.starting);
    }
    for service in &network.services {
        let mut vip = DesiredVip {
            network: net,
            mask,
            slots: Slots::default(),
            owner: owner(service.service_id.as_str().as_bytes()),
            tasks: tasks.remove(&service.service_id).unwrap_or_default(),
        };
        vip.select(tables);
        desired.vips.insert(convert::v4(service.vip), vip);
    }
}

/// Whether the virtual address of its service may send connections to a task.
pub(super) fn is_vip_backend(task: &TaskEndpoint) -> bool {
    task.backend && task.endpoint_mode == EndpointMode::Vip
}

/// The entry of a task's container on a network; `ingress`: it is the one of that name. `None` if its node is unknown or lost or
/// the container has ended, so that its flows are selected again and answered, or if it is this node's and has no device yet. Of a
/// node that is down and answers here, the daemon alone is gone: it is sent nothing new, and its connections last.
pub(super) fn backend(nodes: &NodesById, inputs: &Inputs, ingress: bool, task: &TaskEndpoint) -> Option<(V4, Backend)> {
    let (own, node) = (task.node_id == *inputs.me, nodes.get(&task.node_id)?);
    // A node that returns is down in its own first view.
    let down = node.down && !own;
    if task.gone || (down && inputs.lost.is_some_and(|lost| lost.contains(&task.node_id))) {
        return None;
    }
    let ifindex = if own { inputs.host_devices.veths.get(&task.address)?.1 } else { 0 };
    let owner = owner(task.service_id.as_str().as_bytes());
    let (serving, prefix) = ((task.backend && !down).into(), convert::prefix(node.subnet.addr()));
    let backend = Backend { ifindex, serving, prefix, owner, flags: if ingress { INGRESS } else { 0 } };
    Some((convert::v4(task.address), backend))
}

/// The map key of a published port.
pub(super) fn port_key(port: &PublishedPort, family: IpFamily) -> Port {
    let protocol = match port.protocol {
        Protocol::Udp => packet::UDP,
        Protocol::Tcp => packet::TCP,
        Protocol::Sctp => SCTP,
    };
    Port { protocol, family: if family == IpFamily::V4 { 4 } else { 6 }, port: convert::port(port.published) }
}

/// Adds a published port with its allowed sources.
pub(super) fn add_port(
    tables: &mut TableCache,
    eligibility: &PortEligibility,
    port: &PublishedPort,
    family: IpFamily,
    desired: &mut DesiredDatapath,
) {
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
    let slots = if eligibility.check(port, family).is_ok() {
        tables.slots(&eligibility.backends(port, family).collect())
    } else {
        Slots::default()
    };
    let owner = owner(port.service_id.as_str().as_bytes());
    desired.ports.insert(key, DesiredPort { target: convert::port(port.target), flags, slots, owner });
}

pub(super) fn links(host_devices: &HostDevices, unavailable: &BTreeMap<Hook, String>) -> BTreeSet<ProgramLink> {
    let mut links = BTreeSet::new();
    let serves_ports = ports_unavailable(unavailable).is_none();
    for hook in Hook::ALL.into_iter().filter(|hook| !unavailable.contains_key(hook)) {
        let mut add = |device: &str, index: u32| {
            links.insert(ProgramLink { hook, device: device.to_owned(), index });
        };
        match hook {
            Hook::FromUplink | Hook::OutUplink | Hook::FromHost | Hook::FromMesh | Hook::ToUplink if !serves_ports => {}
            Hook::FromUplink | Hook::OutUplink => host_devices.uplinks.iter().for_each(|(name, index)| add(name, *index)),
            Hook::FromHost => host_devices.mesh_end.iter().for_each(|index| add(MESH_END, *index)),
            Hook::ToUplink => host_devices.host_end.iter().for_each(|index| add(HOST_END, *index)),
            Hook::FromMesh => host_devices.tunnel.iter().for_each(|index| add(TUNNEL, *index)),
            Hook::FromContainer => host_devices.veths.values().for_each(|(name, index)| add(name, *index)),
            _ => add("", 0),
        }
    }
    links
}

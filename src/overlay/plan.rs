//! What the mesh namespace of a node shall hold, from its view. Pure.

use crate::datapath::links::{member_route, own_route, rules};
use crate::datapath::mesh::{Action, MAIN, MeshState, Route, Rule, TUNNEL, Target, address_of, base, ipv6_switch, mesh_end};
use crate::model::mesh::gateway;
use crate::model::{NodeId, NodeView};
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// What shall be there. Devices are others' to make; what they shall be like is said here.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// Sysctls below `/proc/sys/net`.
    pub sysctls: BTreeMap<String, String>,
    /// Devices that shall be up.
    pub up: BTreeSet<String>,
    /// MTU of devices.
    pub mtu: BTreeMap<String, u32>,
    /// Addresses by device.
    pub addresses: BTreeSet<(String, IpAddr)>,
    /// Rules, no others.
    pub rules: BTreeSet<Rule>,
    /// Routes, no others.
    pub routes: BTreeSet<Route>,
}

/// What a network needs here: its gateway, and the way to each member.
struct Net {
    gateway: Ipv4Addr,
    /// This node's own address on it (`ingress` only).
    own: Option<Ipv4Addr>,
    /// Members on other nodes.
    remote: BTreeSet<Ipv4Addr>,
}

/// What shall be there on node `me`. `actual` says which devices there are: a route needs its device.
#[must_use]
pub fn desired(view: &NodeView, me: &NodeId, actual: &MeshState, mtu: u32) -> Desired {
    let mut desired = Desired { rules: base::rules(), ..Desired::default() };
    desired.sysctls.extend(base::SYSCTLS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    desired.up.insert("lo".to_owned());
    node_addresses(view, me, actual, &mut desired);

    let veths: BTreeSet<Ipv4Addr> = actual.links.keys().filter_map(|link| address_of(link)).collect();
    for (subnet, net) in networks(view, me, actual, &veths) {
        network(subnet, &net, &veths, actual, &mut desired);
    }
    for address in veths {
        let end = mesh_end(address);
        desired.sysctls.insert(ipv6_switch(&end), "1".to_owned());
        if mtu > 0 {
            desired.mtu.insert(end.clone(), mtu);
        }
        desired.up.insert(end);
    }
    desired
}

/// The node's own ULA, and the way to those of the others.
fn node_addresses(view: &NodeView, me: &NodeId, actual: &MeshState, desired: &mut Desired) {
    let nodes = IpNet::V6(view.cluster.mesh.nodes());
    if let Some(own) = view.cluster.node(me) {
        desired.addresses.insert(("lo".to_owned(), own.address().into()));
    }
    desired.rules.insert(Rule {
        v6: true,
        priority: base::FROM_NODES,
        from: Some(nodes),
        to: None,
        iif: Some(TUNNEL.to_owned()),
        action: Action::Table(crate::datapath::mesh::LOCAL),
    });
    if actual.links.contains_key(TUNNEL) {
        desired.up.insert(TUNNEL.to_owned());
        desired.routes.insert(Route { table: MAIN, to: nodes, target: Target::Device(TUNNEL.to_owned()) });
    }
}

/// The view's networks by subnet; and those that it does not name (yet, or any more) but that have a veth and rules here,
/// made by an attach: their containers are not cut off.
fn networks(view: &NodeView, me: &NodeId, actual: &MeshState, veths: &BTreeSet<Ipv4Addr>) -> BTreeMap<Ipv4Net, Net> {
    let mut all = BTreeMap::new();
    for part in view.networks.by_id.values() {
        let mut net = Net { gateway: part.gateway, own: None, remote: BTreeSet::new() };
        net.remote.extend(part.members.iter().filter(|m| m.node_id != *me).map(|m| m.address));
        if part.ingress {
            net.own = view.cluster.node(me).map(|own| own.ingress_addr);
            net.remote.extend(view.cluster.nodes.iter().filter(|n| n.node_id != *me).map(|n| n.ingress_addr));
        }
        // Our own addresses never go to the tunnel, whatever else the view says of them.
        for member in part.members.iter().filter(|m| m.node_id == *me) {
            net.remote.remove(&member.address);
        }
        net.own.iter().chain([&net.gateway]).for_each(|own| {
            net.remote.remove(own);
        });
        all.insert(part.subnet.trunc(), net);
    }
    for rule in &actual.rules {
        if let (base::FROM_NETWORK, Some(IpNet::V4(subnet))) = (rule.priority, rule.from)
            && veths.iter().any(|address| subnet.contains(address))
        {
            all.entry(subnet).or_insert_with(|| Net { gateway: gateway(subnet), own: None, remote: BTreeSet::new() });
        }
    }
    all
}

fn network(subnet: Ipv4Net, net: &Net, veths: &BTreeSet<Ipv4Addr>, actual: &MeshState, desired: &mut Desired) {
    desired.rules.extend(rules(subnet));
    for own in net.own.iter().chain([&net.gateway]) {
        desired.addresses.insert(("lo".to_owned(), (*own).into()));
        desired.routes.insert(own_route(subnet, *own));
    }
    for local in veths.iter().filter(|address| subnet.contains(*address)) {
        desired.addresses.insert((mesh_end(*local), net.gateway.into()));
        // One destination, one way: an address of the node's own, or one that the view has elsewhere, is not its veth's.
        if !net.remote.contains(local) && *local != net.gateway && Some(*local) != net.own {
            desired.routes.insert(member_route(subnet, *local, mesh_end(*local)));
        }
    }
    if actual.links.contains_key(TUNNEL) {
        desired.routes.extend(net.remote.iter().map(|remote| member_route(subnet, *remote, TUNNEL.to_owned())));
    }
}

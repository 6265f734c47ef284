//! The desired contents of a node's mesh namespace, from its view. Pure.

use super::path_mtus::PathMtus;
use crate::datapath::links::{member_route, own_route, rules};
use crate::datapath::links6;
use crate::datapath::mesh::{
    LINK_LOCAL, LOCAL, MAIN, MeshRoute, MeshRule, MeshState, RouteTarget, RuleAction, TUNNEL, address_of, base, ipv6_disabled,
    ipv6_switch, mesh_end, table_of,
};
use crate::model::dual_stack::gateway6;
use crate::model::mesh::gateway;
use crate::model::{NetworkV6, NodeId, NodeView, SubnetPair};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The desired contents of the mesh namespace. The tunnel and the driver create the devices; their settings are decided here.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DesiredMesh {
    /// By key below `/proc/sys/net`.
    pub sysctls: BTreeMap<String, String>,
    /// Names of the devices to set up.
    pub up: BTreeSet<String>,
    /// Bytes, by device.
    pub mtu: BTreeMap<String, u32>,
    /// Device and address. On `lo` and on veths any other address is removed; the tunnel device is exempt.
    pub addresses: BTreeSet<(String, IpAddr)>,
    /// Any other rule is removed.
    pub rules: BTreeSet<MeshRule>,
    /// Any other route that the kernel has not made itself is removed.
    pub routes: BTreeSet<MeshRoute>,
}

/// The addresses of one subnet of a network that this node has routes for.
struct RoutedAddresses {
    /// Number of the routing table, which the subnets of a network have together.
    table: u32,
    gateway: Ipv4Addr,
    /// Its IPv6 half.
    v6: Option<NetworkV6>,
    /// This node's own address on it (`ingress` only).
    own: Option<Ipv4Addr>,
    /// Of members on other nodes, with the MTU of the route if it is smaller than the device's.
    remote: BTreeMap<Ipv4Addr, Option<u32>>,
}

/// Computes it for node `me`. `actual` tells which devices exist: a route needs its device. A veth keeps
/// the MTU that it was made with, because its container's end does: with two MTUs, large packets would vanish between the ends.
#[must_use]
pub fn desired_mesh(view: &NodeView, me: &NodeId, actual: &MeshState, mtus: &PathMtus) -> DesiredMesh {
    let mut desired = DesiredMesh { rules: base::rules(), ..DesiredMesh::default() };
    desired.sysctls.extend(base::SYSCTLS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    desired.up.insert("lo".to_owned());
    add_node_addresses(view, me, actual, mtus, &mut desired);

    let veths: BTreeSet<Ipv4Addr> = actual.links.keys().filter_map(|link| address_of(link)).collect();
    for (subnet, addresses) in networks(view, me, actual, mtus, &veths) {
        add_network(subnet, &addresses, &veths, actual, &mut desired);
    }
    for address in veths {
        let end = mesh_end(address);
        let ipv6 = desired.addresses.contains(&(end.clone(), LINK_LOCAL.into()));
        desired.sysctls.insert(ipv6_switch(&end), ipv6_disabled(ipv6).to_owned());
        desired.up.insert(end);
    }
    desired
}

/// Adds the node's own mesh address, the route to those of the other nodes, and one to each node with a smaller path.
fn add_node_addresses(view: &NodeView, me: &NodeId, actual: &MeshState, mtus: &PathMtus, desired: &mut DesiredMesh) {
    let nodes = IpNet::V6(view.cluster.mesh.nodes());
    if let Some(own) = view.cluster.node(me) {
        desired.addresses.insert(("lo".to_owned(), own.address().into()));
    }
    desired.rules.insert(MeshRule {
        v6: true,
        priority: base::FROM_NODES,
        from: Some(nodes),
        to: None,
        iif: Some(TUNNEL.to_owned()),
        action: RuleAction::Table(LOCAL),
    });
    if actual.links.contains_key(TUNNEL) {
        desired.up.insert(TUNNEL.to_owned());
        if mtus.device > 0 {
            desired.mtu.insert(TUNNEL.to_owned(), mtus.device);
        }
        let route = |to, mtu| MeshRoute { table: MAIN, to, target: RouteTarget::Device(TUNNEL.to_owned()), mtu };
        desired.routes.insert(route(nodes, None));
        for node in view.cluster.nodes.iter().filter(|node| node.node_id != *me) {
            let small = mtus.of_route(&node.node_id);
            desired.routes.extend(small.map(|mtu| route(IpNet::from(IpAddr::V6(node.address())), Some(mtu))));
        }
    }
}

/// The subnets of the view's networks, and those that the view does not contain (yet, or any more) but that have a veth and rules
/// in the namespace since an attach: their containers keep their connectivity until they are detached.
fn networks(
    view: &NodeView,
    me: &NodeId,
    actual: &MeshState,
    mtus: &PathMtus,
    veths: &BTreeSet<Ipv4Addr>,
) -> BTreeMap<Ipv4Net, RoutedAddresses> {
    let mut all = BTreeMap::new();
    for part in view.networks.by_id.values() {
        let pairs = part.pairs();
        let of_subnet = |subnet: Ipv4Net, gateway| {
            let pair = pairs.iter().find(|pair| pair.v4 == subnet.trunc()).zip(part.v6);
            let v6 = pair.map(|(pair, v6)| NetworkV6 { subnet: pair.v6, gateway: v6.gateway });
            RoutedAddresses { table: table_of(part.subnet), gateway, v6, own: None, remote: BTreeMap::new() }
        };
        let mut addresses = of_subnet(part.subnet, part.gateway);
        let elsewhere = part.members.iter().filter(|m| m.node_id != *me);
        addresses.remote.extend(elsewhere.map(|m| (m.address, mtus.of_route(&m.node_id))));
        if part.ingress {
            addresses.own = view.cluster.node(me).map(|own| own.ingress_addr);
            let others = view.cluster.nodes.iter().filter(|n| n.node_id != *me);
            addresses.remote.extend(others.map(|n| (n.ingress_addr, mtus.of_route(&n.node_id))));
        }
        // Own addresses are never routed to the tunnel, even if the view lists them for another node as well.
        for member in part.members.iter().filter(|m| m.node_id == *me) {
            addresses.remote.remove(&member.address);
        }
        let gateways = part.further.iter().map(|further| &further.gateway).chain([&part.gateway]);
        for own in addresses.own.iter().chain(gateways) {
            addresses.remote.remove(own);
        }
        for further in &part.further {
            // The members by their own subnet: each has its IPv6 route by the pair of that.
            let is_in = |address: &Ipv4Addr| further.subnet.contains(address);
            let mut other = of_subnet(further.subnet, further.gateway);
            other.remote = addresses.remote.iter().filter(|(address, _)| is_in(address)).map(|(a, mtu)| (*a, *mtu)).collect();
            addresses.remote.retain(|address, _| !is_in(address));
            other.own = addresses.own.take_if(|own| is_in(own));
            all.insert(further.subnet.trunc(), other);
        }
        all.insert(part.subnet.trunc(), addresses);
    }
    for rule in &actual.rules {
        if let Some(subnet) = base::network_of(rule)
            && veths.iter().any(|address| subnet.contains(address))
        {
            // As the attach left it on the veth.
            let mut ends = veths.iter().filter(|address| subnet.contains(*address)).map(|address| mesh_end(*address));
            let configured = ends.find_map(|end| {
                let mut addresses = actual.addresses.iter().filter(|(device, _)| *device == end);
                addresses.find_map(|(_, address)| match address {
                    IpAddr::V4(address) if subnet.contains(address) => Some(*address),
                    _ => None,
                })
            });
            let gateway = configured.unwrap_or_else(|| gateway(subnet));
            let RuleAction::Table(table) = rule.action else { continue };
            all.entry(subnet).or_insert_with(|| RoutedAddresses {
                table,
                gateway,
                v6: left_v6(table, subnet, veths, actual),
                own: None,
                remote: BTreeMap::new(),
            });
        }
    }
    all
}

/// The IPv6 half of a subnet that the view does not contain, as an attach left it.
fn left_v6(table: u32, subnet: Ipv4Net, veths: &BTreeSet<Ipv4Addr>, actual: &MeshState) -> Option<NetworkV6> {
    let own: Vec<Ipv4Addr> = veths.iter().filter(|address| subnet.contains(*address)).copied().collect();
    // The subnets of a network have one table: this one's has the rule for a container of it.
    let is_own = |v6: Ipv6Net| {
        let pair = SubnetPair::new(subnet, v6);
        let mut rules = own.iter().filter_map(|address| links6::container_rule(table, pair?, *address));
        rules.any(|rule| actual.rules.contains(&rule))
    };
    let v6 = actual.rules.iter().find_map(|rule| match rule.to {
        Some(IpNet::V6(v6)) if rule.priority == base::OWN_TO_NETWORK && rule.action == RuleAction::Table(table) && is_own(v6) => {
            Some(v6)
        }
        _ => None,
    })?;
    let ends: BTreeSet<String> = own.iter().map(|a| mesh_end(*a)).collect();
    let configured = actual.addresses.iter().find_map(|(device, address)| match address {
        IpAddr::V6(address) if ends.contains(device) && *address != LINK_LOCAL => Some(*address),
        _ => None,
    });
    Some(NetworkV6 { subnet: v6, gateway: configured.unwrap_or_else(|| gateway6(v6)) })
}

/// Adds the IPv6 half of what one network needs, of which `desired` has the IPv4 half: a route where that has one.
fn add_v6(table: u32, pair: SubnetPair, gateway: Ipv6Addr, veths: &BTreeSet<Ipv4Addr>, desired: &mut DesiredMesh) {
    desired.rules.extend(links6::neighbour_rules());
    desired.rules.extend(links6::network_rules(table, pair));
    desired.addresses.insert(("lo".to_owned(), gateway.into()));
    let mut routes = vec![links6::gateway_route(table, gateway)];
    for route in desired.routes.iter().filter(|route| route.table == table) {
        let (RouteTarget::Device(device), IpAddr::V4(to)) = (&route.target, route.to.addr()) else { continue };
        routes.extend(links6::member_route(table, pair, to, device.clone()).map(|v6| MeshRoute { mtu: route.mtu, ..v6 }));
    }
    desired.routes.extend(routes);
    for local in veths.iter().filter(|address| pair.v4.contains(*address)) {
        let end = mesh_end(*local);
        desired.rules.extend(links6::container_rule(table, pair, *local));
        desired.addresses.extend(links6::end_addresses(gateway).map(|address| (end.clone(), address)));
    }
}

/// Adds what one subnet needs: its rules, its gateway on `lo` and on each veth, and a route to each member.
fn add_network(
    subnet: Ipv4Net,
    addresses: &RoutedAddresses,
    veths: &BTreeSet<Ipv4Addr>,
    actual: &MeshState,
    desired: &mut DesiredMesh,
) {
    let table = addresses.table;
    desired.rules.extend(rules(subnet, table));
    for own in addresses.own.iter().chain([&addresses.gateway]) {
        desired.addresses.insert(("lo".to_owned(), (*own).into()));
        desired.routes.insert(own_route(table, *own));
    }
    for local in veths.iter().filter(|address| subnet.contains(*address)) {
        desired.addresses.insert((mesh_end(*local), addresses.gateway.into()));
        // One route per destination: an address of the node itself, or one that the view has on another node, is not routed
        // to its veth.
        if !addresses.remote.contains_key(local) && *local != addresses.gateway && Some(*local) != addresses.own {
            desired.routes.insert(member_route(table, *local, mesh_end(*local)));
        }
    }
    if actual.links.contains_key(TUNNEL) {
        let route =
            |(remote, mtu): (&Ipv4Addr, &Option<u32>)| MeshRoute { mtu: *mtu, ..member_route(table, *remote, TUNNEL.to_owned()) };
        desired.routes.extend(addresses.remote.iter().map(route));
    }
    if let Some((pair, v6)) = addresses.v6.and_then(|v6| Some((SubnetPair::new(subnet, v6.subnet)?, v6))) {
        add_v6(table, pair, v6.gateway, veths, desired);
    }
}

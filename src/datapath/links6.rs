//! The IPv6 half of networks in the mesh namespace: rules, routes and addresses, as plain values. Pure.
//!
//! IPv6 has no `rp_filter`, so the rules check sources: a packet is looked up in its network's table only if it came by the veth of
//! the container that has the source address, or by the tunnel, whose allowed-ips have checked it. Any other packet meets no
//! rule, and the last one answers "unreachable". The table has the number of the IPv4 half's; its routes are of the other
//! family. A network with several IPv4 subnets has a part of its IPv6 subnet for each.
//!
//! The gateway is an address of every veth, with a link-local one: the kernel answers a neighbour solicitation only for an
//! address of its device, and sends one for a forwarded packet only with a link-local source.

use super::mesh::{LINK_LOCAL, LOCAL, MeshRoute, MeshRule, MeshStep, RouteTarget, RuleAction, TUNNEL, base, mesh_end};
use crate::model::{NetworkV6, SubnetPair};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Priority of the rules that deliver neighbour discovery to this namespace.
const NEIGHBOURS: u32 = 50;
/// Solicited-node multicast addresses (RFC 4291).
const SOLICITED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0), 104);

fn rule(priority: u32, action: RuleAction) -> MeshRule {
    MeshRule { v6: true, priority, from: None, to: None, iif: None, action }
}

/// Rules that every node with a dual-stack network has: neighbour discovery of the containers, and nothing else, is for this
/// namespace.
#[must_use]
pub fn neighbour_rules() -> [MeshRule; 2] {
    let to = |net: Ipv6Net| MeshRule { to: Some(IpNet::V6(net)), ..rule(NEIGHBOURS, RuleAction::Table(LOCAL)) };
    [to(SOLICITED), to(Ipv6Net::from(LINK_LOCAL))]
}

/// The rules of a network's subnet: its packets by the tunnel, and those that this namespace sends to it.
#[must_use]
pub fn network_rules(table: u32, pair: SubnetPair) -> Vec<MeshRule> {
    let (group, lookup) = (base::group_of(pair.v4), RuleAction::Table(table));
    let from = Some(IpNet::V6(pair.v6));
    vec![
        MeshRule { from, ..rule(base::FROM_NETWORK, RuleAction::Goto(group)) },
        MeshRule { from, iif: Some(TUNNEL.to_owned()), ..rule(group, lookup.clone()) },
        rule(group + 1, RuleAction::Goto(base::OWN_LOCAL)),
        MeshRule { to: from, iif: Some("lo".to_owned()), ..rule(base::OWN_TO_NETWORK, lookup) },
    ]
}

/// The rule for the packets of a container of this node.
#[must_use]
pub fn container_rule(table: u32, pair: SubnetPair, address: Ipv4Addr) -> Option<MeshRule> {
    let from = Some(IpNet::from(IpAddr::V6(pair.to_v6(address)?)));
    let action = RuleAction::Table(table);
    Some(MeshRule { from, iif: Some(mesh_end(address)), ..rule(base::group_of(pair.v4), action) })
}

/// The route that makes the gateway reachable from its network.
#[must_use]
pub fn gateway_route(table: u32, gateway: Ipv6Addr) -> MeshRoute {
    MeshRoute { table, to: IpNet::from(IpAddr::V6(gateway)), target: RouteTarget::Local, mtu: None }
}

/// The route to the member with this IPv4 address, by a device.
#[must_use]
pub fn member_route(table: u32, pair: SubnetPair, address: Ipv4Addr, device: String) -> Option<MeshRoute> {
    let to = IpNet::from(IpAddr::V6(pair.to_v6(address)?));
    Some(MeshRoute { table, to, target: RouteTarget::Device(device), mtu: None })
}

/// The addresses of a veth's mesh end.
#[must_use]
pub fn end_addresses(gateway: Ipv6Addr) -> [IpAddr; 2] {
    [gateway.into(), LINK_LOCAL.into()]
}

/// The configuration of a new veth, in two parts: before it is up, and the routes and rules after that.
pub(super) fn steps(table: u32, subnet: Ipv4Net, v6: NetworkV6, address: Ipv4Addr) -> (Vec<MeshStep>, Vec<MeshStep>) {
    let Some(pair) = SubnetPair::new(subnet, v6.subnet) else { return (Vec::new(), Vec::new()) };
    let end = mesh_end(address);
    let mut before: Vec<MeshStep> =
        end_addresses(v6.gateway).into_iter().map(|own| MeshStep::AddAddress(end.clone(), own)).collect();
    before.push(MeshStep::AddAddress("lo".to_owned(), v6.gateway.into()));
    let routes = [Some(gateway_route(table, v6.gateway)), member_route(table, pair, address, end)];
    let rules = neighbour_rules().into_iter().chain(network_rules(table, pair)).chain(container_rule(table, pair, address));
    let after = routes.into_iter().flatten().map(MeshStep::SetRoute).chain(rules.map(MeshStep::AddRule));
    (before, after.collect())
}

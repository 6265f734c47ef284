//! Return routes in a container's namespace: packets from its address on `ingress` are sent to that network's gateway
//! whatever their destination is, so that replies to clients, whose addresses are not translated, take the path that the
//! requests took. The container's IPv6 address is configured here too: the engine does not know it.

use super::ingress_network::ReturnPath;
use crate::datapath::mesh::{ipv6_switch, wire};
use crate::datapath::netlink::{Netlink, ignore_existing, ignore_missing};
use crate::datapath::{Sandbox, netns, sysctl};
use crate::model::IpFamily;
use anyhow::Context as _;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage as Message};
use skep_ebpf::CLIENT_MARK;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd as _;

/// Routing table of the return routes.
const TABLE: u32 = 2377;
/// Priorities of the rules: by the mark of a socket; by source address; then the engine's routes except its default route
/// (a client may be a container on a network that both are attached to); then by source port.
const BY_MARK: u32 = 2376;
const BY_ADDRESS: u32 = 2377;
const BY_ROUTE: u32 = 2378;
const BY_PORT: u32 = 2379;
/// Routing table with the engine's routes.
const MAIN: u32 = 254;
/// The gateway over IPv6. A program redirects what is sent to it before the kernel checks the MAC address, so that may be any.
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const GATEWAY_MAC: [u8; 6] = [2, 0, 0x5e, 0x7e, 0, 1];

/// A policy routing rule of ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PolicyRule {
    /// Packets from this address: the return routes.
    FromAddress(IpAddr),
    /// Packets of connected UDP sockets to clients, which a socket hook has marked: the return routes.
    Marked(IpFamily),
    /// All packets: the engine's routes, without its default route.
    EngineRoutes(IpFamily),
    /// UDP datagrams from this port, whose source address is not selected yet: the return routes.
    FromUdpPort(u16, IpFamily),
}

/// Configures routes and rules of both families, and the IPv6 address. Idempotent.
pub(super) async fn configure(sandbox: &Sandbox, path: &ReturnPath) -> anyhow::Result<()> {
    let namespace = netns::of_container(&sandbox.path)?;
    let runtime = tokio::runtime::Handle::current();
    let netlink = netns::run(namespace.as_fd(), || {
        let _context = runtime.enter();
        Netlink::open()
    })??;
    let (index, name) = device_of(&netlink, IpAddr::V4(sandbox.address)).await?;
    let mut rules = BTreeSet::from([PolicyRule::FromAddress(IpAddr::V4(sandbox.address)), PolicyRule::Marked(IpFamily::V4)]);
    rules.extend(port_rules(&path.udp_ports, IpFamily::V4));
    let v4 = (IpAddr::V4(sandbox.address), IpAddr::V4(sandbox.gateway));
    netlink.change(Message::NewRoute(default_route(v4, index, path.mtu)), NLM_F_CREATE | NLM_F_REPLACE).await?;

    let own = path.address;
    if netns::run(namespace.as_fd(), || enable_ipv6(&name))?? {
        ignore_existing(netlink.change(Message::NewAddress(wire::address(index, own.into())), NLM_F_CREATE | NLM_F_EXCL).await)?;
        netlink.change(Message::NewNeighbour(gateway_neighbour(index)), NLM_F_CREATE | NLM_F_REPLACE).await?;
        let v6 = (IpAddr::V6(own), IpAddr::V6(GATEWAY));
        netlink.change(Message::NewRoute(default_route(v6, index, path.mtu)), NLM_F_CREATE | NLM_F_REPLACE).await?;
        rules.extend([PolicyRule::FromAddress(own.into()), PolicyRule::Marked(IpFamily::V6)]);
        rules.extend(port_rules(&path.udp_ports, IpFamily::V6));
    }
    replace_rules(&netlink, &rules).await
}

fn port_rules(ports: &BTreeSet<u16>, family: IpFamily) -> impl Iterator<Item = PolicyRule> {
    ports.iter().flat_map(move |port| [PolicyRule::EngineRoutes(family), PolicyRule::FromUdpPort(*port, family)])
}

/// Enables IPv6 on the device, without addresses that the kernel generates. `false`: this kernel has no IPv6.
fn enable_ipv6(device: &str) -> std::io::Result<bool> {
    if sysctl::read(&ipv6_switch(device))?.is_none() {
        return Ok(false);
    }
    for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0")] {
        sysctl::write(&format!("ipv6/conf/{device}/{key}"), value)?;
    }
    sysctl::write(&ipv6_switch(device), "0")?;
    Ok(true)
}

/// Replaces our rules by these.
async fn replace_rules(netlink: &Netlink, rules: &BTreeSet<PolicyRule>) -> anyhow::Result<()> {
    let mut missing = rules.clone();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        for message in netlink.dump(Message::GetRule(request)).await? {
            let Message::NewRule(message) = message else { continue };
            match read_rule(&message) {
                Some(present) if missing.remove(&present) => {}
                Some(surplus) => ignore_missing(netlink.change(Message::DelRule(rule_message(surplus)), 0).await)?,
                None => {}
            }
        }
    }
    for rule in missing {
        ignore_existing(netlink.change(Message::NewRule(rule_message(rule)), NLM_F_CREATE | NLM_F_EXCL).await)?;
    }
    Ok(())
}

async fn device_of(netlink: &Netlink, address: IpAddr) -> anyhow::Result<(u32, String)> {
    let mut found = None;
    for message in netlink.dump(Message::GetAddress(AddressMessage::default())).await? {
        let Message::NewAddress(message) = message else { continue };
        found = found.or(wire::read_address(&message).filter(|(_, present)| *present == address).map(|(index, _)| index));
    }
    let index = found.with_context(|| format!("no device has the address {address}"))?;
    for message in netlink.dump(Message::GetLink(LinkMessage::default())).await? {
        let Message::NewLink(message) = message else { continue };
        if let Some((name, link)) = wire::read_link(&message)
            && link.index == index
        {
            return Ok((index, name));
        }
    }
    anyhow::bail!("the device of {address} no longer exists")
}

/// The default route of the return table, by the gateway and with this source address.
fn default_route((own, gateway): (IpAddr, IpAddr), index: u32, mtu: u32) -> RouteMessage {
    let route_address = |address: IpAddr| match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    let mut message = RouteMessage::default();
    message.header.address_family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    message.header.flags = RouteFlags::Onlink;
    message.attributes = vec![
        RouteAttribute::Table(TABLE),
        RouteAttribute::Gateway(route_address(gateway)),
        RouteAttribute::Oif(index),
        RouteAttribute::PrefSource(route_address(own)),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]),
    ];
    message
}

/// The permanent neighbour entry of the IPv6 gateway.
fn gateway_neighbour(index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(GATEWAY)),
        NeighbourAttribute::LinkLayerAddress(GATEWAY_MAC.to_vec()),
    ];
    message
}

fn rule_message(rule: PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.action = RuleAction::ToTable;
    message.header.family = match rule {
        PolicyRule::FromAddress(IpAddr::V4(_))
        | PolicyRule::Marked(IpFamily::V4)
        | PolicyRule::FromUdpPort(_, IpFamily::V4)
        | PolicyRule::EngineRoutes(IpFamily::V4) => AddressFamily::Inet,
        PolicyRule::FromAddress(IpAddr::V6(_))
        | PolicyRule::Marked(IpFamily::V6)
        | PolicyRule::FromUdpPort(_, IpFamily::V6)
        | PolicyRule::EngineRoutes(IpFamily::V6) => AddressFamily::Inet6,
    };
    message.attributes = match rule {
        PolicyRule::FromAddress(address) => {
            message.header.src_len = if address.is_ipv4() { 32 } else { 128 };
            vec![RuleAttribute::Priority(BY_ADDRESS), RuleAttribute::Table(TABLE), RuleAttribute::Source(address)]
        }
        PolicyRule::Marked(_) => {
            vec![RuleAttribute::Priority(BY_MARK), RuleAttribute::Table(TABLE), RuleAttribute::FwMark(CLIENT_MARK)]
        }
        PolicyRule::EngineRoutes(_) => {
            vec![RuleAttribute::Priority(BY_ROUTE), RuleAttribute::Table(MAIN), RuleAttribute::SuppressPrefixLen(0)]
        }
        PolicyRule::FromUdpPort(port, _) => vec![
            RuleAttribute::Priority(BY_PORT),
            RuleAttribute::Table(TABLE),
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }),
        ],
    };
    message
}

/// The rule of a message, if it is one of ours.
fn read_rule(message: &RuleMessage) -> Option<PolicyRule> {
    let family = if message.header.family == AddressFamily::Inet { IpFamily::V4 } else { IpFamily::V6 };
    let (mut priority, mut source, mut port) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = Some(*number),
            RuleAttribute::Source(address) => source = Some(*address),
            RuleAttribute::SourcePortRange(range) => port = Some(range.start),
            _ => {}
        }
    }
    match priority? {
        BY_ADDRESS => source.map(PolicyRule::FromAddress),
        BY_MARK => Some(PolicyRule::Marked(family)),
        BY_ROUTE => Some(PolicyRule::EngineRoutes(family)),
        BY_PORT => port.map(|port| PolicyRule::FromUdpPort(port, family)),
        _ => None,
    }
}

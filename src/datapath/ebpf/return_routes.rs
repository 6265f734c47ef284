//! Routes in a container's namespace: what is sent from its address on `ingress` goes to that network's gateway, wherever
//! it goes, so that the container answers clients' own addresses. Over IPv6 the container gets its address here too: the
//! engine knows nothing of it.

use super::sandbox::Ingress;
use crate::datapath::mesh::{ipv6_switch, wire};
use crate::datapath::netlink::{Netlink, ignore_existing, ignore_missing};
use crate::datapath::{Sandbox, netns, sysctl};
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
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd as _;

/// Table of the routes.
const TABLE: u32 = 2377;
/// Priorities of the rules: by address, then whatever the engine has a route for that is more than the default one (a
/// container on a network in common may ask a published port too), then by port.
const BY_ADDRESS: u32 = 2377;
const BY_ROUTE: u32 = 2378;
const BY_PORT: u32 = 2379;
/// The table of the engine's routes.
const MAIN: u32 = 254;
/// The gateway over IPv6. Whatever goes there is taken before anybody looks at the address of the card.
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const CARD: [u8; 6] = [2, 0, 0x5e, 0x7e, 0, 1];

/// What leads to the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PolicyRule {
    /// Packets from this address.
    Address(IpAddr),
    /// Everything, if the engine has a route for it.
    Route(Family),
    /// Datagrams from this port, whose sender is not chosen yet.
    Port(u16, Family),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

/// Sets the routes, both families. May be repeated.
pub(super) async fn route(sandbox: &Sandbox, ingress: &Ingress) -> anyhow::Result<()> {
    let namespace = netns::of_container(&sandbox.path)?;
    let runtime = tokio::runtime::Handle::current();
    let netlink = netns::run(namespace.as_fd(), || {
        let _context = runtime.enter();
        Netlink::open()
    })??;
    let (index, name) = device_of(&netlink, IpAddr::V4(sandbox.address)).await?;
    let mut leads = BTreeSet::from([PolicyRule::Address(IpAddr::V4(sandbox.address))]);
    let ports = ingress.datagrams.get(&sandbox.address).into_iter().flatten();
    lead_ports(&mut leads, ports.clone(), Family::V4);
    let v4 = (IpAddr::V4(sandbox.address), IpAddr::V4(sandbox.gateway));
    netlink.change(Message::NewRoute(default(v4, index, ingress.mtu)), NLM_F_CREATE | NLM_F_REPLACE).await?;

    let own = ingress.mesh.container(sandbox.address);
    if netns::run(namespace.as_fd(), || switch_on(&name))?? {
        ignore_existing(netlink.change(Message::NewAddress(wire::address(index, own.into())), NLM_F_CREATE | NLM_F_EXCL).await)?;
        netlink.change(Message::NewNeighbour(gateway(index)), NLM_F_CREATE | NLM_F_REPLACE).await?;
        let v6 = (IpAddr::V6(own), IpAddr::V6(GATEWAY));
        netlink.change(Message::NewRoute(default(v6, index, ingress.mtu)), NLM_F_CREATE | NLM_F_REPLACE).await?;
        leads.insert(PolicyRule::Address(own.into()));
        lead_ports(&mut leads, ports, Family::V6);
    }
    lead(&netlink, &leads).await
}

fn lead_ports<'a>(leads: &mut BTreeSet<PolicyRule>, ports: impl Iterator<Item = &'a u16>, family: Family) {
    for port in ports {
        leads.extend([PolicyRule::Route(family), PolicyRule::Port(*port, family)]);
    }
}

/// Lets the device speak IPv6, and nothing else of it: no address of its own making. `false`: this kernel has no IPv6.
fn switch_on(device: &str) -> std::io::Result<bool> {
    if sysctl::read(&ipv6_switch(device))?.is_none() {
        return Ok(false);
    }
    for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0")] {
        sysctl::write(&format!("ipv6/conf/{device}/{key}"), value)?;
    }
    sysctl::write(&ipv6_switch(device), "0")?;
    Ok(true)
}

/// The rules of the table become these.
async fn lead(netlink: &Netlink, leads: &BTreeSet<PolicyRule>) -> anyhow::Result<()> {
    let mut missing = leads.clone();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut ask = RuleMessage::default();
        ask.header.family = family;
        for message in netlink.dump(Message::GetRule(ask)).await? {
            let Message::NewRule(message) = message else { continue };
            match read(&message) {
                Some(there) if missing.remove(&there) => {}
                Some(other) => ignore_missing(netlink.change(Message::DelRule(rule(other)), 0).await)?,
                None => {}
            }
        }
    }
    for lead in missing {
        ignore_existing(netlink.change(Message::NewRule(rule(lead)), NLM_F_CREATE | NLM_F_EXCL).await)?;
    }
    Ok(())
}

async fn device_of(netlink: &Netlink, address: IpAddr) -> anyhow::Result<(u32, String)> {
    let mut found = None;
    for message in netlink.dump(Message::GetAddress(AddressMessage::default())).await? {
        let Message::NewAddress(message) = message else { continue };
        found = found.or(wire::read_address(&message).filter(|(_, there)| *there == address).map(|(index, _)| index));
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
    anyhow::bail!("the device of {address} is gone")
}

fn default((own, gateway): (IpAddr, IpAddr), index: u32, mtu: u32) -> RouteMessage {
    let word = |address: IpAddr| match address {
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
        RouteAttribute::Gateway(word(gateway)),
        RouteAttribute::Oif(index),
        RouteAttribute::PrefSource(word(own)),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]),
    ];
    message
}

fn gateway(index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(GATEWAY)),
        NeighbourAttribute::LinkLayerAddress(CARD.to_vec()),
    ];
    message
}

fn rule(lead: PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.action = RuleAction::ToTable;
    message.header.family = match lead {
        PolicyRule::Address(IpAddr::V4(_)) | PolicyRule::Port(_, Family::V4) | PolicyRule::Route(Family::V4) => {
            AddressFamily::Inet
        }
        PolicyRule::Address(IpAddr::V6(_)) | PolicyRule::Port(_, Family::V6) | PolicyRule::Route(Family::V6) => {
            AddressFamily::Inet6
        }
    };
    message.attributes = match lead {
        PolicyRule::Address(address) => {
            message.header.src_len = if address.is_ipv4() { 32 } else { 128 };
            vec![RuleAttribute::Priority(BY_ADDRESS), RuleAttribute::Table(TABLE), RuleAttribute::Source(address)]
        }
        PolicyRule::Route(_) => {
            vec![RuleAttribute::Priority(BY_ROUTE), RuleAttribute::Table(MAIN), RuleAttribute::SuppressPrefixLen(0)]
        }
        PolicyRule::Port(port, _) => vec![
            RuleAttribute::Priority(BY_PORT),
            RuleAttribute::Table(TABLE),
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }),
        ],
    };
    message
}

/// A rule of ours.
fn read(message: &RuleMessage) -> Option<PolicyRule> {
    let family = if message.header.family == AddressFamily::Inet { Family::V4 } else { Family::V6 };
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
        BY_ADDRESS => source.map(PolicyRule::Address),
        BY_ROUTE => Some(PolicyRule::Route(family)),
        BY_PORT => port.map(|port| PolicyRule::Port(port, family)),
        _ => None,
    }
}

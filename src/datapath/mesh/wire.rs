//! Between plain values and netlink messages, both ways. Pure.

use super::state::{Action, Link, Route, Rule, Target};
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn prefix(address: IpAddr, length: u8) -> Option<IpNet> {
    IpNet::new(address, length).ok()
}

// Links

/// Asks for, changes or removes the device with this name.
pub(in crate::datapath) fn link_named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// Sets the device with this name up.
pub(in crate::datapath) fn link_up(name: &str) -> LinkMessage {
    let mut message = link_named(name);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Sets the MTU of the device with this name.
pub(in crate::datapath) fn link_mtu(name: &str, mtu: u32) -> LinkMessage {
    let mut message = link_named(name);
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message
}

/// Writes a note on the device with this name, for whoever meets it later.
pub(in crate::datapath) fn link_note(name: &str, note: &str) -> LinkMessage {
    let mut message = link_named(name);
    message.attributes.push(LinkAttribute::IfAlias(note.to_owned()));
    message
}

/// Name of a device and the note on it.
pub(in crate::datapath) fn read_note(message: &LinkMessage) -> (Option<&str>, Option<&str>) {
    let (mut name, mut note) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.as_str()),
            LinkAttribute::IfAlias(text) => note = Some(text.as_str()),
            _ => {}
        }
    }
    (name, note)
}

/// Makes a veth pair: `name` where the socket is, `peer` in another namespace.
pub(in crate::datapath) fn veth(name: &str, peer: &str, peer_namespace: BorrowedFd<'_>, mtu: u32) -> LinkMessage {
    let mut other = link_mtu(peer, mtu);
    other.attributes.push(LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()));
    let mut message = link_mtu(name, mtu);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
    ]));
    message
}

/// Name and state of a device.
pub(in crate::datapath) fn read_link(message: &LinkMessage) -> Option<(String, Link)> {
    let (mut name, mut mtu) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    Some((name?, Link { index: message.header.index, mtu, up: message.header.flags.contains(LinkFlags::Up) }))
}

// Addresses

/// A single address of the device with this index.
pub(in crate::datapath) fn address(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.is_ipv6());
    message.header.prefix_len = if address.is_ipv6() { 128 } else { 32 };
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    if address.is_ipv6() {
        // Else it is tentative for a moment, on lo too, and a server that binds it at once is refused.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

/// Device and address, unless it is one that the kernel gave.
pub(in crate::datapath) fn read_address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let (mut local, mut plain) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => plain = Some(*address),
            _ => {}
        }
    }
    let address = local.or(plain)?;
    let kernels = match address {
        IpAddr::V4(v4) => v4 == Ipv4Addr::LOCALHOST,
        IpAddr::V6(v6) => v6 == Ipv6Addr::LOCALHOST || v6.is_unicast_link_local(),
    };
    (!kernels).then_some((message.header.index, address))
}

// Rules

/// The rule as a message.
pub(in crate::datapath) fn rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.v6);
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        message.attributes.push(RuleAttribute::Source(from.network()));
    }
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(to.network()));
    }
    if let Some(iif) = &rule.iif {
        message.attributes.push(RuleAttribute::Iifname(iif.clone()));
    }
    message.header.action = match &rule.action {
        Action::Table(table) => {
            if let Ok(small) = u8::try_from(*table) {
                message.header.table = small;
            } else {
                message.attributes.push(RuleAttribute::Table(*table));
            }
            RuleAction::ToTable
        }
        Action::Goto(priority) => {
            message.attributes.push(RuleAttribute::Goto(*priority));
            RuleAction::Goto
        }
        Action::Unreachable => RuleAction::Unreachable,
        Action::Other(number) => RuleAction::from(*number),
    };
    message
}

/// The rule of a message.
pub(in crate::datapath) fn read_rule(message: &RuleMessage) -> Option<Rule> {
    let v6 = match message.header.family {
        AddressFamily::Inet => false,
        AddressFamily::Inet6 => true,
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let mut goto = 0;
    let mut rule = Rule { v6, priority: 0, from: None, to: None, iif: None, action: Action::Unreachable };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Source(address) => rule.from = prefix(*address, message.header.src_len),
            RuleAttribute::Destination(address) => rule.to = prefix(*address, message.header.dst_len),
            RuleAttribute::Iifname(name) => rule.iif = Some(name.trim_end_matches('\0').to_owned()),
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Goto(priority) => goto = *priority,
            _ => {}
        }
    }
    rule.action = match message.header.action {
        RuleAction::ToTable => Action::Table(table),
        RuleAction::Goto => Action::Goto(goto),
        RuleAction::Unreachable => Action::Unreachable,
        other => Action::Other(other.into()),
    };
    Some(rule)
}

// Routes

/// The route as a message that sets it; `index` is that of the device it leads to.
pub(in crate::datapath) fn route(route: &Route, index: u32) -> RouteMessage {
    let mut message = route_to(route);
    message.header.protocol = RouteProtocol::Static;
    (message.header.kind, message.header.scope) = match (&route.target, &route.to) {
        (Target::Local, IpNet::V4(_)) => (RouteType::Local, RouteScope::Host),
        (Target::Local, IpNet::V6(_)) => (RouteType::Local, RouteScope::Universe),
        (_, IpNet::V4(_)) => (RouteType::Unicast, RouteScope::Link),
        (_, IpNet::V6(_)) => (RouteType::Unicast, RouteScope::Universe),
    };
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// The route as a message that removes it, whoever made it: any protocol, any kind, any scope.
pub(in crate::datapath) fn no_route(route: &Route, index: Option<u32>) -> RouteMessage {
    let mut message = route_to(route);
    message.header.kind = RouteType::Unspec;
    message.header.scope = RouteScope::NoWhere;
    message.attributes.extend(index.map(RouteAttribute::Oif));
    message
}

fn route_to(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(matches!(route.to, IpNet::V6(_)));
    message.header.destination_prefix_length = route.to.prefix_len();
    if let Ok(small) = u8::try_from(route.table) {
        message.header.table = small;
    } else {
        message.attributes.push(RouteAttribute::Table(route.table));
    }
    message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.to.network())));
    message
}

/// The route of a message, unless the kernel made it; `names` gives devices by index.
pub(in crate::datapath) fn read_route(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    let header = &message.header;
    if header.protocol == RouteProtocol::Kernel || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut to: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let (mut device, mut gateway) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => to = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => to = (*v6).into(),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => device = names.get(index).cloned(),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => gateway = true,
            _ => {}
        }
    }
    let target = match (header.kind, device) {
        (RouteType::Local, Some(device)) if device == "lo" => Target::Local,
        (RouteType::Unicast, Some(device)) if !gateway => Target::Device(device),
        (kind, device) => Target::Other(
            format!("({kind:?}, {}{})", device.unwrap_or_default(), if gateway { ", by a gateway" } else { "" }).to_lowercase(),
        ),
    };
    Some(Route { table, to: prefix(to, header.destination_prefix_length)?, target })
}

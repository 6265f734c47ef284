//! Conversion between plain values and netlink messages. Pure.

use super::state::{LINK_LOCAL, MeshLink, MeshRoute, MeshRule, RouteTarget, RuleAction};
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction as NetlinkRuleAction, RuleAttribute, RuleMessage};
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

/// A message that names a device, to query or remove it.
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

/// Sets the alias (`ifalias`) of the device with this name, so that a later run recognises it.
pub(in crate::datapath) fn link_note(name: &str, note: &str) -> LinkMessage {
    let mut message = link_named(name);
    message.attributes.push(LinkAttribute::IfAlias(note.to_owned()));
    message
}

/// Name and alias of a device.
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

/// Creates a veth pair: `name` in the namespace of the netlink socket, `peer` in another one.
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
pub(in crate::datapath) fn read_link(message: &LinkMessage) -> Option<(String, MeshLink)> {
    let (mut name, mut mtu) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    Some((name?, MeshLink { index: message.header.index, mtu, up: message.header.flags.contains(LinkFlags::Up) }))
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
        // With duplicate address detection it would be tentative for a moment, on lo too, and an immediate bind would fail.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

/// Index of the device and address, unless the kernel assigned it.
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
    let kernel_assigned = match address {
        IpAddr::V4(v4) => v4 == Ipv4Addr::LOCALHOST,
        IpAddr::V6(v6) => v6 == Ipv6Addr::LOCALHOST || (v6.is_unicast_link_local() && v6 != LINK_LOCAL),
    };
    (!kernel_assigned).then_some((message.header.index, address))
}

// Rules

/// A message that adds or removes the rule.
pub(in crate::datapath) fn rule(rule: &MeshRule) -> RuleMessage {
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
        RuleAction::Table(table) => {
            if let Ok(small) = u8::try_from(*table) {
                message.header.table = small;
            } else {
                message.attributes.push(RuleAttribute::Table(*table));
            }
            NetlinkRuleAction::ToTable
        }
        RuleAction::Goto(priority) => {
            message.attributes.push(RuleAttribute::Goto(*priority));
            NetlinkRuleAction::Goto
        }
        RuleAction::Unreachable => NetlinkRuleAction::Unreachable,
        RuleAction::Other(number) => NetlinkRuleAction::from(*number),
    };
    message
}

/// The rule in a message.
pub(in crate::datapath) fn read_rule(message: &RuleMessage) -> Option<MeshRule> {
    let v6 = match message.header.family {
        AddressFamily::Inet => false,
        AddressFamily::Inet6 => true,
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let mut goto = 0;
    let mut rule = MeshRule { v6, priority: 0, from: None, to: None, iif: None, action: RuleAction::Unreachable };
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
        NetlinkRuleAction::ToTable => RuleAction::Table(table),
        NetlinkRuleAction::Goto => RuleAction::Goto(goto),
        NetlinkRuleAction::Unreachable => RuleAction::Unreachable,
        other => RuleAction::Other(other.into()),
    };
    Some(rule)
}

// Routes

/// A message that sets the route; `index` is that of its device.
pub(in crate::datapath) fn route(route: &MeshRoute, index: u32) -> RouteMessage {
    let mut message = route_to(route);
    message.header.protocol = RouteProtocol::Static;
    (message.header.kind, message.header.scope) = match (&route.target, &route.to) {
        (RouteTarget::Local, IpNet::V4(_)) => (RouteType::Local, RouteScope::Host),
        (RouteTarget::Local, IpNet::V6(_)) => (RouteType::Local, RouteScope::Universe),
        (_, IpNet::V4(_)) => (RouteType::Unicast, RouteScope::Link),
        (_, IpNet::V6(_)) => (RouteType::Unicast, RouteScope::Universe),
    };
    message.attributes.push(RouteAttribute::Oif(index));
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

/// A message that removes the route whatever its protocol, kind and scope are.
pub(in crate::datapath) fn no_route(route: &MeshRoute, index: Option<u32>) -> RouteMessage {
    let mut message = route_to(route);
    message.header.kind = RouteType::Unspec;
    message.header.scope = RouteScope::NoWhere;
    message.attributes.extend(index.map(RouteAttribute::Oif));
    message
}

fn route_to(route: &MeshRoute) -> RouteMessage {
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

/// The route in a message, unless the kernel created it; `names` maps interface indices to devices.
pub(in crate::datapath) fn read_route(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<MeshRoute> {
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
    let (mut device, mut gateway, mut mtu) = (None, false, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => to = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => to = (*v6).into(),
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => device = names.get(index).cloned(),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
            }
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => gateway = true,
            _ => {}
        }
    }
    let target = match (header.kind, device) {
        (RouteType::Local, Some(device)) if device == "lo" => RouteTarget::Local,
        (RouteType::Unicast, Some(device)) if !gateway => RouteTarget::Device(device),
        (kind, device) => RouteTarget::Other(
            format!("({kind:?}, {}{})", device.unwrap_or_default(), if gateway { ", by a gateway" } else { "" }).to_lowercase(),
        ),
    };
    Some(MeshRoute { table, to: prefix(to, header.destination_prefix_length)?, target, mtu })
}

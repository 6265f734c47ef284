//! The host's interfaces and addresses, which a node can listen on and advertise.

use super::netlink::Netlink;
use anyhow::Context as _;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// An address of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostAddress {
    /// Name of the interface.
    pub interface: String,
    pub address: IpAddr,
}

/// Every address of the calling thread's namespace except loopback and link-local ones, in the kernel's order.
///
/// # Errors
/// The kernel does not answer.
pub async fn host_addresses() -> anyhow::Result<Vec<HostAddress>> {
    let netlink = Netlink::open().context("cannot open a netlink socket")?;
    let mut names = BTreeMap::new();
    for message in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await? {
        if let RouteNetlinkMessage::NewLink(link) = message {
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    names.insert(link.header.index, name);
                }
            }
        }
    }
    let mut all = Vec::new();
    for message in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await? {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
        let local = find(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None });
        let address = local.or_else(|| find(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None }));
        let (Some(address), Some(interface)) = (address, names.get(&message.header.index)) else { continue };
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if !address.is_loopback() && !link_local {
            all.push(HostAddress { interface: interface.clone(), address });
        }
    }
    Ok(all)
}

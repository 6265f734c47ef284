//! The MTU of the paths from the host to given addresses, as its routing knows them: the metric of the route or what the host
//! learned of the path, and the MTU of the device. Reads only.

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use super::mesh::{Mesh, wire};
use super::netlink::Netlink;

/// Errors that mean "no route": unreachable, prohibited, dropped.
const NO_ROUTE: [i32; 5] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::ESRCH];

impl Mesh {
    /// The MTU in bytes of the path from the host to each address; `None` where the host has no route.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn path_mtus(&self, to: &[IpAddr]) -> io::Result<BTreeMap<IpAddr, Option<u32>>> {
        if to.is_empty() {
            return Ok(BTreeMap::new());
        }
        let devices = device_mtus(&self.host_netlink).await?;
        let mut all = BTreeMap::new();
        for address in to {
            all.insert(*address, path(&self.host_netlink, *address, &devices).await?);
        }
        Ok(all)
    }

    /// The MTU in bytes of the host's device with this address, or of the one that its default route leads to; `None` without
    /// both.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn uplink_mtu(&self, own: Option<IpAddr>) -> io::Result<Option<u32>> {
        let netlink = &self.host_netlink;
        let devices = device_mtus(netlink).await?;
        for message in netlink.dump(Message::GetAddress(AddressMessage::default())).await? {
            if let Message::NewAddress(message) = message
                && let Some((index, address)) = wire::read_address(&message)
                && Some(address) == own
            {
                return Ok(devices.get(&index).copied());
            }
        }
        let outside = match own {
            Some(IpAddr::V6(_)) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
            _ => IpAddr::from([192, 0, 2, 1]),
        };
        path(netlink, outside, &devices).await
    }
}

/// MTU by interface index.
async fn device_mtus(netlink: &Netlink) -> io::Result<BTreeMap<u32, u32>> {
    let links = netlink.dump(Message::GetLink(LinkMessage::default())).await?;
    let read = |message| match message {
        Message::NewLink(message) => wire::read_link(&message).map(|(_, link)| (link.index, link.mtu)),
        _ => None,
    };
    Ok(links.into_iter().filter_map(read).collect())
}

async fn path(netlink: &Netlink, to: IpAddr, devices: &BTreeMap<u32, u32>) -> io::Result<Option<u32>> {
    let mut request = RouteMessage::default();
    request.header.address_family = if to.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    request.header.destination_prefix_length = if to.is_ipv6() { 128 } else { 32 };
    request.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    let replies = match netlink.change(Message::GetRoute(request), 0).await {
        Err(error) if error.raw_os_error().is_some_and(|code| NO_ROUTE.contains(&code)) => return Ok(None),
        other => other?,
    };
    Ok(replies.iter().find_map(|reply| if let Message::NewRoute(route) = reply { route_mtu(route, devices) } else { None }))
}

/// The smaller of the route's own MTU and that of its device.
fn route_mtu(route: &RouteMessage, devices: &BTreeMap<u32, u32>) -> Option<u32> {
    let (mut device, mut own) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = devices.get(index).copied(),
            RouteAttribute::Metrics(metrics) => {
                own = metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
            }
            _ => {}
        }
    }
    [device, own.filter(|mtu| *mtu > 0)].into_iter().flatten().min()
}

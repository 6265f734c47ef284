//! The networks that the host reaches by its own routes. Reads only.

use super::netlink::Netlink;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;

/// Destinations of the IPv4 routes in the main table of the calling thread's namespace, without the default route.
///
/// # Errors
/// The kernel's.
pub async fn ipv4_routes() -> io::Result<Vec<Ipv4Net>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let routes = Netlink::open()?.dump(RouteNetlinkMessage::GetRoute(request)).await?;
    let read = |message| if let RouteNetlinkMessage::NewRoute(route) = message { destination(&route) } else { None };
    Ok(routes.into_iter().filter_map(read).collect())
}

fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    let header = &route.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Ipv4Net::new(*address, header.destination_prefix_length).ok(),
        _ => None,
    })
}

//! The IPAM half of the protocol: what the engine asks for, and the form of the answers. Pure.

use super::error::DriverError;
use super::wire;
use crate::model::{dual_stack::gateway6, mesh};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::str::FromStr;

/// Option of a request for an address: the MAC address of the container's interface, the same for both families.
const MAC: &str = "com.docker.network.endpoint.macaddress";
/// `RequestAddressType` of a request for a network's gateway.
const GATEWAY: &str = "com.docker.network.gateway";

/// Parses `10.0.1.5`, with or without a prefix length.
pub fn address<A: FromStr>(text: &str) -> Option<A> {
    text.split('/').next()?.parse().ok()
}

/// Accepts the requested pool; its text is its id.
pub fn request_pool(call: wire::RequestPool) -> Result<Value, DriverError> {
    if call.sub_pool.is_some_and(|p| !p.is_empty()) {
        return Err(DriverError::AddressRange);
    }
    let pool = call.pool.unwrap_or_default();
    if pool.is_empty() {
        return Err(DriverError::NoPool);
    }
    let subnet: Result<IpNet, _> =
        if call.v6 { pool.parse::<Ipv6Net>().map(IpNet::V6) } else { pool.parse::<Ipv4Net>().map(IpNet::V4) };
    let subnet = subnet.map_err(|_| DriverError::NotASubnet(pool))?;
    Ok(json!({ "PoolID": subnet.trunc().to_string(), "Pool": subnet.trunc().to_string(), "Data": {} }))
}

/// What the engine wants an address for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WantedAddress {
    /// The network's gateway.
    Gateway(IpAddr),
    /// A container, which is to have this address: a task's, or one that a user asked for.
    Exact(IpAddr),
    /// A container of a user.
    Any,
}

/// The subnet, and what for.
///
/// # Errors
/// The pool is none of the driver's, or the address is not in it.
pub fn address_request(call: &wire::RequestAddress) -> Result<(IpNet, WantedAddress), DriverError> {
    let subnet = pool(call.pool_id.as_deref())?;
    let kind = call.options.as_ref().and_then(|o| o.get("RequestAddressType")).and_then(Value::as_str);
    let requested = match call.address.as_deref().unwrap_or_default() {
        "" => None,
        text => {
            let same_family = |address: &IpAddr| address.is_ipv4() == matches!(subnet, IpNet::V4(_));
            Some(address(text).filter(same_family).ok_or_else(|| DriverError::NotAnAddress(text.to_owned()))?)
        }
    };
    let wanted = match requested {
        _ if kind == Some(GATEWAY) => WantedAddress::Gateway(requested.unwrap_or_else(|| gateway(subnet))),
        Some(address) => WantedAddress::Exact(address),
        None => WantedAddress::Any,
    };
    match wanted {
        WantedAddress::Gateway(address) | WantedAddress::Exact(address) if !subnet.contains(&address) => {
            Err(DriverError::OutsideSubnet { address, subnet })
        }
        wanted => Ok((subnet, wanted)),
    }
}

fn gateway(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(subnet) => mesh::gateway(subnet).into(),
        IpNet::V6(subnet) => gateway6(subnet).into(),
    }
}

/// The MAC address that a request names.
pub fn mac(call: &wire::RequestAddress) -> Option<String> {
    let mac = call.options.as_ref()?.get(MAC)?.as_str()?;
    (!mac.is_empty()).then(|| mac.to_ascii_lowercase())
}

/// The subnet of a pool, by its id.
///
/// # Errors
/// It is none of the driver's.
pub fn pool(id: Option<&str>) -> Result<IpNet, DriverError> {
    let id = id.unwrap_or_default();
    id.parse().map_err(|_| DriverError::UnknownPool(id.to_owned()))
}

/// The address as `/32` or `/128`: the container then reaches the whole network through its gateway.
pub fn reply(address: IpAddr) -> Value {
    json!({ "Address": IpNet::from(address).to_string(), "Data": {} })
}

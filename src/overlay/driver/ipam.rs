//! The IPAM half of the protocol: what the engine asks for, and the form of the answers. Pure.

use super::error::DriverError;
use super::wire;
use crate::model::mesh;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// `RequestAddressType` of a request for a network's gateway.
const GATEWAY: &str = "com.docker.network.gateway";

/// Parses `10.0.1.5`, with or without a prefix length.
pub fn address(text: &str) -> Option<Ipv4Addr> {
    text.split('/').next()?.parse().ok()
}

/// Accepts the requested pool; its text is its id.
pub fn request_pool(call: wire::RequestPool) -> Result<Value, DriverError> {
    if call.v6 {
        return Err(DriverError::Ipv6);
    }
    if call.sub_pool.is_some_and(|p| !p.is_empty()) {
        return Err(DriverError::AddressRange);
    }
    let pool = call.pool.unwrap_or_default();
    if pool.is_empty() {
        return Err(DriverError::NoPool);
    }
    let subnet: Ipv4Net = pool.parse().map_err(|_| DriverError::NotASubnet(pool))?;
    Ok(json!({ "PoolID": subnet.trunc().to_string(), "Pool": subnet.trunc().to_string(), "Data": {} }))
}

/// What the engine wants an address for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WantedAddress {
    /// The network's gateway.
    Gateway(Ipv4Addr),
    /// A container, which is to have this address: a task's, or one that a user asked for.
    Exact(Ipv4Addr),
    /// A container of a user.
    Any,
}

/// The subnet, and what for.
///
/// # Errors
/// The pool is none of the driver's, or the address is not in it.
pub fn address_request(call: &wire::RequestAddress) -> Result<(Ipv4Net, WantedAddress), DriverError> {
    let subnet = pool(call.pool_id.as_deref())?;
    let kind = call.options.as_ref().and_then(|o| o.get("RequestAddressType")).and_then(Value::as_str);
    let requested = match call.address.as_deref().unwrap_or_default() {
        "" => None,
        text => Some(address(text).ok_or_else(|| DriverError::NotAnAddress(text.to_owned()))?),
    };
    let wanted = match requested {
        _ if kind == Some(GATEWAY) => WantedAddress::Gateway(requested.unwrap_or_else(|| mesh::gateway(subnet))),
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

/// The subnet of a pool, by its id.
///
/// # Errors
/// It is none of the driver's.
pub fn pool(id: Option<&str>) -> Result<Ipv4Net, DriverError> {
    let id = id.unwrap_or_default();
    id.parse().map_err(|_| DriverError::UnknownPool(id.to_owned()))
}

/// The address as `/32`: the container then reaches the whole network through its gateway.
pub fn reply(address: Ipv4Addr) -> Value {
    json!({ "Address": format!("{address}/32"), "Data": {} })
}

//! The IPAM half: returns exactly the address that the engine requests, because the managers allocated it. Pure.

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

/// Returns the address as `/32`: the container then reaches the whole network through its gateway.
pub fn request_address(call: &wire::RequestAddress) -> Result<Value, DriverError> {
    let pool = call.pool_id.as_deref().unwrap_or_default();
    let subnet: Ipv4Net = pool.parse().map_err(|_| DriverError::UnknownPool(pool.to_owned()))?;
    let kind = call.options.as_ref().and_then(|o| o.get("RequestAddressType")).and_then(Value::as_str);
    let address = match call.address.as_deref().unwrap_or_default() {
        "" if kind == Some(GATEWAY) => mesh::gateway(subnet),
        "" => return Err(DriverError::NoTask(subnet)),
        text => address(text).ok_or_else(|| DriverError::NotAnAddress(text.to_owned()))?,
    };
    if !subnet.contains(&address) {
        return Err(DriverError::OutsideSubnet { address, subnet });
    }
    Ok(json!({ "Address": format!("{address}/32"), "Data": {} }))
}

//! The IPAM half: gives exactly the address that is asked for, because the managers chose it. Pure.

use super::{Refusal, wire};
use crate::model::mesh;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// What an address is asked for, if it is for a gateway.
const GATEWAY: &str = "com.docker.network.gateway";

/// `10.0.1.5`, with or without a prefix length.
pub fn address(text: &str) -> Option<Ipv4Addr> {
    text.split('/').next()?.parse().ok()
}

/// The pool is the one asked for; its text is its id.
pub fn request_pool(call: wire::RequestPool) -> Result<Value, Refusal> {
    if call.v6 {
        return Err("overlay networks of skep are IPv4; leave --ipv6 out".to_owned());
    }
    if call.sub_pool.is_some_and(|p| !p.is_empty()) {
        return Err("skep gives addresses itself; leave --ip-range out".to_owned());
    }
    let pool = call.pool.unwrap_or_default();
    if pool.is_empty() {
        return Err("networks of driver skep are made by skep, for the networks of the swarm: docker network create -d overlay"
            .to_owned());
    }
    let subnet: Ipv4Net = pool.parse().map_err(|_| format!("{pool:?} is not an IPv4 subnet"))?;
    Ok(json!({ "PoolID": subnet.trunc().to_string(), "Pool": subnet.trunc().to_string(), "Data": {} }))
}

/// The address as `/32`: the container then reaches the whole network through its gateway.
pub fn request_address(call: &wire::RequestAddress) -> Result<Value, Refusal> {
    let pool = call.pool_id.as_deref().unwrap_or_default();
    let subnet: Ipv4Net = pool.parse().map_err(|_| format!("pool {pool:?} is not one of skep's"))?;
    let kind = call.options.as_ref().and_then(|o| o.get("RequestAddressType")).and_then(Value::as_str);
    let wanted = match call.address.as_deref().unwrap_or_default() {
        "" if kind == Some(GATEWAY) => mesh::gateway(subnet),
        "" => {
            return Err(format!(
                "no address on {subnet} without a task: only tasks of the swarm get addresses on overlay networks (docker service create \
                 --network …); attaching plain containers is not built yet"
            ));
        }
        text => address(text).ok_or_else(|| format!("{text:?} is not an IPv4 address"))?,
    };
    if !subnet.contains(&wanted) {
        return Err(format!("address {wanted} is not in the subnet {subnet}"));
    }
    Ok(json!({ "Address": format!("{wanted}/32"), "Data": {} }))
}

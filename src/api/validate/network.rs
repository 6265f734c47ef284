//! Networks as posted: from JSON to a spec, and what is refused on the way.

use crate::api::convert::network::gateway;
use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::schema::{self, NETWORK};
use crate::model::{Network, NetworkSpec};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Option that chooses the VXLAN ids of a network's subnets.
const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// What the user should know of a network that is created as asked; empty if nothing.
pub fn network_warning(spec: &NetworkSpec) -> String {
    if spec.options.contains_key(VXLAN_IDS) {
        format!("option {VXLAN_IDS} has no effect: nodes are connected by WireGuard, without VXLAN")
    } else {
        String::new()
    }
}

/// The spec of a posted overlay network (already decoded by its schema).
///
/// # Errors
/// 400 for an invalid value, 501 for what skep does not support.
pub fn network_spec(posted: &Value) -> Result<NetworkSpec> {
    let name = posted["Name"].as_str().unwrap_or_default();
    if name.trim().is_empty() {
        return Err(ApiError::bad("invalid name: name is empty"));
    }
    let subnets = subnets(posted)?;
    if posted["EnableIPv4"] == json!(false) {
        return Err(ApiError::bad("IPv4 cannot be disabled in a Swarm scoped network"));
    }
    if let Some(path) = schema::unsupported_field(posted, &NETWORK) {
        return Err(ApiError::unsupported_field(&path, ""));
    }
    let ipam = posted["IPAM"]["Driver"].as_str().unwrap_or_default();
    if !["", "default"].contains(&ipam) {
        return Err(ApiError::unsupported_field("IPAM.Driver", ipam));
    }
    let options: BTreeMap<String, String> = serde_json::from_value(posted["Options"].clone()).unwrap_or_default();
    // `encrypted`: traffic between nodes always is.
    if let Some(option) = options.keys().find(|o| !["encrypted", VXLAN_IDS].contains(&o.as_str())) {
        return Err(ApiError::unsupported_field("Options", option));
    }
    let flag = |key: &str| posted[key].as_bool().unwrap_or(false);
    Ok(NetworkSpec {
        name: name.to_owned(),
        labels: serde_json::from_value(posted["Labels"].clone()).unwrap_or_default(),
        internal: flag("Internal"),
        attachable: flag("Attachable"),
        ingress: flag("Ingress"),
        subnets,
        options,
    })
}

fn subnets(posted: &Value) -> Result<Vec<Ipv4Net>> {
    let mut subnets = Vec::new();
    for (i, config) in posted["IPAM"]["Config"].as_array().into_iter().flatten().enumerate() {
        subnets.extend(subnet(i, config)?);
    }
    if subnets.len() > 1 {
        return Err(ApiError::unsupported_field("more than one subnet in IPAM.Config", ""));
    }
    Ok(subnets)
}

/// The subnet of the `i`-th IPAM configuration; `None` if it has none.
fn subnet(i: usize, config: &Value) -> Result<Option<Ipv4Net>> {
    let text = config["Subnet"].as_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let subnet: ipnet::IpNet = text
        .parse()
        .map_err(|_| ApiError::bad(format!("invalid network config:\ninvalid subnet {text}: invalid CIDR block notation")))?;
    let ipnet::IpNet::V4(subnet) = subnet else {
        return Err(ApiError::unsupported_field(&format!("IPAM.Config[{i}].Subnet"), text));
    };
    if subnet.addr() != subnet.network() {
        return Err(ApiError::bad(format!("invalid network config:\ninvalid subnet {subnet}: it should be {}", subnet.trunc())));
    }
    let posted_gateway = config["Gateway"].as_str().unwrap_or_default();
    let gateway = gateway(subnet).to_string();
    if !posted_gateway.is_empty() && posted_gateway != gateway {
        let path = format!("IPAM.Config[{i}].Gateway {posted_gateway} (the gateway is always {gateway}, the first address)");
        return Err(ApiError::unsupported_field(&path, ""));
    }
    Ok(Some(subnet))
}

/// Refuses an attachable ingress network, and a second one.
///
/// # Errors
/// 400 with `InvalidArgument`, 409 with `AlreadyExists`.
pub fn ingress_network<'a>(spec: &NetworkSpec, mut existing: impl Iterator<Item = &'a Network>) -> Result<()> {
    if spec.ingress && spec.attachable {
        return Err(ApiError::invalid_argument("ingress network cannot be attachable"));
    }
    match existing.find(|n| n.spec.ingress) {
        Some(present) if spec.ingress => {
            Err(ApiError::rpc(GrpcCode::AlreadyExists, format!("ingress network ({}) is already present", present.id)))
        }
        _ => Ok(()),
    }
}

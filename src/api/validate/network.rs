//! Networks as posted: from JSON to a spec, and what is refused on the way.

use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::schema::{self, NETWORK};
use crate::model::network::MTU;
use crate::model::{Network, NetworkSpec, mesh};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Smallest MTU of an IPv4 network (RFC 791), in bytes.
const SMALLEST_MTU: u32 = 68;
/// Option that chooses the VXLAN ids of a network's subnets.
const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// What the user should know of a network that is created as asked; empty if nothing. `others` are the networks that there are.
pub fn network_warning<'a>(spec: &NetworkSpec, others: impl Iterator<Item = &'a Network>, nodes: usize) -> String {
    let mut warnings = Vec::new();
    if spec.options.contains_key(VXLAN_IDS) {
        warnings.push(format!("option {VXLAN_IDS} has no effect: nodes are connected by WireGuard, without VXLAN"));
    }
    for subnet in &spec.subnets {
        warnings.extend(room_warning(spec.ip_range.unwrap_or(*subnet), nodes));
    }
    let taken = |other: &Network| {
        let theirs = other.subnet.or(other.spec.subnets.first().copied())?;
        let subnet = spec.subnets.iter().find(|subnet| subnet.contains(&theirs) || theirs.contains(*subnet))?;
        Some(format!(
            "subnet {subnet} overlaps {theirs} of network {}: the network gets its subnet, and containers, once that one is removed",
            other.spec.name
        ))
    };
    warnings.extend(others.filter_map(taken));
    warnings.join("; ")
}

/// Warns of a subnet that cannot hold a task on each node beside its gateway and a virtual address.
fn room_warning(range: Ipv4Net, nodes: usize) -> Option<String> {
    let hosts = 1_u64.checked_shl(u32::from(32 - range.prefix_len())).unwrap_or(u64::MAX).saturating_sub(3);
    (hosts < nodes as u64 + 1).then(|| {
        format!(
            "{range} has room for {hosts} addresses only, and the swarm has {nodes} nodes: each task, each plain container and each \
             service's virtual address needs one"
        )
    })
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
    let (subnets, pool) = pools(posted)?;
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
    if let Some(option) = options.keys().find(|o| !["encrypted", VXLAN_IDS, MTU].contains(&o.as_str())) {
        return Err(ApiError::unsupported_field("Options", option));
    }
    let mtu = options.get(MTU).map(|mtu| (mtu, mtu.parse::<u32>()));
    if let Some((mtu, Err(_) | Ok(..SMALLEST_MTU))) = mtu {
        return Err(ApiError::bad(format!("invalid value for option {MTU}: {mtu:?} is no MTU of {SMALLEST_MTU} bytes or more")));
    }
    let flag = |key: &str| posted[key].as_bool().unwrap_or(false);
    Ok(NetworkSpec {
        name: name.to_owned(),
        labels: serde_json::from_value(posted["Labels"].clone()).unwrap_or_default(),
        internal: flag("Internal"),
        attachable: flag("Attachable"),
        ingress: flag("Ingress"),
        subnets,
        gateway: pool.gateway,
        ip_range: pool.range,
        auxiliary_addresses: pool.auxiliary,
        options,
    })
}

/// What of a subnet is assigned.
#[derive(Default)]
struct PoolLimits {
    gateway: Option<Ipv4Addr>,
    range: Option<Ipv4Net>,
    auxiliary: BTreeMap<String, Ipv4Addr>,
}

fn pools(posted: &Value) -> Result<(Vec<Ipv4Net>, PoolLimits)> {
    let (mut subnets, mut limits) = (Vec::new(), PoolLimits::default());
    for (i, config) in posted["IPAM"]["Config"].as_array().into_iter().flatten().enumerate() {
        if let Some(subnet) = subnet(i, config)? {
            subnets.push(subnet);
            limits = pool_limits(subnet, config)?;
        }
    }
    if subnets.len() > 1 {
        return Err(ApiError::unsupported_field("more than one subnet in IPAM.Config", ""));
    }
    Ok((subnets, limits))
}

/// Gateway, range and auxiliary addresses, in Docker's words where they are refused.
fn pool_limits(subnet: Ipv4Net, config: &Value) -> Result<PoolLimits> {
    let refused = |text: String| ApiError::bad(format!("invalid network config:\n{text}"));
    let range = match config["IPRange"].as_str().unwrap_or_default() {
        "" => None,
        text => {
            let range: Ipv4Net =
                text.parse().map_err(|_| refused(format!("invalid ip-range {text}: invalid CIDR block notation")))?;
            if range.trunc() != range {
                return Err(refused(format!("invalid ip-range {range}: it should be {}", range.trunc())));
            }
            if !subnet.contains(&range) {
                return Err(refused(format!("invalid ip-range {range}: it is not contained in subnet {subnet}")));
            }
            Some(range)
        }
    };
    let gateway = match config["Gateway"].as_str().unwrap_or_default() {
        "" => None,
        text => {
            let gateway: Ipv4Addr = text.parse().map_err(|_| refused(format!("invalid gateway {text}: invalid address")))?;
            if !subnet.contains(&gateway) {
                return Err(refused(format!("invalid gateway {gateway}: it is not contained in subnet {subnet}")));
            }
            if [subnet.network(), subnet.broadcast()].contains(&gateway) {
                return Err(refused(format!("invalid gateway {gateway}: it is no host address of subnet {subnet}")));
            }
            // What every network has is not part of the spec, so that managers of earlier builds read it.
            Some(gateway).filter(|gateway| *gateway != mesh::gateway(subnet))
        }
    };
    let mut auxiliary = BTreeMap::new();
    for (name, address) in config["AuxiliaryAddresses"].as_object().into_iter().flatten() {
        let text = address.as_str().unwrap_or_default();
        let address: Ipv4Addr =
            text.parse().map_err(|_| refused(format!("invalid auxiliary address {name}: invalid address {text:?}")))?;
        if !subnet.contains(&address) {
            return Err(refused(format!("invalid auxiliary address {name}: {address} is not contained in subnet {subnet}")));
        }
        auxiliary.insert(name.clone(), address);
    }
    Ok(PoolLimits { gateway, range, auxiliary })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Meta;

    fn posted(config: &Value) -> Value {
        json!({ "Name": "back", "Driver": "overlay", "IPAM": { "Config": [config] } })
    }

    #[test]
    fn a_range_and_auxiliary_addresses_must_be_within_the_subnet() {
        let config =
            json!({ "Subnet": "172.20.0.0/22", "IPRange": "172.20.2.0/24", "AuxiliaryAddresses": { "router": "172.20.0.9" } });
        let spec = network_spec(&posted(&config)).unwrap();
        assert_eq!(spec.gateway, None);
        let chosen = network_spec(&posted(&json!({ "Subnet": "10.9.0.0/16", "Gateway": "10.9.255.254" }))).unwrap();
        assert_eq!(chosen.gateway, Some(Ipv4Addr::new(10, 9, 255, 254)));
        assert_eq!(spec.ip_range, Some("172.20.2.0/24".parse().unwrap()));
        assert_eq!(spec.auxiliary_addresses["router"], Ipv4Addr::new(172, 20, 0, 9));
        for (field, value, said) in [
            ("IPRange", json!("172.20.4.0/24"), "it is not contained in subnet 172.20.0.0/22"),
            ("IPRange", json!("172.20.2.9/24"), "it should be 172.20.2.0/24"),
            ("IPRange", json!("x"), "invalid CIDR block notation"),
            ("Gateway", json!("172.20.4.1"), "it is not contained in subnet"),
            ("Gateway", json!("172.20.3.255"), "it is no host address"),
            ("Gateway", json!("fd00::1"), "invalid address"),
            ("AuxiliaryAddresses", json!({ "a": "192.168.0.1" }), "192.168.0.1 is not contained"),
            ("AuxiliaryAddresses", json!({ "a": "fd00::1" }), "invalid address"),
        ] {
            let mut config = json!({ "Subnet": "172.20.0.0/22" });
            config[field] = value;
            let error = network_spec(&posted(&config)).unwrap_err();
            assert!(error.status == 400 && error.message.contains(said), "{error}");
        }
    }

    #[test]
    fn an_mtu_must_be_one() {
        let options = |mtu: &str| json!({ "Name": "back", "Driver": "overlay", "Options": { MTU: mtu, "encrypted": "" } });
        assert_eq!(network_spec(&options("1280")).unwrap().mtu(), Some(1280));
        for bad in ["", "67", "-1", "1e3"] {
            assert_eq!(network_spec(&options(bad)).unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn a_subnet_that_is_taken_or_too_small_is_a_warning() {
        let network = |name: &str, subnet: &str| {
            let spec = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
            Network { id: name.into(), meta: Meta::default(), spec, subnet: Some(subnet.parse().unwrap()), removing: false }
        };
        let others = [network("ingress", "10.0.0.0/24"), network("lan", "192.168.8.0/21")];
        let warning = |subnet: &str, nodes| {
            let spec = network_spec(&posted(&json!({ "Subnet": subnet }))).unwrap();
            network_warning(&spec, others.iter(), nodes)
        };
        assert_eq!(warning("10.0.1.0/24", 3), "");
        assert!(warning("192.168.9.0/24", 3).contains("overlaps 192.168.8.0/21 of network lan"));
        assert!(warning("10.0.0.0/8", 3).contains("of network ingress"));
        assert_eq!(warning("172.16.0.0/29", 4), "");
        assert!(warning("172.16.0.0/29", 5).contains("has room for 5 addresses only"));
        assert!(warning("172.16.0.0/32", 1).contains("has room for 0 addresses only"));
    }
}

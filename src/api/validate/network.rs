//! Networks as posted: from JSON to a spec, and what is refused on the way.

use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::schema::{self, NETWORK};
use crate::manager::allocator::{first_free, overlap};
use crate::model::dual_stack::{LONGEST_FOR_SEVERAL, MOST_OF_HOOKS, gateway6, overlap6};
use crate::model::mesh::MeshPrefix;
use crate::model::network::MTU;
use crate::model::{Cluster, Network, NetworkSpec, SubnetPair, mesh};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Smallest MTU of an IPv4 network (RFC 791), in bytes.
const SMALLEST_MTU: u32 = 68;
/// Smallest MTU of a network with IPv6 (RFC 8200), in bytes.
const SMALLEST_MTU6: u32 = 1280;
/// IPv4 subnets of a network: each has rules and a gateway on every node that has a container there.
const MOST_SUBNETS: usize = 16;
/// Option that chooses the VXLAN ids of a network's subnets.
const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// What the user should know of a network that is created as asked; empty if nothing. `others` are the networks that there are.
pub fn network_warning<'a>(spec: &NetworkSpec, others: impl Iterator<Item = &'a Network>, nodes: usize) -> String {
    let mut warnings = Vec::new();
    if spec.options.contains_key(VXLAN_IDS) {
        warnings.push(format!("option {VXLAN_IDS} has no effect: nodes are connected by WireGuard, without VXLAN"));
    }
    let ranges: Vec<Ipv4Net> = spec.subnets.iter().map(|subnet| spec.range_in(*subnet).unwrap_or(*subnet)).collect();
    warnings.extend(room_warning(&ranges, nodes));
    let others: Vec<&Network> = others.collect();
    warnings.extend(hooks_warning(spec, others.iter().map(|other| &other.spec)));
    let taken6 = |other: &Network| {
        let theirs = other.subnet6.or(other.spec.subnet6)?;
        let subnet = spec.subnet6.filter(|subnet| overlap6(subnet, &theirs))?;
        Some((IpNet::V6(subnet), IpNet::V6(theirs)))
    };
    let taken4 = |other: &Network| {
        let theirs = if other.subnet.is_some() { other.subnets() } else { other.spec.subnets.clone() };
        let mut both = spec.subnets.iter().flat_map(|subnet| theirs.iter().map(move |their| (*subnet, *their)));
        let (subnet, theirs) = both.find(|(subnet, their)| overlap(subnet, their))?;
        Some((IpNet::V4(subnet), IpNet::V4(theirs)))
    };
    let taken = |other: &Network| {
        let (subnet, theirs) = taken4(other).or_else(|| taken6(other))?;
        Some(format!(
            "subnet {subnet} overlaps {theirs} of network {}: the network gets its subnet, and containers, once that one is removed",
            other.spec.name
        ))
    };
    warnings.extend(others.into_iter().filter_map(taken));
    warnings.join("; ")
}

/// Warns of a network that is to get its subnet from pools which have none left.
pub fn pool_warning<'a>(spec: &NetworkSpec, others: impl Iterator<Item = &'a Network>, cluster: &Cluster) -> Option<String> {
    let taken: Vec<Ipv4Net> = others.flat_map(|other| [other.subnets(), other.spec.subnets.clone()].concat()).collect();
    let is_full = || first_free(cluster, |subnet| taken.iter().any(|other| overlap(subnet, other))).is_none();
    (spec.subnets.is_empty() && is_full()).then(|| {
        "every subnet of the default address pools is in use: the network gets its subnet, and containers, once another one is removed"
            .to_owned()
    })
}

/// Warns if the socket hooks of a node that has all networks could not serve one that has an entry of its own there.
fn hooks_warning<'a>(spec: &NetworkSpec, others: impl Iterator<Item = &'a NetworkSpec>) -> Option<String> {
    let all = others.map(NetworkSpec::hook_subnets).sum::<usize>() + spec.hook_subnets();
    (spec.hook_subnets() > 0 && all > MOST_OF_HOOKS).then(|| {
        format!(
            "the networks of the swarm have {all} subnets of both families and further ones, and the eBPF programs of a node room for \
             {MOST_OF_HOOKS}: on a node with tasks on that many of them, connections to virtual addresses of some do not work; \
             `skep status` there names these"
        )
    })
}

/// Warns of subnets that cannot hold a task on each node beside their gateways and a virtual address.
fn room_warning(ranges: &[Ipv4Net], nodes: usize) -> Option<String> {
    let hosts_of = |range: &Ipv4Net| 1_u64.checked_shl(u32::from(32 - range.prefix_len())).unwrap_or(u64::MAX).saturating_sub(3);
    let hosts = ranges.iter().map(hosts_of).fold(0, u64::saturating_add);
    (!ranges.is_empty() && hosts < nodes as u64 + 1).then(|| {
        let shown = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        format!(
            "{shown} has room for {hosts} addresses only, and the swarm has {nodes} nodes: each task, each plain container and each \
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
    let enable_ipv6 = posted["EnableIPv6"].as_bool().unwrap_or(false);
    let (pools, pool6) = pools(posted, enable_ipv6)?;
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
    if let Some((mtu, Ok(..SMALLEST_MTU6))) = mtu
        && enable_ipv6
    {
        return Err(ApiError::bad(format!("invalid value for option {MTU}: {mtu:?}: IPv6 needs {SMALLEST_MTU6} bytes or more")));
    }
    let flag = |key: &str| posted[key].as_bool().unwrap_or(false);
    if flag("Ingress") && enable_ipv6 {
        return Err(ApiError::unsupported_field("EnableIPv6", "of the ingress network: it serves IPv6 clients as it is"));
    }
    let subnets = pools.iter().filter_map(|pool| pool.subnet).collect();
    let mut auxiliary_addresses = BTreeMap::new();
    let mut further = pools.into_iter();
    let first = further.next().unwrap_or_default();
    let (mut further_gateways, mut further_ranges) = (Vec::new(), Vec::new());
    auxiliary_addresses.extend(first.auxiliary);
    for pool in further {
        further_gateways.extend(pool.gateway);
        further_ranges.extend(pool.range);
        // Each subnet has names of its own.
        let other = |name, address| if auxiliary_addresses.contains_key(&name) { format!("{name} {address}") } else { name };
        let named: Vec<_> = pool.auxiliary.into_iter().map(|(name, address)| (other(name, address), address)).collect();
        auxiliary_addresses.extend(named);
    }
    Ok(NetworkSpec {
        name: name.to_owned(),
        labels: serde_json::from_value(posted["Labels"].clone()).unwrap_or_default(),
        internal: flag("Internal"),
        attachable: flag("Attachable"),
        ingress: flag("Ingress"),
        subnets,
        further_gateways,
        further_ranges,
        enable_ipv6,
        subnet6: pool6.subnet,
        gateway6: pool6.gateway,
        auxiliary_addresses6: pool6.auxiliary,
        gateway: first.gateway,
        ip_range: first.range,
        ip_range6: pool6.range,
        auxiliary_addresses,
        options,
    })
}

/// A subnet and what of it is assigned.
struct Pool<Net, Address> {
    subnet: Option<Net>,
    gateway: Option<Address>,
    range: Option<Net>,
    auxiliary: BTreeMap<String, Address>,
}

type PoolV4 = Pool<Ipv4Net, Ipv4Addr>;
type PoolV6 = Pool<Ipv6Net, Ipv6Addr>;

impl<Net, Address> Default for Pool<Net, Address> {
    fn default() -> Self {
        Self { subnet: None, gateway: None, range: None, auxiliary: BTreeMap::new() }
    }
}

fn refused(text: &str) -> ApiError {
    ApiError::bad(format!("invalid network config:\n{text}"))
}

/// The subnets of both families.
fn pools(posted: &Value, enable_ipv6: bool) -> Result<(Vec<PoolV4>, PoolV6)> {
    let (mut pools, mut pool6) = (Vec::<PoolV4>::new(), PoolV6::default());
    for config in posted["IPAM"]["Config"].as_array().into_iter().flatten() {
        match subnet(config)? {
            None => {}
            Some(IpNet::V4(subnet)) => {
                let mut others = pools.iter().filter_map(|pool| pool.subnet);
                if let Some(other) = others.find(|other| overlap(other, &subnet)) {
                    return Err(refused(&format!("invalid subnet {subnet}: it overlaps {other} of the same network")));
                }
                if pools.len() == MOST_SUBNETS {
                    return Err(refused(&format!("invalid subnet {subnet}: a network has at most {MOST_SUBNETS} subnets")));
                }
                pools.push(pool_v4(subnet, config)?);
            }
            Some(IpNet::V6(subnet)) if !enable_ipv6 => {
                return Err(refused(&format!("invalid subnet {subnet}: IPv6 is not enabled for the network (--ipv6)")));
            }
            Some(IpNet::V6(subnet)) if pool6.subnet.is_none() => pool6 = pool_v6(subnet, config)?,
            Some(IpNet::V6(_)) => {
                let why = "with several IPv6 subnets: one has room for the hosts of all IPv4 subnets";
                return Err(ApiError::unsupported_field("IPAM.Config", why));
            }
        }
    }
    Ok((pools, pool6))
}

/// Subnet, gateway, range and auxiliary addresses, in Docker's words where they are refused.
fn pool_v4(subnet: Ipv4Net, config: &Value) -> Result<PoolV4> {
    let range = match posted_range(IpNet::V4(subnet), config)? {
        Some(IpNet::V4(range)) => Some(range),
        _ => None,
    };
    let gateway = posted_gateway(IpNet::V4(subnet), config)?;
    if let Some(gateway) = gateway.filter(|gateway| [subnet.network(), subnet.broadcast()].contains(gateway)) {
        return Err(refused(&format!("invalid gateway {gateway}: it is no host address of subnet {subnet}")));
    }
    // What every network has is not part of the spec, so that managers of earlier builds read it.
    let gateway = gateway.filter(|gateway| *gateway != mesh::gateway(subnet));
    Ok(Pool { subnet: Some(subnet), gateway, range, auxiliary: auxiliary(IpNet::V4(subnet), config)? })
}

/// As [`pool_v4`].
fn pool_v6(subnet: Ipv6Net, config: &Value) -> Result<PoolV6> {
    let first = subnet.addr();
    if first.is_multicast() || first.is_unicast_link_local() || first.segments()[..3] == [0; 3] {
        return Err(refused(&format!("invalid subnet {subnet}: its addresses cannot be those of hosts on a network")));
    }
    let range = match posted_range(IpNet::V6(subnet), config)? {
        Some(IpNet::V6(range)) => Some(range),
        _ => None,
    };
    let gateway = posted_gateway(IpNet::V6(subnet), config)?;
    if gateway == Some(subnet.addr()) {
        return Err(refused(&format!("invalid gateway {}: it is no host address of subnet {subnet}", subnet.addr())));
    }
    let gateway = gateway.filter(|gateway| *gateway != gateway6(subnet));
    Ok(Pool { subnet: Some(subnet), gateway, range, auxiliary: auxiliary(IpNet::V6(subnet), config)? })
}

/// An address of the subnet's family, within it.
fn address_in<A: FromStr + Copy + Into<IpAddr>>(subnet: IpNet, what: &str, text: &str) -> Result<A> {
    let address: A = text.parse().map_err(|_| refused(&format!("invalid {what}: invalid address")))?;
    if !subnet.contains(&address.into()) {
        return Err(refused(&format!("invalid {what}: it is not contained in subnet {subnet}")));
    }
    Ok(address)
}

/// A range of the subnet.
fn posted_range(subnet: IpNet, config: &Value) -> Result<Option<IpNet>> {
    let text = config["IPRange"].as_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let range: IpNet = text.parse().map_err(|_| refused(&format!("invalid ip-range {text}: invalid CIDR block notation")))?;
    if range.trunc() != range {
        return Err(refused(&format!("invalid ip-range {range}: it should be {}", range.trunc())));
    }
    if !subnet.contains(&range) {
        return Err(refused(&format!("invalid ip-range {range}: it is not contained in subnet {subnet}")));
    }
    Ok(Some(range))
}

fn posted_gateway<A: FromStr + Copy + Into<IpAddr>>(subnet: IpNet, config: &Value) -> Result<Option<A>> {
    match config["Gateway"].as_str().unwrap_or_default() {
        "" => Ok(None),
        text => address_in(subnet, &format!("gateway {text}"), text).map(Some),
    }
}

fn auxiliary<A: FromStr + Copy + Into<IpAddr>>(subnet: IpNet, config: &Value) -> Result<BTreeMap<String, A>> {
    let posted = config["AuxiliaryAddresses"].as_object().into_iter().flatten();
    let address = |(name, address): (&String, &Value)| {
        let text = address.as_str().unwrap_or_default();
        Ok((name.clone(), address_in(subnet, &format!("auxiliary address {name}: {text}"), text)?))
    };
    posted.map(address).collect()
}

/// The subnet of an IPAM configuration; `None` if it has none.
fn subnet(config: &Value) -> Result<Option<IpNet>> {
    let text = config["Subnet"].as_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let subnet: IpNet = text.parse().map_err(|_| refused(&format!("invalid subnet {text}: invalid CIDR block notation")))?;
    if subnet.addr() != subnet.network() {
        return Err(refused(&format!("invalid subnet {subnet}: it should be {}", subnet.trunc())));
    }
    Ok(Some(subnet))
}

/// Refuses an IPv6 subnet that is the mesh's own, or has fewer addresses than the IPv4 one that the network has or will get, and a
/// range of it in which no container can be.
///
/// # Errors
/// 400.
pub fn network_subnet6(spec: &NetworkSpec, cluster: &Cluster) -> Result<()> {
    let Some(subnet) = spec.subnet6 else { return Ok(()) };
    let MeshPrefix(mesh) = cluster.mesh;
    if overlap6(&subnet, &mesh) {
        return Err(refused(&format!("invalid subnet {subnet}: it overlaps {mesh}, in which the swarm itself has addresses")));
    }
    if spec.subnets.len() > 1 && subnet.prefix_len() > LONGEST_FOR_SEVERAL {
        return Err(refused(&format!(
            "invalid subnet {subnet}: a container has its whole IPv4 address in it, because the network has several IPv4 subnets: a \
             prefix of {LONGEST_FOR_SEVERAL} or shorter is needed"
        )));
    }
    let v4 =
        spec.subnets.first().copied().unwrap_or(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, cluster.subnet_prefix()).unwrap_or_default());
    if spec.subnets.len() < 2 && SubnetPair::new(v4, subnet).is_none() {
        let longest = 96 + v4.prefix_len();
        return Err(refused(&format!(
            "invalid subnet {subnet}: it has fewer addresses than the IPv4 subnet (/{}), and a container has the same host number in \
             both: a prefix of {longest} or shorter is needed",
            v4.prefix_len()
        )));
    }
    if let Some(range) = spec.ip_range6.filter(|_| spec.subnets.iter().chain([&v4]).all(|v4| spec.assignable(*v4).is_none())) {
        let both = spec.ip_range.map_or_else(|| format!("an IPv4 subnet of /{}", v4.prefix_len()), |v4| format!("{v4}"));
        return Err(refused(&format!(
            "invalid ip-range {range}: a container has the same host number in both subnets, and none of {both} is in it"
        )));
    }
    Ok(())
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

    fn posted(config: &Value) -> Value {
        json!({ "Name": "back", "Driver": "overlay", "IPAM": { "Config": [config] } })
    }

    #[test]
    fn another_driver_of_addresses_than_the_default_one_is_refused_by_name() {
        let with = |driver: &str| network_spec(&json!({ "Name": "back", "Driver": "overlay", "IPAM": { "Driver": driver } }));
        assert!(with("").is_ok() && with("default").is_ok());
        let why = with("dhcp").unwrap_err();
        assert_eq!(why.status.as_u16(), 501);
        assert!(why.message.contains("IPAM.Driver") && why.message.contains("dhcp"), "{why}");
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
            ("AuxiliaryAddresses", json!({ "a": "192.168.0.1" }), "192.168.0.1: it is not contained"),
            ("AuxiliaryAddresses", json!({ "a": "fd00::1" }), "invalid address"),
        ] {
            let mut config = json!({ "Subnet": "172.20.0.0/22" });
            config[field] = value;
            let error = network_spec(&posted(&config)).unwrap_err();
            assert!(error.status == 400 && error.message.contains(said), "{error}");
        }
    }

    /// A network of both families, with these IPAM configurations.
    fn dual(configs: &Value) -> Result<NetworkSpec> {
        network_spec(&json!({ "Name": "back", "Driver": "overlay", "EnableIPv6": true, "IPAM": { "Config": configs } }))
    }

    #[test]
    fn a_network_has_one_subnet_of_each_family_in_any_order() {
        let spec = dual(&json!([
            { "Subnet": "fd00:7::/64", "Gateway": "fd00:7::fe", "AuxiliaryAddresses": { "router": "fd00:7::9" } },
            { "Subnet": "192.168.7.0/24" },
        ]))
        .unwrap();
        assert_eq!((spec.subnets.len(), spec.subnet6), (1, Some("fd00:7::/64".parse().unwrap())));
        assert_eq!(spec.gateway6, Some("fd00:7::fe".parse().unwrap()));
        let reserved: Vec<String> = spec.reserved_for_v6(spec.subnets[0]).iter().map(ToString::to_string).collect();
        assert_eq!(reserved, ["192.168.7.9", "192.168.7.254"], "of the host numbers of gateway and router");
        let drawn = dual(&json!([])).unwrap();
        assert!(drawn.enable_ipv6 && drawn.subnet6.is_none() && drawn.subnets.is_empty());
        let only6 = dual(&json!([{ "Subnet": "fd00:7::/64" }])).unwrap();
        assert!(only6.subnets.is_empty(), "its IPv4 subnet is drawn");
        assert_eq!(spec.newer_field(), Some("EnableIPv6"), "older managers and nodes do not serve it");
    }

    #[test]
    fn what_of_ipv6_cannot_be_carried_out_is_refused() {
        let v4 = json!({ "Subnet": "192.168.7.0/24" });
        for (configs, status, said) in [
            (json!([{ "Subnet": "fd00:7::1/64" }]), 400, "it should be fd00:7::/64"),
            (json!([{ "Subnet": "fd00:7::/129" }]), 400, "invalid CIDR block notation"),
            (json!([{ "Subnet": "fe80::/64" }]), 400, "cannot be those of hosts"),
            (json!([{ "Subnet": "ff05::/64" }]), 400, "cannot be those of hosts"),
            (json!([{ "Subnet": "::ffff:0:0/96" }]), 400, "cannot be those of hosts"),
            (json!([{ "Subnet": "fd00:7::/64", "Gateway": "fd00:8::1" }]), 400, "it is not contained in subnet fd00:7::/64"),
            (json!([{ "Subnet": "fd00:7::/64", "Gateway": "fd00:7::" }]), 400, "it is no host address"),
            (json!([{ "Subnet": "fd00:7::/64", "Gateway": "10.0.0.1" }]), 400, "invalid address"),
            (json!([{ "Subnet": "fd00:7::/64", "IPRange": "fd00:8::/80" }]), 400, "it is not contained in subnet fd00:7::/64"),
            (json!([{ "Subnet": "fd00:7::/64", "IPRange": "10.0.0.0/28" }]), 400, "it is not contained in subnet fd00:7::/64"),
            (json!([v4, { "Subnet": "192.168.0.0/21" }]), 400, "it overlaps 192.168.7.0/24 of the same network"),
            (json!([{ "Subnet": "fd00:7::/64" }, { "Subnet": "fd00:8::/64" }]), 501, "several IPv6 subnets"),
        ] {
            let error = dual(&configs).unwrap_err();
            assert!(error.status.as_u16() == status && error.message.contains(said), "{configs}: {error}");
        }
        let without = json!({ "Name": "back", "Driver": "overlay", "IPAM": { "Config": [{ "Subnet": "fd00:7::/64" }] } });
        assert!(network_spec(&without).unwrap_err().message.contains("--ipv6"));
        let small = json!({ "Name": "back", "Driver": "overlay", "EnableIPv6": true, "Options": { MTU: "1279" } });
        assert!(network_spec(&small).unwrap_err().message.contains("1280"));
        let ingress = json!({ "Name": "mesh", "Driver": "overlay", "EnableIPv6": true, "Ingress": true });
        assert_eq!(network_spec(&ingress).unwrap_err().status, 501);
    }

    #[test]
    fn an_ipv6_subnet_has_room_for_all_hosts_and_none_of_the_mesh() {
        let cluster = |subnet_size| Cluster { subnet_size, ..crate::model::fixture::cluster() };
        let check =
            |configs: &Value, size| network_subnet6(&dual(configs).unwrap(), &cluster(size)).map_err(|error| error.message);
        assert!(check(&json!([{ "Subnet": "fd00:7::/120" }]), 0).is_ok(), "/24 by default");
        assert!(check(&json!([{ "Subnet": "fd00:7::/121" }]), 0).unwrap_err().contains("a prefix of 120 or shorter"));
        assert!(check(&json!([{ "Subnet": "fd00:7::/124" }]), 28).is_ok());
        let wide = json!([{ "Subnet": "fd00:7::/112" }, { "Subnet": "172.16.0.0/15" }]);
        assert!(check(&wide, 0).unwrap_err().contains("a prefix of 111 or shorter"));
        let range = |range: &str| json!([{ "Subnet": "fd00:7::/64", "IPRange": range }, { "Subnet": "172.16.0.0/24", "IPRange": "172.16.0.64/26" }]);
        assert!(check(&range("fd00:7::40/123"), 0).is_ok());
        assert!(check(&range("fd00:7::80/122"), 0).unwrap_err().contains("none of 172.16.0.64/26 is in it"));
        let far = check(&json!([{ "Subnet": "fd00:7::/64", "IPRange": "fd00:7::1:0:0/96" }]), 0);
        assert!(far.unwrap_err().contains("none of an IPv4 subnet of /24 is in it"));
        let mesh = check(&json!([{ "Subnet": "fd12:3456:789a:9000::/64" }]), 0);
        assert!(mesh.unwrap_err().contains("the swarm itself has addresses"));
    }

    #[test]
    fn a_network_has_several_subnets_each_with_its_own_gateway_and_range() {
        let configs = json!([
            { "Subnet": "192.168.7.0/24", "AuxiliaryAddresses": { "router": "192.168.7.9" } },
            { "Subnet": "fd00:7::/64" },
            { "Subnet": "172.16.0.0/22", "Gateway": "172.16.3.1", "IPRange": "172.16.1.0/24",
              "AuxiliaryAddresses": { "router": "172.16.1.9" } },
        ]);
        let spec = dual(&configs).unwrap();
        let [first, further] = spec.subnets[..] else { panic!("{spec:?}") };
        assert_eq!((spec.gateway_in(first), spec.gateway_in(further)), ([192, 168, 7, 1].into(), [172, 16, 3, 1].into()));
        assert_eq!((spec.range_in(first), spec.range_in(further)), (None, Some("172.16.1.0/24".parse().unwrap())));
        assert_eq!(spec.assignable(further), Some(([172, 16, 1, 0].into(), [172, 16, 1, 255].into())));
        assert_eq!(spec.auxiliary_addresses.len(), 2);
        assert_eq!(network_subnet6(&spec, &crate::model::fixture::cluster()), Ok(()));
        let narrow = dual(&json!([configs[0], configs[2], { "Subnet": "fd00:7::/100" }])).unwrap();
        let error = network_subnet6(&narrow, &crate::model::fixture::cluster()).unwrap_err();
        assert!(error.message.contains("a prefix of 96 or shorter"), "{error}");
        let ingress = json!({ "Name": "mesh", "Ingress": true, "IPAM": { "Config": [configs[0], configs[2]] } });
        assert_eq!(network_spec(&ingress).unwrap().subnets.len(), 2);
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
            Network { subnet: Some(subnet.parse().unwrap()), ..Network::new(name.into(), spec) }
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

    #[test]
    fn a_network_for_which_the_pools_have_no_subnet_left_is_a_warning() {
        let pool = vec!["10.20.0.0/23".parse().unwrap()];
        let cluster = Cluster { address_pools: pool, ..crate::model::fixture::cluster() };
        let network = |subnet: &str| {
            let spec = NetworkSpec { name: subnet.to_owned(), ..NetworkSpec::default() };
            Network { subnet: Some(subnet.parse().unwrap()), ..Network::new(subnet.into(), spec) }
        };
        let both = [network("10.20.0.0/24"), network("10.20.1.0/24")];
        let any = NetworkSpec::default();
        assert_eq!(pool_warning(&any, both[..1].iter(), &cluster), None);
        let full = pool_warning(&any, both.iter(), &cluster).unwrap();
        assert!(full.starts_with("every subnet of the default address pools is in use"), "{full}");
        let asked = network_spec(&posted(&json!({ "Subnet": "192.168.9.0/24" }))).unwrap();
        assert_eq!(pool_warning(&asked, both.iter(), &cluster), None, "it has one of its own");
    }

    #[test]
    fn subnets_that_the_socket_hooks_have_no_room_for_are_a_warning() {
        let network = |n: usize| {
            let spec = dual(&json!([])).unwrap();
            Network::new(format!("n{n}").as_str().into(), spec)
        };
        let others: Vec<Network> = (0..MOST_OF_HOOKS).map(network).collect();
        let warning = |spec: &NetworkSpec, others: &[Network]| network_warning(spec, others.iter(), 1);
        assert_eq!(warning(&others[0].spec, &others[1..]), "");
        assert!(warning(&others[0].spec, &others).contains("have 1025 subnets of both families and further ones"));
        let simple = network_spec(&posted(&json!({ "Subnet": "172.16.0.0/24" }))).unwrap();
        assert_eq!(warning(&simple, &others), "", "it needs no entry");
    }
}

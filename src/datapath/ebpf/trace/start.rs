//! Where the packet of a trace comes in. Pure.

use super::frame::{FrameHeaders, MeshDirection, carried, frame};
use super::instance::AtHook;
use crate::datapath::ebpf::hook::Hook;
use crate::datapath::ebpf::host_devices::HostDevices;
use crate::datapath::mesh::TUNNEL;
use skep_ebpf::{Config, convert};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A packet to trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceRequest {
    pub headers: FrameHeaders,
    /// Length from the IP header on, in bytes; at least what the headers take.
    pub length: usize,
    /// Device that it arrives by: an uplink, or the mesh end of a container's veth. `None`: that of its source.
    pub device: Option<String>,
    /// /64 of the node that sends it through the tunnel.
    pub from_node: Option<Ipv6Addr>,
    /// Follow the answer too.
    pub reply: bool,
}

/// What of the packet's addresses is a container: its node's /64, unset for this node.
pub(super) type Containers = BTreeMap<Ipv4Addr, skep_ebpf::Prefix>;

/// The IPv4 address of a container, by its address of either family.
pub(super) fn container_of(address: IpAddr, config: &Config) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => {
            let words = convert::address(address);
            (words[..3] == [config.containers[0], config.containers[1], 0]).then(|| convert::to_v4(words[3]))
        }
    }
}

/// The hook that the packet meets first. `macs`: hardware addresses of the uplinks by index. `containers` holds those of the
/// packet's addresses that are one.
///
/// # Errors
/// What is missing or does not fit, as the user is to read it.
pub(super) fn start(
    request: &TraceRequest,
    config: &Config,
    devices: &HostDevices,
    macs: &BTreeMap<u32, [u8; 6]>,
    containers: &Containers,
) -> Result<AtHook, String> {
    let TraceRequest { headers, length, .. } = request;
    let source = container_of(headers.source, config).and_then(|address| Some((address, containers.get(&address)?)));
    let from_container = |device| AtHook { hook: Hook::FromContainer, device, frame: frame(headers, *length, [2; 6]), via: None };
    let uplink = |hook, device| {
        let mac = macs.get(&device).ok_or_else(|| format!("the uplink with index {device} has no hardware address"))?;
        Ok(AtHook { hook, device, frame: frame(headers, *length, *mac), via: None })
    };
    if let Some(from) = request.from_node {
        if request.device.as_deref().is_some_and(|device| device != TUNNEL) {
            return Err(format!("--from-node and --in exclude each other: packets of other nodes arrive by {TUNNEL}"));
        }
        return from_node(request, from, config, devices, containers);
    }
    if let Some(name) = &request.device {
        if let Some(index) = devices.uplinks.get(name) {
            return uplink(Hook::FromUplink, *index);
        }
        if let Some((_, index)) = devices.veths.values().find(|(veth, _)| veth == name) {
            return Ok(from_container(*index));
        }
        if name == TUNNEL {
            return Err(format!("by {TUNNEL} packets of other nodes arrive: name the node with --from-node"));
        }
        let known: Vec<&str> = devices.uplinks.keys().map(String::as_str).collect();
        return Err(format!("no program is attached to a device {name}: the uplinks are {}", known.join(", ")));
    }
    if let Some((address, node)) = source {
        if !skep_ebpf::is_zero(node) {
            return Err(format!("{address} is a container of another node: run this there, or name the node with --from-node"));
        }
        let (_, index) = devices.veths.get(&address).ok_or_else(|| format!("the veth of the container {address} is missing"))?;
        return Ok(from_container(*index));
    }
    let mut uplinks = devices.uplinks.iter();
    let (Some((_, index)), other) = (uplinks.next(), uplinks.next()) else {
        return Err("this host has no uplink that the eBPF datapath serves: see `skep status`".to_owned());
    };
    let own = devices.locals.contains(&headers.source);
    if own && devices.locals.contains(&headers.destination) {
        return Err("both addresses are this host's: such packets meet no program; `skep status` shows the listeners that \
                    serve published ports to processes of the host"
            .to_owned());
    }
    if other.is_some() {
        let known: Vec<&str> = devices.uplinks.keys().map(String::as_str).collect();
        return Err(format!("this host has several uplinks: name one with --in: {}", known.join(", ")));
    }
    uplink(if own { Hook::OutUplink } else { Hook::FromUplink }, *index)
}

/// A packet as it comes out of the tunnel.
fn from_node(
    request: &TraceRequest,
    from: Ipv6Addr,
    config: &Config,
    devices: &HostDevices,
    containers: &Containers,
) -> Result<AtHook, String> {
    let TraceRequest { headers, length, .. } = request;
    let device = devices.tunnel.ok_or_else(|| format!("the mesh namespace has no {TUNNEL}"))?;
    let via = convert::prefix(from);
    let place = |address| container_of(address, config).and_then(|address| containers.get(&address));
    let theirs = place(headers.source).is_some_and(|node| *node == via);
    let ours = place(headers.destination).is_some_and(skep_ebpf::is_zero);
    let frame = match (theirs, ours) {
        (true, true) => frame(headers, *length, [2; 6]),
        (true, false) => carried(headers, *length, MeshDirection::Reply, via, config.prefix),
        (false, true) => carried(headers, *length, MeshDirection::Request, via, config.prefix),
        (false, false) => {
            return Err("with --from-node the source is a container of that node, or the destination is a container of this \
                        one: an entry node replaces the published port before it sends a client's packet on"
                .to_owned());
        }
    };
    Ok(AtHook { hook: Hook::FromMesh, device, frame, via: Some(via) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 6);

    fn begin(
        source: &str,
        destination: &str,
        device: Option<&str>,
        from: Option<&str>,
        uplinks: usize,
    ) -> Result<(Hook, u32), String> {
        let headers = FrameHeaders {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            source_port: 1,
            destination_port: 2,
            protocol: 6,
            flags: 2,
        };
        let from_node = from.map(|node| node.parse().unwrap());
        let request = TraceRequest { headers, length: 0, device: device.map(str::to_owned), from_node, reply: false };
        let config = Config { containers: convert::prefix("fd02:9::".parse().unwrap()), ..Config::default() };
        let devices = HostDevices {
            tunnel: Some(4),
            uplinks: [("eth0".to_owned(), 2), ("eth1".to_owned(), 3)].into_iter().take(uplinks).collect(),
            locals: ["172.16.0.1".parse().unwrap(), "172.16.0.2".parse().unwrap()].into(),
            veths: [(TASK, ("v0a000005".to_owned(), 7))].into(),
            ..HostDevices::default()
        };
        let other = convert::prefix("fd01::".parse().unwrap());
        let containers = [(TASK, [0; 2]), (REMOTE, other)].into();
        let macs = [(2, [2; 6]), (3, [2; 6])].into();
        start(&request, &config, &devices, &macs, &containers).map(|at| (at.hook, at.device))
    }

    #[test]
    fn a_packet_comes_in_where_its_source_is() {
        let task6 = "fd02:9::a00:5";
        assert_eq!(begin("203.0.113.9", "172.16.0.1", None, None, 1), Ok((Hook::FromUplink, 2)));
        assert_eq!(begin("10.0.0.5", "10.0.0.99", None, None, 1), Ok((Hook::FromContainer, 7)));
        assert_eq!(begin(task6, "2001:db8::1", None, None, 1), Ok((Hook::FromContainer, 7)));
        assert_eq!(begin("172.16.0.1", "203.0.113.9", None, None, 1), Ok((Hook::OutUplink, 2)));
        assert_eq!(begin("203.0.113.9", "172.16.0.1", Some("eth1"), None, 2), Ok((Hook::FromUplink, 3)));
        assert_eq!(begin("203.0.113.9", "172.16.0.1", Some("v0a000005"), None, 2), Ok((Hook::FromContainer, 7)));
        for (source, destination) in [("203.0.113.9", "10.0.0.5"), ("10.0.0.6", "203.0.113.9"), ("10.0.0.6", "10.0.0.5")] {
            assert_eq!(begin(source, destination, None, Some("fd01::"), 1), Ok((Hook::FromMesh, 4)));
        }
    }

    #[test]
    fn what_cannot_be_traced_is_refused_with_what_to_do() {
        let refused = |source, destination, device, from, uplinks| begin(source, destination, device, from, uplinks).unwrap_err();
        assert!(refused("203.0.113.9", "172.16.0.1", None, None, 2).contains("name one with --in: eth0, eth1"));
        assert!(refused("203.0.113.9", "172.16.0.1", None, None, 0).contains("no uplink"));
        assert!(refused("203.0.113.9", "172.16.0.1", Some("eth7"), None, 1).contains("no program is attached to a device eth7"));
        assert!(refused("10.0.0.6", "203.0.113.9", None, None, 1).contains("a container of another node"));
        assert!(refused("172.16.0.1", "172.16.0.2", None, None, 1).contains("both addresses are this host's"));
        assert!(refused("203.0.113.9", "172.16.0.1", None, Some("fd01::"), 1).contains("with --from-node"));
        assert!(refused("203.0.113.9", "10.0.0.5", Some("eth0"), Some("fd01::"), 1).contains("exclude each other"));
        assert!(refused("203.0.113.9", "10.0.0.5", Some(TUNNEL), None, 1).contains("--from-node"));
    }
}

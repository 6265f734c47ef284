//! What the paths to the other nodes mean for the tunnel: the MTU of its device, and of the routes to nodes whose path is
//! smaller than the largest. Pure.

use super::peers::key_in_use;
use crate::model::NodeId;
use crate::model::mesh::TUNNEL_OVERHEAD;
use crate::model::view::ClusterPart;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Smallest MTU of the tunnel: it carries IPv6 (RFC 8200). On a smaller path its datagrams leave in fragments.
const SMALLEST: u32 = 1280;
/// Largest MTU of a device.
const LARGEST: u32 = 65_535;
/// WireGuard pads packets to a multiple of this, up to the MTU of the device.
const PADDING: u32 = 16;
/// Addresses that are read again per observation, beside the new ones: a bound on the work in a large cluster.
const READ_AGAIN: usize = 64;
/// Of a path that is not known.
const DEFAULT: u32 = 1500;

/// A path to another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodePath {
    /// As the host's routes say, bytes; `None` if the host has no route.
    pub path: Option<u32>,
    /// Largest packet inside the tunnel, bytes.
    pub tunnel: u32,
}

/// MTUs in bytes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PathMtus {
    /// Of the tunnel device and of new containers. 0: not known yet, nothing is changed.
    pub device: u32,
    /// The smallest of all nodes.
    pub smallest: u32,
    pub nodes: BTreeMap<NodeId, NodePath>,
}

impl PathMtus {
    /// One MTU for the device, no smaller path.
    #[must_use]
    pub fn uniform(device: u32) -> Self {
        Self { device, smallest: device, nodes: BTreeMap::new() }
    }

    /// The MTU of routes to this node, if it is smaller than the device's.
    #[must_use]
    pub fn of_route(&self, node: &NodeId) -> Option<u32> {
        self.nodes.get(node).map(|path| path.tunnel).filter(|mtu| *mtu < self.device)
    }

    /// The device takes the largest path, so that no node shrinks the others; if no path is known, that of the `uplink`. A
    /// `path_mtu` that is set overrides all of them.
    #[must_use]
    pub fn of(
        set: Option<u32>,
        uplink: Option<u32>,
        endpoints: &BTreeMap<NodeId, SocketAddr>,
        read: &BTreeMap<IpAddr, Option<u32>>,
    ) -> Self {
        let path_of = |endpoint: &SocketAddr| read.get(&endpoint.ip().to_canonical()).copied().flatten();
        if let Some(set) = set {
            let device = set.saturating_sub(TUNNEL_OVERHEAD);
            let nodes = endpoints.iter().map(|(id, to)| (id.clone(), NodePath { path: path_of(to), tunnel: device }));
            return Self { nodes: nodes.collect(), ..Self::uniform(device) };
        }
        let known = |to: &SocketAddr| path_of(to).map(|path| inside(path, to.ip().to_canonical()));
        let device = endpoints.values().filter_map(known).max();
        let device = device.unwrap_or_else(|| uplink.unwrap_or(DEFAULT).saturating_sub(TUNNEL_OVERHEAD)).clamp(SMALLEST, LARGEST);
        let node = |(id, to): (&NodeId, &SocketAddr)| {
            let tunnel = match known(to) {
                // The padding of a packet on a smaller route is not bounded by its MTU.
                Some(mtu) if mtu < device => (mtu / PADDING * PADDING).max(SMALLEST),
                _ => device,
            };
            (id.clone(), NodePath { path: path_of(to), tunnel })
        };
        let nodes: BTreeMap<NodeId, NodePath> = endpoints.iter().map(node).collect();
        let smallest = nodes.values().map(|path| path.tunnel).min().unwrap_or(device);
        Self { device, smallest, nodes }
    }
}

/// The packet that fits into a datagram to `to` on this path: outer IP header, UDP (8), WireGuard (32).
fn inside(path: u32, to: IpAddr) -> u32 {
    path.saturating_sub(if to.is_ipv4() { TUNNEL_OVERHEAD - 20 } else { TUNNEL_OVERHEAD }).clamp(SMALLEST, LARGEST)
}

/// The UDP address of each other node: the one that the tunnel uses, otherwise the first that it advertises.
#[must_use]
pub(super) fn endpoints(
    cluster: &ClusterPart,
    me: &NodeId,
    tunnel: Option<&crate::datapath::TunnelState>,
) -> BTreeMap<NodeId, SocketAddr> {
    let others = cluster.nodes.iter().filter(|node| node.node_id != *me);
    let with_endpoint = others.filter_map(|node| {
        let used = tunnel.and_then(|tunnel| tunnel.peers.get(&key_in_use(node, tunnel))).and_then(|peer| peer.peer.endpoint);
        Some((node.node_id.clone(), used.or_else(|| node.endpoints.first().copied())?))
    });
    with_endpoint.collect()
}

/// Which addresses to read next, in rounds.
#[derive(Default, Debug)]
pub(super) struct ReadPaths {
    pub known: BTreeMap<IpAddr, Option<u32>>,
    /// The address after which the last round ended.
    after: Option<IpAddr>,
}

impl ReadPaths {
    /// All new addresses, and the next [`READ_AGAIN`] of the known ones. Forgets those that are not wanted.
    pub(super) fn next(&mut self, wanted: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        self.known.retain(|address, _| wanted.contains(address));
        let after = self.after;
        let behind = |address: &&IpAddr| after.is_some_and(|after| **address > after);
        let again: Vec<IpAddr> = self
            .known
            .keys()
            .filter(behind)
            .chain(self.known.keys().filter(|address| !behind(address)))
            .take(READ_AGAIN)
            .copied()
            .collect();
        self.after = again.last().copied();
        wanted.iter().filter(|address| !self.known.contains_key(*address)).copied().chain(again).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints_of(all: &[(&str, &str)]) -> BTreeMap<NodeId, SocketAddr> {
        all.iter().map(|(id, to)| (NodeId::from(*id), to.parse().expect("endpoint"))).collect()
    }

    fn paths_of(all: &[(&str, u32)]) -> BTreeMap<IpAddr, Option<u32>> {
        all.iter().map(|(to, mtu)| (to.parse().expect("address"), Some(*mtu))).collect()
    }

    /// (path, endpoint, MTU of the device with that path alone)
    #[test]
    fn one_path_gives_the_device_what_fits_exactly() {
        for (path, to, device) in [
            (1500, "192.0.2.2:1", 1440),
            (1500, "[2001:db8::2]:1", 1420),
            (1500, "[::ffff:192.0.2.2]:1", 1440),
            (1460, "10.128.0.3:1", 1400),
            (1492, "172.16.9.3:1", 1432),
            (1492, "[2001:db8::2]:1", 1412),
            (9001, "192.168.1.2:1", 8941),
            (1300, "192.0.2.2:1", 1280),
            (100, "192.0.2.2:1", 1280),
            (65_536, "192.0.2.2:1", 65_476),
        ] {
            let endpoints = endpoints_of(&[("b", to)]);
            let address = endpoints[&NodeId::from("b")].ip().to_canonical();
            let all = PathMtus::of(None, Some(1500), &endpoints, &BTreeMap::from([(address, Some(path))]));
            assert_eq!((all.device, all.smallest), (device, device), "{path} to {to}");
            assert_eq!(all.of_route(&NodeId::from("b")), None);
        }
    }

    #[test]
    fn a_small_path_does_not_shrink_the_others() {
        let endpoints = endpoints_of(&[("b", "10.0.0.2:1"), ("c", "10.0.0.3:1"), ("d", "10.0.0.4:1")]);
        let all = PathMtus::of(None, None, &endpoints, &paths_of(&[("10.0.0.2", 1500), ("10.0.0.3", 1460)]));
        assert_eq!((all.device, all.smallest), (1440, 1392));
        assert_eq!(all.of_route(&NodeId::from("b")), None);
        assert_eq!(all.of_route(&NodeId::from("c")), Some(1392), "a multiple of 16, because padding follows the device");
        assert_eq!(all.of_route(&NodeId::from("d")), None, "no route: nothing is known");
        assert_eq!(all.nodes[&NodeId::from("c")].path, Some(1460));
    }

    #[test]
    fn without_nodes_the_uplink_counts_and_a_setting_overrides() {
        let none = BTreeMap::new();
        assert_eq!(PathMtus::of(None, Some(9001), &none, &BTreeMap::new()).device, 8921);
        assert_eq!(PathMtus::of(None, None, &none, &BTreeMap::new()).device, 1420);
        let endpoints = endpoints_of(&[("b", "10.0.0.2:1")]);
        let set = PathMtus::of(Some(1400), Some(9001), &endpoints, &paths_of(&[("10.0.0.2", 1500)]));
        assert_eq!((set.device, set.smallest, set.of_route(&NodeId::from("b"))), (1320, 1320, None));
        assert_eq!(set.nodes[&NodeId::from("b")].path, Some(1500));
    }

    #[test]
    fn every_path_is_read_again_within_few_rounds() {
        let wanted: BTreeSet<IpAddr> = (0..200_u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
        let mut paths = ReadPaths::default();
        assert_eq!(paths.next(&wanted).len(), 200, "all are new");
        paths.known = wanted.iter().map(|address| (*address, Some(1500))).collect();
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            let round = paths.next(&wanted);
            assert!(round.len() <= READ_AGAIN);
            seen.extend(round);
        }
        assert_eq!(seen, wanted);
        assert_eq!(paths.next(&BTreeSet::new()), [] as [IpAddr; 0]);
        assert!(paths.known.is_empty());
    }
}

//! The only room that touches the kernel: mesh namespace, netlink, tunnel device. Each part observes and applies
//! steps; none decides. The traits here are what other rooms see of it.

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::model::WgKey;

pub mod ebpf;
pub mod interfaces;
pub mod links;
pub mod mesh;
mod netlink;
pub mod netns;
pub mod sockdiag;
pub mod sockets;
mod sysctl;
pub mod tunnel;
pub mod udp;

/// Makes sockets inside a network namespace. A socket keeps its namespace for life.
pub trait Sockets: Send + Sync {
    /// A bound UDP socket, non-blocking; an IPv6 one for IPv6 only.
    ///
    /// # Errors
    /// The kernel's, for instance that the address is not there or taken.
    fn udp(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket>;
    /// A listening TCP socket, non-blocking, address reuse on.
    ///
    /// # Errors
    /// The kernel's.
    fn listen(&self, address: SocketAddr) -> io::Result<std::net::TcpListener>;
    /// A TCP socket to connect with, bound to `source` (port 0: any), non-blocking.
    ///
    /// # Errors
    /// The kernel's.
    fn stream(&self, source: SocketAddr) -> io::Result<tokio::net::TcpSocket>;
}

/// Makes and removes the veth of a container address. Both calls are idempotent.
#[async_trait]
pub trait Links: Send + Sync {
    /// Makes the pair: the mesh end in the mesh namespace, with its route in the network's table; the container's end in the
    /// host's namespace under the name returned, ready for the engine to move.
    async fn attach(&self, subnet: Ipv4Net, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String>;
    /// Removes the pair, wherever the container's end is.
    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()>;
}

/// A container's network namespace with an address of ours in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sandbox {
    /// Where the engine has pinned it.
    pub path: PathBuf,
    /// The network that the address is on.
    pub subnet: Ipv4Net,
    /// The network's gateway.
    pub gateway: Ipv4Addr,
    /// The address.
    pub address: Ipv4Addr,
}

/// Which of these addresses each namespace can have connections to: networks do not reach each other. Pure.
#[must_use]
pub fn places(sandboxes: &[Sandbox], addresses: &BTreeSet<Ipv4Addr>) -> BTreeMap<PathBuf, BTreeSet<Ipv4Addr>> {
    let mut places = BTreeMap::<_, BTreeSet<_>>::new();
    for sandbox in sandboxes {
        let reached: Vec<Ipv4Addr> = addresses.iter().copied().filter(|address| sandbox.subnet.contains(address)).collect();
        if !reached.is_empty() {
            places.entry(sandbox.path.clone()).or_default().extend(reached);
        }
    }
    places
}

/// Prepares a container's namespace once its address is there and before its process starts. May be asked again.
#[async_trait]
pub trait Sandboxes: Send + Sync {
    /// Does what the address needs there. A failure leaves the container on the userspace datapath.
    async fn enter(&self, sandbox: &Sandbox) -> anyhow::Result<()>;
}

/// Without a eBPF datapath a container's namespace needs nothing.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoSandboxes;

#[async_trait]
impl Sandboxes for NoSandboxes {
    async fn enter(&self, _: &Sandbox) -> anyhow::Result<()> {
        Ok(())
    }
}

/// A peer as the tunnel shall have it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct TunnelPeer {
    /// Where to send first; learned afterwards.
    pub endpoint: Option<SocketAddr>,
    /// Sources it may carry and destinations it gets, sorted.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between keep-alives; `None` for none.
    pub keepalive: Option<u16>,
}

/// A peer as the tunnel has it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct TunnelPeerState {
    /// What was configured or learned.
    pub peer: TunnelPeer,
    /// Age of the last handshake; `None` if there was none.
    pub handshake_age: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
}

/// What the tunnel is and has.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct TunnelState {
    /// `kernel` or `skep tunnel`.
    pub plane: String,
    /// UDP port it listens on.
    pub port: u16,
    /// MTU of the device.
    pub mtu: u32,
    /// Peers by key.
    #[serde(with = "peers_by_key")]
    pub peers: BTreeMap<WgKey, TunnelPeerState>,
}

/// One change to the tunnel's peers.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum TunnelStep {
    /// Adds the peer, or changes an existing one in place: its session goes on.
    Set(WgKey, TunnelPeer),
    /// Removes the peer.
    Remove(WgKey),
}

/// The tunnel device, whichever way it is made.
#[async_trait]
pub trait Tunnel: Send + Sync {
    /// What is there now.
    async fn observe(&self) -> anyhow::Result<TunnelState>;
    /// Changes peers, in order.
    async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()>;
}

mod peers_by_key {
    //! Maps with keys that are not strings, as JSON.
    use super::{BTreeMap, TunnelPeerState, WgKey};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(peers: &BTreeMap<WgKey, TunnelPeerState>, s: S) -> Result<S::Ok, S::Error> {
        peers.iter().collect::<Vec<_>>().serialize(s)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<WgKey, TunnelPeerState>, D::Error> {
        Ok(Vec::<(WgKey, TunnelPeerState)>::deserialize(d)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_namespace_is_only_asked_for_what_its_networks_reach() {
        let sandbox = |path: &str, subnet: &str| Sandbox {
            path: path.into(),
            subnet: subnet.parse().unwrap(),
            gateway: [0, 0, 0, 0].into(),
            address: [0, 0, 0, 0].into(),
        };
        let all =
            [sandbox("a", "10.0.0.0/24"), sandbox("a", "10.0.1.0/24"), sandbox("b", "10.0.2.0/24"), sandbox("c", "10.0.1.0/24")];
        let dead = BTreeSet::from([[10, 0, 0, 202].into(), [10, 0, 1, 2].into()]);
        let places = places(&all, &dead);
        assert_eq!(places.keys().map(|p| p.display().to_string()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!((places[Path::new("a")].len(), places[Path::new("c")].len()), (2, 1));
    }
}

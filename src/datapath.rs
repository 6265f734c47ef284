//! The only room that touches the kernel: mesh namespace, netlink, tunnel device, sockets, eBPF. Each part observes and
//! applies steps; the decisions are made in `overlay` and `ingress`. Other rooms use it through the traits here.

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::model::{NetworkV6, WgKey};

pub mod clock_sync;
pub mod ebpf;
pub mod host_routes;
pub mod interfaces;
pub mod links;
pub mod links6;
pub mod mesh;
mod namespace_sockets;
mod netlink;
pub mod netns;
mod path_mtu;
mod sandbox;
pub mod side_process;
pub mod sockdiag;
pub mod sockets;
mod sysctl;
pub mod tunnel;
pub mod udp;

pub use namespace_sockets::NamespaceSockets;
pub use sandbox::{NoSandboxes, Sandbox, Sandboxes, places};

/// Creates sockets inside a network namespace, in which they stay.
pub trait Sockets: Send + Sync {
    /// A bound UDP socket, non-blocking; an IPv6 one is for IPv6 only.
    ///
    /// # Errors
    /// The kernel's, for instance that the address is not configured or in use.
    fn udp(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket>;
    /// A listening TCP socket, non-blocking, with address reuse.
    ///
    /// # Errors
    /// The kernel's.
    fn listen(&self, address: SocketAddr) -> io::Result<std::net::TcpListener>;
    /// A TCP socket to connect with, bound to `source` (port 0 for any), non-blocking.
    ///
    /// # Errors
    /// The kernel's.
    fn stream(&self, source: SocketAddr) -> io::Result<tokio::net::TcpSocket>;
}

/// A network as the veth of a container needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkNetwork {
    /// First subnet of the network: its routing table is that of all of them.
    pub first: Ipv4Net,
    /// The one that the container is in, with its gateway.
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
    /// IPv6 addresses that belong to that subnet.
    pub v6: Option<NetworkV6>,
}

/// Creates and removes the veth of a container address. Both calls are idempotent.
#[async_trait]
pub trait Links: Send + Sync {
    /// Creates the pair: the mesh end in the mesh namespace, with its route in the network's table; the container's end in
    /// the host's namespace under the name returned, from where the engine moves it. `mtu` is in bytes.
    async fn attach_to(&self, network: LinkNetwork, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String>;
    /// As [`Links::attach_to`], to an IPv4 network with the first address of the subnet as its gateway.
    async fn attach(&self, subnet: Ipv4Net, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String> {
        let network = LinkNetwork { first: subnet, subnet, gateway: crate::model::mesh::gateway(subnet), v6: None };
        self.attach_to(network, address, mtu).await
    }
    /// Removes the pair, in whichever namespace the container's end is.
    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()>;
}

/// The configuration of a peer.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct TunnelPeer {
    /// UDP address to send to; WireGuard then learns it from received packets. In a [`TunnelStep::Set`], `None` keeps the
    /// current one.
    pub endpoint: Option<SocketAddr>,
    /// Sources that are accepted from it and destinations that are routed to it, sorted.
    pub allowed_ips: Vec<IpNet>,
    /// Persistent keepalive, seconds; `None` for none.
    pub keepalive: Option<u16>,
}

/// The observed state of a peer.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct TunnelPeerState {
    /// As configured, with the endpoint learned.
    pub peer: TunnelPeer,
    /// Age of the latest handshake; `None` if there was none.
    pub handshake_age: Option<Duration>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// [`TunnelState::implementation`] of kernel WireGuard.
pub const KERNEL: &str = "kernel";

/// The observed state of the tunnel.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct TunnelState {
    /// `kernel` or `skep tunnel`.
    #[serde(rename = "plane")]
    pub implementation: String,
    /// UDP port that it listens on.
    pub port: u16,
    /// Of the device, bytes.
    pub mtu: u32,
    /// By public key.
    #[serde(with = "peers_by_key")]
    pub peers: BTreeMap<WgKey, TunnelPeerState>,
}

/// Another endpoint for a peer without a session.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Redirect {
    /// The endpoint when the tunnel was observed.
    pub observed: Option<SocketAddr>,
    pub to: SocketAddr,
}

/// One change to the tunnel's peers.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub enum TunnelStep {
    /// Adds the peer, or changes an existing one in place: its session continues.
    Set(WgKey, TunnelPeer),
    /// Sets the endpoint of an existing peer, unless the tunnel has learned another one, or made a session, since it was observed.
    Redirect(WgKey, Redirect),
    Remove(WgKey),
    /// Two keys of one node, which changes the first for the second: with the first packet that is authenticated by `new`, it gets the
    /// allowed-ips of `old`. Packets of both are accepted. Kernel WireGuard has no such thing: there a [`TunnelStep::Set`] moves them.
    Succeed {
        old: WgKey,
        new: WgKey,
    },
}

/// The tunnel device, in either implementation.
#[async_trait]
pub trait Tunnel: Send + Sync {
    async fn observe(&self) -> anyhow::Result<TunnelState>;
    /// Applies the steps in order. The endpoint in a [`TunnelStep::Set`] is always set: whether to set one is decided by `overlay`.
    async fn apply(&self, steps: &[TunnelStep]) -> anyhow::Result<()>;
    /// Uses the private key that the key file has now, if it is another one, and begins handshakes with all peers. What they send with
    /// sessions of the key before is still received.
    async fn rekey(&self) -> anyhow::Result<()>;
    /// Starts what carries the packets again each time that it ends, without anybody asking. Never returns.
    async fn keep_running(&self) {
        std::future::pending::<()>().await;
    }
}

mod peers_by_key {
    //! A map whose keys are not strings, as a JSON array of pairs.
    use super::{BTreeMap, TunnelPeerState, WgKey};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(peers: &BTreeMap<WgKey, TunnelPeerState>, s: S) -> Result<S::Ok, S::Error> {
        peers.iter().collect::<Vec<_>>().serialize(s)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<WgKey, TunnelPeerState>, D::Error> {
        Ok(Vec::<(WgKey, TunnelPeerState)>::deserialize(d)?.into_iter().collect())
    }
}

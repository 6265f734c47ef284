//! The network of published ports, as the namespaces of its containers need it.

use crate::datapath::Sandbox;
use crate::model::mesh::MeshPrefix;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The network of published ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IngressNetwork {
    pub subnet: Ipv4Net,
    /// Bytes of the largest packet that fits into the tunnel after translation or encapsulation.
    pub mtu: u32,
    /// Prefix of the cluster, from which a container's IPv6 address is derived.
    pub mesh: MeshPrefix,
    /// Published UDP ports inside the containers, by the container's address, where the socket hooks cannot run: without a rule
    /// for them, a server that binds the wildcard address would reply from an address on the engine's bridge. (With it, it
    /// cannot send from the port to anybody but clients.)
    pub datagrams: BTreeMap<Ipv4Addr, BTreeSet<u16>>,
}

/// What the network asks of a container's namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReturnPath {
    /// Bytes, of the routes.
    pub mtu: u32,
    /// The container's IPv6 address.
    pub address: Ipv6Addr,
    /// See [`IngressNetwork::datagrams`].
    pub udp_ports: BTreeSet<u16>,
}

impl IngressNetwork {
    /// What the container's namespace needs; `None` if its address is on another network.
    #[must_use]
    pub fn return_path(&self, sandbox: &Sandbox) -> Option<ReturnPath> {
        let udp_ports = || self.datagrams.get(&sandbox.address).cloned().unwrap_or_default();
        let path = || ReturnPath { mtu: self.mtu, address: self.mesh.container(sandbox.address), udp_ports: udp_ports() };
        (self.subnet == sandbox.subnet.trunc()).then(path)
    }
}

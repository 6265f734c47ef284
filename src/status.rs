//! What a node knows of itself, for `skep status`, `/dump` and `/metrics`: plain data, made by the node, shown by the CLI.

use crate::ingress::PortStatus;
use crate::ingress::ebpf::EbpfStatus;
use crate::model::{NodeId, Revision, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A node's own picture.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// `inactive`, `pending` or `active`.
    pub state: String,
    /// Why it is pending, or what is wrong.
    pub error: String,
    /// This node; `None` outside a swarm.
    pub node: Option<NodeId>,
    /// Its role.
    pub role: Option<Role>,
    /// The leader's host name, as far as this node knows.
    pub leader: Option<String>,
    /// Whether a manager answers this node's session.
    pub session: String,
    /// Revision that the node was told.
    pub told: Revision,
    /// Revision that each loop has applied.
    pub applied: BTreeMap<String, Revision>,
    /// What carries what.
    pub planes: Planes,
    /// The nodes of the swarm.
    pub nodes: Vec<NodeLine>,
    /// Published ports on this node.
    pub ports: Vec<PortStatus>,
    /// The eBPF datapath.
    #[serde(default)]
    pub ebpf: EbpfStatus,
}

/// What carries what on this node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Planes {
    /// `kernel` or `skep tunnel`.
    pub tunnel: String,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// MTU of the tunnel.
    pub mtu: u32,
    /// What serves published ports, and why nothing faster does.
    pub ports: String,
}

/// A node of the swarm as this one sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeLine {
    /// Its id.
    pub id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// It runs a manager.
    pub manager: bool,
    /// It is this node.
    pub here: bool,
    /// Its mesh address.
    pub mesh: String,
    /// How packets go there: `self`, `direct`, or `none` as long as there was no handshake.
    pub path: String,
    /// Where its tunnel was last heard from.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake.
    pub handshake_seconds: Option<u64>,
    /// Bytes received from it through the tunnel.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Containers that it runs on overlay networks.
    pub containers: usize,
}

//! A node's own status, for `skep status`, `/dump` and `/metrics`: plain data, filled in by the node, shown by the CLI.

pub use crate::dns::counts::ResolverFailures;

use crate::dns::DnsStatus;
use crate::ingress::PortStatus;
use crate::ingress::ebpf::EbpfStatus;
use crate::ingress::http::HttpStatus;
use crate::model::{FormatRange, NodeId, Revision, Role, Timestamp, UnwrittenObject};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The state of a node as it knows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// `inactive`, `pending`, `error` or `active`.
    pub state: String,
    /// Why the node is not active, or what fails while it is. Empty: nothing.
    pub error: String,
    /// What works, but not as well as it could, and what to do about it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// `None` outside a swarm.
    pub node: Option<NodeId>,
    pub role: Option<Role>,
    /// The leader's host name, as far as this node knows.
    pub leader: Option<String>,
    /// The session with the leader, or why it has none, as text.
    pub session: String,
    /// Revision of the newest view that a manager has sent.
    pub view_revision: Revision,
    /// Revision that each loop has applied, by the loop's name.
    pub applied: BTreeMap<String, Revision>,
    /// What does not work on this node, by the name of the loop; the managers show the node as degraded.
    #[serde(default)]
    pub troubles: BTreeMap<String, String>,
    /// What of the daemon does not run, by its name.
    #[serde(default)]
    pub blockers: BTreeMap<String, String>,
    /// Time since which no manager has confirmed the view: its addresses may be other tasks' by now. `None`: it is current.
    #[serde(default)]
    pub stale_since: Option<String>,
    /// `None` on a node that is no manager.
    #[serde(default)]
    pub manager: Option<ManagerSummary>,
    pub datapaths: DatapathSummary,
    /// `None` outside a swarm.
    #[serde(default)]
    pub certificate: Option<CertificateSummary>,
    /// The nodes of the swarm, this one included.
    pub nodes: Vec<NodeSummary>,
    /// Published ports of the userspace datapath on this node.
    pub ports: Vec<PortStatus>,
    /// Published ports and virtual addresses of the eBPF datapath on this node.
    #[serde(default)]
    pub ebpf: EbpfStatus,
    /// HTTP routes on this node.
    #[serde(default)]
    pub http: HttpStatus,
    /// What the name server of this node has counted.
    #[serde(default)]
    pub names: DnsStatus,
}

/// What a manager knows of the cluster as a whole.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ManagerSummary {
    /// The cluster's feature level: what managers may write to the log. Raised when all of them read the next one.
    pub feature_level: u32,
    /// Times that the leader's loops on this node were started again after a panic; a recent one is among the blockers.
    pub loop_restarts: u64,
    /// Objects that the leader, if it is this node, cannot write.
    pub left_out: Vec<UnwrittenObject>,
    /// Connections on 2377 that were refused for what the other side is or does, by reason.
    #[serde(default)]
    pub refused_connections: BTreeMap<String, u64>,
    #[serde(default)]
    pub raft: RaftSummary,
}

/// Raft of a manager.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct RaftSummary {
    /// It leads, and writes.
    pub leads: bool,
    pub term: u64,
    /// Index of the last entry that it has applied.
    pub applied: u64,
    /// Messages of other managers that no manager sends, and snapshots that cannot be read.
    pub ignored: u64,
    /// Why it cannot write. Empty: it can.
    pub problem: String,
}

/// This node's certificate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CertificateSummary {
    /// End of its life.
    pub expires: Timestamp,
    /// Seconds until then; 0 once it has expired.
    pub seconds_left: u64,
    /// Attempts to renew it that have failed.
    pub failures: u32,
    /// What is wrong, and what to do. Empty: nothing.
    pub warning: String,
}

/// What carries the mesh and the published ports on this node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DatapathSummary {
    /// `kernel` or `skep tunnel`.
    pub tunnel: String,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// MTU of the tunnel, in bytes.
    pub mtu: u32,
    /// Datapath of the published ports; where it is the userspace datapath, why the eBPF datapath is not used.
    pub ports: String,
}

/// A node of the swarm as this one sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSummary {
    pub id: NodeId,
    /// Not unique: two nodes may have one host name.
    pub hostname: String,
    /// It runs a manager.
    pub manager: bool,
    /// It is the node that reports this status.
    pub here: bool,
    /// Its address inside the mesh.
    pub mesh: String,
    /// How packets reach it: `self`, `direct`, or `none` before the first handshake.
    pub path: String,
    /// UDP endpoint that its last authenticated packet had as its source.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake.
    pub handshake_seconds: Option<u64>,
    /// Bytes received from it through the tunnel, since the tunnel started.
    pub rx_bytes: u64,
    /// Bytes sent to it through the tunnel, since the tunnel started.
    pub tx_bytes: u64,
    /// Containers that it runs on overlay networks.
    pub containers: usize,
    /// Feature levels of its build; `None` if this node is no manager.
    #[serde(default)]
    pub feature_levels: Option<FormatRange>,
    /// MTU of the path to it in bytes, as this host's routes say; `None` if there is no route.
    #[serde(default)]
    pub path_mtu: Option<u32>,
}

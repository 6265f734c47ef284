//! Nodes: what the user wants of them, what they say of themselves, what the managers see of them.

use super::{id::NodeId, meta::Meta, serde_helpers::null_as_default, wg_key::WgKey};
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What a node is allowed to be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    #[default]
    Worker,
    /// Runs tasks and the managers' store.
    Manager,
}

impl Role {
    /// `worker` or `manager`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// Whether a node takes tasks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Takes tasks.
    #[default]
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Gives its tasks away.
    Drain,
}

impl Availability {
    /// `active`, `pause` or `drain`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// A node as the leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Not heard of since this leader took over.
    #[default]
    Unknown,
    /// No heartbeat within the down time-out.
    Down,
    /// Has a session.
    Ready,
    /// Left by its own will.
    Disconnected,
}

impl NodeState {
    /// `unknown`, `down`, `ready` or `disconnected`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Down => "down",
            Self::Ready => "ready",
            Self::Disconnected => "disconnected",
        }
    }
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its id, also in its certificate.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// What the user set.
    pub spec: NodeSpec,
    /// What the node says of itself.
    pub description: NodeDescription,
    /// What the leader observed.
    pub status: NodeStatus,
    /// Who it is in the mesh.
    pub mesh: NodeMesh,
    /// Where its raft is reached; `None` on workers.
    pub manager: Option<ManagerStatus>,
}

/// What `docker node update` writes.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeSpec {
    /// Shown only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// User's labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Desired role.
    pub role: Role,
    /// Whether it takes tasks.
    pub availability: Availability,
}

/// What a node says of itself; sent with each new session.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeDescription {
    /// Host name.
    pub hostname: String,
    /// `uname -m` style, as `x86_64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// CPUs in 1e-9.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Version of its Docker Engine; empty if none answers.
    pub engine_version: String,
    /// Engine labels.
    pub engine_labels: BTreeMap<String, String>,
    /// Engine plugins as (type, name), sorted.
    pub plugins: Vec<(String, String)>,
    /// Its eBPF datapath takes packets of published ports from other nodes.
    #[serde(default)]
    #[serde(rename = "FastPlane")]
    pub ebpf_datapath: bool,
}

/// What the leader observed of a node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its state.
    pub state: NodeState,
    /// Why, for people.
    pub message: String,
    /// Address that it advertises.
    pub addr: Option<IpAddr>,
}

/// A node's identity and addresses in the mesh. Set at join; key is identity, endpoints are hints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeMesh {
    /// WireGuard public key.
    pub key: WgKey,
    /// Its /64 of the cluster's /48.
    pub subnet: Ipv6Net,
    /// Its own address on `ingress`: source of what it sends to containers on its own behalf.
    pub ingress_addr: Ipv4Addr,
    /// Where its tunnel may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
}

/// A manager's place in raft.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Its raft id, never reused.
    pub raft_id: u64,
    /// Advertised address and port.
    pub addr: SocketAddr,
}

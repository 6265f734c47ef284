//! Nodes: what the user configures, what they report about themselves, what the leader observes of them.

use super::{
    format_range::FormatRange, id::NodeId, meta::Meta, resources::GenericResource, serde_helpers::null_as_default,
    time::Timestamp, wg_key::NextKey, wg_key::WgKey,
};
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Role of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    #[default]
    Worker,
    /// Runs tasks and a replica of the store.
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

/// Whether a node runs tasks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Gets new tasks.
    #[default]
    Active,
    /// Keeps its tasks and gets no new ones.
    Pause,
    /// Its tasks are replaced on other nodes, and it gets no new ones.
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

/// State of a node as the leader observes it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Has not opened a session since this leader took over, or is silent together with most other nodes.
    #[default]
    Unknown,
    /// Sent no heartbeat within the node-down timeout, while most other nodes did.
    Down,
    /// Has a session.
    Ready,
    /// Left the swarm.
    Disconnected,
}

impl NodeState {
    /// Whether the node may receive what it is sent. A node that has not opened a session with this leader yet may.
    #[must_use]
    pub fn may_be_up(self) -> bool {
        matches!(self, Self::Ready | Self::Unknown)
    }
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

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Also the common name of its certificate.
    pub id: NodeId,
    pub meta: Meta,
    pub spec: NodeSpec,
    /// Reported by the node.
    pub description: NodeDescription,
    /// Written by the dispatcher.
    pub status: NodeStatus,
    pub mesh: NodeMesh,
    /// `None` on workers.
    pub manager: Option<ManagerStatus>,
}

/// What `docker node update` writes.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeSpec {
    /// Shown only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    pub role: Role,
    pub availability: Availability,
}

/// What a node reports about itself at the start of each session.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeDescription {
    pub hostname: String,
    /// As `uname -m` prints it: `x86_64`.
    pub architecture: String,
    /// Always `linux`.
    pub os: String,
    /// CPUs, in units of 1e-9 CPU.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// `node-generic-resources` of its engine's configuration: of each kind either names or one number. (Builds before it do not
    /// write it, and drop it.)
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
    /// Digest of the root CA that has issued its certificate, hex; empty in reports of builds that do not say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// Version of its Docker Engine; empty if the engine does not answer, so that no task can be assigned to the node.
    pub engine_version: String,
    /// Its engine has not answered for so long that its tasks are to run elsewhere.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub engine_lost: bool,
    pub engine_labels: BTreeMap<String, String>,
    /// Engine plugins as (type, name), sorted.
    pub plugins: Vec<(String, String)>,
    /// Its eBPF datapath accepts packets to published ports that other nodes forward.
    #[serde(default)]
    #[serde(rename = "FastPlane")]
    pub ebpf_datapath: bool,
    /// Feature levels of its build, see [`super::Cluster::feature_level`]. Builds that have the first one only report none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_levels: Option<FormatRange>,
    /// The address that it advertises, if its tunnel has another one; else it is that of the tunnel's first endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertised: Option<IpAddr>,
    /// Addresses of its host at which clients may reach published ports, sorted: datagrams from these ports have one of them as their
    /// source. Not those that only containers of the host see. (Reported from feature level 3 on.)
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

impl Node {
    /// The address that it advertises: as it says, or that of its tunnel.
    #[must_use]
    pub fn advertised(&self) -> Option<IpAddr> {
        self.description.advertised.or_else(|| Some(self.mesh.endpoints.first()?.ip()))
    }

    /// Its build observes whether the containers of services without published ports listen.
    #[must_use]
    pub fn observes_listeners(&self) -> bool {
        /// First feature level of such builds.
        const LEVEL: u32 = 2;
        self.description.feature_levels().newest >= LEVEL
    }

    /// What the node is now, whatever its spec asks for.
    #[must_use]
    pub fn observed_role(&self) -> Role {
        if self.manager.is_some() { Role::Manager } else { Role::Worker }
    }
}

impl NodeDescription {
    /// Feature levels of the node's build.
    #[must_use]
    pub fn feature_levels(&self) -> FormatRange {
        self.feature_levels.unwrap_or(FormatRange::only(1))
    }
}

/// What the leader observes of a node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    pub state: NodeState,
    /// Cause of the state, for users.
    pub message: String,
    /// Address that the node advertises.
    pub addr: Option<IpAddr>,
    /// Since when the node is down, by the leader's clock; `None` while it is not. (Builds before it was stored do not write
    /// it.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_since: Option<Timestamp>,
    /// Since when the node's build has the feature levels of its description, by the leader's clock; `None` if it reports none.
    /// (Builds of the first level do not write it, and drop it.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels_since: Option<Timestamp>,
    /// Since when the node is known not to apply what it is sent although it is connected, by the leader's clock; `None` if it
    /// does. (Builds of the first level do not write it, and drop it.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_since: Option<Timestamp>,
}

/// A node's identity (its key) and addresses in the mesh. Assigned when the node joins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeMesh {
    pub key: WgKey,
    /// While the node changes its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextKey>,
    /// Its /64 of the cluster's /48.
    pub subnet: Ipv6Net,
    /// The node's address on `ingress`: source address of packets that the node itself sends to containers.
    pub ingress_addr: Ipv4Addr,
    /// UDP addresses at which the tunnel may be reachable, most likely first. Hints: WireGuard follows a peer that moves.
    pub endpoints: Vec<SocketAddr>,
}

/// A manager as a member of the raft group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Never reused after the manager was removed.
    pub raft_id: u64,
    pub addr: SocketAddr,
}

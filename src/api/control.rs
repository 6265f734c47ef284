//! The node that the API runs on, as a trait: the composition root implements it, the API only calls it.

use crate::http::BoxedStream;
use crate::model::view::{NetworkPart, NodeView};
use crate::model::{
    AttachDenial, Availability, ClusterSpec, LogRequest, NetworkId, NodeId, Secret, TaskId, TaskLog, Timestamp, UnwrittenObject,
};
use crate::store::StoreHandle;
use crate::trust::PayloadVault;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Docker's message of a worker that is asked for something of the swarm.
pub const NOT_MANAGER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.";

/// Docker's message of a manager that is locked.
pub const LOCKED: &str =
    "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";

/// Whether and how this node is part of a swarm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Membership {
    Inactive,
    /// It is joining, its membership could not be started, or it is no longer a member and has not left yet.
    Pending {
        /// Address that it wants to advertise.
        node_addr: Option<IpAddr>,
        /// Managers that it asks to join, as `host:port`.
        remotes: Vec<String>,
        /// Why it cannot join or start, or is no member any more; empty while it still tries.
        error: String,
    },
    /// A manager that was started and needs the unlock key.
    Locked {
        /// Address that it advertises.
        node_addr: Option<IpAddr>,
    },
    Worker(MembershipInfo),
    /// As a worker, and it has the store.
    Manager(MembershipInfo),
}

/// What a node of a swarm knows about its membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MembershipInfo {
    pub node_id: NodeId,
    /// Address that this node advertises.
    pub node_addr: Option<IpAddr>,
    /// All managers that this node knows, itself included if it is one.
    pub managers: Vec<(NodeId, SocketAddr)>,
    /// The leader, as far as this node knows.
    pub leader: Option<NodeId>,
}

/// What a node is in its swarm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    Inactive,
    Pending,
    Locked,
    Worker,
    Manager,
}

impl Membership {
    /// Without what the node knows about it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self {
            Self::Inactive => Standing::Inactive,
            Self::Pending { .. } => Standing::Pending,
            Self::Locked { .. } => Standing::Locked,
            Self::Worker(_) => Standing::Worker,
            Self::Manager(_) => Standing::Manager,
        }
    }
    /// `None` while this node is not (yet) in a swarm.
    #[must_use]
    pub fn info(&self) -> Option<&MembershipInfo> {
        match self {
            Self::Worker(info) | Self::Manager(info) => Some(info),
            Self::Inactive | Self::Pending { .. } | Self::Locked { .. } => None,
        }
    }
    /// Docker's `LocalNodeState`: `inactive`, `pending`, `error`, `locked` or `active`.
    #[must_use]
    pub fn local_state(&self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending { error, .. } if error.is_empty() => "pending",
            Self::Pending { .. } => "error",
            Self::Locked { .. } => "locked",
            Self::Worker(_) | Self::Manager(_) => "active",
        }
    }
    /// Value of the header `Swarm` in replies to a ping.
    #[must_use]
    pub fn ping_header(&self) -> &'static str {
        match self {
            Self::Worker(_) => "active/worker",
            Self::Manager(_) => "active/manager",
            Self::Inactive | Self::Pending { .. } | Self::Locked { .. } => self.local_state(),
        }
    }
}

/// What `docker swarm init` asks for. Addresses are as posted: a host, `host:port`, an interface's name, or empty to let
/// the node choose one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwarmInitRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    /// Of the tunnel; empty for the advertised one.
    pub data_path_addr: String,
    /// UDP port of the tunnel; `None` for the default.
    pub data_path_port: Option<u16>,
    /// Pools that subnets of networks are allocated from; empty for the default.
    pub address_pools: Vec<Ipv4Net>,
    /// Prefix length of a network's subnet.
    pub subnet_size: u8,
    pub availability: Availability,
    /// What was posted, merged over the defaults.
    pub spec: ClusterSpec,
}

/// What `docker swarm join` asks for. Addresses as in [`SwarmInitRequest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwarmJoinRequest {
    pub listen_addr: String,
    pub advertise_addr: String,
    pub data_path_addr: String,
    /// Managers to ask, as `host` or `host:port`; never empty.
    pub remote_addrs: Vec<String>,
    /// As posted: may be empty or malformed.
    pub token: Secret<String>,
    pub availability: Availability,
}

/// A network of the swarm that this node's engine is ready to attach a plain container to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreparedNetwork {
    pub id: NetworkId,
    /// In the swarm and in the engine.
    pub name: String,
    /// Where its containers ask for names.
    pub gateway: Ipv4Addr,
    /// Where they ask once they are on no network of the swarm any more: the host's resolvers.
    pub resolvers: Vec<IpAddr>,
    /// The IPv4 address that belongs to the IPv6 address which was asked for; `None` if none was.
    pub belonging: Option<Ipv4Addr>,
}

/// What a node knows of a network of the swarm that it has containers on, beside what its engine has of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownNetwork {
    pub part: NetworkPart,
    /// The nodes with containers on it, with their addresses.
    pub peers: BTreeMap<NodeId, Option<IpAddr>>,
}

impl KnownNetwork {
    /// From a node's view; `None` if that does not have it.
    #[must_use]
    pub fn of(view: &NodeView, id: &NetworkId) -> Option<Self> {
        let part = view.networks.by_id.get(id)?.clone();
        let nodes: BTreeSet<&NodeId> = part.members.iter().filter(|m| m.backend).map(|m| &m.node_id).collect();
        let peers = view.cluster.nodes.iter().filter(|peer| nodes.contains(&peer.node_id));
        Some(Self { peers: peers.map(|peer| (peer.node_id.clone(), peer.outer_address())).collect(), part })
    }
}

/// The addresses that a plain container is to have on a network.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RequestedAddresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

/// Why a plain container cannot be attached to a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AttachRefusal {
    /// The managers' reason.
    Managers(AttachDenial),
    /// The node could not ask, or could not prepare its engine.
    Node(ControlError),
}

/// Why a node refused a request or failed at it. The message is shown to the user unchanged.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// Decides the HTTP status.
    pub kind: ControlErrorKind,
    /// What failed, where, why, and what to do.
    pub message: String,
}

/// Kind of a [`ControlError`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlErrorKind {
    /// 400: the request makes no sense.
    Invalid,
    /// 401: a key that does not fit.
    WrongKey,
    /// 500: the node tried and failed.
    Failed,
    /// 503: not in this state, or not in time.
    Unavailable,
}

impl ControlError {
    /// 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: ControlErrorKind::Invalid, message: message.into() }
    }
    /// 500.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { kind: ControlErrorKind::Failed, message: message.into() }
    }
    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { kind: ControlErrorKind::Unavailable, message: message.into() }
    }
    /// 401 in Docker's words: not the key that this manager was locked with.
    #[must_use]
    pub fn wrong_unlock_key() -> Self {
        Self { kind: ControlErrorKind::WrongKey, message: "swarm could not be unlocked: invalid key provided".to_owned() }
    }
    /// 500 in Docker's words: the text is not a join token.
    #[must_use]
    pub fn malformed_token() -> Self {
        Self::failed("invalid join token")
    }
    /// 400 in Docker's words: the token belongs to another cluster, or was rotated.
    #[must_use]
    pub fn wrong_token() -> Self {
        Self::invalid("rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster")
    }
    /// 500 in Docker's words: the manager's root certificate is not the one that the token names.
    pub fn wrong_ca(expected_hex: impl std::fmt::Display) -> Self {
        Self::failed(format!("remote CA does not match fingerprint. Expected: {expected_hex}"))
    }
}

/// The node behind the API.
#[async_trait]
pub trait NodeControl: Send + Sync {
    fn membership(&self) -> Membership;
    /// The part of [`Self::membership`] that every request needs, at a cost that does not depend on the number of nodes.
    fn standing(&self) -> Standing {
        self.membership().standing()
    }
    /// The store; `None` unless this node is a manager whose store is ready.
    fn store(&self) -> Option<StoreHandle>;
    /// Since when this manager knows no leader; `None` if it knows one, and on workers. What it reads may be old then.
    fn leaderless_since(&self) -> Option<Timestamp>;
    /// Whether a network of the swarm has this name, as far as this node knows: by its last view.
    fn knows_network(&self, name: &str) -> bool;
    /// What this node's last view says of a network of the swarm; `None` if it does not have it.
    fn network(&self, id: &NetworkId) -> Option<KnownNetwork>;
    /// Objects that the leader, if it is this node, cannot write.
    fn left_out(&self) -> Vec<UnwrittenObject>;
    /// Creates a swarm; returns this node's id in it once the store answers. Never called on a node of a swarm.
    async fn init(&self, request: SwarmInitRequest) -> Result<NodeId, ControlError>;
    /// Re-creates the swarm from this manager's copy of its state, with this node as the only manager; returns its id once the store
    /// answers. `advertise_addr` as in [`SwarmInitRequest`]; empty: the one that it has.
    async fn new_cluster(&self, advertise_addr: String) -> Result<NodeId, ControlError>;
    /// Joins a swarm; returns once this node is part of it. Never called on a node of a swarm.
    async fn join(&self, request: SwarmJoinRequest) -> Result<(), ControlError>;
    /// Opens the keys of a locked manager with the swarm's unlock key, and starts the rest of the node. Only called on a locked one. Waits for
    /// no other manager.
    async fn unlock(&self, key: &Secret<String>) -> Result<(), ControlError>;
    /// Leaves the swarm. On a manager only called with `force`.
    async fn leave(&self, force: bool) -> Result<(), ControlError>;
    /// Makes a network of the swarm, by its id or name, ready on this node's engine for a plain container, and keeps an address for that:
    /// the requested one, or any.
    ///
    /// # Errors
    /// See [`AttachRefusal`].
    async fn prepare_network(&self, reference: &str, requested: RequestedAddresses) -> Result<PreparedNetwork, AttachRefusal>;
    /// Draws a new join token of the cluster. Writes nothing.
    ///
    /// # Errors
    /// This node is no manager, or its root CA cannot be read.
    fn new_token(&self) -> Result<Secret<String>, ControlError>;
    /// Reads logs of tasks on a node, each that is asked for until it ends. Returns when nothing more can be asked for and all have
    /// ended, or when `logs` is closed. What is not taken waits on the node.
    ///
    /// # Errors
    /// The node cannot be reached, or the connection was lost.
    async fn read_logs(
        &self,
        node: &NodeId,
        requests: mpsc::Receiver<LogRequest>,
        logs: mpsc::Sender<(TaskId, TaskLog)>,
    ) -> Result<(), ControlError>;
    /// A connection to the Docker API of a node, this one included, for one request.
    ///
    /// # Errors
    /// This node is no manager; the node cannot be reached in time, or refuses.
    async fn node_api(&self, node: &NodeId) -> Result<BoxedStream, ControlError>;
    /// Opens and seals the contents of secrets and configs.
    ///
    /// # Errors
    /// This node is no manager, or its key cannot be read.
    fn vault(&self) -> Result<Arc<PayloadVault>, ControlError>;
}

//! What the API asks of the node that it runs on. The composition root implements it; the API only calls.

use crate::model::{Availability, ClusterSpec, NodeId, Role};
use crate::store::StoreHandle;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use std::net::{IpAddr, SocketAddr};

/// This node's place in a swarm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Membership {
    /// In none.
    Inactive,
    /// On its way in, or failed on it.
    Pending {
        /// Address that it wants to advertise.
        node_addr: Option<IpAddr>,
        /// Managers that it asks, as `host:port`.
        remotes: Vec<String>,
        /// Why it cannot get in; empty while it still tries.
        error: String,
    },
    /// Runs tasks.
    Worker(Member),
    /// Runs tasks and has the store.
    Manager(Member),
}

/// A node that is in a swarm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its id.
    pub node_id: NodeId,
    /// Address that it advertises.
    pub node_addr: Option<IpAddr>,
    /// The managers that it knows, itself among them if it is one.
    pub managers: Vec<(NodeId, SocketAddr)>,
    /// The leader, as far as this node knows.
    pub leader: Option<NodeId>,
}

impl Membership {
    /// The member, unless there is no membership yet.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        match self {
            Self::Worker(member) | Self::Manager(member) => Some(member),
            Self::Inactive | Self::Pending { .. } => None,
        }
    }
    /// `inactive`, `pending`, `error` or `active`.
    #[must_use]
    pub fn local_state(&self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending { error, .. } if error.is_empty() => "pending",
            Self::Pending { .. } => "error",
            Self::Worker(_) | Self::Manager(_) => "active",
        }
    }
    /// Value of the `Swarm` header of a ping.
    #[must_use]
    pub fn ping_header(&self) -> &'static str {
        match self {
            Self::Worker(_) => "active/worker",
            Self::Manager(_) => "active/manager",
            Self::Inactive | Self::Pending { .. } => self.local_state(),
        }
    }
}

/// A new swarm, as `docker swarm init` asks for it. Addresses are as posted: a host, `host:port`, an interface's name,
/// or empty for "choose one".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InitRequest {
    /// Where to listen.
    pub listen_addr: String,
    /// What to tell others.
    pub advertise_addr: String,
    /// Where the tunnel is reached, if not at the advertised address.
    pub data_path_addr: String,
    /// UDP port of the tunnel; `None` for the default.
    pub data_path_port: Option<u16>,
    /// Pools that networks are cut from; empty for the default.
    pub address_pools: Vec<Ipv4Net>,
    /// Prefix length of a network.
    pub subnet_size: u8,
    /// Whether this node takes tasks.
    pub availability: Availability,
    /// Settings, merged over the defaults.
    pub spec: ClusterSpec,
}

/// Joining a swarm, as `docker swarm join` asks for it. Addresses as in [`InitRequest`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinRequest {
    /// Where to listen.
    pub listen_addr: String,
    /// What to tell others.
    pub advertise_addr: String,
    /// Where the tunnel is reached, if not at the advertised address.
    pub data_path_addr: String,
    /// Managers to ask, as `host` or `host:port`; never empty.
    pub remote_addrs: Vec<String>,
    /// The join token, as posted (may be empty or nonsense).
    pub token: String,
    /// Whether this node takes tasks.
    pub availability: Availability,
}

/// Why a node did not do what it was asked. The message goes to the user as it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// Decides the HTTP status.
    pub kind: ControlErrorKind,
    /// For people: what, where, why, what to do.
    pub message: String,
}

/// Kind of a [`ControlError`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ControlErrorKind {
    /// 400: what was asked makes no sense.
    Invalid,
    /// 500: it went wrong.
    Failed,
    /// 501: not built yet.
    NotBuilt,
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
    /// 501.
    pub fn not_built(message: impl Into<String>) -> Self {
        Self { kind: ControlErrorKind::NotBuilt, message: message.into() }
    }
    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { kind: ControlErrorKind::Unavailable, message: message.into() }
    }
    /// 500 in Docker's words: the token is not one.
    #[must_use]
    pub fn malformed_token() -> Self {
        Self::failed("invalid join token")
    }
    /// 400 in Docker's words: the token is none of this cluster's.
    #[must_use]
    pub fn wrong_token() -> Self {
        Self::invalid("rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster")
    }
    /// 500 in Docker's words: the manager's root certificate is not the one that the token names.
    pub fn wrong_ca(expected_hex: impl std::fmt::Display) -> Self {
        Self::failed(format!("remote CA does not match fingerprint. Expected: {expected_hex}"))
    }
}

/// What the API asks of its node.
#[async_trait]
pub trait NodeControl: Send + Sync {
    /// This node's place in a swarm, now.
    fn membership(&self) -> Membership;
    /// The store, on managers.
    fn store(&self) -> Option<StoreHandle>;
    /// Makes a new swarm; returns this node's id in it once the store answers. Never called on a member.
    async fn init(&self, request: InitRequest) -> Result<NodeId, ControlError>;
    /// Joins a swarm and returns once in. Never called on a member.
    async fn join(&self, request: JoinRequest) -> Result<(), ControlError>;
    /// Leaves the swarm. A manager is only asked with `force`.
    async fn leave(&self, force: bool) -> Result<(), ControlError>;
    /// Draws a new join token for a role and writes it to the cluster.
    async fn rotate_token(&self, role: Role) -> Result<(), ControlError>;
}

//! Messages of the join connection, between a node that wants to become a member and a manager.

use crate::model::{ClusterId, NodeId, NodeView, Role, WgKey, mesh::MeshPrefix, node::NodeDescription};
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};

/// A node that wants to become a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// [`super::FORMAT`] of the joiner.
    pub format: u32,
    /// `SWMTKN-1-…`.
    pub token: String,
    /// Certificate signing request, PEM; the key stays on the node.
    pub csr: String,
    /// WireGuard public key.
    pub key: WgKey,
    /// Where its tunnel may be reached; an unspecified address is filled in with the one seen by the manager.
    pub endpoints: Vec<SocketAddr>,
    /// What it says of itself.
    pub description: NodeDescription,
    /// Availability asked for.
    pub availability: crate::model::Availability,
}

/// A new member's place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinReply {
    /// Its id.
    pub node_id: NodeId,
    /// Its role, decided by the token.
    pub role: Role,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Node certificate, PEM.
    pub certificate: String,
    /// Root CA, PEM.
    pub ca_certificate: String,
    /// The cluster's /48.
    pub mesh: MeshPrefix,
    /// Its /64.
    pub subnet: Ipv6Net,
    /// Its own address on `ingress`.
    pub ingress_addr: Ipv4Addr,
    /// UDP port of the tunnels.
    pub data_path_port: u16,
    /// Key of the manager that answers: the way to it is proved before the join is done.
    pub manager_key: WgKey,
    /// Peers and ports at this moment, so that the tunnel can come up.
    pub view: NodeView,
}

/// What both ends of a join tell each other until the UDP way is proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// Bytes received from the other end through the tunnel.
    pub received: u64,
}

/// From the joiner, on the join connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromJoiner {
    /// First message.
    Request(Box<JoinRequest>),
    /// Bytes that the joiner got from the manager through the tunnel.
    Proof(Proof),
    /// The joiner saw both ways proved.
    Done,
    /// The joiner does not go on; the reason, for the manager's log.
    GaveUp(String),
}

/// From the manager, on the join connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToJoiner {
    /// The joiner is admitted, for as long as the proof takes.
    Reply(Box<JoinReply>),
    /// It is not.
    Refused(JoinRefused),
    /// Bytes that the manager got from the joiner through the tunnel.
    Proof(Proof),
    /// The joiner is a member.
    Done,
    /// Time is up before both ways were proved; the manager has forgotten the joiner again.
    Late,
    /// The manager has forgotten the joiner again; the reason, for people.
    GaveUp(String),
}

/// Why a manager does not admit a node.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum JoinRefused {
    /// No token, an old one, or a wrong secret.
    #[error("A valid join token is necessary to join this cluster")]
    Token,
    /// The two speak different protocols.
    #[error("the manager speaks protocol {manager}, this node {joiner}: install the same version of skep on both and join again")]
    Format {
        /// What the manager speaks.
        manager: u32,
        /// What the joiner speaks.
        joiner: u32,
    },
    /// The manager cannot answer now (no leader, shutting down): worth another try.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else: what and why.
    #[error("{0}")]
    Other(String),
}

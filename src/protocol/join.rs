//! Messages of the join connection, between a node that wants to become a member and a manager.

use super::agreement::NoCommonFormat;
use crate::model::secret::{self, Secret};
use crate::model::{
    ClusterId, FormatRange, KeyChallenge, NodeId, NodeView, Role, WgKey, mesh::MeshPrefix, node::NodeDescription,
};
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};

/// The request of a node that wants to become a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// One of the joiner's formats, for a manager that knows no ranges.
    pub format: u32,
    /// [`super::FORMATS`] of the joiner; absent in requests of builds that have the one format only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formats: Option<FormatRange>,
    /// `SWMTKN-1-…`.
    #[serde(serialize_with = "secret::expose")]
    pub token: Secret<String>,
    /// Certificate signing request, PEM; the private key stays on the node.
    pub csr: String,
    pub key: WgKey,
    /// Endpoints of the node's tunnel; the manager replaces an unspecified address by the source address that it sees.
    pub endpoints: Vec<SocketAddr>,
    pub description: NodeDescription,
    pub availability: crate::model::Availability,
}

/// What a manager assigns to a new member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinReply {
    pub node_id: NodeId,
    /// Decided by the token.
    pub role: Role,
    pub cluster_id: ClusterId,
    /// Node certificate, PEM.
    pub certificate: String,
    /// Root CA, PEM.
    pub ca_certificate: String,
    /// The cluster's /48.
    pub mesh: MeshPrefix,
    /// The node's /64.
    pub subnet: Ipv6Net,
    /// The node's address on the network `ingress`.
    pub ingress_addr: Ipv4Addr,
    /// UDP port of the tunnels.
    pub data_path_port: u16,
    /// Key of the manager that answers: the join is done once UDP is proved to pass between the two.
    pub manager_key: WgKey,
    /// The node's id in the raft group, on managers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_id: Option<u64>,
    /// What a manager encrypts its keys with, if the swarm locks its managers.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "secret::expose_some")]
    pub unlock_key: Option<Secret<String>>,
    /// The view of this moment: the peers that the tunnel is brought up with.
    pub view: NodeView,
}

/// The answer to a [`KeyChallenge`]: an HMAC, see [`crate::trust::TunnelKey::answer`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyAnswer(pub [u8; 32]);

/// What both sides of a join send each other until UDP is proved to pass in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// Bytes received from the other side through the tunnel.
    pub received: u64,
}

/// From the joiner, on the join connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromJoiner {
    /// First message.
    Request(Box<JoinRequest>),
    /// The answer to the manager's challenge; the second message, from [`super::KEY_PROOF`] on.
    Key(KeyAnswer),
    /// The joiner's counter.
    Proof(Proof),
    /// The joiner has both directions proved.
    Done,
    /// The joiner gives up; the reason, for the manager's log.
    GaveUp(String),
}

/// From the manager, on the join connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToJoiner {
    /// The joiner is admitted, for as long as the proof takes.
    Reply(Box<JoinReply>),
    /// A challenge whose answer proves that the joiner has its tunnel's key; from [`super::KEY_PROOF`] on.
    Key(KeyChallenge),
    /// The joiner is not admitted.
    Refused(JoinRefused),
    /// The manager's counter.
    Proof(Proof),
    /// The joiner is a member.
    Done,
    /// The deadline passed before both directions were proved; the manager has removed the joiner again.
    Late,
    /// The manager has removed the joiner again; the reason, for people.
    GaveUp(String),
}

fn no_common_format(manager: u32, joiner: u32, formats: Option<NoCommonFormat>) -> NoCommonFormat {
    formats.unwrap_or(NoCommonFormat { manager: FormatRange::only(manager), node: FormatRange::only(joiner) })
}

impl From<NoCommonFormat> for JoinRefused {
    fn from(formats: NoCommonFormat) -> Self {
        Self::Format { manager: formats.manager.newest, joiner: formats.node.newest, formats: Some(formats) }
    }
}

/// Why a manager does not admit a node.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum JoinRefused {
    /// No token, an old one, or a wrong secret.
    #[error("A valid join token is necessary to join this cluster")]
    Token,
    /// The two have no format of the protocol in common.
    #[error("{}, then join again", no_common_format(*.manager, *.joiner, *.formats))]
    Format {
        /// The manager's newest.
        manager: u32,
        /// The joiner's newest.
        joiner: u32,
        /// Absent in answers of managers that have the one format only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        formats: Option<NoCommonFormat>,
    },
    /// The manager cannot answer now (no leader, shutting down): a later attempt may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// Any other reason, for people.
    #[error("{0}")]
    Other(String),
}

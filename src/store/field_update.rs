//! Writes of one field: what a user or a loop owns of an object. The rest of the object is taken from the store when the
//! transaction is applied, not from what its proposer has read, which on a manager that is behind is an old copy.

use crate::model::{
    ClusterId, ClusterSpec, NodeId, NodeSpec, PullAuth, Role, Secret, ServiceId, ServiceSpec, SpecChange, secret,
};
use serde::{Deserialize, Serialize};

/// A write of one field. `version` is that of the object which the proposer has read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FieldUpdate {
    /// What nodes pull the image with is written with the spec. Both become the previous ones at the next update.
    ServiceSpec {
        id: ServiceId,
        version: u64,
        spec: Box<ServiceSpec>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pull_auth: Option<PullAuth>,
        #[serde(default, skip_serializing_if = "SpecChange::is_none")]
        change: SpecChange,
    },
    NodeSpec {
        id: NodeId,
        version: u64,
        spec: NodeSpec,
    },
    ClusterSpec {
        id: ClusterId,
        version: u64,
        spec: Box<ClusterSpec>,
    },
    /// The token with which nodes of a role join. The last writer wins: no version.
    JoinToken {
        id: ClusterId,
        role: Role,
        #[serde(serialize_with = "secret::expose")]
        token: Secret<String>,
    },
}

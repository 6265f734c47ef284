//! Writes of one field: what a user or a loop owns of an object. The rest of the object is taken from the store when the
//! transaction is applied, not from what its proposer has read, which on a manager that is behind is an old copy.

use crate::model::{ClusterId, ClusterSpec, NodeId, NodeSpec, Role, ServiceId, ServiceSpec};
use serde::{Deserialize, Serialize};

/// A write of one field. `version` is that of the object which the proposer has read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FieldUpdate {
    /// The spec before becomes the previous one.
    ServiceSpec {
        id: ServiceId,
        version: u64,
        spec: Box<ServiceSpec>,
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
        token: String,
    },
}

//! The answer to a node that has lost its tunnel to the managers and asks whether it still is a member. TLS has authenticated both sides;
//! nothing in a message says who the node is.

use crate::model::{NodeId, WgKey};
use serde::{Deserialize, Serialize};

/// What a manager knows of the node that asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MembershipAnswer {
    /// The store has the node: it is only unreachable.
    Member,
    /// The same, and the manager's own WireGuard key: it may have changed while the node was down. (From feature level 3 on.)
    MemberOf { key: WgKey },
    /// The cluster of this incarnation does not have the node, with all that was written before it asked.
    Removed {
        incarnation: u64,
        /// For people.
        why: String,
    },
    /// This manager cannot tell now.
    Unknown(String),
}

/// Why a node has no session any more, for people.
#[must_use]
pub fn removal_reason(node: &NodeId) -> String {
    format!("node {node} is not a member of the cluster (any more): it was removed, or never joined; leave and join again")
}

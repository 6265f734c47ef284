//! What identifies a slot of a service: a number, or the node that it belongs to.

use super::id::NodeId;
use std::fmt;

/// Key of a slot. Tasks of one slot follow each other; at most one of them is to serve.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SlotKey {
    /// Of a replicated service from 1, of a replicated job from 0.
    Number(u64),
    /// Of a global service or job: its tasks run on this node only.
    Node(NodeId),
}

impl SlotKey {
    /// The node that all tasks of the slot run on; `None` if they may run anywhere.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Number(_) => None,
            Self::Node(node) => Some(node),
        }
    }
    /// The number; 0 for the slot of a node.
    #[must_use]
    pub fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Node(_) => 0,
        }
    }
}

impl fmt::Display for SlotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Node(node) => write!(f, "{node}"),
        }
    }
}

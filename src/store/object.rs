//! Objects and the transactions that write them.

use crate::model::{Cluster, Network, Node, Service, Task, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Any stored object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Object {
    /// The cluster.
    Cluster(Box<Cluster>),
    /// A node.
    Node(Box<Node>),
    /// A network.
    Network(Box<Network>),
    /// A service.
    Service(Box<Service>),
    /// A task.
    Task(Box<Task>),
}

/// Kind of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// The cluster.
    Cluster,
    /// A node.
    Node,
    /// A network.
    Network,
    /// A service.
    Service,
    /// A task.
    Task,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Network => "network",
            Self::Service => "service",
            Self::Task => "task",
        })
    }
}

macro_rules! from_object {
    ($($kind:ident),+) => {$(
        impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        }
    )+};
}
from_object!(Cluster, Node, Network, Service, Task);

/// One write.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Action {
    /// A new object; its id must be free, and its name too (networks, services).
    Create(Object),
    /// The object as it shall be; its `meta.version` must be the stored one.
    Update(Object),
    /// Away with it. Removing what is gone is no error.
    Remove(Kind, String),
}

impl Action {
    /// A creation.
    pub fn create(object: impl Into<Object>) -> Self {
        Self::Create(object.into())
    }
    /// An update.
    pub fn update(object: impl Into<Object>) -> Self {
        Self::Update(object.into())
    }
}

/// Writes that happen together or not at all. The proposer puts in the time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// Now, as the proposer saw it.
    pub at: Timestamp,
    /// The writes, in order.
    pub actions: Vec<Action>,
}

/// Why a transaction was not applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum StoreError {
    /// Somebody else wrote the object since it was read.
    #[error("update out of sequence")]
    OutOfSequence,
    /// The name is taken.
    #[error("name conflicts with an existing object: {kind} {name} already exists")]
    NameConflict {
        /// What kind of object.
        kind: Kind,
        /// The name.
        name: String,
    },
    /// There is an object with that id.
    #[error("{kind} {id} already exists")]
    Exists {
        /// What kind of object.
        kind: Kind,
        /// The id.
        id: String,
    },
    /// There is no object with that id.
    #[error("{kind} {id} not found")]
    NotFound {
        /// What kind of object.
        kind: Kind,
        /// The id.
        id: String,
    },
}

//! The words of the domain as types: what is wished (specs), what is observed (statuses), and what a node is told
//! ([`view::NodeView`]). Knows nothing of storage, time, networks or engines; everything else may import it.
//!
//! Specs are spelled the way the Docker API spells them (`Name`, `TaskTemplate`, …): one type serves the store, the
//! node protocol and the API, so what a user posted is what a user gets back.

pub mod cluster;
pub mod docker;
pub mod fixture;
pub mod id;
pub mod mesh;
pub mod meta;
pub mod network;
pub mod node;
pub mod port;
pub mod port_labels;
pub mod serde_helpers;
pub mod service;
pub mod task;
pub mod time;
pub mod view;
pub mod wg_key;

pub use cluster::{Cluster, ClusterSpec, JoinTokens};
pub use id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId};
pub use meta::Meta;
pub use network::{Network, NetworkSpec};
pub use node::{Availability, Node, NodeSpec, NodeState, Role};
pub use port::{IpFamily, ListeningPort, Listens, PortConfig, Protocol, PublishMode};
pub use service::{Service, ServiceMode, ServiceSpec};
pub use task::{Task, TaskSpec, TaskState, TaskStatus};
pub use time::{Nanos, Timestamp};
pub use view::{NodeView, Revision};
pub use wg_key::WgKey;

//! The terms of the domain as types: desired state (specs), observed state (statuses), and the part of both that a node
//! is sent ([`view::NodeView`]). Knows nothing of storage, clocks, sockets or engines; every other module may import it.
//!
//! Specs are spelled as the Docker API spells them (`Name`, `TaskTemplate`, …): one type serves the store, the node
//! protocol and the API, so a user gets back exactly what was posted.

pub mod attached_container;
pub mod attachment;
pub mod cluster;
pub mod constraint;
pub mod container_privileges;
pub mod container_spec;
mod container_templates;
pub mod docker;
pub mod eligibility;
pub mod fixture;
pub mod format_range;
pub mod http;
pub mod id;
pub mod logs;
pub mod mesh;
pub mod meta;
pub mod mount;
pub mod network;
pub mod node;
pub mod payload;
pub mod placement;
pub mod placement_labels;
pub mod port;
pub mod port_labels;
pub mod pull_auth;
pub mod resolv_options;
pub mod resources;
pub mod secret;
pub mod serde_helpers;
pub mod service;
pub mod service_mode;
pub mod service_update;
pub mod slot_key;
mod source_prefixes;
pub mod task;
pub mod task_cause;
pub mod template;
pub mod time;
pub mod unwritten;
pub mod view;
pub mod wg_key;

pub use attached_container::AttachedContainer;
pub use attachment::ContainerAttachment;
pub use cluster::{Cluster, ClusterSpec, JoinTokens, NewIncarnation};
pub use constraint::Constraint;
pub use format_range::FormatRange;
pub use id::{ClusterId, ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId};
pub use logs::{LogOptions, LogPiece, LogRequest, LogStream, TaskLog};
pub use meta::Meta;
pub use network::{Network, NetworkSpec};
pub use node::{Availability, Node, NodeSpec, NodeState, Role};
pub use payload::{ClusterConfig, ClusterSecret, Payload, PayloadId, PayloadKeys};
pub use port::{IpFamily, ListeningPort, Listens, PortConfig, Protocol, PublishMode};
pub use pull_auth::PullAuth;
pub use secret::Secret;
pub use service::{Service, ServiceMode, ServiceSpec};
pub use service_update::{JobStatus, ServiceUpdate, SpecChange, UpdateState};
pub use slot_key::SlotKey;
pub use task::{Task, TaskSpec, TaskState, TaskStatus};
pub use task_cause::{TaskCause, TaskEnd};
pub use time::{Nanos, Timestamp};
pub use unwritten::UnwrittenObject;
pub use view::{NodeView, Revision};
pub use wg_key::{KeyChallenge, WgKey};

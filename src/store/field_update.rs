//! Writes of one field: what a user or a loop owns of an object. The rest of the object is taken from the store when the
//! transaction is applied, not from what its proposer has read, which on a manager that is behind is an old copy. So two
//! writers of one object do not overwrite each other.
//!
//! What users write has the version of the object that they have read. What the leader's loops write has none: each says in
//! which state of the object it is still right, and writes nothing in another one, or if the object is gone; the loop plans
//! again from the next state.

use crate::model::autoscale::Scaling;
use crate::model::node::{NodeDescription, NodeStatus};
use crate::model::service::Endpoint;
use crate::model::task::Attachment;
use crate::model::{
    ClusterId, ClusterSpec, ListeningPort, NodeId, NodeSpec, PullAuth, RetiredRoot, Role, RootRotation, Secret, ServiceId,
    ServiceSpec, SpecChange, TaskId, TaskState, TaskStatus, WgKey, secret,
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// How a node's next WireGuard key becomes its key. Each step is written only in the state that it follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum KeyChange {
    /// The node has made this one, in place of one that it has not used yet.
    Begin(WgKey),
    /// Every node that is up knows it. Written by the leader.
    Known(WgKey),
    /// The node uses it: the key of before is forgotten.
    InUse(WgKey),
}

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
    /// What the managers' keys are encrypted with; `None`: they are not locked. The last writer wins.
    UnlockKey {
        id: ClusterId,
        #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "secret::expose_some")]
        key: Option<Secret<String>>,
    },
    /// A new root CA begins to issue, in place of one that has begun and is not everywhere yet.
    RootRotation {
        id: ClusterId,
        rotation: Box<RootRotation>,
        /// The one that had begun.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<Box<RetiredRoot>>,
    },
    /// Written by the allocator.
    ServiceEndpoint {
        id: ServiceId,
        endpoint: Box<Endpoint>,
    },
    /// Another number of replicas, by load. Only while the service has the number `from`, and the label.
    ServiceReplicas {
        id: ServiceId,
        scaling: Box<Scaling>,
    },
    /// A step of a task that is not with an agent, by the allocator, the scheduler or the reaper: its status, further addresses,
    /// its node. Only while the task is in the state `from`.
    TaskStep {
        id: TaskId,
        from: TaskState,
        status: Box<TaskStatus>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        attachments: Vec<Attachment>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeId>,
    },
    /// What is wanted of a task, by the orchestrator. A state only goes up. A task that is to run has no start time any more.
    DesiredState {
        id: TaskId,
        state: TaskState,
    },
    /// A task is to move to another node, by `skep rebalance`. Only while it is wanted, and on the node `from`.
    MoveTask {
        id: TaskId,
        from: NodeId,
        to: NodeId,
    },
    /// What a node has observed of its task; `None`: nothing new. See [`super::is_new_status`], [`super::is_new_listening`].
    TaskReport {
        id: TaskId,
        node: NodeId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<Box<TaskStatus>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        listens: Option<Vec<ListeningPort>>,
    },
    /// What the leader has observed of a node; `None`: nothing new. Written by the dispatcher.
    NodeReport {
        id: NodeId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<Box<NodeStatus>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        description: Option<Box<NodeDescription>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoints: Option<Vec<SocketAddr>>,
    },
    /// A step of a node that changes its WireGuard key, see [`KeyChange`].
    TunnelKey {
        id: NodeId,
        change: KeyChange,
    },
    /// The cluster's feature level; it only goes up.
    FeatureLevel {
        id: ClusterId,
        level: u32,
    },
    /// The cluster's incarnation; it only goes up.
    Incarnation {
        id: ClusterId,
        incarnation: u64,
    },
}

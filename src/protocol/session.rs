//! Messages of a session, between a node and the leader.

use crate::model::{
    ListeningPort, Revision, TaskId, TaskStatus,
    node::NodeDescription,
    view::{ClusterPart, Networks, Tasks},
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;

/// From a node to the leader, in a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToManager {
    /// First message.
    Hello {
        /// [`super::FORMAT`] of the node.
        format: u32,
        /// What it says of itself.
        description: NodeDescription,
        /// Where its tunnel may be reached.
        endpoints: Vec<SocketAddr>,
        /// The view that it has.
        have: Revision,
    },
    /// Still here; the revision that every loop of the node has applied.
    Heartbeat {
        /// Applied revision.
        applied: Revision,
    },
    /// What was observed of tasks.
    Status(Vec<(TaskId, TaskStatus)>),
    /// Published ports that containers of tasks were seen to listen on: all of a task's, sorted.
    Listens(Vec<(TaskId, Vec<ListeningPort>)>),
    /// The node leaves by its own will.
    Leave,
}

/// From the leader to a node, in a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToNode {
    /// The session is open.
    Welcome {
        /// [`super::FORMAT`] of the manager.
        format: u32,
        /// Time between heartbeats that it expects, in milliseconds.
        heartbeat_ms: u64,
    },
    /// Parts of the view that changed.
    View {
        /// Revision of the whole.
        revision: Revision,
        /// Tasks, if changed.
        #[serde(rename = "mine")]
        tasks: Option<Arc<Tasks>>,
        /// Networks, if changed.
        networks: Option<Arc<Networks>>,
        /// Cluster, if changed.
        cluster: Option<Arc<ClusterPart>>,
    },
    /// Answer to a heartbeat.
    Alive,
    /// This manager does not lead; try the others, this one first if known.
    NotLeader {
        /// The leader's mesh address and port.
        leader: Option<SocketAddr>,
    },
    /// The node is no longer a member; the reason, for people.
    Removed(String),
    /// The session is refused; the reason, for people.
    Refused(String),
}

//! Messages of a session, between a node and the leader.

use super::view_piece::ViewPiece;
use super::{BACKENDS, DEMAND, PIECES};
use crate::model::{
    ContainerAttachment, Demand, FormatRange, ListeningPort, Revision, TaskId, TaskStatus,
    node::NodeDescription,
    view::{ClusterPart, Networks, Peer, Tasks},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// From a node to the leader, in a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "a session has one hello, and few messages wait at a time")]
pub enum ToManager {
    /// First message.
    Hello {
        /// One of the node's formats, for a manager that knows no ranges.
        format: u32,
        /// [`super::FORMATS`] of the node; absent in hellos of builds that have the one format only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        formats: Option<FormatRange>,
        description: NodeDescription,
        /// Endpoints of the node's tunnel.
        endpoints: Vec<SocketAddr>,
        /// Revision of the view that the node has. A node that is ahead of the managers is found by it; every session begins with
        /// the whole view.
        have: Revision,
    },
    /// The node is alive.
    Heartbeat {
        /// Revision that every loop of the node has applied.
        applied: Revision,
    },
    /// Observed statuses of tasks.
    Status(Vec<(TaskId, TaskStatus)>),
    /// Published ports that containers of tasks listen on: all ports of a task, sorted.
    Listens(Vec<(TaskId, Vec<ListeningPort>)>),
    /// What does not work on the node, by the name of its loop: all of it, again when it changes. Empty: nothing.
    Troubles(BTreeMap<String, String>),
    /// What the node needs for its plain containers on networks: all of it, again when it changes and in each session.
    Attachments(Vec<ContainerAttachment>),
    /// Established connections of its tasks whose services are scaled by load: all of them, again when they change and in each session.
    /// A task that is not in it was not counted.
    Load(Vec<(TaskId, u32)>),
    /// What the node sees of the clients of services that are scaled by load: all of it, again when it changes and in each session.
    Demand(Demand),
    /// The node could not apply a view that it was sent: that is older than the one that it has, or has no base there. A node that is
    /// ahead follows a later state than the managers have; any other gets its whole view.
    Behind {
        /// Revision of the view that the node has.
        have: Revision,
    },
    /// The daemon stops and is expected to be started again; the node's containers run on.
    Restarting {
        /// How long the node may be silent, in milliseconds. The manager has a bound of its own.
        for_ms: u64,
    },
    /// The node leaves the cluster (`docker swarm leave`).
    Leave,
}

impl ToManager {
    /// True if a manager that speaks this format understands the message.
    #[must_use]
    pub fn is_in(&self, format: u32) -> bool {
        match self {
            Self::Troubles(_) => format >= PIECES,
            Self::Attachments(_) | Self::Load(_) | Self::Behind { .. } | Self::Restarting { .. } => format >= BACKENDS,
            Self::Demand(_) => format >= DEMAND,
            Self::Hello { .. } | Self::Heartbeat { .. } | Self::Status(_) | Self::Listens(_) | Self::Leave => true,
        }
    }
}

/// From the leader to a node, in a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToNode {
    /// The session is open.
    Welcome {
        /// The format of this session: the newest that both have.
        format: u32,
        /// Time between heartbeats that the manager expects, in milliseconds; zero: the node's own setting.
        heartbeat_ms: u64,
    },
    /// Parts of the view that changed. Travels in pieces, see [`super::view_stream`].
    View {
        /// Revision of the whole view.
        revision: Revision,
        /// `None`: unchanged, as for the other parts.
        #[serde(rename = "mine")]
        tasks: Option<Arc<Tasks>>,
        networks: Option<Arc<Networks>>,
        cluster: Option<Arc<ClusterPart>>,
    },
    /// A piece of a view.
    Piece(ViewPiece),
    /// Answer to a heartbeat.
    Alive,
    /// This manager does not lead.
    NotLeader {
        /// The leader's mesh address and port, if known: the node tries it first.
        leader: Option<SocketAddr>,
        /// The leader as other nodes see it, without its containers: one that became a manager while the node was away is reached through
        /// the tunnel once the node has its key. (Older managers do not say.)
        #[serde(default, skip_serializing_if = "Option::is_none")]
        manager: Option<Box<Peer>>,
    },
    /// The node is no longer a member; the reason, for people.
    Removed(String),
    /// The session is refused; the reason, for people.
    Refused(String),
}

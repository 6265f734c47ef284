//! Input of the dispatcher.

use crate::manager::liveness::LivenessSnapshot;
use crate::manager::session::SessionId;
use crate::model::node::NodeDescription;
use crate::model::{ContainerAttachment, Demand, ListeningPort, NodeId, Revision, TaskId, TaskStatus};
use crate::store::Store;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Input of the dispatcher.
#[derive(Debug)]
pub enum Event {
    /// A member opened a session.
    Opened { node: NodeId, session: SessionId, hello: NodeHello },
    /// What a node observed since its last reports.
    Reports { node: NodeId, reports: NodeReports },
    /// The session has ended.
    Closed { session: SessionId },
    /// The newest state of the store.
    StoreChanged(Arc<Store>),
    /// Which nodes are alive, and what they have applied.
    Liveness(Arc<LivenessSnapshot>),
    /// Time has passed. Expected every fifth of a heartbeat interval.
    Tick,
}

/// What a node says of itself.
#[derive(Debug)]
pub struct NodeHello {
    pub description: NodeDescription,
    /// Endpoints of the node's tunnel.
    pub endpoints: Vec<SocketAddr>,
    /// Revision of the view that the node has.
    pub have: Revision,
}

/// What a node observed: the newest of each.
#[derive(Default, Debug)]
pub struct NodeReports {
    pub statuses: BTreeMap<TaskId, TaskStatus>,
    pub listens: BTreeMap<TaskId, Vec<ListeningPort>>,
    /// What does not work on the node, by the name of the loop; all of it.
    pub troubles: Option<BTreeMap<String, String>>,
    /// What the node needs for its plain containers; all of it.
    pub attachments: Option<Vec<ContainerAttachment>>,
    /// Connections of its tasks that are counted; all of them.
    pub loads: Option<BTreeMap<TaskId, u32>>,
    /// What it sees of the clients of services that are scaled by load; all of it.
    pub demand: Option<Demand>,
    /// The description has changed within the session.
    pub hello: Option<NodeHello>,
    /// The node has this revision and could not apply a view to it.
    pub behind: Option<Revision>,
}

impl NodeReports {
    /// Adds a status; of two of one task the state that is further counts, of equal ones the newer.
    pub fn add_status(&mut self, id: TaskId, status: TaskStatus) {
        match self.statuses.get(&id) {
            Some(kept) if kept.state > status.state => {}
            _ => drop(self.statuses.insert(id, status)),
        }
    }

    /// True if there is nothing to report.
    pub fn is_empty(&self) -> bool {
        let Self { statuses, listens, troubles, attachments, loads, demand, hello, behind } = self;
        let observed = statuses.is_empty() && listens.is_empty() && troubles.is_none() && loads.is_none();
        observed && attachments.is_none() && demand.is_none() && hello.is_none() && behind.is_none()
    }
}

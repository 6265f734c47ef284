//! What the liveness core finds out about the nodes.

use crate::manager::session::SessionId;
use crate::model::{NodeId, Revision};
use std::collections::BTreeMap;

/// Whether a node is alive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It has a session.
    Ready,
    /// It has no session now, and time left to open one: its state stays.
    Awaited,
    /// Whether it lives is not known; the cause, for users. Its tasks are not moved.
    Unknown(String),
    /// It is silent, and most others are not.
    Down,
    /// It announced that it leaves the swarm.
    Left,
    /// It was down before this leader, or had left, and has not come back: its state stays.
    Absent,
}

/// What is known of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeLiveness {
    pub verdict: Verdict,
    pub session: Option<SessionId>,
    /// Revision that every loop of the node has applied, as it reports.
    pub applied: Revision,
    /// It may send traffic by the view that it has: changes wait for it, within bounds.
    pub may_be_alive: bool,
}

/// All nodes at one time.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LivenessSnapshot {
    pub nodes: BTreeMap<NodeId, NodeLiveness>,
}

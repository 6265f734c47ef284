//! What the dispatcher remembers of a node that has opened a session with this leader.

use super::event::NodeHello;
use super::unapplied_views::UnappliedViews;
use super::view_index::VersionedNetworks;
use crate::manager::session::SessionId;
use crate::model::view::{ClusterPart, Tasks};
use crate::model::{ContainerAttachment, Demand, NetworkId, Revision, TaskId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The view that a node was sent last.
pub(super) struct SentView {
    pub revision: Revision,
    pub tasks: Arc<Tasks>,
    pub networks: VersionedNetworks,
    pub cluster: Arc<ClusterPart>,
}

/// A node that has, or had, a session with this leader.
pub(super) struct RegisteredNode {
    pub session: Option<SessionId>,
    /// As the node reports it.
    pub applied: Revision,
    /// State of the store that the node's view was last compared with.
    pub synced: Revision,
    pub sent: Option<SentView>,
    /// Networks of its view.
    pub network_ids: BTreeSet<NetworkId>,
    pub unapplied: UnappliedViews,
    /// What the node itself reports to be wrong, by the name of the loop.
    pub troubles: BTreeMap<String, String>,
    /// What it needs for its plain containers; `None` before it has said so in this session.
    pub attachments: Option<Vec<ContainerAttachment>>,
    /// Connections of its tasks that are counted, as it reported them last in this session.
    pub loads: BTreeMap<TaskId, u32>,
    /// What it sees of clients; `None` before it has said so in this session.
    pub demand: Option<Demand>,
    pub tasks_sent_at: Timestamp,
    /// The node reported something since then that the tasks it was sent do not show.
    pub echo_due: bool,
    pub hello: NodeHello,
}

impl RegisteredNode {
    /// A node whose session just opened.
    pub(super) fn new(session: SessionId, now: Timestamp, hello: NodeHello) -> Self {
        Self {
            session: Some(session),
            applied: Revision::default(),
            synced: Revision::default(),
            sent: None,
            network_ids: BTreeSet::new(),
            unapplied: UnappliedViews::default(),
            troubles: BTreeMap::new(),
            attachments: None,
            loads: BTreeMap::new(),
            demand: None,
            tasks_sent_at: now,
            echo_due: false,
            hello,
        }
    }

    /// True if the node has not applied a view for longer than this.
    pub(super) fn is_behind(&self, now: Timestamp, lag: Duration) -> bool {
        self.unapplied.since().is_some_and(|since| now.since(since) > lag)
    }

    /// The revision that the node has applied in effect: once it has applied all that it was sent, everything up to
    /// `synced`, because what was not sent did not concern it.
    pub(super) fn effective_revision(&self) -> Revision {
        let caught_up = self.sent.as_ref().is_some_and(|sent| self.applied >= sent.revision);
        if caught_up { self.synced } else { self.applied }
    }
}

//! How far the nodes have followed the views that they were sent.

use crate::model::Revision;

/// The lowest revisions that nodes have applied.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LowestApplied {
    /// Of the nodes that are waited for: those that are live and not behind for longer than
    /// [`super::ManagerSettings::node_lag`].
    pub awaited: Revision,
    /// Of every node that may still follow an older view, those that are down or too far behind included.
    pub all: Revision,
}

impl LowestApplied {
    /// All nodes have applied this revision.
    #[must_use]
    pub fn by_all(revision: Revision) -> Self {
        Self { awaited: revision, all: revision }
    }
}

//! Raises the cluster's feature level when every manager has the next one. Not at once: until then an older skep can be
//! installed again, which could not read what a newer level writes.

use crate::model::Timestamp;
use crate::store::{Action, FEATURE_LEVELS, Store};
use std::time::Duration;

/// What the leader keeps of the level that all managers have.
#[derive(Debug)]
pub(super) struct FeatureLevelPlanner {
    rollback_window: Duration,
    /// The level to raise to, and since when all managers have it.
    candidate: Option<(u32, Timestamp)>,
}

impl FeatureLevelPlanner {
    pub(super) fn new(rollback_window: Duration) -> Self {
        Self { rollback_window, candidate: None }
    }

    /// The write of the new level, once every manager has had it for the whole window.
    pub(super) fn plan(&mut self, store: &Store, now: Timestamp) -> Vec<Action> {
        let Some(cluster) = store.cluster() else { return Vec::new() };
        let Some(level) = common_level(store).filter(|level| *level > cluster.feature_level) else {
            self.candidate = None;
            return Vec::new();
        };
        let since = match self.candidate {
            // A clock that was set back starts the window again.
            Some((candidate, since)) if candidate == level && since <= now => since,
            _ => now,
        };
        self.candidate = Some((level, since));
        if now.since(since) < self.rollback_window {
            return Vec::new();
        }
        tracing::info!(from = cluster.feature_level, to = level, "every manager has the feature level: raised");
        let mut cluster = cluster.clone();
        cluster.feature_level = level;
        vec![Action::update(cluster)]
    }
}

/// The newest level that this build and every manager have; `None` if there is none.
fn common_level(store: &Store) -> Option<u32> {
    let managers = store.nodes().filter(|node| node.manager.is_some());
    let mut common = FEATURE_LEVELS;
    for levels in managers.map(|node| node.description.feature_levels()) {
        common.oldest = common.oldest.max(levels.oldest);
        common.newest = common.newest.min(levels.newest);
    }
    common.contains(common.newest).then_some(common.newest)
}

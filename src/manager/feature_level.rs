//! Raises the cluster's feature level when every manager has the next one. Not at once: until then an older skep can be
//! installed again, which could not read what a newer level writes. Pure: since when a manager has its levels is in the store.

use crate::model::{Node, Timestamp};
use crate::store::{Action, FEATURE_LEVELS, FieldUpdate, Store};
use std::time::Duration;

/// The write of the new level, once every manager has had it for the whole window.
pub(super) fn plan(store: &Store, now: Timestamp, rollback_window: Duration) -> Vec<Action> {
    let Some(cluster) = store.cluster() else { return Vec::new() };
    let Some(level) = common_level(store).filter(|level| *level > cluster.feature_level) else { return Vec::new() };
    // A manager whose time is not known yet has a session soon.
    let waited = |node: &Node| node.status.levels_since.is_some_and(|since| now.since(since) >= rollback_window);
    if !managers(store).all(waited) {
        return Vec::new();
    }
    tracing::info!(from = cluster.feature_level, to = level, "every manager has the feature level: raised");
    vec![Action::Set(FieldUpdate::FeatureLevel { id: cluster.id.clone(), level })]
}

fn managers(store: &Store) -> impl Iterator<Item = &Node> {
    store.nodes().filter(|node| node.manager.is_some())
}

/// The newest level that this build and every manager have; `None` if there is none, or no manager.
fn common_level(store: &Store) -> Option<u32> {
    managers(store).next()?;
    let mut common = FEATURE_LEVELS;
    for levels in managers(store).map(|node| node.description.feature_levels()) {
        common.oldest = common.oldest.max(levels.oldest);
        common.newest = common.newest.min(levels.newest);
    }
    common.contains(common.newest).then_some(common.newest)
}

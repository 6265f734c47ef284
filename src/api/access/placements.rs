//! Containers that were placed a moment ago: the next plan counts them, listed or not.

use super::planner::{CandidateNode, PlacedContainer};
use crate::model::{NodeId, Timestamp};
use crate::sync::lock;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long a placement is counted: longer than an engine may take.
const RECENT: Duration = Duration::from_mins(3);

/// Placements of this manager.
#[derive(Default)]
pub struct RecentPlacements(Mutex<Vec<RecentPlacement>>);

struct RecentPlacement {
    node: NodeId,
    pending: PendingPlacement,
    until: Timestamp,
}

/// A container that is made, or was made a moment ago.
#[derive(Clone)]
pub struct PendingPlacement(Arc<Mutex<(PlacedContainer, Option<Timestamp>)>>);

impl PendingPlacement {
    /// It is made: what is listed from now on has it, or it is gone.
    pub fn made(&self, id: &str, now: Timestamp) {
        let mut placed = lock(&self.0);
        id.clone_into(&mut placed.0.id);
        placed.1 = Some(now);
    }
}

/// The placements, held while one plans: two containers get no port, name or CPU twice.
pub struct HeldPlacements<'a>(MutexGuard<'a, Vec<RecentPlacement>>);

impl RecentPlacements {
    pub fn at(&self, now: Timestamp) -> HeldPlacements<'_> {
        let mut recent = lock(&self.0);
        recent.retain(|placement| placement.until > now);
        HeldPlacements(recent)
    }
}

impl HeldPlacements<'_> {
    /// Adds them to nodes whose containers were listed at a time, unless the list has them, or would have.
    pub fn count_in(&self, nodes: &mut [CandidateNode], listed: Timestamp) {
        for recent in self.0.iter() {
            let (container, made) = lock(&recent.pending.0).clone();
            let node = nodes.iter_mut().find(|candidate| candidate.node.id == recent.node);
            if let Some(node) = node
                && made.is_none_or(|made| made >= listed)
                && !node.containers.iter().any(|known| !known.id.is_empty() && known.id == container.id)
            {
                node.containers.push(container);
            }
        }
    }

    pub fn add(&mut self, node: &NodeId, container: PlacedContainer, now: Timestamp) -> PendingPlacement {
        let pending = PendingPlacement(Arc::new(Mutex::new((container, None))));
        self.0.push(RecentPlacement { node: node.clone(), pending: pending.clone(), until: now.plus(RECENT) });
        pending
    }

    /// It was not made.
    pub fn forget(&mut self, pending: &PendingPlacement) {
        self.0.retain(|recent| !Arc::ptr_eq(&recent.pending.0, &pending.0));
    }
}

#[cfg(test)]
mod tests {
    use super::super::planner::fixture::{candidate, container};
    use super::*;

    #[test]
    fn a_placement_counts_until_a_later_list_shows_whether_it_is_there() {
        let (recent, mut nodes) = (RecentPlacements::default(), [candidate("n1", ""), candidate("n2", "")]);
        let at = |seconds: i64| Timestamp(seconds * 1_000_000_000);
        let mut counted = |listed: i64| {
            for node in &mut nodes {
                node.containers.clear();
            }
            recent.at(at(listed)).count_in(&mut nodes, at(listed));
            nodes[0].containers.len()
        };
        let web = PlacedContainer { id: String::new(), ..container("web") };
        let pending = recent.at(at(10)).add(&candidate("n1", "").node.id, web.clone(), at(10));
        assert_eq!((counted(11), counted(130)), (1, 1), "it is made, however long the engine takes");
        pending.made("id1", at(131));
        assert_eq!((counted(130), counted(132)), (1, 0), "what was listed before does not show it");
        let failed = recent.at(at(140)).add(&candidate("n1", "").node.id, web.clone(), at(140));
        recent.at(at(140)).forget(&failed);
        assert_eq!(counted(141), 0, "it was refused");
        let stuck = recent.at(at(140)).add(&candidate("n1", "").node.id, web, at(140));
        assert_eq!((counted(141), counted(400)), (1, 0));
        drop(stuck);
    }
}

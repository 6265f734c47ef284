//! Applies the difference that the leader sends to the view that a node has. Unchanged entries stay shared in memory. Pure.

use super::{ToNode, entries::share};
use crate::model::view::{ClusterPart, Networks, Tasks};
use crate::model::{NodeView, Revision};
use std::sync::Arc;

/// The parts of a view that changed; `None`: unchanged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewDelta {
    /// Revision of the whole view.
    pub revision: Revision,
    pub tasks: Option<Arc<Tasks>>,
    pub networks: Option<Arc<Networks>>,
    pub cluster: Option<Arc<ClusterPart>>,
}

impl ViewDelta {
    /// The delta in a message; `None` if it is another kind of message.
    pub fn from_message(message: &ToNode) -> Option<Self> {
        match message {
            ToNode::View { revision, tasks, networks, cluster } => {
                Some(Self { revision: *revision, tasks: tasks.clone(), networks: networks.clone(), cluster: cluster.clone() })
            }
            _ => None,
        }
    }
}

/// Why a delta is not applied. The view that the node has stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ViewError {
    /// It is older than the view that the node has.
    #[error("revision {}.{} is older than {}.{}, which this node has", sent.incarnation, sent.index, have.incarnation, have.index)]
    Older { sent: Revision, have: Revision },
    /// The first view, or the first of an incarnation, must be complete: it has no base.
    #[error("revision {}.{} has no {part} part", sent.incarnation, sent.index)]
    Incomplete { sent: Revision, part: &'static str },
}

/// The view after the delta.
///
/// # Errors
/// See [`ViewError`].
pub fn apply(current: Option<&NodeView>, delta: ViewDelta) -> Result<NodeView, ViewError> {
    let sent = delta.revision;
    if let Some(have) = current.map(|c| c.revision)
        && sent < have
    {
        return Err(ViewError::Older { sent, have });
    }
    let base = current.filter(|c| c.revision.incarnation == sent.incarnation);
    let missing = |part| ViewError::Incomplete { sent, part };
    let mut next = NodeView {
        revision: sent,
        tasks: delta.tasks.or_else(|| base.map(|b| b.tasks.clone())).ok_or(missing("tasks"))?,
        networks: delta.networks.or_else(|| base.map(|b| b.networks.clone())).ok_or(missing("networks"))?,
        cluster: delta.cluster.or_else(|| base.map(|b| b.cluster.clone())).ok_or(missing("cluster"))?,
    };
    if let Some(base) = base {
        share_entries(base, &mut next);
    }
    Ok(next)
}

/// Shares with the previous view the entries that are equal in both.
pub fn share_entries(before: &NodeView, next: &mut NodeView) {
    if !Arc::ptr_eq(&before.cluster, &next.cluster) {
        let cluster = Arc::make_mut(&mut next.cluster);
        share(&before.cluster.ports, &mut cluster.ports);
        share(&before.cluster.http, &mut cluster.http);
    }
    if !Arc::ptr_eq(&before.networks, &next.networks) {
        for (id, part) in &mut Arc::make_mut(&mut next.networks).by_id {
            if let Some(before) = before.networks.by_id.get(id) {
                share(&before.members, &mut part.members);
                share(&before.services, &mut part.services);
                share(&before.names, &mut part.names);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mesh::{DEFAULT_POOL, MeshPrefix};

    fn cluster() -> Arc<ClusterPart> {
        let mesh = MeshPrefix("fd00:1:2::/48".parse().unwrap());
        Arc::new(ClusterPart { pools: vec![DEFAULT_POOL], ..ClusterPart::new(mesh) })
    }
    fn at(incarnation: u64, index: u64) -> Revision {
        Revision { incarnation, index }
    }
    fn complete(revision: Revision) -> ViewDelta {
        ViewDelta { revision, tasks: Some(Arc::default()), networks: Some(Arc::default()), cluster: Some(cluster()) }
    }
    fn empty(revision: Revision) -> ViewDelta {
        ViewDelta { revision, tasks: None, networks: None, cluster: None }
    }

    #[test]
    fn unchanged_parts_stay_shared() {
        let first = apply(None, complete(at(1, 5))).unwrap();
        let second = apply(Some(&first), ViewDelta { tasks: Some(Arc::default()), ..empty(at(1, 8)) }).unwrap();
        assert_eq!(second.revision, at(1, 8));
        assert!(Arc::ptr_eq(&first.cluster, &second.cluster) && Arc::ptr_eq(&first.networks, &second.networks));
        assert!(!Arc::ptr_eq(&first.tasks, &second.tasks));
        assert_eq!(apply(Some(&second), empty(at(1, 8))).unwrap(), second, "an empty delta changes nothing");
    }

    #[test]
    fn an_older_revision_is_refused_within_an_incarnation_and_across() {
        let have = apply(None, complete(at(2, 5))).unwrap();
        for sent in [at(2, 4), at(1, 999)] {
            assert_eq!(apply(Some(&have), complete(sent)), Err(ViewError::Older { sent, have: at(2, 5) }));
        }
        let newer = apply(Some(&have), complete(at(3, 1))).unwrap();
        assert_eq!(newer.revision, at(3, 1), "a new incarnation starts its own count");
    }

    #[test]
    fn a_first_view_must_be_complete() {
        let have = apply(None, complete(at(1, 5))).unwrap();
        for current in [None, Some(&have)] {
            let sent = at(2, 9);
            let part = |delta| match apply(current, delta) {
                Err(ViewError::Incomplete { part, .. }) => part,
                other => panic!("{other:?}"),
            };
            assert_eq!(part(empty(sent)), "tasks");
            assert_eq!(part(ViewDelta { networks: None, ..complete(sent) }), "networks");
            assert_eq!(part(ViewDelta { cluster: None, ..complete(sent) }), "cluster");
        }
    }
}

//! Puts what the leader sends of a view onto the view that a node has. Entries that did not change stay the same in memory.
//! Pure.

use super::{ToNode, entries::share};
use crate::model::view::{ClusterPart, Networks, Tasks};
use crate::model::{NodeView, Revision};
use std::sync::Arc;

/// What changed of a view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delta {
    /// Revision of the whole.
    pub revision: Revision,
    /// Tasks, if changed.
    pub tasks: Option<Arc<Tasks>>,
    /// Networks, if changed.
    pub networks: Option<Arc<Networks>>,
    /// Cluster, if changed.
    pub cluster: Option<Arc<ClusterPart>>,
}

impl Delta {
    /// Of a message; `None` if it is another.
    pub fn of(message: &ToNode) -> Option<Self> {
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
    /// It is older than what the node has.
    #[error("revision {}.{} is older than {}.{}, which this node has", sent.incarnation, sent.index, have.incarnation, have.index)]
    Older {
        /// What was sent.
        sent: Revision,
        /// What the node has.
        have: Revision,
    },
    /// A first view, or the first of an incarnation, must be whole: there is nothing to put a difference onto.
    #[error("revision {}.{} came without its {part} part", sent.incarnation, sent.index)]
    Incomplete {
        /// What was sent.
        sent: Revision,
        /// The part that was missing.
        part: &'static str,
    },
}

/// The view after the delta.
///
/// # Errors
/// See [`ViewError`].
pub fn apply(current: Option<&NodeView>, delta: Delta) -> Result<NodeView, ViewError> {
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

/// Shares with the view before what is the same in both.
pub fn share_entries(before: &NodeView, next: &mut NodeView) {
    if !Arc::ptr_eq(&before.cluster, &next.cluster) {
        share(&before.cluster.ports, &mut Arc::make_mut(&mut next.cluster).ports);
    }
    if !Arc::ptr_eq(&before.networks, &next.networks) {
        for (id, part) in &mut Arc::make_mut(&mut next.networks).by_id {
            if let Some(before) = before.networks.by_id.get(id) {
                share(&before.members, &mut part.members);
                share(&before.services, &mut part.services);
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
        Arc::new(ClusterPart { mesh, pools: vec![DEFAULT_POOL], nodes: vec![], ports: vec![] })
    }
    fn at(incarnation: u64, index: u64) -> Revision {
        Revision { incarnation, index }
    }
    fn whole(revision: Revision) -> Delta {
        Delta { revision, tasks: Some(Arc::default()), networks: Some(Arc::default()), cluster: Some(cluster()) }
    }
    fn empty(revision: Revision) -> Delta {
        Delta { revision, tasks: None, networks: None, cluster: None }
    }

    #[test]
    fn parts_that_did_not_change_are_kept_as_they_are() {
        let first = apply(None, whole(at(1, 5))).unwrap();
        let second = apply(Some(&first), Delta { tasks: Some(Arc::default()), ..empty(at(1, 8)) }).unwrap();
        assert_eq!(second.revision, at(1, 8));
        assert!(Arc::ptr_eq(&first.cluster, &second.cluster) && Arc::ptr_eq(&first.networks, &second.networks));
        assert!(!Arc::ptr_eq(&first.tasks, &second.tasks));
        assert_eq!(apply(Some(&second), empty(at(1, 8))).unwrap(), second, "the same again changes nothing");
    }

    #[test]
    fn the_past_is_refused_within_an_incarnation_and_across() {
        let have = apply(None, whole(at(2, 5))).unwrap();
        for sent in [at(2, 4), at(1, 999)] {
            assert_eq!(apply(Some(&have), whole(sent)), Err(ViewError::Older { sent, have: at(2, 5) }));
        }
        let risen = apply(Some(&have), whole(at(3, 1))).unwrap();
        assert_eq!(risen.revision, at(3, 1), "a new incarnation counts from anew");
    }

    #[test]
    fn a_first_view_must_be_whole() {
        let have = apply(None, whole(at(1, 5))).unwrap();
        for current in [None, Some(&have)] {
            let sent = at(2, 9);
            let part = |delta| match apply(current, delta) {
                Err(ViewError::Incomplete { part, .. }) => part,
                other => panic!("{other:?}"),
            };
            assert_eq!(part(empty(sent)), "tasks");
            assert_eq!(part(Delta { networks: None, ..whole(sent) }), "networks");
            assert_eq!(part(Delta { cluster: None, ..whole(sent) }), "cluster");
        }
    }
}

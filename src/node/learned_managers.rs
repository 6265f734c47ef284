//! A leader that became a manager while this node was away: the last view does not have it, and the tunnel does not reach it. The managers
//! that the view does have name it when they say that they do not lead. It is held beside the view's nodes until the leader sends the next
//! view.

use crate::model::view::Peer;
use crate::model::{NodeId, NodeView};
use crate::rpc::LearnManager;
use std::sync::Arc;
use tokio::sync::watch;

/// Adds each manager that is named to the view that the tunnel follows.
pub(super) fn learn(peers: watch::Sender<Option<Arc<NodeView>>>, me: NodeId) -> LearnManager {
    Arc::new(move |manager| {
        if peers.send_if_modified(|view| add(view, &me, manager)) {
            tracing::info!(manager = %manager.node_id, "a manager has become known that this node's last view does not have as it is");
        }
    })
}

/// Returns whether the view has changed. A manager that joined while this node was away may have the place in the mesh of a node that was
/// removed meanwhile; neither this node's place nor any node's key is given away.
fn add(view: &mut Option<Arc<NodeView>>, me: &NodeId, manager: &Peer) -> bool {
    let Some(view) = view else { return false };
    let id = &manager.node_id;
    let is_at = |node: &Peer| node.subnet == manager.subnet || node.ingress_addr == manager.ingress_addr;
    let has_key = |node: &Peer| node.keys().any(|key| manager.keys().any(|named| named == key));
    let is_taken = |node: &Peer| has_key(node) || (node.node_id == *me && is_at(node));
    if id == me || !manager.manager || view.cluster.nodes.iter().any(|node| node.node_id != *id && is_taken(node)) {
        return false;
    }
    let mut next = manager.clone();
    if let Some(known) = view.cluster.node(id) {
        // As the view has a manager it is at least as new: who names it may have been away.
        if known.manager && known.raft_id == next.raft_id {
            return false;
        }
        (next.containers, next.attached_tasks) = (known.containers.clone(), known.attached_tasks);
    }
    let nodes = &mut Arc::make_mut(&mut Arc::make_mut(view).cluster).nodes;
    nodes.retain(|node| node.node_id != *id && !is_at(node));
    nodes.push(next);
    nodes.sort_by(|one, other| one.node_id.cmp(&other.node_id));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NextKey, WgKey, fixture};

    fn manager(number: u8) -> Peer {
        Peer { manager: true, raft_id: Some(u64::from(number)), ..fixture::peer(number) }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the channel has it")]
    fn view() -> Option<Arc<NodeView>> {
        Some(Arc::new(fixture::node_view(5, Vec::new(), fixture::cluster_part([1, 3, 5].map(fixture::peer).to_vec()))))
    }

    #[test]
    fn a_manager_that_is_new_or_has_changed_is_known_from_then_on() {
        let me = fixture::peer(1).node_id;
        let (mut learned, promoted) = (view(), Peer { key: WgKey([9; 32]), ..manager(3) });
        assert!(add(&mut learned, &me, &manager(4)) && add(&mut learned, &me, &promoted));
        let expected = [fixture::peer(1), promoted.clone(), manager(4), fixture::peer(5)];
        assert_eq!(learned.as_ref().map(|view| view.cluster.nodes.clone()).as_deref(), Some(&expected[..]), "sorted by id");
        assert!(!add(&mut learned, &me, &manager(4)) && !add(&mut learned, &me, &promoted), "known");
        assert!(!add(&mut None, &me, &manager(4)));
    }

    #[test]
    fn a_manager_in_the_place_of_a_removed_node_takes_it() {
        let (subnet, ingress) = (fixture::peer(3).subnet, fixture::peer(5).ingress_addr);
        let manager = Peer { subnet, ingress_addr: ingress, ..manager(4) };
        let mut learned = view();
        assert!(add(&mut learned, &fixture::peer(1).node_id, &manager));
        assert_eq!(learned.map(|view| view.cluster.nodes.clone()), Some(vec![fixture::peer(1), manager]));
    }

    #[test]
    fn neither_keys_nor_the_nodes_own_place_are_given_away() {
        let (me, own) = (fixture::peer(1).node_id, fixture::peer(1));
        for refused in [
            manager(1),
            fixture::peer(4),
            Peer { subnet: own.subnet, ..manager(4) },
            Peer { ingress_addr: own.ingress_addr, ..manager(4) },
            Peer { key: WgKey([3; 32]), ..manager(4) },
            Peer { next: Some(NextKey { key: WgKey([5; 32]), known: true }), ..manager(4) },
        ] {
            let mut learned = view();
            assert!(!add(&mut learned, &me, &refused), "{refused:?}");
            assert_eq!(learned, view());
        }
    }
}

//! What a manager knows of the others. It has two sources, its store and its node's last view, and the newer one decides: the store of a
//! manager that was away is old, and the one that leads now, and is to bring it up to date, may be no manager in it. Pure.

use super::dispatcher;
use crate::model::mesh::node_address;
use crate::model::view::Peer;
use crate::model::{Node, NodeId, NodeView};
use crate::store::Store;
use std::net::IpAddr;

/// Whether the node is a manager and has this mesh address.
#[must_use]
pub fn is_manager_at(store: &Store, view: Option<&NodeView>, node: &NodeId, address: IpAddr) -> bool {
    let is_at = |subnet| IpAddr::V6(node_address(subnet)) == address;
    match view.filter(|view| view.revision > store.revision()) {
        Some(view) => view.cluster.node(node).is_some_and(|peer| peer.manager && is_at(peer.subnet)),
        None => store.node(node).is_some_and(|node| node.manager.is_some() && is_at(node.mesh.subnet)),
    }
}

fn stored(store: &Store, raft_id: u64) -> Option<&Node> {
    store.nodes().find(|node| node.manager.as_ref().is_some_and(|manager| manager.raft_id == raft_id))
}

fn viewed(view: Option<&NodeView>, raft_id: u64) -> Option<&Peer> {
    view?.cluster.nodes.iter().find(|peer| peer.raft_id == Some(raft_id))
}

/// The manager with a raft id, which stays with one node: any source that has it will do, and the newer one knows its key and endpoints.
/// Without its containers.
#[must_use]
pub fn with_raft_id(store: &Store, view: Option<&NodeView>, raft_id: u64) -> Option<Peer> {
    let of_view = || viewed(view, raft_id).map(|peer| Peer { containers: Vec::new(), attached_tasks: None, ..peer.clone() });
    let of_store = || stored(store, raft_id).map(dispatcher::peer_alone);
    if view.is_some_and(|view| view.revision > store.revision()) {
        of_view().or_else(of_store)
    } else {
        of_store().or_else(of_view)
    }
}

/// Whether a message with this raft id may be the node's. An id of no node known here is of one that has just become a manager: raft
/// counts the votes of its voters alone.
#[must_use]
pub fn may_speak_for(store: &Store, view: Option<&NodeView>, node: &NodeId, raft_id: u64) -> bool {
    // Of nearly all messages.
    let is_own = store.node(node).and_then(|node| node.manager.as_ref()).is_some_and(|manager| manager.raft_id == raft_id);
    let owner = || stored(store, raft_id).map(|node| &node.id).or_else(|| viewed(view, raft_id).map(|peer| &peer.node_id));
    is_own || owner().is_none_or(|owner| owner == node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::ManagerStatus;
    use crate::model::{Revision, Timestamp, fixture};
    use crate::store::{Action, Transaction};

    /// A store at this index that has these nodes at the peers' addresses, with their raft ids if they are managers.
    fn store(index: u64, nodes: &[(&Peer, Option<u64>)]) -> Store {
        let addr = "192.0.2.1:2377".parse().expect("an address");
        let node = |(peer, raft_id): &(&Peer, Option<u64>)| {
            let mut node = fixture::node(peer.node_id.as_str());
            node.mesh.subnet = peer.subnet;
            Action::create(Node { manager: raft_id.map(|raft_id| ManagerStatus { raft_id, addr }), ..node })
        };
        let mut store = Store::default();
        store.apply(index, &Transaction::new(Timestamp(1), nodes.iter().map(node).collect())).expect("created");
        store
    }

    /// A view of the same incarnation as the stores'.
    fn view(index: u64, peers: &[&Peer]) -> NodeView {
        let part = fixture::cluster_part(peers.iter().copied().cloned().collect());
        NodeView { revision: Revision { incarnation: 0, index }, ..fixture::node_view(index, Vec::new(), part) }
    }

    #[test]
    fn the_newer_of_store_and_view_says_who_is_a_manager() {
        let (one, two) = (Peer { manager: true, ..fixture::peer(1) }, fixture::peer(2));
        let (id, own, other) = (&one.node_id, IpAddr::V6(one.address()), IpAddr::V6(two.address()));
        let (empty, view) = (Store::default(), view(5, &[&one, &two]));
        // A manager that has just joined.
        assert!(is_manager_at(&empty, Some(&view), id, own));
        assert!(!is_manager_at(&empty, Some(&view), id, other), "a certificate and key at another node's address");
        assert!(!is_manager_at(&empty, Some(&view), &two.node_id, other), "a worker");
        assert!(!is_manager_at(&empty, None, id, own));
        let manager = store(1, &[(&one, Some(7))]);
        assert!(is_manager_at(&manager, None, id, own) && !is_manager_at(&manager, None, id, other));
        // Promoted while this manager was away: its node has heard of it.
        assert!(is_manager_at(&store(1, &[(&one, None)]), Some(&view), id, own));
        assert!(is_manager_at(&store(1, &[]), Some(&view), id, own));
        assert!(
            !is_manager_at(&store(1, &[(&two, Some(8))]), Some(&view), &two.node_id, other),
            "demoted since the store's last entry"
        );
        // The store has overtaken the view.
        assert!(!is_manager_at(&store(9, &[(&one, None)]), Some(&view), id, own), "demoted since the view was made");
        assert!(!is_manager_at(&store(9, &[]), Some(&view), id, own), "removed since the view was made");
        assert!(
            is_manager_at(&store(9, &[(&two, Some(8))]), Some(&view), &two.node_id, other),
            "promoted since the view was made"
        );
    }

    #[test]
    fn a_raft_id_that_is_known_to_be_another_nodes_is_not_this_ones() {
        let (one, two) = (fixture::peer(1), fixture::peer(2));
        let viewed = |raft_id| Peer { manager: true, raft_id: Some(raft_id), ..one.clone() };
        let known = store(5, &[(&one, Some(7)), (&two, Some(8))]);
        let (newer, other) = (view(9, &[&viewed(17), &two]), Peer { raft_id: Some(18), manager: true, ..two.clone() });
        for (store, view, raft_id, expected) in [
            (&known, None, 7, true),
            (&known, None, 8, false),
            // Demoted and promoted again: the view has the next id, or nothing here has it yet.
            (&known, Some(&newer), 17, true),
            (&known, None, 17, true),
            (&known, Some(&view(9, &[&viewed(17), &other])), 18, false),
            (&known, Some(&newer), 99, true),
            // A manager that has just joined.
            (&Store::default(), None, 7, true),
            (&Store::default(), Some(&newer), 17, true),
            (&Store::default(), Some(&view(9, &[&other])), 18, false),
        ] {
            assert_eq!(may_speak_for(store, view, &one.node_id, raft_id), expected, "{raft_id}");
        }
    }

    #[test]
    fn a_manager_is_found_by_its_raft_id_in_either_source() {
        let two = Peer {
            manager: true,
            raft_id: Some(8),
            containers: vec!["10.0.0.9".parse().expect("an address")],
            ..fixture::peer(2)
        };
        let (known, newer) = (store(5, &[(&fixture::peer(1), Some(7))]), view(9, &[&two]));
        let found = |raft_id| with_raft_id(&known, Some(&newer), raft_id);
        assert_eq!(found(7).map(|peer| (peer.node_id, peer.subnet)), Some((fixture::peer(1).node_id, fixture::peer(1).subnet)));
        assert_eq!(found(8), Some(Peer { containers: Vec::new(), ..two.clone() }));
        assert_eq!(found(9), None);
    }
}

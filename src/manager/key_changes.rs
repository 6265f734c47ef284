//! Nodes that change their WireGuard key: the next one may be used once every live node has it among its peers. Nodes that are down are not
//! waited for: they learn both from their view when they are back. Pure.

use crate::model::{NodeId, Revision, WgKey};
use crate::store::{Action, FieldUpdate, KeyChange, Store};
use std::collections::BTreeMap;

/// The keys that not every live node knows yet.
#[derive(Default)]
pub(super) struct KeyChanges {
    /// Raft index at which each was seen first: not before it was written. A new leader waits for the state of its begin.
    seen: BTreeMap<NodeId, (WgKey, u64)>,
}

impl KeyChanges {
    /// The writes for the keys that all know. `applied`: what every live node has applied.
    pub(super) fn plan(&mut self, store: &Store, applied: Revision) -> Vec<Action> {
        let revision = store.revision();
        let mut before = std::mem::take(&mut self.seen);
        let mut known = Vec::new();
        for node in store.nodes() {
            let Some(next) = node.mesh.next.filter(|next| !next.known) else { continue };
            let first = before.remove(&node.id).filter(|(key, _)| *key == next.key).map_or(revision.index, |(_, first)| first);
            if applied >= (Revision { index: first, ..revision }) {
                known.push(Action::Set(FieldUpdate::TunnelKey { id: node.id.clone(), change: KeyChange::Known(next.key) }));
            }
            self.seen.insert(node.id.clone(), (next.key, first));
        }
        known
    }

    /// The next round may have something to write although the store did not change.
    pub(super) fn is_waiting(&self) -> bool {
        !self.seen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::{NodeDescription, NodeMesh, NodeStatus};
    use crate::model::{Meta, NextKey, Node, NodeSpec, Timestamp, fixture};
    use crate::store::Transaction;

    fn write(store: &mut Store, actions: Vec<Action>) {
        store.apply(store.index() + 1, &Transaction::new(Timestamp(0), actions)).expect("applied");
    }

    #[test]
    fn a_key_is_known_when_every_live_node_has_applied_its_write_and_not_that_of_another_key() {
        let peer = fixture::peer(1);
        let id = peer.node_id.clone();
        let node = Node {
            id: id.clone(),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            description: NodeDescription::default(),
            status: NodeStatus::default(),
            mesh: NodeMesh { key: peer.key, next: None, subnet: peer.subnet, ingress_addr: peer.ingress_addr, endpoints: vec![] },
            manager: None,
        };
        let (mut store, mut changes) = (Store::default(), KeyChanges::default());
        write(&mut store, vec![Action::create(node)]);
        let at = |index| Revision { incarnation: 0, index };
        let set = |change| vec![Action::Set(FieldUpdate::TunnelKey { id: id.clone(), change })];
        let mesh = |store: &Store| store.node(&id).expect("a node").mesh.clone();
        assert!(changes.plan(&store, at(1)).is_empty() && !changes.is_waiting());
        let [first, second] = [8, 9].map(|number| WgKey([number; 32]));
        write(&mut store, set(KeyChange::Begin(first)));
        assert!(changes.plan(&store, at(1)).is_empty() && changes.is_waiting());
        write(&mut store, set(KeyChange::Begin(second)));
        assert!(changes.plan(&store, at(2)).is_empty(), "they know the one that was given up");
        let known = changes.plan(&store, at(3));
        assert_eq!(known, set(KeyChange::Known(second)));
        // Not in another order: of a key that was given up, nothing is written.
        write(&mut store, set(KeyChange::InUse(first)));
        assert_eq!(mesh(&store).key, peer.key);
        write(&mut store, known);
        assert_eq!(mesh(&store).next, Some(NextKey { key: second, known: true }));
        assert!(changes.plan(&store, at(4)).is_empty() && !changes.is_waiting());
        assert_eq!(store.nodes_with_key(&second).count() + store.nodes_with_key(&peer.key).count(), 2, "neither is free");
        write(&mut store, set(KeyChange::InUse(second)));
        assert_eq!((mesh(&store).key, mesh(&store).next), (second, None));
        assert_eq!(store.nodes_with_key(&peer.key).count(), 0);
    }
}

//! Passes the key of secrets and configs on to further managers, and forgets the copies of nodes that are managers no more. Pure.

use crate::model::{Node, NodeId, PayloadKeys};
use crate::store::{Action, Store};
use crate::trust::PayloadVault;
use rand::Rng;

/// The write of the keys as the managers of now need them. `rng` must be cryptographically secure.
pub(super) fn plan(store: &Store, vault: Option<&PayloadVault>, rng: &mut impl Rng) -> Vec<Action> {
    let (Some(keys), Some(vault)) = (store.payload_keys(), vault) else { return Vec::new() };
    let mut next = keys.clone();
    let is_manager = |id: &NodeId| store.node(id).is_some_and(|node| node.manager.is_some());
    next.managers.retain(|id, _| is_manager(id));
    let has_key = |keys: &PayloadKeys, node: &Node| keys.managers.get(&node.id).is_some_and(|k| k.recipient == node.mesh.key);
    for node in store.nodes().filter(|node| node.manager.is_some()) {
        if has_key(&next, node) {
            continue;
        }
        match vault.shared_with(&next, node.id.clone(), node.mesh.key, rng) {
            Ok(shared) => next = shared,
            Err(error) => tracing::error!(node = %node.id, %error, "the key of secrets and configs cannot be passed on"),
        }
    }
    // Without any manager in it the key is lost: better one of a manager that is gone.
    if next == *keys || next.managers.is_empty() { Vec::new() } else { vec![Action::update(next)] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::{JoiningNode, bootstrap};
    use crate::model::node::{ManagerStatus, NodeDescription};
    use crate::model::{Availability, Role, Secret, Timestamp, fixture};
    use crate::store::{Kind, Transaction};
    use crate::trust::TunnelKey;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    fn tunnel_key(number: u8) -> TunnelKey {
        TunnelKey::new(Secret::new([number; 32]))
    }

    fn vault(number: u8) -> PayloadVault {
        PayloadVault::new(format!("n{number}").into(), tunnel_key(number))
    }

    fn manager_status(number: u8) -> ManagerStatus {
        ManagerStatus { raft_id: number.into(), addr: "192.0.2.1:2377".parse().expect("an address") }
    }

    fn apply(store: &mut Store, actions: Vec<Action>) {
        let index = store.index() + 1;
        store.apply(index, &Transaction::new(Timestamp(0), actions)).expect("applied");
    }

    #[test]
    fn each_manager_gets_the_key_and_a_removed_one_is_forgotten() {
        let rng = &mut StdRng::seed_from_u64(1);
        let first = JoiningNode {
            id: "n1".into(),
            role: Role::Manager,
            availability: Availability::Active,
            description: NodeDescription::default(),
            addr: None,
            key: tunnel_key(1).public(),
            endpoints: Vec::new(),
            manager: Some(manager_status(1)),
        };
        let mut store = Store::default();
        apply(&mut store, bootstrap(fixture::cluster(), "net".into(), first).expect("a cluster"));
        assert_eq!(plan(&store, Some(&vault(1)), rng), [], "no key yet");
        let (_, keys) = vault(1).first_key("cluster".into(), rng).expect("a key");
        apply(&mut store, vec![Action::create(keys)]);
        assert_eq!(plan(&store, Some(&vault(1)), rng), []);
        // A second manager, with a key of its own.
        let mut second = store.node(&"n1".into()).expect("stored").clone();
        (second.id, second.mesh.key, second.manager) = ("n2".into(), tunnel_key(2).public(), Some(manager_status(2)));
        apply(&mut store, vec![Action::create(second)]);
        assert_eq!(plan(&store, None, rng), [], "without a vault");
        assert_eq!(plan(&store, Some(&vault(2)), rng), [], "it has no key to pass on");
        let shared = plan(&store, Some(&vault(1)), rng);
        apply(&mut store, shared);
        let keys = store.payload_keys().expect("stored");
        assert!(vault(2).data_key(keys).is_ok() && plan(&store, Some(&vault(2)), rng).is_empty());
        // The first one goes.
        apply(&mut store, vec![Action::Remove(Kind::Node, "n1".into())]);
        let without = plan(&store, Some(&vault(2)), rng);
        apply(&mut store, without);
        let keys = store.payload_keys().expect("stored");
        assert!(vault(2).data_key(keys).is_ok() && vault(1).data_key(keys).is_err());
    }
}

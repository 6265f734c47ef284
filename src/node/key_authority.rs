//! Writes changes of nodes' WireGuard keys, on a manager.

use crate::clock::Clock;
use crate::model::{NodeId, NodeState, WgKey};
use crate::protocol::removal_reason;
use crate::rpc::{KeyChangeAuthority, KeyChangeRefusal};
use crate::store::{Action, Condition, FieldUpdate, KEY_CHANGES, KeyChange, ProposeError, Store, StoreHandle, Transaction};
use async_trait::async_trait;
use std::sync::Arc;

pub(super) struct KeyAuthority {
    pub store: StoreHandle,
    pub clock: Arc<dyn Clock>,
}

/// Why the node may not begin a change now. One node at a time: of two that change at once each may wait for a handshake that the other
/// does not answer yet. (Two that begin in the same moment are not kept apart: both go on, with a longer pause.)
fn refusal(store: &Store, id: &NodeId) -> Option<String> {
    let level = store.feature_level();
    if level < KEY_CHANGES {
        return Some(format!(
            "a change of WireGuard keys needs feature level {KEY_CHANGES}, the cluster is at level {level}: upgrade skep on every manager first"
        ));
    }
    let members = || store.nodes().filter(|node| node.status.state != NodeState::Disconnected);
    let old = members().filter(|node| node.description.feature_levels().newest < KEY_CHANGES);
    let old: Vec<&str> = old.map(|node| node.description.hostname.as_str()).collect();
    if !old.is_empty() {
        let names = old.join(", ");
        return Some(format!(
            "an earlier skep, which knows no change of WireGuard keys, runs on {names}: upgrade it there, or remove the node (docker node rm --force)"
        ));
    }
    let other = members().find(|node| node.id != *id && node.mesh.next.is_some() && node.status.state.may_be_up());
    other.map(|node| format!("node {} changes its WireGuard key: try again once it is done", node.description.hostname))
}

impl KeyAuthority {
    /// Waits until this manager has all that was written before: an entry that changes nothing, behind all others.
    async fn catch_up(&self) -> Result<(), KeyChangeRefusal> {
        let written = self.store.propose(Transaction::new(self.clock.now(), Vec::new())).await;
        written.map(drop).map_err(|error| KeyChangeRefusal::Unknown(error.to_string()))
    }

    async fn write(&self, id: &NodeId, change: KeyChange, condition: Option<Condition>) -> Result<(), KeyChangeRefusal> {
        let action = Action::Set(FieldUpdate::TunnelKey { id: id.clone(), change });
        let written = self.store.propose(Transaction::new(self.clock.now(), vec![action]).require(condition)).await;
        written.map(drop).map_err(|error| match error {
            ProposeError::Refused(why) => KeyChangeRefusal::Refused(why.to_string()),
            other => KeyChangeRefusal::Unknown(other.to_string()),
        })
    }
}

#[async_trait]
impl KeyChangeAuthority for KeyAuthority {
    async fn begin(&self, id: &NodeId, key: WgKey) -> Result<(), KeyChangeRefusal> {
        let store = self.store.read();
        let node = store.node(id).ok_or_else(|| KeyChangeRefusal::Refused(removal_reason(id)))?;
        if node.mesh.key == key {
            // It has no other one to change it for.
            return if node.mesh.next.is_some() { self.write(id, KeyChange::Begin(key), None).await } else { Ok(()) };
        }
        if node.mesh.next.is_some_and(|next| next.key == key) {
            return Ok(());
        }
        if refusal(&store, id).is_some() {
            // What stands here may be of before, as on a manager that has just started: a key that is refused is given up.
            self.catch_up().await?;
            if let Some(why) = refusal(&self.store.read(), id) {
                return Err(KeyChangeRefusal::Refused(why));
            }
        }
        self.write(id, KeyChange::Begin(key), Some(Condition::FreeKey { key })).await
    }

    async fn in_use(&self, id: &NodeId, key: WgKey) -> Result<(), KeyChangeRefusal> {
        let uses = || {
            let store = self.store.read();
            let node = store.node(id).ok_or_else(|| KeyChangeRefusal::Refused(removal_reason(id)))?;
            Ok(node.mesh.key == key)
        };
        if uses()? {
            return Ok(());
        }
        self.write(id, KeyChange::InUse(key), None).await?;
        let why = || KeyChangeRefusal::Refused("the managers know another next key of this node".to_owned());
        if uses()? { Ok(()) } else { Err(why()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::model::node::{NodeDescription, NodeMesh, NodeStatus};
    use crate::model::{FormatRange, Meta, NextKey, Node, NodeSpec, Timestamp, fixture};
    use crate::store::{Propose, StorePublisher};
    use crate::sync::lock;
    use std::sync::Mutex;

    fn store(level: u32, change: impl Fn(u8, &mut Node)) -> Store {
        let cluster = crate::model::Cluster { feature_level: level, ..fixture::cluster() };
        let node = |number| {
            let peer = fixture::peer(number);
            let description = NodeDescription {
                hostname: peer.hostname,
                feature_levels: Some(FormatRange::new(1, KEY_CHANGES)),
                ..NodeDescription::default()
            };
            let (subnet, ingress_addr) = (peer.subnet, peer.ingress_addr);
            let mut node = Node {
                id: peer.node_id,
                meta: Meta::default(),
                spec: NodeSpec::default(),
                description,
                status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
                mesh: NodeMesh { key: peer.key, next: None, subnet, ingress_addr, endpoints: Vec::new() },
                manager: None,
            };
            change(number, &mut node);
            Action::create(node)
        };
        let mut store = Store::default();
        let actions = std::iter::once(Action::create(cluster)).chain((1..=3).map(node)).collect();
        store.apply(1, &Transaction::new(Timestamp(0), actions)).expect("applied");
        store
    }

    #[test]
    fn what_is_in_the_way_of_a_change_is_named() {
        let me = fixture::peer(1).node_id;
        let refusal = |store: Store| refusal(&store, &me);
        assert_eq!(refusal(store(3, |_, _| {})), None);
        let level = refusal(store(2, |_, _| {})).expect("refused");
        assert!(level.contains("needs feature level 3, the cluster is at level 2"), "{level}");
        let old = |number: u8, node: &mut Node| {
            if number > 1 {
                node.description.feature_levels = Some(FormatRange::new(1, 2));
            }
        };
        let named = refusal(store(3, old)).expect("refused");
        assert!(named.contains("runs on host2, host3: upgrade"), "{named}");
        let changing = |who: u8, state: NodeState| {
            move |number: u8, node: &mut Node| {
                if number == who {
                    node.mesh.next = Some(NextKey { key: WgKey([9; 32]), known: true });
                    node.status.state = state;
                }
            }
        };
        let other = refusal(store(3, changing(2, NodeState::Ready))).expect("refused");
        assert!(other.contains("node host2 changes its WireGuard key"), "{other}");
        assert_eq!(refusal(store(3, changing(2, NodeState::Down))), None, "it may be away for ever");
        assert_eq!(refusal(store(3, changing(1, NodeState::Ready))), None, "its own");
    }
    /// A manager that has not applied what the others have written; it does with the next entry.
    struct Behind(Mutex<(Store, StorePublisher, Vec<Action>)>);

    #[async_trait]
    impl Propose for Behind {
        async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
            let (store, publisher, missing) = &mut *lock(&self.0);
            for transaction in [Transaction::new(Timestamp(1), std::mem::take(missing)), transaction] {
                store.apply(store.index() + 1, &transaction)?;
                publisher.publish(store);
            }
            Ok(store.index())
        }
    }

    #[tokio::test]
    async fn a_change_is_not_refused_for_what_is_over() {
        let other = NextKey { key: WgKey([9; 32]), known: true };
        let store = store(3, |number, node| node.mesh.next = (number == 2).then_some(other));
        // The other node's change has ended.
        let mut ended = store.node(&fixture::peer(2).node_id).expect("a node").clone();
        (ended.mesh.key, ended.mesh.next) = (other.key, None);
        let mut publisher = StorePublisher::default();
        publisher.publish(&store);
        let published = publisher.reader();
        let behind = Behind(Mutex::new((store, publisher, vec![Action::update(ended)])));
        let authority = KeyAuthority { store: StoreHandle::new(published, Arc::new(behind)), clock: Arc::new(SystemClock) };
        let (me, next) = (fixture::peer(1).node_id, WgKey([7; 32]));
        authority.begin(&me, next).await.expect("nothing is in the way");
        assert_eq!(authority.store.read().node(&me).expect("a node").mesh.next.map(|next| next.key), Some(next));
    }
}

//! The change of the root CA, as far as the leader drives it: it ends once every node that is up has a certificate of the new root, and
//! waits for none that is down or has left. Such a node gets its next certificate when it is back, by the old root that managers go on
//! to accept for that. Pure.

use crate::model::{CaHistory, Cluster, Node, RetiredRoot};
use crate::store::{Action, Store};
use crate::trust::{CaDigest, JoinToken};
use rand::Rng;

/// Replaced roots that are kept. A node that was away for more changes has to join again.
const KEPT: usize = 4;

/// The next write of the cluster; `rng` must be cryptographically secure.
pub(super) fn plan(store: &Store, rng: &mut impl Rng) -> Vec<Action> {
    let Some(cluster) = store.cluster().filter(|cluster| !cluster.ca_history.is_empty()) else { return Vec::new() };
    let mut next = cluster.clone();
    if cluster.ca_history.rotation.is_some() && waiting_for(store).next().is_none() {
        finish(&mut next, rng);
    }
    forget(&mut next.ca_history, store);
    if next == *cluster { Vec::new() } else { vec![Action::update(next)] }
}

/// Nodes that the change waits for.
pub fn waiting_for(store: &Store) -> impl Iterator<Item = &Node> {
    those(store, is_waited_for)
}

/// Nodes that get their certificate of the new root when they are back.
pub fn left_out(store: &Store) -> impl Iterator<Item = &Node> {
    those(store, is_left_out)
}

fn those(store: &Store, is_one: fn(&Cluster, &Node) -> bool) -> impl Iterator<Item = &Node> {
    let cluster = store.cluster();
    store.nodes().filter(move |node| cluster.is_some_and(|cluster| is_one(cluster, node)))
}

/// Whether a node that is up, or may be, has no certificate of the new root yet.
#[must_use]
pub fn is_waited_for(cluster: &Cluster, node: &Node) -> bool {
    cluster.ca_history.rotation.is_some() && node.status.state.may_be_up() && is_without_new_root(cluster, node)
}

/// Whether a node that is down has a certificate that it can only renew with.
#[must_use]
pub fn is_left_out(cluster: &Cluster, node: &Node) -> bool {
    !node.status.state.may_be_up() && is_without_new_root(cluster, node)
}

/// Whether a node does not say who has issued its certificate, so that it is waited for until it is upgraded or removed.
#[must_use]
pub fn is_silent(node: &Node) -> bool {
    node.description.issuer.is_empty()
}

/// Whether a node has had no session yet with a certificate of the root that issues now.
#[must_use]
pub fn is_without_new_root(cluster: &Cluster, node: &Node) -> bool {
    !cluster.ca_history.is_empty() && digest(cluster.issuing_ca().0) != node.description.issuer
}

/// The new root takes the place of the old one: with new tokens, which name it.
fn finish(cluster: &mut Cluster, rng: &mut impl Rng) {
    let Some(rotation) = cluster.ca_history.rotation.clone() else { return };
    let new = match CaDigest::of_pem(&rotation.ca_certificate) {
        Ok(digest) => digest,
        Err(error) => return tracing::error!(%error, "the new root CA cannot be read"),
    };
    let certificate = std::mem::replace(&mut cluster.ca_certificate, rotation.ca_certificate);
    cluster.ca_history.retired.push(RetiredRoot { certificate, cross: rotation.cross });
    cluster.ca_key = rotation.ca_key;
    cluster.ca_history.rotation = None;
    cluster.tokens = JoinToken::draw_both(new, rng);
    tracing::info!(root = %new, "the root CA was replaced: make a new backup, earlier ones bring back no other node");
}

/// Drops the oldest roots that no node has a certificate of: what leads from one root to the next is needed by the nodes of all before.
fn forget(history: &mut CaHistory, store: &Store) {
    let is_used = |root: &RetiredRoot| {
        let root = digest(&root.certificate);
        // A node that does not say may have one of any.
        store.nodes().any(|node| is_silent(node) || node.description.issuer == root)
    };
    let unused = history.retired.iter().take_while(|root| !is_used(root)).count();
    let too_many = history.retired.len().saturating_sub(KEPT);
    history.retired.drain(..unused.max(too_many));
}

/// As nodes report it; empty for what cannot be read.
fn digest(pem: &str) -> String {
    CaDigest::of_pem(pem).map(|digest| digest.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::{ManagerStatus, NodeDescription, NodeMesh, NodeStatus};
    use crate::model::{Meta, NodeSpec, NodeState, RootRotation, Timestamp, fixture};
    use crate::store::{Kind, Transaction};
    use crate::trust::{RootCa, cross_sign, leads_to};
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);

    /// A cluster whose first nodes have these states.
    struct ChangingSwarm {
        store: Store,
        root: RootCa,
        rng: StdRng,
    }

    impl ChangingSwarm {
        fn new(states: &[NodeState]) -> Self {
            let mut rng = StdRng::seed_from_u64(7);
            let root = RootCa::generate(&mut rng, NOW).unwrap();
            let tokens = JoinToken::draw_both(root.digest().unwrap(), &mut rng);
            let cluster = Cluster {
                ca_certificate: root.certificate().to_owned(),
                ca_key: root.key().into(),
                tokens,
                ..fixture::cluster()
            };
            let nodes = states.iter().zip(1..).map(|(state, number)| {
                let peer = fixture::peer(number);
                Action::create(Node {
                    id: peer.node_id,
                    meta: Meta::default(),
                    spec: NodeSpec::default(),
                    description: NodeDescription { issuer: digest(root.certificate()), ..NodeDescription::default() },
                    status: NodeStatus { state: *state, ..NodeStatus::default() },
                    mesh: NodeMesh {
                        key: peer.key,
                        next: None,
                        subnet: peer.subnet,
                        ingress_addr: peer.ingress_addr,
                        endpoints: Vec::new(),
                    },
                    manager: (number == 1).then(|| ManagerStatus { raft_id: 1, addr: "192.168.7.1:2377".parse().unwrap() }),
                })
            });
            let actions = [Action::create(cluster)].into_iter().chain(nodes).collect();
            let mut swarm = Self { store: Store::default(), root, rng };
            swarm.apply(actions);
            swarm
        }
        fn apply(&mut self, actions: Vec<Action>) {
            let index = self.store.index() + 1;
            self.store.apply(index, &Transaction::new(NOW, actions)).expect("applied");
        }
        fn cluster(&self) -> &Cluster {
            self.store.cluster().expect("stored")
        }
        /// Begins a change; returns the new root.
        fn rotate(&mut self) -> RootCa {
            let new = RootCa::generate(&mut self.rng, NOW).unwrap();
            let cross = cross_sign(&self.root, &new, NOW, &mut self.rng).unwrap();
            let mut cluster = self.cluster().clone();
            let rotation = RootRotation { ca_certificate: new.certificate().into(), ca_key: new.key().into(), cross };
            cluster.ca_history.rotation = Some(rotation);
            cluster.ca_history.rotations += 1;
            self.apply(vec![Action::update(cluster)]);
            new
        }
        fn set(&mut self, number: u8, change: impl FnOnce(&mut Node)) {
            let mut node = self.store.node(&fixture::peer(number).node_id).expect("a node").clone();
            change(&mut node);
            self.apply(vec![Action::update(node)]);
        }
        fn renews(&mut self, number: u8, root: &RootCa) {
            let issuer = digest(root.certificate());
            self.set(number, |node| node.description.issuer = issuer);
        }
        /// Plans and writes; whether there was something to write.
        fn round(&mut self) -> bool {
            let actions = plan(&self.store, &mut self.rng);
            let any = !actions.is_empty();
            self.apply(actions);
            any
        }
        fn names<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<String> {
            nodes.map(|node| node.id.to_string()).collect()
        }
    }

    #[test]
    fn a_change_waits_for_nodes_that_are_up_and_names_those_that_are_not() {
        let mut swarm = ChangingSwarm::new(&[NodeState::Ready, NodeState::Ready, NodeState::Down, NodeState::Disconnected]);
        assert!(!swarm.round(), "there is no change");
        let (old, tokens) = (swarm.root.certificate().to_owned(), swarm.cluster().tokens.clone());
        let new = swarm.rotate();
        assert_eq!(swarm.cluster().issuing_ca().0, new.certificate(), "it issues from the begin");
        let trust = swarm.cluster().trust_bundle().expect("changed");
        assert_eq!(trust.trusted, [new.certificate(), &old]);
        assert!(leads_to(&old, &trust.chain, new.certificate()));
        let id = |number: u8| fixture::peer(number).node_id.to_string();
        assert_eq!(ChangingSwarm::names(waiting_for(&swarm.store)), [id(1), id(2)]);
        assert_eq!(ChangingSwarm::names(left_out(&swarm.store)), [id(3), id(4)]);
        swarm.renews(1, &new);
        assert!(!swarm.round(), "one is still to come");
        assert_eq!(
            (&swarm.cluster().ca_certificate, &swarm.cluster().tokens),
            (&old, &tokens),
            "joins go on with the old tokens"
        );
        swarm.renews(2, &new);
        assert!(swarm.round());
        let cluster = swarm.cluster();
        assert_eq!((cluster.ca_certificate.as_str(), cluster.ca_key.expose().as_str()), (new.certificate(), new.key()));
        assert!(cluster.ca_history.rotation.is_none() && cluster.tokens != tokens);
        assert!(cluster.tokens.worker.expose().parse::<JoinToken>().unwrap().digest() == new.digest().unwrap());
        // The node that was down can find its new root; its old one is accepted for nothing else.
        let trust = cluster.trust_bundle().expect("changed");
        assert_eq!(
            (trust.trusted.as_slice(), trust.retired.as_slice()),
            (&[new.certificate().to_owned()][..], &[old.clone()][..])
        );
        assert!(leads_to(&old, &trust.chain, new.certificate()));
        assert!(!swarm.round());
        // It comes back; the one that has left is removed.
        swarm.set(3, |node| node.status.state = NodeState::Ready);
        swarm.renews(3, &new);
        assert!(!swarm.round(), "the other one is still there");
        swarm.apply(vec![Action::Remove(Kind::Node, id(4))]);
        assert!(swarm.round());
        assert!(swarm.cluster().trust_bundle().expect("changed").retired.is_empty(), "the old root is forgotten");
        assert!(!swarm.round());
    }

    #[test]
    fn a_node_that_goes_down_or_is_unknown_during_the_change() {
        let mut swarm = ChangingSwarm::new(&[NodeState::Ready, NodeState::Unknown]);
        let new = swarm.rotate();
        swarm.renews(1, &new);
        assert!(!swarm.round(), "after a change of the leader no node is known yet, and none is left out for it");
        swarm.set(2, |node| node.status.state = NodeState::Down);
        assert!(swarm.round());
        assert_eq!(swarm.cluster().ca_certificate, new.certificate());
        let node = swarm.store.node(&fixture::peer(2).node_id).unwrap();
        assert!(is_left_out(swarm.cluster(), node));
    }

    #[test]
    fn a_node_that_does_not_say_its_issuer_is_waited_for_by_name_until_it_is_upgraded_or_removed() {
        let mut swarm = ChangingSwarm::new(&[NodeState::Ready, NodeState::Ready]);
        swarm.set(2, |node| node.description.issuer.clear());
        let id = fixture::peer(2).node_id;
        let is_waited_for = |swarm: &ChangingSwarm| is_waited_for(swarm.cluster(), swarm.store.node(&id).expect("a node"));
        assert!(!is_waited_for(&swarm), "there is no change");
        let new = swarm.rotate();
        swarm.renews(1, &new);
        assert!(!swarm.round());
        assert!(is_waited_for(&swarm) && is_silent(swarm.store.node(&id).expect("a node")));
        swarm.apply(vec![Action::Remove(Kind::Node, id.to_string())]);
        assert!(swarm.round() && swarm.cluster().ca_history.rotation.is_none());
    }

    #[test]
    fn several_changes_keep_the_way_of_a_node_that_missed_them_and_not_for_ever() {
        let mut swarm = ChangingSwarm::new(&[NodeState::Ready, NodeState::Down]);
        let first = swarm.root.certificate().to_owned();
        for round in 1..=5 {
            let new = swarm.rotate();
            swarm.renews(1, &new);
            assert!(swarm.round());
            let trust = swarm.cluster().trust_bundle().expect("changed");
            assert_eq!(leads_to(&first, &trust.chain, new.certificate()), round <= KEPT, "{round}");
            assert_eq!(trust.retired.len(), round.min(KEPT));
            swarm.root = new;
        }
    }
}

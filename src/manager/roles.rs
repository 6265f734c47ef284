//! Roles of nodes. What a user wants is in the spec; what a node is, its entry among the managers says: a promoted node gets a
//! raft id, a demoted one loses it once raft does not count it any more. `node` changes raft's membership accordingly.

use crate::model::mesh::DEFAULT_PORT;
use crate::model::node::ManagerStatus;
use crate::model::{Node, NodeId, Role};
use crate::raft::{MembershipChange, RaftStatus};
use crate::store::{Action, Store};
use rand::Rng;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// A raft id that no manager ever had: of 2^53, so that every JSON reader keeps it.
pub fn draw_raft_id(rng: &mut impl Rng) -> u64 {
    rng.random_range(2..1 << 53)
}

/// Entries among the managers: of nodes that were promoted, and of demoted ones that raft does not count any more (`members` are
/// its members).
pub fn plan(store: &Store, members: &[u64], rng: &mut impl Rng) -> Vec<Action> {
    let changed = store.nodes().filter_map(|node| {
        let manager = match (&node.manager, node.spec.role) {
            (None, Role::Manager) => {
                let addr = SocketAddr::new(node.status.addr?, DEFAULT_PORT);
                Some(ManagerStatus { raft_id: draw_raft_id(rng), addr })
            }
            (Some(manager), Role::Worker) if !members.contains(&manager.raft_id) => None,
            (Some(manager), Role::Manager) => Some(at_its_endpoint(node, manager)?),
            _ => return None,
        };
        Some(Action::update(Node { manager, ..node.clone() }))
    });
    changed.collect()
}

/// A manager's entry with the address that it has now, if that is another one: a machine may come back with another.
fn at_its_endpoint(node: &Node, manager: &ManagerStatus) -> Option<ManagerStatus> {
    let ip = node.advertised()?;
    let addr = SocketAddr::new(ip, manager.addr.port());
    (ip != manager.addr.ip() && !ip.is_unspecified()).then_some(ManagerStatus { addr, ..*manager })
}

/// Nodes that are to be managers and have a raft id, by that.
fn wanted(store: &Store) -> BTreeMap<u64, &NodeId> {
    let managers = store.nodes().filter(|node| node.spec.role == Role::Manager);
    managers.filter_map(|node| Some((node.manager.as_ref()?.raft_id, &node.id))).collect()
}

/// The next change of raft's membership; `None` if it is as the store wants it. One change is made at a time.
#[must_use]
pub fn next_change(store: &Store, status: &RaftStatus) -> Option<MembershipChange> {
    let wanted = wanted(store);
    // An empty store has not been filled yet: no manager is removed by it.
    if !wanted.contains_key(&status.id) && wanted.is_empty() {
        return None;
    }
    let is_member = |id: &u64| status.voters.contains(id) || status.learners.contains(id);
    // Removed first: what is gone must not count for a majority. The leader removes itself last, after another one leads.
    let mut gone = status.voters.iter().chain(&status.learners).filter(|id| !wanted.contains_key(id) && **id != status.id);
    if let Some(id) = gone.find(|id| leaves_majority(status, **id)) {
        return Some(MembershipChange::Remove(*id));
    }
    if let Some(id) = status.caught_up.iter().find(|id| wanted.contains_key(id)) {
        return Some(MembershipChange::AddVoter(*id));
    }
    wanted.keys().find(|id| !is_member(id)).map(|id| MembershipChange::AddLearner(*id))
}

/// Whether more than half of the voters are heard without this one. Where the node of a manager is up and its raft is not, nothing but
/// raft shows it; a removal that waits is carried out once another manager is back.
fn leaves_majority(status: &RaftStatus, removed: u64) -> bool {
    let without = |ids: &[u64]| ids.iter().filter(|id| **id != removed).count();
    !status.heard.contains(&removed) || without(&status.heard) * 2 > without(&status.voters)
}

/// Managers that were demoted and stay members of raft until another manager is back.
#[must_use]
pub fn waits_for_majority(store: &Store, status: &RaftStatus) -> Vec<NodeId> {
    let waits = |node: &&Node| {
        let member =
            node.manager.as_ref().filter(|manager| node.spec.role == Role::Worker && status.voters.contains(&manager.raft_id));
        member.is_some_and(|manager| !leaves_majority(status, manager.raft_id))
    };
    store.nodes().filter(waits).map(|node| node.id.clone()).collect()
}

/// Whether the leader itself is to be no manager any more: it transfers leadership first. Without another one that is to lead it would
/// be passed round for ever.
#[must_use]
pub fn transfers_leadership(store: &Store, status: &RaftStatus) -> bool {
    let wanted = wanted(store);
    status.is_leader && !wanted.contains_key(&status.id) && status.voters.iter().any(|id| wanted.contains_key(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use crate::model::node::{NodeDescription, NodeMesh, NodeStatus};
    use crate::model::{Availability, Meta, NodeSpec, Timestamp};
    use crate::store::Transaction;
    use rand::SeedableRng as _;

    fn node(number: u16, role: Role, raft_id: Option<u64>) -> Node {
        let peer = fixture::peer(u8::try_from(number).unwrap());
        let addr = SocketAddr::from(([192, 168, 7, u8::try_from(number).unwrap()], DEFAULT_PORT));
        Node {
            id: peer.node_id,
            meta: Meta::default(),
            spec: NodeSpec { role, availability: Availability::Active, ..NodeSpec::default() },
            description: NodeDescription::default(),
            status: NodeStatus { addr: Some(addr.ip()), ..NodeStatus::default() },
            mesh: NodeMesh {
                key: peer.key,
                next: None,
                subnet: peer.subnet,
                ingress_addr: peer.ingress_addr,
                endpoints: Vec::new(),
            },
            manager: raft_id.map(|raft_id| ManagerStatus { raft_id, addr }),
        }
    }

    fn store(nodes: impl IntoIterator<Item = Node>) -> Store {
        let mut store = Store::default();
        let actions = nodes.into_iter().map(Action::create).collect();
        store.apply(1, &Transaction::new(Timestamp(1), actions)).unwrap();
        store
    }

    fn status(voters: &[u64], learners: &[u64], caught_up: &[u64]) -> RaftStatus {
        let (voters, learners, caught_up) = (voters.to_vec(), learners.to_vec(), caught_up.to_vec());
        RaftStatus { id: 1, is_leader: true, heard: voters.clone(), voters, learners, caught_up, ..RaftStatus::default() }
    }

    #[test]
    fn a_promoted_node_becomes_a_learner_then_a_voter() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let promoted = store([node(1, Role::Manager, Some(1)), node(2, Role::Manager, None), node(3, Role::Worker, None)]);
        assert_eq!(next_change(&promoted, &status(&[1], &[], &[])), None, "it has no raft id yet");
        let actions = plan(&promoted, &[1], rng);
        let [Action::Update(crate::store::Object::Node(written))] = &actions[..] else { panic!("{actions:?}") };
        let manager = written.manager.clone().expect("a raft id");
        assert_eq!(manager.addr.to_string(), "192.168.7.2:2377");
        let id = manager.raft_id;
        let named = store([node(1, Role::Manager, Some(1)), node(2, Role::Manager, Some(id))]);
        assert_eq!(next_change(&named, &status(&[1], &[], &[])), Some(MembershipChange::AddLearner(id)));
        assert_eq!(next_change(&named, &status(&[1], &[id], &[])), None, "it has not caught up");
        assert_eq!(next_change(&named, &status(&[1], &[id], &[id])), Some(MembershipChange::AddVoter(id)));
        assert_eq!(next_change(&named, &status(&[1, id], &[], &[])), None);
    }

    #[test]
    fn a_manager_whose_tunnel_has_an_address_of_its_own_keeps_the_advertised_one() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let mut apart = node(2, Role::Manager, Some(7));
        apart.mesh.endpoints = vec!["198.51.100.2:2377".parse().expect("an address")];
        apart.description.advertised = apart.manager.as_ref().map(|manager| manager.addr.ip());
        assert!(plan(&store([node(1, Role::Manager, Some(1)), apart]), &[1, 7], rng).is_empty());
    }

    #[test]
    fn a_managers_address_follows_its_machine() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let at = |endpoint: &str| {
            let mut moved = node(2, Role::Manager, Some(7));
            moved.mesh.endpoints = vec![endpoint.parse().expect("an address")];
            plan(&store([node(1, Role::Manager, Some(1)), moved]), &[1, 7], rng)
        };
        let [at_first, moved, unknown] = ["192.168.7.2:2377", "192.168.9.9:7777", "0.0.0.0:2377"].map(at);
        assert!(at_first.is_empty() && unknown.is_empty());
        let [Action::Update(crate::store::Object::Node(written))] = &moved[..] else { panic!("{moved:?}") };
        let manager = written.manager.as_ref().expect("a manager");
        assert_eq!((manager.addr.to_string().as_str(), manager.raft_id), ("192.168.9.9:2377", 7));
    }

    #[test]
    fn a_demoted_node_stays_a_manager_until_raft_does_not_count_it() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let demoted = store([node(1, Role::Manager, Some(1)), node(2, Role::Worker, Some(7))]);
        assert_eq!(plan(&demoted, &[1, 7], rng), []);
        assert_eq!(next_change(&demoted, &status(&[1, 7], &[], &[])), Some(MembershipChange::Remove(7)));
        let actions = plan(&demoted, &[1], rng);
        let [Action::Update(crate::store::Object::Node(written))] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(written.manager, None);
    }

    #[test]
    fn no_manager_is_removed_whose_vote_the_others_need() {
        let demoted = store([node(1, Role::Manager, Some(1)), node(2, Role::Worker, Some(7)), node(3, Role::Manager, Some(9))]);
        let all = status(&[1, 7, 9], &[], &[]);
        // The node of 9 is up, and its raft is not: its disk has failed, or another program has its port.
        let one_silent = RaftStatus { heard: vec![1, 7], ..all.clone() };
        assert_eq!((next_change(&demoted, &one_silent), waits_for_majority(&demoted, &one_silent)), (None, vec!["node2".into()]));
        let itself_silent = RaftStatus { heard: vec![1, 9], ..all.clone() };
        for status in [all, itself_silent] {
            assert_eq!(next_change(&demoted, &status), Some(MembershipChange::Remove(7)), "{status:?}");
            assert_eq!(waits_for_majority(&demoted, &status), Vec::<NodeId>::new());
        }
    }

    #[test]
    fn a_leader_that_was_demoted_with_all_others_goes_on() {
        let demoted = store([node(1, Role::Worker, Some(1)), node(2, Role::Worker, Some(7))]);
        assert!(!transfers_leadership(&demoted, &status(&[1, 7], &[], &[])));
    }

    #[test]
    fn the_leader_transfers_leadership_before_it_is_removed_by_the_next() {
        let demoted = store([node(1, Role::Worker, Some(1)), node(2, Role::Manager, Some(7))]);
        let now = status(&[1, 7], &[], &[]);
        assert!(transfers_leadership(&demoted, &now));
        assert_eq!(next_change(&demoted, &now), None, "not by itself");
        let next = RaftStatus { id: 7, ..now };
        assert_eq!(next_change(&demoted, &next), Some(MembershipChange::Remove(1)));
        assert!(!transfers_leadership(&demoted, &next));
    }

    #[test]
    fn a_managers_address_follows_its_tunnels() {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(1);
        let mut moved = node(2, Role::Manager, Some(7));
        moved.mesh.endpoints = vec!["192.168.7.2:2377".parse().unwrap()];
        assert_eq!(plan(&store([moved.clone()]), &[7], rng), [], "where it was");
        moved.mesh.endpoints = vec!["[2001:db8::2]:4789".parse().unwrap()];
        let actions = plan(&store([moved]), &[7], rng);
        let [Action::Update(crate::store::Object::Node(written))] = &actions[..] else { panic!("{actions:?}") };
        let expected = ManagerStatus { raft_id: 7, addr: "[2001:db8::2]:2377".parse().unwrap() };
        assert_eq!(written.manager, Some(expected));
    }

    #[test]
    fn a_removed_node_leaves_raft_and_an_empty_store_removes_no_manager() {
        let left = store([node(1, Role::Manager, Some(1))]);
        assert_eq!(next_change(&left, &status(&[1, 9], &[], &[])), Some(MembershipChange::Remove(9)));
        assert_eq!(next_change(&Store::default(), &status(&[1, 9], &[], &[])), None);
    }
}

//! A cluster re-created from the state of one manager: by `--force-new-cluster`, or from a backup. And what two managers of different
//! incarnations make of each other. Pure.

use crate::model::cluster::INCARNATIONS_KEPT;
use crate::model::node::ManagerStatus;
use crate::model::{Cluster, NewIncarnation, Node, NodeId, NodeState, Revision, Role, Timestamp};
use crate::store::{Action, Store};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The only manager of the new cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survivor {
    pub node: NodeId,
    /// Never used before: the other managers of the old cluster know the old one.
    pub raft_id: u64,
    /// Where other nodes reach it: TCP.
    pub addr: Option<SocketAddr>,
    /// And its tunnel.
    pub endpoints: Vec<SocketAddr>,
}

/// Why there is no new cluster.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NewClusterError {
    #[error("this manager's copy of the state is empty: it never caught up with the others")]
    Empty,
    #[error("this manager's copy of the state does not have this node ({0})")]
    Unknown(NodeId),
}

/// The number of a new incarnation: higher than every one that this node has seen, and another one than that of a cluster which is
/// re-created elsewhere from the same state.
#[must_use]
pub fn next_incarnation(seen: u64, now: Timestamp) -> u64 {
    (seen + 1).max(u64::try_from(now.0 / 1_000_000_000).unwrap_or(0))
}

/// What makes the state that of the new cluster. The other managers are workers: one that comes back is promoted by the user.
///
/// # Errors
/// See [`NewClusterError`].
pub fn plan(store: &Store, survivor: &Survivor, incarnation: u64, now: Timestamp) -> Result<Vec<Action>, NewClusterError> {
    let cluster = store.cluster().ok_or(NewClusterError::Empty)?;
    let own = store.node(&survivor.node).ok_or_else(|| NewClusterError::Unknown(survivor.node.clone()))?;
    let base = store.revision();
    let mut incarnations = cluster.incarnations.clone();
    incarnations.push(NewIncarnation { incarnation, base, at: now, node: survivor.node.clone() });
    incarnations.drain(..incarnations.len().saturating_sub(INCARNATIONS_KEPT));
    let cluster = Action::update(Cluster { incarnation, incarnations, ..cluster.clone() });
    let old = store.nodes().filter(|node| node.id != own.id && (node.manager.is_some() || node.spec.role == Role::Manager));
    let demoted = old.map(|node| {
        let mut node = Node { manager: None, ..node.clone() };
        node.spec.role = Role::Worker;
        Action::update(node)
    });
    let mut own = own.clone();
    own.spec.role = Role::Manager;
    let addr = survivor.addr.or_else(|| own.manager.as_ref().map(|manager| manager.addr));
    own.manager = addr.map(|addr| ManagerStatus { raft_id: survivor.raft_id, addr });
    if let Some(addr) = survivor.addr {
        own.status.addr = Some(addr.ip());
        own.mesh.endpoints.clone_from(&survivor.endpoints);
    }
    Ok([cluster, Action::update(own)].into_iter().chain(demoted).collect())
}

/// Nodes that are greeted in a round of [`absent`].
const ABSENT_AT_ONCE: usize = 16;

/// Nodes that were managers before a new cluster was made of this state, and may be those of another one that was: they have no session here,
/// and are no managers here that would be greeted anyway. So many, in turn: those behind `after`.
#[must_use]
pub fn absent(store: &Store, after: Option<&NodeId>) -> Vec<NodeId> {
    if store.cluster().is_none_or(|cluster| cluster.incarnations.is_empty()) {
        return Vec::new();
    }
    let all: Vec<&Node> = store.nodes().filter(|node| node.manager.is_none() && node.status.state != NodeState::Ready).collect();
    let first = all.iter().position(|node| after.is_none_or(|after| node.id > *after)).unwrap_or(0);
    all.iter().cycle().skip(first).take(all.len().min(ABSENT_AT_ONCE)).map(|node| node.id.clone()).collect()
}

/// What a manager tells another one at the begin of a connection.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ManagerGreeting {
    /// What it has.
    pub revision: Revision,
    /// It leads, or knows a leader: its incarnation takes writes.
    pub has_leader: bool,
    /// How its cluster was re-created.
    #[serde(default)]
    pub incarnations: Vec<NewIncarnation>,
}

impl ManagerGreeting {
    /// Of a manager with this state.
    #[must_use]
    pub fn new(store: &Store, has_leader: bool) -> Self {
        let incarnations = store.cluster().map(|cluster| cluster.incarnations.clone()).unwrap_or_default();
        Self { revision: store.revision(), has_leader, incarnations }
    }
}

/// What a manager makes of another one's greeting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GreetingVerdict {
    /// They are of one cluster.
    Same,
    /// The cluster was re-created, and this manager has no part in it.
    Superseded {
        by: NewIncarnation,
        /// Entries that this manager has and the new cluster has not.
        lost: u64,
    },
    /// The cluster was re-created, while this manager's incarnation goes on.
    WentOn { by: NewIncarnation, entries: u64 },
    /// The other one is of an incarnation that goes on beside this one; `entries` of it are not here.
    OtherGoesOn { entries: u64 },
    /// The other one is of an earlier incarnation, which has ended.
    OtherIsOld,
}

/// Judges another manager's greeting.
#[must_use]
pub fn judge(own: &ManagerGreeting, other: &ManagerGreeting) -> GreetingVerdict {
    let (mine, theirs) = (own.revision, other.revision);
    let is_twin = mine.incarnation == theirs.incarnation && begun_by(own) != begun_by(other);
    // A manager that has just joined has no state yet.
    if (mine.incarnation == theirs.incarnation && !is_twin) || mine.incarnation == 0 || theirs.incarnation == 0 {
        return GreetingVerdict::Same;
    }
    if is_twin {
        // Both were re-created in one second: neither is the later one.
        let entries = own.incarnations.last().map_or(0, |by| beyond(other, by, own));
        return if other.has_leader { GreetingVerdict::OtherGoesOn { entries } } else { GreetingVerdict::OtherIsOld };
    }
    if mine.incarnation < theirs.incarnation {
        let Some(by) = first_since(&other.incarnations, mine.incarnation) else { return GreetingVerdict::Same };
        let lost = beyond(own, by, other);
        if own.has_leader && lost > 0 {
            return GreetingVerdict::WentOn { by: by.clone(), entries: lost };
        }
        return GreetingVerdict::Superseded { by: by.clone(), lost };
    }
    let entries = first_since(&own.incarnations, theirs.incarnation).map_or(0, |by| beyond(other, by, own));
    if other.has_leader && entries > 0 { GreetingVerdict::OtherGoesOn { entries } } else { GreetingVerdict::OtherIsOld }
}

/// The first new incarnation after this one.
fn first_since(incarnations: &[NewIncarnation], incarnation: u64) -> Option<&NewIncarnation> {
    incarnations.iter().find(|new| new.incarnation > incarnation)
}

/// The node that the last incarnation was begun on.
fn begun_by(greeting: &ManagerGreeting) -> Option<&NodeId> {
    greeting.incarnations.last().map(|new| &new.node)
}

/// Entries of a state that an incarnation of the other one did not begin with.
fn beyond(state: &ManagerGreeting, new: &NewIncarnation, other: &ManagerGreeting) -> u64 {
    let base = if new.base.incarnation == state.revision.incarnation {
        new.base.index
    } else {
        // The state was re-created itself: both go back to what the earlier of the two began with.
        let own = state.incarnations.iter().find(|own| !other.incarnations.contains(own));
        own.filter(|own| own.base.incarnation == new.base.incarnation).map_or(0, |own| own.base.index.min(new.base.index))
    };
    state.revision.index.saturating_sub(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use crate::store::Transaction;

    const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);

    fn node(number: u8, role: Role) -> Node {
        let mut node = fixture::node(&format!("n{number}"));
        node.spec.role = role;
        let addr = SocketAddr::from(([172, 16, 4, number], 2377));
        node.manager = (role == Role::Manager).then(|| ManagerStatus { raft_id: number.into(), addr });
        node
    }

    fn store(index: u64) -> Store {
        let mut store = Store::default();
        let nodes = [node(1, Role::Manager), node(2, Role::Manager), node(3, Role::Manager), node(4, Role::Worker)];
        let cluster = [Action::create(fixture::cluster())];
        let actions = cluster.into_iter().chain(nodes.map(Action::create)).collect();
        store.apply(index, &Transaction::new(NOW, actions)).expect("created");
        store
    }

    fn survivor(addr: Option<SocketAddr>) -> Survivor {
        Survivor { node: "n2".into(), raft_id: 77, addr, endpoints: addr.into_iter().collect() }
    }

    fn recreated(store: &Store, addr: Option<SocketAddr>, incarnation: u64) -> Store {
        let mut next = store.clone();
        let actions = plan(store, &survivor(addr), incarnation, NOW).expect("a plan");
        next.apply(store.index() + 1, &Transaction::new(NOW, actions)).expect("applied");
        next
    }

    #[test]
    fn the_survivor_is_the_only_manager_and_the_others_are_workers() {
        let before = store(40);
        let after = recreated(&before, None, 9);
        let managers: Vec<_> = after.nodes().filter(|n| n.spec.role == Role::Manager || n.manager.is_some()).collect();
        let [only] = &managers[..] else { panic!("{managers:?}") };
        let expected = ManagerStatus { raft_id: 77, addr: "172.16.4.2:2377".parse().unwrap() };
        assert_eq!((only.id.as_str(), only.manager.clone()), ("n2", Some(expected)));
        assert_eq!(after.revision(), Revision { incarnation: 9, index: 41 });
        let new = &after.cluster().unwrap().incarnations[..];
        assert_eq!(new, [NewIncarnation { incarnation: 9, base: before.revision(), at: NOW, node: "n2".into() }]);
    }

    #[test]
    fn nodes_without_a_session_are_greeted_in_turn_once_the_cluster_was_made_again() {
        let before = store(40);
        assert_eq!(absent(&before, None), Vec::<NodeId>::new(), "the only one of its kind");
        let mut after = recreated(&before, None, 9);
        assert_eq!(absent(&after, None), Vec::<NodeId>::new(), "all have a session");
        let down = |number: usize| {
            let mut node = fixture::node(&format!("w{number:02}"));
            node.status.state = NodeState::Down;
            Action::create(node)
        };
        let actions = (1..=20).map(down).collect();
        after.apply(42, &Transaction::new(NOW, actions)).expect("created");
        let names = |from: usize, to: usize| (from..=to).map(|number| NodeId::from(format!("w{number:02}"))).collect::<Vec<_>>();
        let first = absent(&after, None);
        assert_eq!(first, names(1, 16));
        assert_eq!(absent(&after, first.last()), [names(17, 20), names(1, 12)].concat());
        assert_eq!(absent(&after, Some(&"w20".into())), names(1, 16));
    }

    #[test]
    fn another_address_is_that_of_the_manager_and_of_its_tunnel() {
        let addr: SocketAddr = "[2001:db8::7]:2377".parse().unwrap();
        let after = recreated(&store(40), Some(addr), 9);
        let own = after.node(&"n2".into()).unwrap();
        assert_eq!(own.manager.as_ref().map(|m| m.addr), Some(addr));
        assert_eq!((own.status.addr, &own.mesh.endpoints[..]), (Some(addr.ip()), &[addr][..]));
    }

    #[test]
    fn a_state_without_a_cluster_or_this_node_is_refused() {
        assert_eq!(plan(&Store::default(), &survivor(None), 2, NOW), Err(NewClusterError::Empty));
        let stranger = Survivor { node: "n9".into(), ..survivor(None) };
        assert_eq!(plan(&store(3), &stranger, 2, NOW), Err(NewClusterError::Unknown("n9".into())));
    }

    #[test]
    fn two_clusters_recreated_from_one_state_have_different_incarnations() {
        assert_eq!(next_incarnation(1, NOW), 1_795_000_000);
        assert_ne!(next_incarnation(1, NOW), next_incarnation(1, NOW.plus(std::time::Duration::from_secs(1))));
        assert_eq!(next_incarnation(1_800_000_000, NOW), 1_800_000_001, "a clock that was ahead then");
    }

    #[test]
    fn an_old_manager_without_a_leader_is_superseded_and_one_that_went_on_is_named_on_both_sides() {
        let old = store(40);
        let base = old.revision().incarnation;
        let new = ManagerGreeting::new(&recreated(&old, None, base + 5), true);
        let by = new.incarnations[0].clone();
        let at = |index, has_leader| ManagerGreeting {
            revision: Revision { incarnation: base, index },
            has_leader,
            incarnations: Vec::new(),
        };
        for (own, verdict, others) in [
            (at(40, false), GreetingVerdict::Superseded { by: by.clone(), lost: 0 }, GreetingVerdict::OtherIsOld),
            (at(43, false), GreetingVerdict::Superseded { by: by.clone(), lost: 3 }, GreetingVerdict::OtherIsOld),
            (at(40, true), GreetingVerdict::Superseded { by: by.clone(), lost: 0 }, GreetingVerdict::OtherIsOld),
            (at(43, true), GreetingVerdict::WentOn { by, entries: 3 }, GreetingVerdict::OtherGoesOn { entries: 3 }),
        ] {
            assert_eq!(judge(&own, &new), verdict);
            assert_eq!(judge(&new, &own), others);
        }
        assert_eq!(judge(&new, &new), GreetingVerdict::Same);
        let joined = ManagerGreeting::default();
        assert_eq!((judge(&joined, &new), judge(&new, &joined)), (GreetingVerdict::Same, GreetingVerdict::Same));
    }

    #[test]
    fn two_clusters_recreated_from_one_state_are_a_conflict_to_both() {
        let old = store(40);
        let on = |node: &str, at: &Store, incarnation| {
            let survivor = Survivor { node: node.into(), ..survivor(None) };
            let mut next = at.clone();
            let actions = plan(at, &survivor, incarnation, NOW).expect("a plan");
            next.apply(at.index() + 1, &Transaction::new(NOW, actions)).expect("applied");
            next
        };
        let mut later = old.clone();
        later.apply(42, &Transaction::new(NOW, Vec::new())).expect("applied");
        let greeting = |store: &Store| ManagerGreeting::new(store, true);
        // One of 40 entries and one more, one of 42 and one more; begun in two seconds, or in one.
        for second in [60, 50] {
            let (one, two) = (greeting(&on("n1", &old, 50)), greeting(&on("n2", &later, second)));
            let expected = [GreetingVerdict::OtherGoesOn { entries: 1 }, GreetingVerdict::OtherGoesOn { entries: 3 }];
            if second == 50 {
                assert_eq!([judge(&two, &one), judge(&one, &two)], expected);
            } else {
                assert_eq!(judge(&two, &one), expected[0]);
                let by = two.incarnations[0].clone();
                assert_eq!(judge(&one, &two), GreetingVerdict::WentOn { by, entries: 1 });
            }
            let gone = ManagerGreeting { has_leader: false, ..one.clone() };
            assert_eq!(judge(&two, &gone), GreetingVerdict::OtherIsOld);
            assert_eq!(judge(&one, &one), GreetingVerdict::Same);
        }
    }

    #[test]
    fn a_manager_that_was_off_during_two_incarnations_has_lost_what_it_wrote_after_the_first() {
        let old = store(40);
        let twice = recreated(&recreated(&old, None, 50), None, 60);
        let own = ManagerGreeting { revision: Revision { index: 45, ..old.revision() }, ..ManagerGreeting::default() };
        let verdict = judge(&own, &ManagerGreeting::new(&twice, true));
        assert!(matches!(verdict, GreetingVerdict::Superseded { by, lost: 5 } if by.incarnation == 50));
    }
}

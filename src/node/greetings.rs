//! What this manager and the others say of their incarnations to each other. A manager of an earlier incarnation takes no part in raft
//! any more, unless its incarnation goes on: then both sides name the conflict, and the user decides.

use super::supervisor::Blockers;
use crate::clock::Clock;
use crate::manager::ApplyOutcome;
use crate::manager::new_cluster::{GreetingVerdict, ManagerGreeting, judge};
use crate::model::{NewIncarnation, NodeId, Timestamp};
use crate::raft::Raft;
use crate::rpc::ManagerGreeter;
use crate::store::StoreHandle;
use crate::sync::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Name of a conflict among the blockers.
const NAME: &str = "incarnation";
/// How the user decides.
const DECIDE: &str = "keep one of the two: on every manager of the other one run `docker swarm leave --force`, then join again";

/// Time without a leader after which an incarnation does not go on. An election is far shorter.
const ENDED: Duration = Duration::from_secs(5);
/// Time after which a manager of another incarnation that has said nothing more is gone: it connects every few seconds.
const SILENT: Duration = Duration::from_secs(30);
/// How often managers that could not be judged yet are judged again.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Greetings {
    store: StoreHandle,
    raft: Raft<ApplyOutcome>,
    /// Since when this manager knows no leader.
    leaderless: watch::Receiver<Option<Timestamp>>,
    clock: Arc<dyn Clock>,
    blockers: Blockers,
    /// Greetings of a re-created cluster that came while this manager knew no leader: its incarnation has ended, or elects one.
    undecided: Mutex<BTreeMap<NodeId, ManagerGreeting>>,
    /// Managers of another incarnation that goes on beside this one, and when they have said so last; `None` for those of a cluster that
    /// was re-created: they greet when they connect, and that may be once.
    conflicts: Mutex<BTreeMap<NodeId, (String, Option<Timestamp>)>>,
}

impl Greetings {
    pub(super) fn new(
        store: StoreHandle,
        raft: Raft<ApplyOutcome>,
        leaderless: watch::Receiver<Option<Timestamp>>,
        clock: Arc<dyn Clock>,
        blockers: Blockers,
    ) -> Self {
        Self { store, raft, leaderless, clock, blockers, undecided: Mutex::default(), conflicts: Mutex::default() }
    }

    /// Judges again what was undecided, for as long as it is polled.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            self.clock.sleep(AGAIN).await;
            let undecided = std::mem::take(&mut *lock(&self.undecided));
            for (node, other) in undecided {
                self.judge(&node, other);
            }
            self.forget();
        }
    }

    fn has_leader(&self) -> bool {
        self.raft.status().borrow().leader.is_some()
    }

    fn own(&self) -> ManagerGreeting {
        ManagerGreeting::new(&self.store.read(), self.has_leader())
    }

    fn judge(&self, node: &NodeId, other: ManagerGreeting) {
        // Only a manager of this cluster can tell that the cluster has been re-created without this one.
        let store = self.store.read();
        let is_manager = store.node(node).is_some_and(|node| node.manager.is_some());
        // A cluster that was re-created has demoted those that go on without it; their certificates are managers' still.
        let was_manager = store.node(node).is_some();
        let own = ManagerGreeting { has_leader: goes_on(*self.leaderless.borrow(), self.clock.now()), ..self.own() };
        match judge(&own, &other) {
            GreetingVerdict::Superseded { by, lost } if is_manager => self.raft.supersede(superseded(&by, lost)),
            GreetingVerdict::WentOn { .. } if was_manager && !self.has_leader() => {
                lock(&self.undecided).insert(node.clone(), other);
            }
            GreetingVerdict::WentOn { by, entries } if was_manager => {
                let text = format!(
                    "the cluster was re-created on node {} at {}, and this one goes on beside it with {entries} entries that the new cluster does not have",
                    by.node,
                    by.at.to_rfc3339()
                );
                self.set(node, Some((text, None)));
            }
            GreetingVerdict::OtherGoesOn { entries } if was_manager => {
                let text = format!(
                    "manager {node} goes on with another incarnation of the cluster, which has {entries} entries that this one does not have"
                );
                self.set(node, Some((text, Some(self.clock.now()))));
            }
            _ => self.set(node, None),
        }
    }

    /// Sets or clears the conflict with a manager.
    fn set(&self, node: &NodeId, conflict: Option<(String, Option<Timestamp>)>) {
        self.change(|conflicts| match conflict {
            // Not written again for each entry that the other one writes.
            Some((text, said)) => conflicts.entry(node.clone()).or_insert((text, said)).1 = said,
            None => drop(conflicts.remove(node)),
        });
    }

    /// Conflicts with managers that have left, or that no longer say that they go on, are none: there is nothing to decide.
    fn forget(&self) {
        let now = self.clock.now();
        self.change(|conflicts| conflicts.retain(|_, (_, said)| said.is_none_or(|said| now.since(said) < SILENT)));
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<NodeId, (String, Option<Timestamp>)>)) {
        let store = self.store.read();
        let mut conflicts = lock(&self.conflicts);
        let texts = |conflicts: &BTreeMap<NodeId, (String, Option<Timestamp>)>| -> Vec<String> {
            conflicts.values().map(|(text, _)| text.clone()).collect()
        };
        let before = texts(&conflicts);
        change(&mut conflicts);
        conflicts.retain(|node, _| store.node(node).is_some());
        let all = texts(&conflicts);
        if all == before {
            return;
        }
        if all.is_empty() {
            self.blockers.clear(NAME);
        } else {
            tracing::error!(conflict = all.join("; "), "two incarnations of this cluster go on beside each other");
            self.blockers.set(NAME, format!("{}: {DECIDE}", all.join("; ")));
        }
    }
}

impl Drop for Greetings {
    fn drop(&mut self) {
        self.blockers.clear(NAME);
    }
}

impl ManagerGreeter for Greetings {
    fn greeting(&self) -> Vec<u8> {
        serde_json::to_vec(&self.own()).unwrap_or_default()
    }

    fn greeted(&self, node: &NodeId, greeting: &[u8]) {
        let other: ManagerGreeting = match serde_json::from_slice(greeting) {
            Ok(other) => other,
            Err(error) => return tracing::debug!(%node, %error, "a greeting that is not understood"),
        };
        self.judge(node, other);
    }
}

/// Whether an incarnation goes on: it has a leader, or may be electing one.
fn goes_on(leaderless: Option<Timestamp>, now: Timestamp) -> bool {
    leaderless.is_none_or(|since| now.since(since) < ENDED)
}

/// For users.
fn superseded(by: &NewIncarnation, lost: u64) -> String {
    let what = match lost {
        0 => String::new(),
        1 => "; 1 entry of the log that only this manager has is not part of it".to_owned(),
        lost => format!("; {lost} entries of the log that only this manager has are not part of it"),
    };
    format!(
        "the cluster was re-created on node {} at {} without this manager, which becomes a worker{what}. Promote it with `docker node \
         promote` if it is to be a manager again",
        by.node,
        by.at.to_rfc3339()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::replica::Replica;
    use crate::model::node::ManagerStatus;
    use crate::model::{Node, Revision, fixture};
    use crate::node::manager_links::ManagerLinks;
    use crate::raft::RaftConfig;
    use crate::store::Action;
    use tokio_util::sync::CancellationToken;

    /// A manager of a cluster with another manager, n2, and its folder.
    async fn manager(name: &str) -> (Greetings, Blockers, std::path::PathBuf, CancellationToken) {
        let dir = std::env::temp_dir().join(format!("skep-greetings-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (links, stop) = (std::sync::Arc::new(ManagerLinks::default()), CancellationToken::new());
        let started = Replica::start(RaftConfig::new(&dir, 1), true, links.clone(), links, stop.clone()).await.unwrap();
        assert!(started.raft.leads().await);
        let addr = "10.9.0.2:2377".parse().unwrap();
        let node = Node { manager: Some(ManagerStatus { raft_id: 2, addr }), ..fixture::node("n2") };
        let actions = vec![Action::create(fixture::cluster()), Action::create(node)];
        started.store.write(Timestamp(1), actions).await.unwrap();
        let blockers = Blockers::default();
        let (_, leaderless) = watch::channel(None);
        let clock = Arc::new(crate::clock::SystemClock);
        (Greetings::new(started.store, started.raft, leaderless, clock, blockers.clone()), blockers, dir, stop)
    }

    /// The greeting of a cluster that was re-created from the state with this index.
    fn recreated_from(own: &ManagerGreeting, index: u64) -> Vec<u8> {
        let incarnation = own.revision.incarnation + 5;
        let base = Revision { index, ..own.revision };
        let by = NewIncarnation { incarnation, base, at: Timestamp(5), node: "n2".into() };
        let revision = Revision { incarnation, index: index + 1 };
        serde_json::to_vec(&ManagerGreeting { revision, has_leader: true, incarnations: vec![by] }).unwrap()
    }

    #[tokio::test]
    async fn an_incarnation_that_goes_on_is_a_named_conflict_until_the_other_is_gone() {
        let (greetings, blockers, dir, stop) = manager("conflict").await;
        let own = greetings.own();
        greetings.greeted(&"n9".into(), &recreated_from(&own, 0));
        assert!(blockers.now().is_empty(), "a node that is no manager here has nothing to say");
        greetings.greeted(&"n2".into(), b"garbage");
        greetings.greeted(&"n2".into(), &recreated_from(&own, own.revision.index - 1));
        let named = blockers.now()["incarnation"].clone();
        assert!(named.contains("re-created on node n2") && named.contains("docker swarm leave --force"), "{named}");
        assert!(greetings.raft.status().borrow().problem.is_none(), "it goes on");
        greetings.greeted(&"n2".into(), &greetings.greeting());
        assert!(blockers.now().is_empty());
        // So is one of a node that was demoted here: the cluster that it made again of this state has only itself as a manager.
        let demoted = Action::create(fixture::node("n3"));
        greetings.store.write(Timestamp(2), vec![demoted]).await.unwrap();
        greetings.greeted(&"n3".into(), &recreated_from(&own, own.revision.index - 1));
        assert!(blockers.now()["incarnation"].contains("goes on beside it"));
        greetings.greeted(&"n3".into(), &greetings.greeting());
        assert!(blockers.now().is_empty());
        // The other side: an earlier incarnation that has written more than this one began with.
        let old = Revision { incarnation: 0, index: 40 };
        let earlier = ManagerGreeting { revision: old, has_leader: true, incarnations: Vec::new() };
        greetings.greeted(&"n2".into(), &serde_json::to_vec(&earlier).unwrap());
        assert!(blockers.now().is_empty(), "a manager without a state is of no incarnation");
        stop.cancel();
        greetings.raft.closed().await;
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_manager_that_has_nothing_else_takes_no_part_any_more() {
        let (greetings, blockers, dir, stop) = manager("superseded").await;
        let own = greetings.own();
        greetings.greeted(&"n2".into(), &recreated_from(&own, own.revision.index));
        let status = greetings.raft.status().wait_for(|status| status.problem.is_some()).await.unwrap().clone();
        assert!(status.problem.is_some_and(|why| why.contains("becomes a worker")) && status.leader.is_none());
        assert!(blockers.now().is_empty(), "raft's problem is named by itself");
        stop.cancel();
        greetings.raft.closed().await;
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_election_is_not_the_end_of_an_incarnation() {
        let at = |seconds: i64| Timestamp(seconds * 1_000_000_000);
        assert!(goes_on(None, at(100)));
        assert!(goes_on(Some(at(99)), at(100)) && goes_on(Some(at(101)), at(100)), "also if the clock was set back");
        assert!(!goes_on(Some(at(95)), at(100)));
    }

    #[test]
    fn a_manager_that_is_superseded_hears_which_node_replaced_it_and_what_is_lost() {
        let by = NewIncarnation {
            incarnation: 9,
            base: Revision { incarnation: 1, index: 4 },
            at: Timestamp(1_795_000_000_000_000_000),
            node: "n2".into(),
        };
        assert!(superseded(&by, 0).contains("re-created on node n2 at 2026-11-18T") && !superseded(&by, 0).contains("entr"));
        assert!(superseded(&by, 1).contains("1 entry of the log") && superseded(&by, 3).contains("3 entries of the log"));
    }
}

//! Finds out that this node was removed while it was down. Its tunnel reaches no manager then, because theirs know the keys of members only,
//! and a session cannot say so: it asks the managers outside the tunnel. That no manager answers means nothing. Those that are asked are of
//! the last view: one of them may have been demoted since, so the word of one counts only where there is no second one to ask.

use super::loops::LoopContext;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::model::mesh::DEFAULT_PORT;
use crate::model::{NodeId, NodeView, Timestamp, WgKey};
use crate::protocol::MembershipAnswer;
use crate::rpc::{SessionState, ask_membership};
use crate::trust::Identity;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Pauses while no session is open, before the managers are asked. An election takes less than the first.
const ASK: Backoff = Backoff::new(Duration::from_secs(4), Duration::from_mins(1));
/// Time for one manager to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Managers that must say the same, where the view names as many.
const AGREE: usize = 2;
/// A new incarnation is the time of its beginning in seconds, or one more than that before (see
/// [`crate::manager::new_cluster::next_incarnation`]): one beyond this distance from both is made up.
const INCARNATION_AHEAD: u64 = 24 * 3600;

/// What the question needs.
pub(super) struct RemovalWatch {
    clock: Arc<dyn Clock>,
    identity: watch::Receiver<Arc<Identity>>,
    me: NodeId,
    view: watch::Receiver<Option<Arc<NodeView>>>,
    /// Names the managers. What one says of its own WireGuard key is written there.
    peers: watch::Sender<Option<Arc<NodeView>>>,
    session: watch::Receiver<SessionState>,
}

impl RemovalWatch {
    pub(super) fn new(
        context: &LoopContext,
        me: NodeId,
        identity: watch::Receiver<Arc<Identity>>,
        session: watch::Receiver<SessionState>,
    ) -> Self {
        let (clock, view, peers) = (context.env.clock.clone(), context.view.subscribe(), context.known_managers.clone());
        Self { clock, identity, me, view, peers, session }
    }

    /// Returns the reason of a manager once it says that this node was removed; never if the node remains a member.
    pub(super) async fn removed(mut self) -> String {
        let (mut rng, mut asked) = (StdRng::from_os_rng(), 0_u32);
        loop {
            self.session_is_open(false).await;
            let pause = ASK.jittered(asked.saturating_add(1), &mut rng);
            if tokio::time::timeout(pause, self.session_is_open(true)).await.is_ok() {
                asked = 0;
                continue;
            }
            asked = asked.saturating_add(1);
            if let Some(why) = self.ask().await {
                return why;
            }
        }
    }

    /// Waits for that; for ever once there are no sessions any more.
    async fn session_is_open(&mut self, is: bool) {
        if self.session.wait_for(|session| session.leader.is_some() == is).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Asks the managers that are known, one after the other, until enough of them have said the same.
    async fn ask(&self) -> Option<String> {
        let known = self.view.borrow().as_ref().map_or(0, |view| view.revision.incarnation);
        let managers = managers(self.peers.borrow().as_deref(), &self.me);
        let identity = self.identity.borrow().clone();
        let (mut count, mut is_member) = (RemovalCount::of(managers.len()), false);
        for manager in managers {
            let (id, address) = manager.clone();
            match ask_membership(&identity, self.clock.clone(), manager, ANSWER).await {
                Ok(answer) => match judge(answer, known, self.clock.now()) {
                    Judgement::Removed(why) => {
                        if count.add() && !is_member {
                            return Some(why);
                        }
                        tracing::debug!(%address, "one manager says that this node was removed: asking another");
                    }
                    Judgement::Member(None) => return None,
                    // The others may have other keys too, and one of them leads.
                    Judgement::Member(Some(key)) => {
                        is_member = true;
                        self.peers.send_if_modified(|view| learn_key(view, &id, key));
                    }
                    Judgement::Open => {}
                },
                Err(error) => tracing::debug!(%address, error = format!("{error:#}"), "no answer about this node's membership"),
            }
        }
        None
    }
}

/// The other managers with their addresses outside the tunnel.
fn managers(view: Option<&NodeView>, me: &NodeId) -> Vec<(NodeId, SocketAddr)> {
    let nodes = view.into_iter().flat_map(|view| view.cluster.nodes.iter());
    let others = nodes.filter(|node| node.manager && node.node_id != *me);
    others.filter_map(|node| Some((node.node_id.clone(), SocketAddr::new(node.outer_address()?, DEFAULT_PORT)))).collect()
}

/// Has the tunnel reach a manager by the key that it has now. Returns whether it is another one.
fn learn_key(view: &mut Option<Arc<NodeView>>, manager: &NodeId, key: WgKey) -> bool {
    let knows = |view: &NodeView| view.cluster.node(manager).is_none_or(|node| node.keys().any(|known| known == key));
    let Some(view) = view.as_mut().filter(|view| !knows(view)) else { return false };
    let cluster = Arc::make_mut(&mut Arc::make_mut(view).cluster);
    for node in cluster.nodes.iter_mut().filter(|node| node.node_id == *manager) {
        (node.key, node.next) = (key, None);
    }
    tracing::info!(%manager, "a manager has changed its WireGuard key while this node could not reach it");
    true
}

/// Managers that have not yet said that the node was removed, and must.
struct RemovalCount(usize);

impl RemovalCount {
    /// Where the view names so many other managers.
    fn of(managers: usize) -> Self {
        Self(managers.min(AGREE))
    }

    /// Counts one more that says so; true if no further one is needed.
    fn add(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 == 0
    }
}

/// What an answer means.
#[derive(PartialEq, Eq, Debug)]
enum Judgement {
    Removed(String),
    /// With the key of the manager that says so, if it does.
    Member(Option<WgKey>),
    /// Another manager may know.
    Open,
}

/// A cluster of an earlier incarnation than the node has seen does not have the nodes that came later; one that cannot have begun yet is
/// made up.
fn judge(answer: MembershipAnswer, known: u64, now: Timestamp) -> Judgement {
    let seconds = u64::try_from(now.0 / 1_000_000_000).unwrap_or(0);
    let latest = known.max(seconds).saturating_add(INCARNATION_AHEAD);
    match answer {
        MembershipAnswer::Removed { incarnation, why } if (known..=latest).contains(&incarnation) => Judgement::Removed(why),
        MembershipAnswer::Member => Judgement::Member(None),
        MembershipAnswer::MemberOf { key } => Judgement::Member(Some(key)),
        MembershipAnswer::Removed { .. } | MembershipAnswer::Unknown(_) => Judgement::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    #[test]
    fn only_a_manager_that_is_sure_and_of_no_earlier_incarnation_removes_a_node() {
        let removed = |incarnation| MembershipAnswer::Removed { incarnation, why: "why".to_owned() };
        let now = Timestamp(1_795_000_000_000_000_000);
        let judge = |answer, known| super::judge(answer, known, now);
        assert_eq!(judge(removed(3), 3), Judgement::Removed("why".to_owned()));
        assert_eq!(judge(removed(4), 3), Judgement::Removed("why".to_owned()));
        assert_eq!(judge(removed(2), 3), Judgement::Open);
        assert_eq!(judge(MembershipAnswer::Unknown("no leader".to_owned()), 0), Judgement::Open);
        assert_eq!(judge(MembershipAnswer::Member, 3), Judgement::Member(None));
        // Of a cluster that was made again: the time, or one more than that before.
        assert_eq!(judge(removed(1_795_000_000), 3), Judgement::Removed("why".to_owned()));
        assert_eq!(judge(removed(1_900_000_001), 1_900_000_000), Judgement::Removed("why".to_owned()));
        for made_up in [u64::MAX, 1_795_100_000] {
            assert_eq!(judge(removed(made_up), 3), Judgement::Open);
        }
    }

    #[test]
    fn a_managers_word_on_its_own_key_changes_that_alone() {
        let view =
            || Some(Arc::new(fixture::node_view(5, Vec::new(), fixture::cluster_part([1, 2].map(fixture::peer).to_vec()))));
        let (mut learned, [one, two]) = (view(), [1, 2].map(fixture::peer));
        assert!(!learn_key(&mut learned, &one.node_id, one.key) && !learn_key(&mut learned, &"other".into(), one.key));
        assert!(learn_key(&mut learned, &one.node_id, WgKey([9; 32])));
        let keys = |view: Option<Arc<NodeView>>| view.unwrap().cluster.nodes.iter().map(|node| node.key).collect::<Vec<_>>();
        assert_eq!(keys(learned), [WgKey([9; 32]), two.key]);
        assert!(!learn_key(&mut None, &one.node_id, one.key));
    }

    #[test]
    fn one_manager_alone_removes_a_node_only_if_there_is_no_other() {
        let said = |managers| {
            let mut count = RemovalCount::of(managers);
            [count.add(), count.add()]
        };
        assert_eq!(said(1), [true, true]);
        for managers in 2..6 {
            assert_eq!(said(managers), [false, true], "{managers}");
        }
    }

    #[test]
    fn the_other_managers_are_asked_at_their_outer_addresses() {
        let mut peers = [1, 2, 3].map(fixture::peer);
        (peers[0].manager, peers[1].manager) = (true, true);
        peers[0].endpoints = vec!["192.0.2.1:7777".parse().unwrap()];
        let (first, me) = (peers[0].node_id.clone(), peers[1].node_id.clone());
        let view = fixture::node_view(5, Vec::new(), fixture::cluster_part(peers.to_vec()));
        assert_eq!(managers(Some(&view), &me), [(first, "192.0.2.1:2377".parse().unwrap())]);
        assert_eq!(managers(None, &me), []);
    }
}

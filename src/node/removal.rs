//! Finds out that this node was removed while it was down. Its tunnel reaches no manager then, because theirs know the keys of members only,
//! and a session cannot say so: it asks the managers outside the tunnel. That no manager answers means nothing.

use super::loops::LoopContext;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::model::mesh::DEFAULT_PORT;
use crate::model::{NodeId, NodeView};
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

/// What the question needs.
pub(super) struct RemovalWatch {
    clock: Arc<dyn Clock>,
    identity: watch::Receiver<Arc<Identity>>,
    me: NodeId,
    view: watch::Receiver<Option<Arc<NodeView>>>,
    /// Names the managers.
    peers: watch::Receiver<Option<Arc<NodeView>>>,
    session: watch::Receiver<SessionState>,
}

impl RemovalWatch {
    pub(super) fn new(
        context: &LoopContext,
        me: NodeId,
        identity: watch::Receiver<Arc<Identity>>,
        session: watch::Receiver<SessionState>,
    ) -> Self {
        let (clock, view, peers) = (context.env.clock.clone(), context.view.subscribe(), context.peers.clone());
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

    /// Asks the managers that are known, one after the other, until one of them knows.
    async fn ask(&self) -> Option<String> {
        let known = self.view.borrow().as_ref().map_or(0, |view| view.revision.incarnation);
        let managers = managers(self.peers.borrow().as_deref(), &self.me);
        let identity = self.identity.borrow().clone();
        for manager in managers {
            let address = manager.1;
            match ask_membership(&identity, self.clock.clone(), manager, ANSWER).await {
                Ok(answer) => match judge(answer, known) {
                    Judgement::Removed(why) => return Some(why),
                    Judgement::Member => return None,
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
    let address = |endpoint: &SocketAddr| SocketAddr::new(endpoint.ip(), DEFAULT_PORT);
    others.filter_map(|node| Some((node.node_id.clone(), address(node.endpoints.first()?)))).collect()
}

/// What an answer means.
#[derive(PartialEq, Eq, Debug)]
enum Judgement {
    Removed(String),
    Member,
    /// Another manager may know.
    Open,
}

/// A cluster of an earlier incarnation than the node has seen does not have the nodes that came later.
fn judge(answer: MembershipAnswer, known: u64) -> Judgement {
    match answer {
        MembershipAnswer::Removed { incarnation, why } if incarnation >= known => Judgement::Removed(why),
        MembershipAnswer::Member => Judgement::Member,
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
        assert_eq!(judge(removed(3), 3), Judgement::Removed("why".to_owned()));
        assert_eq!(judge(removed(4), 3), Judgement::Removed("why".to_owned()));
        assert_eq!(judge(removed(2), 3), Judgement::Open);
        assert_eq!(judge(MembershipAnswer::Unknown("no leader".to_owned()), 0), Judgement::Open);
        assert_eq!(judge(MembershipAnswer::Member, 3), Judgement::Member);
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

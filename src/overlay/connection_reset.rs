//! Resets connections to containers on lost nodes ([`DownNodes`]): their processes get an error at once and connect again, to a
//! backend that lives, instead of waiting for an answer until TCP gives up. Publishes which nodes are lost.

use super::down_nodes::{DownNodes, NodeQuestion, without_reused};
use crate::datapath::mesh::Mesh;
use crate::datapath::{Sandbox, netns, places, sockdiag};
use crate::model::dual_stack::pair_of;
use crate::model::view::{ClusterPart, Peer};
use crate::model::{NodeId, NodeView};
use crate::sync::{replace_if_changed, sleep_until};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time until the second reset: a client that reconnected at once may have selected the failed backend again, before DNS
/// and the load balancer had the new view.
const SECOND_RESET: Duration = Duration::from_millis(500);

/// How long a node that was declared down may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(400);
/// How long one that has answered may take the next time: its packets are sent again after 1 s.
const NEXT_TIMEOUT: Duration = Duration::from_secs(3);
/// From an answer to the next question.
const NEXT_PROBE: Duration = Duration::from_secs(1);

/// Follows the view until `shutdown`.
pub async fn run(
    me: NodeId,
    mesh: Arc<Mesh>,
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    sandboxes: watch::Receiver<Vec<Sandbox>>,
    lost: watch::Sender<BTreeSet<NodeId>>,
    shutdown: CancellationToken,
) {
    let mut resetter =
        Resetter { nodes: DownNodes::new(me.clone()), me, mesh, sandboxes, lost, second: None, questions: JoinSet::new() };
    loop {
        let now = view.borrow_and_update().clone();
        if let Some(now) = now {
            resetter.follow(&now).await;
        }
        let due = resetter.second.as_ref().map(|(due, _)| *due);
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
            () = sleep_until(due) => resetter.reset_again().await,
            Some(Ok((question, answers))) = resetter.questions.join_next() => resetter.answered(question, answers).await,
        }
    }
}

struct Resetter {
    me: NodeId,
    mesh: Arc<Mesh>,
    sandboxes: watch::Receiver<Vec<Sandbox>>,
    nodes: DownNodes,
    lost: watch::Sender<BTreeSet<NodeId>>,
    /// Addresses to reset once more, and when.
    second: Option<(Instant, BTreeSet<Ipv4Addr>)>,
    /// Whether nodes that are down answer through the tunnel; a refused connection is an answer.
    questions: JoinSet<(NodeQuestion, bool)>,
}

impl Resetter {
    /// Resets the connections to nodes that were removed, and asks those that have gone down.
    async fn follow(&mut self, now: &Arc<NodeView>) {
        if self.nodes.view().is_some_and(|before| Arc::ptr_eq(before, now)) {
            return;
        }
        let change = self.nodes.follow(now);
        self.fail(change.failed).await;
        for question in change.ask {
            self.ask(question, Duration::ZERO, PROBE_TIMEOUT);
        }
    }

    fn ask(&mut self, question: NodeQuestion, pause: Duration, patience: Duration) {
        let own = self.nodes.view().and_then(|view| view.cluster.node(&self.me)).map(Peer::address);
        let mesh = self.mesh.clone();
        self.questions.spawn(async move {
            tokio::time::sleep(pause).await;
            let Some(own) = own else { return (question, false) };
            let answers = mesh.answers(own, question.address, patience).await;
            (question, answers)
        });
    }

    async fn answered(&mut self, question: NodeQuestion, answers: bool) {
        if answers {
            if let Some(again) = self.nodes.answers(question) {
                self.ask(again, NEXT_PROBE, NEXT_TIMEOUT);
            }
        } else {
            let failed = self.nodes.is_silent(&question);
            self.fail(failed).await;
        }
    }

    /// These addresses are lost.
    async fn fail(&mut self, failed: BTreeSet<Ipv4Addr>) {
        replace_if_changed(&self.lost, self.nodes.lost());
        let Some(now) = self.nodes.view().filter(|_| !failed.is_empty()).cloned() else { return };
        self.reset(&now.cluster, failed.clone()).await;
        // If another node failed shortly before, its addresses are reset once more together with these.
        let earlier = self.second.take().map(|(_, failed)| failed).unwrap_or_default();
        self.second = Some((Instant::now() + SECOND_RESET, failed.into_iter().chain(earlier).collect()));
    }

    async fn reset_again(&mut self) {
        if let (Some((_, failed)), Some(view)) = (self.second.take(), self.nodes.view().cloned()) {
            self.reset(&view.cluster, without_reused(&view.cluster, failed)).await;
        }
    }

    /// Resets connections in the containers of this node and those of its published ports.
    async fn reset(&self, cluster: &ClusterPart, failed: BTreeSet<Ipv4Addr>) {
        let (prefix, pairs) = (cluster.mesh, cluster.pairs.clone());
        let mut namespaces = places(&self.sandboxes.borrow(), &failed);
        namespaces.insert(self.mesh.pin().to_owned(), failed);
        let work = tokio::task::spawn_blocking(move || {
            for (path, failed) in namespaces {
                let both_families = |address: Ipv4Addr| {
                    let v6 = pair_of(&pairs, address).and_then(|pair| pair.to_v6(address)).map(IpAddr::V6);
                    [IpAddr::V4(address), IpAddr::V6(prefix.container(address))].into_iter().chain(v6)
                };
                reset_in_namespace(&path, &failed.into_iter().flat_map(both_families).collect());
            }
        });
        let _ = work.await;
    }
}

fn reset_in_namespace(path: &Path, failed: &BTreeSet<IpAddr>) {
    match netns::of_container(path).and_then(|namespace| sockdiag::destroy(namespace.as_fd(), failed)) {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, namespace = %path.display(), "reset connections to a failed node"),
        // The container is gone, and its connections with it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            let namespace = path.display();
            tracing::warn!(%error, %namespace, "cannot reset connections to a failed node, they wait until TCP gives up");
        }
    }
}

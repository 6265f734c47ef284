//! Resets connections to containers on failed nodes: their processes get an error at once and connect again, to a backend
//! that lives, instead of waiting for an answer until TCP gives up.
//!
//! A node has failed if the managers declared it down and it does not answer here either, or if they removed it. Where only
//! the daemon is gone, containers and tunnel still work, and so do their connections. A task that is stopped, moved or
//! drained in order has not failed: its connections last until it ends, and its own kernel closes them.

use crate::datapath::mesh::Mesh;
use crate::datapath::{Sandbox, netns, places, sockdiag};
use crate::model::dual_stack::pair_of;
use crate::model::view::{ClusterPart, Peer};
use crate::model::{NodeId, NodeView};
use crate::sync::sleep_until;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time until the second reset: a client that reconnected at once may have selected the failed backend again, before DNS
/// and the load balancer had the new view.
const SECOND_RESET: Duration = Duration::from_millis(500);

/// How long a node that was declared down may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(400);

/// Addresses that failed with their nodes between two states of the cluster: those of containers, and the sources of
/// ingress traffic. Nodes in `responding` have not failed. Pure.
#[must_use]
pub fn failed_addresses(
    before: &ClusterPart,
    now: &ClusterPart,
    me: &NodeId,
    responding: &BTreeSet<NodeId>,
) -> BTreeSet<Ipv4Addr> {
    let mut failed = BTreeSet::new();
    let others = before.nodes.iter().filter(|node| node.node_id != *me && !node.down);
    for node in others.filter(|node| !responding.contains(&node.node_id)) {
        let after = now.node(&node.node_id);
        if after.is_none_or(|after| after.down) {
            failed.insert(node.ingress_addr);
            // The managers may have removed the node's last tasks in the same revision.
            failed.extend(node.containers.iter().chain(after.iter().flat_map(|after| &after.containers)));
        }
    }
    without_reused(now, failed)
}

/// Nodes that the managers declared down between two states of the cluster, and their mesh addresses. Pure.
fn declared_down(before: &ClusterPart, now: &ClusterPart, me: &NodeId) -> Vec<(NodeId, Ipv6Addr)> {
    let was_up = |node: &&Peer| before.node(&node.node_id).is_some_and(|before| !before.down);
    let down = now.nodes.iter().filter(|node| node.down && node.node_id != *me).filter(was_up);
    down.map(|node| (node.node_id.clone(), node.address())).collect()
}

/// Which of these nodes answer through the tunnel; a refused connection is an answer.
async fn responding(mesh: &Arc<Mesh>, own: Option<Ipv6Addr>, nodes: Vec<(NodeId, Ipv6Addr)>) -> BTreeSet<NodeId> {
    let Some(own) = own else { return BTreeSet::new() };
    let probe = |(node, address)| async move { mesh.answers(own, address, PROBE_TIMEOUT).await.then_some(node) };
    futures_util::future::join_all(nodes.into_iter().map(probe)).await.into_iter().flatten().collect()
}

/// Without the addresses of nodes that are up: they came back, or were allocated to another task.
fn without_reused(now: &ClusterPart, mut failed: BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
    for node in now.nodes.iter().filter(|node| !node.down) {
        for address in node.containers.iter().chain([&node.ingress_addr]) {
            failed.remove(address);
        }
    }
    failed
}

/// Follows the view until `shutdown`. The first view is only the base of the comparison: nodes that are down in it failed in
/// an earlier run.
pub async fn run(
    me: NodeId,
    mesh: Arc<Mesh>,
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    sandboxes: watch::Receiver<Vec<Sandbox>>,
    shutdown: CancellationToken,
) {
    let mut resetter = Resetter { me, mesh, sandboxes, before: None, second: None };
    loop {
        let now = view.borrow_and_update().clone();
        if let Some(now) = now {
            resetter.follow(now).await;
        }
        let due = resetter.second.as_ref().map(|(due, _)| *due);
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
            () = sleep_until(due) => resetter.reset_again().await,
        }
    }
}

struct Resetter {
    me: NodeId,
    mesh: Arc<Mesh>,
    sandboxes: watch::Receiver<Vec<Sandbox>>,
    before: Option<Arc<NodeView>>,
    /// Addresses to reset once more, and when.
    second: Option<(Instant, BTreeSet<Ipv4Addr>)>,
}

impl Resetter {
    /// Resets the connections to what failed since the last view.
    async fn follow(&mut self, now: Arc<NodeView>) {
        if let Some(before) = self.before.replace(Arc::clone(&now)) {
            let down = declared_down(&before.cluster, &now.cluster, &self.me);
            let own = now.cluster.node(&self.me).map(Peer::address);
            let responding = if down.is_empty() { BTreeSet::new() } else { responding(&self.mesh, own, down).await };
            let failed = failed_addresses(&before.cluster, &now.cluster, &self.me, &responding);
            if !failed.is_empty() {
                self.reset(&now.cluster, failed.clone()).await;
                // If another node failed shortly before, its addresses are reset once more together with these.
                let earlier = self.second.take().map(|(_, failed)| failed).unwrap_or_default();
                self.second = Some((Instant::now() + SECOND_RESET, failed.into_iter().chain(earlier).collect()));
            }
        }
    }

    async fn reset_again(&mut self) {
        if let (Some((_, failed)), Some(view)) = (self.second.take(), &self.before) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    fn peer(n: u8, down: bool, containers: &[u8]) -> Peer {
        Peer { down, containers: containers.iter().map(|c| [10, 0, 1, *c].into()).collect(), ..fixture::peer(n) }
    }

    fn failed(before: Vec<Peer>, now: Vec<Peer>) -> Vec<String> {
        let (before, now) = (fixture::cluster_part(before), fixture::cluster_part(now));
        failed_addresses(&before, &now, &"node1".into(), &BTreeSet::new()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_that_responds_here_has_not_failed_although_it_was_declared_down() {
        let (before, now) = (vec![peer(1, false, &[1]), peer(2, false, &[2])], vec![peer(1, false, &[1]), peer(2, true, &[2])]);
        let (before, now) = (fixture::cluster_part(before), fixture::cluster_part(now));
        assert_eq!(declared_down(&before, &now, &"node1".into()).len(), 1);
        assert!(declared_down(&now, &now, &"node1".into()).is_empty());
        assert!(!failed_addresses(&before, &now, &"node1".into(), &BTreeSet::new()).is_empty());
        assert!(failed_addresses(&before, &now, &"node1".into(), &BTreeSet::from(["node2".into()])).is_empty());
    }

    #[test]
    fn the_addresses_of_a_node_that_goes_down_fail_once() {
        let (up, down) =
            (vec![peer(1, false, &[1]), peer(2, false, &[2, 3])], vec![peer(1, false, &[1]), peer(2, true, &[2, 3])]);
        assert_eq!(failed(up.clone(), down.clone()), ["10.0.0.3", "10.0.1.2", "10.0.1.3"]);
        assert!(failed(down.clone(), down.clone()).is_empty());
        assert!(failed(down, up.clone()).is_empty());
        assert!(failed(up.clone(), up).is_empty());
    }

    #[test]
    fn a_task_that_is_removed_in_order_has_not_failed() {
        let up = |containers: &[u8]| vec![peer(1, false, &[1]), peer(2, false, containers)];
        assert!(failed(up(&[2, 3]), up(&[])).is_empty(), "scaled down, drained, moved");
    }

    #[test]
    fn a_removed_node_has_failed_and_so_have_the_tasks_removed_with_it() {
        assert_eq!(failed(vec![peer(1, false, &[]), peer(2, false, &[2])], vec![peer(1, false, &[])]), ["10.0.0.3", "10.0.1.2"]);
        assert_eq!(failed(vec![peer(2, false, &[2, 3])], vec![peer(2, true, &[3, 4])]).len(), 4);
    }

    #[test]
    fn an_address_that_was_allocated_to_another_node_has_not_failed() {
        let before = vec![peer(1, false, &[]), peer(2, false, &[2, 3]), peer(3, false, &[])];
        assert_eq!(
            failed(before, vec![peer(1, false, &[]), peer(2, true, &[3]), peer(3, false, &[2])]),
            ["10.0.0.3", "10.0.1.3"]
        );
    }

    #[test]
    fn a_node_never_fails_in_its_own_view() {
        assert!(failed(vec![peer(1, false, &[1])], vec![peer(1, true, &[1])]).is_empty());
    }
}

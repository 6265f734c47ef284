//! Ends connections to containers whose node is dead: their processes get an error at once and connect again, to somebody
//! who lives, instead of waiting for an answer until TCP gives up.
//!
//! Dead is a node that the managers have not heard of for too long and that does not answer here either, or one that they
//! have removed: where only the daemon is gone, containers and tunnel go on, and so do their connections. A task that is stopped, moved or
//! drained in order is none: its connections go on until it ends, and then its own kernel says so.

use crate::datapath::mesh::Mesh;
use crate::datapath::{Sandbox, netns, places, sockdiag};
use crate::model::mesh::MeshPrefix;
use crate::model::view::{ClusterPart, Peer};
use crate::model::{NodeId, NodeView};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Looked at once more after this long: who was told may have come back before names and ports knew.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a node that the managers gave up may take to answer.
const ANSWER: Duration = Duration::from_millis(400);

/// Addresses that died with their nodes from one state of the cluster to the next: of containers, and those that published
/// ports speak from. Not of nodes that answer here. Pure.
#[must_use]
pub fn died(before: &ClusterPart, now: &ClusterPart, me: &NodeId, answering: &BTreeSet<NodeId>) -> BTreeSet<Ipv4Addr> {
    let mut dead = BTreeSet::new();
    let others = before.nodes.iter().filter(|node| node.node_id != *me && !node.down);
    for node in others.filter(|node| !answering.contains(&node.node_id)) {
        let after = now.node(&node.node_id);
        if after.is_none_or(|after| after.down) {
            dead.insert(node.ingress_addr);
            // A node's last tasks may have been forgotten in the same moment.
            dead.extend(node.containers.iter().chain(after.iter().flat_map(|after| &after.containers)));
        }
    }
    still_dead(now, dead)
}

/// Nodes that the managers gave up from one state of the cluster to the next, and where they would answer. Pure.
fn given_up(before: &ClusterPart, now: &ClusterPart, me: &NodeId) -> Vec<(NodeId, Ipv6Addr)> {
    let up = |node: &&Peer| before.node(&node.node_id).is_some_and(|before| !before.down);
    let down = now.nodes.iter().filter(|node| node.down && node.node_id != *me).filter(up);
    down.map(|node| (node.node_id.clone(), node.address())).collect()
}

/// Which of these nodes answer through the tunnel, if only to say that nobody listens.
async fn answering(mesh: &Arc<Mesh>, own: Option<Ipv6Addr>, nodes: Vec<(NodeId, Ipv6Addr)>) -> BTreeSet<NodeId> {
    let Some(own) = own else { return BTreeSet::new() };
    let asked = nodes.into_iter().map(|(node, address)| async move { mesh.answers(own, address, ANSWER).await.then_some(node) });
    futures_util::future::join_all(asked).await.into_iter().flatten().collect()
}

/// Without those that came back, or whose address somebody else has by now.
fn still_dead(now: &ClusterPart, mut dead: BTreeSet<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
    for node in now.nodes.iter().filter(|node| !node.down) {
        for address in node.containers.iter().chain([&node.ingress_addr]) {
            dead.remove(address);
        }
    }
    dead
}

/// Follows the view until `shutdown`. The first view is only compared with: whoever is dead in it died in an earlier run.
pub async fn run(
    me: NodeId,
    mesh: Arc<Mesh>,
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    sandboxes: watch::Receiver<Vec<Sandbox>>,
    shutdown: CancellationToken,
) {
    let mut before: Option<Arc<NodeView>> = None;
    let mut again: Option<(Instant, BTreeSet<Ipv4Addr>)> = None;
    loop {
        let now = view.borrow_and_update().clone();
        if let (Some(before), Some(now)) = (&before, &now) {
            let given_up = given_up(&before.cluster, &now.cluster, &me);
            let own = now.cluster.node(&me).map(Peer::address);
            let answering = if given_up.is_empty() { BTreeSet::new() } else { answering(&mesh, own, given_up).await };
            let dead = died(&before.cluster, &now.cluster, &me, &answering);
            if !dead.is_empty() {
                end(&mesh, now.cluster.mesh, &sandboxes, dead.clone()).await;
                // Another node may have died in between: its addresses are looked for again as well.
                let earlier = again.take().map(|(_, dead)| dead).unwrap_or_default();
                again = Some((Instant::now() + AGAIN, dead.into_iter().chain(earlier).collect()));
            }
        }
        before = now.or(before);
        let due = again.as_ref().map(|(at, _)| *at);
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
            () = async { match due { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                if let (Some((_, dead)), Some(view)) = (again.take(), &before) {
                    end(&mesh, view.cluster.mesh, &sandboxes, still_dead(&view.cluster, dead)).await;
                }
            }
        }
    }
}

/// Ends connections in containers and those of published ports.
async fn end(mesh: &Arc<Mesh>, prefix: MeshPrefix, sandboxes: &watch::Receiver<Vec<Sandbox>>, dead: BTreeSet<Ipv4Addr>) {
    let mut places = places(&sandboxes.borrow(), &dead);
    places.insert(mesh.pin().to_owned(), dead);
    let work = tokio::task::spawn_blocking(move || {
        for (path, dead) in places {
            let both = |address: Ipv4Addr| [IpAddr::V4(address), IpAddr::V6(prefix.container(address))];
            let dead: BTreeSet<IpAddr> = dead.into_iter().flat_map(both).collect();
            match destroy(&path, &dead) {
                Ok(0) => {}
                Ok(ended) => tracing::info!(ended, namespace = %path.display(), "ended connections to a dead node"),
                // The container is gone, and its connections with it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let namespace = path.display();
                    tracing::warn!(%error, %namespace, "cannot end connections to a dead node, they wait until TCP gives up");
                }
            }
        }
    });
    let _ = work.await;
}

fn destroy(namespace: &Path, dead: &BTreeSet<IpAddr>) -> std::io::Result<usize> {
    sockdiag::destroy(netns::of_container(namespace)?.as_fd(), dead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::WgKey;

    fn peer(n: u8, down: bool, containers: &[u8]) -> Peer {
        Peer {
            node_id: format!("n{n}").into(),
            hostname: format!("n{n}"),
            manager: n == 1,
            key: WgKey([n; 32]),
            subnet: "fd00::/64".parse().unwrap(),
            ingress_addr: [10, 0, 0, 200 + n].into(),
            endpoints: Vec::new(),
            containers: containers.iter().map(|c| [10, 0, 1, *c].into()).collect(),
            ebpf: false,
            down,
        }
    }

    fn cluster(nodes: Vec<Peer>) -> ClusterPart {
        ClusterPart { mesh: MeshPrefix("fd00::/48".parse().unwrap()), pools: Vec::new(), nodes, ports: Vec::new() }
    }

    fn died(before: Vec<Peer>, now: Vec<Peer>) -> Vec<String> {
        super::died(&cluster(before), &cluster(now), &"n1".into(), &BTreeSet::new()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_that_answers_here_is_not_dead_whatever_the_managers_think() {
        let (before, now) = (vec![peer(1, false, &[1]), peer(2, false, &[2])], vec![peer(1, false, &[1]), peer(2, true, &[2])]);
        let (before, now) = (cluster(before), cluster(now));
        assert_eq!(given_up(&before, &now, &"n1".into()).len(), 1);
        assert!(given_up(&now, &now, &"n1".into()).is_empty());
        assert!(!super::died(&before, &now, &"n1".into(), &BTreeSet::new()).is_empty());
        assert!(super::died(&before, &now, &"n1".into(), &BTreeSet::from(["n2".into()])).is_empty());
    }

    #[test]
    fn a_node_that_goes_down_takes_its_addresses_with_it_once() {
        let (up, down) =
            (vec![peer(1, false, &[1]), peer(2, false, &[2, 3])], vec![peer(1, false, &[1]), peer(2, true, &[2, 3])]);
        assert_eq!(died(up.clone(), down.clone()), ["10.0.0.202", "10.0.1.2", "10.0.1.3"]);
        assert!(died(down.clone(), down.clone()).is_empty());
        assert!(died(down, up.clone()).is_empty());
        assert!(died(up.clone(), up).is_empty());
    }

    #[test]
    fn a_task_that_goes_in_order_is_not_dead() {
        let up = |containers: &[u8]| vec![peer(1, false, &[1]), peer(2, false, containers)];
        assert!(died(up(&[2, 3]), up(&[])).is_empty(), "scaled down, drained, moved");
    }

    #[test]
    fn a_removed_node_is_dead_and_so_is_what_was_forgotten_with_it() {
        assert_eq!(died(vec![peer(1, false, &[]), peer(2, false, &[2])], vec![peer(1, false, &[])]), ["10.0.0.202", "10.0.1.2"]);
        assert_eq!(died(vec![peer(2, false, &[2, 3])], vec![peer(2, true, &[3, 4])]).len(), 4);
    }

    #[test]
    fn an_address_that_somebody_else_has_by_now_is_not_dead() {
        let before = vec![peer(1, false, &[]), peer(2, false, &[2, 3]), peer(3, false, &[])];
        assert_eq!(
            died(before, vec![peer(1, false, &[]), peer(2, true, &[3]), peer(3, false, &[2])]),
            ["10.0.0.202", "10.0.1.3"]
        );
    }

    #[test]
    fn this_node_is_never_dead_to_itself() {
        assert!(died(vec![peer(1, false, &[1])], vec![peer(1, true, &[1])]).is_empty());
    }
}

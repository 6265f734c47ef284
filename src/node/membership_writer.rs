//! Keeps `node.json` current: the managers, and the host's description. The next run of the daemon starts from them when it
//! has no ledger, or no engine yet.

use super::current_membership::CurrentMembership;
use super::state_dir::MembershipFile;
use super::supervisor::Blockers;
use crate::model::node::NodeDescription;
use crate::model::view::{ClusterPart, Networks, Peer, Tasks};
use crate::model::{NodeView, Revision, Role, WgKey};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause after a write, for further changes.
const PAUSE: Duration = Duration::from_secs(1);
/// Pause after a write that failed, unless something changes.
pub(super) const RETRY: Duration = Duration::from_secs(30);
/// Name of a file that was not written among the blockers.
const NAME: &str = "node.json";

/// The managers that a view names, without what changes often.
fn managers(view: &NodeView) -> Vec<Peer> {
    let managers = view.cluster.nodes.iter().filter(|node| node.manager);
    managers.map(|node| Peer { containers: Vec::new(), attached_tasks: None, down: false, ..node.clone() }).collect()
}

/// A view that names the managers and this node, and nothing else, for a node without a ledger: its tunnel reaches the
/// managers, and they send it the rest. `key` is this node's. `None` if there is no
/// manager to reach.
pub(super) fn view_of_managers(membership: &MembershipFile, key: WgKey) -> Option<NodeView> {
    let is_manager = membership.role == Role::Manager;
    if membership.managers.is_empty() && !is_manager {
        return None;
    }
    let me = Peer {
        node_id: membership.node_id.clone(),
        hostname: String::new(),
        manager: is_manager,
        raft_id: membership.raft_id,
        key,
        next: None,
        subnet: membership.subnet,
        ingress_addr: membership.ingress_addr,
        endpoints: Vec::new(),
        advertised: None,
        addresses: Vec::new(),
        containers: Vec::new(),
        attached_tasks: None,
        ebpf: false,
        down: false,
    };
    let others = membership.managers.iter().filter(|manager| manager.node_id != me.node_id).cloned();
    let mut nodes: Vec<Peer> = others.collect();
    nodes.push(me);
    nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    let cluster = ClusterPart { nodes, ..ClusterPart::new(membership.mesh) };
    Some(NodeView {
        revision: Revision::default(),
        tasks: Arc::new(Tasks::default()),
        networks: Arc::new(Networks::default()),
        cluster: Arc::new(cluster),
    })
}

/// Rewrites the file when what it has of the view or of the host changes, until `stop`. What was not written is a blocker, and
/// is written again as a whole, `retry` later.
pub(super) async fn run(
    membership: Arc<CurrentMembership>,
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    mut description: watch::Receiver<Option<NodeDescription>>,
    blockers: Blockers,
    retry: Duration,
    stop: CancellationToken,
) {
    let mut failed = false;
    view.mark_changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => return blockers.clear(NAME),
            () = tokio::time::sleep(retry), if failed => {}
            changed = view.changed() => if changed.is_err() { return },
            changed = description.changed() => if changed.is_err() { return },
        }
        let (view, description) = (view.borrow_and_update().clone(), description.borrow_and_update().clone());
        let (before, membership) = (membership.get(), membership.clone());
        if next(&before, view.as_deref(), description.as_ref()) == before {
            continue;
        }
        let write = move || membership.change(|now| next(now, view.as_deref(), description.as_ref()));
        // Not cancelled: the file must not be written after the node has left.
        let stored = tokio::task::spawn_blocking(write).await.map_err(anyhow::Error::from).flatten();
        failed = stored.is_err();
        match stored {
            Ok(()) => blockers.clear(NAME),
            Err(error) => {
                let reason = format!("{error:#}; without it and without a ledger a restart does not find the managers");
                tracing::error!(reason, "the managers' addresses were not written");
                blockers.set(NAME, reason);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return blockers.clear(NAME),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn next(membership: &MembershipFile, view: Option<&NodeView>, description: Option<&NodeDescription>) -> MembershipFile {
    let mut next = membership.clone();
    // A view without managers says nothing about how to reach one.
    if let Some(managers) = view.map(managers).filter(|managers| !managers.is_empty()) {
        next.managers = managers;
    }
    if let Some(description) = description {
        next.description = Some(description.clone());
    }
    next
}

#[cfg(test)]
mod tests;

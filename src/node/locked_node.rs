//! A manager that was started and is locked: the part of the node that works without its keys. Its network and its tasks go on, from
//! the ledger; it has no session to the leader, whose certificate it cannot use, so that the leader counts it as down and replaces
//! its tasks elsewhere, as it does with a node that is cut off. Nothing of the swarm is read or written.

use super::environment::Environment;
use super::keyring::{KeyOwner, UnlockError};
use super::lifecycle::Leave;
use super::loops::{self, LoopContext, RunningLoops};
use super::membership_teardown;
use super::membership_writer::view_of_managers;
use super::network::MeshNetwork;
use super::state_dir::MembershipFile;
use crate::model::view::NodeView;
use crate::trust::UnlockKey;
use async_trait::async_trait;
use std::net::IpAddr;
use std::sync::Arc;

/// A locked manager.
pub(super) struct LockedNode {
    membership: MembershipFile,
    network: MeshNetwork,
    context: LoopContext,
}

impl LockedNode {
    /// Starts the loops of the node's own part.
    ///
    /// # Errors
    /// The network cannot be brought up.
    pub(super) async fn start(env: &Arc<Environment>, membership: MembershipFile) -> anyhow::Result<Self> {
        let view = env.state_dir.ledger().load().unwrap_or_else(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "the ledger cannot be read: a locked manager has nothing else to start from"
            );
            None
        });
        let managers = view_of_managers(&membership, env.tunnel_key()?);
        let network = MeshNetwork::open(env, &membership.addresses()).await?;
        network.start_overlay(env, &membership.node_id, view);
        if let Some(managers) = managers {
            network.reach_managers(managers);
        }
        let context = LoopContext::new(env, &membership.node_id, &network);
        // Not alone: the other managers replace what ends here, and what this node has reported is dropped.
        context.has_session.send_replace(true);
        let unless_started = (context.stop().drop_guard(), network.stop_unless_started());
        let running = loops::start(&context, &network)?;
        context.supervisor.once("reports", drop_reports(running, context.stop()));
        let (loops, overlay) = unless_started;
        for started in [loops, overlay] {
            started.disarm();
        }
        tracing::warn!("this manager is locked: its tasks and its network go on, `docker swarm unlock` starts the rest");
        Ok(Self { membership, network, context })
    }

    /// Address that the node advertises.
    pub(super) fn advertised(&self) -> Option<IpAddr> {
        self.membership.advertise.or_else(|| {
            let view = self.network.view.borrow();
            view.as_ref()?.cluster.node(&self.membership.node_id)?.endpoints.first().map(std::net::SocketAddr::ip)
        })
    }

    /// The view that it goes on with.
    pub(super) fn view(&self) -> Option<Arc<NodeView>> {
        self.network.view.borrow().clone()
    }

    /// Opens the keys on the disk. Blocks.
    ///
    /// # Errors
    /// [`UnlockError`]
    pub(super) fn unlock(&self, key: &UnlockKey) -> Result<(), UnlockError> {
        let MembershipFile { cluster_id, node_id, .. } = &self.membership;
        self.context.env.keyring.unlock(key, KeyOwner { cluster: cluster_id.clone(), node: node_id.clone() })
    }

    /// Stops the loops; containers, tunnel and routes stay.
    pub(super) async fn pause(&self) {
        self.context.supervisor.stop.cancel();
        self.network.pause().await;
        self.context.supervisor.end().await;
    }
}

/// Takes what would be reported to the leader, so that no loop waits for room.
async fn drop_reports(mut running: RunningLoops, stop: tokio_util::sync::CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = running.statuses.recv() => {}
            Some(_) = running.listens.recv() => {}
            else => return,
        }
    }
}

#[async_trait]
impl Leave for LockedNode {
    /// Without its keys it can tell the managers nothing: they demote and remove it.
    async fn announce(&self) {}

    fn mark_left(&self) -> anyhow::Result<()> {
        self.context.env.state_dir.mark_left()
    }

    async fn take_down(&self) -> anyhow::Result<()> {
        self.pause().await;
        membership_teardown::take_down_and_forget(&self.context.env, &self.membership.node_id, &self.network).await
    }
}

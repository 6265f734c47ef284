//! The loop: wait for a change or the tick, observe, plan, apply, observe again; when a plan is empty, the revision counts
//! as applied. The decisions are in `plan`.

use super::plan::{OverlayState, OverlayStep, plan};
use crate::backoff::Backoff;
use crate::datapath::mesh::{Mesh, MeshStep};
use crate::datapath::{Tunnel, TunnelState, TunnelStep};
use crate::model::{NodeId, NodeView, Revision};
use crate::sync::replace_if_changed;
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Time between observations while nothing changes: within it, drift is repaired.
const TICK: Duration = Duration::from_secs(5);
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// Plans per revision: the last one must be empty.
const MAX_ROUNDS: u32 = 4;

/// The overlay of this node.
pub struct Overlay {
    me: NodeId,
    mesh: Arc<Mesh>,
    tunnel: Arc<dyn Tunnel>,
    tick: Duration,
    /// The tunnel's MTU when it last answered, bytes; 0 before.
    mtu: u32,
}

impl Overlay {
    /// The overlay of node `me` on these parts.
    #[must_use]
    pub fn new(me: NodeId, mesh: Arc<Mesh>, tunnel: Arc<dyn Tunnel>) -> Self {
        Self { me, mesh, tunnel, tick: TICK, mtu: 0 }
    }

    /// Sets the time between observations while nothing changes.
    #[must_use]
    pub fn with_tick(mut self, tick: Duration) -> Self {
        self.tick = tick;
        self
    }

    /// Runs until `shutdown`. Publishes each revision to `applied` once kernel and tunnel match its view. Failures are
    /// logged and retried. Nothing is removed at the end: the overlay carries traffic while the daemon is down.
    pub async fn run(
        mut self,
        mut view: watch::Receiver<Option<Arc<NodeView>>>,
        applied: watch::Sender<Revision>,
        shutdown: CancellationToken,
    ) {
        let mut failures = 0;
        let mut views_end = false;
        loop {
            let current = view.borrow_and_update().clone();
            let mut wait = self.tick;
            if let Some(view) = current {
                match self.reconcile(&view).await {
                    Ok(()) => {
                        failures = 0;
                        replace_if_changed(&applied, view.revision);
                    }
                    Err(error) => {
                        failures += 1;
                        wait = BACKOFF.pause(failures);
                        let error = format!("{error:#}");
                        tracing::warn!(revision = ?view.revision, error, retry_in = ?wait, "the overlay is not as desired");
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.mesh.changed() => {}
                changed = view.changed(), if !views_end => views_end = changed.is_err(),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Configures kernel and tunnel as the view asks.
    ///
    /// # Errors
    /// What could not be observed or applied; the rest is done nevertheless.
    pub async fn reconcile(&mut self, view: &NodeView) -> anyhow::Result<()> {
        for _ in 0..MAX_ROUNDS {
            if self.round(view).await? {
                return Ok(());
            }
        }
        anyhow::bail!("still not settled after {MAX_ROUNDS} rounds: something else changes the mesh namespace or the tunnel")
    }

    /// Observes, plans and applies once. Returns whether nothing was to be done.
    async fn round(&mut self, view: &NodeView) -> anyhow::Result<bool> {
        let (tunnel, unanswered) = self.observe_tunnel().await;
        // Held from the observation to the last step in the namespace, so that no attach in between is undone; no longer,
        // because a container that starts waits for it.
        let lock = self.mesh.lock().await;
        let actual = OverlayState { mesh: self.mesh.recent(self.tick).await?, tunnel };
        let steps = plan(view, &self.me, &actual, self.mtu);
        let settled = steps.is_empty();
        let (mesh, peers) = split(steps);
        let mesh_applied = self.mesh.apply(&mesh).await;
        drop(lock);
        mesh_applied.and(self.apply_peers(peers).await).and(unanswered)?;
        Ok(settled)
    }

    /// The tunnel's state, or the error with which it did not answer.
    async fn observe_tunnel(&mut self) -> (Option<TunnelState>, anyhow::Result<()>) {
        match self.tunnel.observe().await.context("the tunnel does not answer") {
            Ok(tunnel) => {
                self.mtu = tunnel.mtu;
                (Some(tunnel), Ok(()))
            }
            Err(error) => (None, Err(error)),
        }
    }

    async fn apply_peers(&self, peers: Vec<TunnelStep>) -> anyhow::Result<()> {
        if peers.is_empty() {
            return Ok(());
        }
        for step in &peers {
            tracing::info!(step = %OverlayStep::Tunnel(step.clone()), "tunnel");
        }
        self.tunnel.apply(&peers).await.context("cannot change the tunnel's peers")
    }
}

fn split(steps: Vec<OverlayStep>) -> (Vec<MeshStep>, Vec<TunnelStep>) {
    let (mut mesh, mut peers) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            OverlayStep::Mesh(step) => mesh.push(step),
            OverlayStep::Tunnel(step) => peers.push(step),
        }
    }
    (mesh, peers)
}

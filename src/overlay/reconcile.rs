//! The loop: wait for a change or the slow tick, observe, plan, apply, look again; when nothing is left to do, the
//! revision counts as applied. Decides nothing itself.

use super::{Actual, KEEPALIVE, Step, plan_with};
use crate::datapath::mesh::{Mesh, MeshStep};
use crate::datapath::{Tunnel, TunnelStep};
use crate::model::{NodeId, NodeView, Revision};
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between looks when nothing changes.
const TICK: Duration = Duration::from_secs(5);
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Looks per revision until it must be settled.
const ROUNDS: u32 = 4;

/// The overlay of this node.
pub struct Overlay {
    me: NodeId,
    mesh: Arc<Mesh>,
    tunnel: Arc<dyn Tunnel>,
    keepalive: Option<u16>,
    tick: Duration,
    /// The tunnel's MTU when it was last asked; 0 before.
    mtu: u32,
}

impl Overlay {
    /// The overlay of node `me` on these parts.
    #[must_use]
    pub fn new(me: NodeId, mesh: Arc<Mesh>, tunnel: Arc<dyn Tunnel>) -> Self {
        Self { me, mesh, tunnel, keepalive: Some(KEEPALIVE), tick: TICK, mtu: 0 }
    }

    /// Sets the seconds between keep-alives; `None` for none.
    #[must_use]
    pub fn with_keepalive(mut self, seconds: Option<u16>) -> Self {
        self.keepalive = seconds;
        self
    }

    /// Sets how often it looks when nothing changes.
    #[must_use]
    pub fn with_tick(mut self, tick: Duration) -> Self {
        self.tick = tick;
        self
    }

    /// Runs until `shutdown`. Publishes each revision to `applied` once kernel and tunnel are as its view says. Failures are
    /// logged and tried again. Nothing is taken down at the end: the data plane outlives the daemon.
    pub async fn run(
        mut self,
        mut view: watch::Receiver<Option<Arc<NodeView>>>,
        applied: watch::Sender<Revision>,
        shutdown: CancellationToken,
    ) {
        let mut backoff = BACKOFF.0;
        let mut views_end = false;
        loop {
            let now = view.borrow_and_update().clone();
            let mut wait = self.tick;
            if let Some(now) = now {
                match self.reconcile(&now).await {
                    Ok(()) => {
                        backoff = BACKOFF.0;
                        applied.send_if_modified(|last| std::mem::replace(last, now.revision) != now.revision);
                    }
                    Err(error) => {
                        tracing::warn!(revision = ?now.revision, error = format!("{error:#}"), retry_in = ?backoff, "overlay not as it shall be");
                        wait = backoff;
                        backoff = (backoff * 2).min(BACKOFF.1);
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

    /// Brings kernel and tunnel to the view.
    ///
    /// # Errors
    /// What could not be observed or applied; the rest is done nevertheless.
    pub async fn reconcile(&mut self, view: &NodeView) -> anyhow::Result<()> {
        let mut problem = Ok(());
        for _ in 0..ROUNDS {
            let tunnel = self.tunnel.observe().await.context("the tunnel does not answer");
            if let Ok(tunnel) = &tunnel {
                self.mtu = tunnel.mtu;
            }
            let (tunnel, silent) = match tunnel {
                Ok(tunnel) => (Some(tunnel), None),
                Err(error) => (None, Some(error)),
            };
            // Held from the look to the last step in the namespace, so that no attach in between is undone; not longer, a
            // container that starts waits for it.
            let turn = self.mesh.turn().await;
            let actual = Actual { mesh: self.mesh.observe().await?, tunnel };
            let steps = plan_with(view, &self.me, &actual, self.mtu, self.keepalive);
            let settled = steps.is_empty();
            let (mesh, peers) = split(steps);
            problem = self.mesh.apply(&mesh).await;
            drop(turn);
            problem = problem.and(self.apply_peers(peers).await).and(silent.map_or(Ok(()), Err));
            if settled || problem.is_err() {
                return problem;
            }
        }
        problem.and_then(|()| {
            anyhow::bail!("still not settled after {ROUNDS} rounds: something else changes the mesh namespace or the tunnel")
        })
    }

    async fn apply_peers(&self, peers: Vec<TunnelStep>) -> anyhow::Result<()> {
        if peers.is_empty() {
            return Ok(());
        }
        for step in &peers {
            tracing::info!(step = %Step::Tunnel(step.clone()), "tunnel");
        }
        self.tunnel.apply(&peers).await.context("cannot change the tunnel's peers")
    }
}

fn split(steps: Vec<Step>) -> (Vec<MeshStep>, Vec<TunnelStep>) {
    let (mut mesh, mut peers) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Mesh(step) => mesh.push(step),
            Step::Tunnel(step) => peers.push(step),
        }
    }
    (mesh, peers)
}

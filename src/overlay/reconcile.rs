//! The loop: wait for a change or the tick, observe, plan, apply, observe again; when a plan is empty, the revision counts
//! as applied. The decisions are in `plan`.

use super::path_mtus::{PathMtus, ReadPaths, endpoints};
use super::peers::{Attempts, is_changing, peer_steps};
use super::plan::{OverlayState, OverlayStep, plan};
use crate::backoff::Backoff;
use crate::datapath::mesh::{Mesh, MeshStep};
use crate::datapath::{KERNEL, Tunnel, TunnelState, TunnelStep};
use crate::model::{NodeId, NodeView, Revision};
use crate::sync::replace_if_changed;
use anyhow::Context;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Time between observations while nothing changes: within it, drift is repaired.
const TICK: Duration = Duration::from_secs(5);
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// Time between looks at the peers while a node may change to its next key: what it sends with that before the allowed-ips have moved is
/// lost. `skep tunnel` moves them itself.
const QUICK: Duration = Duration::from_millis(10);
/// How long that is looked at so often, for each change.
const QUICK_FOR: Duration = Duration::from_mins(1);
/// Plans per revision: the last one must be empty.
const MAX_ROUNDS: u32 = 4;

/// The overlay of this node.
pub struct Overlay {
    me: NodeId,
    mesh: Arc<Mesh>,
    tunnel: Arc<dyn Tunnel>,
    tick: Duration,
    /// The setting `path_mtu`, bytes; `None` to read it.
    path_mtu: Option<u32>,
    attempts: Attempts,
    /// Since when a node changes its key.
    changing_since: Option<tokio::time::Instant>,
    paths: ReadPaths,
    mtus: PathMtus,
    channels: MtuChannels,
}

/// Where the loop publishes MTUs, in bytes, whenever they change.
#[derive(Clone, Debug)]
pub struct MtuChannels {
    /// Of the tunnel device and of new containers.
    pub device: watch::Sender<u32>,
    /// Of the smallest path.
    pub smallest: watch::Sender<u32>,
    /// Of every path, for the status.
    pub paths: watch::Sender<PathMtus>,
}

impl MtuChannels {
    /// With the MTU of the device until the paths are read.
    #[must_use]
    pub fn new(device: u32) -> Self {
        let channel = || watch::channel(device).0;
        Self { device: channel(), smallest: channel(), paths: watch::channel(PathMtus::uniform(device)).0 }
    }

    fn publish(&self, mtus: &PathMtus) {
        replace_if_changed(&self.device, mtus.device);
        replace_if_changed(&self.smallest, mtus.smallest);
        replace_if_changed(&self.paths, mtus.clone());
    }
}

impl Overlay {
    /// The overlay of node `me` on these parts.
    #[must_use]
    pub fn new(me: NodeId, mesh: Arc<Mesh>, tunnel: Arc<dyn Tunnel>) -> Self {
        Self {
            me,
            mesh,
            tunnel,
            tick: TICK,
            path_mtu: None,
            attempts: Attempts::default(),
            changing_since: None,
            paths: ReadPaths::default(),
            mtus: PathMtus::default(),
            channels: MtuChannels::new(0),
        }
    }

    /// Publishes the MTUs there. `path_mtu` in bytes overrides what the paths have.
    #[must_use]
    pub fn with_mtus(mut self, channels: MtuChannels, path_mtu: Option<u32>) -> Self {
        self.channels = channels;
        self.path_mtu = path_mtu;
        self
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
        let mesh = self.mesh.clone();
        loop {
            let current = view.borrow_and_update().clone();
            let mut wait = self.tick;
            let following = current.clone();
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
                () = mesh.changed() => {}
                changed = view.changed(), if !views_end => views_end = changed.is_err(),
                () = tokio::time::sleep(wait) => {}
                () = self.follow_keys(following.as_deref()) => {}
            }
        }
    }

    /// Moves the allowed-ips of nodes that change their keys, as soon as that can be seen; returns once there is nothing to look out for that
    /// is not seen in time by the next round. Never while no node changes its key.
    async fn follow_keys(&mut self, view: Option<&NodeView>) {
        let Some(view) = view.filter(|view| view.cluster.nodes.iter().any(|node| node.next.is_some())) else {
            self.changing_since = None;
            return std::future::pending().await;
        };
        loop {
            let since = *self.changing_since.get_or_insert_with(tokio::time::Instant::now);
            let Ok(tunnel) = self.tunnel.observe().await else { return std::future::pending().await };
            if since.elapsed() >= QUICK_FOR || tunnel.implementation != KERNEL || !is_changing(&view.cluster, &self.me, &tunnel) {
                return std::future::pending().await;
            }
            let steps = peer_steps(&view.cluster, &self.me, &tunnel, &mut self.attempts, std::time::Instant::now());
            if let Err(error) = self.apply_peers(steps).await {
                tracing::warn!(error = format!("{error:#}"), "the peers of a node that changes its key");
            }
            tokio::time::sleep(QUICK).await;
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
        self.read_paths(view, tunnel.as_ref()).await;
        // Held from the observation to the last step in the namespace, so that no attach in between is undone; no longer,
        // because a container that starts waits for it.
        let lock = self.mesh.lock().await;
        let actual = OverlayState { mesh: self.mesh.recent(self.tick).await?, tunnel };
        let steps = plan(view, &self.me, &actual, &self.mtus, &mut self.attempts, std::time::Instant::now());
        let settled = steps.is_empty();
        let (mesh, peers) = split(steps);
        let mesh_applied = self.mesh.apply(&mesh).await;
        drop(lock);
        mesh_applied.and(self.apply_peers(peers).await).and(unanswered)?;
        Ok(settled)
    }

    /// Reads the MTUs of the paths to the other nodes. What cannot be read keeps its last value.
    async fn read_paths(&mut self, view: &NodeView, tunnel: Option<&TunnelState>) {
        let endpoints = endpoints(&view.cluster, &self.me, tunnel);
        let wanted: BTreeSet<_> = endpoints.values().map(|to| to.ip().to_canonical()).collect();
        match self.mesh.path_mtus(&self.paths.next(&wanted)).await {
            Ok(read) => self.paths.known.extend(read),
            Err(error) => tracing::warn!(%error, "cannot read the host's routes to the other nodes"),
        }
        let uplink = if endpoints.is_empty() {
            let own = view.cluster.node(&self.me).and_then(|own| own.endpoints.first()).map(std::net::SocketAddr::ip);
            self.mesh.uplink_mtu(own).await.ok().flatten()
        } else {
            None
        };
        let mtus = PathMtus::of(self.path_mtu, uplink, &endpoints, &self.paths.known);
        if mtus != self.mtus {
            tracing::info!(device = mtus.device, smallest = mtus.smallest, "MTU of the tunnel, from the paths to the nodes");
            self.channels.publish(&mtus);
            self.mtus = mtus;
        }
    }

    /// The tunnel's state, or the error with which it did not answer.
    async fn observe_tunnel(&self) -> (Option<TunnelState>, anyhow::Result<()>) {
        match self.tunnel.observe().await.context("the tunnel does not answer") {
            Ok(tunnel) => (Some(tunnel), Ok(())),
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

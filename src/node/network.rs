//! The part of a membership that must be up before anything else: mesh namespace, tunnel, overlay loop. A joiner opens
//! it before it asks to be let in, so that the first packet of a peer finds somebody; a restarted node brings it up from
//! its ledger, without any manager.

use super::Daemon;
use super::address::Place;
use crate::datapath::ebpf::{self, EbpfDatapath};
use crate::datapath::mesh::Mesh;
use crate::datapath::tunnel::{self, KernelChoice, TunnelConfig};
use crate::datapath::{Sandbox, Tunnel};
use crate::model::WgKey;
use crate::model::{NodeId, NodeView, Revision};
use crate::overlay::{Overlay, connection_reset};
use crate::settings::{EbpfMode, TunnelMode};
use anyhow::Context as _;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The running network of a member.
pub(super) struct Network {
    pub mesh: Arc<Mesh>,
    pub tunnel: Arc<dyn Tunnel>,
    /// The eBPF datapath, or why there is none.
    pub ebpf: Result<Arc<EbpfDatapath>, String>,
    tunnel_config: TunnelConfig,
    /// What every loop of the node follows.
    pub view: watch::Sender<Option<Arc<NodeView>>>,
    applied: watch::Sender<Revision>,
    pub overlay_applied: watch::Receiver<Revision>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Network {
    /// Brings namespace and tunnel up, or adopts what an earlier run left. No peer is known yet.
    pub(super) async fn open(daemon: &Daemon, place: &Place) -> anyhow::Result<Self> {
        let settings = &daemon.settings;
        let mesh = Mesh::open(&settings.mesh_pin()).await?;
        let tunnel_config = TunnelConfig {
            mesh_pin: settings.mesh_pin(),
            run_dir: settings.run_dir.clone(),
            private_key_file: daemon.tunnel_key_file(),
            listen: place.tunnel(),
            mtu: settings.tunnel_mtu(),
            device: crate::datapath::mesh::TUNNEL.to_owned(),
            kernel: match settings.tunnel {
                TunnelMode::Auto => KernelChoice::Auto,
                TunnelMode::Kernel => KernelChoice::Always,
                TunnelMode::Process => KernelChoice::Never,
            },
            program: std::env::current_exe().context("cannot find this program's own file")?,
        };
        let tunnel = match tunnel::open(tunnel_config.clone()).await {
            Ok(tunnel) => tunnel,
            Err(error) => {
                // Nothing half-made stays: this may be a join that is tried again.
                let _ = mesh.remove();
                return Err(error);
            }
        };
        daemon.links.set(Some(mesh.clone()));
        let ebpf = open_ebpf(daemon, &mesh).await;
        daemon.sandboxes.set(ebpf.as_ref().ok().cloned());
        let (applied, overlay_applied) = watch::channel(Revision::default());
        Ok(Self {
            mesh,
            tunnel,
            ebpf,
            tunnel_config,
            view: watch::channel(None).0,
            applied,
            overlay_applied,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Starts the overlay loop on this view, and on what follows it.
    pub(super) fn follow(&self, me: &NodeId, view: Option<NodeView>, joined: watch::Receiver<Vec<Sandbox>>) {
        self.view.send_replace(view.map(Arc::new));
        self.tasks.spawn(connection_reset::run(me.clone(), self.mesh.clone(), self.view.subscribe(), joined, self.stop.clone()));
        let overlay = Overlay::new(me.clone(), self.mesh.clone(), self.tunnel.clone());
        self.tasks.spawn(overlay.run(self.view.subscribe(), self.applied.clone(), self.stop.clone()));
    }

    /// Bytes that came from a peer through the tunnel; 0 while the tunnel does not know it.
    pub(super) async fn received(&self, key: WgKey) -> anyhow::Result<u64> {
        Ok(self.tunnel.observe().await?.peers.get(&key).map_or(0, |p| p.rx_bytes))
    }

    /// Ends the loop; everything it made stays, and so does the tunnel.
    pub(super) async fn pause(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Takes everything down, to the end, and reports what went wrong on the way.
    pub(super) async fn take_down(self, daemon: &Daemon) -> anyhow::Result<()> {
        self.pause().await;
        daemon.links.set(None);
        daemon.sandboxes.set(None);
        let ebpf = match &self.ebpf {
            Ok(ebpf) => ebpf.remove().await,
            Err(_) => ebpf::remove_leftovers(&daemon.settings.run_dir, &self.mesh).await,
        };
        let closed = tunnel::close(&self.tunnel_config).await;
        let removed = self.mesh.remove();
        ebpf.and(closed).and(removed)
    }
}

/// Loads the eBPF datapath. Whatever is wrong with it, the userspace datapath serves.
async fn open_ebpf(daemon: &Daemon, mesh: &Arc<Mesh>) -> Result<Arc<EbpfDatapath>, String> {
    let run_dir = &daemon.settings.run_dir;
    let opened = match daemon.settings.ebpf_datapath {
        EbpfMode::Off => Err("the settings say ebpf_datapath = \"off\"".to_owned()),
        EbpfMode::Auto => EbpfDatapath::open(run_dir, mesh.clone()).await.map_err(|e| format!("{e:#}")),
    };
    match &opened {
        Ok(ebpf) => {
            for (hook, why) in ebpf.unavailable() {
                tracing::warn!(hook = hook.program(), why, "the eBPF datapath goes without this hook");
            }
        }
        Err(why) => {
            tracing::info!(why, "no eBPF datapath: virtual addresses are not answered, ports are served in user space");
            if let Err(error) = ebpf::remove_leftovers(run_dir, mesh).await {
                tracing::warn!(error = format!("{error:#}"), "programs of an earlier run stay");
            }
        }
    }
    daemon.takes_ports.store(opened.as_ref().is_ok_and(|ebpf| ebpf.carries_ports()), std::sync::atomic::Ordering::Relaxed);
    opened
}

/// Makes the tunnel send something to a mesh address: a connection that nobody waits for.
pub(super) fn send_probe(mesh: &Arc<Mesh>, from: Ipv6Addr, to: Ipv6Addr) {
    let mesh = mesh.clone();
    tokio::spawn(async move { mesh.answers(from, to, Duration::from_millis(500)).await });
}

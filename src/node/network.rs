//! The part of a membership that is brought up first: mesh namespace, tunnel, overlay loop. A joiner opens it before it
//! sends its request, so that its tunnel answers the first packet of a peer; a restarted node brings it up from its ledger,
//! without any manager.

use super::address::ListenAddresses;
use super::environment::Environment;
use super::error_list::ErrorList;
use super::supervisor::Supervisor;
use crate::datapath::Tunnel;
use crate::datapath::ebpf::{self, EbpfDatapath};
use crate::datapath::mesh::Mesh;
use crate::datapath::tunnel::{self, KernelChoice, TunnelConfig};
use crate::ingress::http;
use crate::model::WgKey;
use crate::model::{NodeId, NodeView, Revision};
use crate::overlay::{Overlay, connection_reset};
use crate::settings::{EbpfMode, TunnelMode};
use anyhow::Context as _;
use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The running network of a member.
pub(super) struct MeshNetwork {
    pub mesh: Arc<Mesh>,
    pub tunnel: Arc<dyn Tunnel>,
    /// The eBPF datapath, or the reason why it does not run.
    pub ebpf: Result<Arc<EbpfDatapath>, String>,
    tunnel_config: TunnelConfig,
    /// The view that every loop of the node follows.
    pub view: watch::Sender<Option<Arc<NodeView>>>,
    /// The view that the overlay loop follows, and that names the managers: that of the others, or before there is one a view
    /// that names only managers.
    pub peers: watch::Sender<Option<Arc<NodeView>>>,
    applied: watch::Sender<Revision>,
    pub overlay_applied: watch::Receiver<Revision>,
    /// Nodes that are down and do not answer here.
    pub lost: watch::Sender<BTreeSet<NodeId>>,
    supervisor: Supervisor,
    /// What keeps the tunnel running ends with this network: a tunnel that is being closed is still followed.
    _tunnel_watch: DropGuard,
}

impl MeshNetwork {
    /// Brings namespace and tunnel up, or adopts those of an earlier run. The tunnel has no peers yet.
    ///
    /// # Errors
    /// The namespace or the tunnel cannot be made; without a membership neither is left then.
    pub(super) async fn open(env: &Environment, addresses: &ListenAddresses) -> anyhow::Result<Self> {
        let settings = &env.settings;
        let mesh = Mesh::open(&settings.mesh_pin()).await?;
        let tunnel_config = TunnelConfig {
            mesh_pin: settings.mesh_pin(),
            run_dir: settings.run_dir.clone(),
            private_key_file: env.state_dir.tunnel_key(),
            listen: addresses.tunnel(),
            mtu: settings.tunnel_mtu(),
            keep_mtu: settings.path_mtu().is_none(),
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
                // Of a join that fails nothing stays. A node that starts again keeps the links of its containers.
                if !env.state_dir.has_membership() {
                    let _ = mesh.remove();
                }
                return Err(error);
            }
        };
        let watch = env.supervisor();
        let watched = tunnel.clone();
        watch.keep_until_stopped("tunnel", move || {
            let tunnel = watched.clone();
            async move { tunnel.keep_running().await }
        });
        env.links.set(Some(mesh.clone()));
        let ebpf = open_ebpf(env, &mesh).await;
        env.sandboxes.set(ebpf.as_ref().ok().cloned());
        let (applied, overlay_applied) = watch::channel(Revision::default());
        Ok(Self {
            mesh,
            tunnel,
            ebpf,
            tunnel_config,
            view: watch::channel(None).0,
            peers: watch::channel(None).0,
            applied,
            overlay_applied,
            lost: watch::channel(BTreeSet::new()).0,
            supervisor: env.supervisor(),
            _tunnel_watch: watch.stop.drop_guard(),
        })
    }

    /// Starts the overlay loop on this view and the views after it.
    pub(super) fn start_overlay(&self, env: &Environment, me: &NodeId, view: Option<NodeView>) {
        self.view.send_replace(view.map(Arc::new));
        self.peers.send_replace(self.view.borrow().clone());
        let (stop, mesh) = (&self.supervisor.stop, &self.mesh);
        let (view, peers, ended) = (self.view.clone(), self.peers.clone(), stop.clone());
        self.supervisor.keep("managers", move || follow(view.subscribe(), peers.clone(), ended.clone()));
        let (view, joined, ended) = (self.view.clone(), env.joined.clone(), stop.clone());
        let (node, namespace, lost) = (me.clone(), mesh.clone(), self.lost.clone());
        self.supervisor.keep("resets", move || {
            let (view, lost) = (view.subscribe(), lost.clone());
            connection_reset::run(node.clone(), namespace.clone(), view, joined.clone(), lost, ended.clone())
        });
        let (peers, applied, ended) = (self.peers.clone(), self.applied.clone(), stop.clone());
        let (node, namespace, tunnel) = (me.clone(), mesh.clone(), self.tunnel.clone());
        let (mtus, path_mtu) = (env.mtus.clone(), env.settings.path_mtu());
        self.supervisor.keep("overlay", move || {
            let overlay = Overlay::new(node.clone(), namespace.clone(), tunnel.clone()).with_mtus(mtus.clone(), path_mtu);
            overlay.run(peers.subscribe(), applied.clone(), ended.clone())
        });
    }

    /// Lets the overlay loop reach the managers of this view until there is one of theirs.
    pub(super) fn reach_managers(&self, managers: NodeView) {
        self.peers.send_if_modified(|peers| {
            let missing = peers.is_none();
            if missing {
                *peers = Some(Arc::new(managers));
            }
            missing
        });
    }

    /// Ends the overlay loop when it is dropped.
    pub(super) fn stop_unless_started(&self) -> DropGuard {
        self.supervisor.stop.clone().drop_guard()
    }

    /// Bytes received from a peer through the tunnel; 0 while the tunnel does not know it.
    pub(super) async fn received(&self, key: WgKey) -> anyhow::Result<u64> {
        Ok(self.tunnel.observe().await?.peers.get(&key).map_or(0, |p| p.rx_bytes))
    }

    /// Stops the overlay loop; everything that it has configured stays, and so does the tunnel.
    pub(super) async fn pause(&self) {
        self.supervisor.end().await;
    }

    /// Takes everything down. A step that fails does not prevent the next one.
    ///
    /// # Errors
    /// An [`ErrorList`] of every step that failed.
    pub(super) async fn take_down(&self, env: &Environment) -> anyhow::Result<()> {
        self.pause().await;
        env.links.set(None);
        env.sandboxes.set(None);
        let mut errors = ErrorList::default();
        errors.check(match &self.ebpf {
            Ok(ebpf) => ebpf.remove().await,
            Err(_) => ebpf::remove_leftovers(&env.settings.run_dir, &self.mesh).await,
        });
        errors.check(http::stop(&env.settings.run_dir).await);
        errors.check(tunnel::close(&self.tunnel_config).await);
        errors.check(self.mesh.clone().remove());
        errors.into_result()
    }
}

/// Passes each view on.
async fn follow(
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    peers: watch::Sender<Option<Arc<NodeView>>>,
    stop: CancellationToken,
) {
    while let Some(Ok(())) = stop.run_until_cancelled(view.changed()).await {
        let next = view.borrow_and_update().clone();
        if next.is_some() {
            peers.send_replace(next);
        }
    }
}

/// Loads the eBPF datapath. If it cannot run, the userspace datapath serves published ports.
async fn open_ebpf(env: &Environment, mesh: &Arc<Mesh>) -> Result<Arc<EbpfDatapath>, String> {
    let run_dir = &env.settings.run_dir;
    let opened = match env.settings.ebpf_datapath {
        EbpfMode::Off => Err("disabled by the setting ebpf_datapath = \"off\"".to_owned()),
        EbpfMode::Auto => {
            let opened = EbpfDatapath::open(run_dir, mesh.clone(), env.settings.ebpf.max_tcp_flows).await;
            opened.map_err(|e| format!("{e:#}"))
        }
    };
    match &opened {
        Ok(ebpf) => {
            for (hook, why) in ebpf.unavailable() {
                tracing::warn!(hook = hook.program(), why, "the eBPF datapath runs without this hook");
            }
        }
        Err(why) => {
            tracing::info!(why, "no eBPF datapath: virtual addresses are not answered, ports are served in user space");
            if let Err(error) = ebpf::remove_leftovers(run_dir, mesh).await {
                tracing::warn!(error = format!("{error:#}"), "programs of an earlier run could not be removed");
            }
        }
    }
    env.takes_ports.store(opened.as_ref().is_ok_and(|ebpf| ebpf.carries_ports()), std::sync::atomic::Ordering::Relaxed);
    opened
}

/// Makes the tunnel send a packet to a mesh address: a connection attempt whose result is ignored.
pub(super) fn send_probe(mesh: &Arc<Mesh>, from: Ipv6Addr, to: Ipv6Addr) {
    let mesh = mesh.clone();
    tokio::spawn(async move { mesh.answers(from, to, Duration::from_millis(500)).await });
}

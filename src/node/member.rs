//! A running membership: the network, every loop of the node on one view, the session to the leader, and on managers
//! the manager's part.

use super::address::Place;
use super::manager::{self, Replicated};
use super::network::Network;
use super::session::{SessionRelay, lowest};
use super::state_dir::MembershipFile;
use super::{Daemon, state_dir};
use crate::agent::{self, AgentConfig, ledger::Ledger};
use crate::datapath::sockets::HereSockets;
use crate::dns::{self, DnsSettings};
use crate::ingress::ebpf::{EbpfChannels, EbpfStatus};
use crate::ingress::userspace::{UserspaceChannels, UserspaceSockets};
use crate::ingress::{self, PortStatus, UserspaceSettings};
use crate::model::mesh::{DEFAULT_PORT, node_address};
use crate::model::node::NodeDescription;
use crate::model::{NodeView, Revision};
use crate::protocol::{FORMAT, ToManager};
use crate::rpc::{SessionConfig, SessionEnd, SessionEnds, SessionState, keep_session};
use crate::settings::Settings;
use crate::trust::Identity;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A running membership.
pub(super) struct Member {
    pub record: MembershipFile,
    pub network: Network,
    pub replicated: Option<Replicated>,
    pub session: watch::Receiver<SessionState>,
    pub ports: watch::Receiver<Vec<PortStatus>>,
    pub ebpf: watch::Receiver<EbpfStatus>,
    /// Applied revision of each loop, by its name.
    pub applied: BTreeMap<&'static str, watch::Receiver<Revision>>,
    /// Why the leader does not want this node any more.
    pub removed: Arc<Mutex<Option<String>>>,
    outgoing: mpsc::Sender<ToManager>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl MembershipFile {
    pub(super) fn place(&self) -> Place {
        Place { listen: self.listen, advertise: self.advertise, data_path_port: self.data_path_port }
    }
}

/// Tries until it works or the token is cancelled.
pub(super) async fn until<T>(stop: &CancellationToken, mut attempt: impl FnMut() -> anyhow::Result<T>) -> Option<T> {
    loop {
        match attempt() {
            Ok(value) => return Some(value),
            Err(error) => tracing::debug!(error = format!("{error:#}"), "not yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

impl Member {
    /// Starts every loop on a network that is up. `outer` is the managers' door for joins.
    pub(super) async fn start(
        daemon: &Arc<Daemon>,
        record: MembershipFile,
        identity: Identity,
        network: Network,
        replicated: Option<(Replicated, TcpListener)>,
    ) -> anyhow::Result<Self> {
        let identity = Arc::new(identity);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let me = record.node_id.clone();
        let view = || network.view.subscribe();
        let mut applied = BTreeMap::from([("overlay", network.overlay_applied.clone())]);

        // The eBPF datapath, if there is one. Without one its revision does not hold anybody back.
        let (ready_out, ready) = watch::channel(crate::datapath::ebpf::VipReadiness::default());
        let why = network.ebpf.as_ref().err().cloned().unwrap_or_default();
        let (ebpf_status, ebpf) = watch::channel(EbpfStatus { reason: why, ..EbpfStatus::default() });
        if let Ok(plane) = &network.ebpf {
            let (ebpf_applied, receiver) = watch::channel(Revision::default());
            applied.insert("ebpf", receiver);
            let ends = EbpfChannels {
                view: view(),
                sandboxes: daemon.joined.clone(),
                mtu: daemon.mtu.clone(),
                applied: ebpf_applied,
                ready: ready_out,
                status: ebpf_status,
            };
            let tick = Duration::from_millis(daemon.settings.timeouts.reconcile_ms);
            tasks.spawn(ingress::ebpf::run(ends, me.clone(), plane.clone(), tick, stop.clone()));
        }

        let (dns_applied, receiver) = watch::channel(Revision::default());
        applied.insert("dns", receiver);
        let settings = dns_settings(&daemon.settings);
        tasks.spawn(dns::run(me.clone(), view(), network.mesh.clone(), ready, dns_applied, settings, stop.clone()));

        let (ports_applied, receiver) = watch::channel(Revision::default());
        applied.insert("ports", receiver);
        let (port_status, ports) = watch::channel(Vec::new());
        let channels = UserspaceChannels { view: view(), applied: ports_applied, status: port_status };
        let sockets = UserspaceSockets { host: Arc::new(HereSockets), mesh: network.mesh.clone() };
        let settings = userspace_settings(&daemon.settings);
        tasks.spawn(ingress::userspace::run(channels, me.clone(), sockets, settings, stop.clone()));

        let (agent_applied, receiver) = watch::channel(Revision::default());
        applied.insert("agent", receiver);
        let (status_out, statuses) = mpsc::channel(256);
        let skep_socket = daemon.settings.replace_engine_socket.then(|| daemon.settings.docker_socket());
        let config = AgentConfig::new(me.clone(), daemon.settings.engine_socket()?, skep_socket, daemon.mtu.clone());
        tasks.spawn(agent::run(
            config,
            daemon.engine.clone(),
            view(),
            status_out,
            agent_applied,
            daemon.clock.clone(),
            stop.clone(),
        ));

        let (listens_out, listens) = mpsc::channel(256);
        let tick = Duration::from_millis(daemon.settings.timeouts.reconcile_ms);
        tasks.spawn(ingress::readiness::run(view(), daemon.joined.clone(), listens_out, tick, stop.clone()));

        let (lowest_out, lowest_applied) = watch::channel(Revision::default());
        tasks.spawn(lowest(applied.values().cloned().collect(), lowest_out));

        let (incoming_out, incoming) = mpsc::channel(64);
        let (outgoing, outgoing_in) = mpsc::channel(256);
        let (state, session) = watch::channel(SessionState::default());
        let ledger = Ledger::new(daemon.ledger_file());
        if let Some(first) = network.view.borrow().as_deref() {
            // A node that is killed right after its join comes up by it.
            ledger.store(first)?;
        }
        tasks.spawn(
            SessionRelay { ledger, view: network.view.clone(), incoming, outgoing: outgoing.clone(), statuses, listens }.run(),
        );

        let mut config = SessionConfig::new(
            identity.clone(),
            daemon.clock.clone(),
            candidates(view(), &tasks, &stop),
            network.mesh.clone(),
            IpAddr::V6(node_address(record.subnet)),
        );
        config.heartbeat = Duration::from_millis(daemon.settings.timeouts.heartbeat_ms);
        config.dead_after = Duration::from_millis(daemon.settings.timeouts.node_down_ms);
        let description = daemon.describe(&tasks, &stop).await;
        let (hello_view, endpoints, described) = (view(), record.place().endpoints(), description.clone());
        let hello = move || ToManager::Hello {
            format: FORMAT,
            description: described.borrow().clone(),
            endpoints: endpoints.iter().copied().filter(|e| !e.ip().is_unspecified()).collect(),
            have: hello_view.borrow().as_ref().map(|v| v.revision).unwrap_or_default(),
        };
        let hello = Arc::new(hello);
        tell_again(description, hello.clone(), outgoing.clone(), &tasks);
        let ends = SessionEnds { incoming: incoming_out, outgoing: outgoing_in, applied: lowest_applied, state };
        let removed = Arc::new(Mutex::new(None));
        let (reason, session_stop) = (removed.clone(), stop.clone());
        tasks.spawn(async move {
            if let SessionEnd::Removed(why) = keep_session(config, move || hello(), ends, session_stop).await {
                tracing::error!(why, "this node is no longer a member: run `skep leave --force` here, then join again");
                *reason.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(why);
            }
        });

        let replicated = match replicated {
            Some((replicated, outer)) => {
                manager::start(daemon, &record, &identity, &network, &replicated, outer, &stop, &tasks)?;
                Some(replicated)
            }
            None => None,
        };
        Ok(Self { record, network, replicated, session, ports, ebpf, applied, removed, outgoing, stop, tasks })
    }

    /// The view that the node follows.
    pub(super) fn view(&self) -> Option<Arc<NodeView>> {
        self.network.view.borrow().clone()
    }

    /// Tells the leader that this node leaves by its own will, as far as it hears.
    pub(super) async fn say_goodbye(&self) {
        let said = self.outgoing.send(ToManager::Leave).await.is_ok();
        if said && self.session.borrow().leader.is_some() {
            // The leader closes the session once it has written it down.
            let mut session = self.session.clone();
            let _ = tokio::time::timeout(Duration::from_secs(1), session.wait_for(|s| s.leader.is_none())).await;
        }
    }

    /// Ends the loops; containers, tunnel, routes stay.
    pub(super) async fn pause(&self) {
        self.stop.cancel();
        if let Some(replicated) = &self.replicated {
            replicated.stop().await;
        }
        self.network.pause().await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends the loops and takes everything down, to the end; reports what went wrong on the way.
    pub(super) async fn take_down(self, daemon: &Daemon) -> anyhow::Result<()> {
        self.pause().await;
        let containers = agent::remove_all(&self.record.node_id, &*daemon.engine).await;
        let network = self.network.take_down(daemon).await;
        let files = state_dir::forget(&daemon.settings.data_dir);
        containers.and(network).and(files)
    }
}

/// A node whose engine answers only later says so in the middle of its session: until then it gets no tasks.
fn tell_again(
    mut description: watch::Receiver<NodeDescription>,
    hello: Arc<impl Fn() -> ToManager + Send + Sync + 'static>,
    outgoing: mpsc::Sender<ToManager>,
    tasks: &TaskTracker,
) {
    tasks.spawn(async move {
        // The sender is dropped once there is nothing more to find out.
        while description.changed().await.is_ok() {
            let _ = outgoing.send(hello()).await;
        }
    });
}

fn dns_settings(settings: &Settings) -> DnsSettings {
    DnsSettings {
        resolv_conf: settings.resolv_conf.clone(),
        timeout: Duration::from_millis(settings.dns.timeout_ms),
        max_in_flight: settings.dns.max_in_flight,
        max_per_client: (settings.dns.max_in_flight / 8).max(1),
        ..DnsSettings::default()
    }
}

fn userspace_settings(settings: &Settings) -> UserspaceSettings {
    let ports = settings.ports;
    UserspaceSettings {
        max_connections: ports.max_connections.max(1),
        max_connections_per_port: (ports.max_connections / 2).max(1),
        max_flows: ports.max_flows.max(1),
        max_flows_per_port: (ports.max_flows / 2).max(1),
        flow_idle: Duration::from_millis(ports.udp_idle_ms),
        ..UserspaceSettings::default()
    }
}

/// Where managers answer inside the mesh, as the view says.
fn candidates(
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> watch::Receiver<Vec<SocketAddr>> {
    let of = |view: &Option<Arc<NodeView>>| -> Vec<SocketAddr> {
        let nodes = view.iter().flat_map(|v| v.cluster.nodes.iter());
        nodes.filter(|n| n.manager).map(|n| SocketAddr::new(IpAddr::V6(n.address()), DEFAULT_PORT)).collect()
    };
    let (sender, receiver) = watch::channel(of(&view.borrow_and_update()));
    let stop = stop.clone();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = view.changed() => if changed.is_err() { return },
            }
            let now = of(&view.borrow_and_update());
            sender.send_if_modified(|before| {
                let changed = *before != now;
                *before = now;
                changed
            });
        }
    });
    receiver
}

impl Daemon {
    /// What this node says of itself, as far as its engine answers; looked up again until it does.
    async fn describe(self: &Arc<Self>, tasks: &TaskTracker, stop: &CancellationToken) -> watch::Receiver<NodeDescription> {
        let first = self.description().await;
        let complete = !first.engine_version.is_empty();
        let (sender, receiver) = watch::channel(first);
        if !complete {
            let (daemon, stop) = (self.clone(), stop.clone());
            tasks.spawn(async move {
                loop {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_secs(2)) => {}
                    }
                    let now = daemon.description().await;
                    if !now.engine_version.is_empty() {
                        sender.send_replace(now);
                        return;
                    }
                }
            });
        }
        receiver
    }
}

//! The node's loops on one view: which there are, what they are started with, and the revision that each has applied.

use super::attachments;
use super::environment::Environment;
use super::network::MeshNetwork;
use super::supervisor::Supervisor;
use crate::agent::{self, AgentChannels, AgentConfig};
use crate::datapath::Sandbox;
use crate::datapath::ebpf::VipReadiness;
use crate::datapath::mesh::Mesh;
use crate::datapath::sockets::HereSockets;
use crate::dns::{self, DnsChannels, DnsCounts, DnsSettings};
use crate::ingress::ebpf::{EbpfChannels, EbpfStatus, EbpfTiming};
use crate::ingress::http::{HttpAccessLog, HttpChannels, HttpLimits, HttpOptions, HttpPorts, HttpProcessConfig, HttpStatus};
use crate::ingress::userspace::{UserspaceChannels, UserspaceSockets};
use crate::ingress::{self, HeldPorts, PortStatus, UserspaceSettings, WaitingRoom};
use crate::model::{Demand, ListeningPort, NodeId, NodeView, Revision, TaskId, TaskStatus};
use crate::settings::{AccessLog, AccessLogFormat, HttpSettings, Settings};
use crate::sync::replace_if_changed;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Reports that may wait for the session.
const REPORT_QUEUE: usize = 256;

/// A loop that follows the view and reports the revision that it has applied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Loop {
    Overlay,
    Ebpf,
    Dns,
    Ports,
    Http,
    Agent,
}

impl Loop {
    /// The name in the status.
    fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Ebpf => "ebpf",
            Self::Dns => "dns",
            Self::Ports => "ports",
            Self::Http => "http",
            Self::Agent => "agent",
        }
    }
}

/// The revision that each running loop has applied.
#[derive(Clone, Default)]
pub(super) struct AppliedRevisions(BTreeMap<Loop, watch::Receiver<Revision>>);

impl AppliedRevisions {
    fn insert(&mut self, name: Loop, applied: watch::Receiver<Revision>) {
        self.0.insert(name, applied);
    }

    /// The sender for a loop that is about to start.
    fn channel(&mut self, name: Loop) -> watch::Sender<Revision> {
        let (sender, receiver) = watch::channel(Revision::default());
        self.insert(name, receiver);
        sender
    }

    /// The revisions of this moment, by the loops' names.
    pub(super) fn by_name(&self) -> BTreeMap<String, Revision> {
        self.0.iter().map(|(name, revision)| (name.name().to_owned(), *revision.borrow())).collect()
    }

    /// Publishes the lowest of the revisions until a loop has ended.
    pub(super) async fn publish_lowest(mut loops: Vec<watch::Receiver<Revision>>, lowest: watch::Sender<Revision>) {
        loop {
            let now = loops.iter_mut().map(|r| *r.borrow_and_update()).min().unwrap_or_default();
            replace_if_changed(&lowest, now);
            let changes = loops.iter_mut().map(|r| Box::pin(r.changed()));
            if futures_util::future::select_all(changes).await.0.is_err() {
                return;
            }
        }
    }

    /// A receiver of each loop.
    pub(super) fn receivers(&self) -> Vec<watch::Receiver<Revision>> {
        self.0.values().cloned().collect()
    }
}

/// What every loop of a membership is started with.
#[derive(Clone)]
pub(super) struct LoopContext {
    pub env: Arc<Environment>,
    pub me: NodeId,
    /// The view that the session publishes and every loop follows; `None` until there is a first one.
    pub view: watch::Sender<Option<Arc<NodeView>>>,
    /// The view that names the managers, see [`MeshNetwork::peers`].
    pub peers: watch::Receiver<Option<Arc<NodeView>>>,
    /// The same, to be changed.
    pub known_managers: watch::Sender<Option<Arc<NodeView>>>,
    pub mesh: Arc<Mesh>,
    /// Whether a session of this run has delivered a view. Until then the view is the ledger's, and may be out of date.
    pub has_session_view: watch::Sender<bool>,
    /// Whether a session with the leader is open.
    pub has_session: watch::Sender<bool>,
    pub supervisor: Supervisor,
}

impl LoopContext {
    pub(super) fn new(env: &Arc<Environment>, me: &NodeId, network: &MeshNetwork) -> Self {
        Self {
            env: env.clone(),
            me: me.clone(),
            view: network.view.clone(),
            peers: network.peers.subscribe(),
            known_managers: network.peers.clone(),
            mesh: network.mesh.clone(),
            has_session_view: watch::channel(false).0,
            has_session: watch::channel(false).0,
            supervisor: env.supervisor(),
        }
    }

    fn view(&self) -> watch::Receiver<Option<Arc<NodeView>>> {
        self.view.subscribe()
    }

    /// Ends every loop.
    pub(super) fn stop(&self) -> CancellationToken {
        self.supervisor.stop.clone()
    }
}

/// The outputs of the running loops.
pub(super) struct RunningLoops {
    pub applied: AppliedRevisions,
    pub ports: watch::Receiver<Vec<PortStatus>>,
    pub ebpf: watch::Receiver<EbpfStatus>,
    pub http: watch::Receiver<HttpStatus>,
    /// What the name server has counted.
    pub names: Arc<DnsCounts>,
    /// Statuses of this node's tasks.
    pub statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    /// Published ports that tasks of this node listen on.
    pub listens: mpsc::Receiver<(TaskId, Vec<ListeningPort>)>,
    /// Connections of its tasks whose services are scaled by load.
    pub loads: watch::Receiver<BTreeMap<TaskId, u32>>,
    /// What is seen of the clients of these services.
    pub demand: watch::Receiver<Demand>,
    /// Whether the engine answers the agent.
    pub engine_answers: watch::Receiver<bool>,
}

/// Starts every loop on a network that is up.
///
/// # Errors
/// The settings name no engine socket.
pub(super) fn start(context: &LoopContext, network: &MeshNetwork) -> anyhow::Result<RunningLoops> {
    let mut applied = AppliedRevisions::default();
    applied.insert(Loop::Overlay, network.overlay_applied.clone());
    let (held_sender, held) = watch::channel(None);
    let RunningEbpf { ready, status: ebpf, prepared } = start_ebpf(context, network, held, &mut applied);
    let names = start_dns(context, ready, &mut applied);
    let waiting = WaitingRoom::new();
    let ports = start_userspace(context, held_sender, &waiting, &mut applied);
    let http = start_http(context, &mut applied)?;
    let AgentReports { statuses, engine_answers } = start_agent(context, &mut applied)?;
    let listens = start_readiness(context, prepared);
    let loads = start_load(context);
    let demand = start_demand(context, &waiting, &http);
    start_attachments(context);
    Ok(RunningLoops { applied, ports, ebpf, http, names, statuses, listens, loads, demand, engine_answers })
}

/// What the eBPF datapath's loop publishes.
struct RunningEbpf {
    ready: watch::Receiver<VipReadiness>,
    status: watch::Receiver<EbpfStatus>,
    /// Containers that may be announced to clients; without this datapath all that have joined.
    prepared: watch::Receiver<Vec<Sandbox>>,
}

/// Starts the eBPF datapath's loop. Without that datapath there is no revision to wait for.
fn start_ebpf(
    context: &LoopContext,
    network: &MeshNetwork,
    held: watch::Receiver<Option<Arc<HeldPorts>>>,
    applied: &mut AppliedRevisions,
) -> RunningEbpf {
    let (ready_sender, ready) = watch::channel(VipReadiness::default());
    let (prepared_sender, prepared) = watch::channel(Vec::new());
    let reason = network.ebpf.as_ref().err().cloned().unwrap_or_default();
    let (status_sender, status) = watch::channel(EbpfStatus { reason, ..EbpfStatus::default() });
    if let Ok(datapath) = &network.ebpf {
        let (context, datapath, applied) = (context.clone(), datapath.clone(), applied.channel(Loop::Ebpf));
        let udp_idle = Duration::from_millis(context.env.settings.ports.udp_idle_ms);
        let tcp_idle = Duration::from_secs(context.env.settings.ebpf.tcp_idle_s);
        let lost = network.lost.subscribe();
        context.supervisor.clone().keep(Loop::Ebpf.name(), move || {
            let channels = EbpfChannels {
                view: context.view(),
                lost: lost.clone(),
                sandboxes: context.env.joined.clone(),
                prepared: prepared_sender.clone(),
                mtu: context.env.mtus.smallest.subscribe(),
                held: held.clone(),
                applied: applied.clone(),
                ready: ready_sender.clone(),
                status: status_sender.clone(),
            };
            let timing = EbpfTiming { tick: context.env.reconcile_tick(), udp_idle, tcp_idle };
            ingress::ebpf::run(channels, context.me.clone(), datapath.clone(), timing, context.stop())
        });
    }
    let prepared = if network.ebpf.is_ok() { prepared } else { context.env.joined.clone() };
    RunningEbpf { ready, status, prepared }
}

fn start_dns(context: &LoopContext, ready: watch::Receiver<VipReadiness>, applied: &mut AppliedRevisions) -> Arc<DnsCounts> {
    let counts = Arc::<DnsCounts>::default();
    let (context, counted, applied) = (context.clone(), Arc::clone(&counts), applied.channel(Loop::Dns));
    context.supervisor.clone().keep(Loop::Dns.name(), move || {
        let (ready, applied, counts) = (ready.clone(), applied.clone(), Arc::clone(&counted));
        let channels = DnsChannels { view: context.view(), ready, applied, counts };
        let settings = dns_settings(&context.env.settings);
        dns::run(context.me.clone(), channels, context.mesh.clone(), settings, context.stop())
    });
    counts
}

fn start_userspace(
    context: &LoopContext,
    held: watch::Sender<Option<Arc<HeldPorts>>>,
    waiting: &Arc<WaitingRoom>,
    applied: &mut AppliedRevisions,
) -> watch::Receiver<Vec<PortStatus>> {
    let (status, ports) = watch::channel(Vec::new());
    let (context, applied, waiting) = (context.clone(), applied.channel(Loop::Ports), waiting.clone());
    context.supervisor.clone().keep(Loop::Ports.name(), move || {
        let (applied, status, held) = (applied.clone(), status.clone(), held.clone());
        let channels = UserspaceChannels { view: context.view(), applied, status, held, waiting: waiting.clone() };
        let sockets = UserspaceSockets { host: Arc::new(HereSockets), mesh: context.mesh.clone() };
        let settings = userspace_settings(&context.env.settings);
        ingress::userspace::run(channels, context.me.clone(), sockets, settings, context.stop())
    });
    ports
}

fn start_http(context: &LoopContext, applied: &mut AppliedRevisions) -> anyhow::Result<watch::Receiver<HttpStatus>> {
    let (status, http) = watch::channel(HttpStatus::default());
    let settings = &context.env.settings;
    let config = HttpProcessConfig {
        run_dir: settings.run_dir.clone(),
        mesh_pin: settings.mesh_pin(),
        program: std::env::current_exe().context("cannot find this program's own file")?,
        log: settings.log.clone(),
    };
    let options = http_options(&settings.http);
    let (context, applied) = (context.clone(), applied.channel(Loop::Http));
    context.supervisor.clone().keep(Loop::Http.name(), move || {
        let channels = HttpChannels { view: context.view(), applied: applied.clone(), status: status.clone() };
        ingress::http::run(channels, context.me.clone(), config.clone(), options.clone(), context.stop())
    });
    Ok(http)
}

fn http_options(settings: &HttpSettings) -> HttpOptions {
    let settings = settings.clone();
    HttpOptions {
        ports: HttpPorts { plain: settings.port, tls: settings.tls_port },
        access_log: match settings.access_log {
            AccessLog::Switch(false) => HttpAccessLog::Off,
            AccessLog::Switch(true) | AccessLog::Format(AccessLogFormat::Json) => HttpAccessLog::Json,
            AccessLog::Format(AccessLogFormat::Combined) => HttpAccessLog::Combined,
        },
        limits: HttpLimits {
            client_connections: settings.client_connections,
            head_ms: settings.head_timeout_ms,
            idle_ms: settings.idle_timeout_ms,
            body_ms: settings.body_timeout_ms,
            proxy_protocol: settings.proxy_protocol,
            trusted_proxies: settings.trusted_proxies,
        },
    }
}

/// What the agent reports.
struct AgentReports {
    statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    engine_answers: watch::Receiver<bool>,
}

fn start_agent(context: &LoopContext, applied: &mut AppliedRevisions) -> anyhow::Result<AgentReports> {
    let env = &context.env;
    let (status, statuses) = mpsc::channel(REPORT_QUEUE);
    let (answers, engine_answers) = watch::channel(true);
    let skep_socket = env.settings.replace_engine_socket.then(|| env.settings.docker_socket());
    let (engine_socket, mtu) = (env.settings.engine_socket()?, env.mtus.device.subscribe());
    let config = AgentConfig::new(context.me.clone(), engine_socket, skep_socket, env.settings.task_files(), mtu);
    let (context, applied) = (context.clone(), applied.channel(Loop::Agent));
    context.supervisor.clone().keep(Loop::Agent.name(), move || {
        let (status, applied, engine_answers) = (status.clone(), applied.clone(), answers.clone());
        let session = context.has_session.subscribe();
        let channels = AgentChannels { view: context.view(), status, applied, engine_answers, session };
        let env = &context.env;
        agent::run(config.clone(), channels, env.engine.clone(), env.clock.clone(), context.stop())
    });
    Ok(AgentReports { statuses, engine_answers })
}

fn start_readiness(
    context: &LoopContext,
    prepared: watch::Receiver<Vec<Sandbox>>,
) -> mpsc::Receiver<(TaskId, Vec<ListeningPort>)> {
    let (reports, listens) = mpsc::channel(REPORT_QUEUE);
    let context = context.clone();
    context.supervisor.clone().keep("readiness", move || {
        let tick = context.env.reconcile_tick();
        ingress::readiness::run(context.view(), prepared.clone(), reports.clone(), tick, context.stop())
    });
    listens
}

/// Counts connections: no revision to wait for.
fn start_load(context: &LoopContext) -> watch::Receiver<BTreeMap<TaskId, u32>> {
    let (sender, loads) = watch::channel(BTreeMap::new());
    let context = context.clone();
    context
        .supervisor
        .clone()
        .keep("load", move || ingress::load::run(context.view(), context.env.joined.clone(), sender.clone(), context.stop()));
    loads
}

/// What is seen of clients: no revision to wait for.
fn start_demand(
    context: &LoopContext,
    waiting: &Arc<WaitingRoom>,
    http: &watch::Receiver<HttpStatus>,
) -> watch::Receiver<Demand> {
    let (sender, demand) = watch::channel(Demand::default());
    let (context, waiting, http) = (context.clone(), waiting.clone(), http.clone());
    context.supervisor.clone().keep("demand", move || {
        ingress::demand::run(context.view(), waiting.subscribe(), http.clone(), sender.clone(), context.stop())
    });
    demand
}

/// Plain containers on networks: no revision to wait for, the driver answers the engine.
fn start_attachments(context: &LoopContext) {
    let context = context.clone();
    let (env, stop) = (context.env.clone(), context.stop());
    let view = context.view();
    context.supervisor.clone().keep("attachments", move || attachments::follow(env.clone(), view.clone(), stop.clone()));
    context.supervisor.clone().keep("attached", move || attachments::describe(context.env.clone(), context.stop()));
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
        max_connections_per_port: ports.max_connections.max(1),
        max_flows: ports.max_flows.max(1),
        max_flows_per_port: (ports.max_flows / 2).max(1),
        max_flows_per_source: (ports.max_flows / 4).max(1),
        flow_idle: Duration::from_millis(ports.udp_idle_ms),
        ..UserspaceSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Revision {
        Revision { incarnation: 1, index }
    }

    #[tokio::test]
    async fn the_lowest_applied_revision_is_published() {
        let mut applied = AppliedRevisions::default();
        let (dns, agent) = (applied.channel(Loop::Dns), applied.channel(Loop::Agent));
        let (sender, mut lowest) = watch::channel(Revision::default());
        let publishing = tokio::spawn(AppliedRevisions::publish_lowest(applied.receivers(), sender));
        dns.send_replace(at(7));
        agent.send_replace(at(5));
        lowest.wait_for(|r| *r == at(5)).await.expect("published");
        assert_eq!(applied.by_name(), [("agent".to_owned(), at(5)), ("dns".to_owned(), at(7))].into());
        agent.send_replace(at(9));
        lowest.wait_for(|r| *r == at(7)).await.expect("published");
        drop(agent);
        publishing.await.expect("ends with a loop");
    }
}

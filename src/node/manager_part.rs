//! The manager's part of a member: raft with the store behind it, the loops that the leader runs, and the two listeners on
//! 2377: joins from outside, sessions from inside the mesh.

use super::admission::Admission;
use super::certificate_authority::{CertificateIssuer, RenewalAuthority};
use super::environment::Environment;
use super::manager_health;
use super::manager_role::ManagerPart;
use super::manager_settings::manager_settings;
use super::network::MeshNetwork;
use super::recovery::RecoveryWindow;
use super::state_dir::MembershipFile;
use super::supervisor::Blockers;
use crate::datapath::mesh::Mesh;
use crate::datapath::sockets::HereSockets;
use crate::datapath::{Sockets as _, Tunnel};
use crate::manager::replica::{ApplyOutcome, Replica};
use crate::manager::{self, LeaderHealth, ManagerSettings, SessionId, Sessions};
use crate::model::NodeId;
use crate::model::mesh::{DEFAULT_PORT, node_address};
use crate::protocol::{ToManager, ToNode};
use crate::raft::{Raft, RaftConfig, Transport};
use crate::rpc::{ListenerKind, Server, ServerLimits, SessionServer};
use crate::store::StoreHandle;
use crate::sync::replace_if_changed;
use crate::trust::Identity;
use anyhow::Context as _;
use async_trait::async_trait;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Raft and the store behind it.
pub(super) struct ManagerStore {
    pub store: StoreHandle,
    pub raft: Raft<ApplyOutcome>,
    stop: CancellationToken,
}

/// How raft's log is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OpenLog {
    /// Create a log with this manager as the only voter.
    Bootstrap,
    /// Continue the log on disk.
    Existing,
}

impl ManagerStore {
    /// # Errors
    /// The log cannot be opened.
    pub(super) async fn open(env: &Environment, raft_id: u64, log: OpenLog) -> anyhow::Result<Self> {
        let settings = &env.settings;
        let config = RaftConfig {
            dir: env.state_dir.raft(),
            id: raft_id,
            tick: Duration::from_millis(settings.raft.tick_ms),
            heartbeat_ticks: settings.raft.heartbeat_ticks,
            election_ticks: (settings.raft.election_ticks_min, settings.raft.election_ticks_max),
            snapshot_every: settings.raft.snapshot_every,
            keep_entries: settings.raft.keep_entries,
            propose_timeout: Duration::from_millis(settings.timeouts.propose_ms),
            seed: rand::random(),
        };
        let stop = CancellationToken::new();
        let (store, raft) = Replica::start(config, log == OpenLog::Bootstrap, Arc::new(NoPeers), stop.clone()).await?;
        Ok(Self { store, raft, stop })
    }

    async fn stop(&self) {
        self.stop.cancel();
        self.raft.closed().await;
    }
}

impl Drop for ManagerStore {
    /// Raft ends with its owner, also when an init fails before the member is started.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Raft's transport while there is one manager per cluster.
struct NoPeers;

impl Transport for NoPeers {
    fn send(&self, to: u64, _message: Vec<u8>) {
        tracing::warn!(to, "a raft message for another manager was dropped: further managers are not built yet");
    }
}

/// The resources of a manager that are acquired before its network is opened: init fails before it writes anything if the
/// port is in use, and a restarted manager takes its first view from its store.
pub(super) struct PreparedManager {
    pub store: ManagerStore,
    /// The listener for joins.
    pub listener: TcpListener,
}

impl PreparedManager {
    /// Opens the log on disk and binds the listener.
    ///
    /// # Errors
    /// The membership is no manager's, the port is in use, or the log cannot be opened.
    pub(super) async fn open(env: &Environment, membership: &MembershipFile) -> anyhow::Result<Self> {
        let raft_id = membership.raft_id.context("this node has no raft id: further managers are not built yet")?;
        let listener = bind(membership.listen)?;
        Ok(Self { store: ManagerStore::open(env, raft_id, OpenLog::Existing).await?, listener })
    }
}

/// Binds the listener for joins.
pub(super) fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = HereSockets.listen(listen).with_context(|| {
        format!("cannot listen on {listen}/tcp: is another swarm or program on it? (`ss -ltnp sport = :{}`)", listen.port())
    })?;
    Ok(TcpListener::from_std(socket)?)
}

/// The manager's part of one membership.
pub(super) struct ManagerServices {
    env: Arc<Environment>,
    membership: MembershipFile,
    identity: watch::Receiver<Arc<Identity>>,
    mesh: Arc<Mesh>,
    tunnel: Arc<dyn Tunnel>,
    recovery: Arc<RecoveryWindow>,
    health: watch::Sender<LeaderHealth>,
    /// For the first start, if the member starts as a manager.
    prepared: Option<PreparedManager>,
    running: Option<RunningManager>,
}

struct RunningManager {
    store: ManagerStore,
    /// The leader's loops.
    loops: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ManagerServices {
    pub(super) fn new(
        env: &Arc<Environment>,
        membership: &MembershipFile,
        identity: watch::Receiver<Arc<Identity>>,
        network: &MeshNetwork,
        recovery: Arc<RecoveryWindow>,
        prepared: Option<PreparedManager>,
    ) -> Self {
        Self {
            env: env.clone(),
            membership: membership.clone(),
            identity,
            mesh: network.mesh.clone(),
            tunnel: network.tunnel.clone(),
            recovery,
            health: watch::channel(LeaderHealth::default()).0,
            prepared,
            running: None,
        }
    }

    /// What of the leader's loops does not work; nothing while they do not run.
    pub(super) fn health(&self) -> watch::Receiver<LeaderHealth> {
        self.health.subscribe()
    }

    /// Its log and its listener are open.
    pub(super) fn is_prepared(&self) -> bool {
        self.prepared.is_some()
    }

    /// Starts the leader's loops and both listeners.
    fn start_services(&self, store: ManagerStore, listener: TcpListener) -> anyhow::Result<RunningManager> {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let unless_started = stop.clone().drop_guard();
        let (env, me) = (&self.env, &self.membership.node_id);
        let settings = ManagerSettings { vault: Some(env.vault(me)?), ..manager_settings(&env.settings) };
        let leads = watch_leadership(&store.raft, &tasks, &stop, env.blockers.clone());
        let loops = manager::start(store.store.clone(), leads, settings, env.clock.clone(), rand::random(), stop.clone());
        tasks.spawn(manager_health::follow(loops.health, env.blockers.clone(), self.health.clone(), stop.clone()));
        let admission = Admission::new(env, store.store.clone(), me.clone(), self.mesh.clone(), self.tunnel.clone());
        let issuer = CertificateIssuer::new(env, store.store.clone());
        let limits = ServerLimits { join: env.settings.timeouts.join(), ..ServerLimits::default() };
        let server = Arc::new(Server::new(
            self.identity.clone(),
            env.clock.clone(),
            Arc::new(admission),
            Arc::new(DispatcherSessions { sessions: loops.sessions, store: store.store.clone() }),
            Arc::new(RenewalAuthority::new(issuer, self.recovery.clone())),
            limits,
        )?);
        let (outer, outer_stop) = (server.clone(), stop.clone());
        tasks.spawn(async move { outer.serve(listener, ListenerKind::Outer, outer_stop).await });
        let address = SocketAddr::new(IpAddr::V6(node_address(self.membership.subnet)), DEFAULT_PORT);
        tasks.spawn(serve_mesh(server, self.mesh.clone(), address, stop.clone()));
        unless_started.disarm();
        Ok(RunningManager { store, loops: loops.finished, stop, tasks })
    }
}

#[async_trait]
impl ManagerPart for ManagerServices {
    type Handle = StoreHandle;

    async fn start(&mut self) -> anyhow::Result<StoreHandle> {
        let PreparedManager { store, listener } = match self.prepared.take() {
            Some(prepared) => prepared,
            None => PreparedManager::open(&self.env, &self.membership).await?,
        };
        let handle = store.store.clone();
        self.running = Some(self.start_services(store, listener)?);
        Ok(handle)
    }

    async fn ended(&mut self) -> String {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        tokio::select! {
            () = running.store.raft.closed() => "raft has stopped: the log of skep has the reason".to_owned(),
            ended = &mut running.loops => match ended {
                Err(error) => format!("the leader's loops have ended: {error}"),
                Ok(()) => "the leader's loops have ended".to_owned(),
            },
        }
    }

    async fn stop(&mut self) {
        let Some(RunningManager { store, stop, tasks, .. }) = self.running.take() else { return };
        stop.cancel();
        store.stop().await;
        tasks.close();
        tasks.wait().await;
    }
}

/// Serves sessions on the node's mesh address once the overlay loop has assigned it.
async fn serve_mesh(server: Arc<Server>, mesh: Arc<Mesh>, address: SocketAddr, stop: CancellationToken) {
    let listener = retry_until_stopped(&stop, || Ok(TcpListener::from_std(mesh.listen(address)?)?)).await;
    if let Some(listener) = listener {
        server.serve(listener, ListenerKind::Mesh, stop).await;
    }
}

/// Repeats an attempt every 50 ms until it succeeds; `None` once the token is cancelled.
async fn retry_until_stopped<T>(stop: &CancellationToken, mut attempt: impl FnMut() -> anyhow::Result<T>) -> Option<T> {
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

/// Whether this manager leads. What prevents raft from writing is among the blockers.
fn watch_leadership(
    raft: &Raft<ApplyOutcome>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    blockers: Blockers,
) -> watch::Receiver<bool> {
    let mut status = raft.status();
    let (sender, receiver) = watch::channel(status.borrow().is_leader);
    let stop = stop.clone();
    tasks.spawn(async move {
        loop {
            let (now, problem) = {
                let status = status.borrow_and_update();
                (status.is_leader, status.problem.clone())
            };
            replace_if_changed(&sender, now);
            match problem {
                Some(problem) => blockers.set("raft", problem),
                None => blockers.clear("raft"),
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = status.changed() => if changed.is_err() { break },
            }
        }
        blockers.clear("raft");
    });
    receiver
}

/// Passes rpc's sessions to the dispatcher.
struct DispatcherSessions {
    sessions: Sessions,
    store: StoreHandle,
}

#[async_trait]
impl SessionServer for DispatcherSessions {
    fn is_member(&self, address: IpAddr) -> bool {
        self.store.read().nodes().any(|node| IpAddr::V6(node_address(node.mesh.subnet)) == address)
    }
    fn is_at(&self, node: &NodeId, address: IpAddr) -> bool {
        self.store.read().node(node).is_none_or(|node| IpAddr::V6(node_address(node.mesh.subnet)) == address)
    }
    async fn open(&self, node: NodeId, hello: ToManager, out: mpsc::Sender<ToNode>) -> anyhow::Result<u64> {
        Ok(self.sessions.open(node, hello, out).await.0)
    }
    async fn message(&self, session: u64, message: ToManager) {
        self.sessions.message(SessionId(session), message).await;
    }
    async fn closed(&self, session: u64) {
        self.sessions.close(SessionId(session));
    }
}

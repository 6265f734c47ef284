//! The manager's part of a member: raft with the store behind it, the loops that the leader runs, and the two listeners on
//! 2377: joins from outside, sessions from inside the mesh.

use super::admission::Admission;
use super::certificate_authority::{CertificateIssuer, RenewalAuthority};
use super::current_membership::CurrentMembership;
use super::environment::Environment;
use super::greetings::Greetings;
use super::key_authority::KeyAuthority;
use super::keyring::KeyOwner;
use super::lock;
use super::manager_health;
use super::manager_links::{ManagerLinks, mesh_address};
use super::manager_role::ManagerPart;
use super::manager_settings::manager_settings;
use super::network::MeshNetwork;
use super::raft_members;
use super::recovery::RecoveryWindow;
use super::supervisor::{Blockers, Supervisor};
use crate::acme::{AcmeWorker, AcmeWorkerConfig, DnsHook};
use crate::clock::Clock;
use crate::datapath::mesh::Mesh;
use crate::datapath::sockets::HereSockets;
use crate::datapath::{Sockets as _, Tunnel};
use crate::manager::replica::{Replica, StartedReplica};
use crate::manager::{self, ApplyOutcome, LeaderHealth, Leadership, ManagerSettings, Proposer, SessionId, Sessions};
use crate::model::mesh::{DEFAULT_PORT, node_address};
use crate::model::view::Peer;
use crate::model::{NodeId, NodeView, Timestamp};
use crate::protocol::{ToManager, ToNode};
use crate::raft::{self, Raft, RaftConfig, RaftStatus};
use crate::rpc::{
    ListenerKind, ManagerGreeter, ManagerLinkConfig, ManagerServer, RefusedPeers, Server, ServerLimits, SessionServer,
    WrongSender,
};
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
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Time for another manager to take over before this one stops.
const TRANSFER: Duration = Duration::from_secs(1);
/// Silence of raft's thread after which its log is not waited for: of a disk that does not answer.
const CLOSE: Duration = Duration::from_secs(2);
/// Time for the leader to fill the store of a new manager before its API is served.
const FILLED: Duration = Duration::from_secs(10);
/// Time in which an election is over that can succeed.
const ELECTION: Duration = Duration::from_secs(1);
/// Time to connect to another manager.
const LINK_CONNECT: Duration = Duration::from_secs(1);
/// A connection that breaks after this time was wanted by the other manager.
const LINK_STEADY: Duration = Duration::from_millis(500);

/// Raft and the store behind it.
pub(super) struct ManagerStore {
    pub store: StoreHandle,
    pub raft: Raft<ApplyOutcome>,
    proposer: Arc<Proposer>,
    links: Arc<ManagerLinks>,
    stop: CancellationToken,
}

/// How raft's log is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OpenLog {
    /// Create a log with this manager as the only voter.
    Bootstrap,
    /// Continue the log on disk.
    Existing,
    /// Continue the log on disk, or create an empty one: the leader fills it.
    Join,
}

impl ManagerStore {
    /// # Errors
    /// The log cannot be opened.
    pub(super) async fn open(env: &Environment, raft_id: u64, log: OpenLog) -> anyhow::Result<Self> {
        let settings = &env.settings;
        let config = RaftConfig {
            tick: Duration::from_millis(settings.raft.tick_ms),
            heartbeat_ticks: settings.raft.heartbeat_ticks,
            election_ticks: (settings.raft.election_ticks_min, settings.raft.election_ticks_max),
            snapshot_every: settings.raft.snapshot_every,
            keep_entries: settings.raft.keep_entries,
            propose_timeout: Duration::from_millis(settings.timeouts.propose_ms),
            cipher: env.keyring.clone(),
            ..RaftConfig::new(env.state_dir.raft(), raft_id)
        };
        if log == OpenLog::Join {
            raft::join(&config)?;
        }
        let (stop, links) = (CancellationToken::new(), Arc::new(ManagerLinks::default()));
        let (transport, forward) = (links.clone(), links.clone());
        let started = Replica::start(config, log == OpenLog::Bootstrap, transport, forward, stop.clone()).await?;
        let StartedReplica { store, raft, proposer } = started;
        Ok(Self { store, raft, proposer, links, stop })
    }

    async fn stop(&self) {
        // No write is lost, and the others need not find out first that this one is gone.
        self.raft.transfer_leadership(TRANSFER).await;
        self.stop.cancel();
        if !self.raft.closed_unless_held(CLOSE).await {
            tracing::warn!("the log of raft is not closed: its disk does not answer");
        }
    }
}

impl Drop for ManagerStore {
    /// Raft ends with its owner, also when an init fails before the member is started.
    fn drop(&mut self) {
        self.stop.cancel();
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
    /// Opens the log and binds the listener.
    ///
    /// # Errors
    /// The port is in use, or the log cannot be opened.
    pub(super) async fn open(env: &Environment, raft_id: u64, listen: SocketAddr, log: OpenLog) -> anyhow::Result<Self> {
        let listener = bind(listen)?;
        Ok(Self { store: ManagerStore::open(env, raft_id, log).await?, listener })
    }
}

/// A log that is being opened: that may take long, or never end on a disk that does not answer.
pub(super) struct OpeningManager(JoinHandle<anyhow::Result<PreparedManager>>);

impl OpeningManager {
    /// Opens the log on disk. Given up, it is closed as soon as it is open.
    pub(super) fn start(env: &Arc<Environment>, raft_id: u64, listen: SocketAddr) -> Self {
        let env = env.clone();
        Self(tokio::spawn(async move { PreparedManager::open(&env, raft_id, listen, OpenLog::Existing).await }))
    }

    /// Waits until it is open, once; may be dropped and called again before.
    ///
    /// # Errors
    /// As [`PreparedManager::open`].
    pub(super) async fn opened(&mut self) -> anyhow::Result<PreparedManager> {
        (&mut self.0).await?
    }
}

/// The manager's part of a node that starts, as far as it is.
pub(super) enum FirstManager {
    Prepared(PreparedManager),
    /// The node starts without it, and takes it once it is there.
    Opening(OpeningManager),
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
    membership: Arc<CurrentMembership>,
    identity: watch::Receiver<Arc<Identity>>,
    mesh: Arc<Mesh>,
    tunnel: Arc<dyn Tunnel>,
    peers: watch::Receiver<Option<Arc<NodeView>>>,
    recovery: Arc<RecoveryWindow>,
    health: watch::Sender<LeaderHealth>,
    /// While the part runs.
    raft: watch::Sender<Option<Raft<ApplyOutcome>>>,
    /// Since when no leader is known.
    leaderless: watch::Sender<Option<Timestamp>>,
    /// Of all its lives.
    refused: Arc<RefusedPeers>,
    /// For the next start.
    prepared: Option<PreparedManager>,
    opening: Option<OpeningManager>,
    running: Option<RunningManager>,
}

struct RunningManager {
    store: ManagerStore,
    /// The leader's loops.
    loops: JoinHandle<()>,
    /// Of everything else.
    supervisor: Supervisor,
}

impl ManagerServices {
    pub(super) fn new(
        env: &Arc<Environment>,
        membership: Arc<CurrentMembership>,
        identity: watch::Receiver<Arc<Identity>>,
        network: &MeshNetwork,
        recovery: Arc<RecoveryWindow>,
        first: Option<FirstManager>,
    ) -> Self {
        let (prepared, opening) = match first {
            Some(FirstManager::Prepared(prepared)) => (Some(prepared), None),
            Some(FirstManager::Opening(opening)) => (None, Some(opening)),
            None => (None, None),
        };
        Self {
            env: env.clone(),
            membership,
            identity,
            mesh: network.mesh.clone(),
            tunnel: network.tunnel.clone(),
            peers: network.peers.subscribe(),
            recovery,
            health: watch::channel(LeaderHealth::default()).0,
            raft: watch::channel(None).0,
            leaderless: watch::channel(None).0,
            refused: Arc::default(),
            prepared,
            opening,
            running: None,
        }
    }

    /// What of the leader's loops does not work; nothing while they do not run.
    pub(super) fn health(&self) -> watch::Receiver<LeaderHealth> {
        self.health.subscribe()
    }

    /// Raft; `None` while it does not run.
    pub(super) fn raft(&self) -> watch::Receiver<Option<Raft<ApplyOutcome>>> {
        self.raft.subscribe()
    }

    /// Since when no leader is known; `None` if one is, and while the part does not run.
    pub(super) fn leaderless(&self) -> watch::Receiver<Option<Timestamp>> {
        self.leaderless.subscribe()
    }

    /// Connections that it has refused.
    pub(super) fn refused(&self) -> Arc<RefusedPeers> {
        self.refused.clone()
    }

    /// Its log and its listener are open.
    pub(super) fn is_prepared(&self) -> bool {
        self.prepared.is_some()
    }

    /// Starts the leader's loops and both listeners.
    fn start_services(&self, store: ManagerStore, listener: TcpListener) -> anyhow::Result<RunningManager> {
        let supervisor = Supervisor::new(self.env.blockers.clone(), Arc::default());
        let stop = supervisor.stop.clone();
        let unless_started = stop.clone().drop_guard();
        let (env, membership) = (&self.env, self.membership.get());
        let me = &membership.node_id;
        let settings = ManagerSettings { vault: Some(env.vault(me)?), ..manager_settings(&env.settings) };
        follow_raft(&store.raft, &supervisor, env.blockers.clone());
        let watched = store.raft.clone();
        supervisor.keep_until_stopped("raft turns", move || {
            let raft = watched.clone();
            async move {
                raft.watch_turns().await;
                // The thread has ended: this part ends with it, see `ManagerPart::ended`.
                std::future::pending::<()>().await;
            }
        });
        let leadership = watch_raft(&store.raft, &supervisor, |status| {
            if status.is_leader { Leadership::Leads { lost_leader: status.lost_leader } } else { Leadership::Follows }
        });
        let leads = watch_raft(&store.raft, &supervisor, |status| status.is_leader);
        let (since, clock, watched, ended) = (self.leaderless.clone(), env.clock.clone(), store.raft.status(), stop.clone());
        supervisor.once("leaderless", async move {
            let _ = ended.run_until_cancelled(watch_leaderless(watched, &*clock, &since)).await;
            since.send_replace(None);
        });
        let loops = manager::start(store.store.clone(), leadership, settings, env.clock.clone(), rand::random(), stop.clone());
        let health = manager_health::follow(loops.health, env.blockers.clone(), self.health.clone(), stop.clone());
        supervisor.once("leader's health", health);
        let acme = AcmeWorkerConfig {
            store: store.store.clone(),
            leads,
            applied: loops.applied.clone(),
            vault: env.vault(me)?,
            hook: Some(env.settings.acme.dns_hook.clone())
                .filter(|path| !path.as_os_str().is_empty())
                .map(|program| DnsHook { program }),
            clock: env.clock.clone(),
        };
        supervisor.keep_until_stopped("acme", move || AcmeWorker::new(acme.clone()).run());
        let admission = Admission::new(env, store.store.clone(), me.clone(), self.mesh.clone(), self.tunnel.clone());
        let issuer = CertificateIssuer::new(env, store.store.clone());
        let address = SocketAddr::new(IpAddr::V6(node_address(membership.subnet)), DEFAULT_PORT);
        let greetings = Arc::new(Greetings::new(
            store.store.clone(),
            store.raft.clone(),
            self.leaderless.subscribe(),
            env.clock.clone(),
            env.blockers.clone(),
        ));
        let judging = greetings.clone();
        supervisor.keep_until_stopped("incarnations", move || judging.clone().run());
        let links = ManagerLinkConfig {
            identity: self.identity.clone(),
            clock: env.clock.clone(),
            sockets: self.mesh.clone(),
            source: address.ip(),
            greeter: greetings.clone(),
            connect: LINK_CONNECT,
            steady: LINK_STEADY,
            runtime: tokio::runtime::Handle::current(),
        };
        store.links.connect(links, self.peers.clone(), store.store.clone(), store.raft.clone());
        let links = store.links.clone();
        supervisor.keep_until_stopped("manager links", move || links.clone().run());
        let owner = KeyOwner { cluster: membership.cluster_id.clone(), node: me.clone() };
        let locking = (env.clone(), store.store.clone(), store.raft.clone());
        supervisor.keep_until_stopped("encryption", move || {
            let (env, store, raft) = locking.clone();
            lock::follow(env, owner.clone(), store, raft)
        });
        raft_members::keep(&supervisor, store.raft.clone(), store.store.clone(), env.clock.clone());
        let managers =
            OtherManagers { raft: store.raft.clone(), proposer: store.proposer.clone(), links: store.links.clone(), greetings };
        let limits = ServerLimits { join: env.settings.timeouts.join(), ..ServerLimits::default() };
        let server = Server::new(
            self.identity.clone(),
            env.clock.clone(),
            Arc::new(admission),
            Arc::new(DispatcherSessions {
                sessions: loops.sessions,
                store: store.store.clone(),
                raft: store.raft.clone(),
                links: store.links.clone(),
            }),
            Arc::new(RenewalAuthority::new(issuer, self.recovery.clone())),
            Arc::new(managers),
            limits,
        )?;
        let keys = KeyAuthority { store: store.store.clone(), clock: env.clock.clone() };
        let server = Arc::new(server.with_keys(Arc::new(keys)).with_counters(self.refused.clone()));
        let (outer, listener, ended) = (server.clone(), Arc::new(listener), stop.clone());
        supervisor.keep("joins", move || {
            let (server, listener, ended) = (outer.clone(), listener.clone(), ended.clone());
            async move { server.serve(listener, ListenerKind::Outer, ended).await }
        });
        let mesh = self.mesh.clone();
        supervisor.keep("sessions", move || serve_mesh(server.clone(), mesh.clone(), address, stop.clone()));
        unless_started.disarm();
        Ok(RunningManager { store, loops: loops.finished, supervisor })
    }
}

#[async_trait]
impl ManagerPart for ManagerServices {
    type Handle = StoreHandle;

    async fn prepare(&mut self) -> anyhow::Result<()> {
        if self.prepared.is_some() {
            return Ok(());
        }
        let opening = if let Some(opening) = &mut self.opening {
            opening
        } else {
            let membership = self.membership.get();
            let raft_id = membership.raft_id.context("this node has no raft id: it is no manager")?;
            self.opening.insert(OpeningManager::start(&self.env, raft_id, membership.listen))
        };
        let opened = opening.opened().await;
        self.opening = None;
        self.prepared = Some(opened?);
        Ok(())
    }

    fn release(&mut self) {
        (self.prepared, self.opening) = (None, None);
    }

    async fn start(&mut self) -> anyhow::Result<StoreHandle> {
        self.prepare().await?;
        let PreparedManager { store, listener } = self.prepared.take().context("its log is not open")?;
        let (handle, raft) = (store.store.clone(), store.raft.clone());
        self.running = Some(self.start_services(store, listener)?);
        self.raft.send_replace(Some(raft.clone()));
        // A manager that has just joined gets its store from the leader: what is in it already is neither served nor reported as news.
        let _ = tokio::time::timeout(FILLED, raft.status().wait_for(|s| s.voters.contains(&s.id))).await;
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
            failure = running.supervisor.failed() => format!("a part of it has ended: {failure}"),
        }
    }

    async fn stop(&mut self) {
        let Some(RunningManager { store, supervisor, .. }) = self.running.take() else { return };
        self.raft.send_replace(None);
        supervisor.stop.cancel();
        store.stop().await;
        supervisor.end().await;
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

/// Publishes since when no leader is known, until raft has stopped.
async fn watch_leaderless(mut status: watch::Receiver<RaftStatus>, clock: &dyn Clock, since: &watch::Sender<Option<Timestamp>>) {
    loop {
        let has_leader = status.borrow_and_update().leader.is_some();
        let now = if has_leader { None } else { Some(since.borrow().unwrap_or_else(|| clock.now())) };
        replace_if_changed(since, now);
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// What a part of this manager follows of raft's status.
fn watch_raft<T: PartialEq + Send + Sync + 'static>(
    raft: &Raft<ApplyOutcome>,
    supervisor: &Supervisor,
    of: impl Fn(&RaftStatus) -> T + Send + 'static,
) -> watch::Receiver<T> {
    let mut status = raft.status();
    let (sender, receiver) = watch::channel(of(&status.borrow_and_update()));
    let stop = supervisor.stop.clone();
    supervisor.once("raft status", async move {
        while let Some(Ok(())) = stop.run_until_cancelled(status.changed()).await {
            replace_if_changed(&sender, of(&status.borrow_and_update()));
        }
    });
    receiver
}

/// What prevents raft from writing is among the blockers.
fn follow_raft(raft: &Raft<ApplyOutcome>, supervisor: &Supervisor, blockers: Blockers) {
    let mut problem = watch_raft(raft, supervisor, |status| status.problem.clone());
    supervisor.once("raft problem", async move {
        loop {
            let now = problem.borrow_and_update().clone();
            match now {
                Some(problem) => blockers.set("raft", problem),
                None => blockers.clear("raft"),
            }
            if problem.changed().await.is_err() {
                break;
            }
        }
        blockers.clear("raft");
    });
}

/// Passes what other managers send to raft and to the proposer.
struct OtherManagers {
    raft: Raft<ApplyOutcome>,
    proposer: Arc<Proposer>,
    links: Arc<ManagerLinks>,
    greetings: Arc<Greetings>,
}

impl ManagerGreeter for OtherManagers {
    fn greeting(&self) -> Vec<u8> {
        self.greetings.greeting()
    }
    fn greeted(&self, node: &NodeId, greeting: &[u8]) {
        self.greetings.greeted(node, greeting);
    }
}

#[async_trait]
impl ManagerServer for OtherManagers {
    fn is_manager(&self, node: &NodeId, address: IpAddr) -> bool {
        self.links.is_manager(node, address)
    }
    fn raft(&self, node: &NodeId, message: Vec<u8>) -> Result<(), WrongSender> {
        let from = raft::sender(&message).filter(|from| self.links.may_speak_for(node, *from)).ok_or(WrongSender)?;
        self.raft.step(from, message);
        Ok(())
    }
    async fn propose(&self, document: Vec<u8>) -> Vec<u8> {
        self.proposer.answer(&document).await
    }
}

/// Passes rpc's sessions to the dispatcher.
struct DispatcherSessions {
    sessions: Sessions,
    store: StoreHandle,
    raft: Raft<ApplyOutcome>,
    links: Arc<ManagerLinks>,
}

impl DispatcherSessions {
    /// The manager that leads, if that is another one. Waits for an election.
    async fn other_leader(&self) -> Option<Peer> {
        let mut status = self.raft.status();
        let known = tokio::time::timeout(ELECTION, status.wait_for(|s| s.leader.is_some())).await.ok()?.ok()?;
        let leader = known.leader.filter(|leader| *leader != known.id)?;
        drop(known);
        self.links.manager(leader)
    }
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
        if let Some(leader) = self.other_leader().await {
            let _ = out.try_send(ToNode::NotLeader { leader: Some(mesh_address(&leader)), manager: Some(Box::new(leader)) });
            anyhow::bail!("another manager leads");
        }
        Ok(self.sessions.open(node, hello, out).await.0)
    }
    async fn message(&self, session: u64, message: ToManager) {
        self.sessions.message(SessionId(session), message).await;
    }
    async fn closed(&self, session: u64) {
        self.sessions.close(SessionId(session));
    }
}

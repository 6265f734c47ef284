//! The manager's part of a member: raft with the store behind it, the loops that the leader runs, and the two doors on
//! 2377: joins from outside, sessions from inside the mesh.

use super::admission::Admission;
use super::manager_settings::manager_settings;
use super::network::Network;
use super::state_dir::MembershipFile;
use super::{Daemon, member};
use crate::datapath::Sockets as _;
use crate::manager::replica::{ApplyOutcome, Replica};
use crate::manager::{self, SessionId, Sessions};
use crate::model::mesh::{DEFAULT_PORT, node_address};
use crate::model::{NodeId, Role};
use crate::protocol::{ToManager, ToNode};
use crate::raft::{Raft, RaftConfig, Transport};
use crate::rpc::{Limits, ListenerKind, Server, SessionServer};
use crate::store::StoreHandle;
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

/// Raft and store of a manager.
pub(super) struct Replicated {
    pub store: StoreHandle,
    pub raft: Raft<ApplyOutcome>,
    stop: CancellationToken,
}

impl Replicated {
    /// Opens the log; `bootstrap` makes a new one with this manager as the only voter.
    pub(super) async fn start(daemon: &Daemon, raft_id: u64, bootstrap: bool) -> anyhow::Result<Self> {
        let settings = &daemon.settings;
        let config = RaftConfig {
            dir: settings.data_dir.join("raft"),
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
        let (store, raft) = Replica::start(config, bootstrap, Arc::new(NoPeers), stop.clone()).await?;
        Ok(Self { store, raft, stop })
    }

    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.raft.closed().await;
    }
}

impl Drop for Replicated {
    /// Raft ends with its owner, also when an init fails half-way.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// There is one manager yet, so nobody to send to.
struct NoPeers;

impl Transport for NoPeers {
    fn send(&self, to: u64, _message: Vec<u8>) {
        tracing::warn!(to, "a raft message for another manager was dropped: further managers are not built yet");
    }
}

/// Binds the outer door, so that a port that is taken shows before anything is written.
pub(super) fn bind(listen: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = crate::datapath::sockets::HereSockets.listen(listen).with_context(|| {
        format!("cannot listen on {listen}/tcp: is another swarm or program on it? (`ss -ltnp sport = :{}`)", listen.port())
    })?;
    Ok(TcpListener::from_std(socket)?)
}

/// Starts the loops and opens both doors.
#[expect(clippy::too_many_arguments, reason = "what a manager is made of, named where it is put together")]
pub(super) fn start(
    daemon: &Daemon,
    record: &MembershipFile,
    identity: &Arc<Identity>,
    network: &Network,
    replicated: &Replicated,
    outer: TcpListener,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<()> {
    let timeouts = daemon.settings.timeouts;
    let settings = manager_settings(&daemon.settings);
    let leads = leads(&replicated.raft, tasks, stop);
    let loops = manager::start(replicated.store.clone(), leads, settings, daemon.clock.clone(), rand::random(), stop.clone());
    let admission = Admission::new(replicated.store.clone(), daemon.clock.clone(), record.node_id.clone(), network);
    let limits = Limits { join: timeouts.join(), ..Limits::default() };
    let server =
        Server::new(identity.clone(), daemon.clock.clone(), Arc::new(admission), Arc::new(Dispatch(loops.sessions)), limits)?;
    let server = Arc::new(server);
    let (outside, outside_stop) = (server.clone(), stop.clone());
    tasks.spawn(async move { outside.serve(outer, ListenerKind::Outer, outside_stop).await });
    let (mesh, stop) = (network.mesh.clone(), stop.clone());
    let address = SocketAddr::new(IpAddr::V6(node_address(record.subnet)), DEFAULT_PORT);
    tasks.spawn(async move {
        // The address is there once the overlay loop has put it on.
        let listener = member::until(&stop, || Ok(TcpListener::from_std(mesh.listen(address)?)?)).await;
        if let Some(listener) = listener {
            server.serve(listener, ListenerKind::Mesh, stop).await;
        }
    });
    Ok(())
}

/// Whether this manager leads, as it changes.
fn leads(raft: &Raft<ApplyOutcome>, tasks: &TaskTracker, stop: &CancellationToken) -> watch::Receiver<bool> {
    let mut status = raft.status();
    let (sender, receiver) = watch::channel(status.borrow().is_leader);
    let stop = stop.clone();
    tasks.spawn(async move {
        loop {
            let now = status.borrow_and_update().is_leader;
            sender.send_if_modified(|before| std::mem::replace(before, now) != now);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = status.changed() => if changed.is_err() { return },
            }
        }
    });
    receiver
}

/// rpc's sessions, handed to the dispatcher.
struct Dispatch(Sessions);

#[async_trait]
impl SessionServer for Dispatch {
    async fn open(&self, node: NodeId, hello: ToManager, out: mpsc::Sender<ToNode>) -> anyhow::Result<u64> {
        Ok(self.0.open(node, hello, out).await.0)
    }
    async fn message(&self, session: u64, message: ToManager) {
        self.0.message(SessionId(session), message).await;
    }
    async fn closed(&self, session: u64) {
        self.0.close(SessionId(session));
    }
}

/// The role that a record gives.
pub(super) fn is_manager(record: &MembershipFile) -> bool {
    record.role == Role::Manager
}

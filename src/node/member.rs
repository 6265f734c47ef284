//! A running membership: the network, every loop of the node on one view, the session to the leader, and on managers the
//! manager's part.

use super::advertised;
use super::certificate_authority::CertificateIssuer;
use super::current_membership::CurrentMembership;
use super::engine_watch::{self, EngineReports, EngineWatch};
use super::environment::Environment;
use super::issuer_watch::IssuerWatch;
use super::key_change::KeyChanger;
use super::lifecycle::Leave;
use super::logs::TaskLogs;
use super::loops::{self, AppliedRevisions, LoopContext, RunningLoops};
use super::manager_part::{FirstManager, ManagerServices};
use super::manager_role::ManagerRole;
use super::membership_teardown;
use super::membership_writer;
use super::network::MeshNetwork;
use super::recovery::RecoveryWindow;
use super::renewal::{Renewal, RenewalState, StoreOrManagers};
use super::role::RoleFollower;
use super::session::{self, LoopReports, RunningSession};
use super::state_dir::MembershipFile;
use super::troubles::{self, TroubleSources, Troubles};
use crate::datapath::Tunnel;
use crate::dns::DnsCounts;
use crate::ingress::PortStatus;
use crate::ingress::ebpf::EbpfStatus;
use crate::ingress::http::HttpStatus;
use crate::manager::{ApplyOutcome, LeaderHealth};
use crate::model::mesh::node_address;
use crate::model::node::NodeDescription;
use crate::model::{NodeSpec, NodeView, Role, Timestamp};
use crate::protocol::ToManager;
use crate::raft::{Raft, RaftStatus};
use crate::rpc::{RefusedPeers, RenewalConfig};
use crate::store::{Action, FEATURE_LEVELS, FieldUpdate, StoreHandle};
use crate::trust::Identity;
use async_trait::async_trait;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How long a daemon that stops may be away, in milliseconds, before its tasks run elsewhere.
const RESTART_MS: u64 = 30_000;

/// Time for the leader to record that this node leaves.
const ANNOUNCE: Duration = Duration::from_secs(1);

/// Time for the other managers to take this one out of raft before it leaves.
const LEAVE_MANAGERS: Duration = Duration::from_secs(5);

/// Time for one manager to answer a request for a certificate.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A running membership.
pub(super) struct Member {
    pub membership: MembershipFile,
    pub network: MeshNetwork,
    /// The node's identity; each connection uses the one of that moment, and the session is opened again with a new one.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// How the renewal of its certificate goes.
    pub renewal: watch::Receiver<RenewalState>,
    /// When this node, as a manager, renews expired certificates.
    pub recovery: Arc<RecoveryWindow>,
    /// The node's role; the manager's part starts and stops with it.
    role: watch::Sender<Role>,
    /// The store, while the manager's part runs.
    store: watch::Receiver<Option<StoreHandle>>,
    /// What of the leader's loops on this node does not work.
    pub leader_health: watch::Receiver<LeaderHealth>,
    /// Connections that the manager's part has refused.
    pub refused: Arc<RefusedPeers>,
    raft: watch::Receiver<Option<Raft<ApplyOutcome>>>,
    /// Since when this node, as a manager, knows no leader.
    pub leaderless: watch::Receiver<Option<Timestamp>>,
    pub ports: watch::Receiver<Vec<PortStatus>>,
    pub ebpf: watch::Receiver<EbpfStatus>,
    pub http: watch::Receiver<HttpStatus>,
    pub names: Arc<DnsCounts>,
    pub applied: AppliedRevisions,
    pub troubles: watch::Receiver<Troubles>,
    pub session: RunningSession,
    pub logs: Arc<TaskLogs>,
    pub keys: Arc<KeyChanger>,
    context: LoopContext,
}

impl Member {
    /// Starts every loop on a network that is up. `manager` is for a node that starts as a manager.
    ///
    /// # Errors
    /// A part cannot be started.
    pub(super) async fn start(
        env: &Arc<Environment>,
        membership: MembershipFile,
        identity: Identity,
        network: MeshNetwork,
        manager: Option<FirstManager>,
    ) -> anyhow::Result<Self> {
        let context = LoopContext::new(env, &membership.node_id, &network);
        // Ends what was started before a failure.
        let unless_started = (context.stop().drop_guard(), network.stop_unless_started());
        let trust = network.view.borrow().as_ref().and_then(|view| view.cluster.trust.clone());
        let (identity_sender, identity) = watch::channel(Arc::new(identity.trusting(trust)));
        let RunningLoops { applied, ports, ebpf, http, names, statuses, listens, loads, demand, engine_answers } =
            loops::start(&context, &network)?;
        let current = Arc::new(CurrentMembership::new(env.state_dir.clone(), membership.clone()));
        let engine = start_engine_watch(&context, &current, engine_answers).await;
        let (troubles_sender, troubles) = watch::channel(Troubles::new());
        let sources = TroubleSources {
            loops: applied.clone(),
            view: context.view.subscribe(),
            ebpf: ebpf.clone(),
            engine: engine.trouble,
            blockers: env.blockers.clone(),
        };
        let stop = context.stop();
        context.supervisor.keep("troubles", move || troubles::run(sources.clone(), troubles_sender.clone(), stop.clone()));
        let (addresses, blockers, stop) = (membership.addresses(), env.blockers.clone(), context.stop());
        context.supervisor.keep("advertised address", move || advertised::run(addresses.clone(), blockers.clone(), stop.clone()));
        let (description, troubles_now) = (engine.description, troubles.clone());
        let reports =
            LoopReports { applied: applied.receivers(), statuses, listens, loads, demand, troubles: troubles_now, description };
        let session = session::start(&context, &current, identity.clone(), reports)?;
        let logs = Arc::new(TaskLogs::start(&context, &membership, &identity));
        let recovery = Arc::new(RecoveryWindow::default());
        let (role, roles) = watch::channel(membership.current_role());
        let services = ManagerServices::new(env, current.clone(), identity.clone(), &network, recovery.clone(), manager);
        let (leader_health, refused) = (services.health(), services.refused());
        let (raft, leaderless) = (services.raft(), services.leaderless());
        let store = start_manager_role(services, roles, &context).await?;
        let (certificate, certificate_role) = watch::channel(identity.borrow().role());
        let issuer = IssuerWatch { view: context.view.subscribe(), session: session.state.clone() };
        let keys = start_key_changer(&context, &membership, &identity, store.clone(), network.tunnel.clone());
        let renewal = start_renewal(&context, &membership, identity_sender, certificate_role, issuer, store.clone());
        let follower = RoleFollower {
            me: membership.node_id.clone(),
            env: env.clone(),
            membership: current,
            view: context.view.subscribe(),
            identity: identity.clone(),
            certificate,
            role: role.clone(),
            store: store.clone(),
        };
        context.supervisor.once("role", follower.run(context.stop()));
        context.supervisor.once("removal", end_role_when_removed(session.removed.clone(), role.clone(), context.stop()));
        let (loops, overlay) = unless_started;
        for started in [loops, overlay] {
            started.disarm();
        }
        Ok(Self {
            membership,
            network,
            identity,
            renewal,
            recovery,
            role,
            store,
            leader_health,
            refused,
            raft,
            leaderless,
            ports,
            ebpf,
            http,
            names,
            applied,
            troubles,
            session,
            logs,
            keys,
            context,
        })
    }

    /// The view that the node follows.
    pub(super) fn view(&self) -> Option<Arc<NodeView>> {
        self.network.view.borrow().clone()
    }

    pub(super) fn role(&self) -> Role {
        *self.role.borrow()
    }

    /// The store; `None` on a worker.
    pub(super) fn store(&self) -> Option<StoreHandle> {
        self.store.borrow().clone()
    }

    /// Status of raft; `None` while the manager's part does not run.
    pub(super) fn raft_status(&self) -> Option<RaftStatus> {
        self.raft.borrow().as_ref().map(|raft| raft.status().borrow().clone())
    }

    /// Waits until the store is served; never on a worker.
    pub(super) async fn has_store(&self) {
        let _ = self.store.clone().wait_for(Option::is_some).await;
    }

    /// Address that the node advertises: its own setting, or the one that the manager saw.
    pub(super) fn advertised(&self) -> Option<IpAddr> {
        self.membership.advertise.or_else(|| {
            let view = self.view()?;
            view.cluster.node(&self.membership.node_id)?.endpoints.first().map(std::net::SocketAddr::ip)
        })
    }

    /// Why the leader has removed this node, if it has.
    pub(super) fn removed(&self) -> Option<String> {
        self.session.removed.borrow().clone()
    }

    /// Ends this node's part in raft, if the other managers are a quorum: they go on without waiting for it.
    async fn leave_managers(&self) {
        let (Some(store), me) = (self.store(), &self.membership.node_id) else { return };
        let mut view = store.watch();
        let current = view.borrow_and_update().clone();
        let others = current.nodes().filter(|n| n.manager.is_some() && n.id != *me);
        let Some(node) = current.node(me).filter(|_| others.count() > 0) else { return };
        let spec = NodeSpec { role: Role::Worker, ..node.spec.clone() };
        let demote = FieldUpdate::NodeSpec { id: me.clone(), version: node.meta.version, spec };
        let demoted = store.write(self.context.env.clock.now(), vec![Action::Set(demote)]).await;
        let gone = view.wait_for(|store| store.node(me).is_none_or(|node| node.manager.is_none()));
        match (demoted, tokio::time::timeout(LEAVE_MANAGERS, gone).await) {
            (Ok(_), Ok(Ok(_))) => {}
            (Err(error), _) => {
                tracing::warn!(%error, "this manager leaves, and the others still count it: demote and remove it there");
            }
            (Ok(_), _) => tracing::warn!("this manager leaves before the others have taken it out of raft"),
        }
    }

    /// Tells the leader that the daemon is about to stop while its containers run on. Sent when the loops stop.
    pub(super) fn announce_restart(&self) {
        let _ = self.session.outgoing.try_send(ToManager::Restarting { for_ms: RESTART_MS });
    }

    /// Stops the loops; containers, tunnel and routes stay.
    pub(super) async fn pause(&self) {
        self.context.supervisor.stop.cancel();
        self.network.pause().await;
        self.context.supervisor.end().await;
    }
}

/// A manager that was removed from the cluster is none any more: its raft would ask for votes for ever.
async fn end_role_when_removed(mut removed: watch::Receiver<Option<String>>, role: watch::Sender<Role>, stop: CancellationToken) {
    if let Some(Ok(_)) = stop.run_until_cancelled(removed.wait_for(Option::is_some)).await {
        role.send_replace(Role::Worker);
    }
}

/// What the node's parts follow of the engine.
struct EngineFacts {
    description: watch::Receiver<NodeDescription>,
    trouble: watch::Receiver<String>,
}

/// Follows the engine, and keeps `node.json` current. Returns at once if an earlier run has described the host: a session
/// must not wait for a slow engine.
async fn start_engine_watch(
    context: &LoopContext,
    current: &Arc<CurrentMembership>,
    answers: watch::Receiver<bool>,
) -> EngineFacts {
    let (env, membership) = (&context.env, current.get());
    let first = match membership.description.clone() {
        // Of the host as an earlier run knew it, and of this build.
        Some(known) => NodeDescription {
            ebpf_datapath: env.takes_ports.load(Ordering::Relaxed),
            feature_levels: Some(FEATURE_LEVELS),
            ..known
        },
        None => env.description().await,
    };
    let down_after = Duration::from_millis(env.settings.timeouts.node_down_ms);
    let known_first = first.clone();
    let (description_sender, description) = watch::channel(first);
    let (trouble_sender, trouble) = watch::channel(String::new());
    let (known_sender, known) = watch::channel(membership.description.clone());
    let reports = EngineReports { description: description_sender, trouble: trouble_sender, known: known_sender };
    let (looked_at, stop) = (env.clone(), context.stop());
    context.supervisor.keep("engine", move || {
        let watch = EngineWatch::new(known_first.clone(), down_after);
        let looked_at = looked_at.clone();
        let report = move || {
            let env = looked_at.clone();
            async move { env.report().await }
        };
        engine_watch::run(report, watch, answers.clone(), reports.clone(), stop.clone())
    });
    let (current, view, stop) = (current.clone(), context.view.clone(), context.stop());
    let blockers = env.blockers.clone();
    context.supervisor.keep("membership", move || {
        membership_writer::run(
            current.clone(),
            view.subscribe(),
            known.clone(),
            blockers.clone(),
            membership_writer::RETRY,
            stop.clone(),
        )
    });
    EngineFacts { description, trouble }
}

/// Starts the manager's part if the role requires it, and follows the role from then on.
async fn start_manager_role(
    services: ManagerServices,
    roles: watch::Receiver<Role>,
    context: &LoopContext,
) -> anyhow::Result<watch::Receiver<Option<StoreHandle>>> {
    let prepared = services.is_prepared();
    let mut manager = ManagerRole::new(services, context.env.blockers.clone());
    let first = *roles.borrow();
    // What could not be prepared is tried again beside the node's own loops.
    if prepared || first == Role::Worker {
        manager.apply(first).await?;
    }
    let store = manager.handle();
    context.supervisor.once("manager", manager.follow(roles, context.stop()));
    Ok(store)
}

/// Goes on with a change of the node's WireGuard key, and begins one when a user asks for it.
fn start_key_changer(
    context: &LoopContext,
    membership: &MembershipFile,
    identity: &watch::Receiver<Arc<Identity>>,
    store: watch::Receiver<Option<StoreHandle>>,
    tunnel: Arc<dyn Tunnel>,
) -> Arc<KeyChanger> {
    let keys = Arc::new(KeyChanger {
        env: context.env.clone(),
        me: membership.node_id.clone(),
        view: context.view.subscribe(),
        identity: identity.clone(),
        store,
        tunnel,
        managers: RenewalConfig { own: None, ..managers(context, membership) },
        wake: Notify::new(),
        state: watch::channel(None).0,
    });
    context.supervisor.once("key change", keys.clone().run(context.stop()));
    keys
}

/// How this node asks managers.
fn managers(context: &LoopContext, membership: &MembershipFile) -> RenewalConfig {
    RenewalConfig {
        clock: context.env.clock.clone(),
        candidates: session::candidates(context),
        node_at: session::node_at(context),
        sockets: context.mesh.clone(),
        source: IpAddr::V6(node_address(membership.subnet)),
        own: Some(IpAddr::V6(node_address(membership.subnet))),
        timeout: RENEWAL_TIMEOUT,
    }
}

/// Keeps the node's certificate valid.
fn start_renewal(
    context: &LoopContext,
    membership: &MembershipFile,
    identity: watch::Sender<Arc<Identity>>,
    role: watch::Receiver<Role>,
    issuer: IssuerWatch,
    store: watch::Receiver<Option<StoreHandle>>,
) -> watch::Receiver<RenewalState> {
    let env = context.env.clone();
    let managers = managers(context, membership);
    let (clock, files) = (env.clock.clone(), env.certificates.clone());
    let keyring = env.keyring.clone();
    let (issuers, wanted) = (move |store| CertificateIssuer::new(&env, store), role.clone());
    let source = StoreOrManagers { store, issuer: issuers, role: wanted, managers, keyring };
    let (state, renewal) = watch::channel(RenewalState::default());
    let (following, stop) = (issuer.clone().follow(identity.clone()), context.stop());
    context.supervisor.once("trust", async move {
        let _ = stop.run_until_cancelled(following).await;
    });
    context.supervisor.once("renewal", Renewal { clock, identity, role, issuer, source, files, state }.run(context.stop()));
    renewal
}

#[async_trait]
impl Leave for Member {
    async fn announce(&self) {
        if self.role() == Role::Manager {
            self.leave_managers().await;
        }
        let sent = self.session.outgoing.send(ToManager::Leave).await.is_ok();
        if sent && self.session.state.borrow().leader.is_some() {
            // The leader closes the session once it has recorded the leave.
            let mut state = self.session.state.clone();
            let _ = tokio::time::timeout(ANNOUNCE, state.wait_for(|s| s.leader.is_none())).await;
        }
    }

    fn mark_left(&self) -> anyhow::Result<()> {
        self.context.env.state_dir.mark_left()
    }

    async fn take_down(&self) -> anyhow::Result<()> {
        self.pause().await;
        membership_teardown::take_down_and_forget(&self.context.env, &self.membership.node_id, &self.network).await
    }
}

//! Starts a member's session to the leader: its candidates, its hello, and the relay to the loops.

use super::current_membership::CurrentMembership;
use super::learned_managers;
use super::ledger_writer;
use super::loops::{AppliedRevisions, LoopContext};
use super::relay::SessionRelay;
use super::removal::RemovalWatch;
use super::state_dir::MembershipFile;
use super::troubles::Troubles;
use crate::model::mesh::{DEFAULT_PORT, node_address};
use crate::model::node::NodeDescription;
use crate::model::{Demand, ListeningPort, NodeView, Revision, TaskId, TaskStatus};
use crate::protocol::{FORMATS, ToManager, ToNode};
use crate::rpc::{NodeAt, SessionChannels, SessionConfig, SessionEnd, SessionState, keep_session};
use crate::sync::replace_if_changed;
use crate::trust::Identity;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What the loops report.
pub(super) struct LoopReports {
    /// Applied revision of each loop.
    pub applied: Vec<watch::Receiver<Revision>>,
    pub statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    pub listens: mpsc::Receiver<(TaskId, Vec<ListeningPort>)>,
    /// Connections by task.
    pub loads: watch::Receiver<BTreeMap<TaskId, u32>>,
    /// What is seen of clients.
    pub demand: watch::Receiver<Demand>,
    pub troubles: watch::Receiver<Troubles>,
    pub description: watch::Receiver<NodeDescription>,
}

/// A session that is kept.
pub(super) struct RunningSession {
    pub state: watch::Receiver<SessionState>,
    /// The leader's reason, once it has removed this node.
    pub removed: watch::Receiver<Option<String>>,
    pub outgoing: mpsc::Sender<ToManager>,
}

/// Starts the relay, then the session.
///
/// # Errors
/// The ledger cannot be written.
pub(super) fn start(
    context: &LoopContext,
    current: &Arc<CurrentMembership>,
    identity: watch::Receiver<Arc<Identity>>,
    reports: LoopReports,
) -> anyhow::Result<RunningSession> {
    let membership = &current.get();
    let LoopReports { applied, statuses, listens, loads, demand, troubles, description } = reports;
    let env = &context.env;
    let (lowest_sender, lowest) = watch::channel(Revision::default());
    context.supervisor.once("revisions", AppliedRevisions::publish_lowest(applied, lowest_sender));
    let (incoming_sender, incoming) = mpsc::channel(64);
    let (outgoing, outgoing_receiver) = mpsc::channel(256);
    let (state_sender, state) = watch::channel(SessionState::default());
    let ledger = env.state_dir.ledger();
    let first = context.view.borrow().clone();
    if let Some(first) = first.as_deref() {
        // A node that is killed right after its join restarts from it.
        ledger.store(first)?;
    }
    let (view, blockers, stop) = (context.view.clone(), env.blockers.clone(), context.stop());
    context.supervisor.keep("ledger", move || {
        ledger_writer::run(ledger.clone(), view.subscribe(), blockers.clone(), ledger_writer::RETRY, stop.clone())
    });
    let (view, relay_outgoing) = (context.view.clone(), outgoing.clone());
    let attachments = env.attachments.wanted();
    let delivered = context.has_session_view.clone();
    let relay = SessionRelay {
        view,
        delivered,
        incoming,
        outgoing: relay_outgoing,
        statuses,
        listens,
        loads,
        demand,
        troubles,
        attachments,
    };
    context.supervisor.once("relay", relay.run());

    let (has_session, mut of_session) = (context.has_session.clone(), state.clone());
    context.supervisor.once("has session", async move {
        while of_session.changed().await.is_ok() {
            replace_if_changed(&has_session, of_session.borrow_and_update().leader.is_some());
        }
    });

    let (reason, removed) = watch::channel(membership.removed.clone());
    if let Some(why) = membership.removed.clone() {
        // As it was before the daemon was started again: nothing of the swarm runs until the node leaves.
        tracing::error!(why, "this node is no longer a member: run `skep leave --force` here, then join again");
        context.supervisor.once("session", async move { drop(incoming_sender.send(ToNode::Removed(why)).await) });
        return Ok(RunningSession { state, removed, outgoing });
    }

    let presented = identity.clone();
    let mut config = SessionConfig::new(
        identity,
        env.clock.clone(),
        candidates(context),
        context.mesh.clone(),
        IpAddr::V6(node_address(membership.subnet)),
    );
    config.node_at = node_at(context);
    config.learn = learned_managers::learn(context.known_managers.clone(), membership.node_id.clone());
    config.heartbeat = Duration::from_millis(env.settings.timeouts.heartbeat_ms);
    config.dead_after = Duration::from_millis(env.settings.timeouts.node_down_ms);
    let hello = Arc::new(hello(context, membership, description.clone(), presented));
    resend_hello(context, description, hello.clone(), outgoing.clone());
    let channels =
        SessionChannels { incoming: incoming_sender.clone(), outgoing: outgoing_receiver, applied: lowest, state: state_sender };
    let asking = RemovalWatch::new(context, membership.node_id.clone(), config.identity.clone(), state.clone()).removed();
    let (current, stop) = (current.clone(), context.stop());
    context.supervisor.once("session", async move {
        let why = tokio::select! {
            end = keep_session(config, move || hello(), channels, stop) => match end {
                SessionEnd::Removed(why) => why,
                SessionEnd::Shutdown => return,
            },
            why = asking => {
                let _ = incoming_sender.send(ToNode::Removed(why.clone())).await;
                why
            }
        };
        tracing::error!(why, "this node is no longer a member: run `skep leave --force` here, then join again");
        let reason_on_disk = why.clone();
        let stored = tokio::task::spawn_blocking(move || current.change(|m| m.clone().removed(Some(reason_on_disk)))).await;
        if let Err(error) = stored.map_err(anyhow::Error::from).flatten() {
            tracing::warn!(error = format!("{error:#}"), "it is not on the disk: a restart asks the managers again");
        }
        reason.send_replace(Some(why));
    });
    Ok(RunningSession { state, removed, outgoing })
}

/// Makes the hello of each session.
fn hello(
    context: &LoopContext,
    membership: &MembershipFile,
    description: watch::Receiver<NodeDescription>,
    identity: watch::Receiver<Arc<Identity>>,
) -> impl Fn() -> ToManager + Send + Sync + 'static {
    let (view, addresses) = (context.view.subscribe(), membership.addresses());
    let (endpoints, advertised) = (addresses.endpoints(), addresses.advertised_apart());
    move || ToManager::Hello {
        format: FORMATS.oldest,
        formats: Some(FORMATS),
        description: NodeDescription { issuer: issuer(&identity.borrow()), advertised, ..description.borrow().clone() },
        endpoints: endpoints.iter().copied().filter(|e| !e.ip().is_unspecified()).collect(),
        have: view.borrow().as_ref().map(|v| v.revision).unwrap_or_default(),
    }
}

/// Digest of the CA of the node's certificate.
fn issuer(identity: &Identity) -> String {
    identity.ca_digest().map(|digest| digest.to_string()).unwrap_or_default()
}

/// Sends the hello again within a session when the description changes: a node whose engine does not answer gets no tasks.
fn resend_hello(
    context: &LoopContext,
    mut description: watch::Receiver<NodeDescription>,
    hello: Arc<impl Fn() -> ToManager + Send + Sync + 'static>,
    outgoing: mpsc::Sender<ToManager>,
) {
    context.supervisor.once("description", async move {
        while description.changed().await.is_ok() {
            let _ = outgoing.send(hello()).await;
        }
    });
}

/// The node of a mesh address, from the view of this moment.
pub(super) fn node_at(context: &LoopContext) -> NodeAt {
    let view = context.peers.clone();
    Arc::new(move |address| {
        let view = view.borrow();
        let mut nodes = view.iter().flat_map(|view| view.cluster.nodes.iter());
        nodes.find(|node| IpAddr::V6(node.address()) == address).map(|node| node.node_id.clone())
    })
}

/// The managers' mesh addresses, from the view.
pub(super) fn candidates(context: &LoopContext) -> watch::Receiver<Vec<SocketAddr>> {
    let managers = |view: &Option<Arc<NodeView>>| -> Vec<SocketAddr> {
        let nodes = view.iter().flat_map(|v| v.cluster.nodes.iter());
        nodes.filter(|n| n.manager).map(|n| SocketAddr::new(IpAddr::V6(n.address()), DEFAULT_PORT)).collect()
    };
    let mut view = context.peers.clone();
    let (sender, receiver) = watch::channel(managers(&view.borrow_and_update()));
    let stop = context.stop();
    context.supervisor.once("candidates", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = view.changed() => if changed.is_err() { return },
            }
            let now = managers(&view.borrow_and_update());
            replace_if_changed(&sender, now);
        }
    });
    receiver
}

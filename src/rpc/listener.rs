//! Accepts connections on 2377: TLS handshake, then by ALPN to the join, the session or the renewal. Unauthenticated connections are
//! bounded in number, size and time; a connection that does not speak the protocol is logged and closed, and disturbs no
//! other.

use super::failed_joins::FailedJoins;
use super::join::{
    JoinAuthority,
    server::{self as join, FailedJoin},
};
use super::key_change::{self, KeyChangeAuthority};
use super::limits::ServerLimits;
use super::managers::{ManagerServer, server as managers};
use super::membership;
use super::refused::{PeerRefusal, RefusedPeers};
use super::renewal::{CertificateAuthority, CertificateHolder, server as renewal};
use super::session::{SessionServer, server as session};
use super::tls::{self, ServerTls};
use crate::accept::{self, ConnectionLimiter, Listener, Permit, Refusals, accept_each};
use crate::clock::{self, Clock};
use crate::model::Role;
use crate::protocol::shared_documents::SharedDocuments;
use crate::sync::lock;
use crate::trust::{Identity, NodeName, Validity};
use anyhow::Context as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// What a listener is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerKind {
    /// Faces the LAN: joins, and questions of nodes that have lost their tunnel.
    Outer,
    /// Inside the mesh: sessions and renewals.
    Mesh,
}

impl ListenerKind {
    /// The one protocol here for which a certificate may have expired.
    fn lenient(self) -> &'static [u8] {
        match self {
            Self::Outer => tls::MEMBERSHIP,
            Self::Mesh => tls::CERTIFICATE,
        }
    }
}

/// The manager's side of the protocol. One instance serves both listeners.
pub struct Server {
    context: Arc<ConnectionContext>,
}

/// In the log.
const SERVER: &str = "the managers' port";

/// What every connection of a [`Server`] uses.
struct ConnectionContext {
    tls: ServerTls,
    join: Arc<dyn JoinAuthority>,
    sessions: Arc<dyn SessionServer>,
    certificates: Arc<dyn CertificateAuthority>,
    /// Set before it serves, on managers of this build.
    keys: Option<Arc<dyn KeyChangeAuthority>>,
    managers: Arc<dyn ManagerServer>,
    clock: Arc<dyn Clock>,
    limits: ServerLimits,
    outer: ConnectionLimiter,
    /// Of members' own addresses: bounded by their number.
    members: ConnectionLimiter,
    /// Of other addresses in the mesh.
    mesh: ConnectionLimiter,
    /// Joins that were not admitted.
    refused_joins: Mutex<FailedJoins>,
    /// Joins that were admitted, and revoked.
    revoked_joins: Mutex<FailedJoins>,
    /// Of all sessions.
    documents: Arc<SharedDocuments>,
    /// What is logged of connections that did not come to a handshake, and of those that did: from outside, and by reason in the mesh.
    unheard: Refusals,
    refused: Refusals,
    refused_members: [Refusals; PeerRefusal::ALL.len()],
    /// All of them.
    counters: Arc<RefusedPeers>,
}

impl Server {
    /// Serves with this node's identity, which must be a manager's: clients refuse any other. Each accepted connection
    /// uses the identity of that moment; open connections keep theirs.
    ///
    /// # Errors
    /// The identity cannot be used for TLS.
    pub fn new(
        identity: watch::Receiver<Arc<Identity>>,
        clock: Arc<dyn Clock>,
        join: Arc<dyn JoinAuthority>,
        sessions: Arc<dyn SessionServer>,
        certificates: Arc<dyn CertificateAuthority>,
        managers: Arc<dyn ManagerServer>,
        limits: ServerLimits,
    ) -> anyhow::Result<Self> {
        let tls = ServerTls::new(identity, clock.clone())?;
        let limiter = |in_all| ConnectionLimiter::new(limits.unauthenticated_per_source, in_all);
        let (outer, mesh, members) = (limiter(limits.unauthenticated), limiter(limits.unauthenticated), limiter(usize::MAX));
        let failed_joins = || Mutex::new(FailedJoins::new(limits.failed_joins, limits.join_forgiven_after));
        let (refused_joins, revoked_joins) = (failed_joins(), failed_joins());
        let context = ConnectionContext {
            tls,
            join,
            sessions,
            certificates,
            keys: None,
            managers,
            clock,
            limits,
            outer,
            members,
            mesh,
            refused_joins,
            revoked_joins,
            documents: Arc::default(),
            unheard: Refusals::default(),
            refused: Refusals::default(),
            refused_members: Default::default(),
            counters: Arc::default(),
        };
        Ok(Self { context: Arc::new(context) })
    }

    /// Lets nodes change their WireGuard keys.
    #[must_use]
    pub fn with_keys(mut self, keys: Arc<dyn KeyChangeAuthority>) -> Self {
        // Nothing serves yet: there is one owner.
        if let Some(context) = Arc::get_mut(&mut self.context) {
            context.keys = Some(keys);
        }
        self
    }

    /// Counts the connections that it refuses here.
    #[must_use]
    pub fn with_counters(mut self, counters: Arc<RefusedPeers>) -> Self {
        if let Some(context) = Arc::get_mut(&mut self.context) {
            context.counters = counters;
        }
        self
    }

    /// Serves a listener until shut down; then it revokes open joins, closes sessions, and returns once all are closed.
    pub async fn serve(
        &self,
        listener: impl Listener<Stream = TcpStream, From = SocketAddr>,
        kind: ListenerKind,
        shutdown: CancellationToken,
    ) {
        let connections = tokio_util::task::TaskTracker::new();
        accept_each(listener, SERVER, &shutdown, |stream, from| {
            let (context, shutdown) = (self.context.clone(), shutdown.clone());
            connections.spawn(async move { connection(&context, stream, from, kind, shutdown).await });
        })
        .await;
        connections.close();
        connections.wait().await;
    }
}

/// Handles one accepted connection until it is closed.
async fn connection(
    context: &ConnectionContext,
    stream: TcpStream,
    from: SocketAddr,
    kind: ListenerKind,
    shutdown: CancellationToken,
) {
    let limiter = match kind {
        ListenerKind::Outer => &context.outer,
        ListenerKind::Mesh if context.sessions.is_member(from.ip()) => &context.members,
        // It may be of a node that was removed a moment ago: the session reports that to it.
        ListenerKind::Mesh => &context.mesh,
    };
    let Some(permit) = limiter.acquire(from.ip()) else {
        return context.unheard(from, PeerRefusal::Connections, "too many unauthenticated connections");
    };
    let _ = stream.set_nodelay(true);
    let tls = context.tls.current();
    let handshake = tokio::select! {
        () = shutdown.cancelled() => return,
        done = tokio::time::timeout(context.limits.handshake, tls.accept(stream, kind.lenient())) => done,
    };
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return context.unheard(from, PeerRefusal::Handshake, format_args!("it does not speak skep's protocol: {error}"));
        }
        Err(_) => return context.unheard(from, PeerRefusal::HandshakeTime, "no TLS handshake in time"),
    };
    let outcome = match (stream.get_ref().1.alpn_protocol(), kind) {
        (Some(tls::JOIN), ListenerKind::Outer) => {
            let outcome = serve_join(context, stream, from, &shutdown).await;
            drop(permit);
            outcome
        }
        (Some(tls::MEMBERSHIP), ListenerKind::Outer) => {
            let outcome = serve_membership(context, &tls.identity, stream).await;
            drop(permit);
            outcome
        }
        (Some(tls::SESSION), ListenerKind::Mesh) => serve_session(context, &tls.identity, stream, from, permit, &shutdown).await,
        (Some(tls::CERTIFICATE), ListenerKind::Mesh) => {
            let outcome = serve_renewal(context, &tls.identity, stream, from).await;
            drop(permit);
            outcome
        }
        (Some(tls::TUNNEL_KEY), ListenerKind::Mesh) => {
            let outcome = serve_key_change(context, &tls.identity, stream, from).await;
            drop(permit);
            outcome
        }
        (Some(tls::MANAGER), ListenerKind::Mesh) => serve_manager(context, &tls.identity, stream, from, permit, &shutdown).await,
        (Some(tls::JOIN), ListenerKind::Mesh) => {
            join::refuse(stream, "this address is for members; join at the manager's outer address").await;
            Err(PeerRefusal::Protocol.error("a join at the mesh address"))
        }
        (Some(tls::MANAGER), ListenerKind::Outer) => {
            Err(PeerRefusal::Protocol.error("a manager's connection from outside the mesh"))
        }
        (Some(tls::SESSION), ListenerKind::Outer) => {
            session::refuse(stream, "sessions go through the tunnel; this address is for joins only").await;
            Err(PeerRefusal::Protocol.error("a session from outside the mesh"))
        }
        _ => Err(PeerRefusal::Protocol.error("the client names no application protocol (ALPN)")),
    };
    let Err(error) = outcome else { return };
    let reason = PeerRefusal::cause_of(&error);
    if let Some(reason) = reason {
        context.counters.count(reason);
    }
    match (kind, reason) {
        (ListenerKind::Outer, _) => context.refused.refused(from, SERVER, format_args!("{error:#}")),
        (ListenerKind::Mesh, Some(reason)) => {
            context.refused_members[reason as usize].refused(from, SERVER, format_args!("{error:#}"));
        }
        (ListenerKind::Mesh, None) => tracing::info!(%from, error = format!("{error:#}"), "closed a connection"),
    }
}

impl ConnectionContext {
    /// Notes a connection that did not come to a handshake.
    fn unheard(&self, from: SocketAddr, reason: PeerRefusal, why: impl std::fmt::Display) {
        self.counters.count(reason);
        self.unheard.refused(from, SERVER, why);
    }
}

/// Serves a join; a source of which too many have failed has to wait. What has no token and what has one are counted apart: a
/// host that guesses tokens keeps no other host of its address out.
async fn serve_join(
    context: &ConnectionContext,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let source = accept::client_key(from.ip());
    let may_join = |joins: &Mutex<FailedJoins>| lock(joins).may_join(source, context.clock.now());
    if let Err(wait) = may_join(&context.revoked_joins) {
        let text = format!("too many nodes from this address were admitted in vain: try again in {} s", wait.as_secs() + 1);
        join::refuse(stream, &text).await;
        return Err(PeerRefusal::Join.error(text));
    }
    let wait = may_join(&context.refused_joins).err();
    let outcome = join::serve(stream, from, wait, context.join.as_ref(), &context.limits, shutdown).await;
    match outcome {
        Ok(()) => Ok(()),
        Err(FailedJoin::Refused(error)) => {
            lock(&context.refused_joins).failed(source, context.clock.now());
            Err(error)
        }
        Err(FailedJoin::Revoked(error)) => {
            lock(&context.revoked_joins).failed(source, context.clock.now());
            Err(PeerRefusal::Join.of(error))
        }
    }
}

/// Serves a session of the node that the client certificate names; refuses a client without a certificate.
async fn serve_session(
    context: &ConnectionContext,
    identity: &Identity,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    permit: Permit,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let (name, validity) = match client(&stream, identity) {
        Ok(Some(client)) => client,
        Ok(None) => {
            session::refuse(stream, "a session needs a certificate of this cluster").await;
            return Err(PeerRefusal::Certificate.error("a session without a certificate"));
        }
        Err(error) => {
            session::refuse(stream, &format!("a session needs a certificate of this cluster: {error}")).await;
            return Err(PeerRefusal::Certificate.of(error.into()));
        }
    };
    let node = name.node_id.clone();
    let (sessions, documents) = (context.sessions.as_ref(), &context.documents);
    if !sessions.is_at(&node, from.ip()) {
        session::refuse(stream, "a node opens its session from its own address in the mesh").await;
        return Err(PeerRefusal::Address.error(format!("a session of node {node} from another node's address")));
    }
    drop(permit); // authenticated: no longer counted
    let serving =
        session::serve(stream, name, sessions, &context.limits, documents, shutdown, expired(context, validity, identity));
    serving.await.with_context(|| format!("session of node {node} from {from}"))
}

/// Waits until the client's certificate or the server's own is no longer valid.
async fn expired(context: &ConnectionContext, client: Validity, own: &Identity) {
    clock::reached(context.clock.as_ref(), client.end().min(own.validity().end())).await;
}

/// Serves another manager.
async fn serve_manager(
    context: &ConnectionContext,
    identity: &Identity,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    permit: Permit,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let (name, validity) = certified(&stream, identity, "a manager's connection")?;
    let node = &name.node_id;
    if name.role != Role::Manager {
        return Err(PeerRefusal::Manager.error(format!("node {node} has no manager's certificate")));
    }
    if !context.sessions.is_at(node, from.ip()) {
        return Err(PeerRefusal::Address.error(format!("manager {node} connects from another node's address")));
    }
    // A manager that is none any more, or of another incarnation of the cluster, is answered so.
    let connection = managers::greet(stream, node, &*context.managers, context.limits.first_message).await?;
    if !context.managers.is_manager(node, from.ip()) {
        return Err(PeerRefusal::Manager.error(format!("node {node} is no manager")));
    }
    drop(permit); // authenticated: no longer counted
    let serving =
        managers::serve(connection, (node, from.ip()), &context.managers, shutdown, expired(context, validity, identity));
    serving.await.with_context(|| format!("connection of manager {node} from {from}"))
}

/// Serves the renewal of the certificate that the client has shown.
async fn serve_renewal(
    context: &ConnectionContext,
    identity: &Identity,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
) -> anyhow::Result<()> {
    let (name, validity) = certified(&stream, identity, "a renewal")?;
    let node = name.node_id.clone();
    let is_of_retired_root = !tls::is_of_trusted_root(stream.get_ref().1.peer_certificates(), identity);
    let holder = CertificateHolder { name, validity, is_of_retired_root, from };
    let served = renewal::serve(stream, holder, context.certificates.as_ref(), &context.limits).await;
    served.with_context(|| format!("renewal of node {node} from {from}"))
}

/// Serves a node that changes its WireGuard key.
async fn serve_key_change(
    context: &ConnectionContext,
    identity: &Identity,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
) -> anyhow::Result<()> {
    let (name, _) = certified(&stream, identity, "a change of a WireGuard key")?;
    let node = &name.node_id;
    if !context.sessions.is_at(node, from.ip()) {
        return Err(PeerRefusal::Address.error(format!("node {node} changes its key from another node's address")));
    }
    let keys = context.keys.as_deref().context("nodes cannot change their keys here")?;
    let served = key_change::serve(stream, node, keys, &context.limits).await;
    served.with_context(|| format!("change of the WireGuard key of node {node}"))
}

/// Answers a node that asks whether it still is a member.
async fn serve_membership(context: &ConnectionContext, identity: &Identity, stream: TlsStream<TcpStream>) -> anyhow::Result<()> {
    let (name, _) = certified(&stream, identity, "a question about a membership")?;
    let served = membership::serve(stream, &name.node_id, context.join.as_ref(), &context.limits).await;
    served.with_context(|| format!("the membership of node {}", name.node_id))
}

/// The node and the life that a client's certificate names; `None` if the client has shown none.
fn client(stream: &TlsStream<TcpStream>, identity: &Identity) -> Result<Option<(NodeName, Validity)>, tls::Distrust> {
    let certificates = stream.get_ref().1.peer_certificates();
    Ok(tls::client_name(certificates, identity)?.zip(tls::peer_validity(certificates)))
}

/// As [`client`]; a client without a certificate of the cluster is refused.
fn certified(stream: &TlsStream<TcpStream>, identity: &Identity, what: &str) -> anyhow::Result<(NodeName, Validity)> {
    match client(stream, identity) {
        Ok(Some(client)) => Ok(client),
        Ok(None) => Err(PeerRefusal::Certificate.error(format!("{what} without a certificate"))),
        Err(error) => Err(PeerRefusal::Certificate.of(error.into())),
    }
}

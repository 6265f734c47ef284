//! Fixtures of the tests of `rpc`: a cluster's CA and tokens, a manager that admits, a tunnel that can be cut, a dispatcher.

use async_trait::async_trait;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};
use skep::clock::{Clock, SystemClock};
use skep::datapath::{Sockets as _, sockets::HereSockets};
use skep::model::WgKey;
use skep::model::mesh::{DEFAULT_POOL, MeshPrefix};
use skep::model::node::NodeDescription;
use skep::model::view::ClusterPart;
use skep::model::{Availability, ClusterId, FormatRange, JoinTokens, NodeId, NodeView, Revision, Role, Secret, Timestamp};
use skep::protocol::{
    FORMATS, JoinRefused, JoinReply, JoinRequest, MembershipAnswer, RenewalRefused, RenewalRequest, RenewedCertificate,
    ToManager, ToNode, agree, formats_of_peer,
};
use skep::rpc::{
    CertificateAuthority, CertificateHolder, JoinAuthority, JoinError, JoinOptions, JoinParts, Joined, JoinerSide,
    KeyChangeAuthority, ListenerKind, ManagerGreeter, ManagerServer, RefusedPeers, Server, ServerLimits, SessionServer,
    WrongSender,
};
use skep::trust::{self, Identity, JoinToken, NodeKey, NodeName, RootCa, TunnelKey};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Waits until a condition holds; fails after ten seconds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A cluster's CA and join tokens.
pub struct Trust {
    pub cluster: ClusterId,
    pub ca: RootCa,
    pub tokens: JoinTokens,
}

impl Trust {
    pub fn new() -> Arc<Self> {
        let rng = &mut rand::rng();
        let ca = RootCa::generate(rng, SystemClock.now()).unwrap();
        let tokens = JoinToken::draw_both(ca.digest().unwrap(), rng);
        Arc::new(Self { cluster: ClusterId::draw(rng), ca, tokens })
    }
    pub fn identity(&self, role: Role) -> Identity {
        self.identity_in(role, &self.cluster, SystemClock.now())
    }
    pub fn identity_in(&self, role: Role, cluster: &ClusterId, now: Timestamp) -> Identity {
        let name = NodeName { node_id: NodeId::draw(&mut rand::rng()), role, cluster_id: cluster.clone() };
        self.issue(&name, now, Duration::ZERO)
    }
    /// A node's identity that is valid for this long from `now`; zero: 90 days.
    pub fn issue(&self, name: &NodeName, now: Timestamp, life: Duration) -> Identity {
        let rng = &mut rand::rng();
        let key = NodeKey::generate().unwrap();
        let certificate = trust::issue(&self.ca, &key.request().unwrap(), name, now, life, rng).unwrap();
        Identity::new(&key.to_pem(), &certificate, self.ca.certificate()).unwrap()
    }
}

/// A clock that is wrong by so many seconds.
pub struct OffBy(pub i64);
impl Clock for OffBy {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0 + self.0 * 1_000_000_000)
    }
}

/// A clock that a test sets ahead.
#[derive(Default)]
pub struct SetClock(AtomicI64);
impl SetClock {
    pub fn set_ahead(&self, seconds: i64) {
        self.0.store(seconds, SeqCst);
    }
}
impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        OffBy(self.0.load(SeqCst)).now()
    }
}

/// A tunnel between the joiner and the manager; each direction can be cut. As with WireGuard, a received packet is answered.
#[derive(Default)]
pub struct Wire {
    pub up: AtomicBool,
    pub out_cut: AtomicBool,
    pub in_cut: AtomicBool,
    pub at_joiner: AtomicU64,
    pub at_manager: AtomicU64,
}

impl Wire {
    fn to_manager(&self, bytes: u64) -> bool {
        let delivered = self.up.load(SeqCst) && !self.out_cut.load(SeqCst);
        if delivered {
            self.at_manager.fetch_add(bytes, SeqCst);
        }
        delivered
    }
    fn to_joiner(&self, bytes: u64) -> bool {
        let delivered = self.up.load(SeqCst) && !self.in_cut.load(SeqCst);
        if delivered {
            self.at_joiner.fetch_add(bytes, SeqCst);
        }
        delivered
    }
}

/// Recorded calls, in order.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Vec<String>>>);
impl Journal {
    pub fn note(&self, text: impl Into<String>) {
        self.0.lock().unwrap().push(text.into());
    }
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
    pub fn has(&self, text: &str) -> bool {
        self.count(text) > 0
    }
    pub fn count(&self, text: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|l| *l == text).count()
    }
}

/// A change to a reply.
pub type ReplyChange = fn(&mut JoinReply);

/// A manager that admits.
pub struct Authority {
    pub trust: Arc<Trust>,
    pub wire: Arc<Wire>,
    pub journal: Journal,
    /// It also sends probes to joiners.
    pub sends_probes: bool,
    pub change_reply: ReplyChange,
    /// Joiners of old formats are refused.
    pub requires_key_proof: bool,
    /// What it answers a node that asks for its membership.
    pub membership: MembershipAnswer,
}

#[async_trait]
impl JoinAuthority for Authority {
    fn knows(&self, token: &Secret<String>) -> bool {
        trust::role_of(&self.trust.tokens, token.expose()).is_some()
    }
    fn requires_key_proof(&self) -> bool {
        self.requires_key_proof
    }
    async fn admit(&self, request: &JoinRequest, _: SocketAddr) -> Result<JoinReply, JoinRefused> {
        let role = trust::role_of(&self.trust.tokens, request.token.expose()).ok_or(JoinRefused::Token)?;
        let rng = &mut rand::rng();
        let name = NodeName { node_id: NodeId::draw(rng), role, cluster_id: self.trust.cluster.clone() };
        let now = SystemClock.now();
        let certificate = trust::issue(&self.trust.ca, &request.csr, &name, now, Duration::ZERO, rng)
            .map_err(|e| JoinRefused::Other(e.to_string()))?;
        self.journal.note("admit");
        let mesh = MeshPrefix::draw(rng);
        let mut reply = JoinReply {
            node_id: name.node_id,
            role,
            cluster_id: name.cluster_id,
            certificate,
            ca_certificate: self.trust.ca.certificate().to_owned(),
            mesh,
            subnet: mesh.node(2),
            ingress_addr: Ipv4Addr::new(10, 0, 0, 3),
            data_path_port: 2377,
            raft_id: None,
            unlock_key: None,
            manager_key: WgKey([1; 32]),
            view: view(mesh, 7),
        };
        (self.change_reply)(&mut reply);
        Ok(reply)
    }
    async fn received(&self, _: &NodeId) -> u64 {
        self.wire.at_manager.load(SeqCst)
    }
    async fn send_probe(&self, _: &NodeId) {
        if self.sends_probes && self.wire.to_joiner(148) {
            self.wire.to_manager(92);
        }
    }
    async fn membership(&self, node: &NodeId) -> MembershipAnswer {
        self.journal.note(format!("asked by {node}"));
        self.membership.clone()
    }
    async fn confirm(&self, _: &NodeId) {
        self.journal.note("confirm");
    }
    async fn revoke(&self, _: &NodeId) {
        self.journal.note("revoke");
    }
}

pub fn view(mesh: MeshPrefix, index: u64) -> NodeView {
    NodeView {
        revision: Revision { incarnation: 1, index },
        tasks: Arc::default(),
        networks: Arc::default(),
        cluster: Arc::new(ClusterPart { pools: vec![DEFAULT_POOL], ..ClusterPart::new(mesh) }),
    }
}

/// The joiner's side of a [`Wire`].
pub struct FakeTunnel {
    pub wire: Arc<Wire>,
    pub journal: Journal,
    pub broken: bool,
    /// Reading its counters never returns.
    pub hangs: bool,
}

#[async_trait]
impl JoinerSide for FakeTunnel {
    async fn bring_up(&self, _: &JoinReply) -> anyhow::Result<()> {
        self.journal.note("up");
        anyhow::ensure!(!self.broken, "no TUN device on this machine");
        self.wire.up.store(true, SeqCst);
        Ok(())
    }
    async fn received_from_manager(&self) -> anyhow::Result<u64> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Ok(self.wire.at_joiner.load(SeqCst))
    }
    async fn send_probe(&self) {
        if self.wire.to_manager(148) {
            self.wire.to_joiner(92);
        }
    }
    async fn tear_down(&self) {
        self.wire.up.store(false, SeqCst);
        self.journal.note("down");
    }
}

/// A dispatcher: welcomes, answers heartbeats.
pub struct Dispatcher {
    pub journal: Journal,
    /// Sent instead of `Welcome`.
    pub instead: Mutex<Option<ToNode>>,
    /// It refuses sessions with this text.
    pub refuses: Mutex<Option<String>>,
    /// Formats that it has.
    pub speaks: Mutex<FormatRange>,
    /// Nodes whose mesh address is another than the one that they dial from.
    pub elsewhere: Mutex<Vec<NodeId>>,
    /// Addresses that are no member's.
    pub not_members: Mutex<Vec<IpAddr>>,
    /// It does not answer heartbeats.
    pub dead: AtomicBool,
    pub outs: Mutex<BTreeMap<u64, mpsc::Sender<ToNode>>>,
    next: AtomicU64,
}

impl Default for Dispatcher {
    fn default() -> Self {
        Self {
            journal: Journal::default(),
            instead: Mutex::default(),
            refuses: Mutex::default(),
            speaks: Mutex::new(FORMATS),
            elsewhere: Mutex::default(),
            not_members: Mutex::default(),
            dead: AtomicBool::default(),
            outs: Mutex::default(),
            next: AtomicU64::default(),
        }
    }
}

impl Dispatcher {
    /// Sends to the newest session.
    pub async fn send(&self, message: ToNode) {
        let out = self.outs.lock().unwrap().last_key_value().expect("a session").1.clone();
        out.send(message).await.unwrap();
    }
}

#[async_trait]
impl SessionServer for Dispatcher {
    fn is_at(&self, node: &NodeId, _: IpAddr) -> bool {
        !self.elsewhere.lock().unwrap().contains(node)
    }
    fn is_member(&self, address: IpAddr) -> bool {
        !self.not_members.lock().unwrap().contains(&address)
    }
    async fn open(&self, node: NodeId, hello: ToManager, out: mpsc::Sender<ToNode>) -> anyhow::Result<u64> {
        self.journal.note(format!("open {node}"));
        let ToManager::Hello { format: named, formats, .. } = hello else { anyhow::bail!("no hello") };
        self.journal.note(format!("hello {named}"));
        let format = agree(*self.speaks.lock().unwrap(), formats_of_peer(named, formats))?;
        if let Some(text) = self.refuses.lock().unwrap().clone() {
            anyhow::bail!(text);
        }
        let instead = self.instead.lock().unwrap().clone();
        if let Some(message) = instead {
            out.send(message).await?;
            anyhow::bail!("no session here");
        }
        out.send(ToNode::Welcome { format, heartbeat_ms: 50 }).await?;
        let session = self.next.fetch_add(1, SeqCst);
        self.outs.lock().unwrap().insert(session, out);
        Ok(session)
    }
    async fn message(&self, session: u64, message: ToManager) {
        match message {
            ToManager::Heartbeat { applied } => {
                self.journal.note(format!("applied {}", applied.index));
                let out = self.outs.lock().unwrap().get(&session).cloned();
                if let Some(out) = out.filter(|_| !self.dead.load(SeqCst)) {
                    let _ = out.send(ToNode::Alive).await;
                }
            }
            ToManager::Leave => {
                self.journal.note("Leave");
                self.outs.lock().unwrap().remove(&session);
            }
            other => self.journal.note(format!("{other:?}")),
        }
    }
    async fn closed(&self, session: u64) {
        self.outs.lock().unwrap().remove(&session);
        self.journal.note("closed");
    }
}

/// Renews every certificate for three days, of expired ones only when allowed.
pub struct Renewals {
    pub trust: Arc<Trust>,
    pub journal: Journal,
    pub recovers: AtomicBool,
}

#[async_trait]
impl CertificateAuthority for Renewals {
    async fn renew(&self, holder: &CertificateHolder, request: &RenewalRequest) -> Result<RenewedCertificate, RenewalRefused> {
        let now = SystemClock.now();
        self.journal.note(format!("renew {}", holder.name.node_id));
        if holder.validity.is_over(now) && !self.recovers.load(SeqCst) {
            return Err(RenewalRefused::Expired);
        }
        let life = Duration::from_hours(72);
        let certificate = trust::issue(&self.trust.ca, &request.csr, &holder.name, now, life, &mut rand::rng())
            .map_err(|e| RenewalRefused::Other(e.to_string()))?;
        Ok(RenewedCertificate {
            certificate,
            ca_certificate: self.trust.ca.certificate().to_owned(),
            chain: Vec::new(),
            unlock_key: None,
        })
    }
}

/// A server that runs until dropped.
pub struct Manager {
    pub identity: watch::Sender<Arc<Identity>>,
    pub address: SocketAddr,
    /// The same server's listener of the other kind.
    pub other_address: SocketAddr,
    pub wire: Arc<Wire>,
    pub journal: Journal,
    pub dispatcher: Arc<Dispatcher>,
    pub renewals: Arc<Renewals>,
    pub managers: Arc<OtherManagers>,
    /// What it has counted.
    pub refused: Arc<RefusedPeers>,
    pub shutdown: CancellationToken,
    pub served: Option<tokio::task::JoinHandle<()>>,
}

impl Manager {
    /// Waits until it has counted these connections as refused, by reason, and no others.
    pub async fn has_refused(&self, expected: &[(&str, u64)]) {
        let read = || self.refused.read().into_iter().filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>();
        let expected: BTreeMap<_, _> = expected.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
        eventually(&format!("{expected:?} refused"), || {
            let now = read();
            assert!(now.iter().all(|(reason, count)| expected.get(reason).is_some_and(|most| count <= most)), "{now:?}");
            now == expected
        })
        .await;
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub struct Setup {
    pub trust: Arc<Trust>,
    pub identity: Identity,
    pub kind: ListenerKind,
    pub limits: ServerLimits,
    pub sends_probes: bool,
    pub requires_key_proof: bool,
    pub membership: MembershipAnswer,
    pub keys: Option<Arc<dyn KeyChangeAuthority>>,
    pub change_reply: ReplyChange,
    pub address: SocketAddr,
    pub clock: Arc<dyn Clock>,
}

impl Setup {
    pub fn new(trust: &Arc<Trust>, kind: ListenerKind) -> Self {
        Self {
            trust: trust.clone(),
            identity: trust.identity(Role::Manager),
            kind,
            limits: ServerLimits { proof_interval: Duration::from_millis(10), ..ServerLimits::default() },
            sends_probes: false,
            change_reply: |_| {},
            requires_key_proof: false,
            membership: MembershipAnswer::Member,
            keys: None,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            clock: Arc::new(SystemClock),
        }
    }
    pub fn start(self) -> Manager {
        let (wire, journal, dispatcher) = (Arc::new(Wire::default()), Journal::default(), Arc::new(Dispatcher::default()));
        let renewals =
            Arc::new(Renewals { trust: self.trust.clone(), journal: journal.clone(), recovers: AtomicBool::new(false) });
        let authority = Authority {
            trust: self.trust,
            wire: wire.clone(),
            journal: journal.clone(),
            sends_probes: self.sends_probes,
            change_reply: self.change_reply,
            requires_key_proof: self.requires_key_proof,
            membership: self.membership,
        };
        let (identity, identities) = watch::channel(Arc::new(self.identity));
        let managers = Arc::new(OtherManagers::default());
        let server = Server::new(
            identities,
            self.clock,
            Arc::new(authority),
            dispatcher.clone(),
            renewals.clone(),
            managers.clone(),
            self.limits,
        );
        let server = server.unwrap();
        let refused = Arc::new(RefusedPeers::default());
        let server = server.with_counters(refused.clone());
        let server = Arc::new(match self.keys {
            Some(keys) => server.with_keys(keys),
            None => server,
        });
        let listen = |address| TcpListener::from_std(HereSockets.listen(address).unwrap()).unwrap();
        let listener = listen(self.address);
        let address = listener.local_addr().unwrap();
        let other = listen(SocketAddr::new(self.address.ip(), 0));
        let other_address = other.local_addr().unwrap();
        let (shutdown, kind) = (CancellationToken::new(), self.kind);
        let other_kind = if kind == ListenerKind::Outer { ListenerKind::Mesh } else { ListenerKind::Outer };
        let (token, second, other_token) = (shutdown.clone(), server.clone(), shutdown.clone());
        let served = Some(tokio::spawn(async move { server.serve(listener, kind, token).await }));
        tokio::spawn(async move { second.serve(other, other_kind, other_token).await });
        Manager { identity, address, other_address, wire, journal, dispatcher, renewals, managers, refused, shutdown, served }
    }
}

/// What other managers have sent.
#[derive(Default)]
pub struct OtherManagers {
    /// Nodes that are managers at the address that they connect from.
    pub known: Mutex<Vec<NodeId>>,
    pub messages: Mutex<Vec<Vec<u8>>>,
    /// Begins of messages that are another manager's, whichever node sends them.
    pub foreign: Mutex<Option<u8>>,
    pub greetings: Mutex<Vec<Vec<u8>>>,
}

impl ManagerGreeter for OtherManagers {
    fn greeting(&self) -> Vec<u8> {
        b"server".to_vec()
    }
    fn greeted(&self, _: &NodeId, greeting: &[u8]) {
        self.greetings.lock().unwrap().push(greeting.to_vec());
    }
}

#[async_trait]
impl ManagerServer for OtherManagers {
    fn is_manager(&self, node: &NodeId, _: IpAddr) -> bool {
        self.known.lock().unwrap().contains(node)
    }
    fn raft(&self, _: &NodeId, message: Vec<u8>) -> Result<(), WrongSender> {
        if message.first().copied().is_some_and(|first| *self.foreign.lock().unwrap() == Some(first)) {
            return Err(WrongSender);
        }
        self.messages.lock().unwrap().push(message);
        Ok(())
    }
    async fn propose(&self, document: Vec<u8>) -> Vec<u8> {
        document.into_iter().rev().collect()
    }
}

pub fn options(timeout: Duration) -> JoinOptions {
    JoinOptions { timeout, connect: timeout, proof_interval: Duration::from_millis(10), clock: Arc::new(SystemClock) }
}

pub fn side(manager: &Manager) -> FakeTunnel {
    FakeTunnel { wire: manager.wire.clone(), journal: manager.journal.clone(), broken: false, hangs: false }
}

/// Joins as a worker does.
pub async fn join(at: SocketAddr, token: &str, side: &FakeTunnel, options: &JoinOptions) -> Result<Joined, JoinError> {
    let node_key = NodeKey::generate().unwrap();
    let parts = JoinParts {
        token: &token.into(),
        node_key: &node_key,
        tunnel_key: &TunnelKey::new(Secret::new([2; 32])),
        endpoints: vec![SocketAddr::from(([0, 0, 0, 0], 2377))],
        description: NodeDescription { hostname: "lab2".to_owned(), ..NodeDescription::default() },
        availability: Availability::Active,
    };
    skep::rpc::join(at, parts, side, options).await
}

/// Opens a TLS connection without checking the server, as an attacker does. `alpn` has names, separated by blanks.
pub async fn tls(
    at: SocketAddr,
    alpn: &str,
    identity: Option<&Identity>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyServer));
    let mut config = match identity {
        Some(identity) => {
            let chain = vec![CertificateDer::from(identity.certificate_der().unwrap())];
            let key = PrivateKeyDer::from_pem_slice(identity.key().as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    if !alpn.is_empty() {
        config.alpn_protocols = alpn.split(' ').map(|name| name.as_bytes().to_vec()).collect();
    }
    let stream = TcpStream::connect(at).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("x").unwrap(), stream).await
}

#[derive(Debug)]
struct AcceptAnyServer;
impl ServerCertVerifier for AcceptAnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

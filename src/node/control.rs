//! Init, join and leave: how a node gets into a swarm and out of it. Each leaves the node as it was if it fails.

use super::address::{self, Place};
use super::member::Member;
use super::network::{Network, send_probe};
use super::state_dir::{self, MembershipFile};
use super::{Daemon, State, advertised, manager, tunnel_key};
use crate::api::control::{self, ControlError, Membership, NodeControl, SwarmInitRequest, SwarmJoinRequest};
use crate::datapath::interfaces::host_addresses;
use crate::manager::dispatcher::view_of;
use crate::manager::{JoiningNode, bootstrap};
use crate::model::WgKey;
use crate::model::mesh::{MeshPrefix, node_address};
use crate::model::node::{ManagerStatus, NodeDescription};
use crate::model::{Cluster, ClusterId, Meta, NetworkId, NodeId, Role};
use crate::protocol::{JoinRefused, JoinReply};
use crate::rpc::{JoinError, JoinOptions, JoinParts, JoinerSide, join};
use crate::store::{Action, ProposeError, StoreError, StoreHandle};
use crate::trust::{self, CertificateFiles, Identity, JoinToken, NodeKey, NodeName, RootCa};
use anyhow::Context as _;
use async_trait::async_trait;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Raft id of a cluster's first manager.
const FIRST_RAFT_ID: u64 = 1;

/// The node daemon as the API asks it.
pub(super) struct Control(pub Arc<Daemon>);

#[async_trait]
impl NodeControl for Control {
    fn membership(&self) -> Membership {
        match self.0.state() {
            State::Inactive => Membership::Inactive,
            State::Pending { remotes, error } => Membership::Pending { node_addr: None, remotes, error },
            State::Active(member) => {
                let view = member.view();
                let session = member.session.borrow().clone();
                let managers = view.iter().flat_map(|v| v.cluster.nodes.iter()).filter(|n| n.manager);
                let managers: Vec<_> =
                    managers.filter_map(|n| Some((n.node_id.clone(), *n.endpoints.first()?, n.address()))).collect();
                let leader = session
                    .leader
                    .and_then(|l| managers.iter().find(|(_, _, mesh)| l.ip() == *mesh))
                    .map(|(id, _, _)| id.clone());
                let info = control::MembershipInfo {
                    node_id: member.record.node_id.clone(),
                    node_addr: advertised(&member),
                    managers: managers.into_iter().map(|(id, addr, _)| (id, addr)).collect(),
                    leader,
                };
                if manager::is_manager(&member.record) { Membership::Manager(info) } else { Membership::Worker(info) }
            }
        }
    }

    fn store(&self) -> Option<StoreHandle> {
        match self.0.state() {
            State::Active(member) => member.replicated.as_ref().map(|r| r.store.clone()),
            _ => None,
        }
    }

    async fn init(&self, request: SwarmInitRequest) -> Result<NodeId, ControlError> {
        let _turn = self.0.turn.lock().await;
        self.0.must_be_inactive()?;
        let host = host_addresses().await.map_err(|e| failed(&e))?;
        let place = address::place(&request.listen_addr, &request.advertise_addr, request.data_path_port, true, &host)
            .map_err(ControlError::invalid)?;
        self.0.engine_must_be_free().await?;
        match self.0.found(request, place).await {
            Ok(id) => Ok(id),
            Err(error) => {
                self.0.clean_up();
                Err(failed(&error))
            }
        }
    }

    async fn join(&self, request: SwarmJoinRequest) -> Result<(), ControlError> {
        let _turn = self.0.turn.lock().await;
        self.0.must_be_inactive()?;
        let host = host_addresses().await.map_err(|e| failed(&e))?;
        let place =
            address::place(&request.listen_addr, &request.advertise_addr, None, false, &host).map_err(ControlError::invalid)?;
        self.0.engine_must_be_free().await?;
        self.0.set_state(State::Pending { remotes: request.remote_addrs.clone(), error: String::new() });
        let joined = self.0.enter(request, place).await;
        if joined.is_err() {
            self.0.clean_up();
            self.0.set_state(State::Inactive);
        }
        joined
    }

    async fn leave(&self, _force: bool) -> Result<(), ControlError> {
        let _turn = self.0.turn.lock().await;
        match self.0.state() {
            State::Active(member) => {
                member.say_goodbye().await;
                self.0.set_state(State::Inactive);
                // Whoever looks at the member right now lets go of it in a moment.
                let mut member = member;
                let member = loop {
                    match Arc::try_unwrap(member) {
                        Ok(member) => break member,
                        Err(shared) => member = shared,
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                };
                member.take_down(&self.0).await.map_err(|e| {
                    ControlError::failed(format!("this node left the swarm, but not everything of it could be taken down: {e:#}"))
                })
            }
            State::Pending { .. } => {
                // A membership that could not be started: take down what an earlier run left, then forget it.
                if let Ok(Some(record)) = MembershipFile::load(&self.0.settings.data_dir) {
                    let _ = crate::agent::remove_all(&record.node_id, &*self.0.engine).await;
                    if let Ok(network) = Network::open(&self.0, &record.place()).await {
                        let _ = network.take_down(&self.0).await;
                    }
                }
                state_dir::forget(&self.0.settings.data_dir).map_err(|e| failed(&e))?;
                self.0.set_state(State::Inactive);
                Ok(())
            }
            State::Inactive => Err(ControlError::unavailable("This node is not part of a swarm")),
        }
    }

    async fn rotate_token(&self, role: Role) -> Result<(), ControlError> {
        let store = self.store().ok_or_else(|| ControlError::unavailable("this node is not a manager"))?;
        for _ in 0..5 {
            let mut cluster =
                store.read().cluster().cloned().ok_or_else(|| ControlError::unavailable("there is no cluster yet"))?;
            let ca = RootCa::from_pem(&cluster.ca_certificate, &cluster.ca_key).map_err(|e| failed(&e.into()))?;
            let digest = ca.digest().map_err(|e| failed(&e.into()))?;
            let token = JoinToken::draw(digest, &mut rand::rng()).to_string();
            match role {
                Role::Worker => cluster.tokens.worker = token,
                Role::Manager => cluster.tokens.manager = token,
            }
            match store.write(self.0.clock.now(), vec![Action::update(cluster)]).await {
                Ok(_) => return Ok(()),
                Err(ProposeError::Refused(StoreError::OutOfSequence)) => {}
                Err(error) => return Err(ControlError::failed(error.to_string())),
            }
        }
        Err(ControlError::failed("update out of sequence"))
    }
}

fn failed(error: &anyhow::Error) -> ControlError {
    ControlError::failed(format!("{error:#}"))
}

impl Daemon {
    fn must_be_inactive(&self) -> Result<(), ControlError> {
        match self.state() {
            State::Inactive => Ok(()),
            State::Active(_) | State::Pending { .. } => Err(ControlError::unavailable(
                "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.",
            )),
        }
    }

    /// The engine must answer, and be in no swarm of its own.
    async fn engine_must_be_free(&self) -> Result<(), ControlError> {
        match self.docker.in_swarm().await {
            Ok(false) => Ok(()),
            Ok(true) => Err(ControlError::unavailable(
                "this Docker Engine is itself part of a swarm: leave that swarm first with `docker -H unix:///var/run/docker.sock swarm leave --force`",
            )),
            Err(error) => Err(ControlError::unavailable(error.to_string())),
        }
    }

    /// Nothing half-made stays.
    fn clean_up(&self) {
        if let Err(error) = state_dir::forget(&self.settings.data_dir) {
            tracing::warn!(error = format!("{error:#}"), "what a failed attempt wrote could not be removed");
        }
    }

    /// Makes a new cluster with this node as its first manager.
    async fn found(self: &Arc<Self>, request: SwarmInitRequest, place: Place) -> anyhow::Result<NodeId> {
        let data_dir = &self.settings.data_dir;
        state_dir::forget(data_dir)?;
        let outer = manager::bind(place.listen)?;
        let (cluster, identity, newcomer) = {
            let mut rng = rand::rng();
            let now = self.clock.now();
            let ca = RootCa::generate(&mut rng, now)?;
            let cluster = Cluster {
                id: ClusterId::draw(&mut rng),
                meta: Meta::default(),
                spec: request.spec,
                incarnation: 1,
                ca_certificate: ca.certificate().to_owned(),
                ca_key: ca.key().to_owned(),
                tokens: JoinToken::draw_both(ca.digest()?, &mut rng),
                mesh: MeshPrefix::draw(&mut rng),
                address_pools: request.address_pools,
                subnet_size: request.subnet_size,
                data_path_port: place.data_path_port,
            };
            let id = NodeId::draw(&mut rng);
            let key = NodeKey::generate()?;
            let name = NodeName { node_id: id.clone(), role: Role::Manager, cluster_id: cluster.id.clone() };
            let life = trust::node_life(&cluster.spec.ca_config);
            let certificate = trust::issue(&ca, &key.request()?, &name, now, life, &mut rng)?;
            let identity = Identity::new(&key.to_pem(), &certificate, ca.certificate())?;
            let addr = place.advertise.context("no address to advertise")?;
            let newcomer = JoiningNode {
                id,
                role: Role::Manager,
                availability: request.availability,
                description: NodeDescription::default(),
                addr: Some(addr),
                key: tunnel_key(self)?,
                endpoints: place.endpoints(),
                manager: Some(ManagerStatus { raft_id: FIRST_RAFT_ID, addr: SocketAddr::new(addr, place.listen.port()) }),
            };
            (cluster, identity, newcomer)
        };
        let newcomer = JoiningNode { description: self.description().await, ..newcomer };
        let (id, mesh, cluster_id) = (newcomer.id.clone(), cluster.mesh, cluster.id.clone());
        let actions = bootstrap(cluster, NetworkId::draw(&mut rand::rng()), newcomer)?;

        let replicated = manager::Replicated::start(self, FIRST_RAFT_ID, true).await?;
        let begun: anyhow::Result<Member> = async {
            anyhow::ensure!(replicated.raft.leads().await, "raft stopped before it could lead");
            replicated.store.write(self.clock.now(), actions).await?;
            let store = replicated.store.read();
            let node = store.node(&id).context("the first node is not in the store")?;
            let record = MembershipFile::new(
                id.clone(),
                Role::Manager,
                cluster_id,
                mesh,
                node.mesh.subnet,
                node.mesh.ingress_addr,
                &place,
                Some(FIRST_RAFT_ID),
            );
            let view = view_of(&store, &id).context("the store has no view for the first node")?;
            let network = Network::open(self, &place).await?;
            network.follow(&id, Some(view), self.joined.clone());
            CertificateFiles::under(data_dir).store(&identity)?;
            record.store(data_dir)?;
            Member::start(self, record, identity, network, Some((replicated, outer))).await
        }
        .await;
        let member = begun?;
        self.set_state(State::Active(Arc::new(member)));
        Ok(id)
    }

    /// Joins through one of the managers named.
    async fn enter(self: &Arc<Self>, request: SwarmJoinRequest, place: Place) -> Result<(), ControlError> {
        state_dir::forget(&self.settings.data_dir).map_err(|e| failed(&e))?;
        let text = request.remote_addrs.first().cloned().unwrap_or_default();
        let (host, port) = address::remote(&text);
        let remote = tokio::net::lookup_host((host, port)).await.ok().and_then(|mut found| found.next()).ok_or_else(|| {
            ControlError::unavailable(format!("the manager's address {text:?} is neither an IP address nor a name that resolves"))
        })?;
        let node_key = NodeKey::generate().map_err(|e| failed(&e.into()))?;
        let tunnel_key = tunnel_key(self).map_err(|e| failed(&e))?;
        let network = Network::open(self, &place).await.map_err(|e| failed(&e))?;
        let side = Joiner {
            daemon: self.clone(),
            up: tokio::sync::Mutex::new(Some(Up { network, place: place.clone(), manager: None })),
        };
        let parts = JoinParts {
            token: &request.token,
            node_key: &node_key,
            tunnel_key,
            endpoints: place.endpoints(),
            description: self.description().await,
            availability: request.availability,
        };
        let options = JoinOptions { timeout: self.settings.timeouts.join(), ..JoinOptions::new(self.clock.clone()) };
        let joined = match join(remote, parts, &side, &options).await {
            Ok(joined) => joined,
            Err(error) => {
                // It may have failed before there was anything for `join` to tear down.
                side.tear_down().await;
                return Err(refused(&error, remote));
            }
        };
        let (network, place) = side
            .up
            .lock()
            .await
            .take()
            .map(|up| (up.network, up.place))
            .ok_or_else(|| ControlError::failed("the tunnel is gone"))?;
        let reply = joined.reply;
        let record = MembershipFile::new(
            reply.node_id,
            reply.role,
            reply.cluster_id,
            reply.mesh,
            reply.subnet,
            reply.ingress_addr,
            &place,
            None,
        );
        let written = CertificateFiles::under(&self.settings.data_dir)
            .store(&joined.identity)
            .map_err(anyhow::Error::from)
            .and_then(|()| record.store(&self.settings.data_dir));
        if let Err(error) = written {
            let _ = network.take_down(self).await;
            return Err(failed(&error));
        }
        let member = Member::start(self, record, joined.identity, network, None).await.map_err(|e| failed(&e))?;
        self.set_state(State::Active(Arc::new(member)));
        Ok(())
    }
}

/// In Docker's words where Docker has words for it.
fn refused(error: &JoinError, remote: SocketAddr) -> ControlError {
    match error {
        JoinError::MalformedToken => ControlError::malformed_token(),
        JoinError::ForeignCa { expected, .. } => ControlError::wrong_ca(expected),
        JoinError::Refused(JoinRefused::Token) => ControlError::wrong_token(),
        JoinError::Refused(JoinRefused::Unavailable(_)) => {
            ControlError::unavailable(format!("the manager at {remote} cannot let this node in now: {error}"))
        }
        JoinError::Unreachable { .. } => ControlError::unavailable(error.to_string()),
        _ => ControlError::failed(format!("{error:#}")),
    }
}

/// This node's tunnel during a join.
struct Joiner {
    daemon: Arc<Daemon>,
    up: tokio::sync::Mutex<Option<Up>>,
}

struct Up {
    network: Network,
    place: Place,
    /// Once it has answered: its key, and the mesh addresses of this node and of it.
    manager: Option<(WgKey, Ipv6Addr, Ipv6Addr)>,
}

#[async_trait]
impl JoinerSide for Joiner {
    async fn bring_up(&self, reply: &JoinReply) -> anyhow::Result<()> {
        let mut slot = self.up.lock().await;
        let mut up = slot.take().context("the tunnel is gone")?;
        if up.place.data_path_port != reply.data_path_port {
            // The cluster's tunnels are on another port than this node guessed.
            up.network.take_down(&self.daemon).await?;
            up.place.data_path_port = reply.data_path_port;
            up.network = Network::open(&self.daemon, &up.place).await?;
        }
        up.network.follow(&reply.node_id, Some(reply.view.clone()), self.daemon.joined.clone());
        let manager = reply.view.cluster.nodes.iter().find(|n| n.key == reply.manager_key);
        up.manager = manager.map(|m| (m.key, node_address(reply.subnet), m.address()));
        *slot = Some(up);
        Ok(())
    }
    async fn received_from_manager(&self) -> anyhow::Result<u64> {
        let up = self.up.lock().await;
        let up = up.as_ref().context("the tunnel is not up")?;
        let (key, _, _) = up.manager.context("the manager that answered is not among the nodes")?;
        up.network.received(key).await
    }
    async fn send_probe(&self) {
        if let Some(up) = &*self.up.lock().await
            && let Some((_, from, to)) = up.manager
        {
            send_probe(&up.network.mesh, from, to);
        }
    }
    async fn tear_down(&self) {
        if let Some(up) = self.up.lock().await.take()
            && let Err(error) = up.network.take_down(&self.daemon).await
        {
            tracing::warn!(error = format!("{error:#}"), "what a failed join brought up could not be taken down");
        }
    }
}

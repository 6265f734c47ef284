//! Init: creates a cluster with this node as its first manager.

use super::address::ListenAddresses;
use super::certificate_authority::CertificateLife;
use super::daemon::Daemon;
use super::keyring::KeyOwner;
use super::lifecycle::MembershipState;
use super::manager_part::{self, FirstManager, ManagerStore, OpenLog, PreparedManager};
use super::member::Member;
use super::network::MeshNetwork;
use super::state_dir::{MembershipFile, NodeAssignment};
use crate::api::control::SwarmInitRequest;
use crate::datapath::host_routes;
use crate::manager::allocator::{PoolChoice, choose_pools};
use crate::manager::dispatcher::view_of;
use crate::manager::{JoiningNode, bootstrap};
use crate::model::mesh::MeshPrefix;
use crate::model::node::{ManagerStatus, NodeDescription};
use crate::model::{CaHistory, Cluster, ClusterId, Meta, NetworkId, NodeId, Role, Timestamp};
use crate::store::{Action, FEATURE_LEVELS};
use crate::trust::{self, Identity, JoinToken, NodeKey, NodeName, RootCa, UnlockKey};
use anyhow::Context as _;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Raft id of a cluster's first manager.
const FIRST_RAFT_ID: u64 = 1;

impl Daemon {
    /// Creates a cluster with this node as its first manager.
    pub(super) async fn create_cluster(&self, request: SwarmInitRequest, addresses: ListenAddresses) -> anyhow::Result<NodeId> {
        self.env.forget()?;
        let listener = manager_part::bind(addresses.listen)?;
        let routes = host_routes::ipv4_routes().await.context("cannot read the host's routes")?;
        let pools = choose_pools(&request.address_pools, &routes);
        let (cluster, ca) = new_cluster(&request, &addresses, pools, self.env.clock.now())?;
        let (id, identity) = first_identity(&cluster, &ca, self.env.clock.now(), CertificateLife::new(&self.env))?;
        let addr = addresses.advertise.context("no address to advertise")?;
        let node = JoiningNode {
            id: id.clone(),
            role: Role::Manager,
            availability: request.availability,
            description: NodeDescription { advertised: addresses.advertised_apart(), ..self.env.description().await },
            addr: Some(addr),
            key: self.env.tunnel_key()?,
            endpoints: addresses.endpoints(),
            manager: Some(ManagerStatus { raft_id: FIRST_RAFT_ID, addr: SocketAddr::new(addr, addresses.listen.port()) }),
        };
        let unlock = cluster.unlock_key.as_ref().map(|key| key.expose().parse()).transpose()?;
        self.env.keyring.begin(unlock, KeyOwner { cluster: cluster.id.clone(), node: id.clone() })?;
        let actions = bootstrap(cluster, NetworkId::draw(&mut rand::rng()), node)?;
        let member = self.start_first_manager(identity, actions, &addresses, listener).await?;
        self.lifecycle.set(MembershipState::Active(Arc::new(member)));
        Ok(id)
    }

    /// Writes the cluster's first objects to a new store, then starts the member from them.
    async fn start_first_manager(
        &self,
        identity: Identity,
        actions: Vec<Action>,
        addresses: &ListenAddresses,
        listener: TcpListener,
    ) -> anyhow::Result<Member> {
        let env = &self.env;
        let id = identity.node_id();
        let manager = ManagerStore::open(env, FIRST_RAFT_ID, OpenLog::Bootstrap).await?;
        anyhow::ensure!(manager.raft.leads().await, "raft stopped before it could lead");
        manager.store.write(env.clock.now(), actions).await?;
        let store = manager.store.read();
        let node = store.node(id).context("the first node is not in the store")?;
        let cluster = store.cluster().context("the cluster is not in the store")?;
        let assignment = NodeAssignment {
            node_id: id.clone(),
            role: Role::Manager,
            cluster_id: cluster.id.clone(),
            mesh: cluster.mesh,
            subnet: node.mesh.subnet,
            ingress_addr: node.mesh.ingress_addr,
            raft_id: Some(FIRST_RAFT_ID),
        };
        let membership = MembershipFile::new(assignment, addresses).described(&node.description);
        let view = view_of(&store, id).context("the store has no view for the first node")?;
        let network = MeshNetwork::open(env, addresses).await?;
        network.start_overlay(env, id, Some(view));
        env.certificates.store(&identity)?;
        membership.store(&env.state_dir)?;
        let manager = FirstManager::Prepared(PreparedManager { store: manager, listener });
        Member::start(env, membership, identity, network, Some(manager)).await
    }
}

/// A new cluster object and its CA.
fn new_cluster(
    request: &SwarmInitRequest,
    addresses: &ListenAddresses,
    pools: PoolChoice,
    now: Timestamp,
) -> anyhow::Result<(Cluster, RootCa)> {
    let mut rng = rand::rng();
    let ca = RootCa::generate(&mut rng, now)?;
    let cluster = Cluster {
        id: ClusterId::draw(&mut rng),
        meta: Meta::default(),
        spec: request.spec.clone(),
        incarnation: 1,
        ca_certificate: ca.certificate().to_owned(),
        ca_key: ca.key().into(),
        ca_history: CaHistory::default(),
        unlock_key: request.spec.encryption_config.auto_lock_managers.then(|| UnlockKey::draw(&mut rng).to_text()),
        tokens: JoinToken::draw_both(ca.digest()?, &mut rng),
        mesh: MeshPrefix::draw(&mut rng),
        address_pools: pools.pools,
        reserved_subnets: pools.reserved,
        incarnations: Vec::new(),
        subnet_size: request.subnet_size,
        data_path_port: addresses.data_path_port,
        feature_level: FEATURE_LEVELS.newest,
    };
    Ok((cluster, ca))
}

/// Draws the first node's id and issues its certificate.
fn first_identity(cluster: &Cluster, ca: &RootCa, now: Timestamp, life: CertificateLife) -> anyhow::Result<(NodeId, Identity)> {
    let mut rng = rand::rng();
    let id = NodeId::draw(&mut rng);
    let key = NodeKey::generate()?;
    let name = NodeName { node_id: id.clone(), role: Role::Manager, cluster_id: cluster.id.clone() };
    let certificate = trust::issue(ca, &key.request()?, &name, now, life.of(&cluster.spec.ca_config), &mut rng)?;
    Ok((id, Identity::new(&key.to_pem(), &certificate, ca.certificate())?))
}

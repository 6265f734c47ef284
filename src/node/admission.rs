//! Admits nodes, on a manager: checks the token, issues the certificate, allocates addresses, stores the node object.

use super::certificate_authority::CertificateLife;
use super::environment::Environment;
use super::network::send_probe;
use crate::clock::Clock;
use crate::datapath::Tunnel;
use crate::datapath::mesh::Mesh;
use crate::manager::bounds::{self, endpoint_check};
use crate::manager::dispatcher::view_of;
use crate::manager::{JoiningNode, node_allocation, roles};
use crate::model::cluster::ONE_MANAGER;
use crate::model::mesh::{DEFAULT_PORT, node_address};
use crate::model::node::ManagerStatus;
use crate::model::{NodeId, Role, Secret};
use crate::protocol::{JoinRefused, JoinReply, JoinRequest, MembershipAnswer, removal_reason};
use crate::rpc::JoinAuthority;
use crate::store::{Action, Condition, KEY_CHANGES, Kind, ProposeError, StoreError, StoreHandle, Transaction};
use crate::sync::lock;
use crate::trust::{self, NodeName, RootCa, TunnelKeys};
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

/// Feature level from which on every build that may join can prove its key.
const KEY_PROOF_LEVEL: u32 = 2;
/// Attempts to store the node, when other joins allocate addresses at the same time.
const ATTEMPTS: usize = 20;
/// Nodes that are known to have been removed, at most: beyond that all are looked up again.
const KNOWN_REMOVED: usize = 1024;

pub(super) struct Admission {
    store: StoreHandle,
    clock: Arc<dyn Clock>,
    me: NodeId,
    mesh: Arc<Mesh>,
    tunnel: Arc<dyn Tunnel>,
    life: CertificateLife,
    /// Of this manager.
    keys: TunnelKeys,
    /// Ids are never given again: a node that asks again costs no write.
    removed: Mutex<BTreeSet<NodeId>>,
}

impl Admission {
    pub(super) fn new(env: &Environment, store: StoreHandle, me: NodeId, mesh: Arc<Mesh>, tunnel: Arc<dyn Tunnel>) -> Self {
        let (clock, life, keys) = (env.clock.clone(), CertificateLife::new(env), env.tunnel_keys.clone());
        Self { store, clock, me, mesh, tunnel, life, keys, removed: Mutex::default() }
    }

    /// Whether the store has the node, and the incarnation of its cluster.
    fn has(&self, node: &NodeId) -> (bool, u64) {
        let store = self.store.read();
        (store.node(node).is_some(), store.revision().incarnation)
    }

    /// The answer to a member: an earlier build does not understand more.
    fn member(&self) -> MembershipAnswer {
        let key = self.keys.current().filter(|_| self.store.read().feature_level() >= KEY_CHANGES);
        key.map_or(MembershipAnswer::Member, |key| MembershipAnswer::MemberOf { key: key.public() })
    }

    fn mesh_address(&self, node: &NodeId) -> Option<Ipv6Addr> {
        self.store.read().node(node).map(|n| node_address(n.mesh.subnet))
    }
}

/// The joiner's endpoints; an unspecified address is replaced by the source address of the connection.
fn endpoints(request: &JoinRequest, from: SocketAddr) -> Vec<SocketAddr> {
    let mut endpoints = request.endpoints.clone();
    for endpoint in &mut endpoints {
        if endpoint.ip().is_unspecified() {
            endpoint.set_ip(from.ip().to_canonical());
        }
    }
    endpoints
}

fn unavailable(error: &ProposeError) -> JoinRefused {
    JoinRefused::Unavailable(error.to_string())
}

fn other(error: impl std::fmt::Display) -> JoinRefused {
    JoinRefused::Other(error.to_string())
}

#[async_trait]
impl JoinAuthority for Admission {
    fn knows(&self, token: &Secret<String>) -> bool {
        self.store.read().cluster().is_some_and(|cluster| trust::role_of(&cluster.tokens, token.expose()).is_some())
    }

    /// From level 2 on no manager is left that an older build could have joined by.
    fn requires_key_proof(&self) -> bool {
        self.store.read().feature_level() >= KEY_PROOF_LEVEL
    }

    async fn admit(&self, request: &JoinRequest, from: SocketAddr) -> Result<JoinReply, JoinRefused> {
        let store = self.store.read();
        let cluster = store.cluster().ok_or_else(|| JoinRefused::Unavailable("this manager has no cluster yet".to_owned()))?;
        let role = trust::role_of(&cluster.tokens, request.token.expose()).ok_or(JoinRefused::Token)?;
        let id = NodeId::draw(&mut rand::rng());
        let ca = RootCa::from_pem(&cluster.ca_certificate, cluster.ca_key.expose()).map_err(other)?;
        let name = NodeName { node_id: id.clone(), role, cluster_id: cluster.id.clone() };
        let life = self.life.of(&cluster.spec.ca_config);
        let certificate = trust::issue(&ca, &request.csr, &name, self.clock.now(), life, &mut rand::rng()).map_err(other)?;
        let endpoints = endpoints(request, from);
        let advertised = request.description.advertised.map(|ip| SocketAddr::new(ip, DEFAULT_PORT));
        for endpoint in endpoints.iter().chain(&advertised) {
            endpoint_check(&store, *endpoint).map_err(other)?;
        }
        let description = bounds::at_level(&store, bounds::description(&store, &id, request.description.clone()));
        let mut node = JoiningNode {
            id: id.clone(),
            role,
            availability: request.availability,
            description,
            addr: request.description.advertised.or_else(|| endpoints.first().map(SocketAddr::ip)),
            key: request.key,
            endpoints,
            manager: None,
        };
        if role == Role::Manager {
            if !store.may_have_several_managers() {
                return Err(other(ONE_MANAGER));
            }
            let (levels, level) = (request.description.feature_levels(), store.feature_level());
            if !levels.contains(level) {
                return Err(other(StoreError::UnreadableLevel { levels, level }));
            }
            let address = node.addr.unwrap_or(from.ip().to_canonical());
            let raft_id = roles::draw_raft_id(&mut rand::rng());
            node.manager = Some(ManagerStatus { raft_id, addr: SocketAddr::new(address, DEFAULT_PORT) });
        }
        for _ in 0..ATTEMPTS {
            let store = self.store.read();
            let (_, actions) = node_allocation::admit(&store, node.clone()).map_err(other)?;
            let key_is_free = Condition::FreeKey { key: request.key };
            match self.store.propose(Transaction::new(self.clock.now(), actions).require([key_is_free])).await {
                Ok(_) => {}
                Err(ProposeError::Refused(StoreError::OutOfSequence)) => continue,
                Err(ProposeError::Refused(error @ StoreError::KeyInUse { .. })) => return Err(other(error)),
                Err(error) => return Err(unavailable(&error)),
            }
            let store = self.store.read();
            let (Some(node), Some(me), Some(cluster), Some(view)) =
                (store.node(&id), store.node(&self.me), store.cluster(), view_of(&store, &id))
            else {
                return Err(JoinRefused::Unavailable("the new node was removed again".to_owned()));
            };
            return Ok(JoinReply {
                node_id: id,
                role,
                cluster_id: cluster.id.clone(),
                certificate,
                // The root that has signed it: another one may issue by now.
                ca_certificate: ca.certificate().to_owned(),
                mesh: cluster.mesh,
                subnet: node.mesh.subnet,
                ingress_addr: node.mesh.ingress_addr,
                data_path_port: cluster.data_path_port,
                manager_key: me.mesh.key,
                raft_id: node.manager.as_ref().map(|manager| manager.raft_id),
                unlock_key: cluster.unlock_key.clone().filter(|_| role == Role::Manager),
                view,
            });
        }
        Err(JoinRefused::Unavailable("too many nodes join at once: try again".to_owned()))
    }

    async fn received(&self, node: &NodeId) -> u64 {
        let Some(key) = self.store.read().node(node).map(|n| n.mesh.key) else { return 0 };
        self.tunnel.observe().await.ok().and_then(|t| t.peers.get(&key).map(|p| p.rx_bytes)).unwrap_or(0)
    }

    async fn send_probe(&self, node: &NodeId) {
        if let (Some(from), Some(to)) = (self.mesh_address(&self.me), self.mesh_address(node)) {
            send_probe(&self.mesh, from, to);
        }
    }

    async fn membership(&self, node: &NodeId) -> MembershipAnswer {
        let (has, incarnation) = self.has(node);
        if has {
            return self.member();
        }
        if !lock(&self.removed).contains(node) {
            // A write of nothing: after it this manager has every node that was admitted before the question.
            if let Err(error) = self.store.write(self.clock.now(), Vec::new()).await {
                return MembershipAnswer::Unknown(error.to_string());
            }
            if self.has(node).0 {
                return self.member();
            }
            let mut removed = lock(&self.removed);
            if removed.len() >= KNOWN_REMOVED {
                removed.clear();
            }
            removed.insert(node.clone());
        }
        tracing::info!(%node, "a node that is no member asked for its membership");
        MembershipAnswer::Removed { incarnation, why: removal_reason(node) }
    }

    async fn confirm(&self, node: &NodeId) {
        tracing::debug!(%node, "UDP is proved in both directions");
    }

    async fn revoke(&self, node: &NodeId) {
        let actions = vec![Action::Remove(Kind::Node, node.to_string())];
        if let Err(error) = self.store.write(self.clock.now(), actions).await {
            tracing::warn!(%node, %error, "a node whose join failed could not be removed: remove it with `docker node rm --force`");
        }
    }
}

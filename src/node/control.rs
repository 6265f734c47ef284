//! The node as the API controls it: its membership, its store, init, join and leave. A failed init or join leaves the node
//! as it was.

use super::address;
use super::daemon::Daemon;
use super::lifecycle::MembershipState;
use super::member::Member;
use crate::api::control::{
    self, AttachRefusal, ControlError, Membership, NodeControl, PreparedNetwork, RequestedAddresses, Standing, SwarmInitRequest,
    SwarmJoinRequest,
};
use crate::datapath::interfaces::host_addresses;
use crate::dns::resolv::Resolv;
use crate::http::BoxedStream;
use crate::model::view::{NetworkPart, NodeView};
use crate::model::{AttachDenial, LogRequest, NetworkId, NodeId, Role, Secret, TaskId, TaskLog, Timestamp, UnwrittenObject};
use crate::overlay::driver::attachments::AttachError;
use crate::runtime::NetworkPlan;
use crate::store::StoreHandle;
use crate::trust::{InvalidUnlockKey, JoinToken, PayloadVault, RootCa, UnlockKey, name_digest};
use async_trait::async_trait;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use tokio::sync::mpsc;

/// The daemon behind the API's control trait.
pub(super) struct DaemonControl(pub Arc<Daemon>);

#[async_trait]
impl NodeControl for DaemonControl {
    fn membership(&self) -> Membership {
        match self.0.lifecycle.state() {
            MembershipState::Inactive => Membership::Inactive,
            MembershipState::Pending { remotes, error } => Membership::Pending { node_addr: None, remotes, error },
            MembershipState::Locked(node) => Membership::Locked { node_addr: node.advertised() },
            MembershipState::Active(member) => match member.removed() {
                Some(error) => Membership::Pending { node_addr: member.advertised(), remotes: Vec::new(), error },
                None => active_membership(&member),
            },
        }
    }

    fn standing(&self) -> Standing {
        match self.0.lifecycle.state() {
            MembershipState::Inactive => Standing::Inactive,
            MembershipState::Pending { .. } => Standing::Pending,
            MembershipState::Locked(_) => Standing::Locked,
            MembershipState::Active(member) if member.removed().is_some() => Standing::Pending,
            MembershipState::Active(member) => match member.role() {
                Role::Manager => Standing::Manager,
                Role::Worker => Standing::Worker,
            },
        }
    }

    fn store(&self) -> Option<StoreHandle> {
        match self.0.lifecycle.state() {
            MembershipState::Active(member) => member.store(),
            _ => None,
        }
    }

    fn leaderless_since(&self) -> Option<Timestamp> {
        match self.0.lifecycle.state() {
            MembershipState::Active(member) => *member.leaderless.borrow(),
            _ => None,
        }
    }

    fn knows_network(&self, name: &str) -> bool {
        let is_in = |view: &NodeView| view.cluster.network_digests.contains(&name_digest(view.cluster.mesh, name));
        match self.0.lifecycle.state() {
            MembershipState::Active(member) => member.view().is_some_and(|view| is_in(&view)),
            MembershipState::Locked(node) => node.view().is_some_and(|view| is_in(&view)),
            // One that could not be started has its last view on the disk; one that joins has none.
            MembershipState::Pending { .. } => {
                self.0.env.state_dir.ledger().load().ok().flatten().is_some_and(|view| is_in(&view))
            }
            MembershipState::Inactive => false,
        }
    }

    fn network(&self, id: &NetworkId) -> Option<control::KnownNetwork> {
        match self.0.lifecycle.state() {
            MembershipState::Active(member) => control::KnownNetwork::of(&*member.view()?, id),
            MembershipState::Locked(node) => control::KnownNetwork::of(&*node.view()?, id),
            MembershipState::Pending { .. } | MembershipState::Inactive => None,
        }
    }

    fn left_out(&self) -> Vec<UnwrittenObject> {
        match self.0.lifecycle.state() {
            MembershipState::Active(member) => member.leader_health.borrow().left_out.clone(),
            _ => Vec::new(),
        }
    }

    async fn init(&self, request: SwarmInitRequest) -> Result<NodeId, ControlError> {
        let daemon = &self.0;
        let _lock = daemon.lifecycle.lock().await;
        daemon.must_be_inactive().await?;
        let host = host_addresses().await.map_err(|e| failed(&e))?;
        let addresses = address::for_init(&request.listen_addr, &request.advertise_addr, request.data_path_port, &host)
            .and_then(|addresses| addresses.with_data_path(&request.data_path_addr, &host))
            .map_err(ControlError::invalid)?;
        daemon.engine_must_be_free().await?;
        match daemon.create_cluster(request, addresses).await {
            Ok(id) => Ok(id),
            Err(error) => {
                daemon.clean_up();
                Err(failed(&error))
            }
        }
    }

    async fn new_cluster(&self, advertise_addr: String) -> Result<NodeId, ControlError> {
        // Not cut off when the client goes away: half a cluster would stay.
        let daemon = self.0.clone();
        let made = tokio::spawn(async move {
            let _lock = daemon.lifecycle.lock().await;
            daemon.make_new_cluster(&advertise_addr).await
        });
        made.await.map_err(|e| failed(&e.into()))?
    }

    async fn join(&self, request: SwarmJoinRequest) -> Result<(), ControlError> {
        let daemon = &self.0;
        let _lock = daemon.lifecycle.lock().await;
        daemon.must_be_inactive().await?;
        let host = host_addresses().await.map_err(|e| failed(&e))?;
        let addresses = address::for_join(&request.listen_addr, &request.advertise_addr, &host)
            .and_then(|addresses| addresses.with_data_path(&request.data_path_addr, &host))
            .map_err(ControlError::invalid)?;
        daemon.engine_must_be_free().await?;
        daemon.lifecycle.set(MembershipState::Pending { remotes: request.remote_addrs.clone(), error: String::new() });
        let joined = daemon.join_cluster(request, addresses).await;
        if joined.is_err() {
            daemon.clean_up();
            daemon.lifecycle.set(MembershipState::Inactive);
        }
        joined
    }

    async fn leave(&self, _force: bool) -> Result<(), ControlError> {
        let daemon = &self.0;
        let _lock = daemon.lifecycle.lock().await;
        match daemon.lifecycle.state() {
            MembershipState::Active(member) => daemon.lifecycle.leave(&*member).await.map_err(|e| {
                ControlError::failed(format!("this node left the swarm, but not everything of it could be taken down: {e:#}"))
            }),
            MembershipState::Locked(node) => daemon.lifecycle.leave(&*node).await.map_err(|e| {
                ControlError::failed(format!("this node left the swarm, but not everything of it could be taken down: {e:#}"))
            }),
            MembershipState::Pending { .. } => daemon.abandon().await.map_err(|e| failed(&e)),
            MembershipState::Inactive => Err(ControlError::unavailable("This node is not part of a swarm")),
        }
    }

    async fn unlock(&self, key: &Secret<String>) -> Result<(), ControlError> {
        let key: UnlockKey = key.expose().parse().map_err(|error: InvalidUnlockKey| ControlError::invalid(error.to_string()))?;
        // Not cut off when the client goes away: a node that is half started would stay.
        let daemon = self.0.clone();
        tokio::spawn(async move { daemon.unlock(key).await }).await.map_err(|e| failed(&e.into()))?
    }

    async fn prepare_network(&self, reference: &str, requested: RequestedAddresses) -> Result<PreparedNetwork, AttachRefusal> {
        let env = &self.0.env;
        let refusal = |error| match error {
            AttachError::Refused(reason) => AttachRefusal::Managers(AttachDenial::of_text(&reason)),
            AttachError::NoSwarm(_) | AttachError::NoAnswer { .. } => {
                AttachRefusal::Node(ControlError::unavailable(error.to_string()))
            }
            AttachError::File(error) => AttachRefusal::Node(failed(&error)),
        };
        let mut given = env.attachments.prepare(reference, requested.v4).await.map_err(refusal)?;
        let mut belonging = None;
        if let Some(v6) = requested.v6 {
            let address = belonging_v4(&given.network, requested.v4, v6).map_err(AttachRefusal::Managers)?;
            if requested.v4.is_none() {
                // The address that was kept ready to see the network is given back when nothing claims it.
                given = env.attachments.prepare(reference, Some(address)).await.map_err(refusal)?;
            }
            belonging = Some(address);
        }
        let part = given.network;
        let mtu = *env.mtus.device.borrow();
        let network = NetworkPlan::of(given.network_id, &part, mtu);
        let made = env.engine.ensure_network(&network).await;
        made.map_err(|error| AttachRefusal::Node(ControlError::failed(error.to_string())))?;
        let mut resolvers = Resolv::new(env.settings.resolv_conf.clone()).nameservers();
        // Those of the host itself are others in a container.
        resolvers.retain(|address| !address.is_loopback());
        Ok(PreparedNetwork { id: network.id, name: network.name, gateway: network.gateway, resolvers, belonging })
    }

    fn new_token(&self) -> Result<Secret<String>, ControlError> {
        let store = self.store().ok_or_else(|| ControlError::unavailable("this node is not a manager"))?.read();
        let cluster = store.cluster().ok_or_else(|| ControlError::unavailable("there is no cluster yet"))?;
        let ca = RootCa::from_pem(&cluster.ca_certificate, cluster.ca_key.expose()).map_err(|e| failed(&e.into()))?;
        let digest = ca.digest().map_err(|e| failed(&e.into()))?;
        Ok(JoinToken::draw(digest, &mut rand::rng()).to_string().into())
    }

    async fn read_logs(
        &self,
        node: &NodeId,
        requests: mpsc::Receiver<LogRequest>,
        logs: mpsc::Sender<(TaskId, TaskLog)>,
    ) -> Result<(), ControlError> {
        let no_manager = || ControlError::unavailable("this node is not a manager");
        let (logs_of, store) = match self.0.lifecycle.state() {
            MembershipState::Active(member) => (member.logs.clone(), member.store().ok_or_else(no_manager)?.read()),
            _ => return Err(no_manager()),
        };
        logs_of.read(&store, node, requests, logs).await.map_err(|e| ControlError::unavailable(format!("{e:#}")))
    }

    async fn node_api(&self, node: &NodeId) -> Result<BoxedStream, ControlError> {
        let no_manager = || ControlError::unavailable("this node is not a manager");
        let (links, store) = match self.0.lifecycle.state() {
            MembershipState::Active(member) => (member.logs.clone(), member.store().ok_or_else(no_manager)?.read()),
            _ => return Err(no_manager()),
        };
        links.node_api(&store, node).await.map_err(|e| ControlError::unavailable(format!("{e:#}")))
    }

    fn vault(&self) -> Result<Arc<PayloadVault>, ControlError> {
        match self.0.lifecycle.state() {
            MembershipState::Active(member) => self.0.env.vault(&member.membership.node_id).map_err(|e| failed(&e)),
            _ => Err(ControlError::unavailable("this node is not a manager")),
        }
    }
}

fn active_membership(member: &Member) -> Membership {
    let view = member.view();
    let session = member.session.state.borrow().clone();
    let managers = view.iter().flat_map(|v| v.cluster.nodes.iter()).filter(|n| n.manager);
    let managers: Vec<_> = managers.filter_map(|n| Some((n.node_id.clone(), *n.endpoints.first()?, n.address()))).collect();
    let leader = session.leader.and_then(|l| managers.iter().find(|(_, _, mesh)| l.ip() == *mesh)).map(|(id, _, _)| id.clone());
    let info = control::MembershipInfo {
        node_id: member.membership.node_id.clone(),
        node_addr: member.advertised(),
        managers: managers.into_iter().map(|(id, addr, _)| (id, addr)).collect(),
        leader,
    };
    match member.role() {
        Role::Manager => Membership::Manager(info),
        Role::Worker => Membership::Worker(info),
    }
}

pub(super) fn failed(error: &anyhow::Error) -> ControlError {
    ControlError::failed(format!("{error:#}"))
}

impl Daemon {
    /// Not in a swarm, and nothing of an earlier one is left.
    async fn must_be_inactive(&self) -> Result<(), ControlError> {
        match self.lifecycle.state() {
            MembershipState::Inactive => self.finish_leaving().await.map_err(|error| {
                ControlError::unavailable(format!("this node has not finished leaving its last swarm: {error:#}; try again"))
            }),
            MembershipState::Active(_) | MembershipState::Locked(_) | MembershipState::Pending { .. } => {
                Err(ControlError::unavailable(
                    "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.",
                ))
            }
        }
    }

    /// The engine must answer, and must not be in a swarm of Docker's.
    async fn engine_must_be_free(&self) -> Result<(), ControlError> {
        match self.env.docker.in_swarm().await {
            Ok(false) => Ok(()),
            Ok(true) => Err(ControlError::unavailable(
                "this Docker Engine is itself part of a swarm: leave that swarm first with `docker -H unix:///var/run/docker.sock swarm leave --force`",
            )),
            Err(error) => Err(ControlError::unavailable(error.to_string())),
        }
    }

    /// Removes the files of a failed init or join.
    fn clean_up(&self) {
        if let Err(error) = self.env.forget() {
            tracing::warn!(error = format!("{error:#}"), "the files of a failed attempt could not be removed");
        }
    }
}

/// The IPv4 address that belongs to the IPv6 address which a user asks for; the error is for users.
fn belonging_v4(network: &NetworkPart, v4: Option<Ipv4Addr>, v6: Ipv6Addr) -> Result<Ipv4Addr, AttachDenial> {
    let denied = |text| Err(AttachDenial::Other(text));
    let name = &network.name;
    let pairs = network.pairs();
    if pairs.is_empty() {
        return denied(format!("network {name} has no IPv6 subnet, in which {v6} could be"));
    }
    let Some(belonging) = pairs.iter().find_map(|pair| pair.to_v4(v6)) else {
        let shown = pairs.iter().map(|pair| format!("{}, {}", pair.v6, pair.v4)).collect::<Vec<_>>().join("; ");
        return denied(format!("invalid address {v6}: it is no host address of network {name} ({shown})"));
    };
    match v4 {
        Some(v4) if v4 != belonging => denied(format!(
            "addresses {v4} and {v6} cannot be had together: {belonging} belongs to {v6}, because a container has the same host number \
             in both subnets of network {name}"
        )),
        _ => Ok(belonging),
    }
}

//! Join: the joiner's side. Opens the tunnel, sends the request through rpc, and starts the member from the reply.

use super::address::{self, ListenAddresses};
use super::control::failed;
use super::daemon::Daemon;
use super::environment::Environment;
use super::keyring::KeyOwner;
use super::lifecycle::MembershipState;
use super::manager_part::{FirstManager, OpenLog, PreparedManager};
use super::member::Member;
use super::network::{MeshNetwork, send_probe};
use super::state_dir::{MembershipFile, NodeAssignment};
use crate::api::control::{ControlError, SwarmJoinRequest};
use crate::model::mesh::node_address;
use crate::model::node::NodeDescription;
use crate::model::{Role, WgKey};
use crate::protocol::{JoinRefused, JoinReply};
use crate::rpc::{JoinError, JoinOptions, JoinParts, Joined, JoinerSide, join};
use crate::trust::{JoinToken, NodeKey, TunnelKey};
use anyhow::Context as _;
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Time for a manager to accept a connection, while there are others to try.
const CONNECT: Duration = Duration::from_secs(3);

/// A join through one manager that failed.
struct FailedAttempt {
    error: ControlError,
    /// Another manager may admit this node: this one was not reached, or cannot answer.
    others_may_help: bool,
}

impl From<ControlError> for FailedAttempt {
    fn from(error: ControlError) -> Self {
        Self { error, others_may_help: false }
    }
}

impl Daemon {
    /// Joins through the first of the managers named that answers.
    pub(super) async fn join_cluster(&self, request: SwarmJoinRequest, addresses: ListenAddresses) -> Result<(), ControlError> {
        let token = request.token.expose();
        if token.is_empty() {
            return Err(ControlError::wrong_token());
        }
        if token.starts_with("SWMTKN-2-1-") {
            return Err(ControlError::failed("node is not FIPS-enabled but cluster requires FIPS"));
        }
        // Before anything is made for it.
        token.parse::<JoinToken>().map_err(|_| ControlError::malformed_token())?;
        self.env.forget().map_err(|e| failed(&e))?;
        let managers = resolve_managers(&request.remote_addrs).await?;
        let mut reasons = Vec::new();
        for (position, remote) in managers.iter().enumerate() {
            let is_last = position + 1 == managers.len();
            let attempt = self.join_through(*remote, (!is_last).then_some(CONNECT), &request, &addresses).await;
            match attempt {
                Ok(member) => {
                    self.lifecycle.set(MembershipState::Active(Arc::new(member)));
                    return Ok(());
                }
                Err(attempt) if !attempt.others_may_help || managers.len() == 1 => return Err(attempt.error),
                Err(attempt) => {
                    tracing::info!(%remote, error = attempt.error.message, "this manager does not admit this node: the next one is asked");
                    reasons.push(attempt.error.message);
                }
            }
        }
        Err(ControlError::unavailable(reasons.join("; ")))
    }

    /// Joins through this manager. Within `connect` it must accept the connection, if that is given.
    async fn join_through(
        &self,
        remote: SocketAddr,
        connect: Option<Duration>,
        request: &SwarmJoinRequest,
        addresses: &ListenAddresses,
    ) -> Result<Member, FailedAttempt> {
        let env = &self.env;
        let addresses = &addresses.clone().advertised_at_least(|| source_to(remote));
        let node_key = NodeKey::generate().map_err(|e| failed(&e.into()))?;
        env.tunnel_key().map_err(|e| failed(&e))?;
        let private = crate::datapath::tunnel::private_key(&env.state_dir.tunnel_key()).map_err(|e| failed(&e))?;
        let tunnel_key = TunnelKey::new(private);
        let tunnel = JoinerTunnel::open(env, addresses.clone()).await.map_err(|e| failed(&e))?;
        let description = NodeDescription { advertised: addresses.advertised_apart(), ..env.description().await };
        let parts = JoinParts {
            token: &request.token,
            node_key: &node_key,
            tunnel_key: &tunnel_key,
            endpoints: addresses.endpoints(),
            description: description.clone(),
            availability: request.availability,
        };
        let timeout = env.settings.timeouts.join();
        let connect = connect.map_or(timeout, |connect| connect.min(timeout));
        let options = JoinOptions { timeout, connect, ..JoinOptions::new(env.clock.clone()) };
        let joined = match join(remote, parts, &tunnel, &options).await {
            Ok(joined) => joined,
            Err(error) => {
                // `join` does not tear down what it has not brought up.
                tunnel.tear_down().await;
                let others_may_help = others_may_help(&error);
                return Err(FailedAttempt { error: control_error(&error, remote), others_may_help });
            }
        };
        let JoiningNetwork { network, addresses, .. } =
            tunnel.state.lock().await.take().ok_or_else(|| ControlError::failed("the tunnel is closed"))?;
        Ok(start_member(env, joined, network, &addresses, &description).await.map_err(|e| failed(&e))?)
    }
}

/// Whether another manager may answer otherwise. Not what is wrong with the token, the cluster or this node.
fn others_may_help(error: &JoinError) -> bool {
    match error {
        JoinError::Unreachable { .. } | JoinError::TimedOut { .. } | JoinError::Broken { .. } | JoinError::GaveUp { .. } => true,
        JoinError::Refused(refused) => matches!(refused, JoinRefused::Unavailable(_)),
        _ => false,
    }
}

/// The address of this host from which it sends to another one.
fn source_to(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing.
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Resolves the managers' host names or addresses, in this order; the port is optional. A name that does not resolve matters only if none
/// does.
async fn resolve_managers(texts: &[String]) -> Result<Vec<SocketAddr>, ControlError> {
    let (mut managers, mut wrong) = (Vec::new(), Vec::new());
    for text in texts {
        let (host, port) = address::remote(text);
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map(Iterator::collect).unwrap_or_default();
        if found.is_empty() {
            wrong.push(format!("the manager's address {text:?} is neither an IP address nor a name that resolves"));
        }
        managers.extend(found);
    }
    let mut known = BTreeSet::new();
    managers.retain(|manager| known.insert(*manager));
    if managers.is_empty() { Err(ControlError::unavailable(wrong.join("; "))) } else { Ok(managers) }
}

/// Stores identity and membership, then starts the member.
async fn start_member(
    env: &Arc<Environment>,
    joined: Joined,
    network: MeshNetwork,
    addresses: &ListenAddresses,
    description: &NodeDescription,
) -> anyhow::Result<Member> {
    let Joined { reply, identity } = joined;
    let assignment = NodeAssignment {
        node_id: reply.node_id,
        role: reply.role,
        cluster_id: reply.cluster_id,
        mesh: reply.mesh,
        subnet: reply.subnet,
        ingress_addr: reply.ingress_addr,
        raft_id: reply.raft_id,
    };
    let membership = MembershipFile::new(assignment, addresses).described(description);
    let begun = match reply.role {
        Role::Manager => {
            let unlock = reply.unlock_key.as_ref().map(|key| key.expose().parse()).transpose()?;
            env.keyring.begin(unlock, KeyOwner { cluster: membership.cluster_id.clone(), node: membership.node_id.clone() })
        }
        Role::Worker => Ok(()),
    };
    let stored = begun.and_then(|()| env.certificates.store(&identity).map_err(anyhow::Error::from));
    let prepared = match reply.raft_id {
        Some(raft_id) if stored.is_ok() => PreparedManager::open(env, raft_id, addresses.listen, OpenLog::Join).await.map(Some),
        _ => Ok(None),
    };
    // The log is there before the file that says so.
    let prepared = stored.and(prepared).and_then(|prepared| membership.store(&env.state_dir).map(|()| prepared));
    match prepared {
        Ok(manager) => Member::start(env, membership, identity, network, manager.map(FirstManager::Prepared)).await,
        Err(error) => {
            let _ = network.take_down(env).await;
            Err(error)
        }
    }
}

/// The API's error for a failed join; with Docker's text where Docker has one.
fn control_error(error: &JoinError, remote: SocketAddr) -> ControlError {
    match error {
        JoinError::MalformedToken => ControlError::malformed_token(),
        JoinError::ForeignCa { expected, .. } => ControlError::wrong_ca(expected),
        JoinError::Refused(JoinRefused::Token) => ControlError::wrong_token(),
        JoinError::Refused(JoinRefused::Unavailable(_)) => {
            ControlError::unavailable(format!("the manager at {remote} cannot admit this node now: {error}"))
        }
        JoinError::Unreachable { .. } => ControlError::unavailable(error.to_string()),
        _ => ControlError::failed(format!("{error:#}")),
    }
}

/// This node's tunnel during a join.
struct JoinerTunnel {
    env: Arc<Environment>,
    /// `None` once it is torn down, or the member has it.
    state: tokio::sync::Mutex<Option<JoiningNetwork>>,
}

struct JoiningNetwork {
    network: MeshNetwork,
    addresses: ListenAddresses,
    /// Known from the reply on.
    manager: Option<ManagerPeer>,
}

/// The manager that admitted this node.
#[derive(Clone, Copy)]
struct ManagerPeer {
    key: WgKey,
    /// This node's mesh address.
    own: Ipv6Addr,
    /// The manager's mesh address.
    address: Ipv6Addr,
}

impl JoinerTunnel {
    async fn open(env: &Arc<Environment>, addresses: ListenAddresses) -> anyhow::Result<Self> {
        let network = MeshNetwork::open(env, &addresses).await?;
        let state = tokio::sync::Mutex::new(Some(JoiningNetwork { network, addresses, manager: None }));
        Ok(Self { env: env.clone(), state })
    }
}

#[async_trait]
impl JoinerSide for JoinerTunnel {
    async fn bring_up(&self, reply: &JoinReply) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        let mut joining = state.take().context("the tunnel is closed")?;
        if joining.addresses.data_path_port != reply.data_path_port {
            // The cluster's tunnels use another port than the one that this node assumed.
            joining.network.take_down(&self.env).await?;
            joining.addresses.data_path_port = reply.data_path_port;
            joining.network = MeshNetwork::open(&self.env, &joining.addresses).await?;
        }
        joining.network.start_overlay(&self.env, &reply.node_id, Some(reply.view.clone()));
        let manager = reply.view.cluster.nodes.iter().find(|n| n.key == reply.manager_key);
        joining.manager = manager.map(|m| ManagerPeer { key: m.key, own: node_address(reply.subnet), address: m.address() });
        *state = Some(joining);
        Ok(())
    }
    async fn received_from_manager(&self) -> anyhow::Result<u64> {
        let state = self.state.lock().await;
        let joining = state.as_ref().context("the tunnel is not up")?;
        let manager = joining.manager.context("the manager that answered is not among the nodes")?;
        joining.network.received(manager.key).await
    }
    async fn send_probe(&self) {
        if let Some(joining) = &*self.state.lock().await
            && let Some(manager) = joining.manager
        {
            send_probe(&joining.network.mesh, manager.own, manager.address);
        }
    }
    async fn tear_down(&self) {
        if let Some(joining) = self.state.lock().await.take()
            && let Err(error) = joining.network.take_down(&self.env).await
        {
            tracing::warn!(error = format!("{error:#}"), "the network of a failed join could not be taken down");
        }
    }
}

//! The first transaction of a cluster, and the subnet and addresses of each new node. Knows nothing of certificates: the
//! cluster object is complete.

use super::allocator::{AddressBook, QuarantinedAddresses, first_free, ingress};
use crate::model::WgKey;
use crate::model::mesh::LAST_NODE_INDEX;
use crate::model::network::INGRESS;
use crate::model::node::{ManagerStatus, NodeDescription, NodeMesh, NodeStatus};
use crate::model::{Availability, Cluster, Meta, Network, NetworkId, NetworkSpec, Node, NodeId, NodeSpec, NodeState, Role};
use crate::store::{Action, Store};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Why a node cannot be added.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodeAllocationError {
    /// The store is empty.
    #[error("this manager has no cluster yet")]
    NoCluster,
    /// There is no `ingress` network with a subnet.
    #[error(
        "the swarm has no ingress network, on which each node needs an address: docker network create -d overlay --ingress ingress"
    )]
    NoIngress,
    /// All addresses of `ingress` are in use.
    #[error("every address of the ingress network {} is in use: remove nodes or services that publish ports", shown(.0))]
    IngressFull(Vec<Ipv4Net>),
    /// All node subnets of the cluster's /48 are in use.
    #[error("the cluster has {LAST_NODE_INDEX} nodes, there is no room for another one")]
    TooManyNodes,
    /// The address pools contain no subnet for `ingress`.
    #[error("the default address pools contain no /{0}: use a larger pool or a longer subnet size")]
    PoolTooSmall(u8),
}

fn shown(subnets: &[Ipv4Net]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// Subnet and addresses for a new node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeAllocation {
    /// Index of `subnet` in the cluster's /48, from 1.
    pub index: u16,
    /// The node's /64 of the cluster's /48.
    pub subnet: Ipv6Net,
    /// The node's address on `ingress`.
    pub ingress_addr: Ipv4Addr,
    /// To be written in the same transaction as the node: the transaction is refused with `OutOfSequence` if another writer
    /// assigned addresses since. Then allocate again.
    pub version_guard: Vec<Action>,
}

/// What is known of a node before it gets its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoiningNode {
    /// Also the common name of its certificate.
    pub id: NodeId,
    pub role: Role,
    /// As the node requested.
    pub availability: Availability,
    /// Reported by the node.
    pub description: NodeDescription,
    /// Address that the node advertises.
    pub addr: Option<IpAddr>,
    pub key: WgKey,
    /// UDP addresses at which its tunnel may be reachable, most likely first.
    pub endpoints: Vec<SocketAddr>,
    /// `None` for workers.
    pub manager: Option<ManagerStatus>,
}

impl JoiningNode {
    /// The node object with this subnet and address.
    #[must_use]
    pub fn into_node(self, subnet: Ipv6Net, ingress_addr: Ipv4Addr) -> Node {
        Node {
            id: self.id,
            meta: Meta::default(),
            spec: NodeSpec { role: self.role, availability: self.availability, ..NodeSpec::default() },
            description: self.description,
            status: NodeStatus { state: NodeState::Unknown, addr: self.addr, ..NodeStatus::default() },
            mesh: NodeMesh { key: self.key, next: None, subnet, ingress_addr, endpoints: self.endpoints },
            manager: self.manager,
        }
    }
}

/// Allocation for the next node: the lowest free index from 1, and a free address on `ingress`.
///
/// # Errors
/// See [`NodeAllocationError`].
pub fn next_node_allocation(store: &Store) -> Result<NodeAllocation, NodeAllocationError> {
    let cluster = store.cluster().ok_or(NodeAllocationError::NoCluster)?;
    let network = ingress(store).ok_or(NodeAllocationError::NoIngress)?;
    let subnets = network.subnets();
    if subnets.is_empty() {
        return Err(NodeAllocationError::NoIngress);
    }
    let taken: BTreeSet<Ipv6Net> = store.nodes().map(|n| n.mesh.subnet).collect();
    let index =
        (1..=LAST_NODE_INDEX).find(|i| !taken.contains(&cluster.mesh.node(*i))).ok_or(NodeAllocationError::TooManyNodes)?;
    let (mut book, mut quarantine) = (AddressBook::new(store), QuarantinedAddresses::default());
    let free = subnets.iter().find_map(|subnet| book.take(&network.id, *subnet, &mut quarantine));
    let ingress_addr = free.ok_or(NodeAllocationError::IngressFull(subnets))?;
    let version_guard = vec![Action::update(network.clone())];
    Ok(NodeAllocation { index, subnet: cluster.mesh.node(index), ingress_addr, version_guard })
}

/// Node object and transaction for a node that joins. If it is refused with `OutOfSequence`, call this again.
///
/// # Errors
/// As [`next_node_allocation`].
pub fn admit(store: &Store, joining: JoiningNode) -> Result<(Node, Vec<Action>), NodeAllocationError> {
    let allocation = next_node_allocation(store)?;
    let node = joining.into_node(allocation.subnet, allocation.ingress_addr);
    let mut actions = allocation.version_guard;
    actions.push(Action::create(node.clone()));
    Ok((node, actions))
}

/// The first transaction of a new cluster: the cluster, `ingress` on the pool's first subnet, the first node.
///
/// # Errors
/// The pools contain no subnet of the requested size, or it is too small for a node.
pub fn bootstrap(cluster: Cluster, ingress_id: NetworkId, first: JoiningNode) -> Result<Vec<Action>, NodeAllocationError> {
    let subnet = first_free(&cluster, |_| false).ok_or(NodeAllocationError::PoolTooSmall(cluster.subnet_size))?;
    let network = Network {
        subnet: Some(subnet),
        ..Network::new(ingress_id, NetworkSpec { name: INGRESS.to_owned(), ingress: true, ..NetworkSpec::default() })
    };
    let ingress_addr = AddressBook::new(&Store::default())
        .take(&network.id, subnet, &mut QuarantinedAddresses::default())
        .ok_or(NodeAllocationError::IngressFull(vec![subnet]))?;
    let mut node = first.into_node(cluster.mesh.node(1), ingress_addr);
    // The first node is this process, so it is ready; the dispatcher observes it from here on as any other node.
    node.status.state = NodeState::Ready;
    Ok(vec![Action::create(cluster), Action::create(network), Action::create(node)])
}

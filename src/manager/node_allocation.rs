//! The first transaction of a cluster and the place of each new node. Knows nothing of certificates: the cluster object
//! comes complete.

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

/// Why there is no place for a node.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodeAllocationError {
    /// The store is empty.
    #[error("this manager has no cluster yet")]
    NoCluster,
    /// No `ingress` network with a subnet.
    #[error("the ingress network has no subnet")]
    NoIngress,
    /// All addresses are in use.
    #[error("every address of the ingress network {0} is in use: remove nodes or services that publish ports")]
    IngressFull(Ipv4Net),
    /// All /64 are in use.
    #[error("the cluster has {LAST_NODE_INDEX} nodes, there is no room for another one")]
    TooManyNodes,
    /// No pool to cut `ingress` from.
    #[error("the default address pools hold no /{0}: give a larger pool or a longer subnet size")]
    PoolTooSmall(u8),
}

/// A free place for a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeAllocation {
    /// Index of its /64.
    pub index: u16,
    /// Its /64.
    pub subnet: Ipv6Net,
    /// Its own address on `ingress`.
    pub ingress_addr: Ipv4Addr,
    /// To be written in the same transaction as the node: makes it fail with `OutOfSequence` if somebody else took
    /// addresses meanwhile. Then ask again.
    pub fence: Vec<Action>,
}

/// A node that becomes a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoiningNode {
    /// Its id, also in its certificate.
    pub id: NodeId,
    /// Its role.
    pub role: Role,
    /// Availability asked for.
    pub availability: Availability,
    /// What it says of itself.
    pub description: NodeDescription,
    /// Address that it advertises.
    pub addr: Option<IpAddr>,
    /// WireGuard public key.
    pub key: WgKey,
    /// Where its tunnel may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Its place in raft; `None` on workers.
    pub manager: Option<ManagerStatus>,
}

impl JoiningNode {
    /// The node object at this place.
    #[must_use]
    pub fn at(self, subnet: Ipv6Net, ingress_addr: Ipv4Addr) -> Node {
        Node {
            id: self.id,
            meta: Meta::default(),
            spec: NodeSpec { role: self.role, availability: self.availability, ..NodeSpec::default() },
            description: self.description,
            status: NodeStatus { state: NodeState::Unknown, message: String::new(), addr: self.addr },
            mesh: NodeMesh { key: self.key, subnet, ingress_addr, endpoints: self.endpoints },
            manager: self.manager,
        }
    }
}

/// A free place for a new node: the lowest free index from 1, and a free address on `ingress`.
///
/// # Errors
/// As [`NodeAllocationError`] says.
pub fn next_node_allocation(store: &Store) -> Result<NodeAllocation, NodeAllocationError> {
    let cluster = store.cluster().ok_or(NodeAllocationError::NoCluster)?;
    let network = ingress(store).ok_or(NodeAllocationError::NoIngress)?;
    let range = network.subnet.ok_or(NodeAllocationError::NoIngress)?;
    let taken: BTreeSet<Ipv6Net> = store.nodes().map(|n| n.mesh.subnet).collect();
    let index =
        (1..=LAST_NODE_INDEX).find(|i| !taken.contains(&cluster.mesh.node(*i))).ok_or(NodeAllocationError::TooManyNodes)?;
    let ingress_addr = AddressBook::of(store)
        .space(&network.id, range)
        .take(&network.id, &mut QuarantinedAddresses::default())
        .ok_or(NodeAllocationError::IngressFull(range))?;
    let fence = vec![Action::update(network.clone())];
    Ok(NodeAllocation { index, subnet: cluster.mesh.node(index), ingress_addr, fence })
}

/// Everything to write for a node that joins. `OutOfSequence` means: ask again.
///
/// # Errors
/// As [`next_node_allocation`].
pub fn admit(store: &Store, newcomer: JoiningNode) -> Result<(Node, Vec<Action>), NodeAllocationError> {
    let place = next_node_allocation(store)?;
    let node = newcomer.at(place.subnet, place.ingress_addr);
    let mut actions = place.fence;
    actions.push(Action::create(node.clone()));
    Ok((node, actions))
}

/// The first transaction of a new cluster: the cluster, `ingress` on the pool's first subnet, the first node.
///
/// # Errors
/// The pools hold no subnet of the wished size, or one too small for a node.
pub fn bootstrap(cluster: Cluster, ingress_id: NetworkId, first: JoiningNode) -> Result<Vec<Action>, NodeAllocationError> {
    let subnet = first_free(&cluster, |_| false).ok_or(NodeAllocationError::PoolTooSmall(cluster.subnet_size))?;
    let network = Network {
        id: ingress_id,
        meta: Meta::default(),
        spec: NetworkSpec { name: INGRESS.to_owned(), ingress: true, ..NetworkSpec::default() },
        subnet: Some(subnet),
    };
    let ingress_addr = AddressBook::of(&Store::default())
        .space(&network.id, subnet)
        .take(&network.id, &mut QuarantinedAddresses::default())
        .ok_or(NodeAllocationError::IngressFull(subnet))?;
    let mut node = first.at(cluster.mesh.node(1), ingress_addr);
    // It is this very process; the dispatcher watches it from now on as any other.
    node.status.state = NodeState::Ready;
    Ok(vec![Action::create(cluster), Action::create(network), Action::create(node)])
}

//! What a node is told: everything it needs, nothing else. Made by the dispatcher from the store, kept on the node's
//! disk (ledger), and the only input of every loop on the node.

use super::{
    id::{NetworkId, NodeId, ServiceId, TaskId},
    mesh::MeshPrefix,
    port::{Listens, Protocol},
    service::EndpointMode,
    task::Task,
    wg_key::WgKey,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// A point in the cluster's history. Within an incarnation a node refuses what is older.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Revision {
    /// Goes up when a cluster is restored or forced anew.
    pub incarnation: u64,
    /// Raft index.
    pub index: u64,
}

/// Three immutable parts; a part is sent again only when it changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// The revision that the whole is true at.
    pub revision: Revision,
    /// What runs here.
    #[serde(rename = "mine")]
    pub tasks: Arc<Tasks>,
    /// The networks that this node has tasks on.
    pub networks: Arc<Networks>,
    /// What every node knows.
    pub cluster: Arc<ClusterPart>,
}

/// Tasks of this node, by id: everything that is not yet to be forgotten.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Tasks {
    /// Tasks assigned to this node.
    #[serde(rename = "tasks")]
    pub by_id: BTreeMap<TaskId, Task>,
}

/// Networks that this node has tasks on.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Networks {
    /// By id.
    pub by_id: BTreeMap<NetworkId, NetworkPart>,
}

/// One network with its members, wherever they run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkPart {
    /// Its name.
    pub name: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Gateway and name server, the same on every node.
    pub gateway: Ipv4Addr,
    /// No default route for its containers.
    pub internal: bool,
    /// It is the network that carries published ports.
    pub ingress: bool,
    /// Every task with an address on it, sorted by task id. Stays until the task is gone, whatever its state.
    pub members: Vec<Arc<TaskEndpoint>>,
    /// Services with a virtual address on it, sorted by service id. (Views of older managers have none.)
    #[serde(default)]
    pub services: Vec<Arc<ServiceVip>>,
}

/// A service's virtual address on a network; its backends are its members.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceVip {
    /// The service.
    pub service_id: ServiceId,
    /// Its name.
    pub name: String,
    /// The address.
    pub vip: Ipv4Addr,
}

/// A task with an address on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskEndpoint {
    /// The task.
    pub task_id: TaskId,
    /// Its service.
    pub service_id: ServiceId,
    /// Name of its service.
    pub service_name: String,
    /// What the service's name answers.
    pub endpoint_mode: EndpointMode,
    /// Further names of the service on this network.
    pub aliases: Vec<String>,
    /// Its slot.
    pub slot: u64,
    /// Its container's name.
    pub container_name: String,
    /// Where it runs.
    pub node_id: NodeId,
    /// Its address here.
    pub address: Ipv4Addr,
    /// [`Task::is_backend`]: names answer it and ports send to it exactly while this is true.
    pub backend: bool,
}

/// What every node knows of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterPart {
    /// The cluster's /48.
    pub mesh: MeshPrefix,
    /// Pools that networks are cut from.
    pub pools: Vec<Ipv4Net>,
    /// Every node, this one included, sorted by id.
    pub nodes: Vec<Peer>,
    /// Ports that every node answers on, sorted by (protocol, port).
    pub ports: Vec<Arc<PublishedPort>>,
}

/// A node as the others need it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub node_id: NodeId,
    /// Its host name.
    pub hostname: String,
    /// It runs a manager.
    pub manager: bool,
    /// Its WireGuard key: who it is.
    pub key: WgKey,
    /// Its /64.
    pub subnet: Ipv6Net,
    /// Its own address on `ingress`.
    pub ingress_addr: Ipv4Addr,
    /// Where its tunnel may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Addresses of the containers that it runs, sorted.
    pub containers: Vec<Ipv4Addr>,
    /// It takes packets of published ports from other nodes' eBPF datapaths.
    #[serde(default)]
    #[serde(rename = "fast")]
    pub ebpf: bool,
    /// The managers have not heard of it for so long that they run its tasks elsewhere.
    #[serde(default)]
    pub down: bool,
}

impl Peer {
    /// Its mesh address: raft and sessions listen there.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        super::mesh::node_address(self.subnet)
    }
    /// Sources that packets from it may carry, sorted.
    #[must_use]
    pub fn allowed_ips(&self, mesh: MeshPrefix) -> Vec<IpNet> {
        let mut all = vec![IpNet::from(self.subnet), IpNet::from(std::net::IpAddr::V4(self.ingress_addr))];
        for address in &self.containers {
            all.push(IpNet::from(std::net::IpAddr::V4(*address)));
            all.push(IpNet::from(std::net::IpAddr::V6(mesh.container(*address))));
        }
        all.sort();
        all.dedup();
        all
    }
}

impl ClusterPart {
    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&Peer> {
        self.nodes.iter().find(|n| n.node_id == *id)
    }
}

/// A port that every node answers on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Port on every node.
    pub published: u16,
    /// Port in the containers.
    pub target: u16,
    /// The service.
    pub service_id: ServiceId,
    /// Its name.
    pub service_name: String,
    /// Healthy running tasks by their `ingress` address, sorted by task id.
    pub backends: Vec<Backend>,
    /// One client address always gets the same backend.
    #[serde(default)]
    pub affinity: bool,
    /// Source prefixes that may use it, sorted; empty: everybody.
    #[serde(default)]
    pub allow: Vec<IpNet>,
}

/// A task that takes traffic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// The task.
    pub task_id: TaskId,
    /// Where it runs.
    pub node_id: NodeId,
    /// Its address on `ingress`.
    pub address: Ipv4Addr,
    /// Whether its container was seen to listen on the target port.
    #[serde(default)]
    pub listens: Listens,
}

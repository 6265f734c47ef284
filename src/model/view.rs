//! What a node knows of the cluster: its tasks, their networks, and what all nodes need. Built by the dispatcher from the
//! store, kept on the node's disk (ledger), and the only input of every loop on the node.

use super::dual_stack::{self, pair_of};
use super::{
    acme::AcmePart,
    dual_stack::{NetworkV6, SubnetPair},
    http::HttpService,
    id::{NetworkId, NodeId, ServiceId, TaskId},
    mesh::MeshPrefix,
    network::FurtherSubnet,
    payload::{Payload, PayloadId},
    port::{Listens, PortConfig, Protocol},
    service::EndpointMode,
    task::Task,
    trust_bundle::TrustBundle,
    wg_key::{NextKey, WgKey},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// A point in the cluster's history. A node refuses a view that is older than the one that it has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Revision {
    /// See [`super::Cluster::incarnation`].
    pub incarnation: u64,
    pub index: u64,
}

/// The view of one node: three immutable parts, each of which is sent again only when it changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    /// State of the store that all parts reflect.
    pub revision: Revision,
    #[serde(rename = "mine")]
    pub tasks: Arc<Tasks>,
    pub networks: Arc<Networks>,
    /// The same on every node.
    pub cluster: Arc<ClusterPart>,
}

/// All tasks assigned to the node, finished ones included until they are deleted.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Tasks {
    #[serde(rename = "tasks")]
    pub by_id: BTreeMap<TaskId, Arc<Task>>,
    /// Contents of the secrets and configs of tasks that run or are to run. Part of no document: neither the ledger nor a dump
    /// has them.
    #[serde(skip)]
    pub payloads: BTreeMap<PayloadId, Arc<Payload>>,
}

/// Networks that tasks of the node are attached to, and always `ingress`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Networks {
    pub by_id: BTreeMap<NetworkId, NetworkPart>,
}

/// One network with its members on all nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetworkPart {
    pub name: String,
    pub subnet: Ipv4Net,
    /// Gateway and name server, the same on every node.
    pub gateway: Ipv4Addr,
    /// Its subnets beside the first one, which alone has a name server. (Views of older managers have none.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<FurtherSubnet>,
    /// Its IPv6 half, if it has one. The IPv6 address of each member follows from its IPv4 address ([`SubnetPair`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<NetworkV6>,
    /// Its containers get no default route.
    pub internal: bool,
    /// Carries traffic of published ports.
    pub ingress: bool,
    /// It takes plain containers. (Views of older managers do not say.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attachable: bool,
    /// Of its spec, as its options: shown to those who ask this node. (Views of older managers have none.)
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Largest MTU that its containers may have, in bytes; that of the tunnel if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Every task with an address on the network, sorted by task id, in any state until the task is deleted.
    pub members: Vec<Arc<TaskEndpoint>>,
    /// Services with a virtual address on the network, sorted by service id. Absent in views of older managers.
    #[serde(default)]
    pub services: Vec<Arc<ServiceVip>>,
    /// Every service attached to the network, with tasks or without, sorted by service id. Absent in views of older managers.
    #[serde(default)]
    pub names: Vec<Arc<ServiceNames>>,
}

impl NetworkPart {
    /// All of its IPv4 subnets.
    #[must_use]
    pub fn subnets(&self) -> Vec<Ipv4Net> {
        std::iter::once(self.subnet).chain(self.further.iter().map(|further| further.subnet)).collect()
    }

    /// Its subnets of both families, if it has both.
    #[must_use]
    pub fn pairs(&self) -> Vec<SubnetPair> {
        self.v6.map(|v6| dual_stack::pairs(&self.subnets(), v6.subnet)).unwrap_or_default()
    }
}

/// The names and ports of a service on a network. They are known to the name servers while it has no task, too.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceNames {
    pub service_id: ServiceId,
    pub name: String,
    /// Further names on this network.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Published ports, in either publish mode, as in the service.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
}

/// A service's virtual address on a network. Its backends are the members of that service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceVip {
    pub service_id: ServiceId,
    pub name: String,
    pub vip: Ipv4Addr,
}

/// A task with an address on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaskEndpoint {
    pub task_id: TaskId,
    pub service_id: ServiceId,
    pub service_name: String,
    pub endpoint_mode: EndpointMode,
    /// Further names of the service on this network.
    pub aliases: Vec<String>,
    /// Further names of the task alone: its container's host name and short id, while it is a backend. (Views of older managers have
    /// none.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_names: Vec<String>,
    pub slot: u64,
    /// Empty for a plain container that has not joined yet.
    pub container_name: String,
    pub node_id: NodeId,
    /// On this network.
    pub address: Ipv4Addr,
    /// [`Task::is_backend`]: only then do names resolve to the task and virtual addresses forward to it.
    pub backend: bool,
    /// Its container has ended: connections to it cannot continue. (Views of older managers do not say.)
    #[serde(default)]
    pub gone: bool,
    /// Its container was not seen to listen yet: the virtual address leads to it only while that is so of all tasks of the
    /// service. (Views of older managers do not say.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub starting: bool,
}

impl TaskEndpoint {
    /// It is a plain container, which no service has.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.service_id.as_str().is_empty()
    }
}

/// What all nodes need to know of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterPart {
    /// The /48 of all mesh addresses.
    pub mesh: MeshPrefix,
    /// Pools that subnets of networks are taken from.
    pub pools: Vec<Ipv4Net>,
    /// Subnets of all networks, sorted. (Empty in views of older managers.)
    #[serde(default)]
    pub subnets: Vec<Ipv4Net>,
    /// Subnets of the networks that have one of each family, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<SubnetPair>,
    /// Digests of the names of all networks ([`crate::trust::name_digest`]): no network of a node's own gets such a name. (Views of
    /// older managers do not say.)
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub network_digests: BTreeSet<String>,
    /// All nodes, the receiving one included, sorted by id.
    pub nodes: Vec<Peer>,
    /// Ports published in mode `ingress`, sorted by protocol and port.
    pub ports: Vec<Arc<PublishedPort>>,
    /// Services that are scaled by load: the connections of their tasks are counted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub counted: BTreeSet<ServiceId>,
    /// What the node trusts, once the cluster has changed its root CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Arc<TrustBundle>>,
    /// Services with HTTP routes, sorted by id. (Views of older managers have none.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<Arc<HttpService>>,
    /// Certificates by ACME, and what proves to the authority that their names are ours.
    #[serde(default, skip_serializing_if = "is_no_acme")]
    pub acme: Arc<AcmePart>,
}

fn is_no_acme(part: &Arc<AcmePart>) -> bool {
    part.is_empty()
}

/// A node as the other nodes see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub node_id: NodeId,
    pub hostname: String,
    /// The node is a manager.
    pub manager: bool,
    /// Its id in the raft group, on managers. (Views of older managers do not say.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_id: Option<u64>,
    /// Its WireGuard public key: its identity in the mesh.
    pub key: WgKey,
    /// While it changes its key: it has one of both. (Views of older managers have none.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextKey>,
    /// Its /64.
    pub subnet: Ipv6Net,
    /// The node's address on `ingress`.
    pub ingress_addr: Ipv4Addr,
    /// UDP addresses at which its tunnel may be reachable, most likely first.
    pub endpoints: Vec<SocketAddr>,
    /// The address that it advertises, if its tunnel has another one. (Views of older managers do not say.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised: Option<IpAddr>,
    /// Addresses of its host, as it reports them. (Views of older managers do not say.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Addresses of its tasks on all networks, sorted.
    pub containers: Vec<Ipv4Addr>,
    /// Tasks that have these addresses; one may have several. (Views of older managers do not say.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached_tasks: Option<u32>,
    /// Accepts packets to published ports that other nodes' eBPF datapaths forward.
    #[serde(default)]
    #[serde(rename = "fast")]
    pub ebpf: bool,
    /// The node is down: the managers replaced its tasks on other nodes.
    #[serde(default)]
    pub down: bool,
}

impl Peer {
    /// Its keys: the one that it has, and the one that it changes it for.
    pub fn keys(&self) -> impl Iterator<Item = WgKey> + use<> {
        std::iter::once(self.key).chain(self.next.map(|next| next.key))
    }
    /// Every address outside of the mesh that is known to be the node's; one may be named several times.
    pub fn known_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let endpoints = self.endpoints.iter().map(SocketAddr::ip);
        endpoints.chain(self.advertised).chain(self.addresses.iter().copied()).map(|address| address.to_canonical())
    }

    /// Where it is reached outside of the mesh.
    #[must_use]
    pub fn outer_address(&self) -> Option<IpAddr> {
        self.advertised.or_else(|| Some(self.endpoints.first()?.ip()))
    }
    /// Its mesh address, on which raft and sessions listen.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        super::mesh::node_address(self.subnet)
    }
    /// Source prefixes of packets from this peer (WireGuard's allowed IPs), sorted. `pairs` as in the [`ClusterPart`].
    #[must_use]
    pub fn allowed_ips(&self, mesh: MeshPrefix, pairs: &[SubnetPair]) -> Vec<IpNet> {
        let mut all = vec![IpNet::from(self.subnet), IpNet::from(std::net::IpAddr::V4(self.ingress_addr))];
        for address in &self.containers {
            all.push(IpNet::from(std::net::IpAddr::V4(*address)));
            all.push(IpNet::from(std::net::IpAddr::V6(mesh.container(*address))));
            let v6 = pair_of(pairs, *address).and_then(|pair| pair.to_v6(*address));
            all.extend(v6.map(|address| IpNet::from(std::net::IpAddr::V6(address))));
        }
        all.sort();
        all.dedup();
        all
    }
}

impl ClusterPart {
    /// Of a cluster without nodes and services.
    #[must_use]
    pub fn new(mesh: MeshPrefix) -> Self {
        Self {
            mesh,
            pools: Vec::new(),
            subnets: Vec::new(),
            pairs: Vec::new(),
            network_digests: BTreeSet::new(),
            nodes: Vec::new(),
            ports: Vec::new(),
            counted: BTreeSet::new(),
            trust: None,
            http: Vec::new(),
            acme: Arc::default(),
        }
    }
    /// The node with this id.
    #[must_use]
    pub fn node(&self, id: &NodeId) -> Option<&Peer> {
        self.nodes.iter().find(|n| n.node_id == *id)
    }
}

/// A port published on every node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishedPort {
    pub protocol: Protocol,
    /// Port of the nodes.
    pub published: u16,
    /// Port of the containers.
    pub target: u16,
    pub service_id: ServiceId,
    pub service_name: String,
    /// Running tasks with their `ingress` addresses, sorted by task id.
    pub backends: Vec<Backend>,
    /// Connections of one client address go to the same backend.
    #[serde(default)]
    pub affinity: bool,
    /// Source prefixes that may use the port, sorted; every source if empty.
    #[serde(default)]
    pub allow: Vec<IpNet>,
    /// The service may have no task: its connections wait for one. (Views of older managers do not say.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holds: bool,
}

/// A task that receives traffic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Backend {
    pub task_id: TaskId,
    pub node_id: NodeId,
    /// On `ingress`.
    pub address: Ipv4Addr,
    /// Families in which its container was observed to listen on the target port.
    #[serde(default)]
    pub listens: Listens,
}

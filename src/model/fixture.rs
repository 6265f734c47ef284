//! Values for tests: one small, valid object of each kind that a view consists of. A test changes the fields that matter to
//! it (`TaskEndpoint { backend: false, ..task_endpoint(…) }`).

use super::mesh::{MeshPrefix, gateway};
use super::node::{NodeDescription, NodeMesh, NodeStatus};
use super::service::{Endpoint, EndpointMode};
use super::task::{ContainerSpec, DnsConfig, EarlierFailures};
use super::view::{Backend, ClusterPart, NetworkPart, Networks, Peer, PublishedPort, TaskEndpoint, Tasks};
use super::{
    CaHistory, Cluster, ClusterSpec, JoinTokens, Listens, Meta, Node, NodeSpec, NodeState, NodeView, Protocol, Revision, Service,
    ServiceSpec, Task, TaskSpec, TaskState, TaskStatus, WgKey,
};
use ipnet::{Ipv4Net, Ipv6Net};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// A cluster's /48.
#[must_use]
pub fn mesh() -> MeshPrefix {
    MeshPrefix(Ipv6Net::new_assert([0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0].into(), 48))
}

/// A cluster of today's builds, without a CA.
#[must_use]
pub fn cluster() -> Cluster {
    Cluster {
        id: "cluster".into(),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        incarnation: 1,
        ca_certificate: String::new(),
        ca_key: "".into(),
        tokens: JoinTokens::default(),
        mesh: mesh(),
        address_pools: Vec::new(),
        reserved_subnets: Vec::new(),
        ca_history: CaHistory::default(),
        unlock_key: None,
        incarnations: Vec::new(),
        subnet_size: 24,
        feature_level: 2,
        data_path_port: 2377,
    }
}

/// A worker with an engine, ready for tasks.
#[must_use]
pub fn node(id: &str) -> Node {
    Node {
        id: id.into(),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: NodeDescription {
            hostname: id.to_owned(),
            engine_version: "28.5.2".to_owned(),
            ..NodeDescription::default()
        },
        status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
        mesh: NodeMesh {
            key: WgKey([1; 32]),
            next: None,
            subnet: mesh().0,
            ingress_addr: Ipv4Addr::new(10, 0, 0, 2),
            endpoints: Vec::new(),
        },
        manager: None,
    }
}

/// A service with this spec that was never updated, without ports and addresses.
#[must_use]
pub fn service(id: &str, spec: ServiceSpec) -> Service {
    Service {
        id: id.into(),
        meta: Meta::default(),
        spec,
        previous_spec: None,
        pull_auth: None,
        previous_pull_auth: None,
        spec_version: 1,
        previous_spec_version: None,
        newest_spec_version: None,
        update: None,
        job: None,
        endpoint: Endpoint::default(),
        scalings: Vec::new(),
    }
}

/// The node `node<number>`, up, without containers and without a known endpoint.
#[must_use]
pub fn peer(number: u8) -> Peer {
    let [a, b, c, ..] = mesh().0.addr().segments();
    Peer {
        node_id: format!("node{number}").into(),
        hostname: format!("host{number}"),
        manager: number == 1,
        key: WgKey([number; 32]),
        next: None,
        subnet: Ipv6Net::new_assert([a, b, c, number.into(), 0, 0, 0, 0].into(), 64),
        ingress_addr: Ipv4Addr::new(10, 0, 0, 1 + number),
        endpoints: Vec::new(),
        advertised: None,
        addresses: Vec::new(),
        containers: Vec::new(),
        raft_id: None,
        attached_tasks: None,
        ebpf: false,
        down: false,
    }
}

/// A running task that receives traffic.
#[must_use]
pub fn task_endpoint(service: &str, slot: u64, node: &str, address: Ipv4Addr) -> TaskEndpoint {
    let id = format!("{service}{slot}id");
    TaskEndpoint {
        container_name: format!("{service}.{slot}.{id}"),
        task_id: id.into(),
        service_id: service.into(),
        service_name: service.to_owned(),
        endpoint_mode: EndpointMode::Vip,
        aliases: Vec::new(),
        own_names: Vec::new(),
        slot,
        node_id: node.into(),
        address,
        backend: true,
        gone: false,
        starting: false,
    }
}

/// A network without services; the ingress network if its name is `ingress`.
#[must_use]
pub fn network_part(name: &str, subnet: Ipv4Net, members: Vec<TaskEndpoint>) -> NetworkPart {
    NetworkPart {
        name: name.to_owned(),
        subnet,
        gateway: gateway(subnet),
        further: Vec::new(),
        v6: None,
        internal: false,
        ingress: name == "ingress",
        attachable: false,
        labels: std::collections::BTreeMap::new(),
        options: std::collections::BTreeMap::new(),
        mtu: None,
        members: members.into_iter().map(Arc::new).collect(),
        services: Vec::new(),
        names: Vec::new(),
    }
}

/// A published TCP port of a service named `web`, with backends at these addresses on `node1`, none of them observed to
/// listen.
#[must_use]
pub fn published_port(published: u16, target: u16, backends: &[Ipv4Addr]) -> PublishedPort {
    let backend = |address: &Ipv4Addr| Backend {
        task_id: format!("task{address}").into(),
        node_id: "node1".into(),
        address: *address,
        listens: Listens::default(),
    };
    PublishedPort {
        protocol: Protocol::Tcp,
        published,
        target,
        service_id: "web".into(),
        service_name: "web".to_owned(),
        backends: backends.iter().map(backend).collect(),
        affinity: false,
        allow: Vec::new(),
        holds: false,
    }
}

/// A cluster of these nodes without published ports.
#[must_use]
pub fn cluster_part(nodes: Vec<Peer>) -> ClusterPart {
    ClusterPart { nodes, ..ClusterPart::new(mesh()) }
}

/// A view without tasks; each network's id is its name.
#[must_use]
pub fn node_view(index: u64, networks: Vec<NetworkPart>, cluster: ClusterPart) -> NodeView {
    NodeView {
        revision: Revision { incarnation: 1, index },
        tasks: Arc::new(Tasks::default()),
        networks: Arc::new(Networks { by_id: networks.into_iter().map(|n| (n.name.as_str().into(), n)).collect() }),
        cluster: Arc::new(cluster),
    }
}

/// A task on a node with default spec, but for its own resolvers.
#[must_use]
pub fn task_with_resolvers(id: &str, service: &str, node: &str, resolvers: &[&str]) -> Task {
    let nameservers = resolvers.iter().map(ToString::to_string).collect();
    let dns_config = Some(DnsConfig { nameservers, ..DnsConfig::default() });
    Task {
        id: id.into(),
        meta: Meta::default(),
        spec: TaskSpec { container_spec: ContainerSpec { dns_config, ..ContainerSpec::default() }, ..TaskSpec::default() }.into(),
        spec_version: 1,
        service_id: service.into(),
        service_name: service.to_owned(),
        service_labels: Arc::default(),
        slot: 1,
        slot_node: None,
        job_iteration: None,
        cause: None,
        end: None,
        started_at: None,
        move_to: None,
        node_id: Some(node.into()),
        desired_state: TaskState::Running,
        status: TaskStatus::default(),
        attachments: Vec::new(),
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
        failures: EarlierFailures::default(),
        pull_auth: None,
        generic_resources: Vec::new(),
        attached: None,
    }
}

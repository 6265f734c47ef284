//! Objects for tests of the manager.

use ipnet::Ipv6Net;
use skep::manager::{JoiningNode, bootstrap, node_allocation};
use skep::model::WgKey;
use skep::model::mesh::MeshPrefix;
use skep::model::network::NetworkSpec;
use skep::model::node::NodeDescription;
use skep::model::service::{EndpointSpec, Replicated, ServiceMode};
use skep::model::task::{ContainerSpec, NetworkAttachmentConfig, RestartPolicy};
use skep::model::{
    Availability, Cluster, ClusterSpec, JoinTokens, Meta, Nanos, Network, NodeId, PortConfig, Role, Service, ServiceSpec,
    TaskSpec, Timestamp,
};
use skep::store::{Action, Store, Transaction};
use std::time::Duration;

/// 2026-01-01.
pub const START: Timestamp = Timestamp(1_767_225_600_000_000_000);

pub fn cluster() -> Cluster {
    Cluster {
        id: "cluster".into(),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        incarnation: 1,
        ca_certificate: String::new(),
        ca_key: "".into(),
        tokens: JoinTokens::default(),
        mesh: MeshPrefix("fd00:1:2::/48".parse::<Ipv6Net>().unwrap()),
        address_pools: Vec::new(),
        reserved_subnets: Vec::new(),
        subnet_size: 24,
        feature_level: 1,
        data_path_port: 2377,
    }
}

pub fn description(name: &str) -> NodeDescription {
    NodeDescription { hostname: name.to_owned(), engine_version: "20.10.5".to_owned(), ..NodeDescription::default() }
}

pub fn joining_node(name: &str) -> JoiningNode {
    let mut key = [0_u8; 32];
    for (to, from) in key.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    JoiningNode {
        id: name.into(),
        role: Role::Worker,
        availability: Availability::Active,
        description: description(name),
        addr: None,
        key: WgKey(key),
        endpoints: Vec::new(),
        manager: None,
    }
}

pub fn apply(store: &mut Store, at: Timestamp, actions: Vec<Action>) {
    store.apply(store.index() + 1, &Transaction::new(at, actions)).unwrap();
}

/// The store of a cluster with nodes `n1`, `n2`, …, admitted but without a session.
pub fn store(nodes: usize) -> Store {
    let mut store = Store::default();
    apply(&mut store, START, bootstrap(cluster(), "ingress-id".into(), joining_node("n1")).unwrap());
    for i in 2..=nodes {
        let (_, actions) = node_allocation::admit(&store, joining_node(&format!("n{i}"))).unwrap();
        apply(&mut store, START, actions);
    }
    store
}

pub fn network(id: &str, subnet: Option<&str>) -> Network {
    let subnets = subnet.iter().map(|s| s.parse().unwrap()).collect();
    Network {
        id: id.into(),
        meta: Meta::default(),
        spec: NetworkSpec { name: id.to_owned(), subnets, ..NetworkSpec::default() },
        subnet: None,
        removing: false,
    }
}

pub fn service(name: &str, replicas: u64, ports: &[(u16, u16)], networks: &[&str]) -> Service {
    let port = |(published, target): &(u16, u16)| PortConfig {
        target_port: *target,
        published_port: *published,
        ..PortConfig::default()
    };
    let attach = |id: &&str| NetworkAttachmentConfig { target: (*id).to_owned(), ..NetworkAttachmentConfig::default() };
    Service {
        id: name.into(),
        meta: Meta::default(),
        spec: ServiceSpec {
            name: name.to_owned(),
            task_template: TaskSpec {
                container_spec: ContainerSpec { image: "whoami".to_owned(), ..ContainerSpec::default() },
                networks: networks.iter().map(attach).collect(),
                ..TaskSpec::default()
            },
            mode: ServiceMode { replicated: Some(Replicated { replicas: Some(replicas) }) },
            endpoint_spec: (!ports.is_empty()).then(|| EndpointSpec { mode: None, ports: ports.iter().map(port).collect() }),
            ..ServiceSpec::default()
        },
        previous_spec: None,
        pull_auth: None,
        previous_pull_auth: None,
        spec_version: 1,
        endpoint: skep::model::service::Endpoint::default(),
    }
}

pub fn restarting(mut service: Service, policy: RestartPolicy) -> Service {
    service.spec.task_template.restart_policy = Some(policy);
    service
}

pub fn after(delay: Duration) -> RestartPolicy {
    RestartPolicy { delay: Some(Nanos::from(delay)), ..RestartPolicy::default() }
}

pub fn node(n: usize) -> NodeId {
    format!("n{n}").as_str().into()
}

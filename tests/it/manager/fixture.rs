//! Objects for tests of the manager.

use ipnet::Ipv6Net;
use skep::manager::{JoiningNode, bootstrap, node_allocation};
use skep::model::WgKey;
use skep::model::mesh::MeshPrefix;
use skep::model::network::NetworkSpec;
use skep::model::node::NodeDescription;
use skep::model::service::{EndpointSpec, Global, Replicated, ReplicatedJob, ServiceMode, UpdateConfig};
use skep::model::task::{ContainerSpec, NetworkAttachmentConfig, RestartPolicy};
use skep::model::{
    Availability, Cluster, JobStatus, Nanos, Network, Node, NodeId, NodeState, PortConfig, Role, Service, ServiceSpec,
    SpecChange, TaskSpec, Timestamp, fixture,
};
use skep::store::{Action, FieldUpdate, Store, Transaction};
use std::time::Duration;

/// 2026-01-01.
pub const START: Timestamp = Timestamp(1_767_225_600_000_000_000);

pub fn cluster() -> Cluster {
    Cluster { mesh: MeshPrefix("fd00:1:2::/48".parse::<Ipv6Net>().unwrap()), ..fixture::cluster() }
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
    store_of(cluster(), nodes)
}

fn store_of(cluster: Cluster, nodes: usize) -> Store {
    let mut store = Store::default();
    apply(&mut store, START, bootstrap(cluster, "ingress-id".into(), joining_node("n1")).unwrap());
    for i in 2..=nodes {
        let (_, actions) = node_allocation::admit(&store, joining_node(&format!("n{i}"))).unwrap();
        apply(&mut store, START, actions);
    }
    store
}

/// The store of a cluster with ready nodes, each changed.
pub fn ready_nodes(cluster: Cluster, nodes: usize, change: impl Fn(&mut Node)) -> Store {
    let mut store = store_of(cluster, nodes);
    let ready = store.nodes().map(|node| {
        let mut node = node.clone();
        node.status.state = NodeState::Ready;
        change(&mut node);
        Action::update(node)
    });
    let ready = ready.collect();
    apply(&mut store, START, ready);
    store
}

pub fn network(id: &str, subnet: Option<&str>) -> Network {
    let subnets = subnet.iter().map(|s| s.parse().unwrap()).collect();
    Network::new(id.into(), NetworkSpec { name: id.to_owned(), subnets, ..NetworkSpec::default() })
}

pub fn service(name: &str, replicas: u64, ports: &[(u16, u16)], networks: &[&str]) -> Service {
    let port = |(published, target): &(u16, u16)| PortConfig {
        target_port: *target,
        published_port: *published,
        ..PortConfig::default()
    };
    let attach = |id: &&str| NetworkAttachmentConfig { target: (*id).to_owned(), ..NetworkAttachmentConfig::default() };
    let spec = ServiceSpec {
        name: name.to_owned(),
        task_template: TaskSpec {
            container_spec: ContainerSpec { image: "whoami".to_owned(), ..ContainerSpec::default() },
            networks: networks.iter().map(attach).collect(),
            ..TaskSpec::default()
        },
        mode: ServiceMode { replicated: Some(Replicated { replicas: Some(replicas) }), ..ServiceMode::default() },
        endpoint_spec: (!ports.is_empty()).then(|| EndpointSpec { mode: None, ports: ports.iter().map(port).collect() }),
        ..ServiceSpec::default()
    };
    fixture::service(name, spec)
}

/// A user's update, as the API writes it.
pub fn updated(store: &Store, name: &str, now: Timestamp, change: impl FnOnce(&mut ServiceSpec)) -> Action {
    let service = store.service(&name.into()).unwrap();
    let mut spec = service.spec.clone();
    change(&mut spec);
    // A change of the placement alone replaces no task that has a place.
    let templates =
        [&spec, &service.spec].map(|spec| (TaskSpec { placement: None, ..spec.task_template.clone() }, &spec.endpoint_spec));
    let replaces_tasks = !spec.mode.is_job() && templates[0] != templates[1];
    let change = SpecChange { replaces_tasks, rollback: false, job_run_at: service.job.map(|_| now) };
    set_spec(service, spec, change)
}

/// `docker service rollback`, as the API writes it.
pub fn rolled_back(store: &Store, name: &str, now: Timestamp) -> Action {
    let service = store.service(&name.into()).unwrap();
    let spec = service.previous_spec.clone().unwrap();
    set_spec(service, spec, SpecChange { replaces_tasks: true, rollback: true, job_run_at: service.job.map(|_| now) })
}

fn set_spec(service: &Service, spec: ServiceSpec, change: SpecChange) -> Action {
    let (id, version) = (service.id.clone(), service.meta.version);
    Action::Set(FieldUpdate::ServiceSpec { id, version, spec: Box::new(spec), pull_auth: None, change })
}

/// A service in another mode.
pub fn in_mode(mut service: Service, mode: ServiceMode) -> Service {
    service.job = mode.is_job().then_some(JobStatus { iteration: 0, last_execution: START });
    service.spec.mode = mode;
    service
}

pub fn global() -> ServiceMode {
    ServiceMode { global: Some(Global {}), ..ServiceMode::default() }
}

pub fn job(concurrent: u64, total: u64) -> ServiceMode {
    let job = ReplicatedJob { max_concurrent: Some(concurrent), total_completions: Some(total) };
    ServiceMode { replicated_job: Some(job), ..ServiceMode::default() }
}

pub fn global_job() -> ServiceMode {
    ServiceMode { global_job: Some(Global {}), ..ServiceMode::default() }
}

/// A way of updating: parallelism and monitor time.
pub fn updating(parallelism: u64, monitor: Duration) -> UpdateConfig {
    UpdateConfig { parallelism, monitor: Some(Nanos::from(monitor)), ..UpdateConfig::default() }
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

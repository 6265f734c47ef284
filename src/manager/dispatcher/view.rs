//! The entries of views, each made from the store alone.

use crate::model::acme::{AcmeChallenge, AcmeChallengeKind, AcmeFailure, AcmePart, ServedCertificate};
use crate::model::http::{HTTP, HttpBackend, HttpService};
use crate::model::mesh::DEFAULT_POOL;
use crate::model::network::{FurtherSubnet, NetworkSpec};
use crate::model::port_labels::PortLabels;
use crate::model::template::TemplateContext;
use crate::model::view::{Backend, ClusterPart, NetworkPart, Peer, PublishedPort, ServiceNames, ServiceVip, TaskEndpoint};
use crate::model::{AcmeCertificate, Network, NetworkId, Node, NodeId, NodeState, Protocol, Service, Task, task::Attachment};
use crate::store::Store;
use crate::trust::name_digest;
use ipnet::Ipv4Net;
use std::sync::Arc;

/// A network without its lists; `None` before it has a subnet.
pub(super) fn network_head(network: &Network) -> Option<NetworkPart> {
    let subnet = network.subnet?;
    Some(NetworkPart {
        name: network.spec.name.clone(),
        subnet,
        gateway: network.spec.gateway_in(subnet),
        further: network.further.iter().map(|subnet| further(&network.spec, *subnet)).collect(),
        v6: network.subnet6.filter(|_| !network.pairs().is_empty()).map(|v6| network.spec.v6_in(v6)),
        internal: network.spec.internal,
        ingress: network.spec.ingress,
        attachable: network.spec.attachable,
        labels: network.spec.labels.clone(),
        options: network.spec.options.clone(),
        mtu: network.spec.mtu(),
        members: Vec::new(),
        services: Vec::new(),
        names: Vec::new(),
    })
}

fn further(spec: &NetworkSpec, subnet: Ipv4Net) -> FurtherSubnet {
    FurtherSubnet { subnet, gateway: spec.gateway_in(subnet) }
}

/// The task gets traffic: it is a backend, and its node is a member that is not down.
fn receives(store: &Store, task: &Task) -> bool {
    let node = task.node_id.as_ref().and_then(|id| store.node(id));
    task.is_backend() && node.is_some_and(|node| node.status.state != NodeState::Down)
}

/// The task's container was not observed to listen, and its node would say if it did.
fn is_starting(node: Option<&Node>, task: &Task) -> bool {
    node.is_some_and(Node::observes_listeners) && task.attached.is_none() && !task.listens.iter().any(|port| port.listens.v4)
}

/// Characters of an id of a container, and of its short form.
const CONTAINER_ID: usize = 64;
const SHORT_ID: usize = 12;

/// A container's id as engines draw it. A node reports it, and must not choose other tasks' names with it.
fn short_id(id: &str) -> Option<&str> {
    let is_id = id.len() == CONTAINER_ID && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    id.get(..SHORT_ID).filter(|_| is_id)
}

/// A name of one label that no service has. The node's own host name can be part of it.
fn is_own_name(store: &Store, name: &str) -> bool {
    let is_label =
        (1..=63).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    is_label && store.service_named(name).is_none()
}

/// The names that the engine gives a task's container beside its own: its host name, and its short id.
fn own_names(store: &Store, task: &Task, node_id: &NodeId) -> Vec<String> {
    let context = || {
        let description = store.node(node_id).map(|node| node.description.clone()).unwrap_or_default();
        TemplateContext::of(task, node_id, &description)
    };
    let container = task.status.container.as_ref();
    let short = container.and_then(|container| short_id(&container.container_id)).map(str::to_owned);
    let hostname = task.spec.container_spec.hostname_in(context).filter(|name| is_own_name(store, name));
    hostname.into_iter().chain(short).collect()
}

/// The task on one of its networks; `None` unless its node is a member of the cluster.
pub(super) fn endpoint(store: &Store, task: &Task, attachment: &Attachment) -> Option<TaskEndpoint> {
    let node_id = task.node_id.as_ref().filter(|id| store.node(id).is_some())?;
    let config = task.spec.networks.iter().find(|n| n.target == attachment.network_id.as_str());
    let backend = receives(store, task);
    Some(TaskEndpoint {
        task_id: task.id.clone(),
        service_id: task.service_id.clone(),
        service_name: task.service_name.clone(),
        endpoint_mode: store.service(&task.service_id).map(|s| s.spec.endpoint_mode()).unwrap_or_default(),
        aliases: match &task.attached {
            Some(container) => container.aliases.clone(),
            None => config.map(|c| c.aliases.clone()).unwrap_or_default(),
        },
        slot: task.slot,
        container_name: task.container_name(),
        node_id: node_id.clone(),
        address: attachment.address.addr(),
        own_names: if backend { own_names(store, task, node_id) } else { Vec::new() },
        backend,
        gone: task.status.state.is_final(),
        starting: is_starting(store.node(node_id), task),
    })
}

/// The service's names on a network that its spec names, or on `ingress` if it publishes a port or has HTTP routes there.
pub(super) fn names(service: &Service, id: &NetworkId, ingress: bool) -> Option<ServiceNames> {
    let config = service.spec.task_template.networks.iter().find(|n| n.target == id.as_str());
    (config.is_some() || (ingress && service.spec.wants_ingress())).then(|| ServiceNames {
        service_id: service.id.clone(),
        name: service.spec.name.clone(),
        aliases: config.map(|c| c.aliases.clone()).unwrap_or_default(),
        ports: service.endpoint.ports.clone(),
    })
}

/// The service's virtual address on a network.
pub(super) fn vip(service: &Service, id: &NetworkId) -> Option<ServiceVip> {
    let vip = service.endpoint.vips.iter().find(|vip| vip.network_id == *id)?;
    Some(ServiceVip { service_id: service.id.clone(), name: service.spec.name.clone(), vip: vip.addr.addr() })
}

/// The cluster part without its lists of nodes and ports; `None` before the cluster object exists.
pub(super) fn cluster_head(store: &Store) -> Option<ClusterPart> {
    let cluster = store.cluster()?;
    let pools = if cluster.address_pools.is_empty() { vec![DEFAULT_POOL] } else { cluster.address_pools.clone() };
    let mut subnets: Vec<_> = store.networks().flat_map(Network::subnets).collect();
    subnets.sort();
    let mut pairs: Vec<_> = store.networks().flat_map(Network::pairs).collect();
    pairs.sort();
    let named = store.networks().filter(|network| !network.removing);
    let network_digests = named.map(|network| name_digest(cluster.mesh, &network.spec.name)).collect();
    let counted = store.autoscaled_services().map(|service| service.id.clone()).collect();
    let trust = cluster.trust_bundle().map(Arc::new);
    Some(ClusterPart { pools, subnets, pairs, network_digests, counted, trust, ..ClusterPart::new(cluster.mesh) })
}

/// What nodes serve of the certificates by ACME.
pub(super) fn acme(store: &Store) -> AcmePart {
    let all = || store.all::<AcmeCertificate>();
    let orders = all().filter_map(|certificate| certificate.order.as_ref());
    let shown = |challenge: &&AcmeChallenge| challenge.kind != AcmeChallengeKind::Dns;
    let mut challenges: Vec<AcmeChallenge> = orders.flat_map(|order| order.challenges.iter().filter(shown).cloned()).collect();
    challenges.sort();
    let served = |certificate: &AcmeCertificate| {
        let issued = certificate.issued.as_ref()?;
        Some(ServedCertificate { payload: issued.payload.clone(), names: issued.names.clone() })
    };
    // Without a name it is of a host that is not wanted now.
    let wanted = || all().filter(|certificate| !certificate.names.is_empty());
    let problem = |certificate: &AcmeCertificate| {
        let AcmeFailure { reason, next, .. } = certificate.failure.as_ref()?;
        let names = certificate.names.join(", ");
        Some(format!("certificate of {names}: {reason}; next try at {}", next.to_rfc3339()))
    };
    let failures = wanted().filter_map(|certificate| Some((certificate.id.to_string(), certificate.failure.as_ref()?.count)));
    AcmePart {
        challenges,
        certificates: all().filter_map(served).collect(),
        problems: wanted().filter_map(problem).collect(),
        failures: failures.collect(),
    }
}

/// A node as the others see it. `tasks` are those on it.
pub(super) fn peer<'a>(node: &Node, tasks: impl Iterator<Item = &'a Task>) -> Peer {
    let attached: Vec<&Task> = tasks.filter(|task| !task.attachments.is_empty()).collect();
    let mut containers: Vec<_> = attached.iter().flat_map(|t| t.attachments.iter().map(|a| a.address.addr())).collect();
    containers.sort_unstable();
    Peer {
        node_id: node.id.clone(),
        hostname: node.description.hostname.clone(),
        manager: node.manager.is_some(),
        raft_id: node.manager.as_ref().map(|m| m.raft_id),
        key: node.mesh.key,
        next: node.mesh.next,
        subnet: node.mesh.subnet,
        ingress_addr: node.mesh.ingress_addr,
        endpoints: node.mesh.endpoints.clone(),
        advertised: node.description.advertised,
        addresses: node.description.addresses.clone(),
        containers,
        attached_tasks: u32::try_from(attached.len()).ok(),
        ebpf: node.description.ebpf_datapath,
        down: node.status.state == NodeState::Down,
    }
}

/// The node without its containers.
pub(in super::super) fn peer_alone(node: &Node) -> Peer {
    Peer { attached_tasks: None, ..peer(node, std::iter::empty()) }
}

/// The service's published ports. `tasks` are the service's, by id.
pub(super) fn ports<'a>(
    store: &Store,
    service: &Service,
    ingress: Option<&NetworkId>,
    tasks: impl Iterator<Item = &'a Task>,
) -> Vec<Arc<PublishedPort>> {
    let address = |task: &'a Task| Some((task, task.node_id.as_ref()?, task.address_on(ingress?)?));
    let backends: Vec<_> = tasks.filter(|task| receives(store, task)).filter_map(address).collect();
    // Labels that do not parse were set before skep gave them a meaning (the API refuses them today). Without effect, as they
    // were then.
    let labels = PortLabels::read(&service.spec.labels).unwrap_or_default();
    let published = service.ingress_ports().filter(|p| p.published_port != 0);
    let port = published.map(|port| {
        let backend = |(task, node, address): &(&Task, &NodeId, _)| Backend {
            task_id: task.id.clone(),
            node_id: (*node).clone(),
            address: *address,
            listens: task.listens_on(port.protocol, port.target_port),
        };
        Arc::new(PublishedPort {
            protocol: port.protocol,
            published: port.published_port,
            target: port.target_port,
            service_id: service.id.clone(),
            service_name: service.spec.name.clone(),
            backends: backends.iter().map(backend).collect(),
            affinity: labels.affinity,
            allow: labels.allow.clone(),
            holds: port.protocol == Protocol::Tcp && service.spec.reaches_zero(),
        })
    });
    port.collect()
}

/// The service's HTTP routes; `None` if it has none. `tasks` are the service's, by id.
pub(super) fn http<'a>(
    store: &Store,
    service: &Service,
    ingress: Option<&NetworkId>,
    tasks: impl Iterator<Item = &'a Task>,
) -> Option<HttpService> {
    // Labels that do not parse were set before skep gave them a meaning.
    let labels = service.spec.http().unwrap_or_default();
    if labels.routes.is_empty() {
        return None;
    }
    let ports = service.spec.http_ports();
    let listens = |task: &Task, port: u16| task.listens_on(Protocol::Tcp, port).v4;
    let backend = |task: &Task| {
        Some(HttpBackend {
            task_id: task.id.clone(),
            node_id: task.node_id.clone()?,
            address: task.address_on(ingress?)?,
            ports: ports.iter().copied().filter(|port| listens(task, *port)).collect(),
        })
    };
    let mut problems = [labels.refused, labels.notes].concat();
    let certificate = labels.certificate.and_then(|name| {
        let found = store.secret_named(&name).map(|secret| secret.id.clone());
        if found.is_none() {
            problems.push(format!("label {HTTP}.tls={name}: there is no secret of that name: create it"));
        }
        found
    });
    Some(HttpService {
        service_id: service.id.clone(),
        service_name: service.spec.name.clone(),
        created_at: service.meta.created_at,
        routes: labels.routes,
        certificate,
        problems,
        holds: service.spec.reaches_zero(),
        backends: tasks.filter(|task| receives(store, task)).filter_map(backend).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::{NodeDescription, NodeMesh, NodeStatus};
    use crate::model::{FormatRange, ListeningPort, Listens, Meta, NodeSpec, fixture};

    #[test]
    fn a_task_is_starting_until_its_node_says_that_it_listens_if_that_can() {
        let peer = fixture::peer(1);
        let listens = |v4: bool| vec![ListeningPort { protocol: Protocol::Tcp, port: 80, listens: Listens { v4, v6: true } }];
        for (levels, listens, starting) in [
            (Some(FormatRange::new(1, 2)), Vec::new(), true),
            (Some(FormatRange::new(1, 2)), listens(false), true),
            (Some(FormatRange::new(1, 2)), listens(true), false),
            (Some(FormatRange::only(1)), Vec::new(), false),
            (None, Vec::new(), false),
        ] {
            let node = Node {
                id: peer.node_id.clone(),
                meta: Meta::default(),
                spec: NodeSpec::default(),
                description: NodeDescription { feature_levels: levels, ..NodeDescription::default() },
                status: NodeStatus::default(),
                mesh: NodeMesh {
                    key: peer.key,
                    next: None,
                    subnet: peer.subnet,
                    ingress_addr: peer.ingress_addr,
                    endpoints: Vec::new(),
                },
                manager: None,
            };
            let mut task = fixture::task_with_resolvers("t1", "web", peer.node_id.as_str(), &[]);
            task.listens = listens;
            assert_eq!(is_starting(Some(&node), &task), starting, "{levels:?} {:?}", task.listens);
        }
    }

    #[test]
    fn a_task_on_two_networks_is_one_task_with_two_addresses() {
        let peer = fixture::peer(1);
        let node = Node {
            id: peer.node_id.clone(),
            meta: Meta::default(),
            spec: NodeSpec::default(),
            description: crate::model::node::NodeDescription::default(),
            status: NodeStatus::default(),
            mesh: NodeMesh {
                key: peer.key,
                next: None,
                subnet: peer.subnet,
                ingress_addr: peer.ingress_addr,
                endpoints: Vec::new(),
            },
            manager: None,
        };
        let task = |number: u8, networks: u8| {
            let mut task = fixture::task_with_resolvers(&format!("t{number}"), "web", "node1", &[]);
            let attachment = |network: u8| Attachment {
                network_id: format!("n{network}").as_str().into(),
                address: ipnet::Ipv4Net::new_assert([172, 16 + network, 0, number].into(), 24),
            };
            task.attachments = (0..networks).map(attachment).collect();
            task
        };
        let tasks = [task(2, 2), task(3, 2), task(4, 1), task(5, 0)];
        let shown = super::peer(&node, tasks.iter());
        assert_eq!((shown.containers.len(), shown.attached_tasks), (5, Some(3)));
    }

    #[test]
    fn a_node_chooses_no_name_that_is_another_ones() {
        assert_eq!(short_id(&"0af9".repeat(16)), Some("0af90af90af9"));
        for id in ["tasks.web.ab", "www.example.com", &"0AF9".repeat(16), &"0af9".repeat(15)] {
            assert_eq!(short_id(id), None, "{id}");
        }
        let mut store = Store::default();
        let spec = crate::model::ServiceSpec { name: "web".to_owned(), ..Default::default() };
        let created = vec![crate::store::Action::create(crate::model::fixture::service("s1", spec))];
        store.apply(1, &crate::store::Transaction::new(crate::model::Timestamp(1), created)).unwrap();
        for (name, is_own) in
            [("db-1", true), ("n_2", true), ("web", false), ("tasks.web", false), ("example.com", false), ("", false)]
        {
            assert_eq!(is_own_name(&store, name), is_own, "{name}");
        }
    }
}

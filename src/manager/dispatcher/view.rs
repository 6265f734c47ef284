//! Views of the nodes, built from the store: one index per state of the store, then the parts per node. A part is built only
//! if it differs from the one that the node has.

use crate::manager::allocator::ingress;
use crate::model::mesh::{DEFAULT_POOL, gateway};
use crate::model::port_labels::PortLabels;
use crate::model::view::{
    Backend, ClusterPart, NetworkPart, Networks, Peer, PublishedPort, ServiceNames, ServiceVip, TaskEndpoint, Tasks,
};
use crate::model::{NetworkId, NodeId, NodeState, NodeView, PortConfig, Service, Task, TaskState};
use crate::protocol::entries::share;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// The whole view of a node at this state of the store; `None` before the cluster object exists.
pub fn view_of(store: &Store, node: &NodeId) -> Option<NodeView> {
    let index = ViewIndex::from_store(store, None)?;
    Some(NodeView {
        revision: store.revision(),
        tasks: match index.tasks(node, |_| false, None) {
            TaskListChange::None => Arc::default(),
            TaskListChange::Echo(tasks) | TaskListChange::Orders(tasks) => tasks,
        },
        networks: index.networks(node, None).unwrap_or_default(),
        cluster: index.cluster(),
    })
}

/// How a node's tasks differ from the list that it was sent.
pub(super) enum TaskListChange {
    None,
    /// Only in what the node itself reported.
    Echo(Arc<Tasks>),
    /// In what the node has to carry out.
    Orders(Arc<Tasks>),
}

/// A state of the store, indexed by node and network.
pub struct ViewIndex<'a> {
    ingress: Option<NetworkId>,
    tasks: BTreeMap<&'a NodeId, Vec<&'a Task>>,
    networks: BTreeMap<NetworkId, NetworkPart>,
    cluster: Arc<ClusterPart>,
}

impl<'a> ViewIndex<'a> {
    /// Indexes the store. `before` is the last cluster part; it is shared if nothing in it changed. `None` before the cluster
    /// object exists.
    pub fn from_store(store: &'a Store, before: Option<&Arc<ClusterPart>>) -> Option<Self> {
        let mut tasks = BTreeMap::<&NodeId, Vec<&Task>>::new();
        for task in store.tasks() {
            if let Some(node) = &task.node_id {
                tasks.entry(node).or_default().push(task);
            }
        }
        let ingress = ingress(store).map(|n| n.id.clone());
        let mut cluster = cluster_part(store, &tasks, ingress.as_ref())?;
        if let Some(before) = before {
            share(&before.ports, &mut cluster.ports);
        }
        let cluster = before.filter(|b| ***b == cluster).cloned().unwrap_or_else(|| Arc::new(cluster));
        Some(Self { networks: network_parts(store), ingress, tasks, cluster })
    }

    /// Shares entries with those of the state before that are equal, so that what changed is found by comparing pointers.
    pub(super) fn share(&mut self, before: &BTreeMap<NetworkId, NetworkPart>) {
        for (id, part) in &mut self.networks {
            if let Some(before) = before.get(id) {
                share(&before.members, &mut part.members);
                share(&before.services, &mut part.services);
            }
        }
    }

    /// All networks, for [`Self::share`] with the next state.
    pub(super) fn into_networks(self) -> BTreeMap<NetworkId, NetworkPart> {
        self.networks
    }

    /// The part that is the same for all nodes.
    pub fn cluster(&self) -> Arc<ClusterPart> {
        self.cluster.clone()
    }

    /// The node's tasks, compared with the list that it has. A task whose stop is held back has the desired state Running; one
    /// that is unhealthy and not held back is to be shut down.
    pub(super) fn tasks(&self, node: &NodeId, held: impl Fn(&Task) -> bool, has: Option<&Arc<Tasks>>) -> TaskListChange {
        let tasks = self.tasks.get(node).map_or(&[][..], Vec::as_slice);
        let shown = |task: &Task| {
            let unhealthy = task.status.state == TaskState::Running && task.status.unhealthy;
            match held(task) {
                true => task.desired_state.min(TaskState::Running),
                false if unhealthy => task.desired_state.max(TaskState::Shutdown),
                false => task.desired_state,
            }
        };
        let has_task = |t: &Task| has.and_then(|has| has.by_id.get(&t.id));
        let has_orders = |t: &&Task| has_task(t).is_some_and(|h| h.desired_state == shown(t) && same_orders(h, t));
        let same_list = has.is_some_and(|has| has.by_id.len() == tasks.len()) && tasks.iter().all(has_orders);
        let has_reports = |t: &&Task| has_task(t).is_some_and(|h| h.status == t.status && h.listens == t.listens);
        if same_list && tasks.iter().all(has_reports) {
            return TaskListChange::None;
        }
        let entry = |t: &&Task| (t.id.clone(), Task { desired_state: shown(t), ..(*t).clone() });
        let tasks = Arc::new(Tasks { by_id: tasks.iter().map(entry).collect() });
        if same_list { TaskListChange::Echo(tasks) } else { TaskListChange::Orders(tasks) }
    }

    /// The node's networks; `None` if they equal those that it has.
    pub fn networks(&self, node: &NodeId, has: Option<&Arc<Networks>>) -> Option<Arc<Networks>> {
        let tasks = self.tasks.get(node).into_iter().flatten();
        let mut ids: BTreeSet<&NetworkId> = tasks.flat_map(|t| t.attachments.iter().map(|a| &a.network_id)).collect();
        ids.extend(&self.ingress);
        let parts = || ids.iter().filter_map(|id| self.networks.get_key_value(*id));
        let same = has.is_some_and(|has| parts().eq(&has.by_id));
        (!same).then(|| Arc::new(Networks { by_id: parts().map(|(id, part)| (id.clone(), part.clone())).collect() }))
    }
}

/// Equal, except for what the node itself reported.
fn same_orders(a: &Task, b: &Task) -> bool {
    a.not_before == b.not_before
        && a.status.state.is_final() == b.status.state.is_final()
        && a.attachments == b.attachments
        && a.ports == b.ports
        && a.service_name == b.service_name
        && a.slot == b.slot
        && a.service_labels == b.service_labels
        && a.spec_version == b.spec_version
        && a.spec == b.spec
}

fn network_parts(store: &Store) -> BTreeMap<NetworkId, NetworkPart> {
    let mut parts: BTreeMap<NetworkId, NetworkPart> = store
        .networks()
        .filter_map(|n| {
            let subnet = n.subnet?;
            let part = NetworkPart {
                name: n.spec.name.clone(),
                subnet,
                gateway: gateway(subnet),
                internal: n.spec.internal,
                ingress: n.spec.ingress,
                members: Vec::new(),
                services: Vec::new(),
                names: Vec::new(),
            };
            Some((n.id.clone(), part))
        })
        .collect();
    for task in store.tasks() {
        let Some(node_id) = task.node_id.as_ref().filter(|id| store.node(id).is_some()) else { continue };
        let mode = store.service(&task.service_id).map(|s| s.spec.endpoint_mode()).unwrap_or_default();
        for attachment in &task.attachments {
            let Some(part) = parts.get_mut(&attachment.network_id) else { continue };
            let config = task.spec.networks.iter().find(|n| n.target == attachment.network_id.as_str());
            part.members.push(Arc::new(TaskEndpoint {
                task_id: task.id.clone(),
                service_id: task.service_id.clone(),
                service_name: task.service_name.clone(),
                endpoint_mode: mode,
                aliases: config.map(|c| c.aliases.clone()).unwrap_or_default(),
                slot: task.slot,
                container_name: task.container_name(),
                node_id: node_id.clone(),
                address: attachment.address.addr(),
                backend: task.is_backend(),
                gone: task.status.state.is_final(),
            }));
        }
    }
    for service in store.services() {
        add_names(service, &mut parts);
        for vip in &service.endpoint.vips {
            if let Some(part) = parts.get_mut(&vip.network_id) {
                let (service_id, name) = (service.id.clone(), service.spec.name.clone());
                part.services.push(Arc::new(ServiceVip { service_id, name, vip: vip.addr.addr() }));
            }
        }
    }
    parts
}

/// The service's names on each network that its spec names, and on `ingress` if it publishes a port there.
fn add_names(service: &Service, parts: &mut BTreeMap<NetworkId, NetworkPart>) {
    let networks = &service.spec.task_template.networks;
    for (id, part) in parts {
        let config = networks.iter().find(|n| n.target == id.as_str());
        if config.is_some() || (part.ingress && service.ingress_ports().next().is_some()) {
            part.names.push(Arc::new(ServiceNames {
                service_id: service.id.clone(),
                name: service.spec.name.clone(),
                aliases: config.map(|c| c.aliases.clone()).unwrap_or_default(),
                ports: service.endpoint.ports.clone(),
            }));
        }
    }
}

fn cluster_part(store: &Store, tasks: &BTreeMap<&NodeId, Vec<&Task>>, ingress: Option<&NetworkId>) -> Option<ClusterPart> {
    let cluster = store.cluster()?;
    let nodes = store.nodes().map(|node| {
        let here = tasks.get(&node.id).into_iter().flatten();
        let mut containers: Vec<_> = here.flat_map(|t| t.attachments.iter().map(|a| a.address.addr())).collect();
        containers.sort_unstable();
        Peer {
            node_id: node.id.clone(),
            hostname: node.description.hostname.clone(),
            manager: node.manager.is_some(),
            key: node.mesh.key,
            subnet: node.mesh.subnet,
            ingress_addr: node.mesh.ingress_addr,
            endpoints: node.mesh.endpoints.clone(),
            containers,
            ebpf: node.description.ebpf_datapath,
            down: node.status.state == NodeState::Down,
        }
    });
    let pools = if cluster.address_pools.is_empty() { vec![DEFAULT_POOL] } else { cluster.address_pools.clone() };
    let mut subnets: Vec<_> = store.networks().filter_map(|network| network.subnet).collect();
    subnets.sort();
    Some(ClusterPart { mesh: cluster.mesh, pools, subnets, nodes: nodes.collect(), ports: ports(store, ingress) })
}

fn backend((task, node, address): &(&Task, &NodeId, Ipv4Addr), port: &PortConfig) -> Backend {
    let listens = task.listens_on(port.protocol, port.target_port);
    Backend { task_id: task.id.clone(), node_id: (*node).clone(), address: *address, listens }
}

fn ports(store: &Store, ingress: Option<&NetworkId>) -> Vec<Arc<PublishedPort>> {
    let mut backends = BTreeMap::<_, Vec<(&Task, &NodeId, Ipv4Addr)>>::new();
    for task in store.tasks().filter(|t| t.is_backend()) {
        let Some(address) = ingress.and_then(|id| task.address_on(id)) else { continue };
        let Some(node) = task.node_id.as_ref().filter(|id| store.node(id).is_some()) else { continue };
        backends.entry(&task.service_id).or_default().push((task, node, address));
    }
    let mut all: Vec<Arc<PublishedPort>> = store
        .services()
        .flat_map(|service| {
            let backends = &backends;
            // Labels that do not parse were set before skep gave them a meaning (the API refuses them today). Without effect,
            // as they were then.
            let labels = PortLabels::read(&service.spec.labels).unwrap_or_default();
            service.ingress_ports().filter(|p| p.published_port != 0).map(move |port| {
                Arc::new(PublishedPort {
                    protocol: port.protocol,
                    published: port.published_port,
                    target: port.target_port,
                    service_id: service.id.clone(),
                    service_name: service.spec.name.clone(),
                    backends: backends.get(&service.id).into_iter().flatten().map(|task| backend(task, port)).collect(),
                    affinity: labels.affinity,
                    allow: labels.allow.clone(),
                })
            })
        })
        .collect();
    all.sort_by_key(|p| (p.protocol, p.published));
    all
}

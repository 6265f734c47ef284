//! The views' parts for one state of the store, kept up to date change by change: what a change costs depends on what it
//! changes, not on the number of nodes and tasks (apart from copies of the lists that change, a pointer per entry). Parts and
//! their entries that did not change stay the same allocations, shared between nodes.

use super::task_list::{self, TaskListChange};
use super::view;
use crate::manager::allocator::ingress;
use crate::model::view::{ClusterPart, NetworkPart, Networks, PublishedPort};
use crate::model::{
    AcmeCertificate, Cluster, ClusterSecret, Network, NetworkId, Node, NodeId, NodeState, NodeView, Service, ServiceId, Task,
    TaskId,
};
use crate::store::{Store, StoreObject, changed};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The whole view of a node at this state of the store; `None` before the cluster object exists.
pub fn view_of(store: &Store, node: &NodeId) -> Option<NodeView> {
    let mut index = ViewIndex::new(store);
    let tasks: Vec<&Arc<Task>> = store.shared_tasks_of_node(node).collect();
    Some(NodeView {
        revision: store.revision(),
        tasks: match task_list::compare(&tasks, |_| false, None) {
            TaskListChange::None => Arc::default(),
            TaskListChange::Echo(tasks) | TaskListChange::Orders(tasks) => tasks,
        },
        networks: index.networks(&index.network_ids(store, node)).part,
        cluster: index.cluster()?,
    })
}

/// Which parts of views differ from the state before.
#[derive(Default, Debug)]
pub struct DirtyViews {
    /// Nodes whose own tasks changed.
    pub nodes: BTreeSet<NodeId>,
    pub networks: BTreeSet<NetworkId>,
    pub cluster: bool,
}

/// The networks of a node, with the version of each: equal versions are equal networks.
#[derive(Clone, Default, Debug)]
pub struct VersionedNetworks {
    pub part: Arc<Networks>,
    pub versions: Vec<(NetworkId, u64)>,
}

/// The parts of all views.
#[derive(Default)]
pub struct ViewIndex {
    ingress: Option<NetworkId>,
    networks: BTreeMap<NetworkId, NetworkPart>,
    /// Of each network; none is used twice.
    versions: BTreeMap<NetworkId, u64>,
    last_version: u64,
    /// `None` before the cluster object exists.
    cluster: Option<Arc<ClusterPart>>,
    /// Networks by the set of them that a node has: the same for all nodes with that set.
    by_set: BTreeMap<BTreeSet<NetworkId>, VersionedNetworks>,
}

impl ViewIndex {
    /// Of a state of the store.
    pub fn new(store: &Store) -> Self {
        let mut index = Self {
            ingress: ingress(store).map(|n| n.id.clone()),
            cluster: view::cluster_head(store).map(Arc::new),
            ..Self::default()
        };
        index.update_parts(&Store::default(), store, &mut DirtyViews::default());
        index
    }

    /// Brings the index from one state of the store to a later one; adds what differs to `dirty`.
    pub fn update(&mut self, before: &Store, after: &Store, dirty: &mut DirtyViews) {
        let ingress_now = ingress(after).map(|n| &n.id);
        if self.cluster.is_none() || ingress_now != self.ingress.as_ref() {
            let last_version = self.last_version;
            *self = Self::new(after);
            self.last_version += last_version;
            self.versions.values_mut().for_each(|version| *version += last_version);
            self.by_set.clear();
            dirty.nodes.extend(after.nodes().map(|n| n.id.clone()));
            dirty.networks.extend(before.networks().chain(after.networks()).map(|n| n.id.clone()));
            dirty.cluster = true;
            return;
        }
        self.update_parts(before, after, dirty);
    }

    /// The part that is the same for all nodes.
    pub fn cluster(&self) -> Option<Arc<ClusterPart>> {
        self.cluster.clone()
    }

    /// The networks of a node's tasks, and `ingress`.
    pub fn network_ids(&self, store: &Store, node: &NodeId) -> BTreeSet<NetworkId> {
        let mut ids: BTreeSet<NetworkId> =
            store.tasks_of_node(node).flat_map(|t| t.attachments.iter().map(|a| a.network_id.clone())).collect();
        ids.extend(self.ingress.clone());
        ids
    }

    /// The part with these networks, shared by all nodes that have the same ones.
    pub fn networks(&mut self, ids: &BTreeSet<NetworkId>) -> VersionedNetworks {
        if let Some(networks) = self.by_set.get(ids) {
            return networks.clone();
        }
        let parts = ids.iter().filter_map(|id| self.networks.get_key_value(id));
        let part = Arc::new(Networks { by_id: parts.map(|(id, part)| (id.clone(), part.clone())).collect() });
        let networks = VersionedNetworks { part, versions: self.versions_of(ids) };
        self.by_set.insert(ids.clone(), networks.clone());
        networks
    }

    /// The versions of these networks.
    pub fn versions_of(&self, ids: &BTreeSet<NetworkId>) -> Vec<(NetworkId, u64)> {
        ids.iter().filter_map(|id| Some((id.clone(), *self.versions.get(id)?))).collect()
    }

    fn update_parts(&mut self, before: &Store, after: &Store, dirty: &mut DirtyViews) {
        let mut stale = StaleEntries::default();
        stale.read_networks(before, after);
        stale.read_tasks(before, after, dirty);
        stale.read_nodes(before, after);
        stale.read_services(before, after);
        stale.read_secrets(before, after);
        stale.members.sort_unstable();
        stale.members.dedup();

        let mut changed_networks = BTreeSet::new();
        for id in &stale.networks {
            match after.network(id).and_then(view::network_head) {
                Some(head) => drop(self.networks.insert(id.clone(), head)),
                None => drop(self.networks.remove(id)),
            }
            changed_networks.insert(id.clone());
        }
        for id in &stale.members {
            self.update_member(before, after, id, &mut changed_networks);
        }
        for id in &stale.names {
            self.update_names(after, id, &mut changed_networks);
        }
        dirty.cluster |= self.update_cluster(before, after, &stale);

        for id in changed_networks {
            self.last_version += 1;
            if self.networks.contains_key(&id) {
                self.versions.insert(id.clone(), self.last_version);
            } else {
                self.versions.remove(&id);
            }
            dirty.networks.insert(id);
        }
        self.by_set.retain(|ids, _| ids.is_disjoint(&dirty.networks));
        // Sets that no node has any more are dropped at times, not traced.
        if self.by_set.len() > 2 * Node::table(after).len() + 1 {
            self.by_set.clear();
        }
    }

    /// A task's entry on its networks.
    fn update_member(&mut self, before: &Store, after: &Store, id: &TaskId, dirty: &mut BTreeSet<NetworkId>) {
        let task = after.task(id);
        let attachments = |task: Option<&Task>| task.map(|t| t.attachments.clone()).unwrap_or_default();
        let now = attachments(task);
        let networks: BTreeSet<NetworkId> =
            attachments(before.task(id)).into_iter().chain(now.clone()).map(|a| a.network_id).collect();
        for network in networks {
            let Some(part) = self.networks.get_mut(&network) else { continue };
            let attachment = now.iter().find(|a| a.network_id == network);
            let entry = task.zip(attachment).and_then(|(task, attachment)| view::endpoint(after, task, attachment));
            if replace(&mut part.members, |m| m.task_id.cmp(id), entry) {
                dirty.insert(network);
            }
        }
    }

    /// A service's names and virtual addresses on all networks.
    fn update_names(&mut self, store: &Store, id: &ServiceId, dirty: &mut BTreeSet<NetworkId>) {
        let service = store.service(id);
        for (network, part) in &mut self.networks {
            let names = service.and_then(|s| view::names(s, network, part.ingress));
            let vip = service.and_then(|s| view::vip(s, network));
            let names = replace(&mut part.names, |n| n.service_id.cmp(id), names);
            if replace(&mut part.services, |s| s.service_id.cmp(id), vip) || names {
                dirty.insert(network.clone());
            }
        }
    }

    fn update_cluster(&mut self, before: &Store, after: &Store, stale: &StaleEntries) -> bool {
        let Some(mut cluster) = self.cluster.take() else { return false };
        let mut changed = false;
        // The heads are made of all networks.
        let may_differ = changed_any::<Cluster>(before, after)
            || changed_any::<Network>(before, after)
            || changed_any::<Service>(before, after);
        if may_differ
            && let Some(head) = view::cluster_head(after)
            && view::cluster_head(before).as_ref() != Some(&head)
        {
            let part = Arc::make_mut(&mut cluster);
            let ClusterPart { nodes, ports, http, acme, .. } = std::mem::replace(part, head);
            *part = ClusterPart { nodes, ports, http, acme, ..part.clone() };
            changed = true;
        }
        if changed_any::<AcmeCertificate>(before, after) {
            let acme = view::acme(after);
            if *cluster.acme != acme {
                Arc::make_mut(&mut cluster).acme = Arc::new(acme);
                changed = true;
            }
        }
        for id in &stale.peers {
            let peer = after.node(id).map(|node| view::peer(node, after.tasks_of_node(id)));
            let at = cluster.nodes.binary_search_by(|n| n.node_id.cmp(id));
            if at.ok().map(|at| &cluster.nodes[at]) == peer.as_ref() {
                continue;
            }
            changed = true;
            let nodes = &mut Arc::make_mut(&mut cluster).nodes;
            match (at, peer) {
                (Ok(at), Some(peer)) => nodes[at] = peer,
                (Ok(at), None) => drop(nodes.remove(at)),
                (Err(at), Some(peer)) => nodes.insert(at, peer),
                (Err(_), None) => {}
            }
        }
        for id in &stale.ports {
            let tasks = after.tasks_of_service(id);
            let now = after.service(id).map(|s| view::ports(after, s, self.ingress.as_ref(), tasks)).unwrap_or_default();
            changed |= replace_ports(&mut cluster, id, now);
            let tasks = after.tasks_of_service(id);
            let http = after.service(id).and_then(|s| view::http(after, s, self.ingress.as_ref(), tasks));
            if http.is_some() || cluster.http.iter().any(|service| service.service_id == *id) {
                changed |= replace(&mut Arc::make_mut(&mut cluster).http, |s| s.service_id.cmp(id), http);
            }
        }
        self.cluster = Some(cluster);
        changed
    }
}

fn changed_any<T: StoreObject>(before: &Store, after: &Store) -> bool {
    changed::<T>(before, after).next().is_some()
}

/// Entries that are to be made again.
#[derive(Default)]
struct StaleEntries {
    networks: BTreeSet<NetworkId>,
    /// Tasks, whose entries on their networks are stale; some twice. A list: a new leader has all tasks in it, and what that takes
    /// of memory comes back as a whole.
    members: Vec<TaskId>,
    peers: BTreeSet<NodeId>,
    ports: BTreeSet<ServiceId>,
    names: BTreeSet<ServiceId>,
}

impl StaleEntries {
    fn read_networks(&mut self, before: &Store, after: &Store) {
        for (was, is) in changed::<Network>(before, after) {
            let head = |network: Option<&Network>| network.and_then(view::network_head);
            if head(was) != head(is) {
                self.networks.extend(was.or(is).map(|n| n.id.clone()));
            }
        }
        if !self.networks.is_empty() {
            let tasks = self.networks.iter().flat_map(|network| after.tasks_on_network(network));
            self.members.extend(tasks.map(|task| task.id.clone()));
            self.names.extend(after.services().map(|service| service.id.clone()));
        }
    }

    fn read_tasks(&mut self, before: &Store, after: &Store, dirty: &mut DirtyViews) {
        for (was, is) in changed::<Task>(before, after) {
            let Some(task) = is.or(was) else { continue };
            self.add_task(task);
            let place = |t: Option<&Task>| t.map(|t| (t.node_id.clone(), t.attachments.clone()));
            let moved = place(was) != place(is);
            for node in [was, is].into_iter().flatten().filter_map(|t| t.node_id.as_ref()) {
                dirty.nodes.insert(node.clone());
                if moved {
                    self.peers.insert(node.clone());
                }
            }
        }
    }

    fn add_task(&mut self, task: &Task) {
        self.members.push(task.id.clone());
        self.ports.insert(task.service_id.clone());
    }

    /// A node that comes, goes, or is down or no longer down changes the entries of its tasks.
    fn read_nodes(&mut self, before: &Store, after: &Store) {
        for (was, is) in changed::<Node>(before, after) {
            let Some(node) = is.or(was) else { continue };
            self.peers.insert(node.id.clone());
            let is_up = |node: Option<&Node>| node.map(|n| n.status.state != NodeState::Down);
            if is_up(was) != is_up(is) {
                after.tasks_of_node(&node.id).for_each(|task| self.add_task(task));
            }
        }
    }

    fn read_services(&mut self, before: &Store, after: &Store) {
        for (was, is) in changed::<Service>(before, after) {
            let Some(service) = is.or(was) else { continue };
            self.names.insert(service.id.clone());
            self.ports.insert(service.id.clone());
            let mode = |service: Option<&Service>| service.map(|s| s.spec.endpoint_mode());
            if mode(was) != mode(is) {
                after.tasks_of_service(&service.id).for_each(|task| self.add_task(task));
            }
        }
    }
}

impl StaleEntries {
    /// A secret that comes or goes may be the certificate of HTTP routes.
    fn read_secrets(&mut self, before: &Store, after: &Store) {
        let is_there = |secret: Option<&ClusterSecret>| secret.map(|secret| secret.id.clone());
        if changed::<ClusterSecret>(before, after).any(|(was, is)| is_there(was) != is_there(is)) {
            let routed = after.services().filter(|service| !service.spec.http_ports().is_empty());
            self.ports.extend(routed.map(|service| service.id.clone()));
        }
    }
}

/// Adds, replaces or removes an entry of a sorted list; says whether that changed anything.
fn replace<T: PartialEq>(list: &mut Vec<Arc<T>>, order: impl Fn(&T) -> Ordering, entry: Option<T>) -> bool {
    match (list.binary_search_by(|e| order(e)), entry) {
        (Ok(at), Some(entry)) if *list[at] == entry => false,
        (Ok(at), Some(entry)) => {
            list[at] = Arc::new(entry);
            true
        }
        (Ok(at), None) => {
            list.remove(at);
            true
        }
        (Err(at), Some(entry)) => {
            list.insert(at, Arc::new(entry));
            true
        }
        (Err(_), None) => false,
    }
}

/// Replaces the ports of a service; says whether that changed anything.
fn replace_ports(cluster: &mut Arc<ClusterPart>, service: &ServiceId, mut now: Vec<Arc<PublishedPort>>) -> bool {
    let before: Vec<Arc<PublishedPort>> = cluster.ports.iter().filter(|p| p.service_id == *service).cloned().collect();
    now.sort_by_key(|p| (p.protocol, p.published));
    if before == now {
        return false;
    }
    let ports = &mut Arc::make_mut(cluster).ports;
    ports.retain(|p| p.service_id != *service);
    for port in now {
        let port = before.iter().find(|b| **b == port).cloned().unwrap_or(port);
        let at = ports.partition_point(|p| (p.protocol, p.published) <= (port.protocol, port.published));
        ports.insert(at, port);
    }
    true
}

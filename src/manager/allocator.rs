//! Assigns subnets, published ports, virtual addresses and task addresses: NEW → PENDING; the tasks of plain containers run with
//! that. An object that cannot get what it needs stays as it is, and the task has the reason. Does not know how nodes configure addresses and ports.
//!
//! A transaction that assigns addresses of a network also writes the network object, unchanged: its version is the guard
//! that keeps two writers (this planner, and a join on another manager) from assigning the same address.

mod addresses;
mod attached;
mod endpoint;
mod freed;
mod in_use;
mod networks;
mod pools;
mod quarantine;
mod subnets;

pub use addresses::AddressBook;
pub use freed::Freed;
pub use networks::{ingress, networks_of_task};
pub use pools::{PoolChoice, choose_pools};
pub use quarantine::QuarantinedAddresses;
pub use subnets::{first_free, overlap};

use super::limits::BATCH;
use super::round_scope::RoundScope;
use crate::model::node::NodeMesh;
use crate::model::{Network, NetworkId, Node, Service, ServiceId, Task, TaskState, TaskStatus, Timestamp, task::Attachment};
use crate::store::{Action, FieldUpdate, Store};
use addresses::is_host;
use endpoint::PortRegistry;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use subnets::Subnets;

/// Assignments to write now. Endpoints are looked at if something in the scope may have changed one, or a new task needs to know
/// whether its service has one.
pub fn plan(store: &Store, now: Timestamp, quarantine: &mut QuarantinedAddresses, scope: &RoundScope) -> Vec<Action> {
    let new_subnets =
        subnets::allocate(store, |subnet| quarantine.freed_subnet(subnet), |subnet| quarantine.freed_subnet6(subnet));
    let assigned = store.networks().filter(|n| n.subnet.is_some());
    let mut subnets: BTreeMap<NetworkId, Vec<Ipv4Net>> = assigned.map(|n| (n.id.clone(), n.subnets())).collect();
    let mut out = Vec::new();
    for Subnets { network, v4, further, v6 } in &new_subnets {
        let network = Network { subnet: Some(*v4), further: further.clone(), subnet6: *v6, ..(*network).clone() };
        subnets.insert(network.id.clone(), network.subnets());
        out.push(Action::update(network));
    }
    let mut allocation = Allocation { store, now, subnets, quarantine, book: None, guarded: BTreeSet::new(), out };
    if scope.has_specs() {
        allocation.allocate_nodes();
    }
    if scope.has_specs() || store.new_tasks().next().is_some() {
        let everyone = scope.has_endpoints() || !new_subnets.is_empty();
        let problems = allocation.allocate_endpoints((!everyone).then_some(scope));
        allocation.allocate_tasks(&problems);
    }
    let Allocation { guarded, mut out, .. } = allocation;
    // A network that got its subnet in this transaction is written already.
    let is_written = |id: &NetworkId| new_subnets.iter().any(|new| new.network.id == *id);
    for network in store.networks().filter(|n| guarded.contains(&n.id) && !is_written(&n.id)) {
        out.push(Action::update(network.clone()));
    }
    out
}

/// The allocations of one round.
struct Allocation<'a> {
    store: &'a Store,
    now: Timestamp,
    /// Those assigned in this round included.
    subnets: BTreeMap<NetworkId, Vec<Ipv4Net>>,
    quarantine: &'a mut QuarantinedAddresses,
    /// Built when the first address is needed: most rounds need none.
    book: Option<AddressBook<'a>>,
    /// Networks of which an address was assigned.
    guarded: BTreeSet<NetworkId>,
    out: Vec<Action>,
}

impl Allocation<'_> {
    /// Brings every service's endpoint to what its spec requires, or with a scope those of its services and of the services that have
    /// new tasks; returns the reasons why some endpoints are incomplete.
    fn allocate_endpoints(&mut self, scope: Option<&RoundScope>) -> BTreeMap<ServiceId, String> {
        let store = self.store;
        let mut problems = BTreeMap::new();
        let mut ports = PortRegistry::new(store);
        let mut by_age: Vec<&Service> = match scope {
            None => store.services().collect(),
            Some(scope) => {
                let with_new_tasks = store.new_tasks().map(|task| task.service_id.clone());
                let ids: BTreeSet<ServiceId> = scope.service_ids(store).chain(with_new_tasks).collect();
                ids.iter().filter_map(|id| store.service(id)).collect()
            }
        };
        by_age.sort_by(|a, b| (a.meta.created_at, &a.id).cmp(&(b.meta.created_at, &b.id)));
        for service in by_age {
            let allocated = endpoint::allocate(store, service, &mut ports, |network, current| {
                let subnets = self.subnets(network)?;
                if let Some(current) = current.filter(|current| subnets.iter().any(|net| net.contains(&current.addr()))) {
                    return Ok(current);
                }
                let address = self.take_address(network)?;
                self.guarded.insert(network.clone());
                Ok(address)
            });
            if let Some(problem) = allocated.problem {
                problems.insert(service.id.clone(), problem);
            }
            if allocated.endpoint != service.endpoint {
                let endpoint = Box::new(allocated.endpoint);
                self.out.push(Action::Set(FieldUpdate::ServiceEndpoint { id: service.id.clone(), endpoint }));
            }
        }
        problems
    }

    /// Assigns the addresses of nodes that joined before there was this `ingress` network, and others to nodes that joined with one
    /// that is still waited for.
    fn allocate_nodes(&mut self) {
        let store = self.store;
        let Some(network) = ingress(store) else { return };
        let Ok(subnets) = self.subnets(&network.id) else { return };
        let is_in = |subnet: &Ipv4Net, address| is_host(*subnet, network.spec.gateway_in(*subnet), address);
        let has_none = |node: &Node| !subnets.iter().any(|subnet| is_in(subnet, node.mesh.ingress_addr));
        for node in store.nodes() {
            let early = self.quarantine.joined_early(store, node);
            if !early && !has_none(node) {
                continue;
            }
            match self.take_address(&network.id) {
                Ok(address) => {
                    self.guarded.insert(network.id.clone());
                    let mesh = NodeMesh { ingress_addr: address.addr(), ..node.mesh.clone() };
                    self.out.push(Action::update(Node { mesh, ..node.clone() }));
                }
                // Better one that some nodes take for another's until they have the newest view than none.
                Err(_) if early => {}
                // It cannot send to published ports of other nodes, and they not to its.
                Err(problem) => tracing::warn!(node = %node.id, problem, "a node has no address on the ingress network"),
            }
        }
    }

    /// Assigns the addresses of NEW tasks: all that a task needs, or none.
    fn allocate_tasks(&mut self, problems: &BTreeMap<ServiceId, String>) {
        let store = self.store;
        let mut new: Vec<&Task> = store.new_tasks().filter(|t| t.is_wanted()).collect();
        new.sort_by(|a, b| {
            (a.meta.created_at, &a.service_id, a.slot, &a.id).cmp(&(b.meta.created_at, &b.service_id, b.slot, &b.id))
        });
        for task in new {
            if self.out.len() >= BATCH {
                return;
            }
            let attachments = match (&task.attached, store.service(&task.service_id)) {
                (Some(container), _) => match self.attach_container(task, container) {
                    Ok(None) => continue,
                    Ok(Some(attachment)) => Ok(vec![attachment]),
                    Err(problem) => Err(problem),
                },
                (None, None) => continue,
                (None, Some(service)) => match problems.get(&service.id) {
                    Some(problem) => Err(problem.clone()),
                    None => self.attach(&networks_of_task(store, service, task)),
                },
            };
            let mut status = TaskStatus { timestamp: self.now, ..task.status.clone() };
            let attachments = match attachments {
                Ok(attachments) => {
                    self.guarded.extend(attachments.iter().map(|a| a.network_id.clone()));
                    let plain = task.attached.is_some();
                    status.state = if plain { TaskState::Running } else { TaskState::Pending };
                    (if plain { "attached" } else { "pending task scheduling" }).clone_into(&mut status.message);
                    status.err.clear();
                    attachments
                }
                Err(problem) if problem == task.status.err => continue,
                Err(problem) => {
                    status.err = problem;
                    Vec::new()
                }
            };
            let (id, status) = (task.id.clone(), Box::new(status));
            self.out.push(Action::Set(FieldUpdate::TaskStep { id, from: TaskState::New, status, attachments, node: None }));
        }
    }

    /// One address on each network. On an error the addresses taken so far are free again.
    fn attach(&mut self, networks: &[NetworkId]) -> Result<Vec<Attachment>, String> {
        let mut attachments = Vec::new();
        for network in networks {
            match self.take_address(network) {
                Ok(address) => attachments.push(Attachment { network_id: network.clone(), address }),
                Err(problem) => {
                    for attachment in attachments {
                        self.release_address(&attachment);
                    }
                    return Err(problem);
                }
            }
        }
        Ok(attachments)
    }

    /// A free address of the first subnet that has one, with the subnet's prefix length.
    fn take_address(&mut self, network: &NetworkId) -> Result<Ipv4Net, String> {
        let subnets = self.subnets(network)?;
        let book = self.book.get_or_insert_with(|| AddressBook::new(self.store));
        for subnet in &subnets {
            if let Some(address) = book.take(network, *subnet, self.quarantine) {
                return Ok(Ipv4Net::new(address, subnet.prefix_len()).unwrap_or(*subnet));
            }
        }
        let name = self.store.network(network).map_or(network.as_str(), |n| n.spec.name.as_str());
        let shown = subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let why = if subnets.iter().all(|subnet| book.is_full(network, *subnet)) {
            format!("{shown} {}{FULL}", if subnets.len() > 1 { "are" } else { "is" })
        } else {
            format!("nodes may still send to the free ones of {shown}: it waits until they have the newest view")
        };
        Err(format!("could not find an available IP on network {name} ({why})"))
    }

    fn release_address(&mut self, attachment: &Attachment) {
        if let Some(book) = &mut self.book {
            book.release(&attachment.network_id, attachment.address.addr());
        }
    }

    fn subnets(&self, network: &NetworkId) -> Result<Vec<Ipv4Net>, String> {
        self.subnets.get(network).cloned().ok_or_else(|| no_subnet(self.store, network))
    }
}

/// Ends the reason for which a task waits while its network has no free address.
const FULL: &str = " full";

/// Whether the task waits for an address that only another task can give it.
pub(super) fn waits_for_full_network(task: &Task) -> bool {
    task.status.state == TaskState::New && task.status.err.ends_with(&format!("{FULL})"))
}

fn no_subnet(store: &Store, id: &NetworkId) -> String {
    let Some(network) = store.network(id) else { return format!("network {id} not found") };
    let spec = &network.spec;
    let overlaps = |subnet: IpNet| {
        let used = store
            .networks()
            .filter(|other| other.id != *id)
            .flat_map(|other| other.subnets().into_iter().map(IpNet::V4).chain(other.subnet6.map(IpNet::V6)));
        let mut used = used.filter(|used| used.contains(&subnet) || subnet.contains(used));
        used.next().is_some()
    };
    let requested = spec.subnets.iter().copied().map(IpNet::V4).chain(spec.subnet6.map(IpNet::V6));
    let overlapping: Vec<String> = requested.filter(|subnet| overlaps(*subnet)).map(|subnet| subnet.to_string()).collect();
    if overlapping.is_empty() {
        format!("network {} has no subnet: every subnet of the default address pools is in use", spec.name)
    } else {
        format!("network {} has no subnet: {} overlaps another network, remove one of them", spec.name, overlapping.join(" and "))
    }
}

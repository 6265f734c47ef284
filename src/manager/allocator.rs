//! Gives out subnets, published ports, virtual addresses and task addresses: NEW → PENDING. What cannot be given stays
//! as it is, and the task says why. Knows nothing of nodes' kernels or of who answers an address.
//!
//! Whoever gives out addresses of a network also writes the network object (unchanged): its version is the lock that
//! keeps two writers (this loop, a join on another manager) from giving out the same address.

mod addresses;
mod endpoint;

pub use addresses::{AddressBook, QuarantinedAddresses, Space};

use super::round::BATCH;
use crate::model::mesh::DEFAULT_POOL;
use crate::model::{Cluster, Network, NetworkId, Service, ServiceId, Task, TaskState, Timestamp, task::Attachment};
use crate::store::{Action, Store};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};

const DEFAULT_SUBNET_SIZE: u8 = 24;

/// What is to be given out now.
pub fn plan(store: &Store, now: Timestamp, reserve: &mut QuarantinedAddresses) -> Vec<Action> {
    let mut out = Vec::new();
    let subnets = subnets(store, reserve, &mut out);
    let fresh: BTreeSet<NetworkId> = out.iter().filter_map(written_network).collect();
    let mut book = None;
    let mut touched = BTreeSet::new();
    let problems = services(store, &subnets, reserve, &mut book, &mut touched, &mut out);
    tasks(store, now, &subnets, reserve, &mut book, &problems, &mut touched, &mut out);
    for network in store.networks().filter(|n| touched.contains(&n.id) && !fresh.contains(&n.id)) {
        out.push(Action::update(network.clone()));
    }
    out
}

fn written_network(action: &Action) -> Option<NetworkId> {
    match action {
        Action::Update(crate::store::Object::Network(n)) => Some(n.id.clone()),
        _ => None,
    }
}

/// The network that carries published ports.
pub fn ingress(store: &Store) -> Option<&Network> {
    store.networks().find(|n| n.spec.ingress)
}

/// Networks that a task of the service is on, `ingress` first.
pub fn networks_of_task(store: &Store, service: &Service, task: &Task) -> Vec<NetworkId> {
    let ingress = ingress(store).filter(|_| service.spec.wants_ingress()).map(|n| n.id.clone());
    distinct(ingress.into_iter().chain(task.spec.networks.iter().map(|n| NetworkId::from(n.target.as_str()))))
}

fn distinct(ids: impl Iterator<Item = NetworkId>) -> Vec<NetworkId> {
    let mut all = Vec::new();
    for id in ids {
        if !all.contains(&id) {
            all.push(id);
        }
    }
    all
}

/// Cuts a subnet for every network that has none and returns all subnets.
fn subnets(store: &Store, reserve: &QuarantinedAddresses, out: &mut Vec<Action>) -> BTreeMap<NetworkId, Ipv4Net> {
    let mut all: BTreeMap<NetworkId, Ipv4Net> = store.networks().filter_map(|n| Some((n.id.clone(), n.subnet?))).collect();
    let Some(cluster) = store.cluster() else { return all };
    let wished: Vec<Ipv4Net> = store.networks().filter(|n| n.subnet.is_none()).flat_map(|n| n.spec.subnets.clone()).collect();
    for network in store.networks().filter(|n| n.subnet.is_none()) {
        let taken = |net: &Ipv4Net| all.values().any(|other| overlap(net, other));
        let subnet = match network.spec.subnets.first() {
            Some(asked) => Some(asked.trunc()).filter(|net| !taken(net)),
            None => first_free(cluster, |net| taken(net) || wished.iter().any(|w| overlap(net, w)) || reserve.holds_subnet(net)),
        };
        if let Some(subnet) = subnet {
            all.insert(network.id.clone(), subnet);
            out.push(Action::update(Network { subnet: Some(subnet), ..network.clone() }));
        }
    }
    all
}

/// The first subnet of the cluster's pools that is not taken.
pub(super) fn first_free(cluster: &Cluster, taken: impl Fn(&Ipv4Net) -> bool) -> Option<Ipv4Net> {
    let default = [DEFAULT_POOL];
    let pools = if cluster.address_pools.is_empty() { &default[..] } else { &cluster.address_pools };
    let size = if cluster.subnet_size == 0 { DEFAULT_SUBNET_SIZE } else { cluster.subnet_size };
    pools.iter().filter_map(|pool| pool.subnets(size).ok()).flatten().find(|net| !taken(net))
}

/// True if the two share an address.
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}

/// Brings every service's endpoint to what its spec says; returns what keeps a service from its endpoint.
fn services(
    store: &Store,
    subnets: &BTreeMap<NetworkId, Ipv4Net>,
    reserve: &mut QuarantinedAddresses,
    book: &mut Option<AddressBook>,
    touched: &mut BTreeSet<NetworkId>,
    out: &mut Vec<Action>,
) -> BTreeMap<ServiceId, String> {
    let mut problems = BTreeMap::new();
    let mut ports = endpoint::Ports::of(store);
    let mut by_age: Vec<&Service> = store.services().collect();
    by_age.sort_by(|a, b| (a.meta.created_at, &a.id).cmp(&(b.meta.created_at, &b.id)));
    for service in by_age {
        let given = endpoint::wanted(store, service, &mut ports, |network, kept| {
            let subnet = *subnets.get(network).ok_or_else(|| no_subnet(store, network))?;
            if let Some(kept) = kept.filter(|k| subnet.contains(&k.addr())) {
                return Ok(kept);
            }
            let space = book.get_or_insert_with(|| AddressBook::of(store)).space(network, subnet);
            let address = space.take(network, reserve).ok_or_else(|| full(store, network, subnet))?;
            touched.insert(network.clone());
            Ok(with_prefix(address, subnet))
        });
        if let Some(problem) = given.problem {
            problems.insert(service.id.clone(), problem);
        }
        if given.endpoint != service.endpoint {
            out.push(Action::update(Service { endpoint: given.endpoint, ..service.clone() }));
        }
    }
    problems
}

/// Gives NEW tasks their addresses.
#[expect(clippy::too_many_arguments, reason = "one step of plan, split off to be read alone")]
fn tasks(
    store: &Store,
    now: Timestamp,
    subnets: &BTreeMap<NetworkId, Ipv4Net>,
    reserve: &mut QuarantinedAddresses,
    book: &mut Option<AddressBook>,
    problems: &BTreeMap<ServiceId, String>,
    touched: &mut BTreeSet<NetworkId>,
    out: &mut Vec<Action>,
) {
    let mut new: Vec<&Task> =
        store.tasks().filter(|t| t.status.state == TaskState::New && t.desired_state <= TaskState::Running).collect();
    new.sort_by(|a, b| (a.meta.created_at, &a.service_id, a.slot, &a.id).cmp(&(b.meta.created_at, &b.service_id, b.slot, &b.id)));
    for task in new {
        if out.len() >= BATCH {
            return;
        }
        let Some(service) = store.service(&task.service_id) else { continue };
        let mut next = task.clone();
        let outcome = match problems.get(&service.id) {
            Some(problem) => Err(problem.clone()),
            None => networks_of_task(store, service, task).iter().try_for_each(|network| {
                let subnet = *subnets.get(network).ok_or_else(|| no_subnet(store, network))?;
                let space = book.get_or_insert_with(|| AddressBook::of(store)).space(network, subnet);
                let address = space.take(network, reserve).ok_or_else(|| full(store, network, subnet))?;
                next.attachments.push(Attachment { network_id: network.clone(), address: with_prefix(address, subnet) });
                Ok(())
            }),
        };
        match outcome {
            Ok(()) => {
                touched.extend(next.attachments.iter().map(|a| a.network_id.clone()));
                next.status.state = TaskState::Pending;
                "pending task scheduling".clone_into(&mut next.status.message);
                next.status.err.clear();
            }
            Err(problem) => {
                if let Some(book) = book {
                    next.attachments.drain(..).for_each(|a| book.give_back(&a.network_id, a.address.addr()));
                }
                if task.status.err == problem {
                    continue;
                }
                next.status.err = problem;
            }
        }
        next.status.timestamp = now;
        out.push(Action::update(next));
    }
}

fn with_prefix(address: std::net::Ipv4Addr, subnet: Ipv4Net) -> Ipv4Net {
    Ipv4Net::new(address, subnet.prefix_len()).unwrap_or(subnet)
}

fn network_name(store: &Store, id: &NetworkId) -> String {
    store.network(id).map_or_else(|| id.to_string(), |n| n.spec.name.clone())
}

fn no_subnet(store: &Store, id: &NetworkId) -> String {
    match store.network(id) {
        None => format!("network {id} not found"),
        Some(n) if n.spec.subnets.is_empty() => {
            format!("network {} has no subnet: every subnet of the default address pools is in use", n.spec.name)
        }
        Some(n) => {
            format!("network {} has no subnet: {} overlaps another network, remove one of them", n.spec.name, n.spec.subnets[0])
        }
    }
}

fn full(store: &Store, id: &NetworkId, subnet: Ipv4Net) -> String {
    format!("could not find an available IP on network {} ({subnet} is full)", network_name(store, id))
}

//! Which addresses of a network are in use, and which one is assigned next.

use super::freed::Freed;
use super::networks::ingress;
use super::subnets::overlap;
use crate::manager::lowest_applied::LowestApplied;
use crate::model::mesh::gateway;
use crate::model::{NetworkId, Timestamp};
use crate::store::Store;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

type AddressesByNetwork = BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>;

/// The addresses in use on all networks.
pub struct AddressBook {
    used: AddressesByNetwork,
    /// Address of the task created last, by network.
    newest: BTreeMap<NetworkId, (Timestamp, Ipv4Addr)>,
    networks: BTreeMap<NetworkId, NetworkAddresses>,
}

impl AddressBook {
    /// Reads the addresses of tasks (in any state), virtual addresses and the nodes' own addresses.
    pub fn from_store(store: &Store) -> Self {
        let mut newest = BTreeMap::<NetworkId, (Timestamp, Ipv4Addr)>::new();
        for task in store.tasks() {
            for a in &task.attachments {
                let at = (task.meta.created_at, a.address.addr());
                newest.entry(a.network_id.clone()).and_modify(|n| *n = at.max(*n)).or_insert(at);
            }
        }
        Self { used: addresses_in_use(store), newest, networks: BTreeMap::new() }
    }

    /// The addresses of one network.
    pub fn network(&mut self, network: &NetworkId, subnet: Ipv4Net) -> &mut NetworkAddresses {
        self.networks.entry(network.clone()).or_insert_with(|| NetworkAddresses {
            subnet,
            used: self.used.remove(network).unwrap_or_default(),
            last_assigned: self.newest.get(network).map_or(gateway(subnet), |(_, address)| *address),
        })
    }

    /// Frees an address that was taken in this round and is not assigned after all.
    pub fn release(&mut self, network: &NetworkId, address: Ipv4Addr) {
        if let Some(addresses) = self.networks.get_mut(network) {
            addresses.used.remove(&address);
        }
    }
}

/// Every address that an object in the store has.
fn addresses_in_use(store: &Store) -> AddressesByNetwork {
    let tasks = store.tasks().flat_map(|t| &t.attachments).map(|a| (&a.network_id, a.address.addr()));
    let vips = store.services().flat_map(|s| &s.endpoint.vips).map(|v| (&v.network_id, v.addr.addr()));
    let ingress = ingress(store).map(|n| &n.id);
    let nodes = ingress.into_iter().flat_map(|id| store.nodes().map(move |n| (id, n.mesh.ingress_addr)));
    let mut all = AddressesByNetwork::new();
    for (network, address) in tasks.chain(vips).chain(nodes) {
        match all.get_mut(network) {
            Some(addresses) => drop(addresses.insert(address)),
            None => drop(all.insert(network.clone(), BTreeSet::from([address]))),
        }
    }
    all
}

/// The addresses of one network.
#[derive(Debug)]
pub struct NetworkAddresses {
    subnet: Ipv4Net,
    used: BTreeSet<Ipv4Addr>,
    last_assigned: Ipv4Addr,
}

impl NetworkAddresses {
    /// Takes the next free address after the one assigned last, from the start again after the last one; `None` if all
    /// are in use. An address that became free is thereby assigned again as late as possible; one that a node without the
    /// newest view may still send to, only if there is no other. Never the gateway (the first address) or the broadcast
    /// address (the last one).
    pub fn take(&mut self, network: &NetworkId, quarantine: &mut QuarantinedAddresses) -> Option<Ipv4Addr> {
        let low = self.subnet.network().to_bits().checked_add(2)?;
        let high = self.subnet.broadcast().to_bits().checked_sub(1)?;
        if low > high {
            return None;
        }
        let last = quarantine.last_assigned.get(network).copied().unwrap_or(self.last_assigned).to_bits();
        let start = if (low..high).contains(&last) { last + 1 } else { low };
        let mut free = (start..=high).chain(low..start).map(Ipv4Addr::from_bits).filter(|a| !self.used.contains(a));
        let mut last_resort = None;
        let clean = free.find(|address| match quarantine.freed(network, *address) {
            Freed::Known => true,
            Freed::Awaited => false,
            Freed::Suspect => {
                last_resort = last_resort.or(Some(*address));
                false
            }
        });
        let address = clean.or(last_resort)?;
        self.used.insert(address);
        quarantine.last_assigned.insert(network.clone(), address);
        Some(address)
    }

    /// True if all addresses are in use. Quarantined ones do not count.
    pub fn is_full(&self) -> bool {
        let low = u64::from(self.subnet.network().to_bits()) + 2;
        let high = u64::from(self.subnet.broadcast().to_bits());
        self.used.len() as u64 >= high.saturating_sub(low)
    }
}

/// Addresses and subnets that became free while a live node may still send to them, and the address of each network that
/// was assigned last. Lost with the leader; the order of [`NetworkAddresses::take`] makes up for that.
#[derive(Default, Debug)]
pub struct QuarantinedAddresses {
    last_assigned: BTreeMap<NetworkId, Ipv4Addr>,
    /// With the raft index from which on they are free.
    freed: BTreeMap<(NetworkId, Ipv4Addr), u64>,
    freed_subnets: BTreeMap<Ipv4Net, u64>,
    /// See [`LowestApplied`].
    awaited: u64,
    /// In use at the raft index `observed`.
    used: AddressesByNetwork,
    used_subnets: BTreeSet<Ipv4Net>,
    observed: u64,
}

impl QuarantinedAddresses {
    /// Adds what became free up to this state, and forgets what every node has applied.
    pub fn observe(&mut self, store: &Store, applied: LowestApplied) {
        self.freed.retain(|_, index| applied.all.index < *index);
        self.freed_subnets.retain(|_, index| applied.all.index < *index);
        self.awaited = applied.awaited.index;
        if self.observed == store.index() {
            return;
        }
        let used = addresses_in_use(store);
        let used_subnets: BTreeSet<Ipv4Net> = store.networks().filter_map(|n| n.subnet).collect();
        for (network, addresses) in &self.used {
            let still_used = used.get(network);
            let freed = addresses.iter().filter(|a| still_used.is_none_or(|used| !used.contains(*a)));
            self.freed.extend(freed.map(|a| ((network.clone(), *a), store.index())));
        }
        for freed in self.used_subnets.difference(&used_subnets) {
            self.freed_subnets.insert(*freed, store.index());
        }
        self.last_assigned.retain(|id, _| store.network(id).is_some());
        (self.used, self.used_subnets, self.observed) = (used, used_subnets, store.index());
    }

    /// What nodes know of an address that no object has.
    pub fn freed(&self, network: &NetworkId, address: Ipv4Addr) -> Freed {
        if self.freed.is_empty() {
            return Freed::Known;
        }
        self.freed.get(&(network.clone(), address)).map_or(Freed::Known, |index| self.state_of(*index))
    }

    /// What nodes know of a subnet that no network has: whether they still have routes for an address of it.
    pub fn freed_subnet(&self, subnet: &Ipv4Net) -> Freed {
        let overlapping = self.freed_subnets.iter().filter(|(freed, _)| overlap(freed, subnet));
        overlapping.map(|(_, index)| *index).max().map_or(Freed::Known, |index| self.state_of(index))
    }

    fn state_of(&self, freed_at: u64) -> Freed {
        if self.awaited < freed_at { Freed::Awaited } else { Freed::Suspect }
    }

    /// True if a node is waited for.
    pub fn is_waiting(&self) -> bool {
        self.freed.values().chain(self.freed_subnets.values()).any(|index| self.awaited < *index)
    }
}

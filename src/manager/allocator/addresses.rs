//! Which addresses of a network are in use, and which one is assigned next.

use super::freed::Freed;
use super::in_use::AddressesInUse;
use super::quarantine::QuarantinedAddresses;
use crate::model::mesh;
use crate::model::{NetworkId, NetworkSpec, NodeId, Task};
use crate::store::Store;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// With so many free addresses the one that became free last is not assigned again soon.
const MANY: u64 = 64;

/// The addresses in use on all networks, with those that were taken in this round.
pub struct AddressBook<'a> {
    store: &'a Store,
    used: AddressesInUse<'a>,
}

/// Why a certain address cannot be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Untakeable {
    /// It is no host address of the network.
    NoHost,
    /// Something has it.
    InUse,
    /// Nodes may still send to what had it.
    NotYet,
}

/// Whether a task, a service or a node can have the address.
pub(super) fn is_host(subnet: Ipv4Net, gateway: Ipv4Addr, address: Ipv4Addr) -> bool {
    let special = [subnet.network(), subnet.broadcast(), gateway];
    subnet.contains(&address) && !special.contains(&address)
}

impl<'a> AddressBook<'a> {
    /// Reads services and nodes, and no task.
    pub fn new(store: &'a Store) -> Self {
        Self { store, used: AddressesInUse::new(store) }
    }

    /// Takes the next free address after the one assigned last, from the start again after the last one; `None` if all
    /// are in use. An address that became free is thereby assigned again as late as possible; one that a node without the
    /// newest view may still send to, only if there is no other. `None` also while few are free and any of these may be one that the
    /// leader before has freed. Never the gateway (the first address, unless the user chose another one), the broadcast
    /// address (the last one), an auxiliary address, or one outside the range that the user chose.
    pub fn take(&mut self, network: &NetworkId, subnet: Ipv4Net, quarantine: &mut QuarantinedAddresses) -> Option<Ipv4Addr> {
        let (low, high) = self.bounds(network, subnet)?;
        if !quarantine.is_complete(network) && self.free(network, subnet) < MANY {
            return None;
        }
        let last =
            quarantine.last_assigned(network).unwrap_or_else(|| self.newest(network).unwrap_or(mesh::gateway(subnet))).to_bits();
        let gateway = self.gateway(network, subnet);
        let start = if (low..high).contains(&last) { last + 1 } else { low };
        let free = (start..=high).chain(low..start).map(Ipv4Addr::from_bits).filter(|a| !self.used.contains(network, *a));
        let spec = self.store.network(network).map(|network| &network.spec);
        let for_v6 = spec.map(|spec| spec.reserved_for_v6(subnet)).unwrap_or_default();
        let is_reserved = |address: &Ipv4Addr| {
            for_v6.contains(address) || spec.is_some_and(|spec| spec.auxiliary_addresses.values().any(|aux| aux == address))
        };
        let mut free = free.filter(|address| *address != gateway && !is_reserved(address));
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
        self.used.add(network, address);
        quarantine.assigned(network, address);
        Some(address)
    }

    /// Takes exactly this address, which a user asked for, for a plain container of a node.
    ///
    /// # Errors
    /// Why it cannot be taken.
    pub fn take_exact(
        &mut self,
        network: &NetworkId,
        subnet: Ipv4Net,
        address: Ipv4Addr,
        node: &NodeId,
        quarantine: &QuarantinedAddresses,
    ) -> Result<(), Untakeable> {
        if !is_host(subnet, self.gateway(network, subnet), address) {
            return Err(Untakeable::NoHost);
        }
        let spec = self.store.network(network).map(|network| &network.spec);
        let is_reserved = spec.is_some_and(|spec| {
            spec.auxiliary_addresses.values().any(|aux| *aux == address) || spec.reserved_for_v6(subnet).contains(&address)
        });
        if is_reserved || self.used.contains(network, address) {
            return Err(Untakeable::InUse);
        }
        if quarantine.freed_for(node, network, address) == Freed::Awaited {
            return Err(Untakeable::NotYet);
        }
        self.used.add(network, address);
        Ok(())
    }

    /// Frees an address that was taken from the book and is not assigned after all.
    pub fn release(&mut self, network: &NetworkId, address: Ipv4Addr) {
        self.used.remove(network, address);
    }

    /// True if all addresses of a network are in use. Quarantined ones do not count.
    pub fn is_full(&self, network: &NetworkId, subnet: Ipv4Net) -> bool {
        self.free(network, subnet) == 0
    }

    /// How many addresses of a network are not in use.
    fn free(&self, network: &NetworkId, subnet: Ipv4Net) -> u64 {
        let gateway = self.gateway(network, subnet);
        let reserved = self.store.network(network).map_or(0, |network| {
            let mut reserved = network.spec.reserved_for_v6(subnet);
            reserved.extend(network.spec.auxiliary_addresses.values());
            reserved.remove(&gateway);
            reserved.iter().filter(|address| subnet.contains(*address)).count() as u64
        });
        let gateway = gateway.to_bits();
        let room = self
            .bounds(network, subnet)
            .map_or(0, |(low, high)| u64::from(high - low) + u64::from(!(low..=high).contains(&gateway)));
        room.saturating_sub(self.used.count(network, subnet) + reserved)
    }

    fn gateway(&self, network: &NetworkId, subnet: Ipv4Net) -> Ipv4Addr {
        self.store.network(network).map_or_else(|| mesh::gateway(subnet), |network| network.spec.gateway_in(subnet))
    }

    /// The lowest and the highest address that may be assigned, as numbers; `None` if there is none.
    fn bounds(&self, network: &NetworkId, subnet: Ipv4Net) -> Option<(u32, u32)> {
        let found = self.store.network(network);
        let (low, high) = found.map_or_else(|| NetworkSpec::default().assignable(subnet), |n| n.spec.assignable(subnet))?;
        Some((low.to_bits(), high.to_bits()))
    }

    /// Address of the task created last.
    fn newest(&self, network: &NetworkId) -> Option<Ipv4Addr> {
        let at = |task: &Task| Some((task.meta.created_at, task.address_on(network)?));
        self.store.tasks_on_network(network).filter_map(at).max().map(|(_, address)| address)
    }
}

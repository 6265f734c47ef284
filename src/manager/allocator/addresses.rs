//! Which addresses of a network are in use, and which one is assigned next.

use super::freed::Freed;
use super::in_use::AddressesInUse;
use super::quarantine::QuarantinedAddresses;
use crate::model::mesh::gateway;
use crate::model::{NetworkId, Task};
use crate::store::Store;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// The addresses in use on all networks, with those that were taken in this round.
pub struct AddressBook<'a> {
    store: &'a Store,
    used: AddressesInUse<'a>,
}

impl<'a> AddressBook<'a> {
    /// Reads services and nodes, and no task.
    pub fn new(store: &'a Store) -> Self {
        Self { store, used: AddressesInUse::new(store) }
    }

    /// Takes the next free address after the one assigned last, from the start again after the last one; `None` if all
    /// are in use. An address that became free is thereby assigned again as late as possible; one that a node without the
    /// newest view may still send to, only if there is no other. Never the gateway (the first address) or the broadcast
    /// address (the last one).
    pub fn take(&mut self, network: &NetworkId, subnet: Ipv4Net, quarantine: &mut QuarantinedAddresses) -> Option<Ipv4Addr> {
        let low = subnet.network().to_bits().checked_add(2)?;
        let high = subnet.broadcast().to_bits().checked_sub(1)?;
        if low > high {
            return None;
        }
        let last = quarantine.last_assigned(network).unwrap_or_else(|| self.newest(network).unwrap_or(gateway(subnet))).to_bits();
        let start = if (low..high).contains(&last) { last + 1 } else { low };
        let mut free = (start..=high).chain(low..start).map(Ipv4Addr::from_bits).filter(|a| !self.used.contains(network, *a));
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

    /// Frees an address that was taken from the book and is not assigned after all.
    pub fn release(&mut self, network: &NetworkId, address: Ipv4Addr) {
        self.used.remove(network, address);
    }

    /// True if all addresses of a network are in use. Quarantined ones do not count.
    pub fn is_full(&self, network: &NetworkId, subnet: Ipv4Net) -> bool {
        let low = u64::from(subnet.network().to_bits()) + 2;
        let high = u64::from(subnet.broadcast().to_bits());
        self.used.count(network) >= high.saturating_sub(low)
    }

    /// Address of the task created last.
    fn newest(&self, network: &NetworkId) -> Option<Ipv4Addr> {
        let at = |task: &Task| Some((task.meta.created_at, task.address_on(network)?));
        self.store.tasks_on_network(network).filter_map(at).max().map(|(_, address)| address)
    }
}

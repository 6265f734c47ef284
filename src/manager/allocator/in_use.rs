//! Which addresses objects have.

use super::networks::ingress;
use crate::model::NetworkId;
use crate::store::Store;
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The addresses in use on all networks: those of tasks (in any state), which the store finds by its index, virtual addresses,
/// and the nodes' own addresses on `ingress`.
pub(super) struct AddressesInUse<'a> {
    store: &'a Store,
    /// All but those of tasks.
    others: BTreeSet<(NetworkId, Ipv4Addr)>,
}

impl<'a> AddressesInUse<'a> {
    /// Reads services and nodes, and no task.
    pub(super) fn new(store: &'a Store) -> Self {
        let vips = store.services().flat_map(|s| &s.endpoint.vips).map(|v| (v.network_id.clone(), v.addr.addr()));
        let ingress = ingress(store).map(|n| &n.id);
        let nodes = ingress.into_iter().flat_map(|id| store.nodes().map(move |n| (id.clone(), n.mesh.ingress_addr)));
        Self { store, others: vips.chain(nodes).collect() }
    }

    /// True if something has the address.
    pub(super) fn contains(&self, network: &NetworkId, address: Ipv4Addr) -> bool {
        let mut tasks = self.store.task_addresses(network, address);
        tasks.next() == Some(address) || self.others.contains(&(network.clone(), address))
    }

    /// Adds one that is to be assigned.
    pub(super) fn add(&mut self, network: &NetworkId, address: Ipv4Addr) {
        self.others.insert((network.clone(), address));
    }

    /// Takes back an [`Self::add`].
    pub(super) fn remove(&mut self, network: &NetworkId, address: Ipv4Addr) {
        self.others.remove(&(network.clone(), address));
    }

    /// Number of addresses in use in a subnet of a network.
    pub(super) fn count(&self, network: &NetworkId, subnet: Ipv4Net) -> u64 {
        let others = self.others.range((network.clone(), subnet.network())..).take_while(|(id, _)| id == network);
        let tasks = self.store.task_addresses(network, subnet.network());
        let all = others.map(|(_, address)| *address).take_while(|address| subnet.contains(address));
        all.chain(tasks.take_while(|address| subnet.contains(address))).collect::<BTreeSet<Ipv4Addr>>().len() as u64
    }
}

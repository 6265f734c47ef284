//! Addresses and subnets that became free while a live node may still send to them.

use super::freed::Freed;
use super::in_use::AddressesInUse;
use super::networks::ingress;
use super::subnets::overlap;
use crate::manager::lowest_applied::LowestApplied;
use crate::model::dual_stack::overlap6;
use crate::model::{Network, NetworkId, Node, NodeId, Service, Task};
use crate::store::{Store, changed};
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Addresses and subnets that became free while a live node may still send to them, and the address of each network that
/// was assigned last. Lost with the leader: the order of [`super::AddressBook::take`] makes up for that, and where few addresses are
/// free, the next leader waits until the nodes have a view of its time.
#[derive(Default, Debug)]
pub struct QuarantinedAddresses {
    last_assigned: BTreeMap<NetworkId, Ipv4Addr>,
    /// With the raft index from which on they are free.
    freed: BTreeMap<(NetworkId, Ipv4Addr), u64>,
    /// Nodes of the plain containers that had them: what is still sent there arrives where the node's next container is.
    freed_by: BTreeMap<(NetworkId, Ipv4Addr), NodeId>,
    /// Nodes that joined with an address on `ingress` that is waited for: the manager that admits a node draws the address, and
    /// need not be the leader, which alone knows these. The allocator gives them another one.
    joined_early: BTreeSet<NodeId>,
    freed_subnets: BTreeMap<Ipv4Net, u64>,
    freed_subnets6: BTreeMap<Ipv6Net, u64>,
    /// See [`LowestApplied`].
    awaited: u64,
    /// Index of the state that was seen first, and the networks that had subnets in it.
    first: Option<(u64, BTreeSet<NetworkId>)>,
    /// The state that was seen last.
    observed: Store,
}

impl QuarantinedAddresses {
    /// Adds what became free up to this state, and forgets what every node has applied.
    pub fn observe(&mut self, store: &Store, applied: LowestApplied) {
        self.freed.retain(|_, index| applied.all.index < *index);
        self.freed_by.retain(|freed, _| self.freed.contains_key(freed));
        self.freed_subnets.retain(|_, index| applied.all.index < *index);
        self.freed_subnets6.retain(|_, index| applied.all.index < *index);
        self.awaited = applied.awaited.index;
        self.first.get_or_insert_with(|| {
            let networks = store.networks().filter(|network| network.subnet.is_some());
            (store.index(), networks.map(|network| network.id.clone()).collect())
        });
        if self.observed.index() == store.index() {
            return;
        }
        let released = released(&self.observed, store);
        if !released.is_empty() {
            let used = AddressesInUse::new(store);
            let freed = released.iter().filter(|(network, address)| !used.contains(network, *address));
            self.freed.extend(freed.map(|freed| (freed.clone(), store.index())));
            if let Some(ingress) = ingress(store) {
                // Freed and given to a joining node between two rounds.
                let drawn = joined(&self.observed, store).map(|node| (ingress.id.clone(), node.mesh.ingress_addr));
                self.freed.extend(drawn.filter(|drawn| released.contains(drawn)).map(|drawn| (drawn, store.index())));
            }
            for task in changed::<Task>(&self.observed, store).filter_map(|(was, _)| was) {
                let plain = task.node_id.clone().filter(|_| task.attached.is_some());
                for freed in task.attachments.iter().map(|a| (a.network_id.clone(), a.address.addr())) {
                    match &plain {
                        Some(node) if self.freed.contains_key(&freed) => drop(self.freed_by.insert(freed, node.clone())),
                        _ => drop(self.freed_by.remove(&freed)),
                    }
                }
            }
        }
        for (was, _) in changed::<Network>(&self.observed, store) {
            for subnet in was.map(Network::subnets).unwrap_or_default() {
                if !store.networks().any(|network| network.subnets().contains(&subnet)) {
                    self.freed_subnets.insert(subnet, store.index());
                }
            }
            if let Some(subnet) = was.and_then(|network| network.subnet6)
                && !store.networks().any(|network| network.subnet6 == Some(subnet))
            {
                self.freed_subnets6.insert(subnet, store.index());
            }
        }
        self.last_assigned.retain(|id, _| store.network(id).is_some());
        let early: BTreeSet<NodeId> = joined(&self.observed, store)
            .filter(|node| self.awaits_address_of(store, node))
            .map(|node| node.id.clone())
            .collect();
        // One that has got another address leaves the set; so does one that need not any more.
        let kept = std::mem::take(&mut self.joined_early);
        let kept = kept.into_iter().filter(|id| store.node(id).is_some_and(|node| self.awaits_address_of(store, node)));
        self.joined_early = kept.chain(early).collect();
        self.observed = store.clone();
    }

    /// True if the node joined with an address that a node which is waited for may still send to, and still has it.
    pub(super) fn joined_early(&self, store: &Store, node: &Node) -> bool {
        self.joined_early.contains(&node.id) && self.awaits_address_of(store, node)
    }

    fn awaits_address_of(&self, store: &Store, node: &Node) -> bool {
        ingress(store).is_some_and(|network| self.freed(&network.id, node.mesh.ingress_addr) == Freed::Awaited)
    }

    /// True if it contains every address of a network that a node which is waited for may still send to: also those that became free
    /// before this leader led.
    pub fn is_complete(&self, network: &NetworkId) -> bool {
        self.first.as_ref().is_none_or(|(since, networks)| self.awaited >= *since || !networks.contains(network))
    }

    /// What nodes know of an address that no object has.
    pub fn freed(&self, network: &NetworkId, address: Ipv4Addr) -> Freed {
        if self.freed.is_empty() {
            return Freed::Known;
        }
        self.freed.get(&(network.clone(), address)).map_or(Freed::Known, |index| self.state_of(*index))
    }

    /// As [`Self::freed`], for a plain container of this node: one that takes the place of another one there need not wait.
    pub fn freed_for(&self, node: &NodeId, network: &NetworkId, address: Ipv4Addr) -> Freed {
        let is_own = self.freed_by.get(&(network.clone(), address)) == Some(node);
        if is_own { Freed::Known } else { self.freed(network, address) }
    }

    /// What nodes know of a subnet that no network has: whether they still have routes for an address of it.
    pub fn freed_subnet(&self, subnet: &Ipv4Net) -> Freed {
        let overlapping = self.freed_subnets.iter().filter(|(freed, _)| overlap(freed, subnet));
        overlapping.map(|(_, index)| *index).max().map_or(Freed::Known, |index| self.state_of(index))
    }

    /// As [`Self::freed_subnet`], of the other family.
    pub fn freed_subnet6(&self, subnet: &Ipv6Net) -> Freed {
        let overlapping = self.freed_subnets6.iter().filter(|(freed, _)| overlap6(freed, subnet));
        overlapping.map(|(_, index)| *index).max().map_or(Freed::Known, |index| self.state_of(index))
    }

    fn state_of(&self, freed_at: u64) -> Freed {
        if self.awaited < freed_at { Freed::Awaited } else { Freed::Suspect }
    }

    /// True if a node is waited for.
    pub fn is_waiting(&self) -> bool {
        self.freed
            .values()
            .chain(self.freed_subnets.values())
            .chain(self.freed_subnets6.values())
            .chain(self.first.iter().map(|(since, _)| since))
            .any(|index| self.awaited < *index)
    }

    /// The address of a network that this leader has assigned last.
    pub(super) fn last_assigned(&self, network: &NetworkId) -> Option<Ipv4Addr> {
        self.last_assigned.get(network).copied()
    }

    /// An address was assigned.
    pub(super) fn assigned(&mut self, network: &NetworkId, address: Ipv4Addr) {
        self.last_assigned.insert(network.clone(), address);
    }
}

/// Nodes that are new.
fn joined<'a>(before: &'a Store, after: &'a Store) -> impl Iterator<Item = &'a Node> {
    changed::<Node>(before, after).filter_map(|(was, is)| is.filter(|_| was.is_none()))
}

/// Addresses that objects had before and have no longer; another object may have them now.
fn released(before: &Store, after: &Store) -> BTreeSet<(NetworkId, Ipv4Addr)> {
    let mut released = BTreeSet::new();
    for (was, is) in changed::<Task>(before, after) {
        let kept = |network: &NetworkId| is.and_then(|task| task.address_on(network));
        let had = was.into_iter().flat_map(|task| &task.attachments).map(|a| (&a.network_id, a.address.addr()));
        released.extend(had.filter(|(network, a)| kept(network) != Some(*a)).map(|(network, a)| (network.clone(), a)));
    }
    for (was, is) in changed::<Service>(before, after) {
        let had = was.into_iter().flat_map(|service| &service.endpoint.vips);
        let gone = had.filter(|vip| !is.is_some_and(|service| service.endpoint.vips.contains(vip)));
        released.extend(gone.map(|vip| (vip.network_id.clone(), vip.addr.addr())));
    }
    if let Some(ingress) = ingress(before) {
        let address = |node: Option<&Node>| node.map(|node| node.mesh.ingress_addr);
        let gone = changed::<Node>(before, after).filter(|(was, is)| address(*was) != address(*is));
        released.extend(gone.filter_map(|(was, _)| Some((ingress.id.clone(), address(was)?))));
    }
    released
}

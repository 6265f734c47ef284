//! Which addresses of a network are in use, and which one is next. Knows nothing of who asks.

use crate::model::mesh::gateway;
use crate::model::{NetworkId, Revision, Timestamp};
use crate::store::Store;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Every address in use, per network.
pub struct AddressBook {
    used: BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>,
    newest: BTreeMap<NetworkId, (Timestamp, Ipv4Addr)>,
    spaces: BTreeMap<NetworkId, Space>,
}

impl AddressBook {
    /// Reads tasks (whatever their state), virtual addresses and the nodes' own addresses.
    pub fn of(store: &Store) -> Self {
        let mut newest = BTreeMap::<NetworkId, (Timestamp, Ipv4Addr)>::new();
        for task in store.tasks() {
            for a in &task.attachments {
                let at = (task.meta.created_at, a.address.addr());
                newest.entry(a.network_id.clone()).and_modify(|n| *n = at.max(*n)).or_insert(at);
            }
        }
        Self { used: held(store), newest, spaces: BTreeMap::new() }
    }

    /// The addresses of one network.
    pub fn space(&mut self, network: &NetworkId, subnet: Ipv4Net) -> &mut Space {
        self.spaces.entry(network.clone()).or_insert_with(|| Space {
            subnet,
            used: self.used.remove(network).unwrap_or_default(),
            cursor: self.newest.get(network).map_or(gateway(subnet), |(_, address)| *address),
        })
    }

    /// An address was not needed after all.
    pub fn give_back(&mut self, network: &NetworkId, address: Ipv4Addr) {
        if let Some(space) = self.spaces.get_mut(network) {
            space.used.remove(&address);
        }
    }
}

type Held = BTreeMap<NetworkId, BTreeSet<Ipv4Addr>>;

/// Every address that some object holds, by network.
fn held(store: &Store) -> Held {
    let tasks = store.tasks().flat_map(|t| &t.attachments).map(|a| (&a.network_id, a.address.addr()));
    let vips = store.services().flat_map(|s| &s.endpoint.vips).map(|v| (&v.network_id, v.addr.addr()));
    let ingress = super::ingress(store).map(|n| &n.id);
    let nodes = ingress.into_iter().flat_map(|id| store.nodes().map(move |n| (id, n.mesh.ingress_addr)));
    let mut all = Held::new();
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
pub struct Space {
    subnet: Ipv4Net,
    used: BTreeSet<Ipv4Addr>,
    cursor: Ipv4Addr,
}

impl Space {
    /// The next free address after the one given out last, from the start again at the end; `None` if all are in use.
    /// So an address that became free is given out again as late as possible. Never the gateway (first) nor the
    /// broadcast address (last).
    pub fn take(&mut self, network: &NetworkId, reserve: &mut QuarantinedAddresses) -> Option<Ipv4Addr> {
        let low = self.subnet.network().to_bits().checked_add(2)?;
        let high = self.subnet.broadcast().to_bits().checked_sub(1)?;
        if low > high {
            return None;
        }
        let cursor = reserve.cursor.get(network).copied().unwrap_or(self.cursor).to_bits();
        let start = if (low..high).contains(&cursor) { cursor + 1 } else { low };
        let address = (start..=high)
            .chain(low..start)
            .map(Ipv4Addr::from_bits)
            .find(|a| !self.used.contains(a) && !reserve.holds(network, *a))?;
        self.used.insert(address);
        reserve.cursor.insert(network.clone(), address);
        Some(address)
    }

    /// True if nothing is left.
    pub fn is_full(&self) -> bool {
        let low = u64::from(self.subnet.network().to_bits()) + 2;
        let high = u64::from(self.subnet.broadcast().to_bits());
        self.used.len() as u64 >= high.saturating_sub(low)
    }
}

/// What the leader remembers of addresses beyond the store: the one given out last, and those that became free but that
/// some live node may still use. Lost with the leader; the order of [`Space::take`] makes up for that.
#[derive(Default, Debug)]
pub struct QuarantinedAddresses {
    cursor: BTreeMap<NetworkId, Ipv4Addr>,
    freed: BTreeMap<(NetworkId, Ipv4Addr), u64>,
    freed_subnets: BTreeMap<Ipv4Net, u64>,
    before: Held,
    subnets_before: BTreeSet<Ipv4Net>,
    /// Raft index of the state that this is true of.
    seen: u64,
}

impl QuarantinedAddresses {
    /// Takes note of what became free up to this state, and lets go of what every live node has applied.
    pub fn observe(&mut self, store: &Store, applied: Revision) {
        self.freed.retain(|_, index| applied.index < *index);
        self.freed_subnets.retain(|_, index| applied.index < *index);
        if self.seen == store.index() {
            return;
        }
        let held = held(store);
        let subnets: BTreeSet<Ipv4Net> = store.networks().filter_map(|n| n.subnet).collect();
        for (network, addresses) in &self.before {
            let still = held.get(network);
            let gone = addresses.iter().filter(|a| still.is_none_or(|still| !still.contains(*a)));
            self.freed.extend(gone.map(|a| ((network.clone(), *a), store.index())));
        }
        for gone in self.subnets_before.difference(&subnets) {
            self.freed_subnets.insert(*gone, store.index());
        }
        self.cursor.retain(|id, _| store.network(id).is_some());
        (self.before, self.subnets_before, self.seen) = (held, subnets, store.index());
    }

    /// True while some live node may still use the address.
    pub fn holds(&self, network: &NetworkId, address: Ipv4Addr) -> bool {
        !self.freed.is_empty() && self.freed.contains_key(&(network.clone(), address))
    }

    /// True while some live node may still know the subnet.
    pub fn holds_subnet(&self, subnet: &Ipv4Net) -> bool {
        self.freed_subnets.keys().any(|s| super::overlap(s, subnet))
    }

    /// True if something waits to be given out again.
    pub fn is_waiting(&self) -> bool {
        !self.freed.is_empty() || !self.freed_subnets.is_empty()
    }
}

//! The contents of the maps as plain values.

use skep_ebpf::{Address, Backend, Config, Frontend, NetnsMembership, Port, Source, Subnet6, Target, V4, Vip};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// First slot and number of slots.
pub type Range = (u32, u32);

/// Backends by slot. Shared, so that an unchanged range is recognized by its pointer.
pub type Slots = Arc<[V4]>;

/// Client prefixes: length of the key, and the key.
pub type Sources = BTreeSet<(u32, Source)>;

/// IPv6 subnets of dual-stack networks, by length and first address of the prefix.
pub type Subnets6 = BTreeMap<(u32, Address), Subnet6>;

/// Network namespaces whose socket calls are translated, by network, with the container's address on it. A namespace also has
/// an entry without network, [`NetnsMembership::any`].
pub type Members = BTreeMap<NetnsMembership, V4>;

/// The contents of the maps.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tables {
    pub config: Config,
    pub vips: BTreeMap<V4, Vip>,
    pub members: Members,
    pub subnets6: Subnets6,
    pub ports: BTreeMap<Port, Frontend>,
    /// Containers of all nodes.
    pub backends: BTreeMap<V4, Backend>,
    /// Ports in containers that services publish.
    pub targets: BTreeSet<Target>,
    /// The host's addresses on its uplinks.
    pub locals: BTreeSet<Address>,
    /// Indexes of the host's uplinks.
    pub uplinks: BTreeSet<u32>,
    /// Which clients may use which port, and which sources are never clients.
    pub sources: Sources,
    /// Backends by slot, of every range that a virtual address or port names.
    pub slots: BTreeMap<Range, Slots>,
    /// Number of slots in the map.
    pub room: u32,
    /// Numbers of the blocks of slots that the kernel has allocated.
    pub blocks: BTreeSet<u32>,
}

impl Tables {
    /// Ranges that virtual addresses and ports name.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.vips.values().map(|v| (v.base, v.size)).chain(self.ports.values().map(|p| (p.base, p.size)))
    }
}

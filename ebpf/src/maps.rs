//! The maps, all pinned by name: they outlive daemon and programs.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use skep_ebpf::{Address, Backend, COUNTERS, Config, Counter, Flow, Frontend, Member, Peer, Port, Reply, Tuple, Vip};

#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
pub static VIPS: HashMap<Address, Vip> = HashMap::pinned(16_384, 1);
#[map]
pub static MEMBERS: HashMap<Member, u32> = HashMap::pinned(8_192, 1);
#[map]
pub static PEERS: LruHashMap<Peer, Address> = LruHashMap::pinned(65_536, 0);
#[map]
pub static SLOTS: Array<Address> = Array::pinned(skep_ebpf::SLOTS, 0);
#[map]
pub static PORTS: HashMap<Port, Frontend> = HashMap::pinned(16_384, 1);
#[map]
pub static BACKENDS: HashMap<Address, Backend> = HashMap::pinned(65_536, 1);
/// Addresses of the host itself.
#[map]
pub static LOCALS: HashMap<Address, u32> = HashMap::pinned(1_024, 1);
#[map]
pub static FLOWS: LruHashMap<Tuple, Flow> = LruHashMap::pinned(65_536, 0);
#[map]
pub static REPLIES: LruHashMap<Tuple, Reply> = LruHashMap::pinned(65_536, 0);
#[map]
pub static COUNTS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTERS.len() as u32, 0);

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(number) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own, and the program is not interrupted by another of these.
        unsafe { *number += 1 };
    }
}

/// What this node is.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// A copy of a map's value.
#[inline(always)]
pub fn look<K, V: Copy>(map: &HashMap<K, V>, key: &K) -> Option<V> {
    // SAFETY: values are replaced whole, and a torn one is an address that nobody has.
    unsafe { map.get(key) }.copied()
}

/// A copy of a map's value.
#[inline(always)]
pub fn look_lru<K, V: Copy>(map: &LruHashMap<K, V>, key: &K) -> Option<V> {
    // SAFETY: as above.
    unsafe { map.get(key) }.copied()
}

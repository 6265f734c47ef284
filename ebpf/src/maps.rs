//! The maps, all pinned by name: they outlive daemon and programs.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap};
use skep_ebpf::{
    Address, Backend, COUNTERS, Config, Counter, Flow, Fragment, Frontend, Member, Peer, Piece, Port, Reply, Source, Tuple, V4,
    Vip,
};

#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
pub static VIPS: HashMap<V4, Vip> = HashMap::pinned(16_384, 1);
#[map]
pub static MEMBERS: HashMap<Member, u32> = HashMap::pinned(8_192, 1);
#[map]
pub static PEERS: LruHashMap<Peer, V4> = LruHashMap::pinned(65_536, 0);
/// The same for connected UDP sockets, which may be silent for long: connections of others do not push them out.
#[map]
pub static DATAGRAM_PEERS: LruHashMap<Peer, V4> = LruHashMap::pinned(16_384, 0);
/// Flag of a map (`BPF_F_MMAPABLE`): its memory can be mapped.
const MAPPED: u32 = 1 << 10;
#[map]
pub static SLOTS: Array<V4> = Array::pinned(skep_ebpf::SLOTS, MAPPED);
#[map]
pub static PORTS: HashMap<Port, Frontend> = HashMap::pinned(32_768, 1);
#[map]
pub static SOURCES: LpmTrie<Source, u32> = LpmTrie::pinned(65_536, 0);
#[map]
pub static BACKENDS: HashMap<V4, Backend> = HashMap::pinned(65_536, 1);
/// Addresses of the host itself.
#[map]
pub static LOCALS: HashMap<Address, u32> = HashMap::pinned(1_024, 1);
#[map]
pub static FLOWS: LruHashMap<Tuple, Flow> = LruHashMap::pinned(131_072, 0);
#[map]
pub static REPLIES: LruHashMap<Tuple, Reply> = LruHashMap::pinned(131_072, 0);
#[map]
pub static FRAGMENTS: LruHashMap<Fragment, Piece> = LruHashMap::pinned(8_192, 0);
/// 1 once a packet to a virtual address came without a socket call: only then its answers are looked for.
#[map]
pub static GATE: Array<u32> = Array::pinned(1, 0);
#[map]
pub static COUNTS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTERS.len() as u32, 0);
/// New connections of each published port and virtual address. Entries are made with the frontends.
#[map]
pub static PORT_COUNTS: PerCpuHashMap<Port, u64> = PerCpuHashMap::pinned(32_768, 1);
#[map]
pub static VIP_COUNTS: PerCpuHashMap<V4, u64> = PerCpuHashMap::pinned(16_384, 1);

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    add(COUNTS.get_ptr_mut(counter as u32));
}

/// Adds one, if there is such a number.
#[inline(always)]
pub fn add(number: Option<*mut u64>) {
    if let Some(number) = number {
        // SAFETY: the number is this CPU's own, and the program is not interrupted by another of these.
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

/// A value of a map that forgets. Not copied: values are replaced whole.
#[inline(always)]
pub fn recall<K, V>(map: &'static LruHashMap<K, V>, key: &K) -> Option<&'static V> {
    // SAFETY: as above.
    unsafe { map.get(key) }
}

/// Whether an address is in a scope.
#[inline(always)]
pub fn is_source(scope: u32, address: &Address) -> bool {
    SOURCES.get(Key::new(160, Source { scope, address: *address })).is_some()
}

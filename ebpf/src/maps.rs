//! The maps. All are pinned by name, so that they outlive daemon and programs.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap};
use skep_ebpf::{
    Address, Backend, Config, Counter, Flow, FragmentKey, FragmentState, Frontend, NAMESPACE_MARKS, NetnsMembership, Port, Reply,
    SLOTS_PER_BLOCK, SOURCE_BUCKETS, SlotBlock, SocketPeer, Source, Subnet6, TAKEOVER_SECONDS, Target, Tuple, V4, Vip,
    namespace_mark,
};

#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
pub static VIPS: HashMap<V4, Vip> = HashMap::pinned(16_384, 1);
/// IPv6 subnets of the networks that have one of each family.
#[map]
pub static SUBNETS6: LpmTrie<Address, Subnet6> = LpmTrie::pinned(1_024, 0);
/// The container's address on the network.
#[map]
pub static MEMBERS: HashMap<NetnsMembership, V4> = HashMap::pinned(8_192, 1);
/// Not 0 for the marks of these namespaces: an array costs less to look at, and most calls are of others.
#[map]
pub static NAMESPACES: Array<u32> = Array::pinned(NAMESPACE_MARKS, 0);
/// The virtual address that a socket asked for.
#[map]
pub static PEERS: LruHashMap<SocketPeer, V4> = LruHashMap::pinned(65_536, 0);
/// The same for connected UDP sockets, which may be silent for long: entries of other sockets do not evict theirs.
#[map]
pub static DATAGRAM_PEERS: LruHashMap<SocketPeer, V4> = LruHashMap::pinned(16_384, 0);
/// The backend that was selected for a socket's datagrams to a virtual address.
#[map]
pub static CHOICES: LruHashMap<SocketPeer, V4> = LruHashMap::pinned(16_384, 0);
/// Backends of all tables, in blocks that the kernel allocates as they are needed; virtual addresses and published ports name
/// ranges of slots.
#[map]
pub static SLOTS: HashMap<u32, SlotBlock> = HashMap::pinned(skep_ebpf::SLOTS / SLOTS_PER_BLOCK, 1);
#[map]
pub static PORTS: HashMap<Port, Frontend> = HashMap::pinned(32_768, 1);
#[map]
pub static SOURCES: LpmTrie<Source, u32> = LpmTrie::pinned(65_536, 0);
#[map]
pub static BACKENDS: HashMap<V4, Backend> = HashMap::pinned(65_536, 1);
/// Ports in containers that packets of clients may come to from other nodes.
#[map]
pub static TARGETS: HashMap<Target, u32> = HashMap::pinned(32_768, 1);
/// Addresses of the host.
#[map]
pub static LOCALS: HashMap<Address, u32> = HashMap::pinned(1_024, 1);
/// Indexes of the uplinks: a forwarded packet that arrived by one is of a machine outside, not of a container.
#[map]
pub static UPLINKS: HashMap<u32, u32> = HashMap::pinned(1_024, 1);
/// Established TCP connections by the client's tuple, and by the container's. They forget nothing, and use memory only for
/// what is in them.
#[map]
pub static TCP_FLOWS: HashMap<Tuple, Flow> = HashMap::pinned(1_048_576, 1);
#[map]
pub static TCP_REPLIES: HashMap<Tuple, Reply> = HashMap::pinned(1_048_576, 1);
/// How many of them each client has, by [`skep_ebpf::source_bucket`]. The daemon counts again.
#[map]
pub static SOURCE_COUNTS: Array<u32> = Array::pinned(SOURCE_BUCKETS, 0);
/// TCP connections that are not established, are over, or found no room among the established ones; and those of the host.
#[map]
pub static SYN_FLOWS: LruHashMap<Tuple, Flow> = LruHashMap::pinned(65_536, 0);
#[map]
pub static SYN_REPLIES: LruHashMap<Tuple, Reply> = LruHashMap::pinned(65_536, 0);
#[map]
pub static UDP_FLOWS: LruHashMap<Tuple, Flow> = LruHashMap::pinned(65_536, 0);
#[map]
pub static UDP_REPLIES: LruHashMap<Tuple, Reply> = LruHashMap::pinned(65_536, 0);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentState> = LruHashMap::pinned(8_192, 0);
/// Second of the monotonic clock at which the last packet to a virtual address arrived that no socket call had translated; 0 if
/// there are no flows of such packets: then replies to them are not looked up. Pinned under the name that earlier builds chose.
#[map(name = "GATE")]
pub static VIP_PACKETS_SEEN: Array<u32> = Array::pinned(1, 0);
/// Second of the monotonic clock until which flows of maps of another layout or room of the maps are being carried over, at most
/// [`TAKEOVER_SECONDS`] ahead; 0 if none are.
#[map]
pub static TAKEOVER: Array<u32> = Array::pinned(1, 0);
/// The tables of flows with less room that those above replace: the loader puts them here. Empty ones otherwise.
#[map]
pub static EARLIER_TCP_FLOWS: HashMap<Tuple, Flow> = HashMap::with_max_entries(1, 1);
#[map]
pub static EARLIER_TCP_REPLIES: HashMap<Tuple, Reply> = HashMap::with_max_entries(1, 1);
#[map]
pub static EARLIER_SYN_FLOWS: LruHashMap<Tuple, Flow> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static EARLIER_SYN_REPLIES: LruHashMap<Tuple, Reply> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static EARLIER_UDP_FLOWS: LruHashMap<Tuple, Flow> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static EARLIER_UDP_REPLIES: LruHashMap<Tuple, Reply> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static COUNTS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::ALL.len() as u32, 0);
/// New connections of each published port and virtual address. The loader makes an entry for each frontend.
#[map]
pub static PORT_COUNTS: PerCpuHashMap<Port, u64> = PerCpuHashMap::pinned(32_768, 1);
#[map]
pub static VIP_COUNTS: PerCpuHashMap<V4, u64> = PerCpuHashMap::pinned(16_384, 1);

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    add(COUNTS.get_ptr_mut(counter as u32));
}

/// Adds one to a per-CPU value, if the entry exists.
#[inline(always)]
pub fn add(value: Option<*mut u64>) {
    if let Some(value) = value {
        // SAFETY: the value is this CPU's, and none of these programs interrupts another one.
        unsafe { *value += 1 };
    }
}

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether there may be flows in the earlier tables that are not in those of today.
#[inline(always)]
pub fn has_earlier_flows() -> bool {
    TAKEOVER.get(0).is_some_and(|until| *until != 0)
}

/// Whether flow entries may be missing because they are being carried over from maps of an earlier layout.
#[inline(always)]
pub fn is_taking_over(now: u32) -> bool {
    TAKEOVER.get(0).is_some_and(|until| until.wrapping_sub(now).wrapping_sub(1) < TAKEOVER_SECONDS)
}

/// Notes that a packet to a virtual address was translated.
#[inline(always)]
pub fn note_vip_packet(now: u32) {
    if let Some(seen) = VIP_PACKETS_SEEN.get_ptr_mut(0) {
        // SAFETY: a word of a map. Written only when it changes: it is shared by all CPUs.
        unsafe {
            if *seen != now {
                *seen = now;
            }
        }
    }
}

/// Whether a network namespace may be one of [`MEMBERS`].
#[inline(always)]
pub fn is_marked(cookie: u64) -> bool {
    NAMESPACES.get(namespace_mark(cookie)).is_some_and(|mark| *mark != 0)
}

/// Whether there may be replies to packets to virtual addresses that no socket call had translated.
#[inline(always)]
pub fn vip_packets_seen() -> bool {
    VIP_PACKETS_SEEN.get(0).is_some_and(|seen| *seen != 0)
}

/// A copy of a map's value.
#[inline(always)]
pub fn lookup<K, V: Copy>(map: &HashMap<K, V>, key: &K) -> Option<V> {
    // SAFETY: values are replaced whole, and a torn one is an address that no container has.
    unsafe { map.get(key) }.copied()
}

/// A value of an LRU map. Not copied: values are replaced whole.
#[inline(always)]
pub fn lookup_lru<K, V>(map: &'static LruHashMap<K, V>, key: &K) -> Option<&'static V> {
    // SAFETY: as above.
    unsafe { map.get(key) }
}

/// The backend of a slot.
#[inline(always)]
pub fn backend_at(slot: u32) -> Option<V4> {
    // SAFETY: blocks are replaced whole.
    let block = unsafe { SLOTS.get(slot / SLOTS_PER_BLOCK) }?;
    // The compiler knows that the index is within the block and would leave the check out; the verifier does not know.
    let index = core::hint::black_box(slot % SLOTS_PER_BLOCK);
    block.get(index as usize).copied()
}

/// The dual-stack network that an IPv6 address is on.
#[inline(always)]
pub fn subnet_of(address: &Address) -> Option<Subnet6> {
    SUBNETS6.get(Key::new(128, *address)).copied()
}

/// Whether a prefix of the scope contains the address.
#[inline(always)]
pub fn is_source(scope: u32, address: &Address) -> bool {
    SOURCES.get(Key::new(160, Source { scope, address: *address })).is_some()
}

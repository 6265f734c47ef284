//! What the kernel programs and the loader share: keys and values of the maps, counters, and packet arithmetic. `no_std`,
//! no dependencies, tested on the host. Addresses and ports are words whose bytes in memory are those of the packet, so
//! that keys are what packets hold and are read a word at a time.
#![cfg_attr(not(test), no_std)]

#[cfg(any(test, feature = "user"))]
pub mod convert;
mod counter;
pub mod packet;
mod state;
mod test_run;

pub use counter::Counter;
pub use event::{HOOKS, RefusalEvent, RefusalKey, Watch, WatchedSecond, hook_number};
pub use state::{ACKED, ANSWERED, CLIENT_FIN, CONTAINER_FIN, NO_ROOM, SYN_ACKED, SYN_KNOWN, TAKEOVER_SILENCE};
pub use test_run::VerdictKind;

/// Version of the layout of keys and values. Maps of another version are not shared with these programs.
pub const LAYOUT: u32 = 5;
/// Upper bound of the slots of all tables together, for 10,000 services with a port and a virtual address; the loader allows
/// fewer on a machine with little memory.
pub const SLOTS: u32 = SLOTS_PER_BLOCK * 12_000;
/// Slots of a block, which the kernel allocates when a table needs it. With it, an entry has the size of a page.
pub const SLOTS_PER_BLOCK: u32 = 1_008;
/// The backends of consecutive slots.
pub type SlotBlock = [V4; SLOTS_PER_BLOCK as usize];

/// An IPv4 address as packets hold it.
pub type V4 = u32;
/// An address of either family; IPv4 in its mapped form, so that both families share one key space.
pub type Address = [u32; 4];
/// The first half of an IPv6 address: a node's /64.
pub type Prefix = [u32; 2];
/// A port as packets hold it.
pub type PortNumber = u16;

macro_rules! shared {
    ($($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
        pub struct $name { $($(#[$field_meta])* pub $field: $kind,)* }
        #[cfg(feature = "user")]
        // SAFETY: plain old data without padding (a test adds the sizes up) and without pointers.
        unsafe impl aya::Pod for $name {}
    )*};
}

// Behind the macro that it uses.
mod event;

shared! {
    /// A virtual address of a service on one network. Its backends are in a range of slots.
    Vip {
        /// Network address of the network that it belongs to.
        network: V4,
        mask: V4,
        /// First slot.
        base: u32,
        /// Number of slots; 0 without a backend.
        size: u32,
        /// [`owner`] of the service.
        owner: u32,
    }
    /// The IPv4 addresses that the IPv6 addresses of a dual-stack network stand for, by its IPv6 subnet. By the mapped form of a
    /// further IPv4 subnet: the network that it is part of.
    Subnet6 {
        /// Network address of its IPv4 subnet.
        network: V4,
        mask: V4,
        /// What the last word of an IPv6 address differs by from the IPv4 address.
        change: u32,
    }
    /// Key of the container network namespaces whose socket calls are translated, by network.
    NetnsMembership {
        /// Cookie of the network namespace.
        cookie: u64,
        /// Network address of the network; 0 in the entry that says that the namespace is on a network at all.
        network: V4,
        zero: u32,
    }
    /// A socket and a peer of it: key of the virtual address that it asked for (the peer is the backend), and of the backend
    /// that was selected for it (the peer is the virtual address).
    SocketPeer {
        /// Cookie of the socket; of its network namespace with [`OF_NAMESPACE`].
        cookie: u64,
        /// Address of the peer.
        address: V4,
        /// Port of the peer.
        port: PortNumber,
        /// 0 or [`OF_NAMESPACE`].
        flags: u16,
    }
    /// A published port for clients of one address family.
    Port {
        /// IP protocol number.
        protocol: u8,
        /// 4 or 6.
        family: u8,
        /// Port on the node.
        port: PortNumber,
    }
    /// The backends of a published port.
    Frontend {
        /// First slot.
        base: u32,
        /// Number of slots; 0 without a backend.
        size: u32,
        /// Port in the containers.
        target: PortNumber,
        /// See [`AFFINITY`] and [`GUARDED`].
        flags: u16,
        /// [`owner`] of the service.
        owner: u32,
    }
    /// Key of a trie of client prefixes. The key length is 32 more than that of the prefix.
    Source {
        /// [`Port::scope`] of the port that these clients may use, or [`NO_CLIENT`].
        scope: u32,
        /// The prefix; IPv4 in its mapped form.
        address: Address,
    }
    /// Location of a container, by its address.
    Backend {
        /// Index of the mesh end of its veth, if it runs on this node; else 0.
        ifindex: u32,
        /// 1 while it may receive new clients.
        serving: u32,
        /// /64 of its node.
        prefix: Prefix,
        /// [`owner`] of the service that the address belongs to now: a flow of another owner is over.
        owner: u32,
        /// [`INGRESS`].
        flags: u32,
    }
    /// Key of the set of ports in containers that a service publishes.
    Target {
        /// [`owner`] of the service.
        owner: u32,
        port: PortNumber,
        /// IP protocol number.
        protocol: u8,
        zero: u8,
    }
    /// A connection in one direction.
    Tuple {
        source: Address,
        destination: Address,
        /// /64 of the entry node, if that is another node; else zero.
        via: Prefix,
        source_port: PortNumber,
        destination_port: PortNumber,
        /// IP protocol number.
        protocol: u8,
        zero: [u8; 3],
    }
    /// Flow entry: the backend of a client's connection, by the client's tuple.
    Flow {
        /// Zero: a connection of the host, not translated.
        backend: V4,
        /// Port in the container.
        target: PortNumber,
        /// The client's port as the container sees it: replaced if two clients' tuples would be the same at the container.
        client_port: PortNumber,
        /// Index of the device that the client's last packet arrived by.
        ifindex: u32,
        /// [`Backend::owner`] when the backend was selected; 0 matches every owner (an entry of an earlier layout).
        owner: u32,
        /// When the client's last packet arrived, in seconds of the kernel's monotonic clock.
        seen: u32,
    }
    /// Reverse NAT entry: how a backend's reply is translated, by the container's tuple.
    Reply {
        /// The address that the client asked for. Known on the entry node only.
        address: Address,
        /// /64 of the entry node; zero if it is this node.
        entry: Prefix,
        /// The port that the client asked for.
        port: PortNumber,
        /// The client's port before translation.
        client_port: PortNumber,
        /// Index of the client container's device, if a container asked for a virtual address; else 0.
        device: u32,
        /// When the client's last packet arrived from another node, as [`Flow::seen`]. Of a client that entered by this node
        /// the flow has it; with [`SYN_KNOWN`] this is the sequence number of its SYN then, as packets hold it.
        seen: u32,
        /// The number that the client's ACK of the container's SYN acknowledges; with [`ACKED`] the number that the container
        /// acknowledged last. As packets hold it.
        expected: u32,
        /// State of a TCP connection: [`SYN_ACKED`], [`ANSWERED`], [`CLIENT_FIN`], [`CONTAINER_FIN`], [`NO_ROOM`], [`ACKED`],
        /// [`SYN_KNOWN`].
        flags: u32,
    }
    /// Key of a fragmented datagram: only its first fragment has ports.
    FragmentKey {
        source: Address,
        destination: Address,
        /// Identification field of the datagram.
        id: u32,
        /// IP protocol number.
        protocol: u8,
        zero: [u8; 3],
    }
    /// How the first fragment was translated and forwarded; later fragments follow it.
    FragmentState {
        /// The address that the datagram's source or destination was rewritten to.
        address: Address,
        /// As [`Reply::entry`].
        entry: Prefix,
        /// Index of the device that the first fragment left by.
        device: u32,
        /// When the first fragment arrived, as [`Flow::seen`].
        seen: u32,
    }
    /// This node's devices and prefixes, as the programs need them. Devices are interface indexes.
    Config {
        /// The host end of the veth pair between host and mesh namespace.
        host_end: u32,
        /// The mesh end of that pair.
        mesh_end: u32,
        /// The tunnel device.
        tunnel: u32,
        /// The uplink, if the host has exactly one; else 0.
        uplink: u32,
        /// This node's /64.
        prefix: Prefix,
        /// First half of every container's IPv6 address.
        containers: Prefix,
        /// Network address of the network `ingress`; 0 if this node has no container on it.
        ingress: V4,
        /// Seconds without a datagram of the client after which a UDP flow is over.
        udp_idle: u32,
        /// UDP port of the tunnel on this node: never a published port.
        tunnel_port: PortNumber,
        /// Length of the prefix of the network `ingress`; 0: not known.
        ingress_length: u16,
        /// [`hash_key`] of the cluster: the same on every node, so that they select the same backends, and unknown to clients.
        hash_key: [u32; 2],
    }
}

impl Port {
    /// The scope of its clients among [`Source`]s.
    #[inline(always)]
    pub fn scope(&self) -> u32 {
        u32::from(self.protocol) | u32::from(self.family) << 8 | u32::from(self.port) << 16
    }
}

impl Subnet6 {
    /// The IPv4 address that an IPv6 address of the subnet stands for, by its last word; `None` if its host number is too large.
    #[inline(always)]
    #[must_use]
    pub const fn to_v4(&self, word: u32) -> Option<V4> {
        let address = word ^ self.change;
        if address & self.mask == self.network { Some(address) } else { None }
    }
}

impl NetnsMembership {
    /// The key of a namespace that is on a network, whichever that is.
    #[inline(always)]
    #[must_use]
    pub const fn any(cookie: u64) -> Self {
        Self { cookie, network: 0, zero: 0 }
    }
}

/// Flag of a [`SocketPeer`]: of any socket of a namespace. The sockets that the kernel opens for an MPTCP connection are others
/// than that of the process.
pub const OF_NAMESPACE: u16 = 1;

/// Mark (`SO_MARK`) of connected UDP sockets to clients of a published port.
pub const CLIENT_MARK: u32 = 0x5e7e_2377;

/// Scope of the sources whose packets to published ports are not translated.
pub const NO_CLIENT: u32 = 0;

/// Scope of the addresses at which other nodes of the cluster are reached.
pub const NODE: u32 = 1;

/// Mark (`SO_MARK`) of the datagrams that the userspace datapath sends from published ports.
pub const USERSPACE_MARK: u32 = 0x5e7e_0001;

/// How many seconds ahead the end of a takeover of flows from maps of an earlier layout may lie: a daemon that ends in the middle
/// of one holds clients up no longer than that.
pub const TAKEOVER_SECONDS: u32 = 5;

/// Seconds that later fragments may arrive after the first one.
pub const FRAGMENT_TIMEOUT: u32 = 30;

/// Seconds from `since` to `now`; 0 if `since` is later, as when another CPU has just written it.
#[inline(always)]
#[must_use]
pub const fn elapsed(now: u32, since: u32) -> u32 {
    let seconds = now.wrapping_sub(since);
    if seconds as i32 >= 0 { seconds } else { 0 }
}

/// A 32-bit identifier of a service (FNV-1a of its id), never 0.
#[must_use]
pub const fn owner(service_id: &[u8]) -> u32 {
    let (mut hash, mut at) = (0x811c_9dc5_u32, 0);
    while at < service_id.len() {
        hash = (hash ^ service_id[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    if hash == 0 { 1 } else { hash }
}

/// Flag of a backend: the address is on the network `ingress`.
pub const INGRESS: u32 = 1;

/// Flag of a frontend: the backend is selected by the client address alone.
pub const AFFINITY: u16 = 1;
/// Flag of a frontend: only the sources in its scope may connect.
pub const GUARDED: u16 = 2;

/// The slot of a range that a hash falls into; `size` is not 0.
#[inline(always)]
pub fn slot(base: u32, size: u32, hash: u32) -> u32 {
    base + ((u64::from(hash) * u64::from(size)) >> 32) as u32
}

/// A 32-bit hash whose high bits are as evenly distributed as its low ones (murmur3's 64-bit finalizer).
#[inline(always)]
pub fn mix(mut value: u64) -> u32 {
    value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    ((value ^ (value >> 33)) >> 32) as u32
}

/// The key of the hashes of a cluster, from what its nodes know (FNV-1a).
#[must_use]
pub const fn hash_key(cluster: &[u8]) -> u64 {
    let (mut hash, mut at) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while at < cluster.len() {
        hash = (hash ^ cluster[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
}

/// Hash of a client: of its connection, or of its address alone. The same on every node of a cluster, whose [`hash_key`] it
/// depends on: with a known hash a client could choose ports that all lead to one backend.
#[inline(always)]
pub fn client_hash(key: [u32; 2], tuple: &Tuple, affinity: bool) -> u32 {
    let word = |i: usize| u64::from(u32::from_be(tuple.source[i]));
    let key = u64::from(key[0]) << 32 | u64::from(key[1]);
    let address = key ^ u64::from(mix(key ^ (word(0) << 32 | word(1)))) << 32 ^ word(2) << 32 ^ word(3);
    if affinity {
        return mix(address);
    }
    let ports = u64::from(u16::from_be(tuple.source_port)) << 16 | u64::from(u16::from_be(tuple.destination_port));
    mix(u64::from(mix(address)) << 32 | ports)
}

impl Config {
    /// Whether a container's address is known to be on another network than `ingress`.
    #[inline(always)]
    #[must_use]
    pub fn is_off_ingress(&self, address: V4) -> bool {
        let length = u32::from(self.ingress_length);
        length != 0 && u32::from_be(address ^ self.ingress).wrapping_shr(32_u32.wrapping_sub(length)) != 0
    }
}

/// Marks of network namespaces, of which each is for those of one hash of the cookie.
pub const NAMESPACE_MARKS: u32 = 1024;

/// The mark of a network namespace. (Cookies are counted up, by each processor from another number on.)
#[inline(always)]
#[must_use]
pub const fn namespace_mark(cookie: u64) -> u32 {
    ((cookie ^ cookie >> 12) % NAMESPACE_MARKS as u64) as u32
}

/// Counts of connections by client, of which each is for the clients of one hash.
pub const SOURCE_BUCKETS: u32 = 4096;

/// The count that the connections of a client are in: of its IPv4 address, or its IPv6 /64.
#[inline(always)]
#[must_use]
pub fn source_bucket(key: [u32; 2], address: &Address) -> u32 {
    let first = address[0] | address[1];
    let network = u64::from(address[0]) << 32 | u64::from(if first == 0 { address[3] } else { address[1] });
    mix(network ^ (u64::from(key[0]) << 32 | u64::from(key[1]))) % SOURCE_BUCKETS
}

/// Whether two addresses are the same. (`==` compiles to a call with a loop.)
#[inline(always)]
pub fn same_address(a: &Address, b: &Address) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

/// Whether two prefixes are the same.
#[inline(always)]
pub fn same_node(a: &Prefix, b: &Prefix) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) == 0
}

/// Whether it is unset: no node has this prefix.
#[inline(always)]
pub fn is_zero(prefix: &Prefix) -> bool {
    prefix[0] | prefix[1] == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_no_padding() {
        assert_eq!(size_of::<Vip>(), 20);
        assert_eq!(size_of::<Subnet6>(), 12);
        assert_eq!(size_of::<NetnsMembership>(), 16);
        assert_eq!(size_of::<SocketPeer>(), 16);
        assert_eq!(size_of::<Port>(), 4);
        assert_eq!(size_of::<Frontend>(), 16);
        assert_eq!(size_of::<Source>(), 20);
        assert_eq!(size_of::<Backend>(), 24);
        assert_eq!(size_of::<Target>(), 8);
        assert_eq!(size_of::<Tuple>(), 48);
        assert_eq!(size_of::<Flow>(), 20);
        assert_eq!(size_of::<Reply>(), 44);
        assert_eq!(size_of::<FragmentKey>(), 40);
        assert_eq!(size_of::<FragmentState>(), 32);
        assert_eq!(size_of::<Config>(), 52);
    }

    #[test]
    fn an_address_on_ingress_is_recognised_by_the_prefix() {
        let v4 = |octets: [u8; 4]| u32::from_ne_bytes(octets);
        for (length, inside, outside) in
            [(24, [10, 0, 0, 255], [10, 0, 1, 0]), (16, [10, 0, 200, 7], [10, 1, 0, 0]), (32, [10, 0, 0, 0], [10, 0, 0, 1])]
        {
            let config = Config { ingress: v4([10, 0, 0, 0]), ingress_length: length, ..Config::default() };
            assert!(!config.is_off_ingress(v4(inside)) && config.is_off_ingress(v4(outside)), "/{length}");
        }
        assert!(!Config::default().is_off_ingress(v4([10, 9, 9, 9])), "not known");
    }

    #[test]
    fn a_client_is_counted_by_its_address_or_64() {
        let bucket = |address: [u32; 4]| source_bucket([1, 2], &address);
        let v6 = |interface: u32| [0x2001, 7, interface, 9];
        assert_eq!(bucket(v6(1)), bucket(v6(2)));
        let buckets: std::collections::BTreeSet<u32> = (0..1_000).map(|n| bucket(packet::mapped(n))).collect();
        assert!(buckets.len() > 800 && buckets.iter().all(|bucket| *bucket < SOURCE_BUCKETS), "{}", buckets.len());
    }

    #[test]
    fn time_does_not_run_backwards_between_cpus() {
        assert_eq!((elapsed(100, 40), elapsed(100, 100), elapsed(100, 101)), (60, 0, 0));
        assert_eq!(elapsed(2, u32::MAX - 2), 5, "the clock wraps");
    }

    #[test]
    fn owners_of_services_differ_and_none_is_zero() {
        let owners = (0..10_000_u32).map(|n| owner(&[b"service", &n.to_be_bytes()[..]].concat()));
        let distinct: std::collections::BTreeSet<u32> = owners.filter(|owner| *owner != 0).collect();
        assert!(distinct.len() >= 9_998, "{}", distinct.len());
    }

    #[test]
    fn slots_are_within_their_range_and_used_evenly() {
        let mut seen = [0_u32; 7];
        for n in 0..70_000_u64 {
            let index = slot(100, 7, mix(n));
            assert!((100..107).contains(&index));
            seen[(index - 100) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_600..10_400).contains(n)), "{seen:?}");
        assert_eq!(slot(5, 1, u32::MAX), 5);
    }

    #[test]
    fn affinity_hashes_the_address_only() {
        let one = Tuple { source: packet::mapped(0x0700_02c0), source_port: 1, ..Tuple::default() };
        let other = Tuple { source_port: 2, ..one };
        let key = [1, 2];
        assert_eq!(client_hash(key, &one, true), client_hash(key, &other, true));
        assert_ne!(client_hash(key, &one, false), client_hash(key, &other, false));
    }

    #[test]
    fn clients_of_one_backend_are_spread_in_another_cluster() {
        let keys = [&b"one"[..], b"other"].map(hash_key).map(convert::hash_key);
        let client = |port: u16| Tuple { source: packet::mapped(0x0700_02c0), source_port: port, ..Tuple::default() };
        let same = |key, port: &u16| slot(0, 8, client_hash(key, &client(*port), false)) == 0;
        let chosen: Vec<u16> = (0..u16::MAX).filter(|port| same(keys[0], port)).collect();
        let still = chosen.iter().filter(|port| same(keys[1], port)).count();
        assert!(still * 6 < chosen.len(), "{still} of {} ports, an eighth by chance", chosen.len());
    }
}

//! What the kernel programs and the loader share: keys and values of the maps, and packet arithmetic. `no_std`, no
//! dependencies, tested on the host. Addresses and ports are words whose bytes in memory are those of the packet, so that
//! keys are what packets hold and are read a word at a time.
#![cfg_attr(not(test), no_std)]

pub mod packet;
#[cfg(any(test, feature = "user"))]
pub mod words;

/// Number of the layout of keys and values. Maps of another number are not shared with these programs.
pub const LAYOUT: u32 = 3;
/// Slots of all tables together, at most; the loader makes fewer where there is little memory.
pub const SLOTS: u32 = 6 << 20;

/// An IPv4 address as packets hold it.
pub type V4 = u32;
/// An address of either family; IPv4 in its mapped form, so that there is one space of keys.
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

shared! {
    /// A virtual address, by itself. Its backends are in a range of slots.
    Vip {
        /// Network address of the network that it is on.
        network: V4,
        /// The network's mask.
        mask: V4,
        /// First slot.
        base: u32,
        /// Number of slots; 0 without a backend.
        size: u32,
    }
    /// Says that a network namespace is on a network.
    Member {
        /// Cookie of the namespace.
        cookie: u64,
        /// Network address of the network.
        network: V4,
        /// Zero.
        zero: u32,
    }
    /// What a socket really talks to where it believes to talk to a virtual address.
    Peer {
        /// Cookie of the socket.
        cookie: u64,
        /// The backend.
        address: V4,
        /// Its port.
        port: PortNumber,
        /// Zero.
        zero: u16,
    }
    /// A published port for clients of one family.
    Port {
        /// Protocol number.
        protocol: u8,
        /// 4 or 6.
        family: u8,
        /// Port on the node.
        port: PortNumber,
    }
    /// Where a published port leads.
    Frontend {
        /// First slot.
        base: u32,
        /// Number of slots; 0 without a backend.
        size: u32,
        /// Port in the containers.
        target: PortNumber,
        /// See [`AFFINITY`] and [`GUARDED`].
        flags: u16,
    }
    /// A range of client addresses. In a trie, where its length is 32 more than that of the prefix.
    Source {
        /// A port as a number: these may use it. [`NO_CLIENT`]: these are nobody's clients.
        scope: u32,
        /// The prefix.
        address: Address,
    }
    /// Where a container is, by its address.
    Backend {
        /// Mesh end of its veth, if it runs here; else 0.
        ifindex: u32,
        /// 1 while it may be given new clients.
        serving: u32,
        /// Its node's /64.
        prefix: Prefix,
    }
    /// A connection in one direction.
    Tuple {
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
        /// The node that it comes through, if that is another one; else zero.
        via: Prefix,
        /// Source port.
        source_port: PortNumber,
        /// Destination port.
        destination_port: PortNumber,
        /// Protocol number.
        protocol: u8,
        /// Zero.
        zero: [u8; 3],
    }
    /// What a client's connection was given, by the client's tuple.
    Flow {
        /// The backend. Zero: not a client of ours, left to the host.
        backend: V4,
        /// Port in the container.
        target: PortNumber,
        /// The client's port as the container sees it: another one if two clients' tuples would be the same there.
        client_port: PortNumber,
        /// Device that the client is behind.
        ifindex: u32,
    }
    /// Where a backend's answers go, by the container's tuple.
    Reply {
        /// The address that the client asked. Known on the node that the client came in by.
        address: Address,
        /// /64 of the node that the client came in by; zero if it is this one.
        entry: Prefix,
        /// The port that the client asked.
        port: PortNumber,
        /// The client's own port.
        client_port: PortNumber,
        /// The asking container's device, if it asked a virtual address; else 0.
        device: u32,
    }
    /// A datagram in pieces: only the first one has ports.
    Fragment {
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
        /// The sender's number for it.
        id: u32,
        /// Protocol number.
        protocol: u8,
        /// Zero.
        zero: [u8; 3],
    }
    /// Where the first piece went.
    Piece {
        /// The address that its end was turned to.
        address: Address,
        /// As in a reply.
        entry: Prefix,
        /// Device that it left by.
        device: u32,
        /// Zero.
        zero: u32,
    }
    /// What the programs need to know of this node.
    Config {
        /// The host's end of the pair between host and mesh.
        host_end: u32,
        /// The mesh's end of it.
        mesh_end: u32,
        /// The tunnel device.
        tunnel: u32,
        /// The uplink, if there is exactly one.
        uplink: u32,
        /// This node's /64.
        prefix: Prefix,
        /// First half of every container's IPv6 address.
        containers: Prefix,
    }
}

impl Port {
    /// Its scope among [`Source`]s.
    #[inline(always)]
    pub fn scope(&self) -> u32 {
        u32::from(self.protocol) | u32::from(self.family) << 8 | u32::from(self.port) << 16
    }
}

/// Scope of sources that no published port takes for clients.
pub const NO_CLIENT: u32 = 0;

/// Flag of a frontend: one client address always gets the same backend.
pub const AFFINITY: u16 = 1;
/// Flag of a frontend: only the sources in its scope may use it.
pub const GUARDED: u16 = 2;

/// What is counted, by its place in the map of counters.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Counter {
    /// Connections to virtual addresses that were given a backend.
    VipConnect,
    /// Connections to virtual addresses without a backend.
    VipEmpty,
    /// Echo requests to virtual addresses, answered.
    VipEcho,
    /// Packets to virtual addresses that did not come through a socket call.
    VipPacket,
    /// Connections to published ports that were given a backend.
    PortNew,
    /// Connections that were going on and nobody knew here: given the backend that they have elsewhere.
    PortTaken,
    /// Packets of clients, taken in.
    PortIn,
    /// Packets to clients, sent out.
    PortOut,
    /// Clients' ports that were changed, because two connections would have been one at the container.
    PortChanged,
    /// Connections of the host or of masqueraded containers from a published port's number: left alone.
    Foreign,
    /// Packets sent to another node.
    MeshOut,
    /// Packets taken from another node.
    MeshIn,
    /// Packets delivered to a container of this node.
    Delivered,
    /// ICMP errors, turned to where the packet that they are about came from.
    Errors,
    /// Dropped: the backend is not known (any more).
    DropBackend,
    /// Dropped: no connection is known for an answer.
    DropFlow,
    /// Dropped: not what belongs on this way.
    DropForeign,
    /// Dropped: the sender is not who it says.
    DropForged,
    /// Dropped: the kernel refused to change the packet.
    DropChange,
}

/// Names of the counters, in their order, for people.
pub const COUNTERS: [&str; 19] = [
    "vip_connect",
    "vip_empty",
    "vip_echo",
    "vip_packet",
    "port_new",
    "port_taken",
    "port_in",
    "port_out",
    "port_changed",
    "foreign",
    "mesh_out",
    "mesh_in",
    "delivered",
    "errors",
    "drop_backend",
    "drop_flow",
    "drop_foreign",
    "drop_forged",
    "drop_change",
];

/// The slot of a range that a hash falls into; `size` is not 0.
#[inline(always)]
pub fn slot(base: u32, size: u32, hash: u32) -> u32 {
    base + ((u64::from(hash) * u64::from(size)) >> 32) as u32
}

/// A hash whose high bits are as good as its low ones (murmur3's finish over a product).
#[inline(always)]
pub fn mix(mut value: u64) -> u32 {
    value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    ((value ^ (value >> 33)) >> 32) as u32
}

/// Hash of a client: of its connection, or of its address alone. The same on every node.
#[inline(always)]
pub fn client_hash(tuple: &Tuple, affinity: bool) -> u32 {
    let word = |i: usize| u64::from(u32::from_be(tuple.source[i]));
    let address = u64::from(mix(word(0) << 32 | word(1))) << 32 ^ word(2) << 32 ^ word(3);
    if affinity {
        return mix(address);
    }
    let ports = u64::from(u16::from_be(tuple.source_port)) << 16 | u64::from(u16::from_be(tuple.destination_port));
    mix(u64::from(mix(address)) << 32 | ports)
}

/// Whether two addresses are the same. (`==` would be a call with a loop.)
#[inline(always)]
pub fn same(a: &Address, b: &Address) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

/// Whether two prefixes are the same.
#[inline(always)]
pub fn same_node(a: &Prefix, b: &Prefix) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) == 0
}

/// Whether it is no node's.
#[inline(always)]
pub fn none(prefix: &Prefix) -> bool {
    prefix[0] | prefix[1] == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_no_padding() {
        assert_eq!(size_of::<Vip>(), 16);
        assert_eq!(size_of::<Member>(), 16);
        assert_eq!(size_of::<Peer>(), 16);
        assert_eq!(size_of::<Port>(), 4);
        assert_eq!(size_of::<Frontend>(), 12);
        assert_eq!(size_of::<Source>(), 20);
        assert_eq!(size_of::<Backend>(), 16);
        assert_eq!(size_of::<Tuple>(), 48);
        assert_eq!(size_of::<Flow>(), 12);
        assert_eq!(size_of::<Reply>(), 32);
        assert_eq!(size_of::<Fragment>(), 40);
        assert_eq!(size_of::<Piece>(), 32);
        assert_eq!(size_of::<Config>(), 32);
    }

    #[test]
    fn every_counter_has_a_name() {
        assert_eq!(COUNTERS.len(), Counter::DropChange as usize + 1);
    }

    #[test]
    fn slots_are_within_their_range_and_used_evenly() {
        let mut seen = [0_u32; 7];
        for n in 0..70_000_u64 {
            let at = slot(100, 7, mix(n));
            assert!((100..107).contains(&at));
            seen[(at - 100) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_600..10_400).contains(n)), "{seen:?}");
        assert_eq!(slot(5, 1, u32::MAX), 5);
    }

    #[test]
    fn affinity_looks_at_the_address_only() {
        let one = Tuple { source: packet::mapped(0x0700_02c0), source_port: 1, ..Tuple::default() };
        let other = Tuple { source_port: 2, ..one };
        assert_eq!(client_hash(&one, true), client_hash(&other, true));
        assert_ne!(client_hash(&one, false), client_hash(&other, false));
    }
}

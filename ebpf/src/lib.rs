//! What the kernel programs and the loader share: keys and values of the maps, and packet arithmetic. `no_std`, no
//! dependencies, tested on the host. Addresses and ports are bytes in network order, so that keys are what packets hold.
#![cfg_attr(not(test), no_std)]

pub mod packet;

/// Number of the layout of keys and values. Maps of another number are not shared with these programs.
pub const LAYOUT: u32 = 1;
/// Slots of all tables together.
pub const SLOTS: u32 = 1 << 20;

/// An IPv4 address as packets hold it.
pub type Address = [u8; 4];
/// The first half of an IPv6 address: a node's /64.
pub type Prefix = [u8; 8];

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
        network: Address,
        /// The network's mask.
        mask: Address,
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
        network: Address,
        /// Zero.
        zero: u32,
    }
    /// What a socket really talks to where it believes to talk to a virtual address.
    Peer {
        /// Cookie of the socket.
        cookie: u64,
        /// The backend.
        address: Address,
        /// Its port.
        port: [u8; 2],
        /// Zero.
        zero: u16,
    }
    /// A published port.
    Port {
        /// Protocol number.
        protocol: u8,
        /// Zero.
        zero: u8,
        /// Port on the node.
        port: [u8; 2],
    }
    /// Where a published port leads.
    Frontend {
        /// First slot.
        base: u32,
        /// Number of slots; 0 without a backend.
        size: u32,
        /// Port in the containers.
        target: [u8; 2],
        /// See [`AFFINITY`].
        flags: u16,
    }
    /// Where a container is, by its address.
    Backend {
        /// Mesh end of its veth, if it runs here; else 0.
        ifindex: u32,
        /// Its node's /64.
        prefix: Prefix,
    }
    /// A connection in one direction.
    Tuple {
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
        /// Source port.
        source_port: [u8; 2],
        /// Destination port.
        destination_port: [u8; 2],
        /// Protocol number.
        protocol: u8,
        /// Zero.
        zero: [u8; 3],
    }
    /// What a client's connection was given, by the client's tuple.
    Flow {
        /// The backend.
        backend: Address,
        /// Port in the container.
        target: [u8; 2],
        /// Zero.
        zero: u16,
        /// Uplink that the client is behind.
        ifindex: u32,
    }
    /// Where a backend's answers go, by the container's tuple.
    Reply {
        /// The address that the client asked.
        address: Address,
        /// The port that the client asked.
        port: [u8; 2],
        /// Zero.
        zero: u16,
        /// /64 of the node that the client came in by; all zero if it is this one.
        entry: Prefix,
    }
    /// What the programs need to know of this node.
    Config {
        /// The host's end of the pair between host and mesh.
        host_end: u32,
        /// The mesh's end of it.
        mesh_end: u32,
        /// The tunnel device.
        tunnel: u32,
        /// Zero.
        zero: u32,
        /// This node's /64.
        prefix: Prefix,
    }
}

/// Flag of a frontend: one client address always gets the same backend.
pub const AFFINITY: u16 = 1;

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
    /// Connections to published ports that were given a backend.
    PortNew,
    /// Packets of clients, taken in.
    PortIn,
    /// Packets to clients, sent out.
    PortOut,
    /// Packets sent to another node.
    MeshOut,
    /// Packets taken from another node.
    MeshIn,
    /// Packets delivered to a container of this node.
    Delivered,
    /// Dropped: the backend is not known (any more).
    DropBackend,
    /// Dropped: no connection is known for an answer.
    DropFlow,
    /// Dropped: not what belongs on this way.
    DropForeign,
    /// Dropped: the kernel refused to change the packet.
    DropChange,
}

/// Names of the counters, in their order, for people.
pub const COUNTERS: [&str; 13] = [
    "vip_connect",
    "vip_empty",
    "vip_echo",
    "port_new",
    "port_in",
    "port_out",
    "mesh_out",
    "mesh_in",
    "delivered",
    "drop_backend",
    "drop_flow",
    "drop_foreign",
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

/// Hash of a client: of its connection, or of its address alone.
#[inline(always)]
pub fn client_hash(tuple: &Tuple, affinity: bool) -> u32 {
    let address = u64::from(u32::from_be_bytes(tuple.source));
    if affinity {
        return mix(address);
    }
    let ports = u64::from(u16::from_be_bytes(tuple.source_port)) << 16 | u64::from(u16::from_be_bytes(tuple.destination_port));
    mix(address << 32 | ports)
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
        assert_eq!(size_of::<Backend>(), 12);
        assert_eq!(size_of::<Tuple>(), 16);
        assert_eq!(size_of::<Flow>(), 12);
        assert_eq!(size_of::<Reply>(), 16);
        assert_eq!(size_of::<Config>(), 24);
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
        let one = Tuple { source: [192, 0, 2, 7], source_port: [1, 2], ..Tuple::default() };
        let other = Tuple { source_port: [3, 4], ..one };
        assert_eq!(client_hash(&one, true), client_hash(&other, true));
        assert_ne!(client_hash(&one, false), client_hash(&other, false));
    }
}

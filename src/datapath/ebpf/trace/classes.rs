//! Which maps a trace shares with the live programs.

/// What a trace does with a map of the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceMapClass {
    /// The programs only read it: the live map is used.
    Live,
    /// The programs write it, and its key is a tuple: an own map, with the live entries of the packet's connection.
    Tuples,
    /// The programs write it: an own map with the live map's first value.
    Whole,
    /// The programs write it: an own empty map, with little room.
    Small,
    /// The programs write it: an own empty map of the same size.
    Empty,
}

/// The class of each map of the object. A map without a line would be an own empty one: a trace never writes a live map that
/// is not named here.
pub const MAP_CLASSES: &[(&str, TraceMapClass)] = &[
    ("CONFIG", TraceMapClass::Live),
    ("VIPS", TraceMapClass::Live),
    ("MEMBERS", TraceMapClass::Live),
    ("SUBNETS6", TraceMapClass::Live),
    ("NAMESPACES", TraceMapClass::Live),
    ("SLOTS", TraceMapClass::Live),
    ("PORTS", TraceMapClass::Live),
    ("SOURCES", TraceMapClass::Live),
    ("BACKENDS", TraceMapClass::Live),
    ("LOCALS", TraceMapClass::Live),
    ("UPLINKS", TraceMapClass::Live),
    ("TARGETS", TraceMapClass::Live),
    ("TAKEOVER", TraceMapClass::Live),
    ("TCP_FLOWS", TraceMapClass::Tuples),
    ("TCP_REPLIES", TraceMapClass::Tuples),
    ("SYN_FLOWS", TraceMapClass::Tuples),
    ("SYN_REPLIES", TraceMapClass::Tuples),
    ("UDP_FLOWS", TraceMapClass::Tuples),
    ("UDP_REPLIES", TraceMapClass::Tuples),
    // VIP_PACKETS_SEEN.
    ("GATE", TraceMapClass::Whole),
    ("PEERS", TraceMapClass::Small),
    ("DATAGRAM_PEERS", TraceMapClass::Small),
    ("CHOICES", TraceMapClass::Small),
    ("FRAGMENTS", TraceMapClass::Small),
    ("EARLIER_TCP_FLOWS", TraceMapClass::Small),
    ("EARLIER_TCP_REPLIES", TraceMapClass::Small),
    ("EARLIER_SYN_FLOWS", TraceMapClass::Small),
    ("EARLIER_SYN_REPLIES", TraceMapClass::Small),
    ("EARLIER_UDP_FLOWS", TraceMapClass::Small),
    ("EARLIER_UDP_REPLIES", TraceMapClass::Small),
    ("PORT_COUNTS", TraceMapClass::Small),
    ("VIP_COUNTS", TraceMapClass::Small),
    ("REFUSALS", TraceMapClass::Small),
    ("COUNTS", TraceMapClass::Empty),
    ("SOURCE_COUNTS", TraceMapClass::Empty),
    ("WATCH", TraceMapClass::Empty),
    ("WATCHED", TraceMapClass::Empty),
    ("EVENTS", TraceMapClass::Empty),
    ("PACKET", TraceMapClass::Empty),
];

/// Names of the maps of a class.
pub(super) fn of_class(class: TraceMapClass) -> impl Iterator<Item = &'static str> {
    MAP_CLASSES.iter().filter(move |(_, of)| *of == class).map(|(name, _)| *name)
}

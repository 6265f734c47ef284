//! The counters of the programs: what each one counts, its name in dumps and metrics, and which of them are drops. A new
//! counter is one entry, at the end of the list: its position is its index in the pinned map `COUNTS`.

macro_rules! counters {
    ($($(#[doc = $meaning:literal])+ $counter:ident = $name:literal $(, drop $reason:literal)? $(, left $left:literal)?;)*) => {
        /// What is counted. The discriminant is the index in the map of counters.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Counter { $($(#[doc = $meaning])+ $counter,)* }

        impl Counter {
            /// All of them, by index.
            pub const ALL: &'static [Self] = &[$(Self::$counter,)*];

            /// Its name in dumps and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$counter => $name,)* }
            }

            /// Why a packet was dropped, as the value of a metric's label; `None` for a counter of events.
            #[must_use]
            pub const fn drop_reason(self) -> Option<&'static str> {
                match self { $(Self::$counter => reason!($($reason)?),)* }
            }

            /// Why a packet to a published port was left to the host, likewise.
            #[must_use]
            pub const fn left_reason(self) -> Option<&'static str> {
                match self { $(Self::$counter => reason!($($left)?),)* }
            }

            /// What it counts, as a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$counter => concat!($($meaning),+).trim_start(),)* }
            }
        }
    };
}

macro_rules! reason {
    () => {
        None
    };
    ($reason:literal) => {
        Some($reason)
    };
}

counters! {
    /// Connections to virtual addresses for which a backend was selected.
    VipConnect = "vip_connect";
    /// Connections to virtual addresses without a backend, and packets of such connections: refused.
    VipEmpty = "vip_empty", drop "vip_without_backend";
    /// Echo requests to virtual addresses that were answered.
    VipEcho = "vip_echo";
    /// Packets to virtual addresses that no socket call had translated.
    VipPacket = "vip_packet";
    /// Connections to published ports for which a backend was selected.
    PortNew = "port_new";
    /// Established connections without an entry on this node, for which the backend was selected again.
    PortReselected = "port_reselected";
    /// Packets of clients that were translated to a backend.
    PortIn = "port_in";
    /// Packets to clients that left by an uplink.
    PortOut = "port_out";
    /// Client ports that were replaced because two connections would have had the same tuple at the container.
    PortChanged = "port_changed";
    /// Connections of the host or of masqueraded containers whose local port is a published one: not translated.
    HostFlow = "host_flow";
    /// Packets sent to another node.
    MeshOut = "mesh_out";
    /// Packets received from another node.
    MeshIn = "mesh_in";
    /// Packets delivered to a container of this node.
    Delivered = "delivered";
    /// ICMP errors that were translated together with the packet that they quote.
    IcmpError = "icmp_error";
    /// The backend is unknown, or no longer known.
    DropBackend = "drop_backend", drop "unknown_backend";
    /// No flow is known for a reply.
    DropFlow = "drop_flow", drop "unknown_flow";
    /// The packet is not of a kind that this hook handles.
    DropForeign = "drop_foreign", drop "unexpected_packet";
    /// The source address does not belong to the sender.
    DropForged = "drop_forged", drop "forged_source";
    /// The kernel refused to change the packet or a map.
    DropChange = "drop_change", drop "rewrite_failed";
    /// A datagram from a published port of another node to a published port of this one: the two would answer each other for ever.
    DropLoop = "drop_loop", drop "datagram_loop";
    /// Packets to a published port that were left to the host: the source may not use the port.
    PassNotAllowed = "pass_not_allowed", left "source_not_allowed";
    /// Packets to a published port that were left to the host: the source is an address of a network of the cluster.
    PassNoClient = "pass_no_client", left "source_on_cluster_network";
    /// Packets to a published port that were left to the host: no task is in its table.
    PassNoBackend = "pass_no_backend", left "no_backend";
    /// TCP connections that both ends have, and that no other flow can push out from now on.
    Established = "established";
    /// Established TCP connections that ended, by RST or by both FINs.
    Ended = "ended";
    /// Established TCP connections for which the table had no room: they work until newer flows push them out.
    FlowsFull = "flows_full";
    /// Packets of clients for a container that this node no longer has, answered with RST or "port unreachable".
    Refused = "refused";
    /// Calls to virtual addresses by sockets that are bound to another address than the container's on that network: refused.
    VipForeignSource = "vip_foreign_source", drop "vip_from_foreign_address";
    /// Established TCP connections that were not protected from newer flows because their client has half of all there is room
    /// for: they work until newer flows push them out.
    FlowsOfSource = "flows_of_source_full";
    /// Packets to a published port that were left to the host: they have IPv4 options or an IPv6 extension header.
    PassHeaders = "pass_headers", left "header_options";
}

#[cfg(test)]
mod tests {
    use super::Counter;
    use std::collections::BTreeSet;

    #[test]
    fn the_position_of_a_counter_is_its_index() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index, "{}", counter.name());
        }
        // A map of LAYOUT 5 that an earlier build pinned has 29: what is beyond is in the map of refusals only.
        assert_eq!(Counter::ALL.len(), 30);
    }

    #[test]
    fn names_and_drop_reasons_are_unique_and_every_drop_has_a_reason() {
        let names: BTreeSet<&str> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        let drops: Vec<Counter> = Counter::ALL.iter().copied().filter(|counter| counter.drop_reason().is_some()).collect();
        let reasons: BTreeSet<_> = drops.iter().map(|counter| counter.drop_reason()).collect();
        assert_eq!(reasons.len(), drops.len());
        for counter in Counter::ALL.iter().filter(|counter| counter.name().starts_with("drop_")) {
            assert!(counter.drop_reason().is_some(), "{}", counter.name());
        }
        for counter in Counter::ALL {
            assert_eq!(counter.left_reason().is_some(), counter.name().starts_with("pass_"), "{}", counter.name());
            assert!(counter.meaning().ends_with('.') && !counter.meaning().starts_with(' '), "{}", counter.meaning());
        }
    }
}

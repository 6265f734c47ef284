//! What the programs say of packets and calls that they drop, refuse or leave to the host: counters by hook, reason and
//! service, and events for who watches.

use crate::{Address, PortNumber};

/// Programs by their number in [`RefusalKey`] and [`RefusalEvent`]. Numbers are kept: a new program is added at the end.
pub const HOOKS: [&str; 14] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "from_uplink",
    "from_host",
    "from_mesh",
    "from_container",
    "to_uplink",
    "out_uplink",
];

/// Position of a program in [`HOOKS`], or their number if there is no such program. Evaluated when the programs are compiled.
#[must_use]
pub const fn hook_number(name: &str) -> u32 {
    let mut number = 0;
    while number < HOOKS.len() {
        let (one, other) = (HOOKS[number].as_bytes(), name.as_bytes());
        let mut at = 0;
        while at < one.len() && at < other.len() && one[at] == other[at] {
            at += 1;
        }
        if at == one.len() && at == other.len() {
            break;
        }
        number += 1;
    }
    number as u32
}

shared! {
    /// Key of the counters of what is dropped, refused or left to the host.
    RefusalKey {
        /// [`crate::owner`] of the service that it was for; 0 if that is not known, or if the map has no room for it.
        owner: u32,
        /// [`crate::Counter`] by its index.
        reason: u16,
        /// Position in [`HOOKS`].
        hook: u8,
        zero: u8,
    }
    /// Whether events are written. The watcher renews it, so that it ends with the watcher.
    Watch {
        /// Second of the kernel's monotonic clock from which no event is written.
        until: u32,
        /// Events per second and processor; what is beyond is counted as lost.
        most: u32,
        /// 1: also what is left to the host.
        left: u32,
    }
    /// Events of one processor.
    WatchedSecond {
        /// Events that were not written since the map was created: over the bound, or the ring was full.
        lost: u64,
        /// The second that `written` is of.
        second: u32,
        written: u32,
    }
    /// A packet or call that was dropped, refused or left to the host, as the hook had it at the end: a client's packet that
    /// is dropped behind `from_uplink` has the address of its container.
    RefusalEvent {
        /// Nanoseconds of the kernel's monotonic clock.
        time: u64,
        source: Address,
        destination: Address,
        /// As [`RefusalKey::owner`].
        owner: u32,
        /// Index of the device, in the hook's namespace; 0 at a socket call.
        device: u32,
        /// 0 if it has none, as a later fragment.
        source_port: PortNumber,
        destination_port: PortNumber,
        /// As in [`RefusalKey`].
        reason: u16,
        hook: u8,
        /// IP protocol number; 0: neither IPv4 nor IPv6.
        protocol: u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_the_number_of_its_position() {
        for (at, name) in HOOKS.iter().enumerate() {
            assert_eq!(hook_number(name) as usize, at, "{name}");
        }
        assert_eq!(hook_number("from"), 14);
        assert_eq!(hook_number("from_host2"), 14);
    }

    #[test]
    fn values_have_no_padding() {
        assert_eq!(size_of::<RefusalKey>(), 8);
        assert_eq!(size_of::<Watch>(), 12);
        assert_eq!(size_of::<WatchedSecond>(), 16);
        assert_eq!(size_of::<RefusalEvent>(), 56);
    }
}

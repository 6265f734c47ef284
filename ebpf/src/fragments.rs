//! State of fragmented datagrams: only the first fragment has ports, the later ones follow it by their identification.
//! Identifications repeat, so the state has an age, and a first fragment that is not translated removes what an earlier
//! datagram left.

use crate::ctx::seconds;
use crate::maps::{FRAGMENTS, lookup_lru};
use crate::parse::{Packet, PacketKind};
use skep_ebpf::{Address, FRAGMENT_TIMEOUT, FragmentState, Prefix, elapsed};

/// How the first fragment of a later one was translated and forwarded.
#[inline(always)]
pub fn find_first(packet: &Packet) -> Option<FragmentState> {
    let state = lookup_lru(&FRAGMENTS, &packet.fragment_key())?;
    (elapsed(seconds(), state.seen) <= FRAGMENT_TIMEOUT).then_some(*state)
}

/// Records what later fragments have to follow, if the packet is a first one.
#[inline(always)]
pub fn record_first(packet: &Packet, address: &Address, entry: Prefix, device: u32) {
    if packet.is(PacketKind::FirstFragment) {
        let state = FragmentState { address: *address, entry, device, seen: seconds() };
        let _ = FRAGMENTS.insert(packet.fragment_key(), state, 0);
    }
}

/// Removes the state of an earlier datagram with this identification, if the packet is a first fragment.
#[inline(always)]
pub fn remove_earlier(packet: &Packet) {
    if packet.is(PacketKind::FirstFragment) {
        let _ = FRAGMENTS.remove(packet.fragment_key());
    }
}

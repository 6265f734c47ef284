//! Lets the programs look at no more replies to packets to virtual addresses once there are no flows of such packets: raw
//! sockets, and namespaces that containers make, are rare, and each packet of a container pays for the look.

use super::batch::each;
use super::load::Loaded;
use anyhow::Context as _;
use aya::maps::{Array, Map, MapData};
use skep_ebpf::{NO_ROOM, Reply, Tuple, elapsed};
use std::os::fd::AsFd as _;

/// The map `VIP_PACKETS_SEEN` of the programs.
const SEEN: &str = "GATE";

/// Seconds without such a packet after which datagrams, and connections that begin or have ended, need no reply any more.
const QUIET: u32 = 600;

/// Whether a reply entry is of a container that sent a packet to a virtual address.
pub(super) fn is_of_vip_packet(reply: &Reply) -> bool {
    reply.device != 0
}

impl Loaded {
    /// Ends the looks if the last such packet is long ago and no connection of one is open. `established`: one of the established
    /// connections is.
    pub(super) fn forget_vip_packets(&mut self, now: u32, established: bool) -> anyhow::Result<()> {
        let map = self.ebpf.map(SEEN).with_context(|| format!("the object has no map {SEEN}"))?;
        let seen = Array::<&MapData, u32>::try_from(map)?.get(&0, 0)?;
        if seen == 0 || established || elapsed(now, seen) < QUIET {
            return Ok(());
        }
        let Some(Map::LruHashMap(map)) = self.ebpf.map("SYN_REPLIES") else {
            anyhow::bail!("the object has no table SYN_REPLIES")
        };
        let mut open = false;
        each(map.fd().as_fd(), |_: &Tuple, reply: &Reply| {
            open |= is_of_vip_packet(reply) && reply.flags & NO_ROOM != 0 && !reply.is_closed();
        })?;
        if open {
            return Ok(());
        }
        let map = self.ebpf.map_mut(SEEN).with_context(|| format!("the object has no map {SEEN}"))?;
        // If a packet arrives at this moment, the next one of its flow sets it again.
        Ok(Array::<&mut MapData, u32>::try_from(map)?.set(0, 0, 0)?)
    }
}

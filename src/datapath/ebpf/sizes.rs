//! How many entries the maps have room for.

use std::fs;

/// Memory of this machine in bytes; 0 if it cannot be read.
fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    total.unwrap_or_default() * 1024
}

/// Capacities of maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sizes {
    /// Blocks of slots.
    pub(super) blocks: u32,
    /// Established TCP connections.
    pub(super) tcp_flows: u32,
    /// TCP connections that are not established.
    pub(super) syn_flows: u32,
    pub(super) udp_flows: u32,
    /// Connections to virtual addresses whose sockets show these as their peer.
    pub(super) peers: u32,
}

impl Sizes {
    /// The sizes for this machine; `tcp_flows` of 0: by its memory.
    pub(super) fn of_machine(tcp_flows: u32) -> Self {
        Self::new(memory(), tcp_flows)
    }

    /// Less than 1/32 of the memory (in bytes) if `tcp_flows` is 0, never more than 10,000 services and 262,144 connections
    /// need. Blocks of slots use memory as they come. So do established connections, apart from 16 bytes for each that there is
    /// room for (rounded up to a power of 2), in each of two maps. The other maps have theirs from the beginning.
    fn new(memory: u64, tcp_flows: u32) -> Self {
        let share = |part: u64, bytes: u64, least: u32, most: u32| {
            u32::try_from(memory / part / bytes).unwrap_or(most).clamp(least, most)
        };
        // A block takes a page; a flow takes an entry of some 150 bytes in each of two maps.
        Self {
            blocks: share(64, 4096, 512, skep_ebpf::SLOTS / skep_ebpf::SLOTS_PER_BLOCK),
            tcp_flows: if tcp_flows == 0 { share(128, 300, 1 << 14, 1 << 18) } else { tcp_flows },
            syn_flows: share(512, 300, 1 << 13, 1 << 15),
            udp_flows: share(256, 300, 1 << 13, 1 << 16),
            peers: share(2048, 90, 1 << 13, 1 << 15),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sizes;

    #[test]
    fn small_machines_keep_most_of_their_memory() {
        let gigabyte = 1 << 30;
        for gigabytes in [1, 2, 4, 64] {
            let sizes = Sizes::new(gigabytes * gigabyte, 0);
            let flows = [sizes.tcp_flows, sizes.syn_flows, sizes.udp_flows].map(u64::from).iter().sum::<u64>();
            assert!(
                u64::from(sizes.blocks) * 4096 + u64::from(sizes.peers) * 90 + flows * 300 <= gigabytes * gigabyte / 32,
                "{gigabytes} GB: {sizes:?}"
            );
        }
        let sizes = |blocks, tcp_flows, syn_flows, udp_flows, peers| Sizes { blocks, tcp_flows, syn_flows, udp_flows, peers };
        assert_eq!(Sizes::new(256 * gigabyte, 0), sizes(12_000, 1 << 18, 1 << 15, 1 << 16, 1 << 15));
        assert_eq!(Sizes::new(0, 0), sizes(512, 1 << 14, 1 << 13, 1 << 13, 1 << 13));
        assert_eq!(Sizes::new(0, 5_000).tcp_flows, 5_000, "as the setting says");
    }
}

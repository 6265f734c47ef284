//! How many entries the maps have room for: little at first, more as they are used, up to a bound. Pure but for
//! [`Bounds::of_machine`].

use std::collections::BTreeMap;
use std::fs;

/// Maps that have the same room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum MapGroup {
    /// Established TCP connections.
    TcpFlows,
    /// TCP connections that are not established.
    SynFlows,
    UdpFlows,
    /// What sockets asked for, and what was selected for them.
    Peers,
    DatagramPeers,
    Choices,
    Backends,
    Ports,
    Vips,
}

impl MapGroup {
    pub(super) const ALL: [Self; 9] = [
        Self::TcpFlows,
        Self::SynFlows,
        Self::UdpFlows,
        Self::Peers,
        Self::DatagramPeers,
        Self::Choices,
        Self::Backends,
        Self::Ports,
        Self::Vips,
    ];

    /// Names of its maps; each has at most as many entries as the first one, or as many.
    pub(super) const fn maps(self) -> &'static [&'static str] {
        match self {
            Self::TcpFlows => &["TCP_FLOWS", "TCP_REPLIES"],
            Self::SynFlows => &["SYN_FLOWS", "SYN_REPLIES"],
            Self::UdpFlows => &["UDP_FLOWS", "UDP_REPLIES"],
            Self::Peers => &["PEERS"],
            Self::DatagramPeers => &["DATAGRAM_PEERS"],
            Self::Choices => &["CHOICES"],
            Self::Backends => &["BACKENDS"],
            Self::Ports => &["PORTS", "PORT_COUNTS", "TARGETS"],
            Self::Vips => &["VIPS", "VIP_COUNTS"],
        }
    }

    /// Whether packets of clients fill its maps.
    pub(super) const fn has_flows(self) -> bool {
        matches!(self, Self::TcpFlows | Self::SynFlows | Self::UdpFlows)
    }

    /// Whether its maps forget the least recently used entry: they have all their memory from the beginning.
    const fn forgets(self) -> bool {
        matches!(self, Self::SynFlows | Self::UdpFlows | Self::Peers | Self::DatagramPeers | Self::Choices)
    }

    /// Whether so many entries in use are many for the room. Entries of sockets have no age, so that their maps fill up in time:
    /// these grow when they are nearly full. (The kernel keeps some entries free.) The others grow before: a client may have half
    /// of the room for established connections.
    const fn is_short(self, used: u64, room: u32) -> bool {
        match self {
            Self::Peers | Self::DatagramPeers | Self::Choices => used * 4 > room as u64 * 3,
            _ => used * 3 > room as u64,
        }
    }
}

/// Room of each group, in entries.
pub(super) type Rooms = BTreeMap<MapGroup, u32>;

/// How much the room grows at once, at least.
const GROWTH: u64 = 4;

/// Entries of a map that forgets for each processor: the kernel keeps up to 128 free ones aside for each.
const ENTRIES_PER_CPU: u32 = 256;

/// The room of a group at first and at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bound {
    first: u32,
    most: u32,
}

/// The bounds of each group, and of the blocks of slots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    /// Blocks of slots that there is room for. A block takes memory as it comes.
    pub(super) blocks: u32,
    /// Entries of the table of fragments.
    pub(super) fragments: u32,
    groups: BTreeMap<MapGroup, Bound>,
}

/// Memory of this machine in bytes; 0 if it cannot be read.
fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    total.unwrap_or_default() * 1024
}

impl Bounds {
    /// Those of this machine; `tcp_flows`: most established TCP connections, 0: by its memory.
    pub(super) fn of_machine(tcp_flows: u32) -> Self {
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        Self::new(memory(), u32::try_from(cpus).unwrap_or(1), tcp_flows)
    }

    /// At most less than 1/32 of the memory (in bytes) if `tcp_flows` is 0, never more than 10,000 services and 262,144
    /// connections need.
    fn new(memory: u64, cpus: u32, tcp_flows: u32) -> Self {
        let share = |part: u64, bytes: u64, least: u32, most: u32| {
            u32::try_from(memory / part / bytes).unwrap_or(most).clamp(least, most)
        };
        // A block takes a page; a flow takes an entry of some 150 bytes in each of two maps, one of a socket 90.
        let tcp_flows = if tcp_flows == 0 { share(128, 300, 1 << 14, 1 << 18) } else { tcp_flows };
        let least = ENTRIES_PER_CPU.saturating_mul(cpus).max(1 << 11);
        let bound = |group: MapGroup| {
            let (first, most) = match group {
                MapGroup::TcpFlows => (1 << 15, tcp_flows),
                MapGroup::SynFlows => (least, share(512, 300, 1 << 13, 1 << 15)),
                MapGroup::UdpFlows => (least, share(256, 300, 1 << 13, 1 << 16)),
                MapGroup::Peers => (least, share(2048, 90, 1 << 13, 1 << 15)),
                MapGroup::DatagramPeers | MapGroup::Choices => (least, share(4096, 90, 1 << 12, 1 << 14)),
                MapGroup::Backends => (1 << 12, 1 << 16),
                MapGroup::Ports => (1 << 11, 1 << 15),
                MapGroup::Vips => (1 << 10, 1 << 14),
            };
            // With more processors than that many entries are for, the number of processors counts.
            let most = if group.forgets() { most.max(first) } else { most };
            (group, Bound { first: first.min(most), most })
        };
        Self {
            blocks: share(64, 4096, 512, skep_ebpf::SLOTS / skep_ebpf::SLOTS_PER_BLOCK),
            fragments: least,
            groups: MapGroup::ALL.into_iter().map(bound).collect(),
        }
    }

    /// The room of each group at a start, when maps with the room `pinned` may be there: as it is, if that is within the bounds.
    pub(super) fn at_start(&self, pinned: &Rooms) -> Rooms {
        let room = |(group, bound): (&MapGroup, &Bound)| {
            (*group, pinned.get(group).map_or(bound.first, |room| (*room).clamp(bound.first, bound.most)))
        };
        self.groups.iter().map(room).collect()
    }

    /// Groups whose room may still grow.
    pub(super) fn growable(&self, rooms: &Rooms) -> impl Iterator<Item = (MapGroup, u32)> {
        rooms
            .iter()
            .filter(|(group, room)| self.groups.get(group).is_some_and(|bound| **room < bound.most))
            .map(|(g, r)| (*g, *r))
    }

    /// The room of each group for so many entries in use; `None`: as it is.
    pub(super) fn grown(&self, rooms: &Rooms, used: &BTreeMap<MapGroup, u64>) -> Option<Rooms> {
        let mut grown = rooms.clone();
        for (group, room) in &mut grown {
            let (Some(used), Some(bound)) = (used.get(group), self.groups.get(group)) else { continue };
            if *room < bound.most && group.is_short(*used, *room) {
                let wanted = (u64::from(*room) * GROWTH).max((used * GROWTH).next_power_of_two());
                *room = u32::try_from(wanted).unwrap_or(bound.most).min(bound.most);
            }
        }
        (grown != *rooms).then_some(grown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIGABYTE: u64 = 1 << 30;

    fn rooms(bounds: &Bounds) -> Rooms {
        bounds.at_start(&Rooms::new())
    }

    #[test]
    fn small_machines_keep_most_of_their_memory() {
        use MapGroup::{Choices, DatagramPeers, Peers, SynFlows, TcpFlows, UdpFlows};
        for gigabytes in [1, 2, 4, 64] {
            let bounds = Bounds::new(gigabytes * GIGABYTE, 2, 0);
            let most = |groups: &[MapGroup]| groups.iter().map(|group| u64::from(bounds.groups[group].most)).sum::<u64>();
            let (flows, peers) = (most(&[TcpFlows, SynFlows, UdpFlows]), most(&[Peers, DatagramPeers, Choices]));
            let all = u64::from(bounds.blocks) * 4096 + peers * 90 + flows * 300;
            assert!(all <= gigabytes * GIGABYTE / 32, "{gigabytes} GB: {bounds:?}");
        }
        let most = |bounds: Bounds| bounds.groups.into_values().map(|bound| bound.most).collect::<Vec<_>>();
        let largest = [1 << 18, 1 << 15, 1 << 16, 1 << 15, 1 << 14, 1 << 14, 1 << 16, 1 << 15, 1 << 14];
        assert_eq!(most(Bounds::new(256 * GIGABYTE, 2, 0)), largest);
        assert_eq!(most(Bounds::new(0, 2, 0))[..6], [1 << 14, 1 << 13, 1 << 13, 1 << 13, 1 << 12, 1 << 12]);
        assert_eq!(most(Bounds::new(0, 2, 5_000))[0], 5_000, "as the setting says");
    }

    #[test]
    fn a_start_takes_little_room_and_keeps_what_is_there_within_the_bounds() {
        let bounds = Bounds::new(256 * GIGABYTE, 2, 0);
        assert_eq!(
            rooms(&bounds).into_values().collect::<Vec<_>>(),
            [1 << 15, 1 << 11, 1 << 11, 1 << 11, 1 << 11, 1 << 11, 1 << 12, 1 << 11, 1 << 10]
        );
        let pinned = Rooms::from([(MapGroup::UdpFlows, 1 << 15), (MapGroup::TcpFlows, 1 << 20), (MapGroup::Vips, 7)]);
        let kept = bounds.at_start(&pinned);
        assert_eq!(kept[&MapGroup::UdpFlows], 1 << 15);
        assert_eq!((kept[&MapGroup::TcpFlows], kept[&MapGroup::Vips]), (1 << 18, 1 << 10));
        assert_eq!(Bounds::new(GIGABYTE, 2, 5_000).at_start(&pinned)[&MapGroup::TcpFlows], 5_000);
        // What forgets has room for what the kernel keeps aside for each processor.
        let many = rooms(&Bounds::new(1024 * GIGABYTE, 256, 0));
        assert_eq!((many[&MapGroup::SynFlows], many[&MapGroup::Choices], many[&MapGroup::Vips]), (1 << 16, 1 << 16, 1 << 10));
    }

    #[test]
    fn room_grows_with_use_up_to_the_bound() {
        use MapGroup::{Backends, Peers, TcpFlows, UdpFlows};
        let bounds = Bounds::new(256 * GIGABYTE, 2, 0);
        let start = rooms(&bounds);
        assert_eq!(bounds.grown(&start, &BTreeMap::new()), None);
        let few = BTreeMap::from([(UdpFlows, 682), (Peers, 1536), (TcpFlows, 10_922), (Backends, 1365)]);
        assert_eq!(bounds.grown(&start, &few), None);
        let more = few.into_iter().map(|(group, used)| (group, used + 1)).collect();
        let grown = bounds.grown(&start, &more).expect("grows");
        assert_eq!((grown[&UdpFlows], grown[&Peers], grown[&TcpFlows]), (1 << 13, 1 << 13, 1 << 17));
        assert_eq!(grown[&MapGroup::SynFlows], start[&MapGroup::SynFlows], "the others stay");
        let at_once = bounds.grown(&start, &BTreeMap::from([(Backends, 30_000)])).expect("grows");
        assert_eq!(at_once[&Backends], 1 << 16, "what the services need");
        let mut rooms = start;
        while let Some(grown) = bounds.grown(&rooms, &BTreeMap::from([(UdpFlows, 1 << 30)])) {
            assert!(grown[&UdpFlows] > rooms[&UdpFlows]);
            rooms = grown;
        }
        assert_eq!(rooms[&UdpFlows], 1 << 16);
    }
}

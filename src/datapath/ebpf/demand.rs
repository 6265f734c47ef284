//! What is in use of the maps that grow.

use super::batch::each;
use super::load::Loaded;
use super::occupancy::Occupancy;
use super::sizes::MapGroup;
use anyhow::Context as _;
use aya::Pod;
use aya::maps::Map;
use skep_ebpf::{Flow, Reply, SYN_KNOWN, Tuple, elapsed, is_zero};
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

/// Entries that the maps need which the daemon writes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TableNeeds {
    pub backends: usize,
    pub ports: usize,
    pub vips: usize,
}

impl TableNeeds {
    pub(super) fn by_group(self) -> BTreeMap<MapGroup, u64> {
        let groups = [(MapGroup::Backends, self.backends), (MapGroup::Ports, self.ports), (MapGroup::Vips, self.vips)];
        groups.into_iter().map(|(group, entries)| (group, entries as u64)).collect()
    }
}

/// Seconds for which the entry of a TCP connection that is not established, or is over, is in use.
const SYN_RECENT: u32 = 60;

impl Loaded {
    /// What is in use of the maps that the programs write. A table that forgets is full most of the time: of its flows those count
    /// whose client was heard lately. `occupancy`: as just read; times in seconds of the monotonic clock.
    pub(super) fn used(
        &self,
        occupancy: &BTreeMap<String, Occupancy>,
        now: u32,
        udp_idle: u32,
    ) -> anyhow::Result<BTreeMap<MapGroup, u64>> {
        let entries = |group: MapGroup| {
            let entries = group.maps().iter().filter_map(|map| occupancy.get(*map)).map(|map| map.entries).max();
            (group, entries.unwrap_or_default())
        };
        let kept = [MapGroup::TcpFlows, MapGroup::Peers, MapGroup::DatagramPeers, MapGroup::Choices];
        let mut used: BTreeMap<MapGroup, u64> = kept.into_iter().map(entries).collect();
        for (group, recent) in [(MapGroup::SynFlows, SYN_RECENT), (MapGroup::UdpFlows, udp_idle)] {
            // Those of clients of this node; and, on the node of a task, those of clients of others.
            let own = self.count::<Flow>(group.maps()[0], |flow| elapsed(now, flow.seen) <= recent)?;
            let others = self.count::<Reply>(group.maps()[1], |reply| {
                !is_zero(&reply.entry) && reply.flags & SYN_KNOWN == 0 && elapsed(now, reply.seen) <= recent
            })?;
            used.insert(group, own + others);
        }
        Ok(used)
    }

    fn count<V: Pod>(&self, name: &str, is_used: impl Fn(&V) -> bool) -> anyhow::Result<u64> {
        let Some(Map::LruHashMap(map)) = self.ebpf.map(name) else { anyhow::bail!("the object has no table {name}") };
        let mut count = 0;
        each(map.fd().as_fd(), |_: &Tuple, value: &V| count += u64::from(is_used(value)))
            .with_context(|| format!("cannot read {name}"))?;
        Ok(count)
    }
}

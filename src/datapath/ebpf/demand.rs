//! What is in use of the maps that grow.

use super::batch::each;
use super::load::Loaded;
use super::sizes::MapGroup;
use anyhow::Context as _;
use aya::Pod;
use aya::maps::Map;
use skep_ebpf::{Flow, Reply, SYN_KNOWN, SocketPeer, Tuple, V4, elapsed, is_zero};
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
    /// What is in use of the groups of maps that the programs write. A table that forgets is full most of the time: of its flows
    /// those count whose client was heard lately. Times in seconds of the monotonic clock.
    pub(super) fn used(
        &self,
        groups: impl Iterator<Item = MapGroup>,
        now: u32,
        udp_idle: u32,
    ) -> anyhow::Result<BTreeMap<MapGroup, u64>> {
        let mut used = BTreeMap::new();
        for group in groups {
            let flows = |recent: u32| self.recent_flows(group, now, recent);
            let entries = match group {
                MapGroup::SynFlows => flows(SYN_RECENT)?,
                MapGroup::UdpFlows => flows(udp_idle)?,
                // On the node of a task there are reply entries only.
                MapGroup::TcpFlows => self.entries::<Tuple, Reply>("TCP_REPLIES", |_| true)?,
                MapGroup::Peers | MapGroup::DatagramPeers | MapGroup::Choices => {
                    self.entries::<SocketPeer, V4>(group.maps()[0], |_| true)?
                }
                // The daemon knows.
                MapGroup::Backends | MapGroup::Ports | MapGroup::Vips => continue,
            };
            used.insert(group, entries);
        }
        Ok(used)
    }

    /// Flows of clients of this node; and, on the node of a task, those of clients of others.
    fn recent_flows(&self, group: MapGroup, now: u32, recent: u32) -> anyhow::Result<u64> {
        let own = self.entries::<Tuple, Flow>(group.maps()[0], |flow| elapsed(now, flow.seen) <= recent)?;
        let others = self.entries::<Tuple, Reply>(group.maps()[1], |reply| {
            !is_zero(&reply.entry) && reply.flags & SYN_KNOWN == 0 && elapsed(now, reply.seen) <= recent
        })?;
        Ok(own + others)
    }

    fn entries<K: Pod, V: Pod>(&self, name: &str, is_used: impl Fn(&V) -> bool) -> anyhow::Result<u64> {
        let Some(Map::LruHashMap(map) | Map::HashMap(map)) = self.ebpf.map(name) else {
            anyhow::bail!("the object has no table {name}")
        };
        let mut count = 0;
        each(map.fd().as_fd(), |_: &K, value: &V| count += u64::from(is_used(value)))
            .with_context(|| format!("cannot read {name}"))?;
        Ok(count)
    }
}

//! Reads and changes the maps: whole reads, changes entry by entry.

use super::load::{Loaded, chain};
use super::slots::{self, SlotReader};
use super::step::EbpfStep;
use super::tables::{Range, Sources, Subnets6, Tables};
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use skep_ebpf::{
    Address, Backend, Config, Counter, Frontend, NetnsMembership, Port, SlotBlock, SocketPeer, Source, Subnet6, Target, V4, Vip,
    convert,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

/// The error with the name of its map.
fn named(name: &str, error: &MapError) -> anyhow::Error {
    anyhow::anyhow!("map {name}: {}", chain(error))
}

/// The result of a removal where the entry may be missing already.
fn ignore_missing(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Loaded {
    fn map(&self, name: &str) -> anyhow::Result<&Map> {
        self.ebpf.map(name).ok_or_else(|| anyhow::anyhow!("the object has no map {name}"))
    }
    fn map_mut(&mut self, name: &str) -> anyhow::Result<&mut Map> {
        self.ebpf.map_mut(name).ok_or_else(|| anyhow::anyhow!("the object has no map {name}"))
    }

    /// All entries of a map.
    pub(super) fn dump<K: Pod + Ord, V: Pod>(&self, name: &str) -> anyhow::Result<BTreeMap<K, V>> {
        let map: HashMap<&MapData, K, V> = HashMap::try_from(self.map(name)?).map_err(|e| named(name, &e))?;
        let mut all = BTreeMap::new();
        for entry in &map {
            let (key, value) = entry.map_err(|e| named(name, &e))?;
            all.insert(key, value);
        }
        Ok(all)
    }

    fn set<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) -> anyhow::Result<()> {
        let mut map: HashMap<&mut MapData, K, V> = HashMap::try_from(self.map_mut(name)?).map_err(|e| named(name, &e))?;
        map.insert(key, value, 0).map_err(|e| named(name, &e))
    }

    fn unset<K: Pod, V: Pod>(&mut self, name: &str, key: K) -> anyhow::Result<()> {
        let mut map: HashMap<&mut MapData, K, V> = HashMap::try_from(self.map_mut(name)?).map_err(|e| named(name, &e))?;
        ignore_missing(map.remove(&key)).map_err(|e| named(name, &e))
    }

    fn sources(&self) -> anyhow::Result<Sources> {
        let map: LpmTrie<&MapData, Source, u32> = LpmTrie::try_from(self.map("SOURCES")?).map_err(|e| named("SOURCES", &e))?;
        let keys: Result<Vec<Key<Source>>, MapError> = map.keys().collect();
        let keys = keys.map_err(|e| named("SOURCES", &e))?;
        Ok(keys.into_iter().map(|key| (key.prefix_len(), key.data())).collect())
    }

    fn sources_mut(&mut self) -> anyhow::Result<LpmTrie<&mut MapData, Source, u32>> {
        LpmTrie::try_from(self.map_mut("SOURCES")?).map_err(|e| named("SOURCES", &e))
    }

    fn add_source(&mut self, length: u32, source: Source) -> anyhow::Result<()> {
        self.sources_mut()?.insert(&Key::new(length, source), 1, 0).map_err(|e| named("SOURCES", &e))
    }

    fn remove_source(&mut self, length: u32, source: Source) -> anyhow::Result<()> {
        ignore_missing(self.sources_mut()?.remove(&Key::new(length, source))).map_err(|e| named("SOURCES", &e))
    }

    pub(super) fn subnets6(&self) -> anyhow::Result<Subnets6> {
        let map: LpmTrie<&MapData, Address, Subnet6> =
            LpmTrie::try_from(self.map("SUBNETS6")?).map_err(|e| named("SUBNETS6", &e))?;
        let mut all = Subnets6::new();
        for entry in &map {
            let (key, subnet) = entry.map_err(|e| named("SUBNETS6", &e))?;
            all.insert((key.prefix_len(), key.data()), subnet);
        }
        Ok(all)
    }

    fn subnets6_mut(&mut self) -> anyhow::Result<LpmTrie<&mut MapData, Address, Subnet6>> {
        LpmTrie::try_from(self.map_mut("SUBNETS6")?).map_err(|e| named("SUBNETS6", &e))
    }

    fn counts_mut<K: Pod>(&mut self, name: &str) -> anyhow::Result<PerCpuHashMap<&mut MapData, K, u64>> {
        PerCpuHashMap::try_from(self.map_mut(name)?).map_err(|e| named(name, &e))
    }

    /// Creates a counter with zero, unless it exists: the programs count only in existing entries.
    fn make_count<K: Pod>(&mut self, name: &str, key: K) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let mut map = self.counts_mut(name)?;
        if map.get(&key, 0).is_ok() {
            return Ok(());
        }
        map.insert(key, PerCpuValues::try_from(vec![0; cpus])?, 0).map_err(|e| named(name, &e))
    }

    fn remove_count<K: Pod>(&mut self, name: &str, key: K) -> anyhow::Result<()> {
        ignore_missing(self.counts_mut(name)?.remove(&key)).map_err(|e| named(name, &e))
    }

    /// Counters by key, summed over the processors.
    pub(super) fn sums<K: Pod + Ord>(&self, name: &str) -> anyhow::Result<BTreeMap<K, u64>> {
        let map: PerCpuHashMap<&MapData, K, u64> = PerCpuHashMap::try_from(self.map(name)?).map_err(|e| named(name, &e))?;
        let mut all = BTreeMap::new();
        for entry in &map {
            let (key, values) = entry.map_err(|e| named(name, &e))?;
            all.insert(key, values.iter().sum());
        }
        Ok(all)
    }

    /// Whether a UDP socket that is connected to this backend asked for a virtual address.
    pub(super) fn asked_for_vip(&self, cookie: u64, to: SocketAddrV4) -> bool {
        let peer = SocketPeer { cookie, address: convert::v4(*to.ip()), port: convert::port(to.port()), flags: 0 };
        let map = self.map("DATAGRAM_PEERS").ok().and_then(|map| HashMap::<&MapData, SocketPeer, V4>::try_from(map).ok());
        map.is_some_and(|map| map.get(&peer, 0).is_ok())
    }

    /// Reads the maps that the loader writes.
    pub(super) fn read_tables(&self) -> anyhow::Result<Tables> {
        let config: Array<&MapData, Config> = Array::try_from(self.map("CONFIG")?).map_err(|e| named("CONFIG", &e))?;
        let mut tables = Tables {
            config: config.get(&0, 0).map_err(|e| named("CONFIG", &e))?,
            vips: self.dump::<V4, Vip>("VIPS")?,
            members: self.dump::<NetnsMembership, V4>("MEMBERS")?,
            ports: self.dump::<Port, Frontend>("PORTS")?,
            backends: self.dump::<V4, Backend>("BACKENDS")?,
            targets: self.dump::<Target, u32>("TARGETS")?.into_keys().collect(),
            locals: self.dump::<Address, u32>("LOCALS")?.into_keys().collect(),
            uplinks: self.dump::<u32, u32>("UPLINKS")?.into_keys().collect(),
            sources: self.sources()?,
            subnets6: self.subnets6()?,
            slots: BTreeMap::new(),
            room: 0,
            blocks: slots::blocks(&self.ebpf)?,
        };
        let ranges: BTreeSet<Range> = tables.ranges().collect();
        tables.room = slots::room(&self.ebpf)?;
        let mut reader = SlotReader::new(&self.ebpf)?;
        for (base, size) in ranges {
            // A damaged entry may name slots beyond the end of the map: such a range is read as empty.
            tables.slots.insert((base, size), reader.range(base, size).unwrap_or_default().into());
        }
        Ok(tables)
    }

    /// Carries out a step that concerns a map; others have no effect.
    pub(super) fn change(&mut self, step: &EbpfStep) -> anyhow::Result<()> {
        match step {
            EbpfStep::Config(config) => {
                let map = self.map_mut("CONFIG")?;
                let mut map: Array<&mut MapData, Config> = Array::try_from(map).map_err(|e| named("CONFIG", &e))?;
                map.set(0, config, 0).map_err(|e| named("CONFIG", &e))
            }
            EbpfStep::Slots(first, addresses) => slots::write(&mut self.ebpf, *first, addresses),
            EbpfStep::FreeBlock(number) => self.unset::<_, SlotBlock>("SLOTS", *number),
            EbpfStep::SetVip(address, vip) => {
                self.make_count("VIP_COUNTS", *address)?;
                self.set("VIPS", *address, *vip)
            }
            EbpfStep::RemoveVip(address) => {
                self.unset::<_, Vip>("VIPS", *address)?;
                self.remove_count("VIP_COUNTS", *address)
            }
            EbpfStep::SetPort(port, frontend) => {
                self.make_count("PORT_COUNTS", *port)?;
                self.set("PORTS", *port, *frontend)
            }
            EbpfStep::RemovePort(port) => {
                self.unset::<_, Frontend>("PORTS", *port)?;
                self.remove_count("PORT_COUNTS", *port)
            }
            EbpfStep::SetBackend(address, backend) => self.set("BACKENDS", *address, *backend),
            EbpfStep::RemoveBackend(address) => self.unset::<_, Backend>("BACKENDS", *address),
            EbpfStep::AddTarget(target) => self.set("TARGETS", *target, 1_u32),
            EbpfStep::RemoveTarget(target) => self.unset::<_, u32>("TARGETS", *target),
            EbpfStep::AddLocal(address) => self.set("LOCALS", *address, 1_u32),
            EbpfStep::RemoveLocal(address) => self.unset::<_, u32>("LOCALS", *address),
            EbpfStep::AddUplink(index) => self.set("UPLINKS", *index, 1_u32),
            EbpfStep::RemoveUplink(index) => self.unset::<_, u32>("UPLINKS", *index),
            EbpfStep::AddSource(length, source) => self.add_source(*length, *source),
            EbpfStep::RemoveSource(length, source) => self.remove_source(*length, *source),
            EbpfStep::AddMember(member, address) => {
                self.set("MEMBERS", *member, *address)?;
                self.mark_namespace(member)
            }
            EbpfStep::RemoveMember(member) => {
                self.unset::<_, V4>("MEMBERS", *member)?;
                self.mark_members().map(drop)
            }
            EbpfStep::AddSubnet6((length, first), subnet) => {
                self.subnets6_mut()?.insert(&Key::new(*length, *first), subnet, 0).map_err(|e| named("SUBNETS6", &e))
            }
            EbpfStep::RemoveSubnet6((length, first)) => {
                ignore_missing(self.subnets6_mut()?.remove(&Key::new(*length, *first))).map_err(|e| named("SUBNETS6", &e))
            }
            EbpfStep::Pair | EbpfStep::Attach(_) | EbpfStep::Detach(_) | EbpfStep::Unpin(_) => Ok(()),
        }
    }

    /// Counters by name, summed over the processors.
    pub(super) fn counters(&self) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(self.map("COUNTS")?).map_err(|e| named("COUNTS", &e))?;
        let mut all = BTreeMap::new();
        // A map that an earlier build pinned may lack the last ones.
        let room = map.len() as usize;
        for counter in Counter::ALL.iter().take(room) {
            let values = map.get(&(*counter as u32), 0).map_err(|e| named("COUNTS", &e))?;
            all.insert(counter.name(), values.iter().sum());
        }
        Ok(all)
    }
}

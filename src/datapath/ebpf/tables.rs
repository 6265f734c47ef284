//! The maps: read whole, changed entry by entry.

use super::load::{Loaded, chain};
use super::{Range, Sources, Step, Tables};
use anyhow::Context as _;
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use skep_ebpf::{Address, Backend, Config, Counter, Frontend, NetnsMembership, Port, SocketPeer, Source, V4, Vip, convert};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

fn named(what: &str, error: &MapError) -> anyhow::Error {
    anyhow::anyhow!("map {what}: {}", chain(error))
}

fn gone_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
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

    /// A whole map.
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
        gone_is_fine(map.remove(&key)).map_err(|e| named(name, &e))
    }

    fn sources(&self) -> anyhow::Result<Sources> {
        let map: LpmTrie<&MapData, Source, u32> = LpmTrie::try_from(self.map("SOURCES")?).map_err(|e| named("SOURCES", &e))?;
        let keys: Result<Vec<Key<Source>>, MapError> = map.keys().collect();
        let keys = keys.map_err(|e| named("SOURCES", &e))?;
        Ok(keys.into_iter().map(|key| (key.prefix_len(), key.data())).collect())
    }

    fn change_source(&mut self, length: u32, source: Source, add: bool) -> anyhow::Result<()> {
        let map = self.map_mut("SOURCES")?;
        let mut map: LpmTrie<&mut MapData, Source, u32> = LpmTrie::try_from(map).map_err(|e| named("SOURCES", &e))?;
        let key = Key::new(length, source);
        let done = if add { map.insert(&key, 1, 0) } else { gone_is_fine(map.remove(&key)) };
        done.map_err(|e| named("SOURCES", &e))
    }

    fn counts_mut<K: Pod>(&mut self, name: &str) -> anyhow::Result<PerCpuHashMap<&mut MapData, K, u64>> {
        PerCpuHashMap::try_from(self.map_mut(name)?).map_err(|e| named(name, &e))
    }

    /// Makes a number to count with, or leaves the one that is there.
    fn make_count<K: Pod>(&mut self, name: &str, key: K) -> anyhow::Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let mut map = self.counts_mut(name)?;
        if map.get(&key, 0).is_ok() {
            return Ok(());
        }
        map.insert(key, PerCpuValues::try_from(vec![0; cpus])?, 0).map_err(|e| named(name, &e))
    }

    fn drop_count<K: Pod>(&mut self, name: &str, key: K) -> anyhow::Result<()> {
        gone_is_fine(self.counts_mut(name)?.remove(&key)).map_err(|e| named(name, &e))
    }

    /// Numbers by key, summed over the processors.
    pub(super) fn sums<K: Pod + Ord>(&self, name: &str) -> anyhow::Result<BTreeMap<K, u64>> {
        let map: PerCpuHashMap<&MapData, K, u64> = PerCpuHashMap::try_from(self.map(name)?).map_err(|e| named(name, &e))?;
        let mut all = BTreeMap::new();
        for entry in &map {
            let (key, values) = entry.map_err(|e| named(name, &e))?;
            all.insert(key, values.iter().sum());
        }
        Ok(all)
    }

    /// Whether a connected UDP socket that talks to this end asked a virtual address for it.
    pub(super) fn asked_virtual(&self, cookie: u64, to: SocketAddrV4) -> bool {
        let peer = SocketPeer { cookie, address: convert::v4(*to.ip()), port: convert::port(to.port()), zero: 0 };
        let map = self.map("DATAGRAM_PEERS").ok().and_then(|map| HashMap::<&MapData, SocketPeer, V4>::try_from(map).ok());
        map.is_some_and(|map| map.get(&peer, 0).is_ok())
    }

    /// Everything.
    pub(super) fn look_at_tables(&self) -> anyhow::Result<Tables> {
        let config: Array<&MapData, Config> = Array::try_from(self.map("CONFIG")?).map_err(|e| named("CONFIG", &e))?;
        let mut tables = Tables {
            config: config.get(&0, 0).map_err(|e| named("CONFIG", &e))?,
            vips: self.dump::<V4, Vip>("VIPS")?,
            members: self.dump::<NetnsMembership, u32>("MEMBERS")?.into_keys().collect(),
            ports: self.dump::<Port, Frontend>("PORTS")?,
            backends: self.dump::<V4, Backend>("BACKENDS")?,
            locals: self.dump::<Address, u32>("LOCALS")?.into_keys().collect(),
            sources: self.sources()?,
            slots: BTreeMap::new(),
            room: 0,
        };
        let ranges: BTreeSet<Range> = tables.ranges().collect();
        tables.room = self.slots.length();
        for (base, size) in ranges {
            // A damaged entry may name slots that there are not: it holds nothing.
            tables.slots.insert((base, size), self.slots.read(base, size).unwrap_or_default().into());
        }
        Ok(tables)
    }

    /// Carries out a step that concerns a map.
    pub(super) fn change(&mut self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::Config(config) => {
                let map = self.map_mut("CONFIG")?;
                let mut map: Array<&mut MapData, Config> = Array::try_from(map).map_err(|e| named("CONFIG", &e))?;
                map.set(0, config, 0).map_err(|e| named("CONFIG", &e))
            }
            Step::Slots(first, addresses) => self.slots.write(*first, addresses).context("map SLOTS has no such slots"),
            Step::SetVip(address, vip) => {
                self.make_count("VIP_COUNTS", *address)?;
                self.set("VIPS", *address, *vip)
            }
            Step::RemoveVip(address) => {
                self.unset::<_, Vip>("VIPS", *address)?;
                self.drop_count("VIP_COUNTS", *address)
            }
            Step::SetPort(port, frontend) => {
                self.make_count("PORT_COUNTS", *port)?;
                self.set("PORTS", *port, *frontend)
            }
            Step::RemovePort(port) => {
                self.unset::<_, Frontend>("PORTS", *port)?;
                self.drop_count("PORT_COUNTS", *port)
            }
            Step::SetBackend(address, backend) => self.set("BACKENDS", *address, *backend),
            Step::RemoveBackend(address) => self.unset::<_, Backend>("BACKENDS", *address),
            Step::AddLocal(address) => self.set("LOCALS", *address, 1_u32),
            Step::RemoveLocal(address) => self.unset::<_, u32>("LOCALS", *address),
            Step::AddSource(length, source) => self.change_source(*length, *source, true),
            Step::RemoveSource(length, source) => self.change_source(*length, *source, false),
            Step::AddMember(member) => self.set("MEMBERS", *member, 1_u32),
            Step::RemoveMember(member) => self.unset::<_, u32>("MEMBERS", *member),
            Step::Pair | Step::Attach(_) | Step::Detach(_) | Step::Unpin(_) => Ok(()),
        }
    }

    /// Counters by name, summed over the processors.
    pub(super) fn counters(&self) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(self.map("COUNTS")?).map_err(|e| named("COUNTS", &e))?;
        let mut all = BTreeMap::new();
        for counter in Counter::ALL {
            let values = map.get(&(*counter as u32), 0).map_err(|e| named("COUNTS", &e))?;
            all.insert(counter.name(), values.iter().sum());
        }
        Ok(all)
    }
}

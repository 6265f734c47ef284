//! The maps: read whole, changed entry by entry.

use super::load::{Loaded, chain};
use super::{Range, Step, Tables};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use skep_ebpf::{Address, Backend, COUNTERS, Config, Frontend, Member, Port, Vip};
use std::collections::BTreeMap;

fn named(what: &str, error: &MapError) -> anyhow::Error {
    anyhow::anyhow!("map {what}: {}", chain(error))
}

impl Loaded {
    fn map(&self, name: &str) -> anyhow::Result<&Map> {
        self.ebpf.map(name).ok_or_else(|| anyhow::anyhow!("the object has no map {name}"))
    }
    fn map_mut(&mut self, name: &str) -> anyhow::Result<&mut Map> {
        self.ebpf.map_mut(name).ok_or_else(|| anyhow::anyhow!("the object has no map {name}"))
    }

    fn dump<K: Pod + Ord, V: Pod>(&self, name: &str) -> anyhow::Result<BTreeMap<K, V>> {
        let map: HashMap<&MapData, K, V> = HashMap::try_from(self.map(name)?).map_err(|e| named(name, &e))?;
        let mut all = BTreeMap::new();
        for entry in map.iter() {
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
        match map.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(named(name, &error)),
        }
    }

    /// Everything.
    pub(super) fn look_at_tables(&self) -> anyhow::Result<Tables> {
        let config: Array<&MapData, Config> = Array::try_from(self.map("CONFIG")?).map_err(|e| named("CONFIG", &e))?;
        let mut tables = Tables {
            config: config.get(&0, 0).map_err(|e| named("CONFIG", &e))?,
            vips: self.dump::<Address, Vip>("VIPS")?,
            members: self.dump::<Member, u32>("MEMBERS")?.into_keys().collect(),
            ports: self.dump::<Port, Frontend>("PORTS")?,
            backends: self.dump::<Address, Backend>("BACKENDS")?,
            locals: self.dump::<Address, u32>("LOCALS")?.into_keys().collect(),
            slots: BTreeMap::new(),
        };
        let vips = tables.vips.values().map(|vip| (vip.base, vip.size));
        let ranges: Vec<Range> = vips.chain(tables.ports.values().map(|port| (port.base, port.size))).collect();
        let slots: Array<&MapData, Address> = Array::try_from(self.map("SLOTS")?).map_err(|e| named("SLOTS", &e))?;
        for (base, size) in ranges {
            let mut all = Vec::new();
            // A damaged entry may name slots that there are not.
            for index in base..base.saturating_add(size).min(slots.len()) {
                all.push(slots.get(&index, 0).map_err(|e| named("SLOTS", &e))?);
            }
            tables.slots.insert((base, size), all);
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
            Step::Slots(first, addresses) => {
                let map = self.map_mut("SLOTS")?;
                let mut map: Array<&mut MapData, Address> = Array::try_from(map).map_err(|e| named("SLOTS", &e))?;
                for (index, address) in (*first..).zip(addresses) {
                    map.set(index, address, 0).map_err(|e| named("SLOTS", &e))?;
                }
                Ok(())
            }
            Step::SetVip(address, vip) => self.set("VIPS", *address, *vip),
            Step::RemoveVip(address) => self.unset::<_, Vip>("VIPS", *address),
            Step::SetPort(port, frontend) => self.set("PORTS", *port, *frontend),
            Step::RemovePort(port) => self.unset::<_, Frontend>("PORTS", *port),
            Step::SetBackend(address, backend) => self.set("BACKENDS", *address, *backend),
            Step::RemoveBackend(address) => self.unset::<_, Backend>("BACKENDS", *address),
            Step::AddLocal(address) => self.set("LOCALS", *address, 1_u32),
            Step::RemoveLocal(address) => self.unset::<_, u32>("LOCALS", *address),
            Step::AddMember(member) => self.set("MEMBERS", *member, 1_u32),
            Step::RemoveMember(member) => self.unset::<_, u32>("MEMBERS", *member),
            Step::Attach(_) | Step::Detach(_) | Step::Unpin(_) => Ok(()),
        }
    }

    /// Counters by name, summed over the processors.
    pub(super) fn counters(&self) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(self.map("COUNTS")?).map_err(|e| named("COUNTS", &e))?;
        let mut all = BTreeMap::new();
        for (index, name) in (0..).zip(COUNTERS) {
            let values = map.get(&index, 0).map_err(|e| named("COUNTS", &e))?;
            all.insert(name, values.iter().sum());
        }
        Ok(all)
    }
}

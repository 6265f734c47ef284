//! Maps whose room changes. The pins of those of another size are moved aside, so that the loader creates maps of the right one.
//! What the daemon writes is carried over before any program uses it; flows by [`super::takeover`], while programs are replaced.

use super::sizes::{MapGroup, Rooms};
use crate::durable::ignore_missing;
use anyhow::Context as _;
use aya::maps::{HashMap, Map, MapData, PerCpuHashMap};
use aya::{Ebpf, EbpfLoader, Pod};
use skep_ebpf::{Backend, Flow, Frontend, Port, Reply, Target, Tuple, V4, Vip};
use std::fs;
use std::path::Path;

/// Folder, beside that of the maps, that maps of another size are moved to until their entries are carried over.
pub(super) const RESIZED: &str = "maps-resized";

/// Update an entry only if there is none.
const BPF_NOEXIST: u64 = 1;

fn room_of(pin: &Path) -> Option<u32> {
    MapData::from_pin(pin).and_then(|map| map.info().map(|info| info.max_entries())).ok()
}

/// Tables of flows that the programs read too while there are those of another size: their names in the object, and of the pins.
const EARLIER: [(&str, &str); 6] = [
    ("EARLIER_TCP_FLOWS", "TCP_FLOWS"),
    ("EARLIER_TCP_REPLIES", "TCP_REPLIES"),
    ("EARLIER_SYN_FLOWS", "SYN_FLOWS"),
    ("EARLIER_SYN_REPLIES", "SYN_REPLIES"),
    ("EARLIER_UDP_FLOWS", "UDP_FLOWS"),
    ("EARLIER_UDP_REPLIES", "UDP_REPLIES"),
];

/// Has the programs read the tables of flows that were moved aside: a connection may begin at an earlier program, and its next
/// packet come to one of these.
pub(super) fn read_earlier(aside: &Path, loader: &mut EbpfLoader<'_>) {
    for (name, pin) in EARLIER.map(|(name, pin)| (name, aside.join(pin))) {
        if pin.exists() {
            loader.map_pin_path(name, pin);
        }
    }
}

/// Gives the memory back that connections take in tables which are read no more; the programs keep the tables themselves.
pub(super) fn forget_earlier(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    clear::<Flow>(ebpf, "EARLIER_TCP_FLOWS")?;
    clear::<Reply>(ebpf, "EARLIER_TCP_REPLIES")
}

fn clear<V: Pod>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<()> {
    let mut map: HashMap<&mut MapData, Tuple, V> = HashMap::try_from(new(ebpf, name)?)?;
    while let Some(Ok(key)) = map.keys().next() {
        map.remove(&key)?;
    }
    Ok(())
}

/// The room of each group whose maps are pinned in `maps`.
pub(super) fn pinned_rooms(maps: &Path) -> Rooms {
    MapGroup::ALL.into_iter().filter_map(|group| Some((group, room_of(&maps.join(group.maps()[0]))?))).collect()
}

/// Moves the pins of maps with another room than wanted from `maps` to `aside`.
pub(super) fn set_aside(maps: &Path, aside: &Path, wanted: &Rooms) -> anyhow::Result<()> {
    for (group, wanted) in wanted {
        // All of a group: a flow and its reply entry are carried over together.
        if !group.maps().iter().any(|map| room_of(&maps.join(map)).is_some_and(|room| room != *wanted)) {
            continue;
        }
        fs::create_dir_all(aside).with_context(|| format!("cannot create {}", aside.display()))?;
        for map in group.maps() {
            let pin = maps.join(map);
            ignore_missing(fs::rename(&pin, aside.join(map))).with_context(|| format!("cannot move {}", pin.display()))?;
        }
    }
    Ok(())
}

/// Carries what the daemon writes, and the counters of it, from the maps in `aside` over to those of the object. Programs that
/// are attached use the slots that these name: without the names the slots would be given to others.
pub(super) fn carry_tables(aside: &Path, ebpf: &mut Ebpf) -> anyhow::Result<()> {
    carry::<V4, Backend>(aside, ebpf, "BACKENDS")?;
    carry::<Port, Frontend>(aside, ebpf, "PORTS")?;
    carry::<Target, u32>(aside, ebpf, "TARGETS")?;
    carry::<V4, Vip>(aside, ebpf, "VIPS")?;
    carry_counts::<Port>(aside, ebpf, "PORT_COUNTS")?;
    carry_counts::<V4>(aside, ebpf, "VIP_COUNTS")
}

/// The map that was moved aside.
fn old(pin: &Path) -> anyhow::Result<Option<Map>> {
    if !pin.exists() {
        return Ok(None);
    }
    let map = MapData::from_pin(pin).and_then(Map::from_map_data);
    map.map(Some).with_context(|| format!("cannot open {}", pin.display()))
}

fn new<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Map> {
    ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
}

fn carry<K: Pod, V: Pod>(aside: &Path, ebpf: &mut Ebpf, name: &str) -> anyhow::Result<()> {
    let pin = aside.join(name);
    let Some(old) = old(&pin)? else { return Ok(()) };
    let old = HashMap::<MapData, K, V>::try_from(old)?;
    let mut new: HashMap<&mut MapData, K, V> = HashMap::try_from(new(ebpf, name)?)?;
    for entry in &old {
        let (key, value) = entry?;
        // One that does not fit, or is there already, is the next plan's.
        let _ = new.insert(key, value, BPF_NOEXIST);
    }
    fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))
}

fn carry_counts<K: Pod>(aside: &Path, ebpf: &mut Ebpf, name: &str) -> anyhow::Result<()> {
    let pin = aside.join(name);
    let Some(old) = old(&pin)? else { return Ok(()) };
    let old = PerCpuHashMap::<MapData, K, u64>::try_from(old)?;
    let mut new: PerCpuHashMap<&mut MapData, K, u64> = PerCpuHashMap::try_from(new(ebpf, name)?)?;
    for entry in &old {
        let (key, values) = entry?;
        let _ = new.insert(key, values, BPF_NOEXIST);
    }
    fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))
}

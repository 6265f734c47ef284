//! The slots of all tables, in blocks of the map `SLOTS`. The kernel allocates a block when its first slot is written, so that a
//! node with few services uses little memory for them.

use super::load::chain;
use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};
use skep_ebpf::{SLOTS_PER_BLOCK, SlotBlock, V4};
use std::collections::{BTreeMap, BTreeSet};

fn failed(error: &MapError) -> anyhow::Error {
    anyhow::anyhow!("map SLOTS: {}", chain(error))
}

/// Number of slots that there is room for.
pub(super) fn room(ebpf: &Ebpf) -> anyhow::Result<u32> {
    let Some(Map::HashMap(map)) = ebpf.map("SLOTS") else { anyhow::bail!("the object has no hash table SLOTS") };
    Ok(map.info()?.max_entries().saturating_mul(SLOTS_PER_BLOCK))
}

/// Numbers of the blocks that exist.
pub(super) fn blocks(ebpf: &Ebpf) -> anyhow::Result<BTreeSet<u32>> {
    let map = ebpf.map("SLOTS").context("the object has no map SLOTS")?;
    let map: HashMap<&MapData, u32, SlotBlock> = HashMap::try_from(map).map_err(|e| failed(&e))?;
    map.keys().collect::<Result<_, _>>().map_err(|e| failed(&e))
}

/// The part of a range of slots, from `at` to before `end`, that is in the block of its first slot: the block's number, and
/// the positions in it.
fn part(at: u32, end: u32) -> (u32, std::ops::Range<usize>) {
    let from = at % SLOTS_PER_BLOCK;
    let to = SLOTS_PER_BLOCK.min(from + (end - at));
    (at / SLOTS_PER_BLOCK, from as usize..to as usize)
}

/// Reads ranges of slots; each block once.
pub(super) struct SlotReader<'a> {
    map: HashMap<&'a MapData, u32, SlotBlock>,
    room: u32,
    read: BTreeMap<u32, Option<Box<SlotBlock>>>,
}

impl<'a> SlotReader<'a> {
    pub(super) fn new(ebpf: &'a Ebpf) -> anyhow::Result<Self> {
        let map = ebpf.map("SLOTS").context("the object has no map SLOTS")?;
        Ok(Self { map: HashMap::try_from(map).map_err(|e| failed(&e))?, room: room(ebpf)?, read: BTreeMap::new() })
    }

    /// Reads `size` slots from `first` on; `None` if a block of them does not exist.
    pub(super) fn range(&mut self, first: u32, size: u32) -> Option<Vec<V4>> {
        let end = first.checked_add(size).filter(|end| *end <= self.room)?;
        let (mut slots, mut at) = (Vec::with_capacity(size as usize), first);
        while at < end {
            let (number, positions) = part(at, end);
            let map = &self.map;
            let block = self.read.entry(number).or_insert_with(|| map.get(&number, 0).ok().map(Box::new));
            at += u32::try_from(positions.len()).ok()?;
            slots.extend_from_slice(&block.as_ref()?[positions]);
        }
        Some(slots)
    }
}

/// Writes slots from `first` on. A frontend that is changed to them afterwards becomes visible after them.
pub(super) fn write(ebpf: &mut Ebpf, first: u32, slots: &[V4]) -> anyhow::Result<()> {
    let room = room(ebpf)?;
    let end = u32::try_from(slots.len()).ok().and_then(|size| first.checked_add(size)).filter(|end| *end <= room);
    let end = end.context("map SLOTS has no such slots")?;
    let map = ebpf.map_mut("SLOTS").context("the object has no map SLOTS")?;
    let mut map: HashMap<&mut MapData, u32, SlotBlock> = HashMap::try_from(map).map_err(|e| failed(&e))?;
    let (mut at, mut rest) = (first, slots);
    while at < end {
        let (number, positions) = part(at, end);
        let mut block = match map.get(&number, 0) {
            Err(MapError::KeyNotFound) => [0; SLOTS_PER_BLOCK as usize],
            block => block.map_err(|e| failed(&e))?,
        };
        let (these, others) = rest.split_at(positions.len());
        block[positions].copy_from_slice(these);
        // Replaced whole: the tables of other frontends in it stay as they are.
        map.insert(number, block, 0).map_err(|e| failed(&e))?;
        at += u32::try_from(these.len())?;
        rest = others;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{SLOTS_PER_BLOCK, part};

    #[test]
    fn a_range_is_divided_at_the_ends_of_blocks() {
        let size = SLOTS_PER_BLOCK as usize;
        let (mut at, end, mut parts) = (SLOTS_PER_BLOCK - 3, 2 * SLOTS_PER_BLOCK + 5, Vec::new());
        while at < end {
            let (number, positions) = part(at, end);
            at += u32::try_from(positions.len()).unwrap();
            parts.push((number, positions));
        }
        assert_eq!(parts, [(0, size - 3..size), (1, 0..size), (2, 0..5)]);
        assert_eq!(part(7, 9), (0, 7..9));
    }
}

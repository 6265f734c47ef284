//! Allocates ranges of the slot array to tables of backends. Frontends with the same backends share one table. A table is
//! never changed in place: the new one is written to free slots, then the frontend's entry is pointed at it, so that no packet
//! sees a mixture of both. Pure.

use crate::datapath::ebpf::{Range, Slots, Tables};
use skep_ebpf::{SLOTS_PER_BLOCK, V4};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Which ranges of the slot array are allocated, and to what.
pub struct SlotAllocator {
    /// Number of slots in the array.
    capacity: u32,
    allocated: BTreeMap<Range, AllocatedTable>,
    by_fingerprint: HashMap<Fingerprint, Vec<Range>>,
    /// Ranges that lost a reference since [`Self::release_unused`].
    freed: Vec<Range>,
    /// Lengths of the free ranges, by first slot.
    free: BTreeMap<u32, u32>,
    /// Ranges overlap, which only damaged map entries cause: a freed range may then still be part of another one, so nothing
    /// is released until the maps are read again.
    overlapping: bool,
    /// A table found no room since [`Self::take_exhausted`].
    exhausted: bool,
}

struct AllocatedTable {
    slots: Slots,
    /// Number of frontends that refer to it.
    references: usize,
}

/// Length and first slots: distinguishes most tables without comparing them.
type Fingerprint = (usize, [V4; 8]);

fn fingerprint(slots: &[V4]) -> Fingerprint {
    let mut first = [0; 8];
    first.iter_mut().zip(slots).for_each(|(to, from)| *to = *from);
    (slots.len(), first)
}

/// Where a table lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TablePlacement {
    /// The slots contain it already; also of an empty table, which needs no slots.
    Existing(Range),
    /// The slots must be written.
    New(Range),
}

impl SlotAllocator {
    /// The allocation that the entries in the maps imply.
    #[must_use]
    pub fn from_tables(tables: &Tables) -> Self {
        let mut allocator = Self {
            capacity: tables.room,
            allocated: BTreeMap::new(),
            by_fingerprint: HashMap::new(),
            freed: Vec::new(),
            free: BTreeMap::new(),
            overlapping: false,
            exhausted: false,
        };
        // A damaged entry that refers to slots outside the array holds none; otherwise it could leave no room for others.
        let within_array = |(base, size): &Range| *size > 0 && base.checked_add(*size).is_some_and(|end| end <= tables.room);
        for range in tables.ranges().filter(within_array) {
            match allocator.allocated.get_mut(&range) {
                Some(table) => table.references += 1,
                None => allocator.allocate(range, tables.slots.get(&range).cloned().unwrap_or_default(), 1),
            }
        }
        allocator.find_free();
        allocator
    }

    fn find_free(&mut self) {
        let mut end = 0;
        for (base, size) in self.allocated.keys() {
            self.overlapping |= *base < end;
            if *base > end {
                self.free.insert(end, base - end);
            }
            end = end.max(base + size);
        }
        if end < self.capacity {
            self.free.insert(end, self.capacity - end);
        }
    }

    fn allocate(&mut self, range: Range, slots: Slots, references: usize) {
        self.by_fingerprint.entry(fingerprint(&slots)).or_default().push(range);
        self.allocated.insert(range, AllocatedTable { slots, references });
    }

    /// Finds a table with this content, preferably the frontend's `current` one, else allocates the first free range that is
    /// large enough. `None`: no room.
    pub(super) fn place(&mut self, slots: &Slots, current: Option<Range>) -> Option<TablePlacement> {
        if slots.is_empty() {
            return Some(TablePlacement::Existing((0, 0)));
        }
        let has_content =
            |range: &Range| self.allocated.get(range).is_some_and(|t| Slots::ptr_eq(&t.slots, slots) || t.slots == *slots);
        let candidates = self.by_fingerprint.get(&fingerprint(slots)).into_iter().flatten();
        if let Some(range) = current.iter().chain(candidates).copied().find(|range| has_content(range)) {
            return Some(TablePlacement::Existing(range));
        }
        let size = u32::try_from(slots.len()).ok()?;
        let fit = self.free.iter().map(|(base, length)| (*base, *length)).find(|(_, length)| *length >= size);
        self.exhausted |= fit.is_none();
        let (base, length) = fit?;
        self.free.remove(&base);
        if length > size {
            self.free.insert(base + size, length - size);
        }
        self.allocate((base, size), slots.clone(), 0);
        Some(TablePlacement::New((base, size)))
    }

    /// Records that a frontend refers to another table. The old one stays allocated until [`Self::release_unused`]: packets
    /// use it until the step is applied.
    pub(super) fn repoint(&mut self, from: Option<Range>, to: Option<Range>) {
        if let Some(table) = to.and_then(|range| self.allocated.get_mut(&range)) {
            table.references += 1;
        }
        if let Some(range) = from
            && let Some(table) = self.allocated.get_mut(&range)
        {
            table.references = table.references.saturating_sub(1);
            self.freed.push(range);
        }
    }

    /// Whether a table found no room since the last call; it may find some now.
    pub fn take_exhausted(&mut self) -> bool {
        std::mem::take(&mut self.exhausted)
    }

    /// Those of these blocks of slots that no table is in.
    pub(super) fn unused_blocks(&self, blocks: &BTreeSet<u32>) -> BTreeSet<u32> {
        let is_unused = |number: &u32| {
            let (first, end) = (number * SLOTS_PER_BLOCK, (number + 1) * SLOTS_PER_BLOCK);
            self.free.range(..=first).next_back().is_some_and(|(base, length)| base + length >= end)
        };
        blocks.iter().copied().filter(|number| !self.overlapping && is_unused(number)).collect()
    }

    /// Frees the tables that no frontend refers to any more.
    pub(super) fn release_unused(&mut self) {
        if self.overlapping {
            self.freed.clear();
        }
        for range in std::mem::take(&mut self.freed) {
            if let Some(table) = self.allocated.get(&range).filter(|table| table.references == 0) {
                let fingerprint = fingerprint(&table.slots);
                if let Some(same) = self.by_fingerprint.get_mut(&fingerprint) {
                    same.retain(|other| *other != range);
                    if same.is_empty() {
                        self.by_fingerprint.remove(&fingerprint);
                    }
                }
                self.allocated.remove(&range);
                self.add_free(range);
            }
        }
    }

    /// Adds a free range and merges it with adjacent ones.
    fn add_free(&mut self, (mut base, mut size): Range) {
        if let Some(next) = self.free.remove(&(base + size)) {
            size += next;
        }
        if let Some((before, length)) = self.free.range(..base).next_back().map(|(before, length)| (*before, *length))
            && before + length == base
        {
            self.free.remove(&before);
            base = before;
            size += length;
        }
        self.free.insert(base, size);
    }
}

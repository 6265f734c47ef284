//! Where tables lie in the slots. Backends of a frontend are in a range of slots that nothing else uses; who has the same
//! backends has the same table. A table that changes goes to slots that are free, then its frontend is turned to them: no
//! packet ever sees half of each.

use crate::datapath::ebpf::{Range, Slots, Tables};
use skep_ebpf::V4;
use std::collections::{BTreeMap, HashMap};

/// The slots: which are taken, by whom.
pub struct SlotAllocator {
    room: u32,
    held: BTreeMap<Range, Held>,
    /// Where tables are, by length and first slots.
    alike: HashMap<Mark, Vec<Range>>,
    /// Ranges that lost a name since they were tidied.
    loose: Vec<Range>,
    /// What is free: first slots and lengths.
    gaps: BTreeMap<u32, u32>,
    /// Ranges overlap, by damage: what one of them leaves may be another's, so nothing is free until the maps are read again.
    tangled: bool,
    /// A table found no room.
    short: bool,
}

struct Held {
    slots: Slots,
    /// How many frontends name it.
    names: usize,
}

/// What tells most tables apart.
type Mark = (usize, [V4; 8]);

fn mark(slots: &[V4]) -> Mark {
    let mut first = [0; 8];
    first.iter_mut().zip(slots).for_each(|(to, from)| *to = *from);
    (slots.len(), first)
}

/// Where a table is, or comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Already there, or named by no slot: an empty one.
    Kept(Range),
    /// Here, once it is written.
    New(Range),
}

impl SlotAllocator {
    /// As the maps say.
    #[must_use]
    pub fn of(tables: &Tables) -> Self {
        let mut space = Self {
            room: tables.room,
            held: BTreeMap::new(),
            alike: HashMap::new(),
            loose: Vec::new(),
            gaps: BTreeMap::new(),
            tangled: false,
            short: false,
        };
        // A damaged entry that names slots which there are not holds none: else nothing would have room beside it.
        let fits = |(base, size): &Range| *size > 0 && base.checked_add(*size).is_some_and(|end| end <= tables.room);
        for range in tables.ranges().filter(fits) {
            match space.held.get_mut(&range) {
                Some(held) => held.names += 1,
                None => space.hold(range, tables.slots.get(&range).cloned().unwrap_or_default(), 1),
            }
        }
        space.lay_out();
        space
    }

    /// Finds the gaps between what is taken.
    fn lay_out(&mut self) {
        let mut end = 0;
        for (base, size) in self.held.keys() {
            self.tangled |= *base < end;
            if *base > end {
                self.gaps.insert(end, base - end);
            }
            end = end.max(base + size);
        }
        if end < self.room {
            self.gaps.insert(end, self.room - end);
        }
    }

    fn hold(&mut self, range: Range, slots: Slots, names: usize) {
        self.alike.entry(mark(&slots)).or_default().push(range);
        self.held.insert(range, Held { slots, names });
    }

    /// Keeps a table that is there, else puts it where nothing is. `None`: no room.
    pub(super) fn place(&mut self, slots: &Slots, has: Option<Range>) -> Option<Place> {
        if slots.is_empty() {
            return Some(Place::Kept((0, 0)));
        }
        let same = |range: &Range| self.held.get(range).is_some_and(|h| Slots::ptr_eq(&h.slots, slots) || h.slots == *slots);
        let alike = self.alike.get(&mark(slots)).into_iter().flatten();
        if let Some(range) = has.iter().chain(alike).copied().find(|range| same(range)) {
            return Some(Place::Kept(range));
        }
        let size = u32::try_from(slots.len()).ok()?;
        let gap = self.gaps.iter().map(|(base, length)| (*base, *length)).find(|(_, length)| *length >= size);
        self.short |= gap.is_none();
        let (base, length) = gap?;
        self.gaps.remove(&base);
        if length > size {
            self.gaps.insert(base + size, length - size);
        }
        self.hold((base, size), slots.clone(), 0);
        Some(Place::New((base, size)))
    }

    /// A frontend turns from one table to another. What it leaves stays taken until [`Self::tidy`]: packets still go there.
    pub(super) fn turn(&mut self, from: Option<Range>, to: Option<Range>) {
        if let Some(held) = to.and_then(|range| self.held.get_mut(&range)) {
            held.names += 1;
        }
        if let Some(range) = from
            && let Some(held) = self.held.get_mut(&range)
        {
            held.names = held.names.saturating_sub(1);
            self.loose.push(range);
        }
    }

    /// Whether a table found no room since this was asked last: it may find some now.
    pub fn was_short(&mut self) -> bool {
        std::mem::take(&mut self.short)
    }

    /// Frees what nobody names any more.
    pub(super) fn tidy(&mut self) {
        if self.tangled {
            self.loose.clear();
        }
        for range in std::mem::take(&mut self.loose) {
            if let Some(held) = self.held.get(&range).filter(|held| held.names == 0) {
                let mark = mark(&held.slots);
                if let Some(alike) = self.alike.get_mut(&mark) {
                    alike.retain(|other| *other != range);
                    if alike.is_empty() {
                        self.alike.remove(&mark);
                    }
                }
                self.held.remove(&range);
                self.leave(range);
            }
        }
    }

    /// A range is free now, and one with the gaps beside it.
    fn leave(&mut self, (mut base, mut size): Range) {
        if let Some(next) = self.gaps.remove(&(base + size)) {
            size += next;
        }
        if let Some((before, length)) = self.gaps.range(..base).next_back().map(|(before, length)| (*before, *length))
            && before + length == base
        {
            self.gaps.remove(&before);
            base = before;
            size += length;
        }
        self.gaps.insert(base, size);
    }
}

//! Where tables lie in the slots. Backends of a frontend are in a range of slots that nothing else uses; who has the same
//! backends has the same table. A table that changes goes to slots that are free, then its frontend is turned to them: no
//! packet ever sees half of each.

use crate::datapath::fast::{Range, Slots, Tables};
use skep_ebpf::V4;
use std::collections::{BTreeMap, HashMap};

/// The slots: which are taken, by whom.
pub struct Space {
    room: u32,
    held: BTreeMap<Range, Held>,
    /// Where tables are, by length and first slots.
    alike: HashMap<Mark, Vec<Range>>,
    /// Ranges that lost a name since they were tidied.
    loose: Vec<Range>,
    /// By size, the slot below which there is no gap of it: nobody looks through all that is taken for each table.
    none_below: BTreeMap<u32, u32>,
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
    /// There already, or named by no slot: an empty one.
    There(Range),
    /// Here, once it is written.
    New(Range),
}

impl Space {
    /// As the maps say.
    #[must_use]
    pub fn of(tables: &Tables) -> Self {
        let mut space = Self {
            room: tables.room,
            held: BTreeMap::new(),
            alike: HashMap::new(),
            loose: Vec::new(),
            none_below: BTreeMap::new(),
        };
        // A damaged entry that names slots which there are not holds none: else nothing would have room beside it.
        let fits = |(base, size): &Range| *size > 0 && base.checked_add(*size).is_some_and(|end| end <= tables.room);
        for range in tables.ranges().filter(fits) {
            match space.held.get_mut(&range) {
                Some(held) => held.names += 1,
                None => space.hold(range, tables.slots.get(&range).cloned().unwrap_or_default(), 1),
            }
        }
        space
    }

    fn hold(&mut self, range: Range, slots: Slots, names: usize) {
        self.alike.entry(mark(&slots)).or_default().push(range);
        self.held.insert(range, Held { slots, names });
    }

    /// Keeps a table that is there, else puts it where nothing is. `None`: no room.
    pub(super) fn place(&mut self, slots: &Slots, has: Option<Range>) -> Option<Place> {
        if slots.is_empty() {
            return Some(Place::There((0, 0)));
        }
        let same = |range: &Range| self.held.get(range).is_some_and(|h| Slots::ptr_eq(&h.slots, slots) || h.slots == *slots);
        let alike = self.alike.get(&mark(slots)).into_iter().flatten();
        if let Some(range) = has.iter().chain(alike).copied().find(|range| same(range)) {
            return Some(Place::There(range));
        }
        let size = u32::try_from(slots.len()).ok()?;
        let base = self.gap(size)?;
        self.hold((base, size), slots.clone(), 0);
        self.none_below.insert(size, base + size);
        Some(Place::New((base, size)))
    }

    /// The first gap of a size.
    fn gap(&self, size: u32) -> Option<u32> {
        let mut base = self.none_below.get(&size).copied().unwrap_or_default();
        for (start, length) in self.held.range((base, 0)..).map(|(range, _)| range) {
            if start.checked_sub(base).is_some_and(|gap| gap >= size) {
                break;
            }
            base = base.max(start.saturating_add(*length));
        }
        base.checked_add(size).is_some_and(|end| end <= self.room).then_some(base)
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

    /// Frees what nobody names any more.
    pub(super) fn tidy(&mut self) {
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
                // The gap begins where the one before ends.
                let before = self.held.range(..range).next_back().map_or(0, |((base, size), _)| base.saturating_add(*size));
                let begin = before.min(range.0);
                self.none_below.values_mut().for_each(|none| *none = begin.min(*none));
            }
        }
    }
}

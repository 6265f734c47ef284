//! Replicated services: the desired number of slots, lowest numbers first.

use super::slot::{ServiceSlots, SlotState, TasksBySlot, desire, keep_order};
use crate::manager::limits::BATCH;
use crate::model::TaskState;
use crate::store::Action;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// Removes surplus slots, updates the kept ones and fills missing ones. Stops once `out` has [`BATCH`] actions.
pub(super) fn reconcile(slots: &ServiceSlots, tasks: &TasksBySlot, rng: &mut impl Rng, out: &mut Vec<Action>) {
    let desired = usize::try_from(slots.service.spec.mode.replicas()).unwrap_or(usize::MAX);
    let states: BTreeMap<u64, SlotState> = tasks.iter().map(|(number, tasks)| (*number, slots.state(tasks))).collect();
    let order = keep_order(&states);
    let (keep, surplus) = order.split_at(desired.min(order.len()));
    for number in surplus {
        if out.len() >= BATCH {
            return;
        }
        out.extend(tasks[number].iter().map(|t| desire(t, TaskState::Remove)));
    }
    for number in keep {
        if out.len() >= BATCH {
            return;
        }
        slots.update(*number, &states[number], &tasks[number], rng, out);
    }
    let kept: BTreeSet<u64> = keep.iter().copied().collect();
    let mut missing = desired.saturating_sub(keep.len());
    let mut filled = BTreeSet::new();
    for number in (1..).filter(|number| !kept.contains(number)) {
        if missing == 0 || out.len() >= BATCH {
            break;
        }
        let others = tasks.get(&number).map_or(&[][..], Vec::as_slice);
        out.push(slots.create_task(number, others, None, rng));
        filled.insert(number);
        missing -= 1;
    }
    // The history of a slot is removed with the slot.
    if missing == 0 {
        let unused = states.iter().filter(|(number, state)| matches!(state, SlotState::Empty) && !filled.contains(number));
        out.extend(unused.flat_map(|(number, _)| &tasks[number]).take(BATCH).map(|t| desire(t, TaskState::Remove)));
    }
}

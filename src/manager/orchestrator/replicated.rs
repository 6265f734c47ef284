//! Replicated services: the desired number of slots, lowest numbers first.

use super::create::NewTask;
use super::slot::{ServiceSlots, Slot, TasksBySlot, keep_order};
use super::update::{SlotsByKey, Unreached};
use super::writes::Writes;
use crate::manager::limits::BATCH;
use crate::model::{SlotKey, TaskCause, TaskEnd, TaskState};
use rand::Rng;
use std::collections::BTreeSet;

/// Removes surplus slots, updates the kept ones and fills missing ones. Stops once `out` has [`BATCH`] writes.
pub(super) fn reconcile(slots: &mut ServiceSlots, tasks: TasksBySlot, out: &mut Writes<impl Rng>) {
    let desired = usize::try_from(slots.service.spec.mode.replicas()).unwrap_or(usize::MAX);
    slots.select_moves(&tasks, out);
    let slots = &*slots;
    let states: SlotsByKey = tasks.into_iter().map(|(key, tasks)| (key.clone(), slots.state(key, tasks))).collect();
    let order = keep_order(&states);
    let (keep, surplus) = order.split_at(desired.min(order.len()));
    for key in surplus {
        if out.len() >= BATCH {
            return;
        }
        for task in &states[key].tasks {
            out.desire(task, TaskState::Remove, TaskEnd::Scaled);
        }
    }
    let kept: Vec<&Slot> = keep.iter().map(|key| &states[key]).collect();
    let Some(rollout) = slots.rollout(&kept, Unreached::default(), out) else { return };
    for slot in kept {
        if out.len() >= BATCH {
            return;
        }
        slots.plan_slot(slot, &rollout, out);
    }
    let kept: BTreeSet<&SlotKey> = keep.iter().collect();
    let mut missing = desired.saturating_sub(keep.len());
    let mut filled = BTreeSet::new();
    for key in (1..).map(SlotKey::Number).filter(|key| !kept.contains(key)) {
        if missing == 0 || out.len() >= BATCH {
            break;
        }
        let others = states.get(&key).map_or(&[][..], |slot| &slot.tasks);
        slots.create(NewTask { slot: key.clone(), cause: TaskCause::Replicas, others, not_before: None, beside: false }, out);
        filled.insert(key);
        missing -= 1;
    }
    // The history of a slot is removed with the slot.
    if missing == 0 {
        let unused = states.values().filter(|slot| slot.is_free() && !filled.contains(&slot.key));
        for task in unused.flat_map(|slot| &slot.tasks).take(BATCH) {
            out.desire(task, TaskState::Remove, TaskEnd::Scaled);
        }
    }
}

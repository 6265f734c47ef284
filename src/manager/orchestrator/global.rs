//! Global services: a slot for every node that may run the service.

use super::create::NewTask;
use super::slot::{ServiceSlots, Slot, TasksBySlot};
use super::update::{SlotsByKey, Unreached};
use super::writes::Writes;
use crate::manager::limits::BATCH;
use crate::model::eligibility::{is_eligible, takes_tasks};
use crate::model::{Node, SlotKey, Task, TaskCause, TaskEnd, TaskState};
use rand::Rng;

/// Shuts down the tasks of nodes that must not have one, updates the others, and fills the slots of nodes that take tasks. A node
/// that is paused or does not answer keeps what it has. Stops once `out` has [`BATCH`] writes.
pub(super) fn reconcile(slots: &ServiceSlots, tasks: TasksBySlot, out: &mut Writes<impl Rng>) {
    let mut states = SlotsByKey::new();
    let mut away = Vec::new();
    for (key, tasks) in tasks {
        if out.len() >= BATCH {
            return;
        }
        match key.node().and_then(|id| slots.store.node(id)) {
            Some(node) if is_eligible(node, &slots.service.spec.task_template) => {
                // Tasks of a node that is away are neither ended nor moved: nothing else may run them.
                if node.status.state.may_be_up() {
                    states.insert(key.clone(), slots.state(key, tasks));
                } else if tasks.iter().any(|task| task.is_wanted() && !slots.is_current(task)) {
                    away.push(node.id.clone());
                }
            }
            node => stop_all(slots, node, &tasks, out),
        }
    }
    let is_open = |slot: &&Slot| slot.key.node().and_then(|id| slots.store.node(id)).is_some_and(takes_tasks);
    let (open, closed): (Vec<&Slot>, Vec<&Slot>) = states.values().partition(|slot| is_open(slot));
    let Some(rollout) = slots.rollout(&open, Unreached { closed: &closed, away: &away }, out) else { return };
    for slot in open {
        if out.len() >= BATCH {
            return;
        }
        slots.plan_slot(slot, &rollout, out);
        if slot.is_free() {
            create(slots, &slot.key, &slot.tasks, out);
        }
    }
    for node in slots.store.nodes().filter(|n| takes_tasks(n) && is_eligible(n, &slots.service.spec.task_template)) {
        if out.len() >= BATCH {
            return;
        }
        let key = SlotKey::Node(node.id.clone());
        if !states.contains_key(&key) {
            create(slots, &key, &[], out);
        }
    }
}

fn create(slots: &ServiceSlots, key: &SlotKey, others: &[&Task], out: &mut Writes<impl Rng>) {
    slots.create(NewTask { slot: key.clone(), cause: TaskCause::Node, others, not_before: None, beside: false }, out);
}

/// The node must not run the service: those that are wanted are shut down, and removed with the node.
pub(super) fn stop_all(slots: &ServiceSlots, node: Option<&Node>, tasks: &[&Task], out: &mut Writes<impl Rng>) {
    for task in tasks {
        match node {
            None => out.desire(task, TaskState::Remove, TaskEnd::NodeLost),
            Some(_) if task.is_wanted() => {
                let end = slots.reason_to_move(task).unwrap_or_else(|| slots.end_of_node(task));
                out.desire(task, TaskState::Shutdown, end);
            }
            Some(_) => {}
        }
    }
}

impl ServiceSlots<'_> {
    fn end_of_node(&self, task: &Task) -> TaskEnd {
        if self.lost_its_node(task) { TaskEnd::NodeLost } else { TaskEnd::Evicted }
    }
}

//! Takes tasks from nodes that no longer meet their constraints or reservations, because a label, the role or the resources of the
//! node have changed.
//!
//! SwarmKit sets the observed state to Rejected while the container still runs, and frees what it has. Here the task is ordered to
//! stop like any other: traffic ends first, what it has stays its own until it has stopped. It is shown as Rejected with
//! SwarmKit's words from the beginning ([`Task::is_evicted`]). The orchestrator sees a slot without a task and fills it: an
//! eviction uses up no attempt and waits for no restart delay.
//!
//! Only nodes that have changed are looked at, and those again whose evictions are not written yet.

use super::generic::GenericUse;
use crate::manager::limits::BATCH;
use crate::model::constraint::Constraints;
use crate::model::{Availability, Node, NodeId, NodeState, Service, ServiceId, SlotKey, Task, TaskEnd, TaskState, Timestamp};
use crate::store::{Action, Store, changed};
use std::collections::{BTreeMap, BTreeSet};

/// Why a task was evicted, for users: SwarmKit's words.
const REASON: &str = "assigned node no longer meets constraints";

/// Remembers which nodes are to be looked at.
#[derive(Default)]
pub(super) struct ConstraintEnforcer {
    seen: Store,
    dirty: BTreeSet<NodeId>,
}

impl ConstraintEnforcer {
    /// Evictions now.
    pub(super) fn plan(&mut self, store: &Store, now: Timestamp) -> Vec<Action> {
        let before = std::mem::replace(&mut self.seen, store.clone());
        self.dirty.extend(changed::<Node>(&before, store).filter_map(|(_, is)| Some(is?.id.clone())));
        let mut out = Vec::new();
        let mut clean = Vec::new();
        for id in &self.dirty {
            if out.len() >= BATCH {
                break;
            }
            let evicted = store.node(id).map(|node| to_evict(node, store)).unwrap_or_default();
            if evicted.is_empty() {
                clean.push(id.clone());
            }
            out.extend(evicted.into_iter().map(|task| evict(task, store.has_new_task_fields(), now)));
        }
        for id in clean {
            self.dirty.remove(&id);
        }
        out
    }
}

/// Tasks that the node may not have any longer. Of those that do not fit together the newest go.
fn to_evict<'a>(node: &Node, store: &'a Store) -> Vec<&'a Task> {
    // The tasks of a drained node are moved; those of a paused one stay as they are; nothing is known of a node without an engine.
    let is_active = node.spec.availability == Availability::Active && node.status.state == NodeState::Ready;
    if !is_active || node.description.engine_version.is_empty() {
        return Vec::new();
    }
    let holds = |task: &&Task| {
        task.is_wanted() && task.attached.is_none() && (TaskState::Assigned..=TaskState::Running).contains(&task.status.state)
    };
    let mut tasks: Vec<&Task> = store.tasks_of_node(&node.id).filter(holds).collect();
    tasks.sort_by_key(|task| (task.meta.created_at, &task.id));
    // A task whose successor is here too ends before that starts, or both fit: the scheduler has seen to it.
    let newest: BTreeMap<(&ServiceId, SlotKey), &Task> = tasks.iter().map(|t| ((&t.service_id, t.slot_key()), *t)).collect();
    let is_replaced = |task: &Task| newest.get(&(&task.service_id, task.slot_key())).is_some_and(|last| last.id != task.id);
    let mut constraints = BTreeMap::<(&ServiceId, u64), bool>::new();
    let (mut cpus, mut memory) = (i128::from(node.description.nano_cpus), i128::from(node.description.memory_bytes));
    let mut generic = GenericUse::default();
    let mut out = Vec::new();
    for task in tasks {
        let met = *constraints
            .entry((&task.service_id, task.spec_version))
            .or_insert_with(|| are_constraints_met(task, store.service(&task.service_id), node));
        if !met {
            out.push(task);
            continue;
        }
        if is_replaced(task) {
            continue;
        }
        let Some(reserved) = task.spec.resources.as_ref().and_then(|resources| resources.reservations.as_ref()) else { continue };
        let (wants_cpus, wants_memory) = (i128::from(reserved.nano_cpus), i128::from(reserved.memory_bytes));
        // What is not reserved needs nothing of what is left.
        let fits = (wants_cpus == 0 || wants_cpus <= cpus) && (wants_memory == 0 || wants_memory <= memory);
        if !fits || !generic.has(&node.description, &task.generic_resources) {
            out.push(task);
            continue;
        }
        (cpus, memory) = (cpus - wants_cpus, memory - wants_memory);
        generic.count(&task.generic_resources, true);
    }
    out
}

/// Whether the task may be on the node. The constraints of today count: a change of them alone replaces no task that meets the new ones.
/// While an update goes on, or is paused, it is what moves tasks to where the new ones are met, in its order and as far as there is room:
/// tasks that meet their own are not taken from it.
fn are_constraints_met(task: &Task, service: Option<&Service>, node: &Node) -> bool {
    let own = || Constraints::of(&task.spec).are_met_by(node);
    let Some(service) = service else { return own() };
    Constraints::of(&service.spec.task_template).are_met_by(node) || (service.has_open_update() && own())
}

fn evict(task: &Task, has_ends: bool, now: Timestamp) -> Action {
    let mut next = task.clone();
    if has_ends {
        next.end.get_or_insert(TaskEnd::Evicted);
        next.keep_start(now);
    }
    next.desired_state = TaskState::Shutdown.max(task.desired_state);
    next.status.timestamp = now;
    Task::EVICTED.clone_into(&mut next.status.message);
    REASON.clone_into(&mut next.status.err);
    Action::update(next)
}

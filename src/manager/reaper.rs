//! Deletes tasks: those whose removal is desired, once they have stopped, and history beyond the limit. Orphans the tasks
//! of nodes that were removed, have left or are down for long; those of plain containers it deletes then. Deletes networks that were removed, with their last address.
//!
//! A task on a node that is down stays, whatever its desired state, until the node is back, has left, is removed or has
//! been down for `orphan_after`: its container may still run, and while the object exists no other task gets its address.

use super::allocator::{AddressBook, networks_of_task};
use super::limits::BATCH;
use super::orchestrator::restart::{history_needed, is_attempt};
use super::orchestrator::slot::by_age;
use super::round_scope::RoundScope;
use super::settings::ManagerSettings;
use crate::model::{Network, NetworkId, NodeState, ServiceId, SlotKey, Task, TaskState, TaskStatus, Timestamp};
use crate::store::{Action, FieldUpdate, Kind, Store};
use std::collections::{BTreeMap, BTreeSet};

/// Tasks kept per slot if the cluster sets no limit.
const DEFAULT_HISTORY: i64 = 5;
/// Finished tasks deleted per round to free addresses of a full network.
const ADDRESS_RELIEF: usize = 16;

/// Tasks to delete or to orphan, and networks to delete now, of what is in the scope.
pub fn plan(store: &Store, now: Timestamp, settings: &ManagerSettings, scope: &RoundScope) -> Vec<Action> {
    let mut out = Vec::new();
    let tasks = scope.tasks(store);
    let is_history = |t: &&&Task| t.desired_state < TaskState::Remove && !t.is_wanted() && is_finished(t);
    let with_history: BTreeSet<(&ServiceId, SlotKey)> = tasks.iter().filter(is_history).map(|t| slot_of(t)).collect();
    let mut slots = BTreeMap::<(&ServiceId, SlotKey), Vec<&Task>>::new();
    for task in tasks {
        if out.len() >= BATCH {
            return out;
        }
        let node_gone = is_node_gone(store, task, now, settings);
        if task.attached.is_some() {
            // While its node is there, that says when the container is gone.
            out.extend((node_gone || task.desired_state == TaskState::Remove).then(|| remove(task)));
        } else if task.desired_state == TaskState::Remove && (is_finished(task) || node_gone) {
            out.push(remove(task));
        } else if node_gone && !task.status.state.is_final() {
            out.push(orphan(store, task, now));
        } else if task.desired_state < TaskState::Remove && !with_history.is_empty() && with_history.contains(&slot_of(task)) {
            slots.entry(slot_of(task)).or_default().push(task);
        }
    }
    remove_history(store, slots, &mut out);
    let unused = |n: &&Network| n.removing && store.network_user(n).is_none() && !store.has_addresses_on(n);
    out.extend(store.networks().filter(unused).map(|n| Action::Remove(Kind::Network, n.id.to_string())));
    out
}

fn slot_of(task: &Task) -> (&ServiceId, SlotKey) {
    (&task.service_id, task.slot_key())
}

/// Deletes the oldest finished tasks of each slot: those beyond the limit, and some that have addresses which a new
/// task needs.
fn remove_history(store: &Store, slots: BTreeMap<(&ServiceId, SlotKey), Vec<&Task>>, out: &mut Vec<Action>) {
    let limit = store.cluster().map_or(Some(DEFAULT_HISTORY), |c| c.spec.orchestration.task_history_retention_limit);
    let limit = usize::try_from(limit.unwrap_or(DEFAULT_HISTORY)).ok();
    let full = full_networks(store);
    let mut relief: Vec<&Task> = Vec::new();
    for mut tasks in slots.into_values() {
        if out.len() >= BATCH {
            return;
        }
        tasks.sort_by(|a, b| by_age(a, b));
        let Some((newest, older)) = tasks.split_last() else { continue };
        // What a job has completed is not forgotten before the orchestrator has started it again.
        let is_history = |t: &&Task| !t.is_wanted() && is_finished(t);
        let mut finished: Vec<&Task> = older.iter().copied().filter(is_history).collect();
        let mut spare = finished.len();
        let needed = history_needed(newest);
        if let Some(needed) = needed {
            // Moves are no attempts: they are forgotten first, and of what is one never so many that it is tried once more.
            finished.sort_by_key(|t| is_attempt(t, newest));
            let attempts = finished.iter().filter(|t| is_attempt(t, newest)).count();
            spare -= attempts.min(needed.saturating_sub(1));
        }
        let keep = needed.or(limit).unwrap_or(usize::MAX);
        let excess = (older.len() + 1).saturating_sub(keep).min(spare);
        let (removed, kept) = finished.split_at(excess);
        out.extend(removed.iter().map(|t| remove(t)));
        relief.extend(kept.iter().copied().filter(|t| t.attachments.iter().any(|a| full.contains(&a.network_id))));
    }
    relief.sort_by(|a, b| by_age(a, b));
    out.extend(relief.into_iter().take(ADDRESS_RELIEF).map(remove));
}

/// Ended, or never to be started: no agent runs the task or will run it.
fn is_finished(task: &Task) -> bool {
    task.status.state.is_final() || (task.status.state < TaskState::Assigned && !task.is_wanted())
}

/// The task's node is removed, has left, or has been down for `orphan_after`.
fn is_node_gone(store: &Store, task: &Task, now: Timestamp, settings: &ManagerSettings) -> bool {
    let Some(id) = &task.node_id else { return false };
    store.node(id).is_none_or(|node| match node.status.state {
        NodeState::Disconnected => true,
        NodeState::Down => now.since(node.status.down_since.unwrap_or(node.meta.updated_at)) >= settings.orphan_after,
        NodeState::Ready | NodeState::Unknown => false,
    })
}

/// Networks without a free address that a task waits for.
fn full_networks(store: &Store) -> BTreeSet<NetworkId> {
    let mut waiting = store
        .new_tasks()
        .filter(|t| t.is_wanted() && !t.status.err.is_empty())
        .filter_map(|t| Some((t, store.service(&t.service_id)?)))
        .peekable();
    if waiting.peek().is_none() {
        return BTreeSet::new();
    }
    let book = AddressBook::new(store);
    let needed: BTreeSet<NetworkId> = waiting.flat_map(|(task, service)| networks_of_task(store, service, task)).collect();
    needed
        .into_iter()
        .filter(|id| {
            let subnets = store.network(id).map(Network::subnets).unwrap_or_default();
            !subnets.is_empty() && subnets.iter().all(|subnet| book.is_full(id, *subnet))
        })
        .collect()
}

fn remove(task: &Task) -> Action {
    Action::Remove(Kind::Task, task.id.to_string())
}

fn orphan(store: &Store, task: &Task, now: Timestamp) -> Action {
    let is_deleted = task.node_id.as_ref().is_some_and(|id| store.node(id).is_none());
    // The first is SwarmKit's text, which has none of a node that is away for long.
    let message = if is_deleted { "Task belonged to a node that has been deleted" } else { "task orphaned: its node is gone" };
    let status = TaskStatus { state: TaskState::Orphaned, timestamp: now, message: message.to_owned(), ..task.status.clone() };
    let (id, from, status) = (task.id.clone(), task.status.state, Box::new(status));
    Action::Set(FieldUpdate::TaskStep { id, from, status, attachments: Vec::new(), node: None })
}

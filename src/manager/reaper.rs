//! Forgets tasks: those whose removal is desired once they have stopped, history beyond the limit, and what was left
//! behind by nodes that are gone.
//!
//! A task on a node that is down stays, whatever is desired of it, until the node is back, has left, is removed or has
//! been down for very long: its container may still run, and as long as the object is there nobody else gets its address.

use super::ManagerSettings;
use super::allocator::{AddressBook, networks_of_task};
use super::restart::{by_age, history_needed};
use super::round::BATCH;
use crate::model::{NetworkId, NodeState, ServiceId, Task, TaskState, Timestamp};
use crate::store::{Action, Kind, Store};
use std::collections::{BTreeMap, BTreeSet};

/// Tasks kept per slot if the cluster does not say.
const DEFAULT_HISTORY: i64 = 5;
/// Finished tasks forgotten at once to free addresses of a full network.
const RELIEF: usize = 16;

/// What is to be forgotten or given up now.
pub fn plan(store: &Store, now: Timestamp, settings: &ManagerSettings) -> Vec<Action> {
    let mut out = Vec::new();
    let mut slots = BTreeMap::<(&ServiceId, u64), Vec<&Task>>::new();
    for task in store.tasks() {
        if out.len() >= BATCH {
            return out;
        }
        let gone = left_behind(store, task, now, settings);
        if task.desired_state == TaskState::Remove && (is_over(task) || gone) {
            out.push(remove(task));
        } else if gone && !task.status.state.is_final() {
            out.push(orphan(task, now));
        } else if task.desired_state < TaskState::Remove {
            slots.entry((&task.service_id, task.slot)).or_default().push(task);
        }
    }
    let limit = store.cluster().map_or(Some(DEFAULT_HISTORY), |c| c.spec.orchestration.task_history_retention_limit);
    let limit = usize::try_from(limit.unwrap_or(DEFAULT_HISTORY)).ok();
    let full = full_networks(store);
    let mut spare: Vec<&Task> = Vec::new();
    for tasks in slots.values_mut() {
        if out.len() >= BATCH {
            return out;
        }
        tasks.sort_by(|a, b| by_age(a, b));
        let Some((newest, older)) = tasks.split_last() else { continue };
        let finished: Vec<&Task> = older.iter().copied().filter(|t| t.desired_state > TaskState::Running && is_over(t)).collect();
        let keep = history_needed(newest).or(limit).unwrap_or(usize::MAX);
        let excess = (older.len() + 1).saturating_sub(keep).min(finished.len());
        let (old, kept) = finished.split_at(excess);
        out.extend(old.iter().map(|t| remove(t)));
        spare.extend(kept.iter().copied().filter(|t| t.attachments.iter().any(|a| full.contains(&a.network_id))));
    }
    spare.sort_by(|a, b| by_age(a, b));
    out.extend(spare.into_iter().take(RELIEF).map(remove));
    out
}

/// Finished, or never to be started: no agent has it or ever will.
fn is_over(task: &Task) -> bool {
    task.status.state.is_final() || (task.status.state < TaskState::Assigned && task.desired_state > TaskState::Running)
}

/// Its node is removed, has left, or has been down for very long.
fn left_behind(store: &Store, task: &Task, now: Timestamp, settings: &ManagerSettings) -> bool {
    let Some(id) = &task.node_id else { return false };
    store.node(id).is_none_or(|node| match node.status.state {
        NodeState::Disconnected => true,
        NodeState::Down => now.since(node.meta.updated_at) >= settings.orphan_after,
        NodeState::Ready | NodeState::Unknown => false,
    })
}

/// Networks without a free address that a task waits for.
fn full_networks(store: &Store) -> BTreeSet<NetworkId> {
    let mut waiting = store
        .tasks()
        .filter(|t| t.status.state == TaskState::New && t.desired_state <= TaskState::Running && !t.status.err.is_empty())
        .filter_map(|t| Some((t, store.service(&t.service_id)?)))
        .peekable();
    if waiting.peek().is_none() {
        return BTreeSet::new();
    }
    let mut book = AddressBook::of(store);
    let wanted: BTreeSet<NetworkId> = waiting.flat_map(|(t, s)| networks_of_task(store, s, t)).collect();
    wanted
        .into_iter()
        .filter(|id| store.network(id).and_then(|n| n.subnet).is_some_and(|subnet| book.space(id, subnet).is_full()))
        .collect()
}

fn remove(task: &Task) -> Action {
    Action::Remove(Kind::Task, task.id.to_string())
}

fn orphan(task: &Task, now: Timestamp) -> Action {
    let mut next = task.clone();
    next.status.state = TaskState::Orphaned;
    next.status.timestamp = now;
    "task orphaned: its node is gone".clone_into(&mut next.status.message);
    Action::update(next)
}

//! Ordered removal of backends: the node of a task that received traffic gets the order to stop it only when no live node
//! sends the task new traffic. Until then the task's desired state in the node's view is Running, while all nodes already
//! see that it is no backend.

use crate::model::{NodeId, Revision, Task, TaskId, TaskState, Timestamp};
use crate::store::{Store, changed};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

struct DrainHold {
    /// Raft index at which the task stopped being a backend.
    index: u64,
    since: Timestamp,
}

/// Tasks whose stop is held back.
#[derive(Default)]
pub(super) struct DrainHolds {
    tasks: BTreeMap<TaskId, DrainHold>,
}

impl DrainHolds {
    /// Of a manager that has just become the leader: what the one before it held back, and which nodes have applied what, is
    /// not known. Every task on its way out is held until the nodes have applied the state of this moment. A node that has the
    /// order already ignores that.
    pub(super) fn of_new_leader(store: &Store, now: Timestamp) -> Self {
        let stopping = store.tasks().filter(|t| is_stopping(t) && !t.attachments.is_empty());
        let hold = |task: &Task| (task.id.clone(), DrainHold { index: store.index(), since: now });
        Self { tasks: stopping.map(hold).collect() }
    }

    /// Adds tasks that stopped being backends because their desired state changed or they became unhealthy.
    pub(super) fn observe(&mut self, before: &Store, after: &Store, now: Timestamp) {
        for (was, is) in changed::<Task>(before, after) {
            let stops = is.filter(|task| is_stopping(task) && !task.attachments.is_empty());
            if let Some(task) = stops.filter(|_| was.is_some_and(Task::is_backend)) {
                self.tasks.insert(task.id.clone(), DrainHold { index: after.index(), since: now });
            }
        }
    }

    /// Releases tasks that every live node has removed from its backends, and those held for `at_most`; returns their nodes.
    pub(super) fn release(&mut self, store: &Store, applied: Revision, now: Timestamp, at_most: Duration) -> BTreeSet<NodeId> {
        let mut nodes = BTreeSet::new();
        self.tasks.retain(|id, hold| {
            let Some(task) = store.task(id).filter(|t| is_stopping(t)) else { return false };
            let keep = applied.index < hold.index && now.since(hold.since) < at_most;
            if !keep {
                nodes.extend(task.node_id.clone());
            }
            keep
        });
        nodes
    }

    /// True while the stop of the task is held back.
    pub(super) fn contains(&self, task: &TaskId) -> bool {
        self.tasks.contains_key(task)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

/// True if the task runs and is to stop, or is unhealthy.
fn is_stopping(task: &Task) -> bool {
    task.status.state == TaskState::Running && (!task.is_wanted() || task.status.unhealthy)
}

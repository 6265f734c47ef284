//! Removal in order: a task that took traffic is told to stop only once no live node sends it anything new. Until then
//! its node still sees it wished for, while all nodes already see that it is no backend.

use crate::model::{NodeId, Revision, Task, TaskId, TaskState, Timestamp};
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

struct DrainHold {
    /// Raft index at which it stopped being a backend.
    index: u64,
    since: Timestamp,
}

/// Tasks that are not told to stop yet.
#[derive(Default)]
pub struct DrainHolds {
    tasks: BTreeMap<TaskId, DrainHold>,
}

impl DrainHolds {
    /// Finds tasks that stopped being backends because somebody wants them stopped.
    pub fn observe(&mut self, before: &Store, after: &Store, now: Timestamp) {
        for task in after.tasks().filter(|t| is_stopping(t) && !t.attachments.is_empty()) {
            if before.task(&task.id).is_some_and(Task::is_backend) {
                self.tasks.insert(task.id.clone(), DrainHold { index: after.index(), since: now });
            }
        }
    }

    /// Lets go of those that every live node has given up, or that were held for `at_most`; returns their nodes.
    pub fn release(&mut self, store: &Store, applied: Revision, now: Timestamp, at_most: Duration) -> BTreeSet<NodeId> {
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

    /// True while the task is not to be told.
    pub fn holds(&self, task: &TaskId) -> bool {
        self.tasks.contains_key(task)
    }

    /// True if nothing is held.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

fn is_stopping(task: &Task) -> bool {
    task.status.state == TaskState::Running && task.desired_state > TaskState::Running
}

//! Pending tasks in groups that need the same of a node, so that every node is checked once for all of a group.

use crate::model::{NodeId, PortConfig, ServiceId, Task, TaskId, TaskState, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// Service, version of its spec and host-mode ports.
type GroupKey = (ServiceId, u64, Vec<PortConfig>);

/// Tasks by age: when they were created, slot, id.
pub(super) type TasksByAge = BTreeSet<(Timestamp, u64, TaskId)>;

/// Tasks of a group, oldest first.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct TaskGroup {
    /// Those that were made for a node.
    pub preassigned: TasksByAge,
    /// Those whose predecessors failed, or that were made for a node by `skep rebalance`: nodes have another rank for each of them.
    pub alone: TasksByAge,
    pub plain: TasksByAge,
}

impl TaskGroup {
    fn set_of(&mut self, task: &Task) -> &mut TasksByAge {
        if made_for(task).is_some() {
            &mut self.preassigned
        } else if task.failures.nodes.is_empty() && task.move_to.is_none() {
            &mut self.plain
        } else {
            &mut self.alone
        }
    }

    /// All of them.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &TaskId> {
        [&self.preassigned, &self.alone, &self.plain].into_iter().flatten().map(|(_, _, id)| id)
    }

    /// The oldest task.
    pub(super) fn oldest(&self) -> Option<&(Timestamp, u64, TaskId)> {
        [&self.preassigned, &self.alone, &self.plain].into_iter().filter_map(BTreeSet::first).min()
    }
}

/// The node whose task it is, as one of a global service: it runs there or nowhere.
pub(super) fn made_for(task: &Task) -> Option<&NodeId> {
    task.slot_node.as_ref()
}

/// All tasks that wait for a node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct WaitingTasks {
    groups: BTreeMap<GroupKey, TaskGroup>,
}

impl WaitingTasks {
    /// A task is in the store now, or no longer.
    pub(super) fn count(&mut self, task: &Task, appears: bool) {
        if task.status.state != TaskState::Pending || !task.is_wanted() {
            return;
        }
        let key = (task.service_id.clone(), task.spec_version, task.ports.clone());
        let entry = (task.meta.created_at, task.slot, task.id.clone());
        let group = self.groups.entry(key.clone()).or_default();
        let set = group.set_of(task);
        let _ = if appears { set.insert(entry) } else { set.remove(&entry) };
        if group.oldest().is_none() {
            self.groups.remove(&key);
        }
    }

    /// The groups, the one with the oldest task first.
    pub(super) fn by_age(&self) -> Vec<&TaskGroup> {
        let mut groups: Vec<&TaskGroup> = self.groups.values().collect();
        groups.sort_by_key(|group| group.oldest());
        groups
    }
}

//! Ordered removal of backends: the node of a task that received traffic gets the order to stop it only when no live node
//! sends the task new traffic, and what was on the way to it then has arrived: packets in tunnels, and connections that its server
//! has yet to accept, which the end of a listener resets. Until then the task's desired state in the node's view is Running, while
//! all nodes already see that it is no backend.

use super::super::settings::ManagerSettings;
use crate::model::{NodeId, Revision, Task, TaskId, TaskState, Timestamp};
use crate::store::{Store, changed};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

struct DrainHold {
    /// Raft index at which the task stopped being a backend.
    index: u64,
    since: Timestamp,
    /// When no live node sent it new traffic any more.
    drained: Option<Timestamp>,
}

impl DrainHold {
    fn new(index: u64, now: Timestamp) -> Self {
        Self { index, since: now, drained: None }
    }

    /// Whether the stop is still held back.
    fn lasts(&mut self, applied: Revision, now: Timestamp, pause: Duration, at_most: Duration) -> bool {
        // The clock may have been set back.
        self.since = self.since.min(now);
        if applied.index >= self.index {
            let drained = self.drained.get_or_insert(now);
            *drained = (*drained).min(now);
        }
        let is_quiet = self.drained.is_some_and(|drained| now.since(drained) >= pause);
        !is_quiet && now.since(self.since) < at_most
    }
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
        let hold = |task: &Task| (task.id.clone(), DrainHold::new(store.index(), now));
        Self { tasks: stopping.map(hold).collect() }
    }

    /// Adds tasks that stopped being backends because their desired state changed or they became unhealthy.
    pub(super) fn observe(&mut self, before: &Store, after: &Store, now: Timestamp) {
        for (was, is) in changed::<Task>(before, after) {
            let stops = is.filter(|task| is_stopping(task) && !task.attachments.is_empty());
            if let Some(task) = stops.filter(|_| was.is_some_and(Task::is_backend)) {
                self.tasks.insert(task.id.clone(), DrainHold::new(after.index(), now));
            }
        }
    }

    /// Releases tasks that every live node has removed from its backends for the pause of the settings, and those held for as long
    /// as they allow; returns their nodes.
    pub(super) fn release(
        &mut self,
        store: &Store,
        applied: Revision,
        now: Timestamp,
        settings: &ManagerSettings,
    ) -> BTreeSet<NodeId> {
        let mut nodes = BTreeSet::new();
        self.tasks.retain(|id, hold| {
            let Some(task) = store.task(id).filter(|t| is_stopping(t)) else { return false };
            let keep = hold.lasts(applied, now, settings.stop_pause, settings.stop_hold);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_waits_for_what_is_on_the_way_and_not_for_ever() {
        let at = |ms: u64| Timestamp::default().plus(Duration::from_millis(ms));
        let [before, after] = [6, 7].map(|index| Revision { index, ..Revision::default() });
        let (pause, at_most) = (Duration::from_millis(200), Duration::from_secs(5));
        let mut hold = DrainHold::new(7, at(1000));
        let mut lasts = |applied, ms| hold.lasts(applied, at(ms), pause, at_most);
        assert!(lasts(before, 1900), "a node still sends");
        assert!(lasts(after, 2000), "packets are on the way");
        // A node that has just come back is behind: it has been away, and sent nothing.
        assert!(lasts(before, 2199));
        assert!(!lasts(after, 2200));
        let mut hold = DrainHold::new(7, at(10_000));
        assert!(hold.lasts(after, at(10_100), pause, at_most));
        assert!(hold.lasts(after, at(3000), pause, at_most), "the clock was set back");
        assert!(!hold.lasts(after, at(3200), pause, at_most), "by as long as that is, the stop is not held");
        let mut hold = DrainHold::new(7, at(1000));
        assert!(hold.lasts(before, at(5999), pause, at_most));
        assert!(!hold.lasts(before, at(6000), pause, at_most), "a node that applies nothing does not hold it for ever");
    }
}

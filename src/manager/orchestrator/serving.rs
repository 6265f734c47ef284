//! Whether a task serves, and whether it may yet: the one measure by which updates, drains and rebalancing decide that a task can take
//! the place of another one, and for how long that one waits.
//!
//! A task is to listen as those before it did. What nodes saw of them is in the task objects, so that any leader decides the same. Of a
//! service of which nothing was seen to listen, a task that runs is waited for for [`LISTEN_WAIT`] if the service publishes ports, and
//! for [`SETTLE_WAIT`] if it does not: it may be a worker.

use super::service_ports::{LISTEN_WAIT, Port, listens, running_for};
use super::slot::ServiceSlots;
use crate::model::{Node, Task, TaskCause, TaskState};
use std::time::Duration;

/// How long, at least, a task has to listen as those before it did.
const LISTEN_LIMIT: Duration = Duration::from_mins(1);
/// How long a task has to run that is not expected to listen. A program that ends at once is heard of as running first: without this
/// an update would stop the next task before it hears of the end.
const SETTLE_WAIT: Duration = Duration::from_secs(1);
/// How long a task that has a node may take until it runs: its image may have to be pulled, and its health check to pass. One whose
/// check fails, or whose image cannot be had, ends by itself before that.
const START_LIMIT: Duration = Duration::from_mins(10);

impl ServiceSlots<'_> {
    /// The task serves, as far as is known: it runs, and listens on what is known to be listened on and on what its service publishes.
    pub(super) fn serves(&self, task: &Task) -> bool {
        let reached = &self.ports().reached;
        let listens = if reached.is_empty() { !task.listens.is_empty() } else { reached.iter().all(|port| listens(task, *port)) };
        let wait = if reached.is_empty() { SETTLE_WAIT } else { LISTEN_WAIT };
        task.is_backend() && self.awaited_ports(task).is_empty() && (listens || running_for(task, self.now) >= wait)
    }

    /// Ports on which tasks before this one were seen to listen, and it was not.
    pub(super) fn awaited_ports(&self, task: &Task) -> Vec<Port> {
        if self.ports().reached.is_empty() {
            // One port is looked for then: the first of them.
            let is_awaited = task.listens.is_empty() && self.is_observed(task);
            return self.ports().known.iter().copied().filter(|_| is_awaited).collect();
        }
        self.ports().known.iter().copied().filter(|port| !listens(task, *port)).collect()
    }

    /// The task's node looks for listeners of the task although its service publishes no port: the service has a virtual address.
    fn is_observed(&self, task: &Task) -> bool {
        let has_address = self.service.endpoint.vips.iter().any(|vip| task.address_on(&vip.network_id).is_some());
        has_address && self.node_of(task).is_some_and(Node::observes_listeners)
    }

    /// The task runs, and has had its time to listen as those before it did. That begins again with whatever is seen of it: a server
    /// may close its ports for a moment.
    pub(super) fn fails_to_listen(&self, task: &Task) -> bool {
        let limit = self.config.failure_window().max(LISTEN_LIMIT);
        task.is_backend() && self.now.since(task.meta.updated_at) >= limit && !self.awaited_ports(task).is_empty()
    }

    /// No node has the task, or one that does not take it.
    pub(super) fn has_no_place(&self, task: &Task) -> bool {
        task.status.state < TaskState::Assigned || self.may_not_be_taken(task)
    }

    /// The task serves or may yet: what it is to take the place of can wait for it.
    pub(super) fn may_serve(&self, task: &Task) -> bool {
        if !task.is_wanted() || task.end.is_some() || task.status.state.is_final() || self.lost_its_node(task) {
            return false;
        }
        let waited = self.now.since(task.meta.created_at);
        match task.status.state {
            TaskState::Running => task.is_backend() && !self.fails_to_listen(task),
            _ if self.has_no_place(task) => waited < self.config.failure_window(),
            _ => waited < START_LIMIT,
        }
    }

    /// A task is on its way that is to take over in the slot that has these tasks: one of the places of the parallelism is in use.
    pub(super) fn is_handed_over(&self, slot: &[&Task]) -> bool {
        let is_due = |task: &Task| task.not_before.is_none_or(|start| start <= self.now);
        slot.iter().any(|task| {
            task.cause.is_some_and(TaskCause::takes_over) && is_due(task) && self.may_serve(task) && !self.serves(task)
        })
    }
}

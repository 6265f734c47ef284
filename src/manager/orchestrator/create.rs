//! New tasks.

use super::restart::failures_after;
use super::slot::ServiceSlots;
use super::writes::Writes;
use crate::model::{Meta, NodeId, SlotKey, Task, TaskCause, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp};
use rand::Rng;

/// How a new task relates to those before it in its slot.
pub(super) struct NewTask<'a> {
    pub slot: SlotKey,
    pub cause: TaskCause,
    /// Those before it, oldest first.
    pub others: &'a [&'a Task],
    pub not_before: Option<Timestamp>,
    /// It starts while a predecessor may still run.
    pub beside: bool,
}

/// Where `skep rebalance` moves the task of these that it moves.
fn move_of(tasks: &[&Task]) -> Option<NodeId> {
    tasks.iter().rev().filter(|task| task.node_id.is_some()).find_map(|task| task.move_to.clone())
}

impl ServiceSlots<'_> {
    /// Creates a task. It waits in Ready while its start is delayed or a predecessor may still run.
    pub(super) fn create(&self, new: NewTask, out: &mut Writes<impl Rng>) {
        let NewTask { slot, cause, others, not_before, beside } = new;
        let waits = not_before.is_some() || (!beside && others.iter().any(|t| self.may_still_run(t)));
        let spec = &self.service.spec;
        let run = self.service.job.map(|job| job.iteration);
        // A job that is started again is another template, though its spec has no other version.
        let before = others.last().filter(|t| t.job_iteration == run);
        let failures = before.map(|t| failures_after(t, self.service.spec_version, self.now)).unwrap_or_default();
        let task = Task {
            id: TaskId::draw(out.rng),
            meta: Meta::default(),
            spec: TaskSpec { runtime: None, ..spec.task_template.clone() }.into(),
            spec_version: self.service.spec_version,
            service_id: self.service.id.clone(),
            service_name: spec.name.clone(),
            service_labels: spec.labels.clone().into(),
            slot: slot.number(),
            slot_node: slot.node().cloned(),
            job_iteration: run,
            cause: Some(cause),
            end: None,
            started_at: None,
            node_id: None,
            move_to: (cause == TaskCause::Rebalance).then(|| move_of(others)).flatten(),
            desired_state: if waits { TaskState::Ready } else { self.goal() },
            status: TaskStatus { timestamp: self.now, message: "created".to_owned(), ..TaskStatus::default() },
            attachments: Vec::new(),
            not_before,
            ports: spec.host_ports(),
            listens: Vec::new(),
            failures,
            generic_resources: Vec::new(),
            attached: None,
            pull_auth: self.service.pull_auth.clone(),
        };
        out.create(task);
    }

    /// The state that its tasks are to reach.
    pub(super) fn goal(&self) -> TaskState {
        if self.service.spec.mode.is_job() { TaskState::Complete } else { TaskState::Running }
    }

    /// Has a task that waits in Ready start, if its delay is over and its predecessors have stopped, or take longer to stop than
    /// they may. `beside`: it is not to wait for them.
    pub(super) fn start_if_due(&self, task: &Task, others: &[&Task], beside: bool, out: &mut Writes<impl Rng>) {
        if task.desired_state >= self.goal() {
            return;
        }
        let delay_over = task.not_before.is_none_or(|t| t <= self.now);
        if delay_over && (beside || !others.iter().any(|t| t.id != task.id && self.is_awaited(t))) {
            out.change(task, |task| (task.desired_state, task.not_before) = (self.goal(), None));
        }
    }

    /// The task may still run, and what follows it waits for that to end: without a limit before it is ordered to stop, and from then
    /// on as long as that may take, with `replace_wait` for what is slow. (The order is the last write to it.)
    fn is_awaited(&self, task: &Task) -> bool {
        let limit = || {
            let stop = task.spec.container_spec.stop_grace().saturating_add(self.settings.stop_hold);
            stop.saturating_add(self.settings.replace_wait)
        };
        self.may_still_run(task) && (task.is_wanted() || self.now.since(task.meta.updated_at) < limit())
    }
}

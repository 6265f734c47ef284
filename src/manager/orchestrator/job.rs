//! Jobs: tasks that run to their end, once each per run of the job. A slot that has completed in this run never gets another
//! task; one that failed gets one by the restart policy, however many run at the same time.

use super::create::NewTask;
use super::global::stop_all;
use super::restart::{delay, ended_on_its_own, failures_after, should_restart};
use super::slot::{ServiceSlots, TasksBySlot};
use super::writes::Writes;
use crate::manager::limits::BATCH;
use crate::model::eligibility::{is_eligible, takes_tasks};
use crate::model::service::ReplicatedJob;
use crate::model::{SlotKey, Task, TaskCause, TaskEnd, TaskState, Timestamp};
use rand::Rng;
use std::collections::BTreeMap;

/// State of a slot in the present run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum JobSlot {
    /// Not begun.
    Open,
    Completed,
    /// A task runs, waits or is being stopped, or the restart policy allows no further one: the slot takes one of the places.
    Taken,
    /// Its tasks have ended: a new one may start, not before that time.
    Again {
        cause: TaskCause,
        not_before: Option<Timestamp>,
    },
}

/// Replicated job: slots from 0, so many at the same time. Stops once `out` has [`BATCH`] writes.
pub(super) fn replicated(slots: &ServiceSlots, job: ReplicatedJob, tasks: &TasksBySlot, out: &mut Writes<impl Rng>) {
    let states: BTreeMap<&SlotKey, JobSlot> = tasks.iter().map(|(key, tasks)| (key, slots.job_slot(tasks, out))).collect();
    let taken = states.values().filter(|state| **state == JobSlot::Taken).count() as u64;
    let mut places = job.concurrent().saturating_sub(taken);
    // Those that have begun come first.
    let again =
        states.iter().filter(|(_, state)| matches!(state, JobSlot::Again { .. })).map(|(key, state)| ((*key).clone(), *state));
    let open = (0..job.total()).map(SlotKey::Number).map(|key| {
        let state = states.get(&key).copied().unwrap_or(JobSlot::Open);
        (key, state)
    });
    for (key, state) in again.chain(open.filter(|(_, state)| *state == JobSlot::Open)) {
        if places == 0 || out.len() >= BATCH {
            return;
        }
        slots.start_job_slot(&key, state, tasks.get(&key).map_or(&[], Vec::as_slice), out);
        places -= 1;
    }
}

/// Global job: once on every node that may run it, also on nodes that come later. Stops once `out` has [`BATCH`] writes.
pub(super) fn global(slots: &ServiceSlots, mut tasks: TasksBySlot, out: &mut Writes<impl Rng>) {
    let template = &slots.service.spec.task_template;
    for node in slots.store.nodes().filter(|node| is_eligible(node, template)) {
        if out.len() >= BATCH {
            return;
        }
        let key = SlotKey::Node(node.id.clone());
        let tasks = tasks.remove(&key).unwrap_or_default();
        // What runs on a node that does not answer may complete there.
        if !node.status.state.may_be_up() {
            continue;
        }
        let state = slots.job_slot(&tasks, out);
        if takes_tasks(node) && matches!(state, JobSlot::Open | JobSlot::Again { .. }) {
            slots.start_job_slot(&key, state, &tasks, out);
        }
    }
    for (key, tasks) in &tasks {
        let unfinished: Vec<&Task> = tasks.iter().copied().filter(|t| !t.status.state.is_final()).collect();
        stop_all(slots, key.node().and_then(|id| slots.store.node(id)), &unfinished, out);
    }
}

impl ServiceSlots<'_> {
    /// The slot in the present run. Tasks of earlier runs, of nodes that cannot keep them and surplus ones are to stop from now on.
    fn job_slot(&self, tasks: &[&Task], out: &mut Writes<impl Rng>) -> JobSlot {
        let run = self.service.job.map(|job| job.iteration);
        let (own, earlier): (Vec<&Task>, Vec<&Task>) = tasks.iter().copied().partition(|t| t.job_iteration == run);
        for task in earlier.into_iter().filter(|t| t.is_wanted()) {
            let is_over = task.status.state.is_final();
            let (state, end) =
                if is_over { (TaskState::Shutdown, TaskEnd::Itself) } else { (TaskState::Remove, TaskEnd::NewRun) };
            out.desire(task, state, end);
        }
        let Some(newest) = own.last().copied() else { return JobSlot::Open };
        let unfinished = own.iter().copied().filter(|t| t.is_wanted() && !t.status.state.is_final());
        if own.iter().any(|t| t.status.state == TaskState::Complete) {
            unfinished.for_each(|task| out.desire(task, TaskState::Shutdown, TaskEnd::Superseded));
            return JobSlot::Completed;
        }
        let (stays, leaves): (Vec<&Task>, Vec<&Task>) = unfinished.partition(|t| !self.lost_its_node(t) && !self.must_move(t));
        for task in leaves {
            out.desire(task, TaskState::Shutdown, self.reason_to_move(task).unwrap_or(TaskEnd::NodeLost));
        }
        if let Some(task) = stays.iter().copied().reduce(|a, b| if b.status.state > a.status.state { b } else { a }) {
            for other in stays.iter().filter(|t| t.id != task.id) {
                out.desire(other, TaskState::Shutdown, TaskEnd::Superseded);
            }
            self.start_if_due(task, tasks, false, out);
            return JobSlot::Taken;
        }
        // A task that is being stopped is followed when it has: the two would do the same work.
        if own.iter().any(|t| self.may_still_run(t)) {
            return JobSlot::Taken;
        }
        self.after_end(newest, &own, out)
    }

    /// What follows the newest task of the run, which has ended.
    fn after_end(&self, newest: &Task, own: &[&Task], out: &mut Writes<impl Rng>) -> JobSlot {
        if !ended_on_its_own(newest) {
            return JobSlot::Again { cause: TaskCause::Move, not_before: newest.not_before.filter(|start| *start > self.now) };
        }
        // It is not wanted any more: that nothing follows it was decided before, unless it failed while it was to move.
        if !newest.is_wanted() && !newest.end.is_some_and(TaskEnd::is_move) {
            return JobSlot::Taken;
        }
        if !should_restart(newest, own, self.now) {
            out.desire(newest, TaskState::Shutdown, TaskEnd::Itself);
            return JobSlot::Taken;
        }
        // It failed before it was to start: the delay is not over.
        if newest.desired_state < self.goal() && newest.not_before.is_some_and(|start| start > self.now) {
            return JobSlot::Taken;
        }
        let pause = delay(newest, &failures_after(newest, self.service.spec_version, self.now));
        JobSlot::Again { cause: TaskCause::Restart, not_before: Some(self.now.plus(pause)).filter(|start| *start > self.now) }
    }

    /// Creates the slot's next task, and shuts down the one that it follows.
    fn start_job_slot(&self, slot: &SlotKey, state: JobSlot, others: &[&Task], out: &mut Writes<impl Rng>) {
        let (cause, not_before) = match state {
            JobSlot::Again { cause, not_before } => (cause, not_before),
            JobSlot::Open | JobSlot::Completed | JobSlot::Taken => (TaskCause::Job, None),
        };
        for task in others.iter().filter(|t| t.is_wanted() && ended_on_its_own(t)) {
            out.desire(task, TaskState::Shutdown, TaskEnd::Itself);
        }
        self.create(NewTask { slot: slot.clone(), cause, others, not_before, beside: false }, out);
    }
}

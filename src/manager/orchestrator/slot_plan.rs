//! What happens to the tasks of a slot that the service keeps. One rule for updates, rollbacks and moves: nothing that serves is
//! stopped for a task that cannot take its place.

use super::create::NewTask;
use super::moves::give_up_move;
use super::restart::{delay, ended_on_its_own, failures_after};
use super::slot::{Next, ServiceSlots, Slot};
use super::update::Rollout;
use super::writes::Writes;
use crate::manager::allocator::waits_for_full_network;
use crate::model::{Task, TaskCause, TaskEnd, TaskState};
use rand::Rng;

impl ServiceSlots<'_> {
    /// Plans for a slot.
    pub(super) fn plan_slot(&self, slot: &Slot, rollout: &Rollout, out: &mut Writes<impl Rng>) {
        for task in &slot.surplus {
            out.desire(task, TaskState::Shutdown, TaskEnd::Superseded);
        }
        let is_held = slot.current.is_none() && slot.next == Next::Hold;
        let held = if is_held { slot.newest() } else { self.failed_elsewhere(slot) };
        for task in slot.ended.iter().filter(|t| held.is_none_or(|held| held.id != t.id)) {
            out.desire(task, TaskState::Shutdown, self.end_of(task));
        }
        match (slot.current, slot.old) {
            (Some(new), Some(old)) => self.hand_over(slot, new, old, rollout, out),
            (Some(task), None) => self.start_if_due(task, &slot.tasks, false, out),
            (None, Some(old)) => self.replace(slot, old, rollout, out),
            (None, None) => self.follow(slot, rollout, out),
        }
    }

    /// Two tasks have the slot: `old` is stopped when `new` can take its place, and until then nothing of it changes.
    fn hand_over(&self, slot: &Slot, new: &Task, old: &Task, rollout: &Rollout, out: &mut Writes<impl Rng>) {
        let moves = self.reason_to_move(old);
        let serves = old.is_backend();
        if moves == Some(TaskEnd::Rebalanced) && self.comes_to_nothing(new, old) {
            give_up_move(old, out);
            return out.desire(new, TaskState::Shutdown, TaskEnd::Withdrawn);
        }
        if rollout.is_paused() && moves.is_none() && serves && !self.serves(new) {
            return out.desire(new, TaskState::Shutdown, TaskEnd::Withdrawn);
        }
        let starts_first = self.config.starts_first();
        // Made to start at once, because the node of the old one was away, and now that is back. No node has it yet.
        if !starts_first && new.status.state < TaskState::Assigned && new.desired_state == self.goal() && self.may_still_run(old)
        {
            out.change(new, |task| task.desired_state = TaskState::Ready);
        }
        let is_prepared = new.status.state >= TaskState::Ready && new.not_before.is_none_or(|start| start <= self.now);
        let can_take_over = if starts_first { self.serves(new) } else { is_prepared };
        let is_overdue = moves == Some(TaskEnd::Drained) && self.is_waited_for_in_vain(slot, new, old);
        // Of a network that is full the new one gets the address that the old one has.
        let has_its_address = !starts_first && !old.attachments.is_empty() && waits_for_full_network(new);
        if can_take_over || is_overdue || has_its_address || !serves {
            out.desire(old, TaskState::Shutdown, moves.unwrap_or(TaskEnd::Replaced));
        }
        self.start_if_due(new, &slot.tasks, starts_first, out);
    }

    /// A node is drained even if nothing can take the place of its task: the one that was to may not, or one before it has failed.
    fn is_waited_for_in_vain(&self, slot: &Slot, new: &Task, old: &Task) -> bool {
        self.has_had_its_time(new) && (!self.may_serve(new) || first_failure_after(slot, old).is_some())
    }

    fn has_had_its_time(&self, new: &Task) -> bool {
        self.now.since(new.meta.created_at) >= self.config.failure_window()
    }

    /// The task that was to take the place of one that moves has failed, and the delay before the next one is not over.
    fn failed_elsewhere<'t>(&self, slot: &Slot<'t>) -> Option<&'t Task> {
        let old = slot.old.filter(|old| slot.current.is_none() && old.is_backend() && self.must_move(old))?;
        let newest = slot.ended.last().copied();
        let failed = newest.filter(|task| ended_on_its_own(task) && task.meta.created_at > old.meta.created_at)?;
        let pause = delay(failed, &failures_after(failed, self.service.spec_version, self.now));
        (self.now < failed.status.timestamp.plus(pause)).then_some(failed)
    }

    /// Only a task that is to be replaced has the slot.
    fn replace(&self, slot: &Slot, old: &Task, rollout: &Rollout, out: &mut Writes<impl Rng>) {
        let beside = self.config.starts_first();
        let mut create = |cause, not_before| {
            self.create(NewTask { slot: slot.key.clone(), cause, others: &slot.tasks, not_before, beside }, out);
        };
        if let Some(reason) = self.reason_to_move(old) {
            if self.failed_elsewhere(slot).is_some() {
                let is_overdue = first_failure_after(slot, old).is_some_and(|failed| self.has_had_its_time(failed));
                if reason == TaskEnd::Drained && is_overdue {
                    out.desire(old, TaskState::Shutdown, reason);
                }
                return;
            }
            // What waits for its restart delay goes on waiting elsewhere.
            let cause = if reason == TaskEnd::Rebalanced { TaskCause::Rebalance } else { TaskCause::Move };
            create(cause, old.not_before.filter(|start| *start > self.now));
            if !old.is_backend() {
                out.desire(old, TaskState::Shutdown, reason);
            }
        } else if let Some(cause) = rollout.replacement_of(&slot.key) {
            create(cause, None);
            if !old.is_backend() {
                out.desire(old, TaskState::Shutdown, TaskEnd::Replaced);
            }
        } else if !rollout.is_paused()
            && slot.ended.last().is_some_and(|failed| self.is_current(failed))
            && let Next::Start { not_before } = slot.next
        {
            // Its replacement failed, and the update goes on all the same, or has gone on to its end.
            create(TaskCause::Restart, not_before);
        } else {
            self.start_if_due(old, &slot.tasks, false, out);
        }
    }

    /// All tasks of the slot have ended.
    fn follow(&self, slot: &Slot, rollout: &Rollout, out: &mut Writes<impl Rng>) {
        let create = |cause, not_before, out: &mut Writes<_>| {
            self.create(NewTask { slot: slot.key.clone(), cause, others: &slot.tasks, not_before, beside: false }, out);
        };
        if let Some(cause) = rollout.replacement_of(&slot.key) {
            return create(cause, None, out);
        }
        if let Next::Start { not_before } = slot.next {
            let is_restart = slot.ended.last().is_some_and(|task| ended_on_its_own(task));
            create(if is_restart { TaskCause::Restart } else { TaskCause::Move }, not_before, out);
        }
    }

    /// Why a task that is wanted has ended.
    pub(super) fn end_of(&self, task: &Task) -> TaskEnd {
        if self.lost_its_node(task) || task.status.state == TaskState::Orphaned {
            TaskEnd::NodeLost
        } else if ended_on_its_own(task) {
            TaskEnd::Itself
        } else {
            TaskEnd::Superseded
        }
    }
}

/// The first of the tasks after this one in its slot that failed.
fn first_failure_after<'t>(slot: &Slot<'t>, old: &Task) -> Option<&'t Task> {
    slot.tasks.iter().copied().find(|task| ended_on_its_own(task) && task.meta.created_at > old.meta.created_at)
}

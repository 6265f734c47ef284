//! Moves by `skep rebalance`: which of the tasks that it has marked move now. As many slots at the same time as the service's updates
//! replace, with their order and delay; nothing moves during an update, and the first task that does not do well elsewhere ends it.

use super::restart::ended_on_its_own;
use super::slot::{ServiceSlots, TasksBySlot};
use super::writes::Writes;
use crate::model::{Task, TaskCause, TaskState};
use rand::Rng;

fn is_made_by_move(task: &Task) -> bool {
    task.cause == Some(TaskCause::Rebalance) && task.is_wanted() && !task.status.state.is_final()
}

impl ServiceSlots<'_> {
    /// Selects the tasks that move now.
    pub(super) fn select_moves(&mut self, tasks: &TasksBySlot, out: &mut Writes<impl Rng>) {
        let marked = |t: &&&Task| t.move_to.is_some() && t.node_id.is_some() && t.is_wanted() && !t.status.state.is_final();
        let is_updated = self.service.update.as_ref().is_some_and(|u| u.state.is_active() || u.state.is_paused());
        if is_updated || !tasks.values().flatten().any(|t| marked(&t)) {
            return;
        }
        let failed = |t: &&&Task| t.cause == Some(TaskCause::Rebalance) && t.is_wanted() && ended_on_its_own(t);
        if tasks.values().flatten().any(|t| failed(&t)) {
            for task in tasks.values().flatten().filter(marked) {
                give_up_move(task, out);
            }
            return;
        }
        let parallel = usize::try_from(self.config.parallelism).unwrap_or(usize::MAX);
        let parallel = if parallel == 0 { usize::MAX } else { parallel };
        // Those that have begun keep their places.
        let has_begun = |slot: &&Vec<&Task>| {
            let has_successor = slot.iter().any(|t| marked(&t)) && slot.iter().any(|t| is_made_by_move(t) && t.move_to.is_none());
            has_successor || slot.iter().any(|t| self.is_moving_in(t))
        };
        let (begun, others): (Vec<_>, Vec<_>) = tasks.values().partition(has_begun);
        let free = parallel.saturating_sub(begun.len());
        let next = others.into_iter().filter_map(|slot| slot.iter().find(|t| marked(t))).take(free);
        let moving = begun.into_iter().filter_map(|slot| slot.iter().find(|t| marked(t))).chain(next);
        self.moving = moving.map(|task| task.id.clone()).collect();
    }

    /// The task was made by a move, and does not serve yet, or not for as long as updates pause between two slots.
    fn is_moving_in(&self, task: &Task) -> bool {
        let settled = self.serves(task) && self.now.since(task.status.timestamp) >= self.config.delay();
        is_made_by_move(task) && !settled && !self.lost_its_node(task)
    }

    /// The task that was to take the place has the same node, or none within the time in which an update gives up.
    pub(super) fn comes_to_nothing(&self, new: &Task, old: &Task) -> bool {
        let is_unplaced = new.status.state < TaskState::Assigned || self.may_not_be_taken(new);
        let waited = self.now.since(new.meta.created_at) >= self.config.failure_window();
        (is_unplaced && waited) || (new.node_id.is_some() && new.node_id == old.node_id)
    }
}

/// The task stays where it is.
pub(super) fn give_up_move(task: &Task, out: &mut Writes<impl Rng>) {
    out.change(task, |task| task.move_to = None);
}

//! Which tasks move now: of those on drained nodes, and of those that `skep rebalance` has marked. As many slots at the same time as the
//! service's updates replace, and in their order.
//!
//! A drain comes to an end: what does not serve moves at once, and a slot whose new task cannot be placed or fails is waited for no
//! longer than [`ServiceSlots::may_serve`] says. A rebalancing keeps to the delay of updates too; nothing moves by it during an update,
//! and the first task that does not do well elsewhere ends it.

use super::restart::ended_on_its_own;
use super::slot::{ServiceSlots, TasksBySlot};
use super::writes::Writes;
use crate::model::{Task, TaskCause};
use rand::Rng;

fn is_made_by_move(task: &Task) -> bool {
    task.cause == Some(TaskCause::Rebalance) && task.is_wanted() && !task.status.state.is_final()
}

fn is_marked(task: &Task) -> bool {
    task.move_to.is_some() && task.node_id.is_some() && task.is_wanted() && !task.status.state.is_final()
}

impl ServiceSlots<'_> {
    /// Selects the tasks that move now.
    pub(super) fn select_moves(&mut self, tasks: &TasksBySlot, out: &mut Writes<impl Rng>) {
        let drained = self.select_drained(tasks);
        self.select_rebalanced(tasks, drained, out);
    }

    /// How many slots may be without a task that serves.
    fn places(&self) -> usize {
        let parallel = usize::try_from(self.config.parallelism).unwrap_or(usize::MAX);
        if parallel == 0 { usize::MAX } else { parallel }
    }

    /// Has tasks that serve on drained nodes wait there while no place is free. Returns how many begin to move.
    fn select_drained(&mut self, tasks: &TasksBySlot) -> usize {
        let waiting: Vec<&Task> = tasks.values().filter_map(|slot| self.leaves_a_drained_node(slot)).collect();
        if waiting.is_empty() {
            return 0;
        }
        let taken = tasks.values().filter(|slot| self.is_handed_over(slot)).count();
        let begin = waiting.len().min(self.places().saturating_sub(taken));
        self.held = waiting[begin..].iter().map(|task| task.id.clone()).collect();
        begin
    }

    /// The slot's task serves on a drained node, and none of the present template is elsewhere.
    fn leaves_a_drained_node<'t>(&self, slot: &[&'t Task]) -> Option<&'t Task> {
        let is_usable = |t: &&&Task| t.is_wanted() && !t.status.state.is_final() && !self.lost_its_node(t);
        let usable: Vec<&Task> = slot.iter().filter(is_usable).copied().collect();
        let has_successor = usable.iter().any(|t| t.spec_version == self.service.spec_version && !self.is_drained(t));
        usable.into_iter().find(|task| !has_successor && task.is_backend() && self.is_drained(task))
    }

    fn select_rebalanced(&mut self, tasks: &TasksBySlot, drained: usize, out: &mut Writes<impl Rng>) {
        let is_updated = self.service.has_open_update();
        if is_updated || !tasks.values().flatten().any(|t| is_marked(t)) {
            return;
        }
        let failed =
            |t: &Task| t.cause == Some(TaskCause::Rebalance) && t.is_wanted() && (ended_on_its_own(t) || self.fails_to_listen(t));
        if tasks.values().flatten().any(|t| failed(t)) {
            for task in tasks.values().flatten().filter(|t| is_marked(t)) {
                give_up_move(task, out);
            }
            return;
        }
        // Those that have begun keep their places.
        let has_begun = |slot: &&Vec<&Task>| {
            let has_successor =
                slot.iter().any(|t| is_marked(t)) && slot.iter().any(|t| is_made_by_move(t) && t.move_to.is_none());
            has_successor || slot.iter().any(|t| self.is_moving_in(t))
        };
        let (begun, others): (Vec<_>, Vec<_>) = tasks.values().partition(has_begun);
        let taken = drained + begun.len() + others.iter().filter(|slot| self.is_handed_over(slot)).count();
        let free = self.places().saturating_sub(taken);
        let next = others.into_iter().filter_map(|slot| slot.iter().find(|t| is_marked(t))).take(free);
        let moving = begun.into_iter().filter_map(|slot| slot.iter().find(|t| is_marked(t))).chain(next);
        self.moving = moving.map(|task| task.id.clone()).collect();
    }

    /// The task was made by a rebalancing, and does not serve yet, or not for as long as updates pause between two slots.
    fn is_moving_in(&self, task: &Task) -> bool {
        let settled = self.serves(task) && self.now.since(task.status.timestamp) >= self.config.delay();
        is_made_by_move(task) && !settled && !self.lost_its_node(task)
    }

    /// The task that was to take the place has the same node, or is waited for no more.
    pub(super) fn comes_to_nothing(&self, new: &Task, old: &Task) -> bool {
        !self.may_serve(new) || (new.node_id.is_some() && new.node_id == old.node_id)
    }
}

/// The task stays where it is.
pub(super) fn give_up_move(task: &Task, out: &mut Writes<impl Rng>) {
    out.change(task, |task| task.move_to = None);
}

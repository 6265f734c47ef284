//! PENDING → ASSIGNED: selects a node for each task. Filters exclude nodes, each with its reason; of the remaining nodes the best by
//! rank is selected, within the branches of the spread preferences. Tasks that need the same are decided together: one pass of the
//! filters over the nodes for all of them.

mod enforcer;
mod filter;
mod generic;
mod group;
mod load;
mod needs;
mod place;
pub mod rebalance;
mod spread;

#[cfg(test)]
mod enforcer_tests;
#[cfg(test)]
mod place_tests;
#[cfg(test)]
mod rebalance_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod walk_tests;

use crate::model::{Task, Timestamp};
use crate::store::{Action, Store, changed};
use enforcer::ConstraintEnforcer;
use group::WaitingTasks;
use load::Loads;
use needs::{LabelledServices, TaskNeeds};
use place::Placer;

/// Plans, and keeps what need not be counted again in the next round. All of it follows from the store: a new leader's decides the
/// same.
#[derive(Default)]
pub struct Scheduler {
    /// The state that `loads` and `waiting` are of.
    seen: Store,
    loads: Loads,
    waiting: WaitingTasks,
    enforcer: ConstraintEnforcer,
}

impl Scheduler {
    /// Assignments, and for tasks that stay pending the reason. Reads nothing while no task is pending.
    pub fn plan(&mut self, store: &Store, now: Timestamp) -> Vec<Action> {
        if store.pending_tasks().next().is_none() {
            return Vec::new();
        }
        self.follow(store);
        let services = LabelledServices::read(store);
        let mut placer = Placer::new(store, &mut self.loads, now);
        for group in self.waiting.by_age() {
            let Some(oldest) = group.oldest().and_then(|(_, _, id)| store.task(id)) else { continue };
            placer.place(group, &TaskNeeds::of(oldest, store, &services));
            if placer.is_full() {
                break;
            }
        }
        placer.finish()
    }

    /// Evictions of tasks whose node no longer meets their constraints or reservations.
    pub fn enforce(&mut self, store: &Store, now: Timestamp) -> Vec<Action> {
        self.enforcer.plan(store, now)
    }

    /// Counts what has changed since the last call.
    fn follow(&mut self, store: &Store) {
        let before = std::mem::replace(&mut self.seen, store.clone());
        for (was, is) in changed::<Task>(&before, store) {
            for (task, appears) in was.map(|task| (task, false)).into_iter().chain(is.map(|task| (task, true))) {
                self.loads.count(task, appears);
                self.waiting.count(task, appears);
            }
        }
    }
}

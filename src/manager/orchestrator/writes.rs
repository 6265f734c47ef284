//! What a plan writes: each object once, however many decisions concern it.

use crate::model::{Service, Task, TaskEnd, TaskState, Timestamp};
use crate::store::{Action, Store};
use rand::Rng;
use std::collections::BTreeMap;

/// First feature level at which causes, ends and updates are stored.
const CAUSES: u32 = 2;

/// Writes of one round, in the order in which they were decided.
pub(super) struct Writes<'r, R> {
    pub rng: &'r mut R,
    now: Timestamp,
    has_causes: bool,
    updated: Vec<Task>,
    created: Vec<Task>,
    services: Vec<Service>,
    order: Vec<Written>,
}

#[derive(Clone, Copy)]
enum Written {
    Updated(usize),
    Created(usize),
    Service(usize),
}

impl<'r, R: Rng> Writes<'r, R> {
    pub(super) fn new(store: &Store, rng: &'r mut R, now: Timestamp) -> Self {
        let has_causes = store.feature_level() >= CAUSES;
        Self { rng, now, has_causes, updated: Vec::new(), created: Vec::new(), services: Vec::new(), order: Vec::new() }
    }

    /// Objects written so far.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Updates and the causes of tasks may be stored.
    pub(super) fn has_causes(&self) -> bool {
        self.has_causes
    }

    /// Changes a task, on top of what was already decided of it.
    pub(super) fn change(&mut self, task: &Task, change: impl FnOnce(&mut Task)) {
        let at = self.updated.iter().position(|t| t.id == task.id).unwrap_or_else(|| {
            self.order.push(Written::Updated(self.updated.len()));
            self.updated.push(task.clone());
            self.updated.len() - 1
        });
        change(&mut self.updated[at]);
    }

    /// Sets a desired state and why; a state that is already higher stays, and so does the first reason. A task that never had a
    /// node has stopped with that: there is nothing to wait for.
    pub(super) fn desire(&mut self, task: &Task, state: TaskState, end: TaskEnd) {
        let (has_causes, now) = (self.has_causes, self.now);
        self.change(task, |task| {
            task.desired_state = task.desired_state.max(state);
            if state >= TaskState::Shutdown && task.status.state < TaskState::Assigned {
                (task.status.state, task.status.timestamp) = (TaskState::Shutdown, now);
                // What an update has waited for in vain stays to be read.
                if task.end != Some(TaskEnd::Unplaced) {
                    task.status.err.clear();
                }
            }
            if has_causes {
                task.end.get_or_insert(end);
                // How long it ran is asked when it has stopped.
                if state >= TaskState::Shutdown {
                    task.keep_start(now);
                }
            }
        });
    }

    pub(super) fn create(&mut self, mut task: Task) {
        if !self.has_causes {
            task.cause = None;
        }
        self.order.push(Written::Created(self.created.len()));
        self.created.push(task);
    }

    pub(super) fn update_service(&mut self, service: Service) {
        self.order.push(Written::Service(self.services.len()));
        self.services.push(service);
    }

    /// In the order of decision; what concerns the same slot stands together, because only that is written together for certain.
    pub(super) fn into_actions(self) -> Vec<Action> {
        let task = |written: &Written| match *written {
            Written::Updated(at) => Some(&self.updated[at]),
            Written::Created(at) => Some(&self.created[at]),
            Written::Service(_) => None,
        };
        let slot = |written: &Written| task(written).map(|t| (&t.service_id, t.slot_key()));
        let mut first = BTreeMap::new();
        for (at, written) in self.order.iter().enumerate() {
            if let Some(slot) = slot(written) {
                first.entry(slot).or_insert(at);
            }
        }
        let mut order: Vec<(usize, &Written)> =
            self.order.iter().enumerate().map(|(at, w)| (slot(w).map_or(at, |slot| first[&slot]), w)).collect();
        order.sort_by_key(|(at, _)| *at);
        let action = |written: &Written| match *written {
            Written::Updated(at) => Action::update(self.updated[at].clone()),
            Written::Created(at) => Action::create(self.created[at].clone()),
            Written::Service(at) => Action::update(self.services[at].clone()),
        };
        order.into_iter().map(|(_, written)| action(written)).collect()
    }
}

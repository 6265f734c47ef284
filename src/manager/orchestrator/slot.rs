//! Slots: the numbered places of a service, each with one live task and the history of its predecessors. Decides what
//! state a slot is in and what happens to its tasks; how many slots a service has, its mode decides.

use super::restart::{delay, failures_after, should_restart};
use crate::manager::limits::BATCH;
use crate::manager::settings::ManagerSettings;
use crate::model::{Availability, Meta, NodeState, Service, ServiceId, Task, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp};
use crate::store::{Action, Store};
use rand::Rng;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Tasks of a service by slot number.
pub type TasksBySlot<'a> = BTreeMap<u64, Vec<&'a Task>>;

/// All tasks that are not to be removed, within a slot by id.
pub(super) fn tasks_by_service(store: &Store) -> BTreeMap<&ServiceId, TasksBySlot<'_>> {
    let mut by_service = BTreeMap::<&ServiceId, TasksBySlot>::new();
    for task in store.tasks().filter(|t| t.desired_state < TaskState::Remove) {
        by_service.entry(&task.service_id).or_default().entry(task.slot).or_default().push(task);
    }
    by_service
}

/// Sorts the tasks of each slot, oldest first.
pub(super) fn sort_by_age(slots: &mut TasksBySlot) {
    for tasks in slots.values_mut() {
        tasks.sort_by(|a, b| by_age(a, b));
    }
}

/// Removes tasks whose service was removed.
pub(super) fn remove_tasks_without_service(store: &Store, tasks: &BTreeMap<&ServiceId, TasksBySlot>) -> Vec<Action> {
    let removed = tasks.iter().filter(|(id, _)| store.service(id).is_none());
    let tasks = removed.flat_map(|(_, slots)| slots.values().flatten());
    tasks.take(BATCH).map(|task| desire(task, TaskState::Remove)).collect()
}

/// Oldest first; of two tasks created at the same time the live one is the newer.
pub fn by_age(a: &Task, b: &Task) -> Ordering {
    let key = |t: &Task| (t.meta.created_at, t.desired_state <= TaskState::Running);
    key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
}

/// Sets a desired state; one that is already higher stays.
pub(super) fn desire(task: &Task, state: TaskState) -> Action {
    Action::update(Task { desired_state: state.max(task.desired_state), ..task.clone() })
}

/// State of a slot.
pub(super) enum SlotState<'a> {
    /// `task` is the live task; `surplus` are further live tasks, which are shut down. Until it runs, tasks of nodes that may
    /// return are no surplus.
    Filled { task: &'a Task, surplus: Vec<&'a Task> },
    /// All live tasks ended or lost their node: they are shut down, those excepted whose node may return, and a new task
    /// starts, not before that time.
    Replace { not_before: Option<Timestamp>, ended: Vec<&'a Task> },
    /// The newest task failed before it was to start: it keeps the slot until then, so that a task which cannot be prepared
    /// is not replaced more often than one which fails. `surplus` are further live tasks, which are shut down.
    Held { surplus: Vec<&'a Task> },
    /// The restart policy allows no new task; what is still live is shut down.
    Completed { ended: Vec<&'a Task> },
    /// Only history: free for a new task.
    Empty,
}

/// What the state of a service's slots depends on, besides their tasks.
pub(super) struct ServiceSlots<'a> {
    pub store: &'a Store,
    pub service: &'a Service,
    pub now: Timestamp,
    pub settings: &'a ManagerSettings,
}

impl ServiceSlots<'_> {
    /// State of the slot that has these tasks, oldest first.
    pub(super) fn state<'t>(&self, tasks: &[&'t Task]) -> SlotState<'t> {
        let live: Vec<&Task> = tasks.iter().copied().filter(|t| t.desired_state <= TaskState::Running).collect();
        let (usable, lost): (Vec<&Task>, Vec<&Task>) =
            live.iter().partition(|t| !t.status.state.is_final() && !self.lost_its_node(t));
        // Of several live tasks (two leaders may each have created one, or a node has returned) the furthest stays, of equals
        // the oldest.
        if let Some(task) = usable.iter().copied().reduce(|a, b| if b.status.state > a.status.state { b } else { a }) {
            let is_replaced = task.status.state == TaskState::Running;
            let is_surplus = |t: &&Task| t.id != task.id && (is_replaced || !self.may_return(t));
            return SlotState::Filled { task, surplus: live.into_iter().filter(is_surplus).collect() };
        }
        let is_lost = !lost.is_empty();
        let Some(newest) = lost.last().or(tasks.last()).copied() else { return SlotState::Empty };
        let ended: Vec<&Task> = lost.into_iter().filter(|t| !self.may_return(t)).collect();
        match (should_restart(newest, tasks, self.now), !is_lost) {
            (true, true) => SlotState::Empty,
            (true, false) if self.is_held(newest) => {
                SlotState::Held { surplus: ended.into_iter().filter(|t| t.id != newest.id).collect() }
            }
            (true, false) => SlotState::Replace { not_before: self.start_of_successor(newest), ended },
            (false, _) => SlotState::Completed { ended },
        }
    }

    /// The task failed before it was to start, and that time has not come.
    fn is_held(&self, task: &Task) -> bool {
        let waits = task.desired_state < TaskState::Running && task.not_before.is_some_and(|start| start > self.now);
        waits && task.status.state.is_final() && task.spec_version == self.service.spec_version
    }

    /// When the successor of a task that ended may start; `None`: now.
    fn start_of_successor(&self, task: &Task) -> Option<Timestamp> {
        // The delay is for tasks that ended; one that lost its node is replaced immediately, and so is one of an older spec.
        let start = if task.spec_version != self.service.spec_version {
            None
        } else if task.status.state.is_final() && !self.lost_its_node(task) {
            Some(self.now.plus(delay(task, &failures_after(task, self.service.spec_version, self.now))))
        } else {
            task.not_before
        };
        start.filter(|start| *start > self.now)
    }

    /// Actions for a slot in this state that the service keeps.
    pub(super) fn update(&self, number: u64, state: &SlotState, tasks: &[&Task], rng: &mut impl Rng, out: &mut Vec<Action>) {
        let shut_down = |tasks: &[&Task], out: &mut Vec<Action>| {
            out.extend(tasks.iter().map(|t| desire(t, TaskState::Shutdown)));
        };
        match state {
            SlotState::Filled { task, surplus } => {
                shut_down(surplus, out);
                if task.desired_state < TaskState::Running && self.may_start(task, tasks) {
                    out.push(Action::update(Task { desired_state: TaskState::Running, not_before: None, ..(*task).clone() }));
                }
            }
            SlotState::Replace { not_before, ended } => {
                shut_down(ended, out);
                out.push(self.create_task(number, tasks, *not_before, rng));
            }
            SlotState::Held { surplus } => shut_down(surplus, out),
            SlotState::Completed { ended } => shut_down(ended, out),
            SlotState::Empty => {}
        }
    }

    /// Creates a task in a slot. It waits in Ready while its start is delayed or a predecessor may still run.
    pub(super) fn create_task(&self, slot: u64, others: &[&Task], not_before: Option<Timestamp>, rng: &mut impl Rng) -> Action {
        let waits = not_before.is_some() || others.iter().any(|t| self.may_still_run(t));
        let spec = &self.service.spec;
        let failures = others.last().map(|t| failures_after(t, self.service.spec_version, self.now)).unwrap_or_default();
        Action::create(Task {
            id: TaskId::draw(rng),
            meta: Meta::default(),
            spec: TaskSpec { runtime: None, ..spec.task_template.clone() }.into(),
            spec_version: self.service.spec_version,
            service_id: self.service.id.clone(),
            service_name: spec.name.clone(),
            service_labels: spec.labels.clone().into(),
            slot,
            node_id: None,
            desired_state: if waits { TaskState::Ready } else { TaskState::Running },
            status: TaskStatus { timestamp: self.now, message: "created".to_owned(), ..TaskStatus::default() },
            attachments: Vec::new(),
            not_before,
            ports: spec.host_ports(),
            listens: Vec::new(),
            failures,
            pull_auth: self.service.pull_auth.clone(),
            generic_resources: Vec::new(),
        })
    }

    /// A waiting task starts when its delay is over and its predecessors have stopped, or take longer than `replace_wait`.
    fn may_start(&self, task: &Task, tasks: &[&Task]) -> bool {
        let delay_over = task.not_before.is_none_or(|t| t <= self.now);
        let may_wait = self.now.since(task.meta.created_at) < self.settings.replace_wait;
        delay_over && !(may_wait && tasks.iter().any(|t| t.id != task.id && self.may_still_run(t)))
    }

    /// The task may have a running container, on a node that can receive the order to stop it.
    fn may_still_run(&self, task: &Task) -> bool {
        let node = task.node_id.as_ref().and_then(|id| self.store.node(id));
        let reachable = node.is_some_and(|n| n.status.state.may_be_up());
        reachable && task.status.state >= TaskState::Assigned && !task.status.state.is_final()
    }

    /// The task's node is down, and was not for long: if it returns its tasks are kept where no replacement runs.
    fn may_return(&self, task: &Task) -> bool {
        let node = task.node_id.as_ref().and_then(|id| self.store.node(id));
        !task.status.state.is_final()
            && node.is_some_and(|n| {
                let down = n.status.down_since.filter(|_| n.status.state == NodeState::Down);
                let is_recent = down.is_some_and(|since| self.now.since(since) < self.settings.return_window);
                is_recent && n.spec.availability != Availability::Drain
            })
    }

    /// The task's node is removed, down or drained.
    fn lost_its_node(&self, task: &Task) -> bool {
        task.node_id.as_ref().is_some_and(|id| {
            let node = self.store.node(id);
            node.is_none_or(|n| !n.status.state.may_be_up() || n.spec.availability == Availability::Drain)
        })
    }
}

/// Numbers of the slots that are not empty, in the order in which a service keeps them when it is scaled down: the n-th
/// task of the service on its node by n, running before not running, then by number. After those the slots without a
/// scheduled task: filled, to be replaced, completed.
pub(super) fn keep_order(states: &BTreeMap<u64, SlotState>) -> Vec<u64> {
    let mut scheduled: Vec<(u64, &Task)> = Vec::new();
    let mut others = Vec::new();
    for (number, state) in states {
        match state {
            SlotState::Filled { task, .. } if task.node_id.is_some() => scheduled.push((*number, task)),
            SlotState::Filled { .. } => others.push((0, *number)),
            SlotState::Replace { .. } | SlotState::Held { .. } => others.push((1, *number)),
            SlotState::Completed { .. } => others.push((2, *number)),
            SlotState::Empty => {}
        }
    }
    scheduled.sort_by_key(|(number, task)| (task.status.state != TaskState::Running, *number));
    let mut per_node = BTreeMap::new();
    let mut ranked: Vec<(usize, u64)> = Vec::new();
    for (number, task) in scheduled {
        let rank = per_node.entry(&task.node_id).or_insert(0_usize);
        *rank += 1;
        ranked.push((*rank, number));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    others.sort_unstable();
    ranked.into_iter().map(|(_, number)| number).chain(others.into_iter().map(|(_, number)| number)).collect()
}

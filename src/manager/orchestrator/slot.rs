//! Slots: the places of a service, each with the tasks that follow each other in it. Decides what state a slot is in; what
//! happens to its tasks is in `slot_plan`, how many slots a service has, its mode decides.

use super::restart::{delay, ended_on_its_own, failures_after, should_restart};
use super::service_ports::ServicePorts;
use super::writes::Writes;
use crate::manager::limits::BATCH;
use crate::manager::settings::ManagerSettings;
use crate::model::constraint::Constraints;
use crate::model::service::UpdateConfig;
use crate::model::{Availability, Node, NodeState, Service, ServiceId, SlotKey, Task, TaskEnd, TaskId, TaskState, Timestamp};
use crate::store::Store;
use rand::Rng;
use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Tasks of a service by slot.
pub type TasksBySlot<'a> = BTreeMap<SlotKey, Vec<&'a Task>>;

/// Tasks of a service that are not to be removed, within a slot the oldest first.
pub(super) fn tasks_by_slot<'a>(store: &'a Store, service: &ServiceId) -> TasksBySlot<'a> {
    let mut slots = TasksBySlot::new();
    for task in store.tasks_of_service(service).filter(|t| t.desired_state < TaskState::Remove && t.attached.is_none()) {
        slots.entry(task.slot_key()).or_default().push(task);
    }
    for tasks in slots.values_mut().filter(|tasks| tasks.len() > 1) {
        tasks.sort_by(|a, b| by_age(a, b));
    }
    slots
}

/// Removes the tasks of a service that was removed. Stops once `out` has [`BATCH`] writes.
pub(super) fn remove_tasks_of(store: &Store, service: &ServiceId, out: &mut Writes<impl Rng>) {
    for task in tasks_by_slot(store, service).into_values().flatten() {
        if out.len() >= BATCH {
            return;
        }
        out.desire(task, TaskState::Remove, TaskEnd::ServiceRemoved);
    }
}

/// Oldest first; of two tasks created at the same time the one that is to run is the newer, then the one seen last.
pub fn by_age(a: &Task, b: &Task) -> Ordering {
    let key = |t: &Task| (t.meta.created_at, t.is_wanted(), t.status.timestamp);
    key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
}

/// A slot and its tasks.
pub(super) struct Slot<'a> {
    pub key: SlotKey,
    /// All that are not to be removed, oldest first.
    pub tasks: Vec<&'a Task>,
    /// The task of the present template, on a node where it may stay: what the slot should have, and nothing else.
    pub current: Option<&'a Task>,
    /// A task that runs, or may yet, and is to be replaced: of another template, or on a node that cannot keep it.
    pub old: Option<&'a Task>,
    /// Further ones, shut down at once: two leaders may each have created one, or a node has returned.
    pub surplus: Vec<&'a Task>,
    /// Wanted, but ended, or on a node that was lost; those excepted that may return while nothing runs in their place.
    pub ended: Vec<&'a Task>,
    /// What comes if the slot has neither `current` nor `old`.
    pub next: Next,
}

/// What follows in a slot whose tasks have all ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// A new task, not before that time.
    Start { not_before: Option<Timestamp> },
    /// The newest task failed before it was to start: it keeps the slot until then, so that a task which cannot be prepared is
    /// not replaced more often than one which fails.
    Hold,
    /// Nothing: the restart policy allows no new task.
    Nothing,
    /// Only history: free for a new task.
    Free,
}

impl Slot<'_> {
    /// The task that serves or is about to.
    pub(super) fn live(&self) -> Option<&Task> {
        let serving = [self.current, self.old].into_iter().flatten().find(|task| task.is_backend());
        serving.or(self.current).or(self.old)
    }
    pub(super) fn newest(&self) -> Option<&Task> {
        self.tasks.last().copied()
    }
    pub(super) fn is_free(&self) -> bool {
        self.live().is_none() && self.next == Next::Free
    }
}

/// What the state of a service's slots depends on, besides their tasks.
pub(super) struct ServiceSlots<'a> {
    pub store: &'a Store,
    pub service: &'a Service,
    pub now: Timestamp,
    pub settings: &'a ManagerSettings,
    /// How tasks are replaced: by an update or a rollback, whichever is the last one.
    pub config: UpdateConfig,
    /// Tasks that `skep rebalance` moves now.
    pub moving: BTreeSet<TaskId>,
    /// Tasks that serve on drained nodes until others of the service have moved.
    pub held: BTreeSet<TaskId>,
    /// See [`Self::ports`].
    found_ports: OnceCell<ServicePorts>,
    /// Of the service, read once for all of its tasks.
    constraints: Constraints,
}

impl<'a> ServiceSlots<'a> {
    pub(super) fn new(store: &'a Store, service: &'a Service, now: Timestamp, settings: &'a ManagerSettings) -> Self {
        let constraints = Constraints::of(&service.spec.task_template);
        let (config, found_ports) = (service.current_update_config(), OnceCell::new());
        Self { store, service, now, settings, config, moving: BTreeSet::new(), held: BTreeSet::new(), found_ports, constraints }
    }

    /// The ports that tell whether its tasks serve. Looked for once, and only where a task is to take over: most rounds change nothing.
    pub(super) fn ports(&self) -> &ServicePorts {
        self.found_ports.get_or_init(|| ServicePorts::of(self.store, self.service, self.now))
    }

    /// Whether what is planned for these tasks may be something else at a later time although neither they nor anything else of the
    /// service changes: an update goes on, a task waits for its start, or for what it replaces, or its node may return.
    pub(super) fn depend_on_time(&self, tasks: &TasksBySlot) -> bool {
        let is_job = self.service.spec.mode.is_job();
        // What is on a node that is away stays there if its slot is that node's.
        let is_lost = |task: &Task| self.lost_its_node(task) && task.slot_node.is_none();
        let is_steady = |task: &Task| {
            let is_over = task.status.state.is_final() && !(is_job && task.status.state == TaskState::Complete);
            let is_under_way = task.desired_state >= self.goal() && task.not_before.is_none() && task.move_to.is_none();
            !is_over && is_under_way && !is_lost(task) && !self.must_move(task) && !self.may_not_be_taken(task)
        };
        // Attempts are counted within a window that moves.
        let has_window = |task: &Task| task.spec.restart_policy.as_ref().is_some_and(|policy| policy.window.is_some());
        let waits = |tasks: &Vec<&Task>| {
            let mut wanted = tasks.iter().filter(|t| t.is_wanted());
            match (wanted.next(), wanted.next()) {
                (None, _) => !is_job && tasks.last().is_some_and(|newest| has_window(newest)),
                (Some(task), None) => !is_steady(task),
                (Some(_), Some(_)) => true,
            }
        };
        let updates = self.service.update.as_ref().is_some_and(|update| update.state.is_active());
        updates || tasks.values().any(waits)
    }

    /// State of the slot that has these tasks, oldest first.
    pub(super) fn state<'t>(&self, key: SlotKey, tasks: Vec<&'t Task>) -> Slot<'t> {
        let live: Vec<&Task> = tasks.iter().copied().filter(|t| t.is_wanted()).collect();
        let (usable, lost): (Vec<&Task>, Vec<&Task>) =
            live.iter().copied().partition(|t| !t.status.state.is_final() && !self.lost_its_node(t));
        // Of several the furthest stays, of equals the oldest.
        let furthest =
            |of: &mut dyn Iterator<Item = &'t Task>| of.reduce(|a, b| if b.status.state > a.status.state { b } else { a });
        let current = furthest(&mut usable.iter().copied().filter(|t| self.is_current(t) && !self.must_move(t)));
        let old = furthest(&mut usable.iter().copied().filter(|t| !self.is_current(t) || self.must_move(t)));
        let chosen = |t: &&Task| [current, old].into_iter().flatten().any(|c| c.id == t.id);
        let surplus = usable.iter().copied().filter(|t| !chosen(t)).collect();
        let is_served = [current, old].into_iter().flatten().any(|t| t.status.state == TaskState::Running);
        let ended: Vec<&Task> = lost.iter().copied().filter(|t| is_served || !self.may_return(t)).collect();
        let newest = lost.last().or(tasks.last()).copied();
        let next = newest.map_or(Next::Free, |newest| self.follows(newest, &tasks, !lost.is_empty()));
        Slot { key, tasks, current, old, surplus, ended, next }
    }

    /// What follows a task that ended. `is_wanted`: that is not decided yet.
    fn follows(&self, task: &Task, slot: &[&Task], is_wanted: bool) -> Next {
        let was_moved = task.end.is_some_and(TaskEnd::is_move);
        let is_given_up = !is_wanted && ended_on_its_own(task) && self.is_current(task) && !was_moved;
        if is_given_up || !should_restart(task, slot, self.now) {
            return Next::Nothing;
        }
        match is_wanted {
            // It was moved by the scheduler's enforcer.
            false if task.is_evicted() => Next::Start { not_before: None },
            false => Next::Free,
            true if self.is_held(task) => Next::Hold,
            true => Next::Start { not_before: self.start_of_successor(task, slot) },
        }
    }

    /// The task failed before it was to start, and that time has not come.
    fn is_held(&self, task: &Task) -> bool {
        let waits = task.desired_state < TaskState::Running && task.not_before.is_some_and(|start| start > self.now);
        waits && task.status.state.is_final() && self.is_current(task)
    }

    /// When the successor of a task that ended may start; `None`: now.
    fn start_of_successor(&self, task: &Task, slot: &[&Task]) -> Option<Timestamp> {
        // The delay is for tasks that ended by themselves: a move is no restart, and another template is another task. One of the
        // present template may have failed in the slot while the other one ran.
        let start = if task.spec_version != self.service.spec_version {
            let failed = |t: &&&Task| t.spec_version == self.service.spec_version && ended_on_its_own(t);
            let pause = |t: &Task| delay(t, &failures_after(t, self.service.spec_version, self.now));
            slot.iter().rfind(failed).map(|failed| failed.status.timestamp.plus(pause(failed)))
        } else if ended_on_its_own(task) {
            Some(self.now.plus(delay(task, &failures_after(task, self.service.spec_version, self.now))))
        } else {
            task.not_before
        };
        start.filter(|start| *start > self.now)
    }

    /// The task has the present template, and its node satisfies that.
    pub(super) fn is_current(&self, task: &Task) -> bool {
        task.spec_version == self.service.spec_version && !self.is_excluded(task)
    }

    /// The task's node does not satisfy the constraints of today.
    pub(super) fn is_excluded(&self, task: &Task) -> bool {
        self.node_of(task).is_some_and(|node| !self.constraints.are_met_by(node))
    }

    /// The task is where it cannot stay, on a node that can receive the order to stop it: that is drained and the task's turn has come,
    /// or did not take it, or the task is one that `skep rebalance` moves. (A task in the slot of a node is shut down then, and has no successor. Tasks whose node
    /// does not satisfy their constraints any more are evicted by the scheduler's enforcer.)
    pub(super) fn must_move(&self, task: &Task) -> bool {
        self.reason_to_move(task).is_some()
    }

    pub(super) fn reason_to_move(&self, task: &Task) -> Option<TaskEnd> {
        let is_drained = self.is_drained(task) && !self.held.contains(&task.id);
        let is_rebalanced = || self.moving.contains(&task.id);
        let is_not_taken = || self.may_not_be_taken(task) && self.was_not_taken(task);
        is_drained
            .then_some(TaskEnd::Drained)
            .or_else(|| is_rebalanced().then_some(TaskEnd::Rebalanced))
            .or_else(|| is_not_taken().then_some(TaskEnd::NotTaken))
    }

    pub(super) fn is_drained(&self, task: &Task) -> bool {
        self.node_of(task).is_some_and(|node| node.spec.availability == Availability::Drain)
    }

    /// The task's node is connected and applies nothing, and has not taken the task, which could run elsewhere.
    pub(super) fn may_not_be_taken(&self, task: &Task) -> bool {
        let is_behind = self.node_of(task).is_some_and(|node| node.status.behind_since.is_some());
        is_behind && task.status.state == TaskState::Assigned && task.slot_node.is_none() && task.job_iteration.is_none()
    }

    /// For as long as a node that is behind was waited for. One task at most is left behind in a slot: the next node may be the same.
    fn was_not_taken(&self, task: &Task) -> bool {
        let is_other = |t: &&Task| t.id != task.id && t.slot_key() == task.slot_key() && self.may_still_run(t);
        self.now.since(task.status.timestamp) >= self.settings.node_lag
            && !self.store.tasks_of_service(&task.service_id).any(|other| is_other(&other))
    }

    /// The task may have a running container, on a node that can receive the order to stop it.
    pub(super) fn may_still_run(&self, task: &Task) -> bool {
        let reachable = self.node_of(task).is_some_and(|n| n.status.state.may_be_up());
        reachable && task.status.state >= TaskState::Assigned && !task.status.state.is_final()
    }

    /// The task's node is down, and was not for long: if it returns its tasks are kept where no replacement runs.
    fn may_return(&self, task: &Task) -> bool {
        !task.status.state.is_final()
            && self.node_of(task).is_some_and(|n| {
                let down = n.status.down_since.filter(|_| n.status.state == NodeState::Down);
                let is_recent = down.is_some_and(|since| self.now.since(since) < self.settings.return_window);
                is_recent && n.spec.availability != Availability::Drain
            })
    }

    /// The task's node is removed or down.
    pub(super) fn lost_its_node(&self, task: &Task) -> bool {
        task.node_id.is_some() && self.node_of(task).is_none_or(|n| !n.status.state.may_be_up())
    }

    pub(super) fn node_of(&self, task: &Task) -> Option<&Node> {
        task.node_id.as_ref().and_then(|id| self.store.node(id))
    }
}

/// Keys of the slots that are not free, in the order in which a service keeps them when it is scaled down: running before not
/// running, then the n-th task of the service on its node by n, then by key. After those the slots whose task has no node, those
/// to be filled again, and those that the restart policy has left empty.
pub(super) fn keep_order(slots: &BTreeMap<SlotKey, Slot>) -> Vec<SlotKey> {
    let mut scheduled: Vec<(bool, &SlotKey, &Task)> = Vec::new();
    let mut others = Vec::new();
    for (key, slot) in slots {
        match (slot.live(), slot.next) {
            (Some(task), _) if task.node_id.is_some() => scheduled.push((!task.is_backend(), key, task)),
            (Some(_), _) => others.push((0, key)),
            (None, Next::Start { .. } | Next::Hold) => others.push((1, key)),
            (None, Next::Nothing) => others.push((2, key)),
            (None, Next::Free) => {}
        }
    }
    scheduled.sort_by_key(|(does_not_run, key, _)| (*does_not_run, *key));
    let mut per_node = BTreeMap::new();
    let mut ranked: Vec<(bool, usize, &SlotKey)> = Vec::new();
    for (does_not_run, key, task) in scheduled {
        let rank = per_node.entry(&task.node_id).or_insert(0_usize);
        *rank += 1;
        ranked.push((does_not_run, *rank, key));
    }
    ranked.sort();
    others.sort();
    ranked.into_iter().map(|(_, _, key)| key).chain(others.into_iter().map(|(_, key)| key)).cloned().collect()
}

//! Replicated services: the right number of slots, one live task in each. Makes tasks and says what is desired of them;
//! where they run and which addresses they have is not its business.

use super::ManagerSettings;
use super::restart::{by_age, delay, should_restart};
use super::round::BATCH;
use crate::model::{Availability, Meta, NodeState, Service, ServiceId, Task, TaskId, TaskState, TaskStatus, Timestamp};
use crate::store::{Action, Store};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};

type Slots<'a> = BTreeMap<u64, Vec<&'a Task>>;

/// What is to be made, stopped and forgotten now.
pub fn plan(store: &Store, now: Timestamp, rng: &mut impl Rng, settings: &ManagerSettings) -> Vec<Action> {
    let mut by_service = BTreeMap::<&ServiceId, Slots>::new();
    for task in store.tasks().filter(|t| t.desired_state < TaskState::Remove) {
        by_service.entry(&task.service_id).or_default().entry(task.slot).or_default().push(task);
    }
    let mut out = Vec::new();
    let ownerless =
        by_service.iter().filter(|(id, _)| store.service(id).is_none()).flat_map(|(_, slots)| slots.values().flatten());
    out.extend(ownerless.take(BATCH).map(|t| desire(t, TaskState::Remove)));
    if out.len() >= BATCH {
        return out;
    }
    for service in store.services() {
        let mut slots = by_service.remove(&service.id).unwrap_or_default();
        for tasks in slots.values_mut() {
            tasks.sort_by(|a, b| by_age(a, b));
        }
        Reconcile { store, service, now, settings }.run(&slots, rng, &mut out);
        if out.len() >= BATCH {
            break;
        }
    }
    out
}

/// What a slot is at.
enum Slot<'a> {
    /// Has its one live task; others that have to stop.
    Kept(&'a Task, Vec<&'a Task>),
    /// Its live tasks ended or lost their node; the newest of them, when its successor may start, and all that have to stop.
    Replace(Option<Timestamp>, Vec<&'a Task>),
    /// Its task ended and is not to be restarted; those that have to stop.
    Done(Vec<&'a Task>),
    /// Has only history: free for a new task.
    Dead,
}

struct Reconcile<'a> {
    store: &'a Store,
    service: &'a Service,
    now: Timestamp,
    settings: &'a ManagerSettings,
}

impl<'a> Reconcile<'a> {
    fn run(&self, slots: &Slots<'a>, rng: &mut impl Rng, out: &mut Vec<Action>) {
        let wanted = usize::try_from(self.service.spec.mode.replicas()).unwrap_or(usize::MAX);
        let judged: BTreeMap<u64, Slot> = slots.iter().map(|(n, tasks)| (*n, self.judge(tasks))).collect();
        let kept = keep_order(&judged);
        let (keep, remove) = kept.split_at(wanted.min(kept.len()));
        for number in remove {
            if out.len() >= BATCH {
                return;
            }
            out.extend(slots[number].iter().map(|t| desire(t, TaskState::Remove)));
        }
        for number in keep {
            if out.len() >= BATCH {
                return;
            }
            self.settle(*number, &judged[number], &slots[number], rng, out);
        }
        let filled: BTreeSet<u64> = keep.iter().copied().collect();
        let mut free = (1..).filter(|n| !filled.contains(n));
        let mut missing = wanted.saturating_sub(keep.len());
        let mut used = BTreeSet::new();
        while missing > 0 && out.len() < BATCH {
            let Some(number) = free.next() else { break };
            let held = slots.get(&number).is_some_and(|tasks| tasks.iter().any(|t| self.still_runs(t)));
            let desired = if held { TaskState::Ready } else { TaskState::Running };
            out.push(Action::create(self.new_task(number, desired, None, rng)));
            used.insert(number);
            missing -= 1;
        }
        // History of slots that nobody needs any more.
        if missing == 0 {
            let dead = judged.iter().filter(|(n, slot)| matches!(slot, Slot::Dead) && !used.contains(n));
            out.extend(dead.flat_map(|(n, _)| &slots[n]).take(BATCH).map(|t| desire(t, TaskState::Remove)));
        }
    }

    fn judge(&self, tasks: &[&'a Task]) -> Slot<'a> {
        let live: Vec<&Task> = tasks.iter().copied().filter(|t| t.desired_state <= TaskState::Running).collect();
        let (well, ill): (Vec<&Task>, Vec<&Task>) = live.iter().partition(|t| !t.status.state.is_final() && !self.lost(t));
        // Of several (after a split) the one that got furthest stays, of equals the oldest.
        if let Some(best) = well.iter().copied().reduce(|a, b| if b.status.state > a.status.state { b } else { a }) {
            return Slot::Kept(best, live.into_iter().filter(|t| t.id != best.id).collect());
        }
        let Some(newest) = ill.last().or(tasks.last()).copied() else { return Slot::Dead };
        match (should_restart(newest, tasks, self.now), ill.is_empty()) {
            (true, true) => Slot::Dead,
            (true, false) => {
                let own = newest.status.state.is_final() && !self.lost(newest);
                let not_before = if own { Some(self.now.plus(delay(newest))) } else { newest.not_before };
                Slot::Replace(not_before.filter(|t| *t > self.now), ill)
            }
            (false, _) => Slot::Done(ill),
        }
    }

    fn settle(&self, number: u64, slot: &Slot, tasks: &[&Task], rng: &mut impl Rng, out: &mut Vec<Action>) {
        match slot {
            Slot::Kept(task, others) => {
                out.extend(others.iter().map(|t| desire(t, TaskState::Shutdown)));
                if task.desired_state < TaskState::Running && self.may_start(task, tasks) {
                    out.push(Action::update(Task { desired_state: TaskState::Running, not_before: None, ..(*task).clone() }));
                }
            }
            Slot::Replace(not_before, ill) => {
                out.extend(ill.iter().map(|t| desire(t, TaskState::Shutdown)));
                let waits = not_before.is_some() || tasks.iter().any(|t| self.still_runs(t));
                let desired = if waits { TaskState::Ready } else { TaskState::Running };
                out.push(Action::create(self.new_task(number, desired, *not_before, rng)));
            }
            Slot::Done(ill) => out.extend(ill.iter().map(|t| desire(t, TaskState::Shutdown))),
            Slot::Dead => {}
        }
    }

    /// A task that was held back starts once its time has come and its predecessor has stopped (or takes too long).
    fn may_start(&self, task: &Task, tasks: &[&Task]) -> bool {
        let due = task.not_before.is_none_or(|t| t <= self.now);
        let patience = self.now.since(task.meta.created_at) < self.settings.replace_wait;
        due && !(patience && tasks.iter().any(|t| t.id != task.id && self.still_runs(t)))
    }

    /// A container of it may run, and on a node that can be asked to stop it.
    fn still_runs(&self, task: &Task) -> bool {
        let reachable = task.node_id.as_ref().and_then(|id| self.store.node(id)).is_some_and(|n| is_up(n.status.state));
        reachable && task.status.state >= TaskState::Assigned && !task.status.state.is_final()
    }

    /// Its node is gone, down or drained.
    fn lost(&self, task: &Task) -> bool {
        task.node_id.as_ref().is_some_and(|id| {
            self.store.node(id).is_none_or(|n| !is_up(n.status.state) || n.spec.availability == Availability::Drain)
        })
    }

    fn new_task(&self, slot: u64, desired_state: TaskState, not_before: Option<Timestamp>, rng: &mut impl Rng) -> Task {
        let spec = &self.service.spec;
        Task {
            id: TaskId::draw(rng),
            meta: Meta::default(),
            spec: crate::model::TaskSpec { runtime: None, ..spec.task_template.clone() },
            spec_version: self.service.spec_version,
            service_id: self.service.id.clone(),
            service_name: spec.name.clone(),
            service_labels: spec.labels.clone(),
            slot,
            node_id: None,
            desired_state,
            status: TaskStatus { timestamp: self.now, message: "created".to_owned(), ..TaskStatus::default() },
            attachments: Vec::new(),
            not_before,
            ports: spec.host_ports(),
            listens: Vec::new(),
        }
    }
}

/// False for nodes that cannot be told anything. One that this leader has not heard of yet gets the benefit of doubt.
pub fn is_up(state: NodeState) -> bool {
    matches!(state, NodeState::Ready | NodeState::Unknown)
}

/// Desired states only go up.
fn desire(task: &Task, state: TaskState) -> Action {
    Action::update(Task { desired_state: state.max(task.desired_state), ..task.clone() })
}

/// Filled slots, those first that stay longest: first the n-th copy of the service on its node by n, then running
/// before not running, then by number. What has no node or no live task goes first of all.
fn keep_order(judged: &BTreeMap<u64, Slot>) -> Vec<u64> {
    let mut kept: Vec<(u64, &Task)> = Vec::new();
    let mut rest = Vec::new();
    for (number, slot) in judged {
        match slot {
            Slot::Kept(task, _) if task.node_id.is_some() => kept.push((*number, task)),
            Slot::Kept(..) => rest.push((0, *number)),
            Slot::Replace(..) => rest.push((1, *number)),
            Slot::Done(_) => rest.push((2, *number)),
            Slot::Dead => {}
        }
    }
    kept.sort_by_key(|(number, task)| (task.status.state != TaskState::Running, *number));
    let mut copies = BTreeMap::new();
    let mut indexed: Vec<(usize, u64)> = kept
        .into_iter()
        .map(|(number, task)| {
            let copy = copies.entry(&task.node_id).or_insert(0_usize);
            *copy += 1;
            (*copy, number)
        })
        .collect();
    indexed.sort_by_key(|(copy, _)| *copy);
    rest.sort_unstable();
    indexed.into_iter().map(|(_, n)| n).chain(rest.into_iter().map(|(_, n)| n)).collect()
}

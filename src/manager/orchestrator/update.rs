//! Rolling updates and rollbacks. Which slots are replaced next, and what becomes of the update, decided from the service and its
//! tasks alone: what is not in the tasks is in the service object, so that any leader goes on.
//!
//! A slot is dirty if it has no task of the present template. The updater has it replaced, and watches the new task until it has
//! run for the failure window ([`crate::model::service::UpdateConfig::failure_window`]).

use super::slot::{Next, ServiceSlots, Slot};
use super::writes::Writes;
use crate::model::{NodeId, Service, ServiceUpdate, SlotKey, Task, TaskCause, TaskEnd, TaskState, UpdateState};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// What the updater allows now.
#[derive(Default)]
pub(super) struct Rollout {
    /// Slots whose task is replaced now.
    begin: BTreeSet<SlotKey>,
    state: Option<UpdateState>,
}

impl Rollout {
    /// The cause of the task that the updater puts into a slot now.
    pub(super) fn replacement_of(&self, slot: &SlotKey) -> Option<TaskCause> {
        let is_rollback = self.state.is_some_and(UpdateState::is_rollback);
        self.begin.contains(slot).then_some(if is_rollback { TaskCause::Rollback } else { TaskCause::Update })
    }
    pub(super) fn is_paused(&self) -> bool {
        self.state.is_some_and(UpdateState::is_paused)
    }
}

/// A task that failed while the updater watched it.
struct Failure<'a> {
    task: &'a Task,
    end: TaskEnd,
}

/// What an update of a global service does not reach now.
#[derive(Clone, Copy, Default)]
pub(super) struct Unreached<'a> {
    /// Slots of nodes that take no tasks.
    pub closed: &'a [&'a Slot<'a>],
    /// Nodes that are down, with a task that is to be replaced.
    pub away: &'a [NodeId],
}

impl ServiceSlots<'_> {
    /// Decides on the slots that the service keeps. `None`: the service has its previous spec again, and the next round decides with
    /// that.
    pub(super) fn rollout(&self, slots: &[&Slot], unreached: Unreached, out: &mut Writes<impl Rng>) -> Option<Rollout> {
        let dirty: Vec<&Slot> = slots.iter().copied().filter(|slot| self.is_dirty(slot)).collect();
        let stored = self.service.update.as_ref();
        if !out.has_causes() || self.service.spec.mode.is_job() {
            // Managers of earlier builds know no updates: what is dirty is replaced.
            return Some(Rollout { begin: dirty.iter().map(|slot| slot.key.clone()).collect(), state: None });
        }
        let is_new = dirty.iter().any(|slot| self.is_newly_dirty(slot));
        let Some(mut update) = self.begun(stored, dirty.len() as u64, is_new) else {
            self.store_update(None, out);
            return Some(Rollout::default());
        };
        // After a rollback that began by itself: with the spec before, other slots are dirty.
        if update.state.is_active() && update.dirty == 0 {
            update.dirty = dirty.len() as u64;
        }
        self.watch(slots, &mut update, out);
        let failures = self.failures(slots);
        for Failure { task, end } in &failures {
            out.change(task, |task| task.end = task.end.or(Some(*end)));
        }
        update.failed = update.failed.saturating_add(failures.len() as u64);
        if update.state.is_active()
            && let Some(last) = failures.last()
            && self.config.is_exceeded(update.failed, update.dirty)
            && self.give_up(&mut update, last, slots, out)
        {
            return None;
        }
        let mut begin = BTreeSet::new();
        if update.state.is_active() {
            let untried: Vec<&Slot> = dirty.iter().copied().filter(|slot| !self.is_tried(slot)).collect();
            // What a node had taken before it was closed still comes up on it.
            let taken = |slot: &&&Slot| self.watched(slot).is_some_and(|task| task.status.state >= TaskState::Assigned);
            let busy = slots.iter().chain(unreached.closed.iter().filter(taken)).filter(|slot| self.is_busy(slot)).count();
            let parallel = usize::try_from(self.config.parallelism).unwrap_or(usize::MAX);
            let allowed = if parallel == 0 { usize::MAX } else { parallel.saturating_sub(busy) };
            // Where nothing runs nothing is lost: those slots come first, all of them at once as long as nothing has failed.
            let (broken, running): (Vec<&Slot>, Vec<&Slot>) = untried.iter().partition(|slot| lacks_container(slot));
            let at_once = if update.failed == 0 { broken.len() } else { allowed.min(broken.len()) };
            let rest = running.iter().take(allowed.saturating_sub(broken.len()));
            begin.extend(broken.iter().take(at_once).chain(rest).map(|slot| slot.key.clone()));
            // Of an update that was rolled back while it went on, until what takes its place serves.
            let is_left = |slot: &Slot| !self.is_tried(slot) && slot.old.is_some_and(|old| !self.must_move(old));
            if untried.is_empty() && busy == 0 && !slots.iter().any(|slot| is_left(slot)) && self.is_watched_to_the_end(slots) {
                self.complete(&mut update, slots, unreached);
            }
        }
        let state = Some(update.state);
        self.store_update(Some(update), out);
        Some(Rollout { begin, state })
    }

    /// The update that goes on or begins now; `None` if there is nothing to update, and nothing to show.
    fn begun(&self, stored: Option<&ServiceUpdate>, dirty: u64, newly_dirty: bool) -> Option<ServiceUpdate> {
        let (mut update, is_new) = match stored {
            Some(update) if update.started_at.is_none() => (update.clone(), true),
            // A slot became dirty without an update of the spec: a node was paused until now, or the constraints have changed.
            Some(update) if newly_dirty && !update.state.is_active() && !update.state.is_paused() => {
                (ServiceUpdate::requested(false), true)
            }
            None if newly_dirty => (ServiceUpdate::requested(false), true),
            Some(update) => (update.clone(), false),
            None => return None,
        };
        if !is_new {
            return Some(update);
        }
        (update.started_at, update.dirty) = (Some(self.now), dirty);
        (dirty > 0 || update.state != UpdateState::Updating).then_some(update)
    }

    fn store_update(&self, update: Option<ServiceUpdate>, out: &mut Writes<impl Rng>) {
        if self.service.update != update {
            out.update_service(Service { update, ..self.service.clone() });
        }
    }

    fn complete(&self, update: &mut ServiceUpdate, slots: &[&Slot], Unreached { closed, away }: Unreached) {
        let (state, message) = if update.state.is_rollback() {
            (UpdateState::RollbackCompleted, "rollback completed")
        } else {
            (UpdateState::Completed, "update completed")
        };
        let outdated = closed.iter().filter(|slot| slot.live().is_some_and(|task| !self.is_current(task)));
        let name = |id: &NodeId| self.store.node(id).map_or_else(|| id.to_string(), |n| n.description.hostname.clone());
        let mut names: Vec<String> = outdated.filter_map(|slot| slot.key.node()).chain(away).map(name).collect();
        names.sort_unstable();
        let without =
            if names.is_empty() { String::new() } else { format!("; nodes that are not available: {}", names.join(", ")) };
        (update.state, update.completed_at) = (state, Some(self.now));
        let is_left = |slot: &&&Slot| {
            let is_replaced = slot.current.is_some_and(|task| self.serves(task));
            !is_replaced && slot.old.is_some_and(|old| !self.is_current(old))
        };
        let left: Vec<&&Slot> = slots.iter().filter(is_left).collect();
        let goes_on = |slot: &&&Slot| slot.current.is_some() || matches!(slot.next, Next::Start { .. } | Next::Hold);
        let again = if left.iter().any(goes_on) { ": it is tried again" } else { "" };
        let failed = match left.len() {
            0 => String::new(),
            1 => format!("; 1 task is as before, because what was to replace it failed{again}"),
            left => format!("; {left} tasks are as before, because what was to replace them failed{again}"),
        };
        update.message = format!("{message}{failed}{without}");
    }

    /// The slot has no task of the present template, and must have one.
    fn is_dirty(&self, slot: &Slot) -> bool {
        match (slot.current, slot.old) {
            (Some(_), _) => false,
            (None, Some(old)) => !self.must_move(old),
            (None, None) => slot.newest().is_some_and(|newest| !self.is_current(newest)) && !slot.is_free(),
        }
    }

    /// No update has tried to put a task of the present template into the slot, or one was there and its node is excluded by now.
    fn is_newly_dirty(&self, slot: &Slot) -> bool {
        let is_present = |t: &Task| t.spec_version == self.service.spec_version;
        // What waits on a drained node moves in its turn.
        let is_excluded = |old: &Task| is_present(old) && !self.is_drained(old);
        !slot.tasks.iter().copied().any(is_present) || slot.old.is_some_and(is_excluded)
    }

    /// The updater has put a task into the slot, and that did not stay. Its successors count: it may be forgotten. One that another
    /// task has superseded says nothing.
    fn is_tried(&self, slot: &Slot) -> bool {
        let did_not_stay = |t: &Task| t.end != Some(TaskEnd::Superseded) && (t.end.is_some() || t.status.state.is_final());
        slot.tasks.iter().any(|t| self.is_of_update(t) && did_not_stay(t))
    }

    /// The updater made the task, for the present template and in this update: an earlier one may have led to the same template.
    fn is_watched(&self, task: &Task) -> bool {
        self.is_of_update(task) && task.cause.is_some_and(TaskCause::is_update)
    }

    fn is_of_update(&self, task: &Task) -> bool {
        let began = self.service.update.as_ref().and_then(|update| update.started_at);
        task.spec_version == self.service.spec_version && began.is_some_and(|began| task.meta.created_at >= began)
    }

    /// The updater's task in the slot; `None` also if it was counted as a failure.
    fn watched<'t>(&self, slot: &Slot<'t>) -> Option<&'t Task> {
        slot.current.filter(|t| self.is_watched(t) && t.end.is_none())
    }

    /// The slot takes one of the places of the parallelism.
    fn is_busy(&self, slot: &Slot) -> bool {
        self.watched(slot).is_some_and(|task| {
            let delay_over = task.started_at.is_some_and(|start| self.now.since(start) >= self.config.delay());
            slot.old.is_some() || !self.serves(task) || !delay_over
        }) || self.is_moved(slot)
    }

    /// The slot's task leaves its node now, or the one of this update that takes over elsewhere does not serve yet.
    fn is_moved(&self, slot: &Slot) -> bool {
        match slot.current {
            Some(task) => self.is_of_update(task) && self.is_handed_over(&[task]),
            None => slot.old.is_some_and(|old| self.must_move(old)),
        }
    }

    fn is_watched_to_the_end(&self, slots: &[&Slot]) -> bool {
        let window = self.config.failure_window();
        let is_over = |task: &Task| task.started_at.is_some_and(|start| self.now.since(start) >= window);
        slots.iter().filter_map(|slot| self.watched(slot)).all(is_over)
    }

    /// Notes since when the updater's tasks run.
    fn watch(&self, slots: &[&Slot], update: &mut ServiceUpdate, out: &mut Writes<impl Rng>) {
        if !update.state.is_active() {
            return;
        }
        let unnoted = |t: &&Task| t.started_at.is_none() && t.status.state == TaskState::Running;
        for task in slots.iter().filter_map(|slot| self.watched(slot)).filter(unnoted) {
            out.change(task, |task| task.keep_start(self.now));
        }
    }

    /// The updater's tasks that ended within the failure window, those that no node could take within it, and those that run and do not
    /// listen as the tasks before them. Each is found once: then its end is stored.
    fn failures<'t>(&self, slots: &[&Slot<'t>]) -> Vec<Failure<'t>> {
        let window = self.config.failure_window();
        let ended = slots.iter().flat_map(|slot| &slot.ended).copied().filter(|task| {
            let in_window = task.started_at.is_none_or(|start| task.status.timestamp.since(start) <= window);
            self.is_watched(task) && task.end.is_none() && super::restart::ended_on_its_own(task) && in_window
        });
        let watched = || slots.iter().filter_map(|slot| self.watched(slot));
        let waited = |task: &&Task| self.now.since(task.meta.created_at) >= window;
        // What stops in its slot still has the address or the node that it waits for.
        let stops = |slot: &&&Slot| slot.tasks.iter().any(|t| !t.is_wanted() && !t.status.state.is_final());
        let placed_next = slots.iter().filter(|slot| !stops(slot)).filter_map(|slot| self.watched(slot));
        let unplaced = placed_next.filter(|task| self.has_no_place(task)).filter(waited);
        let failed = ended.chain(watched().filter(|task| self.fails_to_listen(task)));
        let failed = failed.map(|task| Failure { task, end: TaskEnd::FailedUpdate });
        failed.chain(unplaced.map(|task| Failure { task, end: TaskEnd::Unplaced })).collect()
    }

    /// What the update has waited for in vain; `None` of a task that has ended.
    fn waited_for(&self, Failure { task, end }: &Failure) -> Option<String> {
        if *end == TaskEnd::Unplaced {
            let has_node = task.status.state >= TaskState::Assigned;
            let stage =
                if has_node { "its node applies no changes and has not taken it" } else { "it has no node and no address yet" };
            return Some(if task.status.err.is_empty() { stage.to_owned() } else { task.status.err.clone() });
        }
        let ports: Vec<String> =
            self.awaited_ports(task).iter().map(|(protocol, port)| format!("{port}/{}", protocol.as_str())).collect();
        task.is_backend().then(|| format!("it runs and does not listen on {}, as tasks before it did", ports.join(", ")))
    }

    /// Carries out the failure action. True if the service has its previous spec again.
    fn give_up(&self, update: &mut ServiceUpdate, last: &Failure, slots: &[&Slot], out: &mut Writes<impl Rng>) -> bool {
        let mut cause = format!("due to failure or early termination of task {}", last.task.id);
        if let Some(waited_for) = self.waited_for(last) {
            cause.push_str(": ");
            cause.push_str(&waited_for);
        }
        let action = self.config.failure_action.as_str();
        if action == "continue" {
            return false;
        }
        if action == "rollback" && update.state == UpdateState::Updating {
            let mut service = self.service.clone();
            if service.restore_previous_spec(false) {
                let message = format!("update rolled back {cause}");
                let started_at = update.started_at;
                service.update = Some(ServiceUpdate { started_at, message, dirty: 0, ..ServiceUpdate::requested(true) });
                out.update_service(service);
                return true;
            }
        }
        update.state = if update.state.is_rollback() { UpdateState::RollbackPaused } else { UpdateState::Paused };
        update.message = format!("update paused {cause}{}", self.left_where_excluded(slots));
        false
    }

    /// What a paused update leaves on nodes that its constraints exclude, for its message: nothing takes that from there meanwhile.
    fn left_where_excluded(&self, slots: &[&Slot]) -> String {
        let tasks = slots.iter().filter(|slot| slot.old.is_some_and(|old| self.is_excluded(old))).count();
        let name = &self.service.spec.name;
        let goes_on =
            format!("that the new constraints exclude until the update goes on (`docker service update --force {name}`)");
        match tasks {
            0 => String::new(),
            1 => format!("; 1 task stays on a node {goes_on}"),
            tasks => format!("; {tasks} tasks stay on nodes {goes_on}"),
        }
    }
}

/// The slot is to have a task and has no container.
fn lacks_container(slot: &Slot) -> bool {
    match slot.live() {
        Some(task) => task.status.state < TaskState::Starting,
        None => matches!(slot.next, Next::Start { .. } | Next::Hold),
    }
}

/// The slots of a service by key, as the planners of the modes have them.
pub(super) type SlotsByKey<'a> = BTreeMap<SlotKey, Slot<'a>>;

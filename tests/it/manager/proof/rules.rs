//! What every plan must keep, said in terms of the state before it and the state that it results in.

use skep::model::service::UpdateConfig;
use skep::model::{
    Availability, Node, NodeId, NodeState, PublishMode, Service, ServiceId, SlotKey, Task, TaskCause, TaskEnd, TaskId, TaskState,
    Timestamp, UpdateState,
};
use skep::store::{Action, Store, Transaction};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Not as _;
use std::time::Duration;

/// Looks at one plan after the other, and remembers what the store may forget.
#[derive(Default)]
pub struct Rules {
    /// Slots of jobs that have completed, by run.
    completed: BTreeSet<(ServiceId, Option<u64>, SlotKey)>,
    /// Restarts by slot and version of the spec.
    restarts: BTreeMap<(ServiceId, SlotKey, u64), u64>,
    /// Containers that were seen to run.
    started: BTreeSet<TaskId>,
    /// Tasks that were let start because what runs in their slot is on a node that did not answer: it may be back before they have.
    let_start: BTreeSet<TaskId>,
    /// Tasks that were made to take the place of one that served on a drained node.
    moved: BTreeSet<TaskId>,
    /// Tasks that an update has put into slots in which nothing ran: they take no place of its parallelism.
    filled: BTreeSet<TaskId>,
}

/// A container that runs, as the simulation sees it.
pub struct Running<'a> {
    pub task: &'a Task,
    pub node: &'a NodeId,
    /// Managers can reach its node, and have been able to for a while.
    pub reachable: bool,
}

/// A plan: the state before, and the state that it results in.
struct Plan<'a> {
    before: &'a Store,
    after: &'a Store,
    now: Timestamp,
}

type Wrong = Vec<String>;

impl Rules {
    /// What the plan breaks; empty if nothing.
    pub fn check(&mut self, before: &Store, actions: &[Action], now: Timestamp) -> Wrong {
        let mut after = before.clone();
        if let Err(error) = after.apply(before.index() + 1, &Transaction::new(now, actions.to_vec())) {
            return vec![format!("written: the store refuses the plan: {error}")];
        }
        let plan = Plan { before, after: &after, now };
        let mut wrong = Wrong::new();
        let created: Vec<&Task> = after.tasks().filter(|t| before.task(&t.id).is_none()).collect();
        one_at_a_time(&created, &mut wrong);
        let fills = |task: &&&Task| task.cause.is_some_and(TaskCause::is_update) && !plan.runs_in_slot(task);
        self.filled.extend(created.iter().filter(fills).map(|task| task.id.clone()));
        for task in &created {
            plan.numbered(task, &mut wrong);
            plan.delayed(task, &mut wrong);
            self.within_parallelism(&plan, task, &mut wrong);
            self.drained(&plan, task, &mut wrong);
            self.jobs(&plan, task, &mut wrong);
            self.attempts(&plan, task, &mut wrong);
        }
        for task in after.tasks() {
            let was = before.task(&task.id);
            if task.node_id.is_some() && was.is_none_or(|was| was.node_id.is_none()) {
                plan.placed(task, &mut wrong);
            }
            let is_let_start =
                task.desired_state == TaskState::Running && was.is_none_or(|was| was.desired_state < TaskState::Running);
            if is_let_start && plan.in_slot(task).any(|t| !t.status.state.is_final() && plan.is_lost(t)) {
                self.let_start.insert(task.id.clone());
            }
            if was.is_some_and(Task::is_wanted) && !task.is_wanted() && task.status.state == TaskState::Running {
                plan.stopped(task, &mut wrong);
            }
        }
        for service in after.services() {
            plan.completed(service, &mut wrong);
        }
        let done = after.tasks().filter(|t| t.job_iteration.is_some() && t.status.state == TaskState::Complete);
        self.completed.extend(done.map(|t| (t.service_id.clone(), t.job_iteration, t.slot_key())));
        wrong
    }

    /// A slot that has completed never runs again in that run, and no more run at the same time than are wanted.
    fn jobs(&self, plan: &Plan, task: &Task, wrong: &mut Wrong) {
        if self.completed.contains(&(task.service_id.clone(), task.job_iteration, task.slot_key()))
            && task.job_iteration.is_some()
        {
            wrong.push(format!("job: {} runs again although it has completed", task.display_name()));
        }
        let Some(job) = plan.after.service(&task.service_id).and_then(|s| s.spec.mode.replicated_job) else { return };
        let at_work = |t: &&Task| t.job_iteration == task.job_iteration && t.is_wanted() && !t.status.state.is_final();
        let at_work = plan.after.tasks_of_service(&task.service_id).filter(at_work).filter(|t| !plan.is_lost(t)).count() as u64;
        if at_work > job.concurrent() {
            wrong.push(format!("job: {at_work} tasks of {} at the same time", task.service_name));
        }
        if task.slot >= job.total() {
            wrong.push(format!("job: {} is one too many", task.display_name()));
        }
    }

    /// No more restarts in a slot than the policy allows.
    fn attempts(&mut self, plan: &Plan, task: &Task, wrong: &mut Wrong) {
        let key = (task.service_id.clone(), task.slot_key(), task.spec_version);
        let policy = task.spec.restart_policy.clone().unwrap_or_default();
        match task.cause {
            Some(TaskCause::Replicas) => drop(self.restarts.remove(&key)),
            // What follows a task of another template has a count of its own.
            Some(TaskCause::Restart) if plan.follows_a_failure(task) => {
                let restarts = self.restarts.entry(key).or_default();
                *restarts += 1;
                if policy.window.is_none() && policy.max_attempts.is_some_and(|most| most > 0 && *restarts > most) {
                    wrong.push(format!("attempts: {} is started again for the {restarts}th time", task.display_name()));
                }
            }
            _ => {}
        }
    }

    /// What serves on a drained node is moved within the parallelism of updates.
    fn drained(&mut self, plan: &Plan, task: &Task, wrong: &mut Wrong) {
        let leaves = |t: &Task| t.is_backend() && !plan.is_lost(t) && plan.is_drained(t);
        if task.cause != Some(TaskCause::Move) || !plan.in_slot(task).any(leaves) {
            return;
        }
        self.moved.insert(task.id.clone());
        let is_on_its_way = |t: &Task| {
            let is_new = plan.before.task(&t.id).is_none_or(|was| was.status.state >= TaskState::Assigned);
            let may_serve = t.is_wanted() && t.end.is_none() && !t.status.state.is_final() && !t.status.unhealthy;
            is_new && may_serve && !plan.is_lost(t) && !plan.is_ready(t)
        };
        let moved = plan.after.tasks_of_service(&task.service_id).filter(|t| self.moved.contains(&t.id));
        let (slots, parallelism) = (moved.filter(|t| is_on_its_way(t)).count() as u64, plan.config(task).parallelism);
        if parallelism > 0 && slots > parallelism {
            wrong.push(format!("ready: {slots} slots of {} leave drained nodes at the same time", task.service_name));
        }
    }

    /// No more slots are handed over at the same time than the update allows.
    fn within_parallelism(&self, plan: &Plan, task: &Task, wrong: &mut Wrong) {
        let Some(service) = plan.after.service(&task.service_id) else { return };
        let (Some(update), true) = (&service.update, task.cause.is_some_and(TaskCause::is_update)) else { return };
        let parallelism = service.current_update_config().parallelism;
        let under_way = |t: &&Task| {
            let is_of_it = t.spec_version == service.spec_version && update.started_at.is_some_and(|at| t.meta.created_at >= at);
            is_of_it
                && t.cause.is_some_and(TaskCause::is_update)
                && t.end.is_none()
                && t.is_wanted()
                && t.status.state < TaskState::Running
        };
        // Of those that run already, the ones that do not serve yet: with them so many slots are without a ready task at most.
        let unready = |t: &&Task| {
            let is_of_it = t.spec_version == service.spec_version && update.started_at.is_some_and(|at| t.meta.created_at >= at);
            let may_serve = t.is_wanted() && t.end.is_none() && !t.status.state.is_final();
            is_of_it && t.cause.is_some_and(TaskCause::is_update) && may_serve && !plan.is_ready(t)
        };
        // What a closed node has not taken does not come up on it.
        let is_open = |node: &Node| (node.status.state, node.spec.availability) == (NodeState::Ready, Availability::Active);
        let waits_for_its_node = |t: &&Task| {
            let node = t.slot_node.as_ref().and_then(|id| plan.after.node(id));
            t.status.state < TaskState::Assigned && node.is_some_and(|node| !is_open(node))
        };
        let counts = |t: &&Task| !plan.is_lost(t) && !waits_for_its_node(t) && !self.filled.contains(&t.id);
        let count =
            |which: &dyn Fn(&&Task) -> bool| plan.after.tasks_of_service(&service.id).filter(which).filter(counts).count() as u64;
        for (rule, slots) in [("parallelism", count(&under_way)), ("ready", count(&unready))] {
            if parallelism > 0 && slots > parallelism {
                let which = format!("{slots} slots of {} at the same time", service.spec.name);
                wrong.push(format!("{rule}: {which}: {} for {}", task.id, task.slot_key()));
            }
        }
    }

    /// What must hold of the containers that run at one moment.
    pub fn check_running(&mut self, running: &[Running], store: &Store) -> Wrong {
        let mut wrong = Wrong::new();
        let mut ports = BTreeMap::new();
        for one in running {
            for port in one.task.ports.iter().filter(|port| port.published_port != 0) {
                if let Some(other) = ports.insert((one.node, port.protocol, port.published_port), &one.task.id) {
                    wrong.push(format!(
                        "host port: {other} and {} both have {} of {}",
                        one.task.id, port.published_port, one.node
                    ));
                }
            }
        }
        // What may still run is not forgotten.
        for one in running.iter().filter(|one| one.reachable && store.task(&one.task.id).is_none()) {
            wrong.push(format!("forgotten: {} runs on {}", one.task.id, one.node));
        }
        let is_new = |one: &&Running| !self.started.contains(&one.task.id) && !self.let_start.contains(&one.task.id);
        for new in running.iter().filter(|one| one.reachable).filter(is_new) {
            let Some(service) = store.service(&new.task.service_id) else { continue };
            let is_beside = |old: &&Running| {
                let is_removed = store.task(&old.task.id).is_none_or(|t| t.desired_state == TaskState::Remove);
                old.reachable
                    && !is_removed
                    && old.task.id != new.task.id
                    && old.task.service_id == new.task.service_id
                    && old.task.slot_key() == new.task.slot_key()
            };
            if !service.current_update_config().starts_first()
                && let Some(old) = running.iter().find(is_beside)
            {
                wrong.push(format!("stop first: {} starts while {} of its slot runs", new.task.id, old.task.id));
            }
        }
        self.started.extend(running.iter().map(|one| one.task.id.clone()));
        wrong
    }
}

impl Plan<'_> {
    /// The task before it in its slot had the same template, and ended by itself.
    fn follows_a_failure(&self, task: &Task) -> bool {
        let before = self.in_slot(task).max_by_key(|t| t.meta.created_at);
        before.is_some_and(|t| {
            let ended = [TaskState::Failed, TaskState::Complete, TaskState::Rejected].contains(&t.status.state);
            ended && t.spec_version == task.spec_version && !t.is_evicted()
        })
    }

    /// A container of the slot runs that was to run until this plan, whose reports and evictions count.
    fn runs_in_slot(&self, task: &Task) -> bool {
        let runs = |t: &Task| (TaskState::Starting..=TaskState::Running).contains(&t.status.state) && !self.is_lost(t);
        self.in_slot(task).any(|t| runs(t) && !t.is_evicted() && self.before.task(&t.id).is_some_and(Task::is_wanted))
    }

    fn in_slot<'s>(&'s self, task: &'s Task) -> impl Iterator<Item = &'s Task> {
        let others = self.after.tasks_of_service(&task.service_id);
        others.filter(move |t| t.id != task.id && t.slot_key() == task.slot_key())
    }

    fn is_lost(&self, task: &Task) -> bool {
        task.node_id.as_ref().is_some_and(|id| self.after.node(id).is_none_or(|node| !node.status.state.may_be_up()))
    }

    fn is_drained(&self, task: &Task) -> bool {
        let node = task.node_id.as_ref().and_then(|id| self.after.node(id));
        node.is_some_and(|node| node.spec.availability == Availability::Drain)
    }

    /// It runs and listens on what its service publishes in the mesh, or at all if that has a virtual address alone. As long as nothing
    /// of the service was seen to listen, a task of the latter is ready when it runs, and one of the former some seconds later.
    fn is_ready(&self, task: &Task) -> bool {
        let Some(service) = self.after.service(&task.service_id) else { return false };
        let ports = service.spec.endpoint_spec.iter().flat_map(|endpoint| &endpoint.ports);
        let ports: Vec<_> = ports.filter(|port| port.publish_mode == PublishMode::Ingress).collect();
        let is_earlier = |t: &&Task| t.id != task.id && t.spec_version <= service.spec_version;
        let is_known = self.after.tasks_of_service(&service.id).filter(is_earlier).any(|t| !t.listens.is_empty());
        let since = task.started_at.unwrap_or(task.status.timestamp);
        let is_waited_for = is_known || (!ports.is_empty() && self.now.since(since) < Duration::from_secs(10));
        let listens = if ports.is_empty() {
            service.endpoint.vips.is_empty() || !task.listens.is_empty()
        } else {
            ports.iter().all(|port| task.listens.iter().any(|l| (l.protocol, l.port) == (port.protocol, port.target_port)))
        };
        let runs = task.status.state == TaskState::Running && task.is_wanted() && !task.status.unhealthy;
        runs && (listens || !is_waited_for)
    }

    fn config(&self, task: &Task) -> UpdateConfig {
        self.after.service(&task.service_id).map(Service::current_update_config).unwrap_or_default()
    }

    /// Slots have the lowest free numbers, so none above the number of replicas.
    fn numbered(&self, task: &Task, wrong: &mut Wrong) {
        let replicas = self.after.service(&task.service_id).map_or(0, |service| service.spec.mode.replicas());
        if task.cause == Some(TaskCause::Replicas) && (task.slot == 0 || task.slot > replicas) {
            wrong.push(format!("slots: {} although {replicas} replicas are wanted", task.display_name()));
        }
    }

    /// A restart waits for the delay of the policy after the end of what it follows.
    fn delayed(&self, task: &Task, wrong: &mut Wrong) {
        if task.cause != Some(TaskCause::Restart) {
            return;
        }
        let policy = task.spec.restart_policy.as_ref();
        let delay = policy.and_then(|policy| policy.delay).map_or(Duration::from_secs(5), skep::model::Nanos::duration);
        let failed = |t: &&Task| {
            let ended = [TaskState::Failed, TaskState::Complete, TaskState::Rejected].contains(&t.status.state);
            ended && t.spec_version == task.spec_version && !t.is_evicted()
        };
        let Some(followed) = self.in_slot(task).filter(failed).max_by_key(|t| t.meta.created_at) else { return };
        let starts = task.not_before.unwrap_or(self.now);
        if starts < followed.status.timestamp.plus(delay) {
            wrong.push(format!("delay: {} starts less than {delay:?} after {} has ended", task.id, followed.id));
        }
    }

    /// A task gets a node that takes tasks, may have it, and has room for it.
    fn placed(&self, task: &Task, wrong: &mut Wrong) {
        let Some(node) = task.node_id.as_ref().and_then(|id| self.after.node(id)) else {
            return wrong.push(format!("placed: {} on no node", task.id));
        };
        let mut say = |why: &str| wrong.push(format!("placed: {} on {}: {why}", task.id, node.id));
        if (node.status.state, node.spec.availability) != (NodeState::Ready, Availability::Active) {
            say("it takes no tasks");
        }
        if task.slot_node.as_ref().is_some_and(|of| *of != node.id) {
            say("it was made for another one");
        }
        let placement = task.spec.placement.clone().unwrap_or_default();
        for constraint in &placement.constraints {
            let (key, value) = constraint.split_once("==").expect("the walk's constraints");
            let label = node.spec.labels.get(key.trim_start_matches("node.labels."));
            if label.map_or("", String::as_str) != value {
                say(constraint);
            }
        }
        // Its predecessor has stopped when it starts.
        let lends = |t: &Task| {
            !self.config(task).starts_first()
                && t.service_id == task.service_id
                && t.slot_key() == task.slot_key()
                && t.is_wanted()
        };
        let others = self.after.tasks_of_node(&node.id).filter(|t| t.id != task.id && !t.status.state.is_final() && !lends(t));
        // Of a slot that is handed over here, the one that waits takes nothing yet.
        let waits = |t: &&Task| {
            let is_old = |old: &Task| old.node_id == t.node_id && old.is_wanted() && old.status.state.is_final().not();
            t.desired_state == TaskState::Ready && !self.config(t).starts_first() && self.in_slot(t).any(is_old)
        };
        let others: Vec<&Task> = others.filter(|t| !waits(t)).collect();
        let ports = |t: &Task| -> BTreeSet<u16> { t.ports.iter().map(|p| p.published_port).filter(|port| *port != 0).collect() };
        if others.iter().any(|other| !ports(other).is_disjoint(&ports(task))) {
            say("its host port is in use");
        }
        let memory = |t: &Task| {
            t.spec.resources.as_ref().and_then(|r| r.reservations.as_ref()).map_or(0, |reserved| reserved.memory_bytes)
        };
        if memory(task) > 0 && others.iter().map(|t| memory(t)).sum::<i64>() + memory(task) > node.description.memory_bytes {
            say("its memory is reserved by others");
        }
        let same = others.iter().filter(|t| t.service_id == task.service_id && t.is_wanted()).count() as u64;
        if placement.max_replicas > 0 && same >= placement.max_replicas {
            say("it has as many of the service as it may");
        }
    }

    /// What serves is ordered to stop for a reason that holds.
    fn stopped(&self, task: &Task, wrong: &mut Wrong) {
        if self.before.task(&task.id).is_some_and(|was| was.end.is_some()) {
            return;
        }
        let service = self.after.service(&task.service_id);
        let node = task.node_id.as_ref().and_then(|id| self.after.node(id));
        let successor = || {
            let version = service.map(|service| service.spec_version);
            let may_run = |t: &&Task| t.is_wanted() && !t.status.state.is_final() && Some(t.spec_version) == version;
            self.in_slot(task).filter(may_run).max_by_key(|t| t.status.state)
        };
        let takes_over = || {
            let needed = if self.config(task).starts_first() { TaskState::Running } else { TaskState::Ready };
            successor().is_some_and(|t| t.status.state >= needed)
        };
        let is_job = service.is_some_and(|service| service.spec.mode.is_job());
        let is_replicated = service.is_some_and(|service| service.spec.mode.replicated.is_some());
        // A drain waits for a task that is on its way, and only so long for one that no node takes, or where one has failed already.
        let overdue = || {
            let window = self.config(task).failure_window();
            let waited = |t: &Task| self.now.since(t.meta.created_at) >= window;
            let ended = [TaskState::Failed, TaskState::Complete, TaskState::Rejected];
            let has_failed = |t: &Task| t.meta.created_at > task.meta.created_at && ended.contains(&t.status.state) && waited(t);
            // The same plan may place it.
            let was_unplaced = |t: &Task| self.before.task(&t.id).is_some_and(|was| was.status.state < TaskState::Assigned);
            let is_unplaced = |t: &Task| was_unplaced(t) && waited(t);
            successor().is_some_and(is_unplaced) || self.in_slot(task).any(has_failed)
        };
        let holds = match task.end {
            Some(TaskEnd::Replaced | TaskEnd::Rebalanced) => takes_over() || task.status.unhealthy,
            Some(TaskEnd::Drained) => {
                self.is_drained(task) && (!is_replicated || takes_over() || overdue() || task.status.unhealthy)
            }
            Some(TaskEnd::Scaled) => {
                let slots: BTreeSet<SlotKey> =
                    self.before.tasks_of_service(&task.service_id).filter(|t| t.is_wanted()).map(Task::slot_key).collect();
                service.is_some_and(|service| slots.len() as u64 > service.spec.mode.replicas())
            }
            // What a job has completed was perhaps not wanted any more: its node was away.
            Some(TaskEnd::Superseded) => {
                self.in_slot(task).any(|t| t.is_wanted() || (is_job && t.status.state == TaskState::Complete))
            }
            Some(TaskEnd::NodeLost) => self.is_lost(task),
            Some(TaskEnd::Evicted) => node.is_some_and(|node| !is_kept(task, node, service)),
            Some(TaskEnd::ServiceRemoved) => service.is_none(),
            Some(TaskEnd::NewRun) => service.is_some_and(|service| service.spec.mode.is_job()),
            Some(TaskEnd::Withdrawn) => {
                let update = service.and_then(|service| service.update.as_ref());
                update.is_some_and(|update| update.state.is_paused()) && self.in_slot(task).any(Task::is_wanted)
            }
            _ => false,
        };
        let is_moved = task.end == Some(TaskEnd::Drained) && is_replicated && !overdue();
        let is_handed_over = is_moved || matches!(task.end, Some(TaskEnd::Replaced | TaskEnd::Rebalanced));
        if is_handed_over
            && self.config(task).starts_first()
            && !task.status.unhealthy
            && !self.in_slot(task).any(|t| self.is_ready(t))
        {
            wrong.push(format!("ready: {} ({}) is to stop before another one of its slot serves", task.id, task.display_name()));
        }
        if !holds {
            wrong.push(format!("reason: {} ({}) is to stop: {:?}", task.id, task.display_name(), task.end));
        }
    }

    /// An update that says that it is done, and that nothing failed, has replaced everything.
    fn completed(&self, service: &Service, wrong: &mut Wrong) {
        let state = |store: &Store| store.service(&service.id).and_then(|s| s.update.as_ref()).map(|update| update.state);
        let is_over = |state| [Some(UpdateState::Completed), Some(UpdateState::RollbackCompleted)].contains(&state);
        let failed = service.update.as_ref().is_some_and(|update| update.failed > 0);
        if failed || is_over(state(self.before)) || !is_over(state(self.after)) || service.spec.mode.is_job() {
            return;
        }
        let takes_tasks = |t: &Task| {
            let node = t.node_id.as_ref().and_then(|id| self.after.node(id));
            node.is_some_and(|n| n.status.state == NodeState::Ready && n.spec.availability == Availability::Active)
        };
        let is_left = |t: &&Task| {
            t.spec_version != service.spec_version && t.is_wanted() && t.status.state == TaskState::Running && takes_tasks(t)
        };
        if let Some(left) = self.after.tasks_of_service(&service.id).find(is_left) {
            let name = left.display_name();
            wrong.push(format!("completed: {} ({name}) still runs what the update of {} replaces", left.id, service.spec.name));
        }
    }
}

/// The node still satisfies the constraints of today.
fn is_kept(task: &Task, node: &skep::model::Node, service: Option<&Service>) -> bool {
    let template = service.map_or(&*task.spec, |service| &service.spec.task_template);
    skep::model::constraint::Constraints::of(template).are_met_by(node)
}

fn one_at_a_time(created: &[&Task], wrong: &mut Wrong) {
    let mut slots = BTreeSet::new();
    for task in created {
        if !slots.insert((&task.service_id, task.slot_key())) {
            wrong.push(format!("one at a time: two new tasks for {}", task.display_name()));
        }
    }
}

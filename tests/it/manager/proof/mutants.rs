//! Faults of the planners, put between planner and store. Each is a pure function of the state and of the plan, written as whole
//! objects; the rule that it breaks must find it.

use skep::model::{
    Cluster, Meta, Network, Node, Service, SlotKey, Task, TaskCause, TaskEnd, TaskId, TaskState, Timestamp, UpdateState,
};
use skep::store::{Action, Kind, Object, Store, StoreObject, Transaction, changed};

/// A fault.
pub struct Mutant {
    pub name: &'static str,
    /// Beginning of what the rule says that finds it.
    pub rule: &'static str,
    pub change: fn(&Store, Vec<Action>) -> Vec<Action>,
}

pub const MUTANTS: &[Mutant] = &[
    Mutant { name: "every task goes to one node", rule: "placed: ", change: one_node },
    Mutant { name: "host ports in use are not seen", rule: "its host port is in use", change: ignores_host_ports },
    Mutant { name: "constraints are not seen", rule: "node.labels.zone==a", change: ignores_constraints },
    Mutant { name: "an assigned task changes its node", rule: "moved from", change: moves_assigned },
    Mutant { name: "a successor starts at once", rule: "stop first: ", change: starts_at_once },
    Mutant { name: "the old task stops at once", rule: "reason: ", change: stops_at_once },
    Mutant { name: "all slots are updated at the same time", rule: "parallelism: ", change: all_at_once },
    Mutant { name: "each task is made twice", rule: "one at a time: ", change: twice },
    Mutant { name: "orders to stop are lost", rule: "live tasks", change: loses_stops },
    Mutant { name: "new tasks are lost", rule: "do not settle", change: loses_creations },
    Mutant { name: "an address is given twice", rule: "both have", change: same_address },
    Mutant { name: "a published port is given twice", rule: "both publish", change: same_port },
    Mutant { name: "what a job has completed runs again", rule: "runs again although it has completed", change: runs_again },
    Mutant { name: "a job runs all at the same time", rule: "at the same time", change: job_at_once },
    Mutant { name: "restart delays are not kept", rule: "delay: ", change: no_delay },
    Mutant { name: "restarts are not counted", rule: "attempts: ", change: no_limit },
    Mutant { name: "a good task is stopped for nothing", rule: "reason: ", change: stops_a_good_one },
    Mutant { name: "what runs is forgotten", rule: "forgotten: ", change: forgets },
    Mutant { name: "new slots have high numbers", rule: "slots: ", change: high_numbers },
    Mutant { name: "an update ends before it is done", rule: "completed: ", change: ends_too_early },
    Mutant { name: "what runs is taken for ready", rule: "ready: ", change: stops_before_the_next_is_ready },
    Mutant { name: "the next slot is taken before the last one serves", rule: "ready: ", change: takes_the_next_too_early },
    Mutant { name: "a drain moves all at the same time", rule: "leave drained nodes at the same time", change: drains_at_once },
    Mutant { name: "a desired state goes back", rule: "moved back", change: goes_back },
];

/// The plan as whole objects, each once.
pub fn whole_objects(before: &Store, actions: &[Action], now: Timestamp) -> Vec<Action> {
    let mut after = before.clone();
    if after.apply(before.index() + 1, &Transaction::new(now, actions.to_vec())).is_err() {
        return actions.to_vec();
    }
    let mut out = Vec::new();
    differences::<Cluster>(before, &after, &mut out);
    differences::<Node>(before, &after, &mut out);
    differences::<Network>(before, &after, &mut out);
    differences::<Service>(before, &after, &mut out);
    differences::<Task>(before, &after, &mut out);
    out
}

fn differences<T: StoreObject + Into<Object>>(before: &Store, after: &Store, out: &mut Vec<Action>) {
    for (was, is) in changed::<T>(before, after) {
        let with_meta = |is: &T, meta: Meta| {
            let mut object = is.clone();
            *object.meta_mut() = meta;
            object
        };
        out.extend(match (was, is) {
            (None, Some(is)) => Some(Action::create(with_meta(is, Meta::default()))),
            (Some(was), Some(is)) => Some(Action::update(with_meta(is, was.meta()))),
            (Some(was), None) => Some(Action::Remove(T::KIND, was.id().to_string())),
            (None, None) => None,
        });
    }
}

fn tasks(actions: &mut [Action]) -> impl Iterator<Item = &mut Task> {
    actions.iter_mut().filter_map(|action| match action {
        Action::Create(Object::Task(task)) | Action::Update(Object::Task(task)) => Some(&mut **task),
        _ => None,
    })
}

fn created(actions: &mut [Action]) -> impl Iterator<Item = &mut Task> {
    actions.iter_mut().filter_map(|action| match action {
        Action::Create(Object::Task(task)) => Some(&mut **task),
        _ => None,
    })
}

/// Tasks that have their node from this plan.
fn placed<'a>(before: &'a Store, actions: &'a mut [Action]) -> impl Iterator<Item = &'a mut Task> {
    tasks(actions).filter(|t| t.node_id.is_some() && before.task(&t.id).is_none_or(|was| was.node_id.is_none()))
}

fn is_written(actions: &[Action], id: &TaskId) -> bool {
    actions.iter().any(|action| action.target() == (Kind::Task, id.to_string()))
}

/// Another id, of a task that is made beside one.
fn other_id(id: &TaskId, mark: &str) -> TaskId {
    let text = id.to_string();
    format!("{mark}{}", &text[mark.len()..]).as_str().into()
}

fn one_node(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for task in placed(before, &mut actions) {
        task.node_id = Some("n1".into());
    }
    actions
}

fn ignores_host_ports(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for task in placed(before, &mut actions).filter(|t| !t.ports.is_empty()) {
        let has = |t: &&Task| !t.ports.is_empty() && t.slot != task.slot && !t.status.state.is_final();
        let other = before.tasks_of_service(&task.service_id).filter(has).find_map(|t| t.node_id.clone());
        let takes = |id: &skep::model::NodeId| before.node(id).is_some_and(skep::model::eligibility::takes_tasks);
        task.node_id = other.filter(takes).or_else(|| task.node_id.take());
    }
    actions
}

fn ignores_constraints(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for task in placed(before, &mut actions).filter(|t| t.spec.placement.is_some() && t.slot_node.is_none()) {
        let is_other = |node: &&Node| node.spec.labels.get("zone").is_some_and(|zone| zone == "b");
        let other = before.nodes().filter(|node| skep::model::eligibility::takes_tasks(node)).find(is_other);
        task.node_id = other.map(|node| node.id.clone()).or_else(|| task.node_id.take());
    }
    actions
}

fn moves_assigned(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for task in tasks(&mut actions).filter(|t| t.slot_node.is_none() && t.status.state == TaskState::Running) {
        if before.task(&task.id).is_some_and(|was| was.node_id.is_some()) {
            task.node_id = before.nodes().map(|node| node.id.clone()).find(|id| task.node_id.as_ref() != Some(id));
        }
    }
    actions
}

fn starts_at_once(_: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for task in created(&mut actions).filter(|t| t.cause.is_some_and(TaskCause::is_update)) {
        task.desired_state = TaskState::Running;
    }
    actions
}

fn stops_at_once(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let new: Vec<(skep::model::ServiceId, SlotKey)> = created(&mut actions)
        .filter(|t| t.cause.is_some_and(TaskCause::is_update))
        .map(|t| (t.service_id.clone(), t.slot_key()))
        .collect();
    for (service, slot) in new {
        let old = before.tasks_of_service(&service).find(|t| t.slot_key() == slot && t.is_backend());
        if let Some(old) = old.filter(|old| !is_written(&actions, &old.id)) {
            actions.push(stopped(old, TaskEnd::Replaced));
        }
    }
    actions
}

fn stopped(task: &Task, end: TaskEnd) -> Action {
    Action::update(Task { desired_state: TaskState::Shutdown, end: Some(end), ..task.clone() })
}

fn all_at_once(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let Some(new) =
        created(&mut actions).find(|t| t.cause.is_some_and(TaskCause::is_update) && t.slot_node.is_none()).map(|t| t.clone())
    else {
        return actions;
    };
    for old in before.tasks_of_service(&new.service_id).filter(|t| t.is_backend() && t.slot != new.slot) {
        let is_new = created(&mut actions).any(|t| t.service_id == old.service_id && t.slot == old.slot);
        let has_new = before.tasks_of_service(&new.service_id).any(|t| t.slot == old.slot && t.spec_version == new.spec_version);
        if !is_new && !has_new {
            let id = other_id(&old.id, "zz");
            let fresh = Task { id, slot: old.slot, node_id: None, attachments: Vec::new(), ..new.clone() };
            let status = skep::model::TaskStatus { state: TaskState::New, ..new.status.clone() };
            actions.push(Action::create(Task { status, ..fresh }));
        }
    }
    actions
}

fn drains_at_once(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let is_drained = |t: &&Task| {
        let node = t.node_id.as_ref().and_then(|id| before.node(id));
        node.is_some_and(|node| node.spec.availability == skep::model::Availability::Drain && node.status.state.may_be_up())
    };
    let moved: Vec<Task> = created(&mut actions)
        .filter(|t| t.cause == Some(TaskCause::Move) && before.tasks_of_service(&t.service_id).any(|old| is_drained(&old)))
        .map(|t| t.clone())
        .collect();
    if let Some(like) = moved.first() {
        let left = before.tasks_of_service(&like.service_id).filter(|t| t.is_backend() && t.slot != like.slot).filter(is_drained);
        for old in left {
            let is_alone = |t: &Task| t.slot != old.slot || t.id == old.id || !t.is_wanted();
            let is_new = created(&mut actions).any(|t| t.service_id == old.service_id && t.slot == old.slot);
            if !is_new && before.tasks_of_service(&like.service_id).all(is_alone) {
                let id = other_id(&old.id, "zz");
                actions.push(Action::create(Task { id, slot: old.slot, ..unplaced(like, "zz") }));
            }
        }
    }
    actions
}

/// A task of an update that runs, and does not listen yet.
fn unready<'a>(before: &'a Store, task: &Task) -> impl Iterator<Item = &'a Task> {
    let is_new =
        |t: &&Task| t.is_backend() && t.listens.is_empty() && t.end.is_none() && t.cause.is_some_and(TaskCause::is_update);
    let (id, version) = (task.id.clone(), before.service(&task.service_id).map(|service| service.spec_version));
    before.tasks_of_service(&task.service_id).filter(is_new).filter(move |t| t.id != id && Some(t.spec_version) == version)
}

/// Serving tasks of services whose update goes on, in this order, that the plan leaves alone.
fn updated<'a>(before: &'a Store, actions: &'a [Action], starts_first: bool) -> impl Iterator<Item = &'a Task> {
    let applies = move |service: &&skep::model::Service| {
        let is_active = service.update.as_ref().is_some_and(|update| update.state.is_active());
        is_active && service.current_update_config().starts_first() == starts_first && !service.spec.mode.is_job()
    };
    let of = move |service: &'a skep::model::Service| {
        let version = service.spec_version;
        before.tasks_of_service(&service.id).filter(move |t| t.is_backend() && t.spec_version != version)
    };
    before.services().filter(applies).flat_map(of).filter(move |t| !is_written(actions, &t.id))
}

fn stops_before_the_next_is_ready(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let has_one = |old: &&Task| unready(before, old).any(|new| new.slot_key() == old.slot_key());
    let old = updated(before, &actions, true).find(has_one).cloned();
    actions.extend(old.map(|old| stopped(&old, TaskEnd::Replaced)));
    actions
}

fn takes_the_next_too_early(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let begins = |old: &Task| {
        let new = unready(before, old).next()?;
        let has_another = before.tasks_of_service(&old.service_id).any(|t| t.slot == old.slot && t.id != old.id && t.is_wanted());
        (!has_another && new.slot != old.slot && old.slot_node.is_none()).then(|| Task { slot: old.slot, ..unplaced(new, "zz") })
    };
    let is_alone = created(&mut actions).next().is_none();
    let new = updated(before, &actions, false).find_map(begins).filter(|new| is_alone && before.task(&new.id).is_none());
    actions.extend(new.map(|new| Action::create(Task { desired_state: TaskState::Ready, ..new })));
    actions
}

fn twice(_: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let copies: Vec<Action> = created(&mut actions)
        .map(|t| {
            let status = skep::model::TaskStatus { state: TaskState::New, ..t.status.clone() };
            let copy = Task { id: other_id(&t.id, "zz"), node_id: None, attachments: Vec::new(), status, ..t.clone() };
            Action::create(copy)
        })
        .collect();
    actions.extend(copies);
    actions
}

fn loses_stops(before: &Store, actions: Vec<Action>) -> Vec<Action> {
    let stops = |action: &Action| match action {
        Action::Update(Object::Task(t)) => {
            t.desired_state == TaskState::Shutdown && before.task(&t.id).is_some_and(Task::is_wanted)
        }
        _ => false,
    };
    actions.into_iter().filter(|action| !stops(action)).collect()
}

fn loses_creations(_: &Store, actions: Vec<Action>) -> Vec<Action> {
    let is_new = |action: &Action| matches!(action, Action::Create(Object::Task(t)) if t.cause.is_some_and(TaskCause::is_update));
    actions.into_iter().filter(|action| !is_new(action)).collect()
}

fn same_address(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for task in tasks(&mut actions) {
        for attachment in &mut task.attachments {
            let others = before.tasks().filter(|t| t.id != task.id).flat_map(|t| &t.attachments);
            if let Some(other) = others.into_iter().find(|other| other.network_id == attachment.network_id) {
                attachment.address = other.address;
            }
        }
    }
    actions
}

fn same_port(_: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for action in &mut actions {
        if let Action::Update(Object::Service(service)) | Action::Create(Object::Service(service)) = action {
            for port in service.endpoint.ports.iter_mut().filter(|port| port.published_port >= 30_000) {
                port.published_port = 30_000;
            }
        }
    }
    actions
}

fn runs_again(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let run = before.service(&"once-job".into()).and_then(|service| service.job).map(|job| job.iteration);
    let is_done = |t: &&Task| t.status.state == TaskState::Complete && t.job_iteration == run && run.is_some();
    let done = before.tasks_of_service(&"once-job".into()).find(is_done).cloned();
    if let Some(done) = done.filter(|done| before.task(&other_id(&done.id, "zz")).is_none()) {
        actions.push(Action::create(unplaced(&done, "zz")));
    }
    actions
}

/// A new task like another one.
fn unplaced(like: &Task, mark: &str) -> Task {
    let status = skep::model::TaskStatus { timestamp: like.status.timestamp, ..skep::model::TaskStatus::default() };
    let task = Task {
        id: other_id(&like.id, mark),
        meta: Meta::default(),
        node_id: None,
        attachments: Vec::new(),
        status,
        ..like.clone()
    };
    Task { end: None, started_at: None, listens: Vec::new(), not_before: None, ..task }
}

fn job_at_once(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let new: Vec<Task> = created(&mut actions).filter(|t| t.service_name == "once-job").map(|t| t.clone()).collect();
    let Some(like) = new.first() else { return actions };
    let is_taken = |slot: u64| {
        let of_run = |t: &Task| t.slot == slot && t.job_iteration == like.job_iteration;
        before.tasks_of_service(&like.service_id).any(of_run) || new.iter().any(of_run)
    };
    for slot in (0..4).filter(|slot| !is_taken(*slot)) {
        let task = unplaced(like, ["za", "zb", "zc", "zd"][usize::try_from(slot).expect("small")]);
        actions.push(Action::create(Task { slot, ..task }));
    }
    actions
}

fn no_delay(_: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for task in created(&mut actions).filter(|t| t.cause == Some(TaskCause::Restart)) {
        (task.desired_state, task.not_before) = (TaskState::Running, None);
    }
    actions
}

fn no_limit(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let crash = "crash".into();
    let given_up = before.tasks_of_service(&crash).filter(|t| t.status.state == TaskState::Failed && !t.is_wanted());
    let is_newest = |t: &&Task| {
        before.tasks_of_service(&t.service_id).filter(|o| o.slot == t.slot).all(|o| o.meta.created_at <= t.meta.created_at)
    };
    let current = before.service(&"crash".into()).map_or(0, |service| service.spec_version);
    for task in given_up.filter(|t| t.spec_version == current).filter(is_newest) {
        let is_new = created(&mut actions).any(|t| t.service_id == task.service_id && t.slot == task.slot);
        if !is_new && !is_written(&actions, &task.id) {
            let next = unplaced(task, ["za", "zb", "zc", "zd", "ze"][usize::try_from(before.index() % 5).expect("small")]);
            let later = task.status.timestamp.plus(std::time::Duration::from_secs(9));
            let next = Task { cause: Some(TaskCause::Restart), desired_state: TaskState::Ready, not_before: Some(later), ..next };
            if before.task(&next.id).is_none() {
                actions.push(Action::create(next));
            }
        }
    }
    actions
}

fn stops_a_good_one(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let good = before.tasks().find(|t| t.is_backend() && t.end.is_none() && t.service_name == "web");
    if let Some(good) = good.filter(|good| !is_written(&actions, &good.id)) {
        actions.push(stopped(good, TaskEnd::Superseded));
    }
    actions
}

fn forgets(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let running = before.tasks().find(|t| t.is_backend());
    if let Some(task) = running.filter(|task| !is_written(&actions, &task.id)) {
        actions.push(Action::Remove(Kind::Task, task.id.to_string()));
    }
    actions
}

fn high_numbers(_: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for task in created(&mut actions).filter(|t| t.cause == Some(TaskCause::Replicas)) {
        task.slot += 100;
    }
    actions
}

fn ends_too_early(_: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    for action in &mut actions {
        if let Action::Update(Object::Service(service)) = action
            && let Some(update) = service.update.as_mut().filter(|update| update.state == UpdateState::Updating)
        {
            update.state = UpdateState::Completed;
        }
    }
    actions
}

fn goes_back(before: &Store, mut actions: Vec<Action>) -> Vec<Action> {
    let is_stopping = |t: &&Task| t.desired_state == TaskState::Shutdown && !t.status.state.is_final();
    let stopping = before.tasks().find(is_stopping).filter(|task| !is_written(&actions, &task.id));
    if let Some(task) = stopping {
        actions.push(Action::update(Task { desired_state: TaskState::Running, ..task.clone() }));
    }
    actions
}

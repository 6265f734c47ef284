//! A node's tasks as it is sent them, compared with the list that it has.

use crate::model::view::Tasks;
use crate::model::{Task, TaskState};
use std::sync::Arc;

/// How a node's tasks differ from the list that it was sent.
pub(super) enum TaskListChange {
    None,
    /// Only in what the node itself reported.
    Echo(Arc<Tasks>),
    /// In what the node has to carry out.
    Orders(Arc<Tasks>),
}

/// Compares the node's tasks with the list that it has. A task whose stop is held back has the desired state Running; one
/// that is unhealthy and not held back is to be shut down. That a task is to run to its end is the manager's business: its node
/// is to run it.
pub(super) fn compare(tasks: &[&Arc<Task>], held: impl Fn(&Task) -> bool, has: Option<&Arc<Tasks>>) -> TaskListChange {
    let shown = |task: &Task| {
        let unhealthy = task.status.state == TaskState::Running && task.status.unhealthy;
        match held(task) {
            true => task.desired_state.min(TaskState::Running),
            false if unhealthy => task.desired_state.max(TaskState::Shutdown),
            false if task.is_wanted() => task.desired_state.min(TaskState::Running),
            false => task.desired_state,
        }
    };
    let has_task = |t: &Task| has.and_then(|has| has.by_id.get(&t.id));
    let has_orders = |t: &&Arc<Task>| has_task(t).is_some_and(|h| h.desired_state == shown(t) && same_orders(h, t));
    let same_list = has.is_some_and(|has| has.by_id.len() == tasks.len()) && tasks.iter().all(has_orders);
    let has_reports = |t: &&Arc<Task>| has_task(t).is_some_and(|h| h.status == t.status && h.listens == t.listens);
    if same_list && tasks.iter().all(has_reports) {
        return TaskListChange::None;
    }
    // The same allocation as in the store, where it shows what that has.
    let entry = |t: &&Arc<Task>| {
        let same = shown(t) == t.desired_state;
        let task = if same { Arc::clone(t) } else { Arc::new(Task { desired_state: shown(t), ..Task::clone(t) }) };
        (t.id.clone(), task)
    };
    let tasks = Arc::new(Tasks { by_id: tasks.iter().map(entry).collect(), ..Tasks::default() });
    if same_list { TaskListChange::Echo(tasks) } else { TaskListChange::Orders(tasks) }
}

/// Equal, except for what the node itself reported.
fn same_orders(a: &Task, b: &Task) -> bool {
    a.not_before == b.not_before
        && a.status.state.is_final() == b.status.state.is_final()
        && a.attachments == b.attachments
        && a.ports == b.ports
        && a.service_name == b.service_name
        && a.slot_key() == b.slot_key()
        && (Arc::ptr_eq(&a.service_labels, &b.service_labels) || a.service_labels == b.service_labels)
        && a.spec_version == b.spec_version
        && (Arc::ptr_eq(&a.spec, &b.spec) || a.spec == b.spec)
}

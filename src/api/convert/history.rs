//! The story of a service: when and why its tasks were made, what became of them and why they ended, and its updates. As far back
//! as tasks are kept (`docker swarm update --task-history-limit`).

use crate::api::wire::HistoryEntry;
use crate::model::{Service, Task, TaskState, Timestamp};
use crate::store::Store;

/// All that is known, oldest first.
pub fn history(service: &Service, store: &Store) -> Vec<HistoryEntry> {
    let mut all = vec![of_service("created", service.meta.created_at, String::new())];
    if let Some(update) = &service.update
        && let Some(started) = update.started_at
    {
        let began = if update.state.is_rollback() { "rollback started" } else { "update started" };
        all.push(of_service(began, started, format!("{} tasks to replace", update.dirty)));
        if !update.state.is_active() {
            let at = update.completed_at.unwrap_or(service.meta.updated_at);
            all.push(of_service(update.state.as_str(), at, update.message.clone()));
        }
    }
    if let Some(job) = service.job.filter(|job| job.iteration > 0) {
        all.push(of_service("run", job.last_execution, format!("run {} of the job", job.iteration)));
    }
    all.extend(service.scalings.iter().map(|scaling| of_service("scaled", scaling.at, scaling.why())));
    all.extend(store.tasks_of_service(&service.id).flat_map(|task| of_task(task, store)));
    all.sort_by_key(|entry| entry.at);
    all
}

fn of_service(event: &'static str, at: Timestamp, why: String) -> HistoryEntry {
    HistoryEntry { at, event, name: String::new(), task: String::new(), node: String::new(), why }
}

/// What is known of a task, in order.
fn of_task(task: &Task, store: &Store) -> Vec<HistoryEntry> {
    let node = task.node_id.as_ref().or(task.slot_node.as_ref());
    let node = node.map(|id| store.node(id).map_or_else(|| id.to_string(), |n| n.description.hostname.clone()));
    let entry = |event, at, why| HistoryEntry {
        at,
        event,
        name: task.display_name(),
        task: task.id.to_string(),
        node: node.clone().unwrap_or_default(),
        why,
    };
    let cause = task.cause.map(|cause| cause.as_str().to_owned()).unwrap_or_default();
    let mut all = vec![entry("task made", task.meta.created_at, cause)];
    let (state, status) = (task.status.state, &task.status);
    if let Some(started) = task.started_at.filter(|_| state != TaskState::Running) {
        all.push(entry("task running", started, String::new()));
    }
    let said = [status.err.as_str(), status.message.as_str()].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let exit = status.container.as_ref().map(|c| c.exit_code).filter(|code| *code != 0);
    let exit = exit.map(|code| format!(" (exit code {code})")).unwrap_or_default();
    let end = task.end.map(|end| format!("; {}", end.as_str())).unwrap_or_default();
    match state {
        TaskState::Complete => all.push(entry("task complete", status.timestamp, format!("{said}{end}"))),
        TaskState::Failed => all.push(entry("task failed", status.timestamp, format!("{said}{end}"))),
        TaskState::Rejected => all.push(entry("task rejected", status.timestamp, format!("{said}{end}"))),
        TaskState::Orphaned => all.push(entry("task orphaned", status.timestamp, format!("{said}{end}"))),
        TaskState::Shutdown | TaskState::Remove => {
            all.push(entry("task stopped", status.timestamp, format!("{}{exit}", end.trim_start_matches("; "))));
        }
        TaskState::Running => all.push(entry("task running", status.timestamp, String::new())),
        _ if !status.err.is_empty() => all.push(entry("task waits", status.timestamp, status.err.clone())),
        _ => {}
    }
    if let (Some(to), Some(_), true) = (&task.move_to, &task.node_id, task.is_wanted() && !state.is_final()) {
        let to = store.node(to).map_or_else(|| to.to_string(), |n| n.description.hostname.clone());
        all.push(entry("task to move", task.meta.updated_at, format!("skep rebalance moves it to {to}")));
    }
    if let Some(end) = task.end.filter(|_| !state.is_final()) {
        let event = if task.is_wanted() { "task waits" } else { "task stopping" };
        all.push(entry(event, task.meta.updated_at, end.as_str().to_owned()));
    }
    all
}

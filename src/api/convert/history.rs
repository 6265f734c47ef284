//! The story of a service: when and why its tasks were made, what became of them and why they ended, and its updates. As far back
//! as tasks are kept (`docker swarm update --task-history-limit`).

use crate::api::wire::HistoryEntry;
use crate::model::{Service, Task, TaskEnd, TaskState, Timestamp};
use crate::store::Store;

/// All that is known, oldest first.
pub fn history(service: &Service, store: &Store) -> Vec<HistoryEntry> {
    let mut all = vec![of_service("created", service.meta.created_at, String::new())];
    if let Some(update) = &service.update
        && let Some(started) = update.started_at
    {
        let began = if update.state.is_rollback() { "rollback started" } else { "update started" };
        let tasks = if update.dirty == 1 { "task" } else { "tasks" };
        all.push(of_service(began, started, format!("{} {tasks} to replace", update.dirty)));
        if !update.state.is_active() {
            let at = update.completed_at.or_else(|| gave_up_at(service, store)).unwrap_or(service.meta.updated_at);
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

/// When an update was paused: its last failure. The service itself may have been changed since.
fn gave_up_at(service: &Service, store: &Store) -> Option<Timestamp> {
    let failed = |task: &&Task| matches!(task.end, Some(TaskEnd::FailedUpdate | TaskEnd::Unplaced));
    store.tasks_of_service(&service.id).filter(failed).map(|task| task.status.timestamp).max()
}

fn of_service(event: &'static str, at: Timestamp, why: String) -> HistoryEntry {
    HistoryEntry { at, event, name: String::new(), task: String::new(), node: String::new(), why }
}

/// What is known of a task, in order.
fn of_task(task: &Task, store: &Store) -> Vec<HistoryEntry> {
    let node = task.shown_node().map(|id| store.node(id).map_or_else(|| id.to_string(), |n| n.description.hostname.clone()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::autoscale::Scaling;
    use crate::model::service::ServiceSpec;
    use crate::model::{ServiceUpdate, TaskCause, UpdateState, fixture};
    use crate::store::{Action, Transaction};
    use std::time::Duration;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().plus(Duration::from_secs(seconds))
    }

    /// A task of slot 1 on `node1`: running and in its last state at these seconds.
    fn task(id: &str, cause: TaskCause, running: u64, last: (u64, TaskState, Option<TaskEnd>, &str)) -> Task {
        let mut task = fixture::task_with_resolvers(id, "web", "node1", &[]);
        let (ended, state, end, err) = last;
        (task.cause, task.started_at, task.end) = (Some(cause), Some(at(running)), end);
        task.status.state = state;
        task.status.timestamp = at(ended);
        err.clone_into(&mut task.status.err);
        task
    }

    #[test]
    fn an_update_that_paused_is_listed_in_order_also_after_a_change_of_the_service() {
        let mut service = fixture::service("web", ServiceSpec { name: "web".to_owned(), ..ServiceSpec::default() });
        let message = "update paused due to failure or early termination of task t2".to_owned();
        let (started_at, dirty) = (Some(at(20)), 1);
        service.update =
            Some(ServiceUpdate { state: UpdateState::Paused, started_at, message, dirty, ..ServiceUpdate::requested(false) });
        service.scalings = vec![Scaling { at: at(15), from: 1, to: 2, connections: 30, per_replica: 20, reason: None }];
        let mut store = Store::default();
        let replaced = (24, TaskState::Shutdown, Some(TaskEnd::Replaced), "");
        let failed = (30, TaskState::Failed, Some(TaskEnd::FailedUpdate), "task: non-zero exit (3)");
        let tasks = [
            (1, task("t1", TaskCause::Replicas, 3, replaced)),
            (21, task("t2", TaskCause::Update, 25, failed)),
            (31, task("t3", TaskCause::Restart, 40, (40, TaskState::Running, None, ""))),
        ];
        store.apply(1, &Transaction::new(at(0), vec![Action::create(service)])).unwrap();
        for (made, task) in tasks {
            store.apply(store.index() + 1, &Transaction::new(at(made), vec![Action::create(task)])).unwrap();
        }
        // A label, an hour later.
        let mut changed = store.service(&"web".into()).unwrap().clone();
        changed.spec.labels.insert("a".to_owned(), "b".to_owned());
        store.apply(store.index() + 1, &Transaction::new(at(3600), vec![Action::update(changed)])).unwrap();

        let service = store.service(&"web".into()).unwrap();
        let line = |entry: &HistoryEntry| {
            format!("{} {} | {} | {} | {}", entry.at.since(at(0)).as_secs(), entry.event, entry.task, entry.node, entry.why)
        };
        let lines: Vec<String> = history(service, &store).iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "0 created |  |  | ",
                "1 task made | t1 | node1 | the service wants another task",
                "3 task running | t1 | node1 | ",
                "15 scaled |  |  | 1 to 2 replicas by load: 30 connections, 20 per replica",
                "20 update started |  |  | 1 task to replace",
                "21 task made | t2 | node1 | update",
                "24 task stopped | t1 | node1 | replaced by an update or rollback",
                "25 task running | t2 | node1 | ",
                "30 paused |  |  | update paused due to failure or early termination of task t2",
                "30 task failed | t2 | node1 | task: non-zero exit (3); failed while the update watched it",
                "31 task made | t3 | node1 | restart of a task that ended",
                "40 task running | t3 | node1 | ",
            ]
        );
    }
}

//! Whose logs a request reads, by one state of the store. Pure.

use crate::model::{NodeId, ServiceId, Task, TaskId, TaskState};
use crate::store::Store;

/// What a client has named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogSelector {
    Service(ServiceId),
    Task(TaskId),
}

/// A task whose log is to be read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LogTarget {
    pub task: TaskId,
    pub service: ServiceId,
    pub node: NodeId,
    /// Its container has a terminal.
    pub tty: bool,
    /// It may still write.
    pub runs: bool,
}

/// What there is to read now.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LogTargets {
    pub targets: Vec<LogTarget>,
    /// Named tasks without a node.
    pub unscheduled: Vec<TaskId>,
    /// What was named is gone, or is a task that has ended: no line can follow.
    pub is_over: bool,
}

/// The tasks whose containers have started. Of a service those without a node are left out: they never had a container.
pub fn targets(store: &Store, selector: &LogSelector) -> LogTargets {
    match selector {
        LogSelector::Service(service) => LogTargets {
            targets: store
                .tasks_of_service(service)
                .filter(|t| t.status.state >= TaskState::Running)
                .filter_map(target)
                .collect(),
            unscheduled: Vec::new(),
            is_over: store.service(service).is_none(),
        },
        LogSelector::Task(id) => {
            let Some(task) = store.task(id) else { return LogTargets { is_over: true, ..LogTargets::default() } };
            LogTargets {
                targets: target(task).filter(|_| task.status.state >= TaskState::Running).into_iter().collect(),
                unscheduled: if task.node_id.is_none() { vec![id.clone()] } else { Vec::new() },
                is_over: task.status.state > TaskState::Running,
            }
        }
    }
}

fn target(task: &Task) -> Option<LogTarget> {
    Some(LogTarget {
        task: task.id.clone(),
        service: task.service_id.clone(),
        node: task.node_id.clone()?,
        tty: task.spec.container_spec.tty,
        runs: task.status.state == TaskState::Running,
    })
}

/// Whether what was named has a terminal: then there are no frames, which such a client does not read.
pub fn has_terminal(store: &Store, selector: &LogSelector) -> bool {
    match selector {
        LogSelector::Service(service) => store.service(service).is_some_and(|s| s.spec.task_template.container_spec.tty),
        LogSelector::Task(task) => store.task(task).is_some_and(|t| t.spec.container_spec.tty),
    }
}

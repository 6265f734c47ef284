//! The next step for every task: a pure function of desired state, containers and records. States and messages are
//! Swarm's, so that `docker service ps` prints the same.

use super::task_record::{StepKind, TaskRecord};
use crate::model::{PortConfig, Task, TaskId, TaskState, TaskStatus, Timestamp, task::ContainerStatus};
use crate::runtime::mounts::mount_error;
use crate::runtime::{Container, ContainerState, Health};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The leader orders the stop of an unhealthy container when no node sends it new traffic. Without that order it is stopped
/// this long after it was reported; longer than the leader may hold a stop back.
pub(super) const UNHEALTHY_HOLD: Duration = Duration::from_secs(10);

/// One decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TaskStep {
    /// Report the status to the managers.
    Report(TaskId, TaskStatus),
    /// Call the engine. One step per task at a time.
    Run(TaskId, StepKind),
    /// Cancel the step in flight.
    Cancel(TaskId),
    /// Plan again at this time.
    Wake(Timestamp),
}

impl fmt::Display for TaskStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Report(task, status) => {
                write!(f, "report {task} {} {:?}", status.state.as_str(), status.message)?;
                if !status.err.is_empty() {
                    write!(f, " err {:?}", status.err)?;
                }
                if status.unhealthy {
                    write!(f, " unhealthy")?;
                }
                if let Some(c) = &status.container {
                    write!(f, " container {} pid {} exit {}", c.container_id, c.pid, c.exit_code)?;
                }
                Ok(())
            }
            Self::Run(task, kind) => write!(f, "{} {task}", format!("{kind:?}").to_lowercase()),
            Self::Cancel(task) => write!(f, "cancel {task}"),
            Self::Wake(at) => write!(f, "wake {}", at.to_rfc3339()),
        }
    }
}

/// From when on something may be decided.
#[derive(Clone, Copy, Debug)]
pub struct PlanTimes {
    /// Containers of unknown tasks are removed.
    pub remove_unassigned_from: Timestamp,
    /// The node starts ended containers again; `None`: the managers decide what follows.
    pub alone_from: Option<Timestamp>,
}

/// Plans for every task of the view, then for containers whose task is not in the view: those are removed, but not before
/// `remove_unassigned_from` if no view of this run had the task.
#[must_use]
pub fn plan(
    tasks: &BTreeMap<TaskId, Arc<Task>>,
    containers: &BTreeMap<TaskId, Container>,
    records: &BTreeMap<TaskId, TaskRecord>,
    times: PlanTimes,
    now: Timestamp,
) -> Vec<TaskStep> {
    let mut steps = Vec::new();
    let blank = TaskRecord::default();
    for (id, task) in tasks {
        let record = records.get(id).unwrap_or(&blank);
        let (container, status, alone_from) = (containers.get(id), record.status.clone(), times.alone_from);
        TaskPlanner { task, container, record, now, alone_from, status, steps: &mut steps }.plan();
    }
    for (id, record) in records.iter().filter(|(id, _)| !tasks.contains_key(id)) {
        leftover(id, containers.get(id), record, times.remove_unassigned_from, now, &mut steps);
    }
    steps
}

/// Plans for a container, or a step in flight, whose task is not in the view: stop, then remove.
fn leftover(
    id: &TaskId,
    container: Option<&Container>,
    record: &TaskRecord,
    remove_unassigned_from: Timestamp,
    now: Timestamp,
    steps: &mut Vec<TaskStep>,
) {
    match record.busy {
        Some((kind, _)) if kind.may_be_cancelled() => steps.push(TaskStep::Cancel(id.clone())),
        Some(_) => return,
        None => {}
    }
    let Some(container) = container else { return };
    let earliest = record.retry_at.unwrap_or_default().max(if record.assigned { Timestamp(0) } else { remove_unassigned_from });
    if earliest > now {
        return steps.push(TaskStep::Wake(earliest));
    }
    steps.push(TaskStep::Run(id.clone(), if container.state.may_run() { StepKind::Stop } else { StepKind::Remove }));
}

/// Plans for one task.
struct TaskPlanner<'a> {
    task: &'a Task,
    container: Option<&'a Container>,
    record: &'a TaskRecord,
    now: Timestamp,
    alone_from: Option<Timestamp>,
    /// The task's status, reports of this plan included.
    status: TaskStatus,
    steps: &'a mut Vec<TaskStep>,
}

impl TaskPlanner<'_> {
    fn plan(mut self) {
        if self.status.state.is_final() {
            return self.clean_up();
        }
        if self.task.desired_state > TaskState::Running {
            return self.shut_down();
        }
        if let Some(error) = &self.record.refused
            && self.record.busy.is_none()
        {
            let state = if self.status.state < TaskState::Starting { TaskState::Rejected } else { TaskState::Failed };
            let message = self.status.message.clone();
            self.report(state, &message, error);
            return;
        }
        match self.container.map(|c| (c, c.state)) {
            None => self.prepare(),
            Some((_, ContainerState::Created)) => self.start(),
            // It is inspected again with the next list.
            Some((_, ContainerState::Unknown)) => {}
            Some((container, ContainerState::Running)) => self.watch(container),
            Some((container, ContainerState::Exited | ContainerState::Removing)) => self.ended(container),
        }
    }

    /// The task is in a final state: a container that still runs is stopped; it is removed once the task is to be removed.
    fn clean_up(&mut self) {
        let Some(container) = self.container else { return };
        if container.state.may_run() {
            self.run(StepKind::Stop);
        } else if self.task.desired_state == TaskState::Remove {
            self.run(StepKind::Remove);
        }
    }

    fn shut_down(&mut self) {
        match self.record.busy {
            Some((kind, _)) if kind.may_be_cancelled() => self.steps.push(TaskStep::Cancel(self.task.id.clone())),
            Some(_) => return,
            None => {}
        }
        if self.container.is_some_and(|c| c.state.may_run()) {
            self.run(StepKind::Stop);
            return;
        }
        match self.container.filter(|_| self.record.unhealthy) {
            // The order to stop came because of that.
            Some(container) if self.record.busy.is_none() => self.ended(container),
            Some(_) => return,
            None => self.report(TaskState::Shutdown, "shutdown", ""),
        }
        self.clean_up();
    }

    /// The task has no container yet.
    fn prepare(&mut self) {
        if self.record.busy.is_some() {
            return;
        }
        if self.record.created || self.status.state >= TaskState::Starting {
            let message = self.status.message.clone();
            self.report(TaskState::Failed, &message, "task: container vanished: it was removed from the engine, but not by skep");
            return;
        }
        self.reach(TaskState::Accepted, "accepted");
        self.reach(TaskState::Preparing, "preparing");
        if let Some(error) = mount_error(&self.task.spec.container_spec) {
            return self.report(TaskState::Rejected, "preparing", &error);
        }
        self.run(if !self.record.fetched {
            StepKind::Fetch
        } else if self.wants_networks() {
            StepKind::Connect
        } else if self.wants_files() {
            if let Some(missing) = &self.record.missing {
                return self.wait_for(missing);
            }
            StepKind::Files
        } else {
            StepKind::Create
        });
    }

    /// The container is created.
    fn start(&mut self) {
        if self.record.busy.is_some() {
            return;
        }
        if self.status.state >= TaskState::Running {
            // The task has run, so this is another container under its labels.
            return self.report(TaskState::Failed, "started", "task: container was replaced, but not by skep");
        }
        if self.status.state < TaskState::Ready {
            let wait = self.crash_loop();
            self.report(TaskState::Ready, "prepared", &wait);
        } else {
            self.reach(TaskState::Ready, "prepared");
        }
        if self.task.desired_state < TaskState::Running {
            return;
        }
        if let Some(at) = self.task.not_before.filter(|at| *at > self.now) {
            return self.steps.push(TaskStep::Wake(at));
        }
        if self.is_prepared() {
            self.reach(TaskState::Starting, "starting");
            self.run(StepKind::Start);
        }
    }

    /// Whether the container may be started; takes the next step to that.
    fn is_prepared(&mut self) -> bool {
        // The networks of an adopted container may have been removed.
        if self.wants_networks() {
            self.run(StepKind::Connect);
            return false;
        }
        // They are in memory: a restart of the node has removed them.
        if self.wants_files() {
            match &self.record.missing {
                Some(missing) => self.wait_for(missing),
                None => self.run(StepKind::Files),
            }
            return false;
        }
        true
    }

    /// Starts an ended container again when it is time, if that is this node's to decide. The managers go on to see the task as it was.
    fn restart(&mut self, end: TaskState) -> bool {
        let alone_from = self.alone_from.filter(|_| !self.record.left_to_managers);
        let Some(at) = self.record.restarts.next(self.task, end, alone_from, self.now) else { return false };
        if at > self.now {
            self.steps.push(TaskStep::Wake(at));
        } else if self.is_prepared() {
            self.run(StepKind::Start);
        }
        true
    }

    /// Why the task waits longer than its restart policy says; empty if it does not.
    fn crash_loop(&self) -> String {
        let count = self.task.failures.count;
        match self.task.not_before.filter(|at| *at > self.now && self.task.failures.delays_grow()) {
            Some(at) => format!("failed {count} times in a row: starts at {}", at.to_rfc3339()),
            None => String::new(),
        }
    }

    /// Reports once what the task waits for.
    fn wait_for(&mut self, missing: &str) {
        let err = format!("waits for {missing}: the managers have not sent it yet");
        if self.status.err != err {
            let (state, message) = (self.status.state, self.status.message.clone());
            self.report(state, &message, &err);
        }
    }

    fn wants_files(&self) -> bool {
        !self.record.files && self.task.spec.container_spec.payloads().next().is_some()
    }

    fn wants_networks(&self) -> bool {
        !self.record.connected && !self.task.attachments.is_empty()
    }

    /// The container runs.
    fn watch(&mut self, container: &Container) {
        match container.health {
            _ if self.record.unhealthy => self.unhealthy(),
            Some(Health::Unhealthy) => self.unhealthy(),
            Some(Health::Starting) => self.reach(TaskState::Starting, "starting"),
            None | Some(Health::Healthy) => self.reach(TaskState::Running, "started"),
        }
    }

    /// The container is unhealthy: it leaves the tables of all nodes before it is stopped. One that never got traffic is stopped
    /// at once.
    fn unhealthy(&mut self) {
        if self.status.state < TaskState::Running || self.task.attachments.is_empty() {
            return self.run(StepKind::Stop);
        }
        if self.record.unhealthy_reported.is_none() {
            let message = self.status.message.clone();
            self.report(TaskState::Running, &message, "");
        }
        let stop_at = self.record.unhealthy_reported.unwrap_or(self.now).plus(UNHEALTHY_HOLD);
        if stop_at <= self.now { self.run(StepKind::Stop) } else { self.steps.push(TaskStep::Wake(stop_at)) }
    }

    /// The container's process has ended, or was stopped because it was unhealthy.
    fn ended(&mut self, container: &Container) {
        if self.record.busy.is_some() {
            return;
        }
        let cause = if self.record.unhealthy {
            "dockerexec: unhealthy container".to_owned()
        } else if container.oom_killed {
            format!("out of memory{}{}", if container.error.is_empty() { "" } else { ": " }, container.error)
        } else {
            container.error.clone()
        };
        let end = if container.exit_code == 0 && !self.record.unhealthy { TaskState::Complete } else { TaskState::Failed };
        // One that is being removed cannot be started.
        if container.state == ContainerState::Exited && self.restart(end) {
            return;
        }
        match (container.exit_code, self.record.unhealthy) {
            (0, false) => self.report(TaskState::Complete, "finished", ""),
            (0, true) => self.report(TaskState::Failed, self.how_far(container), &cause),
            (code, _) => {
                let cause = if cause.is_empty() { cause } else { format!(": {cause}") };
                self.report(TaskState::Failed, self.how_far(container), &format!("task: non-zero exit ({code}){cause}"));
            }
        }
    }

    /// Swarm's word for how far the task got: with a health check it has started when that has passed once.
    fn how_far(&self, container: &Container) -> &'static str {
        let never_healthy = container.health.is_some() && self.status.state < TaskState::Running;
        if never_healthy { "starting" } else { "started" }
    }

    /// Reports a state unless the task is beyond it; the same state again if this run has not reported yet, or if container
    /// or ports have changed.
    fn reach(&mut self, state: TaskState, message: &str) {
        let unreported = self.record.reported.is_none() && self.status.state == state;
        if self.status.state < state
            || unreported
            || (self.status.state == state
                && (self.status.container != self.container_status() || self.status.ports != self.ports()))
        {
            self.report(state, message, "");
        }
    }

    fn report(&mut self, state: TaskState, message: &str, err: &str) {
        self.status = TaskStatus {
            timestamp: self.now,
            state,
            message: message.to_owned(),
            err: err.to_owned(),
            // Clients read the container's status of every task that ended.
            container: self.container_status().or_else(|| (state == TaskState::Rejected).then(ContainerStatus::default)),
            ports: self.ports(),
            unhealthy: self.record.unhealthy && state == TaskState::Running,
        };
        self.steps.push(TaskStep::Report(self.task.id.clone(), self.status.clone()));
    }

    /// Ports that the engine has bound; empty without a container.
    fn ports(&self) -> Vec<PortConfig> {
        self.container.map(|c| c.ports.clone()).unwrap_or_default()
    }

    fn container_status(&self) -> Option<ContainerStatus> {
        match self.container {
            Some(c) => Some(ContainerStatus { container_id: c.id.clone(), pid: c.pid, exit_code: c.exit_code }),
            // The id of a container that vanished is kept in the status, for people.
            None => self.status.container.clone().map(|c| ContainerStatus { pid: 0, ..c }),
        }
    }

    fn run(&mut self, kind: StepKind) {
        if self.record.busy.is_some_and(|(kind, _)| !kind.may_be_cancelled()) {
            return;
        }
        match self.record.retry_at.filter(|at| *at > self.now) {
            Some(at) => self.steps.push(TaskStep::Wake(at)),
            None => self.steps.push(TaskStep::Run(self.task.id.clone(), kind)),
        }
    }
}

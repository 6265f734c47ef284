//! What to do next for every task: a pure function over what is wished, what is there and what is remembered. States and
//! their words are Swarm's, so that `docker service ps` reads the same.

use super::task_record::{TaskRecord, Verb};
use crate::model::{PortConfig, Task, TaskId, TaskState, TaskStatus, Timestamp, task::ContainerStatus};
use crate::runtime::{Container, ContainerState, Health};
use std::collections::BTreeMap;
use std::fmt;

/// One decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Tell the managers.
    Report(TaskId, TaskStatus),
    /// Call the engine. One step per task at a time.
    Run(TaskId, Verb),
    /// Break off the step in flight.
    Cancel(TaskId),
    /// Plan again at this time.
    Wake(Timestamp),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Report(task, status) => {
                write!(f, "report {task} {} {:?}", status.state.as_str(), status.message)?;
                if !status.err.is_empty() {
                    write!(f, " err {:?}", status.err)?;
                }
                if let Some(c) = &status.container {
                    write!(f, " container {} pid {} exit {}", c.container_id, c.pid, c.exit_code)?;
                }
                Ok(())
            }
            Self::Run(task, verb) => write!(f, "{} {task}", format!("{verb:?}").to_lowercase()),
            Self::Cancel(task) => write!(f, "cancel {task}"),
            Self::Wake(at) => write!(f, "wake {}", at.to_rfc3339()),
        }
    }
}

/// Decides for every task of the view, then for containers whose task is not in it: those go, the ones that this run never
/// saw a task of not before `strangers_from`.
#[must_use]
pub fn plan(
    tasks: &BTreeMap<TaskId, Task>,
    containers: &BTreeMap<TaskId, Container>,
    memory: &BTreeMap<TaskId, TaskRecord>,
    strangers_from: Timestamp,
    now: Timestamp,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let blank = TaskRecord::default();
    for (id, task) in tasks {
        let memory = memory.get(id).unwrap_or(&blank);
        Planner { task, container: containers.get(id), memory, now, status: memory.status.clone(), steps: &mut steps }.plan();
    }
    for (id, memory) in memory.iter().filter(|(id, _)| !tasks.contains_key(id)) {
        leftover(id, containers.get(id), memory, strangers_from, now, &mut steps);
    }
    steps
}

/// A container (or a step in flight) without a task: stop, remove.
fn leftover(
    id: &TaskId,
    container: Option<&Container>,
    memory: &TaskRecord,
    strangers_from: Timestamp,
    now: Timestamp,
    steps: &mut Vec<Step>,
) {
    match memory.busy {
        Some((verb, _)) if verb.may_be_cancelled() => steps.push(Step::Cancel(id.clone())),
        Some(_) => return,
        None => {}
    }
    let Some(container) = container else { return };
    let earliest = memory.retry_at.unwrap_or_default().max(if memory.known { Timestamp(0) } else { strangers_from });
    if earliest > now {
        return steps.push(Step::Wake(earliest));
    }
    steps.push(Step::Run(id.clone(), if container.state == ContainerState::Running { Verb::Stop } else { Verb::Remove }));
}

/// Decides for one task.
struct Planner<'a> {
    task: &'a Task,
    container: Option<&'a Container>,
    memory: &'a TaskRecord,
    now: Timestamp,
    /// Where the task is, reports of this plan included.
    status: TaskStatus,
    steps: &'a mut Vec<Step>,
}

impl Planner<'_> {
    fn plan(mut self) {
        if self.status.state.is_final() {
            return self.wind_up();
        }
        if self.task.desired_state > TaskState::Running {
            return self.shut_down();
        }
        if let Some(words) = &self.memory.refused
            && self.memory.busy.is_none()
        {
            let state = if self.status.state < TaskState::Starting { TaskState::Rejected } else { TaskState::Failed };
            let message = self.status.message.clone();
            self.report(state, &message, words);
            return;
        }
        match self.container.map(|c| (c, c.state)) {
            None => self.make(),
            Some((_, ContainerState::Created)) => self.start(),
            Some((container, ContainerState::Running)) => self.keep(container),
            Some((container, ContainerState::Exited | ContainerState::Removing)) => self.ended(container),
        }
    }

    /// The task is over: whatever still runs is stopped; the container goes when the task shall be forgotten.
    fn wind_up(&mut self) {
        let Some(container) = self.container else { return };
        if container.state == ContainerState::Running {
            self.run(Verb::Stop);
        } else if self.task.desired_state == TaskState::Remove {
            self.run(Verb::Remove);
        }
    }

    fn shut_down(&mut self) {
        match self.memory.busy {
            Some((verb, _)) if verb.may_be_cancelled() => self.steps.push(Step::Cancel(self.task.id.clone())),
            Some(_) => return,
            None => {}
        }
        if self.container.is_some_and(|c| c.state == ContainerState::Running) {
            self.run(Verb::Stop);
            return;
        }
        self.report(TaskState::Shutdown, "shutdown", "");
        self.wind_up();
    }

    /// There is no container yet.
    fn make(&mut self) {
        if self.memory.busy.is_some() {
            return;
        }
        if self.memory.made || self.status.state >= TaskState::Starting {
            let message = self.status.message.clone();
            self.report(
                TaskState::Failed,
                &message,
                "task: container vanished: somebody other than skep removed it from the engine",
            );
            return;
        }
        self.reach(TaskState::Accepted, "accepted");
        self.reach(TaskState::Preparing, "preparing");
        self.run(if !self.memory.fetched {
            Verb::Fetch
        } else if self.wants_networks() {
            Verb::Connect
        } else {
            Verb::Create
        });
    }

    /// The container is made.
    fn start(&mut self) {
        if self.memory.busy.is_some() {
            return;
        }
        if self.status.state >= TaskState::Running {
            // It ran once and was put back by somebody.
            return self.report(TaskState::Failed, "started", "task: container was replaced by somebody other than skep");
        }
        self.reach(TaskState::Ready, "prepared");
        if self.task.desired_state < TaskState::Running {
            return;
        }
        if let Some(at) = self.task.not_before.filter(|at| *at > self.now) {
            return self.steps.push(Step::Wake(at));
        }
        // Adopted containers may have lost their networks.
        if self.wants_networks() {
            return self.run(Verb::Connect);
        }
        self.reach(TaskState::Starting, "starting");
        self.run(Verb::Start);
    }

    fn wants_networks(&self) -> bool {
        !self.memory.connected && !self.task.attachments.is_empty()
    }

    /// The container runs.
    fn keep(&mut self, container: &Container) {
        match container.health {
            Some(Health::Unhealthy) => self.run(Verb::Stop),
            Some(Health::Starting) => self.reach(TaskState::Starting, "starting"),
            None | Some(Health::Healthy) => self.reach(TaskState::Running, "started"),
        }
    }

    /// The container's process ended by itself (or because it was unhealthy).
    fn ended(&mut self, container: &Container) {
        if self.memory.busy.is_some() {
            return;
        }
        let cause = if self.memory.unhealthy {
            "dockerexec: unhealthy container".to_owned()
        } else if container.oom_killed {
            format!("out of memory{}{}", if container.error.is_empty() { "" } else { ": " }, container.error)
        } else {
            container.error.clone()
        };
        match (container.exit_code, self.memory.unhealthy) {
            (0, false) => self.report(TaskState::Complete, "finished", ""),
            (0, true) => self.report(TaskState::Failed, "started", &cause),
            (code, _) => {
                let cause = if cause.is_empty() { cause } else { format!(": {cause}") };
                self.report(TaskState::Failed, "started", &format!("task: non-zero exit ({code}){cause}"));
            }
        }
    }

    /// Reports a state on the way, unless the task is past it; once more if this run has not yet reported at all.
    fn reach(&mut self, state: TaskState, message: &str) {
        let unsaid = self.memory.reported.is_none() && self.status.state == state;
        if self.status.state < state
            || unsaid
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
            container: self.container_status(),
            ports: self.ports(),
        };
        self.steps.push(Step::Report(self.task.id.clone(), self.status.clone()));
    }

    /// What the engine bound, as long as it runs.
    fn ports(&self) -> Vec<PortConfig> {
        self.container.map(|c| c.ports.clone()).unwrap_or_default()
    }

    fn container_status(&self) -> Option<ContainerStatus> {
        match self.container {
            Some(c) => Some(ContainerStatus { container_id: c.id.clone(), pid: c.pid, exit_code: c.exit_code }),
            // A vanished one keeps its id, for people who look for it.
            None => self.status.container.clone().map(|c| ContainerStatus { pid: 0, ..c }),
        }
    }

    fn run(&mut self, verb: Verb) {
        if self.memory.busy.is_some_and(|(verb, _)| !verb.may_be_cancelled()) {
            return;
        }
        match self.memory.retry_at.filter(|at| *at > self.now) {
            Some(at) => self.steps.push(Step::Wake(at)),
            None => self.steps.push(Step::Run(self.task.id.clone(), verb)),
        }
    }
}

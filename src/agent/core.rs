//! The agent's state over time, without any IO: events in, effects out. Remembers what it has observed of the engine, runs
//! the [`plan`](super::plan::plan()) after every event and turns its steps into calls. Each call has a number, so that an
//! answer that is late or out of order is recognised.

use super::image_fetch::ImageFetch;
use super::local_restarts::ALONE_AFTER;
use super::plan::{self, PlanTimes, TaskStep};
use super::task_record::{StepKind, TaskRecord};
use crate::model::{
    NetworkId, NodeId, NodeView, Payload, PayloadId, Revision, Task, TaskId, TaskState, TaskStatus, Timestamp, view::NetworkPart,
};
use crate::runtime::{
    Container, ContainerPlan, ContainerState, EngineError, FilePlan, Health, LocalNetwork, NetworkPlan, task_files,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A status that the managers do not show after this time is reported again.
const REPEAT_AFTER: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The desired state, from the managers or from the ledger.
    View(Arc<NodeView>),
    /// The engine answers again; what is remembered of it may be outdated.
    EngineBack,
    /// The engine does not answer, for this reason.
    EngineLost(String),
    /// Answer to [`Effect::List`].
    Listed(u64, Result<(Vec<Container>, Vec<LocalNetwork>), EngineError>),
    /// Answer to [`Effect::Inspect`].
    Inspected(u64, String, Result<Option<Container>, EngineError>),
    /// Answer to [`Effect::ListNetworks`].
    NetworksListed(u64, Result<Vec<LocalNetwork>, EngineError>),
    /// The engine reports an event of this container.
    Changed(String),
    /// Answer to [`Effect::Run`]; for [`Job::Create`] with the container's id.
    Done(TaskId, u64, Result<Option<String>, EngineError>),
    /// Answer to [`Effect::RemoveNetwork`].
    NetworkRemoved(String, Result<(), EngineError>),
    /// A session with the leader is open, or none is.
    Session(bool),
    Tick,
}

/// What the shell is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Report the status to the managers.
    Report(TaskId, TaskStatus),
    /// Call the engine for a task.
    Run(TaskId, u64, Job),
    /// Cancel the call with this number.
    Cancel(TaskId, u64),
    /// List all containers and networks of skep.
    List(u64),
    /// Inspect one container, by the engine's id.
    Inspect(u64, String),
    /// List skep's networks.
    ListNetworks(u64),
    /// Remove a network from the engine, by the engine's id.
    RemoveNetwork(String),
    /// Remove the files of all tasks but these; only these may be written any.
    KeepFiles(BTreeSet<TaskId>),
    /// Send an [`Event::Tick`] at this time.
    Wake(Timestamp),
    /// The view of this revision is acted on.
    Applied(Revision),
    /// Log that the engine does not answer; once per loss.
    LogEngineLost(String),
    /// Log that the engine answers again.
    LogEngineBack,
    /// Log why an image cannot be pulled.
    LogPullFailed(TaskId, String),
    /// Log that an ended container is started again without a manager.
    LogLocalRestart(TaskId),
    /// Log that a call failed and will be retried.
    LogRetry(TaskId, StepKind, String),
}

/// A call to the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// Have the engine fetch an image.
    Fetch(ImageFetch),
    /// Create these networks.
    Connect(Vec<NetworkPlan>),
    /// Write the task's secrets and configs.
    Files(Box<FilePlan>),
    Create(Box<ContainerPlan>),
    /// Start this container, by the engine's id.
    Start(String, Box<ContainerPlan>),
    /// Stop this container; `None`: with the grace period that it was created with.
    Stop(String, Option<Duration>),
    /// Remove this container.
    Remove(String),
}

/// The part of [`super::AgentConfig`] that the core uses; the fields have the same meaning.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    pub me: NodeId,
    pub engine_socket: PathBuf,
    pub skep_socket: Option<PathBuf>,
    pub files: PathBuf,
    pub unassigned_grace: Duration,
}

/// A network of skep on the engine.
#[derive(Debug)]
struct TrackedNetwork {
    network: LocalNetwork,
    /// Being removed.
    busy: bool,
    retry: TaskRecord,
}

/// The agent's state.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    mtu: u32,
    tasks: BTreeMap<TaskId, Arc<Task>>,
    payloads: BTreeMap<PayloadId, Arc<Payload>>,
    networks: BTreeMap<NetworkId, NetworkPart>,
    /// Networks of plain containers, which are not the agent's.
    of_plain: BTreeSet<NetworkId>,
    view: Option<Revision>,
    /// Containers of unknown tasks and unused networks are removed from this time on; set by the first view.
    remove_unassigned_from: Timestamp,
    /// Without a session the node decides from this time on what follows the end of a container; `None`: the managers do.
    alone_from: Option<Timestamp>,
    records: BTreeMap<TaskId, TaskRecord>,
    containers: BTreeMap<TaskId, Container>,
    /// Number of the call that a container's state is from, by the engine's id.
    as_of: BTreeMap<String, u64>,
    local: BTreeMap<String, TrackedNetwork>,
    /// The engine answers, and its containers were listed since.
    up: bool,
    /// Number of the list that is being made.
    listing: Option<u64>,
    /// Another one is wanted after it.
    list_once_more: bool,
    /// When to list again after a list that failed.
    list_again: TaskRecord,
    /// The loss of the engine is logged.
    loss_logged: bool,
    /// Tasks whose files are kept; `None`: what an earlier run has left is not removed yet.
    kept_files: Option<BTreeSet<TaskId>>,
    number: u64,
}

impl Core {
    /// Acts once it has a view and a list of the engine's containers.
    #[must_use]
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            mtu: 0,
            tasks: BTreeMap::new(),
            payloads: BTreeMap::new(),
            networks: BTreeMap::new(),
            of_plain: BTreeSet::new(),
            view: None,
            remove_unassigned_from: Timestamp(i64::MAX),
            alone_from: None,
            records: BTreeMap::new(),
            containers: BTreeMap::new(),
            as_of: BTreeMap::new(),
            local: BTreeMap::new(),
            up: false,
            listing: None,
            list_once_more: false,
            list_again: TaskRecord::default(),
            loss_logged: false,
            kept_files: None,
            number: 0,
        }
    }

    /// MTU in bytes of networks created from now on.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu;
    }

    /// Handles an event; returns the effects in order.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.take(now, event, &mut effects);
        self.act(now, &mut effects);
        effects
    }

    fn next(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn take(&mut self, now: Timestamp, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::View(view) => self.take_view(now, &view),
            Event::EngineBack => self.list(effects),
            Event::EngineLost(reason) => self.lose(reason, effects),
            Event::Listed(number, Ok((containers, networks))) => {
                self.listed(number, effects);
                self.take_list(number, containers);
                self.take_networks(networks);
                self.up = true;
                self.list_again.succeeded();
                if std::mem::take(&mut self.loss_logged) {
                    effects.push(Effect::LogEngineBack);
                }
            }
            Event::NetworksListed(_, Ok(networks)) => self.take_networks(networks),
            Event::Inspected(number, id, Ok(found)) => self.take_inspected(number, &id, found),
            Event::Inspected(number, id, Err(e)) if !matches!(e, EngineError::Unavailable { .. }) => {
                self.inspect_refused(now, number, &id, &e, effects);
            }
            Event::Listed(number, Err(e)) => {
                self.listed(number, effects);
                self.lose(e.to_string(), effects);
                self.list_again.failed(now);
            }
            Event::NetworksListed(_, Err(e)) | Event::Inspected(_, _, Err(e)) => {
                self.lose(e.to_string(), effects);
                self.list_again.failed(now);
            }
            Event::Changed(id) => self.inspect(id, effects),
            Event::Session(true) => {
                self.alone_from = None;
                // What was reported without a session is sent with it: a manager may replace the task from now on.
                for record in self.records.values_mut().filter(|record| record.unhealthy_reported.is_some()) {
                    record.left_to_managers = true;
                }
            }
            Event::Session(false) => drop(self.alone_from.get_or_insert(now.plus(ALONE_AFTER))),
            Event::Done(task, number, result) => self.take_done(now, &task, number, result, effects),
            Event::NetworkRemoved(id, result) => match (result, self.local.get_mut(&id)) {
                (Ok(()), _) => {
                    self.local.remove(&id);
                }
                (Err(error), Some(network)) => {
                    tracing::debug!(network = %network.network.name, %error, "cannot remove the network yet");
                    network.busy = false;
                    network.retry.failed(now);
                }
                (Err(_), None) => {}
            },
            Event::Tick => {
                self.repeat(now, effects);
                if !self.up && self.list_again.retry_at.is_some_and(|at| at <= now) {
                    self.list_again.retry_at = None;
                    self.list(effects);
                }
            }
        }
    }

    /// Lists everything, once the list that is being made is there: that one may not have what has changed since.
    fn list(&mut self, effects: &mut Vec<Effect>) {
        if self.listing.is_some() {
            self.list_once_more = true;
            return;
        }
        let number = self.next();
        self.listing = Some(number);
        effects.push(Effect::List(number));
    }

    /// The list of this number has been answered.
    fn listed(&mut self, number: u64, effects: &mut Vec<Effect>) {
        if self.listing == Some(number) {
            self.listing = None;
            if std::mem::take(&mut self.list_once_more) {
                self.list(effects);
            }
        }
    }

    fn lose(&mut self, reason: String, effects: &mut Vec<Effect>) {
        self.up = false;
        if !std::mem::replace(&mut self.loss_logged, true) {
            effects.push(Effect::LogEngineLost(reason));
        }
    }

    fn take_view(&mut self, now: Timestamp, view: &NodeView) {
        if self.view.is_none() {
            self.remove_unassigned_from = now.plus(self.config.unassigned_grace);
        }
        self.view = Some(view.revision);
        let (plain, tasks): (BTreeMap<_, _>, _) =
            view.tasks.by_id.iter().map(|(id, task)| (id.clone(), task.clone())).partition(|(_, task)| task.attached.is_some());
        self.of_plain = plain.values().flat_map(|task| task.attachments.iter().map(|a| a.network_id.clone())).collect();
        self.tasks = tasks;
        self.payloads.clone_from(&view.tasks.payloads);
        self.networks.clone_from(&view.networks.by_id);
        for (id, task) in &mut self.tasks {
            let record = self.records.entry(id.clone()).or_default();
            record.assigned = true;
            record.missing = task_files::missing(task, &view.tasks.payloads);
            record.desired = record.desired.max(task.desired_state);
            if task.desired_state != record.desired {
                Arc::make_mut(task).desired_state = record.desired;
            }
            // Reported by an earlier run, or a final state set by the managers.
            if task.status.state > record.status.state && (record.reported.is_none() || task.status.state.is_final()) {
                record.status = task.status.clone();
            }
        }
    }

    /// The engine has the container but cannot inspect it: the step is retried.
    fn inspect_refused(&mut self, now: Timestamp, number: u64, id: &str, error: &EngineError, effects: &mut Vec<Effect>) {
        let waiting = self.records.iter_mut().find(|(_, m)| m.busy == Some((StepKind::Inspect, number)));
        if let Some((task, record)) = waiting {
            record.busy = None;
            record.failed(now);
            effects.push(Effect::LogRetry(task.clone(), StepKind::Inspect, format!("container {id}: {error}")));
        }
    }

    fn take_list(&mut self, number: u64, containers: Vec<Container>) {
        let outdated = |as_of: &BTreeMap<String, u64>, id: &String| as_of.get(id).is_none_or(|seen| *seen < number);
        let listed: BTreeSet<String> = containers.iter().map(|c| c.id.clone()).collect();
        let gone: Vec<String> = self.containers.values().map(|c| c.id.clone()).filter(|id| !listed.contains(id)).collect();
        for id in gone.into_iter().filter(|id| outdated(&self.as_of, id)).collect::<Vec<_>>() {
            self.take_inspected(number, &id, None);
        }
        let seen: BTreeSet<String> = self.containers.values().map(|c| c.id.clone()).collect();
        for container in containers {
            // What was seen of a container holds until it answers again.
            let holds = container.state == ContainerState::Unknown && seen.contains(&container.id);
            if !holds && outdated(&self.as_of, &container.id) {
                let id = container.id.clone();
                self.take_inspected(number, &id, Some(container));
            }
        }
        // A list answers every inspection that was requested before it; removed containers need no number any longer.
        for record in self
            .records
            .values_mut()
            .filter(|m| m.busy.is_some_and(|(kind, wanted)| kind == StepKind::Inspect && wanted < number))
        {
            record.busy = None;
        }
        self.as_of.retain(|id, seen| listed.contains(id) || *seen >= number);
    }

    fn take_inspected(&mut self, number: u64, id: &String, found: Option<Container>) {
        if self.as_of.get(id).is_some_and(|seen| *seen > number) {
            return;
        }
        let Some(task) = found.as_ref().and_then(|c| c.task_id.clone()).or_else(|| self.task_of(id)) else { return };
        self.as_of.insert(id.clone(), number);
        let record = self.records.entry(task.clone()).or_default();
        // The state after a step is known now; a list replaces an inspection whose answer was lost.
        if record.busy.is_some_and(|(kind, wanted)| kind == StepKind::Inspect && wanted <= number) {
            record.busy = None;
        }
        match found {
            Some(container) => {
                record.created = true;
                // Not by an answer from before it is started again.
                let is_of_this_start = container.state == ContainerState::Running || record.busy.is_none();
                // A server that was asked to stop does not answer its checks any more: that is no failure, unless the order came for
                // an earlier one.
                let is_to_run = |task: &Arc<Task>| task.desired_state <= TaskState::Running || task.status.unhealthy;
                let counts = is_of_this_start && self.tasks.get(&task).is_none_or(is_to_run);
                record.unhealthy |= container.health == Some(Health::Unhealthy) && counts;
                self.containers.insert(task, container);
            }
            None => {
                if self.containers.get(&task).is_some_and(|c| c.id == *id) {
                    self.containers.remove(&task);
                }
            }
        }
    }

    fn task_of(&self, container_id: &str) -> Option<TaskId> {
        self.containers.iter().find(|(_, c)| c.id == container_id).map(|(task, _)| task.clone())
    }

    fn take_networks(&mut self, networks: Vec<LocalNetwork>) {
        let mut before = std::mem::take(&mut self.local);
        self.local = networks
            .into_iter()
            .map(|network| {
                let id = network.id.clone();
                let new = TrackedNetwork { network, busy: false, retry: TaskRecord::default() };
                (id.clone(), before.remove(&id).unwrap_or(new))
            })
            .collect();
    }

    fn inspect(&mut self, id: String, effects: &mut Vec<Effect>) {
        let number = self.next();
        effects.push(Effect::Inspect(number, id));
    }

    fn take_done(
        &mut self,
        now: Timestamp,
        id: &TaskId,
        number: u64,
        result: Result<Option<String>, EngineError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(record) = self.records.get_mut(id) else { return };
        let Some((kind, _)) = record.busy.filter(|(_, wanted)| *wanted == number) else { return };
        record.busy = None;
        let mut container = self.containers.get(id).map(|c| c.id.clone());
        if let Some(task) = self.tasks.get(id).filter(|_| kind == StepKind::Start) {
            record.restarts.answered(task, result.is_ok(), now);
        }
        match result {
            Ok(made) => {
                record.succeeded();
                match kind {
                    StepKind::Fetch => record.fetched = true,
                    StepKind::Connect => record.connected = true,
                    StepKind::Files => record.files = true,
                    _ => {}
                }
                container = made.or(container);
            }
            Err(error) => {
                let teardown = matches!(kind, StepKind::Stop | StepKind::Remove);
                record.failed(now);
                if error.is_retryable() || teardown {
                    effects.push(Effect::LogRetry(id.clone(), kind, error.to_string()));
                } else {
                    let image = || self.tasks.get(id).map(|t| t.spec.container_spec.image.clone()).unwrap_or_default();
                    record.refused = Some(match kind {
                        StepKind::Start => format!("starting container failed: {error}"),
                        // Docker's text: it begins with what is missing, where that of a registry ends with it.
                        StepKind::Fetch if !matches!(error, EngineError::Panicked(_)) => {
                            effects.push(Effect::LogPullFailed(id.clone(), error.to_string()));
                            format!("No such image: {}", image())
                        }
                        _ => error.to_string(),
                    });
                }
            }
        }
        match (kind, container) {
            (StepKind::Connect, _) => {
                let number = self.next();
                effects.push(Effect::ListNetworks(number));
            }
            // The next step on the container waits until the result of this one is observed.
            (StepKind::Create | StepKind::Start | StepKind::Stop | StepKind::Remove, Some(container)) => {
                let number = self.next();
                if let Some(record) = self.records.get_mut(id) {
                    record.busy = Some((StepKind::Inspect, number));
                }
                effects.push(Effect::Inspect(number, container));
            }
            _ => {}
        }
    }

    /// Repeats statuses that the view still does not show after some time.
    fn repeat(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for (id, record) in &mut self.records {
            let shown = self.tasks.get(id).is_none_or(|task| task.status.state >= record.status.state);
            if !shown && record.reported.is_some_and(|at| now.since(at) >= REPEAT_AFTER) {
                record.reported = Some(now);
                effects.push(Effect::Report(id.clone(), record.status.clone()));
            }
        }
    }

    fn act(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(revision) = self.view else { return };
        if !self.up {
            return effects.extend(self.list_again.retry_at.map(Effect::Wake));
        }
        self.see_ends(now);
        self.keep_files(effects);
        let times = PlanTimes { remove_unassigned_from: self.remove_unassigned_from, alone_from: self.alone_from };
        let mut wake: Option<Timestamp> = None;
        let mut sooner = |at: Timestamp| wake = Some(wake.map_or(at, |w: Timestamp| w.min(at)));
        for step in plan::plan(&self.tasks, &self.containers, &self.records, times, now) {
            match step {
                TaskStep::Report(id, status) => {
                    let record = self.records.entry(id.clone()).or_default();
                    record.status = status.clone();
                    record.reported = Some(now);
                    if status.unhealthy {
                        record.unhealthy_reported.get_or_insert(now);
                        record.left_to_managers |= self.alone_from.is_none();
                    }
                    effects.push(Effect::Report(id, status));
                }
                TaskStep::Run(id, kind) => {
                    let Some(job) = self.job(&id, kind) else { continue };
                    let number = self.next();
                    let again =
                        kind == StepKind::Start && self.containers.get(&id).is_some_and(|c| c.state == ContainerState::Exited);
                    let record = self.records.entry(id.clone()).or_default();
                    record.busy = Some((kind, number));
                    if again {
                        (record.unhealthy, record.unhealthy_reported) = (false, None);
                        record.restarts.start();
                        effects.push(Effect::LogLocalRestart(id.clone()));
                    }
                    effects.push(Effect::Run(id, number, job));
                }
                TaskStep::Cancel(id) => {
                    if let Some((_, number)) = self.records.get_mut(&id).and_then(|m| m.busy.take()) {
                        effects.push(Effect::Cancel(id, number));
                    }
                }
                TaskStep::Wake(at) => sooner(at),
            }
        }
        self.drop_records();
        if now < self.remove_unassigned_from {
            sooner(self.remove_unassigned_from);
        } else {
            let needed = self.needed_networks();
            for (id, network) in
                self.local.iter_mut().filter(|(_, network)| !network.busy && !needed.contains(&network.network.network_id))
            {
                if let Some(at) = network.retry.retry_at.filter(|at| *at > now) {
                    sooner(at);
                    continue;
                }
                network.busy = true;
                effects.push(Effect::RemoveNetwork(id.clone()));
            }
        }
        effects.extend(wake.map(Effect::Wake));
        effects.push(Effect::Applied(revision));
    }

    /// Remembers when containers ended.
    fn see_ends(&mut self, now: Timestamp) {
        for (task, container) in &self.containers {
            if let Some(record) = self.records.get_mut(task).filter(|record| record.busy.is_none()) {
                record.restarts.seen(container.state != ContainerState::Exited, now);
            }
        }
    }

    /// Files are there from before a task's container is created until it can never start again. A container that runs keeps its
    /// files when they are removed.
    fn keep_files(&mut self, effects: &mut Vec<Effect>) {
        let is_kept = |(id, task): &(&TaskId, &Arc<Task>)| {
            let record = self.records.get(*id);
            let can_start = task.desired_state <= TaskState::Running && !record.is_some_and(|r| r.status.state.is_final());
            let is_busy = record.is_some_and(|r| r.busy.is_some());
            task.spec.container_spec.payloads().next().is_some() && (can_start || is_busy)
        };
        let wanted = self.tasks.iter().filter(is_kept).map(|(id, _)| id);
        // The call that is on its way may be the creation of the container, although the task is gone.
        let in_use = self.records.iter().filter(|(_, record)| record.files && record.busy.is_some()).map(|(id, _)| id);
        let keep: BTreeSet<TaskId> = wanted.chain(in_use).cloned().collect();
        if self.kept_files.as_ref() != Some(&keep) {
            self.kept_files = Some(keep.clone());
            effects.push(Effect::KeepFiles(keep));
        }
    }

    /// Drops the records of tasks that have neither an assignment, nor a container, nor a step in flight.
    fn drop_records(&mut self) {
        let (tasks, containers) = (&self.tasks, &self.containers);
        self.records.retain(|id, record| tasks.contains_key(id) || containers.contains_key(id) || record.busy.is_some());
    }

    /// Networks of tasks that run or are to run, of containers that still run, and of plain containers.
    fn needed_networks(&self) -> BTreeSet<NetworkId> {
        let live = self.tasks.iter().filter(|(id, task)| {
            let running = self.containers.get(*id).is_some_and(|c| c.state.may_run());
            let finished =
                self.records.get(*id).is_some_and(|m| m.status.state.is_final()) || task.desired_state > TaskState::Running;
            let busy = self.records.get(*id).is_some_and(|m| m.busy.is_some());
            running || busy || !finished
        });
        let of_tasks = live.flat_map(|(_, task)| task.attachments.iter().map(|a| a.network_id.clone()));
        of_tasks.chain(self.of_plain.iter().cloned()).collect()
    }

    /// The call for a step; `None` while it has to wait.
    fn job(&self, id: &TaskId, kind: StepKind) -> Option<Job> {
        let container = || self.containers.get(id).map(|c| c.id.clone());
        let task = self.tasks.get(id);
        Some(match kind {
            StepKind::Fetch => Job::Fetch(ImageFetch::of(task?)),
            StepKind::Connect => {
                let networks: Vec<NetworkPlan> = self.attachments(task?)?.into_iter().map(|(network, _)| network).collect();
                // Waits while a network of that name is being removed.
                if networks.iter().any(|n| self.local.values().any(|l| l.busy && l.network.name == n.name)) {
                    return None;
                }
                Job::Connect(networks)
            }
            StepKind::Files => {
                let task = Task::clone(task?);
                let needed = task.spec.container_spec.payloads();
                let payloads = needed.filter_map(|id| Some((id.clone(), self.payloads.get(&id)?.clone()))).collect();
                Job::Files(Box::new(FilePlan { task, payloads }))
            }
            StepKind::Create => Job::Create(Box::new(self.container_plan(task?)?)),
            StepKind::Start => Job::Start(container()?, Box::new(self.container_plan(task?)?)),
            StepKind::Stop => Job::Stop(container()?, task.map(|t| t.spec.container_spec.stop_grace())),
            StepKind::Remove => Job::Remove(container()?),
            StepKind::Inspect => return None,
        })
    }

    fn container_plan(&self, task: &Task) -> Option<ContainerPlan> {
        Some(ContainerPlan {
            networks: self.attachments(task)?,
            task: task.clone(),
            node_id: self.config.me.clone(),
            engine_socket: self.config.engine_socket.clone(),
            skep_socket: self.config.skep_socket.clone(),
            files: task_files::file_mounts(&self.config.files, task),
        })
    }

    /// The task's networks and addresses; `None` until the view has all of its networks.
    fn attachments(&self, task: &Task) -> Option<Vec<(NetworkPlan, std::net::Ipv4Addr)>> {
        let plan = |attachment: &crate::model::task::Attachment| {
            let part = self.networks.get(&attachment.network_id)?;
            Some((NetworkPlan::of(attachment.network_id.clone(), part, self.mtu), attachment.address.addr()))
        };
        task.attachments.iter().map(plan).collect()
    }
}

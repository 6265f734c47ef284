//! The agent's state over time, without any IO: events in, effects out. Remembers what it saw of the engine, runs the
//! [`plan`](super::plan::plan()) after every event and turns its steps into calls, each with a number, so that answers which come
//! late or out of order are told apart from those that count.

use super::plan::{self, Step};
use super::task_record::{TaskRecord, Verb};
use crate::model::{NetworkId, NodeId, NodeView, Revision, Task, TaskId, TaskState, TaskStatus, Timestamp, view::NetworkPart};
use crate::runtime::{Container, ContainerPlan, ContainerState, EngineError, Health, LocalNetwork, NetworkPlan};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A status that the managers do not show after this time is reported again.
const REPEAT_AFTER: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The managers (or the ledger) say what shall be.
    View(Arc<NodeView>),
    /// The engine answers (again); whatever was known of it may be wrong.
    EngineBack,
    /// The engine is gone, for this reason.
    EngineLost(String),
    /// Answer to [`Effect::List`].
    Listed(u64, Result<(Vec<Container>, Vec<LocalNetwork>), EngineError>),
    /// Answer to [`Effect::Look`].
    Looked(u64, String, Result<Option<Container>, EngineError>),
    /// Answer to [`Effect::ListNetworks`].
    NetworksListed(u64, Result<Vec<LocalNetwork>, EngineError>),
    /// Something happened to this container.
    Changed(String),
    /// Answer to [`Effect::Run`]; for [`Job::Create`] with the container's id.
    Done(TaskId, u64, Result<Option<String>, EngineError>),
    /// Answer to [`Effect::RemoveNetwork`].
    NetworkRemoved(String, Result<(), EngineError>),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Tell the managers.
    Report(TaskId, TaskStatus),
    /// Call the engine for a task.
    Run(TaskId, u64, Job),
    /// Forget the call with this number.
    Cancel(TaskId, u64),
    /// Look at all containers and networks of ours.
    List(u64),
    /// Look at one container.
    Look(u64, String),
    /// Look at our networks.
    ListNetworks(u64),
    /// Remove a network from the engine, by its id there.
    RemoveNetwork(String),
    /// Come back with a [`Event::Tick`] at this time.
    Wake(Timestamp),
    /// The view of this revision was taken in and acted on.
    Applied(Revision),
    /// Say once that the engine is gone.
    SayLost(String),
    /// Say that it is back.
    SayBack,
    /// Say that a call failed and will be repeated.
    SayRetry(TaskId, Verb, String),
}

/// A call to the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// Use this image or pull it.
    Fetch(String),
    /// Make these networks.
    Connect(Vec<NetworkPlan>),
    /// Make this container.
    Create(Box<ContainerPlan>),
    /// Start this one.
    Start(String, Box<ContainerPlan>),
    /// Stop this one; `None`: with the grace that it was made with.
    Stop(String, Option<Duration>),
    /// Remove this one.
    Remove(String),
}

/// What the core needs of [`super::AgentConfig`].
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This node.
    pub me: NodeId,
    /// Path of the engine's own socket.
    pub engine_socket: PathBuf,
    /// What tasks get in its place.
    pub skep_socket: Option<PathBuf>,
    /// See [`super::AgentConfig::stranger_grace`].
    pub stranger_grace: Duration,
}

/// A network on the engine, as remembered.
#[derive(Debug)]
struct Known {
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
    tasks: BTreeMap<TaskId, Task>,
    networks: BTreeMap<NetworkId, NetworkPart>,
    view: Option<Revision>,
    /// Strangers and unused networks may go from this time on; set by the first view.
    strangers_from: Timestamp,
    memory: BTreeMap<TaskId, TaskRecord>,
    containers: BTreeMap<TaskId, Container>,
    /// Number of the look that a container's state is from, by the engine's id.
    as_of: BTreeMap<String, u64>,
    local: BTreeMap<String, Known>,
    /// The engine answers and was looked at since.
    up: bool,
    /// When to look at everything again after a look that failed.
    list_again: TaskRecord,
    /// The loss was said.
    said_lost: bool,
    number: u64,
}

impl Core {
    /// Knows nothing yet: wants a view and the engine.
    #[must_use]
    pub fn new(config: CoreConfig) -> Self {
        Self {
            config,
            mtu: 0,
            tasks: BTreeMap::new(),
            networks: BTreeMap::new(),
            view: None,
            strangers_from: Timestamp(i64::MAX),
            memory: BTreeMap::new(),
            containers: BTreeMap::new(),
            as_of: BTreeMap::new(),
            local: BTreeMap::new(),
            up: false,
            list_again: TaskRecord::default(),
            said_lost: false,
            number: 0,
        }
    }

    /// MTU that networks made from now on are labelled with.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu;
    }

    /// Takes an event in; what is to be done, in order.
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
            Event::EngineBack => {
                let number = self.next();
                effects.push(Effect::List(number));
            }
            Event::EngineLost(reason) => self.lose(reason, effects),
            Event::Listed(number, Ok((containers, networks))) => {
                self.take_list(number, containers);
                self.take_networks(networks);
                self.up = true;
                self.list_again.succeeded();
                if std::mem::take(&mut self.said_lost) {
                    effects.push(Effect::SayBack);
                }
            }
            Event::NetworksListed(_, Ok(networks)) => self.take_networks(networks),
            Event::Looked(number, id, Ok(found)) => self.take_look(number, &id, found),
            Event::Looked(number, id, Err(e)) if !e.is_retryable() => self.look_refused(now, number, &id, &e, effects),
            Event::Listed(_, Err(e)) | Event::NetworksListed(_, Err(e)) | Event::Looked(_, _, Err(e)) => {
                self.lose(e.to_string(), effects);
                self.list_again.failed(now);
            }
            Event::Changed(id) => self.look(id, effects),
            Event::Done(task, number, result) => self.take_done(now, &task, number, result, effects),
            Event::NetworkRemoved(id, result) => match (result, self.local.get_mut(&id)) {
                (Ok(()), _) => {
                    self.local.remove(&id);
                }
                (Err(error), Some(known)) => {
                    tracing::debug!(network = %known.network.name, %error, "cannot remove the network yet");
                    known.busy = false;
                    known.retry.failed(now);
                }
                (Err(_), None) => {}
            },
            Event::Tick => {
                self.repeat(now, effects);
                if !self.up && self.list_again.retry_at.is_some_and(|at| at <= now) {
                    self.list_again.retry_at = None;
                    let number = self.next();
                    effects.push(Effect::List(number));
                }
            }
        }
    }

    fn lose(&mut self, reason: String, effects: &mut Vec<Effect>) {
        self.up = false;
        if !std::mem::replace(&mut self.said_lost, true) {
            effects.push(Effect::SayLost(reason));
        }
    }

    fn take_view(&mut self, now: Timestamp, view: &NodeView) {
        if self.view.is_none() {
            self.strangers_from = now.plus(self.config.stranger_grace);
        }
        self.view = Some(view.revision);
        self.tasks.clone_from(&view.tasks.by_id);
        self.networks.clone_from(&view.networks.by_id);
        for (id, task) in &self.tasks {
            let memory = self.memory.entry(id.clone()).or_default();
            memory.known = true;
            // What an earlier run reported, or the end that the managers gave it.
            if task.status.state > memory.status.state && (memory.reported.is_none() || task.status.state.is_final()) {
                memory.status = task.status.clone();
            }
        }
    }

    /// The engine knows the container but cannot say what it does: try again what was to be done.
    fn look_refused(&mut self, now: Timestamp, number: u64, id: &str, error: &EngineError, effects: &mut Vec<Effect>) {
        let waiting = self.memory.iter_mut().find(|(_, m)| m.busy == Some((Verb::Look, number)));
        if let Some((task, memory)) = waiting {
            memory.busy = None;
            memory.failed(now);
            effects.push(Effect::SayRetry(task.clone(), Verb::Look, format!("container {id}: {error}")));
        }
    }

    fn take_list(&mut self, number: u64, containers: Vec<Container>) {
        let fresh = |as_of: &BTreeMap<String, u64>, id: &String| as_of.get(id).is_none_or(|seen| *seen < number);
        let listed: BTreeSet<String> = containers.iter().map(|c| c.id.clone()).collect();
        let gone: Vec<String> = self.containers.values().map(|c| c.id.clone()).filter(|id| !listed.contains(id)).collect();
        for id in gone.into_iter().filter(|id| fresh(&self.as_of, id)).collect::<Vec<_>>() {
            self.take_look(number, &id, None);
        }
        for container in containers {
            if fresh(&self.as_of, &container.id) {
                let id = container.id.clone();
                self.take_look(number, &id, Some(container));
            }
        }
        // What was waited for and is not listed is gone; what is gone need not be remembered any longer.
        for memory in
            self.memory.values_mut().filter(|m| m.busy.is_some_and(|(verb, wanted)| verb == Verb::Look && wanted < number))
        {
            memory.busy = None;
        }
        self.as_of.retain(|id, seen| listed.contains(id) || *seen >= number);
    }

    fn take_look(&mut self, number: u64, id: &String, found: Option<Container>) {
        if self.as_of.get(id).is_some_and(|seen| *seen > number) {
            return;
        }
        let Some(task) = found.as_ref().and_then(|c| c.task_id.clone()).or_else(|| self.task_of(id)) else { return };
        self.as_of.insert(id.clone(), number);
        let memory = self.memory.entry(task.clone()).or_default();
        // A look ends the wait for what a step did; the list stands in for a look that was lost.
        if memory.busy.is_some_and(|(verb, wanted)| verb == Verb::Look && wanted <= number) {
            memory.busy = None;
        }
        match found {
            Some(container) => {
                memory.made = true;
                memory.unhealthy |= container.health == Some(Health::Unhealthy);
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
                let known = before.remove(&network.id);
                let known =
                    known.unwrap_or_else(|| Known { network: network.clone(), busy: false, retry: TaskRecord::default() });
                (network.id, known)
            })
            .collect();
    }

    fn look(&mut self, id: String, effects: &mut Vec<Effect>) {
        let number = self.next();
        effects.push(Effect::Look(number, id));
    }

    fn take_done(
        &mut self,
        now: Timestamp,
        id: &TaskId,
        number: u64,
        result: Result<Option<String>, EngineError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(memory) = self.memory.get_mut(id) else { return };
        let Some((verb, _)) = memory.busy.filter(|(_, wanted)| *wanted == number) else { return };
        memory.busy = None;
        let mut container = self.containers.get(id).map(|c| c.id.clone());
        match result {
            Ok(made) => {
                memory.succeeded();
                match verb {
                    Verb::Fetch => memory.fetched = true,
                    Verb::Connect => memory.connected = true,
                    _ => {}
                }
                container = made.or(container);
            }
            Err(error) => {
                let teardown = matches!(verb, Verb::Stop | Verb::Remove);
                memory.failed(now);
                if error.is_retryable() || teardown {
                    effects.push(Effect::SayRetry(id.clone(), verb, error.to_string()));
                } else {
                    memory.refused = Some(match verb {
                        Verb::Start => format!("starting container failed: {error}"),
                        _ => error.to_string(),
                    });
                }
            }
        }
        match (verb, container) {
            (Verb::Connect, _) => {
                let number = self.next();
                effects.push(Effect::ListNetworks(number));
            }
            // Nothing more is done to the container before what became of it was seen.
            (Verb::Create | Verb::Start | Verb::Stop | Verb::Remove, Some(container)) => {
                let number = self.next();
                if let Some(memory) = self.memory.get_mut(id) {
                    memory.busy = Some((Verb::Look, number));
                }
                effects.push(Effect::Look(number, container));
            }
            _ => {}
        }
    }

    /// Statuses that the managers do not show after some time are told again.
    fn repeat(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for (id, memory) in &mut self.memory {
            let shown = self.tasks.get(id).is_none_or(|task| task.status.state >= memory.status.state);
            if !shown && memory.reported.is_some_and(|at| now.since(at) >= REPEAT_AFTER) {
                memory.reported = Some(now);
                effects.push(Effect::Report(id.clone(), memory.status.clone()));
            }
        }
    }

    fn act(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(revision) = self.view else { return };
        if !self.up {
            return effects.extend(self.list_again.retry_at.map(Effect::Wake));
        }
        let mut wake: Option<Timestamp> = None;
        let mut sooner = |at: Timestamp| wake = Some(wake.map_or(at, |w: Timestamp| w.min(at)));
        for step in plan::plan(&self.tasks, &self.containers, &self.memory, self.strangers_from, now) {
            match step {
                Step::Report(id, status) => {
                    let memory = self.memory.entry(id.clone()).or_default();
                    memory.status = status.clone();
                    memory.reported = Some(now);
                    effects.push(Effect::Report(id, status));
                }
                Step::Run(id, verb) => {
                    let Some(job) = self.job(&id, verb) else { continue };
                    let number = self.next();
                    let memory = self.memory.entry(id.clone()).or_default();
                    memory.busy = Some((verb, number));
                    effects.push(Effect::Run(id, number, job));
                }
                Step::Cancel(id) => {
                    if let Some((_, number)) = self.memory.get_mut(&id).and_then(|m| m.busy.take()) {
                        effects.push(Effect::Cancel(id, number));
                    }
                }
                Step::Wake(at) => sooner(at),
            }
        }
        self.forget();
        if now < self.strangers_from {
            sooner(self.strangers_from);
        } else {
            let needed = self.needed_networks();
            for (id, known) in
                self.local.iter_mut().filter(|(_, known)| !known.busy && !needed.contains(&known.network.network_id))
            {
                if let Some(at) = known.retry.retry_at.filter(|at| *at > now) {
                    sooner(at);
                    continue;
                }
                known.busy = true;
                effects.push(Effect::RemoveNetwork(id.clone()));
            }
        }
        effects.extend(wake.map(Effect::Wake));
        effects.push(Effect::Applied(revision));
    }

    /// TaskRecord goes with the last trace of a task.
    fn forget(&mut self) {
        let (tasks, containers) = (&self.tasks, &self.containers);
        self.memory.retain(|id, memory| tasks.contains_key(id) || containers.contains_key(id) || memory.busy.is_some());
    }

    /// Networks of tasks that run or shall, and of containers that still do.
    fn needed_networks(&self) -> BTreeSet<NetworkId> {
        let live = self.tasks.iter().filter(|(id, task)| {
            let running = self.containers.get(*id).is_some_and(|c| c.state == ContainerState::Running);
            let over = self.memory.get(*id).is_some_and(|m| m.status.state.is_final()) || task.desired_state > TaskState::Running;
            let busy = self.memory.get(*id).is_some_and(|m| m.busy.is_some());
            running || busy || !over
        });
        live.flat_map(|(_, task)| task.attachments.iter().map(|a| a.network_id.clone())).collect()
    }

    /// The call for a step; `None` if it has to wait for something else.
    fn job(&self, id: &TaskId, verb: Verb) -> Option<Job> {
        let container = || self.containers.get(id).map(|c| c.id.clone());
        let task = self.tasks.get(id);
        Some(match verb {
            Verb::Fetch => Job::Fetch(task?.spec.container_spec.image.clone()),
            Verb::Connect => {
                let networks: Vec<NetworkPlan> = self.attachments(task?)?.into_iter().map(|(network, _)| network).collect();
                // Not while one of that name is on its way out.
                if networks.iter().any(|n| self.local.values().any(|l| l.busy && l.network.name == n.name)) {
                    return None;
                }
                Job::Connect(networks)
            }
            Verb::Create => Job::Create(Box::new(self.container_plan(task?)?)),
            Verb::Start => Job::Start(container()?, Box::new(self.container_plan(task?)?)),
            Verb::Stop => Job::Stop(container()?, task.map(|t| t.spec.container_spec.stop_grace())),
            Verb::Remove => Job::Remove(container()?),
            Verb::Look => return None,
        })
    }

    fn container_plan(&self, task: &Task) -> Option<ContainerPlan> {
        Some(ContainerPlan {
            networks: self.attachments(task)?,
            task: task.clone(),
            node_id: self.config.me.clone(),
            engine_socket: self.config.engine_socket.clone(),
            skep_socket: self.config.skep_socket.clone(),
        })
    }

    /// The task's networks and addresses; `None` until the view has all of them.
    fn attachments(&self, task: &Task) -> Option<Vec<(NetworkPlan, std::net::Ipv4Addr)>> {
        let plan = |attachment: &crate::model::task::Attachment| {
            let part = self.networks.get(&attachment.network_id)?;
            let network = NetworkPlan {
                id: attachment.network_id.clone(),
                name: part.name.clone(),
                subnet: part.subnet,
                gateway: part.gateway,
                internal: part.internal,
                ingress: part.ingress,
                mtu: self.mtu,
            };
            Some((network, attachment.address.addr()))
        };
        task.attachments.iter().map(plan).collect()
    }
}
